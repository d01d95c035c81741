"""The questions of `python -m jaxgpt.embeddings`, asked of a small run and of files."""

import json
import math
import xml.etree.ElementTree

import numpy as np
import pytest

from jaxgpt import embeddings
from jaxgpt.common import cli
from jaxgpt.vectors import tables
from tests.vectors.small_vectors import naive_scores


def asked(capsys, *argv: str) -> dict:
    embeddings.main([*argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_neighbours_of_a_run_at_its_steps(word_run, capsys):
    start = asked(
        capsys, "neighbours", "king", "queen", "--workdir", str(word_run), "--step", "0", "--count", "3"
    )
    end = asked(capsys, "neighbours", "king", "queen", "--workdir", str(word_run), "--count", "3")
    assert (start["step"], end["step"]) == (0, 24)
    assert [r["word"] for r in end["results"]] == ["king", "queen"]
    assert start["results"] != end["results"]
    table = tables.open_run(word_run)
    others = [w for w, _ in end["results"][0]["neighbours"]]
    row = table.words.index("king")
    cosines = naive_scores(table.values, table.values[[row]], "cosine")[0]
    cosines[row] = -np.inf
    assert others == [table.words[i] for i in np.argsort(-cosines)[:3]]


@pytest.mark.parametrize(
    "argv",
    [
        ("similarity", "king", "queen", "duke", "fool"),
        ("analogy", "king", "duke", "queen", "--answer", "fool"),
        ("related", "--pairs", "PAIRS"),
        ("drift", "--count", "4"),
        ("lookup", "--count", "5"),
        ("neighbours", "5", "--table", "position", "--metric", "euclidean", "--centre"),
        ("benchmark", "--questions", "QUESTIONS", "--similarities", "SCORES"),
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_answers_in_lines_and_in_json(word_run, tmp_path, capsys, argv):
    files = {"PAIRS": "king queen\nduke fool\nloves sees\n", "QUESTIONS": ": x\nking queen duke fool\na b c d\n",
             "SCORES": "king queen 9\nduke fool 5\nking fool 1\nking duke 3\nghost sees 2\nno one 1\n"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    argv = [str(tmp_path / a) if a in files else a for a in argv] + ["--workdir", str(word_run)]
    result = asked(capsys, *argv)
    assert str(word_run) in result["source"]
    embeddings.main(argv)
    lines = capsys.readouterr().out
    assert lines.strip() and "nan" not in lines
    if argv[0] == "benchmark":
        assert result["all_analogies"]["count"] == 1 and result["all_analogies"]["questions"] == 2
        assert result["similarity"]["SCORES"]["count"] == 5 and result["similarity"]["SCORES"]["pairs"] == 6
    if argv[0] == "drift":
        assert [s["step"] for s in result["steps"]] == tables.saved_steps(word_run)
        assert result["steps"][0]["cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_drawn_of_the_first_two_axes(word_run, tmp_path, capsys, suffix):
    out = tmp_path / f"map{suffix}"
    result = asked(
        capsys, "plot", "king", "queen", "fool", "duke", "--workdir", str(word_run), "--out", str(out)
    )
    assert [word for word, _, _ in result["points"]] == ["king", "queen", "fool", "duke"]
    first, second = result["explained_variance"]
    assert 1.0 >= first >= second >= 0.0 and first + second <= 1.0 + 1e-6
    if suffix == ".png":
        assert out.read_bytes().startswith(b"\x89PNG")
    else:
        assert xml.etree.ElementTree.parse(out).getroot().tag.endswith("svg")


def test_vectors_from_elsewhere(tmp_path, capsys):
    path = tmp_path / "v.txt"
    path.write_text("king 1 0\nqueen 1 0.1\nsun 0 1\n")
    result = asked(capsys, "neighbours", "KING", "--vectors", str(path), "--count", "1")
    assert result["results"] == [
        {"word": "king", "neighbours": [["queen", pytest.approx(1 / math.sqrt(1.01))]]}
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("neighbours king", ("either", "--workdir", "--vectors")),
        ("neighbours king --workdir RUN --vectors glove", ("either",)),
        ("neighbours king --workdir none", ("there is no folder none",)),
        ("neighbours kimg --workdir RUN", ("no word 'kimg'", "did you mean 'king'?")),
        ("neighbours 99 --workdir RUN --table position", ("give a position, 0 to 15",)),
        ("neighbours king --workdir RUN --step 4", ("no table of step 4", "choose one of [0")),
        ("neighbours king --workdir RUN --metric l1", ("metric='l1'", "cosine")),
        ("neighbours king --workdir RUN --count 0", ("--count=0",)),
        ("similarity king --workdir RUN", ("1 words: give pairs",)),
        ("analogy king queen --workdir RUN", ("required",)),
        ("related --workdir RUN --pairs none", ("can't read none",)),
        ("drift --workdir none", ("0 steps",)),
        ("drift", ("--workdir",)),
        ("plot king queen fool --workdir RUN --out map.gif", (".png or .svg",)),
        ("plot king queen --workdir RUN --out map.png", ("2 words", "3 or more words")),
        ("benchmark --vectors none", ("there are no vectors 'none'", "glove, minilm")),
        ("wander --workdir RUN", ("invalid choice",)),
    ],
)
def test_mistakes_get_one_line(word_run, argv, words, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["jaxgpt.embeddings", *argv.replace("RUN", str(word_run)).split()])
    with pytest.raises(SystemExit) as stop:
        cli.run(embeddings.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error
