"""Does a model that is too wide memorize a small text?

python -m experiments.overfitting [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

from typing import Any

from experiments import claim, comparing, trained
from experiments.claim import Effect, Result, Setting
from jaxgpt.data import tokenizers
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.runs.load import load

NOTE = "Higher embedding_dim [...] increases: [...] Risk of overfitting (if too high and data is limited)."
CLAIM = "With too large a d_model, a model overfits a small text."
PREDICTION = "On a small text, the widest model has the largest gap between unseen and training text, and the highest loss on unseen text."
REFUTED_BY = "A widest model whose loss on unseen text is not higher than that of a narrower one."
DESIGN = (
    "Character models of three widths, trained on the first characters of Shakespeare, in three amounts, for equally many steps with "
    "learning rates that suit every width (muP). The gap is the loss on text from elsewhere in the corpus, the same for all, minus the "
    "loss on the training text. On the smallest text the widest model must have a larger gap than the narrowest, by more than "
    "on the largest text, and a higher loss on unseen text."
)
MARGINS = {"gap": 0.02, "loss": 0.02}


def measure(setting: Setting) -> dict[str, Any]:
    """Losses on unseen and training text by width and amount."""
    widths = setting.pick((8, 16), (16, 64, 192), (64, 256, 768))
    amounts = setting.pick((3_000, 12_000), (4_000, 16_000, 64_000), (16_000, 128_000, 1_000_000))
    tokens = setting.pick(64, 16_384, 65_536)
    corpus = prepare_dataset(trained.text_of(setting, "shakespeare", setting.pick(40_000, None, None)))
    letters = setting.folder / "letters.json"
    setting.folder.mkdir(parents=True, exist_ok=True)
    tokenizers.save(corpus.tokenizer, letters)  # a slice does not have all characters of the corpus
    base = comparing.base(
        setting, **comparing.WIDTHS_ALIKE, train__num_steps=setting.pick(2, 240, 3_000), train__eval_tokens=64,
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
    unseen: dict[str, list[float]] = {}
    gaps: dict[str, list[float]] = {}
    for label, found in rows.items():
        runs = [load(row.workdir) for row in found]
        seen_ids = prepare_dataset(runs[0].config.data).train.ids
        unseen[label] = [
            comparing.loss_on(run.model, run.params, corpus.valid.ids, tokens).loss for run in runs
        ]
        seen = [comparing.loss_on(run.model, run.params, seen_ids, tokens).loss for run in runs]
        gaps[label] = [a - b for a, b in zip(unseen[label], seen, strict=True)]
    return {"widths": widths, "amounts": amounts, "gaps": gaps, "unseen": unseen}


def _label(width: int, amount: int) -> str:
    return f"{width} x {amount}"


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    gaps, unseen = measurements["gaps"], measurements["unseen"]
    narrow, middle, wide = (measurements["widths"][place] for place in (0, -2, -1))
    little, *_, much = measurements["amounts"]

    def wider(by_label: dict[str, list[float]], amount: int, than: int = narrow) -> list[float]:
        pairs = zip(by_label[_label(wide, amount)], by_label[_label(than, amount)], strict=True)
        return [a - b for a, b in pairs]

    wider_gap = claim.mean(wider(gaps, little))
    more = claim.difference(wider(gaps, little), wider(gaps, much))
    worse, worse_than_middle = (claim.mean(wider(unseen, little, than)) for than in (narrow, middle))
    unit = "nats a character"
    return Result(
        parts=(
            Effect(f"gap at d_model {wide} minus gap at {narrow}, {little:,} characters", wider_gap, unit, margin=MARGINS["gap"]),
            Effect(f"the same minus its value at {much:,} characters", more, unit, margin=MARGINS["gap"]),
            Effect(f"unseen loss at d_model {wide} minus that at {narrow}, {little:,} characters", worse, unit, margin=MARGINS["loss"]),
        ),
        says=(
            f"On {little:,} characters, the gap between unseen and training text is {claim.show(wider_gap, unit)} larger at d_model "
            f"{wide} than at {narrow}; on {much:,} characters that difference is smaller by {claim.show(more, 'nats')}. The loss on "
            f"unseen text after training on {little:,} characters is {claim.show(worse, 'nats')} higher at d_model {wide} than at {narrow}, and "
            f"{claim.show(worse_than_middle, 'nats')} higher than at {middle}."
        ),
        seeds=len(gaps[_label(wide, little)]),
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Gap and unseen loss by width, a line for each amount of text."""
    axes = figure.subplots(1, 2)
    for axis, what, title in (
        (axes[0], "gaps", "unseen minus training text"),
        (axes[1], "unseen", "unseen text"),
    ):
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
