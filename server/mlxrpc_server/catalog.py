"""The models that this server may serve: what was configured, and what their small files tell.

Reads config files and the headers of weight files, never weights. Knows nothing of what is loaded.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import logging
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxrpc_server import ranges
from mlxrpc_server.errors import ModelNotFound, shortened
from mlxrpc_server.types import ModelName, SamplingChoice

log = logging.getLogger(__name__)

CONTEXT_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
UNKNOWN_CONTEXT_LENGTH = 4096
"""For a model whose config names none: small enough to be safe for any."""
LONGEST_CONTEXT = 2**31 - 1
"""Some configs name what is as good as no limit; the contract counts in 32 bits."""

DRAWS = "draws-1"
"""Names how seeds become tokens; part of every fingerprint. It changes only if that ever does."""

READ_WHOLE = 64 * 1024 * 1024
SAMPLES = 64
SAMPLE_BYTES = 64 * 1024
"""Of a large weight file: its first bytes hold the header, its last ones are looked at too."""

_FINGERPRINTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model as the operator configured it."""

    name: ModelName
    source: Path
    aliases: tuple[str, ...] = ()
    display_name: str = ""
    description: str = ""
    tokenizer_source: Path | None = None
    context_length: int | None = None
    max_output_tokens: int | None = None
    pin: bool = False
    """Never evicted once loaded."""
    kv_bits: int | None = None
    """Of keys and values, 8 or 4: twice or three and a half times as many tokens as in half precision find room, and
    answers change a little. None: as they are computed. On a CPU the products of quantized numbers are plain loops:
    attention takes three times as long."""
    metal_kernels: bool = False
    """On an Apple GPU, decode with kernels of ours, which have never run on one. They are tried at each load, and left
    alone where they compute something else than plain operations do."""
    defaults: SamplingChoice = SamplingChoice()
    system_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Quantization:
    bits: int
    group_size: int
    mode: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model's folder says of it; `problem` where it does not say enough."""

    architecture: str = ""
    context_length: int = UNKNOWN_CONTEXT_LENGTH
    quantization: Quantization | None = None
    parameter_count: int = 0
    weights_bytes: int = 0
    defaults: SamplingChoice = SamplingChoice()
    problem: str = ""


class Entry:
    """A model of the catalog. What its files say is read once, by whoever asks first, and kept."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._facts: Facts | None = None
        self._fingerprint: str | None = None
        self._reading: asyncio.Future[str] | None = None

    @property
    def name(self) -> ModelName:
        return self.config.name

    @property
    def tokenizer_path(self) -> Path:
        return self.config.tokenizer_source or self.config.source

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            self._facts = read_facts(self.config.source)
        return self._facts

    @property
    def context_length(self) -> int:
        return self.config.context_length or self.facts.context_length

    @property
    def defaults(self) -> SamplingChoice:
        return self.config.defaults.over(self.facts.defaults)

    @property
    def fingerprint(self) -> str:
        """Equal where the same request gives the same tokens: files, defaults and the way of drawing.

        Its first reading touches every weight file; on an event loop ask `read_fingerprint`.
        """
        if self._fingerprint is None:
            self._fingerprint = self._computed()
        return self._fingerprint

    async def read_again(self) -> None:
        """Before each load, off the loop: the folder may have been repaired, or its files replaced."""
        self._facts = await asyncio.to_thread(read_facts, self.config.source)
        self._fingerprint = None

    async def read_fingerprint(self) -> str:
        """All that ask meanwhile wait for one reading, in a thread; a failed one is tried again by the next."""
        if self._fingerprint is not None:
            return self._fingerprint
        if self._reading is None:
            self._reading = asyncio.get_running_loop().run_in_executor(None, lambda: self.fingerprint)
            self._reading.add_done_callback(self._has_read)
        return await asyncio.shield(self._reading)

    def _has_read(self, _: asyncio.Future[str]) -> None:
        self._reading = None

    def _computed(self) -> str:
        digest = hashlib.sha256(DRAWS.encode())
        digest.update(repr((self.defaults, self.config.system_prompt)).encode())
        if self.config.kv_bits is not None:
            digest.update(f"kv_bits {self.config.kv_bits}".encode())
        for folder in dict.fromkeys((self.config.source, self.tokenizer_path)):
            for name in _FINGERPRINTED:
                if (folder / name).is_file():
                    digest.update(name.encode() + (folder / name).read_bytes())
        for path in _weight_files(self.config.source):
            digest.update(_weights_identity(path))
        return digest.hexdigest()[:32]


class Catalog:
    """All models by name and alias; the first configured is the default."""

    def __init__(self, configs: Sequence[ModelConfig]) -> None:
        self._entries = [Entry(config) for config in configs]
        self._by_name = {name: entry for entry in self._entries for name in (entry.config.name, *entry.config.aliases)}

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self._entries, key=lambda entry: entry.name))

    def read_facts(self) -> None:
        """Reads every model's small files now, in a thread at the start, so that nobody waits for a disk later."""
        for entry in self._entries:
            entry.facts  # noqa: B018

    def find(self, name: str) -> Entry:
        """The model of that name or alias; the default where the name is empty."""
        if not name:
            return self._entries[0]
        if (entry := self._by_name.get(name)) is not None:
            return entry
        raise ModelNotFound(name, difflib.get_close_matches(name[:256], self._by_name, n=3, cutoff=0.5))


def read_facts(folder: Path) -> Facts:
    try:
        config = _read_json(folder / "config.json")
        text = {**config, **(config.get("text_config") or {})}
        quantization = _quantization(config)
        parameters, weights_bytes = _count_weights(folder, quantization)
        return Facts(
            architecture=str(config.get("model_type", "")),
            context_length=_context_length(text),
            quantization=quantization,
            parameter_count=parameters,
            weights_bytes=weights_bytes,
            defaults=_generation_defaults(folder / "generation_config.json"),
        )
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        struct.error,
    ) as error:
        return Facts(problem=f"{type(error).__name__}: {error}")


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _context_length(config: dict[str, Any]) -> int:
    for key in CONTEXT_LENGTH_KEYS:
        value = config.get(key)
        if type(value) is int and value > 0:
            return min(value, LONGEST_CONTEXT)
    return UNKNOWN_CONTEXT_LENGTH


def _quantization(config: dict[str, Any]) -> Quantization | None:
    given = config.get("quantization") or config.get("quantization_config")
    if not isinstance(given, dict) or "bits" not in given:
        return None
    bits, group_size = int(given["bits"]), int(given.get("group_size", 0))
    if not 0 < bits <= 64 or not 0 <= group_size < 2**31:
        raise ValueError(f"a quantization to {bits} bits in groups of {group_size} cannot be")
    return Quantization(bits, group_size, str(given.get("mode", "affine")))


def _generation_defaults(path: Path) -> SamplingChoice:
    """What a model's authors recommend, as far as it can be followed; what cannot is told once, in the log."""
    if not path.is_file():
        return SamplingChoice()
    given = {name: value for name, value in _read_json(path).items() if value is not None}
    if given.get("do_sample") is False:
        given["temperature"] = 0.0
    values: dict[str, Any] = {}
    for name in ranges.SAMPLING.keys() & given.keys():
        try:
            values[name] = ranges.from_file(name, given[name])
        except ValueError as error:
            log.warning("%s: %s is passed over: it %s, not %s", path, name, error, shortened(repr(given[name])))
    return SamplingChoice(**values)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("model*.safetensors") if path.is_file())


def _count_weights(folder: Path, quantization: Quantization | None) -> tuple[int, int]:
    """Parameters and bytes. A packed matrix holds several parameters in each of its words."""
    parameters = size = 0
    if not (files := _weight_files(folder)):
        raise FileNotFoundError(f"no model*.safetensors in {folder}")
    for path in files:
        tensors = {name: tensor for name, tensor in _header(path).items() if name != "__metadata__"}
        for name, tensor in tensors.items():
            begin, end = tensor["data_offsets"]
            size += end - begin
            prefix, _, kind = name.rpartition(".")
            packed = f"{prefix}.scales" in tensors
            if packed and kind in ("scales", "biases"):
                continue
            words = math.prod(tensor["shape"])
            parameters += words * 32 // quantization.bits if packed and quantization else words
    return parameters, size


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"{path.name} is not a safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
        return header


def _weights_identity(path: Path) -> bytes:
    """Tells weight files apart without reading gigabytes: a small file whole, of a large one samples from all over."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        if size <= READ_WHOLE:
            digest.update(file.read())
        else:
            for place in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * place // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()
