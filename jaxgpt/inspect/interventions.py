"""Change activations inside the model: ablate heads, patch activations from another text.

The model's code has no mode for this: `flax.linen.intercept_methods` lets the caller change the input or output of a
module, so the training program is unaffected. Edits are arrays and can be mapped over (`jax.vmap`).

    from jaxgpt.inspect.interventions import Edit, edited_logits
    logits = edited_logits(model, params, tokens_BT, {("heads", 1): Edit(keep_H1, 0.0)})

Sites of layer i and the shapes of their activations:

    ("heads", i)    each head's weighted mean of the values, before W_O   [B, T, H, K]
    ("mlp", i)      the MLP's output                                      [B, T, D]
    ("stream", i)   the residual stream after the block                   [B, T, D]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import UserError
from jaxgpt.model.gpt import GPT
from jaxgpt.training.steps import token_losses

SITES = ("heads", "mlp", "stream")


class Edit(NamedTuple):
    """Replaces x by keep * x + (1 - keep) * value. Both broadcast to x; keep is 1 (unchanged) or 0 (replaced)."""

    keep: Any
    value: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.keep * x + (1 - self.keep) * self.value


Edits = dict[tuple[str, int], Edit]


def _interceptor(edits: Edits, kept: Edits | None = None) -> Callable:
    """Apply the edits. If `kept` is given, store the activation of every site in it, before its edit."""

    def at(site: str, layer: int, x: jax.Array) -> jax.Array:
        if kept is not None:
            kept[site, layer] = x
        return edits[site, layer](x) if (site, layer) in edits else x

    def intercept(next_function, args, kwargs, context):
        path = context.module.path
        if context.method_name != "__call__" or not path or not path[0].startswith("block_"):
            return next_function(*args, **kwargs)
        layer, inner = int(path[0].removeprefix("block_")), path[1:]
        if inner == ("attention", "out"):
            return next_function(at("heads", layer, args[0]), *args[1:], **kwargs)
        out = next_function(*args, **kwargs)
        if inner == ("mlp",):
            return at("mlp", layer, out)
        return (at("stream", layer, out[0]), *out[1:]) if inner == () else out

    return intercept


def _check(model: GPT, edits: Edits) -> None:
    for site, layer in edits:
        if site not in SITES or not 0 <= layer < model.cfg.num_layers:
            raise UserError(
                f"no site {(site, layer)!r}: choose one of {', '.join(SITES)} and a layer from 0 to {model.cfg.num_layers - 1}"
            )


def edited_logits(model: GPT, params: dict, tokens_BT: jax.Array, edits: Edits) -> jax.Array:
    """The model's logits [B, T, V] with edited activations."""
    _check(model, edits)
    with nn.intercept_methods(_interceptor(edits)):
        return model.apply({"params": params}, tokens_BT)


def activations(model: GPT, params: dict, tokens_BT: jax.Array) -> dict[tuple[str, int], jax.Array]:
    """The activations of every (site, layer)."""
    kept: dict = {}
    with nn.intercept_methods(_interceptor({}, kept)):
        model.apply({"params": params}, tokens_BT, method=GPT.features)
    return kept


def patched_logits(
    model: GPT,
    params: dict,
    tokens_T: np.ndarray,
    other_T: np.ndarray,
    site: str,
    layer: int,
    keep: Any = 0.0,
) -> np.ndarray:
    """Activation patching: logits [T, V] of one text with the activations of another text at one site.

    Both texts have the same length. `keep` (see Edit) of shape [T, 1] patches only the positions with 0. Sources: Vig et
    al. 2020; Meng et al. 2022 ("causal tracing").
    """
    tokens_T, other_T = np.asarray(tokens_T, np.int32), np.asarray(other_T, np.int32)
    if tokens_T.shape != other_T.shape:
        raise UserError(
            f"texts of {len(tokens_T)} and {len(other_T)} tokens: patch from one of the same length"
        )
    _check(model, {(site, layer): None})

    @functools.partial(jax.jit, static_argnames="model")
    def run(model, params, tokens_BT, other_BT, keep):
        value = activations(model, params, other_BT)[site, layer]
        return edited_logits(model, params, tokens_BT, {(site, layer): Edit(keep, value)})

    return np.asarray(run(model, params, tokens_T[None], other_T[None], jnp.asarray(keep))[0])


# --- ablation -------------------------------------------------------------------------------------------

ABLATIONS = ("zero", "mean")


@dataclass(frozen=True)
class Ablation:
    """The loss with each head removed in turn, in nats per token."""

    loss: float  # with all heads
    tokens: int
    losses_LH: np.ndarray
    standard_error_LH: np.ndarray  # of losses_LH - loss, between windows; nan for one window

    @property
    def difference(self) -> np.ndarray:
        """The increase of the loss without each head."""
        return self.losses_LH - self.loss


@functools.partial(jax.jit, static_argnames="model")
def _ablated_losses(
    model: GPT, params: dict, windows_BT: jax.Array, keep_NLH: jax.Array, values_LHK: jax.Array
) -> jax.Array:
    """The mean loss [N, B] of each window, for each of N masks of kept heads."""

    def one(keep_LH: jax.Array) -> jax.Array:
        edits = {("heads", i): Edit(keep_LH[i][:, None], values_LHK[i]) for i in range(model.cfg.num_layers)}
        logits_BTV = edited_logits(model, params, windows_BT[:, :-1], edits)
        return token_losses(logits_BTV, windows_BT[:, 1:]).mean(axis=-1)

    return jax.lax.map(one, keep_NLH)


@functools.partial(jax.jit, static_argnames="model")
def mean_heads(model: GPT, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """Each head's mean output [L, H, K] over all positions."""
    kept = activations(model, params, tokens_BT)
    return jnp.stack([kept["heads", i].mean(axis=(0, 1)) for i in range(model.cfg.num_layers)])


def ablate_heads(model: GPT, params: dict, windows_BT: np.ndarray, kind: str = "mean") -> Ablation:
    """Remove each head in turn and measure the loss on windows [B, T + 1] of text.

    "zero" replaces a head's output by 0 (Michel et al. 2019), "mean" by its mean over these windows, which keeps its
    constant part (Wang et al. 2023).
    """
    if kind not in ABLATIONS:
        raise UserError(f"ablation {kind!r}: choose one of {', '.join(ABLATIONS)}")
    L, H, K = model.cfg.num_layers, model.cfg.num_heads, model.cfg.head_width
    keep_NLH = np.ones((L * H + 1, L, H), np.float32)
    keep_NLH[np.arange(L * H), np.repeat(np.arange(L), H), np.tile(np.arange(H), L)] = 0
    with jax.default_matmul_precision("highest"):
        values_LHK = (
            mean_heads(model, params, windows_BT[:, :-1])
            if kind == "mean"
            else jnp.zeros((L, H, K), jnp.float32)
        )
        losses_NB = np.asarray(_ablated_losses(model, params, windows_BT, keep_NLH, values_LHK), np.float64)
    B, own_B = windows_BT.shape[0], losses_NB[-1]
    change_NB = losses_NB[:-1] - own_B
    error_N = change_NB.std(axis=1, ddof=1) / np.sqrt(B) if B > 1 else np.full(L * H, np.nan)
    return Ablation(
        loss=float(own_B.mean()),
        tokens=int(windows_BT[:, 1:].size),
        losses_LH=losses_NB[:-1].mean(axis=1).reshape(L, H),
        standard_error_LH=error_N.reshape(L, H),
    )
