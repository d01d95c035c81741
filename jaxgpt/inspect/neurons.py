"""The part of a report about MLP neurons: their strongest contexts, how often they are active, and dead ones."""

from __future__ import annotations

import base64
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.common.say import count
from jaxgpt.inspect import analysis
from jaxgpt.inspect.capture import Capture
from jaxgpt.inspect.plain import Names, plain
from jaxgpt.inspect.subject import Subject, affordable_tokens, windows
from jaxgpt.model.gpt import GPT

CONTEXTS = 5
SHOWN = 6  # neurons per layer
BEFORE, AFTER = 10, 3  # tokens shown around the activating token
LENGTH = 128  # maximum tokens of a window
MOST_TOKENS = 8_192
HERE = 10  # neurons per token that the page lists
MOST_BYTES = 200_000  # of the activations over the probe
_HIDDEN_BYTES = 1 << 28  # memory for the activations of all layers


@functools.partial(jax.jit, static_argnames=("model", "k"))
def fire(model: GPT, params: dict, tokens_BT: jax.Array, k: int):
    """Activation statistics of every neuron.

    Returns the k largest activations and their places (text * T + position) [L, F, k], the share of tokens with an
    activation above 0 [L, F], and the largest absolute activation [L, F].
    """
    _, shown = model.apply({"params": params}, tokens_BT, method=GPT.features, mutable="intermediates")
    found = []
    for i in range(model.cfg.num_layers):
        hidden_BTF = shown["intermediates"][f"block_{i}"]["mlp"]["hidden"][0]
        hidden_FN = hidden_BTF.reshape(-1, hidden_BTF.shape[-1]).T
        values_Fk, where_Fk = jax.lax.top_k(hidden_FN, k)
        found.append((values_Fk, where_Fk, (hidden_FN > 0).mean(axis=1), jnp.abs(hidden_FN).max(axis=1)))
    return tuple(jnp.stack(parts) for parts in zip(*found, strict=True))


def neurons(subject: Subject, names: Names) -> dict[str, Any] | None:
    """The neurons with the largest output in each layer, their strongest contexts, and the number of dead neurons.

    A neuron is dead if it is never above 0; in a gated MLP, whose activations may have either sign, if it is always 0.
    """
    model, params = subject.plain()
    cfg, length = model.cfg, min(subject.cfg.context_length, LENGTH)
    if subject.dataset is None or len(subject.dataset.valid.ids) < length:
        return None
    most = min(MOST_TOKENS, affordable_tokens(params), _HIDDEN_BYTES // (4 * cfg.num_layers * cfg.mlp_width))
    texts_BT = windows(subject.dataset.valid.ids, max(1, most // length), length)
    k = min(CONTEXTS, texts_BT.size)
    values_LFk, where_LFk, active_LF, largest_LF = map(np.asarray, fire(model, params, texts_BT, k))
    layers = []
    for i in range(cfg.num_layers):
        down_FD = np.asarray(params[f"block_{i}"]["mlp"]["down"]["kernel"])
        written_F = values_LFk[i, :, 0] * np.linalg.norm(down_FD, axis=1)
        dead_F = largest_LF[i] == 0 if cfg.gated else active_LF[i] == 0
        shown = [int(f) for f in np.argsort(-written_F, kind="stable")[:SHOWN]]
        layers.append(
            {
                "layer": i,
                "width": cfg.mlp_width,
                "dead": int(dead_F.sum()),
                "share": plain(active_LF[i].mean(), 4),
                "histogram": np.histogram(active_LF[i], bins=10, range=(0, 1))[0].tolist(),
                "shown": [
                    {
                        "neuron": f,
                        "active": plain(active_LF[i, f], 4),
                        "written": plain(written_F[f], 4),
                        "contexts": [
                            _context(texts_BT, int(at), value, names)
                            for at, value in zip(where_LFk[i, f], values_LFk[i, f], strict=True)
                        ],
                    }
                    for f in shown
                ],
            }
        )
    on = f"{count(len(texts_BT), 'window')}, {length} tokens long, evenly spaced over the validation split"
    kind = {"activation": cfg.activation, "gated": cfg.gated}
    return {"on": on, "tokens": int(texts_BT.size), **kind, "layers": layers}


def firing(seen: Capture) -> dict[str, Any]:
    """Activations of the neurons over the probe's tokens, as bytes: of all neurons, or in a large model of those that fire
    most at some token.

    {width, layers: [{neurons (their numbers), unit, values (base64 of int8, neuron by neuron; times unit)}]}
    """
    L, T, F = len(seen.layers), len(seen.tokens_T), seen.layers[0].hidden_TF.shape[1]
    each = max(1, min(HERE, MOST_BYTES // (L * T * T)))  # of every token at least the one that fires most
    layers = []
    for layer in seen.layers:
        hidden_TF, kept = layer.hidden_TF, np.arange(F)
        if L * F * T > MOST_BYTES:
            kept = np.unique(analysis.most_probable(hidden_TF, each))
        hidden_NT = hidden_TF[:, kept].T.astype(np.float64)
        unit = max(float(np.abs(hidden_NT).max()), 1e-9) / 127
        steps = np.rint(hidden_NT / unit).astype(np.int8)
        values = base64.b64encode(steps.tobytes()).decode()
        layers.append({"neurons": kept.tolist(), "unit": plain(unit, 6), "values": values})
    return {"width": F, "layers": layers}


def _context(texts_BT: np.ndarray, at: int, value: float, names: Names) -> dict[str, Any]:
    text, t = divmod(at, texts_BT.shape[1])
    start = max(0, t - BEFORE)
    ids = names.ids(texts_BT[text, start : t + 1 + AFTER])
    return {"ids": ids, "at": t - start, "value": plain(value, 4)}
