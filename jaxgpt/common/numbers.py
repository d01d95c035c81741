"""Numbers with their units, as the reports print them."""

from __future__ import annotations

import functools


def _scaled(count: float, units: dict[str, float], digits: int = 2) -> str:
    """A count in the largest unit that it reaches: `3.20 TFLOP`."""
    unit = next((unit for unit, size in units.items() if count >= size), list(units)[-1])
    return f"{count / units[unit]:,.{digits}f} {unit}"


as_bytes = functools.partial(_scaled, units={"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10})
as_flop = functools.partial(
    _scaled, units={"ZFLOP": 1e21, "EFLOP": 1e18, "PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6}
)
as_duration = functools.partial(
    _scaled, units={"years": 365 * 86_400, "days": 86_400, "h": 3600, "min": 60, "s": 1, "ms": 1e-3}, digits=1
)
