"""Save and restore the training state of a run, in the background while training continues.

A checkpoint is the folder RUN/checkpoints/<step> with the items `params`, `opt_state` and `meta` (step, config,
tokenizer, checksums; JSON), and `averaged` where an average of the parameters is the result. Orbax writes it under a
temporary name and renames it when it is complete, so a killed process leaves no incomplete checkpoint. It is then read
back, and only after that an older one is deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.common import causes, processes, say
from jaxgpt.common.files import LARGEST_JSON
from jaxgpt.config import Config, UserError
from jaxgpt.data import tokenizers
from jaxgpt.model.sharding import fits_twice
from jaxgpt.runs import orbax_log, orbax_paths
from jaxgpt.runs.checksums import copied, jit_checksums
from jaxgpt.runs.damage import DamagedCheckpoint, UnreadableCheckpoint
from jaxgpt.runs.state import TrainState
from jaxgpt.runs.stored_steps import StoredSteps

FOLDER = "checkpoints"
# Orbax's managers of one process mix up their signals when two of them save at once.
_ONE_AT_A_TIME = threading.Lock()
_shared_pool = ThreadPoolExecutor(1)  # of the runs that have no thread of their own


def saved_steps(workdir: str | Path) -> list[int]:
    """The steps that have a folder, in ascending order. No checkpoint is opened. Raises OSError for an unreadable folder."""
    folder = Path(workdir) / FOLDER
    try:
        with os.scandir(folder) as entries:
            return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())
    except FileNotFoundError:
        return []


def _check_before_orbax(path: Path) -> None:
    """Raise UserError for what is no small file: Orbax reads it when it opens the folder, a pipe for ever."""
    try:
        facts = path.lstat()
    except OSError:  # an absent one is fine, and Orbax reports the others
        return
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_JSON:
        raise UserError(
            f"{path} is not a file of at most {LARGEST_JSON >> 20} MiB: remove it, or give another folder"
        )


class Checkpoints(StoredSteps):
    """The checkpoints of one run folder. Use as a context manager, or call `close`.

    Keeps the latest `keep` and the one with the lowest validation loss. `save` returns at once if the devices have
    memory for a copy of the state, else when the arrays are copied to the host. The next call raises its error.

    One of many runs does not `hold` Orbax's manager, whose event loops have open files, nor a thread of its own.
    """

    def __init__(
        self, workdir: str | Path, keep: int = 1, read_only: bool = False, hold: bool = True
    ) -> None:
        orbax_log.start()
        self._hold = hold
        self._pool = ThreadPoolExecutor(1) if hold else _shared_pool
        self._saving: Future | None = None
        self._written: tuple[int, dict[str, Any]] | None = (
            None  # a step that is not verified yet, and its shapes
        )
        self._verified = 0  # saves of this process
        super().__init__(Path(workdir).absolute() / FOLDER)
        self._keep, self._read_only = keep, read_only
        self._names = contextlib.ExitStack()  # other names of the folder, for Orbax
        self._opened: Future | None = None  # Orbax's manager
        # A new run opens its folder later: importing Orbax takes 0.3 s.
        if hold and (read_only or self.directory.exists() or not processes.is_alone()):
            _ = self._manager

    def open_in_background(self) -> None:
        """Open the folder next to other work, instead of at its first use."""
        if self._opened is None and self._hold:
            self._opened = self._pool.submit(self._open)

    @property
    def _manager(self) -> Any:
        if self._opened is None:
            manager = self._open()
            self._opened = Future()
            self._opened.set_result(manager)
        return self._opened.result()

    def _open(self) -> Any:
        import orbax.checkpoint as ocp

        for step in saved_steps(self.directory.parent):
            _check_before_orbax(self.directory / str(step) / "_CHECKPOINT_METADATA")
        with self._one_line_errors("open"):
            if self._read_only:
                place = self._names.enter_context(orbax_paths.merged_view(self.directory))
                place = self._names.enter_context(orbax_paths.plain_name(place))
                options = ocp.CheckpointManagerOptions(
                    save_interval_steps=0, create=False, read_only=True, lightweight_initialize=True
                )
            else:
                self.directory.mkdir(parents=True, exist_ok=True)
                for step in saved_steps(self.directory.parent):
                    for item in orbax_paths.unmerged(self.directory / str(step)):
                        with contextlib.suppress(Exception):  # reading the step says what is wrong with it
                            orbax_paths.merge(item)
                place = self._names.enter_context(orbax_paths.plain_name(self.directory))
                options = ocp.CheckpointManagerOptions(
                    cleanup_tmp_directories=True
                )  # keeps all: see `_verify`
            return ocp.CheckpointManager(
                place,
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
        written = [] if self._written is None else [self._written[0]]
        return sorted({*saved_steps(self.directory.parent), *written})

    def best_step(self) -> int | None:
        """The saved step with the lowest validation loss, or None if no step has one."""
        return self.best_of(self.steps())

    # --- saving -----------------------------------------------------------------------------------------

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
        if self._written is not None:  # it was not waited for
            with self._one_line_errors("finish saving"):
                self._manager.wait_until_finished()
            self._verify()
        trees = {"params": state.params}
        if state.opt_state is not None:
            trees["opt_state"] = state.opt_state
        if averaged is not None:
            trees["averaged"] = averaged

        def write(trees: dict[str, Any], wait: bool = False) -> None:
            before()
            # Computed from the copies: reading the state itself would delay the next step, which reuses its memory.
            sums = {name: jit_checksums(tree) for name, tree in trees.items()}
            meta = {
                "step": step,
                "config": config.to_json(cfg),
                "tokenizer": tokenizer.to_json(),
                "valid_loss": valid_loss,
                "checksums": {name: np.asarray(values).tolist() for name, values in sums.items()},
            }
            args = self._ocp.args.Composite(
                meta=self._ocp.args.JsonSave(meta),
                **{name: self._ocp.args.StandardSave(tree) for name, tree in trees.items()},
            )
            shapes = {name: jax.tree.map(_shape, tree) for name, tree in trees.items()}
            del trees
            with _ONE_AT_A_TIME, self._one_line_errors(f"save step {step}"):
                self._manager.save(step, args=args, force=True)
                self._written = step, shapes
                del args
                if wait:
                    self._manager.wait_until_finished()
                    self._verify()
                    self._let_go()

        # Several processes write together: a background thread could reorder their messages to each other.
        if processes.is_alone() and fits_twice(trees):
            self._saving = self._pool.submit(write, copied(trees), wait=True)
        else:
            write(trees)

    def _verify(self) -> None:
        """Read back the step that was written last, then delete the steps that are not kept.

        Every file is opened and the metadata compared. The first step of a process is read completely, if a second copy of
        the state fits into memory. Raises UserError; then nothing is deleted.
        """
        if self._written is None:
            return
        (step, shapes), self._written = self._written, None
        error = None
        try:
            folder = self.directory / str(step)
            for parent, _, names in os.walk(folder):
                for name in names:
                    with Path(parent, name).open("rb") as file:
                        file.read(1)
            self._check_shapes(step, shapes)
            if self._verified == 0 and fits_twice(shapes):
                self.restore(step, **shapes)
            else:
                self._read_meta(step)
            self._verified += 1
        except Exception as problem:
            self._failed = True
            error = problem
        if processes.any_of_them(error is not None):
            raise UserError(
                f"step {step} was saved in {self.directory} and can't be read back: "
                f"{causes.describe(error) if error else 'another process has the cause'}; earlier checkpoints are kept"
            ) from error
        self._prune()

    def _prune(self) -> None:
        """Delete the steps that are neither among the latest nor the best."""
        steps = saved_steps(self.directory.parent)
        if len(steps) <= self._keep:
            return
        try:
            best = self.best_of(steps)
        except UserError as error:  # which one is the best is not known: keep all
            warn(f"{error}; no checkpoint is deleted")
            return
        for step in steps[: -self._keep]:
            if step != best:
                try:
                    self._manager.delete(step)
                except Exception as error:  # the new one is safe, and training continues
                    warn(
                        f"checkpoint {self.directory / str(step)} can't be deleted: {causes.describe(error)}"
                    )

    def _join(self) -> None:
        """Wait until the last save is in Orbax's hands, and raise its error."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def wait(self) -> None:
        """Wait until all saves are complete and read back."""
        self._join()
        if self._opened is not None:
            with self._one_line_errors("finish saving"):
                self._manager.wait_until_finished()
                self._verify()
                self._let_go()

    def _let_go(self) -> None:
        """Close what is held open, where this is one of many runs. It is opened again at the next use."""
        if not self._hold and self._opened is not None:
            self._opened.result().close()
            self._opened = None
            self._names.close()

    def close(self) -> None:
        """Complete all saves and release the folder."""
        try:
            self._join()
        finally:
            if self._hold:
                self._pool.shutdown()
            with self._names:
                if self._opened is not None:
                    with self._one_line_errors("finish saving"):
                        self._manager.wait_until_finished()
                        if processes.is_alone():  # others may have ended, and `_verify` waits for all
                            self._verify()
                        self._manager.close()
        if not self._failed:  # after an error Orbax's threads go on reporting it for a while
            orbax_log.stop()

    # --- resuming ---------------------------------------------------------------------------------------

    def _check_belongs(self, step: int, cfg: Config, tokenizer: tokenizers.Tokenizer) -> None:
        """Raise UserError if a run with another config or tokenizer saved this step."""
        own_cfg, own_tokenizer, _ = self.read_facts(step)
        changed = config.differences(own_cfg, cfg)
        if not changed and own_tokenizer.to_json() != tokenizer.to_json():
            changed = ["the tokenizer"]
        if changed:
            raise UserError(
                f"checkpoint {self.directory / str(step)} belongs to a run with another config ({'; '.join(changed)}): move it "
                "away, or give another --workdir"
            )

    def restore_latest(
        self, cfg: Config, tokenizer: tokenizers.Tokenizer, shapes: TrainState
    ) -> TrainState | None:
        """The latest valid state of this run; None where nothing is saved.

        Damaged checkpoints after it are moved away, with a warning. Raises UserError, and moves nothing, where a checkpoint
        can't be read, belongs to another run, or where all are damaged.
        """
        damaged: dict[int, DamagedCheckpoint | None] = {}
        for step in reversed(self.steps()):
            error: UserError | None = None
            try:
                self._check_belongs(step, cfg, tokenizer)
                items = self.restore(step, params=shapes.params, opt_state=shapes.opt_state)
            except UserError as found:
                error = found
            refused = error is not None and not isinstance(error, DamagedCheckpoint)
            if processes.any_of_them(refused):
                raise error or UnreadableCheckpoint(
                    f"checkpoint {self.directory / str(step)} can't be read by another process"
                )
            if processes.any_of_them(error is not None):
                damaged[step] = error if isinstance(error, DamagedCheckpoint) else None
                continue
            if not damaged:
                self._let_go()
            for other, proof in damaged.items():
                warn(
                    f"{proof or f'checkpoint {other} is damaged'}; moved to {self._move_damaged(other)}, resuming from step {step}"
                )
            return TrainState(jnp.int32(step), items["params"], items["opt_state"])
        if damaged:
            newest = next(iter(damaged.values())) or "another process has the cause"
            raise UserError(
                f"every checkpoint of {self.directory.parent} is damaged ({newest}): to start from step 0 move this folder "
                "away, or let train do it with --restart"
            )
        return None

    def _move_damaged(self, step: int) -> Path:
        """Move a damaged checkpoint to RUN/damaged/<step>, so that the step can be saved again. Returns its new path."""
        target = self.directory.parent / "damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")

        def move() -> None:
            target.parent.mkdir(exist_ok=True)
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
            raise UserError(
                f"could not {action} in {self.directory}: {causes.describe(error)}; checkpoints saved before are untouched"
            ) from error


def warn(message: str) -> None:
    """Print a warning, once for all processes."""
    if processes.is_first():
        say.warn(message)


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
