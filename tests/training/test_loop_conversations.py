"""Training on conversations: only what counts has a gradient, and the loss on it falls."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from jaxgpt.data import conversations
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.data.shards import unmarked
from jaxgpt.inspect import chat
from jaxgpt.model.stopping import Stops
from jaxgpt.runs import metrics_log
from jaxgpt.training import show_batch, steps
from jaxgpt.training.loop import train
from tests.data.test_chat_templates import TEMPLATES, write


def config(**data) -> Config:
    return Config(
        model=ModelConfig(context_length=32, d_model=32, num_layers=1, num_heads=2),
        data=DataConfig(path="chat.jsonl", template="line", batch_size=8, **data),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        train=TrainConfig(
            num_steps=60, eval_every=20, eval_tokens=0, checkpoint_every=60, sample_tokens=0, report=False
        ),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with open("chat.jsonl", "w") as file:
        for _ in range(300):
            number = int(rng.integers(10))
            turns = [
                {"role": "user", "content": f"{number}?"},
                {"role": "assistant", "content": f"it is {number}"},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return tmp_path


def test_the_gradient_of_what_does_not_count_is_0(folder):
    """By finite change: another target where nothing counts changes neither loss nor gradient, bit for bit."""
    cfg = config()
    data = prepare_dataset(cfg.data)
    cfg = Config(
        model=ModelConfig(**{**vars(cfg.model), "vocab_size": data.tokenizer.vocab_size}), data=cfg.data
    )
    model, *_ = steps.build(cfg)
    params = model.init(jax.random.key(0), np.zeros((1, 8), np.int32))["params"]
    windows = np.stack([data.train.targets[i : i + 33] for i in (0, 100)])
    count = steps.count_targets(windows)
    loss = jax.value_and_grad(lambda p, w: steps.mean_loss(model, p, w, count=count))
    changed = windows.copy()
    changed[:, -1] = np.where(windows[:, -1] < 0, ~((unmarked(windows[:, -1]) + 1) % 20), windows[:, -1])
    assert (windows[:, -1] < 0).any() and (changed != windows).any()
    one, two = loss(params, windows), loss(params, changed)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


@pytest.mark.parametrize("windows", ["flat", "documents"])
def test_the_loss_on_answers_falls_and_the_model_answers(folder, windows):
    cfg = config(windows=windows)
    train(cfg, "run")
    losses = metrics_log.valid_losses(folder / "run", 60)
    assert losses[60] < losses[0] / 2
    import jaxgpt

    run = jaxgpt.load("run")
    ids, stops = chat.prompt_ids(
        [{"role": "user", "content": "7?"}], conversations.TEMPLATES["line"], run.tokenizer, Stops()
    )
    assert run.tokenizer.decode(ids) == "User: 7?\nAssistant: " and stops.texts == ("\n",)


def test_the_batch_as_text(folder):
    first, row, *_ = show_batch.lines(config(windows="documents"))
    assert "8 windows of 33 tokens" in first and "targets count" in first
    assert "Assistant: \u27e6it is " in row and "\u27e6User" not in row


def test_a_tokenizers_own_template_stays_with_the_run(folder):
    pytest.importorskip("jinja2")
    published = write(folder / "published", TEMPLATES["chatml"])
    cfg = config(tokenizer="huggingface", tokenizer_path=str(published))
    cfg = dataclasses.replace(
        cfg,
        data=dataclasses.replace(cfg.data, template="tokenizer"),
        train=dataclasses.replace(cfg.train, num_steps=2, checkpoint_every=2, eval_every=0),
    )
    assert any("it is" in line and "<|im_end|>" in line for line in show_batch.lines(cfg))
    train(cfg, "run")
    (folder / "published" / "tokenizer_config.json").unlink()  # the run needs it no more
    run = jaxgpt.load("run")
    template = conversations.of_run(run.config.data, run.workdir, run.tokenizer)
    ids, stops = chat.prompt_ids([{"role": "user", "content": "7?"}], template, run.tokenizer, Stops())
    assert run.tokenizer.decode(ids).endswith("<|im_start|>user\n7?<|im_end|>\n<|im_start|>assistant\n")
    assert stops.id == run.tokenizer.special_id("<|im_end|>")
    train(config(), "other")
    assert not (folder / "other" / "chat_template.jinja").exists()
