"""The id that ends a document comes from the tokenizer; a run that needs it and has none is refused in one line."""

import dataclasses

import pytest

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data.dataset import check_documents, prepare_dataset
from jaxgpt.training import preflight, starting
from tests.errors import one_line
from tests.small_runs import small_config


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"the {'very ' * (n % 7)}old king of number {n}.\n" for n in range(200)))
    return path


def resolved(cfg):
    return starting.resolve(cfg, prepare_dataset(cfg.data).tokenizer)


def test_the_id_is_that_of_the_separator(lines):
    cfg = small_config(lines, data__documents="line", model__document_mask=True)
    tokenizer = prepare_dataset(cfg.data).tokenizer
    assert resolved(cfg).model.document_end == tokenizer.eos_id == tokenizer.vocab_size - 1
    assert resolved(resolved(cfg)) == resolved(cfg)
    dot = small_config(lines, data__documents="line", data__separator=".", model__document_mask=True)
    assert resolved(dot).model.document_end == tokenizer.encode(".")[0]
    given = small_config(lines, model__document_mask=True, model__document_end=3)
    assert resolved(given).model.document_end == 3
    assert resolved(small_config(lines, data__documents="line")).model.document_end is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data__documents": "line", "data__separator": "none"},
            "data.separator='none' leaves nothing between",
        ),
        ({"data__documents": "line", "data__separator": "old"}, "data.separator='old' is 3 tokens"),
        ({}, "data.separator='auto' leaves nothing between documents"),
        ({"model__document_end": 999}, "model.document_end=999, but the char tokenizer has the ids 0 to"),
    ],
)
def test_a_run_without_such_an_id_is_refused(lines, changes, words):
    with pytest.raises(UserError) as error:
        resolved(small_config(lines, model__document_mask=True, **changes))
    assert words in one_line(error)


def test_a_text_without_documents_is_refused(lines):
    cfg = small_config(lines, data__documents="line", model__document_mask=True)
    dataset = prepare_dataset(cfg.data)
    check_documents(dataset, resolved(cfg).model.document_end)
    ids = dataset.train.ids[: dataset.train.ids.tolist().index(dataset.tokenizer.eos_id)]
    cut = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, ids=ids))
    with pytest.raises(UserError, match=r"has no token \d+, which ends a document.*data\.documents") as error:
        check_documents(cut, dataset.tokenizer.eos_id)
    one_line(error)


def test_configs_of_earlier_runs_have_no_mask():
    values = config.to_json(config.Config())
    del values["model"]["document_mask"], values["model"]["document_end"]
    assert config.from_json(values) == config.Config()


def test_a_dry_run_counts_a_model_with_the_mask(lines):
    cfg = small_config(lines, data__documents="line", model__document_mask=True)
    assert "memory of a step" in preflight.dry_run(cfg)
