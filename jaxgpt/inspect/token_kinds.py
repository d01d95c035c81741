"""Kinds of tokens that a reader knows without an explanation: vowels, capitals, punctuation, spaces, frequent small words."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jaxgpt.data.tokenizers import Tokenizer

# The kinds of the map of tokens, in the order of its legend.
LETTERS = ("vowel", "consonant", "capital")
WORDS = ("small word", "pronoun", "capitalized word", "other word", "piece of a word")
OTHERS = ("digit", "punctuation", "space", "other")

_SMALL = frozenset(
    """a an the and or but nor for so yet if as than of in on at to by with from into upon unto over under after before
    is are was were be been am do did does have has had will would shall should may might can could must not no that this
    these those which who whom what when where how why there here""".split()
)
_PRONOUNS = frozenset(
    """i me my mine we us our ours you your yours thou thee thy thine he him his she her hers it its they them their theirs
    myself himself herself themselves yourself""".split()
)


def kind(text: str, starts_word: bool = True) -> str:
    """The kind of a token. `starts_word`: whether it can start a word (False for a later piece of one)."""
    content = text.strip()
    if not content:
        return "space" if text else "other"
    if content.isdigit():
        return "digit"
    if not any(c.isalnum() for c in content):
        return "punctuation" if content.isprintable() else "other"
    if len(content) == 1:
        return "capital" if content.isupper() else "vowel" if content in "aeiou" else "consonant"
    if not starts_word:
        return "piece of a word"
    lower = content.lower()
    if lower in _PRONOUNS:
        return "pronoun"
    if lower in _SMALL:
        return "small word"
    return "capitalized word" if content[0].isupper() else "other word"


def kinds(texts: Iterable[str]) -> list[str]:
    """The kinds of a vocabulary's tokens. Where some tokens bring their space, those without one are pieces of words."""
    texts = list(texts)
    spaced = sum(text[:1] == " " and len(text) > 1 for text in texts) > len(texts) / 10
    return [kind(text, not spaced or text[:1] == " ") for text in texts]


# The kinds of key tokens that heads are tested for.
KEYS = ("space", "newline", "punctuation", "capital")


def key_masks(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Which tokens of the vocabulary are of each of `KEYS`: bool [4, V].

    A space has only blanks and no line end; a newline ends a line; a capital starts with an upper-case letter.
    """
    texts = [tokenizer.token(i) if i < tokenizer.vocab_size else "" for i in range(vocab_size)]
    columns = [
        (
            bool(text) and text.isspace() and "\n" not in text,
            "\n" in text,
            bool(text.strip()) and not any(c.isalnum() or c.isspace() for c in text.strip()),
            text.strip()[:1].isupper(),
        )
        for text in texts
    ]
    return np.array(columns, bool).reshape(vocab_size, len(KEYS)).T
