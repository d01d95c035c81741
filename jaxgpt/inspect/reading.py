"""A text as the local page reads it: the score of each token, and what may come next, with edits and without."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.inspect.analysis import softmax
from jaxgpt.inspect.capture import padded_length
from jaxgpt.inspect.interventions import Edits, edited
from jaxgpt.inspect.plain import rounded, token_entry
from jaxgpt.model.generation import window_start
from jaxgpt.model.gpt import GPT
from jaxgpt.model.sampling import Scores, scores_of

POSITIONS = 16
SHOWN, SHOWN_OF_EACH = 12, 8  # next tokens; with edits, those without them and those with them


@functools.partial(jax.jit, static_argnames="model")
def _read(
    model: GPT, params: dict, tokens_1T: jax.Array, length: jax.Array
) -> tuple[Scores, jax.Array, jax.Array]:
    """The scores [T - 1] of the tokens after the first, the logits [V] after token `length` - 1, and their entropy."""
    features_1TD, _ = model.apply({"params": params}, tokens_1T, method=GPT.features)

    def logits(x_D: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x_D[None], method=GPT.unembed)

    def score(one: tuple[jax.Array, jax.Array]) -> Scores:
        x_D, token = one
        return Scores(*(values[0] for values in scores_of(logits(x_D), token[None])))

    # A few positions at a time: the logits of all of them may not fit into memory.
    scores = jax.lax.map(score, (features_1TD[0, :-1], tokens_1T[0, 1:]), batch_size=POSITIONS)
    last_1V = logits(features_1TD[0, length - 1])
    return scores, last_1V[0], scores_of(last_1V, jnp.zeros(1, jnp.int32)).entropy[0]


def read(
    model: GPT, params: dict, tokenizer: Tokenizer, ids: np.ndarray, edits: Edits | None
) -> dict[str, Any]:
    """The answer of /api/next for the window of a text that the model sees, documented in server.py."""
    ids = ids[window_start(len(ids), model.cfg.context_length) :]
    tokens_1T = np.zeros((1, padded_length(model.cfg, len(ids))), np.int32)
    tokens_1T[0, : len(ids)] = ids
    length = np.int32(len(ids))
    scores, logits_V, entropy = jax.device_get(_read(model, params, tokens_1T, length))
    tokens = [{"id": int(i), **token_entry(tokenizer, int(i))} for i in ids]
    for token, p, rank, nats in zip(tokens[1:], *scores, strict=False):
        token |= {"p": rounded(p), "rank": int(rank), "entropy": rounded(nats)}
    p_V = {"p": softmax(logits_V)}
    if edits is not None:
        p_V["edited"] = softmax(jax.device_get(_read(*edited(model, params, edits), tokens_1T, length)[1]))
    most = SHOWN if edits is None else SHOWN_OF_EACH
    found = {int(i) for p in p_V.values() for i in np.argsort(-p, kind="stable")[:most]}
    shown = sorted(found, key=lambda i: (-max(p[i] for p in p_V.values()), i))
    following = [
        {"id": i, **token_entry(tokenizer, i), "rank": 1 + int((p_V["p"] > p_V["p"][i]).sum())}
        | {name: rounded(p[i]) for name, p in p_V.items()}
        for i in shown
    ]
    return {"tokens": tokens, "next": following, "entropy": rounded(entropy)}
