"""Edits of activations: equal to a forward pass with the edit made by hand, with a cache and without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.inspect.capture import capture
from jaxgpt.inspect.interventions import SITES, Edit, edited, edited_logits
from jaxgpt.inspect.subject import plain
from jaxgpt.model import generation
from jaxgpt.model.generation import Sampler, window_start
from jaxgpt.model.gpt import GPT, Block
from tests.models import TINY, VARIANTS, random_params

RNG = np.random.default_rng(5)
TEXT = RNG.integers(0, 11, 8).astype(np.int32)
D, K, H = 8, 4, 2
VECTORS = {site: RNG.normal(0, 1, 4 if site == "heads" else 8).astype(np.float32) for site in SITES}
VECTORS["neurons"] = np.float32(1.5)
AT = {"heads": 1, "neurons": [2, 5]}
EDITS = {"off": {"scale": 0.0}, "scale": {"scale": -0.7}, "add": {}, "replace": {}, "both": {"scale": 2.0}}


def edit(site: str, how: str) -> Edit:
    values = dict(EDITS[how])
    if how in ("add", "both"):
        values["add"] = VECTORS[site]
    if how == "replace":
        values["replace"] = VECTORS[site]
    return Edit(**values, at=AT.get(site))


def by_hand(params: dict, site: str, how: str) -> dict:
    """The parameters of layer 0 that have the effect of the edit: every site but the stream is read by a linear layer."""
    params = jax.tree.map(np.array, params)
    block = params["block_0"]
    out = block["attention" if site in ("heads", "attention") else "mlp"][
        "out" if site in ("heads", "attention") else "down"
    ]
    scale = EDITS[how].get("scale", 0.0 if how == "replace" else 1.0)
    more = 0.0 if how in ("off", "scale") else VECTORS[site]
    if site in ("attention", "mlp"):
        out["kernel"] *= scale
        out["bias"] = scale * out["bias"] + more
        return params
    for i in np.ravel(AT[site]):
        if how in ("add", "both", "replace"):
            out["bias"] += np.tensordot(more, out["kernel"][i], np.ndim(more))
        out["kernel"][i] *= scale
    return params


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("site", SITES)
def test_an_edit_equals_a_forward_pass_with_the_edit_made_by_hand(site, how):
    params = random_params(TINY)
    model, p = plain(TINY, params)
    got = edited_logits(model, p, TEXT[None], {(site, 0): edit(site, how)})[0]
    if site == "stream":
        seen, one = capture(TINY, params, TEXT), edit(site, how)
        x_TD = seen.layers[0].after_TD
        x_TD = (
            np.broadcast_to(one.replace, x_TD.shape)
            if how == "replace"
            else x_TD * (1.0 if one.scale is None else one.scale) + (0.0 if one.add is None else one.add)
        )
        out = Block(TINY).apply({"params": params["block_1"]}, jnp.asarray(x_TD)[None], np.arange(8)[None])
        expected = seen.readout.logits(np.asarray(out[0][0]))
    else:
        expected = capture(TINY, by_hand(params, site, how), TEXT).logits_TV
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(got - capture(TINY, params, TEXT).logits_TV).max() > 1e-2


@pytest.mark.parametrize("name, how", [("gpt2", "replace"), ("everything", "both"), ("published", "off")])
def test_text_that_is_generated_with_the_cache_is_that_of_edited_forward_passes(name, how):
    cfg = VARIANTS[name]
    params, model = random_params(cfg), GPT(cfg)
    edits = {
        (site, i % 2): edit(site, how) for i, site in enumerate(("heads", "attention", "neurons", "mlp"))
    }
    edits["stream", 0] = edit("stream", "both")
    settings = {"sampler": Sampler(0.0), "chunk": 2, "scored": True}
    pieces = list(generation.generate_pieces(*edited(model, params, edits), [TEXT[:3]], 9, **settings))
    new = np.concatenate([piece.ids[0] for piece in pieces])
    p = np.concatenate([piece.scores.p[0] for piece in pieces])
    text = np.concatenate([TEXT[:3], new])
    program = jax.jit(lambda p, e, t: edited_logits(model, p, t, e))
    for n in range(3, 12):  # past the 8 tokens of the context
        window = text[window_start(n, 8) : n]
        padded = np.zeros((1, 8), np.int32)
        padded[0, : len(window)] = window
        logits_V = program(params, edits, padded)[0, len(window) - 1]
        assert new[n - 3] == np.argmax(logits_V)
        np.testing.assert_allclose(p[n - 3], np.max(jax.nn.softmax(logits_V)), rtol=1e-4)
    pieces = generation.generate_ids(model, params, [TEXT[:3]], 9, sampler=Sampler(0.0), chunk=2)
    assert not np.array_equal(new, np.concatenate([ids[0] for ids in pieces]))


def test_bad_edits_are_one_line_each():
    model, params = plain(TINY, random_params(TINY))
    no_mlp = dataclasses.replace(TINY, d_ff=0)
    bad = [
        ({("head", 0): Edit(scale=0)}, "no site ('head', 0): choose one of attention, neurons, heads, mlp, stream"),
        ({("mlp", 2): Edit(scale=0)}, "layer from 0 to 1"),
        ({("mlp", 0.0): Edit(scale=0)}, "layer from 0 to 1"),
        ({"mlp": Edit(scale=0)}, "give a site and a layer, such as ('heads', 0)"),
        ({("mlp", 0): 0.0}, "give an Edit, not float"),
        ({("mlp", 0): Edit()}, "changes nothing: give replace, scale or add"),
        ({("mlp", 0): Edit(scale=2, replace=0)}, "has replace and scale or add: give one of the two"),
        ({("mlp", 0): Edit(scale=0, at=1)}, "`at` takes heads or neurons by number"),
        ({("heads", 0): Edit(scale=0, at=2)}, "at=2: give integers from 0 to 1"),
        ({("neurons", 0): Edit(scale=0, at=[0, 12])}, "at=[0, 12]: give integers from 0 to 11"),
        ({("neurons", 0): Edit(scale=0, at="x")}, "at=x: give integers"),
        ({("neurons", 0): Edit(scale=0, at=[])}, "at=[]: give integers"),
        ({("mlp", 0): Edit(scale="x")}, "scale is of type str: give a number or an array"),
        ({("mlp", 0): Edit(add=np.nan)}, "add has numbers that are not finite"),
        ({("mlp", 0): Edit(add=np.zeros(5))}, "add has the shape [5], the activation [1, 8, 8]"),
        ({("stream", 0): Edit(replace=np.zeros((2, 1, 8)))}, "replace has the shape [2, 1, 8]"),
    ]  # fmt: skip
    for edits, words in bad:
        with pytest.raises(UserError) as caught:
            edited_logits(model, params, TEXT[None], edits)
        assert words in str(caught.value) and "\n" not in str(caught.value), words
    with pytest.raises(UserError, match="this model has no MLPs"):
        edited(GPT(no_mlp), {}, {("neurons", 0): Edit(scale=0)})
    with pytest.raises(UserError, match="while text is generated an edit is the same at all positions"):
        edited(model, params, {("stream", 0): Edit(add=np.zeros((8, 8)))})
