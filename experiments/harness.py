"""lm-evaluation-harness on a run, compared with its own Hugging Face model on the exported run: scores, texts, time.

    python -m experiments.harness [--json] [--results FOLDER] [--items 200] [--steps 200]

Needs lm_eval, transformers, accelerate and PyTorch in this environment; nothing is downloaded. A small model is trained on
speeches of Shakespeare and exported. Three tasks are made of the same plays, as YAML and JSON lines: which of four beginnings of a
line comes next (log-likelihoods), passages of 5 to 1,500 words (rolling log-likelihoods), and what follows some lines (generation). Both
models answer all requests in batches of 16, in turns: the first time with compiling, then without.

The exit code is 1 if a log-likelihood differs by 1e-3 or more, or any greedy flag, metric or text differs. Writes
results/harness.json.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import claim
from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, UserError
from jaxgpt.data import corpora
from jaxgpt.runs import published
from jaxgpt.training import loop

LIMIT = 1e-3  # nats, on the log-likelihood of a request
BATCH, CONTEXT, NEW_TOKENS, REPEATS = 16, 256, 40, 3
KINDS = {"next_line": "loglikelihood", "passage": "loglikelihood_rolling", "go_on": "generate_until"}
TASKS = {
    "next_line": """
output_type: multiple_choice
doc_to_text: "{{before}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "passage": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{passage}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "go_on": f"""
output_type: generate_until
doc_to_text: "{{{{before}}}}"
doc_to_target: "{{{{after}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["\\n\\n", ".\\n"], do_sample: false, max_gen_toks: {NEW_TOKENS}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""",
}


def trained(text: str, folder: Path, steps: int) -> Path:
    """A small Llama of byte pairs, trained for a minute."""
    (folder / "text.txt").write_text(text, "utf-8")
    cfg = Config(
        model=ModelConfig(
            context_length=CONTEXT, d_model=128, num_layers=4, num_heads=4, num_kv_heads=2, activation="swiglu",
            position="rotary", norm="rmsnorm", use_bias=False,
        ),
        data=DataConfig(
            path=str(folder / "text.txt"), documents="blank_line", tokenizer="bpe", vocab_size=2048, batch_size=8
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=20),
        train=TrainConfig(num_steps=steps, eval_every=0, checkpoint_every=0, sample_tokens=0),
    )  # fmt: skip
    loop.train(cfg, folder / "run")
    return folder / "run"


def write_tasks(text: str, folder: Path, items: int) -> None:
    """The tasks of `items` documents each."""
    rng = random.Random(0)
    lines = [line for line in text.split("\n") if line]

    def passage(words: int) -> str:
        start = rng.randrange(len(text) - 20_000)
        return text[start : start + 20_000].split(" ", 1)[1][: 6 * words].rsplit(" ", 1)[0]

    documents: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for _ in range(items):
        at = rng.randrange(60, len(lines) - 1)
        before = "\n".join(lines[at - rng.randint(1, 40) : at]) + "\n"
        choices = [
            " ".join(line.split(" ")[: rng.randint(1, 6)]) for line in (lines[at], *rng.sample(lines, 3))
        ]
        answer = rng.randrange(4)
        choices[0], choices[answer] = choices[answer], choices[0]
        documents["next_line"].append({"before": before, "choices": choices, "answer": answer})
        documents["passage"].append({"passage": passage(round(5 * 300 ** rng.random()))})
        documents["go_on"].append({"before": before, "after": lines[at]})
    for name, task in TASKS.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(document) + "\n" for document in documents[name]), "utf-8")
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n{task}",
            "utf-8",
        )


def answers(model: Any, tasks: Path, name: str) -> dict[str, Any]:
    """A model's results of a task: the harness's metrics, every answer, seconds in the model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    method, seconds = getattr(model, KINDS[name]), []

    def timed(requests: list[Any], *args: Any, **settings: Any) -> list[Any]:
        start = time.perf_counter()
        found = method(requests, *args, **settings)
        seconds.append(time.perf_counter() - start)
        return found

    setattr(model, KINDS[name], timed)
    try:
        results = lm_eval.simple_evaluate(
            model=model, tasks=[name], task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            torch_random_seed=None,
        )  # fmt: skip
    finally:
        delattr(model, KINDS[name])
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return {
        "metrics": {
            key: value for key, value in results["results"][name].items() if isinstance(value, float)
        },
        "answers": [answer[0] for sample in samples for answer in sample["resps"]],
        "seconds": sum(seconds),
    }


def compared(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """What differs between two models' answers to a task."""
    pairs = list(zip(ours["answers"], theirs["answers"], strict=True))
    found: dict[str, Any] = {"requests": len(pairs)}
    if name == "go_on":
        found["texts_equal"] = all(a == b for a, b in pairs)
        found["metrics_equal"] = ours["metrics"] == theirs["metrics"]
    elif name == "next_line":
        found["largest_difference"] = max(abs(a[0] - b[0]) for a, b in pairs)
        found["greedy_equal"] = all(a[1] == b[1] for a, b in pairs)
        found["greedy"] = sum(a[1] for a, _ in pairs)
        found["metrics_equal"] = ours["metrics"] == theirs["metrics"]
    else:
        found["largest_difference"] = max(abs(a - b) for a, b in pairs)
        found["largest_log_likelihood"] = max(abs(a) for a, _ in pairs)
    return found | {"ours": ours["metrics"], "theirs": theirs["metrics"]}


def held(found: dict[str, Any]) -> bool:
    """Whether a task's answers are the same."""
    return found.get("largest_difference", 0.0) < LIMIT and all(
        value for key, value in found.items() if key.endswith("_equal")
    )


def measured(items: int, steps: int) -> dict[str, Any]:
    """Both models on the three tasks."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from jaxgpt.training.harness import JaxGPT

    torch.set_num_threads(2)
    text = "".join(piece for piece in corpora.open_corpus("shakespeare").read() if piece)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = trained(text, folder, steps)
        (folder / "tasks").mkdir()
        write_tasks(text, folder / "tasks", items)
        ours = JaxGPT(run, batch_size=BATCH)
        published.export_run(ours.run, folder / "exported")
        theirs = HFLM(pretrained=str(folder / "exported"), batch_size=BATCH, device="cpu", dtype="float32")
        found = {}
        for name in TASKS:
            programs, seconds = ours.programs, {"ours": [], "theirs": []}
            for _ in range(REPEATS):  # in turns
                one, other = answers(ours, folder / "tasks", name), answers(theirs, folder / "tasks", name)
                seconds["ours"].append(round(one["seconds"], 3))
                seconds["theirs"].append(round(other["seconds"], 3))
            found[name] = compared(name, one, other) | {
                "programs": ours.programs - programs,
                "seconds": seconds,
                "their_time_over_ours": round(min(seconds["theirs"]) / min(seconds["ours"]), 2),
                "first_ratio": round(seconds["theirs"][0] / seconds["ours"][0], 2),
            }
        return found


def main(argv: list[str]) -> int:
    """The command line: see --help."""
    parser = cli.Parser(prog="python -m experiments.harness", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=claim.RESULTS, help="the folder of harness.json")
    parser.add_argument("--items", type=int, default=200, help="documents of a task")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--json", action="store_true", help="print the record")
    args = parser.parse_args(argv)
    args.results.mkdir(parents=True, exist_ok=True)  # before what takes minutes
    try:
        import accelerate  # noqa: F401
        import lm_eval
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: this compares two models of lm_eval") from None
    start = time.perf_counter()
    found = measured(args.items, args.steps)
    record = {
        "name": "harness",
        "command": f"python -m experiments.harness --items {args.items} --steps {args.steps}",
        "seconds": round(time.perf_counter() - start, 1),
        "batch_size": BATCH,
        "lm_eval": lm_eval.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "machine": claim.machine(),
        "commit": claim.commit(),
        "tasks": found,
    }
    for name, task in found.items():
        print(f"{name:<10} {'ok' if held(task) else 'DIFFERS'} {json.dumps(task)}")
    write_json(args.results / "harness.json", record)
    if args.json:
        print(json.dumps(record))
    return 0 if all(map(held, found.values())) else 1


if __name__ == "__main__":
    cli.run(main)
