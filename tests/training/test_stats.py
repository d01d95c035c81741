"""The statistics of a run's health: equal to NumPy's, absent from the training step, and without effect on it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.inspect.capture import capture
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs import snapshots
from jaxgpt.training import stats
from jaxgpt.training.loop import Trainer, train
from jaxgpt.training.programs import SingleRun
from tests.small_runs import metrics, small_config


@pytest.fixture(scope="module")
def text(plain_run):
    return plain_run / "text.txt"


@pytest.fixture(scope="module")
def small():
    """A config with a dead neuron, its parameters, and windows of which some targets do not count."""
    model = config.ModelConfig(
        vocab_size=11, context_length=12, d_model=8, num_layers=2, num_heads=2, d_ff=16, activation="relu"
    )
    params = init_params(GPT(model), jax.random.key(1))
    up = params["block_1"]["mlp"]["up"]
    params["block_1"]["mlp"]["up"] = {**up, "bias": up["bias"].at[:3].set(-1e3)}
    windows = np.random.default_rng(0).integers(0, 11, (6, 13)).astype(np.int32)
    windows[2, 5:9] = ~windows[2, 5:9]
    return config.Config(model=model), params, windows


def expected(cfg: config.Config, params: dict, windows: np.ndarray) -> dict[str, float]:
    seen = [capture(cfg.model, params, np.where(row < 0, ~row, row)[:-1]) for row in windows]
    found = {}
    for i in range(cfg.model.num_layers):
        layers = [one.layers[i] for one in seen]
        found[f"block_{i}/residual_rms"] = np.sqrt(np.mean([np.square(x.after_TD) for x in layers]))
        found[f"block_{i}/attention_max"] = max(x.masked_scores.max() for x in layers)
        fires = np.any([(x.hidden_TF > 0).any(axis=0) for x in layers], axis=0)
        found[f"block_{i}/dead"] = 1 - fires.mean()
    lse = np.concatenate(
        [np.log(np.exp(one.logits_TV).sum(-1))[row[1:] >= 0] for one, row in zip(seen, windows, strict=True)]
    )
    return found | {"logsumexp": lse.mean(), "logsumexp_max": lse.max()}


def test_activations_are_numpys_own_however_many_parts(small):
    cfg, params, windows = small
    wanted = expected(cfg, params, windows)
    assert wanted["block_1/dead"] >= 3 / 16
    for most_bytes in (stats.MOST_BYTES, 1):
        found = jax.jit(lambda p, w, most=most_bytes: stats.of_activations(cfg, p, w, 1, most))(
            params, windows
        )
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert stats._num_parts(cfg, 6, 2, 1) == 3  # each part has a row for each device
    gelu = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, activation="gelu"))
    assert not [name for name in stats.of_activations(gelu, params, windows) if name.endswith("dead")]


def test_norms_of_what_is_trained_and_what_is_not(small):
    cfg, params, _ = small
    after = jax.tree.map(lambda x: 1.5 * x, params)
    frozen = dataclasses.replace(cfg, optim=config.OptimConfig(trainable=("block_1/*",)))
    count = len(named_leaves(params["block_1"]))
    found = stats.of_parameters(frozen, params, after, np.arange(1.0, count + 1))
    assert [name for name in found if name.endswith("gradient_norm")] == ["block_1/gradient_norm"]
    assert float(found["block_1/gradient_norm"]) == pytest.approx(
        np.sqrt(np.square(np.arange(1, count + 1)).sum())
    )
    for name, part in params.items():
        norm = np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(part)))
        assert float(found[f"{name}/parameter_norm"]) == pytest.approx(norm, rel=1e-5)
        assert float(found[f"{name}/update_norm"]) == pytest.approx(norm / 2, rel=1e-5)
        assert float(found[f"{name}/update_ratio"]) == pytest.approx(0.5, rel=1e-5)


WATCHED = {"train__stats_every": 5, "model__activation": "gelu"}


@pytest.fixture(scope="module")
def watched(text, tmp_path_factory):
    """A run with statistics."""
    place = tmp_path_factory.mktemp("watched") / "run"
    train(small_config(text, **WATCHED, train__snapshots="every:1"), place)
    return place


def test_a_run_with_statistics_is_the_run_without(plain_run, watched):
    plain, run = jaxgpt.load(plain_run / "run"), jaxgpt.load(watched)
    assert plain.config.model == run.config.model
    for (path, x), (_, y) in zip(named_leaves(plain.params), named_leaves(run.params), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
    lines = metrics(watched)
    own = {line["step"]: line for line in lines if line["split"] == "stats"}
    assert [line for line in lines if line["split"] != "stats"] == metrics(plain_run / "run")
    assert list(own) == [1, 5, 10, 15, 20, 24]
    trained = {line["step"]: line for line in lines if line["split"] == "train"}
    groups = {name.split("/")[0] for name, _ in named_leaves(run.params)}
    for step, line in own.items():
        total = np.sqrt(sum(line[f"{name}/gradient_norm"] ** 2 for name in groups))
        assert total == pytest.approx(trained[step]["grad_norm"], rel=1e-5)
    before, after = (snapshots.read(watched, step)[2] for step in (9, 10))
    for name in groups:
        change = jax.tree.map(lambda x, y: np.asarray(y, np.float64) - x, before[name], after[name])
        norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(change)))
        assert own[10][f"{name}/update_norm"] == pytest.approx(norm, rel=1e-4)


def test_each_lane_has_the_statistics_of_its_run_alone(text, watched, tmp_path):
    cfgs = [
        small_config(text, **WATCHED, train__sample_tokens=0, train__eval_every=24, optim__learning_rate=rate)
        for rate in (3e-3, 1e-2, 3e-2)
    ]
    runs = [(cfg, tmp_path / str(n)) for n, cfg in enumerate(cfgs)]
    Trainer(runs, width=2).run(stop_at=5)
    alone, *lanes = [
        [line for line in metrics(place) if line["split"] == "stats" and line["step"] <= 5]
        for place in (watched, *(place for _, place in runs))
    ]
    assert len(alone) == 2 and [len(one) for one in lanes] == [2, 2, 2]
    for here, there in zip(alone, lanes[0], strict=True):
        assert there.pop("split") == here.pop("split") and there == pytest.approx(here, rel=1e-4)
    ratios = [lane[0]["block_0/update_ratio"] for lane in lanes]  # the first update is that of the rate
    assert np.array(ratios) == pytest.approx(ratios[0] * np.array([1, 10 / 3, 10]), rel=1e-3)


def test_the_traced_step_is_the_same_to_the_last_equation(text):
    ids = np.zeros(100, np.int32)

    def traced(**overrides) -> str:
        cfg = small_config(text, model__vocab_size=11, **overrides)
        program = SingleRun(cfg, ids)
        with program.context():
            return str(jax.make_jaxpr(program.dispatch)(program.shapes, *program.feed(0)))

    assert traced() == traced(train__stats_every=5)
    assert traced() != traced(optim__weight_decay=0.2)


def test_what_has_no_statistics_says_so(text):
    with pytest.raises(UserError, match=r"set train\.steps_per_dispatch=1, or train\.stats_every=0"):
        small_config(text, train__stats_every=5, train__steps_per_dispatch=2)


ON_A_MESH = """
import json, sys
from pathlib import Path
from jaxgpt.training.loop import train
from tests.small_runs import metrics, small_config
text, folder = sys.argv[1:]
for mesh in ((1, 1, 1), (1, 2, 2)):
    cfg = small_config(
        Path(text), train__num_steps=4, train__stats_every=2, train__sample_tokens=0, data__batch_size=8, model__activation="relu",
        train__grad_accumulation_steps=2, train__remat="full", train__loss_chunk=8, data__on_device=mesh[1] == 2,
        model__dropout_rate=0.0, mesh__data=mesh[0], mesh__fsdp=mesh[1], mesh__tensor=mesh[2],
    )
    place = Path(folder) / "-".join(map(str, mesh))
    train(cfg, place)
    print(json.dumps([line for line in metrics(place) if line["split"] == "stats"]))
"""


@pytest.mark.slow
@pytest.mark.ci
def test_a_mesh_has_the_statistics_of_one_device(text, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH, str(text), str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, other = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[{")]
    assert [line["step"] for line in one] == [1, 2, 4]
    for here, there in zip(one, other, strict=True):
        assert here.pop("split") == there.pop("split") == "stats"
        assert there == pytest.approx(here, rel=1e-3, abs=1e-5)
