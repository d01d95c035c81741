"""Payloads for the tests of the report's page: of a small run, and with tokens that are out to break it."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

from jaxgpt.report.payload import payload
from jaxgpt.report.subject import open_subject, probe_of

NASTY = [
    '</script><img src=x onerror="window.broken = 1">', "</style><b>", "<!--", "]]>", "&lt;script&gt;", "\u2028", "\u2029",
    "\u202e", "\0", "\x1b[31m", "\ud800", "\u0301", "\ufeff", "'\"`${1}", "__proto__", "שלום", "\\", "$DATA",
]  # fmt: skip
LONE_BYTE = {"text": "\\xe2", "count": 1, "hex": "e2"}


def small_payload(trained: Path) -> dict[str, Any]:
    """Of the run that all tests share."""
    with contextlib.chdir(trained):  # its text is there
        subject = open_subject("run")
        return payload(subject, probe_of(subject, None))


def nasty(figures: dict[str, Any]) -> dict[str, Any]:
    """The same numbers, with other texts for the probe's tokens: the bad ones first, then a lone byte."""
    figures = copy.deepcopy(figures)
    tokens = list(dict.fromkeys([*figures["probe"]["ids"], *map(int, figures["vocabulary"])]))
    entries = [{"text": text, "count": 1} for text in NASTY] + [LONE_BYTE]
    for token_id, entry in zip(tokens, entries, strict=False):
        figures["vocabulary"][str(token_id)] = entry
    return figures
