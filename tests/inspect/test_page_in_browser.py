"""The report's page in a real browser: no requests, right numbers, usable with the keyboard.

Where there is no browser they are skipped, or fail with `--browser=required`.
"""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from jaxgpt.inspect import page, static_tables
from tests import browser
from tests.report_pages import NASTY, bare, compared, nasty


@pytest.fixture(scope="module")
def payload(report_payload):
    return report_payload


@pytest.fixture(scope="module")
def pages(payload, tmp_path_factory):
    """The small run's page, and the one with bad tokens, as files."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "report.html").write_text(page.render(payload), "utf-8")
    for make in (nasty, bare, compared):
        (folder / f"{make.__name__}.html").write_text(page.render(make(payload)), "utf-8")
    sharp = copy.deepcopy(payload)  # a small run's heads look at all alike; these do not
    scores = np.array(payload["attention"]["scores"]) * 300
    sharp["attention"]["scores"] = scores.tolist()
    (folder / "sharp.html").write_text(page.render(sharp), "utf-8")
    return folder


def draw_all(chromium):
    """Draw every view and open every fold."""
    chromium.run(
        "dispatchEvent(new Event('beforeprint')); document.querySelectorAll('details').forEach((d) => { d.open = true; })"
    )
    chromium.wait("return [...document.querySelectorAll('details')].every((d) => d.children.length > 1)")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "nasty", "bare", "compared"])
def test_no_request_and_no_complaint(chromium, pages, name, theme):
    chromium.open(pages / f"{name}.html", theme=theme)
    draw_all(chromium)
    assert chromium.requests() == [(pages / f"{name}.html").as_uri()]
    assert chromium.complaints() == []
    assert chromium.run("return document.documentElement.dataset.ready") == "true"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_hard_to_use(chromium, pages, theme):
    """axe-core's rules: contrast, names, roles, focus; every view drawn and every fold open."""
    chromium.open(pages / "report.html", theme=theme)
    draw_all(chromium)
    assert chromium.violations() == []


def test_another_script_or_style_is_not_let_in(chromium, pages):
    """The policy is in force: it blocks scripts, styles and requests that the page itself does not use."""
    chromium.open(pages / "report.html")
    chromium.run(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s);"
        "const i = document.createElement('img'); i.src = 'https://example.org/x.png'; document.body.append(i);"
        "document.body.insertAdjacentHTML('beforeend', '<p id=styled style=\"color: red\" onclick=\"window.broken = 1\">x</p>');"
        "document.getElementById('styled').click();"
    )
    assert chromium.run("return window.broken ?? null") is None
    assert (
        chromium.run("return getComputedStyle(document.getElementById('styled')).color") != "rgb(255, 0, 0)"
    )
    assert len([line for line in chromium.complaints() if "Content Security Policy" in line]) >= 3


def test_bad_tokens_do_nothing_and_read_back_unchanged(chromium, pages, payload):
    chromium.open(pages / "nasty.html")
    draw_all(chromium)
    assert chromium.run(
        "return [window.broken ?? null, document.images.length, document.scripts.length]"
    ) == [None, 0, 2]
    figures = nasty(payload)
    assert json.loads(chromium.run("return document.getElementById('data').textContent")) == json.loads(
        json.dumps(figures)
    )
    shown = chromium.run(
        "return [...document.querySelectorAll('#probe .strip .token')].map((node) => node.textContent)"
    )
    words = static_tables.Words(figures)
    assert shown == [words(i) for i in figures["probe"]["ids"]]
    assert not any(c in "".join(shown) for c in "\0\u2028\u202e\x1b")
    assert "⟨e2⟩" in chromium.run("return document.body.textContent")


def test_the_browser_and_python_write_hidden_characters_alike(chromium, pages, payload):
    """The script's `visible` equals static_tables.visible."""
    chromium.open(pages / "nasty.html")
    draw_all(chromium)
    text = chromium.run("return document.getElementById('embeddings').textContent")
    for one in nasty(payload)["vocabulary"].values():
        if one["text"] in NASTY:
            assert static_tables.visible(one["text"]) in text, one


@pytest.mark.parametrize("width", [360, 640, 1280])
@pytest.mark.parametrize("name", ["report", "nasty", "compared"])
def test_the_page_never_scrolls_sideways(chromium, pages, name, width):
    """640 px is also what 1,280 px are at 200 % zoom, and 360 px a phone."""
    chromium.open(pages / f"{name}.html", width=width)
    draw_all(chromium)
    assert chromium.run("return document.documentElement.scrollWidth") <= width


def test_text_of_twice_the_size_fits_too(chromium, pages):
    chromium.open(pages / "report.html")
    chromium.run("document.documentElement.style.fontSize = '200%'; dispatchEvent(new Event('resize'))")
    draw_all(chromium)
    assert chromium.run("return document.documentElement.scrollWidth") <= 1280


def test_arrow_keys_select_a_token_and_every_view_follows(chromium, pages, payload):
    chromium.open(pages / "report.html")
    strip = chromium.driver.find_elements(By.CSS_SELECTOR, "#probe .strip .cell")
    words, figures = static_tables.Words(payload), payload["tokens"]
    assert len(strip) == len(payload["probe"]["ids"])
    assert [cell.get_attribute("tabindex") for cell in strip].count("0") == 1, "Tab reaches one of them"
    chromium.click("#probe .strip .cell", 0)
    for key, t in (
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_RIGHT, 2),
        (Keys.ARROW_LEFT, 1),
        (Keys.HOME, 0),
        (Keys.ARROW_RIGHT, 1),
    ):
        chromium.driver.switch_to.active_element.send_keys(key)
        assert chromium.run("return document.activeElement === arguments[0]", strip[t])
        assert strip[t].get_attribute("aria-selected") == "true"
    draw_all(chromium)
    text = {
        one: chromium.run("return document.getElementById(arguments[0]).textContent", one)
        for one in ("selection", "next", "attention", "ledger", "lens")
    }
    t = 1
    here, came = f"‘{words.at(t)}’", words.at(t + 1)
    assert here in text["selection"] and came in text["selection"]
    assert f"{figures['nats'][t]:.2f} nats" in text["next"]
    assert f"The token after {here} is ‘{came}’" in text["next"]
    assert f"{here} at {t} attends to" in text["attention"]
    assert f"At {here} the logit of the actual next token ‘{came}’ is" in text["ledger"]
    assert f"p(‘{came}’) is" in text["lens"]


def test_arrow_keys_select_a_head(chromium, pages, payload):
    chromium.open(pages / "report.html")
    draw_all(chromium)
    heads = chromium.driver.find_elements(By.CSS_SELECTOR, "#attention .head")
    assert len(heads) == payload["attention"]["layers"] * payload["attention"]["heads"]
    chromium.click("#attention .head", 0)
    chromium.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert heads[1].get_attribute("aria-selected") == "true"
    assert "Layer 0, head 1: " in chromium.run("return document.getElementById('attention').textContent")


def test_the_matrix_is_read_with_arrow_keys_and_says_each_number(chromium, pages, payload):
    """The weights that the script computes from the scores are their softmax."""
    chromium.open(pages / "sharp.html")
    draw_all(chromium)
    chromium.click("#attention .head", 1)
    figures = payload["attention"]
    T = len(payload["probe"]["ids"])
    scores_TS = np.full((T, T), -np.inf)
    scores_TS[np.tril_indices(T)] = 300 * np.array(figures["scores"][0][1]) * figures["score_unit"]
    assert np.ptp(scores_TS[5, :6]) > 0.5, "weights that differ"
    weights_TS = np.exp(scores_TS) / np.exp(scores_TS).sum(axis=-1, keepdims=True)
    chromium.click("#probe .strip .cell", 5)
    # What is out of sight when a token is selected follows when it comes into sight, a moment later.
    chromium.wait(
        "const matrix = document.querySelectorAll('#attention .matrix')[2]; matrix.scrollIntoView(); matrix.focus();"
        "return [...document.querySelectorAll('#attention [role=status]')].at(-1).textContent.includes('at 5, key')"
    )
    matrix = chromium.driver.find_elements(By.CSS_SELECTOR, "#attention .matrix")[2]
    readout = chromium.driver.find_elements(By.CSS_SELECTOR, "#attention [role=status]")[-1]
    said = chromium.run("return arguments[0].textContent", readout)
    s = int(weights_TS[5].argmax())
    assert "at 5, key" in said and f"at {s}: weight {weights_TS[5, s]:.3f}" in said
    matrix.send_keys(Keys.ARROW_DOWN)
    said = chromium.run("return arguments[0].textContent", readout)
    assert "at 6, key" in said and f"at {s}: weight {weights_TS[6, s]:.3f}" in said


def test_what_a_large_model_lacks_is_said_and_the_rest_is_shown(chromium, pages):
    """Weights without scores, for fewer tokens than the text has, within a window; no drift, no tests, no contexts."""
    chromium.open(pages / "bare.html")
    draw_all(chromium)
    text = {
        one.id: chromium.run("return document.getElementById(arguments[0])?.textContent", one.id)
        for one in page.SECTIONS
    }
    assert "Weights." in text["attention"] and "1. Scores" not in text["attention"]
    assert "induction" not in text["attention"].split("Table: every head")[0]
    assert "no losses by step" in text["summary"] and "Much was cut." in text["summary"]
    assert "none of the words" in text["embeddings"] and "saved no table of step 0" in text["embeddings"]
    assert "This file has no neighbours of" in text["embeddings"]
    assert "rotary" in text["positions"] and text["compare"] is None
    chromium.click("#probe .strip .cell", 12)  # past the table of attention, which has 12 tokens
    assert "attends to" in chromium.run("return document.getElementById('attention').textContent")
    assert chromium.complaints() == []


def test_two_runs_side_by_side(chromium, pages, payload):
    chromium.open(pages / "compared.html")
    draw_all(chromium)
    chromium.click("#probe .strip .cell", 2)
    draw_all(chromium)
    text = chromium.run("return document.getElementById('compare').textContent")
    assert "the other run by" in text and "model.d_model: 16 -> 32" in text
    assert text.count(f"{payload['tokens']['nats'][2]:.2f}") >= 2
    options = chromium.run("return [...document.querySelectorAll('#probe option')].map((o) => o.value)")
    assert "compare" in options


def test_the_temperature_changes_the_probabilities_exactly(chromium, pages, payload):
    chromium.open(pages / "report.html")
    chromium.click("#probe .strip .cell", 3)
    slider = chromium.driver.find_element(By.CSS_SELECTOR, "#next input")
    slider.send_keys(Keys.ARROW_LEFT * 5)
    chromium.wait("return document.querySelector('#next output').textContent === '0.5'")
    figures = payload["next"]
    j = figures["temperatures"].index(0.5)
    first = chromium.run(
        "return [...document.querySelectorAll('#next .view tbody tr')].map((row) => row.children[2].textContent)"
    )
    want = [math.exp(x / 0.5 - figures["logsumexp"][3][j]) for x in figures["logits"][3][:10]]
    for shown, p in zip(first, want, strict=False):
        assert float(shown.replace("−", "-")) == pytest.approx(p, abs=6e-4)


def test_the_theme_follows_the_system_and_the_button(chromium, pages):
    background = "return getComputedStyle(document.body).backgroundColor"
    chromium.open(pages / "report.html", theme="dark")
    dark = chromium.run(background)
    chromium.click("#theme")
    light = chromium.run(background)
    chromium.open(pages / "report.html", theme="light")
    assert chromium.run(background) == light != dark


def test_without_a_script_the_tables_are_there(chromium, pages, payload):
    chromium.open(pages / "report.html", scripts=False)
    try:
        for one in page.SECTIONS:
            if one.optional:
                continue
            rows = chromium.driver.find_elements(By.CSS_SELECTOR, f"#{one.id} tbody tr")
            assert bool(rows) == bool(payload[one.key]), one.id
            assert all(row.is_displayed() for row in rows)
        assert chromium.complaints() == []
    finally:
        chromium.command("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize(
    ("required", "outcome"), [(False, pytest.skip.Exception), (True, pytest.fail.Exception)]
)
@pytest.mark.parametrize("missing", browser.PROGRAMS)
def test_without_a_browser_the_test_says_what_to_install(monkeypatch, missing, required, outcome):
    monkeypatch.setattr("shutil.which", lambda name: None if name == missing else f"/usr/bin/{name}")
    with pytest.raises(outcome, match=f"{missing} not found: apt-get install chromium chromium-driver"):
        browser.start(required)


@pytest.mark.parametrize(
    ("required", "outcome"), [(False, pytest.skip.Exception), (True, pytest.fail.Exception)]
)
def test_a_driver_that_does_not_start_the_browser_is_named(monkeypatch, tmp_path, required, outcome):
    broken = tmp_path / "program"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(broken))
    with pytest.raises(outcome, match=r"chromedriver can't start chromium \(.*exited.*\): apt-get install"):
        browser.start(required)
