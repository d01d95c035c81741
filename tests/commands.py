"""Command lines run in this process, on a small trained run: what the tests of errors and damages share."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxgpt
from jaxgpt import evaluate, explain, generate, lora, serve, sweep, train
from jaxgpt import report as report_command
from jaxgpt.common import cli
from jaxgpt.model.paths import named_leaves
from tests.small_runs import metrics

MAINS = {
    "train": train.main,
    "generate": generate.main,
    "evaluate": evaluate.main,
    "lora": lora.main,
    "explain": explain.main,
    "report": report_command.main,
    "serve": serve.main,
    "sweep": sweep.main,
}
KEPT = ("checkpoints", "config.json", "tokenizer.json", "metrics.jsonl", "run.json", "embeddings", "samples")

CONFIG = """
from jaxgpt.config import default_config

def get_config():
    config = default_config()
    config.model.context_length = 16
    config.model.d_model = 16
    config.model.num_layers = 1
    config.model.num_heads = 2
    config.data.path = "text.txt"
    config.data.batch_size = 4
    config.optim.warmup_steps = 2
    config.train.num_steps = 20
    config.train.eval_every = 10
    config.train.eval_tokens = 200
    config.train.checkpoint_every = 10
    config.train.sample_tokens = 0
    config.train.embedding_snapshots = 2
    return config
"""
NEW = "train --config config.py --workdir new"
RUN = "train --config config.py --workdir run"
GENERATE = "generate --workdir run --max_new_tokens 4"
EVALUATE = "evaluate --workdir run"


def execute(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    """The exit code of a command, run as its console script would be."""
    name, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [f"jaxgpt/{name}.py", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(MAINS[name])
    return exit_info.value.code


def saved(run: Path) -> dict[str, str]:
    """The hash of every file that a run keeps."""
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for name in KEPT
        for file in sorted([run / name, *(run / name).rglob("*")])
        if file.is_file()
    }


def assert_same_end(one: Path, other: Path) -> None:
    """The same step, bit-equal parameters and equal metrics."""
    a, b = jaxgpt.load(one), jaxgpt.load(other)
    assert a.step == b.step
    for (path, x), (_, y) in zip(named_leaves(a.params), named_leaves(b.params), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
    assert metrics(one) == metrics(other)


def truncate_array(checkpoint: Path) -> None:
    for file in (checkpoint / "params").glob("**/d/*"):
        os.truncate(file, file.stat().st_size // 2)


def flip_bits(checkpoint: Path) -> None:
    """One bit in every 64 bytes of the largest file: some parts of it are not in use, others are."""
    files = [file for file in (checkpoint / "params").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = np.frombuffer(largest.read_bytes(), np.uint8).copy()
    content[32::64] ^= 1
    largest.write_bytes(content.tobytes())
