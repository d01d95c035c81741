"""Does too wide a model learn a small text by heart?

python -m experiments.overfitting [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

from typing import Any

from experiments import claim, comparing, trained
from experiments.claim import Effect, Result, Setting
from jaxgpt.data import tokenizers
from jaxgpt.data.dataset import prepare_dataset

CLAIM = "Too large a dimension on little data overfits."
DESIGN = (
    "Character models of three widths on the first characters of Shakespeare, three amounts of them; equally many steps, at "
    "rates that suit all widths alike (muP). The gap is the loss on text far away in the corpus, the same for all, less "
    "that on the text trained on. On the smallest text the widest model's gap must be the larger, more so than on the "
    "largest text, and its loss on unseen text the higher."
)


def measure(setting: Setting) -> Result:
    """Losses on seen and unseen text by width and amount."""
    widths = setting.pick((8, 16), (16, 64, 192), (64, 256, 768))
    amounts = setting.pick((3_000, 12_000), (4_000, 16_000, 64_000), (16_000, 128_000, 1_000_000))
    tokens = setting.pick(64, 16_384, 65_536)
    whole = prepare_dataset(trained.text_of(setting, "shakespeare", setting.pick(40_000, None, None)))
    letters = setting.folder / "letters.json"
    setting.folder.mkdir(parents=True, exist_ok=True)
    tokenizers.save(
        whole.tokenizer, letters
    )  # of the whole text: that of a slice would not know all of the rest
    base = comparing.base(
        setting, **comparing.WIDTHS_ALIKE, train__num_steps=setting.pick(2, 240, 3_000), train__eval_tokens=64,
        data__tokenizer_path=str(letters), data__valid_fraction=0.02,
    )  # fmt: skip
    variants = {
        f"{width} x {amount}": {
            "model.d_model": width, "model.num_heads": max(1, width // 16),
            "data.path": comparing.text_slice(setting, "shakespeare", 0, amount),
        }
        for amount in amounts
        for width in widths
    }  # fmt: skip
    rows = comparing.train(setting, "overfitting", base, variants)
    unseen: dict[str, list[float]] = {}
    gaps: dict[str, list[float]] = {}
    for label, found in rows.items():
        runs = [comparing.load(row) for row in found]
        seen_ids = prepare_dataset(runs[0].config.data).train.ids
        unseen[label] = [
            comparing.loss_on(run.model, run.params, whole.valid.ids, tokens).loss for run in runs
        ]
        seen = [comparing.loss_on(run.model, run.params, seen_ids, tokens).loss for run in runs]
        gaps[label] = [a - b for a, b in zip(unseen[label], seen, strict=True)]
    little, much = amounts[0], amounts[-1]
    narrow, wide = widths[0], widths[-1]

    def label(width: int, amount: int) -> str:
        return f"{width} x {amount}"

    wider_gap = claim.difference(gaps[label(wide, little)], gaps[label(narrow, little)])
    on_little, on_much = (
        [a - b for a, b in zip(gaps[label(wide, amount)], gaps[label(narrow, amount)], strict=True)]
        for amount in (little, much)
    )
    more = claim.difference(on_little, on_much)
    worse = claim.difference(unseen[label(wide, little)], unseen[label(narrow, little)])
    worse_than_middle = claim.difference(unseen[label(wide, little)], unseen[label(widths[-2], little)])
    unit = "nats a character"
    return Result(
        parts=(
            Effect(f"gap at d_model {wide} less that at {narrow}, on {little:,} characters", wider_gap, unit),
            Effect(f"the same less what it is on {much:,} characters", more, unit),
            Effect(f"unseen loss at d_model {wide} less that at {narrow}, on {little:,} characters", worse, unit),
        ),
        says=(
            f"On {little:,} characters the gap between unseen and seen text grows by {claim.show(wider_gap, unit)} from d_model "
            f"{narrow} to {wide}, {claim.show(more, 'nats')} more than on {much:,}. The loss on unseen text changes by "
            f"{claim.show(worse, 'nats')} there (from {widths[-2]} to {wide} by {claim.show(worse_than_middle, 'nats')})."
        ),
        measurements={"widths": widths, "amounts": amounts, "gaps": gaps, "unseen": unseen},
        seeds=setting.seeds,
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Gap and unseen loss over the width, a line for each amount of text."""
    axes = figure.subplots(1, 2)
    for axis, what, title in ((axes[0], "gaps", "unseen less seen text"), (axes[1], "unseen", "unseen text")):
        for place, amount in enumerate(measurements["amounts"]):
            estimates = [
                claim.mean(measurements[what][f"{width} x {amount}"]) for width in measurements["widths"]
            ]
            axis.errorbar(
                measurements["widths"], [e.value for e in estimates], [(e.high - e.low) / 2 for e in estimates],
                color=claim.COLOURS[place], marker="o", markersize=4, capsize=3, label=f"{amount:,} characters",
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set(title=f"{title}, nats a character", xlabel="d_model")
    axes[0].legend()


if __name__ == "__main__":
    claim.run()
