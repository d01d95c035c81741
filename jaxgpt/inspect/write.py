"""A run's report on disk: report.json and, from the same numbers, report.html."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jaxgpt.common.files import write_atomically
from jaxgpt.config import first_line
from jaxgpt.inspect import compare, page
from jaxgpt.inspect.payload import payload
from jaxgpt.inspect.subject import open_subject, probe_of
from jaxgpt.runs import records


def report(
    workdir: str | Path,
    text: str | None = None,
    text2: str | None = None,
    step: int | str | None = None,
    other: str | Path | None = None,
) -> dict[str, Any]:
    """The payload of a run, with another beside it where `other` names its folder. Raises UserError."""
    subject = open_subject(workdir, step)
    probe = probe_of(subject, text)
    second = None if text2 is None else probe_of(subject, text2)
    beside = None
    if other is not None:
        beside = open_subject(other)
        compare.check_comparable(subject, beside)
        probe = compare.common_probe(probe, beside)
    return payload(subject, probe, second, beside)


def as_json(figures: dict[str, Any]) -> str:
    """A payload as one line of JSON."""
    return json.dumps(figures, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Writes report.json and report.html, each whole or not at all, and says where."""
    records.make_folder(folder)
    files = {"report.json": as_json(figures), "report.html": page.render(figures)}
    for name, content in files.items():
        write_atomically(folder / name, content.encode("utf-8", "replace"))
    return [folder / name for name in files]


def write_or_warn(workdir: Path) -> None:
    """The report of a run that is done and saved: whatever goes wrong is said, and is no reason for the run to fail."""
    try:
        print(f"report: {write(report(workdir), workdir)[-1]}")
    except Exception as error:
        print(
            f"warning: no report ({first_line(error)}): python -m jaxgpt.report --workdir {workdir}",
            file=sys.stderr,
        )
