"""Measure how well a model predicts a text: loss, perplexity, bits per character and byte.

python -m jaxgpt.evaluate --workdir runs/char [--text FILE | --corpus NAME] [--per_token] [--json]
"""

from __future__ import annotations

import json
import math

from jaxgpt.common import cli
from jaxgpt.common.say import count
from jaxgpt.config import UserError


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser("evaluate", description="How well a model predicts a text.")
    cli.add_run_flags(parser)
    parser.add_argument("--text", default="", help="a UTF-8 text file; default: the run's validation split")
    parser.add_argument(
        "--corpus", default="", help="the name of another corpus: evaluate its validation split"
    )
    parser.add_argument("--per_token", action="store_true", help="print each token, its probability and loss")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--batch_size", type=int, default=64, help="windows per forward pass")
    args = parser.parse_args(argv)
    cli.check_at_least(1, args, "batch_size")
    if args.text and args.corpus:
        raise UserError("--text and --corpus are both given: choose one")
    cli.set_up_process()
    from jaxgpt.data import batches, corpora
    from jaxgpt.data.id_files import Split
    from jaxgpt.runs.load import load
    from jaxgpt.training import evaluation

    run = load(args.workdir, step=args.step)
    if args.text:
        text, source = "".join(corpora.open_files(args.text, "--text").read()), args.text
        split = Split(run.tokenizer.encode_prompt(text), len(text), len(text.encode()))
    elif args.corpus:
        split, source = evaluation.corpus_split(run.workdir, run.config.data, args.corpus)
    else:
        dataset = evaluation.own_dataset(run.workdir, run.config.data, run.tokenizer)
        split, source = dataset.valid, f"validation split of {dataset.corpus_name}"
    ids = split.targets
    if len(ids) < 2:
        raise UserError(
            f"{source} has {count(len(ids), 'token')}: 2 or more are needed, because the first is not predicted"
        )

    context_length = run.config.model.context_length
    windows = batches.eval_batches(ids, context_length=context_length, batch_size=args.batch_size)
    result = evaluation.evaluate(run.model, run.params, windows, run.config.train.loss_chunk)
    figures = evaluation.figures(result, split, run.tokenizer)
    figures = {"workdir": str(args.workdir), "step": run.step, "text": source, **figures}
    losses = evaluation.per_token(run.model, run.params, ids) if args.per_token else None
    predicted = ids[1:]
    predicted = predicted[predicted >= 0]  # those that count
    if args.json:
        if losses is not None:
            figures["per_token"] = [
                {"id": int(i), "token": run.tokenizer.token(int(i)), "loss": float(loss)}
                for i, loss in zip(predicted, losses, strict=True)
            ]
        print(json.dumps(figures, ensure_ascii=False))
        return
    if losses is not None:
        print(f"{'token':<20} {'id':>6} {'p':>8} {'loss':>7}")
        for i, loss in zip(predicted, losses, strict=True):
            print(f"{run.tokenizer.token(int(i))!r:<20} {int(i):>6} {math.exp(-loss):>8.4f} {loss:>7.3f}")
        print()
    if not run.config.model.causal:
        print(
            "no causal mask: the model sees each token that it predicts, so the loss says nothing about new text"
        )
    print(f"text           {source}")
    print(f"step           {run.step}")
    print(f"tokens         {figures['tokens']:,}")
    error = figures["standard_error"]
    print(f"loss           {figures['loss']:.4f}{f' +- {error:.4f}' if error else ''} nats per token")
    print(f"perplexity     {figures['perplexity']:.3f}")
    print(f"bits per char  {figures['bits_per_char']:.4f}")
    print(f"bits per byte  {figures['bits_per_byte']:.4f}")
    if figures.get("lengths_estimated"):
        print("               the lengths of the text are estimated: only its ids are known")
    if figures.get("unk_share"):
        print(
            f"unknown words  {figures['unk_share']:.2%}: they count as <unk>, so the bits are lower than for the real text"
        )


if __name__ == "__main__":
    cli.run(main)
