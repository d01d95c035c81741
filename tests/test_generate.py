"""The command that a finished run suggests works, also for a text without a newline."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from tests.commands import NEW, execute


def test_a_run_without_a_newline_samples_and_generates(here, monkeypatch, capfd):
    """With the prompt that training suggests at its end, and without a prompt."""
    shutil.rmtree("run")
    Path("text.txt").write_text("the king sleeps, and the queen sees it. " * 200)
    assert execute(monkeypatch, f"{NEW} --config.train.sample_tokens=4 --config.train.num_steps=2") == 0
    out = capfd.readouterr().out
    suggested = re.search(r"^try: python -m jaxgpt\.(generate .*)$", out, re.MULTILINE)[1]
    prompt = shlex.split(suggested)[-1]
    assert prompt in Path("text.txt").read_text() and len(prompt) > 2
    assert execute(monkeypatch, f"{suggested} --max_new_tokens 3 --temperature 0") == 0
    assert capfd.readouterr().out.startswith(prompt)
    assert execute(monkeypatch, "generate --workdir new --max_new_tokens 3") == 0
    assert capfd.readouterr().err == ""


def test_the_default_prompt_is_the_runs_own_sample_prompt(here, monkeypatch, capfd):
    assert execute(monkeypatch, "generate --workdir run --max_new_tokens 3") == 0
    assert capfd.readouterr().out.startswith("\n")
    assert execute(monkeypatch, f"{NEW} --config.train.sample_prompt=the --config.train.num_steps=2") == 0
    capfd.readouterr()
    assert execute(monkeypatch, "generate --workdir new --max_new_tokens 3") == 0
    assert capfd.readouterr().out.startswith("the")
