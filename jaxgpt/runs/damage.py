"""Which errors prove that a checkpoint is damaged.

Only content proves it: a checksum, a shape, a missing item, a file that can't be parsed. An error of the system (rights,
disk, network, memory, a device that is gone) says nothing about the content, and an unknown error proves nothing.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

from jaxgpt.common import causes
from jaxgpt.common.files import LARGEST_JSON
from jaxgpt.config import UserError


class DamagedCheckpoint(UserError):
    """A checkpoint differs from what was written. The text names it and the proof."""


class UnreadableCheckpoint(UserError):
    """A checkpoint can't be read now. Nothing is known about its content. The text names what happened."""


# What TensorStore says of content that it can't use.
_CONTENT = re.compile(
    r"\b(DATA_LOSS|OUT_OF_RANGE|INVALID_ARGUMENT|FAILED_PRECONDITION|NOT_FOUND|UNIMPLEMENTED)\b"
    r"|Error decoding|Error parsing|Data corruption|CRC"
)
_PARSING = (KeyError, json.JSONDecodeError, UnicodeDecodeError)


def is_proof(error: Exception) -> bool:
    """Whether an error of reading a checkpoint, whose files can all be read, proves that its content is damaged."""
    if causes.is_out_of_memory(error):
        return False
    if isinstance(error, FileNotFoundError):
        return not (error.filename and os.path.lexists(error.filename))
    if isinstance(error, _PARSING):
        return True
    if causes.system_error(error) is not None:
        return False
    return any(_CONTENT.search(str(one)) for one in causes.chain(error))


def check_tree(folder: Path) -> None:
    """Look at every entry of a checkpoint. Raises OSError as the system says it.

    Raises DamagedCheckpoint for an entry that is not safe to open: a link, which may lead anywhere, a pipe or device, which
    may never end, and a file larger than LARGEST_JSON, except in the folders named "d", in which Orbax stores arrays.
    """
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in folders + names:
            path = Path(parent, name)
            facts = path.lstat()
            if stat.S_ISDIR(facts.st_mode):
                continue
            inside = path.relative_to(folder)
            if not stat.S_ISREG(facts.st_mode):
                raise DamagedCheckpoint(
                    f"checkpoint {folder} is damaged: {inside} is neither a file nor a folder"
                )
            if facts.st_size > LARGEST_JSON and path.parent.name != "d":
                raise DamagedCheckpoint(
                    f"checkpoint {folder} is damaged: {inside} is larger than {LARGEST_JSON >> 20} MiB"
                )


def read_every_file(folder: Path) -> None:
    """Read every file of a folder to its end. Raises OSError with the file that can't be read."""
    for parent, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            path = Path(parent, name)
            try:
                with path.open("rb", buffering=0) as file:
                    while file.read(1 << 22):
                        pass
            except OSError as error:
                error.filename = error.filename or str(path)
                raise


def _raise(error: OSError) -> None:
    raise error
