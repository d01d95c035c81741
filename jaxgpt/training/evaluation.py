"""How well a model predicts a text: loss, perplexity, bits a character and a byte, loss of each token.

python -m jaxgpt.evaluate --workdir runs/char [--text FILE | --corpus NAME] [--per_token] [--json]
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import batches, tokenizers
from jaxgpt.data.dataset import Dataset, prepare_dataset, text_hashes
from jaxgpt.data.id_files import Split
from jaxgpt.data.shards import Ids
from jaxgpt.model.gpt import GPT
from jaxgpt.runs import records
from jaxgpt.training.steps import make_eval_step


@dataclass(frozen=True)
class Evaluation:
    """The mean of -log p(next token) over a number of tokens."""

    loss: float  # nats per token
    standard_error: float  # of the loss, from the spread between windows; nan for one window
    tokens: int  # predicted tokens: all but the first

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens with the same loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def total_bits(self) -> float:
        return self.loss * self.tokens / math.log(2)


@functools.partial(jax.jit, static_argnames=("model", "loss_chunk"))
def window_losses(model: GPT, params: dict, tokens: jax.Array, loss_chunk: int = 0) -> jax.Array:
    """-log p(next token) at every position of windows [B, T + 1]: [B, T] nats."""
    return make_eval_step(model, loss_chunk)(params, tokens)


def evaluate(
    model: GPT, params: dict, batches: Iterable[tuple[np.ndarray, np.ndarray]], loss_chunk: int = 0
) -> Evaluation:
    """Mean loss over (windows [B, T + 1], weights [B, T]) as `batches.eval_batches` gives them.

    `loss_chunk`: see TrainConfig.
    """
    return summarize(*_window_sums(lambda tokens: window_losses(model, params, tokens, loss_chunk), batches))


def evaluate_lanes(
    losses_of: Callable[[np.ndarray], jax.Array], batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> list[Evaluation]:
    """`evaluate` for N models at once: `losses_of(tokens)` is [N, B, T]."""
    sums_NW, counts_W = _window_sums(losses_of, batches)
    return [summarize(sums_W, counts_W) for sums_W in sums_NW]


def _window_sums(losses_of: Callable, batches: Iterable[tuple[np.ndarray, np.ndarray]]):
    """The summed loss of each window [..., W], and its number of tokens [W]."""
    sums, counts = [], []
    waiting = None  # one batch is computed while the one before is read

    def read(losses: jax.Array, weights: np.ndarray) -> None:
        sums.append((np.asarray(losses, np.float64) * weights).sum(axis=-1))
        counts.append(weights.sum(axis=1, dtype=np.float64))

    for tokens, weights in batches:
        losses = losses_of(tokens)
        if waiting is not None:
            read(*waiting)
        waiting = (losses, weights)
    if waiting is None:
        raise UserError("nothing to evaluate: the text has fewer than 2 tokens")
    read(*waiting)
    return np.concatenate(sums, axis=-1), np.concatenate(counts)


def summarize(sums: np.ndarray, counts: np.ndarray) -> Evaluation:
    """The mean over tokens and its standard error, from the summed loss and token count of each window.

    Windows are treated as independent samples; neighbouring tokens are not independent. The error is that of a ratio of
    two means (Cochran 1977, section 6.3).
    """
    sums, counts = sums[counts > 0], counts[counts > 0]
    if not len(counts):
        raise UserError("nothing to evaluate: no token of these counts, give more (train.eval_tokens)")
    loss = sums.sum() / counts.sum()
    n = len(sums)
    spread = math.sqrt(((sums - loss * counts) ** 2).sum() / (n - 1) * n) if n > 1 else math.nan
    return Evaluation(float(loss), spread / float(counts.sum()), int(counts.sum()))


def per_token(model: GPT, params: dict, ids: Ids) -> np.ndarray:
    """-log p of every id but the first that counts, in nats: [N - 1]. Each window of context_length starts without context."""
    windows = batches.eval_batches(ids, context_length=model.cfg.context_length, batch_size=8)
    return np.concatenate(
        [np.asarray(window_losses(model, params, t))[weights > 0] for t, weights in windows]
    )


def own_dataset(workdir: Path, cfg: DataConfig, tokenizer: tokenizers.Tokenizer) -> Dataset:
    """The dataset that a run was trained on. Raises UserError where it is not available or has changed."""
    if source := records.imported_from(workdir):
        raise UserError(
            f"{workdir} was imported from {source} and has no text of its own: give one with --text FILE"
        )
    # The config is that of the folder, which a stranger may have made: a file of yours is shown only where it is known to
    # be the run's text. The commands name it.
    cfg = dataclasses.replace(cfg, valid_paths="")  # not needed here
    facts = records.read_run_json(workdir)
    known = facts.get("text_sha256")
    if cfg.mixture or cfg.valid_path:
        where = f"data.mixture={cfg.mixture!r}" if cfg.mixture else f"data.valid_path={cfg.valid_path!r}"
    else:
        where = f"data.path={cfg.path!r}"
    files = bool(cfg.path or cfg.mixture or cfg.valid_path)
    if files and not isinstance(known, str):
        raise UserError(
            f"{workdir / 'run.json'} has no hash of the run's text, so {where} is not opened: give it with "
            "--text FILE"
        )
    try:
        if files and any(facts.get(name) != now for name, now in text_hashes(cfg).items()):
            raise UserError(f"{where}: its text has changed since training")
        if cfg.tokenizer_path:  # also a path that a stranger may have written: the folder has its tokenizer
            cfg = dataclasses.replace(cfg, tokenizer_path=str(workdir / "tokenizer.json"), add_tokens=False)
        dataset = prepare_dataset(cfg)
    except UserError as error:
        raise UserError(
            f"the run's own text is not available ({error}); or give a text with --text FILE"
        ) from error
    if dataset.fingerprint != tokenizers.fingerprint(tokenizer):
        raise UserError("the run's text has changed since training: give another with --text FILE")
    records.check_same_text(workdir, text_sha256=dataset.text_sha256, valid_text_sha256=dataset.valid_sha256)
    return dataset


def corpus_split(workdir: Path, cfg: DataConfig, name: str) -> tuple[Split, str]:
    """The validation split of another corpus, with the run's tokenizer, and its name."""
    path = str(workdir / "tokenizer.json")
    dataset = prepare_dataset(
        DataConfig(
            corpus=name, tokenizer=cfg.tokenizer, tokenizer_path=path, valid_fraction=cfg.valid_fraction
        )
    )
    return dataset.valid, f"validation split of {dataset.corpus_name}"


@dataclass(frozen=True)
class Lengths:
    """The bytes and characters of the text of predicted tokens: all but the first, or the first `most` of them.

    They are exact where the tokenizer's lengths add up to the text, and where all tokens of a text are predicted; then only
    the length of the first token is its own. Else the lengths of the tokens are scaled to the length of the complete text,
    or, where only its ids are known, taken as they are.
    """

    num_bytes: int
    num_chars: int
    exact: bool

    @classmethod
    def of(cls, split: Split, tokenizer: tokenizers.Tokenizer, most: int = 0) -> Lengths:
        num_ids = len(split.ids)
        end = min(num_ids, most + 1) if most else num_ids
        exact = tokenizer.has_exact_lengths
        table = tokenizer.token_lengths()
        found = _sums(split.targets, 1, end, table)
        text = np.array([split.num_bytes, split.num_chars], np.float64)
        if not exact and text.all():
            exact = end == num_ids and split.counts is None
            if exact:
                found = text - _sums(split.ids, 0, 1, table)
            else:
                found *= text / np.maximum(_sums(split.ids, 0, num_ids, table), 1)
        num_bytes, num_chars = np.maximum(np.rint(found), 1).astype(int).tolist()
        return cls(num_bytes, num_chars, exact)


def _sums(
    ids: Ids, start: int, stop: int, table: tuple[np.ndarray, np.ndarray], block: int = 1 << 22
) -> np.ndarray:
    """The bytes and characters of the tokens at [start, stop): [2] float64. `table`: see Tokenizer.token_lengths."""
    found = np.zeros(2)
    for at in range(start, stop, block):
        part = ids[at : min(at + block, stop)]
        part = part[part >= 0]  # those that count
        found += [lengths_V[part].sum(dtype=np.int64) for lengths_V in table]
    return found


def figures(result: Evaluation, split: Split, tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """An evaluation of a split by name, with bits per character and per byte of the predicted tokens."""
    lengths, bits = Lengths.of(split, tokenizer), result.total_bits
    found = {
        **asdict(result),
        # JSON has no nan, the error of a single window.
        "standard_error": None if math.isnan(result.standard_error) else result.standard_error,
        "perplexity": result.perplexity,
        "bits_per_char": bits / lengths.num_chars,
        "bits_per_byte": bits / lengths.num_bytes,
    }
    if not lengths.exact:
        found["lengths_estimated"] = True
    unk_id = getattr(tokenizer, "unk_id", None)
    if unk_id is not None:
        predicted = split.targets[1:]
        found["unk_share"] = float((predicted[predicted >= 0] == unk_id).mean())
    return found
