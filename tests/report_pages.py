"""Payloads for the tests of the report's page: of a small run, and with tokens that are out to break it."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

from jaxgpt.inspect.payload import payload
from jaxgpt.inspect.subject import open_subject, probe_of

NASTY = [
    '</script><img src=x onerror="window.broken = 1">', "</style><b>", "<!--", "]]>", "&lt;script&gt;", "\u2028", "\u2029",
    "\u202e", "\0", "\x1b[31m", "\ud800", "\u0301", "\ufeff", "'\"`${1}", "__proto__", "שלום", "\\", "$DATA",
]  # fmt: skip
LONE_BYTE = {"text": "\\xe2", "count": 1, "hex": "e2"}


def small_payload(trained: Path) -> dict[str, Any]:
    """Of the run that all tests share."""
    with contextlib.chdir(trained):  # its text is there
        subject = open_subject("run")
        watched = {0: subject.untrained()[1], 10: subject.untrained(1)[1], 20: subject.run.params}
        return payload(subject, probe_of(subject, None), watched=watched)


def nasty(figures: dict[str, Any]) -> dict[str, Any]:
    """The same numbers, with other texts for the probe's tokens: the bad ones first, then a lone byte."""
    figures = copy.deepcopy(figures)
    tokens = list(dict.fromkeys([*figures["probe"]["ids"], *map(int, figures["vocabulary"])]))
    entries = [{"text": text, "count": 1} for text in NASTY] + [LONE_BYTE]
    for name in ("title", "workdir", "corpus", "command", "tokenizer"):
        figures["summary"][name] = f"{name} {NASTY[0]} \u202e \0"
    figures["learning"]["samples"] = [f"{text}\n{NASTY[0]}" for text in ("\u202e a", "\0", NASTY[1])]
    for token_id, entry in zip(tokens, entries, strict=False):
        figures["vocabulary"][str(token_id)] = entry
    return figures


def bare(figures: dict[str, Any]) -> dict[str, Any]:
    """The same run with all that a payload may lack left out, and attention as that of a large model: cut weights."""
    figures = copy.deepcopy(figures)
    attention = figures["attention"]
    shown = len(figures["probe"]["ids"]) - 4
    numbers = shown * (shown + 1) // 2
    attention |= {"scores": None, "ahead": None, "ablation": None, "named": [], "window": 3}
    attention["weights"] = [
        ["gA" * numbers for _ in range(attention["heads"])] for _ in range(attention["layers"])
    ]
    attention["statistics"]["induction"]["value"] = [
        [None] * attention["heads"] for _ in range(attention["layers"])
    ]
    figures["embeddings"] |= {
        "drift": None,
        "scatter": None,
        "pairs": [],
        "analogies": [],
        "analogy_families": [],
    }
    figures["embeddings"]["neighbours"] = figures["embeddings"]["neighbours"][:1]
    figures["tokens"] |= {"bigram_nats": None, "difference": None}
    figures["positions"] = {"kind": "rotary", "shown": [], "start": None, "end": None}
    figures |= {
        "learning": None,
        "contextual": None,
        "neurons": None,
        "cut": ["Much was cut."],
        "missing": ["No text."],
    }
    figures["summary"] |= {
        "corpus": None,
        "commit": None,
        "command": None,
        "train_tokens": None,
        "findings": [],
    }
    for curve in figures["summary"]["curves"].values():
        curve.update({name: [] for name in curve})
    for row in figures["summary"]["measures"]:
        row |= {"model": None, "unigram": None, "bigram": None}
    return figures


def compared(figures: dict[str, Any]) -> dict[str, Any]:
    """A run compared with itself."""
    figures = copy.deepcopy(figures)
    other = {name: value for name, value in figures.items() if name != "compare"}
    return figures | {"compare": {**other, "title": "the other", "config": ["model.d_model: 16 -> 32"]}}
