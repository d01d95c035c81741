"""The rows of a mixture: exact shares, every window once in an epoch of its source, and no state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.config import (
    Config,
    DataConfig,
    ModelConfig,
    UserError,
    from_config_dict,
    from_json,
    sources,
    to_json,
)
from jaxgpt.config.sources import weight_at
from jaxgpt.data import batches
from jaxgpt.data.batches import Batches
from jaxgpt.data.mixtures import Order
from jaxgpt.data.shards import joined
from tests.errors import one_line

exhaustively = settings(derandomize=True, deadline=None, max_examples=25)


def order_of(text, sizes=None, seed=0, batch_size=8):
    schedules = tuple(source.schedule for source in sources.mixture(text))
    sizes = sizes or tuple(50 + 9 * i for i in range(len(schedules)))
    return Order(schedules, tuple(sizes), seed, batch_size)


def batches_of(text, lengths, seed, batch_size, context_length):
    data = DataConfig(mixture=text, batch_size=batch_size, seed=seed)
    cfg = Config(data=data, model=ModelConfig(context_length=context_length))
    return Batches.of(cfg, np.zeros(sum(lengths), "<u2"), lengths)


def constant(*weights):
    return ", ".join(f"s{i}=p:{weight}" for i, weight in enumerate(weights))


def counts_of_windows(order, num_rows, size=1_000):
    """How many of every `size` rows in sequence are of each source: [num_rows - size + 1, K]."""
    source = np.concatenate(
        [order.sources_of(np.arange(row, row + 1_000))[0] for row in range(0, num_rows, 1_000)]
    )
    sums = np.concatenate([np.zeros((1, len(order.sizes)), int), np.cumsum(np.eye(len(order.sizes), dtype=int)[source], axis=0)])  # fmt: skip
    return sums[size:] - sums[:-size]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 1, 2), (0.25, 0.001, 0.5, 0.249), (5,)])
def test_shares_of_thousandths_are_exact_in_any_1000_rows(weights):
    found = counts_of_windows(order_of(constant(*weights), seed=3), 20_000)
    assert (found == np.array(weights) / sum(weights) * 1_000).all()


@exhaustively
@given(weights=st.lists(st.floats(0.01, 5), min_size=2, max_size=6), seed=st.integers(0, 2**31 - 1))
def test_any_shares_are_within_a_row_in_any_1000_rows_and_right_in_the_long_run(weights, seed):
    found = counts_of_windows(order_of(constant(*weights), seed=seed), 130_000)
    error = np.abs(found - np.array(weights) / sum(weights) * 1_000).max(axis=0)
    assert error[[0, -1]].max() <= 1 and error.max() <= 1 + 1 / 64
    order = order_of(constant(*weights), seed=seed)
    rows = order.rows_before(128 * 1_000 * 100 // 8)
    np.testing.assert_allclose(rows / rows.sum(), np.array(weights) / sum(weights), rtol=0, atol=2 / 128_000)


def test_every_source_is_spread_evenly():
    source, _ = order_of(constant(0.7, 0.3), seed=1).sources_of(np.arange(3_000))
    counts = (source.reshape(-1, 20) == 0).sum(axis=1)
    assert counts.min() >= 12 and counts.max() <= 16


@pytest.mark.parametrize("batch_size", [1, 7, 1_000, 1_500])
def test_a_schedule_is_followed(batch_size):
    last = 6_000 // batch_size
    text = f"a=p:0.9@0 0.5@{last}, b=q:0.1@0 0.5@{last}, c=r:0@{last // 2} 1@{last}"
    order = order_of(text, batch_size=batch_size)
    source, number = order.sources_of(np.arange(140_000))
    for block in range(140):
        own = np.bincount(source[block * 1_000 : (block + 1) * 1_000], minlength=3)
        weights = np.array([weight_at(s, (block * 1_000 + 500) // batch_size) for s in order.schedules])
        assert np.abs(own - weights / weights.sum() * 1_000).max() < 1
    for i in range(3):
        assert number[source == i].tolist() == list(range((source == i).sum()))
    for step in (0, 1, 140_000 // batch_size - 1):
        assert (
            order.rows_before(step).tolist() == np.bincount(source[: step * batch_size], minlength=3).tolist()
        )
    assert order.shares(0) == pytest.approx([0.9, 0.1, 0]) and order.shares(10**9) == [0.25, 0.25, 0.5]


def test_a_row_is_a_pure_function_at_any_step():
    text = "a=p:0.6@0 0.2@50, b=q:0.4"
    train = batches_of(text, (5_000, 900), 9, 64, 4)
    steps = [0, 3, 10**9, 2, 3, 77]
    found = [train.starts_at(step) for step in steps]
    for step, starts in zip(steps, found, strict=True):
        again = batches_of(text, (5_000, 900), 9, 64, 4)
        np.testing.assert_array_equal(again.starts_at(step), starts)
    assert not np.array_equal(found[0], batches_of(text, (5_000, 900), 8, 64, 4).starts_at(0))
    before, after = train.order.rows_before(10**9), train.order.rows_before(10**9 + 1)
    assert (after - before).sum() == 64


def test_every_window_of_a_source_is_read_once_in_each_of_its_epochs():
    lengths, T = (407, 1_210, 98), 8
    train = batches_of(constant(0.5, 0.3, 0.2), lengths, 5, 6_000, T)
    order, starts = train.order, train.starts_at(0)
    source, _ = order.sources_of(np.arange(6_000))
    first = 0
    for i, length in enumerate(lengths):
        own, size = starts[source == i] - first, batches.num_windows(length, T)
        assert own.min() >= 0 and own.max() + T + 1 <= length
        for at in range(0, len(own) - size, size):
            epoch = sorted(own[at : at + size].tolist())
            assert epoch == [epoch[0] + T * window for window in range(size)]
        assert len(own) / size == pytest.approx(order.epochs(1)[i])
        first += length


def test_batches_are_cut_from_the_sources_and_rows_are_parts_of_them():
    cfg = Config(
        data=DataConfig(mixture="a=p:0.7, b=q:0.3", batch_size=12, seed=4),
        model=ModelConfig(context_length=8),
    )
    one, two = np.arange(500, dtype="<u2"), np.arange(1_000, 1_200, dtype="<u2")
    train = Batches.of(cfg, joined([one, two]), (500, 200))
    for step in (0, 25, 10**7):
        batch = train.at(step)
        assert batch.shape == (12, 9) and (np.diff(batch, axis=1) == 1).all()
        assert {row[0] >= 1_000 for row in batch.tolist()} == {False, True}
        parts = [train.at(step, slice(i, i + 4)) for i in (0, 4, 8)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        starts = train.stack(step, 1, starts_only=True)
        np.testing.assert_array_equal(np.concatenate([one, two])[starts[0][:, None] + np.arange(9)], batch)


# If these change, runs that are resumed will see some windows twice and others never: do not just update.
def test_the_order_is_the_one_that_earlier_versions_had():
    text = "a=p:0.6@0 0.2@500, b=q:1, c=r:0.333"
    train = batches_of(text, (100_003, 7_001, 50_000), 1337, 16, 64)
    assert train.order.sources_of(np.arange(12))[0].tolist() == ORDER[0]
    assert train.starts_at(0)[:5].tolist() == ORDER[1]
    assert train.starts_at(10**11 // 16)[:5].tolist() == ORDER[2]


ORDER = (
    [1, 0, 1, 1, 0, 1, 0, 2, 1, 0, 1, 1],
    [105820, 59260, 105308, 102940, 15420],
    [105142, 87949, 101430, 101686, 55437],
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", r"'a' is not NAME=TEXT"),
        ("a=p", r"a=p has no weight: give NAME=TEXT:WEIGHT, such as a=p:0\.5"),
        ('a="p:1"', r"has no weight"),
        ("a=p:x", r"'x' is not a weight of a"),
        ("a=p:", r"a has no weight"),
        ("a=p:-1, b=q:1", r"-1@0 of a: give a weight and a step of 0 or more"),
        ("a=p:nan", r"nan@0 of a"),
        ("a=p:1@x", r"'1@x' is not a weight of a"),
        ("a=p:1 2", r"'1 2' is not a weight of a"),
        ("a=p:1@5 2@5", r"the steps of a \(1@5 2@5\) do not increase"),
        ("a=p:0, b=q:1", r"the weight of a is 0 at every step"),
        ("a=p:0@0 1@9, b=q:0@3 1@9", r"all weights are 0 at step 0"),
        ("a=p:1, a=q:1", r"two texts with the name 'a'"),
        ('a="p:1', r"has a quote without its end"),
        ('a=x"p":1', r"has a quote within"),
        ("a=corpus::1", r"'corpus:' is no text"),
        (" , ", r"names no text"),
        ("a b=p:1", r"'a b=p:1' is not NAME=TEXT"),
    ],
)  # fmt: skip
def test_a_mixture_that_is_none_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        sources.mixture(text)
    one_line(error)
    values = to_json(Config())
    values["data"]["mixture"] = text
    with pytest.raises(UserError, match=message):
        from_config_dict(values)


def test_a_config_from_before_there_were_several_texts_is_the_same_run():
    values = to_json(Config(data=DataConfig(path="text.txt")))
    for name in ("mixture", "valid_path", "valid_paths"):
        del values["data"][name]
    assert from_json(values) == Config(data=DataConfig(path="text.txt", documents="auto"))


def test_paths_may_have_colons_commas_and_quotes():
    found = sources.mixture('a=C:\\x:0.5, b="my, ""file"":0.2": 1 ,c=corpus:kjv:2@3 0@9')
    assert [(t.name, t.path, t.corpus) for t in found] == [
        ("a", "C:\\x", ""),
        ("b", 'my, "file":0.2', ""),
        ("c", "", "kjv"),
    ]
    assert [t.schedule for t in found] == [((0, 0.5),), ((0, 1.0),), ((3, 2.0), (9, 0.0))]
    assert [t.path for t in sources.named_texts('x=C:\\y=z:0.5, y="a,b"')] == ["C:\\y=z:0.5", "a,b"]
    assert sources.identity("a=p:1") == sources.identity('a="q/r":1.0') != sources.identity("a=p:2")
