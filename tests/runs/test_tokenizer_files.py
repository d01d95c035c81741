"""Tokenizers in the files of the package tokenizers: the same ids there."""

import pytest
from tokenizers import Tokenizer

from jaxgpt import tokenize
from jaxgpt.config import UserError
from jaxgpt.data import huggingface, special_tokens, tokenizers
from tests.errors import one_line
from tests.scripts import ten_scripts

TEXT = ten_scripts()
SIZES = {"char": None, "word": 300, "bpe": 400, "gpt2": None}


CASES = [(kind, end) for kind in SIZES for end in (False, True) if end or kind != "gpt2"]


@pytest.mark.parametrize("kind, end_of_text", CASES)
def test_an_exported_file_gives_the_same_ids(kind, end_of_text, tmp_path, capsys):
    """For 20,000 characters of ten scripts, known and unknown words; the end of text is a special token there."""
    if kind == "gpt2":
        tokenizer = tokenizers.load_gpt2("")
    else:
        tokenizer = tokenizers.train(kind, lambda: iter([TEXT]), SIZES[kind], end_of_text)
    tokenizers.save(tokenizer, tmp_path / "tokenizer.json")
    tokenize.main(["--workdir", str(tmp_path), "--export", str(tmp_path / "new" / "theirs.json")])
    assert f"{kind}, {tokenizer.vocab_size:,} tokens" in capsys.readouterr().out
    theirs = Tokenizer.from_file(str(tmp_path / "new" / "theirs.json"))
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    ids = tokenizer.encode(TEXT).tolist()
    assert theirs.encode(TEXT).ids == ids
    assert theirs.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
    if tokenizer.eos_id is not None:
        marked = f"{TEXT[:50]}<|endoftext|>{TEXT[50:90]}<|endoftext|> b"
        assert theirs.encode(marked).ids == special_tokens.reader(tokenizer).encode(marked).tolist()
        assert theirs.token_to_id("<|endoftext|>") == tokenizer.eos_id
    if kind == "char":
        with pytest.raises(Exception, match="UNK"):
            theirs.encode("\u0d05")
    again = huggingface.load(tmp_path / "new" / "theirs.json")
    assert again.encode(TEXT).tolist() == ids and again.eos_id == tokenizer.eos_id


def test_what_is_not_exported_is_one_line(tmp_path):
    tokenizers.save(tokenizers.IdsTokenizer(9), tmp_path / "tokenizer.json")
    for flags, expected in (
        (["--workdir", str(tmp_path)], "give --config and --out, or --workdir and --export"),
        (["--export", str(tmp_path / "a")], "give --config and --out, or --workdir and --export"),
        (["--workdir", str(tmp_path), "--export", str(tmp_path / "a")], "has only token ids"),
        (["--workdir", str(tmp_path), "--export", str(tmp_path)], "exists already"),
        (["--workdir", str(tmp_path / "no"), "--export", str(tmp_path / "a")], "cannot read"),
        ([], "--out is missing"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            tokenize.main(flags)
        one_line(error)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
