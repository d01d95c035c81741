"""The chat template of a published tokenizer: Jinja, rendered in a sandbox with the variables that transformers gives it.

It is stored with the tokenizer, as `chat_template.jinja` or in tokenizer_config.json. The same text stands next to
tokenizer.json in the folder of a run with data.template=tokenizer. Special tokens of the template are these tokens; a turn
may not contain their text.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxgpt.common.files import read_json
from jaxgpt.config import UserError, first_line
from jaxgpt.data.text_pieces import Segment
from jaxgpt.data.tokenizer import Tokenizer

FILE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
NAME = "tokenizer"  # of data.template
LARGEST = 1 << 20  # bytes; the longest published ones have 20,000
Turns = Sequence[tuple[str, str]]  # (role, content) of each


def read(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder, `with_tokens`; None where it has none.

    Raises UserError for one that can't be read. Nothing is executed.
    """
    try:
        settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        if not isinstance(settings, dict):
            raise ValueError("it is no JSON object")
        source = settings.get("chat_template")
        if isinstance(source, list):  # several with names
            named = {one["name"]: one["template"] for one in source}
            source = named.get("default", next(iter(named.values()), None))
        if (folder / FILE).is_file():
            if (folder / FILE).stat().st_size > LARGEST:
                raise ValueError(f"{FILE} has more than {LARGEST >> 20} MiB")
            source = (folder / FILE).read_text("utf-8")
        values = {name: _token(settings.get(name)) for name in ("bos_token", "eos_token")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the chat template of {folder} can't be read ({first_line(error)}): fix {FILE} or {SETTINGS}"
        ) from error
    if source is None:
        return None
    if not isinstance(source, str) or len(source) > LARGEST:
        raise UserError(f"{folder / SETTINGS}: chat_template is not a text of at most {LARGEST >> 20} MiB")
    return with_tokens(source, values)


def with_tokens(source: str, values: dict[str, str | None]) -> str:
    """A template that needs no other file: it begins with the values of bos_token and eos_token, where it uses them."""
    for name, value in values.items():
        if value is not None and name in source and f"{{% set {name} = " not in source:
            source = f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}\n{source}"
    return source


def _token(value: Any) -> str | None:
    """A special token in tokenizer_config.json: a text, or an object with its content."""
    if isinstance(value, dict):
        value = value["content"]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"a special token is of type {type(value).__name__}")
    return value


class ChatTemplate:
    """How a tokenizer writes turns. `special` gives the texts of its special tokens when they are needed."""

    name = NAME

    def __init__(self, source: str, special: Callable[[], Sequence[str]]) -> None:
        self.source, self._special = source, special
        self.identity = f"{NAME} {hashlib.sha256(source.encode()).hexdigest()}"  # of a cache of ids
        self._compiled = _compiled(source)

    @functools.cached_property
    def marks(self) -> tuple[str, ...]:
        """The texts that are special tokens."""
        return tuple(self._special())

    def render(self, messages: Turns, add_generation_prompt: bool = False) -> str:
        """The text of turns, as transformers' apply_chat_template. Raises UserError for turns that it refuses."""
        given = [{"role": role, "content": content} for role, content in messages]
        try:
            return self._compiled.render(
                messages=given, tools=None, documents=None, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # what a template raises is its own
            raise UserError(
                f"the tokenizer's chat template refuses these turns ({first_line(error)}): change them, or choose another "
                "data.template: play, line, chatml"
            ) from error

    def turns(self, messages: Turns) -> list[Segment]:
        """Turns as text in parts: what each answer adds to the text before it counts."""
        found: list[Segment] = []
        done = ""
        for number, (role, _) in enumerate(messages):
            if role == "assistant":
                opened = self.render(messages[:number], add_generation_prompt=True)
                closed = self.render(messages[: number + 1])
                found += [self._added(done, opened, False), self._added(opened, closed, True)]
                done = closed
        found.append(self._added(done, self.render(messages), False))
        return [part for part in found if part]

    def _added(self, before: str, text: str, counts: bool) -> Segment:
        """What a text has after another."""
        if not text.startswith(before):
            raise UserError(
                "the tokenizer's chat template writes a turn differently when another follows, so what counts can't be "
                "found: give conversations with one answer, or choose another data.template: play, line, chatml"
            )
        return Segment(text[len(before) :], counts, special=True)

    def prompt(self, messages: Turns) -> list[Segment]:
        """The text up to where the assistant is to speak."""
        return [Segment(self.render(messages, add_generation_prompt=True), counts=False, special=True)]

    @functools.cached_property
    def stop(self) -> str:
        """The text that ends an answer; "" where the template writes none."""
        question = [("user", "x")]
        try:
            opened = self.render(question, add_generation_prompt=True)
            closed = self.render([*question, ("assistant", "y")])
            after = self._added(opened, closed, True).partition("y")[2]
        except UserError:
            return ""
        places = [(at, mark) for mark in self.marks if (at := after.find(mark)) >= 0]
        return min(places)[1] if places else after.strip()

    def check_content(self, content: str, where: str) -> None:
        """Raise UserError for a turn with the text of a special token: it would become that token."""
        for mark in self.marks:
            if mark in content:
                raise UserError(
                    f"{where} has {mark!r} in its text, a special token of the tokenizer: change it, or choose another "
                    "data.template"
                )


def of_tokenizer(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    """A template with the special tokens of an open tokenizer."""
    return ChatTemplate(source, lambda: [tokenizer.token(i) for i in tokenizer.special_ids.tolist()])


def of_path(path: str | Path) -> ChatTemplate:
    """The template next to a tokenizer file, or in its folder: that of data.tokenizer_path. Raises UserError."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    source = read(folder)
    if source is None:
        raise UserError(
            f"{folder} has no chat template ({FILE}, or chat_template in {SETTINGS}), which data.template='{NAME}' needs: "
            "choose another data.template: play, line, chatml"
        )
    return ChatTemplate(source, lambda: _special_tokens(path))


def _special_tokens(path: Path) -> list[str]:
    """The texts of the special tokens of a published tokenizer, or of that of a run."""
    from jaxgpt.data import huggingface, tokenizers

    file = path / huggingface.FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} does not exist: data.template='{NAME}' needs it")
    document = read_json(file)
    is_run = isinstance(document, dict) and "kind" in document
    tokenizer = tokenizers.from_json(document) if is_run else huggingface.load(file)
    return [tokenizer.token(i) for i in tokenizer.special_ids.tolist()]


@functools.lru_cache(8)
def _compiled(source: str) -> Any:
    """The compiled template. It can't reach Python, as transformers compiles it. Raises UserError for one with a mistake."""
    try:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise UserError(
            f'a tokenizer\'s chat template needs jinja2 ({error}): pip install "jaxgpt[chat]", or choose another '
            "data.template: play, line, chatml"
        ) from error

    class Generation(jinja2.ext.Extension):
        """The block `generation`, which marks what the assistant says for training elsewhere: here its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, **settings: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False} | settings)  # Jinja's own escapes HTML

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UserError(
            f"the tokenizer's chat template is not valid Jinja ({first_line(error)}): fix it"
        ) from error
