"""Statistics of every attention head over many texts."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.inspect import token_kinds
from jaxgpt.model.gpt import GPT
from jaxgpt.training.steps import token_losses

STATISTICS = ("relative_entropy", "mean_distance", "previous_token", "induction")
# The weight of a head on keys of a kind: name, and what such a head looks at.
PATTERNS = {
    "itself": "the token itself",
    "two_back": "the token two back",
    "three_back": "the token three back",
    "first": "the first token of the text",
    "same": "earlier occurrences of the same token",
    **{kind: f"any {kind}" for kind in token_kinds.KEYS},
    **{f"last_{kind}": f"the last {kind}" for kind in token_kinds.KEYS},
}
_WEIGHTS_BYTES = 1 << 28  # memory for the weights of all heads


@dataclass(frozen=True)
class Heads:
    """Statistics of every head [L, H], and the loss on a random sequence repeated once, in nats.

    relative_entropy: entropy / log(visible keys), 0 one key, 1 equal weights. mean_distance: weighted mean of tokens
    back. previous_token: weight on the previous token. All are means over positions that see more than one key.

    patterns: for each of `PATTERNS` the mean weight on such keys, over the positions that see one and a key of another kind
    (kinds of tokens: after the first token of the text);
    shares: the same of a head with equal weights, which is how frequent such keys are.

    induction: the mean weight in the second copy of a random sequence on the token after the previous occurrence. This is
    the prefix matching score of Olsson et al. 2022, "In-context Learning and Induction Heads", with one repetition.
    """

    relative_entropy_LH: np.ndarray
    mean_distance_LH: np.ndarray
    previous_token_LH: np.ndarray
    induction_LH: np.ndarray
    first_loss: float  # mean loss of the first copy, except its first token
    second_loss: float  # of the second copy, also; lower if the model uses the repetition
    patterns: dict[str, np.ndarray] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def of(self, name: str) -> np.ndarray:
        return self.patterns[name] if name in self.patterns else getattr(self, f"{name}_LH")


def _spread(weights_BHTS: jax.Array, mask_BTS: jax.Array) -> list[jax.Array]:
    """Relative entropy, mean distance and previous-token weight: each [H]. A mask [1, T, S] is that of all texts."""
    T = mask_BTS.shape[1]
    keys_B1T = mask_BTS.sum(axis=-1)[:, None]
    chooses_B1T = keys_B1T > 1

    def mean(values_BHT: jax.Array) -> jax.Array:
        summed_H = jnp.where(chooses_B1T, values_BHT, 0.0).sum(axis=-1).mean(axis=0)
        return summed_H / chooses_B1T.sum(axis=-1).mean()

    entropy_BHT = jax.scipy.special.entr(weights_BHTS).sum(axis=-1)
    distance_TS = jnp.arange(T)[:, None] - jnp.arange(T)
    distance_BHT = (weights_BHTS * distance_TS).sum(axis=-1)
    before_BHT = jnp.pad(jnp.diagonal(weights_BHTS, -1, axis1=2, axis2=3), ((0, 0), (0, 0), (1, 0)))
    return [mean(entropy_BHT / jnp.log(jnp.maximum(keys_B1T, 2))), mean(distance_BHT), mean(before_BHT)]


def _attention(shown: dict, i: int) -> tuple[jax.Array, jax.Array]:
    attention = shown["intermediates"][f"block_{i}"]["attention"]
    return attention["weights"][0], attention["mask"][0]


@functools.partial(jax.jit, static_argnames="model")
def _spreads(model: GPT, params: dict, tokens_BT: jax.Array) -> jax.Array:
    _, shown = model.apply({"params": params}, tokens_BT, method=GPT.features, mutable="intermediates")
    return jnp.stack([jnp.stack(_spread(*_attention(shown, i))) for i in range(model.cfg.num_layers)], axis=1)


@functools.partial(jax.jit, static_argnames="model")
def _repeated(model: GPT, params: dict, tokens_BT: jax.Array):
    logits_BTV, shown = model.apply({"params": params}, tokens_BT, mutable="intermediates")
    R = tokens_BT.shape[1] // 2
    t = np.arange(R, 2 * R)
    scores_LH = jnp.stack(
        [_attention(shown, i)[0][:, :, t, t - R + 1].mean(axis=(0, 2)) for i in range(model.cfg.num_layers)]
    )
    losses_BT = token_losses(logits_BTV[:, :-1], tokens_BT[:, 1:])
    return scores_LH, losses_BT[:, : R - 1].mean(), losses_BT[:, R:].mean()


def _key_masks(tokens_BT: jax.Array, mask_BTS: jax.Array, kinds_KV: jax.Array) -> jax.Array:
    """For each of `PATTERNS` the visible keys that it is about: bool [P, B, T, S]."""
    T = tokens_BT.shape[1]
    back_TS = jnp.arange(T)[:, None] - jnp.arange(T)
    kinds_KBS = kinds_KV[:, tokens_BT]
    # Not the first token: many heads rest there, whatever it is, and that has a pattern of its own.
    of_kind_KBTS = kinds_KBS[:, :, None] & mask_BTS & (jnp.arange(T) > 0)
    # The last key of a kind that a query sees.
    last_KBT = jnp.where(of_kind_KBTS, jnp.arange(T), -1).max(axis=-1)
    last_KBTS = of_kind_KBTS & (jnp.arange(T) == last_KBT[..., None])
    same_BTS = (tokens_BT[:, :, None] == tokens_BT[:, None]) & (back_TS > 0)
    ones_BTS = jnp.broadcast_to(mask_BTS, same_BTS.shape)
    plain_PBTS = [
        *(ones_BTS & (back_TS == d) for d in (0, 2, 3)),
        ones_BTS & (jnp.arange(T) == 0),
        ones_BTS & same_BTS,
    ]
    return jnp.concatenate([jnp.stack(plain_PBTS), of_kind_KBTS, last_KBTS])


@functools.partial(jax.jit, static_argnames="model")
def _on_patterns(model: GPT, params: dict, tokens_BT: jax.Array, kinds_KV: jax.Array):
    """The mean weight [P, L, H] on each of `PATTERNS`, and that of equal weights [P]; nan where none occurs."""
    _, shown = model.apply({"params": params}, tokens_BT, method=GPT.features, mutable="intermediates")
    weights, shares_P = [], None
    for i in range(model.cfg.num_layers):
        weights_BHTS, mask_BTS = _attention(shown, i)
        if shares_P is None:
            keys_PBTS = _key_masks(tokens_BT, mask_BTS, kinds_KV)
            # A query that sees only such keys, or none, says nothing.
            found_PBT, seen_BT = keys_PBTS.sum(axis=-1), mask_BTS.sum(axis=-1)
            counts_PBT = (found_PBT > 0) & (found_PBT < seen_BT)
            number_P = counts_PBT.sum(axis=(1, 2))
            shares_P = (counts_PBT * found_PBT / seen_BT).sum(axis=(1, 2)) / number_P
        kept_PBTS = keys_PBTS * counts_PBT[..., None]
        weights.append(jnp.einsum("bhts,pbts->ph", weights_BHTS, kept_PBTS) / number_P[:, None])
    return jnp.stack(weights, axis=1), shares_P


def repeated_tokens(vocab_size: int, length: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` sequences of `length` uniformly random tokens, each repeated once: [count, 2 * length]."""
    tokens = np.random.default_rng(seed).integers(vocab_size, size=(count, length)).astype(np.int32)
    return np.concatenate([tokens, tokens], axis=1)


def most_texts(model: GPT, length: int) -> int:
    """How many texts fit in the memory for weights, at least 1."""
    return max(1, _WEIGHTS_BYTES // (4 * model.cfg.num_layers * model.cfg.num_heads * length**2))


def measure(
    model: GPT,
    params: dict,
    texts_BT: np.ndarray,
    repeated_BT: np.ndarray | None,
    kinds_KV: np.ndarray | None = None,
) -> Heads:
    """All statistics of a model, on texts and on `repeated_tokens` (at least 2). Unavailable values are nan.

    `kinds_KV`: `token_kinds.key_masks` of the tokenizer; without it there are no patterns.
    """
    found: dict[str, dict] = {}
    with jax.default_matmul_precision("highest"):
        if kinds_KV is not None:
            weights_PLH, shares_P = map(np.asarray, _on_patterns(model, params, texts_BT, kinds_KV))
            found["patterns"] = dict(zip(PATTERNS, weights_PLH.astype(np.float64), strict=True))
            found["shares"] = dict(zip(PATTERNS, shares_P.tolist(), strict=True))
        spread_3LH = np.asarray(_spreads(model, params, texts_BT), np.float64)
        if repeated_BT is None:  # the context is too short
            return Heads(*spread_3LH, np.full_like(spread_3LH[0], np.nan), np.nan, np.nan, **found)
        induction_LH, first, second = _repeated(model, params, repeated_BT)
    return Heads(*spread_3LH, np.asarray(induction_LH, np.float64), float(first), float(second), **found)
