"""A run in lm-evaluation-harness: its three kinds of requests against the plain model, and tasks of JSON lines."""

import importlib
import json
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from jaxgpt import lm_eval as command
from jaxgpt.config import UserError
from jaxgpt.model.generation import Sampler, generate
from jaxgpt.training import loop
from tests.small_runs import small_config, write_text

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

from jaxgpt.training import harness  # noqa: E402
from jaxgpt.training.harness import Generation, JaxGPT  # noqa: E402

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, train: {file}}}}}
training_split: train
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    cfg = small_config(
        write_text(folder / "text.txt"), data__tokenizer="bpe", data__vocab_size=280, data__documents="line",
        model__context_length=32, train__num_steps=40,
    )  # fmt: skip
    loop.train(cfg, folder / "run")
    return jaxgpt.load(folder / "run")


@pytest.fixture(scope="module")
def model(run):
    return JaxGPT(run, batch_size=3)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=given, idx=0, metadata=("task", i, 1))
        for i, given in enumerate(arguments)
    ]


def log_p(run, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logits = np.asarray(
        run.model.apply({"params": run.params}, jnp.asarray([context + continuation[:-1]]))[0]
    )
    logits = logits[-len(continuation) :].astype(np.float64)
    own = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    greedy = logits.argmax(-1).tolist() == continuation
    return float(own[np.arange(len(continuation)), continuation].sum()), greedy


def test_log_likelihoods_truncate_and_begin_as_the_harness_does(run, model):
    long = "the king loves the queen.\n" * 20
    pairs = [
        ("the king", " loves the"),
        ("", "the fool"),
        (long, "the duke"),
        ("the ghost ", "sees"),
        ("the", " "),
    ]
    found = model.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    encode = run.tokenizer.encode
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        stripped = context.rstrip()  # spaces at its end belong to the continuation
        both = encode(context + continuation).tolist()
        before = len(encode(stripped)) if context else 0
        ids = both[before:]
        read = both[:before] if context else [run.tokenizer.eos_id]
        expected = log_p(run, read[len(ids) - 33 :] if len(read) + len(ids) > 33 else read, ids)
        assert value == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


def test_rolling_log_likelihoods_have_the_windows_of_the_harness(run, model):
    texts = ["the king loves the queen.\n" * 12, "a", "the fool sees the ghost.\n"]
    found = model.loglikelihood_rolling(
        requests("loglikelihood_rolling", *((t,) for t in texts)), disable_tqdm=True
    )
    for text, value in zip(texts, found, strict=True):
        windows = get_rolling_token_windows(run.tokenizer.encode(text).tolist(), run.tokenizer.eos_id, 32, 1)
        expected = sum(log_p(run, *map(list, make_disjoint_window(window)))[0] for window in windows)
        assert value == pytest.approx(expected, abs=1e-3)


def test_generated_texts_are_those_of_the_run(run, model):
    contexts = ["the king", "the ghost fears", "the", "the duke kills the fool. the", "the king"]
    settings = {"until": ["queen", "."], "max_gen_toks": 12}
    found = model.generate_until(
        requests("generate_until", *((c, settings) for c in contexts)), disable_tqdm=True
    )
    for context, text in zip(contexts, found, strict=True):
        plain = generate(run.model, run.params, run.tokenizer, [context], 12, sampler=Sampler(0))[0][0]
        assert text == plain.split("queen")[0].split(".")[0]
    drawn = settings | {"do_sample": True, "temperature": 1.5, "until": []}
    one, other = model.generate_until(
        requests("generate_until", *[("the king", drawn)] * 2), disable_tqdm=True
    )
    assert one != other  # repeats are other samples


def test_the_number_of_programs_does_not_grow_with_the_texts(model):
    texts = [("the king", " loves" * n) for n in range(1, 5)]
    model.loglikelihood(requests("loglikelihood", *texts), disable_tqdm=True)
    programs = model.programs
    model.loglikelihood(requests("loglikelihood", *texts, *texts), disable_tqdm=True)
    assert model.programs == programs


def test_settings_that_are_not_possible_are_refused(run, model):
    assert Generation.of({"until": "x", "do_sample": False, "num_beams": 1}, 9).until == ["x"]
    assert Generation.of({"max_new_tokens": 3, "temperature": 0.5}, 9).sampler.temperature == 0.5
    for given in ({"num_beams": 4}, {"max_gen_toks": 0}, {"length_penalty": 2.0}):
        with pytest.raises(UserError):
            Generation.of(given, 9)
    with pytest.raises(UserError, match="leaves no room"):
        model.generate_until(requests("generate_until", ("the", {"max_gen_toks": 32})), disable_tqdm=True)
    for bad in ({"batch_size": "many"}, {"prefix_token_id": 280}, {"device": "cuda"}):
        with pytest.raises(UserError):
            JaxGPT(run, **bad)
    assert harness.rows("auto", 1024) == 16
    with pytest.raises(UserError, match="task task: U\\+D800"):
        model.loglikelihood(requests("loglikelihood", ("the", "\ud800")), disable_tqdm=True)
    with pytest.raises(UserError, match="no chat template"):
        model.chat_template(True)


def test_tasks_of_json_lines_are_scored_and_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    file = tmp_path / "kings.jsonl"
    lines = [{"q": "the king loves the", "choices": [" queen", " ,"], "a": 0}] * 3
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    choice = TASK.format(name="kings", file=file, kind="multiple_choice", text="{{q}}", target="{{a}}")
    (tmp_path / "kings.yaml").write_text(choice + 'doc_to_choice: "{{choices}}"\ntarget_delimiter: ""\n')
    flags = ["--workdir", str(run.workdir), "--include_path", str(tmp_path), "--tasks", "kings"]
    command.main(
        [
            *flags,
            "--limit",
            "2",
            "--num_fewshot",
            "1",
            "--output_path",
            str(tmp_path / "out"),
            "--log_samples",
        ]
    )
    assert "programs compiled" in capsys.readouterr().out
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["n-samples"]["kings"] == {"original": 3, "effective": 2}
    assert found["results"]["kings"]["acc,none"] == 1.0
    (samples,) = (tmp_path / "out").rglob("samples_kings_*.jsonl")
    assert len(samples.read_text().splitlines()) == 2
    (tmp_path / "bad.yaml").write_text(
        TASK.format(name="bad", file=tmp_path / "gone", kind="multiple_choice", text="", target="")
    )
    for bad in (["--tasks", "kinks"], ["--tasks", "bad"], ["--apply_chat_template"]):
        with pytest.raises(UserError) as error:
            command.main([*flags, *bad])
        assert "\n" not in str(error.value)


def test_the_entry_point_names_the_class():
    project = tomllib.loads((Path(jaxgpt.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["jaxgpt"].partition(":")
    assert getattr(importlib.import_module(module), name) is JaxGPT
    assert lm_eval.api.registry.get_model("jaxgpt") is JaxGPT
