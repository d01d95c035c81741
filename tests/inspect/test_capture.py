"""A capture equals an independent forward pass in NumPy, and the model itself."""

import base64
import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.inspect import analysis, neurons
from jaxgpt.inspect import capture as capture_module
from jaxgpt.inspect.capture import Capture, capture, padded_length
from jaxgpt.model import attention, gpt, layers
from jaxgpt.model.gpt import GPT
from jaxgpt.training import steps
from tests.models import TINY, VARIANTS, random_params

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2])
MODERN = dataclasses.replace(
    TINY, position="rotary", norm="rmsnorm_plain", qk_norm=True, activation="swiglu", num_heads=4, num_kv_heads=2,
    use_bias=False, tie_embeddings=False,
)  # fmt: skip
ALL = VARIANTS | {
    "modern": MODERN,
    "lora": dataclasses.replace(TINY, lora_rank=2, lora_targets=("query", "value", "out", "up")),
    "narrow": dataclasses.replace(TINY, embedding_dim=4),
    "narrow untied": dataclasses.replace(TINY, embedding_dim=4, tie_embeddings=False),
}


@pytest.fixture(scope="module", params=list(ALL))
def subject(request) -> tuple[config.ModelConfig, dict, Capture]:
    """Each kind of model with random weights, and its capture."""
    cfg = ALL[request.param]
    params = random_params(cfg)
    return cfg, params, capture(cfg, params, TOKENS)


@pytest.fixture(scope="module")
def seen(subject) -> Capture:
    return subject[2]


# --- the numbers ----------------------------------------------------------------------------------------


def test_all_numbers_are_those_of_a_numpy_forward_pass():
    """An independent forward pass of GPT-2's architecture, in float64, from the formulas."""
    params = random_params(TINY)
    got = capture(TINY, params, TOKENS)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    T, K = len(TOKENS), TINY.head_width
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731
    norm = lambda x, w: (  # noqa: E731
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w["scale"] + w["bias"]
    )
    erf = np.vectorize(math.erf)
    close(got.token_rows_TE, p["token_embedding"]["embedding"][TOKENS])
    close(got.position_vectors_TD, p["position_embedding"]["embedding"][:T])
    x = got.token_rows_TE + p["position_embedding"]["embedding"][:T]
    close(got.start_TD, x)
    for i, layer in enumerate(got.layers):
        block = p[f"block_{i}"]
        close(layer.before_TD, x)
        n = norm(x, block["attention_norm"])
        close(layer.attention_input_TD, n)
        q, k, v = (
            np.einsum("td,dhk->thk", n, block["attention"][name]["kernel"]) + block["attention"][name]["bias"]
            for name in ("query", "key", "value")
        )
        close(layer.q_THK, q)
        close(layer.k_SHK, k)
        close(layer.v_SHK, v)
        scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(K)
        close(layer.scores_HTS, scores)
        masked = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        close(layer.masked_scores, masked)
        weights = np.exp(masked) / np.exp(masked).sum(-1, keepdims=True)
        close(layer.weights_HTS, weights)
        heads = np.einsum("hts,shk->thk", weights, v)
        close(layer.heads_THK, heads)
        changes = np.einsum("thk,hkd->htd", heads, block["attention"]["out"]["kernel"])
        close(layer.head_changes_HTD, changes)
        close(layer.attention_bias_D, block["attention"]["out"]["bias"])
        x = x + changes.sum(0) + block["attention"]["out"]["bias"]
        close(layer.between_TD, x)
        n = norm(x, block["mlp_norm"])
        close(layer.mlp_input_TD, n)
        h = n @ block["mlp"]["up"]["kernel"] + block["mlp"]["up"]["bias"]
        h = 0.5 * h * (1 + erf(h / np.sqrt(2)))
        close(layer.hidden_TF, h)
        change = h @ block["mlp"]["down"]["kernel"] + block["mlp"]["down"]["bias"]
        close(layer.mlp_change_TD, change)
        x = x + change
        close(layer.after_TD, x)
    features = norm(x, p["final_norm"])
    close(got.features_TD, features)
    logits = features @ p["token_embedding"]["embedding"].T
    close(got.logits_TV, logits)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    close(got.losses, -log_p[np.arange(T - 1), TOKENS[1:]])
    close(analysis.losses(got).bits, -log_p[np.arange(T - 1), TOKENS[1:]] / np.log(2))


def test_logits_and_losses_are_the_models_own(subject):
    cfg, params, got = subject
    logits_TV = np.asarray(jax.jit(GPT(cfg).apply)({"params": params}, TOKENS[None])[0])
    np.testing.assert_allclose(got.logits_TV, logits_TV, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        got.losses, steps.token_losses(logits_TV[:-1], TOKENS[1:]), rtol=1e-5, atol=1e-5
    )


def test_scores_weights_and_heads_follow_from_the_queries_keys_and_values_shown(seen):
    """Also with grouped heads: head h has the keys and values of its group."""

    cfg, scale = seen.config, seen.config.attention_scale or 1 / np.sqrt(seen.config.head_width)
    for layer in seen.layers:
        scores_HTS = np.einsum("THK,SHK->HTS", layer.q_THK, layer.k_SHK) * scale
        if cfg.attention_softcap:
            scores_HTS = cfg.attention_softcap * np.tanh(scores_HTS / cfg.attention_softcap)
        np.testing.assert_allclose(layer.scores_HTS, scores_HTS, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            layer.weights_HTS, analysis.softmax(layer.masked_scores), rtol=1e-4, atol=1e-6
        )
        mixed_THK = np.einsum("HTS,SHK->THK", layer.weights_HTS, layer.v_SHK)
        np.testing.assert_allclose(layer.heads_THK, mixed_THK, rtol=1e-4, atol=1e-5)


def test_rows_of_attention_sum_to_1_and_what_comes_later_weighs_exactly_0(seen):
    T, window = len(TOKENS), seen.config.attention_window or len(TOKENS)
    t, s = np.indices((T, T))
    visible_TS = (s <= t) & (s > t - window)
    for layer in seen.layers:
        np.testing.assert_array_equal(layer.mask_TS, visible_TS)
        np.testing.assert_allclose(layer.weights_HTS.sum(axis=-1), 1.0, rtol=1e-6)
        assert (layer.weights_HTS[:, ~visible_TS] == 0).all() and (layer.weights_HTS[:, visible_TS] > 0).all()
        assert (layer.masked_scores[:, ~visible_TS] == -np.inf).all()


def test_padding_of_the_vocabulary_is_not_shown():
    cfg = dataclasses.replace(TINY, vocab_multiple=8)
    got = capture(cfg, random_params(cfg), TOKENS)
    assert got.logits_TV.shape == (7, 11) and got.readout.table_VE.shape == (11, 8)


def test_a_bfloat16_model_is_shown_in_float32():
    """The parameters are float32 in both; the model's own output differs by bfloat16 rounding."""
    params, bfloat16 = random_params(MODERN), dataclasses.replace(MODERN, dtype="bfloat16")
    wide, narrow = capture(MODERN, params, TOKENS), capture(bfloat16, params, TOKENS)
    np.testing.assert_array_equal(narrow.logits_TV, wide.logits_TV)
    own_TV = np.asarray(jax.jit(GPT(bfloat16).apply)({"params": params}, TOKENS[None])[0])
    error = np.abs(own_TV - narrow.logits_TV).mean() / narrow.logits_TV.std()
    assert 2**-12 < error < 2**-4  # a bfloat16 has 8 bits: it is another number, and not far away


# --- the sums -------------------------------------------------------------------------------------------


def test_the_ledger_adds_up_to_the_stream_before_the_final_norm(seen):
    book = analysis.ledger(seen)
    np.testing.assert_allclose(book.values_NTD.sum(axis=0), seen.end, rtol=1e-5, atol=1e-5)
    assert book.error < 1e-5
    heads = [f"{i}.{h}" for i in range(2) for h in range(seen.config.num_heads)]
    assert set(heads) | {"token", "0.mlp", "1.mlp"} <= set(book.names)
    assert ("position" in book.names) == (seen.config.position in ("learned", "sinusoidal"))


def test_a_ledger_that_lacks_an_entry_says_so(seen):
    broken = dataclasses.replace(seen.layers[0], mlp_change_TD=0 * seen.layers[0].mlp_change_TD)
    assert analysis.ledger(dataclasses.replace(seen, layers=(broken, *seen.layers[1:]))).error > 0.01


def test_contributions_add_up_to_the_logits(seen):
    targets = np.array([1, 4, 1, 5, 9, 2, 0])
    given = analysis.contributions(seen, analysis.ledger(seen), targets)
    logits_T = given.logits_T
    if seen.config.logit_softcap:
        logits_T = seen.config.logit_softcap * np.tanh(logits_T / seen.config.logit_softcap)
    np.testing.assert_allclose(logits_T, seen.logits_TV[np.arange(7), targets], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(given.values_NT.sum(axis=0), given.logits_T)
    assert given.error < 1e-5


def test_the_last_row_of_the_lens_is_the_output(seen):
    lens = analysis.logit_lens(seen, k=3)
    p_TV = analysis.softmax(seen.logits_TV)
    assert lens.names == ["embedding", "block 0", "block 1"]
    np.testing.assert_array_equal(lens.top_ids_RTk[-1], np.argsort(-p_TV, axis=-1)[:, :3])
    np.testing.assert_allclose(lens.top_probs_RTk[-1], -np.sort(-p_TV, axis=-1)[:, :3], rtol=1e-4)
    np.testing.assert_allclose(lens.true_probs_RT[-1], np.exp(-seen.losses), rtol=1e-4)
    # The rows before it are those of the model without the later blocks.
    one = dataclasses.replace(seen, layers=seen.layers[:1])
    np.testing.assert_array_equal(lens.true_probs_RT[1], analysis.logit_lens(one).true_probs_RT[-1])


def test_head_statistics_of_heads_that_are_known():
    """A previous-token head, and a head with equal weights."""
    got = capture(TINY, random_params(TINY), TOKENS)
    T = len(TOKENS)
    before_TS = np.eye(T, k=-1)
    before_TS[0, 0] = 1
    alike_TS = np.tri(T) / np.arange(1, T + 1)[:, None]
    layer = dataclasses.replace(got.layers[0], weights_HTS=np.stack([before_TS, alike_TS]))
    found = analysis.head_statistics(dataclasses.replace(got, layers=(layer,)))
    np.testing.assert_allclose(found.relative_entropy_LH, [[0, 1]], atol=1e-12)
    np.testing.assert_allclose(found.mean_distance_LH, [[1, np.arange(1, T).mean() / 2]])
    np.testing.assert_allclose(found.previous_token_LH, [[1, np.mean(1 / np.arange(2, T + 1))]])


def test_one_token_has_neither_a_loss_nor_a_choice_of_keys():
    got = capture(TINY, random_params(TINY), TOKENS[:1])
    assert got.losses.shape == (0,) and analysis.logit_lens(got).true_probs_RT.shape == (3, 0)
    assert np.isnan(analysis.head_statistics(got).relative_entropy_LH).all()


LONG = dataclasses.replace(TINY, context_length=32)
PADDED = {
    "learned": LONG,
    "sinusoidal": dataclasses.replace(LONG, position="sinusoidal"),
    "everything": dataclasses.replace(VARIANTS["everything"], context_length=32),
    "documents": dataclasses.replace(LONG, position="rotary", document_mask=True, document_end=2),
}


@pytest.mark.parametrize("name", PADDED)
def test_a_padded_text_is_shown_as_the_text_alone(name, monkeypatch):
    """Every recorded number, in every kind of position and mask; the padding is in none of them."""
    cfg = PADDED[name]
    params = random_params(cfg)
    assert padded_length(cfg, 7) == 16 and padded_length(cfg, 20) == 32
    got = capture(cfg, params, TOKENS)
    monkeypatch.setattr(capture_module, "padded_length", lambda cfg, tokens: tokens)
    alone = capture(cfg, params, TOKENS)
    own = jax.jit(GPT(cfg).apply)({"params": params}, TOKENS[None])[0]
    np.testing.assert_allclose(got.logits_TV, own, rtol=1e-5, atol=1e-5)
    for one, other in ((got, alone), *zip(got.layers, alone.layers, strict=True)):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, np.ndarray):
                assert a.shape == b.shape, field.name
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=field.name)


def test_a_text_of_a_model_that_sees_what_comes_later_is_not_padded():
    cfg = dataclasses.replace(LONG, causal=False)
    own = jax.jit(GPT(cfg).apply)({"params": random_params(cfg)}, TOKENS[None])[0]
    np.testing.assert_allclose(capture(cfg, random_params(cfg), TOKENS).logits_TV, own, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused():
    params = random_params(TINY)
    with pytest.raises(UserError, match=r"9 tokens: give 1 to model.context_length=8"):
        capture(TINY, params, np.zeros(9, int))
    with pytest.raises(UserError, match="0 tokens"):
        capture(TINY, params, np.zeros(0, int))
    with pytest.raises(UserError, match="give 0 to 10"):
        capture(TINY, params, np.array([11, 0]))


# --- what training does not pay for ---------------------------------------------------------------------


def train_step_jaxpr(cfg: config.Config) -> str:
    """The complete jaxpr of a train step as text, without function addresses."""
    parts = steps.build(cfg)
    state = jax.eval_shape(
        lambda key: steps.init_state(parts.model, parts.optimizer, key),
        jax.random.key(0),
    )
    batch = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    traced = jax.make_jaxpr(parts.train_step)(state, batch, jax.random.key(0))
    return re.sub(r"0x[0-9a-f]+", "", str(traced))


@pytest.mark.parametrize("name, remat", [("gpt2", "dots"), ("everything", "none")])
def test_the_train_step_is_the_program_that_it_would_be_without_any_recording(name, remat, monkeypatch):
    cfg = config.Config(
        model=dataclasses.replace(ALL[name], dropout_rate=0.1), train=config.TrainConfig(remat=remat)
    )
    with_sites = train_step_jaxpr(cfg)
    for module in (attention, layers, gpt):
        monkeypatch.setattr(module, "record", lambda *args, **values: None)
    assert train_step_jaxpr(cfg) == with_sites


def test_values_are_shown_on_request_only():
    params, tokens = random_params(TINY), TOKENS[None]
    alone = jax.jit(GPT(TINY).apply)({"params": params}, tokens)
    logits, shown = jax.jit(GPT(TINY).apply, static_argnames="mutable")(
        {"params": params}, tokens, mutable="intermediates"
    )
    assert isinstance(alone, jax.Array)
    np.testing.assert_allclose(alone, logits, rtol=1e-6, atol=1e-6)
    assert shown["intermediates"]["block_1"]["attention"]["weights"][0].shape == (1, 2, 7, 7)
    assert set(jax.eval_shape(GPT(TINY).init, jax.random.key(0), tokens)) == {"params"}


def test_a_new_norm_says_itself_whether_it_subtracts_the_mean(monkeypatch):
    """Whatever the norm's name, the logits computed from the stream are the model's."""
    centered = lambda cfg, name=None: layers.Norm(cfg.norm_epsilon, centered=True, use_scale=False, name=name)  # noqa: E731
    monkeypatch.setitem(layers.NORMS, "throwaway", centered)
    cfg = dataclasses.replace(TINY, norm="throwaway", num_layers=1)
    shown = capture(cfg, random_params(cfg), TOKENS)
    np.testing.assert_allclose(shown.readout.logits(shown.end), shown.logits_TV, rtol=1e-4, atol=1e-4)


def test_a_norm_of_another_form_is_refused(monkeypatch):
    class Largest(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x / jnp.abs(x).max(axis=-1, keepdims=True)

    monkeypatch.setitem(layers.NORMS, "largest", lambda cfg, name=None: Largest(name=name))
    cfg = dataclasses.replace(TINY, norm="largest", num_layers=1)
    with pytest.raises(UserError, match=r"model\.norm='largest' is not a layers\.Norm"):
        capture(cfg, random_params(cfg), TOKENS)


@pytest.mark.parametrize("most", [10**6, 60])
def test_stored_activations_are_those_of_the_forward_pass(most, monkeypatch):
    """Within half a step of their unit; a large model keeps the neurons that fire most somewhere."""
    monkeypatch.setattr(neurons, "MOST_BYTES", most)
    seen = capture(TINY, random_params(TINY), np.arange(8))
    for layer, got in zip(seen.layers, neurons.firing(seen)["layers"], strict=True):
        values = np.frombuffer(base64.b64decode(got["values"]), np.int8).reshape(-1, 8) * got["unit"]
        np.testing.assert_allclose(values, layer.hidden_TF.T[got["neurons"]], atol=0.51 * got["unit"])
        assert set(layer.hidden_TF.argmax(axis=1)) <= set(got["neurons"])
        assert (len(got["neurons"]) == layer.hidden_TF.shape[1]) == (most > 1000)
