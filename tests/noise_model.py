"""A small Qwen3 with random weights: its greedy text is noise of every kind of character, and never ends by itself.

For tests of everything that is not about answers. The same versions of mlx and tokenizers write the same bytes every
time: `folder()` has them made once and kept. Knows only the names and shapes that mlx-lm expects.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

NAME = "noise"
"""What servers call it in tests."""

MADE = Path(__file__).parents[1] / ".pytest_cache"

SEED = 20
VOCABULARY = 1_280
CONTEXT = 4_096
HIDDEN = 192
INTERMEDIATE = 512
LAYERS = 4
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 64

# The spreads of the random weights, found by measuring: attention that looks at a few places and not at all
# of them, logits with a deviation of about 3, and greedy text that does not fall into a loop at once.
EMBEDDING_SPREAD = 0.3
ATTENTION_SHARPNESS = 2.0
ATTENTION_GAIN = 2.0
MLP_GAIN = 2.0
LOGIT_SPREAD = 3.0

END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)
MARKER_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
ADDED_TOKENS = CONTROL_TOKENS + MARKER_TOKENS
LEARNED = VOCABULARY - len(ADDED_TOKENS)  # the added tokens stand last
EOS_IDS = [LEARNED + ADDED_TOKENS.index(token) for token in (MESSAGE_END, END_OF_TEXT)]


@functools.cache
def folder() -> Path:
    """The folder of the ready model. Any number of processes may ask at once: the first to finish making it wins."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    ready = MADE / f"{NAME}-{digest}"
    if not ready.is_dir():
        make_into(ready)
    return ready


def make_into(ready: Path) -> None:
    """Make the model beside its place and rename it there: a folder that can be seen is complete."""
    ready.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{ready.name}-", dir=ready.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "model"
        # A process of its own, so that the one that asks keeps its random state. -P keeps the files beside this one
        # from hiding other modules.
        subprocess.run([sys.executable, "-P", __file__, str(made)], stdin=subprocess.DEVNULL, check=True)
        try:
            made.rename(ready)
        except OSError:
            if not ready.is_dir():
                raise


def make(folder: Path) -> None:
    """Write the whole model into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    write_json(folder / "config.json", model_config())
    write_json(folder / "generation_config.json", generation_config())
    with mx.stream(mx.cpu):  # the same numbers everywhere, and no work for a GPU
        mx.save_safetensors(str(folder / "model.safetensors"), random_weights(), {"format": "mlx"})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# The tokenizer


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKER_TOKENS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the text gave {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY}")
    return tokenizer


def training_text() -> Iterator[str]:
    """Enough repeated words for merges up to whole syllables and words, while rarer characters stay split."""
    yield from islice(english_sentences(), 400)
    yield from islice(korean_sentences(), 300)
    yield from islice(cycle(EMOJI.split()), 100)
    yield from islice(cycle(CODE.splitlines()), 100)


def english_sentences() -> Iterator[str]:
    subjects = zip(cycle(ADJECTIVES.split()), cycle(NOUNS.split()), cycle(VERBS.split()), strict=True)
    objects = cycle(PLACES.splitlines())
    for number, ((adjective, noun, verb), place) in enumerate(zip(subjects, objects, strict=True)):
        yield f"The {adjective} {noun} {verb} {place}, and in {1900 + number % 100} it was still there."


def korean_sentences() -> Iterator[str]:
    times, subjects = cycle(KOREAN_TIMES.split()), cycle(KOREAN_SUBJECTS.split())
    for time, subject, deed in zip(times, subjects, cycle(KOREAN_DEEDS.splitlines()), strict=True):
        yield f"{time} {subject} {deed}."


ADJECTIVES = """
quiet old bright little patient curious green heavy gentle broken hungry silver northern careful early hollow
warm distant narrow honest sudden cheerful wooden
"""

NOUNS = """
river teacher garden window sailor mountain letter kitchen engine winter neighbour library question answer
bridge shadow child doctor forest station message morning computer village machine student harbour language
weather
"""

VERBS = """
remembers follows answers carries watches teaches builds loses finds explains changes opens repairs counts
describes believes forgets reaches
"""

PLACES = """a story about the sea
the way home through the snow
what people wanted to know
three questions and one good answer
every word of the song
something that nobody else would understand
bread, butter and a little salt
the light behind the houses
how the world was made
an hour between the trains
their names, one after another"""

KOREAN_TIMES = "오늘 어제 내일 아침에 저녁마다 언제나 지금 가끔 겨울에는 여름이면 주말에"

KOREAN_SUBJECTS = """
친구가 선생님이 아이들은 우리는 할머니께서 고양이가 바람이 사람들이 학생은 동생이 의사는 강아지도 어머니는
"""

KOREAN_DEEDS = """새로운 노래를 불러요
한국어로 편지를 씁니다
맛있는 음식을 만들었어요
안녕하세요 하고 인사합니다
바다를 보고 싶어 합니다
도서관에서 책을 읽었습니다
비가 오는 거리를 걸어요
질문에 천천히 대답했습니다
감사합니다 라고 말했어요
작은 나무를 심고 있습니다
기차를 기다리고 있어요
컴퓨터로 그림을 그립니다"""

EMOJI = "😀 😂 🙂 😍 😭 👍 👋 🎉 🌍 🌊 🌸 🍎 🐱 🐶 🚀 ✨ ❤️ 👍🏽 👩‍💻 🇰🇷"

CODE = """def count(words: list[str]) -> dict[str, int]:
    for index, value in enumerate(values):
        if value is None or len(value) == 0:
            continue
        total += value * weight[index]
    return {"name": name, "total": total}
async def read(stream) -> bytes:
    while not stream.closed and (chunk := await stream.read(1024)):
        yield chunk.decode("utf-8")
class Point:
    def __init__(self, x: float = 0.0, y: float = 0.0) -> None:
        self.x, self.y = x, y
{"city": "Seoul", "temperature": 21.5, "rain": false, "tags": ["spring", "evening"]}
import json, math
print(f"{name}: {math.sqrt(x ** 2 + y ** 2):.3f}")
SELECT name, count(*) FROM messages WHERE id > 100 GROUP BY name ORDER BY name;
for (let i = 0; i < items.length; i++) { console.log(items[i]); }"""


# The configuration files


def tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": MESSAGE_END,
        "pad_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
    }


def model_config() -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": EOS_IDS,
    }


def generation_config() -> dict[str, object]:
    return {"do_sample": True, "temperature": 1.0, "eos_token_id": EOS_IDS}


CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'You can call these functions:\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- 'Write a call as <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}
            {{- raise_exception('a system message can only be the first') }}
        {%- endif %}
        {%- if not tools %}
            {{- '<|im_start|>system\\n' + message.content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role == 'user' or message.role == 'tool' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set tool_call = call.function or call %}
            {%- set arguments = tool_call.arguments %}
            {{- '<tool_call>{"name": ' + (tool_call.name | tojson) + ', "arguments": ' }}
            {{- arguments if arguments is string else arguments | tojson }}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('unknown role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


# The weights


def random_weights() -> dict[str, mx.array]:
    mx.random.seed(SEED)
    weights = {"model.embed_tokens.weight": embedding(), "model.norm.weight": output_scale()}
    for layer in range(LAYERS):
        weights |= {f"model.layers.{layer}.{name}": array for name, array in block().items()}
    return weights


def block() -> dict[str, mx.array]:
    return {
        "input_layernorm.weight": mx.ones(HIDDEN),
        "self_attn.q_proj.weight": linear(HIDDEN, HEADS * HEAD_DIM),
        "self_attn.k_proj.weight": linear(HIDDEN, KV_HEADS * HEAD_DIM),
        "self_attn.v_proj.weight": linear(HIDDEN, KV_HEADS * HEAD_DIM),
        "self_attn.o_proj.weight": linear(HEADS * HEAD_DIM, HIDDEN, ATTENTION_GAIN),
        "self_attn.q_norm.weight": mx.full(HEAD_DIM, ATTENTION_SHARPNESS),
        "self_attn.k_norm.weight": mx.ones(HEAD_DIM),
        "post_attention_layernorm.weight": mx.ones(HIDDEN),
        "mlp.gate_proj.weight": linear(HIDDEN, INTERMEDIATE),
        "mlp.up_proj.weight": linear(HIDDEN, INTERMEDIATE),
        "mlp.down_proj.weight": linear(INTERMEDIATE, HIDDEN, MLP_GAIN),
    }


def linear(inputs: int, outputs: int, gain: float = 1.0) -> mx.array:
    """A matrix that keeps the spread of its input, times the gain."""
    return mx.random.normal((outputs, inputs), scale=gain / math.sqrt(inputs))


def embedding() -> mx.array:
    """The embeddings, which are the output matrix too.

    The added tokens have short rows, so that their logits stay near zero: the end is drawn once in some forty
    thousand tokens at temperature 1, and never by a greedy row.
    """
    spread = mx.where(mx.arange(VOCABULARY) < LEARNED, EMBEDDING_SPREAD, EMBEDDING_SPREAD / 10)
    return mx.multiply(mx.random.normal((VOCABULARY, HIDDEN)), spread[:, None])


def output_scale() -> mx.array:
    """Random signs, for else the tied output would favour the token that was just read."""
    scale = LOGIT_SPREAD / EMBEDDING_SPREAD / math.sqrt(HIDDEN)
    return mx.where(mx.random.bernoulli(0.5, (HIDDEN,)), scale, -scale)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
