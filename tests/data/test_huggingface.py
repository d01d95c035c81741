"""Published tokenizers: the ids of the package tokenizers, kept with the run; mistakes are one line."""

import json
import shlex

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import dataset, huggingface, tokenizers
from tests.errors import one_line
from tests.scripts import ten_scripts

TEXT = (
    "Once more unto the breach, dear friends, once more;\nOr close the wall up: 1415, 12 000!\n\n"
    "  na\u00efve \u00e9t\u00e9, don't   stop.\r\n\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439 \u6f22\u5b57"
    " \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f642\U0001f468\u200d\U0001f469\n"
) * 4
END = "<|endoftext|>"


def byte_level() -> Tokenizer:
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    return trained(built, trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip


def own_pattern() -> Tokenizer:
    """As Llama 3 and Qwen: a pattern of its own in front of the bytes. Marks take the new lines after them."""
    built = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # fmt: skip
    built.decoder = decoders.ByteLevel()
    return trained(built, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end_of_text|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))  # fmt: skip


def byte_fallback() -> Tokenizer:
    """As Llama 2: spaces are U+2581, one before the text, and bytes for what the vocabulary lacks."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    built = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    built.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    built.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    built = trained(built, trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *bytes_], limit_alphabet=40, show_progress=False))  # fmt: skip
    document = json.loads(built.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] not in bytes_]
    return Tokenizer.from_str(json.dumps(document))


def unigram() -> Tokenizer:
    built = Tokenizer(models.Unigram())
    built.normalizer = normalizers.NFKC()
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    return trained(built, trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False))  # fmt: skip


def word_piece() -> Tokenizer:
    built = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece()
    return trained(built, trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False))  # fmt: skip


def word_ends() -> Tokenizer:
    built = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.decoder = decoders.BPEDecoder()
    return trained(built, trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>", END], end_of_word_suffix="</w>", show_progress=False))  # fmt: skip


def trained(built: Tokenizer, trainer) -> Tokenizer:
    built.train_from_iterator([TEXT] * 3, trainer)
    built.add_tokens([AddedToken("breach!!")])
    built.enable_truncation(5)  # of a published file; a text is never cut here
    return Tokenizer.from_str(built.to_str())


KINDS = [byte_level, own_pattern, byte_fallback, unigram, word_piece, word_ends]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def pair(request, tmp_path_factory):
    """The package's tokenizer, and ours from its file."""
    theirs = request.param()
    path = tmp_path_factory.mktemp("huggingface")
    theirs.save(str(path / "tokenizer.json"))
    theirs.no_truncation()
    return theirs, huggingface.load(path), path


def test_ids_and_text_are_those_of_the_package(pair):
    theirs, ours, _ = pair
    for text in (TEXT, ten_scripts(), " breach!! x", "a", "", "   \n"):
        ids = ours.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids.tolist(), skip_special_tokens=False)
    assert [ids.tolist() for ids in ours.encode_batch([TEXT, "a"])] == [
        ours.encode(TEXT).tolist(),
        ours.encode("a").tolist(),
    ]


def test_pieces_give_the_ids_of_the_complete_text(pair):
    _, ours, _ = pair
    expected = ours.encode(TEXT).tolist()
    for size in (3, 50):
        pieces = [TEXT[i : i + size] for i in range(0, len(TEXT), size)]
        assert np.concatenate(list(tokenizers.encode_pieces(ours, pieces))).tolist() == expected


def test_the_end_of_text_is_never_read_from_a_text(pair):
    _, ours, _ = pair
    assert ours.eos_id is not None
    assert ours.eos_id not in ours.encode(f"a {ours.token(ours.eos_id)} b").tolist()


def test_saved_with_a_run_it_is_the_same(pair, tmp_path):
    _, ours, _ = pair
    tokenizers.save(ours, tmp_path / "tokenizer.json")
    for again in (
        tokenizers.load(tmp_path / "tokenizer.json"),
        huggingface.load(tmp_path / "tokenizer.json"),
    ):
        assert tokenizers.fingerprint(again) == tokenizers.fingerprint(ours)
        assert again.encode(TEXT).tolist() == ours.encode(TEXT).tolist() and again.eos_id == ours.eos_id


@pytest.mark.parametrize("kind", [byte_level, own_pattern])
def test_bytes_of_tokens_add_up_to_the_text(kind, tmp_path):
    kind().save(str(tmp_path / "tokenizer.json"))
    ours = huggingface.load(tmp_path)
    ids = ours.encode(TEXT)
    num_bytes, num_chars = ours.token_lengths()
    assert ours.decode_bytes(ids) == TEXT.encode()
    assert (num_bytes[ids].sum(), num_chars[ids].sum()) == (len(TEXT.encode()), len(TEXT))


def test_bytes_of_the_other_kinds_read_as_the_text(tmp_path):
    """A stream joins the bytes of tokens: only spaces and what the normalizer changed may differ."""
    for kind, text in (
        (byte_fallback, TEXT),
        (unigram, "Once more dear friends"),
        (word_piece, "once more; or"),
    ):
        kind().save(str(tmp_path / "tokenizer.json"))
        ours = huggingface.load(tmp_path)
        streamed = ours.decode_bytes(ours.encode(text)).decode()
        assert "".join(streamed.split()) == "".join(text.split())


def test_trains_as_the_tokenizer_of_a_text(pair, tmp_path, monkeypatch):
    _, ours, path = pair
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT * 3, encoding="utf-8", newline="")
    found = dataset.prepare_dataset(
        DataConfig(path=str(tmp_path / "text.txt"), tokenizer="huggingface", tokenizer_path=str(path))
    )
    assert found.fingerprint == tokenizers.fingerprint(ours)
    assert found.train.ids.tolist() == ours.encode((TEXT * 3)[: int(len(TEXT) * 3 * 0.9)]).tolist()


def test_what_is_not_a_tokenizer_is_one_line(tmp_path):
    good = json.loads(byte_level().to_str())
    bad = {
        "a list": [],
        "no model": {"version": "1.0"},
        "unknown model": good | {"model": {"type": "Magic"}},
        "id twice": good | {"model": good["model"] | {"vocab": {"a": 0, "b": 0}, "merges": []}},
        "huge id": good | {"model": good["model"] | {"vocab": {"a": 10**9}, "merges": []}},
        "deep": good | {"normalizer": {"type": "Sequence", "normalizers": [{"type": "No"}]}},
        "odd decoder": good | {"decoder": {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True}},
        "numbers": good | {"added_tokens": 3},
    }  # fmt: skip
    for name, content in bad.items():
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(UserError) as error:
            huggingface.load(tmp_path)
        assert str(tmp_path / "tokenizer.json") in one_line(error), name
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        huggingface.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"does not exist: give a tokenizer\.json"):
        huggingface.load(tmp_path)


def test_models_are_converted_with_the_shown_command(tmp_path):
    (tmp_path / "my spiece.model").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "my spiece.model"):
        with pytest.raises(UserError, match="is a SentencePiece model: convert it once") as error:
            huggingface.load(path)
        command = one_line(error).partition("&& ")[2]
        name, flag, program = shlex.split(command)
        compile(program, "", "exec")
        assert (name, flag) == ("python", "-c") and repr(str(tmp_path / "converted")) in program
