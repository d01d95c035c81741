"""Change activations inside the model: scale them, add to them, replace them; ablate heads, patch from another text.

The model's code has no mode for this: `flax.linen.intercept_methods` lets the caller change the input or output of a
module, so the training program is unaffected. Edits are arrays and can be mapped over (`jax.vmap`).

    from jaxgpt.inspect.interventions import Edit, edited, edited_logits
    edits = {("heads", 0): Edit(scale=0.0, at=1), ("stream", 2): Edit(add=3 * direction_D)}
    logits_BTV = edited_logits(run.model, run.params, tokens_BT, edits)
    generation.generate(*edited(run.model, run.params, edits), run.tokenizer, ["ROMEO:"], 200)

Sites of layer i and the shapes of their activations:

    ("heads", i)      each head's weighted mean of the values, before W_O   [B, T, H, K]
    ("attention", i)  the change by all heads                               [B, T, D]
    ("neurons", i)    the MLP's neurons, after the activation               [B, T, F]
    ("mlp", i)        the MLP's output                                      [B, T, D]
    ("stream", i)     the residual stream after the block                   [B, T, D]
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

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.model.gpt import GPT
from jaxgpt.training.steps import token_losses

SITES = ("attention", "neurons", "heads", "mlp", "stream")
NUMBERED = ("heads", "neurons")  # sites where an edit may take some by number


class Edit(NamedTuple):
    """Replaces x by `replace`, or by scale * x + add. Numbers and arrays, which broadcast to x.

    Where `keep` is 1, x stays; where it is 0, x is edited. None: edited everywhere. `at` is a number, or a list of
    numbers, of the heads or neurons that are edited; the others stay.
    """

    keep: Any = None
    replace: Any = None
    scale: Any = None
    add: Any = None
    at: Any = None

    def on(self, x: jax.Array, site: str) -> jax.Array:
        """The edited activation, in x's dtype. Raises UserError if an array does not broadcast to x."""
        for name in ("keep", "replace", "scale", "add"):
            shape = np.shape(getattr(self, name))
            if not _fits(shape, x.shape):
                raise UserError(
                    f"edit of {site!r}: {name} has the shape {list(shape)}, the activation {list(x.shape)}: give one that "
                    "broadcasts to it"
                )
        changed = x if self.replace is None else self.replace
        changed = changed if self.scale is None else self.scale * changed
        changed = changed if self.add is None else changed + self.add
        for keep in (self.keep, self._others(x, site)):
            if keep is not None:
                changed = keep * x + (1 - keep) * changed
        return jnp.broadcast_to(changed, x.shape).astype(x.dtype)

    def _others(self, x: jax.Array, site: str) -> jax.Array | None:
        """1 for the heads [H, 1] or neurons [F] that `at` leaves out."""
        if self.at is None:
            return None
        axis = -2 if site == "heads" else -1
        chosen = (jnp.arange(x.shape[axis])[:, None] == jnp.ravel(jnp.asarray(self.at))).any(axis=1)
        keep = 1.0 - chosen.astype(jnp.float32)
        return keep[:, None] if site == "heads" else keep


def _fits(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array broadcasts to a shape without making it larger."""
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


Edits = dict[tuple[str, int], Edit]


def _interceptor(edits: Edits, kept: Edits | None = None) -> Callable:
    """Apply the edits. If `kept` is given, store the activation of every site in it, before its edit."""

    def at(site: str, layer: int, x: jax.Array) -> jax.Array:
        if kept is not None:
            kept[site, layer] = x
        return edits[site, layer].on(x, site) if (site, layer) in edits else x

    inputs = {("attention", "out"): "heads", ("mlp", "down"): "neurons"}
    outputs = {("attention",): "attention", ("mlp",): "mlp", (): "stream"}

    def intercept(next_function, args, kwargs, context):
        path = context.module.path
        if context.method_name != "__call__" or not path or not path[0].startswith("block_"):
            return next_function(*args, **kwargs)
        layer, inner = int(path[0].removeprefix("block_")), path[1:]
        if inner in inputs:
            return next_function(at(inputs[inner], layer, args[0]), *args[1:], **kwargs)
        out = next_function(*args, **kwargs)
        if inner not in outputs:
            return out
        if isinstance(out, tuple):  # of attention and of a block: the change or the stream comes first
            return at(outputs[inner], layer, out[0]), *out[1:]
        return at(outputs[inner], layer, out)

    return intercept


def _check_site(cfg: config.ModelConfig, site: str, layer: int) -> None:
    if site not in SITES or type(layer) is not int or not 0 <= layer < cfg.num_layers:
        raise UserError(
            f"no site {(site, layer)!r}: choose one of {', '.join(SITES)} and a layer from 0 to {cfg.num_layers - 1}"
        )
    if site in ("mlp", "neurons") and not cfg.mlp_width:
        raise UserError(
            f"no site {(site, layer)!r}: this model has no MLPs (model.d_ff=0), choose another site"
        )


def check(cfg: config.ModelConfig, edits: Edits) -> None:
    """Raises UserError for an edit that this model does not have, or that says nothing or too much."""
    for key, edit in edits.items():
        if not (isinstance(key, tuple) and len(key) == 2):
            raise UserError(f"edits[{key!r}]: give a site and a layer, such as ('heads', 0)")
        _check_site(cfg, *key)
        site, what = key[0], f"edit of {key!r}"
        if not isinstance(edit, Edit):
            raise UserError(f"{what}: give an Edit, not {type(edit).__name__}")
        if edit.replace is None and edit.scale is None and edit.add is None:
            raise UserError(f"{what} changes nothing: give replace, scale or add")
        if edit.replace is not None and not (edit.scale is None and edit.add is None):
            raise UserError(f"{what} has replace and scale or add: give one of the two")
        if edit.at is not None:
            _check_numbers(cfg, site, edit.at, what)
        for name, value in edit._asdict().items():
            _check_value(f"{what}: {name}", value)


def _traced(value: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def _check_value(what: str, value: Any) -> None:
    if value is None or _traced(value):
        return
    try:
        finite = bool(np.isfinite(np.asarray(value)).all())
    except (TypeError, ValueError):
        raise UserError(f"{what} is of type {type(value).__name__}: give a number or an array") from None
    if not finite:
        raise UserError(f"{what} has numbers that are not finite: give finite numbers")


def _check_numbers(cfg: config.ModelConfig, site: str, at: Any, what: str) -> None:
    if site not in NUMBERED:
        raise UserError(
            f"{what}: `at` takes heads or neurons by number, {site!r} has none of them: leave it out"
        )
    if _traced(at):
        return
    count = cfg.num_heads if site == "heads" else cfg.mlp_width
    try:
        numbers = np.asarray(at)
        known = numbers.dtype.kind in "iu" and numbers.size > 0 and ((numbers >= 0) & (numbers < count)).all()
    except (TypeError, ValueError):
        known = False
    if not known:
        raise UserError(f"{what}: at={str(at)[:40]}: give integers from 0 to {count - 1}")


@dataclass(frozen=True)
class EditedGPT:
    """A GPT whose activations are edited. Its parameters are the pair (the GPT's, edits).

    It stands in for the GPT in `generation`: another number in an edit compiles nothing, because edits are arguments of
    the program.
    """

    model: GPT

    @property
    def cfg(self) -> config.ModelConfig:
        return self.model.cfg

    def apply(self, variables: dict, *args: Any, **settings: Any) -> Any:
        """As GPT.apply, with {"params": (params, edits)}."""
        params, edits = variables["params"]
        with nn.intercept_methods(_interceptor(edits)):
            return self.model.apply({**variables, "params": params}, *args, **settings)


def edited(model: GPT, params: dict, edits: Edits) -> tuple[Any, Any]:
    """A model and its parameters with edited activations, for `generation.generate(*edited(...), tokenizer, ...)`.

    With the cache each token is edited when it is read, so the text is that of complete forward passes with the edits. An
    edit must be the same at all positions: with axes for B and T only of length 1.
    """
    check(model.cfg, edits)
    for (site, layer), edit in edits.items():
        axes = 2 if site == "heads" else 1  # after B and T
        for name, value in edit._asdict().items():
            if name != "at" and any(size != 1 for size in np.shape(value)[:-axes]):
                raise UserError(
                    f"edit of {(site, layer)!r}: {name} has the shape {list(np.shape(value))}: while text is generated an edit "
                    "is the same at all positions, give one without axes for texts and positions"
                )
    return EditedGPT(model), (params, edits)


def edited_logits(model: GPT, params: dict, tokens_BT: jax.Array, edits: Edits) -> jax.Array:
    """The model's logits [B, T, V] with edited activations."""
    check(model.cfg, edits)
    return EditedGPT(model).apply({"params": (params, edits)}, tokens_BT)


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
    _check_site(model.cfg, site, layer)

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
