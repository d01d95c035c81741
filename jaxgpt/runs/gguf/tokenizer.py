"""The tokenizer of a GGUF file: byte-level BPE both ways, SentencePiece's BPE in. Others are refused by name.

A file of byte-level BPE names its way to cut text before the merges (`tokenizer.ggml.pre`); the steps of a name stand here
once. SentencePiece's (Llama 1 and 2, TinyLlama) has a score for each token in place of merges.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.data.huggingface import steps
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.data.tokenizers import IdsTokenizer
from jaxgpt.runs import tokenizer_files
from jaxgpt.runs.gguf.reader import GGUFFile

WITHOUT = "give --no_tokenizer for token ids alone"
NONE = "none"  # tokenizer.ggml.model of a file with ids alone
_MODEL, _TOKENS, _TYPES = "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_ADD_BOS = "tokenizer.ggml.add_bos_token"
_NORMAL, _UNKNOWN, _CONTROL, _OWN, _UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"  # tokenizer.ggml.model
_SPACE = "\u2581"  # SentencePiece's
_LONGEST = 1024  # characters of one of its tokens, whose every cut is tried
TEMPLATE = "tokenizer.chat_template"


class Cut(NamedTuple):
    """How a text is cut before the merges: the steps of a tokenizer.json."""

    steps: tuple[dict[str, Any], ...]
    normalizers: tuple[str, ...] = ()
    ignore_merges: bool = False  # a piece that is a token is taken as it is
    add_bos: bool = False  # whether a token stands before each text where the file does not say


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_DIGITS = {"type": "Digits", "individual_digits": True}
# As in the published tokenizer.json of these models; llama.cpp has the same under these names, without NFC.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS: dict[str, Cut] = {
    "gpt-2": Cut((_byte_level(True),)),
    "olmo": Cut((_byte_level(True),), ("NFC",)),  # GPT-NeoX's
    "smollm": Cut((_DIGITS, _byte_level(True))),
    "llama-bpe": Cut(
        (_split(rf"{_WORDS}\p{{N}}{{1,3}}{_REST}"), _byte_level(False)), ignore_merges=True, add_bos=True
    ),
    "qwen2": Cut((_split(rf"{_WORDS}\p{{N}}{_REST}"), _byte_level(False)), ("NFC",)),
}
# Other names of the same.
_SAME = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "starcoder": "smollm",
    "mpt": "gpt-2",
    "phi-2": "gpt-2",
}


def read(file: GGUFFile, num_rows: int, notes: list[str]) -> Tokenizer:
    """The tokenizer of a file; of kind `ids` where the file has none. Raises UserError for one that is not read."""
    kind = file.get(_MODEL, str, NONE)
    if kind in (NONE, "no_vocab"):
        return IdsTokenizer(num_rows)
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise UserError(
            f"{file.path} has a tokenizer {kind[:40]!r}: only {_BYTE_LEVEL!r} (byte-level BPE) and {_SENTENCEPIECE!r} "
            f"(SentencePiece's BPE) are read; {WITHOUT}"
        )
    if file.get("tokenizer.ggml.add_eos_token", bool, False):
        raise UserError(
            f"{file.path} has add_eos_token=true: it ends each text with a token, and only one before it is read here; {WITHOUT}"
        )
    document, end = _document(file, kind, notes)
    return tokenizer_files.from_document(file.path, document, num_rows, notes, end, WITHOUT)


def _document(file: GGUFFile, kind: str, notes: list[str]) -> tuple[dict[str, Any], str | None]:
    """The tokenizer.json of a file, and the text of its end of text."""
    tokens = file.get(_TOKENS, list)
    types = file.metadata.get(_TYPES, np.full(len(tokens), _NORMAL))
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise UserError(
            f"{file.path}: {_TYPES} is not a list of {len(tokens):,} numbers: give a complete GGUF file"
        )
    if len(set(tokens)) < len(tokens):
        raise UserError(f"{file.path}: {_TOKENS} has a token twice: give a complete GGUF file, or {WITHOUT}")
    by_type = {
        kind: [i for i, t in enumerate(types.tolist()) if t == kind]
        for kind in (_UNKNOWN, _CONTROL, _OWN, _UNUSED)
    }
    added = {tokens[i]: i for i in sorted(by_type[_UNKNOWN] + by_type[_CONTROL] + by_type[_OWN])}
    document = tokenizer_files.bpe_document([], [], added)
    control = {tokens[i] for i in by_type[_CONTROL]}
    unknown = [tokens[i] for i in by_type[_UNKNOWN]]
    for token in document["added_tokens"]:
        token["special"] = token["content"] in control or token["content"] in unknown
    unused = set(by_type[_UNUSED])
    document["model"]["vocab"] = {token: i for i, token in enumerate(tokens) if i not in unused}
    if kind == _SENTENCEPIECE:
        document |= _sentencepiece(file, document["model"], {*added}, unknown[0] if unknown else None)
        starts = True
    else:
        starts = _byte_pairs(file, document, notes)
    if file.get(_ADD_BOS, bool, starts):
        start = special(file, "bos_token")
        if start is None or start not in added:
            raise UserError(
                f"{file.path} puts a token before each text, but its bos_token_id is not a special token; {WITHOUT}"
            )
        document["post_processor"] = tokenizer_files.start_template(start, added[start])
    end = file.metadata.get("tokenizer.ggml.eos_token_id")
    known = type(end) is int and end < len(tokens) and tokens[end] in control
    return document, tokens[end] if known else None


def _byte_pairs(file: GGUFFile, document: dict[str, Any], notes: list[str]) -> bool:
    """Write a file's merges and its way to cut text into a tokenizer.json. Returns whether that way has a BOS by itself."""
    merges = [merge.split(" ") for merge in file.get("tokenizer.ggml.merges", list)]
    for pair in merges:
        if len(pair) != 2 or not all(pair):
            raise UserError(
                f"{file.path}: {' '.join(pair)[:40]!r} in its merges is not a pair of tokens; {WITHOUT}"
            )
    cut = _cut(file, notes)
    document["model"]["merges"] = merges
    if cut.ignore_merges:
        document["model"]["ignore_merges"] = True
    document["pre_tokenizer"] = _sequence(cut.steps, "pretokenizers")
    document["normalizer"] = _sequence(tuple({"type": name} for name in cut.normalizers), "normalizers")
    return cut.add_bos


def _sentencepiece(
    file: GGUFFile, model: dict[str, Any], added: set[str], unknown: str | None
) -> dict[str, Any]:
    """The parts of a tokenizer.json for SentencePiece's BPE: of all pairs that make a token, the one whose token has the
    highest score is joined first. What is no token is written in bytes.
    """
    vocab = model["vocab"]
    scores = file.get("tokenizer.ggml.scores", np.ndarray)
    if len(scores) != len(file.get(_TOKENS, list)) or not np.isfinite(scores).all():
        raise UserError(f"{file.path}: tokenizer.ggml.scores is not one number for each token; {WITHOUT}")
    if (longest := max(map(len, vocab), default=0)) > _LONGEST:
        raise UserError(
            f"{file.path} has a token of {longest:,} characters: at most {_LONGEST:,} are read; {WITHOUT}"
        )
    merges = [
        [token[:at], token[at:]]
        for token in sorted(vocab.keys() - added, key=lambda token: (-scores[vocab[token]], vocab[token]))
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab and not added & {token[:at], token[at:]}
    ]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    before = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    return {
        "model": model | {"merges": merges, "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
        "normalizer": _sequence(
            ({"type": "Prepend", "prepend": _SPACE}, space) if before else (space,), "normalizers"
        ),
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [*back, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if before else back,
        },
    }


def special(file: GGUFFile, name: str) -> str | None:
    """A special token by its name, such as bos_token; None where the file names none."""
    i, tokens = file.metadata.get(f"tokenizer.ggml.{name}_id"), file.get(_TOKENS, list)
    return tokens[i] if type(i) is int and 0 <= i < len(tokens) else None


def _cut(file: GGUFFile, notes: list[str]) -> Cut:
    name = file.get("tokenizer.ggml.pre", str, "")
    if not name:
        notes.append("tokenizer.ggml.pre is missing: text is cut as GPT-2's tokenizer does")
    found = CUTS.get(_SAME.get(name or "gpt-2", name or "gpt-2"))
    if found is None:
        raise UserError(
            f"{file.path} cuts text as {name[:40]!r} (tokenizer.ggml.pre): only {', '.join([*CUTS, *_SAME])} are known; {WITHOUT}"
        )
    return found


def _sequence(parts: tuple[dict[str, Any], ...], name: str) -> dict[str, Any] | None:
    return {"type": "Sequence", name: list(parts)} if len(parts) > 1 else parts[0] if parts else None


# --- writing --------------------------------------------------------------------------------------------


def metadata(tokenizer: Tokenizer, num_rows: int) -> dict[str, Any]:
    """The keys of a tokenizer in a file with a table of `num_rows`. Raises UserError if it is not byte-level BPE."""
    if isinstance(tokenizer, IdsTokenizer):
        return {_MODEL: NONE}
    document = json.loads(tokenizer_files.exported(tokenizer))
    name = _name_of(tokenizer, document)
    added = document.get("added_tokens") or []
    tokens = [f"[PAD{i}]" for i in range(num_rows)]
    types = np.full(num_rows, _UNUSED)
    for token, i in [*document["model"]["vocab"].items(), *((t["content"], t["id"]) for t in added)]:
        tokens[i], types[i] = token, _NORMAL
    for token in added:
        types[token["id"]] = _CONTROL if token["special"] else _OWN
    merges = document["model"]["merges"]
    found = {
        _MODEL: _BYTE_LEVEL,
        "tokenizer.ggml.pre": name,
        _TOKENS: tokens,
        _TYPES: types.tolist(),
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        _ADD_BOS: tokenizer.bos_id is not None,
        "tokenizer.ggml.add_space_prefix": False,
    }
    if tokenizer.eos_id is not None:
        found |= dict.fromkeys(
            ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"), tokenizer.eos_id
        )
    if tokenizer.bos_id is not None:
        found["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    return found


def _name_of(tokenizer: Tokenizer, document: dict[str, Any]) -> str:
    """The name of a tokenizer's way to cut text. Raises UserError where it has none."""
    model = document["model"]
    refused = f"the tokenizer of this run ({tokenizer.kind}) can't be written into a GGUF file"
    if model["type"] != "BPE" or not any(
        s["type"] == "ByteLevel" for s in steps(document.get("pre_tokenizer"), "pretokenizers")
    ):
        raise UserError(f"{refused}: only byte-level BPE can; give --no_tokenizer to leave it out")
    kept = ("type", "pattern", "behavior", "invert", "individual_digits", "use_regex", "add_prefix_space")

    def plain(parts: Any) -> list[dict[str, Any]]:
        return [
            {"use_regex": True} | {k: s[k] for k in kept if k in s}
            if s["type"] == "ByteLevel"
            else {k: s[k] for k in kept if k in s}
            for s in parts
        ]

    cutters = plain(steps(document.get("pre_tokenizer"), "pretokenizers"))
    normalizers = tuple(step["type"] for step in steps(document.get("normalizer"), "normalizers"))
    others = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    for name, cut in CUTS.items():
        same = plain(cut.steps) == cutters and cut.normalizers == normalizers
        if (
            same
            and cut.ignore_merges == bool(model.get("ignore_merges"))
            and not any(model.get(o) for o in others)
        ):
            return name
    raise UserError(
        f"{refused}: it cuts text in none of the ways that have a name there ({', '.join(CUTS)}); give --no_tokenizer to leave it out"
    )
