"""Model folders for measuring: random weights of a given shape, and copies of models that never end by themselves.

`weights.py SHAPE FILE` writes the weights alone. Knows mlx-lm's Qwen3 and what files it expects.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTEXT = 40_960
LOGIT_SPREAD = 4.0
"""The logits' standard deviation. A trained model's mass is on few tokens; mlx's own initialisation (1) would spread it
over most of the vocabulary. At temperature 0.7 this gives some tens to hundreds of tokens nine tenths of the mass."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def unreachable(self) -> int:
        """An id that no logit stands for: as end-of-sequence token it never comes."""
        return self.vocabulary + 1_000

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": True,
            "eos_token_id": self.unreachable,
        }


SHAPES = {
    "0.6B": Shape(1024, 28, 3072, 16, 8, 128, 151_936),
    "42M": Shape(512, 8, 1536, 8, 4, 64, 32_000),
    "tiny": Shape(64, 2, 128, 4, 2, 16, 1_000),
}


def make(name: str, folder: Path) -> Path:
    shape = SHAPES[name]
    folder.mkdir(parents=True)
    tokenizer(shape.vocabulary).save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", tokenizer_config())
    write(folder / "config.json", shape.config())
    # In a process of its own: this one must not hold a GPU's memory while servers are measured.
    subprocess.run([sys.executable, __file__, name, str(folder / "model.safetensors")], check=True)
    return folder


def endless(model: Path, folder: Path) -> Path:
    """A copy whose end-of-sequence token never comes, for servers that cannot be told to ignore it."""
    folder.mkdir(parents=True)
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text())
    unreachable = {"eos_token_id": config["vocab_size"] + 1_000}
    _replace(folder / "config.json", config | unreachable)
    if (generation := folder / "generation_config.json").exists():
        _replace(generation, json.loads(generation.read_text()) | unreachable)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("eos_token", None)
    _replace(folder / "tokenizer_config.json", settings)
    return folder


def _replace(link: Path, value: object) -> None:
    link.unlink()
    write(link, value)


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def tokenizer(vocabulary: int) -> Tokenizer:
    """A token for each byte, and words that no text encodes to for the rest, so that all that is drawn has text."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"Ġt{number}" for number in range(vocabulary - len(tokens))]
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return made


def tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def write_weights(shape: Shape, path: Path) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import qwen3

    mx.random.seed(20)
    model: Any = qwen3.Model(qwen3.ModelArgs.from_dict(shape.config()))  # type: ignore[no-untyped-call]
    # With random signs, for else the tied output matrix would favour the token that was just read.
    signs = mx.where(mx.random.bernoulli(0.5, (shape.hidden,)), LOGIT_SPREAD, -LOGIT_SPREAD)
    model.model.norm.weight = signs
    model.set_dtype(mx.bfloat16)
    mx.save_safetensors(str(path), dict(tree_flatten(model.parameters())), {"format": "mlx"})


if __name__ == "__main__":
    write_weights(SHAPES[sys.argv[1]], Path(sys.argv[2]))
