"""The local page of `jaxgpt.serve`: the model continues a text, and the report's views show each generated token.

Script, style and policy are those of a report's page, but this page may send requests to its own server.
"""

from __future__ import annotations

from html import escape
from typing import Any

from jaxgpt.inspect import page, static_tables

SETTINGS = (  # of POST /api/generate: name, label, minimum, step; empty fields are not sent
    ("max_new_tokens", "tokens", 1, 1),
    ("temperature", "temperature", 0, "any"),
    ("top_k", "top k", 1, 1),
    ("top_p", "top p", 0, "any"),
    ("seed", "seed", 0, 1),
)
# The sections of the report that the local page shows.
SHOWN = (
    "probe",
    "flow",
    "next",
    "attention",
    "ledger",
    "lens",
    "embeddings",
    "contextual",
    "positions",
    "neurons",
)


def render(about: dict[str, Any]) -> str:
    """The page, from the answer of GET /api/run."""
    sections = [one for one in page.SECTIONS if one.id in SHOWN]
    title = static_tables.visible_text(about["title"])
    talks = [("talk", "Talk")] if about["template"] else []
    links = [
        *talks,
        ("write", "Write"),
        ("change", "Change the model"),
        *((one.id, one.title) for one in sections),
    ]
    return page.document(
        title=title,
        contents="".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in links),
        main=(_TALK if about["template"] else "")
        + _form(about)
        + _changes(about)
        + '<div id="inside" hidden>'
        + "\n".join(map(page.frame, sections))
        + "</div>",
        footer=f"{escape(static_tables.visible_text(about['workdir']))}, {about['num_params']:,} parameters. Everything stays on this machine.",
        data=about,
        script=_script(bool(about["template"])),
        kind="page on this machine",
        connects=True,
    )


def _script(talks: bool) -> str:
    names = ("text", "colour", "elements", "ask", "edits", *(["talk"] if talks else []), "look", "playground")
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
    examples = "".join(
        f'<button type="button" class="example" data-prompt="{escape(one)}"><span class="token">{escape(static_tables.visible_text(one))}</span></button>'
        for one in about["examples"]
    )
    return (
        '<section id="write" aria-labelledby="write-title"><h2 id="write-title">Write</h2>'
        '<p class="lead">The model continues your text, one token at a time. Each box is a token with the probability that the model '
        "gave it, and its rank; a stronger colour means a less likely token. Select a token to see what else could have come, and to look "
        "inside the model. Tokens with a line below are yours.</p>"
        '<form id="prompt-form"><label class="wide">Your text <textarea name="prompt" rows="3" spellcheck="false">'
        f"\n{escape(defaults.get('prompt') or '')}</textarea></label>"
        + (f'<p class="examples">Try: {examples}</p>' if examples else "")
        + f'<div class="controls">{"".join(fields)}</div>'
        '<div class="controls"><button type="submit" class="main">Generate</button>'
        '<button type="button" class="quiet" id="more">Continue</button>'
        '<button type="button" class="quiet" id="see">Look inside</button>'
        '<button type="button" class="quiet" id="stop" disabled>Stop</button></div></form>'
        '<p class="soft" id="ready"></p><p class="said" id="status" role="status"></p>'
        '<div id="tabs" role="group" aria-label="Your texts" hidden></div><div id="written"></div><div id="choices"></div>'
        "<noscript><p>Generation needs JavaScript.</p></noscript></section>\n"
    )


# Of an edit: the value of its site, and its name.
_KINDS = (("heads", "a head"), ("mlp", "the MLP of a layer"), ("neurons", "a neuron"), ("stream", "a direction between two words"))  # fmt: skip


def _changes(about: dict[str, Any]) -> str:
    """The form with which heads, MLPs and neurons are switched off or scaled, and directions added."""
    sites = about["sites"]
    kinds = "".join(f'<option value="{site}">{name}</option>' for site, name in _KINDS if site in sites)

    def number(label: str, name: str, most: int | None, which: str = "", step: str = "1") -> str:
        kinds = f' data-for="{which}"' if which else ""
        limits = f'min="0" max="{most}" ' if most is not None else ""
        return f'<label{kinds}>{label} <input type="number" name="{name}" {limits}step="{step}" value="0" required></label>'

    return (
        '<section id="change" aria-labelledby="change-title"><h2 id="change-title">Change the model</h2>'
        '<p class="lead">Switch a part of the model off (0), scale it, or add the direction from one word to another to the residual '
        "stream, at every token. The bars of what may come next then show both: without the changes, and with them.</p>"
        f'<form id="edit-form"><div class="controls"><label>Change <select name="site">{kinds}</select></label>'
        + number("layer", "layer", sites["layers"] - 1)
        + number("number", "at", max(0, sites["heads"] - 1), "heads neurons")
        + '<label data-for="stream">from <input type="text" name="from" size="8" spellcheck="false"></label>'
        '<label data-for="stream">to <input type="text" name="to" size="8" spellcheck="false"></label>'
        + number("times", "scale", None, step="any")
        + '<button type="submit" class="quiet">Add the change</button></div></form>'
        '<p class="said" id="edit-status" role="status"></p><ul id="edits"></ul>'
        '<label hidden><input type="checkbox" id="edited" checked> Write with these changes</label></section>\n'
    )
