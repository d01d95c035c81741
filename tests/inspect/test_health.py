"""What is unusual in a run's statistics is named at the step at which it was planted, and nothing else is."""

import math

import pytest

from jaxgpt.inspect.health import RULES, health

STEPS = [1, *range(100, 2001, 100)]
USUAL = {
    "gradient_norm": lambda t: 1 + 1 / t,
    "parameter_norm": lambda t: 10 + t / 1000,
    "update_norm": lambda t: 0.01 * (2000 - t),  # the last is 0
    "update_ratio": lambda t: 0.5 if t < 100 else 1e-3,
    "residual_rms": lambda t: 0.3 + t / 1000,
    "attention_max": lambda t: 0.1 + t / 200,
    "dead": lambda t: 0.2,
}


def lines(**planted) -> list[dict]:
    """The lines of a usual run; `planted` maps a kind to a function of the step for block_1."""
    found = [{"step": 3, "split": "train", "loss": 1.0}]
    for step in reversed(STEPS):
        line = {"step": step, "split": "stats"}
        for name in ("block_0", "block_1"):
            for kind, usual in USUAL.items():
                line[f"{name}/{kind}"] = (planted.get(kind, usual) if name == "block_1" else usual)(step)
        line["logsumexp"] = planted.get("logsumexp", lambda _: math.log(65))(step)
        found.append(line)
    return found


def test_a_usual_run_has_nothing_unusual_and_a_run_without_statistics_has_none():
    found = health(lines(), 65)
    assert found["steps"] == STEPS and found["unusual"] == []
    assert list(found["series"]["dead"]) == ["block_0", "block_1"] and list(found["series"]["logsumexp"]) == [
        ""
    ]
    assert len(found["series"]["residual_rms"]["block_1"]) == len(STEPS)
    assert health(lines()[:1], 65) is None


@pytest.mark.parametrize(
    ("kind", "planted", "step", "words"),
    [
        ("gradient_norm", lambda t: 30.0 if t == 900 else 1.0, 900, "30 times the median"),
        ("gradient_norm", lambda t: None if t >= 700 else 1.0, 700, "is not finite"),
        ("update_ratio", lambda t: 0.3 if t >= 1500 else 1e-3, 1500, "learning rate too high"),
        ("update_norm", lambda t: 0.0 if t >= 1200 else 0.01, 1200, "at no measured step from 1,200 on"),
        ("update_norm", lambda t: 0.0, 1, "block_1 changes at no measured step: it"),
        ("attention_max", lambda t: t / 10, 600, "score of block_1 is 60 at step 600"),
        ("dead", lambda t: 0.75 if t > 400 else 0.1, 500, "75% of the neurons of block_1"),
        ("residual_rms", lambda t: 0.1 if t < 1000 else 1.5, 1000, "15 times as large at step 1,000 as at step 1"),
        ("logsumexp", lambda t: -0.02 * t, 600, "of the logits is -12 at step 600"),
    ],
)  # fmt: skip
def test_what_is_planted_is_named_at_its_step(kind, planted, step, words):
    (found,) = health(lines(**{kind: planted}), 65)["unusual"]
    assert (found["kind"], found["name"]) == (kind, "" if kind == "logsumexp" else "block_1")
    assert found["step"] == step and words in found["text"]


def test_a_table_that_is_trained_again_is_not_frozen():
    assert health(lines(update_norm=lambda t: 0.0 if 500 < t < 1000 else 0.1), 65)["unusual"] == []
    assert set(RULES) <= {*USUAL, "logsumexp"}
