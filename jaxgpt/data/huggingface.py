"""Tokenizers of published models: any `tokenizer.json` of the Hugging Face libraries, through the package tokenizers.

Normalizer, pre-tokenizer, model and added tokens work as they are. A special token that stands in a text is encoded as text,
so that no document can contain one by accident: see special_tokens.py. Nothing is put around a text, except where a model is
imported that was trained with a token before each text (BOS): then a run has that token as `begin_of_text`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxgpt.common.files import read_json
from jaxgpt.config import UserError
from jaxgpt.config.errors import first_line
from jaxgpt.data import byte_pairs
from jaxgpt.data.text_pieces import Piece, between_tokens, check_text, joined
from jaxgpt.data.tokenizer import MAX_IDS, Tokenizer, check_fields

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# Names of the token between two documents, the first that a vocabulary has.
END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eot_id|>",
    "<|im_end|>",
    "<EOT>",
    "[SEP]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek's
)
# Parts that change no character next to a space, so that text may be cut before one.
_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}


class HuggingFaceTokenizer(Tokenizer):
    """A published tokenizer.

    `decode` gives what the package gives. Where a normalizer changes text (lower case, accents), it is the changed
    text. `decode_bytes` joins the bytes of the single tokens: it can be cut anywhere, which a stream needs, and may
    differ from `decode` in a space at the start.
    """

    kind = "huggingface"

    def __init__(
        self,
        document: dict[str, Any],
        end_of_text: str | None,
        special_tokens_in_text: bool = False,
        begin_of_text: str | None = None,
    ) -> None:
        self._document, self._end_of_text, self._begin_of_text = document, end_of_text, begin_of_text
        self._built = _build(document)
        tokens = self._built.get_vocab(with_added_tokens=True)
        if not tokens or max(tokens.values()) >= MAX_IDS or len(set(tokens.values())) < len(tokens):
            raise UserError(
                f"its ids are not different numbers from 0 to {MAX_IDS - 1:,}: give a complete vocabulary"
            )
        bytes_of = _bytes_of(document)
        table = [b""] * (max(tokens.values()) + 1)  # ids without a token have no bytes
        for token, i in tokens.items():
            table[i] = bytes_of(token)
        super().__init__(table)
        self.eos_id = None if end_of_text is None else tokens.get(end_of_text)
        if end_of_text is not None and self.eos_id is None:
            raise UserError(f"its end of text {end_of_text!r} is not one of its tokens")
        self.bos_id = None if begin_of_text is None else tokens.get(begin_of_text)
        if begin_of_text is not None and self.bos_id is None:
            raise UserError(f"its token before each text, {begin_of_text!r}, is not one of its tokens")
        unknown = document["model"].get("unk_token")
        if (i := document["model"].get("unk_id")) is not None and document["model"]["type"] == "Unigram":
            unknown = document["model"]["vocab"][i][0]
        self.unk_id = tokens.get(unknown) if unknown else None
        self._cuts = _cuts_before_spaces(document)
        self.has_exact_lengths = _keeps_bytes(document)
        special = [t for t in document.get("added_tokens") or [] if t["special"]]
        self.special_ids = np.array(sorted({tokens[t["content"]] for t in special} - {self.unk_id}), np.int32)
        self._special_names = {t["content"]: tokens[t["content"]] for t in special}
        self._reads_special = special_tokens_in_text
        if special_tokens_in_text:
            self._built.encode_special_tokens = False
            # One that has a space, or takes those after it, may not be cut.
            self._cuts &= not any(t["rstrip"] or " " in t["content"] for t in special)

    def encode(self, text: str, position: int = 0) -> np.ndarray:
        check_text(text, position)
        return self._as_text(self._built.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_text(text)
        found = self._built.encode_batch_fast(texts, add_special_tokens=False)
        return [self._as_text(encoding.ids) for encoding in found]

    def with_special_tokens(self) -> HuggingFaceTokenizer:
        """The tokenizer that encodes the text of special tokens as these, as the package does."""
        return HuggingFaceTokenizer(self._document, self._end_of_text, True, self._begin_of_text)

    def _as_text(self, ids: list[int]) -> np.ndarray:
        """The ids, without special tokens: a Unigram model may have them among its pieces. They are unknown text."""
        found = np.array(ids, np.int32)
        if self._reads_special:
            return found
        wrong = np.isin(found, self.special_ids)
        if wrong.any():
            if self.unk_id is None:
                raise UserError(
                    f"the text has {self.token(int(found[wrong][0]))!r}, a special token of this tokenizer"
                )
            found[wrong] = self.unk_id
        return found

    def special_id(self, name: str) -> int | None:
        return self._special_names.get(name)

    def cut(self, pieces: Iterable[Piece]) -> Iterator[tuple[str, int]]:
        return between_tokens(pieces, before=" ") if self._cuts else joined(pieces)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        self.decode_bytes(ids)  # refuses ids that are none of its own
        ids = np.asarray(ids).reshape(-1).tolist()
        return self._built.decode(ids, skip_special_tokens=False)

    def token(self, i: int) -> str:
        return self.decode_bytes([i]).decode("utf-8", "backslashreplace")

    def to_json(self) -> dict[str, Any]:
        fields = {"kind": self.kind, "tokenizer": self._document, "end_of_text": self._end_of_text}
        return fields if self._begin_of_text is None else fields | {"begin_of_text": self._begin_of_text}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        types: dict[str, Any] = {"tokenizer": dict, "end_of_text": (str, type(None))}
        if "begin_of_text" in fields:
            types["begin_of_text"] = str
        check_fields(cls.kind, fields, types)
        return cls(fields["tokenizer"], fields["end_of_text"], begin_of_text=fields.get("begin_of_text"))


def load(path: str | Path) -> HuggingFaceTokenizer:
    """The tokenizer of a published `tokenizer.json`, of a folder with one, or of an earlier run.

    The end of text is the first of `END_OF_TEXT` that the vocabulary has as a special token, or the `eos_token` of the
    tokenizer_config.json in the same folder. Raises UserError.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file() or file.suffix == ".model":
        raise UserError(_missing(path, file))
    try:
        document = read_json(file)
        if isinstance(document, dict) and document.get("kind") == HuggingFaceTokenizer.kind:
            return HuggingFaceTokenizer.from_json(document)  # that of an earlier run
        if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
            raise ValueError("it has no model")
        return HuggingFaceTokenizer(document, end_of_text(document, file.with_name(SETTINGS)))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except ValueError as error:
        raise UserError(f"{file} is not a tokenizer.json of the package tokenizers ({error})") from error


def _missing(path: Path, file: Path) -> str:
    models = sorted(path.glob("*.model")) if path.is_dir() else [path] if path.suffix == ".model" else []
    if models:
        folder = models[0].absolute().parent
        program = (
            "from transformers import AutoTokenizer; "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder / 'converted')!r})"
        )
        return (
            f"{models[0]} is a SentencePiece model: convert it once, and give {folder / 'converted'}: "
            f"pip install transformers sentencepiece protobuf && {shlex.join(['python', '-c', program])}"
        )
    return f"{file} does not exist: give a tokenizer.json, or a folder with one, as data.tokenizer_path"


def _build(document: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as Built

    try:
        built = Built.from_str(json.dumps(document))
    except BaseException as error:  # a panic of the Rust code is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(f"the package tokenizers can't read it ({first_line(error)[:200]})") from error
    built.no_padding()
    built.no_truncation()
    built.encode_special_tokens = True
    return built


def end_of_text(document: dict[str, Any], settings: Path) -> str | None:
    """The text of the token between documents; None: not known. `settings` is the tokenizer_config.json."""
    added = document.get("added_tokens")
    added = added if isinstance(added, list) else []  # the package says what is wrong with it
    special = {t.get("content") for t in added if isinstance(t, dict) and t.get("special") is True}
    for name in END_OF_TEXT:
        if name in special:
            return name
    if not settings.is_file():
        return None
    values = read_json(settings)
    token = values.get("eos_token") if isinstance(values, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if token in special else None


# --- parts of a tokenizer.json --------------------------------------------------------------------------


def steps(part: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder: a sequence is its members, none is no step."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [step for inner in part[name] for step in steps(inner, name)]
    return [part]


def _cuts_before_spaces(document: dict[str, Any]) -> bool:
    """Whether text may be cut before a space that follows another character: GPT-2's pattern, and what it leaves alone."""
    normalizers = {step["type"] for step in steps(document.get("normalizer"), "normalizers")}
    cutters = steps(document.get("pre_tokenizer"), "pretokenizers")
    gpt2 = [step for step in cutters if step["type"] == "ByteLevel" and step.get("use_regex", True)]
    others = {step["type"] for step in cutters} - {"ByteLevel", "Digits"}
    prefixed = any(step.get("add_prefix_space") for step in cutters)
    return normalizers <= _LOCAL_NORMALIZERS and bool(gpt2) and not others and not prefixed


def _keeps_bytes(document: dict[str, Any]) -> bool:
    """Whether the bytes of the tokens are those of the text: byte pairs of every byte, and nothing that changes text."""
    cutters = steps(document.get("pre_tokenizer"), "pretokenizers")
    byte_level = [step for step in cutters if step["type"] == "ByteLevel"]
    return (
        not steps(document.get("normalizer"), "normalizers")
        and bool(byte_level)
        and not any(step.get("add_prefix_space") for step in byte_level)
        and {step["type"] for step in cutters} <= {"ByteLevel", "Digits", "Split"}
        and all(step["behavior"] != "Removed" for step in cutters if step["type"] == "Split")
        and set(byte_pairs.BYTE_ALPHABET) <= set(document["model"]["vocab"])
        and not any(t["lstrip"] or t["rstrip"] for t in document.get("added_tokens") or [])
    )


def _bytes_of(document: dict[str, Any]) -> Callable[[str], bytes]:
    """The bytes that a token stands for within a text, by the steps of the decoder."""
    added = {t["content"] for t in document.get("added_tokens") or []}
    decoders = steps(document.get("decoder"), "decoders")
    kinds = [step["type"] for step in decoders]
    alphabet = set(byte_pairs.BYTE_ALPHABET)

    def one(token: str) -> bytes:
        if token in added:
            return token.encode()
        text = token if decoders else f" {token}"
        for step in decoders:
            kind = step["type"]
            if kind == "ByteLevel" and alphabet >= set(text):
                return byte_pairs.token_bytes(text)
            if kind == "ByteFallback" and len(text) == 6 and text[:3] == "<0x" and text[5] == ">":
                return bytes.fromhex(text[3:5])
            if kind == "Replace" and "String" in step["pattern"]:
                text = text.replace(step["pattern"]["String"], step["content"])
            elif kind == "Metaspace":
                text = text.replace(step["replacement"], " ")
            elif kind == "WordPiece":
                inside = text.startswith(step["prefix"])
                text = text.removeprefix(step["prefix"]) if inside else f" {text}"
            elif kind == "BPEDecoder":
                text = text.replace(step["suffix"], " ")
        return text.encode()

    if unknown := set(kinds) - {
        "ByteLevel", "ByteFallback", "Replace", "Metaspace", "WordPiece", "BPEDecoder", "Fuse", "Strip",
    }:  # fmt: skip
        raise UserError(f"its decoder {', '.join(sorted(unknown))} is not known here")
    return one
