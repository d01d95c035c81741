"""How the next token is drawn from the logits, and what the model thought of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import UserError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-4, 1e6  # float32 holds logits divided by it


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


class _Kind(NamedTuple):
    """What a compiled sampler depends on; its numbers are arguments of the program."""

    greedy: bool
    slots: int  # the most tokens that top_k keeps, rounded up to a power of two; 0: all
    nucleus: bool


# A sampler of any kind chooses one of these kinds when it draws. Few tokens are found without sorting all.
_FEW, _ALL = 64, 1 << 30
_KINDS = {
    "greedy": _Kind(True, 0, False), "plain": _Kind(False, 0, False), "few": _Kind(False, _FEW, False),
    "few_nucleus": _Kind(False, _FEW, True), "nucleus": _Kind(False, 0, True), "many": _Kind(False, _ALL, True),
}  # fmt: skip
_ANY = _Kind(False, -1, False)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn from the logits.

    temperature divides the logits first; 0 takes the most probable token. Then top_k keeps the k most probable tokens.
    Then top_p keeps the smallest set of most probable tokens with at least that total probability (Holtzman et al.
    2020). Another number compiles no new program, except a top_k above the next power of two.
    """

    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None
    _kind: _Kind | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._kind is not None:  # the numbers are traced
            return
        problems = []
        if self.temperature != 0 and not LOWEST_TEMPERATURE <= self.temperature <= HIGHEST_TEMPERATURE:
            problems.append(
                f"temperature={_short(self.temperature)}: give 0 (greedy) or a number from {LOWEST_TEMPERATURE} to "
                f"{HIGHEST_TEMPERATURE:,.0f}"
            )
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k={_short(self.top_k)}: give 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p={_short(self.top_p)}: give a number above 0 and at most 1")
        if problems:
            raise UserError("; ".join(problems))

    @property
    def kind(self) -> _Kind:
        """What the program depends on."""
        if self._kind is not None:
            return self._kind
        slots = 0 if self.top_k is None else power_of_two(min(self.top_k, _ALL))
        return _Kind(self.temperature == 0, slots, self.top_p is not None and self.top_p < 1)

    def tree_flatten(self) -> tuple[tuple[Any, ...], _Kind]:
        if self._kind is not None:
            return (self.temperature, self.top_k, self.top_p), self._kind
        top_k, top_p = min(self.top_k or 1, _ALL), 1.0 if self.top_p is None else self.top_p
        return (np.float32(self.temperature), np.int32(top_k), np.float32(top_p)), self.kind

    @classmethod
    def tree_unflatten(cls, kind: _Kind, numbers: tuple[Any, ...]) -> Sampler:
        temperature, top_k, top_p = numbers
        return cls(temperature, top_k, top_p, kind)

    def of_any_kind(self) -> Sampler:
        """The same sampler, but with one program for all settings, and the same draws. For a server."""
        top_p = (
            2.0 if self.top_p is None or self.top_p >= 1 else self.top_p
        )  # above any sum with rounding errors
        numbers = np.float32(self.temperature), np.int32(min(self.top_k or _ALL, _ALL)), np.float32(top_p)
        return Sampler(*numbers, _ANY)

    def of_few_kinds(self) -> Sampler:
        """The same sampler, but with one of a few programs, and the same draws. Faster than of any kind, where a draw chooses."""
        if self._kind is not None:
            return self
        some = "" if self.top_k is None else "few" if self.top_k <= _FEW else "many"
        name = {"": "nucleus", "few": "few_nucleus", "many": "many"} if self.kind.nucleus else {"": "plain"}
        kind = _KINDS["greedy" if self.kind.greedy else name.get(some, some)]
        same = self.of_any_kind()
        return Sampler(same.temperature, same.top_k, same.top_p, kind)

    def _case(self) -> jax.Array:
        """The index in _KINDS of the kind of these numbers."""
        some = jnp.where(self.top_k >= _ALL, 0, jnp.where(self.top_k <= _FEW, 1, 2))
        names = jnp.array(
            [list(_KINDS).index(name) for name in ("plain", "few", "many", "nucleus", "few_nucleus", "many")]
        )
        return jnp.where(self.temperature == 0, 0, names[some + 3 * (self.top_p < 1)])

    def filtered(self, logits_BV: jax.Array) -> jax.Array:
        """Logits divided by the temperature, -inf for tokens that top_k and top_p exclude."""
        kind = self.kind
        logits_BV = logits_BV / self.temperature
        if kind.slots == _ALL or (kind.slots and kind.slots // 2 < logits_BV.shape[-1]):
            slots = min(kind.slots, logits_BV.shape[-1])
            highest_BK = jax.lax.top_k(logits_BV, slots)[0]
            last = jnp.minimum(self.top_k, slots) - 1
            lowest_kept = jnp.take(highest_BK, last, axis=-1)[:, None]
            logits_BV = jnp.where(logits_BV < lowest_kept, -jnp.inf, logits_BV)
        if kind.nucleus:
            ordered_BV = jnp.sort(logits_BV, axis=-1, descending=True)
            probs_BV = jax.nn.softmax(ordered_BV, axis=-1)
            before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
            # The most probable token always stays: the sum before it is 0.
            lowest_kept = jnp.min(
                jnp.where(before_BV < self.top_p, ordered_BV, jnp.inf), axis=-1, keepdims=True
            )
            logits_BV = jnp.where(logits_BV < lowest_kept, -jnp.inf, logits_BV)
        return logits_BV

    def __call__(self, logits_BV: jax.Array, keys_B: jax.Array, index_B: jax.Array) -> jax.Array:
        """One token per row [B]. The draw depends on the key of the row and the index of the token in its text."""
        if self.kind == _ANY:
            numbers = self.temperature, self.top_k, self.top_p
            each = [Sampler(*numbers, kind).__call__ for kind in _KINDS.values()]
            return jax.lax.switch(self._case(), each, logits_BV, keys_B, index_B)
        if self.kind.greedy:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        keys_B = jax.vmap(jax.random.fold_in)(keys_B, index_B)
        return jax.vmap(jax.random.categorical)(keys_B, self.filtered(logits_BV)).astype(jnp.int32)


PLAIN = Sampler()  # temperature 1, all tokens


def _short(number: float) -> str:
    """A number of a user's, in a message: 10^400 has 401 digits."""
    text = str(number)
    return text if len(text) <= 30 else f"{text[:10]}... ({len(text)} digits)"


class Scores(NamedTuple):
    """The model's own prediction (temperature 1, all tokens) for tokens that were drawn."""

    p: jax.Array | np.ndarray  # probability
    rank: jax.Array | np.ndarray  # 1 for the most probable
    entropy: jax.Array | np.ndarray  # of the prediction, in nats


def scores_of(logits_BV: jax.Array, token_B: jax.Array) -> Scores:
    """Each [B]."""
    log_p_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32), axis=-1)
    own_B1 = jnp.take_along_axis(log_p_BV, token_B[:, None], axis=-1)
    p_BV = jnp.exp(log_p_BV)
    # 0 log 0 is 0: log p is -inf outside the vocabulary.
    entropy_B = -jnp.where(p_BV > 0, p_BV * log_p_BV, 0.0).sum(axis=-1)
    return Scores(jnp.exp(own_B1[:, 0]), 1 + (log_p_BV > own_B1).sum(axis=-1), entropy_B)
