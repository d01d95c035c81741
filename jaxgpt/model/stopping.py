"""Where a generated text ends: at the end-of-text token, or in front of a given text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgpt.config import UserError


@dataclass(frozen=True)
class Stops:
    """What ends a text. `id` is a token, `texts` are texts; what stops is not part of the text."""

    id: int | None = None
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "" in self.texts:
            raise UserError("--stop: give a text that is not empty")

    def __bool__(self) -> bool:
        return self.id is not None or bool(self.texts)


class TextUntil:
    """One sample's text as its tokens arrive. An incomplete character waits for its last byte.

    `ended` is set when a stop was found, and `tokens` counts the tokens before it.
    """

    def __init__(self, tokenizer: Any, stops: Stops) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # text that may be the beginning of a stop
        self.ended = False
        self.tokens = 0

    def add(self, ids: Sequence[int] | np.ndarray) -> str:
        """The next text that is certain, after more tokens [N]."""
        if self.ended:
            return ""
        shown = []
        if not self._stops.texts:  # all at once
            ids = self._before_end(np.asarray(ids))
            self.tokens += len(ids)
            return self._decoder.decode(self._tokenizer.decode_bytes(ids))
        for i in np.asarray(ids).tolist():
            if i == self._stops.id:
                self.ended = True
                break
            self._held += self._decoder.decode(self._tokenizer.decode_bytes([i]))
            if found := [at for text in self._stops.texts if (at := self._held.find(text)) >= 0]:
                shown.append(self._held[: min(found)])
                self._held, self.ended = "", True
                break
            self.tokens += 1
            safe = len(self._held) - self._longest_beginning()
            shown.append(self._held[:safe])
            self._held = self._held[safe:]
        return "".join(shown)

    def _before_end(self, ids: np.ndarray) -> np.ndarray:
        at = np.flatnonzero(ids == self._stops.id)  # no id equals None
        if not len(at):
            return ids
        self.ended = True
        return ids[: at[0]]

    def _longest_beginning(self) -> int:
        """The length of the longest end of the held text with which a stop begins."""
        longest = max(map(len, self._stops.texts)) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self._stops.texts):
                return length
        return 0

    def rest(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held + ("" if self.ended else self._decoder.decode(b"", final=True))
