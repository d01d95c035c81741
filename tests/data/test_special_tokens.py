"""Special tokens that are written in a text: text as any other, and the tokens themselves where a config asks for it."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import dataset, huggingface, special_tokens, tokenizers
from tests.data.test_huggingface import KINDS
from tests.errors import one_line

END = "<|endoftext|>"
STORIES = ["Once upon a time.\n", " The end? \n", "", "\u00e9t\u00e9 <|endof", "text|> a b"]
TEXT = END.join(STORIES) * 20


@pytest.mark.parametrize("kind, vocab_size", [("char", None), ("word", 12), ("bpe", 280), ("gpt2", None)])
def test_the_text_of_the_end_becomes_the_end(tmp_path, monkeypatch, kind, vocab_size):
    """In a text without documents and in documents; no part of it is in the vocabulary that is trained."""
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    cfg = DataConfig(path=str(tmp_path / "a.txt"), tokenizer=kind, vocab_size=vocab_size, valid_fraction=0.01)
    plain = dataset.prepare_dataset(cfg)
    found = dataset.prepare_dataset(DataConfig(**{**vars(cfg), "special_tokens_in_text": True}))
    tokenizer, end = found.tokenizer, found.tokenizer.eos_id
    assert end is not None and end == tokenizer.vocab_size - 1
    assert plain.tokenizer.eos_id is None or plain.tokenizer.eos_id not in plain.train.ids
    cut = TEXT[: int(len(TEXT) * 0.99)].split(END)
    expected = np.concatenate([[*tokenizer.encode(part), end] for part in cut])[:-1]
    assert np.array_equal(found.train.ids, expected)
    if kind == "char":
        assert set(tokenizer.characters) == set("".join(STORIES))
    (tmp_path / "b.txt").write_bytes(TEXT.encode())
    files = DataConfig(**{**vars(cfg), "special_tokens_in_text": True, "path": str(tmp_path / "*.txt")})
    ids = dataset.prepare_dataset(files).train.ids
    ends = np.flatnonzero(ids == end)
    assert len(ends) == TEXT.count(END) + 1 and ends[-1] == len(ids) - 1  # the last is the separator


@pytest.mark.parametrize("size", [1, 5, 40])
def test_pieces_make_no_difference(size):
    tokenizer = tokenizers.train("bpe", lambda: iter([TEXT]), 280, end_of_text=True)
    reader = special_tokens.reader(tokenizer)
    pieces = [TEXT[i : i + size] for i in range(0, len(TEXT), size)]
    joined = np.concatenate(list(tokenizers.encode_pieces(reader, pieces)))
    assert np.array_equal(joined, reader.encode(TEXT))
    assert np.array_equal(joined, reader.encode_batch(["a", TEXT])[1])
    left = "".join("/" if p is None else p for p in special_tokens.left_out([*pieces, None, "<|", None]))
    assert left == TEXT.replace(END, "/") + "/<|/"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_published_tokenizer_reads_its_special_tokens_as_the_package_does(kind, tmp_path):
    theirs = kind()
    theirs.no_truncation()
    theirs.save(str(tmp_path / "tokenizer.json"))
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = huggingface.load(tmp_path)
    name = ours.token(ours.eos_id)
    text = f"Once more{name} unto the {name}\n{name}{name}breach!! x"
    reader = special_tokens.reader(ours)
    expected = theirs.encode(text, add_special_tokens=False).ids
    assert reader.encode(text).tolist() == reader.encode_batch([text])[0].tolist() == expected
    assert expected.count(ours.eos_id) == 4 and ours.eos_id not in ours.encode(text)
    assert np.concatenate(list(tokenizers.encode_pieces(reader, [text[:12], text[12:]]))).tolist() == expected
    assert tokenizers.fingerprint(reader) == tokenizers.fingerprint(ours)


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("abc" * 30)
    tokenizers.save(tokenizers.train("char", lambda: iter(["abc"]), None), tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="this char tokenizer has no special tokens") as error:
        dataset.prepare_dataset(
            DataConfig(
                path=str(tmp_path / "a.txt"),
                tokenizer_path=str(tmp_path / "tokenizer.json"),
                special_tokens_in_text=True,
            )
        )
    one_line(error)
    assert not list((tmp_path / "cache").glob("data/*"))
