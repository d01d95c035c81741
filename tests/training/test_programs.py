"""How a dispatch is compiled."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.config import Config, MeshConfig, TrainConfig
from jaxgpt.training import programs, steps


def test_collectives_are_pipelined_on_gpus_with_fsdp_unless_the_user_says_otherwise():
    split = Config(mesh=MeshConfig(fsdp=8))
    both = dict.fromkeys(steps.PIPELINED, True)
    assert steps.compiler_options(split, "gpu", {}) == both
    for kind in ("cpu", "tpu"):
        assert steps.compiler_options(split, kind, {}) == {}
    assert steps.compiler_options(split) == steps.compiler_options(Config(), "gpu", {}) == {}
    off = dataclasses.replace(split, train=TrainConfig(pipelined=False))
    assert steps.compiler_options(off, "gpu", {}) == {}
    first, second = steps.PIPELINED
    given = {"XLA_FLAGS": f"--xla_dump_to=/tmp/x --{first}=false"}
    assert steps.compiler_options(split, "gpu", given) == {second: True}
    # The installed compiler knows them: it refuses what it does not know.
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    lowered.compile(compiler_options=both)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_enable_pipelined_nothing"):
        lowered.compile(compiler_options={"xla_gpu_enable_pipelined_nothing": True})


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
