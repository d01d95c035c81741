"""Does Adam beat gradient descent because of rare tokens?

python -m experiments.rare_tokens [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import claim, comparing, tuning
from experiments.claim import Effect, Result, Setting
from jaxgpt.data.batches import eval_batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs import records
from jaxgpt.runs.load import load
from jaxgpt.training.evaluation import window_losses

NOTE = "Language models train badly with gradient descent because most tokens are rare: it hardly learns them, and Adam does (Kunstner et al. 2024)."
CLAIM = "Adam's advantage over gradient descent is in the rare tokens, and small where all tokens are equally frequent."
PREDICTION = "Where tokens follow Zipf's law, the gap of gradient descent to Adam is larger the rarer the tokens; where they are equally frequent, the whole gap is smaller."
REFUTED_BY = "A gap on the rarest tenth that is not larger by 0.1 nats than on the most frequent, or a gap as large on the balanced text."
DESIGN = (
    "Two made texts of pairs of words: a word, drawn by Zipf's law or with equal probabilities, and the word that a fixed random table "
    "gives for it. Only the second word can be learned, so a model must store the table, and both texts have the same table. Models of one layer "
    "are trained with AdamW and with stochastic gradient descent (momentum 0.9), each at its own best rate of at least five, chosen with other "
    "seeds. Loss of the second words by the frequency of the first, in tenths of all words."
)
MARGINS = {"loss": 0.1}
LIMITS = "A task of memory, in which every token is either rare or frequent. Natural text has more to learn than its rare words."


def write_text(folder: Path, kind: str, words: int, pairs: int) -> Path:
    """A file of pairs "word answer", one a line. Word i has the frequency 1 / (i + 1) (zipf), or all the same (balanced)."""
    path = folder / f"pairs_{kind}_{words}_{pairs}.txt"
    if not path.exists():
        records.make_folder(folder)
        weights = 1.0 / (np.arange(words) + 1) if kind == "zipf" else np.ones(words)
        drawn = np.random.default_rng(0).choice(words, size=pairs, p=weights / weights.sum())
        answers = np.random.default_rng(1).permutation(words)
        names = [word_of(i) for i in range(words)]
        # All words once at the start, so that both texts have the same words; the end is for validation.
        drawn[:words] = np.arange(words)
        path.write_text("".join(f"{names[i]} {names[answers[i]].upper()}\n" for i in drawn), "utf-8")
    return path


def word_of(number: int) -> str:
    """A word of small letters for a number."""
    letters = ""
    for _ in range(4):
        number, rest = divmod(number, 26)
        letters += chr(97 + rest)
    return letters


def by_tenth(workdir: Path, words: int, tokens: int) -> list[float]:
    """The mean loss of the answers to each tenth of the words, by number: the first ones are the most frequent."""
    run = load(workdir)
    ids = prepare_dataset(run.config.data).valid.ids
    number_of = {run.tokenizer.encode(word_of(i))[0]: i for i in range(words)}
    sums, counts = np.zeros(10), np.zeros(10)
    windows = eval_batches(
        ids, context_length=run.config.model.context_length, batch_size=64, max_tokens=tokens
    )
    for tokens_BT, weights_BT in windows:
        losses_BT = np.asarray(window_losses(run.model, run.params, tokens_BT))
        # An answer comes two tokens after its word: the word, a space, the answer.
        for row, losses, weights in zip(tokens_BT, losses_BT, weights_BT, strict=True):
            for at in range(2, len(row)):
                number = number_of.get(int(row[at - 2]))
                if number is not None and weights[at - 1]:
                    sums[10 * number // words] += losses[at - 1]
                    counts[10 * number // words] += 1
    return (sums / np.maximum(counts, 1)).tolist()


def measure(setting: Setting) -> dict[str, Any]:
    """Losses by tenth of the words, for each text and optimizer at its best rate."""
    words, pairs = setting.pick((20, 400), (500, 60_000), (5_000, 2_000_000))
    found: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    for kind in ("zipf", "balanced"):
        text = write_text(setting.folder, kind, words, pairs)
        base = comparing.base(
            setting, data__path=str(text), data__tokenizer="word", model__num_layers=1,
            model__tie_embeddings=False, optim__weight_decay=0.0, train__num_steps=setting.pick(3, 600, 5_000),
        )  # fmt: skip
        variants = {
            f"{kind}, adam": {"optim.learning_rate": 4e-3},
            f"{kind}, sgd": {"optim.name": "sgd", "optim.learning_rate": 1.0},
        }
        rows, own = tuning.train(setting, f"rare_tokens_{kind}", base, variants)
        chosen |= own
        for label, members in rows.items():
            found[label] = [by_tenth(row.workdir, words, base.train.eval_tokens) for row in members]
    return {"losses": found, "chosen": chosen, "words": words}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, unit = {label: np.array(found) for label, found in measurements["losses"].items()}, "nats a word"
    gap = {kind: losses[f"{kind}, sgd"] - losses[f"{kind}, adam"] for kind in ("zipf", "balanced")}
    rare = [row[-1] - row[0] for row in gap["zipf"]]
    overall = {kind: found.mean(axis=1) for kind, found in gap.items()}
    return Result(
        parts=(
            Effect("gap of gradient descent to Adam, rarest tenth minus most frequent tenth", claim.mean(rare), unit, margin=MARGINS["loss"]),
            Effect("gap over all words, Zipf's law minus equal frequencies", claim.difference(overall["zipf"], overall["balanced"]), unit, margin=MARGINS["loss"]),
        ),
        says=(
            f"With Zipf's law, gradient descent is worse than Adam by {claim.show(claim.mean(gap['zipf'][:, 0]), unit)} on the most frequent tenth of "
            f"{measurements['words']} words and by {claim.show(claim.mean(gap['zipf'][:, -1]))} on the rarest; with equal frequencies by "
            f"{claim.show(claim.mean(overall['balanced']))} on all. {tuning.says(measurements['chosen'])}"
        ),
        untold=tuning.at_the_edge(measurements["chosen"]),
        seeds=len(rare),
        headline=(
            f"The loss of gradient descent minus that of Adam is {claim.show(claim.mean(overall['zipf']))} nats a word where tokens follow Zipf's law, and "
            f"{claim.show(claim.mean(overall['balanced']))} where all are equally frequent."
        ),
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses by tenth of the words: all seeds, and their means."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, name in zip(axes, ("zipf", "balanced"), ("Zipf's law", "equal frequencies"), strict=True):
        for place, optimizer in enumerate(("adam", "sgd")):
            rows = np.array(measurements["losses"][f"{kind}, {optimizer}"])
            axis.plot(np.arange(1, 11), rows.T, color=claim.COLOURS[place], alpha=0.25)
            axis.plot(np.arange(1, 11), rows.mean(axis=0), "o-", color=claim.COLOURS[place], label=optimizer)
        axis.set(title=name, xlabel="tenth of the words, by number (1: the most frequent)")
    axes[0].set_ylabel("loss of the answer, nats")
    axes[0].legend()


if __name__ == "__main__":
    claim.run()
