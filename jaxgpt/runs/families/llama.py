"""Llama (Touvron et al. 2023), with the names of LlamaForCausalLM: rotary positions, RMSNorm, a gated MLP, grouped heads.

SmolLM2, TinyLlama, Llama 1 and 2 and many others. Llama 3 scales its rotary positions, which is refused.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

from jaxgpt.config import ModelConfig
from jaxgpt.model.initial import GPT2_STD
from jaxgpt.model.linear import LINEAR
from jaxgpt.runs.families.family import (
    GATES,
    ROTARY,
    SIZES,
    Family,
    rotary,
    rotary_problems,
    their_activation,
    unknown_activation,
)
from jaxgpt.runs.families.obstacles import no_epsilon, not_rotary
from jaxgpt.runs.families.places import Row

_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_MLP = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def _linear(module: str, names: dict[str, str], ours: str) -> tuple[Row, ...]:
    """The rows of linear layers with biases."""
    return tuple(
        Row(f"{module}.{theirs}.{part}", form, f"{ours}/{name}/{own}")
        for theirs, name in names.items()
        for part, form, own in (("weight", "linear", "kernel"), ("bias", "vector", "bias"))
    )


class Llama(Family):
    """See the module's docstring. Arcee and Qwen3 differ from it in a few places."""

    title = "Llama"
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    sizes: ClassVar[dict[str, str]] = SIZES
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        **ROTARY,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }
    optional = frozenset({"num_key_value_heads", "head_dim"})
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"rope_theta": (1.0, 3e38)}
    expressed = frozenset(
        "context_length d_model num_layers num_heads head_dim num_kv_heads d_ff activation position rotary_base norm "
        "norm_epsilon attention_scale use_bias attention_bias tie_embeddings".split()
    )
    prefix = "model."
    layer = "layers."
    table = Row("embed_tokens.weight", "table", "token_embedding/embedding")
    rest = (Row("norm.weight", "vector", "final_norm/scale"),)
    block = (
        Row("input_layernorm.weight", "vector", "attention_norm/scale"),
        *_linear("self_attn", _ATTENTION, "attention"),
        Row("self_attn.q_norm.weight", "vector", "attention/query_norm/scale"),
        Row("self_attn.k_norm.weight", "vector", "attention/key_norm/scale"),
        Row("post_attention_layernorm.weight", "vector", "mlp_norm/scale"),
        *_linear("mlp", _MLP, "mlp"),
    )
    buffers = re.compile(r"(?:model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

    activations: ClassVar[dict[str, Any]] = GATES
    activation_words: ClassVar[str] = "a gated MLP"
    has_mlp_bias: ClassVar[bool] = True

    def read(self, given: dict[str, Any]) -> ModelConfig:
        mlp_bias = bool(given.get("mlp_bias"))
        own_width = given["head_dim"] in (None, given["hidden_size"] / given["num_attention_heads"])
        return ModelConfig(
            **{ours: given[theirs] for theirs, ours in self.sizes.items()},
            num_kv_heads=given["num_key_value_heads"],
            head_dim=None if own_width else given["head_dim"],
            activation=self.activations[given["hidden_act"]],
            position="rotary",
            **rotary(given),
            norm="rmsnorm",
            norm_epsilon=float(given["rms_norm_eps"]),
            use_bias=mlp_bias,
            attention_bias=None if given["attention_bias"] == mlp_bias else given["attention_bias"],
            tie_embeddings=given["tie_word_embeddings"],
        )

    def problems(self, given: dict[str, Any]) -> list[str]:
        found = unknown_activation(given, "hidden_act", self.activations) + rotary_problems(given)
        return found + no_epsilon(given, "rms_norm_eps")

    def write(self, cfg: ModelConfig) -> dict[str, Any]:
        biases = {"attention_bias": LINEAR["query"].has_bias(cfg)}
        if self.has_mlp_bias:
            biases["mlp_bias"] = cfg.use_bias
        return {
            **{theirs: getattr(cfg, ours) for theirs, ours in self.sizes.items()},
            "intermediate_size": cfg.mlp_width,
            "num_key_value_heads": cfg.kv_heads,
            "head_dim": cfg.head_width,
            "hidden_act": their_activation(cfg.activation, self.activations),
            "rms_norm_eps": cfg.norm_epsilon,
            "rope_theta": cfg.rotary_base,  # transformers 5 reads it too
            **biases,
            "attention_dropout": 0.0,
            "initializer_range": GPT2_STD,
        }

    def own_obstacles(self, cfg: ModelConfig) -> list[str]:
        found = not_rotary(cfg)
        if not cfg.norm.startswith("rmsnorm"):
            found.append(f"RMSNorm, not model.norm={cfg.norm!r}")
        if cfg.activation not in self.activations.values():
            found.append(f"{self.activation_words}, not model.activation={cfg.activation!r}")
        if cfg.use_bias and not self.has_mlp_bias:
            found.append("an MLP without biases, not model.use_bias=True")
        return found

    def in_its_terms(self, cfg: ModelConfig) -> ModelConfig:
        own_width = cfg.head_width * cfg.num_heads == cfg.d_model
        return dataclasses.replace(
            cfg,
            vocab_multiple=1,
            head_dim=None if own_width else cfg.head_dim,
            norm="rmsnorm",
            attention_scale=None,
            attention_window=None,
            dropout_rate=0.0,
        )
