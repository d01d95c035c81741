"""What a sweep came to: results.csv, a table, plots, and the best config as a file that train takes.

SWEEP/results.csv    member, workdir, status, valid_loss, steps, and one column for each swept field
SWEEP/best.py        the config of the lowest validation loss
SWEEP/curves.png     validation loss over steps
SWEEP/fields.png     two swept fields: a heat map; else what each member had and came to, as parallel lines
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from jaxgpt.common.files import write_atomically
from jaxgpt.config import Config, field_names, value_of
from jaxgpt.sweeps.members import Row, Sweep

COLUMNS = ("member", "workdir", "status", "valid_loss", "steps")
SEEDS = ("train.seed", "data.seed")
MOST_SHOWN = 40  # members in the terminal's table


def write(sweep: Sweep) -> None:
    """Write all that there is to say into the sweep's folder."""
    rows = sweep.rows()
    write_csv(sweep.folder / "results.csv", rows, sweep.fields)
    if best := best_row(rows):
        member = next(member for member in sweep.members if member.name == best.member)
        path = sweep.folder / "best.py"
        write_atomically(path, config_file(member.cfg, best, len(rows), path).encode())
    try:
        draw(sweep, rows)
    except ImportError:
        print('no plots: they need matplotlib, pip install "jaxgpt[plots]"', file=sys.stderr)


def _setting(row: Row) -> tuple:
    """What a member has, seeds apart."""
    return tuple(sorted((name, repr(value)) for name, value in row.overrides.items() if name not in SEEDS))


def best_row(rows: list[Row]) -> Row | None:
    """Of the setting with the lowest mean over its seeds, the member with the lowest validation loss.

    One lucky seed does not make a setting the best. Only members that came to their end count.
    """
    settings: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.done and row.valid_loss is not None:
            settings.setdefault(_setting(row), []).append(row)
    if not settings:
        return None
    best = min(settings.values(), key=lambda found: statistics.fmean(row.valid_loss for row in found))
    return min(best, key=lambda row: row.valid_loss)


def write_csv(path: Path, rows: list[Row], fields: list[str]) -> None:
    """One line a member; a field that a member does not change is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *fields])
    for row in rows:
        loss = "" if row.valid_loss is None else repr(row.valid_loss)
        own = [row.overrides.get(name, "") for name in fields]
        writer.writerow([row.member, row.workdir, row.status, loss, row.steps, *own])
    write_atomically(path, text.getvalue().encode())


def config_file(cfg: Config, best: Row, count: int, path: Path) -> str:
    """A config file of what differs from the defaults."""
    default = Config()
    lines = [
        f'"""The best of {count} members of a sweep, member {best.member}: validation loss {best.valid_loss:.4f} nats a token.',
        "",
        f"    python -m jaxgpt.train --config {path}",
        '"""',
        "",
        "from jaxgpt.config import default_config",
        "",
        "",
        "def get_config():",
        "    config = default_config()",
    ]
    for name in field_names():
        if (value := value_of(cfg, name)) != value_of(default, name):
            lines.append(f"    config.{name} = {value!r}")
    return "\n".join([*lines, "    return config", ""])


# --- the table ------------------------------------------------------------------------------------------


def as_text(sweep: Sweep) -> str:
    """The members by loss; where seeds were swept, what each setting came to over them."""
    rows = sorted(sweep.rows(), key=lambda row: (not row.done, row.valid_loss is None, row.valid_loss or 0.0))
    header = ["member", *sweep.fields, "valid loss", "steps", "status"]
    table = [
        [
            row.member,
            *(_short(row.overrides.get(name, "")) for name in sweep.fields),
            "-" if row.valid_loss is None else f"{row.valid_loss:.4f}",
            str(row.steps),
            row.status,
        ]
        for row in rows[:MOST_SHOWN]
    ]
    text = _aligned([header, *table])
    if len(rows) > MOST_SHOWN:
        text += f"\n... and {len(rows) - MOST_SHOWN} more in {sweep.folder / 'results.csv'}"
    if over_seeds := _over_seeds(sweep.rows(), sweep.fields):
        text += "\n\n" + _aligned(over_seeds)
    count = sum(row.done for row in rows)
    text += f"\n\n{count} of {len(rows)} members done, all in {sweep.folder / 'results.csv'}"
    if best := best_row(rows):
        text += f"\nbest: member {best.member}, validation loss {best.valid_loss:.4f}; its config: {sweep.folder / 'best.py'}"
    return text


def _over_seeds(rows: list[Row], fields: list[str]) -> list[list[str]]:
    """A table of mean and standard deviation over seeds, the best first; empty where seeds are all or nothing of it."""
    others = [name for name in fields if name not in SEEDS]
    if len(others) == len(fields) or not others:
        return []
    settings: dict[tuple, list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(_short(row.overrides.get(name, "")) for name in others), []).append(row)
    lines = []
    for setting, found in settings.items():
        losses = [row.valid_loss for row in found if row.done and row.valid_loss is not None]
        mean = statistics.fmean(losses) if losses else math.inf
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else "-"
        lines.append(
            (mean, [*setting, f"{mean:.4f}" if losses else "-", spread, f"{len(losses)} of {len(found)}"])
        )
    lines.sort(key=lambda line: line[0])
    return [[*others, "mean over seeds", "deviation", "done"], *(line for _, line in lines)]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(table: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


# --- plots ----------------------------------------------------------------------------------------------


def draw(sweep: Sweep, rows: list[Row]) -> None:
    """The two plots. Raises ImportError where matplotlib is not there."""
    from matplotlib.figure import Figure

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
    axes.set(xlabel="step", ylabel="validation loss, nats a token", title=f"{len(rows)} members")
    figure.savefig(sweep.folder / "curves.png", dpi=110)

    fields = [name for name in sweep.fields if len({_short(r.overrides.get(name, "")) for r in rows}) > 1]
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


def _levels(rows: list[Row], name: str) -> list[Any]:
    """A field's values, in order."""
    found = {_short(row.overrides.get(name, "")): row.overrides.get(name, "") for row in rows}
    numbers = all(isinstance(value, int | float) for value in found.values())
    return sorted(found, key=lambda text: found[text]) if numbers else list(found)


def _heat_map(axes: Any, rows: list[Row], down: str, across: str, high: float) -> None:
    """Loss at each pair of values; where several members share one, the lowest."""
    ys, xs = _levels(rows, down), _levels(rows, across)
    cells = [[math.nan] * len(xs) for _ in ys]
    for row in rows:
        y, x = ys.index(_short(row.overrides.get(down, ""))), xs.index(_short(row.overrides.get(across, "")))
        if row.valid_loss is not None:
            cells[y][x] = min(row.valid_loss, cells[y][x]) if cells[y][x] == cells[y][x] else row.valid_loss
    image = axes.imshow(cells, aspect="auto", cmap="viridis", vmax=high)
    axes.set(xlabel=across, ylabel=down)
    axes.set_xticks(range(len(xs)), xs)
    axes.set_yticks(range(len(ys)), ys)
    for y, line in enumerate(cells):
        for x, loss in enumerate(line):
            if loss == loss:
                dark = image.norm(min(loss, high)) < 0.6
                axes.text(
                    x,
                    y,
                    f"{loss:.3f}",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=8,
                )
    axes.figure.colorbar(image, label="validation loss, nats a token")


def _parallel(axes: Any, rows: list[Row], fields: list[str], low: float, high: float) -> None:
    """One line a member through its values, the last axis its loss."""
    for row in sorted(rows, key=lambda row: -(row.valid_loss or math.inf)):
        if row.valid_loss is None:
            continue
        heights = []
        for name in fields:
            levels = _levels(rows, name)
            place = levels.index(_short(row.overrides.get(name, "")))
            heights.append(place / max(1, len(levels) - 1))
        heights.append(min(1.0, (row.valid_loss - low) / (high - low)))
        axes.plot(range(len(heights)), heights, color=_color(row.valid_loss, low, high), lw=1.2)
    for i, name in enumerate(fields):
        levels = _levels(rows, name)
        shown = levels if len(levels) <= 8 else [levels[0], levels[-1]]
        for level in shown:
            axes.text(i, levels.index(level) / max(1, len(levels) - 1), f" {level}", fontsize=7, va="center")
    for share in (0.0, 0.5, 1.0):
        axes.text(len(fields), share, f" {low + share * (high - low):.3f}", fontsize=7, va="center")
    axes.set_xticks(range(len(fields) + 1), [*fields, "validation loss"])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(fields) + 0.3)
