"""LoRA: low-rank changes of linear layers, merged into the kernels.

    python -m jaxgpt.lora --workdir runs/lora --to_workdir runs/merged

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": y = x W + lora_alpha / lora_rank * x A B. A and B
are parameters of layers.Dense. Merged, W + lora_alpha / lora_rank * A B is one kernel, at no extra cost. The command
writes a run folder with one checkpoint, for generate, evaluate, gpt2 export and init_from; training continues in the
original folder.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxgpt import config


def merge_lora(cfg: config.ModelConfig, params: dict) -> tuple[config.ModelConfig, dict]:
    """The same model without low-rank matrices: (cfg with lora_rank 0, params); unchanged if it has none."""
    if not cfg.lora_rank:
        return cfg, params

    def merged(tree: dict) -> dict:
        found: dict[str, Any] = {name: merged(x) if isinstance(x, dict) else x for name, x in tree.items()}
        if "lora_a" in found:
            a, b = found.pop("lora_a"), found.pop("lora_b")
            found["kernel"] = found["kernel"] + cfg.lora_alpha / cfg.lora_rank * jnp.tensordot(a, b, 1)
        return found

    plain = {name: getattr(config.ModelConfig, name) for name in ("lora_rank", "lora_alpha", "lora_targets")}
    return dataclasses.replace(cfg, **plain), merged(params)
