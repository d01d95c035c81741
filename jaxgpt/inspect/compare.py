"""Another run's numbers on the same text, for laying two runs side by side."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data import tokenizers
from jaxgpt.inspect.subject import Probe, Subject

# What is given of the other run. Tables of attention, ledger and neurons are not: they are of one model alone.
KEYS = ("summary", "tokens", "next", "lens", "contextual", "positions", "cut", "missing")
ATTENTION = ("layers", "heads", "statistics", "statistics_on", "untrained_models", "repeated", "ablation")
EMBEDDINGS = ("rows", "width", "steps", "pairs", "analogies", "analogy_families", "drift")


def check_comparable(one: Subject, other: Subject) -> None:
    """Raises UserError where two runs have different tokens."""
    mine, theirs = one.run.tokenizer, other.run.tokenizer
    if tokenizers.fingerprint(mine) != tokenizers.fingerprint(theirs):
        raise UserError(
            f"{one.run.workdir} ({mine.kind}, {mine.vocab_size:,} tokens) and {other.run.workdir} ({theirs.kind}, "
            f"{theirs.vocab_size:,}) have different tokenizers: compare runs that read the same tokens"
        )


def common_probe(probe: Probe, other: Subject) -> Probe:
    """The probe, or as much of it as the other run's context holds."""
    most = other.cfg.context_length
    if len(probe.ids_T) <= most:
        return probe
    if most < 2:
        raise UserError(f"{other.run.workdir} looks at {most} token at once: there is nothing to compare")
    return dataclasses.replace(
        probe,
        ids_T=probe.ids_T[:most],
        text=other.run.tokenizer.decode(probe.ids_T[:most]),
        cut=(
            *probe.cut,
            f"The first {most} tokens are shown: {other.run.workdir.name} looks at no more at once.",
        ),
    )


def side_by_side(one: Subject, other: Subject, figures: dict[str, Any]) -> dict[str, Any]:
    """What a payload says of its own run beside another: `figures` is the other's payload."""
    return {
        "title": figures["summary"]["title"],
        "config": config.differences(one.run.config, other.run.config, every=True),
        **{key: figures[key] for key in KEYS},
        "attention": {key: figures["attention"][key] for key in ATTENTION},
        "embeddings": {key: figures["embeddings"][key] for key in EMBEDDINGS},
    }
