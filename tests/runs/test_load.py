"""Opening a run folder, also one of an earlier version, and writing one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.config import UserError
from jaxgpt.runs.checkpoint import Checkpoints


def test_a_run_has_all_that_using_it_needs(here):
    run = jaxgpt.load("run")
    assert run.step == 20 and run.workdir == Path("run")
    assert run.config.model.d_model == 16 and run.config.model.vocab_size == run.tokenizer.vocab_size
    logits_BTV = run.model.apply({"params": run.params}, run.tokenizer.encode("the king")[None])
    assert logits_BTV.shape == (1, 8, run.config.model.vocab_size)


def test_a_step_by_number_or_the_best(here):
    losses = {
        line["step"]: line["loss"]
        for line in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
        if line["split"] == "valid" and line["step"] > 0
    }
    assert jaxgpt.load("run", step=10).step == 10
    assert jaxgpt.load("run", step="best").step == min(losses, key=losses.__getitem__)
    with pytest.raises(UserError, match=r"no checkpoint of step 15: the steps are \[10, 20\]"):
        jaxgpt.load("run", step=15)


def test_loading_closes_the_folder_also_after_an_error(here, monkeypatch):
    closed, close = [], Checkpoints.close

    def recorded(checkpoints: Checkpoints) -> None:
        close(checkpoints)
        closed.append(checkpoints.directory)

    monkeypatch.setattr(Checkpoints, "close", recorded)
    jaxgpt.load("run")
    with pytest.raises(UserError):
        jaxgpt.load("run", step=15)
    assert closed == [here / "run/checkpoints"] * 2
