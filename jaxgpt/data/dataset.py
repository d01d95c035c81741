"""Text -> token ids on disk.

`prepare_dataset` encodes a text once and keeps the ids in the cache folder; later runs map that file into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxgpt import config
from jaxgpt.common.files import cache_dir, expand, write_atomically, write_json
from jaxgpt.common.progress import reported
from jaxgpt.common.say import count
from jaxgpt.config import UserError
from jaxgpt.config.sources import CORPUS
from jaxgpt.data import corpora, documents, encoding, shards, special_tokens, tokenizers
from jaxgpt.data.id_files import (
    Dataset,
    Split,
    check_ids,
    counts_name,
    ids_dtype,
    new_ids_folder,
    open_folder,
)
from jaxgpt.data.measures import Measures, Meter, cut, measure, num_train_chars
from jaxgpt.data.text_pieces import Piece

# Part of every cache key. Raise it when the files change, or the ids that a tokenizer gives.
CACHE_VERSION = 1


def prepare_dataset(cfg: config.DataConfig, num_workers: int = 0) -> Dataset:
    """The dataset of a config, from the cache if an earlier run has prepared it: see `prepare_text`.

    Several texts, of a mixture or for validation, are prepared one by one: see sources.py.
    """
    if cfg.mixture or cfg.valid_path or cfg.valid_paths:
        from jaxgpt.data import sources

        return sources.prepare(cfg, num_workers)
    return prepare_text(cfg, num_workers)


def prepare_text(
    cfg: config.DataConfig,
    num_workers: int = 0,
    tokenizer: tokenizers.Tokenizer | None = None,
    complete: bool = False,
    given: str = "data.path",
) -> Dataset:
    """The dataset of one text. A `complete` text is not cut: all of it is the training split.

    The first int(num_chars * (1 - valid_fraction)) characters are for training, the rest for validation. The text is
    cut by characters, so that different tokenizers are compared on the same validation text; no document is cut. The
    text is read (for its hash) only where its files have changed, and tokenized only where text, tokenizer or split are
    new, by `num_workers` processes (0: this one).

    Raises UserError for an empty split, a tokenizer that does not fit the config, a cache folder that cannot be
    written, and damaged files in the cache.
    """
    loaded = tokenizer
    if cfg.path and (found := shards.find(cfg.path, given)):
        return _of_shards(cfg, found, loaded or load_tokenizer(cfg), complete, given)
    corpus = open_text(cfg, given)
    text = measure(corpus)
    valid_fraction = 0.0 if complete else float(cfg.valid_fraction)
    num_train = (
        text.num_chars if complete else num_train_chars(text, valid_fraction, corpus.has_documents, given)
    )
    loaded = loaded or load_tokenizer(cfg)
    tokenizer_spec = [cfg.tokenizer, cfg.vocab_size if loaded is None else tokenizers.fingerprint(loaded)]
    if cfg.add_tokens:
        tokenizer_spec += ["added", cfg.vocab_size]
    if corpus.has_documents:
        tokenizer_spec += ["documents", cfg.separator]
    if cfg.special_tokens_in_text:
        tokenizer_spec += ["special tokens in text"]
    if cfg.template:
        from jaxgpt.data import conversations

        tokenizer_spec += ["template", conversations.of_data(cfg).identity]
    key = json.dumps([CACHE_VERSION, text.sha256, tokenizer_spec, valid_fraction])
    folder = cache_dir() / "data" / hashlib.sha256(key.encode()).hexdigest()
    if not os.path.isdir(folder):
        with new_ids_folder(folder) as temporary:
            trained = train_tokenizer(cfg, [(corpus, num_train)], loaded)
            try:
                meter = Meter()
                part = lambda: meter.num_bytes / text.num_bytes  # noqa: E731
                with reported(f"encoding {corpus.name}", meter.state, part):
                    _write_files(temporary, cfg, corpus, trained, num_train, text, num_workers, meter)
            except UserError as error:
                if tokenizer is not None or loaded is None or cfg.tokenizer != "char" or cfg.add_tokens:
                    raise
                or_add = "or add a token for it with data.add_tokens=true"
                raise UserError(f"data.tokenizer_path={cfg.tokenizer_path!r}: {error}, {or_add}") from error
    return open_folder(folder, corpus.name, text.sha256)


def text_hash(cfg: config.DataConfig) -> str:
    """The hash of a config's text, as `Dataset.text_sha256`. Nothing of the text is shown."""
    if cfg.path and (found := shards.find(cfg.path)):
        return shards.fingerprint((*found.train, *found.valid))
    return measure(open_text(cfg)).sha256


def text_hashes(cfg: config.DataConfig) -> dict[str, str | None]:
    """The hashes of a config's texts, by their names in run.json."""
    if cfg.mixture or cfg.valid_path:
        from jaxgpt.data import sources

        return sources.hashes(cfg)
    return {"text_sha256": text_hash(cfg)}


def open_text(cfg: config.DataConfig, given: str = "data.path") -> corpora.Corpus:
    """The text of a config, with its documents where it has some. Raises UserError."""
    if not cfg.path:
        if given != "data.path" and cfg.corpus not in corpora.CORPORA:
            names = ", ".join(sorted(corpora.CORPORA))
            raise UserError(f"{given}='{CORPUS}{cfg.corpus}': choose one of {names}, or give a path")
        corpus = corpora.open_corpus(cfg.corpus, "")
        if corpus.records is None and not cfg.template:
            return corpus
        from jaxgpt.data import conversations

        return conversations.of_corpus(corpus, conversations.of_data(cfg) if cfg.template else None)
    if cfg.corpus == "tinyshakespeare":
        corpora.check_tiny_shakespeare(expand(cfg.path))
    return documents.open_documents(cfg.path, cfg, given)


def _of_shards(
    cfg: config.DataConfig,
    found: shards.Found,
    tokenizer: tokenizers.Tokenizer | None,
    complete: bool,
    given: str,
) -> Dataset:
    """The dataset of token shards, which are mapped where they are. Shards for validation are not trained on."""
    if tokenizer is None:
        raise UserError(
            f"{given}={cfg.path!r} has token ids, which data.tokenizer={cfg.tokenizer!r} can't be trained on: name the "
            "tokenizer that made them, such as data.tokenizer='gpt2', or give its file as data.tokenizer_path"
        )
    files = (*found.train, *found.valid)
    valid: shards.Plain
    train = shards.open_ids(found.train)
    if complete:
        files, valid = found.train, np.zeros(0, train.dtype)
    elif found.valid:
        valid = shards.open_ids(found.valid)
    else:
        num_train = int(len(train) * (1 - cfg.valid_fraction))
        train, valid = shards.part(train, 0, num_train), shards.part(train, num_train, len(train))
    fingerprint = shards.fingerprint((*found.train, *found.valid))
    splits = Split(train), Split(valid)
    checked = (train,) if complete else (train, valid)
    verified = check_ids(splits, lambda: check_range(files, checked, fingerprint, tokenizer))
    name = cfg.path if len(files) == 1 else f"{cfg.path} ({len(files)} shards)"
    return Dataset(*splits, tokenizer, name, fingerprint, tokenizers.fingerprint(tokenizer), verified)


def check_range(
    files: tuple[Path, ...],
    splits: tuple[shards.Plain, ...],
    fingerprint: str,
    tokenizer: tokenizers.Tokenizer,
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


def load_tokenizer(cfg: config.DataConfig) -> tokenizers.Tokenizer | None:
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
    if cfg.special_tokens_in_text:
        special_tokens.check(tokenizer)
    return tokenizer


def train_tokenizer(
    cfg: config.DataConfig,
    texts: Sequence[tuple[corpora.Corpus, int]],
    loaded: tokenizers.Tokenizer | None,
) -> tokenizers.Tokenizer:
    """The loaded tokenizer, with more tokens if the config asks for them; without one, a new tokenizer.

    It is trained on texts, each with the number of its characters in the training split.
    """
    if loaded is not None and not cfg.add_tokens:
        return loaded

    count = 0  # of characters

    def read() -> Iterator[Piece]:
        nonlocal count
        for piece in special_tokens.left_out(joined()) if cfg.special_tokens_in_text else joined():
            count += len(piece or "")
            yield piece

    def joined() -> Iterator[Piece]:
        for n, (corpus, num_train) in enumerate(texts):
            if n:
                yield None  # no token spans two texts
            # Words and merges are learned from the training text only: validation text that they were learned from would
            # be encoded in fewer tokens than new text. A set of characters says nothing about what comes next, but a
            # character without a token could not be encoded at all.
            if cfg.tokenizer == "char":
                yield from corpus.read()
            elif num_train:
                yield from cut(corpus.read(), num_train, corpus.has_documents)[0]

    has_documents = any(corpus.has_documents for corpus, _ in texts)
    end_of_text = cfg.special_tokens_in_text or (cfg.separator == "auto" and has_documents)
    if cfg.tokenizer == "bpe" and loaded is None:  # which shows its own progress
        return tokenizers.train(cfg.tokenizer, read, cfg.vocab_size, end_of_text)
    part = texts[0][0].part_read if len(texts) == 1 else None
    with reported(f"collecting {cfg.tokenizer}s", lambda: f"{count:,} characters read", part):
        if loaded is not None:
            return loaded.extended(read, cfg.vocab_size)
        return tokenizers.train(cfg.tokenizer, read, cfg.vocab_size, end_of_text)


def _write_files(
    folder: Path,
    cfg: config.DataConfig,
    corpus: corpora.Corpus,
    tokenizer: tokenizers.Tokenizer,
    num_train: int,
    text: Measures,
    num_workers: int,
    meter: Meter,
) -> None:
    dtype = ids_dtype(tokenizer)
    encoder = special_tokens.reader(tokenizer) if cfg.special_tokens_in_text else tokenizer
    separator = encoding.separator_ids(encoder, cfg.separator)
    chars_before, bytes_before, splits = 0, 0, {}
    parts = cut(corpus.read(), num_train, corpus.has_documents)
    for name, pieces in zip(("train", "valid"), parts, strict=True):
        metered = meter.through(pieces)
        if corpus.has_documents:
            encoded = encoding.encode_documents(
                tokenizer, metered, separator, num_workers, cfg.special_tokens_in_text
            )
        else:
            encoded = tokenizers.encode_pieces(encoder, metered)
        found = _write_ids(folder, name, encoded, dtype, with_counts=bool(cfg.template))
        num_chars, num_bytes = meter.num_chars - chars_before, meter.num_bytes - bytes_before
        chars_before, bytes_before = meter.num_chars, meter.num_bytes
        splits[name] = found | {"num_chars": num_chars, "num_bytes": num_bytes}
    if meter.sha256.hexdigest() != text.sha256:
        raise UserError(
            f"the text changed while it was being read ({text.num_bytes} bytes, then {meter.num_bytes}): "
            f"run again when nothing writes to it"
        )
    tokenizers.save(tokenizer, folder / "tokenizer.json")
    meta = {"fingerprint": tokenizers.fingerprint(tokenizer), "splits": splits}
    write_json(folder / "meta.json", meta)


def _write_ids(
    folder: Path, name: str, encoded: Iterable[np.ndarray], dtype: np.dtype, with_counts: bool
) -> dict[str, int]:
    """Write the ids of a split, and with_counts which of them count, as `id_files` reads them. Returns their facts."""
    num_ids = counted = crc = 0
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open(folder / f"{name}.bin", "wb"))
        other = opened.enter_context(open(folder / counts_name(name), "wb")) if with_counts else None
        for ids in encoded:
            content = np.ascontiguousarray(shards.unmarked(ids), dtype).data
            file.write(content)
            crc = zlib.crc32(content, crc)
            num_ids += len(ids)
            if other is not None:
                counts = (ids >= 0).astype(np.uint8)
                other.write(counts.data)
                counted += int(counts.sum())
        for one in (file, other):
            if one is not None:
                one.flush()  # before the rename: a power cut must not leave a folder with empty files
                os.fsync(one.fileno())
    if not with_counts:
        return {"num_ids": num_ids, "crc32": crc}
    if num_ids:  # an empty file cannot be mapped
        crc = zlib.crc32(np.memmap(folder / counts_name(name), np.uint8, mode="r").data, crc)
    return {"num_ids": num_ids, "counted": counted, "crc32": crc}


def check_windows(dataset: Dataset, context_length: int) -> None:
    """Raises UserError for a split that is too short: training needs a window, validation a prediction."""
    window = (context_length + 1, "context_length + 1")
    prediction = (2, "one input and one target")
    splits = [
        (f"training split of {source.name!r}", source.num_ids, *window) for source in dataset.sources
    ] or [(f"training split of {dataset.corpus_name!r}", len(dataset.train.ids), *window)]
    splits.append((f"validation split of {dataset.corpus_name!r}", len(dataset.valid.ids), *prediction))
    splits += [(f"validation text {text.name!r}", len(text.split.ids), *prediction) for text in dataset.named]
    for name, found, needed, reason in splits:
        if found < needed:
            raise UserError(
                f"the {name} has {count(found, 'token')} and needs {needed} "
                f"({reason}): use a longer text, a smaller model.context_length={context_length} or another "
                f"data.valid_fraction"
            )


def check_documents(dataset: Dataset, end_id: int, block: int = 1 << 24) -> None:
    """Raises UserError where no training token of a text is the one that ends a document."""
    ids, first = dataset.train.ids, 0
    texts = [(source.name, source.num_ids) for source in dataset.sources] or [(dataset.corpus_name, len(ids))]
    for name, num_ids in texts:
        last = first + num_ids
        if not any((ids[i : min(i + block, last)] == end_id).any() for i in range(first, last, block)):
            raise UserError(
                f"the training split of {name!r} has no token {end_id}, which ends a document (model.document_end): "
                "cut the text into documents with data.documents, or set model.document_mask=false and data.windows='flat'"
            )
        first = last
