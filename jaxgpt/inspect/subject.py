"""The subject of a report: a run, its text, its logs, and the probe text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt import config
from jaxgpt.common.say import count
from jaxgpt.config import UserError
from jaxgpt.data.baselines import MOST_IDS
from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.model.gpt import GPT
from jaxgpt.model.lora import merge_lora
from jaxgpt.model.parameters import count_params, init_params
from jaxgpt.runs import metrics_log, records
from jaxgpt.runs.load import Run, load
from jaxgpt.training import evaluation

OPERATIONS = 1.5e11  # budget of one part of a report: seconds on two cores
MOST_TOKENS = 128  # of a probe: the attention tables grow with its square


@dataclass(frozen=True)
class Subject:
    """A run with its logs and its text. `missing` says in sentences what is unavailable and why."""

    run: Run
    facts: dict[str, Any]  # run.json
    metrics: list[dict[str, Any]]  # metrics.jsonl up to the step
    dataset: Dataset | None
    missing: tuple[str, ...]

    @property
    def cfg(self) -> config.ModelConfig:
        return self.run.config.model

    def plain(self) -> tuple[GPT, dict]:
        """The model and its parameters in float32, with LoRA merged."""
        return plain(self.cfg, self.run.params)

    def untrained(self, number: int = 0) -> tuple[GPT, dict]:
        """The same model with fresh parameters. Number 0 has the initial parameters of this run's config."""
        key = jax.random.fold_in(jax.random.key(self.run.config.train.seed), 2**32 - 1)
        key = jax.random.fold_in(key, number) if number else key
        return plain(self.cfg, init_params(GPT(self.cfg), key))

    def train_ids(self) -> np.ndarray:
        """The training text's ids, as many as the baselines are fitted on."""
        return self.dataset.first_train_ids(MOST_IDS)


def plain(cfg: config.ModelConfig, params: dict) -> tuple[GPT, dict]:
    """The model in float32 with explicit attention, and its parameters with LoRA merged."""
    cfg, params = merge_lora(dataclasses.replace(cfg, dtype="float32"), params)
    return GPT(cfg, attention="explicit"), params


def check_sees_two_tokens(context_length: int) -> None:
    """Raises UserError for a model of context_length=1: its forward pass over a text has no token and its next one."""
    if context_length < 2:
        raise UserError(
            f"model.context_length={context_length}: this shows how the tokens of a text act on each other, give a model "
            "with context_length of 2 or more"
        )


def open_subject(workdir: str | Path, step: int | str | None = None) -> Subject:
    """Load a run, and its text if available. Raises UserError if the run or step does not exist."""
    run = load(workdir, step)
    missing = []
    try:
        dataset = evaluation.own_dataset(run.workdir, run.config.data, run.tokenizer)
    except UserError as error:
        dataset = None
        missing.append(f"No baselines, validation text or token counts: {str(error).split(': give ')[0]}.")
    return Subject(
        run=run,
        facts=records.read_run_json(run.workdir),
        metrics=metrics_log.read(run.workdir, run.step),
        dataset=dataset,
        missing=tuple(missing),
    )


@dataclass(frozen=True)
class Probe:
    """The text that the report shows token by token."""

    text: str
    source: str
    ids_T: np.ndarray
    cut: tuple[str, ...] = ()


def probe_of(subject: Subject, text: str | None) -> Probe:
    """The given text, or by default the start of a line of the validation text.

    The probe is cut to the model's context and to `MOST_TOKENS`. Raises UserError for a text with fewer than 2 tokens or
    with words that the tokenizer lacks.
    """
    most = min(subject.cfg.context_length, MOST_TOKENS)
    if text is None:
        return _own_probe(subject, min(most, 64))
    tokenizer, cut = subject.run.tokenizer, ()
    ids = tokenizer.with_start(encode_known(tokenizer, text))
    if len(ids) < 2:
        raise UserError(
            f"the text {text[:40]!r} has {count(len(ids), 'token')}: give at least 2, so that there is a next token"
        )
    if len(ids) > most:
        why = "the model's context holds" if most < MOST_TOKENS else "a report shows"
        cut = (f"The text has {len(ids):,} tokens. Only the first {most} are shown: {why} no more.",)
        ids = ids[:most]
        text = tokenizer.decode(ids)
    return Probe(text, "given", ids, cut)


def encode_written(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a generated text: a literal "<unk>" becomes the unknown token, if the tokenizer has one."""
    unk_id = getattr(tokenizer, "unk_id", None)
    if unk_id is None:
        return tokenizer.encode(text)
    pieces = [tokenizer.encode(piece) for piece in text.split(tokenizer.token(unk_id))]
    parts = [part for piece in pieces for part in (piece, [unk_id])][:-1]
    return np.concatenate(parts).astype(np.int32)


def encode_known(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text. Raises UserError that names some of the words that the tokenizer lacks."""
    ids, unk_id = tokenizer.encode(text), getattr(tokenizer, "unk_id", None)
    if unk_id is not None and (ids == unk_id).any():
        lacking = [word for word in text.split() if (tokenizer.encode(word) == unk_id).any()][:5]
        raise UserError(
            f"the text has {', '.join(map(repr, lacking)) or 'white space'}, which the tokenizer lacks: "
            f"use others of its {tokenizer.vocab_size - 1:,} words and marks"
        )
    return ids


def probe_of_ids(subject: Subject, ids: list[int]) -> Probe:
    """A probe of given token ids. Raises UserError for invalid ids, or too few or too many."""
    most = min(subject.cfg.context_length, MOST_TOKENS)
    if not 2 <= len(ids) <= most:
        raise UserError(f"{count(len(ids), 'id')}: give 2 to {most}")
    ids_T = checked_ids(subject, ids)
    return Probe(subject.run.tokenizer.decode(ids_T), "given", ids_T)


def checked_ids(subject: Subject, ids: list[int]) -> np.ndarray:
    """Ids [N] of a request. Raises UserError for what is no id."""
    V = subject.cfg.vocab_size
    if not all(type(i) is int and 0 <= i < V for i in ids):
        raise UserError(f"invalid token ids: give integers from 0 to {V - 1}")
    return np.array(ids, np.int32)


def _own_probe(subject: Subject, length: int) -> Probe:
    if subject.dataset is None:
        raise UserError(f"{subject.run.workdir} has no validation text: give a text with --text")
    ids, tokenizer = subject.dataset.valid.ids, subject.run.tokenizer
    length = min(length, len(ids))
    # Start at the beginning of a line, if there is one nearby.
    starts = (
        i + 1 for i in range(min(2_000, len(ids) - length)) if b"\n" in tokenizer.decode_bytes([ids[i]])
    )
    start = next(starts, 0)
    part = np.asarray(ids[start : start + length], np.int32)
    source = f"validation split of {subject.dataset.corpus_name}, tokens {start:,} to {start + length - 1:,}"
    return Probe(tokenizer.decode(part), source, part)


def affordable_tokens(params: dict, passes: int = 1) -> int:
    """How many tokens one part of a report may pass through the model `passes` times; 100 times as many on a GPU."""
    operations = OPERATIONS * (1 if jax.default_backend() == "cpu" else 100)
    return int(operations / (2 * count_params(params) * passes))


def windows(ids: np.ndarray, count: int, length: int) -> np.ndarray:
    """At most `count` windows [B, length] int32, evenly spaced over a text of at least `length` ids."""
    room = len(ids) - length
    count = min(count, room // length + 1)
    starts = np.linspace(0, room, count).astype(np.int64) if count > 1 else np.zeros(1, np.int64)
    return np.asarray(ids[starts[:, None] + np.arange(length)], np.int32)
