"""A capture and what follows from it as plain lists, for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxgpt.data import tokenizers
from jaxgpt.inspect import analysis
from jaxgpt.inspect.capture import Capture

LIKELIEST = 10  # next tokens of each position


def figures(seen: Capture, tokenizer: tokenizers.Tokenizer, i: int, h: int) -> dict[str, Any]:
    """All numbers of a pass, of layer i and head h in detail; what is no finite number is None."""
    layer, loss, lens = seen.layers[i], analysis.losses(seen), analysis.logit_lens(seen)
    book, heads = analysis.ledger(seen), analysis.head_statistics(seen)
    given = analysis.contributions(seen, book, np.append(seen.tokens_T[1:], seen.tokens_T[-1]))
    p_TV = analysis.softmax(seen.logits_TV)
    best = analysis.most_probable(p_TV, LIKELIEST)
    names = [tokenizer.token(int(v)) for v in seen.tokens_T]
    return {
        "model": dataclasses.asdict(seen.config),
        "tokens": names,
        "ids": seen.tokens_T.tolist(),
        "token_rows": _plain(seen.token_rows_TE),
        "position_vectors": _plain(seen.position_vectors_TD),
        "start": _plain(seen.start_TD),
        "layer": i,
        "head": h,
        "before": _plain(layer.before_TD),
        "attention_input": _plain(layer.attention_input_TD),
        "q": _plain(layer.q_THK[:, h]),
        "k": _plain(layer.k_SHK[:, h]),
        "v": _plain(layer.v_SHK[:, h]),
        "scores": _plain(layer.scores_HTS[h]),
        "masked_scores": _plain(layer.masked_scores[h]),
        "weights": _plain(layer.weights_HTS[h]),
        "weighted_values": _plain(layer.heads_THK[:, h]),
        "head_changes": _plain(layer.head_changes_HTD),
        "attention_bias": _plain(layer.attention_bias_D),
        "between": _plain(layer.between_TD),
        "mlp_input": _plain(layer.mlp_input_TD),
        "hidden": _plain(layer.hidden_TF),
        "mlp_change": _plain(layer.mlp_change_TD),
        "after": _plain(layer.after_TD),
        "features": _plain(seen.features_TD),
        "logits": _plain(seen.logits_TV),
        "most_probable": [
            [{"id": int(v), "token": tokenizer.token(int(v)), "p": float(p_TV[t, v])} for v in row]
            for t, row in enumerate(best)
        ],
        "losses": {
            "nats": _plain(loss.nats),
            "bits": _plain(loss.bits),
            "probabilities": _plain(loss.probabilities),
        },
        "ledger": {
            "entries": book.names,
            "norms": _plain(np.linalg.norm(book.values_NTD, axis=-1)),
            "error": book.error,
        },
        "contributions": {
            "entries": given.names,
            "values": _plain(given.values_NT[:, :-1]),
            "error": given.error,
        },
        "lens": {"rows": lens.names, "true_probabilities": _plain(lens.true_probs_RT)},
        "heads": {
            "relative_entropy": _plain(heads.relative_entropy_LH),
            "mean_distance": _plain(heads.mean_distance_LH),
            "previous_token": _plain(heads.previous_token_LH),
        },
    }


def _plain(values: Any) -> Any:
    values = np.asarray(values)
    if values.ndim == 0:
        return float(values) if np.isfinite(values) else None
    return [_plain(row) for row in values] if not np.isfinite(values).all() else values.tolist()
