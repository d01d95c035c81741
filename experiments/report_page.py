"""The size of a run's report, the time to make and to open it, and how fast it follows a click.

    python -m experiments.report_page --workdir runs/char [--gpt2] [--json FILE] [--picture docs/report.png]

Measured in headless Chromium, from a file, without a network. Interactive: from the start of loading until the page's script has
run and everything visible is drawn. Click: from a click on the token before or after until everything visible has
followed, including layout; 60 clicks, with each section visible in turn. Hover: a pointer over the table of weights.
--gpt2 adds a model of GPT-2's shape (12 layers x 12 heads, 50,257 tokens; untrained, 64 tokens), which needs no run.
--picture writes a picture of the page of --workdir, for docs/report.png.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import claim
from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.config import UserError
from jaxgpt.config.presets import PRESETS
from jaxgpt.data import tokenizers
from jaxgpt.inspect import page
from jaxgpt.inspect.payload import payload
from jaxgpt.inspect.subject import Probe, Subject
from jaxgpt.inspect.write import report
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs.load import Run

TEXT = (
    "The report of a model shows what it has learned, and how: the text is read from left to right, and at every place the "
    "model says which token comes next. A head of attention looks back at what stands before, and the loss is what it did not know."
)
LOADS, CLICKS = 5, 60
WIDTH = 1100  # of the picture

# Timed inside the page, without the delay of the driver.
CLICK = """
const [before, after] = document.querySelectorAll('#selection .step');
const times = [];
for (let i = 0; i < arguments[0]; i++) {
  const start = performance.now();
  (i % 2 ? after : before).click();
  document.body.getBoundingClientRect();
  times.push(performance.now() - start);
}
return times;
"""
HOVER = """
const canvas = [...document.querySelectorAll('#attention .matrix canvas')].pop();
const box = canvas.getBoundingClientRect();
const times = [];
for (let i = 0; i < arguments[0]; i++) {
  const start = performance.now();
  canvas.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + (i / 60) * box.width, clientY: box.top + box.height / 2, bubbles: true }));
  document.body.getBoundingClientRect();
  times.push(performance.now() - start);
}
return times;
"""


def gpt2_shaped() -> dict[str, Any]:
    """The payload of an untrained model of GPT-2's shape, on 64 tokens of English."""
    tokenizer = tokenizers.load_gpt2("")
    cfg = PRESETS["gpt2"]
    run = Run(
        config=config.Config(model=cfg), model=GPT(cfg), params=init_params(GPT(cfg), jax.random.key(0)),
        tokenizer=tokenizer, step=0, workdir=Path("gpt2-shaped"),
    )  # fmt: skip
    facts = {"starts": [], "tokenizer": "gpt2"}
    subject = Subject(
        run=run, facts=facts, metrics=[], dataset=None, missing=("Fresh parameters: nothing was trained.",)
    )
    ids_T = np.asarray(tokenizer.encode(TEXT * 2)[:64], np.int32)
    return payload(subject, Probe(tokenizer.decode(ids_T), "English", ids_T))


def measure(name: str, make) -> dict[str, Any]:
    """The figures of one page."""
    from tests import browser

    start = time.perf_counter()
    figures = make()
    found = {"name": name, "numbers_seconds": time.perf_counter() - start}
    start = time.perf_counter()
    text = page.render(figures)
    found |= {"page_seconds": time.perf_counter() - start, "bytes": len(text.encode())}
    chromium = browser.Browser(browser.start(required=True))
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.html"
            file.write_text(text, "utf-8")
            ready, painted = [], []
            for _ in range(LOADS):
                chromium.open(file)
                chromium.wait("return document.documentElement.dataset.ready === 'true'", 60)
                chromium.wait("return performance.getEntriesByName('first-contentful-paint').length > 0", 60)
                ready.append(chromium.run("return performance.getEntriesByName('ready')[0].startTime"))
                painted.append(
                    chromium.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
                )
            found |= {
                "interactive_ms": float(np.median(np.maximum(ready, painted))),
                "script_ms": float(np.median(ready)),
            }
            times = {}
            for one in chromium.run("return [...document.querySelectorAll('section')].map((s) => s.id)"):
                chromium.run("document.getElementById(arguments[0]).scrollIntoView()", one)
                time.sleep(0.3)  # until everything visible is drawn
                times[one] = chromium.run(CLICK, CLICKS)
            worst = max(times, key=lambda one: np.median(times[one]))
            found |= {
                "click_median_ms": float(np.median(np.concatenate(list(times.values())))),
                "click_slowest_at": worst, "click_slowest_median_ms": float(np.median(times[worst])),
                "click_slowest_p95_ms": float(np.percentile(times[worst], 95)),
            }  # fmt: skip
            chromium.run("document.getElementById('attention').scrollIntoView()")
            time.sleep(0.3)
            found["hover_p95_ms"] = float(np.percentile(chromium.run(HOVER, CLICKS), 95))
            found |= {"requests": len(chromium.requests()), "complaints": chromium.complaints()}
    finally:
        chromium.driver.quit()
    return found


def picture(figures: dict[str, Any], file: Path) -> None:
    """Write a picture of the page, from the text to a head's three tables."""
    from PIL import Image  # comes with matplotlib

    from tests import browser

    chromium = browser.Browser(browser.start(required=True))
    try:
        with tempfile.TemporaryDirectory() as folder:
            html = Path(folder) / "report.html"
            html.write_text(page.render(figures), "utf-8")
            chromium.open(html, width=WIDTH)
            time.sleep(0.5)  # until everything is drawn
            top, height = chromium.run(
                "const box = document.getElementById('attention').getBoundingClientRect();"
                "return [box.top + scrollY - 50, box.height + 50]"
            )
            chromium.resize(WIDTH, int(height))
            chromium.run("scrollTo(0, arguments[0])", top)
            time.sleep(0.5)
            file.parent.mkdir(parents=True, exist_ok=True)
            shot = Image.open(io.BytesIO(chromium.driver.get_screenshot_as_png()))
            shot.convert("RGB").quantize(192).save(file, optimize=True)
    finally:
        chromium.driver.quit()


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.report_page", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="", help="a run's folder")
    parser.add_argument("--gpt2", action="store_true", help="also a model of GPT-2's shape")
    parser.add_argument(
        "--picture", default=None, type=Path, help="write a PNG of the run's page, and do nothing else"
    )
    parser.add_argument("--json", default=None, type=Path, help="a file for the figures")
    args = parser.parse_args(argv)
    if not args.workdir and (args.picture or not args.gpt2):
        raise UserError("give a run with --workdir RUN, or --gpt2")
    cli.set_up_process()
    if args.picture:
        picture(report(args.workdir), args.picture)
        print(f"{args.picture}  {args.picture.stat().st_size / 1e3:,.0f} kB")
        return
    subjects = {args.workdir: lambda: report(args.workdir)} if args.workdir else {}
    if args.gpt2:
        subjects["GPT-2's shape"] = gpt2_shaped
    found = [measure(name, make) for name, make in subjects.items()]
    for one in found:
        print(
            f"{one['name']}: {one['bytes'] / 1e3:,.0f} kB, {one['requests']} request, {len(one['complaints'])} complaints"
        )
        print(
            f"  the numbers {one['numbers_seconds']:.1f} s, the page of them {1e3 * one['page_seconds']:.0f} ms"
        )
        print(f"  interactive after {one['interactive_ms']:.0f} ms (the script {one['script_ms']:.0f} ms)")
        print(
            f"  a click {one['click_median_ms']:.1f} ms in the median; at its slowest ({one['click_slowest_at']} visible) "
            f"{one['click_slowest_median_ms']:.1f} ms, 95 % within {one['click_slowest_p95_ms']:.1f} ms; hover 95 % within "
            f"{one['hover_p95_ms']:.1f} ms"
        )
    if args.json:
        record = {
            "commit": claim.commit(),
            "machine": claim.machine(),
            "load": os.getloadavg(),
            "pages": found,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    cli.run(main)
