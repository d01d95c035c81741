"""Read and write tokenizers in the files of the Hugging Face libraries: tokenizer.json, vocab.json with merges.txt.

Reads GPT-2's two files (with added_tokens.json) and any tokenizer.json that puts nothing around a text, or one token before it. Writes
a tokenizer.json for every tokenizer of text; the package tokenizers (and transformers) gives the same ids with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxgpt.common.files import LARGEST_JSON, read_json
from jaxgpt.config import UserError, first_line
from jaxgpt.data import byte_pairs, tokenizers
from jaxgpt.data.huggingface import SETTINGS, HuggingFaceTokenizer, end_of_text
from jaxgpt.data.tokenizer import END_OF_TEXT
from jaxgpt.data.tokenizers import BPETokenizer, GPT2Tokenizer, IdsTokenizer, Tokenizer, WordTokenizer

OURS = "jaxgpt_tokenizer.json"  # our own format, so that an export can be imported without loss
THEIRS = "tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
ADDED = "added_tokens.json"  # tokens after those of vocab.json, with their ids
NAMES = (OURS, VOCAB, MERGES, THEIRS, ADDED)
WITHOUT = f"remove the tokenizer files ({', '.join(NAMES)}) to import only token ids"
# Settings of a BPE model that GPT-2's lacks.
_OTHER_PAIRS = (
    "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk", "unk_token",
)  # fmt: skip


def read(folder: Path, num_rows: int) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a model's folder, and what a user must know about it; of kind `ids` without tokenizer files.

    Added tokens beyond `num_rows` are left out. Raises UserError if a file is damaged, or has a part with which the ids would not be those of the package tokenizers.
    """
    for name in NAMES:
        if (folder / name).is_file() and (folder / name).stat().st_size > LARGEST_JSON:
            raise UserError(f"{folder / name} is larger than {LARGEST_JSON >> 20} MiB: it is not a tokenizer")
    notes: list[str] = []
    if (folder / OURS).is_file():
        tokenizer = tokenizers.load(folder / OURS)
    elif (folder / THEIRS).is_file():
        tokenizer = from_document(folder / THEIRS, _read_json(folder / THEIRS), num_rows, notes)
    elif (folder / VOCAB).is_file() or (folder / MERGES).is_file():
        vocab, merges = byte_pairs.read_gpt2_files(str(folder))
        added = _read_added(folder / ADDED)
        if not added and (END_OF_TEXT not in vocab or _is_gpt2(vocab)):
            tokenizer = _byte_level(folder, vocab, merges)
        else:
            if END_OF_TEXT in vocab:
                added = {END_OF_TEXT: vocab.index(END_OF_TEXT)} | added
            tokenizer = from_document(folder, bpe_document(vocab, merges, added), num_rows, notes)
    else:
        return IdsTokenizer(num_rows), notes
    return tokenizer, notes


def unfit(source: Path, what: str, instead: str = WITHOUT) -> UserError:
    """The error for a tokenizer and a model that do not belong together; `instead` says how to do without one."""
    return UserError(f"{source}: {what}: give files that belong together, or {instead}")


def _is_gpt2(vocab: list[str]) -> bool:
    """Whether these may be GPT-2's tokens. Other tokenizers with its end of text are read as published."""
    return len(vocab) == GPT2Tokenizer.vocab_size and vocab[-1] == END_OF_TEXT


def _byte_level(source: Path, vocab: list[str], merges: list[Any], instead: str = WITHOUT) -> BPETokenizer:
    """GPT-2's tokenizer if the vocabulary ends with its special token, else plain byte pairs."""
    kind = GPT2Tokenizer if _is_gpt2(vocab) else BPETokenizer
    try:
        return kind.from_json({"kind": kind.kind, "vocab": vocab, "merges": merges})
    except UserError as error:
        raise UserError(f"{source}: {error}; fix the tokenizer files, or {instead}") from error


def bpe_document(vocab: list[str], merges: list[str], added: dict[str, int]) -> dict[str, Any]:
    """A tokenizer.json of GPT-2's two files and added tokens."""
    ids = {token: i for i, token in enumerate(vocab)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "special": True, **flags}
            for token, i in sorted(added.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": merges},
    }


def _read_added(path: Path) -> dict[str, int]:
    """The tokens of an added_tokens.json with their ids; none without the file."""
    if not path.is_file():
        return {}
    try:
        added = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({first_line(error)}): give a complete one") from None
    if not isinstance(added, dict) or not all(type(i) is int and i >= 0 for i in added.values()):
        raise UserError(f"{path} is not a dictionary token -> id: give a complete one, or {WITHOUT}")
    return added


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
        if isinstance(values, dict) and isinstance(values["model"]["vocab"], dict | list):
            return values
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a tokenizer.json of the package tokenizers ({type(error).__name__}: {first_line(error)}): "
            f"give a complete one, or {WITHOUT}"
        ) from None
    raise UserError(
        f"{path} is not a tokenizer.json of the package tokenizers: give a complete one, or {WITHOUT}"
    )


def from_document(
    source: Path,
    document: dict[str, Any],
    num_rows: int,
    notes: list[str],
    end: str | None = None,
    instead: str = WITHOUT,
) -> Tokenizer:
    """The tokenizer of a tokenizer.json's content: GPT-2's or plain byte pairs where it is one, else as published.

    `end` is the text of the token that ends a document, where that is stated elsewhere; `instead` is as in `unfit`.
    """
    try:
        if refused := _other_ids(document):
            raise UserError(f"{source}: {refused}, or {instead}")
        added = {token["content"]: token["id"] for token in document.get("added_tokens") or []}
        ids = document["model"]["vocab"]
        gone = [token for token, i in added.items() if i >= num_rows and token not in ids]
        if gone:
            kept = [token for token in document["added_tokens"] if token["content"] not in gone]
            document = document | {"added_tokens": kept}
            added = {token: i for token, i in added.items() if token not in gone}
            notes.append(
                f"the tokenizer has ids beyond the model's {num_rows:,} rows: the added tokens "
                f"{', '.join(map(repr, gone[:3]))}{', ...' if len(gone) > 3 else ''} are left out"
            )
        if added:
            shown = ", ".join(
                map(repr, [t["content"] for t in document["added_tokens"] if t.get("special")][:3])
            )
            if shown:
                notes.append(
                    f"the text of a special token ({shown}) is ordinary text here, and one token there"
                )
        start = next(iter(_starts(document)), None)
        if start is not None:
            notes.append(f"{start!r} stands before each text that the model reads, as it was trained")
        elif (plain := _as_gpt2(document, added)) is not None:
            return _byte_level(source, *plain, instead=instead)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{source} is not a tokenizer.json of the package tokenizers ({type(error).__name__}: {first_line(error)}): "
            f"give a complete one, or {instead}"
        ) from None
    folder = source if source.is_dir() else source.parent
    try:
        end = end or end_of_text(document, folder / SETTINGS)
        return HuggingFaceTokenizer(document, end, begin_of_text=start)
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: {first_line(error)}; fix it, or {instead}") from error


def _as_gpt2(document: dict[str, Any], added: dict[str, int]) -> tuple[list[str], list[str]] | None:
    """vocab and merges of a tokenizer that works like GPT-2's; None for another."""
    model, cutter = document["model"], document.get("pre_tokenizer")
    ids, merges = model["vocab"], model.get("merges")
    if not isinstance(ids, dict) or not isinstance(cutter, dict):
        return None
    ids = ids | added if set(added) <= {END_OF_TEXT} else {}
    vocab = sorted(ids, key=ids.__getitem__)
    like = (
        model.get("type") == "BPE"
        and document.get("normalizer") is None
        and cutter.get("type") == "ByteLevel"
        and cutter.get("add_prefix_space") is False
        and cutter.get("use_regex", True) is True
        and not any(model.get(name) for name in _OTHER_PAIRS)
        and isinstance(merges, list)
        and [ids[token] for token in vocab] == list(range(len(vocab)))
        and (END_OF_TEXT not in vocab or (END_OF_TEXT in added and _is_gpt2(vocab)))
        and bool(vocab)
    )
    if not like:
        return None
    return vocab, [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]


def _other_ids(document: dict[str, Any]) -> str:
    """The part with which the package gives ids that we do not, and what to do; "" where there is none."""
    if (document["model"] or {}).get("dropout"):
        return 'its model has "dropout", so its ids are random: set it to null'
    if len(starts := _starts(document)) > 1:
        return f"its post_processor puts {' and '.join(map(repr, starts))} before each text: leave one"
    for step in _post_processors(document.get("post_processor")):
        kind = step["type"]
        if kind == "TemplateProcessing" and _started_by(step) is None:
            tokens = [part["SpecialToken"]["id"] for part in step["single"] if "SpecialToken" in part]
            if not tokens:
                continue
            puts = f"puts {', '.join(map(repr, tokens))} around each text"
        elif kind in ("BertProcessing", "RobertaProcessing"):
            puts = "puts tokens around each text"
        elif kind in ("ByteLevel", "TemplateProcessing"):
            continue
        else:
            puts = "is not known here"
        return (
            f'its post_processor {kind} {puts}, and only one token before each text is read here: set "post_processor" to '
            "null if the model was trained so"
        )
    return ""


def _starts(document: dict[str, Any]) -> list[str]:
    """The tokens that the package puts before each text."""
    parts = _post_processors(document.get("post_processor"))
    return [token for part in parts if part["type"] == "TemplateProcessing" and (token := _started_by(part))]


def _started_by(template: dict[str, Any]) -> str | None:
    """The token of a template `token text`; None for every other."""
    parts: list[dict[str, Any]] = template["single"]
    if [*map(list, parts)] != [["SpecialToken"], ["Sequence"]]:
        return None
    token = parts[0]["SpecialToken"]["id"]
    return token if template["special_tokens"][token]["tokens"] == [token] else None


def start_template(token: str, i: int) -> dict[str, Any]:
    """The post_processor of a tokenizer.json that puts a token before each text."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": [special, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }


def _post_processors(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part["processors"] for step in _post_processors(inner)]
    return [part]


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
        unknown = tokenizer.token(tokenizer.unk_id) if isinstance(tokenizer, WordTokenizer) else token
        settings |= {"bos_token": token, "eos_token": token, "unk_token": unknown}
    if tokenizer.bos_id is not None:
        settings["bos_token"] = tokenizer.token(tokenizer.bos_id)
    return files | {THEIRS: exported(tokenizer), "tokenizer_config.json": _json(settings)}


def exported(tokenizer: Tokenizer) -> bytes:
    """The tokenizer.json with which the package tokenizers gives the same ids. Raises UserError for plain ids."""
    if isinstance(tokenizer, IdsTokenizer):
        raise UserError("this run has only token ids: it has no tokenizer to export")
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return _json(tokenizer.to_json()["tokenizer"])
    return _built(tokenizer).to_str().encode()


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

    special = [AddedToken(tokenizer.token(i), special=True) for i in tokenizer.special_ids.tolist()]
    if isinstance(tokenizer, BPETokenizer):
        built = byte_pairs.build(tokenizer.vocab, tokenizer.merges)
        built.decoder = decoders.ByteLevel()
        built.add_special_tokens(special)
        return built
    pattern = {"char": _CHARACTER, "word": _WORD}[tokenizer.kind]
    ids = {tokenizer.token(i): i for i in range(tokenizer.vocab_size)}
    # As here, an unknown word is <unk>, and an unknown character is an error.
    built = Built(models.WordLevel(ids, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    built.decoder = decoders.Fuse()
    built.add_special_tokens(special)
    return built


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
