"""The steps of "Watch it learn" as small pictures and a table, for readers without a script or who want no motion."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from jaxgpt.inspect.static_tables import Words, table, visible_text

SHOWN = 6  # steps
SIZE = 220  # of a picture, in pixels
LETTERS, LINES = 12, 4  # of a token's name, and of a sample


def learning(payload: dict[str, Any]) -> str:
    """The events as a list, maps and samples of some steps, and a table of all steps."""
    figures = payload["learning"]
    events = "".join(f"<li>{escape(one['text'])}</li>" for one in figures["events"])
    steps = figures["steps"]
    chosen = sorted({int(i) for i in np.linspace(0, len(steps) - 1, min(SHOWN, len(steps)))})
    pictures = "".join(_small(payload, i) for i in chosen)
    heads = [one for one in figures["events"] if one["kind"] == "head"]
    rows = [
        [
            f"{step:,}", figures["loss"][i], figures["words"][i], figures["late"][i],
            *(figures["patterns"][one["pattern"]]["scores"][i][one["layer"]][one["head"]] for one in heads),
        ]
        for i, step in enumerate(steps)
    ]  # fmt: skip
    columns = ["step", "loss", "share of its words in the training text", "late less early loss"]
    columns += [f"head {one['layer']}.{one['head']}, {one['pattern'].replace('_', ' ')}" for one in heads]
    return (
        '<details open data-still><summary>Step by step, without motion</summary>'
        + (f"<ol>{events}</ol>" if events else "<p>Nothing changed enough to be named.</p>")
        + f'<div class="small-maps">{pictures}</div></details>'
        + table("what was measured at every step", columns, rows)
    )  # fmt: skip


def _small(payload: dict[str, Any], i: int) -> str:
    """One step: its map of tokens, its loss, and the start of what it writes."""
    figures = payload["learning"]
    title = f"step {figures['steps'][i]:,}: loss {figures['loss'][i]:.2f}"
    lines = figures["samples"][i].strip("\n").split("\n")[:LINES]
    sample = "\n".join(visible_text(line)[:60] if line else "" for line in lines)
    return f"<figure><figcaption><b>{title}</b></figcaption>{_map(payload, i, title)}<pre>{escape(sample)}</pre></figure>"


def _map(payload: dict[str, Any], i: int, title: str) -> str:
    found = payload["learning"]["map"]
    if not found:
        return ""
    words, parts = Words(payload), []
    far = 1.05 * max(abs(x) for xy in found["xy"][-1] for x in xy) or 1.0
    for token, kind, (x, y) in zip(found["ids"], found["kind"], found["xy"][i], strict=True):
        name = words(token)
        name = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
        left, top = (SIZE / 2 + float(np.clip(v, -far, far)) / far * (SIZE / 2 - 10) for v in (x, -y))
        kind_class = found["kinds"][kind].replace(" ", "-")
        parts.append(
            f'<text class="name kind-{kind_class}" text-anchor="middle" x="{left:.1f}" y="{top + 4:.1f}">{escape(name)}</text>'
        )
    return (
        f'<svg role="img" aria-label="Map of the tokens at {escape(title)}" width="{SIZE}" height="{SIZE}" '
        f'viewBox="0 0 {SIZE} {SIZE}"><rect class="axis" x="0.5" y="0.5" width="{SIZE - 1}" height="{SIZE - 1}"/>'
        f"{''.join(parts)}</svg>"
    )
