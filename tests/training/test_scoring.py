"""Log-likelihoods in batches of few shapes against the plain forward pass, one text at a time."""

import functools
import itertools

import jax
import numpy as np
import pytest

from jaxgpt.config import ModelConfig, UserError
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.training import scoring
from jaxgpt.training.scoring import Score, Text

CFG = ModelConfig(vocab_size=29, context_length=32, d_model=16, num_layers=2, num_heads=2, dropout_rate=0.0)


@pytest.fixture(scope="module")
def model():
    model = GPT(CFG)
    params = init_params(model, jax.random.key(0))
    return model, jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)


@functools.partial(jax.jit, static_argnames="model")
def logits_of(model: GPT, params: dict, tokens_T: np.ndarray) -> jax.Array:
    return model.apply({"params": params}, tokens_T[None])[0]


def plain(model: GPT, params: dict, text: Text) -> Score:
    end, count = len(text.read), len(text.predicted)
    logits = logits_of(model, params, np.pad(np.array(text.read), (0, 32 - end)))[end - count : end]
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    own = log_p[np.arange(count), list(text.predicted)]
    return Score(float(own.sum()), logits.argmax(axis=-1).tolist() == list(text.predicted))


def some_texts(rng: np.random.Generator, count: int) -> list[Text]:
    found = []
    for _ in range(count):
        context = rng.integers(0, 29, rng.integers(1, 45)).tolist()
        found.append(Text.of(context, rng.integers(0, 29, rng.integers(1, 20)).tolist(), 32))
    context = rng.integers(0, 29, 9).tolist()
    found += [Text.of(context, [token], 32) for token in range(29)]  # they share a row; one of them is greedy
    return found


def test_every_score_is_that_of_the_text_alone_with_few_programs(model, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 1 << 10)  # several blocks of logits
    texts = some_texts(np.random.default_rng(0), 60)
    before, seen = scoring.score_batch._cache_size(), []
    found = scoring.score(*model, texts, 4, seen.append)
    assert scoring.score_batch._cache_size() - before <= scoring.MOST_LENGTHS
    assert sum(seen) == len(texts)
    expected = [plain(*model, text) for text in texts]
    assert [score.greedy for score in found] == [score.greedy for score in expected]
    assert 1 <= sum(score.greedy for score in found[60:]) < 29
    np.testing.assert_allclose(
        [s.log_likelihood for s in found], [s.log_likelihood for s in expected], rtol=0, atol=1e-4
    )


def test_a_context_loses_its_first_tokens(model):
    text = Text.of(range(20), range(5), 8)
    assert text == Text((16, 17, 18, 19, 0, 1, 2, 3), (0, 1, 2, 3, 4))
    for context, continuation in (([], [1]), ([1], []), ([1], [1] * 9)):
        with pytest.raises(UserError):
            Text.of(context, continuation, 8)
    two_way = GPT(ModelConfig(vocab_size=29, context_length=32, d_model=16, num_heads=2, causal=False))
    with pytest.raises(UserError, match="no causal mask"):
        scoring.score(two_way, {}, [text], 4)


def test_windows_predict_every_token_once():
    # The example of lm_eval's documentation: context 4, tokens 0 to 9, prefix 99.
    assert scoring.windows(range(10), 99, 4) == [
        Text((99, 0, 1, 2), (0, 1, 2, 3)),
        Text((3, 4, 5, 6), (4, 5, 6, 7)),
        Text((5, 6, 7, 8), (8, 9)),
    ]
    assert scoring.windows(range(3), 99, 4) == [Text((99, 0, 1), (0, 1, 2))]
    assert scoring.windows([], 99, 4) == []


def test_padded_lengths_waste_the_fewest_tokens():
    rng = np.random.default_rng(0)
    for most in (1, 2, 3):
        lengths = rng.integers(1, 9, 12).tolist()
        padded = scoring.padded_lengths(lengths, most)
        assert all(size >= length for size, length in zip(padded, lengths, strict=True))
        assert len(set(padded)) <= most
        least = min(
            sum(min(size for size in sizes if size >= length) for length in lengths)
            for sizes in itertools.combinations(range(1, 9), min(most, len(set(lengths))))
            if max(sizes) >= max(lengths)
        )
        assert sum(padded) == least
    assert scoring.padded_lengths([]) == []
