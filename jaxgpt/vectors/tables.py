"""Embedding tables with named rows: those of a run at any saved step, and vectors from files."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.common import door
from jaxgpt.config import UserError, errors, first_line
from jaxgpt.data import tokenizers
from jaxgpt.runs import checkpoint, records
from jaxgpt.runs.load import load
from jaxgpt.vectors import word_vectors
from jaxgpt.vectors.word_vectors import Vectors

KINDS = ("token", "position")


@dataclass(frozen=True)
class Table:
    """A table with a name for each row: a token as text, or a position ("0", "1", ...)."""

    source: str  # for headings and errors
    vectors: Vectors
    step: int | None = None  # of a run

    @property
    def words(self) -> list[str]:
        return self.vectors.words

    @property
    def values(self) -> np.ndarray:
        """[N, D] float32."""
        return self.vectors.table

    def row(self, word: str) -> int:
        """The row of a word, as in `Vectors.row`. Raises UserError with the nearest spelling."""
        row = self.vectors.row(word)
        if row is None:
            raise UserError(f"{self.source} has no word {word!r}: {self._nearest_spelling(word)}")
        return row

    def _nearest_spelling(self, word: str) -> str:
        if self.words[0] == "0" and self.words[-1] == str(len(self.words) - 1):
            return f"give a position, 0 to {len(self.words) - 1}"
        # Comparing with 400,000 words would take seconds.
        alike = [w for w in self.words if abs(len(w) - len(word)) < 3 and w[:1].lower() == word[:1].lower()]
        near = errors.nearest(word, alike, cutoff=0.0)
        return f"did you mean {near!r}?" if near else "no word is spelled like it"


def saved_steps(workdir: Path) -> list[int]:
    """The steps of the tables in RUN/embeddings, sorted."""
    return sorted(int(p.stem) for p in (workdir / "embeddings").glob("*.npz") if p.stem.isdigit())


def open_run(workdir: Path, step: int | str | None = None, kind: str = "token") -> Table:
    """A run's table at a saved step, at "best" or (None) at the latest step.

    It is read from RUN/embeddings, or from the checkpoint where it is not there.
    """
    if not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}: give the folder of a run as --workdir")
    door.check(workdir)
    steps = saved_steps(workdir)
    saved = checkpoint.saved_steps(workdir)
    if step is None:
        step = max([*steps, *saved], default=None)
    if step is None:
        raise UserError(f"{workdir} has neither embeddings nor checkpoints: train it first")
    if step in steps:
        return read_snapshot(workdir, int(step), kind, tokenizers.load(workdir / "tokenizer.json"))
    if step != "best" and step not in saved:
        raise UserError(f"{workdir} has no table of step {step}: choose one of {sorted({*steps, *saved})}")
    run = load(workdir, step)
    return _table(workdir, run.step, kind, records.embedding_tables(run.params), run.tokenizer)


def open_history(workdir: Path, kind: str = "token") -> dict[int, Table]:
    """Every table of RUN/embeddings, by step. Raises UserError for fewer than 2."""
    door.check(workdir)
    steps = saved_steps(workdir)
    if len(steps) < 2:
        raise UserError(
            f"{workdir} has tables of {len(steps)} steps, 2 or more are needed: train with train.embedding_snapshots"
        )
    tokenizer = tokenizers.load(workdir / "tokenizer.json")
    return {step: read_snapshot(workdir, step, kind, tokenizer) for step in steps}


def read_snapshot(workdir: Path, step: int, kind: str, tokenizer: tokenizers.Tokenizer) -> Table:
    """The table of one file of RUN/embeddings. Raises UserError where it is damaged or does not fit the tokenizer."""
    path = workdir / "embeddings" / f"{step:08d}.npz"
    try:
        with door.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            # A small file may unpack to any size. Tables are stored, not compressed.
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is smaller than its arrays")
        with np.load(path, allow_pickle=False) as arrays:
            tables = {name: arrays[name] for name in KINDS if name in arrays}
        if any(table.dtype.kind not in "fiu" for table in tables.values()):
            raise ValueError("its arrays are not numbers")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, OverflowError, MemoryError) as error:
        raise UserError(f"can't read {path} ({first_line(error)}): choose another --step") from None
    return _table(workdir, step, kind, tables, tokenizer)


def _table(
    workdir: Path, step: int, kind: str, tables: dict[str, Any], tokenizer: tokenizers.Tokenizer
) -> Table:
    if kind not in tables:
        have = ", ".join(tables) or "none"
        raise UserError(
            f"{workdir} has no {kind} table at step {step}: choose one of {have} (positions have a table with model.position=learned)"
        )
    values = np.asarray(tables[kind], np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise UserError(f"{workdir} has a damaged {kind} table at step {step}: choose another --step")
    if kind == "token":
        values = values[: tokenizer.vocab_size]  # the table of a checkpoint may be padded
        words = word_vectors.tokens_of(tokenizer)
        if len(values) != len(words):
            raise UserError(
                f"{workdir} has {len(values):,} rows at step {step}, but {len(words):,} tokens: choose another --step"
            )
    else:
        words = [str(i) for i in range(len(values))]
    source = f"{workdir} step {step}" + (", positions" if kind == "position" else "")
    return Table(source, Vectors(words, values), step)
