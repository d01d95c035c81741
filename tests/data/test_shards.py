"""Token shards: read as other tools wrote them, as one sequence; mistakes are one line."""

import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import dataset, shards, tokenizers
from jaxgpt.data.batches import Batches, eval_batches
from tests.errors import one_line

IDS = np.random.default_rng(0).integers(0, 50_257, 5_000).astype("<u2")


def llm_c(
    path: Path, ids: np.ndarray, magic: int = 20240520, version: int = 1, count: int | None = None
) -> None:
    """The published layout, written by hand."""
    with path.open("wb") as file:
        file.write(struct.pack("<256i", magic, version, len(ids) if count is None else count, *[0] * 253))
        file.write(ids.tobytes())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "ids").mkdir()
    return tmp_path / "ids"


def test_the_published_layouts(folder):
    llm_c(folder / "a.bin", IDS)
    llm_c(folder / "b.bin", (IDS.astype("<u4") * 2), magic=20240801, version=7)
    IDS.tofile(folder / "c.bin")
    np.save(folder / "d.npy", IDS.astype(np.int64))
    for name, factor in (("a.bin", 1), ("b.bin", 2), ("c.bin", 1), ("d.npy", 1)):
        found = shards.open_ids([folder / name])
        assert np.array_equal(np.asarray(found, np.int64), IDS.astype(np.int64) * factor), name
        assert isinstance(found.base, np.memmap) or isinstance(found.base.base, np.memmap), name  # no copy


def test_what_is_written_is_the_published_layout(folder):
    """Read back by hand, with 16 and with 32 bits an id."""
    for vocab_size, dtype, magic, version in ((50_257, "<u2", 20240520, 1), (128_256, "<u4", 20240801, 7)):
        path = folder / f"{vocab_size}.bin"
        assert shards.write(path, [IDS[:10], IDS[10:]], vocab_size) == len(IDS)
        header = np.fromfile(path, "<i4", 256)
        assert header[:3].tolist() == [magic, version, len(IDS)] and not header[3:].any()
        assert np.array_equal(np.fromfile(path, dtype, offset=1024), IDS)
        assert np.array_equal(shards.open_ids([path]), IDS)


def test_several_shards_are_one_sequence(folder):
    cuts = [0, 1, 1_700, 1_701, 4_999, 5_000]
    for i, (start, stop) in enumerate(itertools.pairwise(cuts)):
        llm_c(folder / f"x_{i:06}.bin", IDS[start:stop])
    found = shards.find(str(folder))
    joined = shards.open_ids(found.train)
    assert len(joined) == 5_000 and np.array_equal(np.asarray(joined), IDS)
    for key in (slice(0, 0), slice(1_690, 1_710), slice(None, None, 7), slice(-5, None), np.array([[0, 4_999], [1_700, -1]]), 1_700):  # fmt: skip
        assert np.array_equal(joined[key], IDS[key]), key
    part = shards.part(joined, 1_000, 4_000)
    assert np.array_equal(np.asarray(part), IDS[1_000:4_000])
    with pytest.raises(IndexError):
        joined[np.array([5_000])]
    with pytest.raises(IndexError):
        joined[np.array([-5_001])]
    whole, pieces = (Batches(ids, seed=3, batch_size=7, context_length=16) for ids in (IDS, joined))
    for step in (0, 1, 60, 10**6):
        assert np.array_equal(whole.at(step), pieces.at(step))
    for one, two in zip(*(eval_batches(ids, context_length=16, batch_size=4) for ids in (IDS, joined)), strict=True):  # fmt: skip
        assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


def test_splits_by_name_and_by_fraction(folder):
    for name, ids in (("fine_train_000001", IDS[:3_000]), ("fine_train_000002", IDS[3_000:4_000]), ("fine_val_000000", IDS[4_000:])):  # fmt: skip
        llm_c(folder / f"{name}.bin", ids)
    (folder / "meta.pkl").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")  # never opened
    (folder / "readme.md").write_text("text")
    found = dataset.prepare_dataset(DataConfig(path=str(folder), tokenizer="gpt2"))
    assert np.array_equal(np.asarray(found.train.ids), IDS[:4_000])
    assert np.array_equal(found.valid.ids, IDS[4_000:])
    again = dataset.prepare_dataset(DataConfig(path=str(folder), tokenizer="gpt2"))
    assert again.text_sha256 == found.text_sha256 and again.tokenizer.kind == "gpt2"
    only = dataset.prepare_dataset(
        DataConfig(path=str(folder / "*_train_*.bin"), tokenizer="gpt2", valid_fraction=0.25)
    )
    assert np.array_equal(np.asarray(only.train.ids), IDS[:3_000])
    assert np.array_equal(np.asarray(only.valid.ids), IDS[3_000:4_000])
    llm_c(folder / "fine_val_000000.bin", IDS[:1_000])
    assert (
        dataset.prepare_dataset(DataConfig(path=str(folder), tokenizer="gpt2")).text_sha256
        != found.text_sha256
    )


def test_what_is_not_a_shard_is_one_line(folder):
    ours = folder.parent / "tokenizer.json"
    tokenizers.save(tokenizers.IdsTokenizer(50_257), ours)  # quicker to load than GPT-2's

    def fails(name: str, match: str, kind: str = "ids") -> None:
        own = str(ours) if kind == "ids" else ""
        with pytest.raises(UserError, match=match) as error:
            dataset.prepare_dataset(DataConfig(path=str(folder / name), tokenizer=kind, tokenizer_path=own))
        assert str(folder) in one_line(error)

    llm_c(folder / "cut.bin", IDS, count=len(IDS) + 1)
    fails("cut.bin", "its header says 5,001 ids")
    llm_c(folder / "minus.bin", IDS, count=-5)
    fails("minus.bin", "its header says -5 ids")
    llm_c(folder / "newer.bin", IDS, version=2)
    fails("newer.bin", "is version 2 of its format")
    (folder / "short.bin").write_bytes(struct.pack("<ii", 20240520, 1))
    fails("short.bin", "its header says|is version")
    (folder / "odd.bin").write_bytes(b"abc")
    fails("odd.bin", "no whole number of uint16 ids")
    (folder / "empty.bin").write_bytes(b"")
    fails("empty.bin", "has no ids")
    np.save(folder / "float.npy", np.ones(5))
    fails("float.npy", "1 dimensions of float64")
    np.save(folder / "object.npy", np.array([{}], object))
    fails("object.npy", "is not a NumPy array of ids")
    (folder / "junk.npy").write_bytes(b"\x93NUMPY\x01")
    fails("junk.npy", "is not a NumPy array of ids")
    np.save(folder / "signed.npy", np.array([5, -1] * 50))
    fails("signed.npy", "token id -1")
    np.full(100, 50_257, "<u2").tofile(folder / "large.bin")
    fails("large.bin", "token id 50257, but the ids tokenizer has 0 to 50256")
    llm_c(folder / "good.bin", IDS)
    fails("good.bin", "name the tokenizer that made them", kind="char")
    fails("", r"has \.bin and \.npy files")


def test_a_file_that_is_cut_while_its_ids_are_in_use(folder):
    """Reading what is gone would end the process with SIGBUS: the next batch says it in one line, for files of any kind."""
    half = len(IDS) // 2
    llm_c(folder / "a_0.bin", IDS[:half])
    llm_c(folder / "a_1.bin", IDS[half:])
    np.save(folder / "b.npy", IDS)
    for files in ([folder / "a_0.bin", folder / "a_1.bin"], [folder / "b.npy"]):
        ids = shards.part(shards.open_ids(files), 10, len(IDS) - 10)
        assert [name for name, _ in shards.mapped_files(ids)] == [str(file) for file in files]
        batches = Batches(ids, 0, 2, 8)
        batches.stack(0, 1)
        size = files[-1].stat().st_size
        os.truncate(files[-1], 64)
        for read in (
            lambda b=batches: b.stack(1, 1),
            lambda i=ids: next(eval_batches(i, context_length=8, batch_size=2)),
        ):
            with pytest.raises(UserError, match=f"was cut from {size:,} to 64 bytes") as error:
                read()
            one_line(error)
