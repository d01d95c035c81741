"""The attention part of a report: each head's table, its statistics, and the loss without it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxgpt.common.say import count
from jaxgpt.config import ModelConfig
from jaxgpt.data import prompts
from jaxgpt.inspect import forward, heads, interventions, token_kinds
from jaxgpt.inspect.capture import Capture, capture
from jaxgpt.inspect.heads import Heads
from jaxgpt.inspect.plain import plain
from jaxgpt.inspect.subject import Subject, affordable_tokens, windows
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params

UNTRAINED = 5  # models with fresh parameters, for comparison
TEXTS = 16  # windows for the statistics
LENGTH = 128  # maximum tokens of a window
NAMED = 0.5  # minimum score of a previous-token or induction head
COPIED = 4  # windows for the copying score
SPECIFIC = 0.8  # of the weight on a kind is on its last occurrence
GENERAL = ("previous_token", "induction")
ENGLISH_IS = "a paragraph of English that is the same for every run without a text of its own"
JOBS = (*GENERAL, *heads.PATTERNS)
ABLATED = 256  # maximum windows for the ablation
FEWEST, SHORT = 4, 64  # windows, and their tokens, for a large model
PATIENCE = 5  # a large model's ablation may take this many times the budget
MOST_NUMBERS = 120_000  # of all tables; above it, weights with fewer digits
ALL_NUMBERS = 300_000  # the limit for weights: a page of 12 x 12 heads has all of 64 tokens


def head_figures(subject: Subject, probe_T: np.ndarray, cut: list[str], missing: list[str]) -> dict[str, Any]:
    """The figures of all heads, except their tables. Adds notes to `cut` and `missing`."""
    model, params = subject.plain()
    figures = {"window": model.cfg.attention_window, "scale": _scale(model)}
    figures |= _statistics(subject, model, params, probe_T)
    return figures | _ablation(subject, model, params, cut, missing)


def unmeasured(subject: Subject) -> dict[str, Any]:
    """The figures of all heads before they are measured: none."""
    model = GPT(subject.cfg)
    none_LH = [[None] * model.cfg.num_heads for _ in range(model.cfg.num_layers)]
    nothing = {"value": none_LH, "untrained": none_LH, "low": None, "high": None, "share": None}
    return {
        "window": model.cfg.attention_window,
        "scale": _scale(model),
        "patterns": heads.PATTERNS,
        "named": [],
        "statistics": dict.fromkeys((*heads.STATISTICS, "copying", *heads.PATTERNS), nothing),
        "statistics_on": None,
        "untrained_models": 0,
        "repeated": {"first": None, "second": None, "length": 0},
        "ablation": None,
    }


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
        f"{count(L * H, 'head')} x {T} tokens: attention is stored as weights of 12 bits, without scores"
        + (f", for the first {shown} tokens." if shown < T else ".")
    )
    weights = [forward.packed_triangles(layer.weights_HTS[:, :shown, :shown]) for layer in seen.layers]
    return figures | {"weights": weights}


def _has_text(subject: Subject, length: int) -> bool:
    return subject.dataset is not None and len(subject.dataset.valid.ids) >= length


def _english(subject: Subject) -> np.ndarray | None:
    """The ids [T] of prompts.ENGLISH, or None for a tokenizer that lacks some of it."""
    tokenizer = subject.run.tokenizer
    return tokenizer.encode(prompts.ENGLISH) if prompts.is_known(tokenizer, prompts.ENGLISH, 2) else None


def uses_probe(subject: Subject) -> bool:
    """Whether the heads are measured on the probe, for want of another text."""
    return not _has_text(subject, min(subject.cfg.context_length, LENGTH)) and _english(subject) is None


def _texts(subject: Subject, model: GPT, params: dict, probe_T: np.ndarray) -> tuple[np.ndarray, str, int]:
    """The windows for the statistics, their description, and the number of untrained models."""
    length, number = min(model.cfg.context_length, LENGTH), UNTRAINED
    tokens = affordable_tokens(params, 2 * (1 + number))  # on text, and on random tokens
    if not _has_text(subject, length):
        known_T = _english(subject)
        text_T, on = (known_T, ENGLISH_IS) if known_T is not None else (probe_T, "the probe text")
        return text_T[None, :length], on, number if tokens >= len(text_T) else 1
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
    kinds_KV = token_kinds.key_masks(subject.run.tokenizer, cfg.num_tokens)
    own = heads.measure(model, params, texts_BT, repeated_BT, kinds_KV)
    fresh = [heads.measure(*subject.untrained(i), texts_BT, repeated_BT, kinds_KV) for i in range(number)]
    statistics = compare_with_untrained(own, fresh) | {"copying": _copying(subject, texts_BT)}
    return {
        "patterns": heads.PATTERNS,
        "named": named(statistics),
        "statistics": statistics,
        "statistics_on": on,
        "untrained_models": number,
        "repeated": plain({"first": own.first_loss, "second": own.second_loss, "length": half}),
    }


def _copying(subject: Subject, texts_BT: np.ndarray) -> dict[str, Any]:
    own_LH, fresh_LH = (
        copying_scores(model.cfg, params, texts_BT)
        for model, params in (subject.plain(), subject.untrained())
    )
    ends = {"low": fresh_LH.min(), "high": fresh_LH.max(), "share": 0.5}
    return plain({"value": own_LH, "untrained": fresh_LH, **ends}, 4)


def copying_scores(cfg: ModelConfig, params: dict, texts_BT: np.ndarray) -> np.ndarray:
    """How much each head copies [L, H]: the mean rank of the token that it attends to most among the text's tokens by what
    the head adds to their logits, from 0 (the lowest) through 0.5 (chance) to 1 (the highest).

    Source: Elhage et al. 2021, copying; here measured on text, after the head's real attention.
    """
    scores = []
    for text_T in texts_BT[:COPIED]:
        seen = capture(cfg, params, text_T)
        ids_U, place_T = np.unique(seen.tokens_T, return_inverse=True)
        directions_UD = seen.readout.directions(ids_U)
        scale_T1 = seen.readout.norm_scale(seen.end)
        layers = []
        for layer in seen.layers:
            logits_HTU = seen.readout.linear(layer.head_changes_HTD, scale_T1) @ directions_UD.T
            most_HT = place_T[layer.weights_HTS.argmax(axis=-1)]
            own_HT1 = np.take_along_axis(logits_HTU, most_HT[..., None], axis=-1)
            lower_HT = (logits_HTU < own_HT1).sum(axis=-1) / max(len(ids_U) - 1, 1)
            layers.append(lower_HT[:, 1:].mean(axis=-1))
        scores.append(layers)
    return np.mean(scores, axis=0)


def compare_with_untrained(own: Heads, fresh: list[Heads]) -> dict[str, Any]:
    """Each statistic of a model and of the first untrained model, and the extremes over all untrained heads."""
    statistics = {}
    for name in (*heads.STATISTICS, *own.patterns):
        of_all = np.stack([one.of(name) for one in fresh])
        statistics[name] = {
            "value": plain(own.of(name), 4),
            "untrained": plain(fresh[0].of(name), 4),
            "low": plain(of_all.min(), 4),
            "high": plain(of_all.max(), 4),
            "share": plain(own.shares[name], 4) if name in own.shares else None,
        }
    return statistics


def named(statistics: dict[str, Any]) -> list[dict[str, Any]]:
    """The heads with a clear job: [{layer, head, kind, value, share}], at most one for each head.

    A job is a score above `NAMED`, above every untrained head, and above twice what a head with equal weights has. Of several
    jobs of a head the most specific one counts: the last newline, not any newline, if most of the weight is on the last.
    """
    found = []
    layers, per_layer = np.shape(statistics["previous_token"]["value"])
    for layer in range(layers):
        for head in range(per_layer):
            of = {name: one["value"][layer][head] for name, one in statistics.items() if name in JOBS}
            jobs = {name: value for name, value in of.items() if _is_job(value, statistics[name])}
            for name in token_kinds.KEYS:
                general, last = jobs.get(name), jobs.get(f"last_{name}")
                if general is not None and last is not None:
                    jobs.pop(name if last > SPECIFIC * general else f"last_{name}")
            if jobs:
                # What is said of every token counts before what is said of a kind of tokens.
                kind = max(jobs, key=lambda name: (name in GENERAL, jobs[name]))
                found.append(
                    {
                        "layer": layer,
                        "head": head,
                        "kind": kind,
                        "value": jobs[kind],
                        "share": statistics[kind].get("share"),
                    }
                )
    return found


def _is_job(value: float | None, of: dict[str, Any]) -> bool:
    return value is not None and value > max(NAMED, of["high"] or 0.0, 2 * (of.get("share") or 0.0))


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
