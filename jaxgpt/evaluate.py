"""How well a model predicts a text: loss, perplexity, bits a character and a byte, loss of each token.

python -m jaxgpt.evaluate --workdir runs/char [--text FILE | --corpus NAME] [--per_token] [--json]
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from jaxgpt import batches, cli, corpora, data, records, tokenizers
from jaxgpt.config import Data, UserError
from jaxgpt.model import GPT
from jaxgpt.steps import make_eval_step


@dataclass(frozen=True)
class Evaluation:
    """The mean of -log p(next token) over some tokens, and what follows from it."""

    loss: float  # nats a token
    standard_error: float  # of the loss, from the spread between windows; nan for a single window
    tokens: int  # predicted: all but the first

    @property
    def perplexity(self) -> float:
        """exp(loss): as unsure as between so many equally likely tokens."""
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

    `loss_chunk` as config.Train has it.
    """
    return summarize(*_sums(lambda tokens: window_losses(model, params, tokens, loss_chunk), batches))


def evaluate_lanes(
    losses_of: Callable[[np.ndarray], jax.Array], batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> list[Evaluation]:
    """`evaluate` for several models at once: `losses_of` gives the losses of windows by each of them, [N, B, T]."""
    sums_NW, counts_W = _sums(losses_of, batches)
    return [summarize(sums_W, counts_W) for sums_W in sums_NW]


def _sums(losses_of: Callable, batches: Iterable[tuple[np.ndarray, np.ndarray]]):
    """Each window's summed loss [..., W] and its number of tokens [W]."""
    sums, counts = [], []
    waiting = None  # one batch computes while the one before is read

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
    """The mean over tokens and its standard error, from each window's summed loss and token count.

    Windows, not tokens, are taken as independent: neighbouring tokens are not. The error is that of a ratio
    of two means (Cochran 1977, section 6.3).
    """
    sums, counts = sums[counts > 0], counts[counts > 0]
    loss = sums.sum() / counts.sum()
    n = len(sums)
    spread = math.sqrt(((sums - loss * counts) ** 2).sum() / (n - 1) * n) if n > 1 else math.nan
    return Evaluation(float(loss), spread / float(counts.sum()), int(counts.sum()))


def per_token(model: GPT, params: dict, ids: np.ndarray) -> np.ndarray:
    """-log p of every id but the first, in nats: [N - 1]. Windows of context_length, each starting anew."""
    windows = batches.eval_batches(ids, context_length=model.cfg.context_length, batch_size=8)
    return np.concatenate(
        [np.asarray(window_losses(model, params, t))[weights > 0] for t, weights in windows]
    )


def _text_ids(path: str, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    return tokenizer.encode("".join(corpora.open_files(path, "--text").read()))


def own_dataset(workdir: Path, cfg: Data, tokenizer: tokenizers.Tokenizer) -> data.Dataset:
    """The text that a run was trained and validated on. Raises UserError where it can't be had, or has changed."""
    if source := records.imported_from(workdir):
        raise UserError(
            f"{workdir} was imported from {source} and has no text of its own: give one with --text FILE"
        )
    try:
        dataset = data.prepare(cfg)
    except UserError as error:
        raise UserError(
            f"the run's own text can't be had ({error}); or give a text with --text FILE"
        ) from error
    if dataset.fingerprint != tokenizers.fingerprint(tokenizer):
        raise UserError("the run's text has changed since training: give another with --text FILE")
    records.check_same_text(workdir, text_sha256=dataset.text_sha256)
    return dataset


def _corpus_split(workdir: Path, cfg: Data, name: str) -> tuple[np.ndarray, str]:
    """The validation split of another corpus in the run's tokens, and what to call it."""
    path = str(workdir / "tokenizer.json")
    dataset = data.prepare(
        Data(corpus=name, tokenizer=cfg.tokenizer, tokenizer_path=path, valid_fraction=cfg.valid_fraction)
    )
    return dataset.valid.ids, f"validation split of {dataset.corpus_name}"


def _report(result: Evaluation, ids: np.ndarray, tokenizer: tokenizers.Tokenizer) -> dict:
    """The figures as a dictionary; characters and bytes are those of the predicted tokens."""
    num_bytes, num_chars = tokenizer.token_lengths()
    predicted = ids[1:]
    bits = result.total_bits
    figures = {
        **asdict(result),
        # JSON has no nan: a single window has no spread to tell an error from.
        "standard_error": None if math.isnan(result.standard_error) else result.standard_error,
        "perplexity": result.perplexity,
        "bits_per_char": bits / max(1, int(num_chars[predicted].sum())),
        "bits_per_byte": bits / max(1, int(num_bytes[predicted].sum())),
    }
    unk_id = getattr(tokenizer, "unk_id", None)
    if unk_id is not None:
        figures["unk_share"] = float((predicted == unk_id).mean())
    return figures


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m jaxgpt.evaluate", description="How well a model predicts a text.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--text", default="", help="a UTF-8 text file; default: the run's validation split")
    parser.add_argument(
        "--corpus", default="", help="a named corpus, whose validation split is taken instead"
    )
    parser.add_argument("--per_token", action="store_true", help="print each token, its probability and loss")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument(
        "--step", type=cli.step, default=None, help="a saved step or 'best'; default: the newest"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="windows at once")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch_size={args.batch_size}: give 1 or more")
    if args.text and args.corpus:
        raise UserError("--text and --corpus are both given: choose one")
    cli.set_up_process()
    from jaxgpt.checkpoint import load

    run = load(args.workdir, step=args.step)
    if args.text:
        ids, source = _text_ids(args.text, run.tokenizer), args.text
    elif args.corpus:
        ids, source = _corpus_split(run.workdir, run.config.data, args.corpus)
    else:
        dataset = own_dataset(run.workdir, run.config.data, run.tokenizer)
        ids, source = dataset.valid.ids, f"validation split of {dataset.corpus_name}"
    if len(ids) < 2:
        raise UserError(f"{source} has {len(ids)} tokens: 2 or more are needed, the first is not predicted")

    context_length = run.config.model.context_length
    windows = batches.eval_batches(ids, context_length=context_length, batch_size=args.batch_size)
    result = evaluate(run.model, run.params, windows, run.config.train.loss_chunk)
    figures = _report(result, ids, run.tokenizer)
    figures = {"workdir": str(args.workdir), "step": run.step, "text": source, **figures}
    losses = per_token(run.model, run.params, ids) if args.per_token else None
    if args.json:
        if losses is not None:
            figures["per_token"] = [
                {"id": int(i), "token": run.tokenizer.token(int(i)), "loss": float(loss)}
                for i, loss in zip(ids[1:], losses, strict=True)
            ]
        print(json.dumps(figures, ensure_ascii=False))
        return
    if losses is not None:
        print(f"{'token':<20} {'id':>6} {'p':>8} {'loss':>7}")
        for i, loss in zip(ids[1:], losses, strict=True):
            print(f"{run.tokenizer.token(int(i))!r:<20} {int(i):>6} {math.exp(-loss):>8.4f} {loss:>7.3f}")
        print()
    print(f"text           {source}")
    print(f"step           {run.step}")
    print(f"tokens         {figures['tokens']:,}")
    error = figures["standard_error"]
    print(f"loss           {figures['loss']:.4f}{f' +- {error:.4f}' if error else ''} nats a token")
    print(f"perplexity     {figures['perplexity']:.3f}")
    print(f"bits a char    {figures['bits_per_char']:.4f}")
    print(f"bits a byte    {figures['bits_per_byte']:.4f}")
    if figures.get("unk_share"):
        print(
            f"unknown words  {figures['unk_share']:.2%}: they count as <unk>, so bits are lower than the text's"
        )


if __name__ == "__main__":
    cli.run(main)
