"""Train a sparse autoencoder on the activations of a run, and write a page about its features.

    python -m jaxgpt.sae --workdir runs/char --at block_2/after [--features 512] [--active 16] [--out FOLDER]

FOLDER (default: RUN/sae) gets sae.safetensors, sae.json and sae.html: explained variance, the loss with the reconstruction in the place
of the activation, dead features, and the texts at which each feature is strongest.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from jaxgpt.common import cli
from jaxgpt.config import UserError

BEFORE, AFTER = 24, 8  # tokens shown around the one at which a feature fires
MOST_ON_PAGE = 200  # features
HELD_OUT = 0.1  # the last part of the activations measures


def page_of(figures: dict[str, Any], features: list[dict[str, Any]]) -> str:
    """The page: its numbers, and the contexts of each feature. Texts of tokens are escaped."""
    from jaxgpt.inspect import page, static_tables

    title = f"Features of {static_tables.visible_text(figures['at'])}, {static_tables.visible_text(figures['workdir'])}"
    rows = [[words, figures[name]] for name, words in WORDS.items()]
    summary = static_tables.grid("the autoencoder", ["measure", "value"], rows)
    lines = []
    for one in features:
        texts = "".join(
            f"<li><code>{escape(static_tables.visible(before))}<mark>{escape(static_tables.visible(token))}</mark>"
            f"{escape(static_tables.visible(after)) if after else ''}</code> {value:.2f}</li>"
            for before, token, after, value in one["contexts"]
        )
        lines.append(
            f"<details><summary>Feature {one['feature']}: fires at {one['rate']:.2%} of the tokens</summary><ol>{texts}</ol></details>"
        )
    main = (
        f'<section id="quality" aria-labelledby="quality-title"><h2 id="quality-title">What it keeps</h2>{summary}</section>'
        '<section id="features" aria-labelledby="features-title"><h2 id="features-title">Features</h2>'
        '<p class="lead">The texts at which each feature is strongest, in text that it was not trained on; the marked token is where it fires.</p>'
        f"{''.join(lines)}</section>"
    )
    contents = '<li><a href="#quality">What it keeps</a></li><li><a href="#features">Features</a></li>'
    footer = escape(f"step {figures['step']}, {figures['tokens']:,} tokens")
    return page.document(title, contents, main, footer, figures, "")


WORDS = {
    "explained": "share of the variance that is explained",
    "loss": "loss, nats per token",
    "reconstructed": "loss with the reconstruction in place",
    "mean": "loss with the mean in place",
    "recovered": "share of the loss recovered",
    "features": "features",
    "active": "features active at a token, at most",
    "dead": "features that never fire",
}


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser("sae", description=__doc__.splitlines()[0])
    cli.add_run_flags(parser)
    parser.add_argument("--at", required=True, help="block_I/after, block_I/mlp_change or block_I/mlp/hidden")
    parser.add_argument("--features", type=int, default=512, help="the size of the dictionary")
    parser.add_argument("--active", type=int, default=16, help="features that are active at a token")
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of the run's text, at most")
    parser.add_argument("--steps", type=int, default=2_000, help="training steps of 1,024 activations")
    parser.add_argument("--seed", type=int, default=0, help="of the first values and of the order")
    parser.add_argument("--out", type=cli.path, help="the folder to write to; default: sae in the run's")
    args = parser.parse_args(argv)
    for name in ("features", "active", "tokens", "steps"):
        cli.check_at_least(1, args, name)
    cli.set_up_process()
    import numpy as np

    from jaxgpt.common.files import write_atomically, write_json
    from jaxgpt.inspect import activation_files, plain, sparse, subject
    from jaxgpt.runs.load import load
    from jaxgpt.runs.tensor_files import write_tensors
    from jaxgpt.training.evaluation import own_dataset

    run = load(args.workdir, args.step)
    if args.at.partition("/")[2] not in sparse.SPLICED:
        raise UserError(f"--at {args.at}: give block_I/{', block_I/'.join(sparse.SPLICED)}")
    dataset = own_dataset(run.workdir, run.config.data, run.tokenizer)
    T = run.config.model.context_length
    ids = np.asarray(dataset.first_train_ids(args.tokens))[: args.tokens // T * T]
    windows = len(ids) // T
    if windows < 2:
        raise UserError(f"{len(ids)} tokens are fewer than two windows of {T}: give more --tokens")
    ids = ids[: windows * T]
    model, params = subject.plain(run.config.model, run.params)
    parts = [(tokens, x) for tokens, _, (x,) in activation_files.forwarded(model, params, ids, [args.at])]
    ids, x_ND = np.concatenate([tokens for tokens, _ in parts]), np.concatenate([x for _, x in parts])
    cut = (windows - max(1, round(HELD_OUT * windows))) * T
    sae = sparse.fit(x_ND[:cut], args.features, args.active, args.steps, seed=args.seed)
    kept = sparse.quality(sae, x_ND[cut:], args.active)
    some = min(len(x_ND) - cut, 64 * T)
    tokens_BT = ids[cut : cut + some].reshape(-1, T)
    losses = sparse.spliced(model, params, tokens_BT, args.at, x_ND[cut : cut + some], sae, args.active)
    figures = {
        "workdir": str(args.workdir), "step": run.step, "at": args.at, "tokens": len(ids), "features": args.features,
        "active": args.active, "dead": kept.dead, **plain.plain({"explained": kept.explained, **losses}),
    }  # fmt: skip
    held_out, features = ids[cut:], []
    for feature in np.argsort(-kept.largest[:, 0], kind="stable")[:MOST_ON_PAGE].tolist():
        contexts = []
        for at, value in zip(kept.places[feature].tolist(), kept.largest[feature].tolist(), strict=True):
            if value > 0:
                first, last = max(at // T * T, at - BEFORE), min((at // T + 1) * T, at + 1 + AFTER)
                cuts = (held_out[first:at], held_out[at : at + 1], held_out[at + 1 : last])
                contexts.append([*(run.tokenizer.decode(part) for part in cuts), value])
        if contexts:
            features.append({"feature": feature, "rate": float(kept.rates[feature]), "contexts": contexts})
    out = Path(args.out or Path(args.workdir) / "sae")
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / "sae.safetensors", {name: np.asarray(x) for name, x in sae._asdict().items()})
    write_json(out / "sae.json", figures | {"shown": plain.plain(features)})
    write_atomically(out / "sae.html", page_of(figures, features).encode("utf-8", "replace"))
    for name, words in WORDS.items():
        print(f"{words:<40} {figures[name]}")
    print(out / "sae.html")


if __name__ == "__main__":
    cli.run(main)
