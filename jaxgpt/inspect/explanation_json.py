"""A capture and its analysis as JSON values, for `jaxgpt.explain --json`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from jaxgpt.data import tokenizers
from jaxgpt.inspect import analysis
from jaxgpt.inspect.capture import Capture
from jaxgpt.inspect.plain import plain

exact = functools.partial(plain, digits=17)  # all digits of a float64
LIKELIEST = 10  # next tokens per position


def explanation_json(seen: Capture, tokenizer: tokenizers.Tokenizer, i: int, h: int) -> dict[str, Any]:
    """All numbers of a forward pass, with details of layer i and head h. Numbers that are not finite become None."""
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
        "token_rows": exact(seen.token_rows_TE),
        "position_vectors": exact(seen.position_vectors_TD),
        "start": exact(seen.start_TD),
        "layer": i,
        "head": h,
        "before": exact(layer.before_TD),
        "attention_input": exact(layer.attention_input_TD),
        "q": exact(layer.q_THK[:, h]),
        "k": exact(layer.k_SHK[:, h]),
        "v": exact(layer.v_SHK[:, h]),
        "scores": exact(layer.scores_HTS[h]),
        "masked_scores": exact(layer.masked_scores[h]),
        "weights": exact(layer.weights_HTS[h]),
        "weighted_values": exact(layer.heads_THK[:, h]),
        "head_changes": exact(layer.head_changes_HTD),
        "attention_bias": exact(layer.attention_bias_D),
        "between": exact(layer.between_TD),
        "mlp_input": exact(layer.mlp_input_TD),
        "hidden": exact(layer.hidden_TF),
        "mlp_change": exact(layer.mlp_change_TD),
        "after": exact(layer.after_TD),
        "features": exact(seen.features_TD),
        "logits": exact(seen.logits_TV),
        "most_probable": [
            [{"id": int(v), "token": tokenizer.token(int(v)), "p": float(p_TV[t, v])} for v in row]
            for t, row in enumerate(best)
        ],
        "losses": {
            "nats": exact(loss.nats),
            "bits": exact(loss.bits),
            "probabilities": exact(loss.probabilities),
        },
        "ledger": {
            "entries": book.names,
            "norms": exact(np.linalg.norm(book.values_NTD, axis=-1)),
            "error": book.error,
        },
        "contributions": {
            "entries": given.names,
            "values": exact(given.values_NT[:, :-1]),
            "error": given.error,
        },
        "lens": {"rows": lens.names, "true_probabilities": exact(lens.true_probs_RT)},
        "heads": {
            "relative_entropy": exact(heads.relative_entropy_LH),
            "mean_distance": exact(heads.mean_distance_LH),
            "previous_token": exact(heads.previous_token_LH),
        },
    }
