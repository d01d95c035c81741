"""The parameters of a run at many steps, RUN/snapshots/<step>.safetensors: how a model came to be what it is.

A snapshot has no optimizer state, and is never deleted to make room. Its parameters are those that `jaxgpt.load` gives of a
checkpoint: the average of the parameters, where the run keeps one. The file has the step, config, tokenizer and checksums as
metadata. It appears when it is complete and was read back, as a checkpoint does.

The format is not that of checkpoints: for a model of 3 MB Orbax takes 0.15 s of a core, this some milliseconds.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.common import causes, door, processes
from jaxgpt.common.files import errors_name, replaced_atomically
from jaxgpt.config import Config, UserError, snapshots
from jaxgpt.data import tokenizers
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.paths import map_named, named_leaves
from jaxgpt.model.sharding import fits_twice, replicate
from jaxgpt.runs.checksums import jit_checksums
from jaxgpt.runs.damage import DamagedCheckpoint, UnreadableCheckpoint

FOLDER, _SUFFIX = "snapshots", ".safetensors"
MOST_WAITING = 256 << 20  # bytes of copies that wait to be written; one may be larger
_pool = ThreadPoolExecutor(1)  # writes the snapshots of all runs, in the order of the calls


def saved_steps(workdir: str | Path) -> list[int]:
    """The steps that have a snapshot, in ascending order. None is opened. Raises OSError for an unreadable folder."""
    try:
        names = [entry.name for entry in (Path(workdir) / FOLDER).iterdir()]
    except FileNotFoundError:
        return []
    steps = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(int(step) for step in steps if step.isdecimal())


def path_of(workdir: Path, step: int) -> Path:
    """The file of a step."""
    return workdir / FOLDER / f"{step:08d}{_SUFFIX}"


@jax.jit
def _copied(tree: Any) -> Any:
    """A copy of every array, complete on every device, which the next training step can't overwrite."""
    return replicate(jax.tree.map(jnp.copy, tree))


class Snapshots:
    """Writes the snapshots of a run that resumes from a step. The first of several processes writes.

    Those of later steps are removed: the run does these steps again, perhaps under another schedule. `save` returns at once,
    while the copies that wait to be written are small enough. The next call raises its error.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._workdir = workdir
        self._waiting: deque[tuple[int, Future]] = deque()  # bytes, and the end of writing
        processes.on_first(lambda: self._remove_after(step))
        self._saved = set(saved_steps(workdir))

    def _remove_after(self, step: int) -> None:
        folder = self._workdir / FOLDER
        unfinished = folder.glob(".*.tmp")  # of a process that was killed
        for path in (
            *unfinished,
            *(path_of(self._workdir, n) for n in saved_steps(self._workdir) if n > step),
        ):
            with errors_name(folder):
                path.unlink()

    def save(
        self, step: int, params: Mapping[str, Any], cfg: Config, tokenizer: tokenizers.Tokenizer
    ) -> None:
        """Save parameters (arrays of any sharding) in the background. A step that is already saved is not changed."""
        if processes.any_of_them(step in self._saved):
            return
        self._saved.add(step)
        size = _bytes(params)
        while self._waiting and (
            self._waiting[0][1].done() or sum(n for n, _ in self._waiting) + size > MOST_WAITING
        ):
            self._waiting.popleft()[1].result()
        on_devices = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))  # lanes are not
        if on_devices and (fits_twice(params) or not processes.is_alone()):
            params = _copied(params)
        elif on_devices:
            params = jax.device_get(params)
        if processes.is_first():
            self._waiting.append((size, _pool.submit(self._write, step, params, cfg, tokenizer)))

    def pending(self) -> list[Future]:
        """The saves that may not be complete. Their results raise their errors."""
        return [saving for _, saving in self._waiting]

    def wait(self) -> None:
        """Wait until all snapshots are complete and read back."""
        while self._waiting:
            self._waiting.popleft()[1].result()

    def _write(self, step: int, params: Any, cfg: Config, tokenizer: tokenizers.Tokenizer) -> None:
        from safetensors.numpy import save_file

        path = path_of(self._workdir, step)
        try:
            arrays = {name: np.ascontiguousarray(leaf) for name, leaf in named_leaves(params)}
            sums = np.asarray(jit_checksums(list(arrays.values()))).tolist()
            meta = {
                "step": step,
                "config": config.to_json(cfg),
                "tokenizer": tokenizer.to_json(),
                "checksums": dict(zip(arrays, sums, strict=True)),
            }
            path.parent.mkdir(exist_ok=True)
            with replaced_atomically(path) as temporary:
                temporary.touch()
                mode = temporary.stat().st_mode  # the user's umask; the package makes files private
                save_file(arrays, temporary, {"jaxgpt": json.dumps(meta, ensure_ascii=False)})
                temporary.chmod(mode)
                _read(temporary, step)
        except Exception as error:
            raise UserError(
                f"could not write the snapshot {path}: {causes.describe(error)}; checkpoints saved before are untouched"
            ) from error


# --- reading --------------------------------------------------------------------------------------------


def read(workdir: Path, step: int) -> tuple[Config, tokenizers.Tokenizer, dict]:
    """The config, tokenizer and parameters of a snapshot. Raises DamagedCheckpoint and UnreadableCheckpoint."""
    return _read(path_of(workdir, step), step)


def _read(path: Path, step: int) -> tuple[Config, tokenizers.Tokenizer, dict]:
    from safetensors import SafetensorError, safe_open

    try:
        with door.open_regular(path) as file:
            while file.read(1 << 22):  # where the system refuses, it says so
                pass
        with safe_open(path, framework="np") as tensors:
            meta = json.loads((tensors.metadata() or {})["jaxgpt"])
            cfg, tokenizer = config.from_json(meta["config"]), tokenizers.from_json(meta["tokenizer"])
            if meta["step"] != step:
                raise ValueError(f"it belongs to step {meta['step']!r:.20}")
            shapes = dict(named_leaves(param_shapes(cfg.model)))
            if {*tensors.keys()} != shapes.keys():
                raise ValueError("its arrays are not those of its config")
            arrays: dict[str, np.ndarray] = {}
            for name, expected in shapes.items():
                arrays[name] = array = tensors.get_tensor(name)
                if (array.shape, array.dtype) != (expected.shape, expected.dtype):
                    raise ValueError(
                        f"{name} is {array.dtype}{list(array.shape)}, not {expected.dtype}{list(expected.shape)}"
                    )
        params = map_named(lambda name, _: jnp.asarray(arrays[name]), param_shapes(cfg.model))
        sums = np.asarray(jit_checksums([leaf for _, leaf in named_leaves(params)])).tolist()
        for name, found in zip(shapes, sums, strict=True):
            if meta["checksums"][name] != found:
                raise ValueError(f"the checksum of {name} does not match")
        return cfg, tokenizer, params
    except UserError as error:  # of another version, or written by somebody: it was read as it is stored
        raise UnreadableCheckpoint(f"snapshot {path}: {error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DamagedCheckpoint(f"snapshot {path} is damaged: {causes.describe(error)}") from error
    except Exception as error:
        raise UnreadableCheckpoint(
            f"snapshot {path} can't be read: {causes.describe(error)}; nothing is changed"
        ) from error


# --- what a run will write ------------------------------------------------------------------------------


def planned(cfg: Config) -> list[int]:
    """The steps of a run's snapshots."""
    train = cfg.train
    return snapshots.steps(train.snapshots, train.num_steps, train.steps_per_dispatch)


def describe(cfg: Config) -> str:
    """The number and the size of a resolved config's snapshots, for people; "" for none."""
    if not (steps := planned(cfg)):
        return ""
    each = _bytes(param_shapes(cfg.model))
    return f"{len(steps):,} of {_size(each)}, {_size(len(steps) * each)} in all"


def check_room(runs: list[tuple[Config, Path]]) -> None:
    """Raise UserError where the disk has no room for the snapshots that these runs, with resolved configs, will write."""
    needed: dict[int, int] = {}  # bytes by file system
    for cfg, workdir in runs:
        if not (left := set(planned(cfg)) - set(saved_steps(workdir))):
            continue
        place = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
        disk = place.stat().st_dev
        needed[disk] = needed.get(disk, 0) + len(left) * _bytes(param_shapes(cfg.model))
        free = shutil.disk_usage(place).free
        if needed[disk] > free:
            raise UserError(
                f"train.snapshots={cfg.train.snapshots!r} needs {_size(needed[disk])} ({describe(cfg)}"
                f"{', for each of several runs' if len(runs) > 1 else ''}), and the disk of {place} has {_size(free)} free: "
                "give fewer, such as log:8, none, or a --workdir on another disk"
            )


def _bytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"
