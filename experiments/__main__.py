"""Measure every claim, one after another, and write the table of results.

    python -m experiments [--only lookup neurons] [--quick | --full] [--seeds 5]
    python -m experiments --table    # sentences, verdicts, plots and the table again, from results/*.json

Each claim runs in a process of its own, so that a failure does not stop the others. The table then shows its reason, and
the exit code is 1.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments import claim
from jaxgpt.common import cli
from jaxgpt.common.files import write_atomically, write_json
from jaxgpt.config import UserError
from jaxgpt.runs import records

# Modules, in the order of the learning notes.
CLAIMS = [
    "lookup",
    "meaning",
    "analogy",
    "width",
    "overfitting",
    "powers_of_two",
    "matched_width",
    "positions",
    "no_mask",
    "static_dynamic",
    "heads_add_up",
    "number_of_heads",
    "neurons",
    "mlp_width",
    "residual",
    "character_loss",
    "gradient_rows",
    "fine_tuning",
    "parallel_positions",
]

HEAD = """# The claims of the learning notes, measured

Written by `python -m experiments`. Every number comes from a run, and every verdict follows from the numbers by the rule in
[claim.py](claim.py). Square brackets are 95 % intervals (Student's t, over seeds or repeats, unless the text says otherwise).
The first claim that needs trained models trains them, and its time includes that; later claims reuse them.

```
python -m experiments.heads_add_up            # one claim: five seeds, two cores
python -m experiments                         # all of them, and this page
python -m experiments --only lookup neurons   # some
python -m experiments --table                 # this page again, from the stored measurements
```

`--quick` is a test that takes seconds; `--full` is larger, for a GPU; `--seeds 10` trains more models, as lanes of one program.
"""


def read(results: Path, name: str) -> dict[str, Any] | None:
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


def row(name: str, record: dict[str, Any] | None) -> str:
    """One line of the table."""
    if record is None:
        return f"| {name} | | not measured yet | | | `python -m experiments.{name}` |"
    if "failed" in record:
        return f"| {record['claim']} | {_cell(record['failed'])} | **failed** | | {record['seconds']:.0f} s | `{record['command']}` |"
    plot = f"[plot](#{name})"
    return (
        f"| {_cell(record['claim'])} | {_cell(record['says'])} | **{record['verdict']}** | {plot} | "
        f"{record['seconds']:.0f} s | `{record['command']}` |"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def section(record: dict[str, Any], folder: str) -> str:
    """The section of one claim: how it was measured, its parts, its plot."""
    lines = [f"## {record['name']}", "", record["claim"], "", record["design"], ""]
    lines += ["| part | measured | required | verdict |", "| --- | --- | --- | --- |"]
    for part in record["parts"]:
        if "at_most" in part:
            value = "-" if part["value"] is None else f"{part['value']:.3g}"
            lines.append(
                f"| {_cell(part['what'])} | {value} | at most {part['at_most']:.3g} | {part['verdict']} |"
            )
            continue
        must = f"above {part['above']:g}" + (f" by {part['margin']:g}" if part["margin"] else "")
        found = claim.show(claim.estimate(part), part["unit"])
        lines.append(
            f"| {_cell(part['what'])} | {found} (n = {part['count']}) | {must} | {part['verdict']} |"
        )
    if record["untold"]:
        lines += ["", f"Nothing can be concluded: {record['untold']}."]
    lines += ["", f"![{record['name']}]({folder}/{record['name']}.png)", ""]
    return "\n".join(lines)


def table(results: Path, relative: str) -> str:
    """The text of README.md."""
    found = {name: read(results, name) for name in CLAIMS}
    lines = [
        HEAD,
        "| claim | measured | verdict | plot | time | command |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [row(name, record) for name, record in found.items()]
    measured = [record for record in found.values() if record is not None]
    total = sum(record["seconds"] for record in measured)
    lines += ["", f"{len(measured)} of {len(found)} claims, {total / 60:.1f} min in total."]
    places: dict[str, list[str]] = {}
    for record in measured:
        if "failed" not in record:
            places.setdefault(_place(record), []).append(record["name"])
    for place, names in places.items():
        lines.append(f"{'Measured' if len(places) == 1 else ', '.join(names)}: {place}.")
    lines += ["", "```", claim.__doc__.split("\n\n", 2)[2].strip(), "```", ""]
    lines += [section(record, relative) for record in measured if "failed" not in record]
    return "\n".join(lines).rstrip() + "\n"


def _place(record: dict[str, Any]) -> str:
    m = record["machine"]
    return (
        f"{m['cores']} cores, {m['cpu']}, device {m['device']}, JAX {m['jax']}, Python {m['python']}, "
        f"commit {record['commit'] or 'unknown'}, scale {record['scale']}"
    )


def write_table(results: Path) -> Path:
    """Write README.md next to the results folder."""
    path = results.parent / "README.md"
    write_atomically(path, table(results, results.name).encode())
    return path


def conclude_again(name: str, results: Path) -> None:
    """Write a measured claim's sentences, verdict and plot again, from its measurements."""
    record = read(results, name)
    if record is not None and "failed" not in record:
        module = importlib.import_module(f"experiments.{name}")
        claim.write(module, claim.concluded(module, record), results)


def run_one(name: str, setting: claim.Setting, results: Path) -> bool:
    """Measure one claim in a process of its own. A failure is written in place of the result."""
    command = [sys.executable, "-m", f"experiments.{name}", *claim.flags_of(setting)]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--runs", str(setting.runs), "--results", str(results)], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if not done.returncode:
        record = read(results, name)
        print(f"{name:<20} {record['verdict']:<28} {seconds:5.0f} s  {record['says']}", flush=True)
        return True
    lines = done.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"ended by signal {-done.returncode}"
    print(f"{name:<20} {'failed':<28} {seconds:5.0f} s  {reason}", flush=True)
    records.make_folder(results)
    failed = {"name": name, "claim": name, "failed": reason, "seconds": round(seconds, 1)}
    write_json(results / f"{name}.json", failed | {"command": " ".join(["python", *command[1:]])})
    return False


def main(argv: list[str]) -> int:
    """Run the command line; see --help."""
    flags = claim.parser("python -m experiments", __doc__.splitlines()[0])
    flags.add_argument("--only", nargs="+", default=CLAIMS, metavar="NAME", help="only these claims")
    flags.add_argument(
        "--table",
        action="store_true",
        help="measure nothing: write sentences, verdicts, plots and the table again from the stored measurements",
    )
    args = flags.parse_args(argv)
    if unknown := [name for name in args.only if name not in CLAIMS]:
        raise UserError(f"--only {' '.join(unknown)}: choose from {', '.join(CLAIMS)}")
    setting, results = claim.setting_of(args)
    failed = []
    for name in args.only:
        if args.table:
            conclude_again(name, results)
        elif not run_one(name, setting, results):
            failed.append(name)
    print(write_table(results))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
