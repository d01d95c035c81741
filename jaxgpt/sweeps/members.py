"""The members of a sweep: their configs, folders and outcomes.

SWEEP/sweep.json      the base config and every member's overrides
SWEEP/members/003     the run folder of member 3
SWEEP/outcomes/003.json  how it ended: status ("done", "failed" or "stopped") and reason
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxgpt import config
from jaxgpt.common import door
from jaxgpt.common.files import read_json, write_json
from jaxgpt.config import Config, UserError, first_line
from jaxgpt.runs import checkpoint, metrics_log, records
from jaxgpt.sweeps.search_space import Overrides

SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str  # "003"
    overrides: Overrides
    cfg: Config
    workdir: Path

    @property
    def step(self) -> int:
        """The newest step with a checkpoint, or 0."""
        return max(checkpoint.saved_steps(self.workdir), default=0)

    def losses(self) -> dict[int, float]:
        """Validation loss by step."""
        return metrics_log.valid_losses(self.workdir, self.cfg.train.num_steps)


@dataclass(frozen=True)
class Row:
    """The status of one member."""

    member: str
    workdir: Path
    status: str  # "done", "stopped: REASON", "failed: REASON", "step 250" (unfinished) or "waiting"
    valid_loss: float | None  # of the last evaluation, nats per token
    steps: int  # trained so far
    overrides: Overrides

    @property
    def done(self) -> bool:
        return self.status == "done"


class Sweep:
    """All members and their folder. Raises UserError that lists every invalid member."""

    def __init__(self, base: Config | ConfigDict, overrides: Iterable[Overrides], folder: str | Path) -> None:
        self.folder = Path(folder)
        values = config.to_json(base) if isinstance(base, Config) else base.to_dict()
        self._base = config.from_config_dict(values)
        all_overrides = list(overrides)
        cfgs = _configs(values, all_overrides)
        width = max(3, len(str(len(cfgs) - 1)))
        self.members = [
            Member(f"{i:0{width}}", given, cfg, self.folder / "members" / f"{i:0{width}}")
            for i, (given, cfg) in enumerate(zip(all_overrides, cfgs, strict=True))
        ]
        self.fields = list(dict.fromkeys(name for given in all_overrides for name in given))

    def open(self) -> None:
        """Write sweep.json. Raises UserError if the folder holds another sweep; new members at the end are allowed."""
        records.make_folder(self.folder)
        door.check(self.folder)
        path, now = self.folder / "sweep.json", [_plain(member.overrides) for member in self.members]
        if path.exists():
            self._check_same(path, now)
        elif any(self.folder.iterdir()):
            raise UserError(f"{self.folder} holds files but no sweep.json: give a new or an empty --workdir")
        write_json(path, {"base": config.to_json(self._base), "members": now})

    def _check_same(self, path: Path, now: list[Overrides]) -> None:
        try:
            old = read_json(path)
            base, before = config.from_json(old["base"]), list(old["members"])
        except config.NewerVersion as error:
            raise UserError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} can't be read ({first_line(error)}): give another --workdir") from None
        another = f"{self.folder} holds another sweep"
        advice = "give another --workdir, or run the same sweep again"
        if changed := config.differences(base, self._base):
            raise UserError(f"{another}, whose base config differs ({'; '.join(changed)}): {advice}")
        if before != now[: len(before)]:
            at = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), len(now))
            here = _as_text(now[at]) if at < len(now) else "not there"
            raise UserError(
                f"{another}: its member {at} is {_as_text(before[at])}, here it is {here}: {advice}"
            )
        if base.train.num_steps < self._base.train.num_steps:  # members that are done have more steps to do
            for member in self.members:
                if "train.num_steps" not in member.overrides and self._is_done(member):
                    self._outcome_path(member).unlink()

    def _is_done(self, member: Member) -> bool:
        return (self.outcome(member) or {}).get("status") == "done"

    def outcome(self, member: Member) -> dict[str, Any] | None:
        """How a member ended; None if it has not ended."""
        path = self._outcome_path(member)
        if not path.exists():
            return None
        try:
            found = read_json(path)
            return {"status": str(found["status"]), "reason": str(found["reason"])}
        except (ValueError, KeyError, TypeError):
            return None  # the member is trained again and its outcome rewritten

    def end(self, member: Member, status: str, reason: str = "") -> None:
        """Record that a member has ended."""
        self._outcome_path(member).parent.mkdir(exist_ok=True)
        write_json(self._outcome_path(member), {"status": status, "reason": reason})

    def forget_failures(self) -> None:
        """Delete the outcomes of failed members, so that they are trained again."""
        for member in self.members:
            if (outcome := self.outcome(member)) and outcome["status"] == "failed":
                self._outcome_path(member).unlink()

    def _outcome_path(self, member: Member) -> Path:
        return self.folder / "outcomes" / f"{member.name}.json"

    def rows(self) -> list[Row]:
        """The status of every member."""
        return [self._row(member) for member in self.members]

    def _row(self, member: Member) -> Row:
        losses, step, outcome = member.losses(), member.step, self.outcome(member)
        if outcome is None:
            status = f"step {step}" if step else "waiting"
        else:
            status = outcome["status"] + (f": {outcome['reason']}" if outcome["reason"] else "")
        loss = losses[max(losses)] if losses else None
        return Row(member.name, member.workdir, status, loss, step, member.overrides)


def _plain(overrides: Overrides) -> Overrides:
    """The overrides as JSON returns them: tuples become lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in overrides.items()}


def _as_text(overrides: Overrides) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in overrides.items()) or "the base config"


def _configs(base: dict[str, Any], all_overrides: list[Overrides]) -> list[Config]:
    """Each member's config. Raises UserError that lists every problem."""
    if not all_overrides:
        raise UserError("the sweep is empty: its sweep() must yield at least one dictionary of overrides")
    problems: list[str] = []
    cfgs: list[Config] = []
    first: dict[Config, int] = {}
    for i, overrides in enumerate(all_overrides):
        try:
            if not isinstance(overrides, dict) or not all(isinstance(name, str) for name in overrides):
                raise UserError(f"{overrides!r} is not a dictionary from dotted field names to values")
            cfg = _with_overrides(base, overrides)
        except UserError as error:
            problems.append(f"member {i}: {' '.join(str(error).split())}")
            continue
        cfgs.append(cfg)
        if cfg in first:
            problems.append(f"member {i} has the same config as member {first[cfg]} ({_as_text(overrides)})")
        first.setdefault(cfg, i)
    if not problems:
        return cfgs
    more = f"\n  and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    shown = "\n".join(f"  - {problem}" for problem in problems[:SHOWN_PROBLEMS])
    if len(problems) == 1:
        raise UserError(f"{problems[0]}: fix or remove that member; nothing was trained")
    raise UserError(
        f"{len(problems)} of {len(all_overrides)} members are invalid, nothing was trained:\n{shown}{more}"
    )


def _with_overrides(base: dict[str, Any], overrides: Overrides) -> Config:
    values = {name: dict(group) if isinstance(group, dict) else group for name, group in base.items()}
    for dotted, value in overrides.items():
        if hasattr(value, "item") and not getattr(value, "shape", ()):
            value = value.item()  # a NumPy number
        config.set_value(values, dotted, value)
    return config.from_config_dict(values)


def from_file(values: ConfigDict, module: Any, file: str) -> tuple[ConfigDict, list[Overrides]]:
    """The base config and the overrides of a sweep file's sweep(). Raises UserError."""
    make: Callable[[], Iterable[Overrides]] | None = getattr(module, "sweep", None)
    if make is None:
        raise UserError(
            f"{file} has no sweep(): it must yield dictionaries of overrides, as configs/sweeps/char_lr.py does"
        )
    try:
        return values, list(make())
    except Exception as error:
        raise UserError(f"sweep() of {file} failed: {type(error).__name__}: {error}") from error
