"""Save and restore the training state of a run, in the background while training continues.

A checkpoint is the folder RUN/checkpoints/<step> with the items `params`, `opt_state` and `meta` (step, config,
tokenizer, checksums; JSON), and `averaged` where an average of the parameters is the result. Orbax writes it under a
temporary name and renames it when it is complete, so a killed process leaves no incomplete checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.common import processes
from jaxgpt.common.files import check_tree
from jaxgpt.config import Config, UserError, first_line
from jaxgpt.data import tokenizers
from jaxgpt.model.paths import named_leaves
from jaxgpt.model.sharding import device_memory, fits_twice, replicate
from jaxgpt.runs import orbax_log
from jaxgpt.runs.state import TrainState

FOLDER = "checkpoints"
# Orbax's managers of one process mix up their signals when two of them save at once.
_ONE_AT_A_TIME = threading.Lock()


def saved_steps(workdir: str | Path) -> list[int]:
    """The steps that have a folder, in ascending order. No checkpoint is opened."""
    return sorted(int(path.name) for path in (Path(workdir) / FOLDER).glob("*") if path.name.isdigit())


class DamagedCheckpoint(UserError):
    """A checkpoint differs from what was written, or can't be read. The text names it and the problem."""


def checksums(tree: Any) -> jax.Array:
    """One uint32 per leaf: sums of integers, which do not depend on the number of devices or on the order."""

    def leaf_sum(x: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        # Each element is first mixed with its position: a plain sum would not change when two elements are swapped.
        for axis in range(x.ndim):
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            bits = (bits ^ (place * jnp.uint32(2_654_435_761))) * jnp.uint32(2_246_822_519 - 2 * axis)
        bits = (bits ^ (bits >> 15)) * jnp.uint32(3_266_489_917)
        return bits.sum(dtype=jnp.uint32)

    return replicate(jnp.stack([leaf_sum(leaf) for leaf in jax.tree.leaves(tree)]))


_jit_checksums = jax.jit(checksums)


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager, or call `close`.

    Keeps the latest `keep` and the one with the lowest validation loss. `save` returns at once if the devices have
    memory for a copy of the state, else when the arrays are copied to the host. The next call raises its error.
    """

    def __init__(self, workdir: str | Path, keep: int = 1, read_only: bool = False) -> None:
        orbax_log.start()
        self._pool = ThreadPoolExecutor(1)
        self._saving: Future | None = None
        self._failed = False
        self.directory = Path(workdir).absolute() / FOLDER
        self._keep, self._read_only = keep, read_only
        self._opened: Future | None = None  # Orbax's manager
        # A new run opens its folder later: importing Orbax takes 0.3 s.
        if read_only or self.directory.exists() or not processes.is_alone():
            _ = self._manager

    def open_in_background(self) -> None:
        """Open the folder next to other work, instead of at its first use."""
        if self._opened is None:
            self._opened = self._pool.submit(self._open)

    @property
    def _manager(self) -> Any:
        if self._opened is None:
            manager = self._open()
            self._opened = Future()
            self._opened.set_result(manager)
        return self._opened.result()

    @property
    def _ocp(self) -> ModuleType:
        return importlib.import_module("orbax.checkpoint")

    def _open(self) -> Any:
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        keep, read_only = self._keep, self._read_only
        if read_only:
            options = ocp.CheckpointManagerOptions(
                save_interval_steps=0, create=False, read_only=True, best_fn=_valid_loss, best_mode="min"
            )
        else:
            keep_policy = policy.AnyPreservationPolicy(
                [
                    policy.LatestN(keep),
                    policy.BestN(
                        get_metric_fn=_valid_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            )
            options = ocp.CheckpointManagerOptions(
                best_fn=_valid_loss,
                best_mode="min",
                preservation_policy=keep_policy,
                cleanup_tmp_directories=True,
            )
        with self._one_line_errors("open"):
            return ocp.CheckpointManager(
                self.directory,
                options=options,
                item_handlers={
                    "params": ocp.StandardCheckpointHandler(),
                    "averaged": ocp.StandardCheckpointHandler(),
                    "opt_state": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in ascending order."""
        self._join()
        return [] if self._opened is None else sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The saved step with the lowest validation loss, or None if no step has one."""
        found = {step: self.valid_loss(step) for step in self.steps()}
        losses = {step: loss for step, loss in found.items() if loss is not None}
        return min(losses, key=losses.__getitem__) if losses else None

    def valid_loss(self, step: int) -> float | None:
        """The validation loss that was saved with a step, or None."""
        metrics = self._manager.metrics(step)
        return None if metrics is None else metrics.get("valid_loss")

    def save(
        self,
        state: TrainState,
        cfg: Config,
        tokenizer: tokenizers.Tokenizer,
        valid_loss: float | None = None,
        averaged: dict | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Save a state under its step, in the background. A step that is already saved is not changed.

        averaged: the parameters to use, if they differ from those that training continues with. An `opt_state` of
        None (an imported model) is not saved. `before` is called first, also in the background.
        """
        step = int(state.step)
        if step in self.steps():
            return
        trees = {"params": state.params}
        if state.opt_state is not None:
            trees["opt_state"] = state.opt_state
        if averaged is not None:
            trees["averaged"] = averaged
        metrics = None if valid_loss is None else {"valid_loss": valid_loss}

        def write(trees: dict[str, Any], wait: bool = False) -> None:
            before()
            # Computed from the copies: reading the state itself would delay the next step, which reuses its memory.
            sums = {name: _jit_checksums(tree) for name, tree in trees.items()}
            meta = {
                "step": step,
                "config": config.to_json(cfg),
                "tokenizer": tokenizer.to_json(),
                "checksums": {name: np.asarray(values).tolist() for name, values in sums.items()},
            }
            args = self._ocp.args.Composite(
                meta=self._ocp.args.JsonSave(meta),
                **{name: self._ocp.args.StandardSave(tree) for name, tree in trees.items()},
            )
            with _ONE_AT_A_TIME, self._one_line_errors(f"save step {step}"):
                self._manager.save(step, args=args, metrics=metrics, force=True)
                if wait:
                    self._manager.wait_until_finished()

        # Several processes write together: a background thread could reorder their messages to each other.
        if processes.is_alone() and fits_twice(trees):
            self._saving = self._pool.submit(write, _copied(trees), wait=True)
        else:
            write(trees)

    def _join(self) -> None:
        """Wait until the last save is in Orbax's hands, and raise its error."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def wait(self) -> None:
        """Wait until all saves are complete."""
        self._join()
        if self._opened is not None:
            with self._one_line_errors("finish saving"):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Complete all saves and release the folder."""
        try:
            self._join()
        finally:
            self._pool.shutdown()
            if self._opened is not None:
                with self._one_line_errors("finish saving"):
                    self._manager.close()
        if not self._failed:  # after an error Orbax's threads go on reporting it for a while
            orbax_log.stop()

    def _read_meta(self, step: int) -> dict[str, Any]:
        """The `meta` item of a step: `step`, `config`, `tokenizer` and `checksums` as JSON values.

        Raises DamagedCheckpoint, also for a folder with links, pipes or oversized files: anybody may have made it.
        """
        with self._damage_reported(step):
            check_tree(self.directory / str(step))
            args = self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())
            meta = self._manager.restore(step, args=args)["meta"]
            if meta["step"] != step:
                raise ValueError(f"its meta item belongs to step {meta['step']}")
            return meta

    def read_facts(self, step: int) -> tuple[Config, tokenizers.Tokenizer, dict[str, Any]]:
        """The config, the tokenizer and the checksums (by item) of a step. Raises DamagedCheckpoint."""
        meta = self._read_meta(step)
        with self._damage_reported(step):
            cfg = config.from_json(meta["config"])
            return cfg, tokenizers.from_json(meta["tokenizer"]), meta["checksums"]

    def _check_belongs(self, step: int, cfg: Config, tokenizer: tokenizers.Tokenizer) -> None:
        """Raise DamagedCheckpoint if a run with another config or tokenizer saved this step."""
        own_cfg, own_tokenizer, _ = self.read_facts(step)
        with self._damage_reported(step):
            if changed := config.differences(own_cfg, cfg):
                raise ValueError(f"it belongs to a run with another config ({'; '.join(changed)})")
            if own_tokenizer.to_json() != tokenizer.to_json():
                raise ValueError("it belongs to a run with another tokenizer")

    def restore(self, step: int, **shapes: Any) -> dict[str, Any]:
        """Read items by name and verify their checksums: `restore(100, params=shapes)["params"]`.

        shapes: trees of jax.ShapeDtypeStruct. Arrays without a sharding go to the first device.
        Raises DamagedCheckpoint, and UserError if the memory of this machine is too small.
        """
        meta = self._read_meta(step)
        with self._damage_reported(step):
            self._check_shapes(step, shapes)
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        if needed > (memory := device_memory() * jax.device_count()):
            raise UserError(
                f"checkpoint {self.directory / str(step)} needs {needed / 2**30:,.1f} GiB of memory, this machine has "
                f"{memory / 2**30:,.1f} GiB: use a larger one"
            )
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device),
            shapes,
        )
        with self._damage_reported(step):
            args = {name: self._ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
            items = self._manager.restore(step, args=self._ocp.args.Composite(**args))
            for name in shapes:
                found = np.asarray(_jit_checksums(items[name]))
                wrong = np.flatnonzero(found != np.asarray(meta["checksums"][name], np.uint32))
                if wrong.size:
                    names = [path for path, _ in named_leaves(items[name])]
                    raise ValueError(f"the checksum of {name}/{names[wrong[0]]} does not match")
        return {name: items[name] for name in shapes}

    def _check_shapes(self, step: int, shapes: dict[str, Any]) -> None:
        """Compare shapes and dtypes first: Orbax reports a shape in many lines, and casts a dtype silently."""
        saved = self._manager.item_metadata(step)
        for item, tree in shapes.items():
            expected = {path: (leaf.shape, leaf.dtype) for path, leaf in named_leaves(tree)}
            found = {
                path: (tuple(leaf.shape), np.dtype(leaf.dtype))
                for path, leaf in named_leaves(
                    saved[item].tree if hasattr(saved[item], "tree") else saved[item]
                )
            }
            if len(found) != len(expected):
                raise ValueError(f"{item} has {len(found)} arrays, expected {len(expected)}")
            for path in expected.keys() & found.keys():
                if expected[path] != found[path]:
                    raise ValueError(f"{item}/{path} is {found[path]}, expected {expected[path]}")

    def restore_latest(
        self, cfg: Config, tokenizer: tokenizers.Tokenizer, shapes: TrainState
    ) -> TrainState | None:
        """The latest valid state of this run, or None.

        A checkpoint that is damaged or belongs to another run is moved away, with a warning.
        """
        steps = self.steps()
        for step in reversed(steps):
            error = None
            try:
                self._check_belongs(step, cfg, tokenizer)
                items = self.restore(step, params=shapes.params, opt_state=shapes.opt_state)
            except DamagedCheckpoint as damage:
                error = damage
            if not processes.any_of_them(error is not None):
                return TrainState(jnp.int32(step), items["params"], items["opt_state"])
            place = self._move_damaged(step)
            warn(f"{error or f'checkpoint {step} is damaged'}; moved to {place}, trying the one before")
        if steps:
            warn("every checkpoint was damaged; the run starts from step 0")
        return None

    def _move_damaged(self, step: int) -> Path:
        """Move a damaged checkpoint to RUN/damaged/<step>, so that the step can be saved again. Returns its new path."""
        target = self.directory.parent / "damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        target.parent.mkdir(exist_ok=True)

        def move() -> None:
            shutil.move(self.directory / str(step), target)

        processes.on_first(move)
        self._manager.reload()
        return target

    @contextlib.contextmanager
    def _one_line_errors(self, action: str) -> Iterator[None]:
        """Turn the errors of writing into UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            self._failed = True
            # A full disk is a ValueError, RuntimeError or OSError of Orbax or TensorStore.
            raise UserError(
                f"could not {action} in {self.directory}: {_cause(error)} "
                "(free some space or make the folder writable; checkpoints saved before are untouched)"
            ) from error

    @contextlib.contextmanager
    def _damage_reported(self, step: int) -> Iterator[None]:
        """Turn the errors of reading a step into DamagedCheckpoint."""
        try:
            yield
        except DamagedCheckpoint:
            raise
        except config.NewerVersion as error:  # nothing is damaged
            raise UserError(f"checkpoint {self.directory / str(step)}: {error}") from None
        except Exception as error:
            self._failed = True
            raise DamagedCheckpoint(
                f"checkpoint {self.directory / str(step)} is damaged: {_cause(error)}"
            ) from error


def warn(message: str) -> None:
    """Print a warning, once for all processes."""
    if processes.is_first():
        print(f"warning: {message}", file=sys.stderr)


def _valid_loss(metrics: dict[str, float]) -> float:
    return metrics["valid_loss"]


# The details that TensorStore adds to the text of an error.
_DETAILS = r"\.? *(?:\[\w+( \w+)*='| See full TensorStore details)"


def _cause(error: BaseException) -> str:
    """The first line of an error, shortened in the middle: the cause is at its end."""
    line = re.split(_DETAILS, first_line(error), maxsplit=1)[0]
    return line if len(line) <= 300 else line[:120] + " ... " + line[-180:]
