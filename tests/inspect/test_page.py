"""The report's page as text: data can't become markup, and the page obeys its own policy."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import json
import re

import numpy as np
import pytest

from jaxgpt.inspect import page, playground, static_tables
from tests.report_pages import NASTY, nasty


@pytest.fixture(scope="module")
def payload(report_payload):
    return report_payload


def element(text: str, tag: str) -> list[str]:
    """The contents of every element with this tag."""
    return re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(payload):
    text = page.render(payload)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    _, script = element(text, "script")
    (style,) = element(text, "style")

    def allowed(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'", "script-src": allowed(script), "style-src": allowed(style), "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip
    assert not re.search(r"\s(style|on\w+)=", text.replace(script, "").replace(style, "")), (
        "the policy forbids them"
    )


def test_the_script_puts_text_into_the_page_only_as_text():
    script = page.views()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|srcdoc|https?://(?!www\.w3\.org/2000/svg)",
        script,
    )
    assert "</script" not in script and "<!--" not in script
    assert "</style" not in page.asset("style.css") and not re.search(
        r"url\(|@import", page.asset("style.css")
    )


def test_no_file_of_the_page_is_longer_than_450_lines():
    names = [f"{name}.js" for name in page.SCRIPTS] + ["style.css", "template.html"]
    assert {name: n for name in names if (n := len(page.asset(name).splitlines())) > 450} == {}


def test_the_same_numbers_give_the_same_bytes(payload):
    assert page.render(payload) == page.render(json.loads(json.dumps(payload)))


def test_the_page_holds_its_numbers_unchanged_whatever_the_tokens_are(payload):
    payload = nasty(payload)
    text = page.render(payload)
    data, _ = element(text, "script")
    assert json.loads(data) == json.loads(json.dumps(payload))
    assert data.isascii() and not set("<>&") & set(data)


def test_every_token_is_escaped_in_the_markup(payload):
    plain, bad = page.render(payload), page.render(nasty(payload))
    tags = [re.sub(r'"[^"]*"', "", tag) for tag in re.findall(r"<[a-z/!][^>]*>", plain)]
    assert [re.sub(r'"[^"]*"', "", tag) for tag in re.findall(r"<[a-z/!][^>]*>", bad)] == tags
    unseen = [c for c in bad if c != "\n" and not c.isprintable()]
    assert unseen == []
    bad.encode()  # no lone surrogate


def test_what_can_not_be_seen_is_written_out():
    for text, shown in (
        (" the", "␣the"), ("\n", "↵"), ("\0", "⟨U+0000⟩"), ("a\u202eb", "a⟨U+202E⟩b"), ("\u2028", "⟨U+2028⟩"),
        ("\ud800", "⟨U+D800⟩"), ("\u0301", "◌\u0301"), ("\u00a0", "⟨U+00A0⟩"), ("", "⟨empty⟩"), ("שלום", "שלום"),
        ("\U000e0041", "⟨U+E0041⟩"),
    ):  # fmt: skip
        assert static_tables.visible(text) == shown


def test_bytes_that_are_no_character_are_shown_as_bytes():
    words = static_tables.Words(
        {"vocabulary": {"7": {"text": "\\xe2", "hex": "e2 80"}}, "probe": {"ids": []}}
    )
    assert words(7) == "⟨e2 80⟩"


def test_every_section_has_its_tables_without_a_script(payload):
    text = page.render(payload)
    for one in page.SECTIONS:
        if one.optional:
            continue
        section = re.search(rf'<section id="{one.id}".*?</section>', text, re.DOTALL)[0]
        assert one.lead.split(",")[0].split(":")[0] in html.unescape(section)
        assert ("<table>" in section) == (bool(payload.get(one.key))), one.id
    words = static_tables.Words(payload)
    probe = re.search(r'<section id="probe".*?</section>', text, re.DOTALL)[0]
    for t, nats in enumerate(payload["tokens"]["nats"]):
        assert f"<td>{html.escape(words.at(t))}</td>" in probe
        assert f'<td class="r">{static_tables.number(nats)}</td>' in probe


def test_what_was_cut_or_is_missing_is_said_at_the_top(payload):
    payload = copy.deepcopy(payload)
    payload["cut"] = ["Only the first 3 <tokens>."]
    payload["missing"] = ["No baselines."]
    text = page.render(payload)
    notice = re.search(r'<div class="notice".*?</div>', text)[0]
    assert "Only the first 3 &lt;tokens&gt;." in notice and "No baselines." in notice


def test_a_section_without_numbers_says_so(payload):
    payload = copy.deepcopy(payload)
    payload["contextual"] = payload["neurons"] = None
    text = page.render(payload)
    for one in page.SECTIONS:
        if one.id in ("contextual", "neurons"):
            assert f'<p class="empty">{html.escape(one.lacking)}</p>' in text


def test_a_number_that_is_not_finite_is_refused(payload):
    payload = copy.deepcopy(payload)
    payload["tokens"]["nats"][0] = float(np.float64("nan"))
    with pytest.raises(ValueError, match="JSON"):
        page.render(payload)


def test_a_small_run_has_a_small_page(payload):
    assert len(page.render(payload).encode()) < 300_000


def test_the_tokens_of_these_tests_are_bad_ones():
    assert "</script>" in "".join(NASTY) and "\0" in NASTY and "\u202e" in "".join(NASTY)


ABOUT = {"template": "", "examples": ["</button><b>"], "sites": {"layers": 2, "heads": 2, "mlp": 1, "neurons": 8, "stream": 1},
    "title": "run </title><script>", "step": 20, "workdir": "run/<b>", "tokenizer": "char", "vocab_size": 20, "num_params": 4_000,
    "context_length": 16, "limits": {"body_bytes": 65_536, "max_new_tokens": 1_000},
    "defaults": {"prompt": "\n</textarea><b>", "max_new_tokens": 20, "temperature": 0.8, "top_k": None, "top_p": None, "seed": 0},
}  # fmt: skip


def test_the_page_that_writes_may_ask_its_own_server_and_nobody_else():
    text = playground.render(ABOUT)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    data, script = element(text, "script")
    assert rules["connect-src"] == "'self'" and rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'{page.csp_hash(script)}'"
    assert json.loads(data) == ABOUT
    assert "<b>" not in text and "&lt;/textarea&gt;&lt;b&gt;" in text
    assert not re.search(r"innerHTML|insertAdjacent|eval\(", script)
