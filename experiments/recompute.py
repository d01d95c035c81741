"""Does every number of the page follow from the stored measurements? One line for each that does not."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import claim, page


def unequal(stored: Any, again: Any, place: str) -> Iterator[str]:
    """One line for each place where two JSON values differ by more than rounding."""
    if isinstance(stored, dict) and isinstance(again, dict):
        for key in [*stored, *(key for key in again if key not in stored)]:
            if key in stored and key in again:
                yield from unequal(stored[key], again[key], f"{place}.{key}" if place else key)
            else:
                yield f"{place}.{key}: only in the {'file' if key in stored else 'measurements'}"
    elif isinstance(stored, list) and isinstance(again, list) and len(stored) == len(again):
        for i, pair in enumerate(zip(stored, again, strict=True)):
            yield from unequal(*pair, f"{place}[{i}]")
    elif isinstance(stored, float) and isinstance(again, float):
        if not math.isclose(stored, again, rel_tol=1e-9, abs_tol=1e-12):
            yield f"{place}: the file has {stored!r}, the measurements give {again!r}"
    elif stored != again:
        yield f"{place}: the file has {stored!r}, the measurements give {again!r}"


def changed_margins(module: ModuleType, record: page.Record) -> Iterator[str]:
    """One line for each margin that is another than before measuring, unless an amendment says what it was."""
    if "registered" not in record:
        return
    before, now = record["registered"]["margins"], dict(module.MARGINS)
    amended = [change.margins for change in getattr(module, "AMENDMENTS", ())]
    for name in before.keys() | now.keys():
        old = before.get(name)
        if old != now.get(name) and not any(name in margins and margins[name] == old for margins in amended):
            yield f"margin of {name!r}: {old} before measuring, {now.get(name)} now, and no amendment says so"


def differences(results: Path, names: list[str], page_names: list[str]) -> Iterator[str]:
    """One line a difference: of the records, then of the page that shows all claims."""
    for name in names:
        record = page.read(results, name)
        if record is None or "failed" in record:
            continue
        module = importlib.import_module(f"experiments.{name}")
        yield from (f"{name}: {line}" for line in changed_margins(module, record))
        again = claim.concluded(module, record)
        yield from (f"{name}: {line}" for line in unequal(record, again, ""))
    readme = results.parent / "README.md"
    stored = readme.read_text("utf-8").splitlines() if readme.exists() else []
    again = page.table(results, results.name, page_names).splitlines()
    for line in difflib.unified_diff(stored, again, lineterm="", n=0):
        if line[0] in "+-" and line[:3] not in ("+++", "---"):
            where = "the file has" if line[0] == "-" else "the records give"
            yield f"{readme.name}: {where} {line[1:].strip()!r}"
