"""A run that is stopped anywhere and started again is the run that never stopped, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgpt
from experiments import torture
from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.runs import records, snapshots
from jaxgpt.training import optim
from jaxgpt.training.loop import train
from tests.small_runs import assert_same_run, metrics, small_config

# Trains in a process of its own and kills it: argv = text, folder, phase, call, delay.
# The kill comes `delay` seconds after the beginning of the call-th step, save or evaluation of this process.
VICTIM = """
import os, signal, sys, threading, time
from pathlib import Path
from jaxgpt.runs import checkpoint
from jaxgpt.training import actions, loop, programs
from jaxgpt.common.cli import set_up_process
from tests.small_runs import small_config
text, folder, phase, call, delay = sys.argv[1:]
set_up_process()
calls = 0

def deadly(function):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(call):
            kill = lambda: (time.sleep(float(delay)), os.kill(os.getpid(), signal.SIGKILL))
            threading.Thread(target=kill, daemon=True).start()
        return function(*args, **kwargs)
    return wrapped

owner, name = {
    "step": (programs.SingleRun, "feed"),
    "save": (checkpoint.Checkpoints, "save"),
    "evaluation": (actions.Evaluate, "run"),
    "start": (loop.Trainer, "restore_or_init"),
    "never": (programs.SingleRun, "feed"),
}[phase]
if phase != "never":
    setattr(owner, name, deadly(getattr(owner, name)))
loop.train(small_config(Path(text)), folder)
"""


@pytest.fixture(scope="module")
def text(plain_run):
    return plain_run / "text.txt"


@pytest.fixture(scope="module")
def uninterrupted(plain_run):
    """The run that never stopped."""
    return plain_run / "run"


def start_victim(text: Path, folder: Path, phase: str, call: int, delay: float) -> int:
    command = [sys.executable, "-c", VICTIM, str(text), str(folder), phase, str(call), str(delay)]
    return subprocess.run(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, timeout=300
    ).returncode


def kill_and_finish(text: Path, folder: Path, kills: list[tuple[str, int, float]]) -> dict[str, int]:
    """Kill so often, then let the run end. Returns how often each phase was really hit."""
    hits: dict[str, int] = {}
    for phase, call, delay in kills:
        code = start_victim(text, folder, phase, call, delay)
        assert code in (0, -signal.SIGKILL)
        if code:
            hits[phase] = hits.get(phase, 0) + 1
    assert start_victim(text, folder, "never", 0, 0.0) == 0
    return hits


def test_killed_in_a_step_a_save_and_an_evaluation(text, uninterrupted, tmp_path):
    kills = [("evaluation", 2, 0.0), ("save", 1, 0.005), ("step", 5, 0.001)]
    assert kill_and_finish(text, tmp_path / "run", kills) == {"evaluation": 1, "save": 1, "step": 1}
    assert_same_run(uninterrupted, tmp_path / "run")


@pytest.mark.slow
def test_killed_20_times_at_random_moments_by_any_signal(tmp_path):
    """As `python -m experiments.torture` does it 100 times."""
    whole, killed, num_steps = tmp_path / "whole", tmp_path / "killed", 400
    assert torture.start(whole, num_steps) == 0
    found = torture.torture(killed, num_steps, 20, random.Random(time.time_ns()))
    print(torture.table(found["hits"]))
    assert found["hits"].total() == 20
    assert_same_run(whole, killed)


# All of the fast recipe that has a state or a rhythm of its own.
FAST = {
    "optim__name": "muon",
    "optim__ema_decay": 0.9,
    "train__steps_per_dispatch": 2,
    "data__on_device": True,
    "model__position": "rotary",
    "model__norm": "rmsnorm_plain",
    "model__activation": "relu_squared",
    "model__qk_norm": True,
    "model__value_residual": True,
    "model__embedding_residual": True,
    "model__tie_embeddings": False,
    "model__init": "fan_in",
    "model__zero_init": True,
    "model__vocab_multiple": 64,
    "model__use_bias": False,
    "train__loss_chunk": 8,
    "train__remat": "dots",
}


SLOW = [pytest.mark.slow, pytest.mark.ci]


@pytest.mark.parametrize(
    ("overrides", "stops"),
    [
        ({}, (1, 7, 8, 12, 23)),
        pytest.param(FAST, (7, 12), marks=SLOW),
        pytest.param(
            {"train__grad_accumulation_steps": 2, "optim__schedule": "wsd"}, (1, 7, 8, 12, 23), marks=SLOW
        ),
        pytest.param(
            {"train__checkpoint_every": 0, "train__eval_every": 0, "train__log_every": 7},
            (1, 7, 8, 12, 23),
            marks=SLOW,
        ),
    ],
    ids=["default", "fast", "accumulation", "only-at-the-end"],
)
def test_stopped_at_any_step_and_resumed(text, uninterrupted, tmp_path, overrides, stops):
    cfg, complete = small_config(text, **overrides), uninterrupted
    if overrides:
        complete = tmp_path / "complete"
        train(cfg, complete)
    count = cfg.train.steps_per_dispatch
    for stop in stops:
        stopped = train(cfg, tmp_path / "parts", stop_at=stop)
        assert int(stopped.state.step) == -(-stop // count) * count
    train(cfg, tmp_path / "parts")
    assert jaxgpt.load(complete).step == 24
    assert_same_run(complete, tmp_path / "parts")


def test_what_is_kept_for_use_is_the_average(text, tmp_path):
    """Evaluated, sampled from, saved for `load`; training goes on with the params that it has."""
    cfg = small_config(text, optim__ema_decay=0.9, train__snapshots="every:24")
    state = train(cfg, tmp_path / "run").state
    average = state.opt_state[-1].average
    run = jaxgpt.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, run.params, average)
    jax.tree.map(np.testing.assert_array_equal, snapshots.read(tmp_path / "run", 24)[2], average)
    table = "token_embedding"
    assert (run.params[table]["embedding"] != state.params[table]["embedding"]).any()
    last = max((tmp_path / "run/embeddings").glob("*.npz"))
    assert (np.load(last)["token"] == run.params[table]["embedding"]).all()


def test_a_finished_run_stays_as_it_is(text, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    train(small_config(text), tmp_path / "run")
    assert_same_run(uninterrupted, tmp_path / "run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_says_so_and_the_same_command_goes_on(text, tmp_path, number, code):
    config_file = tmp_path / "tiny.py"
    config_file.write_text(
        "from pathlib import Path\n"
        "from jaxgpt.config import to_config_dict\n"
        "from tests.small_runs import small_config\n"
        f"def get_config(): return to_config_dict(small_config(Path({str(text)!r}), train__num_steps=100000,"
        " train__eval_every=0, train__checkpoint_every=0, train__embedding_snapshots=0))\n"
    )
    repository = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "jaxgpt.train",
        "--config",
        str(config_file),
        "--workdir",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )  # fmt: skip
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 5):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert f"stopped by {signal.Signals(number).name}: saved step" in out
    assert err == ""
    saved = int(out.split("saved step ")[1].split()[0])
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, saved + 1))
    cfg = small_config(
        text, train__num_steps=100000, train__eval_every=0, train__checkpoint_every=0,
        train__embedding_snapshots=0,
    )  # fmt: skip
    train(cfg, tmp_path / "run", stop_at=saved + 5)
    train(cfg, tmp_path / "whole", stop_at=saved + 5)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# --- a resumed run with other settings ------------------------------------------------------------------


def facts(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_fields_that_only_observe_may_change_and_the_run_is_the_same(text, uninterrupted, tmp_path):
    train(small_config(text), tmp_path / "two", stop_at=12)
    watched = small_config(text, train__log_every=2, train__eval_every=6, train__keep_checkpoints=3)
    train(watched, tmp_path / "two")
    first, second = facts(tmp_path / "two")["starts"]
    assert "changes" not in first and second["step"] == 12
    assert {"field": "train.log_every", "from": 1, "to": 2} in second["changes"]
    assert len(second["changes"]) == 3
    assert json.loads((tmp_path / "two/config.json").read_text())["train"]["log_every"] == 2
    a, b = jaxgpt.load(uninterrupted), jaxgpt.load(tmp_path / "two")
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_run_that_has_ended_resumes_with_more_steps(text, uninterrupted, tmp_path):
    """It starts at its newest state, follows the new schedule, and says where that began."""
    folder, longer = tmp_path / "run", small_config(text, train__num_steps=36)
    shutil.copytree(uninterrupted, folder)
    result = train(longer, folder)
    assert int(result.state.step) == 36 and jaxgpt.load(folder).step == 36
    assert facts(folder)["starts"][-1]["step"] == 24
    assert facts(folder)["starts"][-1]["changes"] == [{"field": "train.num_steps", "from": 24, "to": 36}]
    lines = metrics(folder)
    at = lines.index({"step": 24, "split": "change", "num_steps": 36, "num_steps_before": 24})
    schedule = optim.make_schedule(longer.optim, 36)
    assert lines[at + 1]["step"] == 25
    assert lines[at + 1]["learning_rate"] == pytest.approx(float(schedule(24)))
    # Started again with the same config it is a plain resume; and the lines say so once.
    train(longer, folder)
    assert metrics(folder) == lines and "changes" not in facts(folder)["starts"][-1]


def test_fewer_steps_than_are_done_are_refused_and_no_fewer_are_not(text, tmp_path):
    folder = tmp_path / "run"
    train(small_config(text), folder, stop_at=12)
    with pytest.raises(UserError) as error:
        train(small_config(text, train__num_steps=11), folder)
    assert str(error.value) == (
        f"train.num_steps=11, but the run in {folder} has done 12 steps: give 12 or more, or another --workdir"
    )
    assert int(train(small_config(text, train__num_steps=18), folder).state.step) == 18


def test_a_run_of_an_older_version_resumes(text, tmp_path):
    """Its config.json and its checkpoints have the final rate as an absolute number."""
    folder = tmp_path / "run"
    train(small_config(text), folder, stop_at=12)
    for path in [folder / "config.json", *folder.glob("checkpoints/*/meta/metadata")]:
        stored = json.loads(path.read_text())
        values = stored.get("config", stored)["optim"]
        values["final_learning_rate"] = values.pop("final_learning_rate_ratio") * values["learning_rate"]
        path.write_text(json.dumps(stored))
    assert jaxgpt.load(folder).step == 12
    train(small_config(text), folder)
    assert [start["step"] for start in facts(folder)["starts"]] == [0, 12]
    assert not (folder / "damaged").exists()


def test_the_final_rate_of_an_older_run_is_named_where_it_differs(text, tmp_path):
    values = config.to_json(small_config(text))
    values["optim"]["final_learning_rate"] = 1e-4
    del values["optim"]["final_learning_rate_ratio"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        UserError,
        match=r"to resume \(its final rate: --config.optim.final_learning_rate=0.0001\), or --restart",
    ):
        records.check_same_config(tmp_path, small_config(text), steps_done=0)
    same = small_config(text, optim__final_learning_rate=1e-4)
    assert records.check_same_config(tmp_path, same, steps_done=0) == same


def test_a_checkpoint_of_a_newer_version_is_not_called_damaged(text, tmp_path):
    folder = tmp_path / "run"
    train(small_config(text, train__num_steps=6), folder)
    (path,) = folder.glob("checkpoints/*/meta/metadata")
    stored = json.loads(path.read_text())
    stored["config"]["model"]["telescope"] = 1
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"/6: the config has model\.telescope.*update jaxgpt") as error:
        jaxgpt.load(folder)
    assert "damaged" not in str(error.value)


@pytest.mark.slow
def test_a_text_that_moved_and_a_base_that_is_gone_do_not_stop_a_run(text, uninterrupted, tmp_path):
    """Hashes decide whether it is the same text; a run that has checkpoints needs neither its base nor its tokenizer."""
    moved = shutil.copy(text, tmp_path / "moved.txt")
    train(small_config(text), tmp_path / "run", stop_at=12)
    train(small_config(moved), tmp_path / "run")
    assert metrics(uninterrupted) == metrics(tmp_path / "run")
    assert {"field": "data.path", "from": str(text), "to": str(moved)} in facts(tmp_path / "run")["starts"][
        -1
    ]["changes"]
    (tmp_path / "other.txt").write_text(text.read_text().replace("king", "kink"))
    with pytest.raises(UserError, match="was started with another text"):
        train(small_config(tmp_path / "other.txt"), tmp_path / "run")

    base = tmp_path / "base"
    shutil.copytree(uninterrupted, base)
    tuned = {"init_from": base, "data__tokenizer_path": base / "tokenizer.json", "train__num_steps": 8}
    for folder, stop in (("straight", None), ("parts", 4)):
        train(small_config(text, **tuned), tmp_path / folder, stop_at=stop)
    base.rename(tmp_path / "away")
    train(small_config(text, **tuned), tmp_path / "parts")
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "parts")
    with pytest.raises(UserError, match="base"):
        train(small_config(text, **tuned), tmp_path / "fresh")
