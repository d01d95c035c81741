"""A run with validation texts of its own: what it logs, keeps and refuses."""

import json

import pytest

import jaxgpt
from jaxgpt.config import UserError
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.data.id_files import Split
from jaxgpt.inspect import static_tables, summary
from jaxgpt.inspect.subject import open_subject
from jaxgpt.runs import curves, metrics_log
from jaxgpt.training import evaluation
from jaxgpt.training.loop import Trainer, train
from tests.errors import one_line
from tests.small_runs import assert_same_run, metrics, small_config, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    text = write_text(folder / "text.txt").read_text()
    (folder / "odd.txt").write_text("".join(text.splitlines(keepends=True)[1:200:2]))
    (folder / "back.txt").write_text("\n".join(line[::-1] for line in text.split("\n")[:200]))
    return folder


def config_of(folder, **fields):
    return small_config(
        folder / "text.txt",
        data__valid_paths=f"odd={folder / 'odd.txt'}, back={folder / 'back.txt'}",
        **fields,
    )


@pytest.fixture(scope="module")
def done(folder):
    train(config_of(folder, train__tensorboard=True), folder / "run")
    return folder / "run"


def test_every_evaluation_has_a_line_for_each_text(folder, done):
    lines = metrics(done)
    losses = {(x["step"], x["split"]): x for x in lines if x["split"] != "train"}
    splits = ("valid", "valid/odd", "valid/back")
    assert losses.keys() == {(step, split) for step in (0, 8, 16, 24) for split in splits}
    assert losses[24, "valid/odd"]["loss"] < losses[24, "valid/back"]["loss"]
    run, dataset = jaxgpt.load(done), prepare_dataset(config_of(folder).data)
    for split, ids in (("valid", dataset.valid.ids), ("valid/back", dataset.named[1].split.ids)):
        ids = ids[:513]  # train.eval_tokens=512
        windows = evaluation.batches.eval_batches(ids, context_length=16, batch_size=4)
        found = evaluation.figures(
            evaluation.evaluate(run.model, run.params, windows), Split(ids), run.tokenizer
        )
        for name in ("loss", "standard_error", "tokens", "bits_per_byte"):
            assert losses[24, split][name] == pytest.approx(found[name], rel=1e-6)


def test_the_run_itself_is_that_without_other_texts(folder, done, tmp_path):
    train(small_config(folder / "text.txt"), tmp_path / "plain")
    own = [x for x in metrics(done) if "/" not in x["split"]]
    assert own == metrics(tmp_path / "plain")
    assert {k[1] for k in curves.curve(done)} == {"train", "valid", "valid/odd", "valid/back"}
    assert list((done / "tensorboard").glob("events*"))


def test_stopped_and_resumed_is_never_stopped(folder, done, tmp_path):
    cfg = config_of(folder, train__tensorboard=True)
    for stop in (8, 13, None):
        train(cfg, tmp_path / "run", stop_at=stop)
    assert_same_run(done, tmp_path / "run")


def test_a_kill_leaves_all_lines_of_an_evaluation_or_none(tmp_path):
    log = metrics_log.MetricsLog(tmp_path, 0)
    log.write_lines(0, [("valid", {"loss": 1.0}), ("valid/a", {"loss": 2.0}), ("valid/b", {"loss": None})])
    assert log.valid_losses() == {0: 1.0}
    assert [x["split"] for x in metrics_log.read(tmp_path, 0)] == ["valid", "valid/a", "valid/b"]


def test_the_report_has_the_last_figures(done):
    found = summary._texts(open_subject(done))
    assert [(x["name"], x["step"], x["tokens"]) for x in found] == [("back", 24, 512), ("odd", 24, 512)]
    table = static_tables.validation_texts({"summary": {"texts": found}})
    assert "back" in table and "bits per byte" in table
    assert static_tables.validation_texts({"summary": {"texts": []}}) == ""


def test_run_json_has_the_hashes_and_texts_may_move_but_not_change(folder, done, tmp_path):
    facts = json.loads((done / "run.json").read_text())
    assert facts["valid_texts"].keys() == {"odd", "back"}
    moved = tmp_path / "moved.txt"
    moved.write_bytes((folder / "odd.txt").read_bytes())
    fields = {"train__num_steps": 32, "train__sample_tokens": 0}
    Trainer([(small_config(folder / "text.txt", data__valid_paths=f"odd={moved}", **fields), done)]).runs[
        0
    ].close()
    moved.write_text("the king sees the queen.\n")
    with pytest.raises(UserError, match="another validation text 'odd'") as error:
        Trainer([(small_config(folder / "text.txt", data__valid_paths=f"odd={moved}", **fields), done)])
    one_line(error)
    with pytest.raises(UserError, match=r"valid_text_sha256 was None"):
        Trainer([(small_config(folder / "text.txt", data__valid_path=str(moved), **fields), done)])


def test_a_validation_text_of_its_own_is_that_of_reports_too(folder, tmp_path):
    cfg = small_config(folder / "text.txt", data__valid_path=str(folder / "odd.txt"), train__num_steps=2)
    train(cfg, tmp_path / "run")
    run = jaxgpt.load(tmp_path / "run")
    own = evaluation.own_dataset(run.workdir, run.config.data, run.tokenizer)
    assert run.tokenizer.decode(own.valid.ids) == (folder / "odd.txt").read_text()
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["valid_text_sha256"] == own.valid_sha256
    facts["valid_text_sha256"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="has changed since training"):
        evaluation.own_dataset(run.workdir, run.config.data, run.tokenizer)
