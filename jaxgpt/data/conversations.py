"""Conversations as text: templates for turns, and which part of the text a model learns to predict.

A record is `{"prompt": ..., "completion": ...}` or `{"messages": [{"role": ..., "content": ...}, ...]}` with the roles
system, user and assistant. Loss counts on a completion, on what the assistant says, and on the end of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.config import UserError
from jaxgpt.data.corpora import Corpus
from jaxgpt.data.text_pieces import Segment, check_text

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Template:
    """How turns are written. `{role}` stands for the role and `{Role}` for the role with a capital letter.

    marks: parts of both that are special tokens in some tokenizers.
    """

    before: str
    after: str
    marks: tuple[str, ...] = ()


TEMPLATES = {
    "play": Template("{Role}:\n", "\n\n"),  # as the speeches of data.corpus=shakespeare
    "line": Template("{Role}: ", "\n"),
    "chatml": Template("<|im_start|>{role}\n", "<|im_end|>\n", ("<|im_start|>", "<|im_end|>")),
}


def segments(record: Any, template: str, where: str) -> list[Segment]:
    """The text of a record in parts. Raises UserError, which names the record by `where`, for one that has no turns."""
    if isinstance(record, dict) and record.get("messages") is not None:
        return _of_messages(record["messages"], template, where)
    if isinstance(record, dict) and record.get("completion") is not None:
        prompt, completion = (
            _text(record.get(name), f"{where}: {name!r}") for name in ("prompt", "completion")
        )
        return [part for part in (Segment(prompt, counts=False), Segment(completion)) if part]
    there = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
    raise UserError(
        f"{where} is no conversation (it has {there or 'no field'}): give 'messages', or 'prompt' and 'completion', or set "
        "data.template='' for plain text"
    )


def turns(messages: Iterable[tuple[str, str]], template: str) -> list[Segment]:
    """(role, content) of each turn as text in parts."""
    how, found = TEMPLATES[template], []
    for role, content in messages:
        before = how.before.format(role=role, Role=role.capitalize())
        counts = role == "assistant"
        found += _marked(before, how.marks, counts=False)
        found += [Segment(content, counts)] if content else []
        found += _marked(how.after, how.marks, counts)
    return found


def prompt(messages: Iterable[tuple[str, str]], template: str) -> list[Segment]:
    """The text up to where the assistant is to speak."""
    how = TEMPLATES[template]
    before = how.before.format(role="assistant", Role="Assistant")
    return turns(messages, template) + _marked(before, how.marks, counts=False)


def _of_messages(messages: Any, template: str, where: str) -> list[Segment]:
    found = checked(messages, template, where)
    if not any(role == "assistant" for role, _ in found):
        raise UserError(
            f"{where} has no turn of the assistant, so that nothing in it would be learned: leave it out"
        )
    return turns(found, template)


def checked(messages: Any, template: str, where: str) -> list[tuple[str, str]]:
    """(role, content) of each turn. Raises UserError, which names the place by `where`, for what is no list of turns."""
    if not isinstance(messages, list | tuple):
        raise UserError(f"{where}: 'messages' is of type {type(messages).__name__}: give a list of turns")
    found = []
    for number, message in enumerate(messages, start=1):
        at = f"{where}, turn {number}"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise UserError(f"{at} has the role {str(role)[:40]!r}: give one of {', '.join(ROLES)}")
        content = _text(message.get("content"), f"{at}: 'content'")
        check_content(content, template, at)
        found.append((role, content))
    return found


def check_content(content: str, template: str, where: str) -> None:
    """Raise UserError for a turn with the text that ends one: a model would learn to stop within a turn."""
    if stop(template) in content:
        others = ", ".join(name for name in TEMPLATES if stop(name) not in content)
        instead = f", or choose another data.template: {others}" if others else ""
        raise UserError(
            f"{where} has {TEMPLATES[template].after!r} in its text, which ends a turn of data.template={template!r}: change it{instead}"
        )


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} is of type {type(value).__name__}, not text: give a text")
    check_text(value, where=what)
    return value


def _marked(text: str, marks: tuple[str, ...], counts: bool) -> list[Segment]:
    """A text of the template, cut where it has marks."""
    for mark in marks:
        before, found, after = text.partition(mark)
        if found:
            parts = [Segment(before, counts), Segment(mark, counts, mark=True), Segment(after, counts)]
            return [part for part in parts if part]
    return [Segment(text, counts)] if text else []


def stop(template: str) -> str:
    """The text that ends a turn of the assistant."""
    end = TEMPLATES[template].after
    return end.strip() or end


def of_corpus(corpus: Corpus, template: str) -> Corpus:
    """A named corpus; its conversations, if it has some, by a template. Raises UserError where only one of both is there."""
    if bool(template) == (corpus.records is not None):
        if corpus.records is None:
            return corpus
        read = corpus.records
        how = f"{corpus.how} {template} {Path(__file__).stat().st_mtime_ns}"
        return dataclasses.replace(
            corpus, read=lambda: pieces(read(), template), has_documents=True, how=how, records=None
        )
    if template:
        raise UserError(
            f"data.corpus={corpus.name!r} has no conversations, for which data.template={template!r} is: set data.template='', "
            "or data.corpus='dialogues'"
        )
    raise UserError(
        f"data.corpus={corpus.name!r} has conversations: set data.template to one of {', '.join(TEMPLATES)}"
    )


def pieces(records: Iterable[tuple[str, Any]], template: str) -> Iterator[Segment | None]:
    """Records, each with its place for errors, as a stream of documents (see text_pieces.Piece)."""
    for where, record in records:
        yield from segments(record, template, where)
        yield None
