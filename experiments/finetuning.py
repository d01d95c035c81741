"""What fine-tuning learns and forgets, and what word vectors are worth as a model's first table.

    python -m experiments.finetuning [--base runs/char] [--seeds 3] [--steps 300] [--vectors glove]
    python -m experiments.finetuning --quick    # a test that it runs, in seconds; gives no result

First: the modes of configs/finetune.py on the King James Bible, from one base model of Shakespeare's characters. For each
seed (batches, new rows, low-rank matrices): the loss on both texts before and after, the time of a step, the bytes of the
optimizer state, how far the token table has turned (mean cosine of its known rows with their start), and whether frozen
arrays stayed equal bit for bit. Second: a word model on the first 300,000 characters of Shakespeare, whose table starts
as word vectors or at random, with the same width and projection.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from experiments import comparing, trained
from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import Dataset, prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs.load import load
from jaxgpt.training import costs, optim, starting, steps, trainable
from jaxgpt.training.loop import train

MODES = ("all", "frozen", "new_embeddings", "lora")
TABLE = "token_embedding/embedding"
QUICK = {
    "model.d_model": "16", "model.num_layers": "1", "model.num_heads": "2", "model.context_length": "16",
    "data.batch_size": "4",
}  # fmt: skip


def loss_on(model: GPT, params: dict, ids: np.ndarray, tokens: int) -> float:
    """The loss on the first `tokens` tokens."""
    return comparing.loss_on(model, params, ids, tokens).loss


class Training:
    """The training of a config, compiled once for all seeds."""

    def __init__(self, cfg: config.Config, dataset: Dataset) -> None:
        self.cfg, self.ids = cfg, dataset.train.ids
        self.parts = steps.build(cfg)
        self._step = jax.jit(self.parts.train_step, donate_argnums=0)

    def state(self, seed: int, params: dict | None = None) -> steps.TrainState:
        """The state at step 0, with given or random parameters."""
        start = jax.random.key(seed) if params is None else params
        return steps.init_state(self.parts.model, self.parts.optimizer, start)

    def run(self, state: steps.TrainState, seed: int, until: int) -> tuple[steps.TrainState, float]:
        """The state after `until` steps, and the median seconds of a step (without the first)."""
        times = []
        drawn = Batches(self.ids, seed, self.cfg.data.batch_size, self.cfg.model.context_length)
        while int(state.step) < until:
            batch = drawn.at(int(state.step))
            began = time.perf_counter()
            state, metrics = self._step(state, batch, jax.random.key(seed))
            jax.block_until_ready(metrics["loss"])
            times.append(time.perf_counter() - began)
        return state, statistics.median(times[1:] or times or [0.0])

    def used(self, state: steps.TrainState) -> dict:
        return optim.evaluation_params(self.cfg.optim, state.params, state.opt_state)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The mean cosine of rows."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def mode_config(mode: str, base: Path, new_text: str, args) -> tuple[config.Config, Dataset]:
    """A mode of configs/finetune.py from a base run, resolved, and its data."""
    overrides = {
        "init_from": str(base), "data.tokenizer_path": str(base / "tokenizer.json"), "train.num_steps": str(args.steps),
        "data.path": new_text,
    }  # fmt: skip
    cfg = cli.read_config(f"configs/finetune.py:{mode}", overrides | (QUICK if args.quick else {}))
    dataset = prepare_dataset(cfg.data)
    return starting.resolve(cfg, dataset.tokenizer), dataset


def step_times(base: Path, new_text: str, args) -> dict[str, float]:
    """Median milliseconds of a step in each mode, measured in turns."""
    trainings = {mode: Training(*mode_config(mode, base, new_text, args)) for mode in MODES}
    states = {mode: training.state(0) for mode, training in trainings.items()}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for at in range(1, 4 if args.quick else 60):
        for mode, training in trainings.items():
            states[mode], seconds = training.run(states[mode], 0, at)
            times[mode].append(1000 * seconds)
    return {mode: statistics.median(found[1:]) for mode, found in times.items()}


def fine_tune(mode: str, base: Path, new_text: str, seeds: int, args) -> dict[str, float]:
    """Means over seeds of the table's columns, and the range of the final losses."""
    cfg, dataset = mode_config(mode, base, new_text, args)
    run = load(base)
    known = run.tokenizer.vocab_size
    old_ids = prepare_dataset(run.config.data).valid.ids  # ids of known tokens are the same
    training, rows = Training(cfg, dataset), []
    for seed in range(seeds):
        seeded = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, seed=seed))
        start = starting.prepare(seeded, dataset.tokenizer)
        state = training.state(seed, start.params(training.parts.model, jax.random.key(seed)))
        # Copies, as the state is donated.
        first = {path: np.array(leaf, copy=True) for path, leaf in named_leaves(state.params)}

        def both(params):
            ids = (dataset.valid.ids, old_ids)
            return [loss_on(training.parts.model, params, part, args.eval_tokens) for part in ids]

        before = both(state.params)
        state, _ = training.run(state, seed, args.steps)
        after, last = both(training.used(state)), dict(named_leaves(state.params))
        moves = trainable.moves(cfg.optim, state.params)
        frozen = [path for path in first if not moves(path)]
        assert all(np.asarray(last[path]).tobytes() == first[path].tobytes() for path in frozen), (
            "frozen moved"
        )
        rows.append(
            {
                "new before": before[0], "new after": after[0], "old before": before[1], "old after": after[1],
                "optimizer bytes": costs.tree_bytes(state.opt_state),
                "trained": sum(leaf.size for path, leaf in first.items() if moves(path)),
                "cosine": cosine(first[TABLE][:known], np.asarray(last[TABLE])[:known]), "frozen arrays": len(frozen),
            }
        )  # fmt: skip
    found = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    found["spread"] = max(r["new after"] for r in rows) - min(r["new after"] for r in rows)
    found["old spread"] = max(r["old after"] for r in rows) - min(r["old after"] for r in rows)
    return found


def word_vectors(folder: Path, seeds: int, args) -> dict[str, list[list[float]]]:
    """Validation losses [seed][step] with a table that starts as word vectors, and with a random one."""
    text = trained.text_slice(folder, "shakespeare", 20_000 if args.quick else 300_000)
    vectors = args.vectors
    if args.quick:
        words = sorted({word for word in Path(text).read_text("utf-8").split() if word.isalpha()})
        rng, vectors = np.random.default_rng(0), str(folder / "vectors.txt")
        lines = (f"{word} {' '.join(map(str, rng.normal(size=50).round(3)))}\n" for word in words)
        Path(vectors).write_text("".join(lines), "utf-8")
    overrides = {
        "data.path": text, "data.vocab_size": "4096", "model.embedding_dim": "50", "model.d_model": "64",
        "model.dropout_rate": "0", "train.num_steps": str(args.steps), "optim.warmup_steps": "20",
    } | (QUICK if args.quick else {})  # fmt: skip
    found: dict[str, list[list[float]]] = {}
    for name, given in (("vectors", vectors), ("random", "")):
        cfg = cli.read_config("configs/word.py", overrides | {"init_vectors": given})
        dataset = prepare_dataset(cfg.data)
        cfg = starting.resolve(cfg, dataset.tokenizer)
        training = Training(cfg, dataset)
        found[name] = []
        for seed in range(seeds):
            seeded = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, seed=seed))
            start = starting.prepare(seeded, dataset.tokenizer)
            if start and not seed:
                print(start.text, flush=True)
            key = jax.random.key(seed)
            state = training.state(seed, start.params(training.parts.model, key) if start else None)
            losses = []
            for until in curve_steps(args.steps):
                state, _ = training.run(state, seed, until) if until else (state, 0.0)
                losses.append(
                    loss_on(training.parts.model, state.params, dataset.valid.ids, args.eval_tokens)
                )
            found[name].append(losses)
    return found


def curve_steps(last: int) -> list[int]:
    """Step 0 and up to five more, each twice the step before."""
    return sorted({0, *(max(1, last // 2**k) for k in range(5))})


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.finetuning", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--base", default="", help="a run of configs/char.py; default: trains one for 300 steps"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=300, help="steps per run")
    parser.add_argument("--eval_tokens", type=int, default=32_768, help="tokens of each validation text")
    parser.add_argument("--vectors", default="glove", help="a file or the name of a package; none: skip them")
    parser.add_argument("--only", choices=["modes", "vectors"], help="only this part")
    parser.add_argument(
        "--quick", action="store_true", help="a test that it runs, in seconds; gives no result"
    )
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.steps, args.eval_tokens = 2, 4, 512
    cli.set_up_process()
    found: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.only != "vectors":
            new_text = trained.text_slice(folder, "kjv", 20_000) if args.quick else ""
            base = Path(args.base) if args.base else folder / "base"
            if not args.base:
                overrides = {"train.num_steps": "300", "train.sample_tokens": "0"}
                if args.quick:
                    old = trained.text_slice(folder, "shakespeare", 20_000)
                    overrides |= QUICK | {"train.num_steps": "4", "data.path": old}
                train(cli.read_config("configs/char.py", overrides), base)
            print(
                "mode              trained   new text: before  after     old text: before  after    ms a step   state, KiB   cosine   frozen"
            )
            times = step_times(base, new_text, args)
            for mode in MODES:
                row = found[mode] = fine_tune(mode, base, new_text, args.seeds, args) | {
                    "ms a step": times[mode]
                }
                print(
                    f"{mode:15} {row['trained']:9,.0f} {row['new before']:17.3f} {row['new after']:6.3f} {row['old before']:20.3f} "
                    f"{row['old after']:6.3f} {row['ms a step']:12.1f} {row['optimizer bytes'] / 1024:12,.1f} {row['cosine']:8.3f} "
                    f"{row['frozen arrays']:5.0f} bit-equal (range over seeds: {row['spread']:.3f}, {row['old spread']:.3f})",
                    flush=True,
                )  # fmt: skip
        if args.only != "modes" and args.vectors != "none":
            found["curves"] = word_vectors(folder, args.seeds, args)
            print(f"{'table':10}" + "".join(f"{f'step {step}':>16}" for step in curve_steps(args.steps)))
            for name, curves in found["curves"].items():
                points = zip(*curves, strict=True)
                cells = (f"{statistics.mean(p):.3f} +- {(max(p) - min(p)) / 2:.3f}" for p in points)
                print(f"{name:10}" + "".join(f"{cell:>16}" for cell in cells))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    cli.run(main)
