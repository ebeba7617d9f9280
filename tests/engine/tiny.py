"""Random models of mlx-lm with a few thousand parameters, one for each kind of cache, and what they give alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import gemma3_text, mamba, qwen3

VOCABULARY = 96


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
"""What models of many families are told."""


def attention(layers: int = 2, head_size: int = 8) -> Any:
    """Plain keys and values in every layer."""
    arguments = qwen3.ModelArgs(
        "qwen3",
        **SIZES | {"num_hidden_layers": layers},
        head_dim=head_size,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
    )
    return made(qwen3.Model, arguments)


def half(model: Any) -> Any:
    """The same, in bfloat16."""
    model.set_dtype(mx.bfloat16)
    return model


def sliding_window() -> Any:
    """Five layers that forget all but the last eight tokens, and one that does not."""
    arguments = gemma3_text.ModelArgs(
        model_type="gemma3_text",
        hidden_size=32,
        num_hidden_layers=6,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        vocab_size=VOCABULARY,
        sliding_window=8,
        sliding_window_pattern=6,
    )
    return made(gemma3_text.Model, arguments)


def recurrent() -> Any:
    """A state and no keys at all."""
    arguments = mamba.ModelArgs(
        model_type="mamba",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        state_size=8,
        num_hidden_layers=2,
        conv_kernel=4,
        use_bias=False,
        use_conv_bias=True,
        time_step_rank=4,
    )
    return made(mamba.Model, arguments)


def made(kind: Any, arguments: Any) -> Any:
    """The same at every call. Larger random weights than a fresh model has, so that every token's context matters."""
    mx.random.seed(7)
    model = kind(arguments)
    flat: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    keys = mx.random.split(mx.random.key(7), len(flat))
    spread = [
        (name, array + 0.3 * mx.random.normal(array.shape, key=key))
        for (name, array), key in zip(flat.items(), keys, strict=True)
    ]
    model.update(tree_unflatten(spread))
    mx.eval(model.parameters())
    model.eval()
    return model


def logits_alone(model: Any, tokens: Sequence[int]) -> mx.array:
    """Behind the last of the tokens, computed in one pass without any cache."""
    logits: mx.array = model(mx.array([list(tokens)]))[0, -1]
    return logits
