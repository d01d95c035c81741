"""One HTML file from a payload: template, style and script are the files in assets/.

The page asks the network for nothing. Its Content-Security-Policy allows this one script and this one style, by their hashes, and
nothing else; tokens reach it as JSON and as text, never as markup. The same payload gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from jaxgpt.inspect import static_tables as tables

# Concatenated in this order: a file uses only what stands before it, but inside functions.
SCRIPTS = ("text", "colour", "core", "pieces", "charts", "matrix", "summary", "probe", "stream", "attention", "embeddings", "model", "compare", "start")  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A part of the page: where it is, what one sees in it and how to read that, and its tables."""

    id: str
    title: str
    lead: str
    key: str  # of the payload; without it the section says why it is empty
    content: tuple[Callable[[dict[str, Any]], str], ...]
    lacking: str = "The run has none of this."
    optional: bool = False  # left out where the payload lacks it


SECTIONS = (
    Section(
        "summary", "What it learned",
        "One number says how well the model predicts text that it never saw: its loss, −log of the probability that it "
        "gave to each token that came. Lower is better, and it means something only beside what simple guesses reach.",
        "summary", (),
    ),
    Section(
        "compare", "Two runs side by side",
        "The same text, read by two runs. A lower loss is better; what the configs say differently may be why.",
        "compare", (tables.compare,), optional=True,
    ),
    Section(
        "probe", "The text, token by token",
        "Each box is a token, and its colour is how badly the model, having read up to that token, guessed the next one. "
        "Select a token, with a click or the arrow keys: everything below follows it.",
        "tokens", (tables.probe,),
    ),
    Section(
        "next", "What comes next",
        "From all that stands before it the model gives every token of its vocabulary a probability. A low temperature "
        "sharpens the list, a high one flattens it; 1 is what the model learned.",
        "next", (tables.next_tokens,),
    ),
    Section(
        "attention", "Attention: where it looks",
        "Each small square is one head: a row is a token that looks (query), a column a token that is looked at (key), and "
        "the stronger the colour the more it looks. Only the lower triangle is filled: nobody looks ahead.",
        "attention", (tables.attention,),
    ),
    Section(
        "ledger", "The residual stream: who added what",
        "Nothing in the model overwrites: the embeddings, every head and every MLP add a vector to one running sum, and "
        "the sum is what the prediction is read from. So the true token's logit can be taken apart, term by term.",
        "ledger", (tables.ledger,),
    ),
    Section(
        "lens", "The guess, layer by layer",
        "If the model had to answer early, after each block, what would it say? The last row is its real answer; rows "
        "above show where the answer was found.",
        "lens", (tables.lens,),
    ),
    Section(
        "embeddings", "Embeddings: what the vectors learned",
        "Every token has a row of numbers, random at the start. Training moves the rows of tokens that are used alike "
        "towards each other, so what is near a token says what the model takes it to be like.",
        "embeddings", (tables.embeddings,),
    ),
    Section(
        "contextual", "One token in two contexts",
        "A token's row in the table is always the same; what the layers make of it depends on what stands before it. The "
        "further the cosine falls, the more the model has made of the context.",
        "contextual", (tables.contextual,), "No token stands both in the probe text and in another.",
    ),
    Section(
        "positions", "Positions",
        "Where a token stands is a vector of its own, added to the token's. Alike positions have a high cosine; bands "
        "along the diagonal say that near positions are alike.",
        "positions", (tables.positions,),
    ),
    Section(
        "neurons", "Neurons of the MLPs",
        "Each MLP has many neurons, each of which watches for something and writes a vector when it sees it. The texts "
        "that make a neuron strongest show what it watches for, often only in part.",
        "neurons", (tables.neurons,),
    ),
    Section(
        "methods", "How each number is computed",
        "The formula of every number on this page, and the function of the code that computes it.",
        "methods", (tables.methods,),
    ),
)  # fmt: skip


def render(payload: dict[str, Any]) -> str:
    """The page of a report's numbers (`payload.payload`). Raises ValueError for numbers that are not finite."""
    title = tables.visible_text(payload["summary"]["title"])
    sections = [one for one in SECTIONS if payload.get(one.key) or not one.optional]
    return document(
        title=title,
        contents="".join(f'<li><a href="#{one.id}">{escape(one.title)}</a></li>' for one in sections),
        main="\n".join(_section(one, payload) for one in sections),
        footer=_footer(payload),
        data=payload,
        script=f"({views()})({{}});\n",
    )


def document(
    title: str, contents: str, main: str, footer: str, data: Any, script: str, connects: bool = False
) -> str:
    """A page: `contents`, `main` and `footer` are markup, `title` and `data` are not. It may ask its own server only where it `connects`."""
    style = asset("style.css")
    return Template(asset("template.html")).substitute(
        TITLE=escape(f"{title}: jaxgpt report"),
        HEADING=escape(title),
        CONTENTS=contents,
        SECTIONS=main,
        FOOTER=footer,
        STYLE=style,
        STYLE_HASH=csp_hash(style),
        SCRIPT=script,
        SCRIPT_HASH=csp_hash(script),
        CONNECT="; connect-src 'self'" if connects else "",
        DATA=safe_json(data),
    )


def _section(one: Section, payload: dict[str, Any]) -> str:
    before = (
        _notice(payload) + _findings(payload) + tables.summary(payload) + tables.measures(payload)
        if one.id == "summary"
        else ""
    )
    if payload.get(one.key):
        content = "".join(make(payload) for make in one.content)
    else:
        content = f'<p class="empty">{escape(one.lacking)}</p>'
    return (
        f'<section id="{one.id}" aria-labelledby="{one.id}-title"><h2 id="{one.id}-title">{escape(one.title)}</h2>'
        f'<p class="lead">{escape(one.lead)}</p>{before}<div class="tables">{content}</div></section>'
    )


def _notice(payload: dict[str, Any]) -> str:
    """What was cut, and what could not be had."""
    lines = [*payload["cut"], *payload["missing"]]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(tables.visible_text(line))}</li>" for line in lines)
    return f'<div class="notice" role="note"><strong>Not in this file</strong><ul>{items}</ul></div>'


VIEWS = {"tokens": "probe"}  # of findings: where the section has another name


def _findings(payload: dict[str, Any]) -> str:
    items = []
    for i, one in enumerate(payload["summary"]["findings"]):
        text = escape(tables.visible_text(one["text"]))
        items.append(
            f'<li>{text} <a href="#{VIEWS.get(one["view"], one["view"])}" data-finding="{i}">Look</a></li>'
        )
    return f'<ol class="findings">{"".join(items)}</ol>' if items else ""


def _footer(payload: dict[str, Any]) -> str:
    def shown(text: str) -> str:
        return escape(tables.visible_text(text))

    command = payload["summary"].get("command")
    made = f"Made {shown(payload['generated'])} from {shown(payload['summary']['workdir'])}."
    return made + (f" Trained with <code>{shown(command)}</code>." if command else "")


def asset(name: str) -> str:
    """The text of a file in assets/."""
    return (files("jaxgpt.inspect") / "assets" / name).read_text("utf-8")


def views() -> str:
    """The script that shows a payload: all its files as one function of `options` (see start.js)."""
    return '(options) => {\n"use strict";\n' + "\n".join(asset(f"{name}.js") for name in SCRIPTS) + "\n}"


def csp_hash(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style: the hash of its exact text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def safe_json(value: Any) -> str:
    """JSON that may stand in a script element: ASCII, and without the `<` that could end the element.

    What is no finite number is refused (ValueError): JSON has no word for it.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
