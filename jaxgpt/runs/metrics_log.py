"""metrics.jsonl: one JSON object per line, read as a stream, and never cut without a copy of what is removed.

A line has `step` and `split`: "train", "valid" (of the validation split), "valid/NAME" (of a validation text with a name),
"source/NAME" (how much of a source of a mixture was read), "stats" (training/stats.py), or "change" for a new num_steps. Lines that are none (torn by a kill, or
written by somebody else) are left out with one warning.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.common import door
from jaxgpt.common.files import errors_name, replaced_atomically
from jaxgpt.common.say import warn
from jaxgpt.config import UserError

NAME, REMOVED = "metrics.jsonl", "metrics.removed.jsonl"
LONGEST_LINE = 1 << 20  # bytes
MOST_LINES = 200_000  # that `read` returns


def _parsed(text: bytes) -> dict[str, Any] | None:
    """The object of a line, or None for a line that this package did not write."""
    if not text.endswith(b"\n") or len(text) > LONGEST_LINE:
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(line, dict)
        or type(line.get("step")) is not int
        or not isinstance(line.get("split"), str)
    ):
        return None
    if "tokens" in line and (type(line["tokens"]) is not int or line["tokens"] < 0):
        return None
    loss = line.get("loss")
    number = loss is None or (type(loss) in (int, float) and -1e300 < loss < 1e300)
    if not number or (line["split"] == "valid" and loss is None) or not 0 <= line["step"] < 2**63:
        return None
    return line


def _raw_lines(path: Path, start: int = 0) -> Iterator[bytes]:
    """The lines of a file in parts of at most LONGEST_LINE + 1 bytes, from a byte on; an absent file has none."""
    try:
        file = door.open_regular(path)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise UserError(f"{path}: {error}; remove it") from None
    with errors_name(path), file:
        file.seek(start)
        while text := file.readline(LONGEST_LINE + 1):
            yield text


def lines(workdir: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in their order. Warns once about lines that are none of a run's."""
    wrong: list[int] = []
    for number, text in enumerate(_raw_lines(workdir / NAME), start=1):
        line = _parsed(text)
        if line is None:
            wrong.append(number)
        else:
            yield line
    if wrong:
        more = f" and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
        warn(f"{workdir / NAME}: line {wrong[0]:,}{more} is not a line of a run's log, and is left out")


def lines_from(workdir: Path, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The lines from a byte on, each with the byte at which it ends. Other lines are left out without a warning."""
    for text in _raw_lines(workdir / NAME, start):
        start += len(text)
        if (line := _parsed(text)) is not None:
            yield line, start


def read(workdir: Path, step: int, most: int = MOST_LINES) -> list[dict[str, Any]]:
    """The lines up to a step. Where "train" lines are more than `most`, every second, fourth, ... of them."""
    train: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    every, count = 1, 0
    for line in lines(workdir):
        if line["step"] > step:
            continue
        if line["split"] != "train":
            others.append(line)
            continue
        if count % every == 0:
            train.append(line)
        count += 1
        if len(train) > most:
            train, every = train[::2], 2 * every
    return sorted([*train, *others], key=lambda line: line["step"])


def valid_losses(workdir: Path, step: int) -> dict[int, float]:
    """Validation loss by step, up to a step."""
    return {x["step"]: x["loss"] for x in lines(workdir) if x["split"] == "valid" and x["step"] <= step}


class MetricsLog:
    """Writes metrics.jsonl. Holds no file open.

    A run that resumes from step k continues after the lines of step k: these steps will be done again. Later lines, and
    lines that are not a run's, move to metrics.removed.jsonl.
    """

    def __init__(self, workdir: Path, step: int, writes: bool = True) -> None:
        self._writes = writes
        self._path = workdir / NAME
        self._valid_losses = valid_losses(workdir, step)
        # Only the first of several processes writes; all read the same lines.
        if writes:
            self._continue_after(step)

    def _continue_after(self, step: int) -> None:
        def stays(text: bytes) -> bool:
            line = _parsed(text)
            return line is not None and line["step"] <= step

        if all(map(stays, _raw_lines(self._path))):
            with errors_name(self._path):
                self._path.touch()  # there from the start, for those who follow it
            return
        # What is removed is on the disk before it is gone from the log.
        removed = self._path.with_name(REMOVED)
        with errors_name(removed), removed.open("ab") as file:
            file.writelines(
                text if text.endswith(b"\n") else text + b"\n"
                for text in _raw_lines(self._path)
                if not stays(text)
            )
            file.flush()
            os.fsync(file.fileno())
        with replaced_atomically(self._path) as temporary, temporary.open("xb") as file:
            file.writelines(text for text in _raw_lines(self._path) if stays(text))

    def write(self, step: int, split: str, **values: float | None) -> None:
        """Add a line. None stands for a number that is not finite."""
        self.write_lines(step, [(split, values)])

    def write_lines(self, step: int, lines: Sequence[tuple[str, dict[str, float | None]]]) -> None:
        """Add lines of one step, (split, values) each, in one piece: a kill leaves all of them or none."""
        content = b""
        for split, values in lines:
            if split == "valid":
                loss = values["loss"]
                self._valid_losses[step] = math.nan if loss is None else loss
            content += json.dumps({"step": step, "split": split, **values}).encode() + b"\n"
        if self._writes:
            with errors_name(self._path), self._path.open("ab", buffering=0) as file:
                file.write(content)

    def valid_losses(self) -> dict[int, float]:
        """Validation loss by step."""
        return dict(self._valid_losses)

    def sync(self) -> None:
        """Write all lines to the disk. Call it before a checkpoint, so that no checkpoint is ahead of its metrics."""
        if self._writes and self._path.exists():
            with errors_name(self._path), self._path.open("ab") as file:
                os.fsync(file.fileno())
