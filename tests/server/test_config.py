from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlxrpc_server.config import BUILT_IN, Config, ConfigError, read_config
from mlxrpc_server.types import SamplingChoice


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


@pytest.mark.parametrize(
    ("text", "prefix_bytes"), [("", None), ("prefix_bytes = 0", 0), ('prefix_bytes = "2GiB"', 2 << 30)]
)
def test_what_earlier_prompts_may_take_is_nothing_or_a_size_or_left_to_the_engine(
    tmp_path: Path, text: str, prefix_bytes: int | None
) -> None:
    assert config(MLXRPC_CONFIG=written(tmp_path, text)).prefix_bytes == prefix_bytes


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
        kv_bits = 8
        metal_kernels = true
        system_prompt = "Be brief."
        defaults = {{ temperature = 0.5, top_p = 0.9, top_k = 40, repetition_penalty = 1.1, logit_bias = {{ 5 = -1 }} }}
        """,
    )
    chosen = config("--config", path)
    (model,) = chosen.models
    assert chosen.preload == ()
    assert (model.aliases, model.context_length, model.max_output_tokens) == (("latest",), 100, 50)
    assert (model.pin, model.kv_bits, model.system_prompt, model.tokenizer_source) == (True, 8, "Be brief.", source)
    assert model.metal_kernels
    assert model.defaults == SamplingChoice(0.5, 0.9, 40, repetition_penalty=1.1, logit_bias=((5, -1.0),))


@pytest.mark.parametrize(("size", "number"), [("8GiB", 8 << 30), ("1.5G", 3 << 29), ("512", 512), ("7 MB", 7 << 20)])
def test_sizes_are_read_with_their_units(size: str, number: int) -> None:
    assert config("--memory-budget", size).limits.memory_budget == number


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prefix_bytes = -1", 'prefix_bytes must be a size such as "8GiB" (given: -1)'),
        ("max_row = 1", "unknown key 'max_row'; did you mean 'max_rows'?"),
        ("max_rows = 0", "max_rows must be at least 1 (given: 0)"),
        ("max_rows = true", "max_rows must be a whole number (given: True)"),
        ('listen = "here"', "listen must be HOST:PORT (given: 'here')"),
        ('admin = "0.0.0.0:1"', "admin must be a loopback address"),
        ('log_format = "xml"', "log_format must be one of text, json (given: 'xml')"),
        ('memory_budget = "much"', 'memory_budget must be a size such as "8GiB"'),
        ("memory_budget = -1", 'memory_budget must be a size such as "8GiB" (given: -1)'),
        ("memory_budget = 0", "memory_budget must be at least one byte"),
        ('memory_budget = "9999999T"', "memory_budget must be at least one byte and less than 8 EiB"),
        ("memory_budget = true", 'memory_budget must be a size such as "8GiB"'),
        ("max_rows = 2147483648", "max_rows must be at most 2,147,483,647"),
        ("models = 3", "models must be tables, each headed [[models]]"),
        ('models = ["m"]', "models must be tables, each headed [[models]]"),
        ('preload = ["nobody"]', "preload names 'nobody', which is no configured model"),
        ('[[models]]\nname = "m"', "models[0]: 'source' is missing"),
        ('[[models]]\nname = "m"\nsource = "/nowhere"', "models[0].source is not a folder (given: '/nowhere')"),
        ('[[models]]\nnane = "m"', "models[0]: unknown key 'nane'; did you mean 'name'?"),
        ("max_rows = ", "Invalid value"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config("--config", written(tmp_path, text))
    assert sentence in str(raised.value)


def test_keys_and_values_have_eight_bits_or_four(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv_bits must be 4 or 8 \(given: 5\)"):
        several(tmp_path, "kv_bits = 5")


def test_a_mistake_in_a_variable_or_flag_is_named_by_its_spelling() -> None:
    with pytest.raises(ConfigError, match="MLXRPC_MAX_ROWS must be at least 1"):
        config(MLXRPC_MAX_ROWS="0")
    with pytest.raises(ConfigError, match="--max-rows must be at least 1"):
        config("--max-rows", "0")
    with pytest.raises(ConfigError, match="--model must be NAME=FOLDER"):
        config("--model", "m")


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("MLXRPC_MAX_ROWS", "MLXRPC_MAX_ROWS must be a whole number (given: 'many')"),
        ("MLXRPC_LAME_DUCK", "MLXRPC_LAME_DUCK must be a number of seconds (given: 'many')"),
    ],
)
def test_a_word_in_a_numbers_place_is_told_what_belongs_there(variable: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        config(**{variable: "many"})


@pytest.mark.parametrize(
    "mistyped, meant",
    [
        ("MLXRPC_MAX_ROW", "MLXRPC_MAX_ROWS"),
        ("MLXRPC_LISTEN_", "MLXRPC_LISTEN"),
        ("MLXRPC_CONFIGS", "MLXRPC_CONFIG"),
        ("MLXRPC_PORT", ""),
        ("MLXRPC_MODEL", "MLXRPC_MODELS_DIR"),
    ],
)
def test_a_mistyped_variable_is_told_with_the_nearest_one(mistyped: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"^environment: unknown key '{mistyped}'; did you mean '{meant}"):
        config(**{mistyped: "1"})


def test_variables_of_others_are_let_be() -> None:
    kubernetes = {
        "MLXRPC_SERVICE_HOST": "10.0.0.1",
        "MLXRPC_SERVICE_PORT": "50051",
        "MLXRPC_SERVICE_PORT_GRPC": "50051",
        "MLXRPC_ADMIN_PORT": "tcp://10.0.0.2:50052",
        "MLXRPC_PORT": "tcp://10.0.0.1:50051",
        "MLXRPC_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "MLXRPC_PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    clients = {"MLXRPC_SERVER": "127.0.0.1:50051", "MLXRPC_TOKEN": "secret"}
    assert config(**kubernetes, **clients, MLXRPCX="1", PATH="/bin") == config()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml"):
        config("--config", str(tmp_path / "absent.toml"))


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path, "m")
    with pytest.raises(ConfigError, match="two models are named 'm'"):
        config("--model", f"m={source}", "--model", f"m={source}")


@pytest.mark.parametrize(
    ("defaults", "sentence"),
    [
        ("{ top_p = 1.5 }", "defaults.top_p must be above 0 and at most 1 (given: 1.5)"),
        ("{ temperature = nan }", "defaults.temperature must be 0 to 100 (given: nan)"),
        ("{ temperature = -0.1 }", "defaults.temperature must be 0 to 100"),
        ('{ temperature = "hot" }', "defaults.temperature must be a number"),
        ("{ top_k = 4294967296 }", "defaults.top_k must be 0 to 4,294,967,295"),
        ("{ top_k = -1 }", "defaults.top_k must be 0 to"),
        ("{ top_k = 1.5 }", "defaults.top_k must be a whole number"),
        ("{ min_p = true }", "defaults.min_p must be a number"),
        ("{ min_tokens_to_keep = 0 }", "defaults.min_tokens_to_keep must be 1 to 4,294,967,295"),
        ("{ repetition_penalty = 0 }", "defaults.repetition_penalty must be above 0 and at most 100 (given: 0)"),
        ("{ repetition_context_size = 0.5 }", "defaults.repetition_context_size must be a whole number"),
        ("{ logit_bias = 3 }", "defaults.logit_bias must be a table of at most 1,024 token ids"),
        ("{ logit_bias = { x = 1 } }", "defaults.logit_bias must have token ids for keys, not 'x'"),
        ("{ logit_bias = { 4 = 101 } }", "defaults.logit_bias must have numbers, -100 to 100"),
        ("{ topp = 1 }", "defaults: unknown key 'topp'; did you mean 'top_p'?"),
        ("3", "defaults must be a table"),
    ],
)
def test_defaults_out_of_range_are_refused(tmp_path: Path, defaults: str, sentence: str) -> None:
    source = model_folder(tmp_path, "m")
    path = written(tmp_path, f'[[models]]\nname = "m"\nsource = "{source}"\ndefaults = {defaults}')
    with pytest.raises(ConfigError) as raised:
        config("--config", path)
    assert f"models[0].{sentence}" in str(raised.value)


def several(folder: Path, *models: str, **settings: object) -> Config:
    """As many models as there are texts, each text being more lines of its table; they are named a, b, c, ..."""
    source = model_folder(folder, "source")
    tables = [
        f'[[models]]\nname = "{name}"\nsource = "{source}"\n{lines}'
        for name, lines in zip("abcdef", models, strict=False)
    ]
    chosen = [f"{name} = {value}" for name, value in settings.items()]
    return config("--config", written(folder, "\n".join([*chosen, *tables])))


PIN = "pin = true"


def test_more_models_to_preload_than_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preload names 3 models and max_loaded_models is 2"):
        several(tmp_path, "", "", "", preload=["a", "b", "c"], max_loaded_models=2)


def test_a_model_that_preload_names_twice_takes_one_place(tmp_path: Path) -> None:
    chosen = several(tmp_path, 'aliases = ["x"]', "", preload=["a", "x", "b"], max_loaded_models=2)
    assert chosen.preload == ("a", "x", "b")


def test_more_pinned_models_than_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 models are pinned and max_loaded_models is 1"):
        several(tmp_path, PIN, PIN, max_loaded_models=1)


def test_pinned_models_that_leave_no_place_to_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 models are pinned, as many as max_loaded_models"):
        several(tmp_path, PIN, PIN, "", max_loaded_models=2)


def test_pinned_models_may_fill_every_place_where_there_are_no_others(tmp_path: Path) -> None:
    assert [model.pin for model in several(tmp_path, PIN, PIN, max_loaded_models=2).models] == [True, True]
