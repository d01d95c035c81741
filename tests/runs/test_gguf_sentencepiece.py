"""GGUF files with SentencePiece's BPE (Llama 1 and 2, TinyLlama): the ids are those of its algorithm, done by hand."""

import dataclasses
import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer as Built
from tokenizers import models as built_models
from tokenizers import trainers

from jaxgpt.config import UserError
from jaxgpt.data.tokenizers import IdsTokenizer
from jaxgpt.runs.gguf import models
from tests.runs.test_gguf import LLAMA, rewrite, run_of
from tests.scripts import ten_scripts

SPACE = "\u2581"
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TEXTS = ["the king", " the  king ", "", "\n\n\tkings", "Zürich ß 日本語 🙂 \u0d05", "</s> <s>king"]


def pieces() -> list[str]:
    """The tokens that byte pairs of a text have, from the most to the least frequent."""
    built = Built(built_models.BPE())
    text = ten_scripts()[:12_000].replace(" ", SPACE)
    built.train_from_iterator(text.split("\n"), trainers.BpeTrainer(vocab_size=700, show_progress=False))
    return sorted(built.get_vocab(), key=built.get_vocab().__getitem__)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A GGUF file with such a tokenizer; its scores are the reverse of the order of joining, as SentencePiece's."""
    found = pieces()
    tokens = [*SPECIAL, *BYTES, *found]
    made = tmp_path_factory.mktemp("sentencepiece")
    models.export_file(
        run_of(dataclasses.replace(LLAMA, vocab_size=len(tokens)), IdsTokenizer(len(tokens))),
        made / "ids.gguf",
    )
    changed = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * (3 + 256) + [-float(i) for i in range(len(found))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(found),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    return rewrite(made / "ids.gguf", made / "spm.gguf", changed), tokens


def by_hand(text: str, tokens: list[str]) -> list[int]:
    """Of all neighbours that make a token, the two whose token is the most probable are joined, the first two of equal ones."""
    ids = {token: i for i, token in enumerate(tokens)}
    symbols = list(SPACE + text.replace(" ", SPACE)) if text else []
    while True:
        pairs = [
            (ids[a + b], i)
            for i, (a, b) in enumerate(itertools.pairwise(symbols))
            if ids.get(a + b, -1) >= 3 + 256
        ]
        if not pairs:
            break
        _, at = min(pairs)  # ids rise as scores fall
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    found = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return found


def test_ids_are_those_of_its_algorithm_and_come_back_as_text(file, tmp_path):
    path, tokens = file
    run = models.import_file(path, tmp_path / "run")
    tokenizer = run.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    text = ten_scripts()
    parts = [text[at : at + 50] for at in range(0, 20_000, 50)]
    for part in (*TEXTS, *parts):
        ids = tokenizer.encode(part)
        assert ids.tolist() == by_hand(part, tokens), part
        assert tokenizer.decode(ids) == part
    assert tokenizer.with_start(tokenizer.encode("king")).tolist() == [1, *by_hand("king", tokens)]


def test_a_file_may_say_that_no_space_and_no_bos_stand_before_a_text(file, tmp_path):
    path, tokens = file
    said = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    tokenizer = models.import_file(rewrite(path, tmp_path / "a.gguf", said), tmp_path / "run").tokenizer
    assert tokenizer.bos_id is None
    assert tokenizer.encode(" the king").tolist() == by_hand("the king", tokens)
    assert tokenizer.decode(tokenizer.encode("the king")) == "the king"


def test_what_is_no_such_tokenizer_is_one_line(file, tmp_path):
    path, tokens = file
    scores = np.zeros(len(tokens)).tolist()
    cases = {
        "no scores": ({"tokenizer.ggml.scores": None}, "lacks tokenizer.ggml.scores"),
        "texts": ({"tokenizer.ggml.scores": ["a"] * len(tokens)}, "not a list of numbers"),
        "few scores": ({"tokenizer.ggml.scores": scores[1:]}, "not one number for each token"),
        "nan": ({"tokenizer.ggml.scores": [float("nan"), *scores[1:]]}, "not one number for each token"),
        "a long token": ({"tokenizer.ggml.tokens": [*tokens[:-1], "a" * 2000]}, "a token of 2,000 characters"),
        "no start": ({"tokenizer.ggml.bos_token_id": 99_999}, "its bos_token_id is not a special token"),
    }  # fmt: skip
    for name, (changed, words) in cases.items():
        with pytest.raises(UserError) as error:
            models.import_file(rewrite(path, tmp_path / "bad.gguf", changed), tmp_path / "run")
        assert words in str(error.value) and "\n" not in str(error.value), (name, str(error.value))
        assert not (tmp_path / "run").exists()
