"""A trained run in TransformerLens: its residual streams against ours.

    python -m experiments.lens [--results FOLDER]

Needs transformer_lens, transformers and PyTorch in this environment; nothing is downloaded. Two small runs are trained on
Shakespeare and exported, as GPT-2 and as Llama. TransformerLens opens the folder, and what it keeps of the residual stream
(before each block, between attention and MLP, after each block) is compared with `jaxgpt.capture`, with the logits.

The exit code is 1 if a difference is 1e-4 or more. Writes results/lens.json.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import jaxgpt
from experiments import claim
from experiments.families import ROTARY, SMALL, small
from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.config import UserError
from jaxgpt.data import corpora
from jaxgpt.runs import published
from jaxgpt.runs.load import Run
from jaxgpt.training import loop

LIMIT = 1e-4
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": SMALL | {"activation": "gelu_tanh"},
    "llama": ROTARY | {"activation": "swiglu", "num_kv_heads": 2},
}


def compared(run: Run, folder: Path, text: str) -> dict[str, Any]:
    """The largest difference at each kind of place."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    ids = run.tokenizer.encode(text)[: run.config.model.context_length]
    with torch.no_grad():
        logits, cache = model.run_with_cache(torch.tensor(ids[None].astype(np.int64)))
    seen = jaxgpt.capture(run, ids)
    found: dict[str, Any] = {"tokens": len(ids), "logits": apart(logits[0], seen.logits_TV)}
    for name, own in (("resid_pre", "before_TD"), ("resid_mid", "between_TD"), ("resid_post", "after_TD")):
        found[name] = max(
            apart(cache[name, i][0], getattr(layer, own)) for i, layer in enumerate(seen.layers)
        )
    return found | {"largest_stream": float(np.abs(seen.end).max())}


def apart(theirs: Any, ours: np.ndarray) -> float:
    return float(np.abs(theirs.numpy() - ours).max())


def main(argv: list[str]) -> int:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.lens", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=claim.RESULTS, help="the folder of lens.json")
    args = parser.parse_args(argv)
    args.results.mkdir(parents=True, exist_ok=True)  # before what takes minutes
    try:
        import transformer_lens  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: this compares with TransformerLens") from None
    text = "".join(piece for piece in corpora.open_corpus("shakespeare").read() if piece)[:400_000]
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "text.txt").write_text(text, "utf-8")
        for family, model in MODELS.items():
            loop.train(small(folder / "text.txt", model, {"tokenizer": "char"}), folder / family)
            run = jaxgpt.load(folder / family)
            published.export_run(run, folder / f"{family} out", family)
            measured[family] = compared(run, folder / f"{family} out", text[-1000:])
            print(family, measured[family])
    good = all(
        value < LIMIT
        for found in measured.values()
        for name, value in found.items()
        if name.startswith(("resid", "logits"))
    )
    record = {
        "name": "lens",
        "command": " ".join(["python -m experiments.lens", *argv]),
        "machine": claim.machine(),
        "commit": claim.commit(),
        "transformer_lens": version("transformer_lens"),
        "transformers": version("transformers"),
        "limit": LIMIT,
        "held": good,
        "measurements": measured,
    }
    write_json(args.results / "lens.json", record)
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(main)
