"""The files of a run other than its checkpoints and metrics: config, provenance, samples, embedding tables.

RUN/config.json     the resolved config
RUN/run.json        versions, device, commit, hashes, parameter count, baselines, each start and what it changed
RUN/tokenizer.json  the tokenizer
RUN/samples/        the text sampled at each evaluation, one file per step
RUN/embeddings/     the embedding tables at step 0 and at log-spaced steps, one .npz file per step
"""

from __future__ import annotations

import importlib.metadata
import io
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt import config
from jaxgpt.common import door
from jaxgpt.common.files import lock, read_json, write_atomically, write_json
from jaxgpt.config import Config, UserError

Changes = dict[str, tuple[Any, Any]]  # the old and the new value of a field, by dotted name


def make_folder(workdir: Path) -> None:
    """Create the folder if it does not exist. Raises UserError if that fails."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{workdir} or a part of its path is a file, not a folder: give another --workdir"
        ) from None
    except OSError as error:
        raise UserError(
            f"can't make the folder {workdir} ({error.strerror}): give another --workdir"
        ) from None


class FolderLock:
    """A lock so that only one process trains in a folder. The system releases it when the process ends or is killed."""

    def __init__(self, workdir: Path) -> None:
        try:
            self._file = door.open_regular(
                workdir / ".lock", os.O_RDWR | os.O_CREAT
            )  # as it is: never emptied
        except ValueError as error:
            raise UserError(f"{workdir / '.lock'}: {error}; remove it, or give another --workdir") from None
        try:
            lock(self._file)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"another process is training in {workdir}: wait for it, or give another --workdir"
            ) from None

    def release(self) -> None:
        """Allow other processes to train in the folder."""
        self._file.close()


def check_same_config(workdir: Path, cfg: Config, steps_done: int) -> Config | None:
    """The config of the run that the folder holds, or None. Raises UserError with every difference if it is another run.

    Fields that only observe or keep may differ, and the places of texts and sources (see `check_same_text`). So may
    train.num_steps: the run resumes from its newest state under the new schedule. It can't be less than the steps already
    done.
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
        stored = read_json(path)
        old = config.from_json(stored)
    except config.NewerVersion as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} can't be read ({error}): give another --workdir") from None
    if changed := config.differences(old, cfg):
        final = stored.get("optim", {}).get(
            "final_learning_rate"
        )  # an older version wrote it, with a default of 1e-4
        named = final is not None and any(
            text.startswith("optim.final_learning_rate_ratio") for text in changed
        )
        keep = f" (its final rate: --config.optim.final_learning_rate={final})" if named else ""
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}): "
            f"give another --workdir, the same config to resume{keep}, or --restart to start over"
        )
    if cfg.train.num_steps < steps_done:
        raise UserError(
            f"train.num_steps={cfg.train.num_steps}, but the run in {workdir} has done {steps_done} steps: give "
            f"{steps_done} or more, or another --workdir"
        )
    return old


SET_ASIDE = "before"


def set_aside(workdir: Path) -> Path | None:
    """Move everything of the run in a folder to RUN/before/<n>, which can be used as a run. None for an empty folder."""
    entries = [entry for entry in workdir.iterdir() if entry.name not in (SET_ASIDE, ".lock")]
    if not entries:
        return None
    place = workdir / SET_ASIDE
    place.mkdir(exist_ok=True)
    number = next(n for n in itertools.count(1) if not (place / str(n)).exists())
    target = place / str(number)
    target.mkdir()
    for entry in entries:
        entry.rename(target / entry.name)
    return target


def versions() -> dict[str, str]:
    """The versions of the packages that influence the numbers of a run."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
    found = {"python": platform.python_version(), "jaxgpt": importlib.metadata.version("jaxgpt")}
    return found | {name: importlib.metadata.version(name) for name in packages}


def git_commit() -> str | None:
    """The commit of the running code, with `+changes` if files differ from it; None outside git."""
    here = Path(__file__).parents[1]  # the package

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.strip()

    try:
        # Only this package's own checkout counts, not a repository around a virtual environment.
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


def start_record(
    step: int, changes: Changes | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One start of the run: its time, step, command, code, machine, changed fields and XLA's options."""
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
        **({"compiler_options": dict(options)} if options else {}),
    }


# What is read again of run.json, by anyone who may have been given the folder. A value may be absent or null.
_FACTS: dict[str, type] = {
    "corpus": str,
    "tokenizer": str,
    "vocab_size": int,
    "train_tokens": int,
    "valid_tokens": int,
}
_START: dict[str, type] = {
    "time": str,
    "command": str,
    "commit": str,
    "device": str,
    "machine": str,
    "versions": dict,
}


def _check_types(values: dict[str, Any], types: dict[str, type], where: str) -> None:
    """Raises ValueError for a value of another type."""
    for name, of_type in types.items():
        value = values.get(name)
        if value is not None and type(value) is not of_type:
            raise ValueError(f"{where}{name} is of type {type(value).__name__}, not {of_type.__name__}")


def read_run_json(workdir: Path) -> dict[str, Any]:
    """The content of run.json, or only an empty `starts` if it does not exist. Raises UserError if it is damaged."""
    path = workdir / "run.json"
    if not path.exists():
        return {"starts": []}
    try:
        facts = read_json(path)
        if not isinstance(facts, dict) or not isinstance(facts.get("starts"), list):
            raise ValueError('it is not an object with a list "starts"')
        _check_types(facts, _FACTS, "")
        for number, start in enumerate(facts["starts"]):
            if not isinstance(start, dict):
                raise ValueError(f"starts.{number} is of type {type(start).__name__}, not an object")
            _check_types(start, _START, f"starts.{number}.")
        return facts
    except ValueError as error:
        raise UserError(f"{path} can't be read ({error}): give another --workdir") from None


def imported_from(workdir: Path) -> str | None:
    """The name of the source of an imported model; None if the model was trained in this folder."""
    imported = read_run_json(workdir).get("imported")
    return str(imported.get("name")) if isinstance(imported, dict) else None


def check_same_text(workdir: Path, **hashes: str | None) -> None:
    """Raise UserError if `text_sha256`, `valid_text_sha256` or `tokenizer_sha256` differs from the run's. Call it before writing anything."""
    old = read_run_json(workdir)
    for name, now in hashes.items():
        if old["starts"] and old.get(name) != now:
            raise UserError(
                f"{workdir} was started with another text or tokenizer ({name} was {str(old.get(name))[:12]}..., "
                f"is {str(now)[:12]}...): give the old text, or another folder"
            )


def check_same_validation(workdir: Path, hashes: Mapping[str, str]) -> None:
    """Raise UserError if a validation text has another hash than the run's of that name. Others may come and go."""
    known = read_run_json(workdir).get("valid_texts")
    for name, now in hashes.items():
        old = known.get(name) if isinstance(known, dict) else None
        if isinstance(old, dict) and old.get("text_sha256") != now:
            raise UserError(
                f"{workdir} was started with another validation text {name!r} (its hash was "
                f"{str(old.get('text_sha256'))[:12]}..., is {now[:12]}...): give the old text, or another name in data.valid_paths"
            )


def write_run_json(
    workdir: Path,
    facts: dict[str, Any],
    step: int,
    changes: Changes | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write run.json, and add this start to `starts`, with its changed fields and the options of XLA's compiler."""
    old = read_run_json(workdir)
    kept = {name: old[name] for name in ("started_from",) if name in old}
    write_json(
        workdir / "run.json",
        {**kept, **facts, "starts": [*old["starts"], start_record(step, changes, options)]},
    )


def check_same_source(workdir: Path, started_from: dict[str, Any]) -> None:
    """Raise UserError if a run was started with other initial parameters. Their folder may have moved."""
    old = read_run_json(workdir).get("started_from", started_from)
    if {**old, "source": None} != {**started_from, "source": None}:
        raise UserError(
            f"{workdir} was started from {old['source']}, which has changed since (step {old['step']}, now "
            f"{started_from['step']}; checksum {old['checksum']}, now {started_from['checksum']}): give another --workdir"
        )


def embedding_tables(params: dict) -> dict[str, jax.Array]:
    """The token table [rows, D] and, for learned positions, the position table [T, D]."""
    names = {"token": "token_embedding", "position": "position_embedding"}
    return {name: params[path]["embedding"] for name, path in names.items() if path in params}


def write_embeddings(
    workdir: Path, step: int, tables: Mapping[str, jax.Array | np.ndarray], vocab_size: int
) -> None:
    """Write `embedding_tables` of a step, without the padding rows of the token table."""
    arrays: dict[str, Any] = {name: np.asarray(table) for name, table in tables.items()}
    arrays["token"] = arrays["token"][:vocab_size]
    folder = workdir / "embeddings"
    folder.mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(folder / f"{step:08d}.npz", content.getbuffer())


def write_sample(workdir: Path, step: int, text: str) -> None:
    """Write the text that the model generated at a step."""
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{step:08d}.txt", (text + "\n").encode("utf-8", errors="replace"))


def read_sample(workdir: Path, step: int) -> str | None:
    """The text that the model generated at a step; None if none is kept."""
    path = workdir / "samples" / f"{step:08d}.txt"
    return path.read_text("utf-8") if path.exists() else None
