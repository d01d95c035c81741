"""Edits as the local page asks for them: heads, MLPs and neurons scaled or switched off, and directions between words.

An edit is a JSON object:

    {"site": "heads", "layer": 0, "at": 1, "scale": 0}                  head 0.1 off
    {"site": "mlp", "layer": 2, "scale": 0.5}                           an MLP at half its strength
    {"site": "neurons", "layer": 2, "at": 17, "scale": 3}               a neuron, three times as strong
    {"site": "stream", "layer": 1, "from": "a", "to": "b", "scale": 2}  2 (E[b] - E[a]) added after block 1, where E[a] is
                                                                        the mean of the token vectors of the text a

All of them together become arrays of one form, so that one program serves every choice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.inspect.interventions import Edit, Edits
from jaxgpt.inspect.subject import encode_known

MOST = 32  # edits of one request
LARGEST = 1e6
FIELDS = {
    "heads": ("layer", "at", "scale"),
    "mlp": ("layer", "scale"),
    "neurons": ("layer", "at", "scale"),
    "stream": ("layer", "from", "to", "scale"),
}


def sites(cfg: config.ModelConfig) -> dict[str, int]:
    """How many heads, MLPs (1 or 0) and neurons a layer has, by the name of the site; 1 for the stream."""
    mlp = {"mlp": 1, "neurons": cfg.mlp_width} if cfg.mlp_width else {}
    return {"heads": cfg.num_heads, **mlp, "stream": 1}


def edits_of(cfg: config.ModelConfig, params: dict, tokenizer: Tokenizer, given: Any) -> Edits:
    """The edits of a request for all layers and sites. Raises UserError for an edit that this model does not have."""
    if not isinstance(given, list) or len(given) > MOST:
        raise UserError(f"edits: give a list of at most {MOST} edits")
    L, known = cfg.num_layers, sites(cfg)
    scales = {
        name: np.ones((L, count) if name in ("heads", "neurons") else L, np.float32)
        for name, count in known.items()
        if name != "stream"
    }
    added_LD = np.zeros((L, cfg.d_model), np.float32)
    for number, one in enumerate(given, start=1):
        what = f"edit {number}"
        site, layer, scale = _checked(one, cfg, known, what)
        if site == "stream":
            rows = [
                _mean_vector(cfg, params, tokenizer, one[end], f"{what}: {end}") for end in ("to", "from")
            ]
            added_LD[layer] += scale * (rows[0] - rows[1])
        elif site == "mlp":
            scales[site][layer] *= scale
        else:
            scales[site][layer, one["at"]] *= scale
    edits: Edits = {("stream", i): Edit(add=added_LD[i]) for i in range(L)}
    for site, values in scales.items():
        for i in range(L):
            edits[site, i] = Edit(scale=values[i][:, None] if site == "heads" else values[i])
    return edits


def _checked(one: Any, cfg: config.ModelConfig, known: dict[str, int], what: str) -> tuple[str, int, float]:
    if not isinstance(one, dict) or one.get("site") not in known:
        raise UserError(f"{what}: give an object with site, one of {', '.join(known)}")
    site, names = one["site"], FIELDS[one["site"]]
    if set(one) != {"site", *names}:
        raise UserError(f"{what}: give site, {', '.join(names)}, and nothing else")
    limits = {"layer": cfg.num_layers, "at": known[site]}
    for name in set(names) & set(limits):
        if type(one[name]) is not int or not 0 <= one[name] < limits[name]:
            raise UserError(
                f"{what}: {name}={str(one[name])[:40]}: give an integer from 0 to {limits[name] - 1}"
            )
    scale = one["scale"]
    if type(scale) not in (int, float) or not math.isfinite(scale) or abs(scale) > LARGEST:
        raise UserError(
            f"{what}: scale={str(scale)[:40]}: give a number from {-LARGEST:,.0f} to {LARGEST:,.0f}"
        )
    return site, one["layer"], float(scale)


def _mean_vector(
    cfg: config.ModelConfig, params: dict, tokenizer: Tokenizer, text: Any, what: str
) -> np.ndarray:
    """The mean of the token vectors of a text: [D]."""
    if not isinstance(text, str) or not text:
        raise UserError(f"{what}: give a text of at least one token")
    ids = encode_known(tokenizer, text)
    rows = np.asarray(params["token_embedding"]["embedding"], np.float32)[ids]
    if cfg.factorised:
        rows = rows @ np.asarray(params["embedding_projection"]["kernel"], np.float32)
    return rows.mean(axis=0)
