"""Characters, byte pairs or words: which tokens predict a text best, at equal work and at equal text?

python -m experiments.tokenizer_bits [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments import claim, comparing, trained, tuning
from experiments.claim import Amendment, Effect, Outdated, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.data.id_files import Dataset
from jaxgpt.runs.load import load
from jaxgpt.sweeps.members import Row
from jaxgpt.training import costs

NOTE = "A vocabulary of byte pairs is a compromise between characters, with long sequences, and words, with many tokens that are rare or unknown (Sennrich et al. 2016)."
CLAIM = "At equal operations and at equal text, some byte pairs predict a text better than characters and better than words, in bits a byte."
PREDICTION = "The best of four sizes of byte pairs is below characters and below words by 0.02 bits a byte, with either budget."
REFUTED_BY = (
    "Characters or words that are not worse than the best byte pairs by 0.02 bits a byte, with either budget."
)
DESIGN = (
    "Models of Shakespeare of one width and depth on characters, on byte pairs of four sizes and on words. Budgets: the same text "
    "(as many bytes of training), and the same operations. A window has the same number of tokens, so that byte pairs see more text "
    "before each token. The measure is bits per byte of the complete held-out text, which does not depend on the tokenizer. A word that is "
    "unknown to the words costs a model of them only the guess that it is unknown: its letters, and its end, are charged with what the model of "
    "characters with the same seed needs for as many bytes. Each has "
    "its own best learning rate of at least five, chosen with other seeds; the best size of byte pairs is chosen by half of the seeds, and compared in the other half."
)
MARGINS = {"bits": 0.02}
LIMITS = "Small models, few steps, one text of 5 million characters: more give rare tokens more to learn from. The letters of unknown words are charged what all letters cost; those of rare words may cost more."
AMENDMENTS = (
    Amendment(
        "2026-11-27 (0e7136c7)", "The measure is that of the complete held-out text, the letters of unknown words are charged, and the size is chosen by half of the seeds.",
        "Before, each tokenizer was measured on its first 16,384 tokens, so on different parts of the text; and for 4.7 % of its tokens, whose "
        "letters are 14 % of the text, a word model paid only the guess that they are unknown: it needed 1.87 bits a byte, byte pairs 2.62. The "
        "seeds that choose the rates chose the size, by the loss on those parts.",
        "does not hold",
    ),
)  # fmt: skip


def tokenizers(setting: Setting) -> dict[str, dict[str, Any]]:
    """The fields of each tokenizer."""
    sizes = setting.pick((300, 400), (512, 1_024, 2_048, 4_096), (1_024, 4_096, 16_384, 32_768))
    return (
        {"characters": {"data.tokenizer": "char"}}
        | {f"byte pairs {size}": {"data.tokenizer": "bpe", "data.vocab_size": size} for size in sizes}
        | {"words": {"data.tokenizer": "word", "data.vocab_size": setting.pick(500, 8_192, 50_000)}}
    )


def bytes_per_token(dataset: Dataset) -> float:
    """Bytes of the training text for each of its tokens."""
    return dataset.train.num_bytes / len(dataset.train.ids)


def bits_a_byte(row: Row, dataset: Dataset, tokens: int) -> float:
    """Bits a byte of the held-out text; tokens: as many at most, 0 for all."""
    run, ids = load(row.workdir), dataset.valid.ids
    nats = comparing.loss_on(run.model, run.params, ids, tokens).loss
    return nats / math.log(2) * len(ids) / dataset.valid.num_bytes


def unknown_bytes(words: Dataset) -> float:
    """The share of the held-out text's bytes that are letters of unknown words; each word's end is one more."""
    tokenizer, ids, total = words.tokenizer, words.valid.ids, words.valid.num_bytes
    lengths_V = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)])
    unknown = ids == tokenizer.unk_id
    return float(total - lengths_V[ids[~unknown]].sum() + unknown.sum()) / total


def measure(setting: Setting) -> dict[str, Any]:
    """Bits a byte by budget and tokenizer, and how many steps each had."""
    base = comparing.base(setting, model__context_length=setting.pick(8, 64, 256))
    arms = tokenizers(setting)
    configs = {label: comparing.resolved(trained.changed(base, fields)) for label, fields in arms.items()}
    step_tokens = base.data.batch_size * base.model.context_length
    datasets = {label: prepare_dataset(cfg.data) for label, cfg in configs.items()}
    text = {label: step_tokens * bytes_per_token(dataset) for label, dataset in datasets.items()}
    work = {label: costs.step_cost(cfg, "cpu").hardware_flops for label, cfg in configs.items()}
    budget = setting.pick(3, 600, 5_000)
    found: dict[str, Any] = {"bits": {}, "steps": {}, "chosen": {}, "bytes_per_token": {}}
    found["unknown_bytes"] = unknown_bytes(datasets["words"])
    found["bytes_per_token"] = {label: text[label] / step_tokens for label in arms}
    for name, cost in (("text", text), ("operations", work)):
        # Characters have the full number of steps; the others what the same budget buys.
        steps = {label: max(2, round(budget * cost["characters"] / cost[label])) for label in arms}
        variants = {label: fields | {"train.num_steps": steps[label]} for label, fields in arms.items()}
        rows, chosen = tuning.train(setting, f"tokenizer_bits_{name}", base, variants)
        found["bits"][name] = {
            label: [bits_a_byte(row, datasets[label], setting.pick(64, 0, 0)) for row in members]
            for label, members in rows.items()
        }
        found["steps"][name], found["chosen"][name] = steps, chosen
    return found


def chosen_size(bits: dict[str, list[float]]) -> tuple[str, dict[str, list[float]]]:
    """The size of byte pairs with the fewest bits a byte in half of the seeds, and all bits in the other half.

    Two halves of fewer than 4 seeds have no interval: all choose, and are compared.
    """
    seeds = len(bits["words"])
    half = seeds // 2 if seeds >= 4 else 0
    sizes = [label for label in bits if label.startswith("byte pairs")]
    best = min(sizes, key=lambda label: sum(bits[label][: half or seeds]))
    return best, {label: found[half:] for label, found in bits.items()}


def charged(measurements: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Bits a byte by budget and tokenizer; the words' with those of unknown words' letters."""

    def with_letters(bits: dict[str, list[float]]) -> list[float]:
        share = measurements["unknown_bytes"]
        return [a + share * b for a, b in zip(bits["words"], bits["characters"], strict=True)]

    return {name: bits | {"words": with_letters(bits)} for name, bits in measurements["bits"].items()}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    if "unknown_bytes" not in measurements:
        raise Outdated("the complete held-out text, and the letters of unknown words")
    parts, said, best, all_bits = [], [], {}, charged(measurements)
    for name, bits in all_bits.items():
        best[name], rest = chosen_size(bits)
        for other in ("characters", "words"):
            found = claim.difference(rest[other], rest[best[name]])
            what = f"{other} minus {best[name]}"
            parts.append(Effect(what, found, "bits a byte", under=f"at equal {name}", margin=MARGINS["bits"]))
        listed = ", ".join(f"{label} {claim.show(claim.mean(found))}" for label, found in bits.items())
        said.append(f"At equal {name}, bits a byte: {listed}.")
    spelled = measurements["unknown_bytes"]
    said.append(
        f"The letters of words that are unknown to the words, and an end for each, are {100 * spelled:.1f} % of the text's bytes."
    )
    edges = [tuning.at_the_edge(chosen) for chosen in measurements["chosen"].values()]
    return Result(
        parts=tuple(parts),
        says=" ".join(said),
        untold="; ".join(edge for edge in edges if edge),
        seeds=len(next(iter(measurements["bits"]["text"].values()))),
        varies="the budget",
        headline="; ".join(
            f"bits a byte at equal {name}: {best[name]} {claim.show(claim.mean(bits[best[name]]))}, characters "
            f"{claim.show(claim.mean(bits['characters']))}, words {claim.show(claim.mean(bits['words']))}"
            for name, bits in all_bits.items()
        ).capitalize() + ".",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Bits a byte by tokenizer, for each budget."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, bits) in zip(axes, charged(measurements).items(), strict=True):
        comparing.draw_seeds(axis, bits, "bits a byte")
        axis.set_title(f"at equal {name}")


if __name__ == "__main__":
    claim.run()
