"""Tensor files: what is written is read back bit for bit, and each way of being damaged gets its own line."""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.runs.tensor_files import FILE, INDEX, MAX_INDEX_SIZE, open_tensors, write_tensors

A = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
B = np.array(-1.5, np.float32)


def raw(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file by hand, so that it can be wrong."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def entry(dtype: str, shape: list, start: int, stop: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": A, "transposed": A.T, "b": B}, {"note": "x"})
    files = open_tensors(path)
    assert files.names() == ["a", "b", "transposed"]
    assert files.shape("transposed") == (3, 2) and files.dtype("b") == "F32" and files.shape("b") == ()
    for name, array in {"a": A, "transposed": A.T, "b": B}.items():
        assert files.read(name).dtype == np.float32
        np.testing.assert_array_equal(files.read(name), array)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]  # no temporary file is left


def test_the_reference_implementation_reads_it_and_is_read(tmp_path):
    from safetensors.numpy import load_file, save_file

    write_tensors(tmp_path / "ours.safetensors", {"a": A, "b": B})
    theirs = load_file(tmp_path / "ours.safetensors")
    np.testing.assert_array_equal(theirs["a"], A)
    save_file({"a": A, "c": A.astype(np.float16), "d": A.astype(np.float64)}, tmp_path / "theirs.safetensors")
    files = open_tensors(tmp_path / "theirs.safetensors")
    np.testing.assert_array_equal(files.read("a"), A)
    np.testing.assert_array_equal(files.read("c"), A.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(files.read("d"), A)


def test_bfloat16_widens_exactly(tmp_path):
    values = np.array([1.0, -2.5, 3.0e38, 1e-40], np.float32)
    upper = values.view(np.uint32) >> 16
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw({"a": entry("BF16", [4], 0, 8)}, upper.astype("<u2").tobytes()))
    np.testing.assert_array_equal(open_tensors(path).read("a").view(np.uint32), upper << 16)


def test_an_unaligned_tensor_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    for spaces in range(4):
        content = json.dumps({"a": entry("F32", [2, 3], 0, 24)}).encode() + b" " * spaces
        path.write_bytes(raw(content, A.tobytes()))
        np.testing.assert_array_equal(open_tensors(path).read("a"), A)


def test_shards_are_one(tmp_path):
    shard(tmp_path)
    files = open_tensors(tmp_path)
    assert files.names() == ["a", "b"] and len(files.sha256()) == 2
    np.testing.assert_array_equal(files.read("a"), A)
    np.testing.assert_array_equal(files.read("b"), B)


def shard(folder: Path, weight_map: dict | None = None) -> None:
    write_tensors(folder / "m-1.safetensors", {"a": A})
    write_tensors(folder / "m-2.safetensors", {"b": B})
    places = {"a": "m-1.safetensors", "b": "m-2.safetensors"} if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02.")
    return buffer.getvalue()


GOOD = raw({"a": entry("F32", [2, 3], 0, 24)}, A.tobytes())
PLACE = entry("F32", [2, 3], 0, 24)

BAD_FILES = {
    "empty": (b"", "damaged or cut off", "0 bytes"),
    "cut off in the data": (GOOD[:-5], "damaged or cut off", "not fully covered"),
    "cut off in the header": (GOOD[:30], "damaged or cut off", "header length"),
    "header larger than the file": (raw(b"{}", length=5000), "damaged or cut off", "header length"),
    "header absurdly large": (raw(b"{}", length=2**62), "header too large"),
    "more than the header says": (GOOD + b"xy", "not fully covered"),
    "a pickle": (b"\x80\x02}q\x00." + b"\0" * 99, "run any code"),
    "a zip": (zipped(), "a zip file, as torch.save writes it: it is pickled, and reading a pickle can run"),
    "a pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "a web page": (b"<!doctype html><html></html>", "a web page"),
    "header is no JSON": (raw(b"{nope"), "invalid JSON in header"),
    "header too deep": (raw(b'{"a":' * 100_000), "recursion limit"),
    "header not text": (raw(b"{\xff\xfe}"), "invalid UTF-8"),
    "a name twice": (raw(b'{"a": %s, "a": %s}' % tuple(json.dumps(entry("F32", [1], at, at + 4)).encode() for at in (0, 4)), bytes(8)), "invalid offset for tensor `a`"),
    "no tensors": (raw({}), "has no tensors"),
    "entry is no object": (raw({"a": 3}), "invalid type: integer `3`"),
    "unknown dtype": (raw({"a": entry("Q4", [2], 0, 1)}, b"x"), "unknown variant `Q4`"),
    "negative shape": (raw({"a": entry("F32", [-2, -3], 0, 24)}, A.tobytes()), "integer `-2`"),
    "shape of no numbers": (raw({"a": entry("F32", [2, 3.0], 0, 24)}, A.tobytes()), "floating point `3.0`"),
    "shape too large": (raw({"a": entry("F32", [2**40, 2**40], 0, 24)}, A.tobytes()), "overflow computing buffer size"),
    "shape and bytes": (raw({"a": entry("F32", [2, 2], 0, 24)}, A.tobytes()), "invalid shape"),
    "overlap": (raw({"a": PLACE, "b": PLACE}, A.tobytes()), "invalid offset for tensor"),
    "hole": (raw({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12)), "invalid offset for tensor `b`"),
    "offsets backwards": (raw({"a": entry("F32", [1], 4, 0)}, bytes(4)), "invalid offset for tensor `a`"),
}  # fmt: skip


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_one_line(tmp_path, name):
    content, *words = BAD_FILES[name]
    (tmp_path / FILE).write_bytes(content)
    for path in (tmp_path, tmp_path / FILE):
        with pytest.raises(UserError) as error:
            open_tensors(path)
        assert all(word in one_line(error) for word in [FILE, *words]), error.value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (raw({"a": entry("I64", [3], 0, 24)}, bytes(24)), "a has dtype I64, floating-point numbers are needed"),
        (raw({"a": entry("F32", [0, 2**62], 0, 0)}), "a is empty"),
        (raw({"a": entry("F32", [2], 0, 8)}, np.array([1, np.nan], "<f4").tobytes()), "1 of the 2 numbers of a"),
        (raw({"a": entry("F64", [2], 0, 16)}, np.array([1e300, 0], "<f8").tobytes()), "NaN or infinite"),
        (raw({"a": entry("BF16", [1], 0, 2)}, b"\x80\x7f"), "NaN or infinite"),
        (raw({"a": entry("F8_E4M3", [1], 0, 1)}, b"\x38"), "a has dtype F8_E4M3"),
        (raw({"a": entry("F32", [1] * 100, 0, 4)}, bytes(4)), "a can't be read"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_weights_are_refused(tmp_path, content, words):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError) as error:
        open_tensors(tmp_path).read("a")
    assert words in one_line(error)


def test_missing_and_unexpected_names_are_reported_together(tmp_path):
    write_tensors(tmp_path / FILE, {"a": A, "b": B, "mask": B})
    files = open_tensors(tmp_path)
    files.check_names(["a", "b"], ignored=lambda name: name == "mask")
    with pytest.raises(UserError) as error:
        files.check_names(["a", "c"])
    assert "lacks 1 tensor (c) and has 2 unexpected tensors (b, mask)" in one_line(error)
    with pytest.raises(UserError) as error:
        files.read("maks")
    assert "no tensor maks: the nearest is mask" in one_line(error)


def test_a_name_with_control_characters_is_quoted(tmp_path):
    write_tensors(tmp_path / FILE, {"a": A, "b\n\x1b[2J": B})
    with pytest.raises(UserError) as error:
        open_tensors(tmp_path).check_names(["a"])
    assert r"('b\n\x1b[2J')" in one_line(error)


def index(text: str | dict):
    """Shards, with another index."""

    def write(folder: Path) -> None:
        shard(folder)
        (folder / INDEX).write_text(text if isinstance(text, str) else json.dumps({"weight_map": text}))

    return write


BAD_FOLDERS = {
    "nothing": (lambda folder: None, "neither model.safetensors nor model.safetensors.index.json"),
    "pickled": (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin is not read", "any code", "save_pretrained"),
    "shard absent": (lambda f: (shard(f), (f / "m-2.safetensors").unlink()), "m-2.safetensors, which does not exist"),
    "shard above": (index({"a": "../m-1.safetensors"}), "'../m-1.safetensors': only .safetensors files in its folder"),
    "shard anywhere": (index({"a": "/m-1.safetensors"}), "'/m-1.safetensors'"),
    "shard pickled": (index({"a": "m-1.bin"}), "'m-1.bin'"),
    "index in another order": (index({"a": "m-2.safetensors", "b": "m-1.safetensors"}), "do not belong together"),
    "index of more": (index({"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-2.safetensors"}), "lacks 1 of the tensors"),
    "index is no JSON": (index("{"), "is not valid JSON"),
    "index is a list": (index("[]"), "weight_map"),
    "index is empty": (index({}), "weight_map"),
    "index of numbers": (index({"a": 1}), "weight_map"),
    "index too large": (index(" " * (MAX_INDEX_SIZE + 1)), "larger than 16 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_gets_one_line(tmp_path, name):
    prepare, *words = BAD_FOLDERS[name]
    prepare(tmp_path)
    with pytest.raises(UserError) as error:
        open_tensors(tmp_path)
    assert all(word in one_line(error) for word in words), error.value


def test_pickles_are_refused_by_name_and_absent_files_told(tmp_path):
    for name in ("pytorch_model.bin", "model.pt"):
        with pytest.raises(UserError, match="can run any code"):
            open_tensors(tmp_path / name)
    with pytest.raises(UserError, match="no file"):
        open_tensors(tmp_path / "nope.safetensors")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / FILE
    write_tensors(path, {"a": A})
    before = path.read_bytes()
    with pytest.raises(Exception, match="dtype"):
        write_tensors(path, {"a": np.array(["text"])})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [FILE]
