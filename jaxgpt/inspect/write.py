"""Write a run's report: report.json, and report.html from the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxgpt.common.cli import command_line
from jaxgpt.common.files import write_atomically
from jaxgpt.common.say import say, warn
from jaxgpt.config import first_line
from jaxgpt.inspect import compare, learning, page
from jaxgpt.inspect.payload import payload
from jaxgpt.inspect.subject import check_sees_two_tokens, open_subject, probe_of
from jaxgpt.runs import records


def report(
    workdir: str | Path,
    text: str | None = None,
    text2: str | None = None,
    step: int | str | None = None,
    other: str | Path | None = None,
) -> dict[str, Any]:
    """The payload of a run, compared with the run in the folder `other` if given. Raises UserError."""
    subject = open_subject(workdir, step)
    check_sees_two_tokens(subject.run.config.model.context_length)
    probe = probe_of(subject, text)
    second = None if text2 is None else probe_of(subject, text2)
    compared = None
    if other is not None:
        compared = open_subject(other)
        compare.check_comparable(subject, compared)
        probe = compare.common_probe(probe, compared)
    return payload(subject, probe, second, compared, watched=learning.Saved(subject.run))


def as_json(figures: dict[str, Any]) -> str:
    """A payload as one line of JSON."""
    return json.dumps(figures, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write report.json and report.html atomically. Returns their paths."""
    records.make_folder(folder)
    files = {"report.json": as_json(figures), "report.html": page.render(figures)}
    for name, content in files.items():
        write_atomically(folder / name, content.encode("utf-8", "replace"))
    return [folder / name for name in files]


def write_or_warn(workdir: Path) -> None:
    """Write the report of a finished run. An error is only a warning, because the run itself is saved."""
    try:
        say(f"report: {write(report(workdir), workdir)[-1]}")
    except Exception as error:
        warn(f"no report ({first_line(error)}): try {command_line('report', workdir=workdir)}")
