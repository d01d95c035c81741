"""Many devices: every parameter has a place, sizes that do not fit are refused, and the result is that of one device."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import scaling
from jaxgpt import config
from jaxgpt.config import Config, MeshConfig, UserError
from jaxgpt.config.presets import PRESETS
from jaxgpt.model import gpt, parameters, sharding
from jaxgpt.model.paths import named_leaves
from jaxgpt.training import costs, preflight, steps, traffic
from tests.sharded import CFG, FEW, MESHES, TRAFFIC

ROOT = Path(__file__).parents[2]


def with_eight_devices(folder: Path, *parts: str) -> dict:
    """What a process with 8 devices tells."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sharded", str(folder), *parts],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rematerialization" not in done.stderr  # XLA's word for moving an array by way of every device
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["devices"] == 8
    return result


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    return with_eight_devices(tmp_path_factory.mktemp("sharded"), "few", "elastic", "mixture", "lookups")


def assert_like_one_device(compared: dict, sizes: tuple[int, int, int]) -> None:
    """Losses and parameters: only the order of sums differs. And parameters and optimizer are spread as the mesh says."""
    assert compared["loss"] < 5e-6  # nats
    assert compared["params"] < 1e-5  # of each parameter's length
    assert compared["predicted"] == 0  # the dry run's bytes are those that a device is given
    share = 1 / (sizes[1] * sizes[2])
    assert compared["bytes"] == pytest.approx(share, rel=0.1)
    assert compared["arguments"] == pytest.approx(share, rel=0.1)  # the compiled step's


@pytest.mark.parametrize("sizes", FEW)
def test_a_mesh_is_like_one_device(found, sizes):
    """20 steps with dropout, accumulation, a loss in chunks, Muon, an average."""
    assert_like_one_device(found["few"][str(sizes)], sizes)


@pytest.mark.slow
def test_documents_and_targets_that_do_not_count_are_like_on_one_device(tmp_path):
    """The mean is over the counted targets of all devices and parts of a batch. Also with a tied table and all logits at once."""
    found = with_eight_devices(tmp_path, "documents", "tied")
    for name, sizes in itertools.product(("documents", "tied"), [(8, 1, 1), (2, 2, 2)]):
        assert_like_one_device(found[name][str(sizes)], sizes)


@pytest.mark.slow
def test_a_run_that_moves_a_part_of_the_parameters_is_like_one_device(tmp_path):
    compared = with_eight_devices(tmp_path, "frozen")["frozen"]["(2, 2, 2)"]
    print(json.dumps(compared))
    assert compared["loss"] < 5e-6 and compared["params"] < 1e-5
    assert compared["predicted"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "plain"])
def test_every_mesh_is_like_one_device(name, tmp_path):
    compared = with_eight_devices(tmp_path, name)[name]
    print(json.dumps(compared))
    for sizes in MESHES:
        assert_like_one_device(compared[str(sizes)], sizes)


def assert_the_same_run(compared: dict) -> None:
    """With dropout: the same batches and masks, so the same losses."""
    one, many = compared["losses"]
    assert len(one) == len(many) == 24 + 4
    np.testing.assert_allclose(many, one, rtol=0, atol=5e-6)
    assert compared["params"] < 1e-5


def test_a_run_goes_on_under_another_mesh(found):
    assert_the_same_run(found["elastic"])


def test_a_mixture_has_the_same_batches_on_any_devices(found):
    assert found["mixture"] == {str(sizes): 4 for sizes in MESHES}


def test_rows_of_a_split_table_and_its_gradient_are_exact(found):
    assert len(found["lookups"]) == 4 and all(found["lookups"].values()), found["lookups"]


@pytest.mark.slow
def test_a_run_goes_on_from_eight_devices_on_one_on_four_on_two(tmp_path):
    assert_the_same_run(with_eight_devices(tmp_path, "elastic4")["elastic4"])


@pytest.mark.slow
@pytest.mark.ci
def test_the_formulas_traffic_is_that_of_the_compiled_steps_collectives(tmp_path):
    """A ring sends 2 (n - 1) / n of a summed array's bytes from each device, and (n - 1) / n of a gathered one's."""
    found = with_eight_devices(tmp_path, "traffic")
    ring, layers = 7 / 8, TRAFFIC.model.num_layers

    def near(axis: str, sizes: tuple[int, int, int], sent: float) -> None:
        predicted = found["traffic"][str(sizes)]["predicted"]
        assert predicted.pop(axis) == pytest.approx(sent, rel=0.01)
        assert set(predicted.values()) == {0.0}

    data = found["traffic"]["(8, 1, 1)"]["found"]
    near("data", (8, 1, 1), 2 * ring * data["all-reduce"])
    # Where a backend for GPUs sums gradients into shares, XLA's for CPUs sums them whole and cuts: as large an array.
    fsdp = found["traffic"]["(1, 8, 1)"]["found"]
    near("fsdp", (1, 8, 1), ring * (fsdp["all-gather"] + fsdp["all-reduce"]))
    # Backward, what comes by way of query, key and value is summed apart on CPUs: two sums more in each layer.
    tensor = found["traffic"]["(1, 1, 8)"]["found"]
    near("tensor", (1, 1, 8), 2 * ring * tensor["all-reduce"] * (4 * layers + 2) / (6 * layers + 2))
    assert data["all-gather"] == tensor["all-gather"] == 0


def test_what_leaves_a_machine_goes_at_the_speed_between_machines():
    one = traffic.Traffic(data=1e9, fsdp=2e9, tensor=4e9)
    assert scaling.seconds(one, {"data": 1, "fsdp": 4, "tensor": 2}) == pytest.approx(7e9 / scaling.INSIDE)
    apart = 2e9 / scaling.BETWEEN + 1e9 / scaling.BETWEEN + 4e9 / scaling.INSIDE
    assert scaling.seconds(one, {"data": 2, "fsdp": 8, "tensor": 2}) == pytest.approx(apart)


def test_remat_and_accumulation_gather_all_but_the_tables_again():
    plain = dataclasses.replace(TRAFFIC, data=config.DataConfig(batch_size=32))
    sizes = {"data": 1, "fsdp": 4, "tensor": 1}
    often = dataclasses.replace(plain, train=config.TrainConfig(remat="full", grad_accumulation_steps=2))
    model = TRAFFIC.model
    tables = 2 * traffic.all_gather(2 * model.table_rows * model.d_model * 4, 4)  # parameters and gradients
    rest = traffic.traffic(plain, sizes).fsdp - tables
    assert rest > 0 and traffic.traffic(often, sizes).fsdp == 3 * rest + tables


def test_every_parameter_has_one_place():
    modern = dataclasses.replace(CFG.model, use_bias=True, norm="layernorm", position="learned")
    everything = dataclasses.replace(
        modern, value_residual=True, embedding_residual=True, embedding_dim=32, lora_rank=4,
        lora_targets=("query", "key", "value", "out", "up", "gate", "down"),
    )  # fmt: skip
    used = set()
    for cfg in [*PRESETS.values(), everything]:
        for path, leaf in named_leaves(parameters.param_shapes(cfg)):
            assert len(sharding.spec(path)) <= len(leaf.shape), path
            used.add(sharding._name(path))
    in_norms = {path for path in used if path.split("/")[0] in sharding.NORMS}
    assert used - in_norms == set(sharding.SPECS)  # no row without a parameter


def test_an_optimizers_moments_lie_with_their_parameters_and_factored_ones_everywhere():
    for name in ("adamw", "muon", "sgd", "lion", "adafactor", "schedule_free"):
        optim = config.OptimConfig(name=name, schedule="constant")
        cfg = Config(model=dataclasses.replace(PRESETS["gpt2"], num_layers=1), optim=optim)
        parts = steps.build(cfg)
        shapes = steps.state_shapes(parts.model, parts.optimizer)
        places = sharding.specs(shapes.params, shapes.opt_state)
        for (path, leaf), (_, where) in zip(
            named_leaves(shapes.opt_state), named_leaves(places), strict=True
        ):
            owner = next((p for p, _ in named_leaves(shapes.params) if path.endswith("/" + p)), None)
            same = owner and dict(named_leaves(shapes.params))[owner].shape == leaf.shape
            assert where == (sharding.spec(owner) if same else sharding.P()), path


@pytest.mark.parametrize(
    ("mesh", "count", "expected"),
    [
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(2, -1, 2), 8, (2, 2, 2)),
        (MeshConfig(1, 1, 1), 8, (1, 1, 1)),
        (MeshConfig(), 1, (1, 1, 1)),
    ],
)
def test_one_size_may_be_the_rest(mesh, count, expected):
    assert tuple(sharding.mesh_sizes(mesh, count).values()) == expected


def test_sizes_that_do_not_fit_are_refused_with_the_numbers():
    with pytest.raises(UserError, match="3 does not divide this run's 8 devices"):
        sharding.mesh_sizes(MeshConfig(-1, 3, 1), 8)
    with pytest.raises(UserError, match=r"data 1 x fsdp 2 x tensor 1 is 2 devices, this run has 1"):
        sharding.make_mesh(MeshConfig(1, 2, 1))
    cfg = dataclasses.replace(CFG, data=config.DataConfig(batch_size=12))
    with pytest.raises(UserError) as error:
        sharding.check({"data": 4, "fsdp": 1, "tensor": 5}, parameters.param_shapes(cfg.model), cfg)
    for words in (
        "is 6 rows, not a multiple of data x fsdp = 4",
        "attention/query/kernel [64, 8, 8]: 8 is not a multiple of mesh.tensor=5",
        "head/kernel [64, 64]: 64 is not a multiple of mesh.tensor=5",
    ):
        assert words in str(error.value)


def test_configs_refuse_what_is_no_mesh():
    for sizes, words in (
        ({"data": 0}, "mesh.data=0"),
        ({"fsdp": -2}, "mesh.fsdp=-2"),
        ({"fsdp": -1}, "only one size"),
    ):
        with pytest.raises(UserError, match=words):
            config.from_config_dict({"mesh": sizes})


def test_another_mesh_is_no_other_run():
    assert config.differences(Config(), Config(mesh=MeshConfig(fsdp=8))) == []


def test_a_dry_run_shows_the_memory_of_each_of_many_devices():
    cfg = Config(model=PRESETS["gpt2"], data=config.DataConfig(batch_size=64), mesh=MeshConfig(2, 4, 1))
    report = preflight.Preflight(cfg, None)
    whole, part = report.cost.memory, report.memory_per_device
    assert part.logits == whole.logits // 8
    assert part.params == pytest.approx(whole.params / 4, rel=0.01)
    assert part.opt_state == pytest.approx(whole.opt_state / 4, rel=0.01)
    assert "on each of 8 devices (data 2 x fsdp 4 x tensor 1)" in preflight.as_text(report)
    alone = dataclasses.replace(cfg, mesh=MeshConfig(1, 1, 1))
    assert costs.memory_per_device(alone, whole, {"data": 1, "fsdp": 1, "tensor": 1}) == whole


def test_the_numbers_drawn_do_not_depend_on_how_many_are():
    """Parameters start the same however many devices share the draw."""
    key = jax.random.key(3)
    np.testing.assert_array_equal(jax.random.normal(key, (1001,)), jax.random.normal(key, (2048,))[:1001])
    cfg = dataclasses.replace(CFG.model, num_layers=1)
    drawn = jax.tree.leaves(parameters.init_params(gpt.GPT(cfg), key))
    flat = np.sort(np.concatenate([np.asarray(leaf).ravel() for leaf in drawn]))
    assert len(np.unique(flat)) > 0.99 * len(flat)  # no number twice


def test_without_a_mesh_nothing_is_said_of_places():
    x = jnp.ones((4, 4))
    assert sharding.constrain(x, "data") is x
    tree = {"a": x}
    assert sharding.constrain_like({}, tree) is tree
