"""Evaluation counts every token once and reports what follows from the mean."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt import evaluate
from jaxgpt.common import cli
from jaxgpt.config import DataConfig, ModelConfig
from jaxgpt.data import batches, dataset, shards, tokenizers
from jaxgpt.data.id_files import Split
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.training import evaluation
from jaxgpt.training.loop import train
from tests.data import test_huggingface
from tests.data.test_shards import llm_c
from tests.small_runs import metrics, small_config, write_text

CFG = ModelConfig(vocab_size=11, context_length=8, d_model=16, num_layers=1, num_heads=2)


@pytest.fixture(scope="module")
def model_and_params():
    model = GPT(CFG)
    params = init_params(model, jax.random.key(0))
    params["token_embedding"]["embedding"] *= 20.0  # so that losses differ between tokens
    return model, params


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    text = write_text(folder / "text.txt")
    train(small_config(text, train__eval_tokens=0), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(("num_ids", "batch_size"), [(2, 4), (9, 1), (60, 4), (65, 3), (100, 64)])
def test_every_token_but_the_first_counts_once(model_and_params, num_ids, batch_size):
    model, params = model_and_params
    ids = np.random.default_rng(num_ids).integers(0, 11, num_ids)
    losses = []
    for start in range(0, num_ids - 1, 8):  # the definition, a window at a time
        window = ids[start : start + 9]
        log_probs = jax.nn.log_softmax(model.apply({"params": params}, window[None, :-1])[0])
        losses += [-float(log_probs[i, target]) for i, target in enumerate(window[1:])]
    windows = batches.eval_batches(ids, context_length=8, batch_size=batch_size)
    result = evaluation.evaluate(model, params, windows)
    assert result.tokens == num_ids - 1
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    np.testing.assert_allclose(evaluation.per_token(model, params, ids), losses, rtol=1e-4, atol=1e-5)


def test_standard_error_is_that_of_the_mean_of_windows():
    rng = np.random.default_rng(0)
    windows = rng.normal(2.0, 0.3, size=400)
    result = evaluation.summarize(windows * 64, np.full(400, 64.0))
    assert result.standard_error == pytest.approx(windows.std(ddof=1) / math.sqrt(400), rel=1e-6)
    assert math.isnan(evaluation.summarize(np.array([3.0]), np.array([2.0])).standard_error)


def test_a_fixed_number_of_tokens_of_shards_is_a_plain_loop(model_and_params, tmp_path):
    """The first 1,000 targets of two llm.c shards, read and predicted without this package's loader and loss."""
    model, params = model_and_params
    ids = np.random.default_rng(1).integers(0, 11, 1_500).astype("<u2")
    for i, part in enumerate((ids[:700], ids[700:])):
        llm_c(tmp_path / f"val_{i:06}.bin", part)
    stored = shards.open_ids(sorted(tmp_path.glob("*.bin")))
    windows = batches.eval_batches(stored, context_length=8, batch_size=7, max_tokens=1_000)
    found = evaluation.evaluate(model, params, windows)
    read = [np.fromfile(f, "<u2", offset=1024) for f in sorted(tmp_path.glob("*.bin"))]
    tokens = np.concatenate(read).astype(np.int32)
    x, y = tokens[:1_000].reshape(-1, 8), tokens[1:1_001].reshape(-1, 8)
    logits = jax.jit(lambda x: model.apply({"params": params}, x))(x)
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = -np.take_along_axis(log_probs, y[..., None], axis=-1).mean()
    assert found.tokens == 1_000 and found.loss == pytest.approx(expected, rel=1e-6)


def run_main(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(evaluate.main)
    out, err = capsys.readouterr()
    assert exit_info.value.code == 0 and err == ""
    return out


def test_the_command_repeats_the_loss_that_training_recorded(run_folder, monkeypatch, capsys):
    figures = json.loads(run_main(monkeypatch, capsys, "--workdir", str(run_folder), "--json"))
    recorded = [line for line in metrics(run_folder) if line["split"] == "valid"][-1]
    assert figures["loss"] == pytest.approx(recorded["loss"], rel=1e-6)
    assert figures["tokens"] == recorded["tokens"]
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    # ASCII characters as tokens: a token is a character is a byte.
    assert figures["bits_per_char"] == pytest.approx(figures["loss"] / math.log(2))
    assert figures["bits_per_byte"] == pytest.approx(figures["bits_per_char"])


def test_another_text_token_by_token(run_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("the king sees")
    arguments = ("--workdir", str(run_folder), "--text", str(tmp_path / "text.txt"), "--per_token")
    figures = json.loads(run_main(monkeypatch, capsys, *arguments, "--json"))
    assert [token["token"] for token in figures["per_token"]] == list("he king sees")
    assert np.mean([token["loss"] for token in figures["per_token"]]) == pytest.approx(
        figures["loss"], rel=1e-5
    )
    table = run_main(monkeypatch, capsys, *arguments)
    assert "'k'" in table and "bits per char" in table


def test_bits_per_byte_and_per_character_differ_where_characters_have_several_bytes():
    tokenizer = tokenizers.train("char", lambda: iter(["aé→"]), None)
    ids = tokenizer.encode("aé→a")
    report = evaluation.figures(evaluation.Evaluation(math.log(2), 0.0, 3), Split(ids), tokenizer)
    assert report["bits_per_char"] == pytest.approx(1.0)
    assert report["bits_per_byte"] == pytest.approx(3 / (2 + 3 + 1))
    assert "lengths_estimated" not in report


@pytest.mark.parametrize(
    "kind", ["char", "word", "bpe", "byte_level", "own_pattern", "byte_fallback", "unigram", "word_piece"]
)
def test_bytes_are_those_of_the_text_for_every_tokenizer(kind, tmp_path, monkeypatch):
    """Of a validation split of documents, also where a tokenizer changes text or does not know words."""
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    documents = [
        f"{i} ΔÉLTA e\u0301te\u0301   don't\u00a0STOP \u6f22\U0001f642\r\n the 東 <|endoftext|>"
        for i in range(60)
    ]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (tmp_path / "a.jsonl").write_text(lines)
    cfg = DataConfig(path=str(tmp_path / "a.jsonl"), tokenizer=kind, valid_fraction=0.3)
    if kind in ("char", "word", "bpe"):
        cfg = dataclasses.replace(cfg, vocab_size={"char": None, "word": 20, "bpe": 270}[kind])
    else:
        getattr(test_huggingface, kind)().save(str(tmp_path / "tokenizer.json"))
        cfg = dataclasses.replace(cfg, tokenizer="huggingface", tokenizer_path=str(tmp_path))
    found = dataset.prepare_dataset(cfg)
    split, tokenizer = found.valid, found.tokenizer
    lengths = evaluation.Lengths.of(split, tokenizer)
    first = tokenizer.decode_bytes(split.ids[:1])
    text = "".join(documents[-17:])
    assert (lengths.num_bytes, lengths.num_chars) == (
        len(text.encode()) - len(first),
        len(text) - len(first.decode()),
    )
    assert lengths.exact
    exact = kind in ("char", "bpe", "byte_level")
    assert tokenizer.has_exact_lengths == exact
    half = evaluation.Lengths.of(split, tokenizer, len(split.ids) // 2)
    assert half.exact == exact and half.num_bytes == pytest.approx(lengths.num_bytes / 2, rel=0.05)
    assert evaluation.Lengths.of(Split(split.ids), tokenizer).exact == exact


def test_load_needs_none_of_the_training_flags(run_folder):
    run = jaxgpt.load(str(run_folder), step=18)
    assert run.step == 18 and run.config.model.d_model == 16
