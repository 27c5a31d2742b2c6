"""What a training reads: batches of arrays, buckets of ragged sequences, windows of a series, streams of a text."""

import copy
import itertools
import pickle

import numpy as np
import pytest

from fastseq.training import Batches, BucketBatches, TextStreams, windows


def ragged(rng, n, most=30):
    return [rng.integers(1, 9, length) for length in rng.integers(0, most, n)]


# ---------------------------------------------------------------- Batches


@pytest.mark.parametrize(("n", "size"), [(1, 1), (5, 2), (6, 2), (7, 10), (100, 9)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_row_comes_once_and_with_what_belongs_to_it(n, size, shuffle):
    x, y = np.arange(3 * n).reshape(n, 3), np.arange(n)
    batches = Batches(x, y, batch_size=size, shuffle=shuffle, rng=0)
    seen = list(batches)
    assert len(seen) == len(batches) == -(-n // size)
    assert [batch.rows for batch in seen] == [size] * (n // size) + ([n % size] if n % size else [])
    assert all(np.array_equal(inputs, x[targets]) for inputs, targets in seen)
    rows = np.concatenate([targets for _, targets in seen])
    assert sorted(rows) == list(range(n))
    assert shuffle or list(rows) == list(range(n))


def test_time_first_batches_of_rows_first_arrays():
    x, tags, labels = np.arange(60).reshape(5, 4, 3), np.arange(20).reshape(5, 4), np.arange(5)
    (inputs, targets, of), *_ = Batches(x, tags, labels, batch_size=2, shuffle=False, axis=1)
    assert np.array_equal(inputs, x[:2].swapaxes(0, 1))
    assert np.array_equal(targets, tags[:2].T)
    assert of.tolist() == [0, 1]
    assert inputs.flags.c_contiguous


def first_targets(batches):
    return [int(batch[-1][0]) for batch in batches]


@pytest.mark.parametrize("make", [
    lambda rng: Batches(np.arange(40), batch_size=3, rng=rng),
    lambda rng: BucketBatches(ragged(np.random.default_rng(0), 40), np.arange(40), batch_size=3, pool=2, rng=rng),
    lambda rng: TextStreams(np.arange(1, 200), 2, 40, shift=True, rng=rng),
])  # fmt: skip
def test_orders_follow_from_seed_and_epoch(make):
    def key(pass_):
        return [np.ravel(batch[-1]).tolist() for batch in pass_]

    batches = make(0)
    state = batches.state_dict()
    orders = [key(batches) for _ in range(4)]
    assert len({str(order) for order in orders}) > 2  # a new order each epoch
    assert [key(batches) for batches in [make(0)] for _ in range(4)] == orders
    assert key(make(1)) != orders[0]
    later = make(5)
    later.load_state_dict({**state, "epoch": 2})
    assert [key(later), key(later)] == orders[2:]


def test_a_look_at_a_batch_changes_nothing():
    batches, untouched = Batches(np.arange(40), batch_size=3, rng=0), Batches(np.arange(40), batch_size=3, rng=0)
    for _ in itertools.islice(batches, 2):
        pass
    assert first_targets(batches) == first_targets(untouched)


def test_a_batch_can_be_copied_and_pickled():
    (batch,) = Batches(np.arange(3), np.arange(3), batch_size=3, shuffle=False)
    for again in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
        assert again.rows == 3
        assert [array.tolist() for array in again] == [[0, 1, 2], [0, 1, 2]]


def test_batches_refuse_what_is_no_set_of_rows():
    with pytest.raises(ValueError, match=r"arrays: expected at least one"):
        Batches(batch_size=2)
    with pytest.raises(ValueError, match=r"arrays\[1\]: expected 3 rows, as arrays\[0\] has, got shape \(2,\)"):
        Batches(np.zeros(3), np.zeros(2), batch_size=2)
    with pytest.raises(ValueError, match=r"batches: expected at least one row"):
        Batches(np.zeros((0, 3)), batch_size=2)
    with pytest.raises(ValueError, match=r"batch_size: expected at least 1, got 0"):
        Batches(np.zeros(3), batch_size=0)
    with pytest.raises(TypeError, match=r"batch_size: expected an integer, got float"):
        Batches(np.zeros(3), batch_size=2.0)
    with pytest.raises(ValueError, match=r"axis: expected an integer in \[0, 2\), got 2"):
        Batches(np.zeros((3, 4)), np.zeros(3), batch_size=2, axis=2)


# ---------------------------------------------------------------- BucketBatches


@pytest.mark.parametrize("shuffle", [True, False])
def test_buckets_hold_every_sequence_with_its_targets(rng, shuffle):
    sequences = ragged(rng, 57)
    tags = [row * 2 for row in sequences]
    weights = [row.astype(np.float32) for row in sequences]
    batches = BucketBatches(sequences, tags, weights, np.arange(57), batch_size=8, shuffle=shuffle, padding=0, rng=1)
    seen = []
    for ids, lengths, tag, weight, number in batches:
        assert ids.shape == tag.shape == weight.shape == (lengths.max(), len(number))
        for column, (length, row) in enumerate(zip(lengths, number, strict=True)):
            assert np.array_equal(ids[:length, column], sequences[row])
            assert np.array_equal(tag[:length, column], tags[row])
            assert np.array_equal(weight[:length, column], weights[row])
            assert not ids[length:, column].any()
            assert (tag[length:, column] == -100).all()
            assert not weight[length:, column].any()
        seen += number.tolist()
    assert sorted(seen) == list(range(57))
    assert len(batches) == 8


def test_buckets_compute_little_for_nothing(rng):
    sequences = ragged(rng, 2000, 100)
    words = sum(map(len, sequences))

    def padded(**options):
        return sum(ids.size for ids, *_ in BucketBatches(sequences, batch_size=16, rng=0, **options))

    assert padded(pool=1) > 1.6 * words
    assert padded() < 1.06 * words
    assert padded(shuffle=False) < 1.02 * words


def test_pairs_of_sequences_are_padded_each_for_itself(rng):
    sources, targets = ragged(rng, 20), ragged(rng, 20)
    for source, source_lengths, target, target_lengths in BucketBatches((sources, targets), batch_size=6, rng=0):
        assert source.shape == (source_lengths.max(), len(source_lengths))
        assert target.shape == (target_lengths.max(), len(target_lengths))
        for column in range(len(source_lengths)):
            row = next(k for k, s in enumerate(sources) if np.array_equal(s, source[: source_lengths[column], column])
                       and np.array_equal(targets[k], target[: target_lengths[column], column]))  # fmt: skip
            assert row >= 0


def test_buckets_take_sequences_of_vectors():
    batches = BucketBatches([np.ones((3, 2), np.float32), np.ones((1, 2), np.float32)], [0.5, 1.5], batch_size=2, shuffle=False)
    ((x, lengths, y),) = batches
    assert x.shape == (3, 2, 2)
    assert lengths.tolist() == [1, 3]
    assert y.tolist() == [1.5, 0.5]


def test_empty_sequences_are_padded_as_the_others_are():
    ((ids, lengths, tags, shares),) = BucketBatches([[], [4, 5]], [[], [1, 2]], [[], [0.5, 0.25]], batch_size=2, shuffle=False)
    assert ids.T.tolist() == [[0, 0], [4, 5]]
    assert lengths.tolist() == [0, 2]
    assert tags.T.tolist() == [[-100, -100], [1, 2]]
    assert shares.T.tolist() == [[0, 0], [0.5, 0.25]]
    (x, _, y), _ = BucketBatches([[], np.ones((2, 3), np.float32)], [[], [1, 2]], batch_size=1, shuffle=False)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((0, 1, 3), np.float32, (0, 1), np.int64)


def test_buckets_refuse_columns_of_other_lengths():
    with pytest.raises(ValueError, match=r"targets\[0\]: expected 2 rows, as the first sequences have, got 1"):
        BucketBatches([[1], [2]], [1], batch_size=1)
    with pytest.raises(ValueError, match=r"sequences\[1\]: expected 2 rows, as the first sequences have, got 1"):
        BucketBatches(([[1], [2]], [[1]]), batch_size=1)
    with pytest.raises(ValueError, match="pool: expected at least 1, got 0"):
        BucketBatches([[1]], batch_size=1, pool=0)
    for wrong in (["ab", "c"], [1, 2], [[1], ["a"]]):
        with pytest.raises(TypeError, match=r"sequences\[\d\]: expected an array of numbers"):
            BucketBatches(wrong, batch_size=1)


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(("n", "length", "horizon", "stride"), [(2, 1, 1, 1), (30, 5, 3, 1), (30, 5, 3, 4), (8, 5, 3, 1)])
def test_windows_never_look_ahead(n, length, horizon, stride):
    time = np.arange(n)
    x, y = windows(np.stack([time, -time], axis=1), length, horizon, target=0, stride=stride)
    count = (n - length - horizon) // stride + 1
    assert x.shape == (length, count, 2)
    assert y.shape == (horizon, count)
    assert (x[1:, :, 0] - x[:-1, :, 0] == 1).all()
    assert (x[-1, :, 0] + 1 == y[0]).all()
    assert (np.diff(y, axis=0) == 1).all()
    assert x[0, 0, 0] == 0
    assert (np.diff(x[0, :, 0]) == stride).all()


def test_windows_of_one_and_several_columns():
    series = np.arange(20.0).reshape(10, 2)
    x, y = windows(series[:, 1], 3, 2)
    assert x.shape == (3, 6, 1)
    assert y[:, 0].tolist() == [7, 9]
    _, both = windows(series, 3, 2, target=[1, 0])
    assert both.shape == (2, 6, 2)
    assert both[0, 0].tolist() == [7, 6]


def test_windows_refuse_what_is_too_short():
    with pytest.raises(ValueError, match=r"series: expected at least length \+ horizon = 6 values, got 5"):
        windows(np.arange(5), 4, 2)
    with pytest.raises(ValueError, match="target: expected a column to predict, for the series has 2, got None"):
        windows(np.zeros((9, 2)), 4, 2)
    with pytest.raises(ValueError, match=r"series: expected shape \(N, I\) or \(N,\), got \(2, 2, 2\)"):
        windows(np.zeros((2, 2, 2)), 1, 1)
    for name in ("length", "horizon", "stride"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            windows(np.arange(9), **{"length": 1, "horizon": 1, "stride": 1, name: 0})
    with pytest.raises(TypeError, match="length: expected an integer, got float"):
        windows(np.arange(9), 2.0, 1)
    with pytest.raises(TypeError, match="series: expected numbers, got <U1"):
        windows(["a"] * 9, 2, 1)
    for target in (1, [0, -2]):
        with pytest.raises(ValueError, match=r"target: expected an integer in \[-1, 1\)"):
            windows(np.arange(9), 2, 1, target=target)


# ---------------------------------------------------------------- TextStreams


@pytest.mark.parametrize(
    ("n", "batch", "length", "start"),
    [(13, 2, 3, 0), (100, 4, 8, 0), (100, 4, 8, 3), (1000, 7, 13, 5), (2, 4, 8, 0), (9, 4, 8, 0)],
)
def test_streams_are_contiguous_and_targets_are_the_next_characters(n, batch, length, start):
    ids = np.arange(n)
    streams = TextStreams(ids, batch, length)
    pieces = list(streams.pieces(start))
    assert pieces
    for inputs, targets in pieces:
        assert inputs.shape == targets.shape == (streams.sequence_length, streams.batch_size)
        assert np.array_equal(targets, inputs + 1)
    whole = np.concatenate([inputs for inputs, _ in pieces])
    assert np.array_equal(np.diff(whole, axis=0), np.ones((len(whole) - 1, streams.batch_size)))
    assert len(np.unique(whole)) == whole.size
    assert whole[0, 0] == start
    assert (n - 1 - start) - whole.size < streams.batch_size * (streams.sequence_length + 1)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("n", [2, 3, 9, 50, 1000])
def test_every_pass_has_as_many_pieces_and_is_contiguous(n, shift):
    streams, starts = TextStreams(np.arange(n), 4, 8, shift=shift, rng=0), set()
    for _ in range(20):
        pieces = list(streams)
        assert len(pieces) == len(streams) >= 1
        starts.add(int(pieces[0][0][0, 0]))
        for (before, _), (after, _) in itertools.pairwise(pieces):
            assert np.array_equal(after[0], before[-1] + 1)
    assert (len(starts) > 1) == (shift and n > 9)


def test_streams_want_two_characters():
    with pytest.raises(ValueError, match="ids: expected at least 2 characters, got 1"):
        TextStreams(np.arange(1), 4, 8)
    for sizes, name in (((0, 8), "batch_size"), ((4, 0), "sequence_length")):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            TextStreams(np.arange(9), *sizes)
    with pytest.raises(TypeError, match="ids: expected integer ids"):
        TextStreams(np.array(["a", "b"]), 1, 1)
