"""A capture and its analysis as JSON values, for `jaxgpt.explain --json`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxgpt.data import tokenizers
from jaxgpt.inspect import analysis
from jaxgpt.inspect.capture import Capture
from jaxgpt.inspect.plain import plain

EXACT = 17  # digits that give a float64 exactly
LIKELIEST = 10  # next tokens per position


def explanation_json(seen: Capture, tokenizer: tokenizers.Tokenizer, i: int, h: int) -> dict[str, Any]:
    """All numbers of a forward pass, with details of layer i and head h. Numbers that are not finite become None."""
    layer, loss, lens = seen.layers[i], analysis.losses(seen), analysis.logit_lens(seen)
    book, heads = analysis.ledger(seen), analysis.head_statistics(seen)
    given = analysis.contributions(seen, book, np.append(seen.tokens_T[1:], seen.tokens_T[-1]))
    p_TV = analysis.softmax(seen.logits_TV)
    best = analysis.most_probable(p_TV, LIKELIEST)
    norms_NT = np.linalg.norm(book.values_NTD, axis=-1)
    numbers = {
        "ids": seen.tokens_T,
        "token_rows": seen.token_rows_TE,
        "position_vectors": seen.position_vectors_TD,
        "start": seen.start_TD,
        "layer": i,
        "head": h,
        "before": layer.before_TD,
        "attention_input": layer.attention_input_TD,
        "q": layer.q_THK[:, h],
        "k": layer.k_SHK[:, h],
        "v": layer.v_SHK[:, h],
        "scores": layer.scores_HTS[h],
        "masked_scores": layer.masked_scores[h],
        "weights": layer.weights_HTS[h],
        "weighted_values": layer.heads_THK[:, h],
        "head_changes": layer.head_changes_HTD,
        "attention_bias": layer.attention_bias_D,
        "between": layer.between_TD,
        "mlp_input": layer.mlp_input_TD,
        "hidden": layer.hidden_TF,
        "mlp_change": layer.mlp_change_TD,
        "after": layer.after_TD,
        "features": seen.features_TD,
        "logits": seen.logits_TV,
        "most_probable": [
            [{"id": int(v), "token": tokenizer.token(int(v)), "p": p_TV[t, v]} for v in row]
            for t, row in enumerate(best)
        ],
        "losses": {"nats": loss.nats, "bits": loss.bits, "probabilities": loss.probabilities},
        "ledger": {"entries": book.names, "norms": norms_NT, "error": book.error},
        "contributions": {"entries": given.names, "values": given.values_NT[:, :-1], "error": given.error},
        "lens": {"rows": lens.names, "true_probabilities": lens.true_probs_RT},
        "heads": {
            "relative_entropy": heads.relative_entropy_LH,
            "mean_distance": heads.mean_distance_LH,
            "previous_token": heads.previous_token_LH,
        },
    }
    names = [tokenizer.token(int(v)) for v in seen.tokens_T]
    return {"model": dataclasses.asdict(seen.config), "tokens": names, **plain(numbers, EXACT)}
