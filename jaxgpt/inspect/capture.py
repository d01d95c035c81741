"""Capture every intermediate of one forward pass as NumPy arrays.

The model records them at a few named sites (`layers.record`) when its caller asks for intermediates. Training never asks,
so its program is unchanged. Dimensions are those of model/gpt.py for one text, without B.

Everything is computed in float32, whatever model.dtype is, so that sums are exact to rounding. Attention is explicit,
because a fused kernel has no weights to record.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data import tokenizers
from jaxgpt.model.generation import window_size
from jaxgpt.model.gpt import GPT
from jaxgpt.model.layers import NORMS, Norm
from jaxgpt.model.lora import merge_lora
from jaxgpt.runs.load import Run
from jaxgpt.training.steps import token_losses


@dataclass(frozen=True)
class Layer:
    """The intermediates of one block. Shared key and value heads are repeated, so that head h has its own."""

    # The block reads mix[0] * stream + mix[1] * start. Without model.embedding_residual mix is (1, 0).
    mix: np.ndarray  # [2]
    before_TD: np.ndarray  # the residual stream as the block reads it, after mixing
    attention_input_TD: np.ndarray  # normed
    # Queries and keys are those of the scores: after query-key norm and rotary positions.
    q_THK: np.ndarray
    k_SHK: np.ndarray
    v_SHK: np.ndarray  # mixed with the first layer's if model.value_residual
    scores_HTS: np.ndarray  # q k times the scale, after the soft cap, before the mask
    mask_TS: np.ndarray  # bool: whether position t may see key s
    weights_HTS: np.ndarray  # softmax of the masked scores: rows sum to 1
    heads_THK: np.ndarray  # each head's weighted mean of the values
    head_changes_HTD: np.ndarray  # each head's output through its part of W_O
    attention_bias_D: np.ndarray  # W_O's bias, or 0
    between_TD: np.ndarray  # the stream with attention's change
    mlp_input_TD: np.ndarray  # normed; of before_TD where model.parallel_residual
    hidden_TF: np.ndarray  # after the activation (and, gated, after the product)
    mlp_change_TD: np.ndarray
    after_TD: np.ndarray  # the stream after the block

    @property
    def masked_scores(self) -> np.ndarray:
        """The scores [H, T, S] with -inf at masked keys."""
        return np.where(self.mask_TS, self.scores_HTS, -np.inf).astype(np.float32)


@dataclass(frozen=True)
class Readout:
    """The computation of logits from the residual stream: the final norm and the output table."""

    epsilon: float  # of the final norm
    centered: bool  # LayerNorm subtracts the mean
    scale_D: np.ndarray
    bias_D: np.ndarray
    table_VE: np.ndarray  # rows of the untied head, or of the token table
    projection_ED: np.ndarray | None  # of a narrow token table; None: E is D
    softcap: float  # 0: none

    def directions(self, ids_N: np.ndarray) -> np.ndarray:
        """The vectors [N, D] whose product with the normed stream gives the logits of these tokens."""
        rows = self.table_VE[ids_N]
        return rows if self.projection_ED is None else rows @ self.projection_ED

    def norm_scale(self, x_TD: np.ndarray) -> np.ndarray:
        """The factor [T, 1] of the final norm: 1 / root mean square (1 / standard deviation if centred)."""
        x_TD = x_TD - x_TD.mean(-1, keepdims=True) if self.centered else x_TD
        return 1 / np.sqrt(np.square(x_TD).mean(-1, keepdims=True) + self.epsilon)

    def linear(self, x_TD: np.ndarray, norm_scale_T1: np.ndarray) -> np.ndarray:
        """The final norm [..., T, D] with a fixed scale and without bias: a linear function."""
        x_TD = x_TD - x_TD.mean(-1, keepdims=True) if self.centered else x_TD
        return x_TD * norm_scale_T1 * self.scale_D

    def before_norm(self, directions_TD: np.ndarray, norm_scale_T1: np.ndarray) -> np.ndarray:
        """The vectors [T, D] whose products with the stream are those of `directions_TD` with its `linear` norm."""
        directions_TD = directions_TD * norm_scale_T1 * self.scale_D
        return directions_TD - directions_TD.mean(-1, keepdims=True) if self.centered else directions_TD

    def logits(self, x_TD: np.ndarray) -> np.ndarray:
        """Logits [..., V] of the stream [..., D] at any depth: final norm, output table, soft cap."""
        if x_TD.ndim > 2:  # NumPy would multiply each matrix of a stack alone
            return self.logits(x_TD.reshape(-1, x_TD.shape[-1])).reshape(*x_TD.shape[:-1], -1)
        normed_TD = self.linear(x_TD, self.norm_scale(x_TD)) + self.bias_D
        if self.projection_ED is not None:
            normed_TD = normed_TD @ self.projection_ED.T
        logits_TV = normed_TD @ self.table_VE.T
        return self.softcap * np.tanh(logits_TV / self.softcap) if self.softcap else logits_TV


@dataclass(frozen=True)
class Capture:
    """All intermediates of one text in one model, from its ids to the loss of each token."""

    config: config.ModelConfig
    tokens_T: np.ndarray  # int32 ids
    token_rows_TE: np.ndarray  # rows of the token table
    token_vectors_TD: np.ndarray  # the same after the projection of a narrow table
    position_vectors_TD: np.ndarray  # position embeddings; 0 if the model adds none
    start_TD: np.ndarray  # their sum: the stream before the first block
    layers: tuple[Layer, ...]
    features_TD: np.ndarray  # after the final norm
    logits_TV: np.ndarray
    losses: np.ndarray  # [T - 1] nats: -log p(token t + 1), given the tokens 0 to t
    readout: Readout

    @property
    def end(self) -> np.ndarray:
        """The stream before the final norm: [T, D]."""
        return self.layers[-1].after_TD if self.layers else self.start_TD


@functools.partial(jax.jit, static_argnames="model")
def _forward(model: GPT, params: dict, tokens_BT: jax.Array):
    """Logits [B, T, V], losses [B, T - 1] and all recorded values, with each head's output through its part of W_O."""
    logits_BTV, shown = model.apply({"params": params}, tokens_BT, mutable="intermediates")
    shown = shown["intermediates"]
    for i in range(model.cfg.num_layers):
        heads_BTHK = shown[f"block_{i}"]["attention"]["heads"][0]
        out_HKD = params[f"block_{i}"]["attention"]["out"]["kernel"]
        changes_BTHD = jnp.einsum("BTHK,HKD->BTHD", heads_BTHK, out_HKD)
        shown[f"block_{i}"]["attention"]["head_changes"] = (changes_BTHD,)
    return logits_BTV, token_losses(logits_BTV[:, :-1], tokens_BT[:, 1:]), shown


def padded_length(cfg: config.ModelConfig, tokens: int) -> int:
    """The tokens to which a text is padded at the right, so that few programs are compiled for texts of any length.

    No token of a causal model attends to the padding. Without the causal mask every token would: nothing is added.
    """
    return min(cfg.context_length, window_size(tokens)) if cfg.causal else tokens


def _without_padding(shown: dict, T: int) -> dict:
    """The recorded values of the first T tokens. They have axes [B, T, ...]; those of scores, mask and weights end in [T, S]."""

    def cut(path: tuple, value: np.ndarray) -> np.ndarray:
        if path[-2].key in ("scores", "mask", "weights"):
            return value[..., :T, :T]
        return value[:, :T]

    return jax.tree_util.tree_map_with_path(cut, shown)


def capture(cfg: config.ModelConfig, params: dict, tokens_T: np.ndarray) -> Capture:
    """Run one text [T] through a model and record everything. Raises UserError for 0 or too many tokens."""
    tokens_T = np.asarray(tokens_T, np.int32)
    if not 1 <= len(tokens_T) <= cfg.context_length:
        raise UserError(f"{len(tokens_T)} tokens: give 1 to model.context_length={cfg.context_length}")
    if tokens_T.min() < 0 or tokens_T.max() >= cfg.num_tokens:
        raise UserError(f"invalid token ids: give 0 to {cfg.num_tokens - 1}")
    if not cfg.residual or cfg.post_norm or not cfg.mlp_width:
        raise UserError(
            "a report needs a residual stream that layers only add to, and MLPs, but this model has "
            f"model.residual={str(cfg.residual).lower()}, model.post_norm={str(cfg.post_norm).lower()} and "
            f"model.d_ff={cfg.mlp_width}: choose another run"
        )
    cfg, params = merge_lora(dataclasses.replace(cfg, dtype="float32"), params)
    T = len(tokens_T)
    padded_1T = np.zeros((1, padded_length(cfg, T)), np.int32)
    padded_1T[0, :T] = tokens_T
    with jax.default_matmul_precision("highest"):  # a GPU's default has fewer bits
        logits, losses, shown = jax.device_get(_forward(GPT(cfg, attention="explicit"), params, padded_1T))
    logits, losses, shown = logits[:, :T], losses[:, : T - 1], _without_padding(shown, T)
    params = jax.device_get(params)
    top = {name: value[0][0] for name, value in shown.items() if not name.startswith("block_")}
    zeros_D = np.zeros(cfg.d_model, np.float32)
    return Capture(
        config=cfg,
        tokens_T=tokens_T,
        token_rows_TE=top["token_rows"],
        token_vectors_TD=top["token_vectors"],
        position_vectors_TD=np.broadcast_to(top.get("position_vectors", zeros_D), top["start"].shape),
        start_TD=top["start"],
        layers=tuple(_layer(cfg, params[f"block_{i}"], shown[f"block_{i}"]) for i in range(cfg.num_layers)),
        features_TD=top["features"],
        logits_TV=logits[0],
        losses=losses[0],
        readout=_readout(cfg, params),
    )


def of_run(run: Run, tokens: str | Sequence[int]) -> Capture:
    """Capture a run's forward pass on a text, given as text or as ids: `jaxgpt.capture`.

        run = jaxgpt.load("runs/char")
        seen = jaxgpt.capture(run, "ROMEO:")
        seen.layers[0].weights_HTS[1]     # layer 0, head 1: [T, S]
        seen.layers[-1].hidden_TF         # neurons of the last MLP
        jaxgpt.inspect.analysis.ledger(seen)

    Raises UserError for text that the tokenizer does not have, and for 0 or too many tokens.
    """
    ids = run.tokenizer.encode_prompt(tokens) if isinstance(tokens, str) else np.asarray(tokens)
    return capture(run.config.model, run.params, ids)


def _layer(cfg: config.ModelConfig, params: dict, shown: dict) -> Layer:
    block = {name: value[0][0] for name, value in shown.items() if isinstance(value, tuple)}
    attention = {name: value[0][0] for name, value in shown["attention"].items()}
    k_SHK, v_SHK = (np.repeat(attention[x], cfg.num_heads // cfg.kv_heads, axis=1) for x in "kv")
    out = params["attention"]["out"]
    return Layer(
        mix=params.get("embedding_mix", np.array([1.0, 0.0], np.float32)),
        before_TD=block["before"],
        attention_input_TD=block["attention_input"],
        q_THK=attention["q"],
        k_SHK=k_SHK,
        v_SHK=v_SHK,
        scores_HTS=attention["scores"],
        mask_TS=attention["mask"],
        weights_HTS=attention["weights"],
        heads_THK=attention["heads"],
        head_changes_HTD=attention["head_changes"].transpose(1, 0, 2),
        attention_bias_D=out.get("bias", np.zeros(cfg.d_model, np.float32)),
        between_TD=block["between"],
        mlp_input_TD=block["mlp_input"],
        hidden_TF=shown["mlp"]["hidden"][0][0],
        mlp_change_TD=block["mlp_change"],
        after_TD=block["after"],
    )


def _readout(cfg: config.ModelConfig, params: dict) -> Readout:
    kind = NORMS[cfg.norm](cfg)
    if not isinstance(kind, Norm):
        raise UserError(
            f"model.norm={cfg.norm!r} is not a layers.Norm: how it turns the stream into logits is not known here, "
            "and numbers would be wrong; choose another norm"
        )
    norm = params.get("final_norm", {})
    table_VE = params["token_embedding"]["embedding"] if cfg.tie_embeddings else params["head"]["kernel"].T
    projected = cfg.factorised and cfg.tie_embeddings
    return Readout(
        epsilon=kind.epsilon,
        centered=kind.centered,
        scale_D=norm.get("scale", np.ones(cfg.d_model, np.float32)),
        bias_D=norm.get("bias", np.zeros(cfg.d_model, np.float32)),
        table_VE=table_VE[: cfg.vocab_size],  # without padding rows
        projection_ED=params["embedding_projection"]["kernel"] if projected else None,
        softcap=cfg.logit_softcap,
    )


def names_of(tokens_T: np.ndarray, tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Each token as text in quotes, with white space and control characters visible."""
    return [repr(tokenizer.token(int(i))) for i in tokens_T]
