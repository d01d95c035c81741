"""GPT-NeoX (Black et al. 2022), with the names of GPTNeoXForCausalLM: Pythia's architecture.

Rotary positions of a part of each head, LayerNorm, and attention and MLP next to each other. Queries, keys and values
share one matrix, in which the three parts of a head are next to each other.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

from jaxgpt.config import ModelConfig
from jaxgpt.model.initial import GPT2_STD
from jaxgpt.model.linear import LINEAR
from jaxgpt.runs.families.family import (
    ACTIVATIONS,
    ROTARY,
    SIZES,
    Family,
    plain_activation,
    rotary,
    rotary_problems,
    their_activation,
    unknown_activation,
)
from jaxgpt.runs.families.obstacles import (
    no_epsilon,
    not_layernorm,
    not_rotary,
    other_head_width,
    uneven_heads,
)
from jaxgpt.runs.families.places import Row


class GPTNeoX(Family):
    """See the module's docstring."""

    title = "GPT-NeoX"
    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    sizes: ClassVar[dict[str, str]] = SIZES
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 50_432,
        "max_position_embeddings": 2048,
        "hidden_size": 6144,
        "intermediate_size": 24_576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "hidden_act": "gelu",
        "hidden_dropout": 0.0,
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10_000.0,
        "rotary_pct": 0.25,
        **ROTARY,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    }
    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "rotary_emb_base": (1.0, 3e38),
        "rotary_pct": (0.0, 1.0 + 1e-9),
    }
    expressed = frozenset(
        "context_length d_model num_layers num_heads head_dim num_kv_heads d_ff activation position rotary_base "
        "rotary_fraction norm norm_epsilon attention_scale parallel_residual use_bias attention_bias tie_embeddings".split()
    )
    prefix = "gpt_neox."
    layer = "layers."
    table = Row("embed_in.weight", "table", "token_embedding/embedding")
    rest = (
        Row("final_layer_norm.weight", "vector", "final_norm/scale"),
        Row("final_layer_norm.bias", "vector", "final_norm/bias"),
    )
    block = (
        Row("input_layernorm.weight", "vector", "attention_norm/scale"),
        Row("input_layernorm.bias", "vector", "attention_norm/bias"),
        Row("attention.query_key_value.weight", "by_head", "attention/query/kernel attention/key/kernel attention/value/kernel"),
        Row("attention.query_key_value.bias", "by_head", "attention/query/bias attention/key/bias attention/value/bias"),
        Row("attention.dense.weight", "linear", "attention/out/kernel"),
        Row("attention.dense.bias", "vector", "attention/out/bias"),
        Row("post_attention_layernorm.weight", "vector", "mlp_norm/scale"),
        Row("post_attention_layernorm.bias", "vector", "mlp_norm/bias"),
        Row("mlp.dense_h_to_4h.weight", "linear", "mlp/up/kernel"),
        Row("mlp.dense_h_to_4h.bias", "vector", "mlp/up/bias"),
        Row("mlp.dense_4h_to_h.weight", "linear", "mlp/down/kernel"),
        Row("mlp.dense_4h_to_h.bias", "vector", "mlp/down/bias"),
    )  # fmt: skip
    head = Row("embed_out.weight", "linear", "head/kernel")
    buffers = re.compile(r"(?:gpt_neox\.)?layers\.\d+\.attention\.(?:bias|masked_bias|rotary_emb\.inv_freq)")

    def read(self, given: dict[str, Any]) -> ModelConfig:
        """Of the dropout rates hidden_dropout is used."""
        return ModelConfig(
            **{ours: given[theirs] for theirs, ours in self.sizes.items()},
            dropout_rate=float(given["hidden_dropout"]),
            activation=ACTIVATIONS[given["hidden_act"]],
            position="rotary",
            **rotary(given, "rotary_emb_base", "rotary_pct"),
            norm_epsilon=float(given["layer_norm_eps"]),
            parallel_residual=given["use_parallel_residual"],
            attention_bias=None if given["attention_bias"] else False,
            tie_embeddings=given["tie_word_embeddings"],
        )

    def problems(self, given: dict[str, Any]) -> list[str]:
        found = unknown_activation(given, "hidden_act") + rotary_problems(given, fraction=True)
        found += uneven_heads(given, "hidden_size", "num_attention_heads")
        return found + no_epsilon(given, "layer_norm_eps")

    def write(self, cfg: ModelConfig) -> dict[str, Any]:
        return {
            **{theirs: getattr(cfg, ours) for theirs, ours in self.sizes.items()},
            "intermediate_size": cfg.mlp_width,
            "hidden_act": their_activation(cfg.activation),
            "hidden_dropout": cfg.dropout_rate,
            "attention_dropout": cfg.attention_dropout,
            "layer_norm_eps": cfg.norm_epsilon,
            "rotary_emb_base": cfg.rotary_base,  # transformers 5 reads both too
            "rotary_pct": cfg.rotary_fraction,
            "use_parallel_residual": cfg.parallel_residual,
            "attention_bias": LINEAR["query"].has_bias(cfg),
            "initializer_range": GPT2_STD,
        }

    def own_obstacles(self, cfg: ModelConfig) -> list[str]:
        return not_rotary(cfg) + not_layernorm(cfg) + plain_activation(cfg) + other_head_width(cfg)

    def in_its_terms(self, cfg: ModelConfig) -> ModelConfig:
        return dataclasses.replace(
            cfg,
            vocab_multiple=1,
            head_dim=None,
            num_kv_heads=None,
            attention_scale=None,
            attention_window=None,
            use_bias=True,
            attention_bias=None if LINEAR["query"].has_bias(cfg) else False,
        )
