"""Positions and the helpers for masks: values, offsets, gradients, and what is refused."""

import copy
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn
from fastseq.functional import rotary_embedding, split
from tests.tolerance import assert_close


def normal(rng, *shape, dtype=np.float64):
    return rng.standard_normal(shape).astype(dtype)


def encodings(batch_first=False, dtype=np.float64):
    return {
        "sinusoidal": nn.SinusoidalPositionalEncoding(6, batch_first=batch_first, dtype=dtype),
        "learned": nn.LearnedPositionalEncoding(12, 6, batch_first=batch_first, dtype=dtype, rng=0),
        "one-hot": nn.OneHotPositionalEncoding(12, batch_first, dtype=dtype),
    }


@pytest.mark.parametrize("name", ["sinusoidal", "learned", "one-hot"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layouts_and_offsets(name, batch_first, dtype, rng):
    """A row of a batch, a single sequence, and the parts of one sequence all get the same."""
    encode, x = encodings(batch_first, dtype)[name], normal(rng, 3, 7, 6, dtype=dtype)
    given = x if batch_first else x.swapaxes(0, 1)
    y = encode(given)
    y = y if batch_first else y.swapaxes(0, 1)
    assert y.dtype == dtype
    for row, want in zip(x, y, strict=True):
        assert np.array_equal(encode(row), want)
        assert np.array_equal(np.concatenate([encode(row[:3]), encode(row[3:], offset=3)]), want)
    offsets = np.array([0, 5, 2])
    shifted = encode(given, offset=offsets)
    for row, offset, want in zip(x, offsets, shifted if batch_first else shifted.swapaxes(0, 1), strict=True):
        assert np.array_equal(encode(row, offset=int(offset)), want)
    recorded = encode(fs.Tensor(given, requires_grad=True), offset=offsets)
    assert np.array_equal(recorded.data, shifted)
    recorded.sum().backward()


@pytest.mark.parametrize("E", [1, 2, 5, 8])
def test_sines_and_cosines(E, dtype):
    encode = nn.SinusoidalPositionalEncoding(E, base=50.0, dtype=dtype)
    got = encode(np.zeros((9, E)))
    for t in range(9):
        for i in range(E):
            angle = t / 50.0 ** (2 * (i // 2) / E)
            assert_close(got[t, i], np.sin(angle) if i % 2 == 0 else np.cos(angle), dtype=dtype)
    far = encode(np.zeros((1, E)), offset=100_000)  # the table grows
    assert_close(far[0, 0], np.sin(100_000.0), dtype=dtype)
    assert np.array_equal(encode(np.zeros((9, E))), got)


def test_one_hot_positions():
    y = nn.OneHotPositionalEncoding(4)(np.full((3, 2, 1), 9), offset=[1, 0])
    assert y.dtype == np.float32
    assert np.array_equal(y[:, 0], np.column_stack([[9, 9, 9], np.eye(4)[1:]]))
    assert np.array_equal(y[:, 1], np.column_stack([[9, 9, 9], np.eye(4)[:3]]))


def test_gradients(rng):
    x = fs.Tensor(normal(rng, 4, 2, 6), requires_grad=True)
    for encode in encodings().values():
        assert fs.gradcheck(lambda x, *parameters, encode=encode: (encode(x, offset=[1, 3]) ** 3).sum(), [x, *encode.parameters()])


def test_dropout_of_positions():
    for encode in (nn.SinusoidalPositionalEncoding(8, 0.5, rng=0), nn.LearnedPositionalEncoding(9, 8, 0.5, rng=0)):
        x = np.ones((9, 2, 8), np.float32)
        first = encode(x)
        assert 0.3 < (first == 0).mean() < 0.7
        assert not np.array_equal(encode(x), first)
        assert (encode.eval()(x) != 0).all()


def test_the_learned_table_starts_small():
    assert nn.LearnedPositionalEncoding(300, 200, rng=0).weight.data.std() == pytest.approx(0.02, rel=0.02)


# ---------------------------------------------------------------- rotary


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6), (3, 2, 5, 6)], ids=str)
def test_rotary_positions(shape, interleaved, dtype, rng):
    """Each pair, read as a complex number, is multiplied by exp(i angle)."""
    rotary, x = nn.RotaryEmbedding(6, 70.0, interleaved, dtype=dtype), normal(rng, *shape, dtype=dtype)
    pairs = x.reshape(*shape[:-1], 3, 2) if interleaved else x.reshape(*shape[:-1], 2, 3).swapaxes(-1, -2)
    offsets = 4 if len(shape) == 2 else np.array([0, 7, 2])
    t = np.asarray(offsets).reshape(-1, *(1,) * (len(shape) - 2)) + np.arange(5)
    angle = t.reshape((5,) if len(shape) == 2 else t.shape)[..., None] * 70.0 ** (-2 * np.arange(3) / 6)
    turned = (pairs[..., 0] + 1j * pairs[..., 1].astype(complex)) * np.exp(1j * angle)
    want = np.stack([turned.real, turned.imag], axis=-1 if interleaved else -2).reshape(shape)
    assert_close(rotary(x, offset=offsets), want, dtype=dtype, terms=4)


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_of_rotary_positions(interleaved, rng):
    rotary = nn.RotaryEmbedding(4, interleaved=interleaved, dtype=np.float64)
    q = fs.Tensor(normal(rng, 2, 3, 4), requires_grad=True)
    assert fs.gradcheck(lambda q: (rotary(q, offset=[0, 2]) ** 3).sum(), [q])


def test_scores_of_turned_vectors_depend_on_their_distance(rng):
    layer = nn.MultiheadAttention(8, 2, rotary=nn.RotaryEmbedding(4, dtype=np.float64), dtype=np.float64, rng=0)
    x = np.broadcast_to(normal(rng, 8), (6, 1, 8))
    _, weights = layer(x, average_attn_weights=False)
    for scores in np.log(weights[0]):
        for t in range(5):  # up to the softmax of each row
            np.testing.assert_allclose(np.diff(scores[t])[:4], np.diff(scores[t + 1])[1:], rtol=1e-6, atol=1e-12)
    assert not np.allclose(weights, 1 / 6)


def test_rotary_views_keep_their_layout(rng):
    heads = normal(rng, 2, 5, 3, 4, dtype=np.float32).transpose(0, 2, 1, 3)
    rotary = nn.RotaryEmbedding(4)
    y = rotary(heads)
    assert y.strides == heads.strides
    assert np.array_equal(y, rotary(np.ascontiguousarray(heads)))


@pytest.mark.parametrize("make", [lambda: nn.SinusoidalPositionalEncoding(4), lambda: nn.RotaryEmbedding(4)])
def test_tables_are_made_again_after_copies(make):
    encode, x = make(), np.ones((5, 4), np.float32)
    want = encode(x)
    for twin in (copy.deepcopy(encode), pickle.loads(pickle.dumps(encode))):
        assert not ({"_table", "_tables"} & twin.__dict__.keys())
        assert np.array_equal(twin(x), want)
        assert repr(twin) == repr(encode)


# ---------------------------------------------------------------- masks and padding


def test_padding_mask():
    assert np.array_equal(nn.padding_mask([2, 0, 3], 4), [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    assert nn.padding_mask(fs.Tensor(np.array([1, 2]))).shape == (2, 2)
    assert nn.padding_mask([]).shape == (0, 0)
    assert nn.padding_mask([0]).shape == (1, 0)


def test_causal_mask():
    mask = nn.causal_mask(4)
    assert mask.dtype == bool
    assert all(mask[i, j] == (j > i) for i in range(4) for j in range(4))
    assert nn.causal_mask(0).shape == (0, 0)


def test_pad_sequences(rng):
    parts = [normal(rng, n, 3, dtype=np.float32) for n in (2, 0, 4)]
    batch, lengths = nn.pad_sequences(parts, padding_value=-1)
    assert batch.shape == (4, 3, 3)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert lengths.tolist() == [2, 0, 4]
    for row, part in enumerate(parts):
        assert np.array_equal(batch[: len(part), row], part)
        assert (batch[len(part) :, row] == -1).all()
    longer, _ = nn.pad_sequences(parts, batch_first=True, T=6)
    assert longer.shape == (3, 6, 3)
    for dtype, value in ((np.int8, -128), (np.uint8, 2.0), (bool, True), (np.float32, np.nan), (np.float32, -np.inf), (np.float16, 7), (complex, 1j)):
        padded, _ = nn.pad_sequences([np.ones(2, dtype), np.ones(1, dtype), []], padding_value=value)
        assert padded.dtype == dtype
        assert np.array_equal(padded[1, 1], dtype(value), equal_nan=True)
    with fs.no_grad():
        assert nn.pad_sequences([fs.Tensor(np.ones(2), requires_grad=True)])[0].shape == (2, 1)
    ids, lengths = nn.pad_sequences([[1, 2], [], [3]], batch_first=True)
    assert ids.dtype == np.int64
    assert ids.tolist() == [[1, 2], [0, 0], [3, 0]]
    assert np.array_equal(nn.padding_mask(lengths) & (ids != 0), np.zeros((3, 2)))


def test_split(rng):
    x = fs.Tensor(normal(rng, 3, 5), requires_grad=True)
    a, b, c = split(x, [1, 0, 4], axis=-1)
    assert np.array_equal(np.concatenate([a.data, c.data], axis=1), x.data)
    assert b.shape == (3, 0)
    assert fs.gradcheck(lambda x: sum((p * p * p).sum() for p in split(x, [2, 3], axis=1)), [x])
    (c * c).sum().backward()  # nothing comes back from a
    assert np.array_equal(x.grad[:, 0], np.zeros(3))
    assert np.shares_memory(split(x.data, [1, 2])[1], x.data)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.padding_mask([2, 5], 4), "lengths: expected lengths from 0 to 4, got 5"),
        (lambda: nn.padding_mask([2, -1], 4), "lengths: expected lengths from 0 to 4, got -1"),
        (lambda: nn.padding_mask([2.0]), "lengths: expected integers, got float64"),
        (lambda: nn.padding_mask(3), r"lengths: expected shape \(B,\), got \(\)"),
        (lambda: nn.causal_mask(-1), "T: expected an integer"),
        (lambda: nn.causal_mask(2.0), "T: expected an integer, got float"),
        *((lambda v=v: nn.pad_sequences([[1, 2], [3]], padding_value=v), "padding_value: expected an integer from -9223372036854775808 to ") for v in (0.5, np.nan, 2**63)),
        *((lambda v=v: nn.pad_sequences([np.ones(2, np.uint8)], padding_value=v), "padding_value: expected an integer from 0 to 255, as uint8 holds, got ") for v in (300, -1)),
        (lambda: nn.pad_sequences([np.ones(2, bool)], padding_value=2), "padding_value: expected an integer from 0 to 1, as bool holds, got 2"),
        *((lambda v=v: nn.pad_sequences([[1.0]], padding_value=v), "padding_value: expected a number, got ") for v in ("a", None, [0])),
        (lambda: nn.pad_sequences([np.ones(1, np.float32)], padding_value=1e300), "padding_value: expected a number that float32 holds, got 1e.300"),
        (lambda: nn.pad_sequences([[1.0]], padding_value=1j), "padding_value: expected a number that float64 holds, got 1j"),
        (lambda: nn.pad_sequences([[1.0]], batch_first=np.ones(2)), "batch_first: expected True or False, got ndarray"),
        (lambda: nn.pad_sequences([[1], [1.5]]), r"sequences\[1\]: expected int64, as those before it, got float64"),
        (lambda: nn.pad_sequences([[1], np.array([1, None])]), r"sequences\[1\]: expected numbers, got object"),
        (lambda: nn.pad_sequences([["a"]]), r"sequences\[0\]: expected numbers, got <U1"),
        (lambda: nn.pad_sequences([[1], [[1], [2, 3]]]), r"sequences\[1\]: expected an array, got a list that NumPy cannot"),
        (lambda: nn.pad_sequences([fs.Tensor(np.ones(2), requires_grad=True)]), r"sequences\[0\]: expected an array, got a Tensor that requires a gradient"),
        (lambda: nn.pad_sequences([]), "sequences: expected at least one, got none"),
        (lambda: nn.pad_sequences([[1, 2], [3]], T=1), r"sequences\[0\]: expected at most T = 1 elements, got 2"),
        (lambda: nn.pad_sequences([np.ones((2, 3)), np.ones((2, 4))]), r"sequences\[1\]: expected shape \('length', 3\), got \(2, 4\)"),
        (lambda: nn.pad_sequences([1, 2]), r"sequences\[0\]: expected shape"),
        (lambda: nn.SinusoidalPositionalEncoding(4)(np.ones((2, 5))), r"x: expected shape \(T, B, 4\) or \(T, 4\), got \(2, 5\)"),
        (lambda: nn.SinusoidalPositionalEncoding(4, batch_first=True)(np.ones(4)), r"x: expected shape \(B, T, 4\) or \(T, 4\), got \(4,\)"),
        (lambda: nn.SinusoidalPositionalEncoding(4)(np.ones((2, 4)), offset=-1), "offset: expected at least 0, got -1"),
        (lambda: nn.SinusoidalPositionalEncoding(4)(np.ones((2, 4)), offset=0.5), "offset: expected integers, got float64"),
        (lambda: nn.SinusoidalPositionalEncoding(4)(np.ones((2, 3, 4)), offset=[1, 2]), r"offset: expected an integer or shape \(3,\)"),
        (lambda: nn.SinusoidalPositionalEncoding(4, base=0), "base: expected a positive number, got 0"),
        (lambda: nn.SinusoidalPositionalEncoding(4, base="e"), "base: expected a number, got str"),
        (lambda: nn.LearnedPositionalEncoding(4, 2)(np.ones((3, 2)), offset=2), "x: expected positions below max_length = 4, got one at 4"),
        (lambda: nn.OneHotPositionalEncoding(4)(np.ones((5, 2))), "x: expected positions below max_length = 4, got one at 4"),
        (lambda: nn.OneHotPositionalEncoding(0), "max_length: expected at least 1, got 0"),
        (lambda: nn.RotaryEmbedding(3), "head_dim: expected an even number, got 3"),
        (lambda: nn.RotaryEmbedding(4)(np.ones((2, 6))), r"x: expected shape \(..., T, 4\), got \(2, 6\)"),
        (lambda: rotary_embedding(np.ones(3), np.ones(1), np.ones(1)), r"x: expected shape \(..., D\) with an even D, got \(3,\)"),
        (lambda: rotary_embedding(np.ones((2, 4)), np.ones(2), np.ones(3)), r"sin: expected a shape that broadcasts to \(2, 2\), got \(3,\)"),
        (lambda: rotary_embedding(np.ones((2, 4)), np.ones(2, np.float32), np.ones(2)), "cos: expected float64, got float32"),
        (lambda: split(np.ones(3), [1, 1]), r"sizes: expected sizes that add up to 3, got \[1, 1\]"),
        (lambda: split(np.ones(3), [3], axis=1), "axis: expected an axis of an array with 1 axes, got 1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
