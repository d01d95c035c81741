"""A claim: what it says, how it is measured, and the files that hold what was found.

Each module that __main__.py lists is one claim. It has

    NOTE         the sentence that the claim is about, word for word (spelling corrected)
    CLAIM        how we read it: one sentence that can be true or false
    PREDICTION   what is seen if it is true
    REFUTED_BY   what would show that it is not
    DESIGN       what is measured and how
    MARGINS      effect -> the smallest size that matters, set before measuring
    LIMITS       where the result ends, besides what the page says once for all claims (optional)
    AMENDMENTS   what was changed after something had been measured: `Amendment`s (optional)
    measure(setting)       the measurements, as plain JSON
    conclude(measurements) a Result; raises Outdated if the measurements are of an earlier design and do not suffice
    draw(figure, measurements)

`python -m experiments.<name>` measures the claim, writes results/<name>.json and results/<name>.png, and prints the
result and the verdict. Sentences, verdicts and plots follow from the stored measurements alone: `python -m experiments
--table` makes them again without measuring, and `--check` compares. The rule for verdicts is in rule.py, the page in page.py.
"""

from __future__ import annotations

import io
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# A claim's file imports what it needs from here.
from experiments.intervals import difference as difference
from experiments.intervals import estimate as estimate
from experiments.intervals import fastest as fastest
from experiments.intervals import mean as mean
from experiments.intervals import numbers as numbers
from experiments.intervals import ratio as ratio
from experiments.intervals import show as show
from experiments.intervals import within as within
from experiments.rule import AGAIN as AGAIN
from experiments.rule import DEPENDS as DEPENDS
from experiments.rule import FAILS as FAILS
from experiments.rule import HOLDS as HOLDS
from experiments.rule import KINDS as KINDS
from experiments.rule import SHOWN as SHOWN
from experiments.rule import UNDER as UNDER
from experiments.rule import UNTOLD as UNTOLD
from experiments.rule import Amendment as Amendment
from experiments.rule import Check as Check
from experiments.rule import Effect as Effect
from experiments.rule import Result as Result
from experiments.rule import worded as worded
from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.config import UserError
from jaxgpt.runs import records
from jaxgpt.vectors.word_tests import Estimate as Estimate

RESULTS = Path(__file__).parent / "results"
SCALES = ("quick", "standard", "full")
SEEDS = 10  # where one seed differs from another, five are too few to see a margin


class Outdated(Exception):
    """The stored measurements are of an earlier design, and do not suffice for today's."""


# --- settings -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """How large a measurement is."""

    scale: str = "standard"  # "quick": seconds, only a test; "standard": minutes on two cores; "full": a GPU
    seeds: int = SEEDS
    runs: Path = Path("runs/experiments")  # trained models, shared by all claims
    first_seed: int = 0

    def pick(self, quick: Any, standard: Any, full: Any) -> Any:
        """The value for this scale."""
        return {"quick": quick, "standard": standard, "full": full}[self.scale]

    @property
    def seed_numbers(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def folder(self) -> Path:
        """The folder for runs of this scale."""
        return self.runs / self.scale


def parser(prog: str, description: str) -> cli.Parser:
    """A parser with the flags that all claims share."""
    flags = cli.Parser(prog=prog, description=description)
    size = flags.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a test that it runs, in seconds; gives no result")
    size.add_argument("--full", action="store_true", help="larger models, for a GPU")
    flags.add_argument(
        "--seeds", type=int, default=None, help="models per variant; default 10, with --quick 2"
    )
    flags.add_argument(
        "--runs", type=Path, default=Path("runs/experiments"), help="the folder for trained models"
    )
    flags.add_argument(
        "--results", type=Path, default=None, help="the folder for results; with --quick: RUNS/quick/results"
    )
    return flags


def setting_of(args) -> tuple[Setting, Path]:
    """The setting and the results folder for the shared flags."""
    scale = "quick" if args.quick else "full" if args.full else "standard"
    seeds = args.seeds if args.seeds is not None else 2 if args.quick else SEEDS
    if seeds < 1:
        raise UserError(f"--seeds={seeds}: give 1 or more (an interval needs at least 2)")
    setting = Setting(scale, seeds, args.runs)
    return setting, args.results or (setting.folder / "results" if args.quick else RESULTS)


def flags_of(setting: Setting) -> list[str]:
    """The flags for this setting."""
    flags = [] if setting.scale == "standard" else [f"--{setting.scale}"]
    return flags if setting.seeds == SEEDS else [*flags, f"--seeds={setting.seeds}"]


# --- writing --------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """The machine and versions that the numbers were measured with."""
    import jax

    names = [
        line.partition(":")[2].strip()
        for path in (Path("/proc/cpuinfo"),)
        if path.exists()
        for line in path.read_text("utf-8", "replace").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": next(iter(names), platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """records.git_commit, with `+changes` also if the experiments' code differs from the commit."""
    found = records.git_commit()
    if found is None or found.endswith("+changes"):
        return found
    command = ["git", "-C", str(RESULTS.parent), "status", "--porcelain", "--", "*.py"]
    changed = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return found + ("+changes" if changed.stdout.strip() else "")


def plain(value: Any) -> Any:
    """The value as JSON: lists, and None for nan and infinity."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Estimate):
        return plain(asdict(value))
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def registered(module: ModuleType) -> dict[str, Any]:
    """What a claim's file says before measuring."""
    return {
        "note": module.NOTE, "claim": module.CLAIM, "prediction": module.PREDICTION, "refuted_by": module.REFUTED_BY,
        "margins": dict(module.MARGINS), "commit": commit(),
    }  # fmt: skip


def record_of(
    module: ModuleType, before: dict[str, Any], measurements: Any, setting: Setting, took: dict[str, float]
) -> dict[str, Any]:
    """What results/<name>.json holds; `before` is what was registered, `took` the seconds of the clock and of the CPU."""
    name = name_of(module)
    measured = {
        "name": name,
        "command": " ".join(["python", "-m", f"experiments.{name}", *flags_of(setting)]),
        "scale": setting.scale,
        **{name: round(seconds, 1) for name, seconds in took.items()},
        "machine": machine(),
        "commit": commit(),
        "registered": before,
        "measurements": measurements,
    }
    return concluded(module, plain(measured))


def concluded(module: ModuleType, record: dict[str, Any]) -> dict[str, Any]:
    """The record with everything that follows from its measurements: sentences, parts, verdict."""
    found: dict[str, Any] = {
        "note": module.NOTE,
        "claim": module.CLAIM,
        "prediction": module.PREDICTION,
        "refuted_by": module.REFUTED_BY,
        "design": module.DESIGN,
        "limits": getattr(module, "LIMITS", ""),
        "amendments": [asdict(amendment) for amendment in getattr(module, "AMENDMENTS", ())],
    }
    try:
        result = module.conclude(record["measurements"])
    except Outdated as error:
        said = f"Measured before today's design, which needs {error}."
        found |= {
            "headline": "",
            "says": said,
            "verdict": AGAIN,
            "kind": AGAIN,
            "untold": "",
            "parts": [],
            "seeds": None,
        }
    else:
        found |= {
            "headline": result.headline,
            "says": result.says,
            "verdict": result.verdict,
            "kind": result.kind,
            "untold": result.untold,
            "parts": [part.to_json() for part in result.parts],
            "seeds": result.seeds,
        }
    record = record | plain(found)
    first = ["name", *found]
    return {key: record[key] for key in [*first, *(key for key in record if key not in first)]}


def name_of(module: ModuleType) -> str:
    """`lookup` for experiments.lookup, whether it is run or imported."""
    return Path(module.__file__).stem


COLOURS = ("#1f5fa8", "#d1603d", "#3b8a5a", "#8a5aa8", "#7a7a7a", "#c79a2a")


def require_plots() -> None:
    """Raises UserError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError('a plot needs matplotlib: pip install "jaxgpt[plots]"') from None


def write_plot(
    draw: Callable[[Any, Any], None], measurements: Any, path: Path, size: tuple[float, float] = (8, 3.2)
) -> None:
    """Draw one PNG, in the style that all plots share; equal numbers give equal bytes."""
    require_plots()
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # comes with matplotlib

    style = {
        "font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True, "legend.frameon": False,
        "axes.prop_cycle": cycler(color=COLOURS), "font.family": "DejaVu Sans",
    }  # fmt: skip
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **style}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, measurements)
        file = io.BytesIO()
        figure.savefig(
            file, dpi=90, bbox_inches="tight", pad_inches=0.05
        )  # a label may be longer than its axis
    # 48 colours are enough for lines and letters, and take a third of the bytes.
    Image.open(file).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


def cpu_seconds() -> float:
    """Seconds that the cores worked for this process and its children that have ended: a pause does not count."""
    return sum(os.times()[:4])


def measure(module: ModuleType, setting: Setting, results: Path) -> dict[str, Any]:
    """Measure one claim and write its JSON and its plot; returns what the JSON holds."""
    require_plots()  # now, not after minutes of measuring
    records.make_folder(results)
    before, start, worked = registered(module), time.perf_counter(), cpu_seconds()
    measurements = module.measure(setting)
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - worked}
    record = record_of(module, before, measurements, setting, took)
    write(module, record, results)
    return record


def write(module: ModuleType, record: dict[str, Any], results: Path) -> None:
    """Write a claim's JSON and its plot (if today's design can read the measurements)."""
    if record["kind"] != AGAIN:
        write_plot(module.draw, record["measurements"], results / f"{record['name']}.png")
    write_json(results / f"{record['name']}.json", record)


def run() -> None:
    """Run the command line of the claim whose module is `__main__`."""
    module = sys.modules["__main__"]

    def main(argv: list[str]) -> None:
        """Run the command line; see --help."""
        args = parser(f"python -m experiments.{name_of(module)}", module.CLAIM).parse_args(argv)
        cli.set_up_process()
        setting, results = setting_of(args)
        record = measure(module, setting, results)
        print(f"{record['claim']}\n{record['says']}\n{record['verdict']} ({record['seconds']:.0f} s)")
        print(f"{results / record['name']}.json, .png")

    cli.run(main)
