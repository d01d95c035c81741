"""Three plain sentences about a run, chosen by numbers: each kind of finding has a strength from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxgpt.inspect.plain import Names

COUNT = 3
LEAST = 0.02  # what is weaker is not told


def findings(figures: dict[str, Any], names: Names) -> list[dict[str, Any]]:
    """The `COUNT` strongest findings of a payload, the strongest first: {text, view, strength, what to select}.

    A kind gives at most one finding, its own strongest; and none where a baseline explains the number.
    """
    found = []
    for kind in KINDS:
        of_kind = sorted(kind(figures, names), key=lambda finding: -finding["strength"])
        found += [finding for finding in of_kind[:1] if finding["strength"] >= LEAST]
    found.sort(key=lambda finding: -finding["strength"])
    return [finding | {"strength": round(finding["strength"], 4)} for finding in found[:COUNT]]


def _predicts(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    """The loss beside the bigram baseline's. Strength: the difference as a share of it."""
    loss = figures["summary"]["measures"][0]
    if loss["model"] is None or not loss["bigram"]:
        return
    gained = loss["bigram"] - loss["model"]
    how = "below" if gained > 0 else "above"
    text = (
        f"The validation loss is {loss['model']:.3f} nats a token, {abs(gained):.3f} {how} that of guessing from the one "
        f"token before ({loss['bigram']:.3f}); to know nothing is {loss['uniform']:.3f}."
    )
    yield {
        "text": text, "view": "tokens", "strength": min(1.0, abs(gained) / loss["bigram"]), "kind": "loss",
        "value": loss["model"],
    }  # fmt: skip


def _looking(figures: dict[str, Any], name: str, sentence: str) -> Iterator[dict[str, Any]]:
    """Heads whose score is above that of every head of the untrained models. Strength: the weight above it."""
    scores = figures["attention"]["statistics"][name]
    for layer, row in enumerate(scores["value"]):
        for head, value in enumerate(row):
            if value is None or scores["high"] is None or value <= scores["high"]:
                continue
            untrained = scores["untrained"][layer][head]
            text = f"Head {layer}.{head} {sentence}: {value:.2f} of its weight (untrained {untrained:.2f})."
            yield {
                "text": text, "view": "attention", "strength": value - scores["high"],
                "layer": layer, "head": head, "kind": name, "value": value, "untrained": untrained,
            }  # fmt: skip


def _previous(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    return _looking(figures, "previous_token", "looks at the token before")


def _induction(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    where = "on random tokens that come twice looks at what followed the same token the first time"
    return _looking(figures, "induction", where)


def _needed(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    """The head whose absence costs most, where that is beyond 3 standard errors. Strength: the cost as a share of what
    the model is better than knowing nothing (log V)."""
    ablation = figures["attention"]["ablation"]
    if ablation is None:
        return
    uniform = figures["summary"]["measures"][0]["uniform"]
    room = max(uniform - ablation["loss"], 1e-9)
    costs = ablation["mean"]
    for layer, row in enumerate(costs["difference"]):
        for head, cost in enumerate(row):
            error = costs["standard_error"][layer][head]
            if cost is None or error is None or cost <= 3 * error:
                continue
            after = costs["loss"][layer][head]
            text = (
                f"Without head {layer}.{head} the loss rises from {ablation['loss']:.3f} to {after:.3f} nats a token "
                f"(+{cost:.3f}, standard error {error:.3f}): the most that any one head is worth."
            )
            yield {
                "text": text, "view": "attention", "strength": min(1.0, cost / room),
                "layer": layer, "head": head, "kind": "ablation", "value": cost,
            }  # fmt: skip


def _surprising(figures: dict[str, Any], names: Names) -> Iterator[dict[str, Any]]:
    """The probe's least expected token. Strength: what was expected instead, so that surprise is not mere uncertainty."""
    tokens, ids, ahead = figures["tokens"], figures["probe"]["ids"], figures["next"]
    one = ahead["temperatures"].index(1.0)
    t = int(np.argmax(tokens["nats"]))
    likely = float(np.exp(ahead["logits"][t][0] - ahead["logsumexp"][t][one]))
    bigram = tokens["bigram_nats"]
    beside = "" if bigram is None else f", the bigram baseline {np.exp(-bigram[t]):.2g}"
    text = (
        f"The most surprising token of the text is {names.text(ids[t + 1])} at {t + 1}, after {names.text(ids[t])}: the "
        f"model gave it {tokens['probability'][t]:.2g} (rank {tokens['rank'][t]:,}{beside}) and expected "
        f"{names.text(ahead['ids'][t][0])} with {likely:.2f}."
    )
    yield {
        "text": text, "view": "tokens", "strength": likely - tokens["probability"][t], "position": t + 1,
        "kind": "surprise", "value": tokens["nats"][t],
    }  # fmt: skip


def _sorted(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    """The test that the table passes best, where chance is outside its interval. Strength: how far from chance."""
    for test in figures["embeddings"]["pairs"]:
        start, end = test["start"], test["end"]
        if end["low"] is None or end["low"] <= 0.5:
            continue
        text = (
            f"The token table knows {test['name']} ({test['what']}): AUC {end['auc']:.2f} [{end['low']:.2f}, "
            f"{end['high']:.2f}] at the end, {start['auc']:.2f} [{start['low']:.2f}, {start['high']:.2f}] at the start; 0.5 is chance."
        )
        # By its lower end: a test of few members has to be the clearer.
        yield {
            "text": text, "view": "embeddings", "strength": 2 * (end["low"] - 0.5),
            "kind": "pairs", "value": end["auc"], "untrained": start["auc"],
        }  # fmt: skip


def _moved(figures: dict[str, Any], names: Names) -> Iterator[dict[str, Any]]:
    """The token of the probe whose neighbours are the closest of those that it did not have at the start."""
    for row in figures["embeddings"]["neighbours"]:
        if row["id"] not in figures["probe"]["ids"] or not row["end"]["centred"]:
            continue
        (now, cosine), before = row["end"]["centred"][0], [i for i, _ in row["start"]["centred"]]
        if now in before or (names.count(row["id"]) or 0) < 20:
            continue
        near = ", ".join(names.text(i) for i, _ in row["end"]["centred"][:3])
        text = (
            f"The nearest to {names.text(row['id'])} have become {near} (cosine {cosine:.2f}, centred); at the start they "
            f"were {', '.join(names.text(i) for i in before[:3])} ({row['start']['centred'][0][1]:.2f})."
        )
        gained = cosine - row["start"]["centred"][0][1]
        if gained < 0.1:  # the nearest of many random rows are some way off too
            continue
        yield {
            "text": text, "view": "embeddings", "strength": max(0.0, gained), "id": row["id"],
            "kind": "neighbours", "value": cosine,
        }  # fmt: skip


KINDS: tuple[Callable[..., Iterator[dict[str, Any]]], ...] = (
    _predicts, _previous, _induction, _needed, _surprising, _sorted, _moved,
)  # fmt: skip
