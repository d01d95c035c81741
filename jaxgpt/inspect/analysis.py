"""NumPy functions of a Capture.

Dimensions are those of model/gpt.py for one text; N entries of a ledger, L layers, R rows of the lens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxgpt.inspect.capture import Capture


@dataclass(frozen=True)
class Ledger:
    """The residual stream before the final norm as a sum of entries.

    Entries: token, position (if added), and for each layer its heads, W_O's bias (if any) and the MLP. With
    model.embedding_residual, later layers scale earlier entries; the values include this scaling.
    """

    names: list[str]  # "token", "position", "0.0" (layer.head), "0.bias", "0.mlp", ...
    values_NTD: np.ndarray
    error: float  # largest difference between the sum of the entries and the stream


def ledger(capture: Capture, each_head: bool = True) -> Ledger:
    """The entries of the residual stream (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

    Without `each_head` the heads of a layer are one entry, "0.heads".
    """
    entries = {"token": capture.token_vectors_TD.astype(np.float64)}
    if capture.position_vectors_TD.any():
        entries["position"] = capture.position_vectors_TD.astype(np.float64)
    for i, layer in enumerate(capture.layers):
        start = {"token": capture.token_vectors_TD, "position": capture.position_vectors_TD}
        if tuple(layer.mix) != (1.0, 0.0):
            for name in entries:
                entries[name] = layer.mix[0] * entries[name] + layer.mix[1] * start.get(name, 0.0)
        if each_head:
            for h, change_TD in enumerate(layer.head_changes_HTD):
                entries[f"{i}.{h}"] = change_TD
        else:
            entries[f"{i}.heads"] = layer.head_changes_HTD.sum(axis=0, dtype=np.float64)
        if layer.attention_bias_D.any():
            entries[f"{i}.bias"] = np.broadcast_to(layer.attention_bias_D, layer.before_TD.shape)
        entries[f"{i}.mlp"] = layer.mlp_change_TD
    values_NTD = np.stack([np.asarray(value, np.float64) for value in entries.values()])
    error = np.abs(values_NTD.sum(axis=0) - capture.end).max()
    return Ledger(list(entries), values_NTD, float(error))


@dataclass(frozen=True)
class Contributions:
    """The logit of one token at each position as a sum over a ledger's entries and the final norm's bias.

    The final norm is linear here: its scale is fixed to that of the complete stream at each position. So a contribution
    is not the effect of removing the entry, which would also change the scale. Logits are before the soft cap.
    """

    names: list[str]  # the ledger's, then "final bias"
    values_NT: np.ndarray
    logits_T: np.ndarray  # their sum
    error: float  # largest difference from the model's logits before the soft cap


def contributions(capture: Capture, book: Ledger, ids_T: np.ndarray) -> Contributions:
    """The contribution of each entry to the logit of token ids_T[t] at position t: direct logit attribution."""
    readout = capture.readout
    direction_TD = readout.directions(np.asarray(ids_T)).astype(np.float64)
    end_TD = capture.end.astype(np.float64)
    before_TD = readout.before_norm(direction_TD, readout.norm_scale(end_TD))
    values_NT = np.einsum("NTD,TD->NT", book.values_NTD, before_TD)
    values_NT = np.concatenate([values_NT, (direction_TD @ readout.bias_D)[None]])
    logits_T = values_NT.sum(axis=0)
    own_T = np.einsum("TD,TD->T", capture.features_TD.astype(np.float64), direction_TD)
    return Contributions(
        [*book.names, "final bias"], values_NT, logits_T, float(np.abs(logits_T - own_T).max())
    )


LENS_LOGITS = 1 << 22  # at once: 16 MiB


@dataclass(frozen=True)
class Lens:
    """The predictions after each block (nostalgebraist 2020, "interpreting GPT: the logit lens")."""

    names: list[str]  # "embedding", "block 0", ...; the last is the output
    positions_T: np.ndarray  # of the predictions: all, or those that were asked for
    top_ids_RTk: np.ndarray  # the k most probable tokens, the most probable first
    top_probs_RTk: np.ndarray
    true_probs_RT: np.ndarray  # p(token t + 1): without the text's last position


def logit_lens(capture: Capture, k: int = 5, positions: Sequence[int] | None = None) -> Lens:
    """Apply the final norm and the output table after the embedding and every block. The last row is the output.

    Of all positions, or of `positions`, ascending: of a large model, those of many tokens take seconds.
    """
    positions_T = np.arange(len(capture.tokens_T)) if positions is None else np.asarray(positions, np.int64)
    streams = (capture.start_TD, *(layer.after_TD for layer in capture.layers))
    streams_RTD = np.stack([x_TD[positions_T] for x_TD in streams])
    at_once = max(1, LENS_LOGITS // (len(positions_T) * len(capture.readout.table_VE)))
    targets = capture.tokens_T[positions_T[positions_T < len(capture.tokens_T) - 1] + 1]
    ids, probs, true = [], [], []
    for first in range(0, len(streams_RTD), at_once):
        # Not the probabilities of all tokens: with 50,000 tokens they would take longer than the logits.
        logits_RTV = capture.readout.logits(streams_RTD[first : first + at_once])
        total_RT = log_sum_exp(logits_RTV)
        top_RTk = most_probable(logits_RTV, k)
        ids.append(top_RTk)
        probs.append(np.exp(np.take_along_axis(logits_RTV, top_RTk, axis=-1) - total_RT[..., None]))
        true.append(np.exp(logits_RTV[:, np.arange(len(targets)), targets] - total_RT[:, : len(targets)]))
    names = ["embedding", *(f"block {i}" for i in range(len(capture.layers)))]
    return Lens(names, positions_T, *map(np.concatenate, (ids, probs, true)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax along the last axis, in float64."""
    logits = np.asarray(logits, np.float64)
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_sum_exp(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The log of the sum of exp(x / temperature) along the last axis: terms in the dtype of x, their sum in float64."""
    largest = logits.max(axis=-1)
    terms = logits - largest[..., None]
    terms /= temperature
    np.exp(terms, out=terms)
    return largest.astype(np.float64) / temperature + np.log(terms.sum(axis=-1, dtype=np.float64))


def entropies(capture: Capture) -> np.ndarray:
    """The entropy [T] of every prediction, in nats; log V if all tokens are equally likely."""
    p_TV = softmax(capture.logits_TV)
    return -(p_TV * np.log(p_TV, out=np.zeros_like(p_TV), where=p_TV > 0)).sum(axis=-1)


def most_probable(p_TV: np.ndarray, k: int) -> np.ndarray:
    """The ids [..., min(k, V)] of the most probable tokens, most probable first, by their probabilities or logits."""
    k = min(k, p_TV.shape[-1])
    ids_Tk = np.sort(np.argpartition(-p_TV, k - 1, axis=-1)[..., :k], axis=-1)
    order_Tk = np.argsort(-np.take_along_axis(p_TV, ids_Tk, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(ids_Tk, order_Tk, axis=-1)


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics of each head: means over the positions that see more than one key, nan if there are none."""

    relative_entropy_LH: np.ndarray  # entropy / log(visible keys): 0 one key, 1 equal weights
    mean_distance_LH: np.ndarray  # weighted mean of tokens back
    previous_token_LH: np.ndarray  # weight on the previous token


def head_statistics(capture: Capture) -> HeadStatistics:
    """Entropy relative to uniform, mean distance, and previous-token score of every head: each [L, H]."""
    shape = (len(capture.layers), capture.config.num_heads)
    entropy_LH, distance_LH, previous_LH = (np.full(shape, np.nan) for _ in range(3))
    for i, layer in enumerate(capture.layers):
        keys_T = layer.mask_TS.sum(axis=-1)
        chooses_T = keys_T > 1
        if not chooses_T.any():
            continue
        w_HTS = layer.weights_HTS[:, chooses_T].astype(np.float64)
        logs = np.log(w_HTS, out=np.zeros_like(w_HTS), where=w_HTS > 0)
        entropy_LH[i] = (-(w_HTS * logs).sum(axis=-1) / np.log(keys_T[chooses_T])).mean(axis=-1)
        t = np.flatnonzero(chooses_T)
        back_TS = t[:, None] - np.arange(w_HTS.shape[-1])
        distance_LH[i] = (w_HTS * back_TS).sum(axis=-1).mean(axis=-1)
        previous_LH[i] = w_HTS[:, np.arange(len(t)), t - 1].mean(axis=-1)
    return HeadStatistics(entropy_LH, distance_LH, previous_LH)


@dataclass(frozen=True)
class Losses:
    """-log p of every token except the first."""

    nats: np.ndarray  # [T - 1]
    bits: np.ndarray
    probabilities: np.ndarray


def losses(capture: Capture) -> Losses:
    """Loss per token in nats and bits, and the probability of each token."""
    nats = capture.losses.astype(np.float64)
    return Losses(nats, nats / np.log(2), np.exp(-nats))
