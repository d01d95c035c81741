"""Head statistics, ablation and patching: planted heads are found, untrained heads score as untrained, removed heads cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.inspect import analysis, attention, heads, interventions
from jaxgpt.inspect.capture import capture
from jaxgpt.inspect.interventions import Edit, edited_logits
from jaxgpt.inspect.subject import plain
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.training.steps import token_losses
from tests.models import TINY, VARIANTS, random_params
from tests.planted import INDUCTION, PREVIOUS, induction_model

TEXTS = np.random.default_rng(2).integers(0, 11, (3, 8)).astype(np.int32)
GROUPED = dataclasses.replace(TINY, num_heads=4, num_kv_heads=2, attention_window=3)


# --- statistics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cfg", [TINY, VARIANTS["everything"], GROUPED], ids=["gpt2", "everything", "grouped"]
)
def test_statistics_of_many_texts_are_the_mean_of_those_of_each(cfg):
    params = random_params(cfg)
    repeated_BT = heads.repeated_tokens(11, 4, 3, seed=5)
    got = heads.measure(*plain(cfg, params), TEXTS, repeated_BT)
    each = [analysis.head_statistics(capture(cfg, params, text)) for text in TEXTS]
    for name in ("relative_entropy", "mean_distance", "previous_token"):
        expected_LH = np.mean([getattr(one, f"{name}_LH") for one in each], axis=0)
        np.testing.assert_allclose(got.of(name), expected_LH, rtol=1e-4, atol=1e-6)
    # Induction by its definition: position t of the second copy, and the one after its first occurrence.
    seen = [capture(cfg, params, text) for text in repeated_BT]
    for i in range(cfg.num_layers):
        for h in range(cfg.num_heads):
            weights = [one.layers[i].weights_HTS[h, 4 + t, t + 1] for one in seen for t in range(4)]
            np.testing.assert_allclose(got.induction_LH[i, h], np.mean(weights), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.first_loss, np.mean([one.losses[:3] for one in seen]), rtol=1e-5)
    np.testing.assert_allclose(got.second_loss, np.mean([one.losses[4:] for one in seen]), rtol=1e-5)


def test_repeated_tokens_come_twice_and_are_drawn_from_the_complete_vocabulary():
    tokens = heads.repeated_tokens(11, 20, 30)
    assert tokens.shape == (30, 40) and (tokens[:, :20] == tokens[:, 20:]).all()
    assert set(tokens.reshape(-1)) == set(range(11))


def statistics(cfg, params, number_of_fresh=5):
    """The statistics as in a report: a model compared with untrained ones."""
    repeated_BT = heads.repeated_tokens(cfg.vocab_size, cfg.context_length // 2, 16)
    texts_BT = np.random.default_rng(3).integers(0, cfg.vocab_size, (16, cfg.context_length)).astype(np.int32)
    own = heads.measure(*plain(cfg, params), texts_BT, repeated_BT)
    fresh = [init_params(GPT(cfg), jax.random.key(100 + i)) for i in range(number_of_fresh)]
    return own, attention.compare_with_untrained(
        own, [heads.measure(*plain(cfg, p), texts_BT, repeated_BT) for p in fresh]
    )


def test_a_previous_token_head_and_an_induction_head_are_found_and_named():
    cfg, params = induction_model()
    own, compared = statistics(cfg, params)
    named = {(found["layer"], found["head"]): found["kind"] for found in attention.named(compared)}
    assert named == {PREVIOUS: "previous_token", INDUCTION: "induction"}
    assert own.previous_token_LH[PREVIOUS] > 0.99
    assert own.induction_LH[INDUCTION] > 0.8  # a random token may occur earlier too
    assert own.second_loss < own.first_loss - 1  # it copies what it has seen
    # The two others look at all alike.
    np.testing.assert_allclose([own.relative_entropy_LH[0, 1], own.relative_entropy_LH[1, 1]], 1.0, rtol=1e-5)


def test_an_untrained_model_scores_at_its_baseline_and_has_no_head_with_a_name():
    cfg, _ = induction_model()
    params = init_params(GPT(cfg), jax.random.key(7))
    _, compared = statistics(cfg, params)
    assert attention.named(compared) == []
    for scores in compared.values():
        value, spread = np.array(scores["value"]), scores["high"] - scores["low"]
        assert (value > scores["low"] - spread).all() and (value < scores["high"] + spread).all()
    # And the baselines are what looking at all alike gives.
    assert compared["relative_entropy"]["low"] > 0.9
    alike = np.mean(1 / np.arange(2, cfg.context_length + 1))
    np.testing.assert_allclose(compared["previous_token"]["value"], alike, rtol=0.2)


def test_a_context_of_three_tokens_has_no_induction_score():
    cfg = dataclasses.replace(TINY, context_length=3)
    got = heads.measure(*plain(cfg, random_params(cfg)), TEXTS[:, :3], None)
    assert np.isnan(got.induction_LH).all() and np.isfinite(got.previous_token_LH).all()


# --- ablation -------------------------------------------------------------------------------------------


def without_head(params: dict, i: int, h: int, mean_K: np.ndarray | float) -> dict:
    """The parameters without a head's W_O; its mean output is added to the bias."""
    params = jax.tree.map(np.array, params)
    out = params[f"block_{i}"]["attention"]["out"]
    out["bias"] += np.broadcast_to(mean_K, out["kernel"].shape[1]) @ out["kernel"][h]
    out["kernel"][h] = 0
    return params


def losses_of(cfg, params, windows) -> np.ndarray:
    logits = jax.jit(GPT(cfg).apply)({"params": params}, windows[:, :-1])
    return np.asarray(token_losses(logits, jnp.asarray(windows[:, 1:]))).mean(axis=1)


@pytest.mark.parametrize("kind", interventions.ABLATIONS)
def test_an_ablated_head_is_a_model_without_it(kind):
    params, windows = random_params(TINY), np.random.default_rng(4).integers(0, 11, (4, 9)).astype(np.int32)
    got = interventions.ablate_heads(*plain(TINY, params), windows, kind)
    own_B = losses_of(TINY, params, windows)
    np.testing.assert_allclose(got.loss, own_B.mean(), rtol=1e-5)
    seen = [capture(TINY, params, window[:-1]) for window in windows]
    for i in range(2):
        for h in range(2):
            mean_K = np.mean([one.layers[i].heads_THK[:, h] for one in seen], axis=(0, 1))
            cut = without_head(params, i, h, mean_K if kind == "mean" else 0.0)
            losses_B = losses_of(TINY, cut, windows)
            np.testing.assert_allclose(got.losses_LH[i, h], losses_B.mean(), rtol=1e-5)
            np.testing.assert_allclose(got.difference[i, h], (losses_B - own_B).mean(), atol=1e-5)
            error = (losses_B - own_B).std(ddof=1) / 2
            np.testing.assert_allclose(got.standard_error_LH[i, h], error, rtol=1e-3)
    assert got.tokens == 32


def test_edits_under_vmap_equal_edits_one_by_one():
    params, windows = random_params(TINY), np.random.default_rng(4).integers(0, 11, (2, 9)).astype(np.int32)
    keep_NH = jnp.array([[1.0, 1], [0, 1], [1, 0]])

    @jax.jit
    def logits(keep_H):
        return edited_logits(GPT(TINY), params, windows[:, :-1], {("heads", 1): Edit(keep_H[:, None], 0.0)})

    together = jax.vmap(logits)(keep_NH)
    for n in range(3):
        np.testing.assert_allclose(together[n], logits(keep_NH[n]), rtol=1e-4, atol=1e-5)
    own = jax.jit(GPT(TINY).apply)({"params": params}, windows[:, :-1])
    np.testing.assert_allclose(together[0], own, rtol=1e-4, atol=1e-5)


def test_the_planted_model_needs_its_induction_head():
    cfg, params = induction_model()
    windows = heads.repeated_tokens(cfg.vocab_size, 16, 8)
    got = interventions.ablate_heads(*plain(cfg, params), windows, "zero")
    cost_LH = got.difference
    # Both halves of the mechanism are needed, the idle heads are not: exactly.
    assert cost_LH[INDUCTION] > 0.5 and cost_LH[PREVIOUS] > 0.5
    assert cost_LH[0, 1] == cost_LH[1, 1] == 0


# --- patching -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", interventions.SITES)
def test_a_patched_site_carries_the_other_text(site):
    params, (own, other, _) = random_params(TINY), TEXTS
    model, p = plain(TINY, params)
    plainly = {name: capture(TINY, params, text).logits_TV for name, text in (("own", own), ("other", other))}
    kept = interventions.patched_logits(model, p, own, other, site, 1, keep=1.0)
    np.testing.assert_allclose(kept, plainly["own"], rtol=1e-4, atol=1e-5)
    patched = interventions.patched_logits(model, p, own, other, site, 1)
    if site == "stream":  # after the last block: all that the logits come from
        np.testing.assert_allclose(patched, plainly["other"], rtol=1e-4, atol=1e-5)
    assert np.abs(patched - plainly["own"]).max() > 1e-3
    # At position 5 alone: nothing before it changes.
    keep_T = np.ones(8)
    keep_T[5] = 0
    keep = keep_T[:, None, None] if site == "heads" else keep_T[:, None]
    at_5 = interventions.patched_logits(model, p, own, other, site, 0, keep)
    np.testing.assert_allclose(at_5[:5], plainly["own"][:5], rtol=1e-4, atol=1e-5)
    assert (np.abs(at_5[5:] - plainly["own"][5:]).max(axis=-1) > 1e-5).all()


def test_wrong_interventions_are_refused_in_one_line():
    model, params = plain(TINY, random_params(TINY))
    with pytest.raises(UserError, match="heads, mlp, stream and a layer from 0 to 1"):
        interventions.patched_logits(model, params, TEXTS[0], TEXTS[1], "head", 0)
    with pytest.raises(UserError, match="layer from 0 to 1"):
        interventions.patched_logits(model, params, TEXTS[0], TEXTS[1], "mlp", 2)
    with pytest.raises(UserError, match="8 and 5 tokens"):
        interventions.patched_logits(model, params, TEXTS[0], TEXTS[1][:5], "mlp", 0)
    with pytest.raises(UserError, match="zero, mean"):
        interventions.ablate_heads(model, params, TEXTS, "median")


# --- jobs -----------------------------------------------------------------------------------------------


def looking_at(wanted: int, vocab_size: int = 12, context_length: int = 16):
    """One layer of two heads: head 0 looks at all earlier tokens of one id, weighted by their place; head 1 looks at all alike."""
    cfg, params = induction_model(vocab_size, context_length)
    params = jax.tree.map(np.array, params)
    token, position = slice(0, vocab_size), slice(vocab_size, vocab_size + context_length)
    one = params["block_0"]["attention"]
    one["query"]["kernel"][:], one["key"]["kernel"][:] = 0, 0
    one["query"]["kernel"][token, 0, 0] = 100.0
    one["key"]["kernel"][token, 0, 0] = np.arange(vocab_size) == wanted
    one["key"]["kernel"][position, 0, 0] = 0.05 * np.arange(context_length)  # the later the stronger
    return cfg, params


def test_a_head_that_looks_at_the_last_newline_is_named_so_and_an_idle_one_is_not():
    cfg, params = looking_at(wanted=3)
    masks = np.zeros((4, cfg.vocab_size), bool)
    masks[1, 3] = True  # the newline is token 3
    texts = np.random.default_rng(5).integers(0, cfg.vocab_size, (24, cfg.context_length)).astype(np.int32)
    own = heads.measure(*plain(cfg, params), texts, None, masks)
    fresh = [
        heads.measure(*plain(cfg, init_params(GPT(cfg), jax.random.key(i))), texts, None, masks)
        for i in range(3)
    ]
    compared = attention.compare_with_untrained(own, fresh)
    of_layer_0 = [one for one in attention.named(compared) if one["layer"] == 0]
    (found,) = of_layer_0  # head 0.1, with equal weights, has no job
    assert (found["head"], found["kind"]) == (0, "last_newline")
    assert found["value"] > 0.9 and found["share"] < 0.2
    # Without positions it looks at any newline.
    flat = jax.tree.map(np.array, params)
    flat["block_0"]["attention"]["key"]["kernel"][cfg.vocab_size : cfg.vocab_size + cfg.context_length] = 0
    texts[:, ::3] = 3
    own = heads.measure(*plain(cfg, flat), texts, None, masks)
    fresh = [
        heads.measure(*plain(cfg, init_params(GPT(cfg), jax.random.key(i))), texts, None, masks)
        for i in range(3)
    ]
    named = attention.named(attention.compare_with_untrained(own, fresh))
    assert [one["kind"] for one in named if one["layer"] == 0] == ["newline"]


def test_a_head_that_writes_what_it_reads_copies():
    """Head 1.0 of the induction model adds the attended token's own row; an idle head writes nothing."""
    cfg, params = induction_model()
    repeated_BT = heads.repeated_tokens(cfg.vocab_size, 16, 2)
    copying_LH = attention.copying_scores(cfg, params, repeated_BT)
    assert copying_LH[INDUCTION] > 0.7  # in the first copy its weights are all alike
    assert copying_LH[0, 1] == copying_LH[1, 1] == 0
