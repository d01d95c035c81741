"""What a run writes about itself: the command that started it."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.config import UserError
from jaxgpt.runs import records
from tests.errors import one_line

SHOW = "from jaxgpt.runs import records; print(records.command_line())"


@pytest.mark.parametrize(("orig_argv", "expected"), [
    (["/usr/bin/python3", "-m", "jaxgpt.train", "--config", "char"], "python3 -m jaxgpt.train --config char"),
    (["python", "-u", "-m", "experiments.residual", "--quick"], "python -u -m experiments.residual --quick"),
    (["python", "-m", "jaxgpt", "train", "--config.data.path=my text.txt"],
     "python -m jaxgpt train '--config.data.path=my text.txt'"),
    (["/venv/bin/python", "scripts/my run.py"], "python 'scripts/my run.py'"),
    (["python"], "python"),
])  # fmt: skip
def test_the_command_line_is_what_was_typed(monkeypatch, orig_argv, expected):
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert records.command_line() == expected


def test_a_console_script_is_recorded_by_its_name(tmp_path, monkeypatch):
    script = tmp_path / "bin" / "jaxgpt"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{SHOW}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(script.parent))
    typed = "jaxgpt train --workdir 'a b'"
    said = subprocess.run(shlex.split(typed), capture_output=True, text=True, check=True).stdout
    assert said.strip() == typed


def test_the_recorded_command_of_a_module_runs_again(tmp_path):
    (tmp_path / "shown.py").write_text(SHOW)
    said = [sys.executable, "-m", "shown", "--n=1"]
    for _ in range(2):
        said = subprocess.run(said, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert said.strip() == f"{Path(sys.executable).name} -m shown --n=1"
        said = [sys.executable, *shlex.split(said)[1:]]


def test_each_start_of_a_run_records_its_command(trained):
    """The run was trained in this process."""
    starts = json.loads((trained / "run/run.json").read_text())["starts"]
    assert starts[0]["command"] == records.command_line()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"starts": [{"commit": 0.5}]}, "starts.0.commit is of type float, not str"),
        ({"starts": [{}, 1]}, "starts.1 is of type int, not an object"),
        ({"starts": [], "train_tokens": "many"}, "train_tokens is of type str, not int"),
        ({"starts": [], "vocab_size": True}, "vocab_size is of type bool, not int"),
        ({"starts": [], "corpus": ["x"]}, "corpus is of type list, not str"),
        ({"starts": [{"versions": []}]}, "starts.0.versions is of type list, not dict"),
    ],
)
def test_a_value_of_another_type_in_run_json_is_one_line(facts, words, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=words) as error:
        records.read_run_json(tmp_path)
    one_line(error)
