"""A run that is trained again gives the same curve. For a different run, the first different step is printed."""

import json
import shutil

import pytest

from jaxgpt import reproduce
from jaxgpt.config import UserError


@pytest.fixture
def copy(plain_run, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(plain_run / "run", tmp_path / "run")


def test_a_complete_run_is_reproduced_exactly(copy, capsys):
    assert reproduce.main(["--workdir", str(copy)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "equal: all 28 losses, to the last bit"
    assert (copy.with_name("run-again") / "checkpoints").is_dir()
    assert "changed since" not in out


def test_its_first_steps_are_compared_with_the_first_steps(copy, tmp_path, capsys):
    assert reproduce.main(["--workdir", str(copy), "--steps", "6", "--into", str(tmp_path / "few")]) == 0
    assert "equal: all 7 losses" in capsys.readouterr().out  # step 0 is evaluated too


def test_the_first_difference_of_another_curve_is_reported(copy, capsys):
    path = copy / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["split"] == "train":
            line["loss"] += 1e-5 * line["step"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = json.loads((copy / "run.json").read_text())
    config["starts"][0]["versions"]["jax"] = "0.1"
    (copy / "run.json").write_text(json.dumps(config))
    command = ["--workdir", str(copy), "--steps", "6"]
    assert reproduce.main([*command, "--tolerance", "3.5e-5"]) == 1
    out = capsys.readouterr().out
    assert (
        "they part at step 4, train loss" in out
        and "largest difference 6e-05 nats, train loss of step 6" in out
    )
    assert "changed since: jax: 0.1 -> " in out
    shutil.rmtree(copy.with_name("run-again"))
    assert reproduce.main([*command, "--tolerance", "1e-3"]) == 0
    assert "within 0.001 nats: 7 losses, 1 of them equal" in capsys.readouterr().out


def test_what_can_not_be_done_is_said(copy, tmp_path):
    def refused(words: str, *arguments: str) -> None:
        with pytest.raises(UserError, match=words):
            reproduce.main(["--workdir", str(copy), *arguments])

    refused("steps=0", "--steps", "0")
    refused("tolerance=nan", "--tolerance", "nan")
    refused("is not empty", "--into", str(copy))
    with pytest.raises(UserError, match=r"has no losses"):
        reproduce.main(["--workdir", str(tmp_path / "nothing")])
    (copy / "config.json").write_text("[1]")
    refused("can't read .*config.json")
    (copy / "metrics.jsonl").write_text('{"step": 1}\n')
    refused("has no losses")


def test_another_text_is_refused(copy):
    text = copy.with_name("other.txt")
    text.write_text("the king loves the queen.\n" * 300)
    cfg = json.loads((copy / "config.json").read_text())
    cfg["data"]["path"] = str(text)
    cfg["model"]["vocab_size"] = None
    (copy / "config.json").write_text(json.dumps(cfg))
    with pytest.raises(UserError, match="started with another text"):
        reproduce.main(["--workdir", str(copy)])
