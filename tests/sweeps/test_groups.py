"""Groups of members: every member once, a width that fits, and the repository's own sweeps."""

import json
from pathlib import Path

import jax
import pytest

from jaxgpt import config
from jaxgpt.common import cli, machine
from jaxgpt.sweeps import groups
from jaxgpt.sweeps.groups import Options, plan
from jaxgpt.sweeps.members import Sweep
from tests.small_runs import small_config


def test_parts_have_every_member_once(sweep_folder):
    given = [{"train.seed": s, "model.d_model": d} for d in (8, 16) for s in range(7)]
    everyone = Sweep(small_config(sweep_folder / "text.txt"), given, sweep_folder / "found").members
    for most in (None, 3, 100):
        for parts in (1, 2, 3, 5, 14, 20):
            groups = plan(everyone, most, parts)
            assert sorted(m.name for group in groups for m in group) == [m.name for m in everyone]
            assert len(groups) >= min(parts, 14) and all(len(group) <= (most or 14) for group in groups)
            assert all(len({m.cfg.model for m in group}) == 1 for group in groups)
            assert plan(everyone, most, len(groups)) == groups


def test_the_default_width_is_one_on_a_cpu_and_what_fits_on_a_gpu(sweep_folder, monkeypatch):
    cfg, devices = small_config(sweep_folder / "text.txt", model__vocab_size=64), jax.local_device_count()
    assert groups.default_width(cfg, 100 * devices) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert groups.default_width(cfg, 5 * devices) == 5  # no more than there are members
    assert groups.default_width(cfg, 100 * devices) == groups.GPU_WIDTH
    state, activations, _ = groups._lane_memory(cfg)
    memory = 3.5 * (2 * state + activations) / groups.MEMORY_SHARE
    monkeypatch.setattr(groups.sharding, "device_memory", lambda: memory)
    assert groups.default_width(cfg, 100 * devices) == 3
    assert groups.most_lanes(cfg, 3) >= 3 * devices


def test_a_process_with_half_of_the_cores_takes_half_of_the_memory(sweep_folder, monkeypatch):
    cfg = small_config(sweep_folder / "text.txt", model__vocab_size=64)
    devices, memory = jax.local_device_count(), 2**30
    monkeypatch.setattr(groups.sharding, "device_memory", lambda: memory)
    found = []
    for cores in (devices, 2 * devices):
        monkeypatch.setattr(machine, "available_cores", lambda cores=cores: cores)
        found.append(groups.most_lanes(cfg))
    assert found[0] == pytest.approx(2 * found[1], rel=0.01)


def test_run_from_python(sweep_folder):
    values, _ = cli.load_config_file(str(sweep_folder / "sweep.py"))
    rows = groups.run(values, [{"train.seed": s} for s in range(2)], sweep_folder / "found", Options(width=1))
    assert [(row.status, row.steps) for row in rows] == [("done", 20)] * 2
    assert all(row.workdir.joinpath("config.json").exists() for row in rows)
    assert json.loads((sweep_folder / "found/sweep.json").read_text())["members"] == [
        {"train.seed": 0},
        {"train.seed": 1},
    ]


SMALL = {
    "model.context_length": "8", "model.d_model": "16", "model.num_layers": "1", "model.num_heads": "2", "data.corpus": "",
    "data.path": "text.txt", "data.batch_size": "2", "train.num_steps": "2", "train.eval_every": "0", "train.eval_tokens": "32",
    "train.checkpoint_every": "0", "train.sample_tokens": "0", "train.steps_per_dispatch": "2", "optim.warmup_steps": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "configs/sweeps").glob("*.py")), ids=lambda f: f.stem
)
def test_every_sweep_is_right_and_its_first_members_train(sweep_folder, file):
    values, module = cli.load_config_file(str(file))
    everyone = Sweep(values, module.sweep(), sweep_folder / "all")
    assert len({member.cfg for member in everyone.members}) == len(everyone.members) > 1
    small = config.apply_overrides(values, SMALL)
    rows = groups.run(type(values)(small), list(module.sweep())[:2], sweep_folder / "found", Options(width=1))
    assert [row.status for row in rows] == ["done", "done"]
