"""Activations of a text in safetensors files, in bounded memory: `jaxgpt.inspect.activations`.

    folder = jaxgpt.inspect.activations(run, ids, ["block_2/after"], out="acts")
    kept = ActivationFiles(folder)
    x_ND, tokens_N = kept.read("block_2/after", most=100_000), kept.read("tokens", most=100_000)

A site is the path of a value that the model records (`layers.record`), such as

    start, features                         the residual stream before the first block; after the final norm
    block_I/before, between, after          the residual stream: as the block reads it, after attention, after the block
    block_I/mlp_input, mlp/hidden, mlp_change
    block_I/attention/q, k, v, heads        heads side by side

The text is cut into windows of context_length tokens, and a token sees its own window only. The folder has shards 00000.safetensors, ...
with, for N tokens each, `tokens` [N] int32, `positions` [N] int32 (in the window) and a float32 array [N, width] for each site; and index.json.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxgpt.common import door
from jaxgpt.common.files import expand, new_folder, read_json, write_json
from jaxgpt.config import UserError, first_line
from jaxgpt.data import batches
from jaxgpt.inspect.subject import plain
from jaxgpt.model.gpt import GPT
from jaxgpt.runs.load import Run
from jaxgpt.runs.tensor_files import write_tensors

SHARD_BYTES = 64 << 20  # of a shard: what is in memory at once
BATCH_TOKENS = 4_096  # in one forward pass
_NOT_PER_TOKEN = ("attention/scores", "attention/mask", "attention/weights")


def sites_of(model: GPT, params: dict) -> dict[str, int]:
    """The sites of a model, with the width of each."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shown = jax.eval_shape(functools.partial(_recorded, model), params, one)
    return {name: math.prod(x.shape[2:]) for name, x in shown.items() if not name.endswith(_NOT_PER_TOKEN)}


def _recorded(model: GPT, params: dict, tokens_BT: jax.Array) -> dict[str, jax.Array]:
    _, shown = model.apply({"params": params}, tokens_BT, method=GPT.features, mutable="intermediates")
    flat = jax.tree_util.tree_flatten_with_path(
        shown["intermediates"], is_leaf=lambda x: isinstance(x, tuple)
    )[0]
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): value[0] for path, value in flat}
    B = tokens_BT.shape[0]  # vectors of positions are those of every window
    return {
        name: jnp.broadcast_to(x, (B, *x.shape[1:])) if name == "position_vectors" else x
        for name, x in found.items()
    }


@functools.partial(jax.jit, static_argnames=("model", "sites"))
def _forward(model: GPT, params: dict, tokens_BT: jax.Array, sites: tuple[str, ...]) -> list[jax.Array]:
    recorded = _recorded(model, params, tokens_BT)
    return [recorded[site].reshape(*tokens_BT.shape, -1) for site in sites]


def forwarded(
    model: GPT, params: dict, ids: Any, sites: Sequence[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """(tokens [N], positions [N], [N, width] for each site) of a text of ids, a few windows at a time. In float32.

    `model` and `params` are those of `subject.plain`. Raises UserError for a site that the model does not have.
    """
    known = sites_of(model, params)
    for site in sites:
        if site not in known:
            raise UserError(f"no site {site!r}: choose among {', '.join(known)}")
    T = model.cfg.context_length
    rows = max(1, BATCH_TOKENS // T)
    for first in range(0, len(ids), rows * T):
        own = batches.shards.unmarked(np.asarray(ids[first : first + rows * T], np.int32))
        tokens_BT = np.zeros(rows * T, np.int32)
        tokens_BT[: len(own)] = own
        with jax.default_matmul_precision("highest"):
            found = _forward(model, params, tokens_BT.reshape(rows, T), tuple(sites))
        positions = np.arange(len(own), dtype=np.int32) % T
        # A model without a causal mask would see the padding of the last window.
        keep = len(own) if model.cfg.causal or len(own) % T == 0 else len(own) - len(own) % T
        yield own[:keep], positions[:keep], [np.asarray(x).reshape(rows * T, -1)[:keep] for x in found]


def activations(
    run: Run, text: str | Sequence[int] | np.ndarray, sites: Sequence[str], out: str | Path
) -> Path:
    """Write the activations of a text (as text or as ids) at some sites to the folder `out`. Returns it.

    The folder must be absent or empty, and appears when it is complete. Memory holds one shard of 64 MiB. Raises UserError for an unknown
    site, for text that the tokenizer lacks and for an empty text.
    """
    folder = expand(out)
    ids = run.tokenizer.encode_prompt(text) if isinstance(text, str) else text
    if not len(ids):
        raise UserError("the text is empty: give one with tokens")
    if not sites:
        raise UserError("no site is given: give one such as block_0/after")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: give another folder")
    model, params = plain(run.config.model, run.params)
    parts: list[dict[str, np.ndarray]] = []
    counts: list[int] = []
    with new_folder(folder) as temporary:

        def write() -> None:
            if parts:
                tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                write_tensors(temporary / f"{len(counts):05d}.safetensors", tensors)
                counts.append(len(tensors["tokens"]))
                parts.clear()

        for tokens_N, positions_N, found in forwarded(model, params, ids, sites):
            part = {"tokens": tokens_N, "positions": positions_N, **dict(zip(sites, found, strict=True))}
            size = sum(x.nbytes for x in part.values())
            if parts and sum(x.nbytes for one in parts for x in one.values()) + size > SHARD_BYTES:
                write()
            parts.append(part)
        write()
        if not sum(counts):
            raise UserError(
                f"the text has {len(ids)} tokens, and a model without a causal mask needs a window of {model.cfg.context_length}: give more"
            )
        widths = sites_of(model, params)
        write_json(
            temporary / "index.json",
            {"step": run.step, "tokens": counts, "sites": {site: widths[site] for site in sites}},
        )
    return folder


class ActivationFiles:
    """The folder that `activations` writes. Raises UserError for another one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = expand(folder)
        try:
            door.check(self.folder)
            index = read_json(self.folder / "index.json")
            self.step: int = index["step"]
            self.sites: dict[str, int] = dict(index["sites"])
            self.counts: list[int] = [int(n) for n in index["tokens"]]
        except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(
                f"{self.folder} is not a folder of activations ({error}): write one with inspect.activations"
            ) from None

    @property
    def num_tokens(self) -> int:
        """The tokens of all shards."""
        return sum(self.counts)

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """An array of each shard in turn: `tokens`, `positions`, or a site."""
        if name not in ("tokens", "positions", *self.sites):
            raise UserError(
                f"no {name!r} in {self.folder}: it has tokens, positions, {', '.join(self.sites)}"
            )
        for i in range(len(self.counts)):
            path = self.folder / f"{i:05d}.safetensors"
            try:
                with safe_open(path, framework="np") as file:
                    yield file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} can't be read ({first_line(error)}): write the folder again"
                ) from None

    def read(self, name: str, most: int | None = None) -> np.ndarray:
        """The first `most` rows (None: all) as one array."""
        found, left = [], self.num_tokens if most is None else most
        for part in self.parts(name):
            found.append(part[:left])
            left -= len(found[-1])
            if left <= 0:
                break
        return np.concatenate(found)
