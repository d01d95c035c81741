"""Initial parameters from a source: another run, a folder of another tool, or word vectors.

init_from copies the parameters of a run's latest checkpoint, or of the folder of a published model (see
runs/families/), by path and shape.
Where the tokenizers differ, rows of the token table (and columns of an untied head) are matched by token; new tokens
get rows drawn with the mean and covariance of the matched rows (Hewitt 2021). A shorter context_length takes the first
rows of the position table. New LoRA matrices start as in any new model. Everything else that does not fit is refused.
init_vectors makes the rows of the token table from word vectors.

The result is a function of the config and the source. A resumed run does not read the source again.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from jaxgpt.common import processes
from jaxgpt.config import Config, ModelConfig, UserError
from jaxgpt.data import tokenizers
from jaxgpt.model.initial import initial_std
from jaxgpt.model.lora import merge_lora
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs import published
from jaxgpt.runs.checksums import jit_checksums
from jaxgpt.runs.load import Run, load
from jaxgpt.training.starting import Start
from jaxgpt.training.trainable import TOKEN_AXES
from jaxgpt.vectors import word_vectors


def open_source(folder: str) -> Run:
    """The run, or the folder of a published model, that init_from names. Raises UserError."""
    if not processes.is_alone():
        raise UserError(
            f"init_from={folder!r}: several processes can't start from it: start with one, and resume with more"
        )
    try:
        return published.load(folder) if published.is_published(folder) else load(folder)
    except UserError as error:
        raise UserError(
            f"init_from={folder!r}: {error} (give the folder of a run, or one with the config.json and weights of a published model)"
        ) from error


def _checksum(arrays: Any) -> int:
    return int(np.bitwise_xor.reduce(np.asarray(jit_checksums(arrays))))


def _record(
    source: str, step: int | None, checksum: int, arrays: dict[str, np.ndarray], kept: int, new: int
) -> dict[str, Any]:
    """The record of a source in run.json."""
    rows = {"token_rows_kept": kept, "token_rows_new": new}
    return {"source": str(source), "step": step, "checksum": checksum, "arrays": len(arrays)} | rows


# --- from a trained model -------------------------------------------------------------------------------


def _function_differences(there: ModelConfig, here: ModelConfig) -> list[str]:
    """The fields that make the two compute different functions of equal parameters."""
    names = [f.name for f in dataclasses.fields(ModelConfig) if f.metadata["meaning"].same_in_source]
    if here.position != "rotary":
        names = [name for name in names if not name.startswith("rotary_")]
    return [
        f"model.{name} is {getattr(there, name)!r} in the source and {getattr(here, name)!r} here"
        for name in names
        if getattr(there, name) != getattr(here, name)
    ]


def _like_names(paths: list[str], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Paths with shapes, one for all equal blocks: `block_*/mlp/up/kernel [8, 32]`."""
    return list(
        dict.fromkeys(f"{re.sub(r'^block_[0-9]+', 'block_*', path)} {list(shapes[path])}" for path in paths)
    )


def from_source(cfg: Config, tokenizer: tokenizers.Tokenizer) -> Start:
    """The parameters that init_from names, fitted to this model. Raises UserError that lists what does not fit."""
    run = open_source(cfg.init_from)
    there, here = run.config.model, cfg.model
    shapes = {path: leaf.shape for path, leaf in named_leaves(param_shapes(here))}
    same_lora = all(
        getattr(there, name) == getattr(here, name) for name in ("lora_rank", "lora_alpha", "lora_targets")
    )
    params = run.params
    checksum = _checksum(params)
    if not same_lora:  # the source's LoRA is merged, this run's is new
        there, params = merge_lora(there, params)
    source = {path: np.asarray(leaf) for path, leaf in named_leaves(params)}
    new_lora = {p for p in shapes if p.endswith(("/lora_a", "/lora_b"))} if not same_lora else set()
    tokens = _TokenRows(run.tokenizer, tokenizer, cfg.train.seed)

    problems = _function_differences(there, here)
    taken: dict[str, np.ndarray] = {}
    for path in shapes.keys() - new_lora:
        if path not in source:
            problems += [f"the source has no {name}" for name in _like_names([path], shapes)]
            continue
        x, owner = source[path], path.rpartition("/")[0]
        if owner in TOKEN_AXES:
            axis = TOKEN_AXES[owner][1]
            if x.shape[1 - axis] == shapes[path][1 - axis]:
                taken[path] = tokens.rows(x.swapaxes(0, axis), shapes[path][axis]).swapaxes(0, axis)
                continue
        elif owner == "position_embedding" and x.shape[1] == shapes[path][1]:
            if len(x) < shapes[path][0]:
                problems.append(
                    f"model.context_length={here.context_length} is more than the source's {len(x)} learned positions"
                )
            taken[path] = x[: shapes[path][0]]
            continue
        if x.shape != shapes[path]:
            problems += [f"{name} in the source" for name in _like_names([path], {path: x.shape})]
            problems[-1] += f" and {list(shapes[path])} here"
        taken[path] = x
    extra = [path for path in source if path not in shapes]
    problems += [
        f"this model has no {name}" for name in _like_names(extra, {p: source[p].shape for p in extra})
    ]
    if problems := sorted(dict.fromkeys(problems)):
        raise UserError(f"init_from={cfg.init_from!r} does not fit: {'; '.join(problems)}")
    record = _record(cfg.init_from, run.step, checksum, taken, tokens.kept, tokens.new)
    text = f"init_from {cfg.init_from} (step {run.step}): {len(taken)} arrays copied"
    text += f"; token rows: {tokens.kept} of {tokenizer.vocab_size} {tokens.how}, {tokens.new} new"
    if new_lora:
        text += f"; {len(new_lora)} new LoRA matrices"
    return Start(taken, record, text)


class _TokenRows:
    """The row of a source's table that each token of a new tokenizer takes."""

    def __init__(self, there: tokenizers.Tokenizer, here: tokenizers.Tokenizer, seed: int) -> None:
        self._known, self._seed = there.vocab_size, seed
        by_id = tokenizers.fingerprint(there) == tokenizers.fingerprint(here)
        # Plain ids have no text: with an equal number of ids they are taken to be the same.
        by_id |= "ids" in (there.kind, here.kind) and there.vocab_size == here.vocab_size
        self.how = "by id" if by_id else "by token"
        if by_id:
            self._row_V = np.arange(here.vocab_size)
        else:
            row_of = {there.decode_bytes([i]): i for i in range(there.vocab_size)}
            texts = (here.decode_bytes([i]) for i in range(here.vocab_size))
            self._row_V = np.array([row_of.get(text, -1) for text in texts])
        self.kept = int((self._row_V >= 0).sum())
        self.new = here.vocab_size - self.kept

    def rows(self, table: np.ndarray, count: int) -> np.ndarray:
        """A table [count, E] for the new tokens from the source's [rows, E]; padding rows are 0."""
        found = np.zeros((count, table.shape[1]), table.dtype)
        matched = np.flatnonzero(self._row_V >= 0)
        found[matched] = table[self._row_V[matched]]
        # Where the tokenizers share fewer than two tokens, new rows are drawn like all known rows.
        known = table[self._row_V[matched]] if self.kept > 1 else table[: self._known]
        if self.new:
            found[np.flatnonzero(self._row_V < 0)] = word_vectors.drawn_like(known, self.new, self._seed)
        return found


# --- from word vectors ----------------------------------------------------------------------------------


def from_vectors(cfg: Config, tokenizer: tokenizers.Tokenizer) -> Start:
    """The token table that init_vectors gives."""
    path, here = "token_embedding/embedding", cfg.model
    given = word_vectors.load(cfg.init_vectors)
    shape = (here.table_rows, here.table_width)
    rows, matched_V = word_vectors.rows_for(
        given, word_vectors.tokens_of(tokenizer), here.table_width, cfg.train.seed, cfg.init_bridge,
        # With GPT-2's 0.02 the vectors would be lost in the positions and the noise of the first steps.
        std="unit" if here.init == "gpt2" else initial_std(here, path, shape),
    )  # fmt: skip
    table = np.zeros(shape, np.float32)
    table[: len(rows)] = rows
    matched, new = int(matched_V.sum()), int((~matched_V).sum())
    record = _record(cfg.init_vectors, None, _checksum([table]), {path: table}, matched, new)
    width = given.table.shape[1]
    bridged = f" ({width} numbers each, by principal axes)" if width != here.table_width else ""
    text = f"init_vectors {cfg.init_vectors} ({given.description}): {matched:,} of {tokenizer.vocab_size:,} tokens have a vector{bridged}, {new:,} new"
    return Start({path: table}, record, text)
