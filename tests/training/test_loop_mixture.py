"""A run on a mixture of sources: the same batches however it is stopped, on any devices and in lanes."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxgpt
from jaxgpt import tokenize
from jaxgpt.config import UserError
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.data.packing import Packing
from jaxgpt.training import evaluation, preflight
from jaxgpt.training.loop import Trainer, train
from tests.errors import one_line
from tests.small_runs import assert_same_run, metrics, small_config, write_text

VICTIM = """
import os, signal, sys
from pathlib import Path
from jaxgpt.common.cli import set_up_process
from jaxgpt.training import loop, programs
from tests.training.test_loop_mixture import config_of
set_up_process()
feed = programs.SingleRun.feed
def deadly(self, step, signal_number=0):
    if step == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return feed(self, step, signal_number)
programs.SingleRun.feed = deadly
loop.train(config_of(Path(sys.argv[1])), sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    text = write_text(folder / "text.txt").read_text()
    (folder / "lines").mkdir()
    for i in range(20):
        (folder / "lines" / f"{i:02}.txt").write_text(text[i * 300 : i * 300 + 300].upper())
    return folder


def config_of(folder, weights=("0.75", "0.5@0 1@20"), **fields):
    mixture = f"low={folder / 'text.txt'}:{weights[0]}, high={folder / 'lines'}:{weights[1]}"
    return small_config("", data__mixture=mixture, **fields)


@pytest.fixture(scope="module")
def done(folder):
    train(config_of(folder), folder / "run")
    return folder / "run"


def test_its_sources_have_one_tokenizer_and_their_own_validation(folder, done):
    data = prepare_dataset(config_of(folder).data)
    low, high = data.tokenizer.encode("the king"), data.tokenizer.encode("THE KING")
    assert data.tokenizer.eos_id is not None and len(low) == len(high) == 8
    assert [source.name for source in data.sources] == [text.name for text in data.named] == ["low", "high"]
    assert len(data.train.ids) == sum(data.lengths)
    assert len(data.valid.ids) == sum(len(text.split.ids) for text in data.named)
    assert (np.asarray(data.train.ids[data.lengths[0] :]) == data.tokenizer.eos_id).sum() == 18
    last = {x["split"]: x for x in metrics(done) if x["step"] == 24}
    assert last.keys() == {"train", "valid", "valid/low", "valid/high", "source/low", "source/high"}
    assert last["source/low"]["rows"] + last["source/high"]["rows"] == 24 * 4
    assert last["source/high"]["share"] == pytest.approx(1 / 1.75)
    order = Batches.of(config_of(folder), data.train.ids, data.lengths).order
    assert last["source/low"]["epochs"] == order.epochs(24)[0]
    facts = json.loads((done / "run.json").read_text())
    assert facts["sources"].keys() == facts["valid_texts"].keys() == {"low", "high"}


def test_killed_or_stopped_and_resumed_is_never_stopped(folder, done, tmp_path):
    command = [sys.executable, "-c", VICTIM, str(folder), str(tmp_path / "run")]
    code = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=300).returncode
    assert code == -signal.SIGKILL
    train(config_of(folder), tmp_path / "run", stop_at=17)
    train(config_of(folder), tmp_path / "run")
    assert_same_run(done, tmp_path / "run")


@pytest.mark.slow
def test_on_the_device_and_in_lanes_the_batches_are_the_same(folder, done, tmp_path):
    losses = {x["step"]: x["loss"] for x in metrics(done) if x["split"] == "train"}
    train(config_of(folder, data__on_device=True), tmp_path / "device")
    cfg = config_of(folder)
    other = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, learning_rate=1e-4))
    Trainer([(cfg, tmp_path / "a"), (other, tmp_path / "b")], width=1).run()
    for name in ("device", "a"):
        found = {x["step"]: x["loss"] for x in metrics(tmp_path / name) if x["split"] == "train"}
        assert found == pytest.approx(losses, abs=1e-5)
    sources = [[x for x in metrics(tmp_path / name) if x["split"].startswith("source/")] for name in "ab"]
    assert sources[0] == sources[1] == [x for x in metrics(done) if x["split"].startswith("source/")]


def test_a_mixture_of_packed_documents_is_planned_counted_and_resumed(folder, tmp_path):
    packed = {"data__documents": "line", "data__windows": "documents", "model__document_mask": True}
    cfg = config_of(folder, **packed)
    train(cfg, tmp_path / "one")
    train(cfg, tmp_path / "two", stop_at=7)
    train(cfg, tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    data = prepare_dataset(cfg.data)
    size = cfg.model.context_length + 1
    packing = Packing.of(data.train.ids, data.tokenizer.eos_id, size, data.lengths)
    last = {x["split"]: x for x in metrics(tmp_path / "one") if x["step"] == 24}
    for name, windows in zip(("low", "high"), packing.sizes, strict=True):
        found = last[f"source/{name}"]
        assert found["epochs"] == pytest.approx(found["rows"] / windows)
    plan = preflight.dry_run(cfg)
    assert packing.as_text() in plan
    for name in ("low", "high"):
        (said,) = re.findall(rf" {name} .* ([\d.]+) epochs", plan)
        assert float(said) == pytest.approx(last[f"source/{name}"]["epochs"], rel=1e-2)
    with pytest.raises(UserError, match=r"training split of 'low' has no token .*data\.documents") as error:
        preflight.dry_run(config_of(folder, **packed | {"data__documents": "auto"}))
    one_line(error)


def test_texts_may_move_but_weights_and_texts_may_not_change(folder, done, tmp_path):
    moved = tmp_path / "moved.txt"
    moved.write_bytes((folder / "text.txt").read_bytes())
    mixture = f"low={moved}:0.75, high={folder / 'lines'}:0.5@0 1@20"
    Trainer([(small_config("", data__mixture=mixture), done)]).runs[0].close()
    for changed in (mixture.replace("0.75", "0.7"), mixture.replace("low=", "small=")):
        with pytest.raises(UserError, match=r"another config \(data\.mixture") as error:
            Trainer([(small_config("", data__mixture=changed), done)])
        one_line(error)
    moved.write_text(moved.read_text() + "the end")
    with pytest.raises(UserError, match="started with another text"):
        Trainer([(small_config("", data__mixture=mixture), done)])


def test_reports_find_the_text_of_the_run(folder, done):
    run = jaxgpt.load(done)
    own = evaluation.own_dataset(run.workdir, run.config.data, run.tokenizer)
    assert run.config.data.documents == "auto" and len(own.sources) == 2


def test_with_a_validation_text_all_of_the_sources_is_for_training(folder):
    cfg = config_of(
        folder, data__valid_path=str(folder / "text.txt"), data__valid_paths=f"low={folder / 'text.txt'}"
    )
    data, split = prepare_dataset(cfg.data), prepare_dataset(config_of(folder).data)
    assert len(data.train.ids) == len(split.train.ids) + len(split.valid.ids)
    assert [text.name for text in data.named] == ["low"]
    assert np.array_equal(data.valid.ids, data.named[0].split.ids)


def test_the_dry_run_shows_each_source_and_warns_of_one_that_is_repeated(folder):
    text = preflight.dry_run(config_of(folder, weights=("1", "1"), train__num_steps=1_000))
    assert "tokens   50.0% of the rows" in text
    assert "warning: source 'high' is read" in text and "warning: source 'low'" not in text
    assert "times the data" not in text and "the run sees" not in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.path": "text.txt", "data.mixture": "a=text.txt:1"}, r"data\.mixture and data\.path='text\.txt' are both"),
        ({"data.mixture": "a=text.txt:1", "data.valid_paths": "a=text.txt"}, r"'a' is also a source of data\.mixture"),
        ({"data.mixture": "a=none.txt:1"}, r"data\.mixture: a='none\.txt' does not exist"),
        ({"data.mixture": "a=text.txt:1, b=corpus:none:1"}, r"data\.mixture: b='corpus:none': choose one of dialogues, kjv"),
        ({"data.mixture": "a=text.txt:1, b=ids.npy:1"}, r"data\.mixture: b='ids\.npy' has token ids, which .*'char' can't"),
        ({"data.mixture": "a=text.txt:1, b=one.jsonl:1"}, r"the text of data\.mixture: b is a single document"),
        ({"data.mixture": "a=text.txt:1, b=short.txt:1"}, r"training split of 'b' has 10 tokens and needs 17"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_anything_is_written(folder, monkeypatch, tmp_path, fields, message):
    monkeypatch.chdir(folder)
    (folder / "short.txt").write_text("the duke s.\n")
    (folder / "one.jsonl").write_text('{"text": "the duke"}\n')
    np.save(folder / "ids.npy", np.arange(100, dtype=np.uint16) % 9)
    with pytest.raises(UserError, match=message) as error:
        Trainer(
            [(small_config("", **{k.replace(".", "__"): v for k, v in fields.items()}), tmp_path / "new")]
        )
    one_line(error)
    assert not (tmp_path / "new").exists()


def test_shards_are_made_of_one_text_at_a_time(folder, tmp_path):
    config = tmp_path / "config.py"
    config.write_text("from jaxgpt.config import default_config as get_config\n")
    with pytest.raises(UserError, match="give each source in turn"):
        tokenize.main(
            ["--config", str(config), "--config.data.mixture=a=x:1", "--out", str(tmp_path / "out")]
        )
