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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config, processes, tokenizers
from jaxgpt.config import Config, UserError
from jaxgpt.model import GPT, named_leaves, param_shapes
from jaxgpt.sharding import whole
from jaxgpt.steps import TrainState

FOLDER = "checkpoints"


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

    return whole(jnp.stack([leaf_sum(leaf) for leaf in jax.tree.leaves(tree)]))


_jit_checksums = jax.jit(checksums)


class Checkpoints:
    """The checkpoints of one run folder.

    Keeps the newest `keep` and the one with the lowest validation loss. Saving returns as soon as the arrays
    are copied out of the devices; an error of an earlier save is raised by the next call.
    """

    def __init__(self, workdir: str | Path, keep: int = 1, read_only: bool = False) -> None:
        import orbax.checkpoint as ocp  # 0.3 s: only where checkpoints are used
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        # Orbax tells each file that it touches, and of each error the traceback, though it raises it as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
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
    ) -> None:
        """Save a state under its step, in the background. A step that is saved already is left as it is.

        `averaged` are the params to use where they are others than those that training goes on with. An
        `opt_state` of None is not saved: the params of a model that was not trained here.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        trees = {"params": state.params}
        if state.opt_state is not None:
            trees["opt_state"] = state.opt_state
        if averaged is not None:
            trees["averaged"] = averaged
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
        metrics = None if valid_loss is None else {"valid_loss": valid_loss}
        with self._one_line_errors(f"save step {step}"):
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def wait(self) -> None:
        """Return when every save has come to its end."""
        with self._one_line_errors("finish saving"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish all saves and let go of the folder."""
        with self._one_line_errors("finish saving"):
            self._manager.close()

    def read_meta(self, step: int) -> dict[str, Any]:
        """`step`, `config`, `tokenizer` (plain JSON values) and `checksums` of a step."""
        with self._damage_named(step):
            args = self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())
            meta = self._manager.restore(step, args=args)["meta"]
            if meta["step"] != step:
                raise ValueError(f"its meta item belongs to step {meta['step']}")
            return meta

    def restore(self, step: int, **shapes: Any) -> dict[str, Any]:
        """Read items back by name, checked: `restore(100, params=shapes)["params"]`.

        The shapes are trees of jax.ShapeDtypeStruct; where they carry no sharding the first device takes the
        arrays. Raises DamagedCheckpoint.
        """
        meta = self.read_meta(step)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device),
            shapes,
        )
        with self._damage_named(step):
            self._check_shapes(step, shapes)
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

    def set_aside(self, step: int) -> Path:
        """Move a damaged checkpoint out of the way, to RUN/damaged/<step>, so that the step can be saved anew."""
        target = self.directory.parent / "damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        target.parent.mkdir(exist_ok=True)
        processes.on_first(lambda: shutil.move(self.directory / str(step), target) and None)
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
                f"could not {action} in {self.directory}: {first_line(error)} "
                "(free some space or make the folder writable; checkpoints saved before are untouched)"
            ) from error

    @contextlib.contextmanager
    def _damage_named(self, step: int):
        try:
            yield
        except DamagedCheckpoint:
            raise
        except Exception as error:
            raise DamagedCheckpoint(
                f"checkpoint {self.directory / str(step)} is damaged: {first_line(error)}"
            ) from error


def _valid_loss(metrics: dict[str, float]) -> float:
    return metrics["valid_loss"]


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, shortened in the middle: it ends with the cause."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # What TensorStore adds for its authors.
    line = re.split(r"\.? *(?:\[\w+( \w+)*='| See full TensorStore details)", line, maxsplit=1)[0]
    return line if len(line) <= 300 else line[:120] + " ... " + line[-180:]


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
    """Open a run folder for use: its newest whole checkpoint, a given step, or `step="best"`.

    Needs no config and none of the training's flags, and works on any device. Where the newest checkpoint is
    damaged, a warning says so and the one before is taken; a step asked for by number is refused instead.

    Raises UserError where the folder or the step does not exist.
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
            print(f"warning: {error}; trying the one before", file=sys.stderr)
    raise UserError(f"every checkpoint of {folder} is damaged: {steps}")


def _load_step(folder: Path, checkpoints: Checkpoints, step: int) -> Run:
    meta = checkpoints.read_meta(step)
    cfg = config.from_config_dict(meta["config"])
    tokenizer = tokenizers.from_json(meta["tokenizer"])
    item = "averaged" if "averaged" in meta["checksums"] else "params"
    params = checkpoints.restore(step, **{item: param_shapes(cfg.model)})[item]
    return Run(cfg, GPT(cfg.model), params, tokenizer, step, folder)
