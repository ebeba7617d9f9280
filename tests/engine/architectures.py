"""Random models of further architectures of mlx-lm, in the shape of `tiny`: what it has one of for each kind of cache,
these combine. Windows are short, so that a few tokens are past them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_lm.models import deepseek_v3, falcon_h1, gpt_oss, granitemoehybrid, lfm2, qwen3, qwen3_next, rwkv7

from tests.engine.tiny import VOCABULARY, made, recurrent, sliding_window

WINDOW = 8

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def sinks() -> Any:
    """Windows in turn with full attention, sinks in both, and experts."""
    return of(
        gpt_oss,
        num_hidden_layers=4,
        intermediate_size=32,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
    )


def short_convolutions() -> Any:
    """A state of a few tokens in some layers, keys and values in the others."""
    return of(
        lfm2,
        num_hidden_layers=3,
        norm_eps=1e-6,
        conv_bias=False,
        conv_L_cache=3,
        block_dim=32,
        block_ff_dim=48,
        block_multiple_of=8,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        full_attn_idxs=[1],
    )


def without_positions() -> Any:
    """A state in some layers, and attention that never asks where a token stands in the others."""
    return of(
        granitemoehybrid,
        num_hidden_layers=3,
        intermediate_size=32,
        shared_intermediate_size=48,
        attention_bias=False,
        embedding_multiplier=1.0,
        attention_multiplier=0.35,
        logits_scaling=1.0,
        residual_multiplier=1.0,
        layer_types=["mamba", "attention", "mamba"],
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_proj_bias=False,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_n_groups=1,
        mamba_conv_bias=True,
        position_embedding_type="nope",
    )


def gated_delta() -> Any:
    """A state that each token rewrites in part, keys and values in every other layer."""
    return of(
        qwen3_next,
        num_hidden_layers=2,
        intermediate_size=48,
        head_dim=8,
        full_attention_interval=2,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=32,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
        partial_rotary_factor=0.5,
        num_experts=0,
        num_experts_per_tok=0,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=48,
        shared_expert_intermediate_size=48,
    )


def nested() -> Any:
    """A state beside keys and values in every layer."""
    return of(
        falcon_h1,
        num_hidden_layers=2,
        head_dim=8,
        intermediate_size=48,
        mamba_d_ssm=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_d_conv=4,
        lm_head_multiplier=1.0,
    )


def token_shift() -> Any:
    """A matrix of state and the last token."""
    return of(
        rwkv7,
        num_hidden_layers=2,
        intermediate_size=48,
        norm_eps=1e-5,
        head_dim=16,
        a_low_rank_dim=8,
        v_low_rank_dim=8,
        gate_low_rank_dim=8,
        decay_low_rank_dim=8,
    )


def plain(head_dim: int) -> Any:
    """Keys and values in every layer, in heads of such a width."""
    return of(qwen3, num_hidden_layers=2, intermediate_size=48, head_dim=head_dim)


def latent() -> Any:
    """Plain keys and values to look at, in an attention of its own that mlx-lm's models do not share."""
    return of(
        deepseek_v3,
        num_hidden_layers=2,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_key_value_heads=4,
        kv_lora_rank=32,
        q_lora_rank=16,
        qk_rope_head_dim=32,
        v_head_dim=8,
        qk_nope_head_dim=8,
        n_routed_experts=None,
        n_shared_experts=None,
    )


def of(architecture: Any, **arguments: Any) -> Any:
    name = architecture.__name__.rpartition(".")[2]
    return made(architecture.Model, architecture.ModelArgs.from_dict(COMMON | {"model_type": name} | arguments))


MERGED: dict[str, Callable[[], Any]] = {
    "sliding window": sliding_window,
    "sinks": sinks,
    "recurrent": recurrent,
    "token shift": token_shift,
    "short convolutions": short_convolutions,
    "without positions": without_positions,
    "gated delta": gated_delta,
    "nested": nested,
}
"""Those whose rows mlx-lm can merge."""
