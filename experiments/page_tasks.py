"""Ten questions about a run, answered on its pages as a reader would: the clicks and the seconds of each.

    python -m experiments.page_tasks --workdir runs/char [--before CHECKOUT RUN] [--json FILE]

In headless Chromium, 1,280 x 900 pixels. A task is a list of steps on report.html or on the page of `jaxgpt.serve`: clicks with a real
pointer on what is in the window, typed text, keys. Each counts as one click (typing includes the click into the field). It ends when
its answer can be seen: the elements are in the window, nothing covers them, and their numbers are those that jaxgpt computes in
this process. The seconds are from the first action to then; each task is done three times on a page that was just opened, and the
median is given. `--before` does the same tasks with another version's pages of a run of its own, where they were possible.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import claim
from experiments.page_answers import Answer, Facts
from experiments.serve_speed import served, wait_until_ready
from jaxgpt.common import cli

SIZE = (1280, 900)
TIMES = 3
SECONDS = 60.0  # that an answer may take
OWN = "My lord, the queen is "


@dataclass(frozen=True)
class Step:
    """An action: "click" on the first element of a selector whose text contains `text`, "type" a text into it, or press a "key"."""

    action: str
    selector: str = ""
    text: str = ""


@dataclass(frozen=True)
class Task:
    """What a reader wants to know, the steps to it on one of the pages ("report" or "serve"), and the answer that is seen then."""

    name: str
    page: str
    steps: tuple[Step, ...]
    answers: tuple[Answer, ...]


def click(selector: str, text: str = "") -> Step:
    return Step("click", selector, text)


def section(title: str) -> Step:
    return click("#contents a", title)


NAMES = (
    "which head looks at the previous token", "one token's attention in all heads", "the guess after every layer",
    "which neuron fires here", "a token's neighbours before and after training", "when a head got its job",
    "compare two steps of the training", "look inside a text of one's own", "switch a head off", "pick another token and continue",
)  # fmt: skip


def tasks(facts: Facts) -> list[Task]:
    """The ten tasks on today's pages."""
    token = click(f"#selection .line [role=option]:nth-of-type({facts.token + 1})")
    (layer, head), step = facts.previous_head, facts.early_step
    work = [
        ("report", [section("Attention")], [facts.named(".jobs li", "looks at the token before")]),
        ("report", [section("Attention"), token], facts.all_heads()),
        ("report", [section("The prediction, layer by layer"), token], facts.lens("#lens tbody tr")),
        ("report", [section("Neurons of the MLPs"), token], facts.neuron()),
        ("report", [section("Token embeddings"), token], facts.neighbours()),
        ("report", [Step("key", text="PAGE_DOWN")], facts.formed()),
        ("report", [click("#learning .events .when", f"step {step:,} ")], facts.two_steps()),
        ("serve", [Step("type", "#prompt-form textarea", OWN), click("#see")], facts.own_text(OWN)),
        (
            "serve",
            [section("Change the model"), Step("type", "#edit-form [name=at]", str(head)), click("#edit-form button")],
            facts.without_head(head),
        ),
        (
            "serve",
            [click(f"#written .cell:nth-of-type({facts.place + 1})"), click(f".choice[aria-label='Continue with {facts.other[1]}']")],
            facts.continued(),
        ),
    ]  # fmt: skip
    if layer:  # the form starts with layer 0
        work[8][1].insert(1, Step("type", "#edit-form [name=layer]", str(layer)))
    return [Task(name, page, tuple(steps), tuple(answers)) for name, (page, steps, answers) in zip(NAMES, work, strict=True)]  # fmt: skip


# What the pages of commit 0af2a95 do not have.
NOT_BEFORE = {
    3: "the page lists the neurons with the largest output anywhere, and no activation of a chosen token",
    5: "a run kept its parameters at the end only",
    6: "a run kept its parameters at the end only: two pages of two checkpoints, if they were kept, had to be compared",
    8: "the loss without each head was a number of the page; the model could not be used without a head",
    9: "the other tokens were listed, and could not be chosen",
}


def tasks_before(facts: Facts) -> list[Task | str]:
    """The same tasks on the pages of commit 0af2a95, or why one was not possible."""
    token = [
        section("The text, token by token"),
        click(f"#probe .strip .cell:nth-of-type({facts.token + 1})"),
    ]
    cells = range(facts.run.config.model.num_layers * facts.run.config.model.num_heads)
    per_layer = facts.run.config.model.num_heads
    each = [click(f"#attention .heads tbody tr:nth-of-type({i // per_layer + 1}) td:nth-of-type({i % per_layer + 1})") for i in cells]  # fmt: skip
    work = {
        0: ("report", [], [facts.named(".findings li", "attends to the previous token")]),
        1: ("report", [*token, section("Attention"), *each], [facts.last_head()]),
        2: (
            "report",
            [*token, section("The prediction, layer by layer")],
            facts.lens("#lens .view tbody tr"),
        ),
        4: ("report", [*token, section("Token embeddings")], facts.neighbours()),
        7: (
            "serve",
            [Step("type", "#prompt-form textarea", OWN), click("#prompt-form button.main"), click("#written .cell")],
            facts.own_text(OWN),
        ),
    }  # fmt: skip
    return [
        Task(name, work[i][0], tuple(work[i][1]), tuple(work[i][2])) if i in work else NOT_BEFORE[i]
        for i, name in enumerate(NAMES)
    ]


# --- a reader ---------------------------------------------------------------------------------------------

# The middle of an element that can be clicked: in the window, covered by nothing, not disabled. Null where there is none.
TARGET = """
for (const node of document.querySelectorAll(arguments[0])) {
  if (!`${node.textContent} `.includes(arguments[1]) || node.disabled) continue;
  const box = node.getBoundingClientRect();
  const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
  if (!box.width || x < 0 || y < 0 || x > innerWidth || y > innerHeight) continue;
  const top = document.elementFromPoint(x, y);
  if (node.contains(top)) return [x, y];
}
return null;
"""


class Reader:
    """A browser, and what a hand does in it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def do(self, step: Step) -> None:
        if step.action == "key":
            self._key(step.text)
            return
        x, y = self._target(step)
        clicks = 2 if step.action == "type" else 1  # a double click selects what a number field holds
        for kind in ("mouseMoved", *("mousePressed", "mouseReleased") * clicks):
            self.browser.command(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=clicks
            )
        if step.action == "type":
            self.browser.run("document.activeElement.select()")
            self.browser.command("Input.insertText", text=step.text)

    def _target(self, step: Step) -> tuple[float, float]:
        end = time.perf_counter() + SECONDS
        text = step.text if step.action == "click" else ""
        while (found := self.browser.run(TARGET, step.selector, text)) is None:
            if time.perf_counter() > end:
                raise SystemExit(f"not in the window: {step}")
            time.sleep(0.005)
        return found[0], found[1]

    def _key(self, name: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.browser.driver, duration=0).send_keys(getattr(Keys, name)).perform()

    def sees(self, answer: Answer) -> bool:
        return answer.is_seen(self.browser.run)


def done(reader: Reader, task: Task, address: str, ready: str) -> float:
    """The seconds of a task on a fresh page."""
    browser = reader.browser
    browser.open(address, width=SIZE[0])
    browser.run("sessionStorage.clear()")
    browser.open(address, width=SIZE[0])
    browser.wait(ready, SECONDS)
    time.sleep(0.5)  # until everything is drawn and the page is quiet
    start = time.perf_counter()
    for step in task.steps:
        reader.do(step)
    while missing := [answer for answer in task.answers if not reader.sees(answer)]:
        if time.perf_counter() - start > SECONDS:
            shot = Path(tempfile.gettempdir()) / "page_tasks.png"
            browser.driver.save_screenshot(str(shot))
            raise SystemExit(f"{task.name}: not seen: {missing[0]} (see {shot})")
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    if wrong := [answer for answer in task.answers if not answer.is_right(browser.run)]:
        raise SystemExit(f"{task.name}: wrong numbers: {wrong[0]}")
    return seconds


REPORT_READY = "return document.documentElement.dataset.ready === 'true'"
SERVE_READY = "return !document.querySelector('#prompt-form button.main').disabled && document.querySelector('#stop').disabled"


@contextlib.contextmanager
def opened(tree: Path, workdir: Path, page: str) -> Iterator[str]:
    """The address of a checkout's page of a run."""
    if page == "serve":
        with served(tree, workdir) as (port, base):
            wait_until_ready(port, base)
            yield f"http://127.0.0.1:{port}{base}/"
        return
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "jaxgpt.report", "--workdir", str(workdir.resolve()), "--out", out]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        yield (Path(out) / "report.html").as_uri()


def measure(tree: Path, workdir: Path, before: bool, only: list[int]) -> list[dict[str, Any]]:
    """What each task takes on a checkout's pages."""
    from tests import browser

    facts = Facts(workdir)
    todo = dict(enumerate(tasks_before(facts) if before else tasks(facts), 1))
    todo = {i: task for i, task in todo.items() if i in only or not only}
    rows = {i: {"task": NAMES[i - 1], "not possible": why} for i, why in todo.items() if isinstance(why, str)}
    chromium = browser.Browser(browser.start(required=True))
    try:
        for page, ready in (("report", REPORT_READY), ("serve", SERVE_READY)):
            here = {i: task for i, task in todo.items() if isinstance(task, Task) and task.page == page}
            with opened(tree, workdir, page) if here else contextlib.nullcontext("") as address:
                for i, task in here.items():
                    seconds = [done(Reader(chromium), task, address, ready) for _ in range(TIMES)]
                    rows[i] = {
                        "task": task.name, "page": page, "clicks": len(task.steps),
                        "seconds": round(statistics.median(seconds), 3), "first": round(seconds[0], 3),
                        "complaints": [line for line in chromium.complaints() if "favicon" not in line],
                    }  # fmt: skip
    finally:
        chromium.driver.quit()
    return [rows[i] for i in sorted(rows)]


def as_text(found: dict[str, Any]) -> str:
    """The rows of both versions next to each other."""
    lines = []
    names = [name for name in ("before", "now") if name in found]
    for i, row in enumerate(found["now"]):
        cells = []
        for name in names:
            one = found[name][i]
            cells.append(
                f"{name}: not possible"
                if "not possible" in one
                else f"{name}: {one['clicks']} clicks {one['seconds']:.2f} s"
            )
        lines.append(f"{row['task']:48} {'   '.join(cells)}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.page_tasks", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a run of configs/char.py")
    parser.add_argument(
        "--before",
        type=Path,
        nargs=2,
        metavar=("CHECKOUT", "RUN"),
        help="another version, and a run that it trained",
    )
    parser.add_argument("--only", type=int, nargs="*", default=[], help="the numbers of some tasks, from 1")
    parser.add_argument("--json", type=Path, help="file for the numbers")  # fmt: skip
    args = parser.parse_args(argv)
    cli.set_up_process()
    here = Path(__file__).resolve().parent.parent
    found: dict[str, Any] = {"commit": claim.commit(), "machine": claim.machine(), "load": os.getloadavg()}
    found["now"] = measure(here, args.workdir, False, args.only)
    if args.before:
        tree, run = args.before
        found["before"] = measure(tree.resolve(), run, True, args.only)
    print(as_text(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
