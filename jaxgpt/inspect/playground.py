"""The local page of `jaxgpt.serve`: the model continues a text, and the report's views show each generated token.

Script, style and policy are those of a report's page, but this page may send requests to its own server.
"""

from __future__ import annotations

from html import escape
from typing import Any

from jaxgpt.inspect import page, static_tables

SETTINGS = (  # of POST /api/generate: name, label, minimum, step; empty fields are not sent
    ("max_new_tokens", "tokens", 1, 1),
    ("temperature", "temperature", 0, 0.1),
    ("top_k", "top k", 1, 1),
    ("top_p", "top p", 0, 0.05),
    ("seed", "seed", 0, 1),
)
# The sections of the report that the local page shows.
SHOWN = ("probe", "next", "attention", "ledger", "lens", "embeddings", "contextual", "positions", "neurons")


def render(about: dict[str, Any]) -> str:
    """The page, from the answer of GET /api/run."""
    sections = [one for one in page.SECTIONS if one.id in SHOWN]
    title = static_tables.visible_text(about["title"])
    talks = [("talk", "Talk")] if about["template"] else []
    links = [*talks, ("write", "Write"), *((one.id, one.title) for one in sections)]
    return page.document(
        title=title,
        contents="".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in links),
        main=(_TALK if about["template"] else "")
        + _form(about)
        + '<div id="inside" hidden>'
        + "\n".join(map(page.frame, sections))
        + "</div>",
        footer=f"{escape(static_tables.visible_text(about['workdir']))}, {about['num_params']:,} parameters. Everything stays on this machine.",
        data=about,
        script=_script(bool(about["template"])),
        connects=True,
    )


def _script(talks: bool) -> str:
    names = ("text", "colour", "playground", *(["talk"] if talks else []))
    own = "\n".join(page.asset(f"{name}.js") for name in names)
    return f'const inspect = {page.views()};\n(() => {{\n"use strict";\n{own}\n}})();\n'


_TALK = (
    '<section id="talk" aria-labelledby="talk-title"><h2 id="talk-title">Talk</h2>'
    '<p class="lead">This model was trained on conversations. It answers you, with the settings below, until its turn ends.</p>'
    '<div id="turns" role="log" aria-label="Conversation"></div>'
    '<form id="say"><label class="wide">You <textarea name="said" rows="2" spellcheck="false"></textarea></label>'
    '<div class="controls"><button type="submit" class="main">Send</button>'
    '<button type="button" class="quiet" id="again">New conversation</button></div></form>'
    '<p class="said" id="talk-status" role="status"></p></section>\n'
)


def _form(about: dict[str, Any]) -> str:
    defaults = about["defaults"]
    fields = []
    for name, label, least, step in SETTINGS:
        value = defaults.get(name)
        most = f' max="{about["limits"]["max_new_tokens"]}"' if name == "max_new_tokens" else ""
        shown = "" if value is None else escape(str(value))
        fields.append(
            f'<label>{label} <input type="number" name="{name}" min="{least}" step="{step}"{most} value="{shown}"></label>'
        )
    return (
        '<section id="write" aria-labelledby="write-title"><h2 id="write-title">Write</h2>'
        '<p class="lead">The model continues your text, one token at a time. Each box is a generated token with its probability '
        "and rank; a stronger colour means a less likely token. Select a token to see how it was predicted.</p>"
        '<form id="prompt-form"><label class="wide">Your text <textarea name="prompt" rows="3" spellcheck="false">'
        f'\n{escape(defaults.get("prompt") or "")}</textarea></label><div class="controls">{"".join(fields)}</div>'
        '<div class="controls"><button type="submit" class="main">Generate</button>'
        '<button type="button" class="quiet" id="stop" disabled>Stop</button></div></form>'
        '<p class="said" id="status" role="status"></p><div id="written"></div>'
        "<noscript><p>Generation needs JavaScript.</p></noscript></section>\n"
    )
