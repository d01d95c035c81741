"""Numbers and tokens as JSON values: rounded, so that reports are small and reproducible."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxgpt.data import tokenizers

DIGITS = 5  # significant digits


def rounded(value: float, digits: int = DIGITS) -> float | None:
    """A number rounded to significant digits; None if it is not finite."""
    value = float(value)
    if not math.isfinite(value):
        return None
    if value == 0:
        return 0.0
    value = float(f"{value:.{digits}g}")
    return int(value) if value.is_integer() and abs(value) < 1e6 else value


def plain(values: Any, digits: int = DIGITS) -> Any:
    """Arrays, lists and dictionaries of numbers as JSON values, with every float `rounded`."""
    if isinstance(values, dict):
        return {name: plain(value, digits) for name, value in values.items()}
    if values is None or isinstance(values, str | bool | np.bool_):
        return bool(values) if isinstance(values, np.bool_) else values
    if isinstance(values, np.ndarray) and values.ndim == 0:
        values = values.item()
    if isinstance(values, int | np.integer):
        return int(values)
    if isinstance(values, float | np.floating):
        return rounded(values, digits)
    if isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.size:
        return _nested([rounded(value, digits) for value in values.ravel().tolist()], values.shape)
    return [plain(value, digits) for value in (values.tolist() if isinstance(values, np.ndarray) else values)]


def _nested(flat: list, shape: tuple[int, ...]) -> list:
    """The list as lists in lists of an array's shape, which has no 0."""
    for width in shape[:0:-1]:
        flat = [flat[i : i + width] for i in range(0, len(flat), width)]
    return flat


def token_entry(tokenizer: tokenizers.Tokenizer, i: int) -> dict[str, Any]:
    """A token's text, and its bytes as `hex` if they are not valid UTF-8."""
    content = tokenizer.decode_bytes([i])
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"text": content.decode("utf-8", "backslashreplace"), "hex": content.hex(" ")}


class Names:
    """Collects the tokens that a payload uses: every id passed to `ids` gets an entry in `vocabulary`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, counts_V: np.ndarray | None) -> None:
        self._tokenizer, self._counts_V = tokenizer, counts_V
        self._known: dict[int, dict[str, Any]] = {}

    def copy(self) -> Names:
        """A copy, to extend independently."""
        other = Names(self._tokenizer, self._counts_V)
        other._known = dict(self._known)
        return other

    @property
    def counted(self) -> bool:
        """Whether the training text is available."""
        return self._counts_V is not None

    def count(self, i: int) -> int | None:
        """How often a token occurs in the training text; None if the text is unavailable."""
        return None if self._counts_V is None else int(self._counts_V[i])

    def most_frequent(self, count: int) -> list[int]:
        """The most frequent ids of the training text; the first ids if the text is unavailable."""
        if self._counts_V is None:
            return list(range(min(count, self._tokenizer.vocab_size)))
        order = np.argsort(-self._counts_V, kind="stable")[:count]
        return [int(i) for i in order if self._counts_V[i] > 0]

    def text(self, i: int) -> str:
        """A token in quotes, with white space and control characters visible."""
        return repr(self._tokenizer.token(int(i)))

    def ids(self, ids: Any) -> Any:
        """Record ids, and return them as ints in nested lists."""
        if isinstance(ids, int | np.integer):
            self._add(int(ids))
            return int(ids)
        return [self.ids(i) for i in (ids.tolist() if isinstance(ids, np.ndarray) else ids)]

    def _add(self, i: int) -> None:
        if i in self._known:
            return
        self._known[i] = token_entry(self._tokenizer, i) | {"count": self.count(i)}

    def vocabulary(self) -> dict[str, dict[str, Any]]:
        """The recorded tokens: {"17": {text, count, hex (if not UTF-8)}}."""
        return {str(i): self._known[i] for i in sorted(self._known)}
