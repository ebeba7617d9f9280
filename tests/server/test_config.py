from __future__ import annotations

from pathlib import Path

import pytest

from mlxrpc_server.config import BUILT_IN, Config, ConfigError, read_config


def config(*flags: str, **environment: str) -> Config:
    return read_config(flags, environment)


def written(folder: Path, text: str) -> str:
    path = folder / "mlxrpc.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def model_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def test_with_nothing_chosen_the_built_in_model_is_served_and_preloaded() -> None:
    chosen = config()
    assert chosen.models == ()
    assert chosen.preload == (BUILT_IN,)
    assert chosen.listen == "127.0.0.1:50051"
    assert chosen.admin is None
    assert chosen.limits.max_loaded == 4


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'max_loaded_models = 1\nmax_rows = 2\nlisten = "127.0.0.1:1"')
    chosen = config(
        "--config",
        path,
        "--max-loaded-models",
        "3",
        MLXRPC_MAX_LOADED_MODELS="2",
        MLXRPC_MAX_ROWS="5",
    )
    assert (chosen.limits.max_loaded, chosen.max_rows, chosen.listen) == (3, 5, "127.0.0.1:1")


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    assert config(MLXRPC_CONFIG=written(tmp_path, "max_rows = 7")).max_rows == 7


def test_models_come_from_flags_file_and_folder_in_this_order(tmp_path: Path) -> None:
    one, two = model_folder(tmp_path, "one"), model_folder(tmp_path, "two")
    folder = tmp_path / "models"
    model_folder(folder, "b")
    model_folder(folder, "a")
    path = written(tmp_path, f'models_dir = "{folder}"\n[[models]]\nname = "two"\nsource = "{two}"')
    chosen = config("--config", path, "--model", f"one={one}")
    assert [model.name for model in chosen.models] == ["one", "two", "a", "b"]
    assert chosen.preload == ("one",)


def test_a_model_of_the_file_has_every_key(tmp_path: Path) -> None:
    source = model_folder(tmp_path, "m")
    path = written(
        tmp_path,
        f"""
        preload = []
        [[models]]
        name = "m"
        source = "{source}"
        aliases = ["latest"]
        display_name = "M"
        description = "a model"
        tokenizer_source = "{source}"
        context_length = 100
        max_output_tokens = 50
        pin = true
        system_prompt = "Be brief."
        defaults = {{ temperature = 0.5, top_p = 0.9, top_k = 40, min_p = 0.1 }}
        """,
    )
    chosen = config("--config", path)
    (model,) = chosen.models
    assert chosen.preload == ()
    assert (model.aliases, model.context_length, model.max_output_tokens) == (("latest",), 100, 50)
    assert (model.pin, model.system_prompt, model.tokenizer_source) == (True, "Be brief.", source)
    assert (model.defaults.temperature, model.defaults.top_k, model.defaults.min_p) == (0.5, 40, 0.1)


@pytest.mark.parametrize(
    ("size", "number"), [("8GiB", 8 << 30), ("1.5G", 3 << 29), ("512", 512), ("7 MB", 7 << 20)]
)
def test_sizes_are_read_with_their_units(size: str, number: int) -> None:
    assert config("--memory-budget", size).limits.memory_budget == number


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_row = 1", "unknown key 'max_row'; did you mean 'max_rows'?"),
        ("max_rows = 0", "max_rows must be at least 1 (given: 0)"),
        ("max_rows = true", "max_rows must be a whole number (given: True)"),
        ('listen = "here"', "listen must be HOST:PORT (given: 'here')"),
        ('admin = "0.0.0.0:1"', "admin must be a loopback address"),
        ('log_format = "xml"', "log_format must be one of text, json (given: 'xml')"),
        ('memory_budget = "much"', 'memory_budget must be a size such as "8GiB"'),
        ('preload = ["nobody"]', "preload names 'nobody', which is no configured model"),
        ('[[models]]\nname = "m"', "models[0]: 'source' is missing"),
        ('[[models]]\nname = "m"\nsource = "/nowhere"', "models[0].source /nowhere is not a folder"),
        ('[[models]]\nnane = "m"', "models[0]: unknown key 'nane'; did you mean 'name'?"),
        ("max_rows = ", "Invalid value"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config("--config", written(tmp_path, text))
    assert sentence in str(raised.value)


def test_a_mistake_in_a_variable_or_flag_is_named_by_its_spelling() -> None:
    with pytest.raises(ConfigError, match="MLXRPC_MAX_ROWS must be at least 1"):
        config(MLXRPC_MAX_ROWS="0")
    with pytest.raises(ConfigError, match="--max-rows must be at least 1"):
        config("--max-rows", "0")
    with pytest.raises(ConfigError, match="--model must be NAME=FOLDER"):
        config("--model", "m")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*absent.toml"):
        config("--config", str(tmp_path / "absent.toml"))


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path, "m")
    with pytest.raises(ConfigError, match="two models are named 'm'"):
        config("--model", f"m={source}", "--model", f"m={source}")


def test_defaults_out_of_range_are_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path, "m")
    path = written(tmp_path, f'[[models]]\nname = "m"\nsource = "{source}"\ndefaults = {{ top_p = 1.5 }}')
    with pytest.raises(ConfigError, match="a value is out of its range"):
        config("--config", path)
