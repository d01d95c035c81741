"""Prompts that a tokenizer knows: for samples during training, and where a command is given none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.data.shards import Ids
from jaxgpt.data.tokenizers import Tokenizer

# Read by a model whose own text is not here: with several lines, names, marks, and words that come again.
ENGLISH = (
    "The old harbour was quiet when the ships came in. A boy sat on the wall, and he counted them: one, two, three.\n"
    '"Where do the ships come from?" asked the boy. His sister, Anna, looked at the sea.\n'
    '"From the north," said Anna, "and from the islands. They bring wood, salt and wool. In the morning they leave again."\n'
    'The boy looked at the ships. He wanted to know more, so he asked again: "Where do they go?"\n'
    "Anna said that nobody knew. The wind was cold, the sea was dark, and the old harbour was quiet again.\n"
)


def is_known(tokenizer: Tokenizer, text: str, tokens: int = 1) -> bool:
    """Whether a text has at least `tokens` tokens, none of them unknown."""
    try:
        ids = tokenizer.encode(text)
    except UserError:
        return False
    return len(ids) >= tokens and getattr(tokenizer, "unk_id", None) not in ids.tolist()


def default(tokenizer: Tokenizer, sample_prompt: str = "") -> str:
    """The prompt where none is given: train.sample_prompt, or a newline, or the first token of the vocabulary."""
    if sample_prompt:
        return sample_prompt
    tokens = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
    return next((text for text in itertools.chain(["\n"], tokens) if is_known(tokenizer, text)), "\n")


def sample_ids(tokenizer: Tokenizer, prompt: str, context_length: int) -> list[int]:
    """The ids that samples during training continue: those of train.sample_prompt, or of the default."""
    ids = tokenizer.encode_prompt(default(tokenizer, prompt)).tolist()
    if len(ids) > context_length:
        raise UserError(
            f"train.sample_prompt has {len(ids)} tokens, model.context_length={context_length}: shorten the prompt"
        )
    return ids


def first_words(tokenizer: Tokenizer, ids: Sequence[int] | Ids, context_length: int | None = None) -> str:
    """The first words of a line of a text: a prompt of two or more known tokens, or the default.

    With a context_length, one that the model can read: its first tokens where it has more.
    """
    text = tokenizer.decode(np.asarray(ids[:500]))
    found = default(tokenizer)
    # The text may start in the middle of a line.
    for line in (*text.split("\n")[1:], text):
        words = " ".join(line.split()[:3])[:40]
        if is_known(tokenizer, words, tokens=2):
            found = words
            break

    def fits(words: str) -> bool:
        return context_length is None or len(tokenizer.encode_prompt(words)) <= context_length

    if fits(found):
        return found
    shorter = (found[:end] for end in range(len(found), 0, -1))
    return next((words for words in shorter if fits(words)), found)
