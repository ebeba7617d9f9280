"""What the operator chose: one TOML file, MLXRPC_* variables over it, flags over both.

Read once, into frozen values; nobody else looks at the environment. Each setting has one name in three spellings:
`max_loaded_models` in the file, MLXRPC_MAX_LOADED_MODELS, --max-loaded-models.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlxrpc_server import ranges
from mlxrpc_server.catalog import ModelConfig
from mlxrpc_server.models import Limits
from mlxrpc_server.types import ModelName, SamplingChoice


class ConfigError(Exception):
    """A sentence for the operator; the server does not start."""


@dataclass(frozen=True, slots=True)
class Config:
    models: tuple[ModelConfig, ...]
    """Empty: the built-in model."""
    preload: tuple[ModelName, ...]
    """Loaded before the server is ready."""
    listen: str
    admin: str | None
    log_format: str
    limits: Limits
    max_rows: int
    prefill_tokens: int
    prefix_bytes: int | None
    """None: what the engine thinks right."""
    lame_duck: float
    drain_timeout: float


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    default: Any
    read: Callable[[Any], Any]
    help: str
    metavar: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "MLXRPC_" + self.name.upper()


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B?|B)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    return value


def _address(value: Any) -> str:
    host, separator, port = _text(value).rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT")
    return f"{host}:{port}"


def _loopback(value: Any) -> str:
    address = _address(value)
    host = address.rpartition(":")[0].strip("[]")
    if host != "localhost" and not (_is_ip(host) and ipaddress.ip_address(host).is_loopback):
        raise ValueError("must be a loopback address: the service behind it has no credentials yet")
    return address


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


_MOST = 2**31 - 1
"""Of every whole number: what the contract's messages and the engine can count."""


def _whole(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("must be a whole number")
        try:
            number = int(value)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if number < least:
            raise ValueError(f"must be at least {least}")
        if number > _MOST:
            raise ValueError(f"must be at most {_MOST:,}")
        return number

    return read


def _bits(value: Any) -> int:
    if value not in (4, 8) or not isinstance(value, int):
        raise ValueError("must be 4 or 8")
    return value


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError("must be a number of seconds") from None
    if not 0 <= seconds <= 86_400:
        raise ValueError("must be between 0 and 86400 seconds")
    return seconds


def _size(value: Any) -> int:
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError('must be a size such as "8GiB"')
    size = float(match[1]) * _SIZE_UNITS[(match[2] or "")[:1].upper()]
    if not 1 <= size < 2**63:
        raise ValueError("must be at least one byte and less than 8 EiB")
    return int(size)


def _size_or_none(value: Any) -> int:
    return 0 if str(value).strip() == "0" else _size(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return read


def _folder(value: Any) -> Path:
    folder = Path(_text(value)).expanduser()
    if not folder.is_dir():
        raise ValueError("is not a folder")
    return folder


def _names(value: Any) -> tuple[ModelName, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError("must be a list of names")
    return tuple(ModelName(name.strip()) for name in given if name.strip())


SETTINGS = (
    Setting("listen", "127.0.0.1:50051", _address, "where the service listens", "HOST:PORT"),
    Setting("admin", None, _loopback, "serve the admin service here; off by default", "HOST:PORT"),
    Setting("models_dir", None, _folder, "serve every model folder in this folder", "FOLDER"),
    Setting("preload", None, _names, "models to load before the server is ready; default: the first", "NAMES"),
    Setting("max_loaded_models", 4, _whole(1), "models loaded at a time", "N"),
    Setting("memory_budget", None, _size, "most bytes of weights loaded at a time, such as 24GiB", "SIZE"),
    Setting("longest_wait", 60.0, _seconds, "longest wait for a model, without a nearer deadline", "SECONDS"),
    Setting("max_in_flight", 256, _whole(1), "requests per model at a time, waiting ones included", "N"),
    Setting("max_rows", 64, _whole(1), "requests that one model decodes together", "N"),
    Setting("prefill_tokens", 8192, _whole(16), "most prompt tokens that one step computes", "N"),
    Setting(
        "prefix_bytes",
        None,
        _size_or_none,
        "most bytes per model of earlier prompts' state; 0 for none, default: half the room for keys and values",
        "SIZE",
    ),
    Setting("lame_duck", 2.0, _seconds, "from SIGTERM: not serving for balancers, still serving calls", "SECONDS"),
    Setting("drain_timeout", 30.0, _seconds, "how long running calls may take to end after that", "SECONDS"),
    Setting("log_format", "text", _one_of("text", "json"), "text or json", "FORMAT"),
)


def read_config(argv: Sequence[str], environment: Mapping[str, str], *, program: str = "mlxrpc serve") -> Config:
    arguments = _parser(program).parse_args(argv)
    _check_environment(environment)
    path = arguments.config or environment.get("MLXRPC_CONFIG")
    file = _read_file(Path(path)) if path else {}
    values = {setting.name: _value(setting, file, environment, arguments) for setting in SETTINGS}
    models = _models(file, arguments.model, values["models_dir"])
    preload = values["preload"]
    if preload is None:
        preload = (models[0].name,) if models else None
    _check_preload(preload or (), models)
    _check_room(preload or (), models, values["max_loaded_models"])
    return Config(
        models=models,
        preload=preload if preload is not None else (BUILT_IN,),
        listen=values["listen"],
        admin=values["admin"],
        log_format=values["log_format"],
        limits=Limits(
            max_loaded=values["max_loaded_models"],
            memory_budget=values["memory_budget"],
            longest_wait=values["longest_wait"],
            max_in_flight=values["max_in_flight"],
        ),
        max_rows=values["max_rows"],
        prefill_tokens=values["prefill_tokens"],
        prefix_bytes=values["prefix_bytes"],
        lame_duck=values["lame_duck"],
        drain_timeout=values["drain_timeout"],
    )


BUILT_IN = ModelName("mlxrpc/demo")


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Serve MLX language models over gRPC. With no model named, the built-in one.",
        epilog="Every setting is also a key of the file and a variable MLXRPC_NAME; flags win over variables over the file.",
    )
    parser.add_argument("--config", metavar="FILE", help="a TOML file with settings and [[models]]")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="serve the model in FOLDER under NAME; may be repeated, the first is the default",
    )
    for setting in SETTINGS:
        default = "" if setting.default is None else f" (default {setting.default})"
        parser.add_argument(setting.flag, metavar=setting.metavar, help=setting.help + default)
    return parser


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            read = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check_keys(read, [*(setting.name for setting in SETTINGS), "models"], str(path))
    return read


def _check_environment(environment: Mapping[str, str]) -> None:
    """A mistyped variable would be passed over in silence. What others set beside ours is none of it."""
    known = ["MLXRPC_CONFIG", *(setting.variable for setting in SETTINGS), *_CLIENTS_VARIABLES]
    ours = [name for name, value in environment.items() if name.startswith("MLXRPC_") and not _is_link(name, value)]
    _check_keys(dict.fromkeys(ours), known, "environment")


_CLIENTS_VARIABLES = ("MLXRPC_SERVER", "MLXRPC_TOKEN")

_LINK = re.compile(r"MLXRPC_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


def _is_link(name: str, value: str) -> bool:
    """Whether Kubernetes put it there, as it does in every container for each Service: one may well be named mlxrpc."""
    return bool(_LINK.fullmatch(name)) or (name.endswith("_PORT") and "://" in value)


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ConfigError(f"{where}: unknown key {key!r}; did you mean {nearest[0]!r}?")


def _value(
    setting: Setting, file: Mapping[str, Any], environment: Mapping[str, str], arguments: argparse.Namespace
) -> Any:
    sources = (
        (setting.flag, getattr(arguments, setting.name)),
        (setting.variable, environment.get(setting.variable)),
        (setting.name, file.get(setting.name)),
    )
    for spelling, value in sources:
        if value is not None:
            return _read(setting.read, value, spelling)
    return setting.default


def _read(read: Callable[[Any], Any], value: Any, spelling: str) -> Any:
    try:
        return read(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{spelling} {error} (given: {value!r})") from error


def _models(file: Mapping[str, Any], flags: Sequence[str], folder: Path | None) -> tuple[ModelConfig, ...]:
    """Flags first, since they say what the operator wants now; then the file; then the folder."""
    models = [_from_flag(flag) for flag in flags]
    models += [_from_table(table, place) for place, table in enumerate(_tables(file))]
    if folder is not None:
        found = sorted(path.parent for path in folder.glob("*/config.json"))
        models += [ModelConfig(ModelName(path.name), path) for path in found]
    _check_names(models)
    return tuple(models)


def _tables(file: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = file.get("models", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("models must be tables, each headed [[models]]")
    return tables


def _from_flag(flag: str) -> ModelConfig:
    name, separator, source = flag.partition("=")
    if not separator or not name or not source:
        raise ConfigError(f"--model must be NAME=FOLDER (given: {flag!r})")
    return ModelConfig(ModelName(name), _read(_folder, source, f"--model {name}"))


_MODEL_KEYS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "source": _folder,
    "aliases": _names,
    "display_name": _text,
    "description": _text,
    "tokenizer_source": _folder,
    "context_length": _whole(1),
    "max_output_tokens": _whole(1),
    "pin": _switch,
    "kv_bits": _bits,
    "metal_kernels": _switch,
    "system_prompt": _text,
}


def _from_table(table: Mapping[str, Any], place: int) -> ModelConfig:
    where = f"models[{place}]"
    _check_keys(table, [*_MODEL_KEYS, "defaults"], where)
    for key in ("name", "source"):
        if key not in table:
            raise ConfigError(f"{where}: {key!r} is missing")
    values = {key: _read(read, table[key], f"{where}.{key}") for key, read in _MODEL_KEYS.items() if key in table}
    return ModelConfig(**values, defaults=_defaults(table.get("defaults", {}), f"{where}.defaults"))


def _defaults(table: Any, where: str) -> SamplingChoice:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    readers = {key: partial(ranges.from_file, key) for key in ranges.SAMPLING} | {"logit_bias": ranges.biases_from_file}
    _check_keys(table, list(readers), where)
    return SamplingChoice(**{key: _read(readers[key], table[key], f"{where}.{key}") for key in table})


def _check_names(models: Sequence[ModelConfig]) -> None:
    seen: set[str] = set()
    for model in models:
        for name in (model.name, *model.aliases):
            if name in seen:
                raise ConfigError(f"two models are named {name!r}")
            seen.add(name)


def _check_preload(preload: Sequence[ModelName], models: Sequence[ModelConfig]) -> None:
    known = {name for model in models for name in (model.name, *model.aliases)} or {BUILT_IN}
    for name in preload:
        if name not in known:
            raise ConfigError(f"preload names {name!r}, which is no configured model")


def _check_room(preload: Sequence[ModelName], models: Sequence[ModelConfig], most: int) -> None:
    """That all can be loaded that must be, and that pinned models leave a place to the others."""
    wanted = [model for model in models if not {model.name, *model.aliases}.isdisjoint(preload)]
    if len(wanted) > most:
        raise ConfigError(
            f"preload names {len(wanted)} models and max_loaded_models is {most}: some would push out others"
        )
    pinned = sum(model.pin for model in models)
    if pinned > most:
        raise ConfigError(f"{pinned} models are pinned and max_loaded_models is {most}: some could never be loaded")
    if pinned == most and pinned < len(models):
        raise ConfigError(
            f"{pinned} models are pinned, as many as max_loaded_models: once they are loaded, no other ever can be"
        )
