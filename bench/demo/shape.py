"""The model's shape and the small files that describe it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models import qwen3

from demo.conversation import CHAT_TEMPLATE, END_OF_TEXT, MESSAGE_END
from demo.tokenizer import EOS_IDS, VOCABULARY

CONTEXT = 4_096
SIZES: dict[str, dict[str, int]] = {
    "full": {"hidden_size": 320, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 3},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
}  # fmt: skip


def config(size: str) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        **SIZES[size],
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": EOS_IDS,
    }


def generation_config() -> dict[str, Any]:
    return {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": EOS_IDS}


def tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": MESSAGE_END,
        "pad_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
    }


def new_model(size: str, seed: int) -> qwen3.Model:
    """Random weights; what a block adds to the stream starts small."""
    mx.random.seed(seed)
    settings = config(size)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(settings))  # type: ignore[no-untyped-call]
    shrink = 1 / math.sqrt(2 * settings["num_hidden_layers"])

    def start(path: str, weight: mx.array) -> mx.array:
        return weight * shrink if path.endswith(("o_proj.weight", "down_proj.weight")) else weight

    model.update(tree_map_with_path(start, model.parameters()))
    return model


def parameter_count(model: qwen3.Model) -> int:
    flat: Any = tree_flatten(model.parameters())
    return sum(array.size for _, array in flat)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
