"""The parameters of a GPT: their shapes, their number, and fresh ones."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.model.gpt import GPT
from jaxgpt.model.initial import draw


def init_params(model: GPT, key: jax.Array) -> dict:
    """Fresh parameters of a model: see initial.py."""
    return draw(model.cfg, param_shapes(model.cfg), key)


@functools.cache
def param_shapes(cfg: config.ModelConfig) -> dict:
    """The tree of parameters as shapes and dtypes. Only two layers are traced: the others are like the second."""
    few = GPT(dataclasses.replace(cfg, num_layers=min(cfg.num_layers, 2)))
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(functools.partial(nn.Module.init, few), jax.random.key(0), token)["params"]
    return params | {f"block_{layer}": params["block_1"] for layer in range(2, cfg.num_layers)}


def count_params(params: dict) -> int:
    """How many numbers a tree of arrays (or of shapes) holds; a tied table counts once."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
