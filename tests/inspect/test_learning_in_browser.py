""" "Watch it learn" in a browser: the first screen, the slider, the play button, and readers who want no motion or no script."""

from __future__ import annotations

import copy

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from jaxgpt.inspect import changes, health, page
from tests.inspect.test_page_in_browser import draw_all


@pytest.fixture(scope="module")
def payload(report_payload):
    """The small run's, with a head that took a job between steps 10 and 20."""
    figures = copy.deepcopy(report_payload)
    one = figures["learning"]
    one["patterns"]["previous_token"]["scores"] = [
        [[0.1 for _ in row] for row in at] for at in one["patterns"]["previous_token"]["scores"]
    ]
    one["patterns"]["previous_token"]["scores"][2][-1][0] = 0.9
    one["patterns"]["previous_token"]["high"] = 0.2
    one["events"] = changes.events(one)
    return figures


@pytest.fixture(scope="module")
def file(payload, tmp_path_factory):
    path = tmp_path_factory.mktemp("learning") / "report.html"
    path.write_text(page.render(payload), "utf-8")
    return path


def in_sight(chromium, selector: str) -> bool:
    return chromium.run(
        "const b = document.querySelector(arguments[0])?.getBoundingClientRect();"
        "return Boolean(b) && b.height > 0 && b.top >= 0 && b.bottom <= innerHeight",
        selector,
    )


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_a_newcomer_sees_what_it_writes_that_it_got_better_and_what_it_learned(
    chromium, file, payload, width, height
):
    """Without scrolling or clicking; on a phone the map and the curve come after that."""
    chromium.open(file)
    chromium.resize(width, height)
    chromium.wait("return document.documentElement.dataset.ready === 'true'")
    learned = payload["learning"]
    for selector in (
        "#learning .sample",
        "#learning .story",
        "#learning .news",
        "#play",
        *(("#learning .token-map svg", "#learning .timeline") if width > 1000 else ()),
    ):
        assert in_sight(chromium, selector), selector
    text = chromium.run("return document.querySelector('#learning').innerText")
    assert f"{learned['loss'][0]:.2f}" in text and f"{learned['loss'][-1]:.2f}" in text
    assert learned["samples"][-1].strip("\n").split("\n")[0].strip()[:10] in text
    assert (
        learned["events"]
        and chromium.run("return document.querySelector('.news').textContent")
        == learned["events"][-1]["text"]
    )


def test_the_slider_moves_everything_together(chromium, file, payload):
    chromium.open(file)
    learned = payload["learning"]
    slider = chromium.driver.find_element(By.CSS_SELECTOR, "#learning input[type=range]")
    where = "return [...document.querySelectorAll('.token-map svg text')].map((n) => n.getAttribute('transform')).join()"
    cursor = "return [...document.querySelectorAll('#learning .timeline .cursor')].map((n) => n.getAttribute('x1')).join()"
    draw_all(chromium)
    before = chromium.run(where), chromium.run(cursor)
    slider.send_keys(Keys.HOME)
    chromium.wait("return document.querySelector('.step-now').textContent === 'step 0'")
    assert (
        chromium.run("return document.querySelector('#learning .sample').textContent")[:5]
        == learned["samples"][0][:5]
    )
    assert all(a != b for a, b in zip(before, (chromium.run(where), chromium.run(cursor)), strict=True))
    assert slider.get_attribute("aria-valuetext") == "step 0"
    assert "Nothing is learned yet" in chromium.run("return document.querySelector('.news').textContent")
    # An event leads to its step, and to its head.
    event = next(i for i, one in enumerate(learned["events"]) if one["kind"] == "head")
    chromium.click("#learning .when", event)
    assert chromium.run("return document.querySelector('.step-now').textContent") == "step 20"
    assert "at step 20" in chromium.run("return document.querySelector('#learning').textContent")


def test_play_runs_from_the_first_step_to_the_last_and_stops(chromium, file):
    chromium.open(file)
    chromium.run(
        "window.seen = []; const now = document.querySelector('.step-now');"
        "new MutationObserver(() => { if (seen.at(-1) !== now.textContent) seen.push(now.textContent); }).observe(now, {childList: true});"
        "document.getElementById('play').click(); seen.push(document.getElementById('play').textContent.split(' ')[1]);"
    )
    chromium.wait("return document.getElementById('play').textContent.includes('Play')", seconds=60)
    steps = [text for text in chromium.run("return seen") if text.startswith("step")]
    assert steps == ["step 0", "step 10", "step 20"] and "Pause" in chromium.run("return seen")
    assert chromium.complaints() == []


def test_who_wants_no_motion_has_the_steps_as_pictures(chromium, file, payload):
    chromium.command(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
    )
    chromium.driver.get(file.as_uri())
    chromium.wait("return document.documentElement.dataset.ready === 'true'")
    shown = chromium.run(
        "return [...document.querySelectorAll('.small-maps figure')].map((n) => n.offsetHeight > 0)"
    )
    assert shown == [True] * len(payload["learning"]["steps"])
    chromium.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": ""}])
    chromium.driver.get(file.as_uri())
    chromium.wait("return document.documentElement.dataset.ready === 'true'")
    assert not chromium.run("return document.querySelector('[data-still]').open")


def test_a_run_without_snapshots_opens_as_before_and_says_how_to_get_them(chromium, payload, tmp_path):
    figures = copy.deepcopy(payload) | {"learning": None}
    figures["missing"] = ["No “Watch it learn”: train.snapshots=log:24 keeps the parameters of 24 steps."]
    (tmp_path / "report.html").write_text(page.render(figures), "utf-8")
    chromium.open(tmp_path / "report.html")
    chromium.wait("return document.documentElement.dataset.ready === 'true'")
    assert chromium.run("return document.querySelector('section').id") == "summary"
    assert "train.snapshots=log:24" in chromium.run("return document.getElementById('summary').textContent")
    assert chromium.complaints() == []


def test_statistics_of_the_training_are_small_multiples_with_the_unusual_named(chromium, payload, tmp_path):
    lines = [
        {
            "split": "stats",
            "step": step,
            "stats/block_0/update_ratio": ratio,
            "stats/block_1/update_ratio": 0.001,
            "stats/logsumexp": 3.0,
        }
        for step, ratio in ((1, 0.002), (10, 0.002), (20, 0.9))
    ]
    lines = [{key.removeprefix("stats/"): value for key, value in line.items()} for line in lines]
    figures = copy.deepcopy(payload) | {"health": health.health(lines, 20)}
    assert figures["health"]["unusual"]
    (tmp_path / "report.html").write_text(page.render(figures), "utf-8")
    chromium.open(tmp_path / "report.html")
    draw_all(chromium)
    text = chromium.run("return document.getElementById('health').textContent")
    assert figures["health"]["unusual"][0]["text"] in text and "Update, relative to the parameters" in text
    assert chromium.run("return document.querySelectorAll('#health svg').length") == 2
    assert chromium.complaints() == []
