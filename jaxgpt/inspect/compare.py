"""Another run's numbers on the same text, to compare two runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data import tokenizers
from jaxgpt.inspect.subject import Probe, Subject

# The parts of the other run's payload that the page compares. Attention tables, ledger and neurons are omitted.
KEYS = ("summary", "tokens", "next", "lens", "contextual", "positions", "cut", "missing")
ATTENTION = (
    "layers",
    "heads",
    "statistics",
    "patterns",
    "statistics_on",
    "untrained_models",
    "repeated",
    "ablation",
)
EMBEDDINGS = ("rows", "width", "steps", "pairs", "analogies", "analogy_families", "drift")


def check_comparable(one: Subject, other: Subject) -> None:
    """Raises UserError if two runs have different tokenizers."""
    mine, theirs = one.run.tokenizer, other.run.tokenizer
    if tokenizers.fingerprint(mine) != tokenizers.fingerprint(theirs):
        raise UserError(
            f"{one.run.workdir} ({mine.kind}, {mine.vocab_size:,} tokens) and {other.run.workdir} ({theirs.kind}, "
            f"{theirs.vocab_size:,}) have different tokenizers: compare runs that read the same tokens"
        )


def common_probe(probe: Probe, other: Subject) -> Probe:
    """The probe, cut to the other run's context."""
    most = other.cfg.context_length
    if len(probe.ids_T) <= most:
        return probe
    if most < 2:
        raise UserError(
            f"{other.run.workdir} has model.context_length={most}, which predicts nothing: compare another run"
        )
    return dataclasses.replace(
        probe,
        ids_T=probe.ids_T[:most],
        text=other.run.tokenizer.decode(probe.ids_T[:most]),
        cut=(
            *probe.cut,
            f"Only the first {most} tokens are shown: the context of {other.run.workdir.name} holds no more.",
        ),
    )


def compare_part(one: Subject, other: Subject, figures: dict[str, Any]) -> dict[str, Any]:
    """The `compare` part of a payload. `figures` is the other run's payload."""
    return {
        "title": figures["summary"]["title"],
        "config": config.differences(one.run.config, other.run.config, every=True),
        **{key: figures[key] for key in KEYS},
        "attention": {key: figures["attention"][key] for key in ATTENTION},
        "embeddings": {key: figures["embeddings"][key] for key in EMBEDDINGS},
    }
