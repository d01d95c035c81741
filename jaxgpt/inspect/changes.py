"""What happened when: sentences about the steps between which something changed, from numbers and by stated rules.

A change happened between the last step at which at most a quarter of it was there and the first step from which at least three
quarters of it stayed. What is smaller than its rule asks for is not mentioned, so that an untrained run has nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxgpt.inspect import heads, token_kinds

NAMED = 0.5  # the least score of a head with a job, as in attention.named
RISE = 0.3  # and its least rise
FALL = 0.05  # nats: the least advantage of late tokens
SIGMAS = 3  # standard errors
KNOWN, BETTER = 0.3, 0.2  # the least rises of the share of known words and of an AUC
SPECIFIC = 0.8
GENERAL = ("previous_token", "induction")


def span(steps: Sequence[int], values: Sequence[float | None]) -> tuple[int, int] | None:
    """The steps between which a series made its change; None if it has none or unknown values."""
    if len(steps) < 2 or any(x is None for x in values):
        return None
    done = np.asarray(values, np.float64) - values[0]
    if not done[-1]:
        return None
    done = done / done[-1]
    late = int(np.flatnonzero(done < 0.75)[-1]) + 1  # from here on it stays
    early = int(np.flatnonzero(done[:late] <= 0.25)[-1])
    return steps[early], steps[late]


def crossing(steps: Sequence[int], values: Sequence[float], level: float) -> tuple[int, int] | None:
    """The steps between which a series fell below a level for good; None if it started or ended elsewhere."""
    above = np.flatnonzero(np.asarray(values, np.float64) >= level)
    if not len(above) or above[-1] == len(steps) - 1:
        return None
    return steps[above[-1]], steps[above[-1] + 1]


def events(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The changes of a run in the order of time: [{kind, text, from, to, short, layer and head (of a head)}]."""
    found = [event for kind in KINDS for event in kind(figures)]
    return sorted(found, key=lambda event: (event["to"], event["from"]))


def _event(kind: str, when: tuple[int, int], text: str, short: str, **more: Any) -> dict[str, Any]:
    between = f"between steps {when[0]:,} and {when[1]:,}"
    return {
        "kind": kind,
        "text": text.format(when=between),
        "short": short,
        "from": when[0],
        "to": when[1],
        **more,
    }


def _baselines(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    texts = {
        "unigram": "It learned how frequent each token is {when}: the loss fell below that of the frequencies alone",
        "bigram": "It learned more than pairs of tokens {when}: the loss fell below that of a table of pairs",
    }
    for name, text in texts.items():
        level = figures["levels"][name]
        when = None if level is None else crossing(figures["steps"], figures["loss"], level)
        if when and figures["loss"][-1] < level - SIGMAS * (figures["loss_error"][-1] or 0.0):
            yield _event(name, when, f"{text} ({level:.2f}).", f"below the {name} loss")


def _heads(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    patterns = figures["patterns"]
    layers, per_layer = np.shape(patterns["previous_token"]["scores"])[1:]
    for layer in range(layers):
        for head in range(per_layer):
            jobs = {}
            for name, one in patterns.items():
                values = [at[layer][head] for at in one["scores"]]
                if values[-1] is None or values[0] is None:
                    continue
                least = max(NAMED, one["high"] or 0.0, 2 * (one["share"] or 0.0))
                if values[-1] > least and values[-1] - values[0] >= RISE:
                    jobs[name] = values
            for name in token_kinds.KEYS:
                last = f"last_{name}"
                if name in jobs and last in jobs:
                    jobs.pop(name if jobs[last][-1] > SPECIFIC * jobs[name][-1] else last)
            if not jobs:
                continue
            name = max(jobs, key=lambda one: (one in GENERAL, jobs[one][-1]))
            when = span(figures["steps"], jobs[name])
            if when:
                values = jobs[name]
                text = (
                    f"Layer {layer}, head {head} {turned_into(name)} {{when}} (weight there {values[0]:.2f} at first, "
                    f"{values[-1]:.2f} at the end)."
                )
                yield _event("head", when, text, f"head {layer}.{head}: {short_name(name)}", layer=layer, head=head, pattern=name, value=values[-1])  # fmt: skip


def turned_into(name: str) -> str:
    """What a head with this job became, as the end of a sentence."""
    if name in GENERAL:
        return f"turned into {'an induction' if name == 'induction' else 'a previous-token'} head"
    return f"began to look at {heads.PATTERNS[name]}"


def short_name(name: str) -> str:
    """The job in a few words, for a label."""
    return name.replace("_", " ")


def _late(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The in-context loss: that of late tokens less that of early ones."""
    late, error = figures["late"], figures["late_change_error"][-1]
    if error is None or late[0] - late[-1] < max(FALL, SIGMAS * error):
        return
    when = span(figures["steps"], late)
    if when:
        text = (
            "At least half of the fall of its in-context loss came {when} (late tokens in a window less early ones: "
            f"{_signed(late[0])} nats per token at first, {_signed(late[-1])} at the end). It uses the context."
        )
        yield _event("late", when, text, "uses the context", value=late[-1])


def _signed(x: float) -> str:
    return f"{x:+.2f}".replace("-", "−")


def _tests(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for test in figures["tests"]:
        auc = test["auc"]
        if test["low"] is None or test["low"] <= 0.5 or auc[-1] - auc[0] < BETTER:
            continue
        when = span(figures["steps"], auc)
        if when:
            text = (
                f"Its token vectors learned “{test['name']}” {{when}} ({test['what']}: AUC {auc[0]:.2f} at first, "
                f"{auc[-1]:.2f} at the end)."
            )
            yield _event("test", when, text, f"“{test['name']}”", value=auc[-1])


def _words(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    words = [0.0 if share is None else share for share in figures["words"]]
    if words[-1] - words[0] >= KNOWN and (when := span(figures["steps"], words)):
        text = (
            f"It learned to write words {{when}}: {100 * words[0]:.0f} % of the words that it wrote at first were words of "
            f"the training text, {100 * words[-1]:.0f} % at the end."
        )
        yield _event("words", when, text, "writes words", value=words[-1])


def _frozen(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Parts that stayed exactly as they were until a step after the first."""
    changed = np.array(figures["changed"], bool)
    if not changed.any():
        return
    steps, first = figures["steps"], int(changed.any(axis=1).argmax())
    for name, of_part in zip(figures["parts"], changed.T, strict=True):
        if not of_part.any():
            yield {"kind": "frozen", "text": f"The {name} never changed.", "short": f"{name} frozen", "from": steps[0], "to": steps[-1], "part": name}  # fmt: skip
        elif (at := int(of_part.argmax())) > first:
            text = f"The {name} stayed exactly as it was at first, and began to change {{when}}."
            yield _event("frozen", (steps[at - 1], steps[at]), text, f"{name} begins to change", part=name)


KINDS = (_words, _baselines, _tests, _heads, _late, _frozen)
