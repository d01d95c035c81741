"""Small models that several claims examine: trained once per seed, kept under --runs, and found again by their config."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.claim import Setting
from jaxgpt import config
from jaxgpt.common.files import lock, write_atomically
from jaxgpt.config import Config, UserError
from jaxgpt.data import corpora, tokenizers
from jaxgpt.runs import records
from jaxgpt.runs.load import Run, load
from jaxgpt.sweeps import groups
from jaxgpt.sweeps.members import Row


def run(base: Config, members: list[dict[str, Any]], folder: Path) -> list[Row]:
    """Train each member (base with some fields changed, by dotted name) unless it is trained already; equal programs run as lanes."""
    short = base.train.num_steps < 100  # finding the best number of lanes would take longer than training
    with alone_in(folder):
        return groups.run(base, members, folder, groups.Options(width=1) if short else None)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process trains the models of a folder: two claims that are measured at once may share them."""
    records.make_folder(folder.parent)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        while True:
            try:
                lock(file)
                break
            except BlockingIOError:
                time.sleep(1)
        yield


def changed(base: Config, overrides: dict[str, Any]) -> Config:
    """The config with other values for some fields, by dotted name; checked."""
    values = config.to_json(base)
    for dotted, value in overrides.items():
        group, _, name = dotted.rpartition(".")
        (values[group] if group else values)[name] = value
    return config.from_config_dict(values)


def text_of(setting: Setting, corpus: str, characters: int | None) -> config.DataConfig:
    """The text of a config: a corpus, or a file with its first characters."""
    if characters is None:
        return config.DataConfig(corpus=corpus)
    return config.DataConfig(path=text_slice(setting.folder, corpus, characters))


def text_slice(folder: Path, corpus: str, characters: int | None) -> str:
    """A file with the first characters of a corpus; None: with all of them."""
    path = folder / f"{corpus}_{characters}.txt"
    if not path.exists():
        records.make_folder(path.parent)
        write_atomically(path, "".join(corpora.open_corpus(corpus, "").read())[:characters].encode())
    return str(path)


WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # the words of a word tokenizer


def characters_of(folder: Path, text: Path) -> str:
    """A file with the char tokenizer of a text."""
    path = folder / f"{text.stem}_characters.json"
    if not path.exists():
        tokenizers.save(tokenizers.CharTokenizer("".join(sorted(set(text.read_text("utf-8"))))), path)
    return str(path)


def folder_of(setting: Setting, kind: str, base: Config) -> Path:
    """The folder for a base config and a number of seeds."""
    what = json.dumps([config.to_json(base), list(setting.seed_numbers)], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()
    return setting.folder / f"{kind}_{digest[:8]}"


def seeds(setting: Setting, kind: str, base: Config) -> list[Run]:
    """The base config trained with each seed. Raises UserError with the reason if one failed."""
    rows = run(base, [{"train.seed": seed} for seed in setting.seed_numbers], folder_of(setting, kind, base))
    if failed := [f"{row.workdir}: {row.status}" for row in rows if not row.done]:
        raise UserError(f"training failed: {'; '.join(failed)}")
    return [load(row.workdir) for row in rows]


def characters(setting: Setting, tied: bool = True) -> list[Run]:
    """Character models of Shakespeare, one per seed: four layers, four heads, ReLU; the output head tied to the table or not."""
    data = text_of(setting, "shakespeare", setting.pick(40_000, None, None))
    pick = setting.pick
    base = Config(
        model=config.ModelConfig(
            context_length=pick(32, 64, 256), d_model=pick(16, 64, 384), num_layers=pick(2, 4, 6), num_heads=pick(2, 4, 6),
            activation="relu", tie_embeddings=tied,
        ),
        data=dataclasses.replace(data, batch_size=pick(4, 16, 64)),
        optim=config.OptimConfig(
            learning_rate=pick(1e-2, 4e-3, 1e-3), final_learning_rate_ratio=pick(0.01, 0.025, 0.1), warmup_steps=pick(2, 50, 100)
        ),
        train=config.TrainConfig(
            num_steps=pick(20, 600, 3_000), eval_every=pick(10, 100, 500), eval_tokens=pick(512, 16_384, 65_536),
            log_every=pick(5, 20, 50), checkpoint_every=0, sample_tokens=0,
        ),
    )  # fmt: skip
    return seeds(setting, "characters", base)


def words(setting: Setting, text: str = "") -> list[Run]:
    """Word models of Shakespeare, one per seed (white space is tokens too); or of the file `text`."""
    data = text_of(setting, "shakespeare", setting.pick(40_000, None, None))
    data = config.DataConfig(path=text) if text else data
    pick = setting.pick
    base = Config(
        model=config.ModelConfig(
            context_length=pick(16, 64, 128), d_model=pick(16, 64, 256), num_layers=pick(2, 3, 4), num_heads=pick(2, 4, 4),
            activation="relu",
        ),
        data=dataclasses.replace(data, tokenizer="word", vocab_size=pick(512, 5_000, 8_192), batch_size=pick(4, 16, 64)),
        optim=config.OptimConfig(
            learning_rate=pick(1e-2, 4e-3, 2e-3), final_learning_rate_ratio=pick(0.01, 0.025, 0.05), warmup_steps=pick(2, 50, 100)
        ),
        train=config.TrainConfig(
            num_steps=pick(20, 600, 4_000), eval_every=pick(10, 200, 500), eval_tokens=pick(512, 16_384, 65_536),
            log_every=pick(5, 20, 50), checkpoint_every=0, sample_tokens=0,
        ),
    )  # fmt: skip
    return seeds(setting, "words", base)
