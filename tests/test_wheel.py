"""A wheel installs all rooms, the configs, the page's assets, the console command."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from jaxgpt.common import config_files

ROOT = Path(__file__).parent.parent


def run(command: list, folder: Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.ci
def test_a_wheel_has_everything_and_finds_its_configs_by_name(tmp_path):
    source = tmp_path / "source"
    for name in ("jaxgpt", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, source], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (source / "jaxgpt").rglob("*") if path.is_file()]
    assert {f"jaxgpt/{path.relative_to(source / 'jaxgpt').as_posix()}" for path in files} <= names
    assert {f"jaxgpt/configs/{name}.py" for name in config_files.shipped()} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"jaxgpt"}

    # A fresh environment that sees the packages of this one, without what is installed there in place.
    run([sys.executable, "-m", "venv", tmp_path / "venv"], tmp_path)
    python = tmp_path / "venv/bin/python"
    run([python, "-m", "pip", "install", "--no-deps", wheel], tmp_path)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [tmp_path / "venv/bin/jaxgpt", "train", "--config"]
    small = [
        "--config.train.num_steps=1",
        "--config.train.steps_per_dispatch=1",
        "--config.train.eval_tokens=64",
        "--config.train.sample_tokens=0",
    ]
    run([*command, "configs/toy.py", *small, "--config.train.report=false"], tmp_path)
    assert (tmp_path / "runs/toy/checkpoints/1").is_dir()
    code = (
        "from jaxgpt.common.cli import read_config; print(read_config('sweeps/char_lr', {}).train.num_steps)"
    )
    assert run([python, "-c", code], tmp_path) == "200\n"
