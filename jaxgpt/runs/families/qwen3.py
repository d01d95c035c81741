"""Qwen3 (2025), with the names of Qwen3ForCausalLM: Llama with query-key norm, and heads of their own width.

The scales of the query-key norm are learned. An attention window is that of all layers, or of none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxgpt.config import ModelConfig
from jaxgpt.runs.families.llama import Llama

_FULL, _WINDOW = "full_attention", "sliding_attention"


class Qwen3(Llama):
    """See the module's docstring."""

    title = "Qwen3"
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults = {name: value for name, value in Llama.defaults.items() if name != "mlp_bias"} | {
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": (),  # not a size; null where it is not given
    }
    optional = Llama.optional | {"sliding_window"}
    from_zero = frozenset({"max_window_layers"})
    expressed = Llama.expressed | {"qk_norm", "qk_norm_scale", "attention_window"}
    has_mlp_bias = False

    def read(self, given: dict[str, Any]) -> ModelConfig:
        window = given["sliding_window"] if set(_layers(given)) == {_WINDOW} else None
        return dataclasses.replace(
            super().read(given), qk_norm=True, qk_norm_scale=True, attention_window=window
        )

    def problems(self, given: dict[str, Any]) -> list[str]:
        found, layers = super().problems(given), _layers(given)
        if not isinstance(layers, list | tuple) or not all(kind in (_FULL, _WINDOW) for kind in layers):
            found.append(f"layer_types is not a list of {_FULL!r} and {_WINDOW!r}")
        elif len(set(layers)) > 1:
            found.append(
                "some layers have an attention window and others have not, and all layers here are alike"
            )
        elif _WINDOW in layers and given["sliding_window"] is None:
            found.append(f"layer_types says {_WINDOW!r}, and sliding_window is null")
        return found

    def write(self, cfg: ModelConfig) -> dict[str, Any]:
        window = cfg.attention_window
        return super().write(cfg) | {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": cfg.num_layers if window is None else 0,
            "layer_types": [_FULL if window is None else _WINDOW] * cfg.num_layers,
        }

    def own_obstacles(self, cfg: ModelConfig) -> list[str]:
        found = super().own_obstacles(cfg)
        if not cfg.qk_norm:
            found.append("query-key norm, not model.qk_norm=False")
        return found

    def in_its_terms(self, cfg: ModelConfig) -> ModelConfig:
        window = cfg.attention_window
        if window is not None and window >= cfg.context_length:
            window = None
        return dataclasses.replace(super().in_its_terms(cfg), qk_norm_scale=True, attention_window=window)


def _layers(given: dict[str, Any]) -> Any:
    """The kind of attention of each layer."""
    if given["layer_types"]:
        return given["layer_types"]
    first = given["max_window_layers"] if given["use_sliding_window"] and given["sliding_window"] else None
    count = min(given["num_hidden_layers"], 10_000)
    return [_FULL if first is None or i < first else _WINDOW for i in range(count)]
