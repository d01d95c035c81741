"""Small real runs for tests: a text, a config, and what is compared between two runs."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np

import jaxgpt
from jaxgpt import config
from jaxgpt.config import Config

TIMES = {"time", "seconds", "tokens_per_second"}


def write_text(path: Path, words: int = 3_000) -> Path:
    """A text with something to learn: sentences over a small vocabulary, the same every time."""
    rng = random.Random(0)
    nouns, verbs = ["king", "queen", "fool", "ghost", "duke"], ["loves", "sees", "fears", "kills"]
    text = "".join(
        f"the {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)}.\n" for _ in range(words // 5)
    )
    path.write_text(text, "utf-8")
    return path


def small_config(text: Path, **overrides: str | int | float | bool) -> Config:
    """A run of seconds; overrides by dotted name with `__` for the dot: train__num_steps=30."""
    values = config.to_config_dict(
        Config(
            model=config.ModelConfig(
                context_length=16, d_model=16, num_layers=2, num_heads=2, dropout_rate=0.1
            ),
            data=config.DataConfig(path=str(text), batch_size=4),
            optim=config.OptimConfig(learning_rate=3e-3, warmup_steps=5),
            train=config.TrainConfig(
                num_steps=24, eval_every=8, log_every=1, checkpoint_every=6, sample_tokens=8, eval_tokens=512
            ),
        )
    )
    texts = {name.replace("__", "."): str(value) for name, value in overrides.items()}
    return config.from_config_dict(config.apply_overrides(values, texts))


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl, without the fields that are times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-equal params, equal metrics line for line, equal samples and embedding tables."""
    a, b = jaxgpt.load(one), jaxgpt.load(other)
    assert a.step == b.step
    assert dataclasses.asdict(a.config) == dataclasses.asdict(b.config)
    from jaxgpt.model.paths import named_leaves

    for (path, x), (_, y) in zip(named_leaves(a.params), named_leaves(b.params), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
    assert metrics(one) == metrics(other)
    for folder in ("samples", "embeddings"):
        names = sorted(p.name for p in (one / folder).glob("0*"))
        assert names == sorted(p.name for p in (other / folder).glob("0*"))
        for name in names:
            assert (one / folder / name).read_bytes() == (other / folder / name).read_bytes(), name
