"""Lanes of one program: each is what it would be alone, whatever the others do."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from jaxgpt.config import Config, ModelConfig, OptimConfig, from_config_dict, to_json, value_of
from jaxgpt.training import lanes
from jaxgpt.training.loop import Trainer, train
from tests.small_runs import metrics, small_config, write_text

# Every field that a program may take as a number, and how runs begin.
MEMBERS = (
    {},
    {"optim.learning_rate": 1e-2, "train.seed": 1, "model.dropout_rate": 0.3},
    {"optim.b1": 0.8, "optim.b2": 0.95, "optim.weight_decay": 0.5, "optim.grad_clip_norm": 0.1},
    {
        "optim.warmup_steps": 20,
        "optim.final_learning_rate_ratio": 1.0,
        "model.init_scale": 0.5,
        "data.seed": 7,
    },
    {"optim.eps": 1e-6, "optim.muon_learning_rate": 4e-3, "optim.muon_momentum": 0.9, "optim.ema_decay": 0.9},
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def with_overrides(cfg: Config, overrides: dict) -> Config:
    values = to_json(cfg)
    for dotted, value in overrides.items():
        group, name = dotted.split(".")
        values[group][name] = value
    return from_config_dict(values)


@pytest.mark.parametrize(
    "optimizer", ["adamw", pytest.param("muon", marks=[pytest.mark.slow, pytest.mark.ci])]
)
def test_a_lane_is_what_the_run_is_alone(text, tmp_path, optimizer):
    """100 steps, dropout on: losses, rates and gradient norms within 1e-5, and the same batches."""
    cfg = small_config(
        # A rate at which training does not blow rounding up: at Muon's usual one a model so small is chaotic, and
        # differs as much from itself compiled otherwise.
        text, optim__name=optimizer, optim__muon_learning_rate=2e-3, optim__ema_decay=0.5, train__num_steps=100, train__eval_every=50,
        train__checkpoint_every=0, train__steps_per_dispatch=2, train__sample_tokens=4, model__num_layers=1,
    )  # fmt: skip
    cfgs = [with_overrides(cfg, overrides) for overrides in MEMBERS]
    assert len({lanes.program_of(own) for own in cfgs}) == 1
    results = Trainer([(own, tmp_path / f"lane{i}") for i, own in enumerate(cfgs)], width=2).run()
    for i in (1, 2, 4):
        assert not results[i].failed
        train(cfgs[i], tmp_path / f"alone{i}")
        lane, alone = metrics(tmp_path / f"lane{i}"), metrics(tmp_path / f"alone{i}")
        assert [(line["step"], line["split"]) for line in lane] == [(x["step"], x["split"]) for x in alone]
        for here, there in zip(lane, alone, strict=True):
            for name in ("loss", "learning_rate", "grad_norm"):
                if name in there:
                    assert here[name] == pytest.approx(there[name], rel=1e-5), (i, here["step"], name)


@pytest.mark.slow
def test_a_lane_that_diverges_disturbs_no_other(text, tmp_path):
    """With one that overflows among them, the others are bit for bit what they are without it."""
    cfg = small_config(text, train__num_steps=12, train__sample_tokens=0)
    fine = [with_overrides(cfg, {"train.seed": seed}) for seed in (0, 1)]
    wild = with_overrides(cfg, {"optim.learning_rate": 1e30, "optim.grad_clip_norm": 1e10})
    with_it = Trainer(
        [(fine[0], tmp_path / "a0"), (wild, tmp_path / "w"), (fine[1], tmp_path / "a1")], width=1
    )
    quiet = dataclasses.replace(wild, optim=fine[0].optim, train=dataclasses.replace(wild.train, seed=2))
    without = Trainer(
        [(fine[0], tmp_path / "b0"), (quiet, tmp_path / "q"), (fine[1], tmp_path / "b1")], width=1
    )
    results, others = with_it.run(), without.run()
    assert "the loss of step" in results[1].failed and "learning_rate (now 1e+30)" in results[1].failed
    assert not (results[0].failed or results[2].failed)
    for n, name in ((0, "0"), (2, "1")):
        assert results[n].valid_loss == pytest.approx(others[n].valid_loss, rel=1e-5)
        assert len(metrics(tmp_path / f"a{name}")) == len(metrics(tmp_path / f"b{name}"))
    assert max(line["step"] for line in metrics(tmp_path / "w")) < 12


@pytest.mark.slow
def test_lanes_with_ends_of_their_own_stop_at_the_first(text, tmp_path):
    """The schedule of each is its own; who is not done goes on from there."""
    cfg = small_config(text, train__sample_tokens=0, train__num_steps=24)
    short = with_overrides(cfg, {"train.num_steps": 12})
    results = Trainer([(short, tmp_path / "short"), (cfg, tmp_path / "long")], width=1).run()
    assert [int(result.state.step) for result in results] == [12, 12]
    train(cfg, tmp_path / "long")
    train(cfg, tmp_path / "alone")
    train(short, tmp_path / "short_alone")
    for one, other in (("long", "alone"), ("short", "short_alone")):
        for a, b in zip(metrics(tmp_path / one), metrics(tmp_path / other), strict=True):
            assert (a["step"], a["split"]) == (b["step"], b["split"])
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_fields_that_shape_a_program_tell_configs_apart():
    base = Config(model=ModelConfig(vocab_size=10))
    same = [
        dataclasses.replace(base, optim=OptimConfig(learning_rate=1.0, weight_decay=0.0)),
        dataclasses.replace(base, model=ModelConfig(vocab_size=10, init="fan_in", init_scale=2.0)),
    ]
    other = [
        dataclasses.replace(base, optim=OptimConfig(grad_clip_norm=0.0)),  # off is another program than on
        dataclasses.replace(base, optim=OptimConfig(name="lion")),
        dataclasses.replace(base, model=ModelConfig(vocab_size=10, dropout_rate=0.1)),
        dataclasses.replace(base, model=ModelConfig(vocab_size=10, d_model=96)),
    ]
    assert {lanes.program_of(cfg) for cfg in same} == {lanes.program_of(base)}
    assert len({lanes.program_of(cfg) for cfg in [base, *other]}) == 5
    numbers = lanes.numbers_of([base, same[0]])
    assert set(numbers) == {"optim.learning_rate", "optim.final_learning_rate", "optim.weight_decay"}
    assert numbers["optim.learning_rate"].tolist() == [np.float32(1e-3), 1.0]


def test_every_argument_is_a_number_of_the_config():
    for name in lanes.ARGUMENTS:
        assert isinstance(value_of(Config(), name), int | float)
        changed = lanes.with_values(Config(), {name: 0.25})
        assert value_of(changed, name) == 0.25
    assert set(lanes.SWITCHES) <= set(lanes.ARGUMENTS)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_map_lanes_is_the_function_of_every_lane(width):
    mesh = lanes.lane_mesh(6)
    stacked = {"x": np.arange(12.0).reshape(6, 2), "key": jax.random.split(jax.random.key(0), 6)}
    function = lanes.map_lanes(
        lambda lane, shared: lane["x"] * shared + jax.random.uniform(lane["key"]), mesh, width
    )
    found = jax.jit(function)(lanes.put(mesh, stacked), np.float32(3.0))
    expected = [stacked["x"][i] * 3.0 + jax.random.uniform(stacked["key"][i]) for i in range(6)]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-6)
    assert math.prod(found.shape) == 12
