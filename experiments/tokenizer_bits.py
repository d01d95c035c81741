"""Characters, byte pairs or words: which tokens predict a text best, at equal work and at equal text?

python -m experiments.tokenizer_bits [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

import math
from typing import Any

from experiments import claim, comparing, trained, tuning
from experiments.claim import Effect, Result, Setting
from jaxgpt.config import Config
from jaxgpt.data.dataset import prepare_dataset
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
    "before each token. The measure is bits per byte of the held-out text, which does not depend on the tokenizer. Each has "
    "its own best learning rate of at least five, chosen with other seeds; the best size of byte pairs is chosen by those seeds too."
)
MARGINS = {"bits": 0.02}
LIMITS = "A text of a million characters: larger ones give rare tokens more to learn from. A word model's unknown words cost it the bits of guessing that a word is unknown, and nothing for its letters, which favours words."


def tokenizers(setting: Setting) -> dict[str, dict[str, Any]]:
    """The fields of each tokenizer."""
    sizes = setting.pick((300, 400), (512, 1_024, 2_048, 4_096), (1_024, 4_096, 16_384, 32_768))
    return (
        {"characters": {"data.tokenizer": "char"}}
        | {f"byte pairs {size}": {"data.tokenizer": "bpe", "data.vocab_size": size} for size in sizes}
        | {"words": {"data.tokenizer": "word", "data.vocab_size": setting.pick(500, 8_192, 50_000)}}
    )


def bytes_per_token(cfg: Config) -> float:
    """Bytes of the training text for each of its tokens."""
    dataset = prepare_dataset(cfg.data)
    return dataset.train.num_bytes / len(dataset.train.ids)


def measure(setting: Setting) -> dict[str, Any]:
    """Bits a byte by budget and tokenizer, and how many steps each had."""
    base = comparing.base(setting, model__context_length=setting.pick(8, 64, 256))
    arms = tokenizers(setting)
    configs = {label: comparing.resolved(trained.changed(base, fields)) for label, fields in arms.items()}
    step_tokens = base.data.batch_size * base.model.context_length
    text = {label: step_tokens * bytes_per_token(cfg) for label, cfg in configs.items()}
    work = {label: costs.step_cost(cfg, "cpu").hardware_flops for label, cfg in configs.items()}
    budget = setting.pick(3, 600, 5_000)
    found: dict[str, Any] = {"bits": {}, "steps": {}, "chosen": {}, "bytes_per_token": {}}
    found["bytes_per_token"] = {label: text[label] / step_tokens for label in arms}
    for name, cost in (("text", text), ("operations", work)):
        # Characters have the full number of steps; the others what the same budget buys.
        steps = {label: max(2, round(budget * cost["characters"] / cost[label])) for label in arms}
        variants = {label: fields | {"train.num_steps": steps[label]} for label, fields in arms.items()}
        rows, chosen = tuning.train(setting, f"tokenizer_bits_{name}", base, variants)
        found["bits"][name] = {
            label: [comparing.last(row.workdir, "bits_per_byte") for row in members]
            for label, members in rows.items()
        }
        found["steps"][name], found["chosen"][name] = steps, chosen
    return found


def chosen_size(chosen: dict[str, Any], bytes_per_token: dict[str, float]) -> str:
    """The size of byte pairs with the fewest bits a byte of the tuning seeds."""

    def bits(label: str) -> float:
        losses = chosen[label]["losses"][f"{chosen[label]['best']:g}"]
        return sum(losses) / len(losses) / math.log(2) / bytes_per_token[label]

    return min((label for label in chosen if label.startswith("byte pairs")), key=bits)


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    parts, said, best = [], [], {}
    for name, bits in measurements["bits"].items():
        best[name] = chosen_size(measurements["chosen"][name], measurements["bytes_per_token"])
        for other in ("characters", "words"):
            found = claim.difference(bits[other], bits[best[name]])
            what = f"{other} minus {best[name]}"
            parts.append(Effect(what, found, "bits a byte", under=f"at equal {name}", margin=MARGINS["bits"]))
        listed = ", ".join(f"{label} {claim.show(claim.mean(found))}" for label, found in bits.items())
        said.append(f"At equal {name}, bits a byte: {listed}.")
    edges = [tuning.at_the_edge(chosen) for chosen in measurements["chosen"].values()]
    return Result(
        parts=tuple(parts),
        says=" ".join(said),
        untold="; ".join(edge for edge in edges if edge),
        seeds=len(next(iter(measurements["bits"]["text"].values()))),
        varies="the budget",
        headline="; ".join(
            f"at equal {name}, {best[name]} need {claim.show(claim.mean(bits[best[name]]))} bits a byte, characters "
            f"{claim.show(claim.mean(bits['characters']))}, words {claim.show(claim.mean(bits['words']))}"
            for name, bits in measurements["bits"].items()
        ).capitalize() + ".",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Bits a byte by tokenizer, for each budget."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, bits) in zip(axes, measurements["bits"].items(), strict=True):
        comparing.draw_seeds(axis, bits, "bits a byte")
        axis.set_title(f"at equal {name}")


if __name__ == "__main__":
    claim.run()
