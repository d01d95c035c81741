"""Token ids on disk: the folder of a prepared text, its checksums, and the parts that training and evaluation map."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.common import causes
from jaxgpt.common.files import new_folder, read_json
from jaxgpt.config import UserError
from jaxgpt.data import shards, tokenizers

AT_ONCE = 1 << 30  # bytes of ids that are checked before anything else: a fraction of a second
ABANDONED_AFTER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Split:
    """The training or the validation part of a text, as token ids.

    ids: [N] uint16 or uint32, mapped from disk, read-only. num_chars, num_bytes: length of the encoded text in
    characters and in UTF-8 bytes; 0 where only its ids are known. counts: [N] uint8, 1 for an id that is to be predicted
    (see conversations.py), and `counted` how many these are; None and 0 where all are.
    """

    ids: shards.Plain
    num_chars: int = 0
    num_bytes: int = 0
    counts: shards.Plain | None = None
    counted: int = 0

    @property
    def targets(self) -> shards.Ids:
        """The ids, with those that do not count marked: what training and evaluation read."""
        return self.ids if self.counts is None else shards.Marked(self.ids, self.counts)


@dataclass(frozen=True)
class ValidationText:
    """A validation text with a name: of data.valid_paths, or the validation split of a source."""

    name: str
    split: Split
    sha256: str


@dataclass(frozen=True)
class Source:
    """A source of a mixture: the number of its training ids, and the hash of its text."""

    name: str
    num_ids: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A tokenized text. text_sha256 is the hash of its UTF-8 bytes, fingerprint that of the tokenizer.

    Of a mixture `train` has the ids of its sources one after another, and `valid` their validation splits.
    """

    train: Split
    valid: Split
    tokenizer: tokenizers.Tokenizer
    corpus_name: str
    text_sha256: str
    fingerprint: str
    verified: Future[None] | None = None  # the check of the ids' files, while it runs next to other work
    valid_sha256: str | None = None  # the hash of data.valid_path
    named: tuple[ValidationText, ...] = ()
    sources: tuple[Source, ...] = ()
    parts: tuple[Dataset, ...] = ()  # the datasets that it is made of

    def check_verified(self) -> None:
        """Wait for the check of the ids. Raises UserError where they are not what was written. Call it before a save."""
        if self.verified is not None:
            self.verified.result()
        for dataset in self.parts:
            dataset.check_verified()

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of training ids of the sources; empty without a mixture."""
        return tuple(source.num_ids for source in self.sources)

    def first_train_ids(self, most: int) -> np.ndarray:
        """The first training ids, at most so many; of a mixture the first of each source, by its part of all ids."""
        total = len(self.train.ids)
        if not self.sources or total <= most:
            return np.asarray(self.train.ids[:most])
        ends = np.cumsum(self.lengths).tolist()
        starts = [0, *ends[:-1]]
        return np.concatenate(
            [self.train.ids[a : a + most * (b - a) // total] for a, b in zip(starts, ends, strict=True)]
        )

    def facts(self) -> dict[str, Any]:
        """The record of the data in run.json."""
        more: dict[str, Any] = {}
        if self.valid_sha256 is not None:
            more["valid_text_sha256"] = self.valid_sha256
        if self.named:
            more["valid_texts"] = {
                text.name: {"text_sha256": text.sha256, "tokens": len(text.split.ids)} for text in self.named
            }
        if self.sources:
            more["sources"] = {
                source.name: {"text_sha256": source.sha256, "train_tokens": source.num_ids}
                for source in self.sources
            }
        return {
            "corpus": self.corpus_name,
            "text_sha256": self.text_sha256,
            "tokenizer": self.tokenizer.kind,
            "tokenizer_sha256": self.fingerprint,
            "vocab_size": self.tokenizer.vocab_size,
            "train_tokens": len(self.train.ids),
            "valid_tokens": len(self.valid.ids),
            **({} if self.train.counts is None else {"train_targets": self.train.counted}),
            **more,
        }


@contextlib.contextmanager
def new_ids_folder(folder: Path) -> Iterator[Path]:
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


def ids_dtype(tokenizer: tokenizers.Tokenizer) -> np.dtype:
    """The type that ids are stored in."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def _remove_abandoned(root: Path):
    """Remove the temporary folders of killed processes. A folder in use has a recently written file."""
    for folder in root.glob("tmp-*"):
        with contextlib.suppress(OSError):  # its owner may finish at this moment
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if newest < time.time() - ABANDONED_AFTER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def open_folder(folder: Path, corpus_name: str, text_sha256: str) -> Dataset:
    """The dataset of a folder. Raises UserError where its files are not what was written."""
    try:
        meta = read_json(folder / "meta.json")
        fingerprint = meta["fingerprint"]
        tokenizer = tokenizers.load(folder / "tokenizer.json")
        if tokenizers.fingerprint(tokenizer) != fingerprint:
            raise ValueError("tokenizer.json is not the tokenizer of meta.json")
        sums = {name: meta["splits"][name].pop("crc32", None) for name in ("train", "valid")}
        train, valid = (
            _open_split(folder / f"{name}.bin", ids_dtype(tokenizer), **meta["splits"][name])
            for name in ("train", "valid")
        )
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise UserError(f"cached token ids can't be read: {causes.describe(error)}") from error
        raise UserError(
            f"cached token ids are damaged ({error}): delete the folder {folder} and run again"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        detail = f"no {error} in meta.json" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"cached token ids are damaged ({detail}): delete the folder {folder} and run again"
        ) from error
    if None in sums.values():  # of an earlier version, which wrote no checksums
        return Dataset(train, valid, tokenizer, corpus_name, text_sha256, fingerprint)

    def verify() -> None:
        for name, split in (("train", train), ("valid", valid)):
            found = zlib.crc32(np.ascontiguousarray(split.ids).data)
            if split.counts is not None:
                found = zlib.crc32(np.ascontiguousarray(split.counts).data, found)
            if found != sums[name]:
                raise UserError(
                    f"cached token ids are damaged (the checksum of {name}.bin does not match): delete the folder {folder} and "
                    "run again"
                )

    return Dataset(
        train, valid, tokenizer, corpus_name, text_sha256, fingerprint, check_ids((train, valid), verify)
    )


def check_ids(splits: Iterable[Split], verify: Callable[[], None]) -> Future[None] | None:
    """Run a check of ids: at once for up to AT_ONCE bytes, else next to other work. Raises what it raises."""
    if sum(len(split.ids) * split.ids.dtype.itemsize for split in splits) <= AT_ONCE:
        verify()
        return None
    done: Future[None] = Future()

    def run() -> None:
        try:
            verify()
            done.set_result(None)
        except BaseException as error:  # raised where the result is asked for
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="check of ids").start()
    return done


def _open_split(
    path: Path, dtype: np.dtype, num_ids: int, num_chars: int, num_bytes: int, counted: int | None = None
) -> Split:
    ids = _mapped(path, dtype, num_ids)
    if counted is None:
        return Split(ids, num_chars, num_bytes)
    counts = _mapped(path.with_name(counts_name(path.stem)), np.dtype("u1"), num_ids)
    return Split(ids, num_chars, num_bytes, counts, counted)


def counts_name(split: str) -> str:
    """The file that says which ids of a split count."""
    return f"{split}.counts.bin"


def _mapped(path: Path, dtype: np.dtype, num_ids: int) -> np.ndarray:
    found, expected = path.stat().st_size, num_ids * dtype.itemsize
    if found != expected:
        raise ValueError(
            f"{path.name} has {found} bytes, not {expected} ({num_ids} ids of {dtype.itemsize} bytes)"
        )
    if num_ids == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    # A plain view of the map: indexing the np.memmap subclass costs several microseconds more.
    return np.asarray(np.memmap(path, dtype, mode="r"))
