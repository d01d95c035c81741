"""Parameters over training: what is kept, what a stop leaves, what is refused, and what a damaged file gives."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxgpt
from jaxgpt.common import files
from jaxgpt.config import UserError
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs import snapshots
from jaxgpt.runs.damage import DamagedCheckpoint, UnreadableCheckpoint
from jaxgpt.training.loop import Trainer, train
from tests.commands import execute
from tests.small_runs import metrics, small_config

STEPS = [0, 1, 2, 4, 7, 13, 24]  # log:7 of 24


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "snapshots").iterdir()}


def equal(one: dict, other: dict) -> bool:
    pairs = zip(named_leaves(one), named_leaves(other), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for (_, x), (_, y) in pairs)


@pytest.fixture(scope="module")
def text(plain_run):
    return plain_run / "text.txt"


@pytest.fixture(scope="module")
def kept(text, tmp_path_factory):
    """The plain run with snapshots. Not to be changed."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    train(small_config(text, train__snapshots="log:7"), folder)
    return folder


def test_the_run_is_bit_for_bit_the_run_without_and_each_step_can_be_loaded(plain_run, kept, text, tmp_path):
    plain = plain_run / "run"
    assert snapshots.saved_steps(kept) == STEPS and snapshots.saved_steps(plain) == []
    assert metrics(kept) == metrics(plain)
    last = jaxgpt.load(kept)
    assert equal(last.params, jaxgpt.load(plain).params)
    assert equal(snapshots.read(kept, 24)[2], last.params)  # load prefers the checkpoint
    state = train(small_config(text), tmp_path / "seven", stop_at=7).state
    run = jaxgpt.load(kept, step=7)
    assert run.step == 7 and equal(run.params, state.params)
    assert run.config == last.config and run.tokenizer.to_json() == last.tokenizer.to_json()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(run.params))
    with pytest.raises(
        UserError, match=r"no checkpoint or snapshot of step 5: the steps are \[0, 1, 2, 4, 7, 13, 18, 24\]"
    ):
        jaxgpt.load(kept, step=5)


def test_commands_take_the_step_of_a_snapshot(kept, monkeypatch, capfd):
    monkeypatch.chdir(kept.parent)
    out = []
    for step in (7, 13):
        assert execute(monkeypatch, f"evaluate --workdir run --step {step} --json") == 0
        out.append(json.loads(capfd.readouterr().out))
    assert [x["step"] for x in out] == [7, 13] and out[1]["loss"] < out[0]["loss"]
    assert execute(monkeypatch, "generate --workdir run --step 13 --max_new_tokens 2 --prompt the") == 0


def test_a_stopped_run_writes_what_is_missing_and_takes_later_ones_away(kept, text, tmp_path):
    cfg, run = small_config(text, train__snapshots="log:7"), tmp_path / "run"
    train(cfg, run, stop_at=7)
    assert snapshots.saved_steps(run) == STEPS[:5]
    shutil.copy(run / "snapshots/00000004.safetensors", run / "snapshots/00000013.safetensors")
    (run / "snapshots/.0123.tmp").write_bytes(b"killed here")
    train(cfg, run)
    assert contents(run) == contents(kept)


@pytest.mark.slow
@pytest.mark.ci
def test_lanes_keep_their_own(text, kept, tmp_path):
    cfgs = [
        small_config(
            text, train__num_steps=2, train__snapshots="every:1", train__seed=seed, train__sample_tokens=0
        )
        for seed in (0, 1)
    ]
    Trainer([(cfg, tmp_path / f"lane{i}") for i, cfg in enumerate(cfgs)], width=1).run()
    for i in (0, 1):
        lane = tmp_path / f"lane{i}"
        assert snapshots.saved_steps(lane) == [0, 1, 2]
        assert equal(snapshots.read(lane, 2)[2], jaxgpt.load(lane).params)
    first, second = (snapshots.read(tmp_path / f"lane{i}", 0)[2] for i in (0, 1))
    assert not equal(first, second) and equal(first, jaxgpt.load(kept, step=0).params)


def test_what_fits_on_no_disk_is_refused_before_the_run_and_what_fits_is_announced(
    text, tmp_path, monkeypatch, capfd
):
    cfg = small_config(text, train__snapshots="every:1", train__num_steps=2000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50 << 20))
    with pytest.raises(UserError) as error:
        train(cfg, tmp_path / "run")
    assert str(error.value) == (
        "train.snapshots='every:1' needs 54.7 MiB (2,001 of 28 KiB, 54.7 MiB in all), and the disk of "
        f"{tmp_path} has 50 MiB free: give fewer, such as log:8, none, or a --workdir on another disk"
    )
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=55 << 20))
    snapshots.check_room([(_resolved(cfg, text), tmp_path / "run")])
    with pytest.raises(UserError, match="for each of several runs"):
        snapshots.check_room([(_resolved(cfg, text), tmp_path / name) for name in "ab"])


def _resolved(cfg, text):
    from jaxgpt.data.dataset import prepare_dataset
    from jaxgpt.training.starting import resolve

    return resolve(cfg, prepare_dataset(cfg.data).tokenizer)


def test_a_full_disk_is_said_in_one_line_and_leaves_no_part(kept, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run, own = jaxgpt.load(kept), snapshots.Snapshots(tmp_path, 0)
    on_host = jax.device_get(run.params)  # as a lane's
    own.save(0, on_host, run.config, run.tokenizer)
    own.wait()
    assert equal(snapshots.read(tmp_path, 0)[2], run.params)
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    own.save(1, run.params, run.config, run.tokenizer)
    with pytest.raises(
        UserError, match=r"could not write the snapshot .*00000001.safetensors: No space left on device"
    ):
        own.wait()
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["00000000.safetensors"]


# --- damaged files --------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def other_step(path: Path) -> None:
    shutil.copy(path.with_name("00000013.safetensors"), path)


def no_metadata(path: Path) -> None:
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)


def another_width(path: Path) -> None:
    change(path, lambda meta: meta["config"]["model"].update(d_model=32))


def newer(path: Path) -> None:
    change(path, lambda meta: meta["config"]["model"].update(telescope=1))


def hostile(path: Path) -> None:
    change(path, lambda meta: meta.update(checksums=7))


def change(path: Path, how) -> None:
    with safetensors.safe_open(path, framework="np") as file:
        meta = json.loads(file.metadata()["jaxgpt"])
    how(meta)
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {"jaxgpt": json.dumps(meta)})


def test_damaged_files_are_named_in_one_line(kept, tmp_path):
    cases = {
        cut: (DamagedCheckpoint, "is damaged: "),
        flip: (DamagedCheckpoint, "the checksum of token_embedding/embedding does not match"),
        other_step: (DamagedCheckpoint, "it belongs to step 13"),
        no_metadata: (DamagedCheckpoint, "is damaged: "),
        another_width: (DamagedCheckpoint, "not float32"),
        newer: (UnreadableCheckpoint, "update jaxgpt"),
        hostile: (DamagedCheckpoint, "is damaged: "),
    }
    for damage, (kind, words) in cases.items():
        run = shutil.copytree(kept, tmp_path / damage.__name__)
        damage(snapshots.path_of(run, 7))
        with pytest.raises(kind, match=words) as error:
            jaxgpt.load(run, step=7)
        assert str(error.value).count("\n") == 0 and "00000007" in str(error.value)
        assert jaxgpt.load(run, step=24).step == 24
    link = tmp_path / "cut/snapshots/00000002.safetensors"
    link.unlink()
    link.symlink_to(files.__file__)
    with pytest.raises(UserError, match=r"00000002\.safetensors is a link"):
        jaxgpt.load(tmp_path / "cut", step=2)


# --- kills ----------------------------------------------------------------------------------------------

VICTIM = """
import os, signal, sys
from pathlib import Path
from jaxgpt.runs import snapshots
from jaxgpt.training import loop
from jaxgpt.common.cli import set_up_process
from tests.small_runs import small_config
text, folder, call = sys.argv[1:]
set_up_process()
calls, read = 0, snapshots._read

def deadly(*args):
    global calls
    calls += 1
    if calls == int(call):  # complete, and not yet under its name
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*args)

snapshots._read = deadly
loop.train(small_config(Path(text), train__snapshots="log:7"), folder)
"""


@pytest.mark.slow
@pytest.mark.ci
def test_killed_while_a_snapshot_is_written(kept, text, tmp_path):
    run, codes = tmp_path / "run", []
    for call in (2, 4, 0):
        command = [sys.executable, "-c", VICTIM, str(text), str(run), str(call)]
        codes.append(
            subprocess.run(
                command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, timeout=300
            ).returncode
        )
        for step in snapshots.saved_steps(run):
            snapshots.read(run, step)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert contents(run) == contents(kept) and metrics(run) == metrics(kept)
