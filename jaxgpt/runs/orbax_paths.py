"""Paths that Orbax can use, and checkpoints that it left unmerged.

Orbax joins the files of the processes of a save with a glob of the path. In a path with `[`, `]`, `*`, `?` or a backslash the
glob finds nothing, and the arrays stay in the folders `ocdbt.process_*` without an index over them. So Orbax gets another
name of such a folder, and folders that were saved without an index get one.
"""

from __future__ import annotations

import contextlib
import glob
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.runs.damage import DamagedCheckpoint, check_tree

INDEX = "manifest.ocdbt"
PARTS = "ocdbt.process_"


@contextlib.contextmanager
def plain_name(folder: Path) -> Iterator[Path]:
    """A name of an absolute folder without characters that a glob interprets: itself, or a link to it."""
    if not _is_pattern(folder):
        yield folder
        return
    place = Path(tempfile.mkdtemp(prefix="jaxgpt-"))
    if _is_pattern(place):  # of TMPDIR
        shutil.rmtree(place, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix=".jaxgpt-", dir=folder.anchor))
    try:
        (place / "run").symlink_to(folder, target_is_directory=True)
        yield place / "run"
    finally:
        with contextlib.suppress(OSError):
            (place / "run").unlink(missing_ok=True)
            place.rmdir()


def _is_pattern(path: Path) -> bool:
    return glob.escape(str(path)) != str(path) or "\\" in str(path)


def unmerged(step_folder: Path) -> list[Path]:
    """The items of a checkpoint whose arrays have no index."""
    items = sorted(entry for entry in step_folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    found = [item for item in items if not (item / INDEX).exists() and _parts(item)]
    if found:
        try:
            check_tree(step_folder)  # merging would follow a link
        except DamagedCheckpoint:  # whoever reads the step says so
            return []
    return found


def _parts(item: Path) -> list[Path]:
    return sorted(
        entry for entry in item.iterdir() if entry.name.startswith(PARTS) and (entry / INDEX).is_file()
    )


def merge(item: Path) -> None:
    """Write the index of an item. Adds files, and changes none."""
    import tensorstore as ts

    context = ts.Context()  # one for all: else an index can't point into the others' files

    def opened(folder: Path) -> ts.KvStore:
        base = {"driver": "file", "path": f"{folder}/"}
        return ts.KvStore.open({"driver": "ocdbt", "base": base}, context=context).result()

    with plain_name(item.absolute()) as place:
        target = opened(place)
        transaction = ts.Transaction(atomic=True)
        for part in _parts(place):
            opened(part).experimental_copy_range_to(target.with_transaction(transaction)).result()
        transaction.commit_async().result()


@contextlib.contextmanager
def merged_view(checkpoints: Path) -> Iterator[Path]:
    """A folder with the same checkpoints, all with an index: itself, or links to its files in a temporary folder.

    For a folder that is only read: nothing in it is written.
    """
    steps = [step for step in sorted(checkpoints.iterdir()) if step.name.isdigit() and step.is_dir()]
    wrong = {step: items for step in steps if (items := unmerged(step))}
    if not wrong:
        yield checkpoints
        return
    with tempfile.TemporaryDirectory(prefix="jaxgpt-") as place:
        view = Path(place)
        for step in steps:
            if step not in wrong:
                (view / step.name).symlink_to(step.absolute(), target_is_directory=True)
                continue
            (view / step.name).mkdir()
            for entry in step.iterdir():
                copy = view / step.name / entry.name
                if entry not in wrong[step]:
                    copy.symlink_to(entry.absolute(), target_is_directory=entry.is_dir())
                    continue
                copy.mkdir()
                for inner in entry.iterdir():
                    if inner.name != "d":  # what is in it belongs to no index
                        (copy / inner.name).symlink_to(inner.absolute(), target_is_directory=inner.is_dir())
                with contextlib.suppress(Exception):  # reading the step says what is wrong with it
                    merge(copy)
        yield view
