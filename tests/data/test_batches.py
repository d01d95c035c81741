"""A batch is a function of (seed, step), and an epoch visits every window once."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.config import Config, DataConfig, ModelConfig, TrainConfig, UserError
from jaxgpt.data import batches
from jaxgpt.data.batches import Batches
from tests.errors import one_line
from tests.python_process import run_python

exhaustively = settings(derandomize=True, deadline=None, max_examples=150)

# ---- training batches


def starts_of_epochs(num_ids, num_epochs, *, seed, context_length):
    """Window starts, [num_epochs, W]: one sample a step, so that steps and samples are the same."""
    size = batches.num_windows(num_ids, context_length)
    starts = batches.window_starts(
        num_ids, 0, seed=seed, batch_size=num_epochs * size, context_length=context_length
    )
    return starts.reshape(num_epochs, size)


@exhaustively
@given(context_length=st.integers(1, 40), extra=st.integers(1, 500), seed=st.integers(-(2**70), 2**70))
def test_every_epoch_visits_every_window_once(context_length, extra, seed):
    num_ids = context_length + extra
    size = batches.num_windows(num_ids, context_length)
    assert size == max(1, (num_ids - context_length) // context_length)
    for starts in starts_of_epochs(num_ids, 3, seed=seed, context_length=context_length):
        phase = starts.min()
        assert 0 <= phase < num_ids - size * context_length
        assert sorted(starts) == [phase + window * context_length for window in range(size)]
        assert starts.max() + context_length + 1 <= num_ids


def test_orders_and_phases_differ_between_epochs_and_seeds():
    orders, phases = set(), []
    for seed in range(20):
        for starts in starts_of_epochs(64 * 101, 5, seed=seed, context_length=64):
            phases.append(starts.min())
            orders.add(tuple(starts - starts.min()))
    assert len(orders) == 100
    assert len(set(phases)) > 40 and max(phases) > 55 and min(phases) < 8


def test_every_id_is_a_target_within_a_few_epochs():
    starts = starts_of_epochs(1_000, 60, seed=0, context_length=16).ravel()
    targets = np.unique(starts[:, None] + np.arange(1, 17))
    assert targets.min() == 1 and targets.max() == 999 and len(targets) == 999


def test_batches_hold_the_windows_of_the_text_and_run_on_across_epochs():
    ids = np.random.default_rng(0).integers(0, 60_000, 1_000).astype("<u2")
    size = batches.num_windows(len(ids), 8)
    starts = starts_of_epochs(len(ids), 3, seed=5, context_length=8).ravel()
    for batch_size in (1, 7, 50, 2 * size + 3):  # the last one holds several epochs
        for step in range(len(starts) // batch_size):
            batch = Batches(ids, 5, batch_size, 8).at(step)
            assert batch.shape == (batch_size, 9) and batch.dtype == np.int32
            for row, start in zip(batch, starts[step * batch_size :], strict=False):
                np.testing.assert_array_equal(row, ids[start : start + 9])
    assert batches.steps_per_epoch(len(ids), context_length=8, batch_size=7) == size / 7


def test_rows_are_parts_of_the_global_batch():
    train = Batches(np.arange(5_000, dtype=np.uint32), seed=1, batch_size=12, context_length=16)
    for step in (0, 25, 26, 10**9):
        batch = train.at(step)
        parts = [train.at(step, slice(i, i + 4)) for i in (0, 4, 8)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        np.testing.assert_array_equal(train.at(step, slice(5, 6)), batch[5:6])
        np.testing.assert_array_equal(train.at(step, slice(None, None, 3)), batch[::3])


@pytest.mark.parametrize("rows", [None, slice(2, 5)])
def test_a_stack_holds_the_batches_of_consecutive_steps_or_their_starts(rows):
    ids = np.random.default_rng(0).integers(0, 60_000, 1_000).astype("<u2")
    train = Batches(ids, seed=3, batch_size=6, context_length=8)
    stacked, starts = train.stack(20, 4, rows=rows), train.stack(20, 4, starts_only=True, rows=rows)
    assert stacked.dtype == starts.dtype == np.int32
    np.testing.assert_array_equal(stacked, [train.at(step, rows) for step in range(20, 24)])
    np.testing.assert_array_equal(stacked, ids[starts[..., None] + np.arange(9)])


def test_batches_of_a_config_are_drawn_from_its_order_seed():
    cfg = Config(
        data=DataConfig(batch_size=5, seed=7), model=ModelConfig(context_length=16), train=TrainConfig(seed=1)
    )
    ids = np.arange(2_000)
    np.testing.assert_array_equal(Batches.of(cfg, ids).at(3), Batches(ids, 7, 5, 16).at(3))


def test_ids_beyond_32_bit_positions_are_refused_on_a_device():
    ids = np.broadcast_to(np.uint16(0), 2**31)
    Batches(ids[:-1], 0, 2, 8).check_on_device()
    with pytest.raises(UserError, match=r"2,147,483,648 tokens.*data\.on_device=false") as error:
        Batches(ids, 0, 2, 8).check_on_device()
    one_line(error)


def test_batch_is_the_same_in_another_process_and_does_not_need_jax():
    program = (
        "import sys, hashlib, numpy as np; from jaxgpt.data.batches import Batches\n"
        "ids = np.arange(30_000, dtype='<u2')\n"
        "order = [7, 3, 2**40] if len(sys.argv) > 1 else [3, 2**40, 7]\n"
        "batch = {s: Batches(ids, 9, 33, 32).at(s) for s in order}\n"
        "assert 'jax' not in sys.modules\n"
        "print(*(hashlib.sha256(batch[s].tobytes()).hexdigest() for s in sorted(batch)))"
    )
    runs = [run_python(program), run_python(program, "backwards")]
    here = [Batches(np.arange(30_000), 9, 33, 32).at(step) for step in (3, 7, 2**40)]
    assert [run.stdout.split() for run in runs] == [
        [hashlib.sha256(batch.tobytes()).hexdigest() for batch in here]
    ] * 2


# If these change, runs that are resumed will see some windows twice and others never: do not just update.
@pytest.mark.parametrize(
    "num_ids, step, seed, context_length, expected",
    [
        (1_003_854, 0, 0, 256, [910659, 582467, 998211, 972867, 504131, 265539]),
        (1_003_854, 4_999, 1337, 64, [470156, 315468, 126540, 970700, 94796, 637452]),
        (
            2**40 * 1024,
            10**12,
            42,
            1024,
            [
                424270654300985,
                618232844798777,
                33485831166777,
                977582541612857,
                1015900725852985,
                733191658916665,
            ],
        ),
        (40, 3, 7, 16, [15, 4, 4, 11, 0, 5]),
    ],
)
def test_order_is_the_one_that_earlier_versions_had(num_ids, step, seed, context_length, expected):
    starts = batches.window_starts(num_ids, step, seed=seed, batch_size=6, context_length=context_length)
    assert starts.tolist() == expected


@exhaustively
@given(size=st.integers(1, 3_000), key=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(size, key):
    index = np.arange(size, dtype=np.uint64)
    permuted = batches.permute(index, size, np.full(size, key, np.uint64))
    np.testing.assert_array_equal(np.sort(permuted), index)
    np.testing.assert_array_equal(index, np.arange(size))  # the argument is left alone


@exhaustively
@given(size=st.integers(2**31, 2**62), key=st.integers(0, 2**64 - 1), data_=st.data())
def test_permutation_of_a_huge_range_stays_inside_and_apart(size, key, data_):
    index = data_.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=50, unique=True))
    permuted = batches.permute(np.array(index, np.uint64), size, np.full(len(index), key, np.uint64))
    assert all(0 <= value < size for value in permuted.tolist())
    assert len(set(permuted.tolist())) == len(index)


def test_permutation_sends_an_index_everywhere_and_neighbours_apart():
    size, num_keys = 1_000, 20_000
    keys = np.random.default_rng(0).integers(0, 2**64, num_keys, np.uint64)
    here, there = (batches.permute(np.full(num_keys, i, np.uint64), size, keys).astype(int) for i in (3, 4))
    assert np.all(here != there)
    for values, num_values in ((here, size), (there, size), ((here - there) % size - 1, size - 1)):
        counts, expected = np.bincount(values, minlength=num_values), num_keys / num_values
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 1.5 * num_values  # 1.0 for uniform values; the spread around it is 0.045


def test_training_on_too_short_a_text_is_refused():
    assert Batches(np.arange(9), 0, 2, 8).at(0).tolist() == [[*range(9)]] * 2
    with pytest.raises(UserError, match=r"8 tokens .*= 9") as error:
        Batches(np.arange(8), 0, 2, 8).at(0)
    one_line(error)


# ---- evaluation batches


@exhaustively
@given(
    num_ids=st.integers(0, 300),
    context_length=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    max_tokens=st.integers(0, 350),
)
def test_evaluation_predicts_every_id_but_the_first_once(num_ids, context_length, batch_size, max_tokens):
    ids = np.arange(1_000, 1_000 + num_ids).astype("<u2")
    predicted = []
    for tokens, weights in batches.eval_batches(
        ids, context_length=context_length, batch_size=batch_size, max_tokens=max_tokens
    ):
        assert tokens.shape == (batch_size, context_length + 1) and tokens.dtype == np.int32
        assert weights.shape == (batch_size, context_length) and weights.dtype == np.float32
        assert weights.any()
        counted = weights == 1
        np.testing.assert_array_equal(tokens[:, 1:][counted], tokens[:, :-1][counted] + 1)  # the id before
        assert not tokens[:, 1:][~counted].any()
        predicted += tokens[:, 1:][counted].tolist()
    expected = ids[1:].tolist()
    assert predicted == (expected[:max_tokens] if max_tokens else expected)
