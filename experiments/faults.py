"""What happens to a run when its disk fills, its files are damaged, or somebody else wrote them: each fault, tried.

    python -m experiments.faults [--workdir runs/faults] [--write experiments/faults.md]

A small run is trained to its end. Each fault is made in a copy that stopped half-way, and a command runs on it in its own
process; the table has what it printed. Checked for all: exit code 0 or 2, no traceback, nothing in the folder is executed,
complete checkpoints keep every byte; and if training continues, it ends equal, bit for bit, to the run without a fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.torture import same
from jaxgpt.common import cli

ROOT = Path(__file__).parent.parent
HALF, WHOLE = 20, 40  # steps; checkpoints at 10, 20, ...
FLAGS = [
    "--config", "configs/char.py", "--config.data.corpus=python_docs", "--config.model.context_length=16",
    "--config.model.d_model=16", "--config.model.num_layers=1", "--config.model.num_heads=2", "--config.data.batch_size=4",
    f"--config.train.num_steps={WHOLE}", "--config.train.eval_every=0", "--config.train.checkpoint_every=10",
    "--config.train.keep_checkpoints=9", "--config.train.eval_tokens=200", "--config.train.sample_tokens=0",
]  # fmt: skip
PAGE = """# What happens when something breaks

Made by `python -m experiments.faults --write experiments/faults.md`. A run was trained to step 40. Each fault was made in a copy that stopped at
step 20 (checkpoints at 10 and 20); the table has what the command printed. Also checked: no traceback, nothing in the folder was
executed, complete checkpoints kept every byte; and where training continued, it ended equal, bit for bit, to the run without a fault.

"""
HOSTILE = "__import__('os').system('touch executed')"


def command(name: str, folder: Path, *flags: str, limit: int | None = None) -> tuple[int, str, str]:
    """`python -m jaxgpt.<name>` on a folder: exit code, stdout, stderr. `limit`: the largest size of a file in bytes."""
    argv = [sys.executable, "-m", f"jaxgpt.{name}", "--workdir", str(folder), *flags]
    if limit is not None:
        argv = ["bash", "-c", f"ulimit -f {limit // 1024}; exec \"$@\"", "limited", *argv]  # fmt: skip
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def train(folder: Path, *flags: str, limit: int | None = None) -> tuple[int, str, str]:
    return command("train", folder, *FLAGS, *flags, limit=limit)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- faults ---------------------------------------------------------------------------------------------


def array_files(folder: Path, step: int = HALF) -> list[Path]:
    """The files with the parameters of a checkpoint, the largest last."""
    found = (
        p for p in (folder / f"checkpoints/{step}/params").rglob("*") if p.is_file() and p.parent.name == "d"
    )
    return sorted(found, key=lambda p: p.stat().st_size)


def truncate(folder: Path) -> None:
    for file in array_files(folder):
        os.truncate(file, file.stat().st_size // 2)


def flip_a_byte(folder: Path) -> None:
    file = array_files(folder)[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def remove(item: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / f"checkpoints/{HALF}/{item}")


def half_written(folder: Path) -> None:
    half = folder / "checkpoints/30.orbax-checkpoint-tmp"
    shutil.copytree(folder / f"checkpoints/{HALF}", half)
    shutil.rmtree(half / "meta")
    for file in half.rglob("d/*"):
        os.truncate(file, file.stat().st_size // 3)


def another_width(folder: Path) -> None:
    """Replace the newest checkpoint by one of a wider model."""
    wide = folder.with_name("wide")
    if not wide.exists():
        code, _, err = train(wide, "--config.model.d_model=32", f"--config.train.num_steps={HALF}")
        if code:
            raise RuntimeError(err)
    shutil.rmtree(folder / f"checkpoints/{HALF}")
    shutil.copytree(wide / f"checkpoints/{HALF}", folder / f"checkpoints/{HALF}")


def config_json(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "config.json").write_text(text)

    return damage


def in_meta(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change the newest checkpoint's copy of config and tokenizer."""

    def damage(folder: Path) -> None:
        path = folder / f"checkpoints/{HALF}/meta/metadata"
        meta = json.loads(path.read_text("utf-8"))
        change(meta)
        path.write_text(json.dumps(meta), "utf-8")

    return damage


def huge_model(meta: dict) -> None:
    meta["config"]["model"] |= {"d_model": 2**20, "num_heads": 1, "d_ff": 2**24}


def huge_file(name: str) -> Callable[[Path], None]:
    """Grow a file to 1 GiB, sparse: it takes no room on the disk, but would in memory."""

    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(2**30)

    return damage


def link_to_outside(folder: Path) -> None:
    params = folder / f"checkpoints/{HALF}/params"
    shutil.move(params, folder.with_name("outside"))
    params.symlink_to("../../../outside")


def pipe(folder: Path) -> None:
    path = folder / f"checkpoints/{HALF}/params/_METADATA"
    path.unlink()
    os.mkfifo(path)


def linked(name: str) -> Callable[[Path], None]:
    """Replace an entry of the run by a link to a folder outside of it."""

    def damage(folder: Path) -> None:
        outside = folder.with_name("outside")
        outside.mkdir(exist_ok=True)
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)

    return damage


def foreign_lines(folder: Path) -> None:
    """Lines of others in the middle of metrics.jsonl, and a torn one at its end."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[10:10] = [b"hello\n", b'{"step": "ten"}\n', b"[" * 9_999 + b"\n"]
    path.write_bytes(b"".join(lines) + b'{"step": 21, "spl')


def without_index(folder: Path) -> None:
    """As earlier versions left checkpoints under a path with brackets."""
    for index in (folder / "checkpoints").glob("*/*/manifest.ocdbt"):
        index.unlink()
        shutil.rmtree(index.parent / "d")


def no_hash(folder: Path) -> None:
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    del facts["text_sha256"]
    (folder / "run.json").write_text(json.dumps(facts), "utf-8")


@dataclass(frozen=True)
class Fault:
    """`damage` is done to the folder, then `jaxgpt.<command>` runs with `flags`."""

    name: str
    damage: Callable[[Path], None]
    command: str = "train"
    flags: tuple[str, ...] = ()


FAULTS = [
    Fault("truncated array file", truncate),
    Fault("truncated array file", truncate, "generate"),
    Fault("a byte flipped in an array file", flip_a_byte),
    Fault("missing item `params`", remove("params")),
    Fault("missing item `meta`", remove("meta"), "generate"),
    Fault("half-written checkpoint of a killed save", half_written),
    Fault("a checkpoint with another d_model", another_width),
    Fault("a checkpoint with code for a number", in_meta(lambda m: m["config"]["model"].update(d_model=HOSTILE)), "generate"),
    Fault("a checkpoint of a model of 2^45 parameters", in_meta(huge_model), "generate"),
    Fault("a checkpoint with a tokenizer of no kind", in_meta(lambda m: m.update(tokenizer={"kind": HOSTILE})), "generate"),
    Fault("config.json: code for a number", config_json(json.dumps({"model": {"d_model": HOSTILE}}))),
    Fault("config.json: a class to make", config_json(json.dumps({"model": {"__class__": "os.system"}}))),
    Fault("config.json: a million brackets", config_json("[" * 1_000_000)),
    Fault("config.json of 1 GiB", huge_file("config.json")),
    Fault("tokenizer.json of 1 GiB in the run", huge_file("tokenizer.json"), "generate"),
    Fault("tokenizer.json of 1 GiB, asked for", huge_file("big.json"), "train", ("--config.data.tokenizer_path={folder}/big.json",)),
    Fault("`--step ../../x`", lambda _: None, "generate", ("--step", "../../x")),
    Fault("`data.path=../../x` in a checkpoint", in_meta(lambda m: m["config"]["data"].update(path="../../x")), "evaluate"),
    Fault("a checkpoint that links to a folder outside", link_to_outside),
    Fault("a checkpoint with a pipe in it", pipe, "generate"),
    Fault("checkpoints without an index, from a path with brackets", without_index),
    Fault("checkpoints without an index, from a path with brackets", without_index, "generate"),
    Fault("foreign and torn lines in metrics.jsonl", foreign_lines),
    Fault("`samples` is a link", linked("samples")),
    Fault("`.lock` is a link", linked(".lock")),
    Fault("run.json without the hash of the text", no_hash, "evaluate"),
    Fault("a layer more than 10,000", config_json(json.dumps({"model": {"num_layers": 10_001}}))),
]  # fmt: skip


# --- trying them ----------------------------------------------------------------------------------------


def shortened(text: str, folder: Path, most: int = 230) -> str:
    """The last lines that a command printed, as one line, without this machine's paths."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    text = " / ".join(lines[-2:]).replace(f"{folder.parent.absolute()}/", "").replace(f"{folder.parent}/", "")
    return text if len(text) <= most else text[: most // 2] + " ... " + text[-most // 2 :]


def outcome(code: int, out: str, err: str, folder: Path, whole: Path) -> str:
    """What a command printed and, if training ended, whether it ended equal to the run without a fault."""
    if code not in (0, 2) or "Traceback" in err or (ROOT / "executed").exists():
        raise RuntimeError(f"exit code {code}: {err[-2000:]}")
    if code == 2:
        return f"{shortened(err, folder)} (exit code 2)"
    if "done: step" not in out:
        return f"{shortened(err, folder)}; works".removeprefix("; ")
    equal = same(whole, folder)
    if not (equal["equal_losses"] and equal["equal_parameters"]):
        raise RuntimeError(f"the end differs: {equal}")
    return f"{shortened(err, folder)}; continues to the end, equal bit for bit".removeprefix("; ")


def tried(fault: Fault, folder: Path, half: Path, whole: Path) -> str:
    """What the command does with the fault in a copy of the half-way run."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.with_name("outside"), ignore_errors=True)
    shutil.copytree(half, folder)
    fault.damage(folder)
    flags = [flag.format(folder=folder) for flag in fault.flags]
    flags = [*FLAGS, *flags] if fault.command == "train" else flags
    result = command(fault.command, folder, *flags)
    before, after = files(half / "checkpoints/10"), files(folder / "checkpoints/10")
    rescued = fault.damage is without_index  # an index is added, and no file is changed
    if after != before and not (rescued and all(before.get(name, after[name]) for name in after)):
        raise RuntimeError(f"{fault.name}: a whole checkpoint was changed")
    return outcome(*result, folder, whole)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of `size` bytes at `folder`, where this user may mount one: gives whether it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def full_disk(place: Path, half: Path, whole: Path) -> Iterator[tuple[str, str]]:
    """A disk that is full at the start, then has room for the log but not for a checkpoint, then has room."""
    size = sum(len(content) for content in files(half).values())
    with small_disk(place / "disk", size + (16 << 20)) as mounted:
        folder, filler = place / "disk/run", place / "disk/filler"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(half, folder)
        before = files(folder / "checkpoints")
        kind = "tmpfs" if mounted else "files limited to a size"
        for name, left, limit in (
            ("disk full at the start", 0, 1024),
            ("disk full at a save", 60_000, 10_240),
        ):
            if mounted:
                fill(filler, left)
            found = outcome(*train(folder, limit=None if mounted else limit), folder, whole)
            after = files(folder / "checkpoints")
            if any(after.get(path) != content for path, content in before.items()):
                raise RuntimeError("a full disk changed a complete checkpoint")
            yield f"{name} ({kind})", found
        filler.unlink(missing_ok=True)
        yield "... and room again", outcome(*train(folder), folder, whole)


def fill(filler: Path, left: int) -> None:
    """Fill the disk up to `left` bytes."""
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    os.truncate(filler, max(0, filler.stat().st_size - left))


def lost_folder(place: Path, half: Path, whole: Path) -> str:
    """Move the folder away while a run trains in it."""
    folder = place / "lost"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(half, folder)
    long = "--config.train.num_steps=1000000"
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace(f'"num_steps": {WHOLE}', '"num_steps": 1000000')
    )
    for meta in folder.glob("checkpoints/*/meta/metadata"):
        meta.write_text(meta.read_text().replace(f'"num_steps": {WHOLE}', '"num_steps": 1000000'))
    argv = [sys.executable, "-m", "jaxgpt.train", "--workdir", str(folder), *FLAGS, long]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step"):
            break
    while process.poll() is None and len(list(folder.glob("checkpoints/*"))) < 3:
        pass
    folder.rename(folder.with_name("gone"))
    out, err = process.communicate(timeout=300)
    shutil.rmtree(folder.with_name("gone"), ignore_errors=True)
    return outcome(process.returncode, out, err, folder, whole)


def all_damaged(folder: Path, half: Path, whole: Path) -> str:
    """A run does not start over by itself; --restart does it, and keeps what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(half, folder)
    for step in (HALF // 2, HALF):
        shutil.rmtree(folder / f"checkpoints/{step}/params")
    before = files(folder / "checkpoints")
    refused = outcome(*train(folder), folder, whole)
    if files(folder / "checkpoints") != before:
        raise RuntimeError("a refused run changed its checkpoints")
    again = outcome(*train(folder, "--restart"), folder, whole)
    if files(folder / "before/1/checkpoints") != before:
        raise RuntimeError("--restart did not keep what was there")
    return f"{refused}; with --restart: {again}"


def two_trainers(place: Path, half: Path, whole: Path) -> str:
    import fcntl

    folder = place / "two"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(half, folder)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return outcome(*train(folder), folder, whole)


def flipped_bytes(place: Path, half: Path, count: int, rng: random.Random) -> str:
    """Flip single bits all over a checkpoint: each is noticed, or has no effect on a parameter."""
    import numpy as np

    import jaxgpt
    from jaxgpt.config import UserError
    from jaxgpt.model.paths import named_leaves

    folder = place / "bytes"
    good = [np.asarray(leaf) for _, leaf in named_leaves(jaxgpt.load(half, step=HALF).params)]
    noticed = harmless = 0
    for _ in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(half, folder)
        every = [
            p for p in (folder / f"checkpoints/{HALF}/params").rglob("*") if p.is_file() and p.stat().st_size
        ]
        file = rng.choices(every, [p.stat().st_size for p in every])[0]
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        try:
            params = jaxgpt.load(folder, step=HALF).params
        except UserError:
            noticed += 1
            continue
        if not all((np.asarray(x) == y).all() for (_, x), y in zip(named_leaves(params), good, strict=True)):
            raise RuntimeError(f"a flipped bit in {file} was not noticed")
        harmless += 1
    return f"{noticed} noticed, {harmless} without effect on a parameter, none missed"


def main(argv: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m experiments.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/faults"), help="is emptied first")
    parser.add_argument("--write", type=Path, default=None, help="write the table, as a page, to this file")
    parser.add_argument("--only", default="", help="only faults whose name has this in it")
    args = parser.parse_args(argv)
    place = args.workdir.absolute()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    whole, half = place / "whole", place / "half"
    code, _, err = train(whole)
    if code:
        raise RuntimeError(err)
    shutil.copytree(whole, half)
    for step in range(HALF + 10, WHOLE + 1, 10):
        shutil.rmtree(half / f"checkpoints/{step}")
    rows = ["| fault | command | what happened |", "| --- | --- | --- |"]
    print("\n".join(rows))

    def row(name: str, asked: str, what: Callable[[], str]) -> None:
        if args.only in name:
            rows.append(f"| {name} | `{asked}` | {what().replace('|', ' ')} |")
            print(rows[-1], flush=True)

    for fault in FAULTS:
        row(fault.name, fault.command, lambda fault=fault: tried(fault, place / "run", half, whole))
    row("every checkpoint is damaged", "train", lambda: all_damaged(place / "run", half, whole))
    row("one bit flipped, 30 times", "load", lambda: flipped_bytes(place, half, 30, random.Random(0)))
    row("two trainers in one folder", "train", lambda: two_trainers(place, half, whole))
    row("the folder is lost during a run", "train", lambda: lost_folder(place, half, whole))
    if args.only in "disk full":
        for name, what in full_disk(place, half, whole):
            row(name, "train", lambda what=what: what)
    if args.write:
        args.write.write_text(PAGE + "\n".join(rows) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    cli.run(main)
