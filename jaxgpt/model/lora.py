"""Low-rank changes of linear layers, and a run without them.

    python -m jaxgpt.lora --workdir runs/lora --to_workdir runs/merged

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": y = x W + lora_alpha / lora_rank * x A B. The layer
itself has the two matrices (see layers.Dense); merged, W + lora_alpha / lora_rank * A B is one matrix as before, which
costs nothing more to use. What is written is a run folder with one checkpoint, for generate, evaluate, gpt2 export and
init_from; training goes on in the first one.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxgpt import config


def merge_lora(cfg: config.ModelConfig, params: dict) -> tuple[config.ModelConfig, dict]:
    """The same function without low-rank matrices: (cfg with lora_rank 0, params); as given where there are none."""
    if not cfg.lora_rank:
        return cfg, params

    def merged(tree: dict) -> dict:
        found = {name: merged(x) if isinstance(x, dict) else x for name, x in tree.items()}
        if "lora_a" in found:
            a, b = found.pop("lora_a"), found.pop("lora_b")
            found["kernel"] = found["kernel"] + cfg.lora_alpha / cfg.lora_rank * jnp.tensordot(a, b, 1)
        return found

    plain = {name: getattr(config.ModelConfig, name) for name in ("lora_rank", "lora_alpha", "lora_targets")}
    return dataclasses.replace(cfg, **plain), merged(params)
