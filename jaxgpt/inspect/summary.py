"""The summary of a report: the run's facts, its validation loss next to baselines, and its curves."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxgpt.data import baselines, batches
from jaxgpt.data.baselines import Bigram
from jaxgpt.data.id_files import Split
from jaxgpt.inspect.plain import plain
from jaxgpt.inspect.subject import Subject, affordable_tokens
from jaxgpt.model.parameters import count_params
from jaxgpt.runs import checkpoint
from jaxgpt.training import evaluation

BASELINES = ("uniform", "unigram", "bigram")
MOST_POINTS = 400  # points of a curve
EVALUATED = 16_384  # tokens to evaluate if the run has no validation loss of the step


def summary(subject: Subject, bigram: Bigram | None) -> dict[str, Any]:
    """The run's facts, its validation loss and the baselines in several units, and its curves."""
    run, facts = subject.run, subject.facts
    first = facts["starts"][0] if facts["starts"] else {}
    valid = _valid(subject)
    names = ("corpus", "tokenizer", "vocab_size", "train_tokens", "valid_tokens", "text_sha256")
    return {
        "title": f"{run.workdir.name}, step {run.step:,}",
        "workdir": str(run.workdir),
        "step": run.step,
        "saved_steps": checkpoint.saved_steps(run.workdir),
        **{name: facts.get(name) for name in names},
        "vocab_size": subject.cfg.vocab_size,
        "num_params": count_params(run.params),
        "seed": run.config.train.seed,
        "num_steps": run.config.train.num_steps,
        "commit": first.get("commit"),
        "command": first.get("command"),
        "started": first.get("time"),
        "device": first.get("device"),
        "model": dataclasses.asdict(subject.cfg),
        "valid": None if valid is None else plain(valid, 6),
        "measures": _measures(subject, valid, bigram),
        "texts": _texts(subject),
        "curves": _curves(subject.metrics),
    }


def _valid(subject: Subject) -> dict[str, Any] | None:
    """The validation loss of the step: logged by training, or else evaluated now."""
    run = subject.run
    for line in subject.metrics:
        if line["split"] == "valid" and line["step"] == run.step and "tokens" in line:
            figures = {name: line.get(name) for name in ("loss", "standard_error", "tokens")}
            return {**figures, "step": run.step, "from": "metrics.jsonl"}
    if subject.dataset is None:
        return None
    T = subject.cfg.context_length
    windows = batches.eval_batches(
        subject.dataset.valid.targets, context_length=T, batch_size=max(1, min(16, (1 << 26) // (T * subject.cfg.vocab_size))),
        max_tokens=max(T, min(EVALUATED, affordable_tokens(run.params))),
    )  # fmt: skip
    found = evaluation.evaluate(run.model, run.params, windows, run.config.train.loss_chunk)
    figures = {"loss": found.loss, "standard_error": found.standard_error, "tokens": found.tokens}
    return {**figures, "step": run.step, "from": "evaluated now"}


def _texts(subject: Subject) -> list[dict[str, Any]]:
    """The last figures of each validation text with a name, in the order of their names."""
    last = {
        line["split"].removeprefix("valid/"): line
        for line in subject.metrics
        if line["split"].startswith("valid/") and line["step"] <= subject.run.step
    }
    names = ("step", "loss", "standard_error", "bits_per_byte", "tokens")
    return [{"name": text} | {n: plain(last[text].get(n), 6) for n in names} for text in sorted(last)]


def _evaluated(split: Split, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ids of a split of which so many are predicted, and which of them but the first these are."""
    if split.counts is None:
        ids = np.asarray(split.ids[: tokens + 1])
        return ids, np.ones(len(ids) - 1, bool)
    counts = np.asarray(split.counts[1:]) != 0
    last = int(np.searchsorted(np.cumsum(counts), tokens)) + 1
    return np.asarray(split.ids[: last + 1]), counts[:last]


def _measures(subject: Subject, valid: dict[str, Any] | None, bigram: Bigram | None) -> list[dict[str, Any]]:
    """Loss, bits per character, bits per byte and perplexity of the model and each baseline, on the same tokens."""
    losses: dict[str, float | None] = dict.fromkeys(("model", *BASELINES))
    losses["uniform"] = baselines.uniform_loss(subject.cfg.vocab_size)
    per_char = per_byte = math.nan
    if valid is not None:
        losses["model"] = valid["loss"]
    if valid is not None and subject.dataset is not None:
        ids, counts = _evaluated(subject.dataset.valid, valid["tokens"])
        predicted = ids[1:][counts]
        unigram_V = baselines.unigram_probs(subject.train_ids(), subject.cfg.vocab_size)
        losses["unigram"] = float(-np.log(unigram_V[predicted]).mean())
        losses["bigram"] = None if bigram is None else float(bigram.nats(ids)[counts].mean())
        lengths = evaluation.Lengths.of(subject.dataset.valid, subject.run.tokenizer, len(ids) - 1)
        bits = len(predicted) / math.log(2)
        per_char, per_byte = bits / lengths.num_chars, bits / lengths.num_bytes
    units = [
        ("loss", "nats per token", lambda x: x),
        ("bits per character", "bits", lambda x: x * per_char),
        ("bits per byte", "bits", lambda x: x * per_byte),
        ("perplexity", "equally likely tokens", lambda x: math.exp(min(x, 700.0))),
    ]
    return [
        {"name": name, "unit": unit}
        | {who: None if x is None else plain(convert(x)) for who, x in losses.items()}
        for name, unit, convert in units
    ]


def _curves(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Losses by step, of training batches and evaluations, thinned evenly to `MOST_POINTS`."""
    curves = {}
    for split, names in (("train", ("step", "loss")), ("valid", ("step", "loss", "standard_error"))):
        lines = [line for line in metrics if line["split"] == split and line.get("loss") is not None]
        if len(lines) > MOST_POINTS:
            lines = [lines[i] for i in np.linspace(0, len(lines) - 1, MOST_POINTS).astype(int)]
        curves[split] = {name: plain([line.get(name) for line in lines]) for name in names}
    return curves
