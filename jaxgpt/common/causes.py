"""The cause of an error in one line: what the system said, and what to do, only where it said it.

JAX, Orbax and TensorStore pass an error of the system on as text in errors of their own. RESOURCE_EXHAUSTED is XLA's word
for memory and TensorStore's for a full disk: the system's own words decide.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from jaxgpt.config import UserError, first_line

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "give the rights to read and write there, or choose another folder",
    errno.EPERM: "give the rights to read and write there, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EFBIG: "the system limits the size of files: raise the limit, see ulimit -f",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EMFILE: "the system limits open files: raise the limit, see ulimit -n",
    errno.ENFILE: "the system has too many open files: close some programs",
    errno.ENOMEM: "the machine is out of memory: close some programs",
    errno.ELOOP: "a link in this path leads to itself, or is not followed: give the folder itself",
    errno.ESTALE: "the network disk has lost the file: try again when it is back",
}
# Phrases of the system in the texts of other errors. A missing file is not among them: it may be one of ours.
_PHRASES = {
    os.strerror(number): number
    for number in (
        *_ADVICE, errno.EIO, errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO,
        errno.EINVAL, errno.ENAMETOOLONG, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENOTCONN,
        errno.ECONNRESET, errno.EREMOTEIO, errno.ETXTBSY, errno.EDEADLK, errno.ENOLCK, errno.EOVERFLOW, errno.EISDIR,
    )
}  # fmt: skip
# The details that TensorStore adds to the text of an error.
_DETAILS = r"\.? *(?:\[\w+( \w+)*='| See full TensorStore details)"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    found: BaseException | None = error
    seen: list[BaseException] = []  # a chain may be a ring
    while found is not None and not any(found is one for one in seen):
        seen.append(found)
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def system_error(error: BaseException) -> int | None:
    """The number of the system's error behind an exception: its own, or the one that its text quotes; else None."""
    for one in chain(error):
        if isinstance(one, OSError) and one.errno:
            return one.errno
        text = str(one)
        if not isinstance(one, OSError) and (found := [n for words, n in _PHRASES.items() if words in text]):
            return found[0]
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or XLA had no memory. A full disk is not."""
    if system_error(error) == errno.ENOMEM:
        return True
    if isinstance(error, OSError) or system_error(error) is not None:
        return False
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def describe(error: BaseException) -> str:
    """One line: what happened, to which file, and in brackets what to do, where the cause says it."""
    *_, root = [one for one in chain(error) if not isinstance(one, UserError)] or [error]
    if isinstance(root, OSError) and root.strerror:
        what = root.strerror + (f": {root.filename}" if root.filename else "")
    else:
        line = re.split(_DETAILS, first_line(root), maxsplit=1)[0]
        what = line if len(line) <= 300 else line[:120] + " ... " + line[-180:]  # the cause is at the end
    if is_out_of_memory(error):
        advice = "the machine is out of memory: close some programs, or use a larger one"
    else:
        advice = _ADVICE.get(system_error(error) or 0, "")
    return f"{what} ({advice})" if advice else what
