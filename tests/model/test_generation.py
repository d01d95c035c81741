"""Cached generation is generation by full forward passes: same tokens, alone or in a batch, past the window."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import ModelConfig, UserError
from jaxgpt.model import generation
from jaxgpt.model.generation import Sampler, generate_ids, window_start
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from tests.models import TINY, random_params

CFG = ModelConfig(vocab_size=61, context_length=32, d_model=32, num_layers=2, num_heads=4)
PROMPT_LENGTHS = (1, 3, 8, 17, 31)
SAMPLERS = [Sampler(temperature=0.0), Sampler(temperature=1.0), Sampler(0.9, top_k=20, top_p=0.7)]


@pytest.fixture(scope="module")
def model_and_params():
    model = GPT(CFG)
    params = init_params(model, jax.random.key(3))
    # An untrained model's logits are all but equal: spread them, so that a wrong cache changes the tokens.
    params["token_embedding"]["embedding"] *= 15.0
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 8.0 if path[-1].key == "kernel" else x, params
    )
    return model, params


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, CFG.vocab_size, size=n) for n in PROMPT_LENGTHS]


def collect(*args, **kwargs) -> np.ndarray:
    return np.concatenate(list(generate_ids(*args, **kwargs)), axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def next_token(model, sampler, params, tokens, last, key, index):
    logits = model.apply({"params": params}, tokens)[:, last]
    return sampler(logits, key[None], jnp.array([index]))[0]


def by_full_passes(model, params, prompt, count, sampler, seed, sample=0):
    """The definition: a full forward pass over the window for every token; no cache, no batch."""
    key = jax.random.fold_in(jax.random.key(seed), sample)
    ids = list(prompt)
    for _ in range(count):
        window = ids[window_start(len(ids), CFG.context_length) :]
        padded = np.zeros((1, CFG.context_length), np.int32)  # one shape; the mask hides what comes after
        padded[0, : len(window)] = window
        ids.append(int(next_token(model, sampler, params, padded, len(window) - 1, key, len(ids))))
    return np.array(ids[len(prompt) :])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_cached_equals_full_passes_in_a_batch_and_alone(model_and_params, prompts, sampler):
    model, params = model_and_params
    count = 70  # more than two windows, so that every row slides
    batch = collect(model, params, prompts, count, sampler=sampler, seed=5)
    for row, prompt in zip(batch, prompts, strict=True):
        expected = by_full_passes(model, params, prompt, count, sampler, seed=5)
        alone = collect(model, params, [prompt], count, sampler=sampler, seed=5)[0]
        np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(alone, expected)


def test_streaming_in_chunks_changes_nothing(model_and_params, prompts):
    model, params = model_and_params
    whole = collect(model, params, prompts[:2], 45, seed=1)
    for chunk in (1, 7):
        pieces = list(generate_ids(model, params, prompts[:2], 45, seed=1, chunk=chunk))
        assert max(piece.shape[1] for piece in pieces) <= chunk
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_the_next_window_is_read_while_the_caller_works_on_the_last_tokens(model_and_params, monkeypatch):
    """Else the device would wait for a reader at the end of every window."""
    model, params = model_and_params
    read, real = [], generation.prefill
    monkeypatch.setattr(generation, "prefill", lambda *given, **more: read.append(1) or real(*given, **more))
    made = 0
    for ids in generate_ids(model, params, [[3]], CFG.context_length + 10, chunk=8):
        made += ids.shape[1]
        assert len(read) == (1 if made < CFG.context_length else 2)


def test_samples_differ_by_number_and_seed_and_repeat(model_and_params, prompts):
    model, params = model_and_params
    first = collect(model, params, prompts[:2], 20, num_samples=3, seed=1)
    assert first.shape == (6, 20)
    assert len({row.tobytes() for row in first}) == 6
    np.testing.assert_array_equal(first, collect(model, params, prompts[:2], 20, num_samples=3, seed=1))
    assert not np.array_equal(first, collect(model, params, prompts[:2], 20, num_samples=3, seed=2))
    # Sample 2 of a prompt is the same whatever else is in the batch.
    expected = by_full_passes(model, params, prompts[1], 20, Sampler(), seed=1, sample=2)
    np.testing.assert_array_equal(first[5], expected)


@pytest.mark.parametrize("context_length", [1, 2, 3, 8, 31])
def test_window_never_overflows_and_keeps_half(context_length):
    starts = [window_start(length, context_length) for length in range(1, 200)]
    assert starts[:context_length] == [0] * context_length
    assert all(a <= b for a, b in itertools.pairwise(starts))
    for length, start in zip(range(1, 200), starts, strict=True):
        assert 1 <= length - start <= context_length
        if length > context_length:
            assert length - start >= max(1, context_length // 2)


def test_temperature_zero_is_the_most_probable_token():
    logits = jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 2.5]])
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(Sampler(temperature=0.0)(logits, keys, jnp.zeros(2, jnp.int32)), [1, 2])


def test_top_k_keeps_the_k_most_probable():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))
    kept = np.isfinite(Sampler(top_k=2).filtered(logits))
    np.testing.assert_array_equal(kept, [[False, True, False, True]])
    assert np.isfinite(Sampler(top_k=100).filtered(logits)).all()


def test_top_p_keeps_the_fewest_that_reach_p():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))
    for p, kept in [(0.3, [1]), (0.5, [1, 3]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])]:
        found = np.flatnonzero(np.isfinite(np.asarray(Sampler(top_p=p).filtered(logits))[0]))
        np.testing.assert_array_equal(found, kept)


def test_draws_follow_the_probabilities():
    """Sampling at temperature 2 has probabilities p^(1/2) / sum: chi-squared over 20,000 draws."""
    probs = np.array([0.05, 0.15, 0.3, 0.5])
    n = 20_000
    logits = jnp.broadcast_to(jnp.log(probs), (n, 4))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(n))
    draws = Sampler(temperature=2.0)(logits, keys, jnp.zeros(n, jnp.int32))
    expected = np.sqrt(probs) / np.sqrt(probs).sum() * n
    observed = np.bincount(np.asarray(draws), minlength=4)
    assert ((observed - expected) ** 2 / expected).sum() < 16.3  # 99.9 % point of chi-squared, 3 degrees


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Sampler(**settings)


def test_other_numbers_compile_no_new_program(model_and_params):
    """A server is asked for any top_k and temperature; each compiled program would stay in memory."""
    model, params = model_and_params
    programs = []
    for top_k, temperature, top_p in [(5, 0.5, 0.5), (6, 0.7, 0.9), (7, 2.0, 0.1), (8, 1.0, 0.99)]:
        collect(model, params, [[1, 2]], 5, sampler=Sampler(temperature, top_k, top_p))
        programs.append((generation.prefill._cache_size(), generation.decode._cache_size()))
    assert len(set(programs)) == 1


def test_a_sampler_of_any_kind_draws_the_same_with_one_program(model_and_params, prompts):
    """All settings, prompts and lengths: one program of prefill a width, one of decode, and the same tokens."""
    model, params = model_and_params
    settings = [
        (0.0, None, None),
        (0.9, 20, 0.7),
        (0.85, None, None),
        (1.0, 5, None),
    ]
    before = generation.prefill._cache_size(), generation.decode._cache_size()
    found = [
        collect(
            model,
            params,
            [prompts[i % 5]],
            7 + i,
            sampler=Sampler(*each).of_any_kind(),
            seed=i,
            chunk=4,
            slots=32,
        )
        for i, each in enumerate(settings)
    ]
    programs = generation.prefill._cache_size() - before[0], generation.decode._cache_size() - before[1]
    assert programs == (2, 1)  # windows of 16 and 32 tokens
    for i, each in enumerate(settings[:2]):
        alone = collect(model, params, [prompts[i % 5]], 7 + i, sampler=Sampler(*each), seed=i)
        np.testing.assert_array_equal(found[i], alone)


def test_every_case_of_a_sampler_of_any_kind_draws_as_the_sampler_alone():
    """A vocabulary that is larger than what is few, with equal logits in it."""
    logits = jnp.round(jax.random.normal(jax.random.key(1), (50, 300)) * 2, 1)
    keys, index = jax.random.split(jax.random.key(2), 50), jnp.arange(50)
    program = jax.jit(lambda sampler: sampler(logits, keys, index))
    for top_k in (None, 1, 64, 65, 301):
        for top_p in (None, 0.6, 1.0):
            for temperature in (0.0, 0.9):
                sampler = Sampler(temperature, top_k, top_p)
                alone = program(sampler)
                np.testing.assert_array_equal(program(sampler.of_any_kind()), alone)
                np.testing.assert_array_equal(program(sampler.of_few_kinds()), alone)


def test_a_number_that_no_float_holds_is_refused():
    with pytest.raises(UserError, match=r"temperature=1000000000\.\.\. \(401 digits\)"):
        Sampler(temperature=10**400)


def test_bad_prompts_are_refused(model_and_params):
    model, params = model_and_params
    with pytest.raises(UserError, match="empty prompt"):
        collect(model, params, [[]], 5)
    with pytest.raises(UserError, match="33 tokens, context_length=32"):
        collect(model, params, [[1] * 33], 5)
    with pytest.raises(UserError, match="max_new_tokens=0"):
        collect(model, params, [[1]], 0)


class Bytes:
    """A tokenizer of single bytes, so that a character may be cut in its middle."""

    eos_id = None

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    encode_prompt = encode

    def decode_bytes(self, ids):
        return bytes(int(i) for i in ids)


def test_streamed_text_never_shows_half_a_character(monkeypatch):
    text = "né → 😀!"
    monkeypatch.setattr(
        generation,
        "generate_ids",
        lambda *a, **k: (Bytes().encode(text)[None, i : i + 1] for i in range(len(text.encode()))),
    )
    pieces = list(generation.stream(None, None, Bytes(), "x", 1))
    assert "".join(pieces) == text
    assert pieces == list(text)


def test_another_temperature_needs_no_other_program():
    """Somebody who turns it should not wait for a compiler; what is drawn is what the sampler alone would draw."""
    params, found = random_params(TINY), {}
    for temperature in (0.5, 1.3):
        pieces = generate_ids(GPT(TINY), params, [[1, 2]], 6, sampler=Sampler(temperature), seed=4, chunk=3)
        found[temperature] = np.concatenate(list(pieces), axis=1)[0]
        if temperature == 0.5:
            programs = generation.decode._cache_size(), generation.prefill._cache_size()
    assert (generation.decode._cache_size(), generation.prefill._cache_size()) == programs
    logits = jax.jit(GPT(TINY).apply)
    for temperature, ids in found.items():
        key, text = jax.random.fold_in(jax.random.key(4), 0), np.array([1, 2, *ids])
        logits_TV = logits({"params": params}, text[None])[0]
        for t, new in enumerate(ids, start=2):
            drawn = Sampler(temperature)(logits_TV[t - 1][None], key[None], jnp.array([t]))
            assert int(drawn[0]) == new


def test_a_model_with_a_factorised_table_writes():
    """The last position alone is matched with the table: vectors [B, D], not [B, T, D]."""
    cfg = dataclasses.replace(TINY, embedding_dim=2)
    model, params = GPT(cfg), random_params(cfg)
    written = collect(model, params, [[1, 2, 3]], 4, sampler=Sampler(0.0))[0].tolist()
    ids = [1, 2, 3]
    for _ in range(4):
        ids.append(int(model.apply({"params": params}, np.array([ids]))[0, -1].argmax()))
    assert written == ids[3:]
