"""Launchers: local processes, Ray tasks and SLURM jobs share a sweep's groups."""

import os
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxgpt.common import machine
from jaxgpt.sweeps import launchers
from tests.commands import CONFIG, execute
from tests.small_sweeps import COMMAND, read


@pytest.mark.slow
@pytest.mark.ci
def test_local_processes_share_a_sweep(sweep_folder, monkeypatch, capfd):
    assert execute(monkeypatch, "sweep --config sweep.py --workdir found --width 1 --workers 2") == 0
    assert [row["status"] for row in read(sweep_folder / "found/results.csv")] == ["done"] * 4
    assert capfd.readouterr().out.count("2 in one program") == 2


def test_more_groups_than_processes_are_shared_among_them(sweep_folder, monkeypatch):
    started = []
    monkeypatch.setitem(
        launchers.LAUNCHERS, "local", lambda commands, args: started.extend(c[-2:] for c in commands)
    )
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    (sweep_folder / "sweep.py").write_text(
        CONFIG + "\ndef sweep():\n    return [{'model.d_model': 2 * n} for n in range(1, 6)]\n"
    )
    assert execute(monkeypatch, COMMAND + " --workers 2") == 0
    assert started == [["--part=0/2", "--cores=4"], ["--part=1/2", "--cores=4"]]


@pytest.mark.slow
def test_slurms_script_runs_every_part(sweep_folder, monkeypatch, capsys):
    assert execute(monkeypatch, COMMAND + " --launcher slurm --workers 2 --gpus 1") == 0
    script = (sweep_folder / "found/slurm.sh").read_text()
    assert "#SBATCH --array=0-1" in script and "#SBATCH --gpus-per-task=1" in script
    assert "submit it with `sbatch found/slurm.sh`" in capsys.readouterr().out
    # What a job runs is the command with its part: here printed by the shell, and run in this process.
    for part in range(2):
        done = subprocess.run(
            ["bash", "-c", script.replace("srun ", "printf '%s\\n' ")],
            check=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(part)}, capture_output=True, text=True,
        )  # fmt: skip
        program, *arguments = done.stdout.splitlines()
        assert program == sys.executable and arguments[:2] == ["-m", "jaxgpt.sweep"]
        assert f"--part={part}/2" in arguments
        assert execute(monkeypatch, shlex.join(["sweep", *arguments[2:]])) == 0
    assert execute(monkeypatch, COMMAND + " --table") == 0
    assert [row["status"] for row in read(sweep_folder / "found/results.csv")] == ["done"] * 4


def test_a_missing_ray_is_one_line(sweep_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert execute(monkeypatch, COMMAND + " --launcher ray") == 2
    assert 'pip install "jaxgpt[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize("workers, cores", [(1, 8), (2, 8), (4, 4), (100, 4)])
def test_a_ray_task_asks_for_its_share_of_the_hosts(sweep_folder, monkeypatch, workers, cores):
    """A fake Ray with two hosts of 8 CPUs records the requested resources and commands."""
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


@pytest.mark.parametrize("name", ["my sweep", "it's", 'a"b$HOME`id`', "a%b", "-d"])
def test_slurms_script_quotes_any_folder(name, tmp_path, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    args = SimpleNamespace(cores=2, gpus=0)
    command = [
        sys.executable,
        "-m",
        "jaxgpt.sweep",
        "--config",
        f"{name}.py",
        f"--workdir={folder}",
        "--part=0/2",
    ]
    path = launchers.write_slurm([command, command], folder, args)
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--severity=warning", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    script = path.read_text("utf-8").replace("srun ", "pwd; printf '%s\\n' ")
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True, cwd="/"
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(folder), *command[:-1], "--part=1/2"]
    output = next(line for line in script.splitlines() if line.startswith("#SBATCH --output="))
    (_, given) = shlex.split(output.removeprefix("#"))
    assert given == f"--output={str(folder).replace('%', '%%')}/slurm-%a.log"
