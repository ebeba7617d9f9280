"""What a model's small files tell, and how models are found."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten

from mlxrpc_server import catalog
from mlxrpc_server.catalog import Catalog, Entry, Facts, ModelConfig, Quantization, read_facts
from mlxrpc_server.errors import ModelNotFound
from mlxrpc_server.types import ModelName, SamplingChoice
from tests import fakes, noise_model
from tests.engine import tiny


def entry(folder: Path, **config: Any) -> Entry:
    return Entry(ModelConfig(ModelName("m"), folder, **config))


def save(folder: Path, model: Any, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"} | config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def parameters(model: Any) -> int:
    leaves: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return sum(array.size for array in leaves.values())


# Facts


def test_a_models_facts_are_read() -> None:
    facts = read_facts(noise_model.folder())
    assert (facts.architecture, facts.context_length, facts.quantization, facts.problem) == ("qwen3", 4096, None, "")
    assert facts.weights_bytes == 4 * facts.parameter_count > 4_000_000


def test_parameters_and_bytes_of_plain_weights_are_counted(tmp_path: Path) -> None:
    model = tiny.attention()
    facts = read_facts(save(tmp_path / "m", model))
    assert (facts.parameter_count, facts.weights_bytes) == (parameters(model), 4 * parameters(model))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_quantized_weights_count_as_the_parameters_that_they_stand_for(tmp_path: Path, bits: int) -> None:
    model = tiny.attention()
    before = parameters(model)
    quantize(model, group_size=32, bits=bits, class_predicate=lambda _path, part: is_wide(part))
    facts = read_facts(save(tmp_path / "m", model, quantization={"group_size": 32, "bits": bits}))
    assert facts.quantization == Quantization(bits=bits, group_size=32, mode="affine")
    assert facts.parameter_count == before
    assert facts.weights_bytes < 4 * before


def is_wide(part: Any) -> bool:
    return hasattr(part, "to_quantized") and part.weight.shape[-1] % 32 == 0


def test_weights_in_several_files_are_counted_together(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", tiny.attention())
    one = read_facts(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    mx.save_safetensors(str(folder / "model-00002-of-00002.safetensors"), {"more": mx.zeros((5, 7))})
    facts = read_facts(folder)
    assert facts.parameter_count == one.parameter_count + 35
    assert facts.weights_bytes == one.weights_bytes + 140


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 77}, 77),
        ({"max_position_embeddings": None, "n_positions": 55}, 55),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 99}}, 99),
        ({"max_position_embeddings": 66, "text_config": None}, 66),
        ({"max_position_embeddings": None}, catalog.UNKNOWN_CONTEXT_LENGTH),
        ({"max_position_embeddings": 0}, catalog.UNKNOWN_CONTEXT_LENGTH),
        ({"max_position_embeddings": True}, catalog.UNKNOWN_CONTEXT_LENGTH),
        ({"max_position_embeddings": 10**12}, catalog.LONGEST_CONTEXT),
    ],
)
def test_the_context_length_is_where_its_kind_of_model_keeps_it(
    tmp_path: Path, config: dict[str, Any], expected: int
) -> None:
    assert read_facts(fakes.model_folder(tmp_path / "m", **config)).context_length == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}, SamplingChoice(0.6, 0.9, 20, 0.1)),
        ({"do_sample": False, "temperature": 0.6}, SamplingChoice(temperature=0.0)),
        ({"top_k": 50}, SamplingChoice(top_k=50)),
        ({"repetition_penalty": 1.05}, SamplingChoice(repetition_penalty=1.05)),
        ({}, SamplingChoice()),
    ],
)
def test_sampling_defaults_are_the_generation_configs(
    tmp_path: Path, given: dict[str, object], expected: SamplingChoice
) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(given))
    assert read_facts(folder).defaults == expected


UNUSABLE = [
    {"top_k": -1},
    {"top_k": 2**32},
    {"top_k": 1.5},
    {"top_k": 10**400},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": -0.5},
    {"temperature": "hot"},
    {"temperature": True},
    {"top_p": 0},
    {"min_p": 1.5},
    {"repetition_penalty": 0},
    {"xtc_threshold": 0.6},
    {"presence_penalty": 9},
]


@pytest.mark.parametrize("given", UNUSABLE, ids=lambda given: next(iter(given)))
def test_what_cannot_be_followed_of_the_generation_config_is_passed_over_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: dict[str, object]
) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 0.9, "min_p": 0.1} | given))
    facts = read_facts(folder)
    (name,) = given
    others = {"top_p": 0.9, "min_p": 0.1} | {name: None}
    assert (facts.problem, facts.defaults.top_p, facts.defaults.min_p) == ("", others["top_p"], others["min_p"])
    assert (facts.defaults.temperature, facts.defaults.top_k) == (None, None)
    (record,) = caplog.records
    assert name in record.getMessage()


def test_what_the_generation_config_leaves_open_is_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": None, "top_k": None}))
    assert read_facts(folder).defaults == SamplingChoice()
    assert not caplog.records


def test_a_models_facts_are_read_once(tmp_path: Path) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    known = entry(folder)
    first = known.facts
    (folder / "config.json").unlink()
    assert known.facts is first


def test_what_the_operator_chose_stands_over_what_the_files_say(tmp_path: Path) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    chosen = entry(folder, defaults=SamplingChoice(temperature=0.2), context_length=64)
    assert chosen.defaults == SamplingChoice(temperature=0.2, top_k=20)
    assert (chosen.context_length, entry(folder).context_length) == (64, 128)


def test_a_folder_that_is_not_there_is_a_problem_in_words(tmp_path: Path) -> None:
    assert "config.json" in read_facts(tmp_path / "nowhere").problem


def test_missing_weights_are_a_problem_in_words(tmp_path: Path) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    assert "no model*.safetensors in" in read_facts(folder).problem


BROKEN = [
    ("config.json", b"{"),
    ("config.json", b"[]"),
    ("config.json", b"\xff\xfe"),
    ("generation_config.json", b"null"),
    ("config.json", b"[" * 100_000),
    ("config.json", b'{"quantization": {"bits": Infinity}}'),
    ("config.json", b'{"quantization": {"bits": 0}}'),
    ("config.json", b'{"quantization": {"bits": 4, "group_size": -1}}'),
    ("model.safetensors", b""),
    ("model.safetensors", b"\x05\x00"),
    ("model.safetensors", b"\xff" * 100),
    ("model.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00[]"),
    ("model.safetensors", b'\x0a\x00\x00\x00\x00\x00\x00\x00{"a": {}} '),
]


@pytest.mark.parametrize(("name", "content"), BROKEN)
def test_a_broken_file_is_a_problem_in_words(tmp_path: Path, name: str, content: bytes) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    (folder / name).write_bytes(content)
    facts = read_facts(folder)
    assert ": " in facts.problem
    assert facts == Facts(problem=facts.problem)


# Fingerprints


def test_a_fingerprint_is_the_same_for_the_same_files_wherever_they_lie(tmp_path: Path) -> None:
    one, other = fakes.model_folder(tmp_path / "one"), fakes.model_folder(tmp_path / "other")
    assert entry(one).fingerprint == entry(one).fingerprint == entry(other).fingerprint


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
    ],
)
def test_a_fingerprint_changes_with_every_small_file(tmp_path: Path, name: str) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    seen = {entry(folder).fingerprint}
    for content in ('{"a": 1}', '{"a": 2}'):
        (folder / name).write_text(content)
        seen.add(entry(folder).fingerprint)
    assert len(seen) == 3


@given(data=st.data())
def test_a_fingerprint_changes_with_every_byte_of_the_weights(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = fakes.model_folder(tmp_path_factory.mktemp("weights") / "m", weights=5_000)
    before = entry(folder).fingerprint
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 0x10
    path.write_bytes(content)
    assert entry(folder).fingerprint != before


def test_of_a_large_weight_file_both_ends_count(tmp_path: Path) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    seen = set()
    for place in (None, 0, catalog.READ_WHOLE + 999):
        with path.open("wb") as file:
            file.truncate(catalog.READ_WHOLE + 1000)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        seen.add(entry(folder).fingerprint)
    assert len(seen) == 3


def test_a_fingerprint_changes_with_defaults_and_system_prompt(tmp_path: Path) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    entries = [
        entry(folder),
        entry(folder, defaults=SamplingChoice(top_k=3)),
        entry(folder, system_prompt="Be brief."),
        entry(folder, kv_bits=8),
        entry(folder, kv_bits=4),
        entry(folder, tokenizer_source=noise_model.folder()),
    ]
    assert len({one.fingerprint for one in entries}) == len(entries)


def test_a_fingerprint_does_not_change_with_what_makes_no_token_different(tmp_path: Path) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    plain, dressed = entry(folder), entry(folder, aliases=("x",), display_name="M", description="d", pin=True)
    assert plain.fingerprint == dressed.fingerprint


async def test_a_fingerprint_is_read_off_the_loop_and_then_known(tmp_path: Path) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    known = entry(folder)
    read = await asyncio.gather(*(known.read_fingerprint() for _ in range(3)))
    assert set(read) == {entry(folder).fingerprint}
    (folder / "config.json").unlink()
    asking = known.read_fingerprint()
    with pytest.raises(StopIteration) as answered:
        asking.send(None)
    assert answered.value.value == read[0]


async def test_a_caller_that_gives_up_does_not_end_the_reading_of_a_fingerprint(tmp_path: Path) -> None:
    known = entry(fakes.model_folder(tmp_path / "m"))
    first, second = (asyncio.create_task(known.read_fingerprint()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == known.fingerprint
    with pytest.raises(asyncio.CancelledError):
        await first


UNREADABLE = Path("/proc/self/mem")


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that nobody can read, not even root")
async def test_a_fingerprint_that_could_not_be_read_is_read_again(tmp_path: Path) -> None:
    folder = fakes.model_folder(tmp_path / "m")
    (folder / "vocab.json").symlink_to(UNREADABLE)
    known = entry(folder)
    with pytest.raises(OSError, match="Input/output"):
        await known.read_fingerprint()
    (folder / "vocab.json").unlink()
    assert await known.read_fingerprint() == entry(folder).fingerprint


# Finding


def models(*configs: tuple[str, tuple[str, ...]]) -> Catalog:
    return Catalog([ModelConfig(ModelName(name), Path("/nowhere"), aliases=aliases) for name, aliases in configs])


def test_a_model_is_found_by_its_name_and_its_aliases() -> None:
    known = models(("qwen", ("small", "fast")), ("llama", ()))
    assert {known.find(name).name for name in ("qwen", "small", "fast")} == {"qwen"}
    assert known.find("llama").name == "llama"


def test_no_name_means_the_first_configured() -> None:
    assert models(("zebra", ()), ("ant", ())).find("").name == "zebra"


def test_models_are_listed_in_the_order_of_their_names() -> None:
    assert [one.name for one in models(("zebra", ()), ("ant", ()), ("bee", ()))] == ["ant", "bee", "zebra"]


def test_an_unknown_name_is_told_the_nearest_ones() -> None:
    with pytest.raises(ModelNotFound, match="qwen3-small") as caught:
        models(("qwen3-small", ()), ("llama", ("qwen-smart",))).find("qwen3-smal")
    assert caught.value.nearest[0] == "qwen3-small"
    assert "llama" not in caught.value.nearest


@given(name=st.text(min_size=1, max_size=2000))
def test_any_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        models(("a-known-model", ())).find(name)
    assert len(str(caught.value)) < 1500
