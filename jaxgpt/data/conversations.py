"""Conversations as text: templates for turns, and which part of the text a model learns to predict.

A record is `{"prompt": ..., "completion": ...}` or `{"messages": [{"role": ..., "content": ...}, ...]}` with the roles
system, user and assistant. Loss counts on a completion, on what the assistant says, and on the end of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import chat_templates
from jaxgpt.data.corpora import Corpus
from jaxgpt.data.text_pieces import Segment, check_text
from jaxgpt.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


class Template(Protocol):
    """How turns are written: one of TEMPLATES, or that of a tokenizer (chat_templates.ChatTemplate)."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """What changes when the text does, for caches."""

    @property
    def stop(self) -> str:
        """The text that ends a turn of the assistant; "" where there is none."""

    def turns(self, messages: Sequence[tuple[str, str]]) -> list[Segment]:
        """(role, content) of each turn as text in parts."""

    def prompt(self, messages: Sequence[tuple[str, str]]) -> list[Segment]:
        """The text up to where the assistant is to speak."""

    def check_content(self, content: str, where: str) -> None:
        """Raise UserError for a turn with the text of what ends one: a model would learn to stop within a turn."""


@dataclass(frozen=True)
class Written:
    """A template in words. `{role}` stands for the role and `{Role}` for the role with a capital letter.

    marks: parts of both that are special tokens in some tokenizers.
    """

    name: str
    before: str
    after: str
    marks: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        return self.name

    @property
    def stop(self) -> str:
        return self.after.strip() or self.after

    def turns(self, messages: Sequence[tuple[str, str]]) -> list[Segment]:
        found: list[Segment] = []
        for role, content in messages:
            counts = role == "assistant"
            found += _marked(self._before(role), self.marks, counts=False)
            found += [Segment(content, counts)] if content else []
            found += _marked(self.after, self.marks, counts)
        return found

    def prompt(self, messages: Sequence[tuple[str, str]]) -> list[Segment]:
        return self.turns(messages) + _marked(self._before("assistant"), self.marks, counts=False)

    def _before(self, role: str) -> str:
        return self.before.format(role=role, Role=role.capitalize())

    def check_content(self, content: str, where: str) -> None:
        if self.stop in content:
            others = ", ".join(one.name for one in TEMPLATES.values() if one.stop not in content)
            instead = f", or choose another data.template: {others}" if others else ""
            raise UserError(
                f"{where} has {self.after!r} in its text, which ends a turn of data.template={self.name!r}: change it{instead}"
            )


TEMPLATES = {
    template.name: template
    for template in (
        Written("play", "{Role}:\n", "\n\n"),  # as the speeches of data.corpus=shakespeare
        Written("line", "{Role}: ", "\n"),
        Written(
            "chatml",
            "<|im_start|>{role}\n",
            "<|im_end|>\n",
            ("<|im_start|>", "<|im_end|>"),
        ),
    )
}


def of_data(cfg: DataConfig) -> Template:
    """The template of a config with data.template. Raises UserError where the tokenizer has none."""
    if cfg.template != chat_templates.NAME:
        return TEMPLATES[cfg.template]
    return chat_templates.of_path(cfg.tokenizer_path)


def of_run(cfg: DataConfig, workdir: Path, tokenizer: Tokenizer) -> Template | None:
    """The template of a run: that of its config, or the one of its tokenizer, which an import keeps. None: it has none."""
    if cfg.template in TEMPLATES:
        return TEMPLATES[cfg.template]
    source = chat_templates.read(workdir)
    return None if source is None else chat_templates.of_tokenizer(source, tokenizer)


def segments(record: Any, template: Template, where: str) -> list[Segment]:
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


def _of_messages(messages: Any, template: Template, where: str) -> list[Segment]:
    found = checked(messages, template, where)
    if not any(role == "assistant" for role, _ in found):
        raise UserError(
            f"{where} has no turn of the assistant, so that nothing in it would be learned: leave it out"
        )
    try:
        return template.turns(found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def checked(messages: Any, template: Template, where: str) -> list[tuple[str, str]]:
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
        template.check_content(content, at)
        found.append((role, content))
    return found


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


def of_corpus(corpus: Corpus, template: Template | None) -> Corpus:
    """A named corpus; its conversations, if it has some, by a template. Raises UserError where only one of both is there."""
    if template is not None and corpus.records is not None:
        read = corpus.records
        how = f"{corpus.how} {template.identity} {Path(__file__).stat().st_mtime_ns}"
        return dataclasses.replace(
            corpus, read=lambda: pieces(read(), template), has_documents=True, how=how, records=None
        )
    if template is not None:
        raise UserError(
            f"data.corpus={corpus.name!r} has no conversations, for which data.template={template.name!r} is: set data.template='', "
            "or data.corpus='dialogues'"
        )
    raise UserError(
        f"data.corpus={corpus.name!r} has conversations: set data.template to one of {', '.join(TEMPLATES)}, {chat_templates.NAME}"
    )


def pieces(records: Iterable[tuple[str, Any]], template: Template) -> Iterator[Segment | None]:
    """Records, each with its place for errors, as a stream of documents (see text_pieces.Piece)."""
    for where, record in records:
        yield from segments(record, template, where)
        yield None
