"""The attention part of a report: each head's table, its statistics, and the loss without it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxgpt.common.say import count
from jaxgpt.inspect import forward, heads, interventions
from jaxgpt.inspect.capture import Capture
from jaxgpt.inspect.heads import Heads
from jaxgpt.inspect.plain import plain
from jaxgpt.inspect.subject import Subject, affordable_tokens, windows
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params

UNTRAINED = 5  # models with fresh parameters, for comparison
TEXTS = 16  # windows for the statistics
LENGTH = 128  # maximum tokens of a window
NAMED = 0.5  # minimum score of a previous-token or induction head
ABLATED = 256  # maximum windows for the ablation
FEWEST, SHORT = 4, 64  # windows, and their tokens, for a large model
PATIENCE = 5  # a large model's ablation may take this many times the budget
MOST_NUMBERS = 120_000  # of all tables; above it, weights with fewer digits
ALL_NUMBERS = 500_000  # the limit for weights


def head_figures(subject: Subject, probe_T: np.ndarray, cut: list[str], missing: list[str]) -> dict[str, Any]:
    """The figures of all heads, except their tables. Adds notes to `cut` and `missing`."""
    model, params = subject.plain()
    figures = {"window": model.cfg.attention_window, "scale": _scale(model)}
    figures |= _statistics(subject, model, params, probe_T)
    return figures | _ablation(subject, model, params, cut, missing)


def _scale(model: GPT) -> float | None:
    return plain(model.cfg.attention_scale or 1 / math.sqrt(model.cfg.head_width))


def attention_tables(seen: Capture, cut: list[str]) -> dict[str, Any]:
    """The tables of all heads: scores, or in a large model weights with fewer digits, of fewer tokens."""
    L, H, T = len(seen.layers), seen.config.num_heads, len(seen.tokens_T)
    numbers = L * H * T * (T + 1) // 2
    figures: dict[str, Any] = {
        "layers": L, "heads": H, "scores": None, "score_unit": forward.SCORE_UNIT, "ahead": None, "ahead_unit": forward.AHEAD_UNIT,
        "weights": None, "weight_unit": forward.WEIGHT_UNIT,
    }  # fmt: skip
    if numbers <= MOST_NUMBERS:
        figures["scores"] = [forward.triangles(layer.scores_HTS, forward.SCORE_UNIT) for layer in seen.layers]
        if L * H * T**2 <= MOST_NUMBERS:
            figures["ahead"] = [forward.ahead(layer.scores_HTS) for layer in seen.layers]
        return figures
    shown = T if numbers <= ALL_NUMBERS else int(math.sqrt(2 * ALL_NUMBERS / (L * H)))
    cut.append(
        f"{count(L * H, 'head')} x {T} tokens: attention is stored as weights with 3 decimals, without scores"
        + (f", for the first {shown} tokens." if shown < T else ".")
    )
    weights = [
        forward.triangles(layer.weights_HTS[:, :shown, :shown], forward.WEIGHT_UNIT) for layer in seen.layers
    ]
    return figures | {"weights": weights}


def _texts(subject: Subject, model: GPT, params: dict, probe_T: np.ndarray) -> tuple[np.ndarray, str, int]:
    """The windows for the statistics, their description, and the number of untrained models."""
    length, number = min(model.cfg.context_length, LENGTH), UNTRAINED
    if subject.dataset is None or len(subject.dataset.valid.ids) < length:
        return probe_T[None], "the probe text", number
    tokens = affordable_tokens(params, 2 * (1 + number))  # on text, and on random tokens
    if tokens < FEWEST * length:
        length, number = min(length, SHORT), 1
        tokens = affordable_tokens(params, 4)
    most = max(2, min(TEXTS, heads.most_texts(model, length), tokens // length))
    texts_BT = windows(subject.dataset.valid.ids, most, length)
    return (
        texts_BT,
        f"{count(len(texts_BT), 'window')}, {length} tokens long, evenly spaced over the validation split",
        number,
    )


def _statistics(subject: Subject, model: GPT, params: dict, probe_T: np.ndarray) -> dict[str, Any]:
    cfg = model.cfg
    texts_BT, on, number = _texts(subject, model, params, probe_T)
    half = min(cfg.context_length, max(texts_BT.shape[1], SHORT)) // 2
    repeated_BT = heads.repeated_tokens(cfg.vocab_size, half, len(texts_BT)) if half >= 2 else None
    own = heads.measure(model, params, texts_BT, repeated_BT)
    fresh = [heads.measure(*subject.untrained(i), texts_BT, repeated_BT) for i in range(number)]
    statistics = compare_with_untrained(own, fresh)
    return {
        "named": named(statistics),
        "statistics": statistics,
        "statistics_on": on,
        "untrained_models": number,
        "repeated": plain({"first": own.first_loss, "second": own.second_loss, "length": half}),
    }


def compare_with_untrained(own: Heads, fresh: list[Heads]) -> dict[str, Any]:
    """Each statistic of a model and of the first untrained model, and the extremes over all untrained heads."""
    statistics = {}
    for name in heads.STATISTICS:
        of_all = np.stack([one.of(name) for one in fresh])
        statistics[name] = {
            "value": plain(own.of(name), 4),
            "untrained": plain(fresh[0].of(name), 4),
            "low": plain(of_all.min(), 4),
            "high": plain(of_all.max(), 4),
        }
    return statistics


def named(statistics: dict[str, Any]) -> list[dict[str, Any]]:
    """Previous-token and induction heads: a score above `NAMED` and above every untrained head."""
    found = []
    for name in ("previous_token", "induction"):
        scores = statistics[name]
        for layer, row in enumerate(scores["value"]):
            for head, value in enumerate(row):
                if value is not None and value > max(NAMED, scores["high"]):
                    found.append({"layer": layer, "head": head, "kind": name, "value": value})
    return found


def _ablation(
    subject: Subject, model: GPT, params: dict, cut: list[str], missing: list[str]
) -> dict[str, Any]:
    length = min(model.cfg.context_length, LENGTH)
    if subject.dataset is None or len(subject.dataset.valid.ids) < length + 1:
        return {"ablation": None}
    passes = model.cfg.num_layers * model.cfg.num_heads + 1
    kinds: tuple[str, ...] = ("mean", "zero")
    most = affordable_tokens(params, passes * len(kinds)) // length
    if most < FEWEST:
        kinds, length = ("mean",), min(length, SHORT)
        most = affordable_tokens(params, passes) * PATIENCE // length
        if most < 2:
            missing.append(
                f"No head ablation: {passes - 1:,} heads in a model of {count_params(params):,} parameters take too long on "
                "this machine (jaxgpt.inspect.interventions.ablate_heads computes it)."
            )
            return {"ablation": None}
        most = min(most, FEWEST)
        cut.append(
            f"Head ablation uses only {count(most, 'window')} of {length} tokens, and only mean ablation."
        )
    text_BT = windows(subject.dataset.valid.ids, min(most, ABLATED), length + 1)
    found = {kind: interventions.ablate_heads(model, params, text_BT, kind) for kind in kinds}
    one = found["mean"]
    figures = {
        kind: {
            "loss": plain(of.losses_LH),
            "difference": plain(of.difference, 4),
            "standard_error": plain(of.standard_error_LH, 3),
        }
        for kind, of in found.items()
    }
    on = f"{count(len(text_BT), 'window')}, {length} tokens long, evenly spaced over the validation split"
    return {"ablation": {"loss": plain(one.loss), "tokens": one.tokens, "on": on, "zero": None, **figures}}
