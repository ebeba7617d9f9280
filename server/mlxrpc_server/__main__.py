"""`mlxrpc serve`: reads the configuration, sets up the log, serves. Exit codes: 0 drained, 2 misconfigured."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from mlxrpc_server.config import Config, ConfigError, read_config
from mlxrpc_server.logs import log_to_stderr


def main(argv: Sequence[str] | None = None) -> int:
    # gRPC would otherwise hook into every fork; workers are started by exec and need none of it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        config = read_config(sys.argv[1:] if argv is None else argv, os.environ)
    except ConfigError as error:
        print(f"mlxrpc serve: {error}", file=sys.stderr)
        return 2
    log_to_stderr(config.log_format)

    code = _serve(config)
    # grpc.aio polls in a daemon thread until its last object is gone, and some hang in cycles. One that is still polling
    # when the interpreter ends aborts the process now and then: seen with grpcio 1.85.1 on CPython 3.11.
    gc.collect()
    return code


def _serve(config: Config) -> int:
    from mlxrpc_server import loop
    from mlxrpc_server.serve import CannotListen, serve

    try:
        loop.run(serve(config, announce))
    except CannotListen as error:
        print(f"mlxrpc serve: {error}", file=sys.stderr)
        return 2
    return 0


def announce(line: str) -> None:
    """On stdout, for people and for programs that wait for it."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
