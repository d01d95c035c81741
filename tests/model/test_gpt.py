"""The model against its definitions: causality, the cache, a second forward pass. (Its parameters: test_parameters.py.)"""

import dataclasses
import functools
import itertools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.common.backend import Backend, trace_for
from jaxgpt.config import UserError
from jaxgpt.model import attention, gpt, layers, parameters
from jaxgpt.model.gpt import GPT, KVCache
from jaxgpt.model.paths import named_leaves
from jaxgpt.training import steps
from tests.models import EVERYTHING, TINY, TOKENS, VARIANTS, random_params, variants

# --- causality ------------------------------------------------------------------------------------------


@variants(*VARIANTS)
def test_a_future_token_moves_no_earlier_logit(cfg):
    params = random_params(cfg)
    before = GPT(cfg).apply({"params": params}, TOKENS)
    for t in (1, 4, 7):
        changed = TOKENS.copy()
        changed[:, t] = (changed[:, t] + 1) % 11
        after = GPT(cfg).apply({"params": params}, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        moved = np.abs(np.asarray(after) - before).max(axis=-1)
        assert (moved[:, t:] > 0).all()


@variants("gpt2", "no positions")
def test_gradients_flow_from_a_position_to_itself_and_its_past_only(cfg):
    cfg = dataclasses.replace(cfg, num_layers=1)
    # All different: a row of the table is the input of one position.
    tokens_T = np.array([3, 0, 7, 1, 9, 4, 2, 8])
    params = random_params(cfg)
    direction_D = np.random.default_rng(1).normal(size=cfg.d_model).astype(np.float32)

    def output(table_VD):
        p = {**params, "token_embedding": {"embedding": table_VD}}
        x_BTD, _ = GPT(cfg).apply({"params": p}, tokens_T[None], method="features")
        return x_BTD[0] @ direction_D

    jacobian_TVD = np.asarray(jax.jit(jax.jacrev(output))(params["token_embedding"]["embedding"]))
    reached_TS = np.abs(jacobian_TVD[:, tokens_T]).max(axis=-1) > 0
    np.testing.assert_array_equal(reached_TS, np.tri(8, dtype=bool))


def test_row_i_of_the_causal_mask_allows_exactly_keys_0_to_i():
    positions_BT = jnp.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    mask_BTS = attention.causal_mask(positions_BT, 9)
    assert mask_BTS.shape == (2, 4, 9) and mask_BTS.dtype == bool
    for b, t, s in itertools.product(range(2), range(4), range(9)):
        assert mask_BTS[b, t, s] == (s <= positions_BT[b, t])


@pytest.mark.parametrize("dtype, size", [("float32", 1.0), ("float32", 1e4), ("bfloat16", 1.0)])
def test_attention_weights_are_probabilities_over_the_past(dtype, size):
    q_BTHK, k_BSHK = (
        jnp.asarray(size * np.random.default_rng(n).normal(size=(2, 5, 3, 4)), dtype) for n in range(2)
    )
    mask_BTS = attention.causal_mask(jnp.arange(5)[None].repeat(2, 0), 5)
    weights_BHTS = attention.attention_weights(attention.attention_scores(q_BTHK, k_BSHK), mask_BTS)
    assert weights_BHTS.dtype == jnp.float32  # also of bfloat16 inputs, as scores are
    weights_BHTS = np.asarray(weights_BHTS)
    np.testing.assert_allclose(weights_BHTS.sum(-1), 1.0, rtol=1e-6)
    assert (weights_BHTS >= 0).all()
    assert (weights_BHTS[..., ~np.tri(5, dtype=bool)] == 0.0).all()


def test_attention_weights_are_a_softmax_of_scaled_products():
    q_K, k_SK = np.array([1.0, -2.0, 0.5, 3.0]), np.random.default_rng(0).normal(size=(6, 4))
    scores_S = k_SK @ q_K / 2.0  # sqrt(K) = 2
    expected_S = np.where(np.arange(6) <= 3, np.exp(scores_S), 0.0)
    scores = attention.attention_scores(jnp.array(q_K)[None, None, None], jnp.array(k_SK)[None, :, None])
    weights = attention.attention_weights(scores, np.arange(6)[None, None] <= 3)
    np.testing.assert_allclose(weights[0, 0, 0], expected_S / expected_S.sum(), rtol=1e-5)


# --- the cache ------------------------------------------------------------------------------------------


def cached_step(cfg: config.ModelConfig, params: dict):
    return jax.jit(lambda tokens, cache: GPT(cfg).apply({"params": params}, tokens, cache=cache))


@variants("gpt2", "2017", "no positions", "everything")
def test_cached_decoding_equals_the_full_forward_pass(cfg):
    """Prompts of 3 tokens and of 1, padded on the right; then a chunk of 3 for each; then single tokens.

    What stands in the slots not yet written has no influence.
    """
    params = random_params(cfg)
    expected = [textbook_logits(cfg, params, text) for text in TOKENS]
    lengths = np.array([3, 1])
    prompts = np.where(np.arange(3) < lengths[:, None], TOKENS[:, :3], 10)  # 10: any token will do
    step = cached_step(cfg, params)
    cache = KVCache.empty(cfg, 2, slots=8)
    cache = jax.tree.map(lambda x: x + 1e6 if x.ndim > 1 else x, cache)
    logits, cache = step(prompts, cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row][:length], rtol=1e-4, atol=1e-5)
    cache = cache._replace(length_B=jnp.asarray(lengths, jnp.int32))
    for size in (3, 1, 1):
        tokens = np.stack([text[n : n + size] for text, n in zip(TOKENS, lengths, strict=True)])
        logits, cache = step(tokens, cache)
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(logits[row], expected[row][n : n + size], rtol=1e-4, atol=1e-5)
        lengths += size
        np.testing.assert_array_equal(cache.length_B, lengths)


def test_new_tokens_are_written_in_place_and_nowhere_else():
    """Shapes and dtypes stay, so one trace serves every position and a donated cache is not copied."""
    params = random_params(TINY)
    traces = []

    def step(tokens, cache):
        traces.append(tokens.shape)
        return GPT(TINY).apply({"params": params}, tokens, cache=cache)

    step = jax.jit(step, donate_argnums=1)
    cache = KVCache.empty(dataclasses.replace(TINY, dtype="bfloat16"), 2, slots=8)
    for t in range(4):
        before = jax.tree.map(np.array, cache)
        address = cache.keys[0].unsafe_buffer_pointer()
        _, cache = step(TOKENS[:, t : t + 1], cache)
        assert cache.keys[0].unsafe_buffer_pointer() == address
        for old, new in zip(before.keys + before.values, cache.keys + cache.values, strict=True):
            assert new.shape == old.shape and new.dtype == jnp.bfloat16
            slots = 2 if old.shape == before.keys[0].shape else 3
            changed_S = (np.asarray(new) != old).any(axis=tuple({0, 1, 2, 3} - {slots}))
            np.testing.assert_array_equal(changed_S, np.arange(8) == t)
    assert traces == [(2, 1)]


def test_more_tokens_than_there_is_room_for_are_refused():
    params = random_params(TINY)
    with pytest.raises(UserError, match=r"9 tokens do not fit into context_length=8"):
        GPT(TINY).apply({"params": params}, jnp.zeros((1, 9), jnp.int32))
    with pytest.raises(UserError, match=r"5 tokens do not fit into a cache of 4"):
        GPT(TINY).apply(
            {"params": params}, jnp.zeros((1, 5), jnp.int32), cache=KVCache.empty(TINY, 1, slots=4)
        )


# --- a second forward pass, from the definitions --------------------------------------------------------


def textbook_positions(cfg: config.ModelConfig, params: dict[str, np.ndarray], length: int) -> np.ndarray:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) = cos(the same), at the tables' size."""
    if cfg.position == "learned":
        return params["position_embedding/embedding"][:length]
    table = np.zeros((length, cfg.d_model))
    if cfg.position == "sinusoidal":
        for pos, i in itertools.product(range(length), range(cfg.d_model // 2)):
            angle = pos / 10_000 ** (2 * i / cfg.d_model)
            table[pos, 2 * i], table[pos, 2 * i + 1] = 0.02 * math.sin(angle), 0.02 * math.cos(angle)
    return table


def textbook_logits(cfg: config.ModelConfig, params: dict, tokens_T: np.ndarray) -> np.ndarray:
    """[T, V] in float64 by NumPy: one text, one head, one position at a time."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in named_leaves(params)}
    K = cfg.head_width

    def over_rms(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_epsilon)

    def norm(x, path):
        if cfg.norm == "layernorm":
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + cfg.norm_epsilon)
        else:
            x = over_rms(x)
        return x * p.get(f"{path}/scale", 1.0) + p.get(f"{path}/bias", 0.0)

    def activation(x):
        if cfg.activation == "relu":
            return np.maximum(x, 0.0)
        if cfg.activation == "relu_squared":
            return np.maximum(x, 0.0) ** 2
        if cfg.activation in ("gelu", "geglu"):
            return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2)))
        if cfg.activation == "swiglu":
            return x / (1.0 + np.exp(-x))
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def capped(x, cap):
        return cap * np.tanh(x / cap) if cap else x

    def turned(x_K, t):
        """Each pair (x_i, x_{i + R/2}) of the first R as a complex number, times e^{i t base^(-2i/R)}."""
        R = int(K * cfg.rotary_fraction)
        pairs = x_K[: R // 2] + 1j * x_K[R // 2 : R]
        pairs = pairs * np.exp(1j * t * cfg.rotary_base ** (-2 * np.arange(R // 2) / R))
        return np.concatenate([pairs.real, pairs.imag, x_K[R:]])

    def attention(x, path, first_values):
        change = np.zeros_like(x) + p.get(f"{path}/out/bias", 0.0)
        own_values = {}
        for h in range(cfg.num_heads):
            g = h // (cfg.num_heads // cfg.kv_heads)
            q, k, v = (
                x @ p[f"{path}/{name}/kernel"][:, n] + p.get(f"{path}/{name}/bias", np.zeros((99, 1)))[n]
                for name, n in (("query", h), ("key", g), ("value", g))
            )
            own_values[g] = v
            if cfg.value_residual and first_values:
                own, first = p[f"{path}/value_mix"]
                v = own * v + first * first_values[g]
            if cfg.qk_norm:
                q = over_rms(q) * p.get(f"{path}/query_norm/scale", 1.0)
                k = over_rms(k) * p.get(f"{path}/key_norm/scale", 1.0)
            if cfg.position == "rotary":
                q, k = (np.stack([turned(row, t) for t, row in enumerate(rows)]) for rows in (q, k))
            for t in range(len(x)):
                seen = slice(max(0, t + 1 - (cfg.attention_window or 99)), t + 1 if cfg.causal else None)
                scores = k[seen] @ q[t] * (cfg.attention_scale or 1 / math.sqrt(K))
                weights = np.exp(capped(scores, cfg.attention_softcap))
                change[t] += (weights / weights.sum()) @ v[seen] @ p[f"{path}/out/kernel"][h]
        return change, own_values

    def mlp(x, path):
        hidden = x @ p[f"{path}/up/kernel"] + p.get(f"{path}/up/bias", 0.0)
        if cfg.activation in ("swiglu", "geglu"):
            hidden = activation(x @ p[f"{path}/gate/kernel"] + p.get(f"{path}/gate/bias", 0.0)) * hidden
        else:
            hidden = activation(hidden)
        return hidden @ p[f"{path}/down/kernel"] + p.get(f"{path}/down/bias", 0.0)

    x = start = p["token_embedding/embedding"][tokens_T] + textbook_positions(cfg, p, len(tokens_T))
    first_values = None
    for i in range(cfg.num_layers):
        if cfg.embedding_residual:
            own, first = p[f"block_{i}/embedding_mix"]
            x = own * x + first * start
        if cfg.post_norm:
            change, own_values = attention(x, f"block_{i}/attention", first_values)
            first_values = first_values or own_values
            x = norm(x + change, f"block_{i}/attention_norm")
            if cfg.d_ff != 0:
                x = norm(x + mlp(x, f"block_{i}/mlp"), f"block_{i}/mlp_norm")
            continue
        change, own_values = attention(
            norm(x, f"block_{i}/attention_norm"), f"block_{i}/attention", first_values
        )
        first_values = first_values or own_values
        kept = 1.0 if cfg.residual else 0.0
        before, x = x, kept * x + change
        if cfg.d_ff != 0:
            read = before if cfg.parallel_residual else x
            x = kept * x + mlp(norm(read, f"block_{i}/mlp_norm"), f"block_{i}/mlp")
    x = x if cfg.post_norm else norm(x, "final_norm")
    logits = x @ (p["token_embedding/embedding"].T if cfg.tie_embeddings else p["head/kernel"])
    return capped(logits, cfg.logit_softcap)[:, : cfg.vocab_size]


# Every choice of a table once, and every field that changes the mathematics, alone and all together.
DEFINITIONS = [
    *({"activation": name, "use_bias": name != "gelu_tanh"} for name in layers.ACTIVATIONS),
    *({"norm": name, "tie_embeddings": False} for name in layers.NORMS),
    *({"position": name} for name in layers.POSITIONS),
    {"position": "rotary", "rotary_base": 100.0},
    {"qk_norm": True, "attention_scale": 0.7},
    {"num_kv_heads": 1},
    {"num_heads": 3, "head_dim": 6},
    {"norm_epsilon": 0.3, "qk_norm": True, "qk_norm_scale": True},
    {"position": "rotary", "rotary_fraction": 0.5, "rotary_base": 100.0},
    {"parallel_residual": True, "attention_bias": False},
    {"use_bias": False, "attention_bias": True},
    {"attention_softcap": 0.5},
    {"attention_window": 3},
    {"value_residual": True},
    {"embedding_residual": True},
    {"logit_softcap": 2.0},
    {"vocab_multiple": 8, "logit_softcap": 2.0},
    EVERYTHING,
    {"causal": False},
    {"residual": False},
    {"post_norm": True},
    {"post_norm": True, "d_ff": 0, "norm": "rmsnorm"},
    {"d_ff": 0},
    {"d_ff": 0, "residual": False, "causal": False, "position": "rotary"},
]


@pytest.mark.parametrize(
    "changes", DEFINITIONS, ids=lambda changes: " ".join(map(str, changes.values()))[:40]
)
def test_logits_equal_those_of_the_definitions(changes):
    cfg = dataclasses.replace(TINY, **changes)
    params = random_params(cfg)
    logits = GPT(cfg).apply({"params": params}, TOKENS)  # not jitted: operations are compiled once for all
    for row in range(2):
        np.testing.assert_allclose(
            logits[row], textbook_logits(cfg, params, TOKENS[row]), rtol=1e-5, atol=2e-5
        )


@pytest.mark.parametrize("norm", layers.NORMS)
def test_norms_add_gpt2s_epsilon_to_the_variance(norm):
    """Fresh embeddings have a variance of 4e-4, so that 1e-5 more or less is to be seen."""
    cfg = dataclasses.replace(TINY, norm=norm)
    params = jax.tree.map(lambda x: x, parameters.param_shapes(cfg).get("final_norm", {}))
    params = {name: jnp.full(x.shape, float(name == "scale")) for name, x in params.items()}
    x_D = np.tile([1e-3, -1e-3], 4).astype(np.float32)
    normed_D = layers.NORMS[norm](TINY).apply({"params": params}, x_D)
    np.testing.assert_allclose(normed_D, x_D / math.sqrt(1e-6 + 1e-5), rtol=1e-5)


def test_sinusoids_are_the_textbooks_whatever_the_order():
    cfg = dataclasses.replace(TINY, d_model=16, position="sinusoidal")
    expected = textbook_positions(cfg, {}, 512)
    positions_BT = np.random.default_rng(0).permutation(512).reshape(2, 256)
    np.testing.assert_allclose(layers.sinusoids(positions_BT, 16), expected[positions_BT], atol=1e-6)


# --- dropout, dtypes, traces ----------------------------------------------------------------------------


def test_dropout_is_off_unless_training_and_a_function_of_its_key():
    cfg = dataclasses.replace(TINY, num_layers=1)
    dropped = GPT(dataclasses.replace(cfg, dropout_rate=0.5))
    params = random_params(cfg)
    train = jax.jit(lambda key: dropped.apply({"params": params}, TOKENS, train=True, rngs={"dropout": key}))
    one, again, other = (np.asarray(train(jax.random.key(seed))) for seed in (1, 1, 2))
    off = np.asarray(GPT(cfg).apply({"params": params}, TOKENS))
    np.testing.assert_array_equal(dropped.apply({"params": params}, TOKENS), off)
    np.testing.assert_array_equal(one, again)
    assert (one != off).any() and (one != other).any()
    with pytest.raises(flax.errors.InvalidRngError):
        dropped.apply({"params": params}, TOKENS, train=True)


def test_dropout_acts_on_embeddings():
    """Without blocks, an RMSNorm that shifts nothing leaves the dropped zeros to be seen."""
    cfg = dataclasses.replace(TINY, d_model=64, num_layers=0, norm="rmsnorm", dropout_rate=0.25)
    x_BTD, _ = GPT(cfg).apply(
        {"params": random_params(cfg)},
        np.zeros((16, 8), np.int32),
        train=True,
        rngs={"dropout": jax.random.key(0)},
        method="features",
    )
    zeros = (np.asarray(x_BTD) == 0.0).mean()
    assert zeros == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / x_BTD.size))


@pytest.mark.parametrize("width", [64, 63])
def test_eight_bits_drop_at_the_rate_rounded_and_keep_the_mean(width):
    x = jnp.ones((1000, width))
    apply = functools.partial(layers.Dropout(0.2, bits=8).apply, {}, x, deterministic=False)
    out = np.asarray(apply(rngs={"dropout": jax.random.key(0)}))
    rate = 51 / 256
    np.testing.assert_array_equal(np.unique(out), np.float32([0, 1 / (1 - rate)]))
    sigma = math.sqrt(rate * (1 - rate) / out.size)
    assert (out == 0).mean() == pytest.approx(rate, abs=4 * sigma)
    # The four masks of a word are independent: of neighbours, rate squared are both dropped.
    both = (out[:, :-1] == 0) & (out[:, 1:] == 0)
    assert both.mean() == pytest.approx(rate**2, abs=6 * math.sqrt(rate**2 / both.size))
    # A rate that is an argument of the program gives the same masks.
    traced = jax.jit(
        lambda rate: layers.Dropout(rate, 8).apply({}, x, False, rngs={"dropout": jax.random.key(0)})
    )
    np.testing.assert_allclose(traced(0.2), out, rtol=1e-6)


def test_thirty_two_bits_drop_as_flax_does():
    x, rngs = jnp.ones((8, 64)), {"dropout": jax.random.key(0)}
    ours = layers.Dropout(0.2, bits=32).apply({}, x, deterministic=False, rngs=rngs)
    np.testing.assert_array_equal(ours, flax.linen.Dropout(0.2).apply({}, x, deterministic=False, rngs=rngs))


def test_attention_has_a_dropout_rate_of_its_own():
    """Without dropout elsewhere, only attention draws masks; and the other way round, which a GPU fuses."""
    params = random_params(TINY)

    def out(**rates):
        model, rngs = GPT(dataclasses.replace(TINY, **rates)), {"dropout": jax.random.key(0)}
        return np.asarray(model.apply({"params": params}, TOKENS, train=True, rngs=rngs))

    off, same = out(), out(dropout_rate=0.5)
    own, others = out(attention_dropout_rate=0.5), out(dropout_rate=0.5, attention_dropout_rate=0.0)
    np.testing.assert_array_equal(same, out(dropout_rate=0.5, attention_dropout_rate=0.5))
    for a, b in itertools.combinations((off, same, own, others), 2):
        assert (a != b).any()
    np.testing.assert_array_equal(own[:, 0] == off[:, 0], False)  # one weight, 1: dropped or doubled
    fused = dataclasses.replace(TINY, d_model=64, dtype="bfloat16", dropout_rate=0.5)
    assert "attention_dropout_rate=0" in fused.cudnn_obstacle
    assert not dataclasses.replace(fused, attention_dropout_rate=0.0).cudnn_obstacle


def test_dropout_acts_on_attention_weights():
    """With all values 1 and W_O the identity, what comes out is the sum of the weights: 1 without dropout."""
    layer = attention.Attention(dataclasses.replace(TINY, dropout_rate=0.5))
    positions_BT = np.arange(8)[None]
    x_BTD = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
    params = random_params(TINY)["block_0"]["attention"]
    params["value"] = {"kernel": jnp.zeros((8, 2, 4)), "bias": jnp.ones((2, 4))}
    params["out"] = {"kernel": jnp.eye(8).reshape(2, 4, 8), "bias": jnp.zeros(8)}
    sums_BTD, _, _ = jax.jit(
        lambda key: layer.apply({"params": params}, x_BTD, positions_BT, train=True, rngs={"dropout": key})
    )(jax.random.key(0))
    assert set(np.unique(sums_BTD[0, 0])) <= {0.0, 2.0}  # one weight, 1: dropped or doubled
    assert (np.abs(np.asarray(sums_BTD) - 1.0) > 1e-3).any(axis=-1).all()


def test_dropout_acts_on_both_changes_with_masks_of_their_own():
    cfg = dataclasses.replace(TINY, d_model=64, num_heads=1, d_ff=4, dropout_rate=0.5)
    block = gpt.Block(cfg)
    params = jax.tree.map(jnp.zeros_like, random_params(cfg)["block_0"])
    params["attention"]["out"]["bias"] = jnp.full(64, 1.0)
    params["mlp"]["down"]["bias"] = jnp.full(64, 10.0)
    x_BTD, positions_BT = np.zeros((1, 8, 64), np.float32), np.arange(8)[None]
    change_BTD, _, _ = jax.jit(
        lambda key: block.apply({"params": params}, x_BTD, positions_BT, train=True, rngs={"dropout": key})
    )(jax.random.key(0))
    values, counts = np.unique(change_BTD, return_counts=True)
    np.testing.assert_array_equal(values, [0.0, 2.0, 20.0, 22.0])  # neither, one, the other, both
    assert (np.abs(counts / change_BTD.size - 0.25) < 5 * math.sqrt(0.25 * 0.75 / change_BTD.size)).all()


@pytest.mark.parametrize("num_layers", [0, 1, 2, 5])
def test_param_shapes_are_those_that_the_whole_model_asks_for(num_layers):
    cfg = dataclasses.replace(TINY, num_layers=num_layers, **EVERYTHING)
    asked = jax.eval_shape(GPT(cfg).init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    assert jax.tree.structure(asked) == jax.tree.structure(parameters.param_shapes(cfg))
    assert jax.tree.leaves(asked) == jax.tree.leaves(parameters.param_shapes(cfg))


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_logits_are_float32_also_from_bfloat16_parameters(tie_embeddings):
    cfg = dataclasses.replace(TINY, tie_embeddings=tie_embeddings)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(cfg))
    logits = jax.eval_shape(lambda: GPT(cfg).apply({"params": params}, TOKENS))
    assert logits.dtype == jnp.float32 and logits.shape == (2, 8, 11)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    cfg = dataclasses.replace(TINY, dropout_rate=0.3, **EVERYTHING)
    params = random_params(cfg)

    def loss(params, remat):
        logits = GPT(cfg, remat=remat).apply(
            {"params": params}, TOKENS, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return jnp.square(logits).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    for (path, kept), (_, again) in zip(
        named_leaves(gradient(params, "none")), named_leaves(gradient(params, remat)), strict=True
    ):
        np.testing.assert_allclose(kept, again, rtol=1e-5, atol=1e-8, err_msg=path)


def test_a_policy_keeps_less_than_none_does():
    """What jax.vjp keeps for the backward pass, in numbers: all, the products, one stream a layer."""
    cfg = dataclasses.replace(TINY, num_layers=4, context_length=8)
    params = parameters.param_shapes(cfg)

    def kept(remat):
        def forward(params):
            return jax.vjp(lambda p: GPT(cfg, remat=remat).apply({"params": p}, TOKENS), params)[1]

        return parameters.count_params(jax.eval_shape(forward, params))

    assert kept("full") < kept("dots") < kept("none")


@pytest.mark.parametrize(
    "changes", [{}, {"num_kv_heads": 1}, {"attention_window": 3}, {"attention_scale": 0.9}]
)
def test_fused_attention_is_the_explicit_one(changes):
    """The call that a GPU gets, with XLA's implementation of the same mathematics: values and gradients."""
    cfg = dataclasses.replace(TINY, **changes)
    rng = np.random.default_rng(0)
    q, k, v, direction = (
        jnp.asarray(rng.normal(size=(2, 8, heads, 4)), jnp.float32)
        for heads in (2, cfg.kv_heads, cfg.kv_heads, 2)
    )

    def explicit(q, k, v):
        scores = attention.attention_scores(q, k, cfg.attention_scale)
        mask = attention.causal_mask(np.arange(8)[None], 8, cfg.attention_window)
        return attention.weighted_values(attention.attention_weights(scores, mask), v)

    def fused(q, k, v):
        return attention.fused_attention(cfg, q, k, v, implementation="xla")

    one, pull = jax.vjp(explicit, q, k, v)
    other, other_pull = jax.vjp(fused, q, k, v)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for a, b in zip(pull(direction), other_pull(direction), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


DOCUMENTS = {"attention_window": 3, "document_mask": True, "document_end": 10}


@pytest.mark.parametrize(
    ("changes", "block", "most", "shapes"),
    [
        ({}, 3, 8, {(3, 3), (3, 6), (2, 8)}),
        (EVERYTHING, 1, 2, {(4, 4), (4, 7)}),  # a window of 4
        (DOCUMENTS, 5, 8, {(5, 5), (3, 5)}),
    ],
    ids=["plain", "everything", "documents"],
)
def test_attention_in_blocks_of_queries_is_the_explicit_one(changes, block, most, shapes, monkeypatch):
    """Loss and gradient of a model, with the numbers of queries and keys of each block."""
    cfg = dataclasses.replace(TINY, num_layers=1, **changes)
    params, windows = random_params(cfg), np.concatenate([TOKENS, TOKENS[:, :1]], axis=1)
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "MAX_BLOCKS", most)
    softmax, found = attention.attention_weights, set()

    def seen(scores_BHTS, mask_BTS):
        found.add(scores_BHTS.shape[2:])
        return softmax(scores_BHTS, mask_BTS)

    monkeypatch.setattr(attention, "attention_weights", seen)

    def loss_and_gradient(kind):
        loss = lambda p: steps.mean_loss(GPT(cfg, attention=kind), p, windows)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    explicit = loss_and_gradient("explicit")
    assert found == {(8, 8)}
    found.clear()
    blocked = loss_and_gradient("auto")
    assert found == shapes
    for a, b in zip(jax.tree.leaves(explicit), jax.tree.leaves(blocked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(a).max())))


def test_blocks_of_the_size_that_is_used_give_the_explicit_attention():
    cfg, T = dataclasses.replace(TINY, d_model=32), 150
    assert attention.uses_query_blocks(cfg, "auto", T, train=True)
    rng = np.random.default_rng(0)
    q, k, v, direction = (jnp.asarray(rng.normal(size=(1, T, 2, 16)), jnp.float32) for _ in range(4))
    mask = attention.text_mask(cfg, T)

    def explicit(q, k, v):
        return attention.weighted_values(
            attention.attention_weights(attention.attention_scores(q, k), mask), v
        )

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, *inputs):
        value, pull = jax.vjp(function, *inputs)
        return value, *pull(direction)

    blocked = functools.partial(attention.blocked_attention, cfg, mask_BTS=mask)
    for a, b in zip(
        value_and_gradients(explicit, q, k, v), value_and_gradients(blocked, q, k, v), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_blocks_of_queries_are_taken_on_a_cpu_where_they_help():
    def taken(kind="auto", length=65, train=True, **changes):
        return attention.uses_query_blocks(dataclasses.replace(TINY, **changes), kind, length, train)

    assert taken()
    assert not taken(length=64) and not taken(kind="explicit")
    assert not taken(dtype="bfloat16") and not taken(causal=False)
    assert not taken(dropout_rate=0.1) and taken(dropout_rate=0.1, train=False)
    assert taken(dropout_rate=0.1, attention_dropout_rate=0.0)
    with trace_for(Backend("gpu", (9, 0))):
        assert not taken()


def test_all_weights_can_be_looked_at_where_attention_is_in_blocks(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)
    params = random_params(TINY)
    model = jax.jit(lambda p: GPT(TINY).apply({"params": p}, TOKENS, mutable="intermediates"))
    _, seen = model(params)
    (weights,) = seen["intermediates"]["block_1"]["attention"]["weights"]
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 2, 8)), rtol=1e-6)


def test_fused_attention_is_taken_on_a_gpu_where_it_can_be_and_refused_elsewhere():
    fits = dataclasses.replace(TINY, d_model=64, dtype="bfloat16")

    def refused(cfg, *words: str) -> None:
        assert not attention.uses_fused_attention(cfg, "auto")
        with pytest.raises(
            UserError, match=r"train.attention='cudnn'.*choose 'auto' or 'explicit'$"
        ) as error:
            attention.uses_fused_attention(cfg, "cudnn")
        assert all(word in str(error.value) for word in words)

    refused(fits, "needs an NVIDIA GPU")
    wide, wider = (dataclasses.replace(fits, head_dim=width) for width in (256, 264))
    with trace_for(Backend("gpu", (9, 0))):
        assert attention.uses_fused_attention(fits, "cudnn") and attention.uses_fused_attention(fits, "auto")
        assert not attention.uses_fused_attention(fits, "explicit")
        for changed in (
            {"dtype": "float32"},
            {"d_model": 8},
            {"attention_softcap": 1.0},
            {"dropout_rate": 0.1},
        ):
            refused(dataclasses.replace(fits, **changed))
        refused(dataclasses.replace(fits, context_length=15), "even model.context_length, not 15")
        assert attention.uses_fused_attention(wide, "cudnn")
        refused(wider, "up to 256, not 264")
    with trace_for(Backend("gpu", (8, 9))):
        assert attention.uses_fused_attention(dataclasses.replace(fits, head_dim=128), "auto")
        refused(wide, "up to 128 on a card of compute capability 8.9", "not 256")
    with trace_for(Backend("gpu", (7, 5))):
        refused(fits, "compute capability 7.5", "needs 8.0")
    with trace_for(Backend("gpu")):  # not one of NVIDIA's
        refused(fits, "needs an NVIDIA GPU")


def test_bfloat16_computes_near_float32_with_float32_parameters_and_logits():
    cfg = dataclasses.replace(TINY, **EVERYTHING)
    params = random_params(cfg)
    exact = GPT(cfg).apply({"params": params}, TOKENS)
    half = dataclasses.replace(cfg, dtype="bfloat16")
    x_BTD, _ = GPT(half).apply({"params": params}, TOKENS, method="features")
    assert x_BTD.dtype == jnp.bfloat16
    near = GPT(half).apply({"params": params}, TOKENS)
    assert near.dtype == jnp.float32 and (near != exact).any()
    np.testing.assert_allclose(near, exact, atol=0.15)
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters.param_shapes(half))} == {jnp.dtype("float32")}


def test_named_leaves_are_in_the_trees_order():
    params = parameters.param_shapes(TINY)
    named = named_leaves(params)
    assert [leaf for _, leaf in named] == jax.tree.leaves(params)
    assert parameters.count_params(params) == sum(math.prod(leaf.shape) for _, leaf in named)
