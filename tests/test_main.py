"""The console command, and that every command answers --help without loading JAX."""

import importlib
import subprocess
import sys

import pytest

from jaxgpt import __main__ as console
from jaxgpt.config import UserError

HEAVY = {"flax", "jax", "jaxlib", "numpy", "optax", "orbax", "safetensors", "scipy", "tokenizers", "tqdm"}
HELP = """
import sys
from jaxgpt.__main__ import main
try:
    main([*sys.argv[1:], "--help"])
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("command", console.commands())
def test_help_loads_no_heavy_package(command):
    done = subprocess.run([sys.executable, "-c", HELP, command], capture_output=True, text=True)
    assert "usage: " in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "jaxgpt" in loaded and not loaded & HEAVY


def test_help_lists_every_command_with_a_line(capsys):
    assert console.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in console.commands():
        line = importlib.import_module(f"jaxgpt.{name}").__doc__.splitlines()[0]
        assert f"  {name:<11} {line}\n" in out and len(line) <= 100
    assert {"train", "generate", "gpt2"} <= set(console.commands())


@pytest.mark.parametrize(
    "argv, words",
    [
        (["trian"], "unknown command trian: did you mean train?"),
        (["xyz"], "unknown command xyz: choose one of bench, "),
        (["--trian"], "unknown command --trian: did you mean train?"),
        (["train", "--config", "none"], "no config file none"),
    ],
)
def test_mistakes_get_one_line(argv, words):
    with pytest.raises(UserError) as error:
        console.main(argv)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


@pytest.mark.parametrize("start", [["jaxgpt", "train"], ["jaxgpt.train"]])
def test_both_forms_run_the_command_and_name_themselves(start):
    done = subprocess.run([sys.executable, "-m", *start, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    form = "jaxgpt train" if start[0] == "jaxgpt" else "python -m jaxgpt.train"
    assert done.stdout.startswith(f"usage: {form} ")


def test_the_exit_code_is_the_commands(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxgpt", "generate", "--workdir", str(tmp_path / "none")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
