"""A claim, what was measured for it, and the verdict that the numbers give.

Each module that __main__.py lists is one claim. It has CLAIM (one sentence), DESIGN (what is measured and how),
`measure(setting)` (the measurements, as plain JSON), `conclude(measurements) -> Result` and `draw(figure, measurements)`.
`python -m experiments.<name>` measures the claim, writes results/<name>.json and results/<name>.png, and prints the
result and the verdict. Sentences, verdicts and plots follow from the stored measurements alone: `python -m experiments
--table` makes them again without measuring.

The rule for an Effect: a number that the claim says is above 0 (for a ratio: above 1, and 1 is subtracted from
everything below), with its 95 % interval [low, high] and `margin`, the smallest size that matters (0: any size does),
chosen before measuring:

    holds                        low > 0, and the number is at least margin
    does not hold                high < margin (below 0, if margin is 0): the opposite, or too small to matter
    cannot be told at this size  there is no interval, or it reaches beyond both -margin and +margin: too wide to decide
    inside noise                 all other cases: 0 (or a size that does not matter) is possible

A Check has no noise: it holds if the number is within its limit. A claim of several parts gets the verdict of its worst
part, in the order of VERDICTS. If a control fails, nothing can be concluded, whatever its parts say.
"""

from __future__ import annotations

import functools
import io
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.config import UserError
from jaxgpt.runs import records
from jaxgpt.vectors.word_tests import Estimate

HOLDS, NOISE, UNTOLD, FAILS = "holds", "inside noise", "cannot be told at this size", "does not hold"
VERDICTS = (FAILS, UNTOLD, NOISE, HOLDS)  # the worst first
RESULTS = Path(__file__).parent / "results"
SCALES = ("quick", "standard", "full")


# --- intervals ------------------------------------------------------------------------------------------


def student_t(t: float, df: int) -> float:
    """P(|T| <= t) of Student's t with `df` degrees of freedom (an integer); Abramowitz and Stegun 1964, 26.7.3-4."""
    angle = math.atan(t / math.sqrt(df))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = df % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    return 2 / math.pi * (angle + sin * total) if odd else sin * total


@functools.cache
def t_quantile(df: int, level: float = 0.95) -> float:
    """The t with P(|T| <= t) = level: 12.706 for 1 degree of freedom, 2.776 for 4, 1.960 for many."""
    low, high = 0.0, 1.0
    while student_t(high, df) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t(middle, df) < level else (low, middle)
    return high


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]  # JSON has None for nan


def mean(values: Sequence[float | None]) -> Estimate:
    """The mean of independent values with Student's 95 % interval; no interval (nan) for fewer than 2.

    A bootstrap over five seeds would give too narrow an interval.
    """
    values = _numbers(values)
    if not values or not all(map(math.isfinite, values)):
        return Estimate(math.nan, math.nan, math.nan, len(values))
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(middle, math.nan, math.nan, 1)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(middle, middle - half, middle + half, len(values))


def difference(of: Sequence[float | None], less: Sequence[float | None]) -> Estimate:
    """The mean of `of` - `less`, paired by seed or by repeat."""
    return mean([a - b for a, b in zip(_numbers(of), _numbers(less), strict=True)])


def ratio(of: Sequence[float], to: Sequence[float]) -> Estimate:
    """The geometric mean of `of` / `to`, paired; Student's interval of the logarithms."""
    found = mean([math.log(a / b) for a, b in zip(of, to, strict=True)])
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high), found.count)


def fastest(seconds: Sequence[float], among: int) -> list[float]:
    """The minimum of each `among` consecutive times: other processes can only make a step slower."""
    complete = len(seconds) // among * among
    return np.reshape(np.asarray(seconds, float)[:complete], (-1, among)).min(axis=1).tolist()


# --- parts of a claim -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """A number that the claim says is above `above`, with its interval and the smallest size that matters."""

    what: str
    found: Estimate
    unit: str = ""
    margin: float = 0.0
    above: float = 0.0  # 1 for ratios

    @property
    def verdict(self) -> str:
        """See the rule in the module's docstring."""
        value, low, high = (x - self.above for x in (self.found.value, self.found.low, self.found.high))
        if not all(map(math.isfinite, (value, low, high))):
            return UNTOLD
        if low > 0 and value >= self.margin:
            return HOLDS
        if high < self.margin:
            return FAILS
        return UNTOLD if self.margin and low < -self.margin else NOISE

    def to_json(self) -> dict[str, Any]:
        limits = {"above": self.above, "margin": self.margin}
        return {"what": self.what, **asdict(self.found), "unit": self.unit, **limits, "verdict": self.verdict}


@dataclass(frozen=True)
class Check:
    """A number that the claim says is at most `at_most`: an error, or a count of exceptions."""

    what: str
    value: float
    at_most: float

    @property
    def verdict(self) -> str:
        """Within the limit, or not: there is no noise."""
        if not math.isfinite(self.value):
            return UNTOLD
        return HOLDS if self.value <= self.at_most else FAILS

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "value": self.value, "at_most": self.at_most, "verdict": self.verdict}


def show(found: Estimate, unit: str = "") -> str:
    """`0.123 [0.100, 0.146] nats`, with the decimals that the interval's width justifies."""
    width = found.high - found.low
    size = width if math.isfinite(width) and width > 0 else abs(found.value) or 1.0
    places = min(6, max(0, 1 - math.floor(math.log10(size)))) if math.isfinite(size) else 3
    text = f"{found.value:.{places}f}"
    if math.isfinite(width):
        text += f" [{found.low:.{places}f}, {found.high:.{places}f}]"
    return f"{text} {unit}".rstrip()


def estimate(stored: dict[str, Any]) -> Estimate:
    """An Estimate that is stored as JSON."""
    return Estimate(*_numbers([stored[key] for key in ("value", "low", "high")]), stored["count"])


@dataclass(frozen=True)
class Result:
    """What the measurements say about one claim."""

    parts: tuple[Effect | Check, ...]  # the most important one first
    says: str  # one or two sentences with the measured numbers
    untold: str = ""  # the control that failed, so that nothing can be concluded
    seeds: int | None = None  # trained models per variant; None if no model was trained

    @property
    def verdict(self) -> str:
        """The worst verdict of the parts; see the rule in the module's docstring."""
        found = [part.verdict for part in self.parts]
        return UNTOLD if self.untold or not found else min(found, key=VERDICTS.index)


# --- settings -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """How large a measurement is."""

    scale: str = "standard"  # "quick": seconds, only a test; "standard": minutes on two cores; "full": a GPU
    seeds: int = 5
    runs: Path = Path("runs/experiments")  # trained models, shared by all claims

    def pick(self, quick: Any, standard: Any, full: Any) -> Any:
        """The value for this scale."""
        return {"quick": quick, "standard": standard, "full": full}[self.scale]

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
        "--seeds", type=int, default=None, help="models per variant; default 5, with --quick 2"
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
    seeds = args.seeds if args.seeds is not None else 2 if args.quick else 5
    if seeds < 1:
        raise UserError(f"--seeds={seeds}: give 1 or more (an interval needs at least 2)")
    setting = Setting(scale, seeds, args.runs)
    return setting, args.results or (setting.folder / "results" if args.quick else RESULTS)


def flags_of(setting: Setting) -> list[str]:
    """The flags for this setting."""
    flags = [] if setting.scale == "standard" else [f"--{setting.scale}"]
    return flags if setting.seeds == 5 else [*flags, f"--seeds={setting.seeds}"]


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


def record_of(module: ModuleType, measurements: Any, setting: Setting, seconds: float) -> dict[str, Any]:
    """What results/<name>.json holds."""
    name = name_of(module)
    measured = {
        "name": name,
        "command": " ".join(["python", "-m", f"experiments.{name}", *flags_of(setting)]),
        "scale": setting.scale,
        "seconds": round(seconds, 1),
        "machine": machine(),
        "commit": commit(),
        "measurements": measurements,
    }
    return concluded(module, plain(measured))


def concluded(module: ModuleType, record: dict[str, Any]) -> dict[str, Any]:
    """The record with everything that follows from its measurements: sentences, parts, verdict."""
    result = module.conclude(record["measurements"])
    found = {
        "claim": module.CLAIM,
        "design": module.DESIGN,
        "says": result.says,
        "verdict": result.verdict,
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


def write_plot(draw: Callable[[Any, dict], None], measurements: dict[str, Any], path: Path) -> None:
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
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, measurements)
        file = io.BytesIO()
        figure.savefig(file, dpi=90)
    # 48 colours are enough for lines and letters, and take a third of the bytes.
    Image.open(file).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


def measure(module: ModuleType, setting: Setting, results: Path) -> dict[str, Any]:
    """Measure one claim and write its JSON and its plot; returns what the JSON holds."""
    require_plots()  # now, not after minutes of measuring
    records.make_folder(results)
    start = time.perf_counter()
    measurements = module.measure(setting)
    record = record_of(module, measurements, setting, time.perf_counter() - start)
    write(module, record, results)
    return record


def write(module: ModuleType, record: dict[str, Any], results: Path) -> None:
    """Write a claim's JSON and its plot."""
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
