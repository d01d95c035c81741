"""The coordinate check of Yang et al. 2022, appendix D.1: what training changes, at growing widths.

In the maximal update parametrization a few steps at one learning rate change the residual stream and the logits
by as much in a wide model as in a narrow one; in the standard one by more and more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.model.gpt import GPT, Block
from jaxgpt.training import optim
from jaxgpt.training.steps import init_state, make_train_step

WIDTHS = (64, 128, 256)


@functools.cache
def changes(width: int, name: str, parametrization: str) -> tuple[float, float]:
    """The mean absolute change of the block's output and of the logits, by five steps on one batch."""
    cfg = config.ModelConfig(
        vocab_size=32,
        context_length=16,
        d_model=width,
        num_layers=1,
        num_heads=width // 32,
        init="fan_in",
        zero_init=True,
        tie_embeddings=False,
    )
    optim_cfg = config.OptimConfig(
        name=name,
        learning_rate=0.005,
        muon_learning_rate=0.05,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        grad_clip_norm=0.0,
        parametrization=parametrization,
        mup_base_width=WIDTHS[0],
    )
    model, schedule = GPT(cfg), optim.make_schedule(optim_cfg, 5)
    optimizer = optim.make_optimizer(optim_cfg, schedule)
    step = make_train_step(model, optimizer, schedule, config.Config())
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, cfg.vocab_size, size=(16, 17)))

    def outputs(params):
        logits, captured = model.apply(
            {"params": params}, tokens[:, :-1], capture_intermediates=lambda module, _: isinstance(module, Block)
        )  # fmt: skip
        return captured["intermediates"]["block_0"]["__call__"][0][0], logits

    @jax.jit
    def run(key):
        def one(state, _):
            return step(state, tokens, key)[0], outputs(state.params)

        _, seen = jax.lax.scan(one, init_state(model, optimizer, key), length=6)
        return [jnp.abs(x[-1] - x[0]).mean() for x in seen]

    return tuple(float(x) for x in run(jax.random.key(0)))


def slopes(name: str, parametrization: str, widths: tuple[int, ...] = WIDTHS) -> np.ndarray:
    """The exponents with which the two changes grow with width: [2]."""
    # At the base width, the first, all multipliers are 1: there is one narrow model for both.
    wide = [changes(width, name, parametrization) for width in widths[1:]]
    sizes = np.log([changes(widths[0], name, "mup"), *wide])
    return np.polyfit(np.log(widths), sizes, 1)[0]


MUON = pytest.param("muon", marks=pytest.mark.slow)


# Measured slopes of stream and logits: -0.03 and -0.09 with adamw, 0.05 and -0.07 with muon.
@pytest.mark.parametrize("name", ["adamw", MUON])
def test_changes_stay_level_in_mup(name):
    assert np.abs(slopes(name, "mup")).max() < 0.15


def test_changes_grow_with_width_in_the_standard_parametrization():
    """Measured: 0.85 and 0.98."""
    assert slopes("adamw", "standard", widths=WIDTHS[::2]).min() > 0.6


@pytest.mark.slow
def test_of_muons_only_the_head_needs_multipliers():
    """An orthogonal update moves the stream as far at every width. Measured: 0.02, and 0.89 for the logits."""
    stream, logits = slopes("muon", "standard", widths=WIDTHS[::2])
    assert abs(stream) < 0.15 and logits > 0.6
