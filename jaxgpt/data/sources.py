"""Several texts of one run: the sources of a mixture, and validation texts of their own.

Every text is prepared as a single one is, with one tokenizer for all. A tokenizer that is to be trained is trained on the
training texts of all sources together. The texts of data.valid_paths only observe: no tokenizer is trained on them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgpt.common.files import cache_dir
from jaxgpt.config import DataConfig, UserError, sources
from jaxgpt.config.sources import NamedText
from jaxgpt.data import documents, shards, tokenizers
from jaxgpt.data.dataset import (
    CACHE_VERSION,
    check_range,
    load_tokenizer,
    open_text,
    prepare_text,
    text_hash,
    train_tokenizer,
)
from jaxgpt.data.id_files import Dataset, Source, Split, ValidationText, check_ids, new_ids_folder
from jaxgpt.data.measures import measure, num_train_chars

ROUND = 1 << 14  # tokens of all sources, of which the validation split of a mixture is made
MOST_ROUNDS = 1024


def prepare(cfg: DataConfig, num_workers: int = 0) -> Dataset:
    """The dataset of a config with a mixture or with validation texts of their own. Raises UserError."""
    alone = dataclasses.replace(cfg, mixture="", valid_path="", valid_paths="")
    tokenizer = None
    if cfg.mixture or cfg.valid_path:
        tokenizer = _tokenizer(cfg)
        alone = dataclasses.replace(alone, add_tokens=False)  # it has them
    if cfg.mixture:
        dataset = _mixture(cfg, num_workers, tokenizer)
    else:
        dataset = prepare_text(alone, num_workers, tokenizer, complete=bool(cfg.valid_path))
    alone = dataclasses.replace(alone, documents=documents.mode(cfg), add_tokens=False)
    if cfg.valid_path:
        found = _complete(
            alone, NamedText("", cfg.valid_path), "data.valid_path", dataset.tokenizer, num_workers
        )
        dataset = dataclasses.replace(
            dataset, valid=found.train, valid_sha256=found.text_sha256, parts=(*dataset.parts, found)
        )
    for text in sources.named_texts(cfg.valid_paths) if cfg.valid_paths else ():
        given = f"data.valid_paths: {text.name}"
        found = _complete(alone, text, given, dataset.tokenizer, num_workers)
        named = ValidationText(text.name, found.train, found.text_sha256)
        dataset = dataclasses.replace(dataset, named=(*dataset.named, named), parts=(*dataset.parts, found))
    return dataset


def hashes(cfg: DataConfig) -> dict[str, str | None]:
    """The hashes of a run's texts as run.json has them. Nothing of a text is shown."""
    if cfg.mixture:
        of_training = _joint_hash(
            [(text.name, text_hash(config_of(cfg, text))) for text in sources.mixture(cfg.mixture)]
        )
    else:
        of_training = text_hash(cfg)
    how = dataclasses.replace(cfg, documents=documents.mode(cfg))
    of_valid = text_hash(config_of(how, NamedText("", cfg.valid_path))) if cfg.valid_path else None
    return {"text_sha256": of_training, "valid_text_sha256": of_valid}


def config_of(cfg: DataConfig, text: NamedText) -> DataConfig:
    """The config of one of the texts."""
    return dataclasses.replace(
        cfg, path=text.path, corpus=text.corpus, mixture="", valid_path="", valid_paths=""
    )


def _mixture(cfg: DataConfig, num_workers: int, tokenizer: tokenizers.Tokenizer | None) -> Dataset:
    """The dataset of the sources together."""
    texts = sources.mixture(cfg.mixture)
    own = dataclasses.replace(cfg, add_tokens=False)
    found = [
        prepare_text(
            config_of(own, text), num_workers, tokenizer, bool(cfg.valid_path), f"data.mixture: {text.name}"
        )
        for text in texts
    ]
    if different := [one for one in found if one.fingerprint != found[0].fingerprint]:
        raise UserError(
            f"data.mixture: {different[0].corpus_name!r} has another tokenizer than the first source"
        )
    named = [
        ValidationText(text.name, one.valid, one.text_sha256) for text, one in zip(texts, found, strict=True)
    ]
    return Dataset(
        _joined([one.train for one in found]),
        _in_turn([one.valid for one in found]),
        found[0].tokenizer,
        f"mixture of {', '.join(text.name for text in texts)}",
        _joint_hash([(text.name, one.text_sha256) for text, one in zip(texts, found, strict=True)]),
        found[0].fingerprint,
        named=() if cfg.valid_path else tuple(named),
        sources=tuple(
            Source(text.name, len(one.train.ids), one.text_sha256)
            for text, one in zip(texts, found, strict=True)
        ),
        parts=tuple(found),
    )


def _joined(splits: Sequence[Split]) -> Split:
    """Splits one after another."""
    known = all(split.num_bytes for split in splits if len(split.ids))
    chars, num_bytes = sum(s.num_chars for s in splits) * known, sum(s.num_bytes for s in splits) * known
    ids = shards.joined(split.ids for split in splits)
    if all(split.counts is None for split in splits):
        return Split(ids, chars, num_bytes)
    counted = sum(len(split.ids) if split.counts is None else split.counted for split in splits)
    return Split(ids, chars, num_bytes, shards.joined(map(_counts, splits)), counted)


def _counts(split: Split) -> shards.Plain:
    """Which ids count; all of a text without conversations."""
    return np.broadcast_to(np.uint8(1), len(split.ids)) if split.counts is None else split.counts


def _in_turn(splits: Sequence[Split]) -> Split:
    """Splits in turn, a part of each by its tokens, so that any first part of the result has some of all."""
    total = sum(len(split.ids) for split in splits)
    if not total:
        return splits[0]
    rounds = min(max(total // ROUND, 1), MOST_ROUNDS)
    cuts = [[len(split.ids) * r // rounds for r in range(rounds + 1)] for split in splits]
    parts = [
        Split(
            shards.part(split.ids, own[r], own[r + 1]),
            counts=None if split.counts is None else shards.part(split.counts, own[r], own[r + 1]),
        )
        for r in range(rounds)
        for split, own in zip(splits, cuts, strict=True)
        if own[r] < own[r + 1]
    ]
    mixed = _joined(parts)
    return dataclasses.replace(_joined(splits), ids=mixed.ids, counts=mixed.counts)


def _complete(
    cfg: DataConfig, text: NamedText, given: str, tokenizer: tokenizers.Tokenizer, num_workers: int
) -> Dataset:
    """A validation text, all of it as the `train` of the result."""
    own = config_of(cfg, text)
    if own.path and (found := shards.find(own.path, given)) and found.valid:
        # Of shards for training and validation those for validation.
        ids = shards.open_ids(found.valid)
        splits, known = (
            (Split(ids), Split(np.zeros(0, ids.dtype))),
            shards.fingerprint((*found.train, *found.valid)),
        )
        checked = check_ids(splits, lambda: check_range(found.valid, (ids,), known, tokenizer))
        return Dataset(*splits, tokenizer, own.path, known, tokenizers.fingerprint(tokenizer), checked)
    try:
        return prepare_text(own, num_workers, tokenizer, complete=True, given=given)
    except UserError as error:
        if str(error).startswith(given):
            raise
        raise UserError(f"{given}={text.place!r}: {error}") from error


def _tokenizer(cfg: DataConfig) -> tokenizers.Tokenizer | None:
    """The one tokenizer of several texts: a published one, or one that is trained on them, which the cache keeps."""
    loaded = load_tokenizer(cfg)
    if loaded is not None and not cfg.add_tokens:
        return loaded
    if cfg.mixture:
        texts = [(f"data.mixture: {t.name}", config_of(cfg, t)) for t in sources.mixture(cfg.mixture)]
    else:
        texts = [("data.path", dataclasses.replace(cfg, valid_path="", valid_paths=""))]
    opened, key = [], []
    for given, own in texts:
        if own.path and shards.find(own.path, given):
            if loaded is None:
                prepare_text(own, given=given)  # refuses ids, which no tokenizer is trained on
            continue
        corpus = open_text(own, given)
        text = measure(corpus)
        num_train = (
            text.num_chars
            if cfg.valid_path
            else num_train_chars(text, cfg.valid_fraction, corpus.has_documents, given)
        )
        opened.append((corpus, num_train))
        key.append([text.sha256, num_train, corpus.has_documents])
    if cfg.valid_path and cfg.tokenizer == "char":  # as with a split: all characters have tokens
        how = dataclasses.replace(cfg, documents=documents.mode(cfg))
        own = config_of(how, NamedText("", cfg.valid_path))
        if not (own.path and shards.find(own.path, "data.valid_path")):
            corpus = open_text(own, "data.valid_path")
            opened.append((corpus, 0))
            key.append([measure(corpus).sha256, 0, corpus.has_documents])
    if not opened:
        return loaded
    known = None if loaded is None else tokenizers.fingerprint(loaded)
    words = [CACHE_VERSION, "tokenizer", cfg.tokenizer, cfg.vocab_size, cfg.separator, known, key]
    if cfg.special_tokens_in_text:
        words.append("special tokens in text")
    folder = cache_dir() / "data" / hashlib.sha256(json.dumps(words).encode()).hexdigest()
    if not Path(folder).is_dir():
        with new_ids_folder(folder) as temporary:
            tokenizers.save(train_tokenizer(cfg, opened, loaded), temporary / "tokenizer.json")
    return tokenizers.load(folder / "tokenizer.json")


def _joint_hash(hashes_by_name: Sequence[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(hashes_by_name).encode()).hexdigest()
