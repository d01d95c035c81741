"""The sweep command: from its config to its results, through kills, signals, failures and bad flags."""

import contextlib
import io
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.common import cli
from jaxgpt.sweeps.members import Sweep
from jaxgpt.training import loop
from tests.commands import CONFIG, execute
from tests.small_runs import metrics, small_config, write_text
from tests.small_sweeps import COMMAND, SWEEP, read


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The working directory of a sweep that is done, and what its command printed. Not to be changed."""
    folder, out = tmp_path_factory.mktemp("finished"), io.StringIO()
    write_text(folder / "text.txt")
    (folder / "sweep.py").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(out):
        monkeypatch.chdir(folder)
        assert execute(monkeypatch, COMMAND) == 0
    return folder, out.getvalue()


def test_a_sweep_from_its_command_to_its_best_config(finished, tmp_path, monkeypatch):
    folder, out = finished
    monkeypatch.chdir(folder)
    rows = read(folder / "found/results.csv")
    header = ["member", "workdir", "status", "valid_loss", "steps", "optim.learning_rate", "train.seed"]
    assert list(rows[0]) == header
    assert [row["status"] for row in rows] == ["done"] * 4 and {row["steps"] for row in rows} == {"20"}
    for row in rows:
        run = jaxgpt.load(row["workdir"])
        assert run.step == 20 and run.config.optim.learning_rate == float(row["optim.learning_rate"])
        valid = [line["loss"] for line in metrics(Path(row["workdir"])) if line["split"] == "valid"]
        assert valid[-1] == float(row["valid_loss"])
    assert "4 of 4 members done" in out and "mean over seeds" in out
    assert {"curves.png", "fields.png"} <= {path.name for path in (folder / "found").iterdir()}
    # The best is of the setting that is best over its seeds, and train takes it.
    means = {}
    for row in rows:
        means.setdefault(row["optim.learning_rate"], []).append(float(row["valid_loss"]))
    best = min(means, key=lambda rate: sum(means[rate]))
    cfg = cli.read_config("found/best.py", {})
    assert cfg.optim.learning_rate == float(best)
    assert loop.Trainer([(cfg, tmp_path / "again")]).cfg.train.num_steps == 20
    # The same command has nothing left to do.
    before = {
        path: path.stat().st_mtime_ns for path in (folder / "found/members").rglob("*") if path.is_file()
    }
    assert execute(monkeypatch, COMMAND) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


KILLED = """
import os, signal, sys
from jaxgpt import sweep
from jaxgpt.common import cli
from jaxgpt.training.run_folder import RunFolder
sys.path.insert(0, os.getcwd())
saves, save, at = 0, RunFolder.save, int(sys.argv[1])
def deadly(self, state, step, averaged):
    global saves
    saves += step not in self.checkpoints.steps()
    save(self, state, step, averaged)
    self.checkpoints.wait()  # else another member's save may come first
    if saves == at:
        os.kill(os.getpid(), signal.SIGKILL)
RunFolder.save = deadly
sys.argv = ["jaxgpt/sweep.py", *sys.argv[2:]]
cli.run(sweep.main)
"""


@pytest.mark.slow
@pytest.mark.ci
def test_a_sweep_killed_twice_has_every_member_once(sweep_folder, finished, monkeypatch):
    """After a kill between the saves of a group, its members are at different steps. All end as if trained alone."""
    flags = ["--config", "sweep.py", "--workdir", "found", "--width", "1"]
    for kill_at, steps in (("2", [10, 10, 0, 0]), ("3", [20, 10, 10, 10])):
        code = subprocess.run([sys.executable, "-c", KILLED, kill_at, *flags], capture_output=True).returncode
        assert code == -signal.SIGKILL
        assert [member.step for member in _opened(sweep_folder).members] == steps
    assert execute(monkeypatch, COMMAND) == 0
    rows = read(sweep_folder / "found/results.csv")
    assert [row["status"] for row in rows] == ["done"] * 4
    for row in rows:
        lines = metrics(Path(row["workdir"]))
        assert len({(line["step"], line["split"]) for line in lines}) == len(lines)
        others = metrics(finished[0] / row["workdir"])
        assert [line["step"] for line in lines] == [line["step"] for line in others]
        for line, other in zip(lines, others, strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)


def _opened(sweep_folder: Path) -> Sweep:
    values, module = cli.load_config_file(str(sweep_folder / "sweep.py"))
    return Sweep(values, module.sweep(), sweep_folder / "found")


def test_a_signal_saves_and_the_same_command_resumes(sweep_folder, monkeypatch, capsys):
    command = [sys.executable, "-m", "jaxgpt.sweep", "--config", "sweep.py", "--workdir", "found", "--width", "1",
               "--config.train.num_steps=100000", "--config.train.eval_every=0", "--config.train.checkpoint_every=0"]  # fmt: skip
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not any((sweep_folder / "found/members/000").glob("metrics.jsonl")) or not metrics(
        sweep_folder / "found/members/000"
    ):
        time.sleep(0.2)
        assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    out, _ = worker.communicate(timeout=100)
    assert worker.returncode == 128 + signal.SIGTERM
    assert "the same command resumes" in out and "done" not in {
        row["status"] for row in read(sweep_folder / "found/results.csv")
    }
    steps = {int(row["steps"]) for row in read(sweep_folder / "found/results.csv")}
    assert len(steps) == 1 and steps != {0}


def test_a_member_that_fails_is_reported_and_the_others_continue(sweep_folder, monkeypatch, capsys):
    (sweep_folder / "sweep.py").write_text(
        CONFIG
        + """
def sweep():
    for seed in range(2):
        yield {"train.seed": seed}
    yield {"optim.learning_rate": 1e30, "optim.grad_clip_norm": 1e10}
    yield {"model.d_model": 8, "model.context_length": 100_000}
    yield {"init_from": "nowhere"}
"""
    )
    assert execute(monkeypatch, COMMAND) == 1
    rows = read(sweep_folder / "found/results.csv")
    assert [row["status"].split(":")[0] for row in rows] == ["done", "done", "failed", "failed", "failed"]
    assert "the loss of step" in rows[2]["status"] and "100001" in rows[3]["status"]
    assert "nowhere" in rows[4]["status"]
    assert "2 of 5 members done" in capsys.readouterr().out


WRONG = {
    "{'optim.learing_rate': 1.0}": "member 0: unknown field optim.learing_rate: did you mean optim.learning_rate?",
    "{}, {'model.d_model': 15}": "member 1: model.d_model=15 is not a multiple of model.num_heads=2",
    "{'train.seed': 1}, {}, {'train.seed': 1}": "member 2 has the same config as member 0 (train.seed=1)",
    "{'train.seed': 'one'}": "member 0: train.seed='one' is of type str",
    "3": "member 0: 3 is not a dictionary",
    "": "the sweep is empty",
    "{'x.y': 1}, {'optim.b1': 2.0}": "2 of 2 members are invalid",
    "1 / 0": "sweep() of sweep.py failed: ZeroDivisionError",
}


@pytest.mark.parametrize("members", WRONG)
def test_an_invalid_sweep_is_reported_before_anything_is_done(sweep_folder, monkeypatch, capsys, members):
    (sweep_folder / "sweep.py").write_text(CONFIG + f"\ndef sweep():\n    return [{members}]\n")
    assert execute(monkeypatch, COMMAND) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and WRONG[members] in captured.err
    assert "Traceback" not in captured.err and not (sweep_folder / "found").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--workdir taken", "taken holds files but no sweep.json"),
        ("--workdir other", "other holds another sweep"),
        ("--config text.txt", "text.txt is not a Python file"),
        ("--config plain.py", "plain.py has no sweep()"),
        ("--halving 7", "--halving 7: member 000 is evaluated every train.eval_every=10"),
        ("--halving 10,10", "give increasing steps above 0"),
        ("--halving x", "give steps such as 250,500"),
        ("--launcher moon", "--launcher=moon: choose one of local, ray, slurm"),
        ("--part 4/4", "--part=4/4: give 0/4 to 3/4"),
        ("--part 1", "--part=1: give the part and the number of parts"),
        ("--width 0", "--width=0: give 1 or more"),
        ("--workers 0", "--workers=0: give 1 or more"),
    ],
)
def test_bad_flags_are_one_line(sweep_folder, monkeypatch, capsys, flags, words):
    (sweep_folder / "plain.py").write_text(CONFIG)
    (sweep_folder / "taken").mkdir()
    (sweep_folder / "taken/letter.txt").write_text("mine")
    Sweep(small_config(sweep_folder / "text.txt"), [{"train.seed": 5}], sweep_folder / "other").open()
    base = "sweep --config sweep.py" if "--config" not in flags else "sweep"
    assert execute(monkeypatch, f"{base} {flags}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert (sweep_folder / "taken/letter.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of open files to set")
@pytest.mark.slow
def test_many_members_need_few_open_files(sweep_folder):
    """A member holds its lock and nothing else: 16 members are trained under a limit of 72 files."""
    Path("sweep.py").write_text(Path("sweep.py").read_text().replace("range(2)", "range(8)"))
    command = [
        *(sys.executable, "-m", "jaxgpt.sweep", "--config", "sweep.py", "--workdir", "found"),
        *("--config.train.num_steps=2", "--config.train.eval_every=0", "--config.train.sample_tokens=0"),
    ]
    line = f"ulimit -n 72; exec {shlex.join(command)}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "16 of 16 members done" in done.stdout and "Traceback" not in done.stderr
