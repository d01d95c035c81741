"""A step whose loss or gradient is bad changes nothing; the run stops there, or goes on with the next batch."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.runs.load import load
from jaxgpt.training import guard, loop, steps
from tests.small_runs import metrics, small_config


@pytest.fixture(scope="module")
def text(plain_run):
    return plain_run / "text.txt"


@pytest.fixture(scope="module")
def norms(plain_run) -> list[float]:
    """The gradient norms of an undisturbed run."""
    return [line["grad_norm"] for line in metrics(plain_run / "run") if line["split"] == "train"]


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("cause", ["norm", "nan"])
def test_a_bad_step_changes_nothing(text, policy, cause):
    limit = 1e-6 if cause == "norm" else 0.0
    cfg = small_config(
        text,
        model__num_layers=1,
        model__vocab_size=20,
        train__on_bad_step=policy,
        train__bad_grad_norm=limit,
    )
    parts = steps.build(cfg)
    key = jax.random.key(0)
    state = steps.init_state(parts.model, parts.optimizer, key)
    if cause == "nan":
        table = state.params["token_embedding"]["embedding"].at[3].set(jnp.nan)
        state.params["token_embedding"]["embedding"] = table
    batch = jnp.full((4, 17), 3, jnp.int32)
    after, found = jax.jit(parts.train_step)(state, batch, key)
    assert bool(found["bad"])
    assert int(after.step) == (1 if policy == "skip" else 0)
    for old, new in zip(jax.tree.leaves(state[1:]), jax.tree.leaves(after[1:]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_run_that_skips_goes_on_and_says_so(text, norms, tmp_path, capsys):
    limit = sorted(norms)[-1] * 0.999  # at least one step lies above
    cfg = small_config(text, train__bad_grad_norm=limit, train__on_bad_step="skip", train__log_every=100)
    result = loop.train(cfg, tmp_path / "run")
    assert int(result.state.step) == cfg.train.num_steps
    lines = metrics(tmp_path / "run")
    skipped = [line["step"] for line in lines if line.get("skipped")]
    assert skipped and all(line["grad_norm"] > limit for line in lines if line.get("skipped"))
    assert f"step {skipped[0]:>6}  skipped: loss" in capsys.readouterr().out
    # Gone on from where it was saved it is the same run.
    loop.train(cfg, tmp_path / "parts", stop_at=skipped[0])
    loop.train(cfg, tmp_path / "parts")
    one, other = (load(tmp_path / name).params for name in ("run", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_that_stops_names_the_step_and_what_to_do(text, norms, tmp_path):
    cfg = small_config(text, train__bad_grad_norm=min(norms) / 2)
    with pytest.raises(UserError) as error:
        loop.train(cfg, tmp_path / "run")
    for words in ("the loss of step 1 is", "above train.bad_grad_norm=", "train.on_bad_step='skip'"):
        assert words in str(error.value)


def test_skipping_comes_to_an_end(text, norms, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MOST_SKIPPED", 3)
    cfg = small_config(text, train__bad_grad_norm=min(norms) / 2, train__on_bad_step="skip")
    with pytest.raises(UserError, match="the loss of step 4 is"):
        loop.train(cfg, tmp_path / "run")


def test_the_watchdog_speaks_of_what_hangs_and_only_of_that(capsys):
    with guard.Watchdog(0.2) as watchdog:
        for step in range(4):
            watchdog.doing(f"step {step}")
            time.sleep(0.05)
        assert capsys.readouterr().err == ""
        watchdog.doing("saving step 4")
        time.sleep(0.7)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("warning: saving step 4 has taken ") for line in lines)
    with guard.Watchdog(0):
        pass
