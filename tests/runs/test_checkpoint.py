"""Damaged checkpoints, full disks and losses that are not finite: what is named, what is kept, what goes on.

A damaged checkpoint is no mistake of the user's: the one before is taken, a warning says so, and the command does its work.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxgpt
from jaxgpt.common import files
from jaxgpt.config import UserError
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs import checkpoint as checkpoint_module
from jaxgpt.runs import metrics_log, orbax_paths, stored_steps
from tests.commands import (
    EVALUATE,
    GENERATE,
    NEW,
    RUN,
    assert_same_end,
    execute,
    flip_bits,
    saved,
    truncate_array,
)

# --- damages of a checkpoint ----------------------------------------------------------------------------


def exchange_params(checkpoint: Path) -> None:
    """Whole and readable, but those of another step."""
    shutil.rmtree(checkpoint / "params")
    shutil.copytree(checkpoint.with_name("10") / "params", checkpoint / "params")


def remove_meta(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "meta")


def empty_meta(checkpoint: Path) -> None:
    (checkpoint / "meta" / "metadata").write_bytes(b"")


def remove_params(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "params")


def link_outside(checkpoint: Path) -> None:
    """The parameters are there, but by a link that leads out of the run's folder."""
    shutil.move(checkpoint / "params", "outside")
    (checkpoint / "params").symlink_to(Path("outside").absolute())


def put_a_pipe(checkpoint: Path) -> None:
    """Who reads it would wait for ever."""
    (checkpoint / "params/_METADATA").unlink()
    os.mkfifo(checkpoint / "params/_METADATA")


def enlarge_meta(checkpoint: Path) -> None:
    os.truncate(checkpoint / "meta/metadata", files.LARGEST_JSON + 1)


def change_meta(checkpoint: Path, group: str, **values: object) -> None:
    path = checkpoint / "meta/metadata"
    meta = json.loads(path.read_text("utf-8"))
    meta["config"][group].update(values)
    path.write_text(json.dumps(meta), "utf-8")


def widen(checkpoint: Path) -> None:
    """Its own config tells of another width than its arrays have."""
    change_meta(checkpoint, "model", d_model=32)


def another_rate(checkpoint: Path) -> None:
    """The same shapes, of a run with another config."""
    change_meta(checkpoint, "optim", learning_rate=1.0)


DAMAGES = [
    truncate_array, flip_bits, exchange_params, remove_meta, empty_meta, remove_params, link_outside, put_a_pipe,
    enlarge_meta, widen,
]  # fmt: skip


# --- damaged checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "damage"),
    [*((f"{GENERATE} --prompt the", damage) for damage in DAMAGES), (EVALUATE, flip_bits)],
)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, command, here, monkeypatch, capfd):
    assert execute(monkeypatch, f"{command} --step=10") == 0
    expected = capfd.readouterr().out
    damage(here / "run/checkpoints/20")
    before = saved(here / "run")
    assert execute(monkeypatch, command) == 0
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("warning: checkpoint ")
    assert "run/checkpoints/20 is damaged: " in line
    assert line.endswith("; trying the one before")
    assert out == expected
    assert saved(here / "run") == before


@pytest.mark.parametrize("damage", [truncate_array, flip_bits, remove_meta])
def test_training_sets_a_damaged_checkpoint_aside_and_reaches_the_same_end(
    damage, here, trained, monkeypatch, capfd
):
    damage(here / "run/checkpoints/20")
    before = saved(here / "run")
    assert execute(monkeypatch, RUN) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: checkpoint ")
    assert "run/checkpoints/20 is damaged: " in line
    assert "/run/damaged/20, resuming from step 10" in line
    assert_same_end(here / "run", trained / "run")
    after = saved(here / "run")
    for name in before:
        if name.startswith("checkpoints/10/") or name in ("config.json", "tokenizer.json"):
            assert after[name] == before[name], name
        if name.startswith("checkpoints/20/"):
            moved = here / "run/damaged" / name.removeprefix("checkpoints/")
            assert hashlib.sha256(moved.read_bytes()).hexdigest() == before[name], name


def test_training_never_starts_over_by_itself(here, trained, monkeypatch, capfd):
    """Where every checkpoint is damaged, --restart is the user's word. What was there is kept, as a run."""
    for step in ("10", "20"):
        truncate_array(Path("run/checkpoints", step))
    before = saved(here / "run")
    assert execute(monkeypatch, RUN) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "every checkpoint of " in line and "let train do it with --restart" in line
    assert saved(here / "run") == before
    assert execute(monkeypatch, f"{RUN} --restart") == 0
    out, err = capfd.readouterr()
    assert "starts over: what run had is in run/before/1" in out and not err
    assert saved(here / "run/before/1") == before
    assert_same_end(here / "run", trained / "run")


def test_a_checkpoint_of_another_run_is_refused_and_stays(here, monkeypatch, capfd):
    another_rate(here / "run/checkpoints/20")
    before = saved(here / "run")
    assert execute(monkeypatch, RUN) == 2
    assert "belongs to a run with another config (optim.learning_rate" in capfd.readouterr().err
    assert saved(here / "run") == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOENT, errno.ESTALE])
def test_an_error_of_the_system_is_no_damage(number, here, monkeypatch, capfd):
    """Its words are passed on, nothing is moved, and no older step is used in silence."""
    before = saved(here / "run")
    real = stored_steps.read_every_file

    def refused(*_args, **_kwargs):
        raise ValueError(f"Error opening local file: {os.strerror(number)} [OS error {number}: open]")

    def failing(folder):
        real(folder)
        raise OSError(number, os.strerror(number), str(folder / "meta/metadata"))

    monkeypatch.setattr(ocp.CheckpointManager, "restore", refused)
    monkeypatch.setattr(stored_steps, "read_every_file", failing)
    for command in (RUN, EVALUATE, f"{GENERATE} --prompt the"):
        assert execute(monkeypatch, command) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "can't be read: " in line and os.strerror(number) in line and "damaged" not in line
    assert saved(here / "run") == before


def test_an_error_that_passes_is_read_again(here, trained, monkeypatch, capfd):
    real, calls = ocp.CheckpointManager.restore, []

    def sometimes(*args, **kwargs):
        calls.append(1)
        if len(calls) % 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(*args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", sometimes)
    assert execute(monkeypatch, RUN) == 0
    assert capfd.readouterr().err == ""
    assert_same_end(here / "run", trained / "run")


# --- after saving ---------------------------------------------------------------------------------------


def test_a_save_that_cannot_be_read_back_deletes_nothing(here, monkeypatch, capfd):
    real = ocp.CheckpointManager.wait_until_finished

    def breaking(manager):
        real(manager)
        for step in sorted(Path(manager.directory).glob("20")):
            truncate_array(step)

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", breaking)
    assert execute(monkeypatch, f"{NEW} --config.train.keep_checkpoints=1 --config.train.eval_every=0") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "step 20 was saved in " in line and "can't be read back: " in line
    assert line.endswith("; earlier checkpoints are kept")
    assert jaxgpt.load("new", step=10).step == 10


def test_a_path_that_a_glob_would_misread(here, trained, monkeypatch):
    for name in ("run [v2]", "a*b", "back\\slash", "what?"):
        assert execute(monkeypatch, f"{NEW[:-3]}'{name}'") == 0, name
        assert not orbax_paths.unmerged(here / name / "checkpoints/20")
        assert jaxgpt.load(name).step == 20


def test_checkpoints_without_an_index_are_rescued(here, trained, monkeypatch, capfd):
    """As earlier versions left them under such a path: readers write nothing, a run that resumes adds the index."""
    for index in Path("run/checkpoints").glob("*/*/" + orbax_paths.INDEX):
        index.unlink()
        shutil.rmtree(index.parent / "d")
    before = saved(here / "run")
    assert jaxgpt.load("run").step == 20
    assert saved(here / "run") == before
    assert execute(monkeypatch, RUN) == 0
    assert_same_end(here / "run", trained / "run")


def test_what_a_killed_save_leaves_is_no_checkpoint(here, trained, monkeypatch, capfd):
    half = Path("run/checkpoints/30.orbax-checkpoint-tmp")
    shutil.copytree("run/checkpoints/20", half)
    shutil.rmtree(half / "meta")
    assert jaxgpt.load("run").step == 20
    assert execute(monkeypatch, RUN) == 0
    assert capfd.readouterr().err == ""
    assert not half.exists()
    assert_same_end(here / "run", trained / "run")


def test_a_model_that_memory_does_not_hold_is_refused_before_it_is_read(here, monkeypatch):
    monkeypatch.setattr(stored_steps, "device_memory", lambda: 1000)
    with pytest.raises(
        UserError, match=r"needs 0\.0 GiB of memory, this machine has 0\.0 GiB: use a larger one"
    ):
        jaxgpt.load("run")


def test_a_state_that_fits_only_once_is_saved_too(here, trained, monkeypatch):
    """Where the devices have no room for a copy, the arrays are copied out before training goes on."""
    monkeypatch.setattr(checkpoint_module, "fits_twice", lambda _: False)
    assert execute(monkeypatch, RUN.replace("workdir run", "workdir new")) == 0
    assert_same_end(here / "new", trained / "run")


def test_an_error_of_a_save_in_the_background_is_raised(here, monkeypatch, capfd):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(metrics_log.MetricsLog, "sync", full)
    assert execute(monkeypatch, NEW) == 2
    assert capfd.readouterr().err == "error: No space left on device: metrics.jsonl (free some space)\n"


# --- a run that can't go on -----------------------------------------------------------------------------


# The first step does not move yet, the second moves beyond all bounds; every step is saved.
TOO_FAST = (
    f"{NEW} --config.optim.learning_rate=1e30 --config.optim.warmup_steps=1000 --config.optim.grad_clip_norm=0"
    " --config.train.checkpoint_every=1 --config.train.eval_every={eval_every}"
)


@pytest.mark.parametrize(
    ("eval_every", "words"),
    [
        pytest.param(
            0, r"the loss of step \d+ is (nan|inf): gradients not finite: block_0/attention/", id="training"
        ),
        pytest.param(1, r"the validation loss of step \d+ is (nan|inf); ", id="validation"),
    ],
)
def test_loss_that_is_not_finite_ends_the_run(eval_every, words, here, monkeypatch, capfd):
    assert execute(monkeypatch, TOO_FAST.format(eval_every=eval_every)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(f"error: {words}", line), line
    assert "ower optim.learning_rate (now 1e+30)" in line
    last_good = re.search(r"the last good checkpoint is (?:step )?(\d+|none)", line)[1]
    if last_good != "none":
        run = jaxgpt.load("new")
        assert run.step == int(last_good)
        assert all(np.isfinite(np.asarray(leaf)).all() for _, leaf in named_leaves(run.params))


def test_disk_that_is_full_leaves_what_was_there_to_go_on_from(here, trained, monkeypatch):
    """A limit on the size of files stands in for a full disk: the log and a checkpoint no longer fit."""
    shutil.rmtree("run/checkpoints/20")  # so that there is something left to do
    before = saved(here / "run")
    limit = 10_000  # bytes

    program = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        " runpy.run_module('jaxgpt.train', run_name='__main__', alter_sys=True)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *shlex.split(RUN)[1:]], capture_output=True, text=True
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: could not finish saving in {here / 'run'}")
    assert "File too large" in line
    assert line.count("the system limits the size of files") == 1
    after = saved(here / "run")
    kept = [name for name in before if name.startswith(("checkpoints/10/", "config.json", "tokenizer.json"))]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert jaxgpt.load("run").step == 10
    assert execute(monkeypatch, RUN) == 0
    assert_same_end(here / "run", trained / "run")


def test_what_is_not_understood_is_no_damage(here, monkeypatch, capfd):
    """A value of another version; a file that is listed and can't be opened; a folder of checkpoints that is not there."""
    path = here / "run/checkpoints/20/meta/metadata"
    content = path.read_text()
    before = saved(here / "run")
    path.write_text(content.replace('"adamw"', '"shampoo2"'))
    for command in (RUN, EVALUATE):
        assert execute(monkeypatch, command) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "a config or a tokenizer that is not known here" in line and "shampoo2" in line
    path.write_text(content)
    assert saved(here / "run") == before
    (here / "run/checkpoints").rename(here / "away")
    before = saved(here / "run")
    assert execute(monkeypatch, RUN) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "has a log of steps and no folder checkpoints" in line and "--restart" in line
    assert saved(here / "run") == before


def test_a_shape_counts_only_where_every_file_can_be_read(here, monkeypatch, capfd):
    """Orbax takes a file that it can't open for an empty tree."""
    before = saved(here / "run")

    def unreadable(folder):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / "params/d/x"))

    monkeypatch.setattr(stored_steps, "read_every_file", unreadable)
    monkeypatch.setattr(ocp.CheckpointManager, "item_metadata", lambda *_: {"params": {}, "opt_state": {}})
    for command in (RUN, EVALUATE):
        assert execute(monkeypatch, command) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "can't be read: No such file or directory" in line
    assert saved(here / "run") == before
