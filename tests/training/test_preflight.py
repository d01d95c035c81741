"""The dry run: its counts are the model's, its warnings appear when they should and only then."""

import dataclasses

import pytest

from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from jaxgpt.config.presets import PRESETS
from jaxgpt.model.parameters import count_params, param_shapes
from jaxgpt.training import costs, preflight

SMALL = Config(
    model=ModelConfig(vocab_size=65, context_length=16, d_model=16, num_layers=3, num_heads=2),
    data=DataConfig(batch_size=4),
    optim=OptimConfig(warmup_steps=5),
    train=TrainConfig(num_steps=100, eval_every=50),
)
ENOUGH = preflight.DataSizes(train_tokens=4_000, valid_tokens=1_000)


def changed(cfg: Config = SMALL, **fields) -> Config:
    for dotted, value in fields.items():
        group, name = dotted.split("__")
        cfg = dataclasses.replace(cfg, **{group: dataclasses.replace(getattr(cfg, group), **{name: value})})
    return cfg


@pytest.mark.parametrize(
    "names",
    [["gpt2", "gpt3-175b"], pytest.param(list(PRESETS), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_presets_are_reported_without_memory_or_compiling(monkeypatch, names):
    monkeypatch.setattr(preflight, "matmul_speed", lambda *_: 1e12)
    for name in names:
        model = PRESETS[name]
        cfg = Config(model=model, data=DataConfig(batch_size=1))
        found = preflight.Preflight(cfg, None)
        assert found.num_params == count_params(param_shapes(model)), name
        text = preflight.as_text(found)
        assert f"{found.num_params:,}" in text
        assert f"block_0..{model.num_layers - 1}/mlp/up/kernel" in text


def test_like_blocks_are_folded_and_unlike_ones_are_not():
    model = dataclasses.replace(SMALL.model, value_residual=True)
    rows = {row.path: row for row in preflight.param_rows(param_shapes(model))}
    assert rows["block_0..2/mlp/up/kernel"].count == 3 * 16 * 64
    assert rows["block_1..2/attention/value_mix"].copies == 2  # the first layer has none
    assert rows["token_embedding/embedding"].copies == 1


def test_a_run_that_is_as_it_should_be_gets_no_warning():
    found = preflight.Preflight(SMALL, ENOUGH)
    assert found.warnings == []
    assert found.epochs == pytest.approx(100 * 4 / 249)
    assert found.matmul_flops_per_second > 1e9
    text = preflight.as_text(found)
    assert "nothing looks wrong" in text
    assert f"{100 * 4 * 16:,}, " in text
    assert "assumed" in text


@pytest.mark.parametrize(
    ("cfg", "facts", "backend", "word"),
    [
        (SMALL, preflight.DataSizes(10, 1_000), "cpu", "fewer than one window"),
        (SMALL, preflight.DataSizes(4_000, 100), "cpu", "noisy"),
        (changed(train__num_steps=10), preflight.DataSizes(10**6, 10**4), "cpu", "0.00 of the data"),
        (changed(train__num_steps=10_000), ENOUGH, "cpu", "161 times"),
        (changed(optim__warmup_steps=100), ENOUGH, "cpu", "warmup_steps=100"),
        (changed(optim__schedule="wsd", optim__warmup_steps=90), ENOUGH, "cpu", "decay_fraction"),
        (SMALL, ENOUGH, "gpu", "vocab_multiple=128"),
        (SMALL, ENOUGH, "gpu", "model.dtype='bfloat16'"),
        (changed(model__vocab_size=50_257), ENOUGH, "cpu", "loss_chunk"),
        (changed(train__remat="full"), ENOUGH, "cpu", "frees no memory on CPU"),
        (changed(train__eval_every=1_000), ENOUGH, "cpu", "eval_every=1000"),
    ],
)
def test_warnings(cfg, facts, backend, word):
    epochs = None
    if facts.train_tokens > 16:
        epochs = cfg.train.num_steps * 4 / ((facts.train_tokens - 16) // 16)
    logits = 4 * cfg.model.vocab_size * 4 * 16
    memory = costs.Memory(params=10**5, opt_state=0, batch=0, gradients=0, logits=logits, activations=0)
    lines = preflight.warnings(cfg, facts, epochs, memory, 2**40, backend)
    assert sum(word in line for line in lines) == 1, lines


def test_a_step_larger_than_the_device_gets_a_warning():
    memory = costs.Memory(params=3, opt_state=6, batch=0, gradients=3, logits=1, activations=7)
    lines = preflight.warnings(SMALL, None, None, memory, 19, "cpu")
    assert len(lines) == 1
    assert "the device has" in lines[0]
