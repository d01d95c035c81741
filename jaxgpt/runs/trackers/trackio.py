"""Trackio: a local SQLite file that `trackio show` displays; TRACKIO_SPACE_ID and TRACKIO_SERVER_URL are respected."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.runs.trackers.tracker import PROJECT, Row, TrackedRun


class Trackio:
    """A run of Trackio, which knows runs by their names."""

    def start(self, run: TrackedRun) -> int:
        import trackio

        if not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")):
            # A local run needs no name of a user, which Trackio asks the Hugging Face hub for if there is a token.
            trackio.run._get_default_namespace = lambda: None
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=run.unique_name,
            group=run.group or None,
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._markdown = trackio.Markdown
        self._step = self._run._next_step - 1  # of a resumed run: after the last one that is stored
        return self._step

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._step = row.step
            texts = {name: self._markdown(f"```\n{text}\n```") for name, text in row.texts.items()}
            self._run.log({**row.numbers, **texts}, step=row.step)

    def finish(self, report: Path | None) -> None:
        if report is not None:
            self._run.log({"report": self._markdown(f"{report}")}, step=max(0, self._step))
        self._run.finish()
