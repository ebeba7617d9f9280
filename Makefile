# The whole developer interface. Needs make and a Python from 3.11 on, with venv; everything else is installed here, from the
# locks in deploy/locks, into .venv (running, tests, checks), .venv-proto (stubs and buf), .venv-smg (a peer to measure) and
# .venv-lock (new locks).

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Test processes, a file of tests in one of them. Each starts servers with a process per model, so more than four only get in each
# other's way.
WORKERS ?= auto
LISTEN ?= 127.0.0.1:50051
# Where `make demo-variants` writes.
FOLDER ?= build/variants
# Where `make demo-train` keeps its checkpoint and writes 8bit and bf16.
WORK ?= build/pebble

BIN := .venv/bin
PROTO_BIN := .venv-proto/bin
LOCKS := deploy/locks
PROTOS := $(sort $(wildcard proto/mlxrpc/v1/*.proto))
# Where `make proto` writes; the test for stale stubs sets another folder.
STUBS := client
RELEASED := proto/released.binpb
SOURCES := client server tests $(wildcard bench)
INSTALL := -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
COMPILE := .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-annotate --custom-compile-command 'make lock'

.DEFAULT_GOAL := help
.PHONY: help run test check format format-check lint types buf breaking proto lock bench bench-peers demo-train demo-scores demo-variants soak clean

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{printf "make %-14s %s\n", $$1, $$2}'

run: .venv/run ## Serve the built-in model on 127.0.0.1:50051 (LISTEN=HOST:PORT)
	$(BIN)/mlxrpc serve --listen $(LISTEN)

test: .venv/dev .venv-proto/tools ## Run the tests in parallel (WORKERS=2, ARGS="-k name")
	$(PYTEST) -n $(WORKERS) --maxprocesses 4 --dist loadfile $(ARGS)

check: format-check lint types buf breaking test ## What CI runs: format, lint, types, contract, tests (stale stubs among them)

format: .venv/dev ## Format the code
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix-only --quiet $(SOURCES)

format-check: .venv/dev
	$(BIN)/ruff format --check $(SOURCES)

lint: .venv/dev ## Lint the code
	$(BIN)/ruff check $(SOURCES)

types: .venv/dev ## Check the types
	$(BIN)/mypy

buf: .venv-proto/tools
	cd proto && ../$(PROTO_BIN)/buf lint && ../$(PROTO_BIN)/buf format --diff --exit-code

breaking: .venv-proto/tools
ifneq ($(wildcard $(RELEASED)),)
	cd proto && ../$(PROTO_BIN)/buf breaking --against ../$(RELEASED)
else
	@echo "buf breaking: skipped, there is no $(RELEASED) before the first release"
endif

proto: .venv-proto/tools ## Generate the stubs into client/mlxrpc/v1
	PATH=$(PROTO_BIN):$$PATH $(PROTO_BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(STUBS) --grpc_python_out=$(STUBS) \
	  --mypy_out=quiet:$(STUBS) --mypy_grpc_out=quiet:$(STUBS) $(PROTOS)

lock: .venv-lock/bin/uv ## Resolve the dependencies again into deploy/locks (UPGRADE=--upgrade for newer ones)
	$(COMPILE) $(UPGRADE) pyproject.toml --extra cpu --group dev --output-file $(LOCKS)/dev.txt
	$(COMPILE) pyproject.toml --extra cpu --group build --constraint $(LOCKS)/dev.txt --output-file $(LOCKS)/run.txt
	$(COMPILE) pyproject.toml --constraint $(LOCKS)/dev.txt --output-file $(LOCKS)/client.txt
	$(COMPILE) pyproject.toml --resolution lowest-direct --output-file $(LOCKS)/client-oldest.txt
	$(COMPILE) $(UPGRADE) --group proto --output-file $(LOCKS)/proto.txt
	$(COMPILE) $(UPGRADE) --group smg --output-file $(LOCKS)/smg.txt

bench: .venv/dev ## Measure the service beside mlx_lm.server and a loop without a server (ARGS=health for health checks)
	$(BIN)/python bench $(ARGS)

bench-peers: .venv/dev .venv-smg/peer ## The same, beside the smg gRPC servicer too
	$(BIN)/python bench --smg-python .venv-smg/bin/python $(ARGS)

demo-train: .venv/dev ## Train the built-in model into WORK, again to go on (ARGS="--steps 20 --size tiny")
	cd bench && ../$(BIN)/python -m demo.train $(abspath $(WORK)) $(ARGS)
	cd bench && ../$(BIN)/python -m demo.export $(abspath $(WORK)) $(abspath $(WORK))

demo-scores: .venv/dev ## Measure the built-in model's skills (ARGS="--items 50", ARGS="../build/pebble/8bit --bf16 ../build/pebble/bf16")
	cd bench && ../$(BIN)/python -m demo.evaluate $(ARGS)

demo-variants: .venv/dev ## Make models for tests around the built-in one (FOLDER=PATH, NAMES="4bit sliding")
	cd bench && ../$(BIN)/python -m demo.variants $(abspath $(FOLDER)) $(NAMES)

soak: .venv/dev ## Run the long tests
	$(PYTEST) -m soak $(ARGS)

clean: ## Remove everything that make has made
	rm -rf .venv .venv-proto .venv-smg .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

# The stamps: an environment is brought up to its lock whenever the lock is newer.

.venv/bin/python .venv-proto/bin/python .venv-smg/bin/python .venv-lock/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 on with venv was found; say make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)/..

.venv/run: $(LOCKS)/run.txt pyproject.toml | .venv/bin/python
	$(BIN)/python $(INSTALL) --require-hashes -r $(LOCKS)/run.txt
	$(BIN)/python $(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: $(LOCKS)/dev.txt .venv/run
	$(BIN)/python $(INSTALL) --require-hashes -r $(LOCKS)/dev.txt
	@touch $@

.venv-proto/tools: $(LOCKS)/proto.txt | .venv-proto/bin/python
	$(PROTO_BIN)/python $(INSTALL) --require-hashes -r $(LOCKS)/proto.txt
	@touch $@

.venv-smg/peer: $(LOCKS)/smg.txt | .venv-smg/bin/python
	.venv-smg/bin/python $(INSTALL) --require-hashes -r $(LOCKS)/smg.txt
	@touch $@

.venv-lock/bin/uv: | .venv-lock/bin/python
	.venv-lock/bin/python $(INSTALL) 'uv>=0.13,<0.14'
