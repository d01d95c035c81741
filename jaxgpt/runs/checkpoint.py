"""Checkpoints: a run's state, config and tokenizer in one place, written while training goes on.

A checkpoint is one step's folder, RUN/checkpoints/<step>, with three items: `params`, `opt_state` and `meta`
(step, config, tokenizer, checksums; JSON), and a fourth, `averaged`, where an average of the params is what is used.
Orbax writes it under another name and renames it when it is whole, so a killed process leaves no half checkpoint that looks like one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.common import processes
from jaxgpt.common.files import check_tree, new_folder
from jaxgpt.config import Config, UserError, first_line
from jaxgpt.data import tokenizers
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params, param_shapes
from jaxgpt.model.paths import named_leaves
from jaxgpt.model.sharding import device_memory, fits_twice, replicate
from jaxgpt.runs import records
from jaxgpt.runs.state import TrainState

FOLDER = "checkpoints"
# Orbax's managers of one process take each other's signals for their own when two of them save at once.
_ONE_AT_A_TIME = threading.Lock()


def saved_steps(workdir: str | Path) -> list[int]:
    """The steps that have a folder of their own, in order; nothing is opened."""
    return sorted(int(path.name) for path in (Path(workdir) / FOLDER).glob("*") if path.name.isdigit())


class DamagedCheckpoint(UserError):
    """A checkpoint that can't be read back as it was written. The text says which, and what is wrong."""


def checksums(tree: Any) -> jax.Array:
    """One uint32 a leaf. Sums of whole numbers, so the same on any number of devices and in any order."""

    def leaf_sum(x: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        # Each element is mixed with its position first: a plain sum would not see two elements swapped.
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
    """The checkpoints of one run folder.

    Keeps the newest `keep` and the one with the lowest validation loss. Saving returns at once where a copy of the
    state fits beside it in the devices' memory, else as soon as the arrays are copied out; an error of an earlier save
    is raised by the next call.
    """

    def __init__(self, workdir: str | Path, keep: int = 1, read_only: bool = False) -> None:
        import orbax.checkpoint as ocp  # 0.3 s: only where checkpoints are used
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        # Orbax tells each file that it touches, and of each error the traceback, though it raises it as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        self._pool = ThreadPoolExecutor(1)
        self._saving: Future | None = None
        self.directory = Path(workdir).absolute() / FOLDER
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
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=options,
                item_handlers={
                    "params": ocp.StandardCheckpointHandler(),
                    "averaged": ocp.StandardCheckpointHandler(),
                    "opt_state": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, oldest first."""
        self._join()
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the lowest validation loss among those saved with one."""
        losses = {step: self.valid_loss(step) for step in self.steps()}
        losses = {step: loss for step, loss in losses.items() if loss is not None}
        return min(losses, key=losses.__getitem__) if losses else None

    def valid_loss(self, step: int) -> float | None:
        """The validation loss that the step was saved with, or None."""
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
        """Save a state under its step, in the background. A step that is saved already is left as it is.

        `averaged` are the params to use where they are others than those that training goes on with. An
        `opt_state` of None is not saved: the params of a model that was not trained here. `before` is done first, in
        the background too.
        """
        step = int(state.step)
        self._join()
        if step in self._manager.all_steps():
            return
        trees = {"params": state.params}
        if state.opt_state is not None:
            trees["opt_state"] = state.opt_state
        if averaged is not None:
            trees["averaged"] = averaged
        metrics = None if valid_loss is None else {"valid_loss": valid_loss}

        def write(trees: dict[str, Any], to_the_end: bool = False) -> None:
            before()
            # Of the copies: what reads the state itself holds up the next step, which takes its place.
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
                if to_the_end:
                    self._manager.wait_until_finished()

        # Several processes write together, and must say to each other in one order what they have to say.
        if processes.is_alone() and fits_twice(trees):
            self._saving = self._pool.submit(write, _copied(trees), to_the_end=True)
        else:
            write(trees)

    def _join(self) -> None:
        """Wait until the last save has been handed to Orbax; raise its error."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def wait(self) -> None:
        """Return when every save has come to its end."""
        self._join()
        with self._one_line_errors("finish saving"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish all saves and let go of the folder."""
        try:
            self._join()
        finally:
            self._pool.shutdown()
            with self._one_line_errors("finish saving"):
                self._manager.close()

    def _read_meta(self, step: int) -> dict[str, Any]:
        """`step`, `config`, `tokenizer` (plain JSON values) and `checksums` of a step.

        Raises DamagedCheckpoint; also for a folder with links, pipes or oversized files in it: anybody may have made it.
        """
        with self._damage_named(step):
            check_tree(self.directory / str(step))
            args = self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())
            meta = self._manager.restore(step, args=args)["meta"]
            if meta["step"] != step:
                raise ValueError(f"its meta item belongs to step {meta['step']}")
            return meta

    def read_facts(self, step: int) -> tuple[Config, tokenizers.Tokenizer, dict[str, Any]]:
        """What a step was saved with: config, tokenizer, checksums by item. Raises DamagedCheckpoint."""
        meta = self._read_meta(step)
        with self._damage_named(step):
            cfg = config.from_json(meta["config"])
            return cfg, tokenizers.from_json(meta["tokenizer"]), meta["checksums"]

    def _check_belongs(self, step: int, cfg: Config, tokenizer: tokenizers.Tokenizer) -> None:
        """Raises DamagedCheckpoint where a step was saved by a run with another config or tokenizer."""
        own_cfg, own_tokenizer, _ = self.read_facts(step)
        with self._damage_named(step):
            if changed := config.differences(own_cfg, cfg):
                raise ValueError(f"it belongs to a run with another config ({'; '.join(changed)})")
            if own_tokenizer.to_json() != tokenizer.to_json():
                raise ValueError("it belongs to a run with another tokenizer")

    def restore(self, step: int, **shapes: Any) -> dict[str, Any]:
        """Read items back by name, checked: `restore(100, params=shapes)["params"]`.

        The shapes are trees of jax.ShapeDtypeStruct; where they carry no sharding the first device takes the
        arrays. Raises DamagedCheckpoint, and UserError for more than this machine's memory holds.
        """
        meta = self._read_meta(step)
        with self._damage_named(step):
            self._check_shapes(step, shapes)
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        if needed > (memory := device_memory() * jax.device_count()):
            raise UserError(
                f"checkpoint {self.directory / str(step)} takes {needed / 2**30:,.1f} GiB, this machine has "
                f"{memory / 2**30:,.1f} GiB: open it on a larger one"
            )
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device),
            shapes,
        )
        with self._damage_named(step):
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
        """A clear word before Orbax's long one; a silent cast of dtypes is refused too."""
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
                raise ValueError(f"{item} holds {len(found)} arrays where {len(expected)} belong")
            for path in expected.keys() & found.keys():
                if expected[path] != found[path]:
                    raise ValueError(f"{item}/{path} is {found[path]}, expected {expected[path]}")

    def newest(self, cfg: Config, tokenizer: tokenizers.Tokenizer, shapes: TrainState) -> TrainState | None:
        """The newest whole state of this run, or None. A damaged one, or another run's, is named and set aside."""
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
            place = self._set_aside(step)
            _warn(f"{error or f'checkpoint {step} is damaged'}; moved to {place}, trying the one before")
        if steps:
            _warn("every checkpoint was damaged; the run starts from step 0")
        return None

    def _set_aside(self, step: int) -> Path:
        """Move a damaged checkpoint out of the way, to RUN/damaged/<step>, so that the step can be saved anew."""
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
    def _one_line_errors(self, action: str):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # Orbax and TensorStore raise ValueError, RuntimeError and OSError alike for a full disk.
            raise UserError(
                f"could not {action} in {self.directory}: {_cause(error)} "
                "(free some space or make the folder writable; checkpoints saved before are untouched)"
            ) from error

    @contextlib.contextmanager
    def _damage_named(self, step: int):
        try:
            yield
        except DamagedCheckpoint:
            raise
        except config.NewerVersion as error:  # nothing is damaged
            raise UserError(f"checkpoint {self.directory / str(step)}: {error}") from None
        except Exception as error:
            raise DamagedCheckpoint(
                f"checkpoint {self.directory / str(step)} is damaged: {_cause(error)}"
            ) from error


def _warn(message: str) -> None:
    if processes.is_first():
        print(f"warning: {message}", file=sys.stderr)


def _valid_loss(metrics: dict[str, float]) -> float:
    return metrics["valid_loss"]


# What TensorStore adds to an error's text.
_FOR_AUTHORS = r"\.? *(?:\[\w+( \w+)*='| See full TensorStore details)"


def _cause(error: BaseException) -> str:
    """An error's first line, shortened in the middle: it ends with the cause."""
    line = re.split(_FOR_AUTHORS, first_line(error), maxsplit=1)[0]
    return line if len(line) <= 300 else line[:120] + " ... " + line[-180:]


def write_run(
    workdir: Path,
    cfg: Config,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    step: int,
    facts: dict[str, Any],
) -> None:
    """A run folder with one checkpoint, of a model that was made otherwise than by training there: whole or not at all.

    `facts["imported"]` says how, in run.json; such a folder is used, and begun from, but not trained in. `workdir` is
    absent or empty.
    """
    facts = facts | {
        "tokenizer": tokenizer.kind,
        "tokenizer_sha256": tokenizers.fingerprint(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "num_params": count_params(params),
    }
    records.make_folder(workdir.parent)
    with new_folder(workdir) as temporary:
        records.write_json(temporary / "config.json", config.to_json(cfg))
        records.write_run_json(temporary, facts, step)
        tokenizers.save(tokenizer, temporary / "tokenizer.json")
        checkpoints = Checkpoints(temporary)
        try:
            checkpoints.save(TrainState(jnp.int32(step), params, None), cfg, tokenizer)
        finally:
            checkpoints.close()


@dataclass(frozen=True)
class Run:
    """A trained model and what belongs to it.

    `run.model.apply({"params": run.params}, tokens_BT)` gives logits [B, T, V].
    """

    config: Config
    model: GPT
    params: dict
    tokenizer: tokenizers.Tokenizer
    step: int
    workdir: Path


def load(workdir: str | Path, step: int | str | None = None) -> Run:
    """Open a run folder for use: its newest complete checkpoint, a given step, or `step="best"`.

    Needs no config and no flags of the training, and works on any device. If the newest checkpoint is damaged, a warning
    says so and the one before is taken; a damaged step that was asked for by number is refused. Raises UserError.
    """
    folder = Path(workdir)
    if not folder.is_dir():
        raise UserError(f"no run folder {folder}: train one first, or give the right --workdir")
    if not (folder / FOLDER).is_dir():
        raise UserError(f"{folder} is no run folder: it has no {FOLDER}/ in it")
    checkpoints = Checkpoints(folder, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{folder} has no checkpoint yet: train it for longer")
    if step == "best":
        step = checkpoints.best_step()
        if step is None:
            raise UserError(f"{folder} has no checkpoint with a validation loss: the steps are {steps}")
    if step is not None:
        if step not in steps:
            raise UserError(f"{folder} has no checkpoint of step {step}: the steps are {steps}")
        return _load_step(folder, checkpoints, int(step))
    for candidate in reversed(steps):
        try:
            return _load_step(folder, checkpoints, candidate)
        except DamagedCheckpoint as error:
            _warn(f"{error}; trying the one before")
    raise UserError(f"every checkpoint of {folder} is damaged: {steps}")


def _load_step(folder: Path, checkpoints: Checkpoints, step: int) -> Run:
    cfg, tokenizer, sums = checkpoints.read_facts(step)
    item = "averaged" if "averaged" in sums else "params"
    params = checkpoints.restore(step, **{item: param_shapes(cfg.model)})[item]
    return Run(cfg, GPT(cfg.model), params, tokenizer, step, folder)
