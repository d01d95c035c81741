"""Several texts of one run: each is encoded as alone, with one tokenizer, and keeps its own cache."""

import dataclasses

import numpy as np
import pytest

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import dataset as datasets
from jaxgpt.data.dataset import check_windows, prepare_dataset
from tests.errors import one_line

ONE, TWO, THREE = "the fox jumps. " * 300, "a dog sleeps; " * 200, "foxes and dogs " * 100


@pytest.fixture
def texts(tmp_path):
    for name, text in (("one", ONE), ("two", TWO), ("three", THREE)):
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def test_the_validation_text_is_complete_and_so_is_the_training_text(texts):
    found = prepare_dataset(DataConfig(path=str(texts / "one.txt"), valid_path=str(texts / "two.txt")))
    assert found.tokenizer.decode(found.train.ids) == ONE
    assert found.tokenizer.decode(found.valid.ids) == TWO
    assert found.valid_sha256 and found.valid_sha256 != found.text_sha256
    word = DataConfig(path=str(texts / "one.txt"), valid_path=str(texts / "two.txt"), tokenizer="word")
    assert b"dog" not in prepare_dataset(word).tokenizer._token_bytes  # learned from the training text alone


def test_named_texts_change_nothing_of_the_run_itself(texts):
    plain = DataConfig(path=str(texts / "one.txt"))
    named = dataclasses.replace(plain, valid_paths=f'two = "{texts / "one.txt"}", b={texts / "one.txt"}')
    one, other = prepare_dataset(plain), prepare_dataset(named)
    assert one.facts().items() <= other.facts().items()
    assert np.array_equal(one.train.ids, other.train.ids) and np.array_equal(one.valid.ids, other.valid.ids)
    assert [text.name for text in other.named] == ["two", "b"]
    assert other.tokenizer.decode(other.named[0].split.ids) == ONE


def test_a_second_start_reads_no_text(texts, monkeypatch):
    cfg = DataConfig(
        path=str(texts / "one.txt"), valid_path=str(texts / "two.txt"), valid_paths=f"x={texts / 'three.txt'}",
        tokenizer="bpe", vocab_size=260,
    )  # fmt: skip
    one = prepare_dataset(cfg)
    monkeypatch.setattr(datasets, "_write_files", None)
    monkeypatch.setattr(datasets, "train_tokenizer", None)
    other = prepare_dataset(cfg)
    assert np.array_equal(one.train.ids, other.train.ids) and one.facts() == other.facts()


def test_shards_for_validation_are_not_trained_on(tmp_path):
    for name, first in (("web_train_0.npy", 0), ("web_train_1.npy", 100), ("web_val_0.npy", 200)):
        np.save(tmp_path / name, np.arange(first, first + 100, dtype=np.uint16))
    cfg = DataConfig(
        path=str(tmp_path), valid_path=str(tmp_path / "web_train_1.npy"), valid_paths=f"v={tmp_path}", tokenizer="gpt2"
    )  # fmt: skip
    found = prepare_dataset(cfg)
    assert np.asarray(found.train.ids).tolist() == list(range(200))
    assert np.asarray(found.valid.ids).tolist() == list(range(100, 200))
    assert found.named[0].split.ids.tolist() == list(range(200, 300))
    assert datasets.text_hashes(cfg) == {
        "text_sha256": found.text_sha256,
        "valid_text_sha256": found.valid_sha256,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"valid_path": "none.txt"}, r"data\.valid_path='none\.txt' does not exist"),
        ({"valid_paths": "v=none.txt"}, r"data\.valid_paths: v='none\.txt' does not exist"),
        ({"valid_paths": "v=corpus:none"}, r"corpus:none.*choose one of"),
        ({"valid_paths": "v=two.txt"}, r"data\.valid_paths: v='two\.txt': character 'a' .* not one of"),
        ({"valid_path": "one.txt", "tokenizer": "char", "valid_paths": "v=short.txt"}, r"'v' has 1 token and needs 2"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_text_is_one_line(texts, monkeypatch, fields, message):
    monkeypatch.chdir(texts)
    (texts / "short.txt").write_text("f")
    with pytest.raises(UserError, match=message) as error:
        check_windows(prepare_dataset(DataConfig(**{"path": "one.txt", **fields})), 8)
    one_line(error)
