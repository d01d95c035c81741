"""What is stored at one step of a run: its metadata, its arrays, and the proof that they are what was written."""

from __future__ import annotations

import abc
import contextlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np

from jaxgpt import config
from jaxgpt.common import causes
from jaxgpt.config import Config, UserError
from jaxgpt.data import tokenizers
from jaxgpt.model.paths import named_leaves
from jaxgpt.model.sharding import bytes_by_device, device_memory
from jaxgpt.runs.checksums import jit_checksums
from jaxgpt.runs.damage import DamagedCheckpoint, UnreadableCheckpoint, check_tree, is_proof, read_every_file

T = TypeVar("T")


class StoredSteps(abc.ABC):
    """Reads the steps of a folder RUN/checkpoints. Every method raises DamagedCheckpoint or UnreadableCheckpoint."""

    directory: Path
    _failed = False  # Orbax's threads go on reporting an error for a while

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._losses: dict[int, float | None] = {}  # validation losses by step

    @property
    @abc.abstractmethod
    def _manager(self) -> Any:
        """Orbax's manager of the folder."""

    @property
    def _ocp(self) -> ModuleType:
        return importlib.import_module("orbax.checkpoint")

    def best_of(self, steps: list[int]) -> int | None:
        """The step with the lowest validation loss, or None if no step has one."""
        known: dict[int, float] = {}
        for step in steps:
            with contextlib.suppress(DamagedCheckpoint):  # it is no candidate
                if (loss := self.valid_loss(step)) is not None:
                    known[step] = loss
        return min(known, key=known.__getitem__) if known else None

    def valid_loss(self, step: int) -> float | None:
        """The validation loss that was saved with a step, or None."""
        if step not in self._losses:
            meta = self._read_meta(step)
            older = self.directory / str(step) / "metrics" / "metrics"  # an item of its own
            loss = meta.get("valid_loss")
            if "valid_loss" not in meta and older.is_file():
                loss = self._attempt(step, lambda: json.loads(older.read_bytes())["valid_loss"])
            if loss is not None and type(loss) is not float:
                raise self._damaged(step, f"its validation loss is {loss!r:.40}")
            self._losses[step] = loss
        return self._losses[step]

    def _attempt(self, step: int, read: Callable[[], T]) -> T:
        """What `read` reads from a step, at the second attempt if need be.

        Raises DamagedCheckpoint with a proof, and UnreadableCheckpoint for every other error.
        """
        folder = self.directory / str(step)
        try:
            return read()
        except UserError:
            raise
        except Exception:
            self._failed = True
        try:
            read_every_file(folder)  # where the system refuses one, it says so
            return read()
        except UserError:
            raise
        except Exception as error:
            if is_proof(error):
                raise DamagedCheckpoint(
                    f"checkpoint {folder} is damaged: {causes.describe(error)}"
                ) from error
            raise UnreadableCheckpoint(
                f"checkpoint {folder} can't be read: {causes.describe(error)}; nothing is changed"
            ) from error

    def _damaged(self, step: int, proof: str) -> UserError:
        """The error of content that is not what was written, once every file of the step could be read."""
        folder = self.directory / str(step)
        try:
            read_every_file(folder)
        except OSError as error:
            return UnreadableCheckpoint(
                f"checkpoint {folder} can't be read: {causes.describe(error)}; nothing is changed"
            )
        return DamagedCheckpoint(f"checkpoint {folder} is damaged: {proof}")

    def _read_meta(self, step: int) -> dict[str, Any]:
        """The `meta` item of a step: `step`, `config`, `tokenizer` and `checksums` as JSON values.

        Raises DamagedCheckpoint, also for a folder with links, pipes or oversized files: anybody may have made it.
        """

        def read() -> dict[str, Any]:
            check_tree(self.directory / str(step))
            args = self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())
            return self._manager.restore(step, args=args)["meta"]

        meta = self._attempt(step, read)
        names = ("step", "config", "tokenizer", "checksums")
        if not isinstance(meta, dict) or not meta.keys() >= set(names):
            raise self._damaged(step, f"its meta item has not all of {', '.join(names)}")
        if meta["step"] != step:
            raise self._damaged(step, f"its meta item belongs to step {meta['step']}")
        return meta

    def read_facts(self, step: int) -> tuple[Config, tokenizers.Tokenizer, dict[str, Any]]:
        """The config, the tokenizer and the checksums (by item) of a step."""
        meta = self._read_meta(step)
        try:
            cfg, tokenizer = config.from_json(meta["config"]), tokenizers.from_json(meta["tokenizer"])
        except config.NewerVersion as error:  # nothing is damaged
            raise UnreadableCheckpoint(f"checkpoint {self.directory / str(step)}: {error}") from None
        except UserError as error:  # of another version, or written by somebody: it was read as it is stored
            raise UnreadableCheckpoint(
                f"checkpoint {self.directory / str(step)} has a config or a tokenizer that is not known here ({error}); nothing "
                "is changed"
            ) from error
        return cfg, tokenizer, meta["checksums"]

    def restore(self, step: int, **shapes: Any) -> dict[str, Any]:
        """Read items by name and verify their checksums: `restore(100, params=shapes)["params"]`.

        shapes: trees of jax.ShapeDtypeStruct. Arrays without a sharding go to the first device.
        Raises DamagedCheckpoint, UnreadableCheckpoint, and UserError if the memory of this machine is too small.
        """
        meta = self._read_meta(step)
        self._check_shapes(step, shapes)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device),
            shapes,
        )

        on_devices = bytes_by_device(shapes).values()
        # CPU devices share the memory of the machine.
        needed = sum(on_devices) if jax.default_backend() == "cpu" else max(on_devices)
        if needed > (memory := device_memory()):
            where = "this machine" if jax.default_backend() == "cpu" else "a device"
            raise UserError(
                f"checkpoint {self.directory / str(step)} needs {needed / 2**30:,.1f} GiB of memory, {where} has "
                f"{memory / 2**30:,.1f} GiB: use a larger one"
            )

        def read() -> Any:
            args = {name: self._ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
            items = self._manager.restore(step, args=self._ocp.args.Composite(**args))
            return items, {name: np.asarray(jit_checksums(items[name])).tolist() for name in shapes}

        items, sums = self._attempt(step, read)
        for name in shapes:
            found = sums[name]
            saved = meta["checksums"].get(name) if isinstance(meta["checksums"], dict) else None
            if found != saved:
                paths = [path for path, _ in named_leaves(items[name])]
                pairs = zip(paths, found, saved, strict=False) if isinstance(saved, list) else ()
                at = next((f"{name}/{path}" for path, own, other in pairs if own != other), name)
                raise self._damaged(step, f"the checksum of {at} does not match")
        return {name: items[name] for name in shapes}

    def _check_shapes(self, step: int, shapes: dict[str, Any]) -> None:
        """Compare shapes and dtypes first: Orbax reports a shape in many lines, and casts a dtype silently."""
        saved = self._attempt(step, lambda: self._manager.item_metadata(step))
        for item, tree in shapes.items():
            expected = {path: (leaf.shape, leaf.dtype) for path, leaf in named_leaves(tree)}

            def read(item: str = item) -> dict[str, Any]:
                found = saved[item]
                leaves = named_leaves(found.tree if hasattr(found, "tree") else found)
                return {path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves}

            found = self._attempt(step, read)
            if len(found) != len(expected):
                raise self._damaged(step, f"{item} has {len(found)} arrays, expected {len(expected)}")
            for path in expected.keys() & found.keys():
                if expected[path] != found[path]:
                    raise self._damaged(step, f"{item}/{path} is {found[path]}, expected {expected[path]}")
