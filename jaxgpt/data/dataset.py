"""Text -> token ids on disk.

`prepare_dataset` encodes a text once and keeps the ids in the cache folder; later runs map that file into memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgpt import config
from jaxgpt.common.files import cache_dir, new_folder, read_json, write_atomically, write_json
from jaxgpt.config import UserError
from jaxgpt.data import corpora, shards, tokenizers

# Part of every cache key. Raise it when the files change, or the ids that a tokenizer gives.
CACHE_VERSION = 1
ABANDONED_AFTER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Split:
    """The training or the validation part of a text, as token ids.

    ids: [N] uint16 or uint32, mapped from disk, read-only. num_chars, num_bytes: length of the encoded text in
    characters and in UTF-8 bytes; 0 where only its ids are known.
    """

    ids: shards.Ids
    num_chars: int = 0
    num_bytes: int = 0


@dataclass(frozen=True)
class Dataset:
    """A tokenized text. text_sha256 is the hash of its UTF-8 bytes, fingerprint that of the tokenizer."""

    train: Split
    valid: Split
    tokenizer: tokenizers.Tokenizer
    corpus_name: str
    text_sha256: str
    fingerprint: str

    def facts(self) -> dict[str, str | int]:
        """The record of the data in run.json."""
        return {
            "corpus": self.corpus_name,
            "text_sha256": self.text_sha256,
            "tokenizer": self.tokenizer.kind,
            "tokenizer_sha256": self.fingerprint,
            "vocab_size": self.tokenizer.vocab_size,
            "train_tokens": len(self.train.ids),
            "valid_tokens": len(self.valid.ids),
        }


# ---- text -> ids on disk


class _Meter:
    """Counts and hashes the text that passes through it."""

    def __init__(self):
        self.sha256 = hashlib.sha256()
        self.num_chars = 0
        self.num_bytes = 0

    def through(self, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            utf8 = piece.encode("utf-8")
            self.sha256.update(utf8)
            self.num_chars += len(piece)
            self.num_bytes += len(utf8)
            yield piece


def _characters(pieces: Iterable[str], start: int, stop: int) -> Iterator[str]:
    """The characters [start, stop) of the joined pieces."""
    position = 0
    for piece in pieces:
        if position >= stop:
            return
        if part := piece[max(start - position, 0) : stop - position]:
            yield part
        position += len(piece)


def prepare_dataset(cfg: config.DataConfig) -> Dataset:
    """The dataset of a config, from the cache if an earlier run has prepared it.

    The first int(num_chars * (1 - valid_fraction)) characters are for training, the rest for validation. The text is
    cut by characters, so that different tokenizers are compared on the same validation text. The text is read (for
    its hash) only where its files have changed, and tokenized only where text, tokenizer or split are new.

    Raises UserError for an empty split, a tokenizer that does not fit the config, a cache folder that cannot be
    written, and damaged files in the cache.
    """
    if cfg.path and (found := shards.find(cfg.path)):
        return _of_shards(cfg, found)
    corpus = corpora.open_corpus(cfg.corpus, cfg.path)
    text = _measure(corpus)
    num_train = _num_train_chars(text.num_chars, cfg.valid_fraction)
    loaded = _load_tokenizer(cfg)
    tokenizer_spec = [cfg.tokenizer, cfg.vocab_size if loaded is None else tokenizers.fingerprint(loaded)]
    if cfg.add_tokens:
        tokenizer_spec += ["added", cfg.vocab_size]
    key = json.dumps([CACHE_VERSION, text.sha256, tokenizer_spec, float(cfg.valid_fraction)])
    folder = cache_dir() / "data" / hashlib.sha256(key.encode()).hexdigest()
    if not os.path.isdir(folder):
        with _new_folder(folder) as temporary:
            tokenizer = _train_tokenizer(cfg, corpus.read, num_train, loaded)
            try:
                _write_files(temporary, corpus.read, tokenizer, num_train, text)
            except UserError as error:
                if loaded is None or cfg.tokenizer != "char" or cfg.add_tokens:
                    raise
                or_add = "or add a token for it with data.add_tokens=true"
                raise UserError(f"data.tokenizer_path={cfg.tokenizer_path!r}: {error}, {or_add}") from error
    return _open_folder(folder, corpus.name, text.sha256)


def _of_shards(cfg: config.DataConfig, found: shards.Found) -> Dataset:
    """The dataset of token shards, which are mapped where they are."""
    tokenizer = _load_tokenizer(cfg)
    if tokenizer is None:
        raise UserError(
            f"data.path={cfg.path!r} has token ids, which data.tokenizer={cfg.tokenizer!r} can't be trained on: name the "
            "tokenizer that made them, such as data.tokenizer='gpt2', or give its file as data.tokenizer_path"
        )
    files = (*found.train, *found.valid)
    train = shards.open_ids(found.train)
    if found.valid:
        valid = shards.open_ids(found.valid)
    else:
        num_train = int(len(train) * (1 - cfg.valid_fraction))
        train, valid = shards.part(train, 0, num_train), shards.part(train, num_train, len(train))
    fingerprint = shards.fingerprint(files)
    _check_ids(files, (train, valid), fingerprint, tokenizer)
    name = cfg.path if len(files) == 1 else f"{cfg.path} ({len(files)} shards)"
    return Dataset(
        Split(train), Split(valid), tokenizer, name, fingerprint, tokenizers.fingerprint(tokenizer)
    )


def _check_ids(
    files: tuple[Path, ...], splits: tuple[shards.Ids, ...], fingerprint: str, tokenizer: tokenizers.Tokenizer
) -> None:
    """Raise UserError for an id that the tokenizer does not have. Shards are read for it once."""
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = repr([CACHE_VERSION, fingerprint, stats, tokenizer.vocab_size])
    note = cache_dir() / "checked" / hashlib.sha256(key.encode()).hexdigest()
    if note.is_file():
        return
    least, most = min(map(shards.smallest, splits)), max(map(shards.largest, splits))
    if least < 0 or most >= tokenizer.vocab_size:
        wrong = least if least < 0 else most
        raise UserError(
            f"{files[0].parent} has the token id {wrong}, but the {tokenizer.kind} tokenizer has 0 to "
            f"{tokenizer.vocab_size - 1}: name the tokenizer that made these ids as data.tokenizer"
        )
    with contextlib.suppress(OSError):  # only the next start takes longer
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, b"")


@dataclass(frozen=True)
class _Measures:
    """The hash and the lengths of a text."""

    sha256: str
    num_chars: int
    num_bytes: int


def _measure(corpus: corpora.Corpus) -> _Measures:
    """Measured by reading the text, or from a note in the cache where its files have not changed."""
    note = cache_dir() / "texts" / f"{corpus.state()}.json" if corpus.files else None
    if note is not None and note.is_file():
        with contextlib.suppress(OSError, ValueError, TypeError):
            return _Measures(**json.loads(note.read_bytes()))
    text = _Meter()
    for _ in text.through(corpus.read()):
        pass
    measures = _Measures(text.sha256.hexdigest(), text.num_chars, text.num_bytes)
    if note is not None:
        with contextlib.suppress(OSError):  # `_new_folder` reports a cache that can't be written
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, json.dumps(dataclasses.asdict(measures)).encode())
    return measures


def _num_train_chars(num_chars: int, valid_fraction: float) -> int:
    num_train = int(num_chars * (1 - valid_fraction)) if 0 < valid_fraction < 1 else 0
    if not 0 < num_train < num_chars:
        raise UserError(
            f"data.valid_fraction={valid_fraction} leaves the training or the validation split of a text of "
            f"{num_chars} characters empty: give a fraction between 0 and 1, or a longer text"
        )
    return num_train


def _load_tokenizer(cfg: config.DataConfig) -> tokenizers.Tokenizer | None:
    """The existing tokenizer that the config names, or None where one is to be trained."""
    if cfg.tokenizer == "gpt2" and not os.path.isfile(cfg.tokenizer_path):
        tokenizer: tokenizers.Tokenizer = tokenizers.load_gpt2(cfg.tokenizer_path)
    elif cfg.tokenizer == "huggingface":
        from jaxgpt.data import huggingface

        tokenizer = huggingface.load(cfg.tokenizer_path)
    elif cfg.tokenizer_path:
        tokenizer = tokenizers.load(cfg.tokenizer_path)
    else:
        return None
    given = f"data.tokenizer_path={cfg.tokenizer_path!r}"
    if tokenizer.kind != cfg.tokenizer:
        raise UserError(
            f"{given} is a {tokenizer.kind!r} tokenizer, but data.tokenizer={cfg.tokenizer!r}: "
            f"set data.tokenizer={tokenizer.kind!r} or give another file"
        )
    found, wanted = tokenizer.vocab_size, cfg.vocab_size
    if wanted is not None and (found > wanted or (cfg.tokenizer == "gpt2" and found != wanted)):
        raise UserError(
            f"data.vocab_size={wanted}, but the {cfg.tokenizer!r} tokenizer of {given} has {found} tokens: "
            f"leave data.vocab_size unset or choose another tokenizer"
        )
    return tokenizer


def _train_tokenizer(
    cfg: config.DataConfig, read: Callable, num_train: int, loaded: tokenizers.Tokenizer | None
) -> tokenizers.Tokenizer:
    """The loaded tokenizer, with more tokens if the config asks for them; without one, a new tokenizer."""
    if loaded is not None and not cfg.add_tokens:
        return loaded

    def read_training_text() -> Iterator[str]:
        return _characters(read(), 0, num_train)

    # Words and merges are learned from the training text only: validation text that they were learned from would be
    # encoded in fewer tokens than new text. A set of characters says nothing about what comes next, but a character
    # without a token could not be encoded at all.
    read_text = read if cfg.tokenizer == "char" else read_training_text
    if loaded is not None:
        return loaded.extended(read_text, cfg.vocab_size)
    return tokenizers.train(cfg.tokenizer, read_text, cfg.vocab_size)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` at the end: complete or not at all.

    Where two processes prepare the same data, the first rename wins and the other process uses its result.
    """
    try:
        _remove_abandoned(folder.parent)
        with new_folder(folder) as temporary:
            yield temporary
    except OSError as error:
        if not folder.is_dir():  # else another process was first
            raise UserError(
                f"cannot write token ids to {folder.parent} ({error}): make room or give write access there, or "
                f"set JAXGPT_CACHE to another folder"
            ) from error


def _ids_dtype(tokenizer: tokenizers.Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def _write_files(
    folder: Path, read: Callable, tokenizer: tokenizers.Tokenizer, num_train: int, text: _Measures
):
    dtype = _ids_dtype(tokenizer)
    meter, chars_before, bytes_before, splits = _Meter(), 0, 0, {}
    for name, start, stop in (("train", 0, num_train), ("valid", num_train, text.num_chars)):
        num_ids = 0
        with open(folder / f"{name}.bin", "wb") as file:
            for ids in tokenizers.encode_pieces(tokenizer, meter.through(_characters(read(), start, stop))):
                file.write(np.ascontiguousarray(ids, dtype).data)
                num_ids += len(ids)
            file.flush()  # before the rename: a power cut must not leave a folder with empty files
            os.fsync(file.fileno())
        num_chars, num_bytes = meter.num_chars - chars_before, meter.num_bytes - bytes_before
        chars_before, bytes_before = meter.num_chars, meter.num_bytes
        splits[name] = {"num_ids": num_ids, "num_chars": num_chars, "num_bytes": num_bytes}
    if meter.sha256.hexdigest() != text.sha256:
        raise UserError(
            f"the text changed while it was being read ({text.num_bytes} bytes, then {meter.num_bytes}): "
            f"run again when nothing writes to it"
        )
    tokenizers.save(tokenizer, folder / "tokenizer.json")
    meta = {"fingerprint": tokenizers.fingerprint(tokenizer), "splits": splits}
    write_json(folder / "meta.json", meta)


def _remove_abandoned(root: Path):
    """Remove the temporary folders of killed processes. A folder in use has a recently written file."""
    for folder in root.glob("tmp-*"):
        with contextlib.suppress(OSError):  # its owner may finish at this moment
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if newest < time.time() - ABANDONED_AFTER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _open_folder(folder: Path, corpus_name: str, text_sha256: str) -> Dataset:
    try:
        meta = read_json(folder / "meta.json")
        fingerprint = meta["fingerprint"]
        tokenizer = tokenizers.load(folder / "tokenizer.json")
        if tokenizers.fingerprint(tokenizer) != fingerprint:
            raise ValueError("tokenizer.json is not the tokenizer of meta.json")
        train, valid = (
            _open_split(folder / f"{name}.bin", _ids_dtype(tokenizer), **meta["splits"][name])
            for name in ("train", "valid")
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        detail = f"no {error} in meta.json" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"cached token ids are damaged ({detail}): delete the folder {folder} and run again"
        ) from error
    return Dataset(train, valid, tokenizer, corpus_name, text_sha256, fingerprint)


def _open_split(path: Path, dtype: np.dtype, num_ids: int, num_chars: int, num_bytes: int) -> Split:
    found, expected = path.stat().st_size, num_ids * dtype.itemsize
    if found != expected:
        raise ValueError(
            f"{path.name} has {found} bytes, not {expected} ({num_ids} ids of {dtype.itemsize} bytes)"
        )
    if num_ids == 0:  # an empty file cannot be mapped
        return Split(np.zeros(0, dtype), num_chars, num_bytes)
    # A plain view of the map: indexing the np.memmap subclass costs several microseconds more.
    return Split(np.asarray(np.memmap(path, dtype, mode="r")), num_chars, num_bytes)


def check_windows(dataset: Dataset, context_length: int) -> None:
    """Raises UserError for a split that is too short: training needs a window, validation a prediction."""
    for name, found, needed, reason in (
        ("training", len(dataset.train.ids), context_length + 1, "context_length + 1"),
        ("validation", len(dataset.valid.ids), 2, "one input and one target"),
    ):
        if found < needed:
            raise UserError(
                f"the {name} split of {dataset.corpus_name!r} has {found} tokens and needs {needed} "
                f"({reason}): use a longer text, a smaller model.context_length={context_length} or another "
                f"data.valid_fraction"
            )
