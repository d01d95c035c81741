"""The parts of a report about context and position: one token in two texts, and the position table."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.inspect.capture import Capture, capture, padded_length
from jaxgpt.inspect.plain import Names, plain
from jaxgpt.inspect.subject import Probe, Subject, affordable_tokens, windows
from jaxgpt.model.gpt import GPT
from jaxgpt.model.layers import sinusoids
from jaxgpt.runs import records
from jaxgpt.vectors import tables
from jaxgpt.vectors.nearest import unit

POSITIONS = 64  # maximum rows of the position table to compare
CONTEXT = 8  # minimum tokens before the token, if possible
SEARCHED = 32  # validation windows to search for other occurrences
_STREAM_BYTES = 1 << 27  # memory for the streams of all layers


def rows_by_layer(seen: Capture) -> dict[str, np.ndarray]:
    """A text's vectors [T, D] at every depth: token row, with position, and the stream after each block."""
    named = {"token row": seen.token_vectors_TD, "with position": seen.start_TD}
    return named | {f"block {i}": layer.after_TD for i, layer in enumerate(seen.layers)}


def contextual(
    subject: Subject, seen: Capture, names: Names, other: Probe | None, streams: dict[int, np.ndarray]
) -> dict[str, Any] | None:
    """One token in two texts: the cosine of its two vectors at every depth.

    The second text is `other` or a window of the validation text. The token is the shared one with the lowest cosine
    after the last block, so the one that depends most on its context. Returns None if no token is shared.
    `streams` keeps the last stream of the validation windows by their length, for the next probe.
    The baseline is the mean cosine of different tokens, which is high for contextual vectors (Ethayarajh 2019).
    """
    if other is not None:
        texts, source = [other.ids_T], other.source
    elif subject.dataset is not None and len(subject.dataset.valid.ids) >= len(seen.tokens_T):
        # Windows of few lengths, so that few programs are compiled.
        padded = padded_length(subject.cfg, len(seen.tokens_T))
        T = padded if len(subject.dataset.valid.ids) >= padded else len(seen.tokens_T)
        room = _STREAM_BYTES // (4 * T * subject.cfg.d_model * (1 + subject.cfg.num_layers))
        count = max(1, min(SEARCHED, room, affordable_tokens(subject.run.params) // T))
        texts = list(windows(subject.dataset.valid.ids, count, T))
        source = "validation split"
    else:
        return None
    own_T = len(texts[0])
    last_BTD = None if other is not None else streams.get(own_T)
    if last_BTD is None:
        last_BTD = np.asarray(_last_stream(*subject.plain(), np.stack(texts)), np.float64)
    if other is None:
        streams[own_T] = last_BTD
    found = _least_alike(subject, seen, texts, last_BTD)
    if found is None:
        return None
    text, own, place = found
    second = capture(subject.cfg, subject.run.params, texts[text])
    cosines, others = [], []
    differ_TS = seen.tokens_T[:, None] != second.tokens_T
    here, there = rows_by_layer(seen), rows_by_layer(second)
    for name in here:
        cosines_TS = unit(here[name].astype(np.float64)) @ unit(there[name].astype(np.float64)).T
        cosines.append(cosines_TS[own, place])
        others.append(cosines_TS[differ_TS].mean() if differ_TS.any() else np.nan)
    return {
        "id": names.ids(seen.tokens_T[own]),
        "texts": [
            {"ids": names.ids(seen.tokens_T), "position": own, "source": "the probe"},
            {"ids": names.ids(second.tokens_T), "position": place, "source": source},
        ],
        "rows": list(here),
        "cosine": plain(cosines, 4),
        "others": plain(others, 4),
    }


def _least_alike(
    subject: Subject, seen: Capture, texts: list[np.ndarray], last_BTD: np.ndarray
) -> tuple[int, int, int] | None:
    """(text, position in the probe, position in that text) of the token. First tokens, without context, are excluded."""
    texts_BT = np.stack(texts)
    cosines_TBS = np.einsum("TD,BSD->TBS", unit(seen.end.astype(np.float64)), unit(last_BTD))
    allowed_TBS = seen.tokens_T[:, None, None] == texts_BT
    for before in (CONTEXT, 1):  # prefer tokens with enough context
        enough_TBS = allowed_TBS.copy()
        enough_TBS[:before], enough_TBS[:, :, :before] = False, False
        if enough_TBS.any():
            break
    allowed_TBS = enough_TBS
    if subject.dataset is not None and len(texts) > 1:
        words = np.array([_is_word(subject, int(i)) for i in seen.tokens_T])
        if (allowed_TBS & words[:, None, None]).any():
            allowed_TBS &= words[:, None, None]
    if not allowed_TBS.any():
        return None
    t, b, s = np.unravel_index(np.where(allowed_TBS, cosines_TBS, np.inf).argmin(), cosines_TBS.shape)
    return int(b), int(t), int(s)


def _is_word(subject: Subject, i: int) -> bool:
    """Whether a token consists of letters, apart from white space around them."""
    return subject.run.tokenizer.token(i).strip().isalpha()


@functools.partial(jax.jit, static_argnames="model")
def _last_stream(model: GPT, params: dict, tokens_BT: jax.Array) -> jax.Array:
    _, shown = model.apply({"params": params}, tokens_BT, method=GPT.features, mutable="intermediates")
    return shown["intermediates"][f"block_{model.cfg.num_layers - 1}"]["after"][0]


def positions(subject: Subject, cut: list[str]) -> dict[str, Any]:
    """Cosines between position embeddings at the start and the end of training, if the model has any."""
    cfg = subject.cfg
    figures: dict[str, Any] = {"kind": cfg.position, "shown": None, "end": None, "start": None}
    if cfg.position in ("rotary", "none"):
        return figures
    T = cfg.context_length
    shown = np.unique(np.linspace(0, T - 1, min(T, POSITIONS)).astype(int))
    if len(shown) < T:
        cut.append(f"The position table has {T:,} rows. Only {len(shown)} evenly spaced rows are compared.")
    figures["shown"] = shown.tolist()
    if cfg.position == "sinusoidal":
        return figures | {"end": _cosines(np.asarray(sinusoids(jnp.arange(T), cfg.d_model))[shown])}
    workdir = subject.run.workdir
    if 0 in tables.saved_steps(workdir):
        start = tables.read_snapshot(workdir, 0, "position", subject.run.tokenizer).values
    else:
        start = records.embedding_tables(subject.untrained()[1])["position"]
    both = {"start": start, "end": records.embedding_tables(subject.run.params)["position"]}
    return figures | {when: _cosines(np.asarray(table)[shown]) for when, table in both.items()}


def _cosines(rows_PD: np.ndarray) -> list:
    """The lower triangle, row by row, of the cosines between rows."""
    rows_PD = unit(rows_PD.astype(np.float64))
    return plain((rows_PD @ rows_PD.T)[np.tril_indices(len(rows_PD))], 3)
