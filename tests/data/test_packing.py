"""Windows of complete documents: every token is in exactly one, little is padding, and the order is one of (seed, step)."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import packing as experiment
from jaxgpt.config import Config, DataConfig, ModelConfig, UserError
from jaxgpt.data import packing, shards
from jaxgpt.data.batches import Batches, marked
from jaxgpt.data.packing import PackedBatches, Packing
from tests.errors import one_line

exhaustively = settings(derandomize=True, deadline=None, max_examples=150)
END = 0


def text_of(lengths, last_ends=True):
    """Documents of these lengths, their ends included; tokens are numbered, so that each can be found again."""
    ids = np.arange(1, sum(lengths) + 1)
    ids[np.cumsum(lengths)[: len(lengths) - (not last_ends)] - 1] = END
    return ids.astype("<u4")


def one_by_one(lengths, size):
    """Best-fit decreasing as its definition says: each document into the fullest window that it fits into."""
    left = []
    for length in sorted(lengths, reverse=True):
        fits = [room for room in left if room >= length]
        if fits:
            left[left.index(min(fits))] -= length
        else:
            left.append(size - length)
    return sorted(left)


documents = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@exhaustively
@given(lengths=documents, size=st.integers(2, 30), last_ends=st.booleans())
def test_every_token_is_in_exactly_one_window(lengths, size, last_ends):
    ids = text_of(lengths, last_ends)
    found = Packing.of(ids, END, size)
    windows = found.at(ids, np.arange(len(found)))
    assert windows.shape == (len(found), size) and windows.dtype == np.int32
    tokens = np.where(windows < 0, ~windows, windows)
    assert sorted(tokens[tokens != END].tolist()) == ids[ids != END].tolist()
    padding = windows.size - len(ids)
    assert (windows == ~END).sum() >= padding == round(found.padding * windows.size)
    if size > 2:
        assert found.num_documents == len(lengths)
        assert found.num_cut == sum(length > size for length in lengths)
    # A window holds documents one after another, in the order of the text, and padding at its end.
    position = {token: i for i, token in enumerate(ids.tolist()) if token != END}
    ends = set(np.flatnonzero(ids == END).tolist())
    for row in windows:
        at = [position.get(token) for token in np.where(row < 0, ~row, row).tolist()]
        for (a, b), value in zip(itertools.pairwise(at), row[1:], strict=True):
            if a is not None and b is not None:
                assert b == a + 1  # only an end is between two documents
            elif a is None and b is not None:
                assert value < 0 or b == 0 or b - 1 in ends  # a piece that continues is no target
        assert [x for x in at if x is not None] == sorted(x for x in at if x is not None)


@exhaustively
@given(lengths=documents, size=st.integers(60, 90))
def test_a_document_that_fits_is_not_cut_and_what_counts_is_all_but_padding(lengths, size):
    ids = text_of(lengths)
    found = Packing.of(ids, END, size)
    windows = found.at(ids, np.arange(len(found)))
    assert found.num_cut == 0 and sorted(found.lengths.tolist()) == sorted(lengths)
    assert (windows >= 0).sum() == len(ids)
    assert (found.starts == 0).any() and all(ids[start - 1] == END for start in found.starts if start)
    for row in windows:
        counted = row >= 0
        assert counted[: counted.sum()].all()  # padding is at the end


@exhaustively
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=120), size=st.integers(40, 60))
def test_windows_are_those_of_best_fit_decreasing(lengths, size):
    window_of, count = packing.best_fit(np.array(lengths), size)
    used = np.bincount(window_of, lengths, minlength=count).astype(int)
    assert sorted((size - used).tolist()) == one_by_one(lengths, size)
    assert len(np.unique(window_of)) == count


def test_the_packing_is_a_function_of_ids_and_size_in_any_blocks_and_shards():
    rng = np.random.default_rng(0)
    ids = text_of(rng.integers(1, 50, 400).tolist())
    whole = Packing.of(ids, END, 33)
    parts = shards.Shards([ids[:1000], ids[1000:1001], ids[1001:]])
    again = Packing.of(parts, END, 33)
    for name in ("first_W", "starts", "lengths"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
    np.testing.assert_array_equal(whole.at(ids, np.arange(9)), whole.at(parts, np.arange(9)))
    for block in (1, 7, 1000):
        np.testing.assert_array_equal(
            packing.document_ends(ids, END, block=block), packing.document_ends(ids, END)
        )


def test_a_rest_of_a_long_document_is_not_predicted_from_what_stands_before_it():
    ids = text_of([2, 13])  # pieces of 5, 5 and 3; the first document fits next to the rest
    found = Packing.of(ids, END, 5)
    windows = found.at(ids, np.arange(len(found))).tolist()
    assert sorted(windows) == sorted([[3, 4, 5, 6, 7], [~8, 9, 10, 11, 12], [1, END, ~13, 14, END]])


def test_an_epoch_visits_every_window_once_in_an_order_of_seed_and_step():
    ids = text_of(np.random.default_rng(0).integers(1, 40, 300).tolist())
    found = Packing.of(ids, END, 33)
    count = len(found)
    orders = set()
    for seed in range(4):
        train = PackedBatches(ids, found, seed, batch_size=count)
        for epoch in range(3):
            starts = train.starts_at(epoch)
            assert sorted(starts // 33) == list(range(count)) and not (starts % 33).any()
            orders.add(tuple(starts))
    assert len(orders) == 12
    train = PackedBatches(ids, found, 1, batch_size=12)
    for step in (0, 5, 10**9):
        batch = train.at(step)
        np.testing.assert_array_equal(batch, train.at(step))
        np.testing.assert_array_equal(batch[4:8], train.at(step, slice(4, 8)))
        on_device = train.for_device()[train.starts_at(step)[:, None] + np.arange(33)]
        np.testing.assert_array_equal(batch, on_device)
    np.testing.assert_array_equal(train.stack(3, 2), [train.at(3), train.at(4)])
    np.testing.assert_array_equal(
        train.stack(3, 2, starts_only=True), [train.starts_at(3), train.starts_at(4)]
    )


def test_flat_windows_are_todays():
    ids = np.arange(2_000)
    cfg = Config(data=DataConfig(batch_size=5, seed=7), model=ModelConfig(context_length=16))
    (flat,) = packing.training_batches([cfg], ids)
    np.testing.assert_array_equal(flat.stack(3, 2), Batches(ids, 7, 5, 16).stack(3, 2))
    assert not cfg.data.marks_targets and not cfg.finds_documents


def test_lanes_share_one_packing():
    ids = text_of([5, 9, 3, 20])
    cfgs = [
        Config(
            data=DataConfig(batch_size=2, seed=seed, windows="documents"),
            model=ModelConfig(context_length=8, document_end=END),
        )
        for seed in (1, 2)
    ]
    one, other = packing.training_batches(cfgs, ids)
    assert one.packing is other.packing and (one.seed, other.seed) == (1, 2)


def test_the_sources_of_a_mixture_are_packed_by_themselves_and_read_in_its_shares():
    rng = np.random.default_rng(1)
    parts = [text_of(rng.integers(1, 40, count).tolist(), last_ends=False) for count in (300, 90)]
    parts[1] = np.where(parts[1] == END, END, parts[1] + len(parts[0]))  # ids of the first are below
    ids, lengths = np.concatenate(parts), [len(part) for part in parts]
    cfg = Config(
        data=DataConfig(mixture="a=p:0.7, b=q:0.3", batch_size=10, seed=3, windows="documents"),
        model=ModelConfig(context_length=32, document_end=END),
    )
    (train,) = packing.training_batches([cfg], ids, lengths)
    alone = [Packing.of(part, END, 33) for part in parts]
    assert train.packing.sizes == tuple(map(len, alone)) and train.packing.num_documents == 390
    windows = train.packing.at(ids, np.arange(len(train.packing)))
    expected = [own.at(part, np.arange(len(own))) for own, part in zip(alone, parts, strict=True)]
    np.testing.assert_array_equal(windows, np.concatenate(expected))
    seen = np.concatenate([train.starts_at(step) // 33 for step in range(1_000)])
    of_b = seen >= len(alone[0])
    assert of_b[:1_000].sum() == 300
    for source, size in ((seen[~of_b], len(alone[0])), (seen[of_b] - len(alone[0]), len(alone[1]))):
        for first in range(0, len(source) - size, size):
            assert sorted(source[first : first + size]) == list(range(size))
    np.testing.assert_array_equal(train.at(7)[2:6], train.at(7, slice(2, 6)))


def test_windows_beyond_32_bit_positions_are_refused_on_a_device():
    first_W = np.broadcast_to(np.int64(0), 2**21 + 1)
    none = np.zeros(0, np.int64)
    found = Packing(1024, END, first_W, none, none.astype(np.int32), none.astype(bool), 0, 0, (2**21,))
    with pytest.raises(UserError, match=r"2,147,483,648 places.*data\.on_device=false") as error:
        PackedBatches(np.zeros(1), found, 0, 2).for_device()
    one_line(error)


def test_marks_are_a_second_id_for_each_token():
    ids, counts = np.array([0, 5, 65_535], np.uint16), np.array([False, True, False])
    assert marked(ids, counts).tolist() == [-1, 5, -65_536]
    assert marked(ids, ~counts).dtype == np.int32


def test_the_experiment_counts_as_a_plain_loop_does():
    lengths = np.random.default_rng(0).integers(1, 40, 200).tolist()
    ids, context = text_of(lengths), 24
    found = experiment.measure(ids, END, context)
    kept = [min(length, context + 1) for length in lengths]
    assert found["alone"]["tokens_lost"] == pytest.approx(1 - sum(kept) / len(ids))
    assert found["alone"]["padding"] == pytest.approx(1 - sum(kept) / (len(kept) * (context + 1)))
    ends = np.cumsum(lengths).tolist()
    cut = [
        any(at % context == 0 for at in range(end - n + 1, end)) for n, end in zip(lengths, ends, strict=True)
    ]
    assert found["flat"]["documents_cut"] == pytest.approx(np.mean(cut))
    assert found["packed"]["documents_cut"] == pytest.approx(np.mean([n > context + 1 for n in lengths]))
