"""The three strongest findings about a run, as sentences. Each finding has a strength from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxgpt.inspect.plain import Names

COUNT = 3
LEAST = 0.02  # weaker findings are omitted
EARLY = 4  # the first tokens, which have little before them, are no surprise


def findings(figures: dict[str, Any], names: Names) -> list[dict[str, Any]]:
    """The `COUNT` strongest findings of a payload, strongest first: {text, view, at, strength, what to select}.

    Each kind gives at most its strongest finding, and none if a baseline explains the number.
    """
    found = []
    for kind in KINDS:
        of_kind = sorted(kind(figures, names), key=lambda finding: -finding["strength"])
        found += [finding for finding in of_kind[:1] if finding["strength"] >= LEAST]
    found.sort(key=lambda finding: -finding["strength"])
    return [finding | {"strength": round(finding["strength"], 4)} for finding in found[:COUNT]]


def _predicts(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    """The loss and the bigram baseline's. Strength: their difference relative to the baseline."""
    loss = figures["summary"]["measures"][0]
    if loss["model"] is None or not loss["bigram"]:
        return
    gained = loss["bigram"] - loss["model"]
    how = "better" if gained > 0 else "worse"
    text = (
        f"It predicts new text {how} than a table of token pairs: the loss is {loss['model']:.3f} nats per token, that of "
        f"the table (bigram) {loss['bigram']:.3f}, that of a uniform guess {loss['uniform']:.3f}."
    )
    yield {
        "text": text, "view": "summary", "at": "measures", "strength": min(1.0, abs(gained) / loss["bigram"]), "kind": "loss",
        "value": loss["model"],
    }  # fmt: skip


def _looking(figures: dict[str, Any], name: str, sentence: str) -> Iterator[dict[str, Any]]:
    """Heads with a higher score than every untrained head. Strength: the difference."""
    scores = figures["attention"]["statistics"][name]
    for layer, row in enumerate(scores["value"]):
        for head, value in enumerate(row):
            if value is None or scores["high"] is None or value <= scores["high"]:
                continue
            untrained = scores["untrained"][layer][head]
            text = (
                f"Layer {layer}, head {head} {sentence}: mean weight {value:.3f} (untrained {untrained:.3f})."
            )
            yield {
                "text": text, "view": "attention", "at": "heads", "strength": value - scores["high"], "statistic": name,
                "layer": layer, "head": head, "kind": name, "value": value, "untrained": untrained,
            }  # fmt: skip


def _previous(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    return _looking(figures, "previous_token", "attends to the previous token")


def _induction(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    where = "attends to the token after the previous occurrence of the same token (an induction head)"
    return _looking(figures, "induction", where)


def _needed(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    """The head whose removal hurts most, if by more than 3 standard errors. Strength: the increase of the loss relative
    to the model's gain over a uniform guess (log V)."""
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
                f"Removing layer {layer}, head {head} hurts most: the loss rises from {ablation['loss']:.3f} to {after:.3f} "
                f"nats per token (+{cost:.3f}, standard error {error:.3f})."
            )
            yield {
                "text": text, "view": "attention", "at": "heads", "strength": min(1.0, cost / room), "statistic": "mean",
                "layer": layer, "head": head, "kind": "ablation", "value": cost,
            }  # fmt: skip


def _surprising(figures: dict[str, Any], names: Names) -> Iterator[dict[str, Any]]:
    """The probe's token with the highest loss. Strength: the probability of the most likely token there, less its own."""
    tokens, ids, ahead = figures["tokens"], figures["probe"]["ids"], figures["next"]
    one = ahead["temperatures"].index(1.0)
    first = min(EARLY, len(tokens["nats"]) - 1)
    t = first + int(np.argmax(tokens["nats"][first:]))
    likely = float(np.exp(ahead["logits"][t][0] - ahead["logsumexp"][t][one]))
    bigram = tokens["bigram_nats"]
    baseline = "" if bigram is None else f", bigram {np.exp(-bigram[t]):.3f}"
    text = (
        f"The largest surprise comes after {names.text(ids[t])} at {t}: the next token is {names.text(ids[t + 1])}, which had "
        f"probability {tokens['probability'][t]:.3f} (rank {tokens['rank'][t]:,}{baseline}). The most likely token was "
        f"{names.text(ahead['ids'][t][0])} with {likely:.3f}."
    )
    yield {
        "text": text, "view": "tokens", "at": "probe", "strength": likely - tokens["probability"][t], "position": t,
        "kind": "surprise", "value": tokens["nats"][t],
    }  # fmt: skip


def _sorted(figures: dict[str, Any], _names: Names) -> Iterator[dict[str, Any]]:
    """The best test result of the table, if its interval excludes chance. Strength: the distance from chance."""
    for test in figures["embeddings"]["pairs"]:
        start, end = test["start"], test["end"]
        if end["low"] is None or end["low"] <= 0.5:
            continue
        text = (
            f"Its token vectors know “{test['name']}” ({test['what']}): AUC {end['auc']:.2f} [{end['low']:.2f}, "
            f"{end['high']:.2f}] at the end, {start['auc']:.2f} [{start['low']:.2f}, {start['high']:.2f}] at the start; chance is 0.50."
        )
        # The lower bound counts, so that a small test needs a clearer result.
        yield {
            "text": text, "view": "embeddings", "at": "meanings", "strength": 2 * (end["low"] - 0.5),
            "kind": "pairs", "value": end["auc"], "untrained": start["auc"],
        }  # fmt: skip


def _moved(figures: dict[str, Any], names: Names) -> Iterator[dict[str, Any]]:
    """The probe's token with the closest new neighbours. Strength: the increase of the nearest one's cosine."""
    for row in figures["embeddings"]["neighbours"]:
        if row["id"] not in figures["probe"]["ids"] or not row["end"]["centred"]:
            continue
        (now, cosine), before = row["end"]["centred"][0], [i for i, _ in row["start"]["centred"]]
        if now in before or (names.count(row["id"]) or 0) < 20:
            continue
        near = ", ".join(names.text(i) for i, _ in row["end"]["centred"][:3])
        text = (
            f"The nearest tokens to {names.text(row['id'])} are now {near} (centred cosine {cosine:.2f}); at the start they "
            f"were {', '.join(names.text(i) for i in before[:3])} ({row['start']['centred'][0][1]:.2f})."
        )
        gained = cosine - row["start"]["centred"][0][1]
        if gained < 0.1:  # the nearest of many random rows also has a cosine above 0
            continue
        yield {
            "text": text, "view": "embeddings", "at": "neighbours", "strength": max(0.0, gained), "id": row["id"],
            "kind": "neighbours", "value": cosine, "centring": "centred",
        }  # fmt: skip


KINDS: tuple[Callable[..., Iterator[dict[str, Any]]], ...] = (
    _predicts, _previous, _induction, _needed, _surprising, _sorted, _moved,
)  # fmt: skip
