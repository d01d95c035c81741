"""Random configs and damaged run folders: does every command end in time, with exit code 0, or 2 and one line?

    python -m experiments.fuzz [--configs 300] [--folders 300] [--seed 0] [--only NUMBER] [--workdir FOLDER]

A config has values drawn from the fields' own types and bounds: at the bounds, outside of them, of other types. A damaged
folder is a copy of a small run in which a file has changed bytes, is cut, or is a link, a pipe or a folder, or in which one
value of a JSON file is of another type. All commands run in this process. A case has a seed of its own, so `--only` repeats
one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from jaxgpt import embeddings, evaluate, explain, generate, report, train
from jaxgpt.common import cli
from jaxgpt.config import FIELDS
from jaxgpt.config.metadata import Field

LIMIT = 60  # seconds a command may take, on a machine that does nothing else
SMALL = {
    "model.context_length": "8", "model.d_model": "8", "model.num_layers": "1", "model.num_heads": "2",
    "data.batch_size": "2", "optim.warmup_steps": "1", "train.num_steps": "2", "train.eval_every": "1",
    "train.eval_tokens": "40", "train.checkpoint_every": "1", "train.sample_tokens": "4",
}  # fmt: skip
COMMANDS = {
    "train": (train.main, ()),
    "evaluate": (evaluate.main, ()),
    "generate": (generate.main, ("--max_new_tokens", "2", "--prompt", "the")),
    "report": (report.main, ()),
    "explain": (explain.main, ("--text", "the king")),
    "embeddings": (embeddings.main, ("neighbours", "e")),
}
ODD_TEXTS = ("", "nonsense", "~nobody/x", "../x", "a" * 5_000, "[", "%s{}", "-1", "\x07")
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 10**20, 10**400, 1e308, float("nan"), "", "x", "x" * 10_000, [], [1], {}, {"a": {}},
)  # fmt: skip
DEEP = "[" * 50_000 + "]" * 50_000


class Hang(BaseException):
    """A command took longer than LIMIT."""


def _on_alarm(_number: int, _frame: FrameType | None) -> None:
    raise Hang


def run(name: str, flags: list[str]) -> str:
    """The problem with a command: empty where it ended in time, with exit code 0, or 2 and one line."""
    main, more = COMMANDS[name]
    out, err = io.StringIO(), io.StringIO()
    old_argv, old_alarm = sys.argv, signal.signal(signal.SIGALRM, _on_alarm)
    sys.argv = [f"jaxgpt/{name}.py", *(["neighbours"] if name == "embeddings" else []), *flags]
    sys.argv += more[1:] if name == "embeddings" else more
    faulthandler.dump_traceback_later(
        2 * LIMIT, exit=True, file=sys.__stderr__
    )  # where no signal gets through
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.run(main)
    except SystemExit as end:
        errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        if end.code not in (0, 2):
            return f"exit code {end.code}"
        if "Traceback" in err.getvalue():
            return "a traceback is printed: " + err.getvalue().strip().splitlines()[-1]
        if end.code == 2 and len(errors) != 1:
            return f"{len(errors)} lines of error"
        return ""
    except Hang as error:
        at = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-6:-1]]
        return f"longer than {LIMIT} s at {' '.join(at)}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]!r} at {where.filename}:{where.lineno}"
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        sys.argv = old_argv
        signal.signal(signal.SIGALRM, old_alarm)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return "the command did not end the process"


def draw(field: Field, rng: random.Random) -> str:
    """A value of a field as its flag takes it: usual, at a bound, outside of it, or of another type."""
    meaning = field.meaning
    if field.name == "train.num_steps":  # a long run is no hang
        return rng.choice(["1", "3", "0", "-1", "nan", "1e400", str(10**20), "x"])
    if rng.random() < 0.1:
        return rng.choice(ODD_TEXTS)
    if field.choices:
        return rng.choice(field.choices)
    if field.type is bool:
        return rng.choice(["true", "false", "2"])
    if field.type in (int, float):
        bounds = [
            b for b in (meaning.at_least, meaning.above, meaning.at_most, meaning.below) if b is not None
        ]
        near = [field.type(b + d) for b in bounds for d in (-1, 0, 1)]
        small = [1, 2, 3, 4, 8, 16] if field.type is int else [1e-30, 1e-3, 0.5, 1.0, 3.0, 1e30]
        odd = ["nan", "inf", "-inf", "1e400", str(10**20), str(-(10**20)), "None", "0.5"]
        return str(rng.choice([*near, *small, *small, *odd, field.default]))
    return rng.choice(ODD_TEXTS)


def config_case(seed: str, place: Path, text: Path) -> tuple[str, str, str]:
    """Train with a random config: the command, what was random in it, and its problem."""
    rng = random.Random(seed)
    changed = {name: draw(FIELDS[name], rng) for name in rng.sample(list(FIELDS), rng.randint(1, 4))}
    values = {**SMALL, "data.path": str(text), **changed}
    flags = ["--config", "char", "--workdir", str(place / "run")]
    flags += [f"--config.{name}={value}" for name, value in values.items()]
    return "train", " ".join(f"{name}={value[:40]!r}" for name, value in changed.items()), run("train", flags)


def _paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*at, key))


def _swap(file: Path, rng: random.Random) -> str | None:
    """Replace one value of a JSON file, or of one line of it. None where it is no JSON."""
    try:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        number = rng.randrange(len(lines))
        value = json.loads(lines[number])
    except (ValueError, UnicodeDecodeError):
        return None
    path, odd = rng.choice(list(_paths(value))), rng.choice([*ODD_VALUES, DEEP])
    mark = "<<the odd value>>"
    if path:
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = mark
    else:
        value = mark
    new = (
        odd
        if odd is DEEP
        else str(odd)
        if isinstance(odd, int) and not isinstance(odd, bool)
        else json.dumps(odd)
    )
    lines[number] = json.dumps(value).replace(json.dumps(mark), new)
    file.write_text("\n".join(lines) + "\n")
    return f"{'.'.join(map(str, path))} = {new[:30]}"


def damage(folder: Path, rng: random.Random, outside: Path) -> str:
    """Damage one entry of a folder, and say how."""
    entries = sorted(p for p in folder.rglob("*"))
    files = [p for p in entries if p.is_file()]
    ways = (
        "flip",
        "cut",
        "empty",
        "longer",
        "swap",
        "swap",
        "swap",
        "link",
        "pipe",
        "folder",
        "remove",
        "file",
    )
    way = rng.choice(ways)
    if way == "swap":
        at = rng.choice([p for p in files if p.suffix in (".json", ".jsonl") or "METADATA" in p.name.upper()])
        return f"{at.relative_to(folder)}: {_swap(at, rng) or 'nothing'}"
    at = rng.choice(files if way in ("flip", "cut", "empty", "longer") else entries)
    if way in ("flip", "cut", "empty", "longer"):
        content = bytearray(at.read_bytes())
        if way == "flip" and content:
            for _ in range(rng.choice([1, 20])):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif way == "longer":
            content += rng.randbytes(100)
        else:
            del content[0 if way == "empty" else rng.randrange(len(content) + 1) :]
        at.write_bytes(content)
    else:
        shutil.rmtree(at) if at.is_dir() else at.unlink()
        if way == "link":
            at.symlink_to(rng.choice([outside, outside / "secret", outside / "absent", at]))
        elif way == "pipe":
            os.mkfifo(at)
        elif way == "folder":
            at.mkdir()
        elif way == "file":
            at.write_bytes(b"x")
    return f"{way} {at.relative_to(folder)}"


def folder_case(seed: str, place: Path, good: Path, outside: Path, flags: list[str]) -> tuple[str, str, str]:
    """Run a command on a damaged folder: the command, the damages, and its problem."""
    rng = random.Random(seed)
    name = rng.choice(list(COMMANDS))
    shutil.copytree(good, place / "run")
    damages = [damage(place / "run", rng, outside) for _ in range(rng.choice([1, 1, 1, 2]))]
    before = {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()}
    problem = run(name, ["--workdir", str(place / "run"), *(flags if name == "train" else [])])
    if {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()} != before:
        problem = f"a file outside has changed; {problem}"
    return name, "; ".join(damages), problem


def fuzz(root: Path, configs: int, folders: int, seed: int, only: int | None = None) -> list[str]:
    """Run the cases in a folder: one line for each with a problem."""
    text, good, outside = root / "text.txt", root / "good", root / "outside"
    text.write_text("the king loves the queen.\n" * 60)
    outside.mkdir()
    (outside / "secret").write_text("secret\n")
    flags = ["--config", "char", f"--config.data.path={text}"]
    flags += [f"--config.{name}={value}" for name, value in SMALL.items()]
    if problem := run("train", ["--workdir", str(good), *flags]):
        raise RuntimeError(problem)
    problems, codes = [], Counter[str]()
    for number in range(configs + folders):
        if only is not None and number != only:
            continue
        if number % 25 == 0:  # else the compiled programs of all cases fill the memory
            jax.clear_caches()
            gc.unfreeze()
        place, case = root / f"case_{number}", f"{seed}/{number}"
        place.mkdir()
        start = time.perf_counter()
        if number < configs:
            name, what, problem = config_case(case, place, text)
        else:
            name, what, problem = folder_case(case, place, good, outside, flags)
        codes["bad" if problem else "good"] += 1
        if problem:
            problems.append(f"case {number}, {name}: {what}: {problem}")
            print(problems[-1], flush=True)
        elif only is not None or time.perf_counter() - start > 20:
            print(f"case {number}, {name}: {what}: fine, {time.perf_counter() - start:.0f} s", flush=True)
        shutil.rmtree(place, ignore_errors=True)
    print(f"{codes['good']} cases are fine, {codes['bad']} are not")
    return problems


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", type=int, default=300)
    parser.add_argument("--folders", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--workdir", type=Path, help="an empty folder; the default is a temporary one")
    args = parser.parse_args(argv)
    if args.workdir:
        args.workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.workdir) as folder:
        return 1 if fuzz(Path(folder), args.configs, args.folders, args.seed, args.only) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
