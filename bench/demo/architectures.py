"""Small models of other architectures with random weights, in the built-in model's vocabulary and template.

One for each way in which mlx-lm's models remember. They answer nothing sensible: their greedy text is varied, never
ends by itself and depends on everything that the model is to remember.
"""

from __future__ import annotations

import json
import math
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from demo.shape import write_json

PEBBLE = Path(__file__).parents[2] / "server" / "mlxrpc_server" / "demo" / "pebble"
SHIPPED: dict[str, Any] = json.loads((PEBBLE / "config.json").read_text(encoding="utf-8"))
QUIET_FROM: int = min(SHIPPED["eos_token_id"])
"""The first of the tokens that stand behind the learned ones: control tokens and markers."""

SMALL_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
SEED = 20
WINDOW = 32
"""Tokens that the sliding layers of "sliding" remember."""

GAIN = 2.0
EMBEDDING_SPREAD = 0.5
VECTOR_SPREAD = 0.1
STATE_VALUES = {"dt_bias": -2.0, "A_log": -2.0, "D": 0.1}
"""What the states start from: they forget slowly, and what they remember outweighs the newest token."""
QUIET = 0.05
"""How much of their output rows the tokens from QUIET_FROM on keep, so that no greedy row ends."""

COMMON: dict[str, Any] = {
    **{key: SHIPPED[key] for key in ("vocab_size", "max_position_embeddings", "eos_token_id")},
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "dtype": "float32",
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Keys and values in every layer, as the built-in model has, in another architecture.
    "llama": COMMON | {"model_type": "llama", "num_hidden_layers": 2},
    # Two layers of three forget all but the last WINDOW tokens.
    "sliding": COMMON
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
    },
    # A state (gated delta rule) in three layers of four, keys and values in the fourth.
    "hybrid": COMMON
    | {
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "full_attention_interval": 4,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "partial_rotary_factor": 0.5,
        "num_experts": 0,
        "num_experts_per_tok": 0,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 96,
    },
    # A state and no keys at all.
    "recurrent": COMMON
    | {
        "model_type": "mamba2",
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "intermediate_size": 128,
        "state_size": 16,
        "n_groups": 1,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "layer_norm_epsilon": 1e-6,
        "time_step_limit": [0.001, 100.0],
        "time_step_rank": 4,
    },
    # A state beside keys and values in every layer: mlx-lm nests one cache in another.
    "parallel": COMMON
    | {
        "model_type": "falcon_h1",
        "num_hidden_layers": 2,
        "mamba_d_ssm": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "lm_head_multiplier": 1.0,
    },
}


def make(name: str, folder: Path) -> None:
    """Write the whole model into the folder; the same at every call."""
    config = ARCHITECTURES[name]
    small_files(folder, config)
    mx.save_safetensors(str(folder / "model.safetensors"), random_weights(config), {"format": "mlx"})


def small_files(folder: Path, config: dict[str, Any]) -> None:
    """All but the weights, as the built-in model has them."""
    for file in SMALL_FILES:
        shutil.copy(PEBBLE / file, folder / file)
    write_json(folder / "config.json", config)


def random_weights(config: dict[str, Any]) -> dict[str, mx.array]:
    """Larger ones than a fresh model has, so that every token's context matters."""
    architecture = import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(SEED)
    model = architecture.Model(architecture.ModelArgs.from_dict(config))
    weights: Any = tree_flatten(tree_map_with_path(spread, model.parameters()))
    return dict(weights)


def spread(path: str, array: mx.array) -> mx.array:
    noise = mx.random.normal(array.shape)
    if path.endswith(("embed_tokens.weight", "embeddings.weight")):
        return noise * EMBEDDING_SPREAD
    if path == "lm_head.weight":
        return noise * mx.where(mx.arange(len(array)) < QUIET_FROM, 1.0, QUIET)[:, None]
    if array.ndim == 1:
        return STATE_VALUES.get(path.rpartition(".")[2], array) + VECTOR_SPREAD * noise
    return noise * GAIN / math.sqrt(math.prod(array.shape[1:]))
