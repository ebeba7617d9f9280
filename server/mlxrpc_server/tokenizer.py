"""One model's tokenizer and chat template, and the cache of them.

It knows mlx-lm's tokenizer wrapper, which it keeps to itself; no weights, no requests, no generation.
mlx-lm and transformers are imported by name where they are used: they take seconds, and they are untyped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self, assert_never

from mlxrpc_server import lengths, reasoning, template, tools
from mlxrpc_server.errors import InvalidRequest, PromptTooLong, Violation, shortened
from mlxrpc_server.turns import Turns
from mlxrpc_server.types import Biases, Conversation, Input, Message, Prompt, TextInput, TokenInput
from mlxrpc_server.vocabulary import Vocabulary

_NAMED_IDS = 15

_THREADS = 32
"""More than there are tokenizers at work at once; idle ones are not even started."""


class TokenizerError(ValueError):
    """A folder whose tokenizer cannot be used; the message is the cause in words."""


class Tokenizer:
    """Text to ids and conversations to text. Safe to use from several threads."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """From local files alone; blocks, for seconds where mlx-lm is not imported yet."""
        if not path.is_dir():
            raise TokenizerError(f"there is no folder {str(path)!r}")
        eos_token_ids = configured_eos_token_ids(path)
        settings = {"trust_remote_code": False, "local_files_only": True}
        try:
            load = importlib.import_module("mlx_lm.utils").load_tokenizer
            return cls(load(path, settings, eos_token_ids=sorted(eos_token_ids) or None))
        # The Rust tokenizer reports a broken file as a bare Exception; a narrower clause cannot name it.
        except Exception as error:
            cause = shortened(f"{type(error).__name__}: {error}", 512)
            raise TokenizerError(f"the tokenizer in {str(path)!r} cannot be loaded: {cause}") from error

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._encode = _encoder(wrapper)
        # Transformers sets truncation and padding on the shared Rust object at every call, so one at a time.
        self._lock = threading.Lock()
        self.vocabulary = _read_vocabulary(wrapper)
        self.eos_token_ids: frozenset[int] = frozenset(wrapper.eos_token_ids)
        self.has_chat_template: bool = wrapper.has_chat_template
        self.reasoning = reasoning.markers(wrapper)
        self.calls = tools.call_format(wrapper)
        self._begin = self._added_begin()

    @functools.cached_property
    def closing(self) -> list[int]:
        """What ends a reasoning that is cut: its marker, and the line breaks that the template writes around one."""
        end = self.reasoning.end if self.reasoning else ""
        before, behind = reasoning.breaks(end, self._thoughtful())
        return [token for part in (before, end, behind) if part for token in self.encode(part, special=False)]

    def _thoughtful(self) -> str:
        """A turn with a thought, as the template writes it; empty where it takes none."""
        with contextlib.suppress(InvalidRequest):
            return self.render(reasoning.EXAMPLE, 0.0)
        return ""

    @property
    def vocabulary_size(self) -> int:
        """One more than the highest id; an id in a hole between says nothing."""
        return len(self.vocabulary)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """With `special` the tokenizer adds its own marks, such as BOS. Lets other threads run meanwhile."""
        with self._lock:
            return self._encode(text, special)

    def render(self, conversation: Conversation, create_time: float) -> str:
        """The template's text, open for the assistant's turn.

        `create_time` is the only clock that a Jinja template sees, in UTC; a resumed stream renders the same.
        With `enable_thinking` unset, the template's own default holds.
        """
        return template.render(partial(self._fill, conversation, create_time), conversation)

    def prompt(self, given: Input, create_time: float, context: int | None = None) -> Prompt:
        """Ids for the model, never none; whatever is wrong with the input is an InvalidRequest.

        Where a context is named, a text that is far too long for it is refused before all of it is encoded.
        """
        match given:
            case TokenInput(token_ids):
                if violations := self.outside("input.token_ids.ids", token_ids):
                    raise InvalidRequest(violations)
                return Prompt(_not_empty(token_ids, "input.token_ids.ids"), None)
            case TextInput(text):
                _check_text(text, "input.text")
                self._check_length(text, context)
                return Prompt(_not_empty(self._encode_once(text), "input.text"), text)
            case Conversation():
                self._check_tools(given)
                text = self.render(given, create_time)
                _check_text(text, template.CONVERSATION)
                self._check_length(text, context)
                return Prompt(_not_empty(self.encode(text, special=False), template.CONVERSATION), text)
        assert_never(given)

    def _check_length(self, text: str, context: int | None) -> None:
        if context is None or not lengths.is_suspicious(text, context):
            return
        least = lengths.least(text, context, lambda piece: len(self.encode(piece, special=False)))
        if least >= context:
            sentence = (
                f"the prompt of {len(text):,} characters is at least {least:,} tokens; the model takes {context:,}"
            )
            raise PromptTooLong("input", sentence, least, context, prompt_characters=len(text))

    def _check_tools(self, conversation: Conversation) -> None:
        if conversation.tools and self.calls is None:
            sentence = (
                "the model has no template that takes tools, or writes its calls in a form that is not known here"
            )
            raise InvalidRequest([Violation("tools", sentence)])

    def _fill(self, conversation: Conversation, create_time: float, messages: list[template.ChatMessage]) -> str:
        wrapper = self._wrapper
        variables = template.chosen_variables(conversation)
        variables["tools"] = offered = template.offered(conversation)
        variables["add_generation_prompt"] = not conversation.continues
        if not self.has_chat_template:
            return template.chatml(self._begin, messages)
        if _renders_in_python(wrapper):
            filled: str = wrapper.apply_chat_template(messages, tokenize=False, **variables)
            return filled
        everything = {**wrapper.special_tokens_map, "documents": None, **variables}
        return template.jinja(wrapper.get_chat_template(tools=offered), everything, create_time, messages)

    def _added_begin(self) -> str:
        """The BOS that the tokenizer puts before every text; "" where it puts none."""
        token = self._wrapper.bos_token_id
        adds = token is not None and self.encode("", special=True)[:1] == [token]
        return str(self._wrapper.bos_token) if adds else ""

    def _encode_once(self, text: str) -> list[int]:
        """A text that begins with the tokenizer's BOS is not given a second one."""
        ids = self.encode(text, special=True)
        doubled = self._begin and text.startswith(self._begin) and ids[:1] == ids[1:2]
        return ids[1:] if doubled else ids

    def outside(self, path: str, token_ids: Sequence[int]) -> list[Violation]:
        """The ids at `path` that are not in the vocabulary; of very many the first are named and the others counted."""
        size = self.vocabulary_size
        if not token_ids or (min(token_ids) >= 0 and max(token_ids) < size):
            return []
        outside = [(place, token) for place, token in enumerate(token_ids) if not 0 <= token < size]
        violations = [
            Violation(f"{path}[{place}]", f"{token} is outside the vocabulary of {size:,} ids")
            for place, token in outside[:_NAMED_IDS]
        ]
        if len(outside) > _NAMED_IDS:
            rest = len(outside) - _NAMED_IDS
            violations.append(Violation(path, f"{rest:,} more are outside the vocabulary"))
        return violations

    def biases_outside(self, path: str, biases: Biases) -> list[Violation]:
        """The biases at `path` whose ids are not in the vocabulary, each by its id."""
        size = self.vocabulary_size
        return [
            Violation(f"{path}[{token}]", f"{token} is outside the vocabulary of {size:,} ids")
            for token, _ in biases
            if token >= size
        ]


class Tokenizers:
    """The tokenizers used last, by folder, and their work kept off the event loop, in threads of their own.

    The first caller's load serves all that come meanwhile; a failed one is forgotten. One prompt at a time per
    tokenizer, short ones first, so that a long one holds up neither the loop nor other models.
    """

    def __init__(self, limit: int = 16, load: Callable[[Path], Tokenizer] = Tokenizer.load) -> None:
        if limit < 1:
            raise ValueError(f"the limit is {limit}; at least one tokenizer must stay")
        self._limit = limit
        self._load = load
        self._loads: OrderedDict[Path, asyncio.Future[Tokenizer]] = OrderedDict()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")
        self._turns: defaultdict[Path, Turns] = defaultdict(lambda: Turns(self._threads))
        """By folder, and kept when a tokenizer is dropped: as many as there are models."""

    async def get(self, path: Path) -> Tokenizer:
        """Raises TokenizerError. A caller that gives up does not end the load that others wait for."""
        return await asyncio.shield(self._loaded(path))

    async def prompt(self, path: Path, given: Input, create_time: float, context: int | None = None) -> Prompt:
        """Template and encoding in a thread, also for short inputs: the hop costs less than the encoding."""
        tokenizer = await self.get(path)
        return await self._turns[path].take(partial(tokenizer.prompt, given, create_time, context), length(given))

    def __len__(self) -> int:
        """Those that are ready."""
        return sum(load.done() for load in self._loads.values())

    async def close(self) -> None:
        """Cancels whoever waits and forgets all; a thread at work ends with its work, and nobody waits for it."""
        for load in self._loads.values():
            load.cancel()
        for turns in self._turns.values():
            turns.close()
        self._loads.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _loaded(self, path: Path) -> asyncio.Future[Tokenizer]:
        if path not in self._loads:
            load = asyncio.get_running_loop().run_in_executor(self._threads, self._load, path)
            self._loads[path] = load
            load.add_done_callback(partial(self._has_loaded, path))
        self._loads.move_to_end(path)
        return self._loads[path]

    def _has_loaded(self, path: Path, load: asyncio.Future[Tokenizer]) -> None:
        if self._loads.get(path) is not load:
            return
        if load.cancelled() or load.exception() is not None:
            del self._loads[path]
        self._trim()

    def _trim(self) -> None:
        """Drops the least recently used; one that is still loading is not counted yet."""
        ready = [path for path, load in self._loads.items() if load.done()]
        for path in ready[: -self._limit]:
            del self._loads[path]


def length(given: Input) -> int:
    """About what a prompt costs: characters of all that the template is given, or ids."""
    match given:
        case TokenInput(token_ids):
            return len(token_ids)
        case TextInput(text):
            return len(text)
        case Conversation(messages):
            return given.json_length + sum(map(_message_length, messages))
    assert_never(given)


def _message_length(message: Message) -> int:
    called = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning or "") + called


def configured_eos_token_ids(path: Path) -> frozenset[int]:
    """What a model's folder says beside the tokenizer; generation_config.json goes before config.json."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(path / name).get("eos_token_id")
        ids = [token for token in (value if isinstance(value, list) else [value]) if type(token) is int]
        if ids:
            return frozenset(ids)
    return frozenset()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TokenizerError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{str(path)!r} is not a JSON object")
    return content


def _read_vocabulary(wrapper: Any) -> Vocabulary:
    size = 1 + max(wrapper.get_vocab().values(), default=-1)
    added = wrapper.added_tokens_decoder
    special = {token for token, entry in added.items() if entry.special} | set(wrapper.all_special_ids)
    tokens = wrapper.convert_ids_to_tokens(list(range(size)))
    return Vocabulary.read(tokens, wrapper.convert_tokens_to_string, added=added, special=special)


def _encoder(wrapper: Any) -> Callable[[str, bool], list[int]]:
    """The Rust tokenizer itself where transformers would add nothing to what it says.

    Both let go of the interpreter while they work, but transformers then lists more than the ids: it held up the
    event loop four times as long, nearly a second for a prompt of 4 MB.
    """
    tokenizer = wrapper._tokenizer
    ordinary = importlib.import_module("transformers").PreTrainedTokenizerFast
    own = type(tokenizer)
    if not issubclass(own, ordinary) or (own.encode, own._encode_plus) != (ordinary.encode, ordinary._encode_plus):
        return lambda text, special: list(wrapper.encode(text, add_special_tokens=special, verbose=False))
    rust = tokenizer.backend_tokenizer
    rust.no_truncation()
    rust.no_padding()
    rust.encode_special_tokens = tokenizer.split_special_tokens
    return lambda text, special: list(rust.encode_batch_fast([text], add_special_tokens=special)[0].ids)


def _renders_in_python(wrapper: Any) -> bool:
    """Some models' templates are code in mlx-lm or transformers; those take no date."""
    ordinary = importlib.import_module("transformers").PreTrainedTokenizerBase.apply_chat_template
    # The wrapper decides by these two as well, and shows neither.
    own = type(wrapper._tokenizer).apply_chat_template
    return wrapper._chat_template is not None or own is not ordinary


def _check_text(text: str, path: str) -> None:
    """Half a surrogate pair can come in through JSON, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest([Violation(path, f"character {error.start} is half a surrogate pair")]) from error


def _not_empty(token_ids: Sequence[int], path: str) -> tuple[int, ...]:
    if not token_ids:
        raise InvalidRequest([Violation(path, "the prompt is empty: a model needs at least one token")])
    return tuple(token_ids)
