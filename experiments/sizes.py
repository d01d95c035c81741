"""Are the sizes of published models in the notes right?

python -m experiments.sizes
"""

from __future__ import annotations

from typing import Any

from experiments import claim
from experiments.claim import Check, Result, Setting
from jaxgpt.config.presets import PRESETS

NOTE = "BERT Base 768, BERT Large 1024, GPT-2 small 768, GPT-3 2048 - 12288, GPT-3 2048, GPT-4 (rumored) 8192, BioGPT 768. [...] Why powers of 2 like 256, 512?"
CLAIM = "The notes' sizes of published models are those that were published, and widths are powers of two."
PREDICTION = "Every entry equals the published number (rounded numbers: to half a percent)."
REFUTED_BY = "An entry that differs."
DESIGN = (
    "Each entry of the notes' tables that was published, with its source; those of GPT-2 also from this project's presets, which open the published weights. "
    "GPT-4's width was not published and cannot be checked. For widths that stand where the notes speak of powers of two: the odd factor, which is 1 for a power of two."
)
MARGINS: dict[str, float] = {}
# What the notes say, what was published, and where.
ENTRIES = {
    "d_model of the first transformer": (512, 512, "Vaswani et al. 2017, table 3"),
    "d_ff of the first transformer": (2048, 2048, "Vaswani et al. 2017, section 3.3"),
    "d_model of BERT Base": (768, 768, "Devlin et al. 2019, section 3"),
    "d_model of BERT Large": (1024, 1024, "Devlin et al. 2019, section 3"),
    "d_model of GPT-2 small": (768, PRESETS["gpt2"].d_model, "Radford et al. 2019, table 2"),
    "vocabulary of GPT-2": (50_257, PRESETS["gpt2"].vocab_size, "Radford et al. 2019, section 2.3"),
    "numbers in GPT-2 small's token table": (38_500_000, 50_257 * 768, "the product"),
    "d_model of GPT-3 (the largest)": (2048, 12_288, "Brown et al. 2020, table 2.1; 2,048 is its context length"),
    "d_model of the smallest GPT-3": (2048, 768, "Brown et al. 2020, table 2.1: 768 to 12,288"),
    "d_model of the largest GPT-3": (12_288, 12_288, "Brown et al. 2020, table 2.1"),
    "d_model of BioGPT": (768, 1024, "Luo et al. 2022: that of GPT-2 medium"),
}  # fmt: skip
WIDTHS = {
    "the first transformer": 512,
    "BERT Large": 1024,
    "GPT-2 small and BERT Base": 768,
    "the largest GPT-3": 12_288,
}


def measure(setting: Setting) -> dict[str, Any]:
    """The entries, as JSON."""
    return {
        "entries": {
            what: {"note": note, "published": real, "source": source}
            for what, (note, real, source) in ENTRIES.items()
        },
        "widths": WIDTHS,
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    entries, widths = measurements["entries"], measurements["widths"]
    apart = {what: abs(row["note"] / row["published"] - 1) for what, row in entries.items()}
    odd = {what: width // (width & -width) for what, width in widths.items()}
    wrong = [
        f"{what}: {entries[what]['note']:,} in the notes, {entries[what]['published']:,} published ({entries[what]['source']})"
        for what in apart
        if apart[what] > 0.005
    ]
    no_powers = [f"{widths[what]:,} ({what})" for what in odd if odd[what] > 1]
    return Result(
        parts=(
            *(Check(f"{what}, relative difference", value, 0.005) for what, value in apart.items()),
            *(Check(f"odd factor of the width of {what}, minus 1", value - 1, 0) for what, value in odd.items()),
        ),
        says=f"Of {len(entries)} entries {len(entries) - len(wrong)} are right. Wrong: {'; '.join(wrong)}. No powers of two: {', '.join(no_powers)}.",
        headline=f"{len(wrong)} of the notes' {len(entries)} sizes of published models are wrong (BioGPT is {entries['d_model of BioGPT']['published']:,} wide; "
        f"GPT-3 {entries['d_model of the largest GPT-3']['published']:,}), and {', '.join(no_powers)} are no powers of two.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """What the notes say, divided by what was published."""
    axis = figure.subplots()
    entries = measurements["entries"]
    ratios = [row["note"] / row["published"] for row in entries.values()]
    colours = [claim.COLOURS[1] if abs(ratio - 1) > 0.005 else claim.COLOURS[2] for ratio in ratios]
    axis.barh(range(len(entries)), ratios, color=colours)
    axis.axvline(1, color="#7a7a7a", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(entries)), list(entries), fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log", base=2)
    axis.set_xlabel("number in the notes / published number")


if __name__ == "__main__":
    claim.run()
