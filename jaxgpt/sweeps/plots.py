"""The plots of a sweep.

SWEEP/curves.png     validation loss by step
SWEEP/fields.png     validation loss by swept field: a heat map of two fields, else parallel lines
"""

from __future__ import annotations

import math
import statistics
import sys
from typing import Any

from jaxgpt.common.say import say
from jaxgpt.sweeps.members import Row, Sweep
from jaxgpt.sweeps.results import key_of, labels_of

LOSS = "validation loss, nats per token"


def draw(sweep: Sweep) -> None:
    """Write the two plots. Without matplotlib, print how to install it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say('no plots: they need matplotlib (pip install "jaxgpt[plots]")', sys.stderr)
        return
    rows = sweep.rows()
    curves = {m.name: {k: v for k, v in m.losses().items() if k > 0} for m in sweep.members}
    if not any(curves.values()):
        return
    values = [row.valid_loss for row in rows if row.valid_loss is not None and math.isfinite(row.valid_loss)]
    low, high = min(values), statistics.median(values) + 2 * (statistics.median(values) - min(values)) + 1e-3

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if points := curves[row.member]:
            axes.plot(list(points), list(points.values()), color=_color(row.valid_loss, low, high), lw=1.2)
    axes.set(xlabel="step", ylabel=LOSS, title=f"{len(rows)} members")
    figure.savefig(sweep.folder / "curves.png", dpi=110)

    fields = [name for name in sweep.fields if len(labels_of(rows, name)) > 1]
    if not fields:
        return
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    if len(fields) == 2:
        _heat_map(figure.subplots(), rows, *fields, high)
    else:
        _parallel(figure.subplots(), rows, fields, low, high)
    figure.savefig(sweep.folder / "fields.png", dpi=110)


def _color(loss: float | None, low: float, high: float) -> Any:
    from matplotlib import colormaps

    share = 1.0 if loss is None else min(1.0, max(0.0, (loss - low) / (high - low)))
    return colormaps["viridis"](0.92 * share)


def _heat_map(axes: Any, rows: list[Row], down: str, across: str, high: float) -> None:
    """The loss of each pair of values; the lowest of several members."""
    ys, xs = labels_of(rows, down), labels_of(rows, across)
    y_keys, x_keys = list(ys), list(xs)
    cells = [[math.nan] * len(xs) for _ in ys]
    for row in rows:
        y, x = y_keys.index(key_of(row, down)), x_keys.index(key_of(row, across))
        if row.valid_loss is not None:
            cells[y][x] = row.valid_loss if math.isnan(cells[y][x]) else min(row.valid_loss, cells[y][x])
    image = axes.imshow(cells, aspect="auto", cmap="viridis", vmax=high)
    axes.set(xlabel=across, ylabel=down)
    axes.set_xticks(range(len(xs)), xs.values())
    axes.set_yticks(range(len(ys)), ys.values())
    for y, line in enumerate(cells):
        for x, loss in enumerate(line):
            if not math.isnan(loss):
                dark = image.norm(min(loss, high)) < 0.6
                color = "white" if dark else "black"
                axes.text(x, y, f"{loss:.3f}", ha="center", va="center", color=color, fontsize=8)
    axes.figure.colorbar(image, label=LOSS)


def _parallel(axes: Any, rows: list[Row], fields: list[str], low: float, high: float) -> None:
    """One line per member through its values. The last axis is its loss."""
    for row in sorted(rows, key=lambda row: -(row.valid_loss or math.inf)):
        if row.valid_loss is None:
            continue
        heights = []
        for name in fields:
            levels = list(labels_of(rows, name))
            heights.append(levels.index(key_of(row, name)) / max(1, len(levels) - 1))
        heights.append(min(1.0, (row.valid_loss - low) / (high - low)))
        axes.plot(range(len(heights)), heights, color=_color(row.valid_loss, low, high), lw=1.2)
    for i, name in enumerate(fields):
        labels = list(labels_of(rows, name).values())
        for place, label in enumerate(labels):
            if len(labels) <= 8 or place in (0, len(labels) - 1):
                axes.text(i, place / max(1, len(labels) - 1), f" {label}", fontsize=7, va="center")
    for share in (0.0, 0.5, 1.0):
        axes.text(len(fields), share, f" {low + share * (high - low):.3f}", fontsize=7, va="center")
    axes.set_xticks(range(len(fields) + 1), [*fields, "validation loss"])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(fields) + 0.3)
