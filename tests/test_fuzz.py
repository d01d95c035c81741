"""A slice of experiments/fuzz.py, and that it notices what it looks for."""

import json
import random

import pytest

from experiments import fuzz


def test_random_configs_and_damaged_folders_end_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 600)  # a machine with other work is slow
    assert fuzz.fuzz(tmp_path, configs=2, folders=6, seed=3) == []


def crash(_argv):
    raise KeyError("a bug")


def two_lines(_argv):
    fuzz.sys.stderr.write("error: one\nerror: two\n")
    raise SystemExit(2)


def hang(_argv):
    while True:
        pass


@pytest.mark.parametrize(
    ("main", "found"), [(crash, "KeyError"), (two_lines, "2 lines of error"), (hang, "longer than 1 s")]
)
def test_it_notices_a_traceback_more_lines_and_a_hang(main, found, monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    monkeypatch.setitem(fuzz.COMMANDS, "train", (main, ()))
    assert found in fuzz.run("train", [])


def test_a_value_anywhere_in_a_json_file_is_swapped(tmp_path):
    file, original = tmp_path / "a.json", {"a": [1, {"b": "x"}], "c": None}
    changed = set()
    for seed in range(60):
        file.write_text(json.dumps(original))
        changed.add(fuzz._swap(file, random.Random(seed)).split(" = ")[0])
        assert file.read_text() != json.dumps(original)
    assert changed == {"", "a", "a.0", "a.1", "a.1.b", "c"}
