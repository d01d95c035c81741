"""What a run writes beside its checkpoints: config, provenance, metrics, samples, embedding tables.

RUN/config.json     the resolved config
RUN/run.json        versions, device, commit, hashes, parameter count, baselines, each start and what it changed
RUN/tokenizer.json  the tokenizer
RUN/metrics.jsonl   one JSON object a line: step, split "train" or "valid", loss, ...; split "change": a new num_steps
RUN/samples/        text written at every evaluation, one file a step
RUN/embeddings/     the embedding tables at step 0 and at log-spaced steps, one .npz a step
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxgpt import config
from jaxgpt.common.files import errors_name, lock, read_json, write_atomically, write_json
from jaxgpt.config import Config, UserError

Changes = dict[str, tuple[Any, Any]]  # the old and the new value of a field, by dotted name


def make_folder(workdir: Path) -> None:
    """Make the run's folder where it is not there. Raises UserError where that can't be done."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{workdir} is a file, not a folder, or lies below one: give another --workdir"
        ) from None
    except OSError as error:
        raise UserError(
            f"can't make the folder {workdir} ({error.strerror}): give another --workdir"
        ) from None


class FolderLock:
    """Only one process trains in a folder. The system lets go of the lock when the process ends, however."""

    def __init__(self, workdir: Path) -> None:
        self._file = (workdir / ".lock").open("w")
        try:
            lock(self._file)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"another process is training in {workdir}: wait for it, or give another --workdir"
            ) from None

    def release(self) -> None:
        self._file.close()


def check_same_config(workdir: Path, cfg: Config, steps_done: int) -> Config | None:
    """The config of the run that the folder holds, or None. Raises UserError with every difference if it is another run.

    Fields that only observe or keep may differ, and so may train.num_steps: the run resumes from its newest state under
    the new schedule. It can't be less than the steps already done.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    if source := imported_from(workdir):
        raise UserError(
            f"{workdir} holds a model that was imported from {source}, which is not trained in place: train it in "
            f"another --workdir, with --config.init_from={workdir}"
        )
    try:
        old = config.from_json(read_json(path))
    except config.NewerVersion as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} can't be read ({error}): give another --workdir") from None
    if changed := config.differences(old, cfg):
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}): "
            "give another --workdir, or the same config to resume"
        )
    if cfg.train.num_steps < steps_done:
        raise UserError(
            f"train.num_steps={cfg.train.num_steps}, but the run in {workdir} has done {steps_done} steps: give "
            f"{steps_done} or more, or another --workdir"
        )
    return old


def versions() -> dict[str, str]:
    """What the numbers of a run depend on besides its config."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
    found = {"python": platform.python_version(), "jaxgpt": importlib.metadata.version("jaxgpt")}
    return found | {name: importlib.metadata.version(name) for name in packages}


def git_commit() -> str | None:
    """The commit of the code that runs, with `+changes` where files differ from it; None outside git."""
    here = Path(__file__).parents[1]  # the package

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # Only this package's own checkout counts, not one that a virtual environment happens to lie in.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> str:
    """The command that started this process, as a line for a shell: `python -m jaxgpt.train --config char`."""
    program, *arguments = sys.orig_argv
    # A console script is started as `PYTHON PATH/jaxgpt ...` and typed as `jaxgpt ...`.
    script = Path(arguments[0]) if arguments else Path()
    found = shutil.which(script.name) if script.name else None
    if found and script.is_file() and script.samefile(found):
        return shlex.join([script.name, *arguments[1:]])
    return shlex.join([Path(program).name, *arguments])


def start_record(step: int, changes: Changes | None = None) -> dict[str, Any]:
    """One start of the run: when, from which step, with what command, code, machine and changed fields."""
    changed = [{"field": name, "from": old, "to": new} for name, (old, new) in (changes or {}).items()]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "step": step,
        "command": command_line(),
        "commit": git_commit(),
        "versions": versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **({"changes": changed} if changed else {}),
    }


def read_run_json(workdir: Path) -> dict[str, Any]:
    """The facts of a run; `starts` alone where there is no run.json. Raises UserError for a damaged one."""
    path = workdir / "run.json"
    if not path.exists():
        return {"starts": []}
    try:
        facts = read_json(path)
        return {**facts, "starts": list(facts["starts"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} can't be read: give another --workdir") from None


def imported_from(workdir: Path) -> str | None:
    """The name of what the model in a folder was imported from; None where it was trained here."""
    imported = read_run_json(workdir).get("imported")
    return str(imported.get("name")) if isinstance(imported, dict) else None


def check_same_text(workdir: Path, **hashes: str) -> None:
    """Raises UserError where `text_sha256` or `tokenizer_sha256` are not those that the run began with.

    To be asked before anything is written into the folder.
    """
    old = read_run_json(workdir)
    for name, now in hashes.items():
        if old["starts"] and old.get(name) != now:
            raise UserError(
                f"{workdir} was begun with another text or tokenizer ({name} {str(old.get(name))[:12]}... "
                f"is now {now[:12]}...): give the old text, or another folder"
            )


def write_run_json(workdir: Path, facts: dict[str, Any], step: int, changes: Changes | None = None) -> None:
    """Write the facts of a run and add this start, and what it changed, to `starts`."""
    old = read_run_json(workdir)
    kept = {name: old[name] for name in ("started_from",) if name in old}
    write_json(
        workdir / "run.json", {**kept, **facts, "starts": [*old["starts"], start_record(step, changes)]}
    )


def check_same_source(workdir: Path, started_from: dict[str, Any]) -> None:
    """Raises UserError where a run that has no checkpoint yet was begun with other first parameters."""
    old = read_run_json(workdir).get("started_from", started_from)
    if old != started_from:
        raise UserError(
            f"{workdir} was begun from {old['source']} when it was another (step {old['step']}, now "
            f"{started_from['step']}; checksum {old['checksum']}, now {started_from['checksum']}): give another --workdir"
        )


def read_metrics(workdir: Path, step: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to a step."""
    lines, path = [], workdir / "metrics.jsonl"
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                    if line["step"] <= step:
                        lines.append(line)
                except (ValueError, KeyError, TypeError):
                    break  # cut off in the middle of a line by a kill; nothing after it counts
    return lines


class MetricsLog:
    """metrics.jsonl, and TensorBoard events where asked for.

    A run that goes on from step k first drops every line past k: those steps are about to be done again, and
    nothing may be counted twice.
    """

    def __init__(self, workdir: Path, step: int, tensorboard: bool = False, writes: bool = True) -> None:
        self._writes = writes
        self._path = workdir / "metrics.jsonl"
        lines = read_metrics(workdir, step)
        self._valid_losses = {line["step"]: line["loss"] for line in lines if line["split"] == "valid"}
        # One process of several writes; the others follow what it would have read.
        if writes:
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file = (self._path if writes else Path(os.devnull)).open("a", encoding="utf-8")
        self._events = _event_writer(workdir, step) if tensorboard and writes else None

    def write(self, step: int, split: str, **values: float | None) -> None:
        """Add a line. None stands for what is not a finite number."""
        line = {"step": step, "split": split, **values}
        if split == "valid":
            self._valid_losses[step] = values["loss"]
        with errors_name(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if name not in ("time", "skipped") and value is not None:
                    self._events.add_scalar(f"{split}/{name}", value, step)

    def valid_losses(self) -> dict[int, float]:
        """Validation loss by step."""
        return dict(self._valid_losses)

    def sync(self) -> None:
        """Make sure that the lines outlive the machine: before a checkpoint says that its step is done."""
        if self._writes:
            with errors_name(self._path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        with errors_name(self._path):
            self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _event_writer(workdir: Path, step: int):
    require_tensorboard()
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)


def require_tensorboard() -> None:
    """Raise UserError that says what to install, where tensorboardX is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            'train.tensorboard=True needs tensorboardX: pip install "jaxgpt[tensorboard]"'
        ) from None


def snapshot_steps(num_steps: int, count: int) -> list[int]:
    """Step 0 and `count` log-spaced steps from 1 to num_steps, without repeats; none where count is 0."""
    if count == 0:
        return []
    return sorted(
        {0, *np.unique(np.round(np.geomspace(1, num_steps, count)).astype(int)).tolist(), num_steps}
    )


def embedding_tables(params: dict) -> dict[str, jax.Array]:
    """The token table [rows, D] and, where there is one, the position table [T, D]."""
    names = {"token": "token_embedding", "position": "position_embedding"}
    return {name: params[path]["embedding"] for name, path in names.items() if path in params}


def write_embeddings(workdir: Path, step: int, tables: dict[str, jax.Array], vocab_size: int) -> None:
    """Keep `embedding_tables`, without the padding of the token table."""
    tables = {name: np.asarray(table) for name, table in tables.items()}
    tables["token"] = tables["token"][:vocab_size]
    folder = workdir / "embeddings"
    folder.mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez(content, **tables)
    write_atomically(folder / f"{step:08d}.npz", content.getbuffer())


def write_sample(workdir: Path, step: int, text: str) -> None:
    """Keep the text that the model wrote at a step."""
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{step:08d}.txt", (text + "\n").encode("utf-8", errors="replace"))
