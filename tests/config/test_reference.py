"""--help_config: every field with its meaning, from the fields themselves, without loading JAX."""

import subprocess
import sys

import pytest

from jaxgpt.config import FIELDS, reference
from tests.config.samples import message


def test_every_field_is_listed_with_its_default_bounds_and_meaning():
    text = " ".join(reference.as_text().split())
    for name, field in FIELDS.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        assert f" {name}={default} " in text
        assert " ".join(field.meaning.doc.split()) in text
        assert field.bounds in text and all(choice in text for choice in field.choices)
    assert max(map(len, reference.as_text().splitlines())) <= 120


def test_a_group_or_a_field_narrows_it():
    text = reference.as_text("optim")
    assert "optim.b1=0.9" in text and "model.d_model" not in text
    assert reference.as_text("d_model") == reference.as_text("model.d_model")
    assert reference.as_text("d_model").splitlines() == [
        "  model.d_model=384                       a whole number: 1 to 1,048,576",
        "      D: width of the residual stream",
    ]
    assert len(reference.as_text("seed").splitlines()) == 4  # data.seed and train.seed
    assert message(reference.as_text, "d_modl") == "unknown field d_modl: did you mean model.d_model?"


@pytest.mark.parametrize("flags", [["--help_config"], ["--help_config", "optim"], ["--help_config=d_model"]])
def test_the_command_prints_it_without_jax(flags):
    command = f"import sys; from jaxgpt import train; sys.argv[1:] = {flags}; train.main(sys.argv[1:])"
    probe = f"import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); {command}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[-1] == "False"
    assert len(done.stdout.splitlines()) > 2


def test_a_name_that_is_unknown_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "jaxgpt.train", "--help_config", "d_modl"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: unknown field d_modl: did you mean model.d_model?\n"
