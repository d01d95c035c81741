"""Read and write tokenizers in the files of the Hugging Face libraries: tokenizer.json, vocab.json with merges.txt.

Reads GPT-2's two files and a tokenizer.json with byte-level BPE. Writes a tokenizer.json for every tokenizer of text;
the package tokenizers (and transformers) gives the same ids with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxgpt.common.files import LARGEST_JSON, read_json
from jaxgpt.config import UserError
from jaxgpt.data import byte_pairs, tokenizers
from jaxgpt.data.tokenizer import END_OF_TEXT
from jaxgpt.data.tokenizers import BPETokenizer, GPT2Tokenizer, IdsTokenizer, Tokenizer

OURS = "jaxgpt_tokenizer.json"  # our own format, so that an export can be imported without loss
THEIRS = "tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
NAMES = (OURS, VOCAB, MERGES, THEIRS)


def read(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a model's folder, of kind `ids` if the folder has no tokenizer files.

    Raises UserError if a file is damaged or not supported, or if its size is not `vocab_size`.
    """
    for name in NAMES:
        if (folder / name).is_file() and (folder / name).stat().st_size > LARGEST_JSON:
            raise UserError(f"{folder / name} is larger than {LARGEST_JSON >> 20} MiB: it is not a tokenizer")
    if (folder / OURS).is_file():
        tokenizer = tokenizers.load(folder / OURS)
    elif (folder / VOCAB).is_file() or (folder / MERGES).is_file():
        tokenizer = _byte_level(folder, *byte_pairs.read_gpt2_files(str(folder)))
    elif (folder / THEIRS).is_file():
        tokenizer = _byte_level(folder / THEIRS, *_read_json(folder / THEIRS))
    else:
        return IdsTokenizer(vocab_size)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model {vocab_size:,}: give files that "
            f"belong together, or remove the tokenizer files ({', '.join(NAMES)}) to import only token ids"
        )
    return tokenizer


def _byte_level(source: Path, vocab: list[str], merges: list[Any]) -> BPETokenizer:
    """GPT-2's tokenizer if the vocabulary ends with its special token, else plain byte pairs."""
    kind = GPT2Tokenizer if tuple(vocab[-1:]) == (END_OF_TEXT,) else BPETokenizer
    try:
        return kind.from_json({"kind": kind.kind, "vocab": vocab, "merges": merges})
    except UserError as error:
        raise UserError(
            f"{source}: {error}; fix the tokenizer files, or remove them ({', '.join(NAMES)}) to import only token ids"
        ) from error


def _read_json(path: Path) -> tuple[list[str], list[Any]]:
    """The vocab and merges of a tokenizer.json that works like GPT-2's."""
    try:
        values = read_json(path)
        model, cutter = values["model"], values["pre_tokenizer"]
        ids, merges = model["vocab"], model["merges"]
        plain = (
            model["type"] == "BPE"
            and values.get("normalizer") is None
            and cutter["type"] == "ByteLevel"
            and cutter["add_prefix_space"] is False
            and cutter.get("use_regex", True) is True
            and not model.get("ignore_merges")
            and not model.get("dropout")
        )
        complete = isinstance(merges, list) and all(type(i) is int for i in ids.values())
        vocab = sorted(ids, key=ids.__getitem__)
        complete = complete and [ids[token] for token in vocab] == list(range(len(vocab)))
        added = [token["content"] for token in values.get("added_tokens", [])]
        if extra := [token for token in added if token != END_OF_TEXT]:
            raise UserError(
                f"{path} adds the tokens {', '.join(map(repr, extra[:3]))}, which are not supported: remove the file to import only token ids"
            )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        plain, complete = False, type(error) is not ValueError
    if not plain or not complete:
        raise UserError(
            f"{path} is not byte-level BPE as GPT-2's: give {VOCAB} and {MERGES}, or remove it to import only token ids"
        )
    return vocab, [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]


# --- writing --------------------------------------------------------------------------------------------

# White space and letters as in Python's re: letters include the numbers that are not decimal digits.
_SPACE = (
    r"\x{09}-\x{0d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
)
_LETTER = r"[\p{L}\p{Nl}\p{No}]"
# tokenizers._WORD in the syntax of Oniguruma.
_WORD = rf"{_LETTER}+(?:['’]{_LETTER}+)*|\p{{Nd}}+|\n+|\x{{20}}+|\t+|[{_SPACE}]|[^\p{{L}}\p{{N}}_{_SPACE}]|_"
_CHARACTER = r"[\s\S]"


def files_of(tokenizer: Tokenizer, context_length: int) -> dict[str, bytes]:
    """The files of a tokenizer by name; only our own format if the tokenizer has no text."""
    files = {OURS: _json(tokenizer.to_json())}
    if isinstance(tokenizer, IdsTokenizer):
        return files
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(tokenizer, BPETokenizer):
        files[VOCAB] = _json({token: i for i, token in enumerate(tokenizer.vocab)})
        files[MERGES] = "\n".join(["#version: 0.2", *tokenizer.merges, ""]).encode()
    if tokenizer.eos_id is not None:
        token = tokenizer.token(tokenizer.eos_id)
        settings |= {"bos_token": token, "eos_token": token, "unk_token": token}
    return files | {THEIRS: _built(tokenizer).to_str().encode(), "tokenizer_config.json": _json(settings)}


def notes(tokenizer: Tokenizer) -> list[str]:
    """What a user of the files must know."""
    if isinstance(tokenizer, IdsTokenizer):
        return ["no tokenizer is written: this run has only token ids"]
    if tokenizer.eos_id is not None:
        token = tokenizer.token(tokenizer.eos_id)
        return [
            f"the text {token!r} is one token there, and ordinary text here; all other text has the same ids"
        ]
    return []


def _built(tokenizer: Tokenizer) -> Any:
    """The same tokenizer, built with the package tokenizers."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Built

    if isinstance(tokenizer, BPETokenizer):
        built = byte_pairs.build(tokenizer.vocab, tokenizer.merges)
        built.decoder = decoders.ByteLevel()
        if tokenizer.special_tokens:
            built.add_special_tokens([AddedToken(t, special=True) for t in tokenizer.special_tokens])
        return built
    pattern = {"char": _CHARACTER, "word": _WORD}[tokenizer.kind]
    ids = {tokenizer.token(i): i for i in range(tokenizer.vocab_size)}
    # As here, an unknown word is <unk>, and an unknown character is an error.
    built = Built(models.WordLevel(ids, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    built.decoder = decoders.Fuse()
    return built


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
