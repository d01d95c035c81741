"""Two words under one token: where in a model does it become readable which of them is meant?

python -m experiments.pseudowords [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import claim, static_dynamic, trained
from experiments.claim import Effect, Result, Setting
from jaxgpt.inspect.interventions import Edit, edited
from jaxgpt.runs.load import Run

NOTE = "A word such as bank has one embedding for all its senses; attention makes the vector of this sentence's sense. Two words merged into one pseudoword test this, as the true sense is known (Gale et al. 1992; Schütze 1998)."
CLAIM = "Which of two merged words is meant cannot be read from the embedding, can be read after the last block, and cannot where attention is switched off."
PREDICTION = "Accuracy 0.5 at the embedding, above 0.55 after the last block; less without attention, and less without the MLPs."
REFUTED_BY = "An accuracy after the last block below 0.55, or one that is as high without attention, or without the MLPs."
DESIGN = (
    "Pairs of words of similar frequency are merged into one token in all of Shakespeare, and word models are trained on that "
    "text. Where a merged token stands, only what is before it can tell which of the two words it was. A linear probe (logistic "
    "regression with a ridge, on one half of a pair's places, both words equally often) reads the sense from the stream at that token; its accuracy on the other "
    "half, averaged over pairs, by layer; 0.5 is chance. The same with the changes by attention, or by the MLPs, of all blocks set to 0."
)
MARGINS = {"accuracy": 0.02}
LIMITS = "The probe sees what is readable by a straight line. Without attention nothing from other tokens can arrive, so that part is certain; it is measured as a control."
SWITCHED = {"everything": (), "without attention": ("attention",), "without MLPs": ("mlp",)}


def pairs_of(text: str, count: int, least: int, most: int) -> list[tuple[str, str]]:
    """Pairs of small words that occur `least` to `most` times, neighbours by frequency."""
    counts: dict[str, int] = {}
    for word in trained.WORD.findall(text):
        counts[word] = counts.get(word, 0) + 1
    fitting = [
        w for w, n in counts.items() if least <= n <= most and w.isalpha() and w.islower() and len(w) > 2
    ]
    words = sorted(fitting, key=lambda w: (-counts[w], w))
    chosen = np.linspace(0, len(words) - 2, min(count, max(0, len(words) // 2))).astype(int)
    return [(words[i], words[i + 1]) for i in sorted(set(chosen - chosen % 2))]


def merged(source: Path, pairs: list[tuple[str, str]]) -> Path:
    """A file of the text where the second word of each pair is written as the first."""
    path = source.with_stem(f"{source.stem}_merged_{len(pairs)}")
    if not path.exists():
        other = {two: one for one, two in pairs}
        text = source.read_text("utf-8")
        path.write_text(trained.WORD.sub(lambda m: other.get(m[0], m[0]), text), "utf-8")
    return path


def places(run: Run, text: str, pairs: list[tuple[str, str]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each pair: windows [N, T] that end in the merged token, and whether it was the second word [N]."""
    length = run.config.model.context_length
    other = {two: one for one, two in pairs}
    ids = np.array(run.tokenizer.encode(trained.WORD.sub(lambda m: other.get(m[0], m[0]), text)), np.int32)
    found = {}
    for one, two in pairs:
        at = np.flatnonzero(ids == run.tokenizer.encode(one)[0])
        words = [m[0] for m in re.finditer(trained.WORD, text) if m[0] in (one, two)]
        second = np.array([word == two for word in words])
        kept = at >= length - 1
        windows = [ids[i - length + 1 : i + 1] for i in at[kept]]
        found[f"{one}/{two}"] = (np.array(windows, np.int32).reshape(-1, length), second[kept])
    return found


def streams(run: Run, windows_BT: np.ndarray, off: tuple[str, ...]) -> np.ndarray:
    """The stream at the last position after the embedding and after each block: [1 + L, B, D]."""
    edits = {(site, i): Edit(scale=0.0) for site in off for i in range(run.config.model.num_layers)}
    model, params = edited(run.model, run.params, edits)
    return np.asarray(static_dynamic.streams(model, params, windows_BT)[1], np.float64)


def accuracy(x_ND: np.ndarray, second_N: np.ndarray, seed: int) -> float:
    """The accuracy of a linear probe on the half of the places that it was not fitted to. Both words are equally frequent."""
    rng = np.random.default_rng(seed)
    one, two = (rng.permutation(np.flatnonzero(second_N == value)) for value in (False, True))
    each = min(len(one), len(two)) // 2
    fit, test = (np.concatenate([one[part], two[part]]) for part in (slice(each), slice(each, 2 * each)))
    mean, scale = x_ND[fit].mean(axis=0), x_ND[fit].std(axis=0) + 1e-6
    x_ND = (x_ND - mean) / scale
    target = np.where(second_N[fit], 1.0, -1.0)
    D = x_ND.shape[1]
    # Least squares with a ridge: on standardized inputs and balanced classes, a linear discriminant.
    weights = np.linalg.solve(x_ND[fit].T @ x_ND[fit] + len(fit) * np.eye(D), x_ND[fit].T @ target)
    guess = x_ND[test] @ weights
    right = np.where(guess == 0, 0.5, (guess > 0) == second_N[test])  # equal vectors: a coin
    return float(right.mean())


def measure(setting: Setting) -> dict[str, Any]:
    """Accuracy by what is switched off and by layer [1 + L], per seed."""
    source = Path(trained.text_slice(setting.folder, "shakespeare", setting.pick(40_000, None, None)))
    text = source.read_text("utf-8")
    pairs = pairs_of(text, setting.pick(2, 12, 12), *setting.pick((8, 60), (150, 1_500), (150, 1_500)))
    runs = trained.words(setting, str(merged(source, pairs)))
    found: dict[str, list[list[float]]] = {label: [] for label in SWITCHED}
    windows = places(runs[0], text, pairs)
    for seed, run in enumerate(runs):
        for label, off in SWITCHED.items():
            by_pair = []
            for windows_BT, second_B in windows.values():
                x_LBD = jax.device_get(streams(run, windows_BT, off))
                by_pair.append([accuracy(x_BD, second_B, seed) for x_BD in x_LBD])
            found[label].append(np.mean(by_pair, axis=0).tolist())
    return {
        "pairs": {name: [len(second), int(second.sum())] for name, (_, second) in windows.items()},
        "accuracy": found,
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    found = {label: np.array(rows) for label, rows in measurements["accuracy"].items()}
    full, margin = found["everything"], MARGINS["accuracy"]
    last = {label: rows[:, -1] for label, rows in found.items()}
    start = claim.mean(full[:, 0].tolist())
    layers = ", ".join(claim.show(claim.mean(column.tolist())) for column in full.T[1:])
    end = claim.mean(last["everything"].tolist())
    return Result(
        parts=(
            Effect("accuracy after the last block minus 0.53", claim.mean((last["everything"] - 0.53).tolist()), margin=margin),
            Effect("accuracy minus that without attention", claim.difference(last["everything"].tolist(), last["without attention"].tolist()), margin=margin),
            Effect("accuracy minus that without MLPs", claim.difference(last["everything"].tolist(), last["without MLPs"].tolist()), margin=margin),
        ),
        says=(
            f"Which of two merged words is meant ({len(measurements['pairs'])} pairs) is read with an accuracy of {claim.show(start)} from the embedding and of "
            f"{layers} after blocks 1 to {full.shape[1] - 1}; after the last block of {claim.show(claim.mean(last['without attention'].tolist()))} without attention and "
            f"of {claim.show(claim.mean(last['without MLPs'].tolist()))} without MLPs."
        ),
        untold="" if start.low - margin <= 0.5 <= start.high + margin else f"the embedding tells the sense: {claim.show(start)}",
        seeds=len(full),
        headline=f"The sense of a merged word is read with an accuracy of {claim.show(end)} after the last block and of {claim.show(start)} from its embedding; 0.5 is chance.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Accuracy by layer, a line per seed."""
    axis = figure.subplots()
    for place, (label, rows) in enumerate(measurements["accuracy"].items()):
        for number, row in enumerate(rows):
            axis.plot(
                range(len(row)),
                row,
                ".-",
                color=claim.COLOURS[place],
                alpha=0.6,
                label="" if number else label,
            )
    axis.axhline(0.5, color="#7a7a7a", linestyle="--", linewidth=1)
    axis.set(
        xlabel="after block (0: the embedding)", ylabel="accuracy of a linear probe", xticks=range(len(row))
    )
    axis.legend(loc="upper left")


if __name__ == "__main__":
    claim.run()
