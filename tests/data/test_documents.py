"""Documents: one stream of ids from every format, whatever holds them; mistakes are one line."""

import gzip
import json
import lzma
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jaxgpt import config
from jaxgpt.config import DataConfig, UserError
from jaxgpt.data import documents, encoding, tokenizers
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import prepare_dataset
from tests.data import test_huggingface
from tests.errors import one_line

WORDS = (
    "the king \u00e9t\u00e9 \u05e9\u05dc\u05d5\u05dd \U0001f642 don't 1415 ,\r\n \n\n <|endoftext|>".split(
        " "
    )
)


def some_documents(count: int, longest: int) -> list[str]:
    """Of many lengths: a few are empty, one has `longest` characters."""
    draw = random.Random(0)
    lengths = [0 if i % 50 == 7 else draw.randint(1, 40) for i in range(count)]
    found = [" ".join(draw.choice(WORDS) for _ in range(n)) for n in lengths]
    found[11] = (" ".join(found) * (longest // 10_000))[:longest]
    return found


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"id": i, "text": d}) + "\n" for i, d in enumerate(documents)).encode()


def write_text(place: Path, documents: list[str]) -> None:
    for i, document in enumerate(documents):
        folder = place / f"{i // 100:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:05}.txt").write_bytes(document.encode())


def halves(documents: list[str]) -> list[list[str]]:
    return [documents[: len(documents) // 2], documents[len(documents) // 2 :]]


def write_parquet(place: Path, documents: list[str]) -> None:
    place.mkdir()
    for i, part in enumerate(halves(documents)):
        table = pa.table({"n": list(range(len(part))), "text": part})
        pq.write_table(table, place / f"part-{i}.parquet", row_group_size=len(part) // 4 + 3)


def write_arrow(place: Path, documents: list[str]) -> None:
    """As datasets.save_to_disk does."""
    place.mkdir()
    names = []
    for i, part in enumerate(halves(documents)):
        names.append(f"data-{i:05}-of-00002.arrow")
        table = pa.table({"text": part})
        with pa.OSFile(str(place / names[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=len(part) // 2 - 5)
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (place / "dataset_info.json").write_text("{}")


def writer(name: str, pack):
    def write(place: Path, documents: list[str]) -> None:
        place.mkdir()
        (place / name).write_bytes(pack(lines(documents)))

    return write


FORMATS = {
    "text": write_text,
    "jsonl": writer("a.jsonl", bytes),
    "gz": writer("a.jsonl.gz", gzip.compress),
    "xz": writer("a.ndjson.xz", lambda c: lzma.compress(c, preset=0)),
    "zst": writer("a.jsonl.zst", lambda c: b"".join(zstandard.compress(c[i : i + 1_000_000]) for i in range(0, len(c), 1_000_000))),
    "parquet": write_parquet,
    "arrow": write_arrow,
}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "count, longest", [(300, 1_200_000), pytest.param(2_000, 5_000_000, marks=pytest.mark.slow)]
)
def test_every_format_gives_the_same_ids(count, longest, tmp_path, monkeypatch):
    """And the same splits and batches. The oracle is the package tokenizers and a loop over the documents."""
    texts = some_documents(count, longest)
    theirs = test_huggingface.byte_level()
    theirs.save(str(tmp_path / "tokenizer.json"))
    theirs.no_truncation()
    theirs.encode_special_tokens = True
    kept = [d for d in texts if d]
    ends, target = np.cumsum([len(d) for d in kept]), int(sum(map(len, kept)) * 0.9)
    num_train = min(int(np.searchsorted(ends, target)) + 1, len(kept) - 1)
    end = theirs.token_to_id("<|endoftext|>")
    ids = [[*theirs.encode(d, add_special_tokens=False).ids, end] for d in kept]
    expected = []
    for start, stop in ((0, num_train), (num_train, len(kept))):
        own = "".join(kept[start:stop])
        expected.append((np.concatenate(ids[start:stop]), len(own), len(own.encode())))
    batches = Batches(expected[0][0], 0, 4, 32).stack(0, 100)
    hashes = set()
    for name, write in FORMATS.items():
        monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / f"cache of {name}"))
        write(tmp_path / name, texts)
        cfg = DataConfig(
            path=str(tmp_path / name),
            tokenizer="huggingface",
            tokenizer_path=str(tmp_path / "tokenizer.json"),
        )
        found = prepare_dataset(cfg)
        hashes.add(found.text_sha256)
        for split, (split_ids, num_chars, num_bytes) in zip(
            (found.train, found.valid), expected, strict=True
        ):
            assert np.array_equal(split.ids, split_ids), name
            assert (split.num_chars, split.num_bytes) == (num_chars, num_bytes), name
        assert np.array_equal(Batches(found.train.ids, 0, 4, 32).stack(0, 100), batches), name
    assert len(hashes) == 1


def test_how_far_the_files_are_read(tmp_path):
    """It grows from 0 to 1, for the time left."""
    texts = [random.Random(i).randbytes(50_000).hex() for i in range(40)]
    for name in ("text", "jsonl", "gz", "zst", "parquet", "arrow"):
        FORMATS[name](tmp_path / name, texts)
        corpus = documents.open_documents(str(tmp_path / name), DataConfig(), "data.path")
        assert corpus.part_read is not None
        first, second = ([corpus.part_read() for _ in corpus.read()] for _ in range(2))
        assert first == second == sorted(first), name
        assert first[0] < 0.7 and 0.7 < first[-1] <= 1, name


def test_several_processes_give_the_same_ids():
    """More groups than the processes hold at once, and a document that is encoded in parts."""
    short = [d[:5_000] for d in some_documents(300, 50_000)]
    tokenizer = tokenizers.train("bpe", lambda: iter(short), 300, end_of_text=True)
    pieces = [p for d in short * 2 for p in (d, None)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "GROUP", 1_000)
        patch.setattr(encoding, "LONGEST", 4_000)
        separator = encoding.separator_ids(tokenizer, "auto")
        one, two = (
            np.concatenate(list(encoding.encode_documents(tokenizer, iter(pieces), separator, n)))
            for n in (0, 2)
        )
    assert np.array_equal(one, two)
    expected = np.concatenate([[*tokenizer.encode(d), tokenizer.eos_id] for d in short if d])
    assert np.array_equal(one, np.tile(expected, 2))


def test_separators(tmp_path, cache):
    """Tokenizers that are trained on documents get an end of text; one that exists keeps its ids."""
    (tmp_path / "a.jsonl").write_text(
        '{"text": "ab<|endoftext|>"}\n{"text": "b"}\n\n{"text": ""}\n{"text": "a b"}'
    )

    def ids(**changes) -> list[int]:
        cfg = DataConfig(path=str(tmp_path / "a.jsonl"), valid_fraction=0.1, **changes)
        return prepare_dataset(cfg).train.ids.tolist()

    char = tokenizers.train("char", lambda: iter(["ab<|endoftext|>", None, "b", None, "a b"]), None, True)
    end = char.eos_id
    assert end == char.vocab_size - 1 and char.decode([end]) == "<|endoftext|>"
    assert ids() == [*char.encode("ab<|endoftext|>"), end, *char.encode("b"), end]
    assert ids(separator="none") == [*char.encode("ab<|endoftext|>"), *char.encode("b")]
    assert ids(separator=" ") == char.encode("ab<|endoftext|> b ").tolist()
    word = prepare_dataset(DataConfig(path=str(tmp_path / "a.jsonl"), valid_fraction=0.1, tokenizer="word"))
    assert word.train.ids[-1] == word.tokenizer.eos_id == word.tokenizer.vocab_size - 1
    assert (word.train.ids == word.tokenizer.eos_id).sum() == 2
    gpt2 = ids(tokenizer="gpt2")
    assert gpt2.count(50_256) == 2 and gpt2[-1] == 50_256
    old = tokenizers.train("char", lambda: iter(["ab<|endoftext|> "]), None)
    tokenizers.save(old, tmp_path / "tokenizer.json")
    assert ids(tokenizer_path=str(tmp_path / "tokenizer.json")) == old.encode("ab<|endoftext|>b").tolist()
    for tokenizer in (char, word.tokenizer):
        tokenizers.save(tokenizer, tmp_path / "tokenizer.json")
        again = tokenizers.load(tmp_path / "tokenizer.json")
        assert (again.eos_id, again.vocab_size) == (tokenizer.eos_id, tokenizer.vocab_size)
        with pytest.raises(UserError, match="end of text can't get more tokens"):
            again.extended(lambda: iter(["new"]))


def test_how_text_files_are_cut(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n \n\nthree\nfour\n")
    (tmp_path / "a.md").write_bytes(b"five")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"no")

    def read(path: Path, how: str) -> list[str]:
        pieces = documents.open_documents(str(path), DataConfig(documents=how), "data.path").read()
        return "|".join("/" if p is None else p for p in pieces).replace("|/", "/").split("/")

    assert (
        read(tmp_path, "auto") == read(tmp_path, "file") == ["five", "|one\r\ntwo\n\n \n\nthree\nfour\n", ""]
    )
    assert read(tmp_path / "b.txt", "auto") == ["one\r\ntwo\n\n \n\nthree\nfour\n"]
    assert read(tmp_path, "whole") == ["five|one\r\ntwo\n\n \n\nthree\nfour\n"]
    assert read(tmp_path / "b.txt", "line") == ["one", "|two", "| ", "|three", "|four", ""]
    assert read(tmp_path / "b.txt", "blank_line") == ["one\r\ntwo", "|three\nfour", ""]
    assert read(tmp_path / "*.txt", "file") == ["one\r\ntwo\n\n \n\nthree\nfour\n", ""]


def test_a_run_of_before_keeps_its_ids(tmp_path, cache):
    """Its config does not have the fields of documents: a folder was one text."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name * 30)
    (tmp_path / "cache").mkdir()
    stored = config.to_json(config.Config(data=DataConfig(path=str(tmp_path))))
    for name in ("documents", "text_field", "separator"):
        del stored["data"][name]
    (tmp_path / "cache").rmdir()
    old = config.from_json(json.loads(json.dumps(stored))).data
    assert old.documents == "whole"
    dataset = prepare_dataset(old)
    assert dataset.tokenizer.decode(dataset.train.ids) == "a" * 30 + "b" * 24
    assert prepare_dataset(DataConfig(path=str(tmp_path / "*.txt"))).tokenizer.eos_id == 2


def test_missing_packages_are_named(tmp_path, cache, monkeypatch):
    write_parquet(tmp_path / "parquet", ["a", "b"])
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines(["a", "b"])))
    for module, path in (("pyarrow", "parquet"), ("zstandard", "a.jsonl.zst")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(UserError, match=module) as error:
            prepare_dataset(DataConfig(path=str(tmp_path / path)))
        assert 'pip install "jaxgpt[data]"' in one_line(error)
