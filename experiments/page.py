"""experiments/README.md: what was found, and how; every number follows from the records."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from experiments import claim, rule
from experiments.intervals import q_values
from experiments.rule import AGAIN, FAILS, HOLDS, KINDS
from jaxgpt.common.files import write_atomically
from jaxgpt.config import UserError

Record = dict[str, Any]
LINES = 10  # of what was found
COLOURS = {HOLDS: claim.COLOURS[2], FAILS: claim.COLOURS[1]}

HEAD = """# What one reads about transformers, measured

Written by `python -m experiments`. Each claim is a sentence of the learning notes, or a question of the field. Its file says before
measuring what is expected, what would refute it, and how large an effect must be to matter; the verdict follows from the numbers by
[one rule](rule.py)."""

READING = """## How to read this

A **nat** is the unit of the loss, -ln(p) of the right token. A guess among 71 characters costs ln(71) = 4.26 nats. A loss lower by
0.01 nats means that the right character gets a probability 1 % higher, as a geometric mean; by 0.7 nats, twice the probability.

An **AUC** says how often a related pair has a higher cosine than an unrelated one: 0.5 is chance, 1 is always.

Square brackets are 95 % **intervals**: of a hundred such intervals, about 95 contain the true value. They are Student's, over seeds or
over processes (n is their number), unless the text says otherwise. A minus sign in a name is a difference, paired by seed; "A / B, times" is a
ratio of two times that were measured in turns.

In the picture, each point is an effect divided by its margin: right of the dashed line at 1, with the complete interval, it holds; left of it, it does
not; across it, nothing can be told. Left of -1 the opposite is true. The axis is linear between -2 and 2, and logarithmic beyond."""

LIMITS = """## Limits of all claims

The models trained here have 2 to 4 layers and are mostly 64 wide; they read one text (Shakespeare) for 100 to 600 steps. What holds for them may not
hold for large models. A claim that needs more says so, and asks a published model where one is installed. Times are of the machine named below."""

COMMANDS = """```
python -m experiments.heads_add_up            # one claim: ten seeds, two cores
python -m experiments --jobs 2                # all of them, two at a time, and this page
python -m experiments --only lookup neurons   # some
python -m experiments --table                 # this page again, from the stored measurements
python -m experiments --check                 # does every number here follow from them?
```

`--quick` is a test that takes seconds; `--full` is larger, for a GPU. The first claim that needs trained models trains them, and its time
includes that; later claims reuse them."""


def read(results: Path, name: str) -> Record | None:
    """A claim's record, or None if it has not been measured."""
    path = results / f"{name}.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): measure it again, python -m experiments --only {name}"
        ) from None


def effects_of(record: Record) -> list[Record]:
    """The parts that are effects."""
    return [part for part in record.get("parts", ()) if "at_most" not in part]


def discoveries(records: list[Record]) -> dict[tuple[str, str, str], float]:
    """The q of every effect, by claim, name and condition."""
    found = [
        ((record["name"], part["what"], part["under"]), math.nan if part["p"] is None else part["p"])
        for record in records
        for part in effects_of(record)
    ]
    return dict(zip((key for key, _ in found), q_values([p for _, p in found]), strict=True))


def cell(text: str) -> str:
    """Text that fits a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def measured(part: Record) -> str:
    """The number of a part."""
    if "at_most" in part:
        return "-" if part["value"] is None else f"{part['value']:.3g}"
    return claim.show(claim.estimate(part), part["unit"])


# Claims that are asked of a published model too: the condition of their parts in real_model's record.
REAL = {
    "meaning": "meaning", "analogy": "analogy", "static_dynamic": "static_dynamic", "heads_add_up": "heads_add_up",
    "pseudowords": "the sense of bank", "induction": "induction",
}  # fmt: skip


def in_real_model(name: str, record: Record | None) -> str:
    """The first effect of a published model that answers a claim, with its verdict; "" for a claim that is not asked of it."""
    if name not in REAL:
        return ""
    parts = (record or {}).get("parts", ())
    part = next((part for part in parts if part["under"] == REAL[name]), None)
    return "not measured" if part is None else cell(f"{part['what']}: {measured(part)} ({part['verdict']})")


def row(name: str, record: Record | None, real: Record | None = None) -> str:
    """One line of the table; `real` is the record of the published model."""
    return f"{_row(name, record)} {in_real_model(name, real)} |"


def _row(name: str, record: Record | None) -> str:
    if record is None:
        return f"| {name} | not measured yet: `python -m experiments.{name}` | |"
    if "failed" in record:
        return f"| {record['claim']} | {cell(record['failed'])} | **failed** |"
    first = next(iter(effects_of(record) or record["parts"]), None)
    effect = "" if first is None else cell(f"{named(first)}: {measured(first)}")
    return f"| {cell(record['note'])} | {effect} | [**{cell(record['verdict'])}**](#{name}) |"


def named(part: Record) -> str:
    """A part with its condition."""
    return part["what"] + (f", {part['under']}" if part["under"] else "")


def small(p: float) -> str:
    """A p or q, to two digits."""
    return "-" if not math.isfinite(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def section(record: Record, folder: str, q: dict[tuple[str, str, str], float]) -> str:
    """The section of one claim."""
    name = record["name"]
    lines = [f"## {name}", "", f"> {' '.join(record['note'].split())}", ""]
    lines += [f"**{record['verdict']}.** {record['says']}", ""]
    if record["kind"] != AGAIN:
        lines += [f"![{name}]({folder}/{name}.png)", ""]
    lines += [f"Claim: {record['claim']}", "", f"Expected: {record['prediction']}", ""]
    lines += [f"Would refute it: {record['refuted_by']}", "", f"Design: {record['design']}", ""]
    if record["limits"]:
        lines += [f"Limits: {record['limits']}", ""]
    if record["parts"]:
        lines += ["| part | measured | must be | p | q | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for part in record["parts"]:
        what = cell(named(part))
        if "at_most" in part:
            lines.append(
                f"| {what} | {measured(part)} | at most {part['at_most']:.3g} | | | {part['verdict']} |"
            )
            continue
        chances = f"{small(math.nan if part['p'] is None else part['p'])} | {small(q[name, part['what'], part['under']])}"
        verdict = part["verdict"] + (f": {part['reason']}" if part["reason"] else "")
        must = f"above {part['above'] + part['margin']:g}"
        lines.append(f"| {what} | {measured(part)} (n = {part['count']}) | {must} | {chances} | {verdict} |")
    if record["parts"]:
        lines.append("")
    if record["untold"]:
        lines += [f"Nothing can be concluded: {record['untold']}.", ""]
    if "registered" not in record:
        lines += [
            "Measured before the rule of today: margins and predictions were written down afterwards; measure again.",
            "",
        ]
    for change in record["amendments"]:
        lines += [
            f"Amended {change['when']}: {change['what']} Why: {change['why']} Verdict before: {change['before']}.",
            "",
        ]
    worked = f", {record['cpu_seconds']:.0f} s of CPU time" if "cpu_seconds" in record else ""
    lines += [f"`{record['command']}`: {record['seconds']:.0f} s{worked}.", ""]
    return "\n".join(lines)


def table(results: Path, relative: str, names: list[str]) -> str:
    """The text of README.md."""
    found = {name: read(results, name) for name in names}
    records = [record for record in found.values() if record is not None and "failed" not in record]
    q = discoveries(records)
    lines = [HEAD, "", "## What was found", ""]
    told = sorted((r for r in records if r["headline"]), key=lambda r: KINDS.index(r["kind"]))
    lines += [
        f"- {record['headline']} ([{record['name']}](#{record['name']}): {record['kind']})"
        for record in told[:LINES]
    ]
    counts = Counter(record["kind"] for record in records)
    listed = ", ".join(f"{kind}: {counts[kind]}" for kind in KINDS if counts[kind])
    lines += ["", "## All claims", "", f"{len(records)} of {len(found)} measured. Verdicts: {listed}.", ""]
    lines += ["| the sentence | one effect | verdict | SmolLM2-135M |", "| --- | --- | --- | --- |"]
    lines += [row(name, record, found.get("real_model")) for name, record in found.items()]
    sure = sum(x <= 0.05 for x in q.values())
    lines += [
        "",
        f"{len(q)} effects; {sure} are on one side of their margin at a false-discovery rate of 5 %.",
        "",
    ]
    lines += [
        f"![all effects]({relative}/forest.png)",
        "",
        READING,
        "",
        LIMITS,
        "",
        "## Commands",
        "",
        COMMANDS,
        "",
    ]
    clock = sum(record["seconds"] for record in records if "cpu_seconds" not in record)
    worked = sum(record.get("cpu_seconds", 0.0) for record in records)
    lines += [
        f"The claims with a CPU time used {worked / 60:.0f} min of it."
        + (f" The others took {clock / 60:.0f} min on the clock, with pauses." if clock else "")
        + " Each section has its own time."
    ]
    places: dict[str, list[str]] = {}
    for record in records:
        places.setdefault(_place(record), []).append(record["name"])
    for place, at in places.items():
        lines.append(f"{'Measured' if len(places) == 1 else ', '.join(at)}: {place}.")
    lines += ["", "## The rule", "", "```", rule.__doc__.split("\n\n", 1)[1].strip(), "```", ""]
    lines += [section(record, relative, q) for record in records]
    return "\n".join(lines).rstrip() + "\n"


def _place(record: Record) -> str:
    m = record["machine"]
    return (
        f"{m['cores']} cores, {m['cpu']}, device {m['device']}, JAX {m['jax']}, Python {m['python']}, "
        f"commit {record['commit'] or 'unknown'}, scale {record['scale']}"
    )


def draw_forest(figure: Any, records: list[Record]) -> None:
    """Every effect divided by its margin, with its interval."""
    axis = figure.subplots()
    rows = [(record["name"], part) for record in records for part in effects_of(record)]
    for at, (_, part) in enumerate(rows):
        value, low, high = (
            (x - part["above"]) / part["margin"]
            for x in claim.numbers([part[k] for k in ("value", "low", "high")])
        )
        colour = COLOURS.get(part["verdict"], claim.COLOURS[4])
        axis.plot([low, high], [at, at], color=colour, linewidth=1.2)
        axis.plot(value, at, "o", color=colour, markersize=2.5)
    axis.set_yticks(range(len(rows)), [f"{name}: {_short(named(part))}" for name, part in rows], fontsize=5)
    axis.set_ylim(len(rows), -1)
    axis.set_xscale("symlog", linthresh=2)
    for x, style in ((0, "-"), (1, "--"), (-1, ":")):
        axis.axvline(x, color="#7a7a7a", linewidth=0.8, linestyle=style)
    axis.set_xlabel(
        "effect / its margin (green: holds, red: does not hold, grey: cannot be told)", fontsize=7
    )


def _short(text: str, length: int = 90) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def write(results: Path, names: list[str]) -> Path:
    """Write README.md next to the results folder, and the picture of all effects."""
    found = [read(results, name) for name in names]
    records = [record for record in found if record is not None and "failed" not in record]
    count = sum(len(effects_of(record)) for record in records)
    claim.write_plot(draw_forest, records, results / "forest.png", (8, 1 + 0.11 * count))
    path = results.parent / "README.md"
    write_atomically(path, table(results, results.name, names).encode())
    return path
