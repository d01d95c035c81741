"""The error that a user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """An error that the user can fix. Its text says what was given, what is possible and what to do.

    The command lines print the text alone and exit with code 2; any other exception is a bug of ours and
    keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
