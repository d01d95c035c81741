"""Tests of words against their definitions, and their files."""

import itertools
import math

import numpy as np
import pytest

from jaxgpt.config import UserError
from jaxgpt.vectors import word_tests
from tests.vectors.small_vectors import RANDOM_TABLE as TABLE
from tests.vectors.small_vectors import naive_scores


def test_analogies_in_a_table_made_of_them():
    """king = royal + man, queen = royal + woman: the answer is first once the question's words are set aside."""
    rng = np.random.default_rng(2)
    royal, man, woman = rng.normal(size=(3, 40))
    noise = rng.normal(size=(50, 40))
    table = np.concatenate([[royal + man, man, woman, royal + woman], noise]).astype(np.float32)
    questions = np.array([[0, 1, 2, 3], [0, 1, 2, 9]])
    aside, plain = word_tests.analogies(table, questions)
    assert aside.tolist() == [True, False]
    assert plain[0] == (word_tests.answer_rank(table, questions, exclude_abc=False)[0] == 1)
    assert word_tests.answer_rank(table, questions, exclude_abc=True)[0] == 1
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
        (b"king queen\n", "line 1 is 'king queen': give two words and a number"),
        (b"# of words\n\nking queen high\n", "line 3"),
        (b"", "has no pairs"),
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
