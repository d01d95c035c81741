"""Runs on windows of documents: recorded, resumed, on the device, as lanes, and planned by a dry run."""

import dataclasses
import json
import re

import numpy as np
import pytest

import jaxgpt
from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.training import preflight
from jaxgpt.training.loop import Trainer, train
from tests.errors import one_line
from tests.small_runs import assert_same_run, metrics, small_config

DOCUMENTS = {"data__documents": "line", "data__windows": "documents", "model__document_mask": True}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    path.write_text("".join("so " * int(n) + "it goes.\n" for n in rng.integers(0, 7, 400)))
    return path


@pytest.fixture(scope="module")
def finished(lines, tmp_path_factory):
    cfg, folder = small_config(lines, **DOCUMENTS), tmp_path_factory.mktemp("run") / "run"
    train(cfg, folder)
    return cfg, folder


def test_a_run_records_its_windows_and_learns(finished, capsys):
    _, folder = finished
    facts = json.loads((folder / "run.json").read_text())
    assert facts["windows"] > 100 and 0 < facts["padding"] < 0.5
    assert facts["train_documents"] > 300 and facts["train_documents_cut"] > 0
    stored = jaxgpt.load(folder).config
    assert stored.model.document_end == jaxgpt.load(folder).tokenizer.eos_id
    losses = [line["loss"] for line in metrics(folder) if line["split"] == "train"]
    assert losses[-1] < losses[0]


def test_a_run_that_was_stopped_and_resumed_is_the_same(finished, tmp_path):
    cfg, folder = finished
    train(cfg, tmp_path / "run", stop_at=7)
    train(cfg, tmp_path / "run")
    assert_same_run(folder, tmp_path / "run")


@pytest.mark.slow
def test_windows_on_the_device_and_lanes_are_the_same_run(finished, tmp_path):
    cfg, folder = finished
    train(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, on_device=True)), tmp_path / "device")
    other = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, seed=5))
    Trainer([(cfg, tmp_path / "lane0"), (other, tmp_path / "lane1")], width=2).run()
    expected = [line["loss"] for line in metrics(folder)]
    for name in ("device", "lane0"):
        found = [line["loss"] for line in metrics(tmp_path / name)]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert [line["loss"] for line in metrics(tmp_path / "lane1")] != expected


def test_the_first_lines_and_a_dry_run_say_how_much_is_padding(lines, tmp_path, capsys):
    cfg = small_config(lines, **DOCUMENTS, train__num_steps=1, train__eval_every=0, train__sample_tokens=0)
    train(cfg, tmp_path / "run")
    pattern = r"[\d,]+ documents, [\d,]+ of them longer than a window and cut, in [\d,]+ windows with \d+\.\d\d% padding"
    (said,) = re.findall(pattern, capsys.readouterr().out)
    assert f"  windows              {said}" in preflight.dry_run(cfg)
    flat = preflight.dry_run(small_config(lines, data__documents="line"))
    assert "windows with" not in flat and "padding" not in flat


def test_both_kinds_of_windows_share_one_cache(lines):
    flat, packed = (
        small_config(lines, data__documents="line", data__windows=w) for w in ("flat", "documents")
    )
    one, other = prepare_dataset(flat.data), prepare_dataset(packed.data)
    assert one.text_sha256 == other.text_sha256
    np.testing.assert_array_equal(one.train.ids, other.train.ids)
    assert one.train.ids.base.filename == other.train.ids.base.filename


def test_what_does_not_fit_together_is_refused(lines):
    with pytest.raises(UserError, match=r"data\.windows='documents' has padding.*model\.document_mask=true"):
        small_config(lines, data__windows="documents", model__causal=False, train__sample_tokens=0)
    with pytest.raises(
        UserError, match=r"data\.windows='documents' finds documents by the one token"
    ) as error:
        preflight.dry_run(small_config(lines, data__windows="documents"))
    one_line(error)
    with pytest.raises(UserError, match="flat") as error:
        small_config(lines, data__windows="bins")
    one_line(error)


def test_configs_of_earlier_runs_have_flat_windows():
    values = config.to_json(config.Config())
    del values["data"]["windows"]
    assert config.from_json(values) == config.Config()
