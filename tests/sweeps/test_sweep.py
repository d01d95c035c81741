"""Sweeps: results after kills, signals and failures, launchers, and one-line errors."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import jaxgpt
from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.config import UserError
from jaxgpt.sweeps import groups, launchers, results, search_space
from jaxgpt.sweeps.groups import Options, plan
from jaxgpt.sweeps.members import Row, Sweep
from tests.commands import CONFIG, execute
from tests.small_runs import metrics, small_config, write_text

SWEEP = (
    CONFIG
    + """
def sweep():
    from jaxgpt.sweeps.search_space import grid
    yield from grid({"optim.learning_rate": [1e-3, 1e-2], "train.seed": range(2)})
"""
)
COMMAND = "sweep --config sweep.py --workdir found --width 1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_text(tmp_path / "text.txt")
    (tmp_path / "sweep.py").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_from_its_command_to_its_best_config(folder, monkeypatch, capsys):
    assert execute(monkeypatch, COMMAND) == 0
    rows = read(folder / "found/results.csv")
    header = ["member", "workdir", "status", "valid_loss", "steps", "optim.learning_rate", "train.seed"]
    assert list(rows[0]) == header
    assert [row["status"] for row in rows] == ["done"] * 4 and {row["steps"] for row in rows} == {"20"}
    for row in rows:
        run = jaxgpt.load(row["workdir"])
        assert run.step == 20 and run.config.optim.learning_rate == float(row["optim.learning_rate"])
        valid = [line["loss"] for line in metrics(Path(row["workdir"])) if line["split"] == "valid"]
        assert valid[-1] == float(row["valid_loss"])
    text = capsys.readouterr().out
    assert "4 of 4 members done" in text and "mean over seeds" in text
    assert {"curves.png", "fields.png"} <= {path.name for path in (folder / "found").iterdir()}
    # The best is of the setting that is best over its seeds, and train takes it.
    means = {}
    for row in rows:
        means.setdefault(row["optim.learning_rate"], []).append(float(row["valid_loss"]))
    best = min(means, key=lambda rate: sum(means[rate]))
    cfg = cli.read_config("found/best.py", {})
    assert cfg.optim.learning_rate == float(best)
    assert execute(monkeypatch, "train --config found/best.py --workdir again") == 0
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


def test_a_sweep_killed_twice_has_every_member_once(folder, monkeypatch):
    """Killed between the saves of a group, its members stand at different steps; all come to what they are alone."""
    flags = ["--config", "sweep.py", "--workdir", "found", "--width", "1"]
    for kill_at, steps in (("2", [10, 10, 0, 0]), ("3", [20, 10, 10, 10])):
        code = subprocess.run([sys.executable, "-c", KILLED, kill_at, *flags], capture_output=True).returncode
        assert code == -signal.SIGKILL
        assert [member.step for member in _opened(folder).members] == steps
    assert execute(monkeypatch, COMMAND) == 0
    assert execute(monkeypatch, COMMAND.replace("found", "whole")) == 0
    rows = read(folder / "found/results.csv")
    assert [row["status"] for row in rows] == ["done"] * 4
    for row in rows:
        lines = metrics(Path(row["workdir"]))
        assert len({(line["step"], line["split"]) for line in lines}) == len(lines)
        others = metrics(Path(row["workdir"].replace("found", "whole")))
        assert [line["step"] for line in lines] == [line["step"] for line in others]
        for line, other in zip(lines, others, strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)


def _opened(folder: Path) -> Sweep:
    values, module = cli.load_config_file(str(folder / "sweep.py"))
    return Sweep(values, module.sweep(), folder / "found")


def test_a_signal_saves_and_the_same_command_goes_on(folder, monkeypatch, capsys):
    command = [sys.executable, "-m", "jaxgpt.sweep", "--config", "sweep.py", "--workdir", "found", "--width", "1",
               "--config.train.num_steps=100000", "--config.train.eval_every=0", "--config.train.checkpoint_every=0"]  # fmt: skip
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not any((folder / "found/members/000").glob("metrics.jsonl")) or not metrics(
        folder / "found/members/000"
    ):
        time.sleep(0.2)
        assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    out, _ = worker.communicate(timeout=100)
    assert worker.returncode == 128 + signal.SIGTERM
    assert "the same command resumes" in out and "done" not in {
        row["status"] for row in read(folder / "found/results.csv")
    }
    steps = {int(row["steps"]) for row in read(folder / "found/results.csv")}
    assert len(steps) == 1 and steps != {0}


def test_a_member_that_fails_is_told_and_the_others_go_on(folder, monkeypatch, capsys):
    (folder / "sweep.py").write_text(
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
    rows = read(folder / "found/results.csv")
    assert [row["status"].split(":")[0] for row in rows] == ["done", "done", "failed", "failed", "failed"]
    assert "the loss of step" in rows[2]["status"] and "100001" in rows[3]["status"]
    assert "nowhere" in rows[4]["status"]
    assert "2 of 5 members done" in capsys.readouterr().out


def test_halving_lets_the_better_half_go_on(folder, monkeypatch, capsys):
    assert execute(monkeypatch, COMMAND + " --halving 10") == 0
    rows = read(folder / "found/results.csv")
    assert sorted(row["steps"] for row in rows) == ["10", "10", "20", "20"]
    stopped = [row for row in rows if row["status"].startswith("stopped: step 10: validation loss")]
    at_ten = {
        row["member"]: next(
            x["loss"] for x in metrics(Path(row["workdir"])) if (x["step"], x["split"]) == (10, "valid")
        )
        for row in rows
    }
    assert {row["member"] for row in stopped} == set(sorted(at_ten, key=at_ten.get)[2:])
    before = (folder / "found/results.csv").read_bytes()
    assert execute(monkeypatch, COMMAND + " --halving 10") == 0
    assert (folder / "found/results.csv").read_bytes() == before


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
def test_what_is_wrong_with_a_sweep_is_said_before_anything_is_done(folder, monkeypatch, capsys, members):
    (folder / "sweep.py").write_text(CONFIG + f"\ndef sweep():\n    return [{members}]\n")
    assert execute(monkeypatch, COMMAND) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and WRONG[members] in captured.err
    assert "Traceback" not in captured.err and not (folder / "found").exists()


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--workdir taken", "taken holds files but no sweep.json"),
        ("--workdir other", "other holds another sweep"),
        ("--config text.txt", "text.txt is no Python file"),
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
def test_bad_flags_are_one_line(folder, monkeypatch, capsys, flags, told):
    (folder / "plain.py").write_text(CONFIG)
    (folder / "taken").mkdir()
    (folder / "taken/letter.txt").write_text("mine")
    Sweep(small_config(folder / "text.txt"), [{"train.seed": 5}], folder / "other").open()
    base = "sweep --config sweep.py" if "--config" not in flags else "sweep"
    assert execute(monkeypatch, f"{base} {flags}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1
    assert (folder / "taken/letter.txt").read_text() == "mine"


def test_a_sweep_may_grow_but_not_change(folder):
    cfg = small_config(folder / "text.txt")
    Sweep(cfg, [{"train.seed": 0}], folder / "found").open()
    Sweep(cfg, [{"train.seed": 0}, {"train.seed": 1}], folder / "found").open()
    with pytest.raises(UserError, match=r"its member 1 is train.seed=1, here it is not there"):
        Sweep(cfg, [{"train.seed": 0}], folder / "found").open()
    with pytest.raises(UserError, match=r"its member 0 is train.seed=0, here it is train.seed=3"):
        Sweep(cfg, [{"train.seed": 3}], folder / "found").open()
    other = small_config(folder / "text.txt", train__num_steps=5)
    with pytest.raises(UserError, match=r"train.num_steps: 24 -> 5"):
        Sweep(other, [{"train.seed": 0}, {"train.seed": 1}], folder / "found").open()


def test_parts_have_every_member_once(folder):
    given = [{"train.seed": s, "model.d_model": d} for d in (8, 16) for s in range(7)]
    everyone = Sweep(small_config(folder / "text.txt"), given, folder / "found").members
    for most in (None, 3, 100):
        for parts in (1, 2, 3, 5, 14, 20):
            groups = plan(everyone, most, parts)
            assert sorted(m.name for group in groups for m in group) == [m.name for m in everyone]
            assert len(groups) >= min(parts, 14) and all(len(group) <= (most or 14) for group in groups)
            assert all(len({m.cfg.model for m in group}) == 1 for group in groups)
            assert plan(everyone, most, len(groups)) == groups


def test_the_default_width_is_one_on_a_cpu_and_what_fits_on_a_gpu(folder, monkeypatch):
    cfg, devices = small_config(folder / "text.txt", model__vocab_size=64), jax.local_device_count()
    assert groups.default_width(cfg, 100 * devices) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert groups.default_width(cfg, 5 * devices) == 5  # no more than there are members
    assert groups.default_width(cfg, 100 * devices) == groups.GPU_WIDTH
    state, activations, _ = groups._lane_memory(cfg)
    memory = 3.5 * (2 * state + activations) / groups.MEMORY_SHARE
    monkeypatch.setattr(groups.sharding, "device_memory", lambda: memory)
    assert groups.default_width(cfg, 100 * devices) == 3
    assert groups.most_lanes(cfg, 3) >= 3 * devices


def test_local_processes_share_a_sweep(folder, monkeypatch, capfd):
    assert execute(monkeypatch, "sweep --config sweep.py --workdir found --width 1 --workers 2") == 0
    assert [row["status"] for row in read(folder / "found/results.csv")] == ["done"] * 4
    assert capfd.readouterr().out.count("2 in one program") == 2


def test_more_groups_than_processes_are_shared_among_them(folder, monkeypatch):
    started = []
    monkeypatch.setitem(
        launchers.LAUNCHERS, "local", lambda commands, args: started.extend(c[-2:] for c in commands)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (folder / "sweep.py").write_text(
        CONFIG + "\ndef sweep():\n    return [{'model.d_model': 2 * n} for n in range(1, 6)]\n"
    )
    assert execute(monkeypatch, COMMAND + " --workers 2") == 0
    assert started == [["--part=0/2", "--cores=4"], ["--part=1/2", "--cores=4"]]


def test_a_process_with_half_of_the_cores_takes_half_of_the_memory(folder, monkeypatch):
    cfg = small_config(folder / "text.txt", model__vocab_size=64)
    devices, memory = jax.local_device_count(), 2**30
    monkeypatch.setattr(groups.sharding, "device_memory", lambda: memory)
    found = []
    for cores in (devices, 2 * devices):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        found.append(groups.most_lanes(cfg))
    assert found[0] == pytest.approx(2 * found[1], rel=0.01)


def test_slurms_script_runs_every_part(folder, monkeypatch, capsys):
    assert execute(monkeypatch, COMMAND + " --launcher slurm --workers 2 --gpus 1") == 0
    script = (folder / "found/slurm.sh").read_text()
    assert "#SBATCH --array=0-1" in script and "#SBATCH --gpus-per-task=1" in script
    assert "submit it with `sbatch found/slurm.sh`" in capsys.readouterr().out
    # What a job runs is the command with its part: here without SLURM.
    for part in range(2):
        environment = {
            **os.environ,
            "SLURM_ARRAY_TASK_ID": str(part),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        text = script.replace("srun ", "")
        subprocess.run(["bash", "-c", text], check=True, env=environment, capture_output=True)
    assert execute(monkeypatch, COMMAND + " --table") == 0
    assert [row["status"] for row in read(folder / "found/results.csv")] == ["done"] * 4


def test_a_missing_ray_is_one_line(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert execute(monkeypatch, COMMAND + " --launcher ray") == 2
    assert 'pip install "jaxgpt[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize("workers, cores", [(1, 8), (2, 8), (4, 4), (100, 4)])
def test_a_ray_task_asks_for_its_share_of_the_hosts(folder, monkeypatch, workers, cores):
    """A stand-in for Ray with two hosts of 8 CPUs: what would be asked of it, and run."""
    asked, run = [], []

    def remote(**resources):
        asked.append(resources)
        return lambda function: SimpleNamespace(remote=lambda command, **options: run.append(command))

    stand_in = SimpleNamespace(
        is_initialized=lambda: True,
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}] * 2 + [{"Alive": False, "Resources": {}}],
        cluster_resources=lambda: {"CPU": 16.0},
        remote=remote,
        get=lambda tasks: [SimpleNamespace(returncode=0) for _ in tasks],
    )
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    assert execute(monkeypatch, COMMAND + f" --launcher ray --workers {workers}") == 0
    assert asked == [{"num_cpus": cores, "num_gpus": 0, "max_retries": 3}]
    parts = min(workers, 4)  # there are four members
    assert [command[-2:] for command in run] == [
        [f"--part={i}/{parts}", f"--cores={cores}"] for i in range(parts)
    ]


def test_own_flags_leave_out_who_launches():
    flags = [
        "--config=a.py",
        "--launcher",
        "ray",
        "--workers=3",
        "--width",
        "2",
        "--halving",
        "5",
        "--retry_failed",
    ]
    assert launchers.own_flags(flags) == ["--config=a.py", "--width", "2"]


def test_a_table_tells_of_those_that_wait(folder):
    found = Sweep(small_config(folder / "text.txt"), [{"train.seed": 0}, {"optim.b1": 0.5}], folder / "found")
    found.open()
    found.end(found.members[1], "failed", "no room")
    assert [row.status for row in found.rows()] == ["waiting", "failed: no room"]
    results.write(found)
    rows = read(folder / "found/results.csv")
    assert rows[0]["optim.b1"] == "" and rows[1]["train.seed"] == "" and rows[0]["valid_loss"] == ""
    assert not (folder / "found/best.py").exists()
    found.forget_failures()
    assert [row.status for row in found.rows()] == ["waiting", "waiting"]


def test_rates_that_agree_to_four_digits_are_two_settings(folder):
    rates = (1.0001e-3, 1.0002e-3)
    overrides = [{"optim.learning_rate": rate, "train.seed": seed} for rate in rates for seed in range(2)]
    found = Sweep(small_config(folder / "text.txt"), overrides, folder / "found")
    rows = [Row(f"{i:03}", folder, "done", 2.0 + i, 1, given) for i, given in enumerate(overrides)]
    assert [line[:2] for line in results.means_over_seeds(rows, found.fields)[1:]] == [
        ["0.0010001", "2.5000"],
        ["0.0010002", "4.5000"],
    ]
    assert results.best_row(rows) is rows[0]
    assert list(results.labels_of(rows, "optim.learning_rate").values()) == ["0.0010001", "0.0010002"]


def test_run_from_python(folder):
    cfg = small_config(folder / "text.txt", train__num_steps=4, train__sample_tokens=0)
    rows = groups.run(cfg, [{"train.seed": s} for s in range(2)], folder / "found", Options(width=1))
    assert [(row.status, row.steps) for row in rows] == [("done", 4)] * 2
    assert all(row.workdir.joinpath("config.json").exists() for row in rows)
    assert json.loads((folder / "found/sweep.json").read_text())["members"] == [
        {"train.seed": 0},
        {"train.seed": 1},
    ]


# --- search spaces --------------------------------------------------------------------------------------


def test_grids_zips_and_products():
    assert list(search_space.grid({"a": [1, 2], "b": "xy"})) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    assert list(search_space.zipped({"a": [1, 2], "b": [3, 4]})) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    with pytest.raises(ValueError):
        list(search_space.zipped({"a": [1, 2], "b": [3]}))
    both = search_space.product(search_space.grid({"a": [1]}), search_space.grid({"b": [2, 3]}))
    assert list(both) == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]


def test_draws_are_the_same_for_a_seed_and_within_their_bounds():
    random.seed(0)
    shared = random.getstate()
    space = {
        "rate": search_space.log_uniform(1e-4, 1e-1),
        "dropout": search_space.uniform(0.0, 0.5),
        "width": search_space.choice(64, 128),
    }
    found = list(search_space.draws(200, space, seed=3))
    assert (
        found == list(search_space.draws(200, space, seed=3)) != list(search_space.draws(200, space, seed=4))
    )
    assert all(
        1e-4 <= d["rate"] <= 1e-1 and 0 <= d["dropout"] <= 0.5 and d["width"] in (64, 128) for d in found
    )
    below = sum(d["rate"] < 10**-2.5 for d in found)  # half of the powers of ten
    assert 70 < below < 130
    assert random.getstate() == shared  # draws of their own: nothing else's change


# --- the sweeps of the repository -----------------------------------------------------------------------

SMALL = {
    "model.context_length": "8", "model.d_model": "16", "model.num_layers": "1", "model.num_heads": "2", "data.corpus": "",
    "data.path": "text.txt", "data.batch_size": "2", "train.num_steps": "2", "train.eval_every": "0", "train.eval_tokens": "32",
    "train.checkpoint_every": "0", "train.steps_per_dispatch": "2", "optim.warmup_steps": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "configs/sweeps").glob("*.py")), ids=lambda f: f.stem
)
def test_every_sweep_is_right_and_its_first_members_train(folder, file):
    values, module = cli.load_config_file(str(file))
    everyone = Sweep(values, module.sweep(), folder / "all")
    assert len({member.cfg for member in everyone.members}) == len(everyone.members) > 1
    small = config.apply_overrides(values, SMALL)
    rows = groups.run(type(values)(small), list(module.sweep())[:2], folder / "found", Options(width=1))
    assert [row.status for row in rows] == ["done", "done"]
