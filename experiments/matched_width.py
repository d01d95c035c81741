"""Should the rows of the token table be as wide as the residual stream?

python -m experiments.matched_width [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

from typing import Any

from experiments import claim, comparing, trained, tuning
from experiments.claim import Amendment, Check, Effect, Result, Setting
from jaxgpt.config import Config
from jaxgpt.model.parameters import count_params, param_shapes

NOTE = "In practice, you want the embedding_dim to match the hidden size of your transformer layers for compatibility."
CLAIM = "The width of the embedding should match the hidden size of the transformer."
PREDICTION = "At equal parameters, rows as wide as the residual stream give the lowest loss."
REFUTED_BY = "Narrower or wider rows whose loss is not higher by 0.01 nats a word."
DESIGN = (
    "Word models of Shakespeare with the same number of parameters, divided differently between the token table and the "
    "blocks: rows as wide as the residual stream; narrower rows (projected) and a wider stream; wider rows and a narrower "
    "stream. MLPs have about 4 x d_model neurons, adjusted to make the parameters equal. Each at its own best learning rate of at least five, chosen with other seeds. The matched model must have a lower loss than each of the others."
)
MARGINS = {"loss": 0.01}
AMENDMENTS = (
    Amendment(
        "2026-11-26", "Each width has its own rate, and ten seeds.",
        "Rows of 32 were worse by 0.033 [0.003, 0.063] nats (p = 0.04) at one rate for all.", "holds",
    ),
)  # fmt: skip


def with_width(base: Config, embedding_dim: int, target: int) -> int:
    """The d_model (a multiple of twice the number of heads) whose parameter count with such rows is nearest to the target."""
    m = base.model

    def count(width: int) -> int:
        table = m.vocab_size * embedding_dim + (width * embedding_dim if width != embedding_dim else 0)
        positions = m.context_length if m.position == "learned" else 0
        return table + (positions + 2) * width + m.num_layers * (12 * width + 13) * width

    step = 2 * m.num_heads  # rotary positions need an even head width
    return min(range(step, 4_096, step), key=lambda width: abs(count(width) - target))


def measure(setting: Setting) -> dict[str, Any]:
    """Losses by the width of the rows."""
    words = {"data__tokenizer": "word", "data__vocab_size": setting.pick(128, 2_048, 8_192)}
    base = comparing.base(setting, **words, model__num_heads=2, train__num_steps=setting.pick(3, 400, 4_000))
    # Resolve the vocabulary size only: what depends on d_model must follow it.
    known = trained.changed(base, {"model.vocab_size": comparing.resolved(base).model.vocab_size})
    matched = base.model.d_model
    factors = setting.pick((0.5, 1), (0.25, 0.5, 1, 1.5), (0.25, 0.5, 1, 1.5))
    target = count_params(param_shapes(known.model))
    variants, sizes = {}, {}
    for width in (int(factor * matched) for factor in factors):
        d_model = matched if width == matched else with_width(known, width, target)
        fields = {"model.embedding_dim": width, "model.d_model": d_model}
        # The MLPs take up what the steps of d_model leave over.
        left = target - _count(known, fields)
        fields["model.d_ff"] = 4 * d_model + round(left / (base.model.num_layers * (2 * d_model + 1)))
        label = f"{width} / {d_model}"
        variants[label], sizes[label] = fields, _count(known, fields)
    rows, chosen = tuning.train(setting, "matched_width", base, variants)
    return {
        "losses": {label: comparing.losses(found) for label, found in rows.items()},
        "tuning": chosen,
        "parameters": sizes,
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, sizes, chosen = measurements["losses"], measurements["parameters"], measurements.get("tuning", {})
    (own,) = (label for label in losses if len(set(label.split(" / "))) == 1)
    above = {label: claim.difference(found, losses[own]) for label, found in losses.items() if label != own}
    differs = max(abs(size / sizes[own] - 1) for size in sizes.values())
    listed = ", ".join(f"{label} {claim.show(found)}" for label, found in above.items())
    return Result(
        parts=(
            *(
                Effect(
                    f"loss at rows / stream {label} minus loss at {own}",
                    found,
                    "nats a word",
                    margin=MARGINS["loss"],
                )
                for label, found in above.items()
            ),
            Check("largest relative difference in parameters", differs, 0.005),
        ),
        says=(
            f"With {sizes[own]:,} parameters each (within {100 * differs:.1f} %), the loss with other widths of rows / stream minus "
            f"that with {own}: {listed} nats a word."
        ),
        seeds=len(losses[own]),
        untold=tuning.at_the_edge(chosen),
        headline=f"At equal parameters, the loss with rows narrower or wider than the residual stream, minus that with equal widths, is between "
        f"{min(e.value for e in above.values()):.3f} and {max(e.value for e in above.values()):.3f} nats a word.",
    )


def _count(known: Config, fields: dict[str, int]) -> int:
    return count_params(param_shapes(trained.changed(known, fields).model))


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses by rows / stream."""
    axis = figure.subplots()
    comparing.draw_seeds(axis, measurements["losses"], "validation loss, nats a word")
    axis.set_xlabel("width of the rows / d_model, at equal parameters")


if __name__ == "__main__":
    claim.run()
