"""Does a model that is too wide memorize a small text?

python -m experiments.overfitting [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

from typing import Any

from experiments import claim, comparing, trained
from experiments.claim import Amendment, Effect, Estimate, Result, Setting
from jaxgpt.data import tokenizers
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs import checkpoint
from jaxgpt.runs.load import load

NOTE = "Higher embedding_dim [...] increases: [...] Risk of overfitting (if too high and data is limited)."
CLAIM = "With too large a d_model, a model overfits: on a small text it does worse on unseen text than a narrower model."
PREDICTION = "The widest model has the highest loss on unseen text; the more so, the smaller the text."
REFUTED_BY = "An amount of text on which the widest model's loss on unseen text is not higher, or no longer if training stops early."
DESIGN = (
    "Character models of three widths, trained on the first characters of Shakespeare, in three amounts, for equally many steps with "
    "learning rates that suit every width (muP). Unseen text is from elsewhere in the corpus, the same for all. The gap is the loss on "
    "unseen minus that on training text. Compared: the widest with each narrower model, at the last step and stopped early (the checkpoint of eight that has "
    "the lowest loss on one half of the unseen text, scored on the other half). Each amount, with and without early stopping, is a condition."
)
MARGINS = {"gap": 0.02, "loss": 0.02}
AMENDMENTS = (
    Amendment(
        "2026-11-26", "Every amount of text is part of the verdict, and early stopping is measured.",
        "On 16,000 characters the widest model was better on unseen text, which the verdict left out.", "holds",
    ),
)  # fmt: skip
CHECKPOINTS = 8
LAST, EARLY = "at the last step", "stopped early"


def measure(setting: Setting) -> dict[str, Any]:
    """Losses on unseen and training text by width and amount, at the last step and by step."""
    widths = setting.pick((8, 16), (16, 64, 192), (64, 256, 768))
    amounts = setting.pick((3_000, 12_000), (4_000, 16_000, 64_000), (16_000, 128_000, 1_000_000))
    tokens, steps = setting.pick(64, 16_384, 65_536), setting.pick(2, 240, 3_000)
    corpus = prepare_dataset(trained.text_of(setting, "shakespeare", setting.pick(40_000, None, None)))
    letters = setting.folder / "letters.json"
    setting.folder.mkdir(parents=True, exist_ok=True)
    tokenizers.save(corpus.tokenizer, letters)  # a slice does not have all characters of the corpus
    base = comparing.base(
        setting, **comparing.WIDTHS_ALIKE, train__num_steps=steps, train__eval_tokens=64,
        train__checkpoint_every=max(1, steps // CHECKPOINTS), train__keep_checkpoints=CHECKPOINTS + 1,
        data__tokenizer_path=str(letters), data__valid_fraction=0.02,
    )  # fmt: skip
    variants = {
        _label(width, amount): {
            "model.d_model": width, "model.num_heads": max(1, width // 16),
            "data.path": trained.text_slice(setting.folder, "shakespeare", amount),
        }
        for amount in amounts
        for width in widths
    }  # fmt: skip
    rows = comparing.train(setting, "overfitting", base, variants)
    ids = corpus.valid.ids
    halves = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    curves: dict[str, list[list[list[float]]]] = {}  # by label and seed: step, and the losses on both halves
    seen: dict[str, list[float]] = {}
    for label, found in rows.items():
        curves[label], seen[label] = [], []
        for row in found:
            saved = sorted(checkpoint.saved_steps(row.workdir))
            runs = [load(row.workdir, step) for step in saved]
            curves[label].append(
                [
                    [
                        step,
                        *(
                            comparing.loss_on(run.model, run.params, half, tokens // 2).loss
                            for half in halves
                        ),
                    ]
                    for step, run in zip(saved, runs, strict=True)
                ]
            )
            seen_ids = prepare_dataset(runs[-1].config.data).train.ids
            seen[label].append(comparing.loss_on(runs[-1].model, runs[-1].params, seen_ids, tokens).loss)
    return {"widths": widths, "amounts": amounts, "curves": curves, "seen": seen}


def _label(width: int, amount: int) -> str:
    return f"{width} x {amount}"


def early(curve: list[list[float]]) -> float:
    """The loss on the second half of the unseen text, of the checkpoint that is best on the first half."""
    return min(curve, key=lambda row: row[1])[2]


def losses_of(
    measurements: dict[str, Any],
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """The losses on unseen text by when training stops and label, and the gaps at the last step by label."""
    if "curves" not in measurements:  # before checkpoints were kept
        return {LAST: measurements["unseen"]}, measurements["gaps"]
    curves, seen = measurements["curves"], measurements["seen"]
    last = {label: [(c[-1][1] + c[-1][2]) / 2 for c in found] for label, found in curves.items()}
    gaps = {label: [a - b for a, b in zip(found, seen[label], strict=True)] for label, found in last.items()}
    return {LAST: last, EARLY: {label: [early(c) for c in found] for label, found in curves.items()}}, gaps


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    unseen, gaps = losses_of(measurements)
    *others, wide = measurements["widths"]
    amounts = measurements["amounts"]
    unit = "nats a character"

    def wider(by_label: dict[str, list[float]], amount: int, than: int) -> Estimate:
        return claim.difference(by_label[_label(wide, amount)], by_label[_label(than, amount)])

    worse = {
        (when, amount, than): wider(losses, amount, than)
        for when, losses in unseen.items()
        for amount in amounts
        for than in others
    }
    gap = {amount: wider(gaps, amount, others[0]) for amount in amounts}
    parts = [
        Effect(
            f"unseen loss at d_model {wide} minus that at {than}", found, unit, margin=MARGINS["loss"],
            under=f"on {amount:,} characters, {when}",
        )
        for (when, amount, than), found in worse.items()
    ]  # fmt: skip
    parts.append(
        Effect(
            f"gap at d_model {wide} minus gap at {others[0]}, {amounts[0]:,} characters", gap[amounts[0]], unit,
            margin=MARGINS["gap"],
        )
    )  # fmt: skip
    listed = "; ".join(
        f"{amount:,} characters, {when}: {', '.join(f'{claim.show(worse[when, amount, than])} than {than}' for than in others)}"
        for when in unseen
        for amount in amounts
    )
    by_amount = {  # 0.0 is added so that none is -0.00
        when: ", ".join(f"{round(worse[when, amount, others[-1]].value, 2) + 0.0:+.2f}" for amount in amounts)
        for when in unseen
    }
    ends = [f"{nats} nats {when}" for when, nats in by_amount.items()]
    return Result(
        parts=tuple(parts),
        says=(
            f"The loss on unseen text at d_model {wide} is higher (below 0: lower) by, on {listed} ({unit}). The gap between unseen and "
            f"training text is wider by {', '.join(f'{claim.show(found)} on {amount:,}' for amount, found in gap.items())}."
        ),
        seeds=len(gaps[_label(wide, amounts[0])]),
        varies="the amount of text" + (" and when training stops" if len(unseen) > 1 else ""),
        headline=f"A wider model ({wide} against {others[-1]}), on unseen text after {', '.join(f'{amount:,}' for amount in amounts)} characters of "
        f"training text: {'; '.join(ends)}.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Gap and unseen loss by width, a colour for each amount of text, a point per seed."""
    unseen, gaps = losses_of(measurements)
    axes = figure.subplots(1, 1 + len(unseen))
    widths = measurements["widths"]
    for axis, (title, by_label) in zip(axes, {"gap, last step": gaps, **unseen}.items(), strict=True):
        for place, amount in enumerate(measurements["amounts"]):
            by_width = [by_label[_label(width, amount)] for width in widths]
            colour = claim.COLOURS[place]
            for width, found in zip(widths, by_width, strict=True):
                axis.plot([width] * len(found), found, "o", color=colour, markersize=2.5, alpha=0.5)
            means = [claim.mean(found) for found in by_width]
            axis.errorbar(
                widths, [e.value for e in means], [(e.high - e.low) / 2 for e in means], color=colour, capsize=3,
                label=f"{amount:,}",
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.minorticks_off()
        what = "unseen minus training text" if "gap" in title else "loss on unseen text"
        axis.set(title=title, xlabel="d_model", ylabel=f"{what}, nats a character")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside right upper", title="characters", fontsize=7
    )


if __name__ == "__main__":
    claim.run()
