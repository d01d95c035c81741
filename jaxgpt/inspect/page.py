"""Render a payload as one HTML file. Template, style and scripts are in assets/.

The page makes no network requests. Its Content-Security-Policy allows only its own script and style, by their hashes. Tokens
are inserted as JSON and as text, never as markup. The same payload gives the same bytes.
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

from jaxgpt.inspect import static_learning
from jaxgpt.inspect import static_tables as tables

# Concatenated in this order. Outside functions, a file uses only earlier files.
SCRIPTS = ("text", "colour", "elements", "core", "pieces", "charts", "timeline", "matrix", "learn", "summary", "probe", "stream", "attention", "allheads", "flow", "embeddings", "model", "neurons", "health", "compare", "address", "start")  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A section of the page: its title, a lead that explains how to read it, and its static tables."""

    id: str
    title: str
    lead: str
    key: str  # of the payload; if the payload lacks it, the section shows `lacking`
    content: tuple[Callable[[dict[str, Any]], str], ...]
    lacking: str = "This run has no numbers for this section."
    optional: bool = False  # omit the section if the payload lacks it


SECTIONS = (
    Section(
        "learning", "Watch it learn",
        "The same model at many steps of its training: press Play, or move the slider.",
        "learning", (static_learning.learning,), optional=True,
    ),
    Section(
        "summary", "What the model learned",
        "The validation loss measures how well the model predicts text that it was not trained on: the mean of −log p, where p "
        "is the probability that it gave to the actual next token. Lower is better. Compare it with the simple baselines.",
        "summary", (),
    ),
    Section(
        "compare", "Two runs side by side",
        "Both runs read the same text. A lower loss is better. The differences between the configs may explain it.",
        "compare", (tables.compare,), optional=True,
    ),
    Section(
        "probe", "The text, token by token",
        "Each box is a token. Its colour shows the loss of the model's prediction of the next token. Select a token with a "
        "click or the arrow keys: all sections below show the selected token.",
        "tokens", (tables.probe,),
    ),
    Section(
        "flow", "How this prediction is made",
        "The selected token's way through the model. A bar is the length of the vector that a part adds, a guess is what the model "
        "would predict if it stopped there. Each part leads to its section.",
        "ledger", (tables.flow,),
    ),
    Section(
        "next", "The next token",
        "Given the tokens so far, the model assigns every token of its vocabulary a probability of being next. A low "
        "temperature sharpens the distribution, a high one flattens it; 1 is the model's own.",
        "next", (tables.next_tokens,),
    ),
    Section(
        "attention", "Attention",
        "Each head looks back from the selected token (the query) at the tokens so far (the keys), with weights that sum to 1. First "
        "all heads at the selected token, then each head at all tokens, then one head step by step.",
        "attention", (tables.attention,),
    ),
    Section(
        "ledger", "The residual stream, term by term",
        "The embeddings, every head and every MLP add a vector to the residual stream, and the prediction is computed from "
        "the sum. So the logit of the actual next token is a sum of one contribution from each of them.",
        "ledger", (tables.ledger,),
    ),
    Section(
        "lens", "The prediction, layer by layer",
        "The logit lens applies the final norm and the output layer after each block. The last row is the model's output; the "
        "rows above show at which layer the prediction appears.",
        "lens", (tables.lens,),
    ),
    Section(
        "embeddings", "Token embeddings",
        "Every token has a vector, a row of the embedding table, which is random at the start. Training moves the rows of "
        "tokens with similar use closer together, so a token's neighbours show which tokens the model treats as similar.",
        "embeddings", (tables.embeddings,),
    ),
    Section(
        "contextual", "One token in two contexts",
        "A token's row in the embedding table is always the same, but its vector in later layers depends on the tokens before "
        "it. The lower the cosine between its two vectors, the more they depend on the context. This section has a token of its "
        "own: the one that depends most on its context.",
        "contextual", (tables.contextual,), "No token occurs both in the probe text and in another text.",
    ),
    Section(
        "positions", "Position embeddings",
        "Each position has a vector that is added to the token's vector. Similar positions have a high cosine: a "
        "bright band along the diagonal means that nearby positions are similar. The marked row is the selected token's.",
        "positions", (tables.positions,), "This model has no table of position embeddings.",
    ),
    Section(
        "neurons", "Neurons of the MLPs",
        "A neuron that fires adds its output vector to the residual stream. First those that fire most at the selected token, then "
        "those with the largest output anywhere: the texts where they fire most suggest what they respond to, often only in part.",
        "neurons", (tables.neurons,), "The texts where neurons fire most are taken from the run's own text, which is not there.",
    ),
    Section(
        "health", "Health of the training",
        "Norms, update sizes and activations at some steps of the training (train.stats_every), each line a block or a table. What is "
        "unusual by a fixed rule is named first.",
        "health", (tables.health,), optional=True,
    ),
    Section(
        "methods", "How each number is computed",
        "The formula of every number on this page, and the function that computes it.",
        "methods", (tables.methods,),
    ),
)  # fmt: skip


def render(payload: dict[str, Any]) -> str:
    """The HTML page of a payload (see `payload.payload`). Raises ValueError for numbers that are not finite."""
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
    title: str,
    contents: str,
    main: str,
    footer: str,
    data: Any,
    script: str,
    kind: str = "report",
    connects: bool = False,
) -> str:
    """A complete page. `contents`, `main` and `footer` are markup; `title`, `kind` and `data` are escaped.

    `kind` names the page. If `connects`, the page may send requests to its own server.
    """
    style = asset("style.css")
    return Template(asset("template.html")).substitute(
        TITLE=escape(f"{title}: jaxgpt {kind}"),
        KIND=escape(kind),
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
        _notice(payload)
        + _findings(payload)
        + tables.summary(payload)
        + tables.measures(payload)
        + tables.validation_texts(payload)
        if one.id == "summary"
        else ""
    )
    if payload.get(one.key):
        content = "".join(make(payload) for make in one.content)
    else:
        content = f'<p class="empty">{escape(one.lacking)}</p>'
    return frame(one, before, content)


def frame(one: Section, before: str = "", content: str = "") -> str:
    """The markup of a section: its title, its lead, more markup, and its tables."""
    return (
        f'<section id="{one.id}" aria-labelledby="{one.id}-title"><h2 id="{one.id}-title">{escape(one.title)}</h2>'
        f'<p class="lead">{escape(one.lead)}</p>{before}<div class="tables">{content}</div></section>'
    )


def _notice(payload: dict[str, Any]) -> str:
    """The list of what was cut and what is missing."""
    lines = [*payload["cut"], *payload["missing"]]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(tables.visible_text(line))}</li>" for line in lines)
    return f'<div class="notice" role="note"><strong>Not in this file</strong><ul>{items}</ul></div>'


VIEWS = {"tokens": "probe"}  # findings' views whose section has another id


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
    """The script of the views: all files of SCRIPTS as one function of `options` (see start.js)."""
    return '(options) => {\n"use strict";\n' + "\n".join(asset(f"{name}.js") for name in SCRIPTS) + "\n}"


def csp_hash(text: str) -> str:
    """The hash of an inline script or style, as a Content-Security-Policy writes it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def safe_json(value: Any) -> str:
    """JSON for a script element: ASCII, without the `<` that could end the element.

    Raises ValueError for infinite numbers and nan, which JSON lacks.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
