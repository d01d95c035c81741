"""Embedding tables with a name for each row: of a run at any saved step, or vectors from elsewhere."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.data import tokenizers
from jaxgpt.runs import checkpoint, records
from jaxgpt.vectors import word_vectors
from jaxgpt.vectors.word_vectors import Vectors

KINDS = ("token", "position")


@dataclass(frozen=True)
class Table:
    """Rows with names: tokens as text, or positions as numbers ("0", "1", ...)."""

    source: str  # for headings
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
        """The row of a word, as `Vectors.row` finds it. Raises UserError with the nearest spelling."""
        row = self.vectors.row(word)
        if row is None:
            raise UserError(f"{self.source} has no word {word!r}: {self._nearest_spelling(word)}")
        return row

    def _nearest_spelling(self, word: str) -> str:
        if self.words[0] == "0" and self.words[-1] == str(len(self.words) - 1):
            return f"give a position, 0 to {len(self.words) - 1}"
        # Comparing with all of 400,000 words would take seconds.
        alike = [w for w in self.words if abs(len(w) - len(word)) < 3 and w[:1].lower() == word[:1].lower()]
        near = difflib.get_close_matches(word, alike, n=1, cutoff=0.0)
        return f"the nearest spelling is {near[0]!r}" if near else "and none that is spelled alike"


def saved_steps(workdir: Path) -> list[int]:
    """The steps whose tables lie in RUN/embeddings, in order."""
    return sorted(int(p.stem) for p in (workdir / "embeddings").glob("*.npz") if p.stem.isdigit())


def open_vectors(name: str, vocabulary: str | None, tensor: str | None) -> Table:
    """Vectors from elsewhere, as `word_vectors.load` reads them."""
    return Table(name, word_vectors.load(name, vocabulary, tensor))


def open_run(workdir: Path, step: int | str | None = None, kind: str = "token") -> Table:
    """A run's table at a saved step, "best" or the newest: from RUN/embeddings, else from the checkpoint."""
    if not workdir.is_dir():
        raise UserError(f"no run folder {workdir}: train one first, or give the right --workdir")
    steps = saved_steps(workdir)
    saved = checkpoint.saved_steps(workdir)
    if step is None:
        step = max([*steps, *saved], default=None)
    if step is None:
        raise UserError(f"{workdir} has neither embeddings nor checkpoints: train it for longer")
    if step in steps:
        return read_snapshot(workdir, int(step), kind, _tokenizer(workdir))
    if step != "best" and step not in saved:
        raise UserError(f"{workdir} has no table of step {step}: the steps are {sorted({*steps, *saved})}")
    run = checkpoint.load(workdir, step)
    return _table(workdir, run.step, kind, records.embedding_tables(run.params), run.tokenizer)


def open_history(workdir: Path, kind: str = "token") -> dict[int, Table]:
    """Every table of RUN/embeddings by step."""
    steps = saved_steps(workdir)
    if len(steps) < 2:
        raise UserError(
            f"{workdir} has tables of {len(steps)} steps: 2 or more are needed, train with train.embedding_snapshots"
        )
    tokenizer = _tokenizer(workdir)
    return {step: read_snapshot(workdir, step, kind, tokenizer) for step in steps}


def read_snapshot(workdir: Path, step: int, kind: str, tokenizer: tokenizers.Tokenizer) -> Table:
    """One file of RUN/embeddings. Raises UserError where it is damaged or belongs to another tokenizer."""
    path = workdir / "embeddings" / f"{step:08d}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            tables = {name: arrays[name] for name in KINDS if name in arrays}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} can't be read ({line}): choose another --step") from None
    return _table(workdir, step, kind, tables, tokenizer)


def _tokenizer(workdir: Path) -> tokenizers.Tokenizer:
    return tokenizers.load(workdir / "tokenizer.json")


def _table(
    workdir: Path, step: int, kind: str, tables: dict[str, Any], tokenizer: tokenizers.Tokenizer
) -> Table:
    if kind not in tables:
        have = ", ".join(tables) or "none"
        raise UserError(
            f"{workdir} has no {kind} table at step {step}, it has: {have}; positions have one where model.position=learned"
        )
    values = np.asarray(tables[kind], np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise UserError(f"{workdir} has a damaged {kind} table at step {step}: choose another --step")
    if kind == "token":
        values = values[: tokenizer.vocab_size]  # a checkpoint's table may be padded
        words = word_vectors.tokens_of(tokenizer)
        if len(values) != len(words):
            raise UserError(
                f"{workdir}: {len(values):,} rows at step {step}, but {len(words):,} tokens: it is damaged"
            )
    else:
        words = [str(i) for i in range(len(values))]
    return Table(
        f"{workdir} step {step}" + (", positions" if kind == "position" else ""), Vectors(words, values), step
    )


def finder(table: Table) -> Callable[[str], int | None]:
    """Word -> row or None, for tests of whole words."""
    return table.vectors.row_of_whole
