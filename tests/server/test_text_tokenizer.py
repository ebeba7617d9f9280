from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.trainers import BpeTrainer

from mlxrpc_server.errors import InvalidRequest
from mlxrpc_server.text import TextStream
from mlxrpc_server.tokenizer import Tokenizer, TokenizerError
from mlxrpc_server.types import Conversation, Message, TextInput, TokenInput

SPECIAL = ["<s>", "<|im_end|>", "<|im_start|>"]
CORPUS = ["the quick brown fox jumps over the lazy dog", "안녕하세요 세계", "hello 😀 world"] * 4
NOON = datetime(2025, 7, 4, 12, tzinfo=UTC).timestamp()
HELLO = Conversation((Message("user", "hi"),))


def with_begin(rust: RustTokenizer) -> RustTokenizer:
    rust.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return rust


def byte_level() -> RustTokenizer:
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False)
    rust.train_from_iterator(CORPUS, trainer)
    rust.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return rust


def sentencepiece() -> RustTokenizer:
    """As a converted Llama: a space is put before the text and dropped again by the decoder."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hi", "a", "▁안", "녕"]
    merges = [("▁", "h"), ("▁h", "i")]
    model = models.BPE({token: number for number, token in enumerate(tokens)}, merges, byte_fallback=True)
    rust = RustTokenizer(model)
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spelling = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    rust.decoder = decoders.Sequence(spelling)
    rust.add_special_tokens(SPECIAL)
    return with_begin(rust)


def saved(folder: Path, rust: RustTokenizer, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rust.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | config))
    return folder


def loaded(folder: Path, template: str | None = None, **config: Any) -> Tokenizer:
    rust = with_begin(byte_level())
    chosen = {} if template is None else {"chat_template": template}
    return Tokenizer.load(saved(folder, rust, **chosen, **config))


@pytest.fixture(scope="module", params=[byte_level, sentencepiece])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(saved(tmp_path_factory.mktemp("tokenizer"), request.param()))


def mlx_lm_tokenizer(folder: Path) -> Any:
    return importlib.import_module("mlx_lm.utils").load_tokenizer(folder, {"local_files_only": True})


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = TextStream(tokenizer.vocabulary)
    return "".join(stream.push([token]).text for token in ids) + stream.finish().text


def violations(error: pytest.ExceptionInfo[InvalidRequest]) -> list[str]:
    return [violation.path for violation in error.value.violations]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("안녕😀👩‍👩‍👧é\u0301 \n▁"), max_size=30)


@given(text=TEXTS.map(lambda text: text.replace("▁", " ")))
def test_text_survives_tokenizer_and_stream(tokenizer: Tokenizer, text: str) -> None:
    assert streamed(tokenizer, tokenizer.encode(text, special=True)) == text


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_stream_spells_as_the_tokenizer_decodes(make: Callable[[], RustTokenizer], tmp_path: Path) -> None:
    rust = make()
    tokenizer = Tokenizer.load(saved(tmp_path, rust))

    @given(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=12))
    def check(ids: list[int]) -> None:
        whole = rust.decode(ids, skip_special_tokens=True)
        if "\ufffd" not in whole:
            assert streamed(tokenizer, ids) == whole

    check()


def test_special_tokens_say_nothing_and_added_ones_speak(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    ids = tokenizer.encode("<s><think>hi</think><|im_end|>", special=False)
    assert streamed(tokenizer, ids) == "<think>hi</think>"


def test_the_vocabulary_reaches_to_the_highest_id(tmp_path: Path) -> None:
    rust = RustTokenizer(models.WordLevel({"[UNK]": 0, "far": 9}, unk_token="[UNK]"))
    tokenizer = Tokenizer.load(saved(tmp_path, rust, bos_token=None, eos_token=None))
    assert tokenizer.vocabulary_size == len(tokenizer.vocabulary) == 10
    assert (tokenizer.vocabulary.opening(9), tokenizer.vocabulary.piece(9)) == (b"far", b" far")


@pytest.mark.parametrize("settings", [{}, {"split_special_tokens": True}, {"tokenizer_class": "NewlineTokenizer"}])
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_those_of_mlx_lm(tmp_path: Path, settings: dict[str, Any], special: bool) -> None:
    rust = with_begin(byte_level())
    rust.enable_truncation(4)
    rust.enable_padding(length=8)
    theirs = mlx_lm_tokenizer(saved(tmp_path, rust, **settings))
    ours = Tokenizer.load(tmp_path)

    @given(st.lists(TEXTS | st.sampled_from([*SPECIAL, "<think>", "\n", " "])).map("".join))
    def check(text: str) -> None:
        assert ours.encode(text, special=special) == theirs.encode(text, add_special_tokens=special)

    check()


# Special tokens and BOS


def test_special_marks_are_added_on_request_alone(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    plain = tokenizer.encode("hello", special=False)
    assert tokenizer.encode("hello", special=True) == [0, *plain]


@pytest.mark.parametrize(("text", "begins"), [("hi", 1), ("<s>hi", 1), ("<s><s>hi", 2), ("", 1)])
def test_a_text_is_given_one_bos(tmp_path: Path, text: str, begins: int) -> None:
    ids = loaded(tmp_path).prompt(TextInput(text), NOON).token_ids
    assert list(ids[:begins]) == [0] * begins
    assert 0 not in ids[begins:]


def test_a_tokenizer_that_adds_no_bos_keeps_what_the_text_says(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(saved(tmp_path, byte_level()))
    assert list(tokenizer.prompt(TextInput("<s><s>"), NOON).token_ids) == [0, 0]


def test_a_template_writes_its_own_bos(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, "{{ bos_token }}{{ messages[0].content }}")
    prompt = tokenizer.prompt(HELLO, NOON)
    assert prompt.text == "<s>hi"
    assert list(prompt.token_ids).count(0) == 1


# Templates


def test_without_a_template_conversations_are_chatml(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(saved(tmp_path, byte_level()))
    conversation = Conversation((Message("system", "be kind"), Message("user", "안녕")))
    assert not tokenizer.has_chat_template
    assert tokenizer.render(conversation, NOON) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n안녕<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_begins_with_bos_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    ids = loaded(tmp_path).prompt(HELLO, NOON).token_ids
    assert list(ids).count(0) == 1
    assert ids[0] == 0


TEMPLATES = [
    "{% for m in messages %}\n{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}\n{{ bos_token }}",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% if tools %}T{% endif %}{% if add_generation_prompt %}G{% endif %}",
    "{% generation %}{{ messages[0].reasoning_content }}{{ messages[0].thinking }}{% endgeneration %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_renders_as_in_transformers(tmp_path: Path, template: str) -> None:
    tokenizer = loaded(tmp_path, template)
    conversation = Conversation((Message("user", " a<b ", reasoning="why"), Message("assistant", "😀")))
    messages = [
        {"role": "user", "content": " a<b ", "reasoning_content": "why"},
        {"role": "assistant", "content": "😀"},
    ]
    theirs = mlx_lm_tokenizer(tmp_path).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.render(conversation, NOON) == theirs


def test_dates_are_those_of_the_request_in_utc(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, "{{ strftime_now('%d %b %Y %H:%M') }}")
    assert tokenizer.render(HELLO, NOON) == "04 Jul 2025 12:00"
    assert tokenizer.render(HELLO, NOON + 86400) == "05 Jul 2025 12:00"


@pytest.mark.parametrize("create_time", [float("nan"), float("inf"), 1e300])
def test_a_time_without_a_date_is_refused(tmp_path: Path, create_time: float) -> None:
    tokenizer = loaded(tmp_path, "{{ strftime_now('%Y') }}")
    with pytest.raises(InvalidRequest):
        tokenizer.render(HELLO, create_time)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ messages + 1 }}", "concatenate"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__ }}{{ ''.__class__.mro() }}", "__class__"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for %}", "Expected an expression"),
    ],
)
def test_a_template_that_refuses_or_fails_names_the_conversation(tmp_path: Path, template: str, why: str) -> None:
    tokenizer = loaded(tmp_path, template)
    with pytest.raises(InvalidRequest, match=why) as error:
        tokenizer.render(HELLO, NOON)
    assert violations(error) == ["input.conversation"]


def test_several_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    templates = [{"name": "one", "template": "1"}, {"name": "two", "template": "2"}]
    tokenizer = loaded(tmp_path, chat_template=templates)
    with pytest.raises(InvalidRequest, match="no default"):
        tokenizer.render(HELLO, NOON)


def test_a_template_reads_what_a_message_carries_and_nothing_unset(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, "{{ messages | tojson }}")
    full = Message("tool", "42", name="sum", reasoning="easy", tool_call_id="c1")
    messages = json.loads(tokenizer.render(Conversation((full, Message("user", "hi"))), NOON))
    names = {"name": "sum", "tool_call_id": "c1", "reasoning_content": "easy", "thinking": "easy"}
    assert messages == [{"role": "tool", "content": "42"} | names, {"role": "user", "content": "hi"}]


def test_variables_reach_the_template(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, "{{ style.tone }} {{ documents | length }}")
    variables = {"style": {"tone": "dry"}, "documents": [1, 2]}
    assert tokenizer.render(Conversation(HELLO.messages, variables=variables), NOON) == "dry 2"


@pytest.mark.parametrize(("chosen", "seen"), [(None, "own default"), (True, "True"), (False, "False")])
def test_thinking_is_handed_over_only_where_chosen(tmp_path: Path, chosen: bool | None, seen: str) -> None:
    tokenizer = loaded(tmp_path, "{{ enable_thinking | default('own default') }}")
    assert tokenizer.render(Conversation(HELLO.messages, enable_thinking=chosen), NOON) == seen


def test_templates_written_in_python_go_through_mlx_lm(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, chat_template_type="deepseek_v32")
    rendered = tokenizer.render(Conversation(HELLO.messages, enable_thinking=False), NOON)
    assert rendered.endswith("<｜User｜>hi<｜Assistant｜></think>")


def test_a_python_template_that_fails_names_the_conversation(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, chat_template_type="deepseek_v32")
    with pytest.raises(InvalidRequest, match="walrus") as error:
        tokenizer.render(Conversation((Message("walrus", "hi"),)), NOON)
    assert violations(error) == ["input.conversation"]


# Prompts


def test_the_prompt_of_a_conversation_is_its_text_with_nothing_added(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, "U:{{ messages[0].content }}")
    prompt = tokenizer.prompt(HELLO, NOON)
    assert prompt.text == "U:hi"
    assert list(prompt.token_ids) == tokenizer.encode("U:hi", special=False)


def test_token_ids_are_taken_as_they_are(tokenizer: Tokenizer) -> None:
    last = tokenizer.vocabulary_size - 1
    prompt = tokenizer.prompt(TokenInput((last, 0, last)), NOON)
    assert (prompt.token_ids, prompt.text) == ((last, 0, last), None)


def test_every_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocabulary_size
    with pytest.raises(InvalidRequest, match=f"{size} is outside") as error:
        tokenizer.prompt(TokenInput((0, size, 1, 2**32 - 1, -1)), NOON)
    assert violations(error) == [f"input.token_ids.ids[{place}]" for place in (1, 3, 4)]


def test_ids_of_any_field_are_checked(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocabulary_size
    assert tokenizer.outside("stop.token_ids", (0, size - 1)) == tokenizer.outside("stop.token_ids", ()) == []
    assert [found.path for found in tokenizer.outside("stop.token_ids", (0, size))] == ["stop.token_ids[1]"]


def test_of_very_many_wrong_ids_the_first_are_named_and_the_others_counted(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as error:
        tokenizer.prompt(TokenInput((10**6,) * 5000), NOON)
    *_, last = error.value.violations
    assert len(error.value.violations) == 16
    assert (last.path, last.description) == ("input.token_ids.ids", "4,985 more are outside the vocabulary")


@pytest.mark.parametrize(
    ("empty", "path"),
    [
        (TokenInput(()), "input.token_ids.ids"),
        (TextInput(""), "input.text"),
        (Conversation(()), "input.conversation"),
        (HELLO, "input.conversation"),
    ],
)
def test_an_empty_prompt_is_refused(tmp_path: Path, empty: TokenInput | TextInput | Conversation, path: str) -> None:
    tokenizer = Tokenizer.load(saved(tmp_path, byte_level(), chat_template=""))
    with pytest.raises(InvalidRequest) as error:
        tokenizer.prompt(empty, NOON)
    assert violations(error) == [path]


def test_half_a_surrogate_pair_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, "{{ mood }}")
    asked = Conversation(HELLO.messages, variables=json.loads('{"mood": "a\\ud83d"}'))
    with pytest.raises(InvalidRequest, match="character 1 is half a surrogate pair"):
        tokenizer.prompt(asked, NOON)


def test_a_tokenizer_serves_many_threads_at_once(tokenizer: Tokenizer) -> None:
    texts = ["hi " * count for count in range(1, 60)]
    expected = [tokenizer.encode(text, special=bool(len(text) % 2)) for text in texts]
    results: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        results[number] = [tokenizer.encode(text, special=bool(len(text) % 2)) for text in texts]

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), expected)


# Folders


def write_json(folder: Path, **files: object) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, {1}),
        ({"config": {"eos_token_id": 5}}, {1, 5}),
        ({"config": {"eos_token_id": 5}, "generation_config": {"eos_token_id": [7, 8]}}, {1, 7, 8}),
        ({"config": {"eos_token_id": [5]}, "generation_config": {"eos_token_id": None}}, {1, 5}),
        ({"config": {"eos_token_id": "x"}, "generation_config": {}}, {1}),
    ],
)
def test_eos_is_what_the_tokenizer_and_the_configuration_say(
    tmp_path: Path, files: dict[str, object], ids: set[int]
) -> None:
    saved(tmp_path, byte_level())
    write_json(tmp_path, **files)
    assert Tokenizer.load(tmp_path).eos_token_ids == ids


def broken_folders(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "missing", "there is no folder"
    (folder / "empty").mkdir()
    yield folder / "empty", "cannot be loaded"
    path = saved(folder / "list", byte_level())
    (path / "config.json").write_text("[]")
    yield path, "config.json' is not a JSON object"
    for name in ("tokenizer", "tokenizer_config", "generation_config"):
        path = saved(folder / name, byte_level())
        (path / f"{name}.json").write_text("{")
        yield path, name if name == "generation_config" else "cannot be loaded"
    path = saved(folder / "unknown", byte_level())
    (path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Telepathy"}}))
    yield path, "cannot be loaded"


def test_a_broken_folder_is_a_tokenizer_error_that_names_it(tmp_path: Path) -> None:
    for path, why in broken_folders(tmp_path):
        with pytest.raises(TokenizerError, match=why) as error:
            Tokenizer.load(path)
        assert str(path) in str(error.value)
