"""GPT-2 (Radford et al. 2019), with the names of GPT2LMHeadModel: learned positions, LayerNorm, GELU.

Its linear layers (Conv1D) are stored [in, out] as ours, but queries, keys and values share one matrix [D, 3D], and heads
have no axis.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxgpt.config import ModelConfig
from jaxgpt.model.initial import GPT2_STD
from jaxgpt.model.layers import sinusoids
from jaxgpt.runs.families.family import (
    ACTIVATIONS,
    Family,
    plain_activation,
    query_factor,
    their_activation,
    unknown_activation,
)
from jaxgpt.runs.families.obstacles import no_epsilon, not_layernorm, other_head_width, uneven_heads
from jaxgpt.runs.families.places import Row


class GPT2(Family):
    """See the module's docstring."""

    title = "GPT-2"
    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    sizes: ClassVar[dict[str, str]] = {
        "vocab_size": "vocab_size",
        "n_positions": "context_length",
        "n_embd": "d_model",
        "n_layer": "num_layers",
        "n_head": "num_heads",
    }
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,  # float32 scores, as ours always are
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
    optional = frozenset({"n_inner"})
    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }
    expressed = frozenset(
        "context_length d_model num_layers num_heads head_dim num_kv_heads d_ff activation position norm norm_epsilon "
        "attention_scale use_bias attention_bias tie_embeddings".split()
    )
    prefix = "transformer."
    layer = "h."
    table = Row("wte.weight", "table", "token_embedding/embedding")
    rest = (
        Row("wpe.weight", "table", "position_embedding/embedding"),
        Row("ln_f.weight", "vector", "final_norm/scale"),
        Row("ln_f.bias", "vector", "final_norm/bias"),
    )
    block = (
        Row("ln_1.weight", "vector", "attention_norm/scale"),
        Row("ln_1.bias", "vector", "attention_norm/bias"),
        Row("attn.c_attn.weight", "columns", "attention/query/kernel attention/key/kernel attention/value/kernel"),
        Row("attn.c_attn.bias", "columns", "attention/query/bias attention/key/bias attention/value/bias"),
        Row("attn.c_proj.weight", "columns", "attention/out/kernel"),
        Row("attn.c_proj.bias", "vector", "attention/out/bias"),
        Row("ln_2.weight", "vector", "mlp_norm/scale"),
        Row("ln_2.bias", "vector", "mlp_norm/bias"),
        Row("mlp.c_fc.weight", "columns", "mlp/up/kernel"),
        Row("mlp.c_fc.bias", "vector", "mlp/up/bias"),
        Row("mlp.c_proj.weight", "columns", "mlp/down/kernel"),
        Row("mlp.c_proj.bias", "vector", "mlp/down/bias"),
    )  # fmt: skip
    buffers = re.compile(r"(?:transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")  # masks

    def read(self, given: dict[str, Any]) -> ModelConfig:
        """Of the dropout rates embd_pdrop is left out: embeddings have that of what layers add, resid_pdrop."""
        return ModelConfig(
            vocab_size=given["vocab_size"],
            context_length=given["n_positions"],
            d_model=given["n_embd"],
            num_layers=given["n_layer"],
            num_heads=given["n_head"],
            d_ff=given["n_inner"] or 4 * given["n_embd"],
            dropout_rate=float(given["resid_pdrop"]),
            attention_dropout_rate=None
            if given["attn_pdrop"] == given["resid_pdrop"]
            else float(given["attn_pdrop"]),
            activation=ACTIVATIONS[given["activation_function"]],
            attention_scale=None if given["scale_attn_weights"] else 1.0,
            norm_epsilon=float(given["layer_norm_epsilon"]),
            tie_embeddings=given["tie_word_embeddings"],
        )

    def problems(self, given: dict[str, Any]) -> list[str]:
        found = uneven_heads(given, "n_embd", "n_head")
        found += unknown_activation(given, "activation_function") + no_epsilon(given, "layer_norm_epsilon")
        if given["scale_attn_by_inverse_layer_idx"]:
            found.append(
                "scale_attn_by_inverse_layer_idx=true, but all layers here scale their scores in the same way"
            )
        if given["add_cross_attention"]:
            found.append("add_cross_attention=true, but there is no encoder here")
        return found

    def write(self, cfg: ModelConfig) -> dict[str, Any]:
        return {
            **{theirs: getattr(cfg, ours) for theirs, ours in self.sizes.items()},
            "n_inner": None if cfg.mlp_width == 4 * cfg.d_model else cfg.mlp_width,
            "activation_function": their_activation(cfg.activation),
            "resid_pdrop": cfg.dropout_rate,
            "embd_pdrop": cfg.dropout_rate,
            "attn_pdrop": cfg.attention_dropout,
            "layer_norm_epsilon": cfg.norm_epsilon,
            "initializer_range": GPT2_STD,
            "scale_attn_weights": cfg.attention_scale is None,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
        }

    def own_obstacles(self, cfg: ModelConfig) -> list[str]:
        found = []
        if cfg.position == "rotary":
            found.append("a table of positions, not model.position='rotary'")
        found += not_layernorm(cfg) + plain_activation(cfg)
        if query_factor(cfg, self.in_its_terms(cfg)) != 1:
            found.append(
                f"scores times 1 / sqrt(head width) or 1, not model.attention_scale={cfg.attention_scale}"
            )
        return found + other_head_width(cfg)

    def in_its_terms(self, cfg: ModelConfig) -> ModelConfig:
        return dataclasses.replace(
            cfg,
            vocab_multiple=1,
            head_dim=None,
            num_kv_heads=None,
            position="learned",
            norm="layernorm",
            attention_scale=1.0 if cfg.attention_scale == 1.0 else None,
            attention_window=None,
            use_bias=True,
            attention_bias=None,
        )

    def missing(self, path: str, shape: tuple[int, ...], cfg: ModelConfig) -> np.ndarray:
        if path == "position_embedding/embedding" and cfg.position == "sinusoidal":
            return np.asarray(sinusoids(jnp.arange(cfg.context_length), cfg.d_model))
        return super().missing(path, shape, cfg)
