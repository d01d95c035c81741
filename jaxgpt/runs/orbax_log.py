"""Keep Orbax's own messages off the screen: each of its errors is also raised, and reported in one line.

Messages of other code are never dropped.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from typing import Any

_LOGGERS = ("absl", "asyncio")  # where Orbax and its tasks write
_lock = threading.Lock()
_users = 0
_other_hook: Any = sys.unraisablehook


def start() -> None:
    """Drop Orbax's messages until as many calls of `stop`."""
    global _users, _other_hook
    with _lock:
        _users += 1
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_is_not_from_orbax)
        if sys.unraisablehook is not _report:
            _other_hook, sys.unraisablehook = sys.unraisablehook, _report


def stop() -> None:
    """End one `start`. After the last one everything is as before."""
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(_is_not_from_orbax)
        if sys.unraisablehook is _report:
            sys.unraisablehook = _other_hook


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """A logging filter: Orbax's code is neither on the stack nor in the logged traceback.

    After one array's error Orbax abandons the others' futures, and asyncio reports each whenever it is collected.
    """
    if record.name == "asyncio" and "exception was never retrieved" in record.getMessage():
        return False
    tracebacks = traceback.walk_tb(record.exc_info[2] if record.exc_info else None)
    frames = (frame for walk in (traceback.walk_stack(None), tracebacks) for frame, _ in walk)
    return not any(frame.f_globals.get("__name__", "").startswith("orbax.") for frame in frames)


def _report(unraisable: Any) -> None:
    """A sys.unraisablehook. After one array's error, Orbax abandons the reads of the others and closes their loop."""
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    abandoned = code is not None and "orbax" in code.co_filename
    if not abandoned and str(unraisable.exc_value) != "Event loop is closed":
        _other_hook(unraisable)
