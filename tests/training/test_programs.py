"""How a dispatch is compiled."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.config import Config, TrainConfig
from jaxgpt.training import programs, steps


def test_a_deterministic_run_is_compiled_with_xlas_option_for_it(monkeypatch):
    """The compiler takes the option, and a dispatch gets what `compiler_options` says."""
    fixed, free = Config(train=TrainConfig(deterministic=True)), Config()
    assert steps.compiler_options(fixed) == {
        "xla_gpu_deterministic_ops": True
    } and not steps.compiler_options(free)

    def compiled(cfg):
        return programs._compile(
            cfg, lambda x: x + 1, lambda: (jnp.zeros(3),), contextlib.nullcontext
        ).result()

    assert compiled(fixed)(jnp.zeros(3))[0] == 1
    monkeypatch.setattr(
        programs, "compiler_options", lambda cfg: {"xla_no_such_option": cfg.train.deterministic}
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        compiled(fixed)
