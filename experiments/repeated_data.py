"""How often may a text be repeated before new text would be better?

python -m experiments.repeated_data [--quick | --full] [--seeds 10]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import claim, comparing, trained, tuning
from experiments.claim import Effect, Result, Setting

NOTE = "With a fixed budget of training, up to four epochs of repeated text are almost as good as new text; later ones are worth less and less (Muennighoff et al. 2023)."
CLAIM = "At equal training, four epochs of a quarter of the text cost almost nothing, and 64 epochs of a sixty-fourth cost much."
PREDICTION = "Four epochs lose less than 0.03 nats against one, 64 epochs lose more than 0.1."
REFUTED_BY = "A loss of more than 0.03 nats with four epochs, or of less than 0.1 with 64."
DESIGN = (
    "Character models of Shakespeare see the same number of characters in training: a part of the text once, or a half, a "
    "quarter, ... of that part again and again, 2 to 64 times. All are evaluated on the same end of the text, which none of them "
    "has seen. Each number of epochs has its own best learning rate of at least five, chosen with other seeds."
)
MARGINS = {"four": 0.01, "many": 0.1}
LIMITS = (
    "No weight decay was tuned and no training was stopped early: both help a model that sees its text often."
)


def part(folder: Path, source: Path, first: int, last: int) -> str:
    """A file with the characters first to last of a text."""
    path = folder / f"{source.stem}_{first}_{last}.txt"
    if not path.exists():
        path.write_text(source.read_text("utf-8")[first:last], "utf-8")
    return str(path)


def measure(setting: Setting) -> dict[str, Any]:
    """Losses by the number of epochs."""
    epochs = setting.pick((1, 4, 64), (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64))
    base = comparing.base(setting, train__num_steps=setting.pick(3, 500, 5_000))
    source = Path(trained.text_slice(setting.folder, "shakespeare", setting.pick(40_000, None, None)))
    budget = base.train.num_steps * base.data.batch_size * base.model.context_length
    characters = len(source.read_text("utf-8"))
    held_out = part(setting.folder, source, characters * 9 // 10, characters)
    least = base.model.context_length + 2
    variants = {
        str(count): {
            "data.path": part(
                setting.folder, source, 0, max(least, min(budget, characters * 9 // 10) // count)
            ),
            "data.valid_path": held_out,
        }
        for count in epochs
    }
    # All have the characters of the complete text, so that their models are of one size.
    vocabulary = trained.characters_of(setting.folder, source)
    fields = {"data.tokenizer_path": vocabulary}
    rows, chosen = tuning.train(
        setting, "repeated_data", base, {label: found | fields for label, found in variants.items()}
    )
    return {
        "losses": {label: comparing.losses(found) for label, found in rows.items()},
        "chosen": chosen,
        "budget": budget,
        "unique": {
            label: len(Path(found["data.path"]).read_text("utf-8")) for label, found in variants.items()
        },
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, unit = measurements["losses"], "nats a character"
    above = {label: claim.difference(found, losses["1"]) for label, found in losses.items() if label != "1"}
    spare = claim.mean([0.04 - (a - b) for a, b in zip(losses["4"], losses["1"], strict=True)])
    first = next((label for label, found in above.items() if found.low > 0.02), None)
    return Result(
        parts=(
            Effect("0.04 minus the cost of four epochs", spare, unit, margin=MARGINS["four"]),
            Effect("loss with 64 epochs minus loss with one", above["64"], unit, margin=MARGINS["many"]),
        ),
        says=(
            f"At {measurements['budget']:,} characters of training, repeated text costs "
            + ", ".join(f"{claim.show(found)} ({label} epochs)" for label, found in above.items())
            + f" {unit} against text that is read once. {tuning.says(measurements['chosen'])}"
        ),
        untold=tuning.at_the_edge(measurements["chosen"]),
        seeds=len(losses["1"]),
        headline=(
            f"The loss after reading a quarter of the text four times, minus that of reading all of it once, is {claim.show(above['4'])} nats; a sixty-fourth 64 times: "
            f"{claim.show(above['64'])}" + (f"; from {first} epochs on the cost is above 0.02." if first else ".")
        ),
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses by the number of epochs."""
    axis = figure.subplots()
    comparing.draw_seeds(axis, measurements["losses"], "loss on unseen text, nats a character")
    axis.set_xlabel("epochs (at equal training)")


if __name__ == "__main__":
    claim.run()
