"""TensorBoard events, in RUN/tensorboard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.runs.trackers.tracker import NOTHING, Row, TrackedRun


class TensorBoard:
    """Each metric is a scalar. Where train.trackers names it, config and samples are texts; train.tensorboard has scalars only."""

    def start(self, run: TrackedRun) -> int:
        """TensorBoard drops the events after the step that the run resumes from, and gets them again."""
        from tensorboardX import SummaryWriter

        folder = run.workdir / "tensorboard"
        known = any(folder.glob("events.*")) if folder.exists() else False
        self._writer = SummaryWriter(str(folder), purge_step=run.step + 1)
        self._has_texts = "tensorboard" in run.config["train.trackers"]
        self._step = run.step
        if self._has_texts and not known:
            self._write_text("config", json.dumps(run.config, indent=2), 0)
        return run.step if known else NOTHING

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._step = row.step
            for name, value in row.numbers.items():
                self._writer.add_scalar(name, value, row.step, walltime=row.time)
            for name, text in row.texts.items() if self._has_texts else ():
                self._write_text(name, text, row.step)

    def finish(self, report: Path | None) -> None:
        if report is not None and self._has_texts:
            self._writer.add_text("report", str(report), self._step)
        self._writer.close()

    def _write_text(self, name: str, text: str, step: int) -> None:
        """As a block of code: TensorBoard reads texts as Markdown, where a single line break is none."""
        self._writer.add_text(name, "    " + text.replace("\n", "\n    "), step)
