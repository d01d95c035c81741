"""Small models for tests, with every choice of every table, and random parameters for them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.model import parameters

TINY = config.ModelConfig(vocab_size=11, context_length=8, d_model=8, num_layers=2, num_heads=2, d_ff=12)
# All at once that a modern recipe may have.
EVERYTHING = {
    "position": "rotary",
    "rotary_base": 100.0,
    "norm": "rmsnorm_plain",
    "activation": "swiglu",
    "num_kv_heads": 1,
    "qk_norm": True,
    "attention_scale": 0.5,
    "attention_softcap": 3.0,
    "attention_window": 4,
    "value_residual": True,
    "embedding_residual": True,
    "logit_softcap": 5.0,
    "vocab_multiple": 8,
    "use_bias": False,
    "tie_embeddings": False,
}
# Every choice of every table, and both sides of every switch.
VARIANTS = {
    "everything": dataclasses.replace(TINY, **EVERYTHING),
    "gpt2": TINY,
    "2017": dataclasses.replace(TINY, position="sinusoidal", activation="relu", tie_embeddings=False),
    "published": dataclasses.replace(
        TINY,
        position="rotary",
        head_dim=8,
        rotary_fraction=0.5,
        parallel_residual=True,
        norm="rmsnorm",
        norm_epsilon=0.1,
        qk_norm=True,
        qk_norm_scale=True,
        use_bias=False,
        attention_bias=True,
    ),
    "rms": dataclasses.replace(TINY, norm="rmsnorm", activation="gelu_tanh", use_bias=False),
    "no positions": dataclasses.replace(TINY, position="none", use_bias=False, tie_embeddings=False),
}

TOKENS = np.random.default_rng(1).integers(0, 11, (2, 8)).astype(np.int32)


def variants(*names: str):
    return pytest.mark.parametrize("cfg", [VARIANTS[name] for name in names], ids=names)


def random_params(cfg: config.ModelConfig, std: float = 0.4) -> dict:
    """Every leaf random: fresh parameters, with biases 0 and scales 1, would hide mistakes."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0.0, std, leaf.shape), leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, parameters.param_shapes(cfg))
