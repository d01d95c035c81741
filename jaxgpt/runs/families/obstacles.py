"""What several families can't express of a model, or do not support of a config.json: one line each, or none."""

from __future__ import annotations

from typing import Any

from jaxgpt.config import ModelConfig


def not_rotary(cfg: ModelConfig) -> list[str]:
    """The obstacle of a model without rotary positions, where a family has these."""
    if cfg.position == "rotary":
        return []
    return [f"rotary positions, not model.position={cfg.position!r}"]


def not_layernorm(cfg: ModelConfig) -> list[str]:
    """The obstacle of a model with another norm, where a family has LayerNorm."""
    return [] if cfg.norm == "layernorm" else [f"LayerNorm, not model.norm={cfg.norm!r}"]


def other_head_width(cfg: ModelConfig) -> list[str]:
    """The obstacle of heads that do not share d_model, where a family has no width of its own for them."""
    if cfg.head_width * cfg.num_heads == cfg.d_model:
        return []
    return [f"heads of d_model / num_heads numbers, not model.head_dim={cfg.head_dim}"]


def no_epsilon(given: dict[str, Any], name: str) -> list[str]:
    """The problem of a norm without epsilon."""
    return [] if given[name] else [f"{name}=0, and it is above 0 here"]


def uneven_heads(given: dict[str, Any], width: str, heads: str) -> list[str]:
    """The problem of a width that the heads can't share."""
    if given[width] % given[heads] == 0:
        return []
    return [f"{width}={given[width]} is not a multiple of {heads}={given[heads]}"]
