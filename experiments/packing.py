"""How much of a step is padding with data.windows="documents", next to cropping documents and to flat windows.

    python -m experiments.packing [--out experiments/results/packing.json] [--quick]

Documents of log-normal lengths (median 400 tokens, sigma 1.2; and shorter and more even ones), and texts that packages bring,
cut at blank lines or lines and encoded by GPT-2's tokenizer. For each context:

    packed    data.windows="documents": the share of places that are padding, and of documents that are cut
    alone     one document in each window, cropped: the share of places that are padding, and of tokens that are lost
    flat      data.windows="flat": the share of documents that are cut by the border of a window

The time is that of finding the documents in the ids and packing them, and of a batch of 64 windows.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import claim
from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.config import DataConfig
from jaxgpt.data import corpora
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.data.packing import PackedBatches, Packing, document_ends
from jaxgpt.data.shards import Ids

CONTEXTS = (256, 1024, 4096)
END = 0
LOG_NORMAL = {
    "log-normal, median 400, sigma 1.2": (400, 1.2),
    "log-normal, median 150, sigma 0.5": (150, 0.5),
}
CORPORA = {"shakespeare": "blank_line", "kjv": "line", "python_docs": "blank_line"}  # data.documents


def log_normal(num_ids: int, median: float, sigma: float) -> np.ndarray:
    """Ids of documents of random lengths, at least 2 tokens each, END last."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50_000, num_ids, dtype=np.uint16)
    count = int(2 * num_ids / (median * np.exp(sigma**2 / 2))) + 100
    ends = np.cumsum(np.maximum(2, rng.lognormal(np.log(median), sigma, count).astype(np.int64)))
    ids[ends[ends <= num_ids] - 1] = END
    return ids


def paragraphs(corpus: str, cut: str, folder: Path) -> tuple[Ids, int]:
    """The training ids of a text whose documents are its paragraphs, and the id that ends one."""
    path = folder / f"{corpus}.txt"
    path.write_text("".join(piece for piece in corpora.open_corpus(corpus).read() if piece), "utf-8")
    dataset = prepare_dataset(DataConfig(path=str(path), documents=cut, tokenizer="gpt2"))
    assert dataset.tokenizer.eos_id is not None
    return dataset.train.ids, dataset.tokenizer.eos_id


def measure(ids: Ids, end_id: int, context: int) -> dict[str, Any]:
    """The three ways of one text and context."""
    start = time.perf_counter()
    packing = Packing.of(ids, end_id, context + 1)
    seconds = time.perf_counter() - start
    batches, times = PackedBatches(ids, packing, 0, 64), []
    for step in range(20):
        start = time.perf_counter()
        batches.at(step)
        times.append(time.perf_counter() - start)
    ends = document_ends(ids, end_id)
    starts = np.concatenate([[0], ends[:-1]])
    kept = np.minimum(ends - starts, context + 1)
    return {
        "context": context,
        "documents": len(ends),
        "tokens": len(ids),
        "packed": {
            "windows": len(packing),
            "padding": packing.padding,
            "documents_cut": packing.num_cut / len(ends),
        },
        "alone": {
            "padding": 1 - kept.sum() / (len(ends) * (context + 1)),
            "tokens_lost": 1 - kept.sum() / len(ids),
        },
        "flat": {"documents_cut": float((starts // context != (ends - 1) // context).mean())},
        "seconds_to_pack": seconds,
        "seconds_of_a_batch": statistics.median(times),
    }


def line(name: str, found: dict[str, Any]) -> str:
    """One line for a reader."""
    packed, alone, flat = found["packed"], found["alone"], found["flat"]
    return (
        f"{name}, context {found['context']}: {found['documents']:,} documents, {found['tokens']:,} tokens; packed: padding "
        f"{packed['padding']:.3%}, {packed['documents_cut']:.1%} cut; alone: padding {alone['padding']:.1%}, lost "
        f"{alone['tokens_lost']:.1%}; flat: {flat['documents_cut']:.1%} cut; {found['seconds_to_pack']:.2f} s, a batch "
        f"{1e3 * found['seconds_of_a_batch']:.1f} ms"
    )


def main(argv: list[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.packing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="", help="write the numbers to this JSON file")
    parser.add_argument("--quick", action="store_true", help="small texts, in seconds")
    args = parser.parse_args(argv)
    cli.set_up_process()
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        texts = {
            name: (log_normal(10**5 if args.quick else 10**8, *of), END) for name, of in LOG_NORMAL.items()
        }
        for corpus, cut in list(CORPORA.items())[: 1 if args.quick else None]:
            texts[f"{corpus}, by {cut}"] = paragraphs(corpus, cut, Path(folder))
        for name, (ids, end_id) in texts.items():
            results[name] = [measure(ids, end_id, context) for context in CONTEXTS]
            for found in results[name]:
                print(line(name, found), flush=True)
    if args.out:
        facts = {"commit": claim.commit(), "machine": claim.machine()}
        write_json(Path(args.out), claim.plain({**facts, "results": results}))


if __name__ == "__main__":
    cli.run(main)
