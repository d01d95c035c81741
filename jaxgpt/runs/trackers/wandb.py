"""Weights & Biases. Offline, in ./wandb, unless WANDB_MODE says otherwise; `wandb sync` uploads what is there."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxgpt.runs.trackers.feed import LONGEST_WAIT
from jaxgpt.runs.trackers.tracker import NOTHING, PROJECT, Row, TrackedRun

BLOCK, HEADER = 1 << 15, 7  # bytes of a .wandb file's blocks, and of its start and each of its records


class WeightsAndBiases:
    """A run of Weights & Biases with the steps of training as its steps."""

    def start(self, run: TrackedRun) -> int:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the package is imported
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.id,
            name=run.name,
            group=run.group or None,
            config=run.config,
            allow_val_change=True,
            mode=None if os.environ.get("WANDB_MODE") else "offline",
            resume="allow",
            reinit="create_new",  # members of a sweep are runs of one process
            settings=wandb.Settings(
                console="off", silent=True, init_timeout=LONGEST_WAIT, finish_timeout=LONGEST_WAIT
            ),
        )
        self._html = wandb.Html
        if not self._run.offline:
            return self._run.starting_step - 1
        # No server says what an offline run has: its files do.
        folder = Path(self._run.dir).parents[1]
        files = folder.glob(f"offline-run-*-{run.id}/run-{run.id}.wandb")
        return max((step for file in files for step in stored_steps(file)), default=NOTHING)

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            texts = {
                name: self._html(f"<pre>{html.escape(text)}</pre>", inject=False)
                for name, text in row.texts.items()
            }
            self._run.log({**row.numbers, **texts}, step=row.step, commit=True)

    def finish(self, report: Path | None) -> None:
        if report is not None:
            self._run.save(str(report), base_path=str(report.parent), policy="now")
        self._run.finish()


def stored_steps(file: Path) -> Iterator[int]:
    """The steps in a .wandb file, also in one that was not closed."""
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            yield record.history.step.num


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: in blocks, each piece with checksum, length and kind before it."""
    at, pieces = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # no room for a record: the block is padded
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        piece = content[at + HEADER : at + HEADER + length]
        if kind not in (1, 2, 3, 4) or len(piece) < length:
            return  # the file ends here
        at += HEADER + length
        pieces = piece if kind in (1, 2) else pieces + piece  # complete, first, middle, last
        if kind in (1, 4):
            yield pieces
