"""The results of a sweep: a CSV file, a table, and the best config as a file for `jaxgpt.train`.

SWEEP/results.csv    member, workdir, status, valid_loss, steps, and one column per swept field
SWEEP/best.py        the config of the best member (see best_row)
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from pathlib import Path
from typing import Any

from jaxgpt.common.cli import command_line
from jaxgpt.common.files import write_atomically
from jaxgpt.config import FIELDS, Config, value_of
from jaxgpt.sweeps.members import Row, Sweep

COLUMNS = ("member", "workdir", "status", "valid_loss", "steps")
SEEDS = ("train.seed", "data.seed")
MOST_SHOWN = 40  # members in the terminal's table


def write(sweep: Sweep) -> None:
    """Write results.csv and best.py to the sweep's folder."""
    rows = sweep.rows()
    write_csv(sweep.folder / "results.csv", rows, sweep.fields)
    if best := best_row(rows):
        member = next(member for member in sweep.members if member.name == best.member)
        path = sweep.folder / "best.py"
        write_atomically(path, config_file(member.cfg, best, len(rows), path).encode())


def by_setting(rows: list[Row]) -> list[list[Row]]:
    """The rows grouped by their exact overrides, seeds apart."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        setting = sorted((name, repr(value)) for name, value in row.overrides.items() if name not in SEEDS)
        groups.setdefault(tuple(setting), []).append(row)
    return list(groups.values())


def best_row(rows: list[Row]) -> Row | None:
    """The member with the lowest validation loss in the setting with the lowest mean over seeds.

    The mean keeps one lucky seed from winning. Only finished members count. None if there are none.
    """
    settings = by_setting([row for row in rows if row.done and row.valid_loss is not None])
    if not settings:
        return None
    best = min(settings, key=lambda found: statistics.fmean(row.valid_loss for row in found))
    return min(best, key=lambda row: row.valid_loss)


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe in front."""
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    try:
        float(text)
        return text
    except ValueError:
        return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def write_csv(path: Path, rows: list[Row], fields: list[str]) -> None:
    """Write one line per member. A field that a member does not override is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *fields])
    for row in rows:
        loss = "" if row.valid_loss is None else repr(row.valid_loss)
        own = [row.overrides.get(name, "") for name in fields]
        writer.writerow(map(_cell, [row.member, row.workdir, row.status, loss, row.steps, *own]))
    write_atomically(path, text.getvalue().encode())


def config_file(cfg: Config, best: Row, count: int, path: Path) -> str:
    """The text of a config file with the fields that differ from the defaults."""
    default = Config()
    # The path is part of a docstring.
    command = command_line("train", config=path).replace("\\", "\\\\").replace('"', '\\"')
    lines = [
        f'"""The best of {count} members of a sweep, member {best.member}: validation loss {best.valid_loss:.4f} nats per token.',
        "",
        f"    {command}",
        '"""',
        "",
        "from jaxgpt.config import default_config",
        "",
        "",
        "def get_config():",
        "    config = default_config()",
    ]
    for name in FIELDS:
        if (value := value_of(cfg, name)) != value_of(default, name):
            lines.append(f"    config.{name} = {value!r}")
    return "\n".join([*lines, "    return config", ""])


# --- the table ------------------------------------------------------------------------------------------


def as_text(sweep: Sweep) -> str:
    """A table of the members by loss, and a table of the means over seeds if seeds were swept."""
    rows = sorted(sweep.rows(), key=lambda row: (not row.done, row.valid_loss is None, row.valid_loss or 0.0))
    header = ["member", *sweep.fields, "valid loss", "steps", "status"]
    labels = {name: labels_of(rows, name) for name in sweep.fields}
    table = [
        [
            row.member,
            *(labels[name][key_of(row, name)] for name in sweep.fields),
            "-" if row.valid_loss is None else f"{row.valid_loss:.4f}",
            str(row.steps),
            row.status,
        ]
        for row in rows[:MOST_SHOWN]
    ]
    text = _aligned([header, *table])
    if len(rows) > MOST_SHOWN:
        text += f"\n... and {len(rows) - MOST_SHOWN} more in {sweep.folder / 'results.csv'}"
    if means := means_over_seeds(sweep.rows(), sweep.fields):
        text += "\n\n" + _aligned(means)
    count = sum(row.done for row in rows)
    text += f"\n\n{count} of {len(rows)} members done, all in {sweep.folder / 'results.csv'}"
    if best := best_row(rows):
        text += f"\nbest: member {best.member}, validation loss {best.valid_loss:.4f}; its config: {sweep.folder / 'best.py'}"
    return text


def means_over_seeds(rows: list[Row], fields: list[str]) -> list[list[str]]:
    """A table of the mean and standard deviation over seeds, best first. Empty if only seeds or no seeds were swept."""
    others = [name for name in fields if name not in SEEDS]
    if len(others) == len(fields) or not others:
        return []
    labels = {name: labels_of(rows, name) for name in others}
    lines = []
    for found in by_setting(rows):
        setting = [labels[name][key_of(found[0], name)] for name in others]
        losses = [row.valid_loss for row in found if row.done and row.valid_loss is not None]
        mean = statistics.fmean(losses) if losses else math.inf
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else "-"
        lines.append(
            (mean, [*setting, f"{mean:.4f}" if losses else "-", spread, f"{len(losses)} of {len(found)}"])
        )
    lines.sort(key=lambda line: line[0])
    return [[*others, "mean over seeds", "deviation", "done"], *(line for _, line in lines)]


def key_of(row: Row, name: str) -> str:
    """The exact value of a swept field, as a key for `labels_of`."""
    return repr(row.overrides.get(name, ""))


def labels_of(rows: list[Row], name: str) -> dict[str, str]:
    """The values of a swept field in order, as {exact value: label}.

    Labels have four digits, or all digits if two values agree to four.
    """
    values = {key_of(row, name): row.overrides.get(name, "") for row in rows}
    if all(isinstance(value, int | float) for value in values.values()):
        values = dict(sorted(values.items(), key=lambda item: item[1]))
    labels = {key: f"{x:.4g}" if isinstance(x, float) else str(x) for key, x in values.items()}
    if len(set(labels.values())) < len(labels):
        labels = {key: str(x) for key, x in values.items()}
    return labels


def _aligned(table: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )
