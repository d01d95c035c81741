"""With model.document_mask a document is computed as if it were alone, on every path of attention and with a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import attention, generation
from jaxgpt.model.generation import Sampler, generate_ids, generate_pieces
from jaxgpt.model.gpt import GPT, KVCache
from jaxgpt.training import steps
from tests.models import EVERYTHING, TINY, random_params

END = 10
DOCUMENTS = {"document_mask": True, "document_end": END, "context_length": 16}
MODELS = {
    "learned": {},
    "sinusoidal": {"position": "sinusoidal", "tie_embeddings": False},
    "rotary": {"position": "rotary", "num_kv_heads": 1},
    "window": {"attention_window": 3},
    "everything": EVERYTHING,
    "no causal mask": {"causal": False},
}
CFGS = {name: dataclasses.replace(TINY, **(DOCUMENTS | changes)) for name, changes in MODELS.items()}
# The documents of a row: 6 tokens with their end, 7 with theirs, and the start of a third.
FIRST, SECOND = slice(0, 6), slice(6, 13)
TOKENS = np.array(
    [[1, 4, 0, 7, 2, END, 5, 5, 3, 0, 8, 1, END, 9, 2, 6], [END, 3, 3, 3, 1, END, 0, 2, 4, 6, 8, 0, END, END, 7, 1]],
    np.int32,
)  # fmt: skip
every_model = pytest.mark.parametrize("cfg", CFGS.values(), ids=CFGS.keys())
every_path = pytest.mark.parametrize("path", ["explicit", "fused"])


@pytest.fixture
def on_path(monkeypatch):
    """Makes a model attend on a path: "fused" is the call that a GPU gets, by XLA's implementation."""

    def use(cfg, path):
        if path == "explicit":
            return
        if cfg.attention_softcap:
            pytest.skip(cfg.cudnn_obstacle)
        fused = functools.partial(attention.fused_attention, implementation="xla")
        monkeypatch.setattr(attention, "fused_attention", fused)
        monkeypatch.setattr(attention, "uses_fused_attention", lambda *_: True)

    return use


def logits_of(cfg, tokens):
    """By a program, which is quicker than one operation after another."""
    return np.asarray(
        jax.jit(lambda t: GPT(cfg).apply({"params": random_params(cfg)}, t))(jnp.asarray(tokens))
    )


def changed(tokens, where):
    """Other tokens at the places of a document; its end stays."""
    other = tokens.copy()
    other[:, where.start : where.stop - 1] = (other[:, where.start : where.stop - 1] + 3) % END
    return other


@every_path
@every_model
def test_a_token_of_one_document_changes_nothing_in_another(cfg, path, on_path):
    on_path(cfg, path)
    tokens = TOKENS[:1]
    before = logits_of(cfg, tokens)
    for own, others in ((FIRST, slice(6, 16)), (SECOND, slice(13, 16)), (SECOND, FIRST)):
        after = logits_of(cfg, changed(tokens, own))
        np.testing.assert_array_equal(after[:, others], before[:, others])
        assert (after[:, own] != before[:, own]).any()
    without = dataclasses.replace(cfg, document_mask=False)
    moved = logits_of(without, changed(tokens, FIRST)) - logits_of(without, tokens)
    assert np.abs(moved[:, 6]).max() > 0


@every_path
@every_model
def test_the_loss_of_one_document_has_no_gradient_by_the_embeddings_of_another(cfg, path, on_path):
    on_path(cfg, path)
    params = random_params(cfg)
    rows_BT = jnp.arange(16)[
        None
    ]  # token t is row t of a table of its own, so that each place has its gradient
    wide = dataclasses.replace(cfg, vocab_size=16, vocab_multiple=1, document_end=5, tie_embeddings=False)
    params |= {
        "token_embedding": {"embedding": params["token_embedding"]["embedding"][TOKENS[0]]},
        "head": {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(cfg.d_model, 16)), jnp.float32)},
    }

    def loss(table):
        logits = GPT(wide).apply({"params": params | {"token_embedding": {"embedding": table}}}, rows_BT)
        return steps.token_losses(logits[:, 6:12], rows_BT[:, 7:13]).sum()

    gradient = np.asarray(jax.grad(loss)(params["token_embedding"]["embedding"]))
    assert (gradient[FIRST] == 0).all()
    assert (np.abs(gradient[6:12]).max(axis=-1) > 0).all()


@every_path
@every_model
def test_a_document_is_computed_as_if_it_were_alone(cfg, path, on_path):
    on_path(cfg, path)
    together = logits_of(cfg, TOKENS[:1])
    for part in (FIRST, SECOND, slice(13, 16)):
        alone = logits_of(cfg, TOKENS[:1, part])
        np.testing.assert_allclose(together[:, part], alone, rtol=2e-5, atol=2e-5)
    plain = dataclasses.replace(cfg, document_mask=False, document_end=None)
    np.testing.assert_array_equal(logits_of(plain, TOKENS[:1, FIRST]), logits_of(cfg, TOKENS[:1, FIRST]))


@every_model
def test_the_paths_agree_in_values_and_gradients(cfg, on_path):
    params = random_params(cfg)
    loss = lambda p: steps.mean_loss(GPT(cfg), p, jnp.asarray(TOKENS))  # noqa: E731
    explicit = jax.jit(jax.value_and_grad(loss))(params)
    on_path(cfg, "fused")
    fused = jax.jit(jax.value_and_grad(lambda p: loss(p)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), explicit, fused)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_nothing(remat):
    cfg = CFGS["learned"]
    params = random_params(cfg)
    plain, again = (
        jax.grad(lambda p, r=r: steps.mean_loss(GPT(cfg, remat=r), p, jnp.asarray(TOKENS)))(params)
        for r in ("none", remat)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, again)


# --- with a cache ---------------------------------------------------------------------------------------------

CACHED = ("learned", "rotary", "everything")
with_cache = pytest.mark.parametrize("cfg", [CFGS[name] for name in CACHED], ids=CACHED)


@with_cache
@pytest.mark.parametrize("sizes", [[1] * 16, [4, 1, 5, 3, 3]], ids=str)
def test_cached_decoding_equals_the_full_pass(cfg, sizes):
    params, full = random_params(cfg), logits_of(cfg, TOKENS)
    cache, found = KVCache.empty(cfg, 2, slots=16), []
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        logits, cache = GPT(cfg).apply({"params": params}, TOKENS[:, start : start + size], cache=cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), full, rtol=2e-5, atol=2e-5)


@with_cache
def test_generated_text_is_that_of_full_passes(cfg):
    """Prompts of different lengths, with several documents, and one that ends with an end; then past the window."""
    cfg = dataclasses.replace(cfg, document_end=7)  # one that is drawn
    params = random_params(cfg)
    full = jax.jit(lambda tokens: GPT(cfg).apply({"params": params}, tokens))
    prompts = [TOKENS[0, :9].tolist(), TOKENS[1, :6].tolist(), [7], [3, 1]]
    pieces = list(generate_pieces(GPT(cfg), params, prompts, 14, sampler=Sampler(5.0), chunk=3, scored=True))
    new = np.concatenate([piece.ids for piece in pieces], axis=1)
    given = np.concatenate([piece.scores.p for piece in pieces], axis=1)
    assert (new == 7).any() and len(np.unique(new)) > 8
    for prompt, found, ps in zip(prompts, new.tolist(), given, strict=True):
        ids = list(prompt)
        for token, p in zip(found, ps, strict=True):
            window = ids[generation.window_start(len(ids), 16) :]
            padded = np.array([window + [0] * (16 - len(window))], np.int32)
            logits = full(padded)[0, len(window) - 1]
            assert p == pytest.approx(float(jax.nn.softmax(logits)[token]), rel=1e-4)
            ids.append(token)


def test_padding_after_a_prompt_is_no_end_of_a_document():
    """Prompts are padded with id 0, which here is the end of a document."""
    cfg = dataclasses.replace(CFGS["rotary"], document_end=0)
    params, sampler = random_params(cfg), Sampler(0.0)
    together = np.concatenate(
        list(generate_ids(GPT(cfg), params, [[1, 2], [3] * 9], 5, sampler=sampler)), axis=1
    )
    alone = np.concatenate(list(generate_ids(GPT(cfg), params, [[1, 2]], 5, sampler=sampler)), axis=1)
    assert together[0].tolist() == alone[0].tolist()
    ids = [1, 2]
    for token in alone[0].tolist():
        assert token == logits_of(cfg, np.array([ids], np.int32))[0, -1].argmax()
        ids.append(token)


def test_starts_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = rng.integers(0, 3, (2, 12)).astype(np.int32)
        length, first = rng.integers(0, 5, 2), np.zeros(2, int)
        first = np.minimum(first, length)
        found = np.asarray(attention.document_starts(tokens, 2, jnp.asarray(length), jnp.asarray(first)))
        for row, start, at, got in zip(tokens, first, length, found, strict=True):
            expected = [start]
            for t, token in enumerate(row):
                expected.append(at + t + 1 if token == 2 else expected[-1])
            assert got.tolist() == expected


# --- what cuDNN can't do ------------------------------------------------------------------------------------------


def test_an_odd_context_is_an_obstacle_for_cudnn():
    even = dataclasses.replace(CFGS["learned"], dtype="bfloat16", d_model=64)
    odd = dataclasses.replace(even, context_length=15)
    assert not even.cudnn_obstacle
    assert "even model.context_length, not 15" in odd.cudnn_obstacle
