"""The properties of every error that a user sees."""

import pytest


def one_line(error: pytest.ExceptionInfo) -> str:
    """The message, which must be one line."""
    message = str(error.value)
    assert message and "\n" not in message
    return message
