"""A report's numbers: they equal those of the forward pass and are reproducible; wrong input gets one line."""

import base64
import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import jaxgpt
from jaxgpt import config, train
from jaxgpt.config import UserError
from jaxgpt.data import tokenizers
from jaxgpt.data.dataset import Dataset, prepare_dataset
from jaxgpt.data.id_files import Split
from jaxgpt.inspect import (
    analysis,
    attention,
    compare,
    embeddings,
    forward,
    methods,
    page,
    subject,
)
from jaxgpt.inspect.capture import capture
from jaxgpt.inspect.payload import payload
from jaxgpt.inspect.plain import plain
from jaxgpt.inspect.write import as_json, report
from jaxgpt.model.gpt import GPT
from jaxgpt.runs.load import Run
from jaxgpt.training import loop
from tests.commands import execute
from tests.inspect.test_capture import ALL
from tests.models import random_params
from tests.small_runs import small_config, write_text

TEXT = "the king sees"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small trained run and its text."""
    root = tmp_path_factory.mktemp("report")
    cfg = small_config(write_text(root / "text.txt"), train__embedding_snapshots=3, train__report=True)
    train.run(cfg, root / "run")
    return root


@pytest.fixture(scope="module")
def opened(folder) -> subject.Subject:
    return subject.open_subject(folder / "run")


@pytest.fixture(scope="module")
def figures(folder) -> dict:
    """The report that training writes equals the command's; read back from JSON."""
    return json.loads(as_json(report(folder / "run", TEXT, other=folder / "run")))


@pytest.fixture(scope="module")
def seen(opened):
    return capture(opened.cfg, opened.run.params, opened.run.tokenizer.encode(TEXT))


def test_tokens_are_those_of_the_forward_pass(figures, seen, opened):
    logits_TV, targets = seen.logits_TV.astype(np.float64), seen.tokens_T[1:]
    p_TV = np.exp(logits_TV) / np.exp(logits_TV).sum(axis=-1, keepdims=True)
    true_T = p_TV[np.arange(len(targets)), targets]
    got = figures["tokens"]
    np.testing.assert_allclose(got["nats"], -np.log(true_T), rtol=1e-4)
    np.testing.assert_allclose(got["bits"], -np.log2(true_T), rtol=1e-4)
    np.testing.assert_allclose(got["probability"], true_T, rtol=1e-4)
    np.testing.assert_allclose(got["entropy"], -(p_TV * np.log(p_TV)).sum(axis=-1), rtol=1e-4)
    ranks = [
        sorted(row, reverse=True).index(row[i]) + 1
        for row, i in zip(p_TV[:-1].tolist(), targets, strict=True)
    ]
    assert got["rank"] == ranks
    ids = opened.dataset.train.ids.astype(int)
    a, b = (int(i) for i in seen.tokens_T[:2])
    follow = ids[1:][ids[:-1] == a]
    t, V = len(set(follow)), opened.cfg.vocab_size
    unigram = ((ids == b).sum() + 1) / (len(ids) + V)
    np.testing.assert_allclose(
        got["bigram_nats"][0], -np.log(((follow == b).sum() + t * unigram) / (len(follow) + t)), rtol=1e-4
    )
    np.testing.assert_allclose(
        np.array(got["difference"]), np.array(got["nats"]) - got["bigram_nats"], atol=1e-4
    )
    np.testing.assert_allclose(got["mean"]["nats"], np.mean(-np.log(true_T)), rtol=1e-4)
    text = [figures["vocabulary"][str(i)]["text"] for i in figures["probe"]["ids"]]
    assert "".join(text) == figures["probe"]["text"] == TEXT


def test_probabilities_of_next_tokens_are_exact_at_every_temperature(figures, seen):
    ahead = figures["next"]
    for j, temperature in enumerate(ahead["temperatures"]):
        p_TV = analysis.softmax(seen.logits_TV / temperature)
        shown = np.exp(np.array(ahead["logits"]) / temperature - np.array(ahead["logsumexp"])[:, [j]])
        np.testing.assert_allclose(
            shown, np.take_along_axis(p_TV, np.array(ahead["ids"]), axis=-1), atol=1e-4
        )
        true = np.exp(np.array(ahead["true_logit"]) / temperature - np.array(ahead["logsumexp"])[:-1, j])
        np.testing.assert_allclose(true, p_TV[np.arange(len(true)), seen.tokens_T[1:]], atol=1e-4)
    assert ahead["temperatures"][0] == 0.1 and ahead["temperatures"][-1] == 2.0


def weights_of(part: dict, T: int) -> np.ndarray:
    """The weights that a reader computes from the attention part: softmax of each row of the triangle."""
    L, H = part["layers"], part["heads"]
    scores = np.full((L, H, T, T), -np.inf)
    scores[:, :, *np.tril_indices(T)] = np.array(part["scores"]) * part["score_unit"]
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_the_scores_that_the_mask_removes_are_there_too(figures, seen):
    """The masked scores above the diagonal, with two decimals."""
    got, T = figures["attention"], len(seen.tokens_T)
    for layer, ahead in zip(seen.layers, got["ahead"], strict=True):
        above = layer.scores_HTS[:, *np.triu_indices(T, 1)]
        np.testing.assert_allclose(np.array(ahead) * got["ahead_unit"], above, atol=0.00501)


def test_attention_follows_from_the_scores(figures, seen):
    weights = weights_of(figures["attention"], len(seen.tokens_T))
    for i, layer in enumerate(seen.layers):
        np.testing.assert_allclose(weights[i], layer.weights_HTS, atol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-12)
    assert (weights[:, :, *np.triu_indices(len(seen.tokens_T), 1)] == 0).all()


def test_the_ledger_adds_up_to_the_logits_and_the_lens_ends_with_the_output(figures, seen):
    ledger, lens = figures["ledger"], figures["lens"]
    np.testing.assert_allclose(np.sum(ledger["contributions"], axis=0), ledger["logit"], atol=1e-3)
    np.testing.assert_allclose(ledger["logit"], figures["next"]["true_logit"], atol=1e-4)
    assert ledger["error"]["stream"] < 1e-4 and ledger["error"]["logit"] < 1e-4
    np.testing.assert_allclose(lens["true_p"][-1], figures["tokens"]["probability"], rtol=1e-3)
    assert [row[:5] for row in figures["next"]["ids"]] == lens["ids"][-1]


def test_a_ledger_of_very_many_heads_takes_those_of_a_layer_together(seen, monkeypatch):
    complete, cut = forward.ledger(seen, []), []
    monkeypatch.setattr(forward, "ENTRIES", 10)
    got = forward.ledger(seen, cut)
    assert "0.heads" in got["entries"] and "0.1" not in got["entries"] and len(cut) == 1
    np.testing.assert_allclose(
        np.sum(got["contributions"], axis=0), np.sum(complete["contributions"], axis=0), atol=1e-3
    )


@pytest.mark.parametrize("most, shown", [(500, 13), (40, 4)])
def test_tables_that_would_be_too_large_are_cut_and_that_is_said(seen, monkeypatch, most, shown):
    monkeypatch.setattr(attention, "MOST_NUMBERS", 10)
    monkeypatch.setattr(attention, "ALL_NUMBERS", most)
    cut = []
    got = attention.attention_tables(seen, cut)
    assert got["scores"] is None and "4 heads x 13 tokens" in cut[0]
    for i, layer in enumerate(seen.layers):
        expected = layer.weights_HTS[:, *np.tril_indices(shown)]
        for text, of_head in zip(got["weights"][i], expected, strict=True):
            assert len(text) == 2 * len(of_head)  # a large model's page stays small
            content = base64.b64decode(text + "A" * (-len(text) % 4))  # in which 3 bytes are two numbers
            bits = np.unpackbits(np.frombuffer(content, np.uint8))
            numbers = bits[: 12 * len(of_head)].reshape(-1, 12) @ (1 << np.arange(11, -1, -1))
            np.testing.assert_allclose(numbers * got["weight_unit"], of_head, atol=1.3e-4)


def test_the_summary_equals_the_files_of_the_run(figures, folder, opened):
    summary, facts = figures["summary"], json.loads((folder / "run" / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "valid"][-1]
    assert summary["valid"] == plain({"loss": last["loss"], "standard_error": last["standard_error"], "tokens": 512}, 6) | {
        "step": 24, "from": "metrics.jsonl"
    }  # fmt: skip
    rows = {row["name"]: row for row in summary["measures"]}
    for name, expected in {"model": last["loss"], **facts["baselines"]}.items():
        np.testing.assert_allclose(rows["loss"][name], expected, rtol=1e-4)
        np.testing.assert_allclose(rows["perplexity"][name], np.exp(expected), rtol=1e-4)
        # One token is one character, and one byte, of this text.
        np.testing.assert_allclose(rows["bits per character"][name], expected / np.log(2), rtol=1e-4)
        np.testing.assert_allclose(rows["bits per byte"][name], expected / np.log(2), rtol=1e-4)
    assert summary["num_params"] == facts["num_params"] and summary["seed"] == 0
    assert summary["curves"]["train"]["step"] == list(range(1, 25))
    assert summary["curves"]["valid"]["step"] == [0, 8, 16, 24]
    assert 1 <= len(summary["findings"]) <= 3
    for finding in summary["findings"]:
        assert any(c.isdigit() for c in finding["text"])


def test_an_untrained_model_has_nothing_found_in_its_heads_and_tables(opened):
    fresh = dataclasses.replace(opened.run, params=opened.untrained(9)[1], step=0)
    at_0 = [line for line in opened.metrics if line["step"] == 0]
    one = dataclasses.replace(opened, run=fresh, metrics=at_0)
    got = payload(one, subject.probe_of(one, TEXT))
    kinds = {finding["kind"] for finding in got["summary"]["findings"]}
    assert kinds <= {"loss", "surprise"} and not got["attention"]["named"]
    (loss,) = (finding for finding in got["summary"]["findings"] if finding["kind"] == "loss")
    assert "worse than a table of token pairs" in loss["text"]


def test_a_step_that_was_not_evaluated_is_evaluated_now(folder, opened):
    got = report(folder / "run", TEXT, step=18)["summary"]["valid"]
    assert got["from"] == "evaluated now" and got["step"] == 18 and 0 < got["loss"] < 4


def test_the_same_run_gives_the_same_report_but_for_the_time(figures, folder):
    again = json.loads(as_json(report(folder / "run", TEXT, other=folder / "run")))
    assert {key for key in figures if figures[key] != again[key]} <= {"generated"}


def test_a_run_compared_with_itself_has_no_differences(figures):
    compared = figures["compare"]
    assert compared["config"] == []
    for key in compare.KEYS:
        own = (
            [line for line in figures[key] if "Watch it learn" not in line]
            if key == "missing"
            else figures[key]
        )
        assert compared[key] == own
    assert compared["attention"].items() <= figures["attention"].items()


def test_every_method_names_a_function_that_exists(figures):
    for method in figures["methods"]:
        module, _, name = method["function"].rpartition(".")
        assert hasattr(importlib.import_module(module), name), method
    assert len(figures["methods"]) == len(methods.METHODS) > 20


def test_training_wrote_the_report_at_its_end(folder):
    written = json.loads((folder / "run" / "report.json").read_text("utf-8"))
    assert written["summary"]["step"] == 24 and len(written["probe"]["ids"]) == 16
    assert "<!doctype html>" in (folder / "run" / "report.html").read_text("utf-8").lower()


def test_a_report_that_cannot_be_written_loses_no_run(folder, tmp_path, capsys):
    shutil.copytree(folder / "run", tmp_path / "run")
    for name in ("report.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "report.json").mkdir()
    cfg = jaxgpt.load(tmp_path / "run").config
    assert train.run(cfg, tmp_path / "run").signal is None
    assert "warning: no report" in capsys.readouterr().err


# --- the probe ------------------------------------------------------------------------------------------


def test_a_text_longer_than_the_context_is_cut_and_that_is_said(opened):
    probe = subject.probe_of(opened, "the king sees the queen and the fool".replace("and ", ""))
    assert probe.text == "the king sees th" and "first 16 are shown" in probe.cut[0]
    own = subject.probe_of(opened, None)
    assert own.text.startswith("the ") and len(own.ids_T) == 16 and "validation split" in own.source


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--text é", "'é' (U+00E9) at position 0 is not one of"),
        ("--text ''", "has 0 tokens: give at least 2"),
        ("--text t", "has 1 token: give at least 2"),
        ("--step 5", "no checkpoint of step 5: the steps are"),
        ("--step last", "give a saved step's number or 'best'"),
        ("--compare nowhere", "no run folder nowhere"),
        ("--compare words", "have different tokenizers"),
        ("--workdir nowhere", "no run folder nowhere"),
        ("--workdir empty", "is not a run folder: it has no checkpoints/"),
        ("--workdir started", "has no checkpoint yet"),
        ("--out text.txt", "is a file, not a folder"),
    ],
)
def test_wrong_input_gets_one_line(folder, words_run, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "started" / "checkpoints").mkdir(parents=True, exist_ok=True)
    code = execute(monkeypatch, f"report --workdir run {flags}")
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.fixture(scope="module")
def words_run(folder):
    """A run with another tokenizer."""
    cfg = small_config(
        folder / "text.txt",
        data__tokenizer="word",
        train__num_steps=1,
        train__eval_every=0,
        train__sample_tokens=0,
    )
    loop.train(cfg, folder / "words")
    return folder / "words"


def test_a_run_without_saved_tables_is_compared_with_fresh_parameters(folder, tmp_path, figures):
    shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("embeddings"))
    got = report(tmp_path / "run", TEXT)["embeddings"]
    assert got["drift"] is None and "saved no table of step 0" in got["start_is"]
    # They are the ones that were kept.
    assert (
        got["neighbours"] == figures["embeddings"]["neighbours"]
        and got["pairs"] == figures["embeddings"]["pairs"]
    )


def test_words_that_the_tokenizer_lacks_are_named(words_run):
    with pytest.raises(UserError, match="'dragon', which the tokenizer lacks"):
        subject.probe_of(subject.open_subject(words_run), "the dragon sees")


def test_what_a_model_has_written_is_read_back_with_its_unknown_words(words_run):
    tokenizer = subject.open_subject(words_run).run.tokenizer
    got = subject.encode_written(tokenizer, "the <unk> sees the dragon")
    np.testing.assert_array_equal(got, [*tokenizer.encode("the "), 0, *tokenizer.encode(" sees the "), 0])
    assert tokenizer.decode(got) == "the <unk> sees the <unk>"
    assert len(subject.encode_written(tokenizer, "")) == 0


def test_a_run_whose_text_is_gone_is_reported_without_it(words_run, tmp_path):
    shutil.copytree(words_run, tmp_path / "run")
    one = subject.open_subject(tmp_path / "run")
    gone = dataclasses.replace(one, dataset=None, missing=("No text.",))
    with pytest.raises(UserError, match="no validation text: give a text"):
        subject.probe_of(gone, None)
    got = json.loads(as_json(payload(gone, subject.probe_of(gone, "the king sees the fool"))))
    assert got["missing"][0] == "No text."
    assert got["tokens"]["bigram_nats"] is None and got["attention"]["ablation"] is None
    assert got["neurons"] is None and got["contextual"] is None
    assert got["summary"]["measures"][0]["bigram"] is None
    assert all(entry["count"] is None for entry in got["vocabulary"].values())
    assert got["attention"]["statistics_on"] == "the probe text"


def test_the_tables_of_step_0_follow_from_the_seed(opened):
    """A run that saved no table of step 0 can be compared with its start."""
    kept = embeddings.History(opened)[0]
    _, params = opened.untrained()
    np.testing.assert_array_equal(kept, params["token_embedding"]["embedding"])
    assert not np.array_equal(opened.untrained(1)[1]["token_embedding"]["embedding"], kept)


def test_an_imported_run_is_compared_with_an_untrained_one(opened, tmp_path):
    """Its step 0 is the trained model."""
    (tmp_path / "run.json").write_text(json.dumps({"starts": [], "imported": {"name": "gpt2"}}))
    run = SimpleNamespace(step=0, workdir=tmp_path)
    at_start = SimpleNamespace(run=run, untrained=opened.untrained, cfg=opened.cfg)
    _, params = opened.untrained()
    history = {0: opened.run.params["token_embedding"]["embedding"]}
    table, why = embeddings._start(at_start, history), embeddings._start_is(at_start, history)
    np.testing.assert_array_equal(table, params["token_embedding"]["embedding"][: len(table)])
    assert "its step 0 is the model itself" in why


def test_capture_of_a_run_takes_text_or_ids(opened, seen):
    run = opened.run
    by_text, by_ids = jaxgpt.capture(run, TEXT), jaxgpt.capture(run, run.tokenizer.encode(TEXT).tolist())
    np.testing.assert_array_equal(by_text.logits_TV, seen.logits_TV)
    np.testing.assert_array_equal(by_ids.logits_TV, seen.logits_TV)
    with pytest.raises(UserError, match=r"give 1 to model\.context_length=16"):
        jaxgpt.capture(run, TEXT * 2)
    assert isinstance(prepare_dataset(run.config.data), Dataset)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ALL))
def test_every_kind_of_model_has_a_report(name):
    """Every architecture with random weights: the sums add up, and there is a position table if the model has one."""
    cfg = ALL[name]
    run = Run(
        config.Config(model=cfg),
        GPT(cfg),
        random_params(cfg),
        tokenizers.CharTokenizer("abcdefghijk"),
        1,
        Path("none"),
    )
    ids = np.random.default_rng(0).integers(0, 11, 300)
    dataset = Dataset(Split(ids), Split(ids), run.tokenizer, "random", "", "")
    one = subject.Subject(run, {"starts": []}, [], dataset, ())
    got = json.loads(as_json(payload(one, subject.probe_of(one, "abcafgh"))))
    assert got["ledger"]["error"]["stream"] < 1e-4 and got["ledger"]["error"]["logit"] < 1e-3
    assert (got["positions"]["end"] is None) == (cfg.position in ("rotary", "none"))
    assert np.isfinite(got["attention"]["ablation"]["mean"]["loss"]).all()
    assert page.render(got)
