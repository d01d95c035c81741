"""The error that a user can fix, and the words for a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UserError(ValueError):
    """An error that the user can fix. Its text says what was given, what is possible and what to do.

    The command lines print the text and exit with code 2. Any other exception is a bug of this package and keeps its
    traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(word: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The known word that is spelled most like this one; None if none is close."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), None)


def unknown(what: str, word: str, known: Collection[str], instead: str = "") -> str:
    """One line on a word that is not known: `unknown preset gpt5: did you mean gpt2? The choices are gpt2, ...`"""
    near = nearest(word, known, cutoff=0.5)
    choose = f"did you mean {near}? The choices are" if near else "choose one of"
    return f"unknown {what} {word}: {choose} {', '.join(known)}{instead}"
