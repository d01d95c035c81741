"""“Watch it learn” as a moving picture for slides: RUN/learn.gif."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from jaxgpt.common.files import write_atomically
from jaxgpt.config import UserError
from jaxgpt.inspect.static_tables import Words, visible_text

NAME = "learn.gif"
SIZE, DPI = (8.1, 3.8), 100  # inches, dots per inch
EACH, LAST = 500, 2500  # milliseconds that a step and the last one are shown
LINES, WIDTH = 9, 44  # of the sample, in characters
COLOURS = {
    "vowel": "#a3480f", "pronoun": "#a3480f", "consonant": "#1f5a93", "other word": "#1f5a93", "capital": "#2b6a2d",
    "capitalized word": "#2b6a2d", "digit": "#7a3b9c", "punctuation": "#6a5a00", "space": "#96214f", "small word": "#96214f",
}  # fmt: skip


def write(payload: dict[str, Any], folder: Path) -> Path:
    """Write the map of tokens, the sample and the loss of every step as frames. Returns the path of the file.

    Raises UserError for a run without snapshots, and where matplotlib is missing.
    """
    if not payload["learning"]:
        raise UserError(
            "no moving picture: this run has no snapshots; train one with --config.train.snapshots=log:24"
        )
    try:
        import matplotlib
        from PIL import Image  # comes with matplotlib
    except ImportError:
        raise UserError('--gif needs matplotlib: pip install -e ".[plots]"') from None
    from matplotlib.figure import Figure

    frames = []
    with matplotlib.rc_context({"font.family": ["DejaVu Sans"]}):
        for i in range(len(payload["learning"]["steps"])):
            figure = Figure(SIZE, dpi=DPI, facecolor="#fdfcf9")
            _draw(figure, payload, i)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            buffer.seek(0)
            frames.append(Image.open(buffer).convert("RGB").quantize(64, method=Image.Quantize.MAXCOVERAGE))
    content = io.BytesIO()
    frames[0].save(
        content, format="GIF", save_all=True, append_images=frames[1:], loop=0, optimize=True,
        duration=[EACH] * (len(frames) - 1) + [LAST],
    )  # fmt: skip
    write_atomically(folder / NAME, content.getvalue())
    return folder / NAME


def _draw(figure: Any, payload: dict[str, Any], i: int) -> None:
    """One step: the map at the left; the sample and the loss at the right."""
    learned, words = payload["learning"], Words(payload)
    steps = learned["steps"]
    if learned["map"]:
        axes = figure.add_axes((0.02, 0.06, 0.42, 0.84))
        axes.set(xticks=[], yticks=[], facecolor="#fdfcf9")
        far = 1.1 * max(abs(x) for xy in learned["map"]["xy"][-1] for x in xy) or 1.0
        axes.set(xlim=(-far, far), ylim=(-far, far))
        points = zip(learned["map"]["ids"], learned["map"]["kind"], learned["map"]["xy"][i], strict=True)
        for token, kind, (x, y) in points:
            colour = COLOURS.get(learned["map"]["kinds"][kind], "#5b5850")
            axes.text(
                x,
                y,
                words(token)[:8],
                color=colour,
                ha="center",
                va="center",
                fontsize=9,
                clip_on=True,
                parse_math=False,
            )
        axes.set_title(f"tokens, step {steps[i]:,}", fontsize=11, loc="left")
    lines = [
        visible_text(line)[:WIDTH] if line else "" for line in learned["samples"][i].strip("\n").split("\n")
    ]
    figure.text(0.48, 0.945, f"what it writes, step {steps[i]:,}", fontsize=11, va="center")
    figure.text(
        0.48,
        0.88,
        "\n".join(lines[:LINES]),
        family="DejaVu Sans Mono",
        fontsize=8.5,
        va="top",
        parse_math=False,
    )
    axes = figure.add_axes((0.52, 0.12, 0.44, 0.26), facecolor="#fdfcf9")
    axes.plot(steps, learned["loss"], color="#7fa8cf")
    axes.plot(steps[: i + 1], learned["loss"][: i + 1], color="#1f5a93", linewidth=2)
    axes.plot(steps[i], learned["loss"][i], "o", color="#1f5a93")
    axes.set_xscale("symlog")
    axes.set_xlim(0, steps[-1])
    shown = [step for step in (0, 1, 10, 100, 1000, 10_000, 100_000) if step <= steps[-1]]
    axes.set_xticks(shown, [f"{step:,}" for step in shown])
    for name in ("unigram", "bigram"):
        if learned["levels"][name] is not None:
            axes.axhline(learned["levels"][name], color="#5b5850", linestyle=":", linewidth=1)
            axes.text(0, learned["levels"][name], f" {name}", fontsize=7, va="bottom")
    axes.tick_params(labelsize=7)
    axes.set_title(f"loss {learned['loss'][i]:.2f}", fontsize=9, loc="right")
