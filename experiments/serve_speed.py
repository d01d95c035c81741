"""How soon the local page answers: the first token and the first look, over 20 settings, and its tokens a second.

    python -m experiments.serve_speed --workdir runs/char [--before FOLDER] [--json FILE]

It starts `jaxgpt.serve` and waits until it is ready. Then it asks for 20 texts with other lengths and settings, and for a look
inside each prompt: every request the first time (cold) and again (warm), over HTTP, in seconds. `--before` is a checkout of
another version, whose server is measured in the same way, after it has written its first text. Tokens a second: 2,000
tokens as a stream from the server, and by `generation` in this process in pieces of the same size, with each token's
probability and without, in turns. The caches of compiled programs are empty folders, so that nothing is known beforehand.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxgpt
from experiments import claim
from jaxgpt.common import cli
from jaxgpt.model import generation
from jaxgpt.model.generation import Sampler

TEXT = "First Citizen: before we proceed any further, hear me speak. All: speak, speak. First Citizen: you are all resolved."
SETTINGS: list[dict[str, Any]] = [
    {"length": 1}, {"length": 6, "temperature": 0}, {"length": 15, "temperature": 0.85}, {"length": 16, "top_k": 1},
    {"length": 17, "top_k": 5}, {"length": 23, "top_k": 40, "temperature": 1.3}, {"length": 31, "top_p": 0.9},
    {"length": 32, "top_p": 0.5, "temperature": 0.7}, {"length": 33, "top_k": 50, "top_p": 0.95},
    {"length": 40, "top_k": 100, "top_p": 0.95}, {"length": 47, "seed": 7}, {"length": 55, "max_new_tokens": 1},
    {"length": 60, "max_new_tokens": 2}, {"length": 63, "max_new_tokens": 17}, {"length": 64, "max_new_tokens": 33},
    {"length": 65, "max_new_tokens": 700}, {"length": 90, "max_new_tokens": 1500}, {"length": 100, "top_k": 3, "seed": 3},
    {"length": 11, "temperature": 2.0, "top_k": 1000}, {"length": 28, "temperature": 0.2, "top_p": 0.3, "top_k": 30},
]  # fmt: skip
TOKENS = 2_000
READY_SECONDS = 1_200


class Server(NamedTuple):
    """A running server."""

    port: int
    base: str  # the path in front of its endpoints
    process: int
    seconds: float  # from its start until it listened


@contextlib.contextmanager
def served(tree: Path, workdir: Path, cache: Path) -> Iterator[Server]:
    """A server of a checkout. `cache` is the folder of its compiled programs."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_COMPILATION_CACHE_DIR": str(cache)}
        command = [sys.executable, "-m", "jaxgpt.serve", "--workdir", str(workdir.resolve()), "--port", "0"]
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=out, stderr=out)
        try:
            found = None
            while found is None:
                if process.poll() is not None:
                    out.seek(0)
                    raise SystemExit(f"the server ended: {out.read()[-500:]}")
                time.sleep(0.1)
                out.seek(0)
                found = re.search(r"http://127\.0\.0\.1:(\d+)(\S*?)/?\s", out.read())
            yield Server(int(found[1]), found[2], process.pid, round(time.perf_counter() - start, 1))
        finally:
            process.terminate()
            process.wait()


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
    """The answer to one request, not yet read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status not in (200, 404):
        raise SystemExit(f"{path}: {answer.read().decode()}")
    return answer


def wait_until_ready(port: int, base: str) -> float:
    """Seconds until the server says that it is ready, or, where it says nothing, until it has written a text."""
    start = time.perf_counter()
    while time.perf_counter() - start < READY_SECONDS:
        answer = ask(port, f"{base}/api/ready")
        if answer.status == 404:
            list(ask(port, f"{base}/api/generate", {"prompt": "\n"}))
            break
        if "edits" in json.loads(answer.read())["ready"]:
            break
        time.sleep(0.5)
    return time.perf_counter() - start


def first_token(port: int, base: str, setting: dict[str, Any]) -> tuple[float, list[int]]:
    """Seconds to the first token, and the ids of the prompt."""
    body = {name: value for name, value in setting.items() if name != "length"}
    start = time.perf_counter()
    answer = ask(port, f"{base}/api/generate", {"prompt": TEXT[: setting["length"]], **body})
    prompt = json.loads(answer.readline())["prompt"]
    while "token" not in json.loads(answer.readline()):
        pass
    seconds = time.perf_counter() - start
    answer.read()  # to its end, so that the next request has the machine for itself
    return seconds, prompt


def first_look(port: int, base: str, ids: list[int]) -> float:
    """Seconds to the numbers of the views."""
    given = {"ids": ids[-64:] if len(ids) > 1 else ids * 2}
    start = time.perf_counter()
    answer = ask(port, f"{base}/api/look", given | {"at": len(given["ids"]) - 1})
    if answer.status == 404:  # an older version
        answer = ask(port, f"{base}/api/report", given)
    answer.read()
    return time.perf_counter() - start


def rest(port: int, base: str, ids: list[int]) -> float:
    """Seconds to the parts that a look into a large model leaves out."""
    start = time.perf_counter()
    ask(port, f"{base}/api/rest", {"ids": ids}).read()
    return time.perf_counter() - start


def answers(port: int, base: str) -> list[dict[str, Any]]:
    """Each setting with the seconds to its first token and look, the first time and the second."""
    rows = []
    for setting in SETTINGS:
        row: dict[str, Any] = {"setting": setting}
        for when in ("cold", "warm"):
            seconds, ids = first_token(port, base, setting)
            row[when] = {"token": round(seconds, 4), "look": round(first_look(port, base, ids), 4)}
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median and the longest of each time."""
    found = {}
    for when in ("cold", "warm"):
        for what in ("token", "look"):
            values = [row[when][what] for row in rows]
            found[f"{what} {when}"] = {"median": statistics.median(values), "longest": max(values)}
    return found


def tokens_per_second(port: int, base: str, workdir: Path, turns: int = 5) -> dict[str, float]:
    """Medians: of the server's stream, and of generation in this process with and without scores."""
    run = jaxgpt.load(workdir)
    prompt = run.tokenizer.encode(TEXT[:6])

    def generated(scored: bool) -> None:
        pieces = generation.generate_pieces(
            run.model,
            run.params,
            [prompt],
            TOKENS,
            sampler=Sampler(0.8),
            chunk=generation.STREAM_TOKENS,
            scored=scored,
        )
        np.concatenate([piece.ids[0] for piece in pieces])

    def streamed() -> None:
        body = {"prompt": TEXT[:6], "max_new_tokens": TOKENS, "stop_at_eot": False}
        ask(port, f"{base}/api/generate", body).read()

    ways = {
        "serve": streamed,
        "generate": lambda: generated(False),
        "generate with scores": lambda: generated(True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    return {name: round(TOKENS / statistics.median(some), 1) for name, some in seconds.items()}


def measure(tree: Path, workdir: Path, with_speed: bool) -> dict[str, Any]:
    """All numbers of one checkout's server."""
    with tempfile.TemporaryDirectory() as cache, served(tree, workdir, Path(cache)) as (port, base, *_):
        found: dict[str, Any] = {"ready_after": round(wait_until_ready(port, base), 1)}
        rows = answers(port, base)
        found |= {"summary": summary(rows), "settings": rows}
        if with_speed:
            found["tokens_per_second"] = tokens_per_second(port, base, workdir)
    return found


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.serve_speed", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workdir", type=Path, required=True, help="a run with a context of 64 or more characters"
    )
    parser.add_argument("--before", type=Path, help="a checkout of another version, to compare with")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args(argv)
    here = Path(__file__).resolve().parent.parent
    found: dict[str, Any] = {"commit": claim.commit(), "machine": claim.machine(), "load": os.getloadavg()}
    found["now"] = measure(here, args.workdir, True)
    if args.before:
        found["before"] = measure(args.before.resolve(), args.workdir, False)
    for name in ("before", "now"):
        if name in found:
            print(name, f"ready after {found[name]['ready_after']} s", json.dumps(found[name]["summary"]))
    print(json.dumps(found["now"]["tokens_per_second"]))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
