"""The statements of the learning notes about embeddings, attention, MLP and loss, as tests."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.config.presets import PRESETS
from jaxgpt.model import attention, gpt, parameters
from jaxgpt.model.attention import Attention
from jaxgpt.model.gpt import GPT
from jaxgpt.model.layers import MLP
from jaxgpt.training import steps

# "The cat sat on the mat": small enough to print, deep enough to be a transformer.
CFG = config.ModelConfig(vocab_size=12, context_length=6, d_model=8, num_layers=1, num_heads=2, d_ff=16)
TOKENS = np.array([[5, 1, 7, 2, 5, 3]])
POSITIONS = np.arange(6)[None]


@pytest.fixture(scope="module")
def params() -> dict:
    """Random everywhere: fresh biases are 0, which would hide mistakes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), leaf.dtype), parameters.param_shapes(CFG)
    )


def embed(cfg: config.ModelConfig, params: dict, tokens_BT: np.ndarray) -> np.ndarray:
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return np.asarray(GPT(cfg).apply({"params": params}, tokens_BT, positions_BT, method="embed"))


# --- embeddings -----------------------------------------------------------------------------------------


def test_looking_up_a_row_is_multiplying_by_a_one_hot_vector(params):
    """E[i] = one_hot(i) E: the lookup is the same number for number, and cheaper."""
    table_VD = np.asarray(params["token_embedding"]["embedding"])
    one_hot_BTV = np.eye(12, dtype=np.float32)[TOKENS]
    without_positions = dataclasses.replace(CFG, position="none")
    looked_up_BTD = embed(without_positions, params, TOKENS)
    np.testing.assert_array_equal(looked_up_BTD, one_hot_BTV @ table_VD)
    np.testing.assert_array_equal(looked_up_BTD, table_VD[TOKENS])


def test_india_is_great():
    """Words -> ids -> rows: with the notes' own table, "India is great" is that table's three rows."""
    table_VD = np.array([[0.1, 0.3, 0.4, 0.5], [0.2, 0.1, 0.6, 0.3], [0.4, 0.3, 0.9, 0.1]], np.float32)
    vocabulary = {"India": 0, "is": 1, "great": 2}
    ids = np.array([[vocabulary[word] for word in "India is great".split()]])
    cfg = dataclasses.replace(CFG, vocab_size=3, d_model=4, position="none")
    x_BTD = embed(cfg, {"token_embedding": {"embedding": jnp.asarray(table_VD)}}, ids)
    assert x_BTD.shape == (1, 3, 4)
    np.testing.assert_array_equal(x_BTD[0], table_VD)


def test_gpt2_smalls_token_table_has_38_597_376_numbers():
    """50,257 tokens x 768 dimensions = 38,597,376."""
    table = parameters.param_shapes(PRESETS["gpt2"])["token_embedding"]["embedding"]
    assert table.shape == (50_257, 768)
    assert parameters.count_params(table) == 50_257 * 768 == 38_597_376


def test_position_vectors_are_added_to_token_vectors(params):
    """Each position has a vector as each token has: x[t] = E[token t] + P[t], of the same width."""
    token_VD = np.asarray(params["token_embedding"]["embedding"])
    position_TD = np.asarray(params["position_embedding"]["embedding"])
    np.testing.assert_array_equal(embed(CFG, params, TOKENS)[0], token_VD[TOKENS[0]] + position_TD)


def test_the_same_token_starts_the_same_and_ends_by_its_context(params):
    """Embeddings are static, attention is dynamic: "bank" is one row of E in any sentence, and comes out of
    a block as "bank of this sentence"."""
    river, money = np.array([[1, 2, 9, 3, 4, 0]]), np.array([[6, 7, 9, 3, 4, 0]])
    np.testing.assert_array_equal(embed(CFG, params, river)[:, 2], embed(CFG, params, money)[:, 2])
    block = gpt.Block(CFG)
    outputs = [
        block.apply({"params": params["block_0"]}, embed(CFG, params, sentence), POSITIONS)[0][0, 2]
        for sentence in (river, money)
    ]
    assert (np.abs(outputs[0] - outputs[1]) > 1e-3).any()


def test_embeddings_start_random_and_unrelated():
    """Before training: mean 0, std 0.02, and no word nearer to one word than to another."""
    cfg = dataclasses.replace(CFG, vocab_size=400, d_model=64)
    table_VD = np.asarray(parameters.init_params(GPT(cfg), jax.random.key(0))["token_embedding"]["embedding"])
    assert abs(table_VD.mean()) < 5 * 0.02 / math.sqrt(table_VD.size)
    assert table_VD.std() == pytest.approx(0.02, rel=5 / math.sqrt(2 * table_VD.size))
    unit_VD = table_VD / np.linalg.norm(table_VD, axis=1, keepdims=True)
    cosines = (unit_VD @ unit_VD.T)[np.triu_indices(400, k=1)]
    # The cosine of two random directions has mean 0 and standard deviation 1 / sqrt(D).
    assert abs(cosines.mean()) < 5 / math.sqrt(64 * len(cosines))
    assert cosines.std() == pytest.approx(1 / math.sqrt(64), rel=0.02)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_gradients_reach_the_rows_of_the_batchs_tokens(params, tie_embeddings):
    """Embeddings learn as other weights do: a row gets a gradient when its token is in the batch. With tied
    embeddings each row is also a weight of the output, and every row gets one at every step."""
    cfg = dataclasses.replace(CFG, tie_embeddings=tie_embeddings)
    head = {} if tie_embeddings else {"head": {"kernel": params["token_embedding"]["embedding"].T}}
    grads = jax.jit(jax.grad(lambda p: steps.mean_loss(GPT(cfg), p, TOKENS)))({**params, **head})
    reached = set(np.flatnonzero(np.abs(grads["token_embedding"]["embedding"]).max(axis=1)))
    assert reached == (set(range(12)) if tie_embeddings else set(TOKENS[0, :-1].tolist()))


def test_king_minus_man_plus_woman_is_queen():
    """Directions carry meaning: with one axis for royalty and one for gender the arithmetic is exact."""
    vectors = {
        "king": np.array([1.0, 1.0, 0.2]),
        "queen": np.array([1.0, -1.0, 0.2]),
        "man": np.array([0.0, 1.0, 0.1]),
        "woman": np.array([0.0, -1.0, 0.1]),
        "paper": np.array([-1.0, 0.0, 0.9]),
        "water": np.array([0.1, 0.1, -1.0]),
    }
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    asked = vectors["king"] - vectors["man"] + vectors["woman"]
    others = [word for word in vectors if word not in ("king", "man", "woman")]
    assert max(others, key=lambda word: cosine(vectors[word], asked)) == "queen"
    np.testing.assert_allclose(asked, vectors["queen"])
    assert cosine(vectors["king"], vectors["queen"]) > cosine(vectors["paper"], vectors["water"])


# --- attention ------------------------------------------------------------------------------------------


def test_the_triangular_mask_of_five_tokens():
    """Token t may attend to tokens 0 to t: later words must not give the answer away."""
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    np.testing.assert_array_equal(attention.causal_mask(np.arange(5)[None], 5)[0], expected)


def test_512_dimensions_are_split_into_8_heads_of_64():
    """Each head works in 64 dimensions, and what comes out together has 512 again."""
    cfg = dataclasses.replace(CFG, d_model=512, num_heads=8)
    attention = parameters.param_shapes(cfg)["block_0"]["attention"]
    for name in ("query", "key", "value"):
        assert attention[name]["kernel"].shape == (512, 8, 64)
    assert attention["out"]["kernel"].shape == (8, 64, 512)
    change, (keys, values), _ = jax.eval_shape(
        lambda x, positions: Attention(cfg).init_with_output(jax.random.key(0), x, positions)[0],
        jax.ShapeDtypeStruct((2, 6, 512), jnp.float32),
        jax.ShapeDtypeStruct((2, 6), jnp.int32),
    )
    assert keys.shape == values.shape == (2, 6, 8, 64)
    assert change.shape == (2, 6, 512)


def test_w_o_mixes_the_concatenated_heads():
    """The notes' two heads of three dimensions and their 6 x 6 W_O: each row of it makes one output."""
    heads_HK = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    w_o = np.array(
        [
            [0.5, 0.2, 0.1, 0.0, 0.0, 0.0],
            [0.1, 0.5, 0.1, 0.1, 0.1, 0.1],
            [0.0, 0.0, 0.0, 0.5, 0.2, 0.1],
            [0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
            [0.1, 0.2, 0.3, 0.1, 0.2, 0.3],
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
        ]
    )
    concatenated = w_o @ heads_HK.reshape(6)
    np.testing.assert_allclose(concatenated, [1.2, 2.9, 3.6, 4.2, 4.6, 7.0])
    # As our kernel [H, K, D] holds it, a head's proposed change can be read off: the changes are summed.
    w_o_HKD = w_o.T.reshape(2, 3, 6)
    changes_HD = np.einsum("HK,HKD->HD", heads_HK, w_o_HKD)
    np.testing.assert_allclose(changes_HD[0], [1.2, 1.4, 0.0, 1.2, 1.4, 0.8])
    np.testing.assert_allclose(changes_HD.sum(axis=0), concatenated)


def test_concatenated_heads_times_w_o_are_the_sum_of_the_heads_changes(params):
    """MultiHead = Concat(head_1, ..., head_h) W_O: every head proposes a change, and they are summed."""
    kernels = params["block_0"]["attention"]
    x_BTD = embed(CFG, params, TOKENS)
    change_BTD, (k_BSHK, v_BSHK), _ = Attention(CFG).apply({"params": kernels}, x_BTD, POSITIONS)
    query = kernels["query"]
    q_BTHK = jnp.einsum("BTD,DHK->BTHK", x_BTD, query["kernel"]) + query["bias"]
    weights_BHTS = attention.attention_weights(
        attention.attention_scores(q_BTHK, k_BSHK), attention.causal_mask(POSITIONS, 6)
    )
    heads_BTHK = np.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK)
    w_o_HKD, bias_D = np.asarray(kernels["out"]["kernel"]), np.asarray(kernels["out"]["bias"])
    concatenated_BTD = heads_BTHK.reshape(1, 6, 8) @ w_o_HKD.reshape(8, 8)
    summed_BTD = sum(heads_BTHK[:, :, h] @ w_o_HKD[h] for h in range(2))
    np.testing.assert_allclose(summed_BTD, concatenated_BTD, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(change_BTD, summed_BTD + bias_D, rtol=1e-5, atol=1e-5)


# --- residuals and the MLP ------------------------------------------------------------------------------


def layernorm(x_BTD: np.ndarray, params: dict) -> np.ndarray:
    x_BTD = (x_BTD - x_BTD.mean(-1, keepdims=True)) / np.sqrt(x_BTD.var(-1, keepdims=True) + 1e-5)
    return x_BTD * np.asarray(params["scale"]) + np.asarray(params["bias"])


def test_a_block_adds_two_changes_to_its_input(params):
    """x + f(x): a layer only has to learn the delta."""
    block = params["block_0"]
    x_BTD = embed(CFG, params, TOKENS)
    output_BTD, _, _ = gpt.Block(CFG).apply({"params": block}, x_BTD, POSITIONS)
    attention_change_BTD, _, _ = Attention(CFG).apply(
        {"params": block["attention"]}, layernorm(x_BTD, block["attention_norm"]), POSITIONS
    )
    between_BTD = x_BTD + np.asarray(attention_change_BTD)
    mlp_change_BTD = MLP(CFG).apply({"params": block["mlp"]}, layernorm(between_BTD, block["mlp_norm"]))
    np.testing.assert_allclose(
        output_BTD - x_BTD, attention_change_BTD + mlp_change_BTD, rtol=1e-4, atol=1e-5
    )


def test_a_block_whose_changes_are_zero_hands_its_input_on(params):
    """With W_O and W_down of 0 a block is the identity, bit for bit."""
    block = {name: dict(group) for name, group in params["block_0"].items()}
    block["attention"]["out"] = jax.tree.map(jnp.zeros_like, block["attention"]["out"])
    block["mlp"]["down"] = jax.tree.map(jnp.zeros_like, block["mlp"]["down"])
    x_BTD = embed(CFG, params, TOKENS)
    output_BTD, _, _ = gpt.Block(CFG).apply({"params": block}, x_BTD, POSITIONS)
    np.testing.assert_array_equal(output_BTD, x_BTD)


def test_original_plus_mlp_output_is_the_result():
    """The notes' "bank": [0.5, 0.3, 0.4, 0.6] + [0.8, 0.1, 0.7, 0.9], from a block whose MLP says just that."""
    original, mlp_output = np.array([0.5, 0.3, 0.4, 0.6]), np.array([0.8, 0.1, 0.7, 0.9])
    cfg = dataclasses.replace(CFG, d_model=4, num_heads=1)
    block = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), parameters.param_shapes(cfg)["block_0"]
    )
    block["mlp"]["down"]["bias"] = jnp.asarray(mlp_output, jnp.float32)
    result, _, _ = gpt.Block(cfg).apply(
        {"params": block}, original.astype(np.float32)[None, None], np.array([[0]])
    )
    np.testing.assert_allclose(result[0, 0], [1.3, 0.4, 1.1, 1.5], rtol=1e-6)


def test_the_mlp_widens_512_to_2048_and_comes_back():
    """512 -> 2048 (four times) -> ReLU -> 512, each position by itself."""
    cfg = PRESETS["transformer-2017"]
    mlp = parameters.param_shapes(cfg)["block_0"]["mlp"]
    assert (mlp["up"]["kernel"].shape, mlp["up"]["bias"].shape) == ((512, 2048), (2048,))
    assert (mlp["down"]["kernel"].shape, mlp["down"]["bias"].shape) == ((2048, 512), (512,))
    assert cfg.activation == "relu"


def test_a_relu_neuron_is_activated_by_the_pattern_it_recognises_else_not():
    """max(0, w x + b): a neuron that looks for a pattern says how much of it is there, or nothing."""
    cfg = dataclasses.replace(CFG, d_model=4, d_ff=1, activation="relu")
    pattern = np.array([1.0, -1.0, 1.0, -1.0], np.float32)
    mlp = {
        "up": {"kernel": pattern[:, None], "bias": np.array([-2.0], np.float32)},
        "down": {"kernel": np.ones((1, 4), np.float32), "bias": np.zeros(4, np.float32)},
    }
    x_BTD = np.stack([pattern, -pattern, 0.25 * pattern])[None]
    output_BTD = MLP(cfg).apply({"params": mlp}, x_BTD)
    np.testing.assert_array_equal(output_BTD[0], np.array([[2.0] * 4, [0.0] * 4, [0.0] * 4]))


# --- loss -----------------------------------------------------------------------------------------------


def test_the_loss_of_abc():
    """Eight letters; the model gives 0.2 to "a", then 0.6 to "b", then 0.7 to "c". Each step's loss is -ln p
    of the right letter, the text's loss is their mean: -(ln 0.2 + ln 0.6 + ln 0.7) / 3 = 0.8256."""
    probabilities_TV = np.array(
        [
            [0.2, 0.5, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02],
            [0.1, 0.6, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02],
            [0.05, 0.1, 0.7, 0.05, 0.04, 0.03, 0.02, 0.01],
        ]
    )
    np.testing.assert_allclose(probabilities_TV.sum(axis=1), 1.0)
    abc = np.array([["abcdefgh".index(letter) for letter in "abc"]])
    losses_BT = np.asarray(steps.token_losses(jnp.log(jnp.asarray(probabilities_TV))[None], abc))
    np.testing.assert_allclose(losses_BT[0], [-math.log(0.2), -math.log(0.6), -math.log(0.7)], rtol=1e-6)
    assert losses_BT.mean() == pytest.approx(-(math.log(0.2) + math.log(0.6) + math.log(0.7)) / 3, rel=1e-6)
    assert losses_BT.mean() == pytest.approx(0.8256, abs=1e-4)
    # The more of the probability is left for wrong letters, the greater the loss.
    assert losses_BT[0, 0] > losses_BT[0, 1] > losses_BT[0, 2]


@pytest.mark.parametrize("vocab_size", [65, 1_000, 50_257])
def test_an_untrained_model_guesses_evenly(vocab_size):
    """Before training every token is about as likely as any other: the loss is ln V."""
    cfg = dataclasses.replace(CFG, vocab_size=vocab_size)
    tokens = np.random.default_rng(0).integers(0, vocab_size, (8, 7))
    loss = steps.mean_loss(GPT(cfg), parameters.init_params(GPT(cfg), jax.random.key(0)), tokens)
    assert loss == pytest.approx(math.log(vocab_size), rel=0.05)
