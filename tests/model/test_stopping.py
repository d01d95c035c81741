"""Where a text ends: the same streamed, in a batch and token by token; nothing after the stop is shown or counted."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.data import tokenizers
from jaxgpt.model.generation import Sampler, generate, generate_ids, stream
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.model.stopping import Stops, TextUntil
from tests.models import TINY

TOKENIZER = tokenizers.train("char", lambda: iter(["abcdefgh", None]), None, end_of_text=True)
END = TOKENIZER.eos_id


def cut(ids, stops: Stops, size: int) -> tuple[str, int, bool]:
    text = TextUntil(TOKENIZER, stops)
    shown = "".join(text.add(ids[i : i + size]) for i in range(0, len(ids), size))
    return shown + text.rest(), text.tokens, text.ended


@pytest.mark.parametrize(
    ("stops", "expected", "tokens"),
    [
        (Stops(), "abcab<|endoftext|>cd", 8),
        (Stops(END), "abcab", 5),
        (Stops(None, ("cab",)), "ab", 4),  # the token that completes the stop is not counted
        (Stops(END, ("cd", "b<")), "abcab", 5),
        (Stops(None, ("cabx", "dq")), "abcab<|endoftext|>cd", 8),
        (Stops(None, ("b<|end",)), "abca", 5),
    ],
)
def test_a_text_ends_at_the_stop_however_it_arrives(stops, expected, tokens):
    ids = np.array([*TOKENIZER.encode("abcab"), END, *TOKENIZER.encode("cd")])
    for size in (1, 2, 3, 8):
        text, counted, ended = cut(ids, stops, size)
        assert (text, counted) == (expected, tokens), size
        assert ended == (len(text) < len("abcab<|endoftext|>cd"))


def test_characters_of_several_tokens_are_complete():
    bpe = tokenizers.train("bpe", lambda: iter(["plain"]), 257)
    ids = bpe.encode("a\u00e9\u6f22!")
    text = TextUntil(bpe, Stops(None, ("\u6f22",)))
    assert "".join(text.add([i]) for i in ids) + text.rest() == "a\u00e9" and text.ended


def test_streamed_and_in_a_batch_it_is_the_same():
    cfg = dataclasses.replace(TINY, vocab_size=TOKENIZER.vocab_size)
    model = GPT(cfg)
    params = init_params(model, jax.random.key(0))
    settings = {"sampler": Sampler(3.0), "seed": 1}
    found = list(generate_ids(model, params, [TOKENIZER.encode("a")], 40, num_samples=6, **settings))
    ids = np.concatenate(found, axis=1)
    assert (ids == END).any(axis=1).sum() >= 2
    for stops in (None, Stops(END, ("ab", "hg")), Stops()):
        (texts,) = generate(model, params, TOKENIZER, ["a"], 40, num_samples=6, stops=stops, **settings)
        assert texts == [cut(row, Stops(END) if stops is None else stops, 1)[0] for row in ids]
        for chunk in (1, 7):
            streamed = "".join(
                stream(model, params, TOKENIZER, "a", 40, chunk=chunk, stops=stops, **settings)
            )
            assert streamed == texts[0]


def test_an_empty_stop_is_refused():
    with pytest.raises(UserError, match="--stop: give a text that is not empty"):
        Stops(None, ("a", ""))
