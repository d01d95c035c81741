"""A tokenizer with more tokens: those that a new text has and it lacks, after its own, whose ids stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jaxgpt.config import UserError
from jaxgpt.data import tokenizers
from jaxgpt.data.tokenizers import CharTokenizer, Tokenizer, WordTokenizer


def extended(
    tokenizer: Tokenizer, read: Callable[[], Iterator[str]], vocab_size: int | None = None
) -> Tokenizer:
    """With the characters of the text that `read()` gives in pieces, or its words, the most frequent first.

    `vocab_size` is the most tokens in all: more characters are refused, more words stay <unk>. Raises UserError for a
    tokenizer that knows every text, byte by byte.
    """
    if tokenizer.kind == "char":
        new = [c for c in tokenizers.train("char", read, None).characters if c not in tokenizer.characters]
        if vocab_size is not None and tokenizer.vocab_size + len(new) > vocab_size:
            raise UserError(
                f"the tokenizer's {tokenizer.vocab_size} characters and {len(new)} new ones of the text are more "
                f"than data.vocab_size={vocab_size}: raise or omit it"
            )
        return CharTokenizer(tokenizer.characters + "".join(new))
    if tokenizer.kind == "word":
        known = set(tokenizer.words)
        words = [word for word in tokenizers.train("word", read, None).words if word not in known]
        room = None if vocab_size is None else vocab_size - tokenizer.vocab_size
        return WordTokenizer([*tokenizer.words, *words[:room]])
    raise UserError(f"a {tokenizer.kind} tokenizer can't get more tokens: leave data.add_tokens out")
