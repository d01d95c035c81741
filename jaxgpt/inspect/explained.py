"""The model that `jaxgpt.explain` shows: a trained run's, or an untrained one from a config."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np

from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.common.say import count
from jaxgpt.config import UserError
from jaxgpt.data import prompts, tokenizers
from jaxgpt.inspect.subject import check_sees_two_tokens, encode_known
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs.load import load
from jaxgpt.training import evaluation, starting

EXAMPLE = "I love AI"  # the default text


@dataclass(frozen=True)
class Explained:
    """A model with its tokenizer and a title, and the text to explain."""

    title: str
    cfg: config.ModelConfig
    params: dict
    tokenizer: tokenizers.Tokenizer
    text: str


def open_run(workdir: str, step: int | str | None, text: str | None = None) -> Explained:
    """The model of a trained run. The default text is EXAMPLE, or the run's own if the tokenizer lacks EXAMPLE."""
    run = load(workdir, step=step)
    if text is None and prompts.is_known(run.tokenizer, EXAMPLE, tokens=2):
        text = EXAMPLE
    elif text is None:
        ids = evaluation.own_dataset(run.workdir, run.config.data, run.tokenizer).valid.ids
        text = prompts.first_words(run.tokenizer, ids, run.config.model.context_length)
    return Explained(f"{workdir}, step {run.step}", run.config.model, run.params, run.tokenizer, text)


def untrained(file: str, overrides: dict[str, str], text: str | None = None) -> Explained:
    """A config's model with initial parameters. Its vocabulary is that of the text."""
    text = EXAMPLE if text is None else text
    cfg = cli.read_config(file, overrides)
    if cfg.data.tokenizer not in ("char", "word"):
        raise UserError(
            f"data.tokenizer={cfg.data.tokenizer!r} can't be trained on one sentence: give "
            "--config.data.tokenizer=word (or char), or a trained run with --workdir"
        )
    if cfg.init_from or cfg.init_vectors:
        raise UserError(
            "--config explains an untrained model, but this config has init_from or init_vectors: clear them "
            "(--config.init_from=), or give a trained run with --workdir"
        )
    tokenizer = tokenizers.train(cfg.data.tokenizer, lambda: iter([text]), None)
    # The sentence defines the vocabulary, so ignore the config's tokenizer file and its row numbers.
    data = dataclasses.replace(cfg.data, tokenizer_path="", add_tokens=False, vocab_size=None)
    optim = dataclasses.replace(cfg.optim, train_rows_from=0)
    model = dataclasses.replace(
        cfg.model, document_mask=False, document_end=None
    )  # the sentence is one document
    cfg = starting.resolve(dataclasses.replace(cfg, model=model, data=data, optim=optim), tokenizer)
    params = init_params(GPT(cfg.model), jax.random.key(cfg.train.seed))
    return Explained(f"{file}, untrained (random weights)", cfg.model, params, tokenizer, text)


def ids_of(subject: Explained, text: str) -> np.ndarray:
    """The text's ids. Raises UserError for fewer than 2 or too many tokens, or words that the tokenizer lacks."""
    check_sees_two_tokens(subject.cfg.context_length)
    ids = subject.tokenizer.with_start(encode_known(subject.tokenizer, text))
    most = subject.cfg.context_length
    if len(ids) < 2:
        raise UserError(
            f"--text {text!r} has {count(len(ids), 'token')}: give at least 2, so that there is a next token"
        )
    if len(ids) > most:
        raise UserError(
            f"--text has {count(len(ids), 'token')}, model.context_length={most}: shorten it"
            + (f", to {subject.tokenizer.decode(ids[:most])!r}" if most < 16 else "")
        )
    return ids
