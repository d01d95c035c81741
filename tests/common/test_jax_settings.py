"""Settings of JAX in the environment: those that do not work are refused by name, in one line."""

import os
import subprocess
import sys

import jax
import pytest

from jaxgpt.common import jax_settings
from tests.config.samples import message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_disable_jit", True),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_transfer_guard", "disallow"),
    ],
)
def test_a_setting_that_does_not_work_is_named(name, value, monkeypatch):
    jax_settings.check()
    monkeypatch.setattr(type(jax.config), "values", {**jax.config.values, name: value})
    text = message(jax_settings.check)
    assert text.startswith(f"{name.upper()}={int(value) if value is True else value} is not possible here")
    assert "unset it" in text and "\n" not in text


def test_every_setting_of_the_table_is_one_of_jax():
    assert jax_settings._ALLOWED.keys() <= jax.config.values.keys()


def test_commands_refuse_them_before_they_start():
    """One process for each kind of refusal: a value of another type, a setting, a platform."""
    environments = [
        ({"JAX_ENABLE_X64": "maybe"}, "'JAX_ENABLE_X64'"),
        ({"JAX_ENABLE_X64": "1"}, "JAX_ENABLE_X64=1 is not possible"),
        ({"JAX_DEFAULT_DEVICE": "tpu"}, "JAX_DEFAULT_DEVICE=tpu: JAX finds no such device"),
        ({"JAX_PLATFORMS": "nonsense"}, "JAX_PLATFORMS=nonsense: JAX finds no such device"),
    ]
    command = [sys.executable, "-m", "jaxgpt.generate", "--workdir", "nowhere"]
    running = [
        subprocess.Popen(command, env=os.environ | one, stderr=subprocess.PIPE, text=True)
        for one, _ in environments
    ]
    for process, (_, words) in zip(running, environments, strict=True):
        (line,) = process.communicate(timeout=120)[1].splitlines()
        assert process.returncode == 2 and line.startswith("error: ") and words in line
