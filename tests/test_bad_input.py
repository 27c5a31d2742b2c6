"""What bad input gets: one sentence that names the argument, what was expected and what came, before anything is computed."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F


def huge(*shape, dtype=np.float32):
    """An array of any size that takes four bytes."""
    return np.broadcast_to(np.zeros((), dtype), shape)


f32, f64 = np.float32, np.float64
X, W, U, B, S = np.zeros((6, 2, 3), f32), np.zeros((20, 3), f32), np.zeros((20, 5), f32), np.zeros(20, f32), np.zeros((2, 5), f32)
A = np.zeros((4, 3), f32)
IDS = np.array([0, 1, 2])

REFUSED = [
    # lstm: ranks, shapes, dtypes
    (lambda: F.lstm(X[0], W, U), ValueError, r"x: expected shape \(T, B, 3\), got \(2, 3\)"),
    (lambda: F.lstm(X[..., :2], W, U), ValueError, r"x: expected shape \(T, B, 3\), got \(6, 2, 2\)"),
    (lambda: F.lstm(X, W[:19], U), ValueError, r"w_ih: expected shape \(20, I\), got \(19, 3\)"),
    (lambda: F.lstm(X, W[0], U), ValueError, r"w_ih: expected shape \(20, I\), got \(3,\)"),
    (lambda: F.lstm(X, W, U[:, :4]), ValueError, r"w_hh: expected shape \(4 H, H\), got \(20, 4\)"),
    (lambda: F.lstm(X, W, U[0]), ValueError, r"w_hh: expected shape \(4 H, H\), got \(5,\)"),
    (lambda: F.lstm(X, W, U, B[:19]), ValueError, r"b_ih: expected shape \(20,\), got \(19,\)"),
    (lambda: F.lstm(X, W, U, B, B[None]), ValueError, r"b_hh: expected shape \(20,\), got \(1, 20\)"),
    (lambda: F.lstm(X, W, U, h_0=S[:1]), ValueError, r"h_0: expected shape \(2, 5\), got \(1, 5\)"),
    (lambda: F.lstm(X, W, U, c_0=S[None]), ValueError, r"c_0: expected shape \(2, 5\), got \(1, 2, 5\)"),
    (lambda: F.lstm(X.astype(f64), W, U), TypeError, "w_ih: expected float64, got float32"),
    (lambda: F.lstm(X, W, U, h_0=S.astype(f64)), TypeError, "h_0: expected float32, got float64"),
    (lambda: F.lstm(X.astype(np.float16), W, U), TypeError, "x: expected float32 or float64, got float16"),
    (lambda: F.lstm(X, None, U), TypeError, "w_ih: expected an array or a Tensor, got NoneType"),
    (lambda: F.lstm(X.tolist(), W, U), TypeError, "x: expected an array or a Tensor, got list"),
    (lambda: F.lstm_forward(fs.Tensor(X), W, U, B, B), TypeError, "x: expected an array, got a Tensor; functional.lstm records"),
    (lambda: F.lstm_backward(3, X), TypeError, "cache: expected what lstm_forward returned, got int"),
    (lambda: F.lstm_backward(F.lstm_forward(X, W, U, B, B)[3], X), ValueError, r"dy: expected shape \(6, 2, 5\), got \(6, 2, 3\)"),
    (lambda: F.lstm_backward(F.lstm_forward(X, W, U, B, B)[3], np.zeros((6, 2, 5))), TypeError, "dy: expected float32, got float64"),
    (lambda: F.lstm_backward(F.lstm_forward(X, W, U, B, B)[3], np.zeros((6, 2, 5), f32), dc=S[0]), ValueError,
     r"dc: expected shape \(2, 5\), got \(5,\)"),
    (lambda: F.lstm(huge(2**40, 2**20, 0), huge(2**22, 0), huge(2**22, 2**20)), ValueError, "x: a result of shape .* address space"),
    # layers: what NumPy would take for something else
    (lambda: fs.nn.LSTM(3, 5)(None), TypeError, "x: expected an array of numbers, got NoneType"),
    (lambda: fs.nn.LSTM(3, 5)([[1.0], [1.0, 2.0]]), ValueError, "x: expected an array, got a list that NumPy cannot make one of"),
    (lambda: fs.nn.LSTM(3, 5)(X, (S,)), TypeError, r"state: expected \(h_0, c_0\), each of shape \(1, 2, 5\), got tuple of 1"),
    (lambda: fs.nn.LSTM(3, 5, dtype=None), TypeError, "dtype: expected float32 or float64, got None"),
    (lambda: fs.nn.LSTM(3, True), TypeError, "hidden_size: expected an integer, got bool"),
    (lambda: fs.nn.LSTM(2**62, 5), ValueError, "sizes: a result of shape .* address space"),
    (lambda: fs.nn.LSTM(3, 5).stream(2**62), ValueError, "batch_size: a result of shape .* address space"),
    (lambda: fs.nn.Embedding(4, 2, padding_idx=1.5), TypeError, "padding_idx: expected an integer, got float"),
    (lambda: fs.Tensor(np.ma.array(X)), TypeError, "data: expected a plain array, got a masked one"),
    # products
    (lambda: F.matmul(A, A), ValueError, r"b: expected shape \(3, N\) to fit a of shape \(4, 3\), got \(4, 3\)"),
    (lambda: F.matmul(A, f32(2.0)), ValueError, r"a, b: expected at least one axis each, got \(4, 3\) and \(\)"),
    (lambda: F.matmul(np.zeros((2, 4, 3), f32), np.zeros((3, 3, 4), f32)), ValueError,
     r"a, b: leading axes do not broadcast, got \(2, 4, 3\) and \(3, 3, 4\)"),
    (lambda: F.matmul(A, A.T.astype(f64)), TypeError, "b: expected float32, got float64"),
    (lambda: F.matmul(A.astype(int), A.T.astype(int)), TypeError, "a: expected float32 or float64, got int64"),
    (lambda: F.matmul(A.astype(np.longdouble), A.T), TypeError, "a: expected float32 or float64, got longdouble|float128"),
    (lambda: F.matmul(A.astype(">f4"), A.T), TypeError, "a: expected float32 or float64, got >f4"),
    (lambda: F.matmul(A.astype(object), A.T), TypeError, "a: expected float32 or float64, got object"),
    (lambda: F.matmul(A, [[1.0]] * 3), TypeError, "b: expected an array or a Tensor, got list"),
    (lambda: F.matmul(huge(2**40, 0), huge(0, 2**40)), ValueError, "a, b: a result of shape .* address space"),
    (lambda: F.pack(A[0]), ValueError, r"b: expected shape \(K, N\), got \(3,\)"),
    (lambda: F.linear(A, np.zeros((2, 4), f32)), ValueError, r"x: expected shape \(\.\.\., 4\), got \(4, 3\)"),
    (lambda: F.linear(A, np.zeros(3, f32)), ValueError, r"weight: expected shape \(O, I\), got \(3,\)"),
    (lambda: F.linear(A, np.zeros((2, 3), f32), np.zeros(3, f32)), ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
    (lambda: F.linear(A, np.zeros((2, 3))), TypeError, "weight: expected float32, got float64"),
    (lambda: F.linear(huge(2**40, 0), huge(2**40, 0)), ValueError, "x: a result of shape .* address space"),
    # ids
    (lambda: F.embedding(np.array([0, 3, 4]), A.T), IndexError, "ids: 3 is outside the vocabulary of 3"),
    (lambda: F.embedding(np.array([0, -1]), A), IndexError, "ids: -1 is outside the vocabulary of 4"),
    (lambda: F.embedding(np.array([2**64 - 1], np.uint64), A), IndexError, "ids: 18446744073709551615 is outside the vocabulary of 4"),
    (lambda: F.embedding(np.array([0.0]), A), TypeError, "ids: expected integer ids, got float64"),
    (lambda: F.embedding(np.array([True]), A), TypeError, "ids: expected integer ids, got bool"),
    (lambda: F.embedding(IDS, A[0]), ValueError, r"weight: expected shape \(V, D\), got \(3,\)"),
    (lambda: F.embedding(IDS, A, padding_idx=4), ValueError, r"padding_idx: expected an integer in \[0, 4\), got 4"),
    (lambda: F.embedding(IDS, A.astype(np.float16)), TypeError, "weight: expected float32 or float64, got float16"),
    (lambda: F.embedding(huge(2**40, dtype=int), huge(1, 2**30)), ValueError, "ids: a result of shape .* address space"),
    # cross_entropy
    (lambda: F.cross_entropy(A, np.array([0, 1, 3, 2])), IndexError, "targets: 3 is outside the vocabulary of 3"),
    (lambda: F.cross_entropy(A, np.array([0, 1, -1, 2])), IndexError, "targets: -1 is outside the vocabulary of 3"),
    (lambda: F.cross_entropy(A, np.array([0, -100, -7, 2]), ignore_index=-100), IndexError, "targets: -7 is outside the vocabulary of 3"),
    (lambda: F.cross_entropy(A, np.zeros(4)), TypeError, "targets: expected integer ids, got float64"),
    (lambda: F.cross_entropy(A, np.zeros(3, int)), ValueError, r"targets: expected shape \(4,\), got \(3,\)"),
    (lambda: F.cross_entropy(A[None], np.zeros(4, int)), ValueError, r"logits: expected shape \(N, V\), got \(1, 4, 3\)"),
    (lambda: F.cross_entropy(A, np.zeros(4, int), reduction="avg"), ValueError, "reduction: expected 'mean', 'sum' or 'none', got 'avg'"),
    (lambda: F.cross_entropy(A, np.zeros(4, int), label_smoothing=1.5), ValueError, "label_smoothing: .*between 0 and 1, got 1.5"),
    (lambda: F.cross_entropy(A, np.zeros(4, int), ignore_index="x"), TypeError, "ignore_index: expected an integer, got str"),
    (lambda: F.cross_entropy(np.zeros((4, 0), f32), np.zeros(4, int)), IndexError, "targets: 0 is outside the vocabulary of 0"),
    # elementwise
    (lambda: fs.Tensor(A) + A.astype(f64), TypeError, "b: expected float32, got float64"),
    (lambda: A.astype(f64) * fs.Tensor(A), TypeError, "b: expected float64, got float32"),
    (lambda: fs.Tensor(A) * np.float64(2.0), TypeError, "b: expected float32, got float64; .*a Python number"),
    (lambda: fs.Tensor(A) + np.zeros((4, 2), f32), ValueError, r"b: expected a shape that broadcasts with \(4, 3\), got \(4, 2\)"),
    (lambda: fs.Tensor(A) + "1", TypeError, "b: expected an array or a Tensor, got str"),
    (lambda: fs.Tensor(A) * None, TypeError, "b: expected an array or a Tensor, got NoneType"),
    (lambda: F.add(1, 2), TypeError, "a, b: expected an array or a Tensor on one side"),
    (lambda: F.tanh(A.astype(int)), TypeError, "x: expected float32 or float64, got int64"),
    (lambda: F.exp(np.ma.masked_array(A, A == 0)), TypeError, "x: expected a plain array, got a masked one"),
    (lambda: F.relu(2.0), TypeError, "x: expected an array or a Tensor, got float"),
    (lambda: F.softmax(A, axis=2), ValueError, "axis: expected an axis of an array with 2 axes, got 2"),
    (lambda: F.softmax(A, axis=1.0), TypeError, "axis: expected an integer, got float"),
    (lambda: F.softmax(np.array(1.0)), ValueError, "axis: expected an axis of an array with 0 axes, got -1"),
    (lambda: F.log_softmax(A.astype(np.complex64)), TypeError, "x: expected float32 or float64, got complex64"),
    # dropout
    (lambda: F.dropout(A, 1.5), ValueError, "p: expected a probability between 0 and 1, got 1.5"),
    (lambda: F.dropout(A, float("nan")), ValueError, "p: expected a probability between 0 and 1, got nan"),
    (lambda: F.dropout(A, "half"), TypeError, "p: expected a number, got str"),
    (lambda: F.dropout(A, seed=-1), ValueError, "seed: expected an integer in .*, got -1"),
    (lambda: F.dropout(A, seed=1, layer=2**32), ValueError, "layer: expected an integer in .*, got 4294967296"),
    (lambda: F.dropout(A, rng="x"), TypeError, "rng: expected None, a seed or a numpy.random.Generator, got str"),
    # options that are True or False
    (lambda: F.rotary_embedding(A[:, :2], A[:, :1], A[:, :1], interleaved="half"), TypeError, "^interleaved: expected True or False, got str"),
    # shapes
    (lambda: F.reshape(A, 5, -1), ValueError, r"shape: expected 12 elements, as x of shape \(4, 3\) has, got \(5, -1\)"),
    (lambda: F.transpose(A, 0, 0), ValueError, r"axes: expected an order of 2 axes, got \(0, 0\)"),
    (lambda: F.transpose(A, 0), ValueError, r"axes: expected an order of 2 axes, got \(0,\)"),
    (lambda: F.swapaxes(A, 0, 2), ValueError, "axis2: expected an axis of an array with 2 axes, got 2"),
    (lambda: F.sum(A, axis=2), ValueError, "axis: expected an axis of an array with 2 axes, got 2"),
    (lambda: F.sum(A, axis=(0, -2)), ValueError, r"axis: expected different axes, got \(0, -2\)"),
    (lambda: F.max(A[:0], axis=0), ValueError, r"x: expected at least one element along axis 0, got shape \(0, 3\)"),
    (lambda: fs.concatenate([]), ValueError, "tensors: expected at least one array, got none"),
    (lambda: fs.concatenate([A, A.astype(f64)]), TypeError, r"tensors\[1\]: expected float32, got float64"),
    (lambda: fs.concatenate([A, A[:, :2]]), ValueError, r"tensors\[1\]: expected shape \(N, 3\), got \(4, 2\)"),
    (lambda: fs.stack([A, A[:2]]), ValueError, r"tensors\[1\]: expected shape \(4, 3\), got \(2, 3\)"),
    (lambda: fs.where(A, A, A), TypeError, "condition: expected bool, got float32"),
    (lambda: fs.where(A > 0, A, A.astype(f64)), TypeError, "b: expected float32, got float64"),
    (lambda: fs.where(A > 0, 1.0, 2.0), TypeError, "a, b: expected an array or a Tensor on one side"),
    (lambda: fs.where(A[0] > 0, A.T, A), ValueError, "condition, a, b: shapes do not broadcast, got"),
    (lambda: F.mse_loss(A, A[0]), ValueError, r"target: expected shape \(4, 3\), got \(3,\)"),
    (lambda: F.l1_loss(A, A.astype(f64)), TypeError, "target: expected float32, got float64"),
    (lambda: F.rmse_loss(A, A[0]), ValueError, r"target: expected shape \(4, 3\), got \(3,\)"),
    (lambda: F.huber_loss(A, A, delta=0), ValueError, "delta: expected more than 0, got 0"),
    (lambda: F.binary_cross_entropy_with_logits(A, A > 0), TypeError, "target: expected float32, got bool"),
    (lambda: F.binary_cross_entropy_with_logits(A, A, pos_weight=A[0, :2]), ValueError, r"pos_weight: expected a shape that broadcasts to \(4, 3\), got \(2,\)"),
    (lambda: F.negative_sampling_loss(A[:, 0], A[:, :0]), ValueError, r"negative: expected at least one drawn pair, got shape \(4, 0\)"),
    (lambda: F.negative_sampling_loss(A[:, 0], A, count=0), ValueError, "count: expected more than 0, got 0"),
    (lambda: F.negative_sampling_loss(A, A), ValueError, r"negative: expected shape \(4, 3, K\), got \(4, 3\)"),
    (lambda: F.mse_loss(A, A, reduction=None), ValueError, "reduction: expected 'mean', 'sum' or 'none', got None"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_bad_input_gets_one_sentence(number):
    call, error, message = REFUSED[number]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


class _GpuArray:
    __cuda_array_interface__ = {"version": 3}
    dtype, shape, ndim, size = np.dtype(np.float32), (4, 3), 2, 12


def test_gpu_arrays_of_another_library_are_told_where_to_go():
    for call in (lambda: F.tanh(_GpuArray()), lambda: fs.Tensor(_GpuArray())):
        with pytest.raises(TypeError, match=r"expected a NumPy or CuPy array, got .*_GpuArray, which is on a GPU; cupy\.asarray\(x\)"):
            call()


def test_tensors_of_pytorch_are_called_by_their_whole_name():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"x: expected an array or a Tensor, got torch\.Tensor$"):
        F.tanh(torch.zeros(3))
    with pytest.raises(TypeError, match=r"^x: expected an array, got a torch\.Tensor that requires a gradient, .*; pass x\.detach\(\)$"):
        fs.nn.LSTM(3, 5)(torch.zeros(6, 2, 3, requires_grad=True))
    with pytest.raises(TypeError, match=r"^x: expected an array, got a torch\.Tensor that NumPy cannot make one of$"):
        fs.nn.LSTM(3, 5)(torch.zeros(6, 2, 3, dtype=torch.bfloat16))


def test_results_too_large_for_memory_raise_memory_error():
    with pytest.raises(MemoryError):
        F.matmul(huge(2**30, 1), huge(1, 2**20))
