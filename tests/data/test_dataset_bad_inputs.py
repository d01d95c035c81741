"""Inputs that are no text, no documents, no ids or no tokenizer: one line, exit code 2, and nothing left behind."""

import gzip
import lzma
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jaxgpt import tokenize
from jaxgpt.common import cli
from jaxgpt.data import tokenizers

LINES = b'{"text": "a b"}\n{"text": "c"}\n{"text": "d"}\n' * 50
TABLE = pa.table({"content": ["a", "b"] * 900, "n": list(range(1800)), "meta": [{"text": "b"}] * 1800})
SHARD = struct.pack("<256i", 20240520, 1, 100, *[0] * 253)


def parquet(place: Path) -> bytes:
    pq.write_table(TABLE, place, row_group_size=100)
    return place.read_bytes()


def arrow(place: Path) -> bytes:
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_stream(file, TABLE.schema) as stream:
        stream.write_table(TABLE, max_chunksize=100)
    return place.read_bytes()


def npy(array: np.ndarray):
    return lambda place: np.save(place, array)


def saved_dataset(state: str):
    """A folder as datasets.save_to_disk writes it."""

    def write(place: Path) -> None:
        folder(**{"state_json": state.encode(), "data-0_arrow": b""})(place)

    return write


def folder(**files: bytes):
    def write(place: Path) -> None:
        place.mkdir()
        for name, content in files.items():
            (place / name.replace("_", ".")).write_bytes(content)

    return write


def splits(place: Path) -> None:
    place.mkdir()
    (place / "train").mkdir()
    (place / "dataset_dict.json").write_text("{}")


def circle(place: Path) -> None:
    place.mkdir()
    (place / "again").symlink_to(place)


def pipe(place: Path) -> None:
    place.mkdir()
    os.mkfifo(place / "a.txt")


def tokenizer(kind: str):
    """Write a tokenizer.json of ours with few tokens."""

    def write(folder: Path) -> None:
        if kind == "ids":
            made = tokenizers.IdsTokenizer(100)
        else:
            made = tokenizers.train(kind, lambda: iter(["abc\n"]), None)
        tokenizers.save(made, folder / "tokenizer.json")

    return write


IDS = "--config.data.tokenizer=ids --config.data.tokenizer_path={folder}/tokenizer.json"
CHAR = "--config.data.tokenizer_path={folder}/tokenizer.json"
PUBLISHED = "--config.data.tokenizer=huggingface --config.data.tokenizer_path={folder}"
TEXT = b"abc\n" * 50
# name: (what is written, words of the message, flags, what else is written)
BAD = {
    # files and folders
    "absent": (None, "does not exist"),
    "none*.txt": (None, "no file has such a name"),
    "empty": (folder(), "is a folder without files"),
    "mixed": (folder(a_jsonl=LINES, b_txt=b"text"), "has files of two kinds"),
    "circle": (circle, "link"),
    "pipe": (pipe, "pipe"),
    "empty.txt": (b"", "has no text"),
    "blank.txt": (b" \n" * 50, "has only white space"),
    # encodings
    "latin.txt": (b"caf\xe9 " * 50, "is not UTF-8 at byte 3"),
    "latin.md.gz": (gzip.compress(b"a" * 9 + b"\xe9 "), "is not UTF-8 at byte 9"),
    "wide.txt": ("some text".encode("utf-16"), "UTF-16"),
    "binary.txt": (bytes(range(32)) * 500, "control characters"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
    # compressed
    "cut.jsonl.gz": (gzip.compress(LINES)[:-12], "ends too early"),
    "no.jsonl.gz": (LINES, "is not a .gz file"),
    "cut.jsonl.xz": (lzma.compress(LINES)[:-8], "ends too early"),
    "no.jsonl.xz": (LINES, "is not a .xz file"),
    "cut.jsonl.zst": (zstandard.compress(LINES)[:-5], "ends too early"),
    "no.jsonl.zst": (LINES, "is not a .zst file"),
    # JSON lines
    "json.jsonl": (LINES + b"{'text'}\n", "line 151 is not JSON"),
    "deep.ndjson": (LINES + b"[" * 100_000, "line 151 is not JSON"),
    "array.jsonl": (LINES + b"[1, 2]\n", "it is no object"),
    "other.jsonl": (LINES + b'{"content": "x", "id": 3}\n', "it has content, id"),
    "number.jsonl": (LINES + b'{"text": 3}\n', "is of type int"),
    "latin.jsonl": (LINES + b'{"text": "\xe9"}\n', "is not UTF-8"),
    "half.jsonl": (LINES + b'{"text": "\\ud83d"}\n', "half.jsonl, line 151: U+D83D at position 0 is a lone surrogate"),
    "one.jsonl": (b'{"text": "all"}\n', "is a single document"),
    # columns
    "no.parquet": (LINES, "is not a Parquet file"),
    "cut.parquet": (lambda place: place.write_bytes(parquet(place)[:-100]), "is not a Parquet file"),
    "column.parquet": (parquet, "has no column 'text' (it has content, n, meta)"),
    "numbers.parquet": (parquet, "is of type int", "--config.data.text_field=n"),
    "nested.parquet": (parquet, "has no field 'no' in meta", "--config.data.text_field=meta.no"),
    "no.arrow": (LINES, "is not an Arrow stream"),
    "cut.arrow": (lambda place: place.write_bytes(arrow(place)[:-2000]), "is not an Arrow stream", "--config.data.text_field=content"),
    "splits": (splits, "holds several data sets: give one of 'train'"),
    "missing part": (saved_dataset('{"_data_files": [{"filename": "data-1.arrow"}]}'), "is missing"),
    "state": (saved_dataset("[]"), "is not that of a saved data set"),
    # ids
    "long.bin": (SHARD + bytes(202), "its header says 100 ids", IDS, tokenizer("ids")),
    "version.bin": (struct.pack("<256i", 20240520, 9, 100, *[0] * 253) + bytes(200), "is version 9", IDS, tokenizer("ids")),
    "odd.bin": (b"abc", "no whole number of uint16 ids", IDS, tokenizer("ids")),
    "empty.bin": (b"", "has no ids", IDS, tokenizer("ids")),
    "empty.npy": (b"", "is not a NumPy array of ids", IDS, tokenizer("ids")),
    "cut.npy": (b"\x93NUMPY\x01", "is not a NumPy array of ids", IDS, tokenizer("ids")),
    "float.npy": (npy(np.ones(50)), "float64", IDS, tokenizer("ids")),
    "square.npy": (npy(np.ones((5, 5), int)), "2 dimensions", IDS, tokenizer("ids")),
    "pickle.npy": (npy(np.array([{}], object)), "is not a NumPy array of ids", IDS, tokenizer("ids")),
    "minus.npy": (npy(np.array([3, -1] * 50)), "token id -1", IDS, tokenizer("ids")),
    "large.bin": (SHARD + b"\x64\x00" * 100, "token id 100, but the ids tokenizer has 0 to 99", IDS, tokenizer("ids")),
    "kinds": (folder(a_bin=SHARD + bytes(200), b_npy=b""), "has .bin and .npy files", IDS, tokenizer("ids")),
    "ids.bin": (SHARD + bytes(200), "can't be trained on"),
    # tokenizers
    "a.txt": (TEXT, "is a SentencePiece model", PUBLISHED, lambda at: (at / "spiece.model").write_bytes(b"x")),
    "b.txt": (TEXT, "is not a tokenizer.json", PUBLISHED, lambda at: (at / "tokenizer.json").write_text("{")),
    "c.txt": (TEXT, "is a 'char' tokenizer", CHAR + " --config.data.tokenizer=word", tokenizer("char")),
    "d.txt": (TEXT + b"d", "character 'd'", CHAR, tokenizer("char")),
    "e.txt": (TEXT, "has no special tokens", CHAR + " --config.data.special_tokens_in_text=true", tokenizer("char")),
    "f.txt": (TEXT, "more than data.vocab_size=2", "--config.data.vocab_size=2"),
    "g.txt": (TEXT, "too short for more than", "--config.data.tokenizer=bpe --config.data.vocab_size=5000"),
    "h.jsonl": (LINES, "character '|'", "--config.data.separator=|"),
    "i.txt": (b"ab", "leaves the training or the validation split", "--config.data.valid_fraction=0.9"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_line_and_leaves_nothing(name, tmp_path, monkeypatch, capsys):
    write, words, flags, also = (*BAD[name], *("", None)[len(BAD[name]) - 2 :])
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    place = tmp_path / name
    if callable(write):
        write(place)
    elif write is not None:
        place.write_bytes(write)
    if also is not None:
        also(tmp_path)
    (tmp_path / "config.py").write_text("from jaxgpt.config import default_config as get_config\n")
    command = f"tokenize --config {{folder}}/config.py {flags} --out {{folder}}/out"
    flags = [flag.format(folder=tmp_path) for flag in command.split()]
    monkeypatch.setattr("sys.argv", [*flags, f"--config.data.path={place}"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(tokenize.main)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.endswith("\n") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").glob("data/*"))
