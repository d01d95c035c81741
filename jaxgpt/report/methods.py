"""How each number of a report is computed: a formula, the function, and where it comes from."""

from __future__ import annotations

METHODS = [
    (
        "loss of a token",
        "-log p(x[t+1] | x[0..t]), in nats; over log 2 in bits",
        "jaxgpt.report.analysis.losses",
        "",
    ),
]


def methods() -> list[dict[str, str]]:
    """name, formula, dotted name of the function, paper."""
    return [dict(zip(("name", "formula", "function", "source"), row, strict=True)) for row in METHODS]
