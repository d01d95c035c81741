"""The local page in a real browser on a real server: generated tokens can be read and inspected."""

import contextlib
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from jaxgpt import config
from jaxgpt.data import tokenizers
from jaxgpt.inspect import server, service, static_tables
from jaxgpt.inspect.service import Service
from jaxgpt.inspect.subject import Subject
from jaxgpt.model.gpt import GPT
from jaxgpt.runs.load import Run
from tests.planted import induction_model

HOSTILE = "</script><img src=x onerror=broken=1>\u2028\u202e\0"
CHARACTERS = "".join(sorted({*"abcdefghijklmnopqrstuvwxyz \n", *HOSTILE}))


@pytest.fixture(scope="module")
def address():
    """A server in a thread, on a free port, with an induction model."""
    with served(CHARACTERS, "") as found:
        yield found


@contextlib.contextmanager
def served(characters: str, template: str):
    cfg, params = induction_model(len(characters), 32)
    tokenizer = tokenizers.CharTokenizer(characters)
    own = config.Config(model=cfg, data=config.DataConfig(template=template))
    run = Run(own, GPT(cfg), params, tokenizer, 7, Path("planted"))
    page = Service(Subject(run, {"starts": []}, [], None, ("No text.",)))
    listening = server.listen(0)
    number = listening.getsockname()[1]
    listener = uvicorn.Server(uvicorn.Config(server.make_app(page, number, "secret"), log_level="critical"))
    thread = threading.Thread(target=lambda: listener.run(sockets=[listening]))
    thread.start()
    try:
        yield f"http://127.0.0.1:{number}/secret/"
    finally:
        listener.should_exit = True
        thread.join()


def write(chromium, prompt: str, count: int) -> None:
    chromium.run(
        "document.querySelector('textarea').value = arguments[0];"
        "document.querySelector('[name=max_new_tokens]').value = arguments[1];"
        "document.querySelector('form').requestSubmit();",
        prompt,
        count,
    )
    chromium.wait("return document.getElementById('status').textContent.includes('Select one')", 60)


def status(chromium) -> str:
    return chromium.run("return document.getElementById('status').textContent")


def test_a_text_is_continued_and_each_token_can_be_inspected(chromium, address):
    chromium.open(address)
    write(chromium, HOSTILE, 12)
    cells = chromium.run(
        "return [...document.querySelectorAll('#written .made')].map((c) => [...c.children].map((x) => x.textContent))"
    )
    assert len(cells) == 12
    chromium.run("document.querySelectorAll('#written .made')[0].focus()")
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ENTER):
        chromium.driver.switch_to.active_element.send_keys(key)
    chromium.wait("return document.getElementById('status').textContent.includes('show this prediction')", 60)
    token, numbers = cells[1]
    assert f"‘{token}’ had p " in status(
        chromium
    ) and f"rank {numbers.split('#')[1]} of {len(CHARACTERS)}" in status(chromium)
    shown = chromium.run(
        "return [...document.querySelectorAll('#probe .strip .token')].map((x) => x.textContent)"
    )
    everything = [static_tables.visible(c) for c in HOSTILE] + [cells[0][0], token]
    assert len(shown) > 16 and shown == everything[-len(shown) :]
    assert "In the unchanged model" not in status(chromium), "the views show what the model saw"
    assert f"‘{token}’" in chromium.run("return document.querySelector('#selection .what').textContent")
    # Another token: the views of the first are gone.
    chromium.click("#written .made", 5)
    chromium.wait("return document.getElementById('status').textContent.includes('show this prediction')", 60)
    assert chromium.run(
        "return [document.querySelectorAll('#selection').length, document.querySelectorAll('#probe .strip').length]"
    ) == [1, 1]
    assert chromium.run("return [window.broken ?? null, document.images.length]") == [None, 0]
    assert chromium.complaints() == []
    assert all(url.startswith(address) for url in chromium.requests())


def test_of_a_large_model_what_takes_long_follows(chromium, monkeypatch):
    go_on = threading.Event()
    real = Service.rest
    monkeypatch.setattr(service, "LARGE", 10)
    monkeypatch.setattr(Service, "rest", lambda self, given: go_on.wait(60) and real(self, given))
    near = "document.getElementById('lens').scrollIntoView(); return "  # what is far away is not drawn
    guesses = near + "document.querySelectorAll('#lens tbody tr').length === 3"
    with served(CHARACTERS, "") as address:
        chromium.open(address)
        write(chromium, "the king", 6)
        chromium.click("#written .made", 5)
        chromium.wait(guesses, 60)  # of the selected token, at once
        chromium.click("#probe .strip .token", 2)
        chromium.wait(
            near + "document.querySelector('#lens .said').textContent.includes('are being computed')"
        )
        assert "being computed" in chromium.run("return document.getElementById('embeddings').textContent")
        go_on.set()
        chromium.wait(guesses)
        chromium.wait("return document.querySelectorAll('#neighbours').length === 1")
        assert "being computed" not in chromium.run("return document.getElementById('inside').textContent")
        assert chromium.complaints() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_hard_to_use(chromium, address, theme):
    chromium.open(address, width=360, theme=theme)
    write(chromium, "ab", 8)
    assert chromium.run("return document.documentElement.scrollWidth") <= 360
    assert chromium.violations() == []


def boxes(chromium) -> list[str]:
    return chromium.run(
        "return [...document.querySelectorAll('#written .cell .token')].map((x) => x.textContent)"
    )


def test_another_token_is_another_text_and_a_reload_keeps_all(chromium, address):
    chromium.open(address)
    write(chromium, "ab ab", 6)
    first = boxes(chromium)
    assert first[:5] == ["a", "b", "␣", "a", "b"] and len(first) == 12  # with the box at the end
    # Continue, from the end.
    chromium.click("#more")
    chromium.wait(
        "return document.querySelectorAll('.made').length === 12 && !document.querySelector('#more').disabled",
        60,
    )
    assert boxes(chromium)[:11] == first[:11]
    # One's own token can be selected too; an alternative to it is another text, continued from there.
    chromium.click("#written .cell", 3)
    chromium.wait(
        "return document.querySelectorAll('.choice').length > 3 && document.querySelector('#selection')", 60
    )
    chosen = chromium.run("return [...document.querySelectorAll('.choice:enabled .token')][2].textContent")
    chromium.click(".choice:enabled", 2)
    chromium.wait(
        "return document.querySelectorAll('.made').length === 7 && !document.querySelector('#more').disabled",
        60,
    )
    assert boxes(chromium)[:4] == ["a", "b", "␣", chosen]
    # A head is switched off: bars with and without, and a text that is written so.
    chromium.run("document.querySelector('#edit-form').requestSubmit()")
    chromium.wait("return document.querySelectorAll('#edits li').length === 1", 60)
    chromium.wait(
        "return [...document.querySelectorAll('#choices th')].some((x) => x.textContent === 'with the changes')",
        60,
    )
    chromium.run(
        "document.querySelector('[name=layer]').value = 9; document.querySelector('#edit-form').noValidate = true;"
    )
    chromium.run("document.querySelector('#edit-form').requestSubmit()")
    chromium.wait(
        "return document.querySelector('#edit-status').textContent.includes('layer=9: give an integer')", 60
    )
    chromium.run("document.querySelector('[name=temperature]').value = 0.85")
    assert chromium.run("return document.querySelector('#prompt-form').checkValidity()")
    chromium.click("#more")
    chromium.wait(
        "return document.querySelectorAll('.made').length === 13 && !document.querySelector('#more').disabled",
        60,
    )
    chromium.run("document.querySelector('#see').click()")
    chromium.wait("return document.querySelector('#next output')?.textContent === '0.85'", 60)
    tabs = "return [...document.querySelectorAll('.tab')].map((x) => x.textContent)"
    kept = boxes(chromium), chromium.run(tabs)
    assert len(kept[1]) >= 2
    chromium.driver.refresh()
    chromium.wait("return document.querySelector('#selection') !== null", 60)
    assert (boxes(chromium), chromium.run(tabs)) == kept
    assert chromium.run("return document.querySelector('[name=temperature]').value") == "0.85"
    assert chromium.run("return document.querySelectorAll('#edits li').length") == 1
    chromium.resize(390)
    assert chromium.run("return document.documentElement.scrollWidth") <= 390
    assert chromium.violations() == []
    assert all("status of 400" in line for line in chromium.complaints()), "but for the edit that is refused"


IN_SIGHT = """
const node = document.activeElement;
const { top, bottom, left, right } = node.getBoundingClientRect();
if (node === document.body) return "nothing has the focus";
return top > -1 && left > -1 && bottom < innerHeight + 1 && right < innerWidth + 1 ? "" : `out of sight: ${node.outerHTML.slice(0, 80)} ${top}`;
"""


@pytest.mark.parametrize("size", [(1280, 900), (390, 700)])
def test_the_focus_stays_in_sight(chromium, address, size):
    """After whatever moves the page or draws a part of it anew."""
    chromium.open(address)
    chromium.run("sessionStorage.clear()")
    chromium.open(address)
    chromium.resize(*size)
    quiet = "return !document.querySelector('#more').disabled && !document.getElementById('status').textContent.includes('…')"
    chromium.wait(quiet, 60)

    def do(what: str, selector: str, place: int = 0, comes: str = "") -> None:
        chromium.wait(f"return document.querySelectorAll('{selector}').length > {place}")
        chromium.run("document.querySelectorAll(arguments[0])[arguments[1]].focus()", selector, place)
        ActionChains(chromium.driver).send_keys(Keys.ENTER).perform()
        chromium.wait(f"return document.querySelector('#choices').textContent.includes('{comes}')", 60)
        chromium.wait(quiet, 60)
        time.sleep(0.2)  # until it has scrolled
        assert (what, chromium.run(IN_SIGHT)) == (what, "")

    do("generate", "button.main")
    do("continue", "#more")
    do("a box", "#written .cell", 40, "What else could")
    do("the last box", "#written .cell.end", 0, "What may come next")
    do("another token", ".choice:enabled", 2)
    do("another token of the middle", "#written .cell", 20, "What else could")
    do("its branch", ".choice:enabled", 1)
    do("a change", "#edit-form button", 0, "with the changes")
    do("another change", "#edit-form button")
    do("undo", "#edits button")
    do("undo the last", "#edits button")
    do("look inside", "#see")
    chromium.wait("return document.activeElement.tagName === 'H2'", 60)
    assert chromium.run(IN_SIGHT) == ""
    do("a text", ".tab", 0)
    do("close it", "#tabs .link")


def test_one_token_is_one_token_and_a_stopped_server_is_said_in_words(chromium):
    with served(CHARACTERS, "") as address:
        chromium.open(address)
        write(chromium, "a", 1)
        assert status(chromium).startswith("1 token in ")
    chromium.run("document.querySelector('#more').click()")
    chromium.wait(
        "return document.getElementById('status').textContent.startsWith('The server has stopped. Start it again with')",
        60,
    )
    assert "serve --workdir planted” and open" in status(chromium)


def test_errors_are_shown(chromium, address):
    chromium.open(address)
    chromium.run(
        "document.querySelector('textarea').value = 'é'; document.querySelector('form').requestSubmit();"
    )
    chromium.wait("return document.getElementById('status').textContent.includes('é')")
    assert not chromium.run("return document.querySelector('button.main').disabled")


def test_a_conversation(chromium):
    """The turns are sent as the model was trained on them, shown as text, and kept for the next turn."""
    characters = "".join(sorted({*CHARACTERS, *"User: Assistant?"}))
    with served(characters, "line") as address:
        chromium.open(address)
        for number, said in enumerate((HOSTILE.replace("\0", ""), "who?"), start=1):
            box = chromium.driver.find_element("name", "said")
            chromium.run("arguments[0].value = arguments[1]", box, said)
            chromium.run("document.querySelector('[name=max_new_tokens]').value = 6")
            box.send_keys(Keys.ENTER)
            chromium.wait(
                "return document.getElementById('talk-status').textContent.includes('tokens in')", 60
            )
            chromium.run("document.getElementById('talk-status').textContent = ''")
            turns = chromium.run("return [...document.querySelectorAll('.turn')].map((x) => x.textContent)")
            assert (
                len(turns) == 2 * number and turns[-2] == f"You: {said}" and turns[-1].startswith("Model: ")
            )
            assert box.get_attribute("value") == ""
        assert chromium.violations() == []
        chromium.click("#again")
        assert chromium.run("return document.querySelectorAll('.turn').length") == 0
        chromium.run("arguments[0].value = 'a\\nb'; arguments[0].form.requestSubmit()", box)
        chromium.wait("return document.getElementById('talk-status').textContent.includes('ends a turn')")
        assert chromium.run("return [document.querySelectorAll('.turn').length, window.broken ?? null]") == [
            0,
            None,
        ]
