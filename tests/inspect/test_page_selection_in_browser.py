"""The selected token in a browser: all heads at it, its way through the model, its neurons, and the selection in the address."""

from __future__ import annotations

import base64
import copy
from itertools import pairwise

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from jaxgpt.inspect import page, static_tables
from tests.inspect.test_page_in_browser import draw_all


@pytest.fixture(scope="module")
def payload(report_payload):
    """The small run's, with heads that do not look at all alike."""
    figures = copy.deepcopy(report_payload)
    figures["attention"]["scores"] = (300 * np.array(figures["attention"]["scores"])).tolist()
    return figures


@pytest.fixture(scope="module")
def file(payload, tmp_path_factory):
    path = tmp_path_factory.mktemp("selection") / "report.html"
    path.write_text(page.render(payload), "utf-8")
    return path


def weights_at(figures: dict, layer: int, head: int, t: int) -> np.ndarray:
    start = t * (t + 1) // 2
    scores = np.array(figures["scores"][layer][head][start : start + t + 1]) * figures["score_unit"]
    e = np.exp(scores - scores.max())
    return e / e.sum()


def text_of(chromium, name: str) -> str:
    return chromium.run("return document.getElementById(arguments[0]).textContent", name)


def test_all_heads_at_a_token_are_read_with_the_pointer_and_the_keys(chromium, file, payload):
    chromium.open(file)
    draw_all(chromium)
    chromium.click("#selection .line span", 6)
    draw_all(chromium)
    said = "return [...document.querySelectorAll('#attention [role=status]')][0].textContent"
    frame = chromium.driver.find_element(By.CSS_SELECTOR, ".all-heads")
    chromium.run("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", frame)
    last = payload["attention"]["heads"] - 1
    frame.send_keys(Keys.ARROW_DOWN * (last + 1))
    weights = weights_at(payload["attention"], 0, last, 6)
    words, s = static_tables.Words(payload), int(weights.argmax())
    assert f"Layer 0, head {last}" in chromium.run(said)
    assert f"gives ‘{words.at(s)}’ at {s} the weight {weights[s]:.3f}" in chromium.run(said)
    frame.send_keys(Keys.ARROW_LEFT if s else Keys.ARROW_RIGHT)
    near = s - 1 if s else 1
    assert f"at {near} the weight {weights[near]:.3f}" in chromium.run(said)
    # A click selects the head and the key, and every view follows.
    place = chromium.run(
        "const b = document.querySelector('.all-heads canvas').getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    )
    chromium.run(
        "const [left, top, width, height] = arguments[0]; const c = document.querySelector('.all-heads canvas');"
        "c.dispatchEvent(new MouseEvent('click', {clientX: left + width - 200, clientY: top + 25, bubbles: true}))",
        place,
    )
    assert "Layer 0, head 0" in chromium.run(said)
    assert (
        chromium.run("return document.querySelectorAll('#attention .head')[0].getAttribute('aria-selected')")
        == "true"
    )


def test_arcs_of_a_layer_show_its_larger_weights(chromium, file, payload):
    chromium.open(file)
    draw_all(chromium)
    chromium.click("#selection .line span", 7)
    chromium.run(
        "const list = document.querySelector('#attention select'); list.value = '0'; list.dispatchEvent(new Event('change'))"
    )
    draw_all(chromium)
    expected = sum(
        (weights_at(payload["attention"], 0, h, 7) >= 0.05).sum()
        for h in range(payload["attention"]["heads"])
    )
    assert chromium.run("return document.querySelectorAll('svg.arcs path').length") == expected > 0


def test_the_strip_of_tokens_stays_in_sight_and_selects(chromium, file, payload):
    chromium.open(file)
    draw_all(chromium)
    for section in ("attention", "lens", "neurons"):
        chromium.run("document.getElementById(arguments[0]).scrollIntoView()", section)
        top, bottom = chromium.run(
            "const b = document.querySelector('#selection .line').getBoundingClientRect(); return [b.top, b.bottom]"
        )
        assert 0 <= top < bottom <= 120, section
    chromium.click("#selection .line span", 4)
    draw_all(chromium)
    here = f"‘{static_tables.Words(payload).at(4)}’"
    for section in ("selection", "flow", "next", "attention", "ledger", "lens", "neurons"):
        assert here in text_of(chromium, section), section
    chromium.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert chromium.run("return document.activeElement.getAttribute('aria-selected')") == "true"
    assert " at 5" in text_of(chromium, "selection")


def test_the_selection_is_in_the_address_and_an_address_selects(chromium, file, payload):
    chromium.open(file)
    chromium.click("#selection .line span", 3)
    chromium.wait("return location.hash.includes('token=3')")
    heads = payload["attention"]["heads"]
    chromium.open(f"{file.as_uri()}#attention&token=5&head=0.{heads - 1}&key=2&step=10")
    chromium.wait("return document.documentElement.dataset.ready === 'true'")
    # At the start the address leads to its section.
    chromium.wait(
        "return Math.abs(document.getElementById('attention').getBoundingClientRect().top) < innerHeight / 2"
    )
    draw_all(chromium)
    assert " at 5" in text_of(chromium, "selection")
    assert chromium.run("return document.querySelector('.step-now').textContent") == "step 10"
    assert f"Layer 0, head {heads - 1}" in text_of(chromium, "attention")
    # A link keeps the selection.
    chromium.click('#contents a[href="#lens"]')
    chromium.wait("return location.hash.startsWith('#lens&token=5')")


@pytest.mark.parametrize(
    "hash",
    [
        "#&token=99999&head=9.9&key=-1&step=7",
        "#token=<img src=x>&head=&neuron=a.b",
        "#%00&token=1e3&neuron=99.1",
    ],
)
def test_a_wrong_address_changes_nothing(chromium, file, hash):
    chromium.open(file.as_uri() + hash)
    chromium.wait("return document.documentElement.dataset.ready === 'true'")
    draw_all(chromium)
    assert chromium.complaints() == [] and "attends to" in text_of(chromium, "attention")


def test_the_way_through_the_model_has_the_real_norms_and_guesses(chromium, file, payload):
    chromium.open(file)
    chromium.click("#selection .line span", 2)
    draw_all(chromium)
    text, words = text_of(chromium, "flow").split("Table:")[0], static_tables.Words(payload)
    ledger, lens = payload["ledger"], payload["lens"]
    for i in range(payload["attention"]["layers"]):
        assert f"MLP{ledger['norms'][ledger['entries'].index(f'{i}.mlp')][2]:.2f}" in text
        p = lens["p"][i + 1][2][0]
        assert f"guess ‘{words(lens['ids'][i + 1][2][0])}’ {p:.3f}" in text
    chromium.click("#flow .square", 1)
    assert chromium.run("return location.hash").startswith("#attention")
    chromium.wait("return document.getElementById('attention').textContent.includes('Layer 0, head 1')")


def test_the_neurons_that_fire_most_here_are_those_of_the_forward_pass(chromium, file, payload):
    chromium.open(file)
    chromium.click("#selection .line span", 9)
    draw_all(chromium)
    firing = payload["firing"]["layers"][0]
    T = len(payload["probe"]["ids"])
    values_NT = np.frombuffer(base64.b64decode(firing["values"]), np.int8).reshape(-1, T) * firing["unit"]
    order = np.argsort(-values_NT[:, 9], kind="stable")
    shown = chromium.run(
        "return [...document.querySelectorAll('#neurons .pair tbody tr')].map((r) => [...r.cells].slice(0, 2).map((c) => c.textContent))"
    )
    assert len(shown) == 10
    assert [float(value.replace("−", "-")) for _, value in shown] == pytest.approx(
        values_NT[order[:10], 9], abs=6e-3
    )
    assert shown[0][0] == f"neuron {firing['neurons'][order[0]]}"
    # Any neuron by its number, over the text.
    chromium.run(
        "const n = document.querySelector('#neurons input'); n.value = 5; n.dispatchEvent(new Event('change'))"
    )
    draw_all(chromium)
    assert "Neuron 5 of layer 0" in text_of(chromium, "neurons")
    cells = chromium.run(
        "return [...document.querySelectorAll('#neurons .pair .cell .number')].map((n) => n.textContent)"
    )
    row = values_NT[firing["neurons"].index(5)]
    assert [float(text.replace("−", "-")) for text in cells] == pytest.approx(row, abs=0.051)


def test_the_ledger_is_a_waterfall_that_ends_at_the_logit(chromium, file, payload):
    chromium.open(file)
    chromium.click("#selection .line span", 3)
    draw_all(chromium)
    bars = chromium.run(
        "return [...document.querySelectorAll('#ledger .view tbody tr')].map((r) => { const b = r.cells[4].querySelector('i');"
        " const s = b.style; return [Number(s.getPropertyValue('--from')), Number(s.getPropertyValue('--length')), b.className]; })"
    )
    ends = [(a, a + n) if kind != "minus" else (a + n, a) for a, n, kind in bars]
    for before, after in pairwise(ends[:-1]):
        assert before[1] == pytest.approx(after[0], abs=1e-6)
    assert ends[-2][1] == pytest.approx(ends[-1][1], abs=1e-3), "the last row is the sum"


def test_positions_follow_the_selected_token(chromium, file):
    chromium.open(file)
    chromium.run("document.querySelector('#positions details.fold').open = true")
    chromium.click("#selection .line span", 4)
    draw_all(chromium)
    assert "Positions 4 and" in text_of(chromium, "positions")
