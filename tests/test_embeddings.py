"""Embedding tables: the searches against naive ones, the statistics against their definitions, the commands."""

import itertools
import json
import math
import xml.etree.ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt import embeddings
from jaxgpt.common import cli
from jaxgpt.config import UserError
from jaxgpt.training import loop
from jaxgpt.vectors import geometry, nearest, tables, word_tests, word_vectors
from tests.small_runs import small_config, write_text

TABLE = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32) + 0.5


def naive_scores(table, queries, metric, mean=None):
    """[Q, N] float64, larger for nearer rows."""
    table, queries = table.astype(np.float64), queries.astype(np.float64)
    if mean is not None:
        table, queries = table - mean, queries - mean
    if metric == "euclidean":
        return -np.linalg.norm(queries[:, None] - table[None], axis=-1)
    if metric == "cosine":
        table, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (table, queries))
    return queries @ table.T


# --- neighbours -----------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    metric=st.sampled_from(nearest.METRICS), centre=st.booleans(), k=st.integers(1, 12), rows=st.integers(2, 300),
    queries=st.integers(1, 9), aside=st.integers(0, 3), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_neighbours_are_those_of_a_full_sort(metric, centre, k, rows, queries, aside, seed):
    """In blocks of any size: the scores of all, sorted, without the rows set aside."""
    rng = np.random.default_rng(seed)
    table, q = TABLE[:rows], rng.normal(size=(queries, 7)).astype(np.float32)
    hidden = rng.integers(-1, rows, size=(queries, aside)) if aside else None
    mean = nearest.mean_row(table) if centre else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_SCORES", 50 * queries)
        patch.setattr(nearest, "_MIN_BLOCK", 40)
        patch.setattr(nearest, "_QUERIES", 4)
        found, scores = nearest.nearest(table, q, k, metric, hidden, mean)
    expected = naive_scores(table, q, metric, mean)
    assert found.shape == (queries, max(0, min(k, rows - aside)))
    if aside:
        for i, at in enumerate(hidden):
            expected[i, at[at >= 0]] = -np.inf
    order = np.argsort(-expected, axis=1)[:, : found.shape[1]]
    np.testing.assert_array_equal(found, order)
    signed = -expected if metric == "euclidean" else expected
    np.testing.assert_allclose(scores, np.take_along_axis(signed, order, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", nearest.METRICS)
def test_rank_is_the_place_in_a_full_sort(metric):
    rng = np.random.default_rng(1)
    q, answers = rng.normal(size=(20, 7)).astype(np.float32), rng.integers(300, size=20)
    aside = (answers[:, None] + [1, 2, 3]) % 300
    for hidden in (None, aside):
        scores = naive_scores(TABLE, q, metric)
        if hidden is not None:
            np.put_along_axis(scores, hidden, -np.inf, axis=1)
        own = np.take_along_axis(scores, answers[:, None], axis=1)
        np.testing.assert_array_equal(
            nearest.rank_of(TABLE, q, answers, metric, hidden), 1 + (scores > own).sum(axis=1)
        )


def test_metrics_differ_where_lengths_do_and_centring_takes_a_common_direction_away():
    table = np.array([[1, 0], [10, 8], [0.9, 0.1], [1, 0.05]], np.float32)
    first = {
        m: int(nearest.nearest(table, table[:1], 1, m, np.array([[0]]))[0][0, 0]) for m in nearest.METRICS
    }
    assert first == {"cosine": 3, "dot": 1, "euclidean": 3}
    with_mean = table + np.array([100, 100], np.float32)
    raw = nearest.nearest(with_mean, with_mean[:1], 3)[1]
    assert raw.min() > 0.99  # all are alike
    centred = nearest.nearest(with_mean, with_mean[:1], 3, mean_D=nearest.mean_row(with_mean))
    again = nearest.nearest(table, table[:1], 3, mean_D=nearest.mean_row(table))
    np.testing.assert_array_equal(centred[0], again[0])
    np.testing.assert_allclose(centred[1], again[1], atol=1e-4)


def test_unknown_metrics_list_the_choices():
    with pytest.raises(UserError, match="choose one of cosine, dot, euclidean"):
        nearest.nearest(TABLE, TABLE[:1], 1, "manhattan")


# --- tests of words -------------------------------------------------------------------------------------


def test_analogies_in_a_table_made_of_them():
    """king = royal + man, queen = royal + woman: the answer is first once the question's words are set aside."""
    rng = np.random.default_rng(2)
    royal, man, woman = rng.normal(size=(3, 40))
    noise = rng.normal(size=(50, 40))
    table = np.concatenate([[royal + man, man, woman, royal + woman], noise]).astype(np.float32)
    questions = np.array([[0, 1, 2, 3], [0, 1, 2, 9]])
    aside, plain = word_tests.analogies(table, questions)
    assert aside.tolist() == [True, False]
    assert plain[0] == (word_tests.answer_rank(table, questions, aside=False)[0] == 1)
    assert word_tests.answer_rank(table, questions, aside=True)[0] == 1
    # a = b: the query is c itself, so that c is nearest where it is not set aside
    same = np.array([[5, 5, 6, 7]])
    assert not word_tests.analogies(table, same)[1][0]


def test_auc_is_the_share_of_comparisons_won():
    table = TABLE[:40]
    pairs = np.arange(40).reshape(20, 2)
    found = word_tests.related_auc(table, pairs, draws=10)
    cosines = naive_scores(table, table, "cosine")
    own = [cosines[a, b] for a, b in pairs]
    others = [cosines[a, b] for (a, _), (_, b) in itertools.permutations(pairs.tolist(), 2)]
    won = np.mean([(x > y) + (x == y) / 2 for x in own for y in others])
    assert found.value == pytest.approx(won, abs=1e-12)
    assert found.count == 20


def test_auc_of_random_tables_covers_chance_and_that_of_near_pairs_does_not():
    """The interval is honest: of 120 random tables about 95 in 100 cover 0.5."""
    pairs = np.arange(80).reshape(40, 2)
    covered = 0
    for seed in range(100):
        table = np.random.default_rng(seed).normal(size=(80, 8))
        found = word_tests.related_auc(table, pairs, draws=100, seed=seed)
        covered += found.low <= 0.5 <= found.high
    assert 88 <= covered <= 100
    table[1::2] = table[::2] + 0.5 * table[1::2]
    assert word_tests.related_auc(table, pairs, draws=200).low > 0.9


def test_random_pairs_leave_related_words_and_a_word_with_itself_out():
    table = np.eye(4, dtype=np.float32)
    table[1] = table[0]
    pairs = np.array([[0, 1], [2, 3], [3, 0], [1, 2]])  # a_i with b_j includes listed pairs and (0, 0)
    found = word_tests.related_auc(table, pairs, draws=5)
    # own cosines 1, 0, 0, 0; random pairs that remain: (0, 3), (0, 2), (2, 1), (2, 0), (3, 1), (1, 3), all 0
    assert found.value == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4)
    with pytest.raises(UserError, match="2 or more"):
        word_tests.related_auc(table, pairs[:1])


def test_spearman_with_ties_and_its_interval():
    x = np.array([1.0, 2.0, 2.0, 4.0, 5.0])
    # ranks 1, 2.5, 2.5, 4, 5 and 1, 3, 2, 5, 4
    expected = np.corrcoef([1, 2.5, 2.5, 4, 5], [1, 3, 2, 5, 4])[0, 1]
    found = word_tests.spearman(x, np.array([0.1, 7, 3, 900, 8]))
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    rng = np.random.default_rng(0)
    many = word_tests.spearman(rng.normal(size=500), rng.normal(size=500))
    assert many.low < 0 < many.high and many.high - many.low == pytest.approx(
        2 * 1.96 / math.sqrt(497), rel=0.01
    )
    assert math.isnan(word_tests.spearman(x, np.ones(5)).value)


def test_proportion_has_wilsons_interval():
    found = word_tests.proportion(8, 10)  # 0.490 and 0.943 in Wilson's own formula
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (0.8, 0.490, 0.943)
    assert word_tests.proportion(0, 10).low == 0.0 and word_tests.proportion(10, 10).high == 1.0
    assert math.isnan(word_tests.proportion(0, 0).value)


def test_built_in_pairs_have_each_word_once():
    words = [word for pair in word_tests.RELATED_PAIRS for word in pair]
    assert len(word_tests.RELATED_PAIRS) > 50 and len(set(words)) == len(words) == 2 * len(
        word_tests.RELATED_PAIRS
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"king queen\n", "line 1 is 'king queen': two words and a number"),
        (b"# of words\n\nking queen high\n", "line 3"),
        (b"", "holds no pairs"),
        (b"k\xe9 q 1\n", "is not UTF-8 at byte 1"),
    ],
)
def test_bad_files_of_pairs_get_one_line(tmp_path, content, message):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        word_tests.read_pairs(path, scored=True)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_of_questions_and_pairs(tmp_path):
    (tmp_path / "q.txt").write_text(
        ": capitals\nAthens Greece Oslo Norway\n\n: family\nboy girl king queen\n"
    )
    assert word_tests.read_questions(tmp_path / "q.txt") == {
        "capitals": [["Athens", "Greece", "Oslo", "Norway"]],
        "family": [["boy", "girl", "king", "queen"]],
    }
    (tmp_path / "bad.txt").write_text(": x\na b c\n")
    with pytest.raises(UserError, match="line 2 has 3 words"):
        word_tests.read_questions(tmp_path / "bad.txt")
    with pytest.raises(UserError, match="can't read"):
        word_tests.read_questions(tmp_path / "none.txt")
    (tmp_path / "p.tsv").write_text("# comment\nlove\tsex\t6.77\n")
    assert word_tests.read_pairs(tmp_path / "p.tsv", scored=True) == [("love", "sex", 6.77)]


# --- geometry -------------------------------------------------------------------------------------------


def test_principal_axes_are_those_of_the_singular_values():
    mean, axes, shares = geometry.principal_axes(TABLE, 3)
    centred = TABLE.astype(np.float64) - TABLE.astype(np.float64).mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(mean, TABLE.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(np.abs(np.einsum("KD,KD->K", axes, directions[:3])), 1.0, rtol=1e-6)
    np.testing.assert_allclose(shares, values[:3] ** 2 / (values**2).sum(), rtol=1e-6)
    assert (axes.max(axis=1) > -axes.min(axis=1)).all()


def test_drift_of_a_table_that_does_not_move_turns_or_is_drawn_anew():
    rng = np.random.default_rng(3)
    turn, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    history = {0: TABLE, 1: TABLE, 5: (TABLE @ turn).astype(np.float32), 9: rng.normal(size=TABLE.shape)}
    still, same, turned, other = geometry.drift(history, k=5)
    for at in (still, same):
        np.testing.assert_allclose(at.cosine_N, 1.0, rtol=1e-6)
        assert at.kept_start == at.kept_before == 1.0
    assert abs(turned.cosine_N.mean()) < 0.9
    assert (
        turned.kept_start == turned.kept_before == 1.0
    )  # a rotation moves every row and keeps every neighbour
    assert other.kept_start < 0.1 and other.kept_before < 0.1


def test_lookup_is_the_one_hot_product_bit_for_bit_in_fewer_bytes():
    result = geometry.compare_lookups(TABLE, num_ids=50, repeats=1)
    assert result["bit_equal"] and result["max_difference"] == 0.0
    assert result["lookup"]["bytes"] == 4 * 50 + 2 * 4 * 50 * 7
    assert result["one_hot"]["bytes"] == 4 * (50 * 300 + 300 * 7 + 50 * 7)


# --- the command line -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    text = write_text(folder / "text.txt")
    cfg = small_config(text, data__tokenizer="word", train__embedding_snapshots=3, model__num_layers=1)
    loop.Trainer([(cfg, folder / "run")]).run()
    return folder / "run"


def asked(capsys, *argv: str) -> dict:
    embeddings.main([*argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_neighbours_of_a_run_at_its_steps(run, capsys):
    start = asked(capsys, "neighbours", "king", "queen", "--workdir", str(run), "--step", "0", "--count", "3")
    end = asked(capsys, "neighbours", "king", "queen", "--workdir", str(run), "--count", "3")
    assert (start["step"], end["step"]) == (0, 24)
    assert [r["word"] for r in end["results"]] == ["king", "queen"]
    assert start["results"] != end["results"]
    table = tables.open_run(run)
    others = [w for w, _ in end["results"][0]["neighbours"]]
    row = table.words.index("king")
    cosines = naive_scores(table.values, table.values[[row]], "cosine")[0]
    cosines[row] = -np.inf
    assert others == [table.words[i] for i in np.argsort(-cosines)[:3]]


def test_tables_are_those_of_the_run(run):
    """Snapshots and checkpoints hold the same table where both have the step."""
    steps = tables.saved_steps(run)
    assert steps[0] == 0 and steps[-1] == 24
    from_snapshot = tables.open_run(run, 24).values
    (run / "embeddings" / f"{24:08d}.npz").rename(run / "away")
    try:
        np.testing.assert_array_equal(tables.open_run(run, 24).values, from_snapshot)
    finally:
        (run / "away").rename(run / "embeddings" / f"{24:08d}.npz")
    assert tables.open_run(run, "best").step in (8, 16, 24)
    positions = tables.open_run(run, 0, "position")
    assert positions.words == [str(i) for i in range(16)]


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
def test_every_command_answers_in_lines_and_in_json(run, tmp_path, capsys, argv):
    files = {"PAIRS": "king queen\nduke fool\nloves sees\n", "QUESTIONS": ": x\nking queen duke fool\na b c d\n",
             "SCORES": "king queen 9\nduke fool 5\nking fool 1\nking duke 3\nghost sees 2\nno one 1\n"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    argv = [str(tmp_path / a) if a in files else a for a in argv] + ["--workdir", str(run)]
    result = asked(capsys, *argv)
    assert str(run) in result["source"]
    embeddings.main(argv)
    lines = capsys.readouterr().out
    assert lines.strip() and "nan" not in lines
    if argv[0] == "benchmark":
        assert result["all_analogies"]["count"] == 1 and result["all_analogies"]["questions"] == 2
        assert result["similarity"]["SCORES"]["count"] == 5 and result["similarity"]["SCORES"]["pairs"] == 6
    if argv[0] == "drift":
        assert [s["step"] for s in result["steps"]] == tables.saved_steps(run)
        assert result["steps"][0]["cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_drawn_of_the_first_two_axes(run, tmp_path, capsys, suffix):
    out = tmp_path / f"map{suffix}"
    result = asked(capsys, "plot", "king", "queen", "fool", "duke", "--workdir", str(run), "--out", str(out))
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
        ("neighbours king --workdir none", ("no run folder none",)),
        ("neighbours kimg --workdir RUN", ("no word 'kimg'", "the nearest spelling is 'king'")),
        ("neighbours 99 --workdir RUN --table position", ("give a position, 0 to 15",)),
        ("neighbours king --workdir RUN --step 4", ("no table of step 4", "the steps are [0")),
        ("neighbours king --workdir RUN --metric l1", ("metric='l1'", "cosine")),
        ("neighbours king --workdir RUN --count 0", ("--count=0",)),
        ("similarity king --workdir RUN", ("1 words: give pairs",)),
        ("analogy king queen --workdir RUN", ("required",)),
        ("related --workdir RUN --pairs none", ("can't read none",)),
        ("drift --workdir none", ("0 steps",)),
        ("drift", ("--workdir",)),
        ("plot king queen fool --workdir RUN --out map.gif", (".png or .svg",)),
        ("plot king queen --workdir RUN --out map.png", ("3 words",)),
        ("benchmark --vectors none", ("no vectors 'none'", "glove, minilm")),
        ("wander --workdir RUN", ("invalid choice",)),
    ],
)
def test_mistakes_get_one_line(run, argv, words, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["jaxgpt.embeddings", *argv.replace("RUN", str(run)).split()])
    with pytest.raises(SystemExit) as stop:
        cli.run(embeddings.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error


def test_damaged_tables_get_one_line(run, tmp_path):
    for name in ("tokenizer.json", "embeddings"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "embeddings").unlink()
    (tmp_path / "embeddings").mkdir()
    whole = (run / "embeddings" / "00000000.npz").read_bytes()
    (tmp_path / "embeddings" / "00000000.npz").write_bytes(whole[:-40])
    np.savez(tmp_path / "embeddings" / "00000001.npz", token=np.ones((3, 4), np.float32))
    np.savez(tmp_path / "embeddings" / "00000002.npz", other=np.ones((3, 4), np.float32))
    np.savez(tmp_path / "embeddings" / "00000003.npz", token=np.array([{}], object))
    for step, message in enumerate(["can't be read", "3 rows at step 1", "no token table", "can't be read"]):
        with pytest.raises(UserError) as error:
            tables.open_run(tmp_path, step)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_tests_look_for_whole_words_first():
    table = tables.Table(
        "", word_vectors.Vectors(["king", " king", " the", " of", "xq"], np.eye(5, dtype=np.float32))
    )
    assert tables.finder(table)("king") == 1 and table.row("king") == 0
