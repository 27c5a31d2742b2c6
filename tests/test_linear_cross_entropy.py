"""linear_cross_entropy beyond the table of cases: many chunks of rows, memory, the halves of the pair, NaN, bad input."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from tests.cases import Case, reference_results
from tests.conftest import WAYS, using
from tests.tolerance import assert_close, assert_same_bits


def problem(rng, dtype, N=7, H=5, V=17):
    x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((N, H), (V, H), (V,)))
    return x, weight, bias, rng.integers(0, V, N)


@pytest.mark.parametrize(("N", "V"), [(203, 11000), (97, 44000)])
def test_many_chunks_of_rows(N, V, dtype, rng):
    """More rows than the logits of one chunk have, the last chunk shorter, ignored rows among them."""
    shapes = {"x": (N, 3), "weight": (V, 3), "bias": (V,), "targets": (N,)}
    case = Case("linear_cross_entropy", shapes, {"ignore_index": -1, "label_smoothing": 0.1}, {"targets": V}, terms=N + 3)
    inputs = case.inputs(rng, dtype)
    want = reference_results(case, inputs, None)
    first = None
    for isa, threads in WAYS:
        with using(isa, threads):
            got = case.evaluate(inputs, np.random.default_rng(1))
            assert_close(got["output 0"], want["output 0"], dtype=dtype, terms=V)
            first = got if threads == 1 else first
            for name in got:
                assert_same_bits(got[name], first[name], f"{name} ({isa}, {threads} threads)")
    # The gradients against those of the composition, whose own chain is tested.
    x, weight, bias = (fs.Tensor(inputs[n].astype(np.float64), requires_grad=True) for n in ("x", "weight", "bias"))
    upstream = np.float64(np.random.default_rng(1).standard_normal(()).astype(dtype))
    (F.cross_entropy(F.linear(x, weight, bias), inputs["targets"], **case.options) * float(upstream)).backward()
    for name, tensor in (("dx", x), ("dweight", weight), ("dbias", bias)):
        assert_close(got[name], tensor.grad, dtype=dtype, terms=2 * N + 40, name=name)


MEMORY = """
import numpy as np
import tracemalloc
import fastseq as fs

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

fs.set_num_threads(2)
N, H, V = 6000, 8, 20000
rng = np.random.default_rng(0)
x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((N, H), (V, H), (V,)))
targets = rng.integers(0, V, N)
tensors = [fs.Tensor(a, requires_grad=True) for a in (x, weight, bias)]
fs.functional.linear_cross_entropy(*[t.data[:2] for t in tensors], targets[:2] % 2).sum()
before = peak()
tracemalloc.start()
fs.functional.linear_cross_entropy(*tensors, targets).backward()
print(tracemalloc.get_traced_memory()[1], peak() - before, N * V * 4)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's record of the peak")
def test_memory_never_holds_the_logits():
    """Of 480 MB of logits: NumPy's arrays are the gradients, scratch is a chunk and the products'."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    arrays, resident, logits = map(int, done.stdout.split())
    assert arrays < logits / 100
    assert resident < logits / 10


def test_the_halves_are_the_whole(dtype, isa, threads, rng):
    x, weight, bias, targets = problem(rng, dtype)
    targets[2] = -100
    dlosses = rng.standard_normal(7).astype(dtype)
    losses, cache = F.linear_cross_entropy_forward(x, weight, bias, targets)
    tensors = [fs.Tensor(a, requires_grad=True) for a in (x, weight, bias)]
    loss = F.linear_cross_entropy(*tensors, targets, reduction="none")
    assert_same_bits(losses, loss.data)
    loss.backward(dlosses)
    for _ in range(2):
        got = F.linear_cross_entropy_backward(cache, np.repeat(dlosses, 2)[::2])
        for name, tensor in zip(("dx", "dweight", "dbias"), tensors, strict=True):
            assert_same_bits(got[name], tensor.grad, name)
    _, cache = F.linear_cross_entropy_forward(x, weight, None, targets)
    assert F.linear_cross_entropy_backward(cache, dlosses)["dbias"] is None


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_a_gradient_for_one_input_only(wanted, rng):
    *arrays, targets = problem(rng, np.float64)
    values = dict(zip(("x", "weight", "bias"), arrays, strict=True))
    grads = []
    for need in (tuple(values), (wanted,)):
        tensors = {name: fs.Tensor(v, requires_grad=name in need) for name, v in values.items()}
        F.linear_cross_entropy(**tensors, targets=targets).backward()
        assert [name for name in values if tensors[name].grad is not None] == [name for name in values if name in need]
        grads.append(tensors[wanted].grad)
    assert_same_bits(grads[1], grads[0])


def test_no_row_counts(dtype, isa):
    x, weight = (fs.Tensor(np.ones(shape, dtype), requires_grad=True) for shape in ((3, 5), (4, 5)))
    loss = F.linear_cross_entropy(x, weight, None, np.full(3, -100))
    assert np.isnan(loss.data)
    loss.backward()
    assert not x.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stays_in_its_row(value, dtype, isa, threads, rng):
    x, weight, bias, targets = problem(rng, dtype, N=40)
    spoiled = x.copy()
    spoiled[5, 1] = value
    clean, dirty = (F.linear_cross_entropy(v, weight, bias, targets, reduction="none") for v in (x, spoiled))
    others = np.arange(40) != 5
    assert not np.isfinite(dirty[5])
    assert_same_bits(dirty[others], clean[others])


def test_bad_input_is_refused_in_a_sentence():
    x, weight, bias, targets = np.ones((2, 3)), np.ones((4, 3)), np.ones(4), np.array([0, 3])
    loss, forward = F.linear_cross_entropy, F.linear_cross_entropy_forward
    _, cache = forward(x, weight, bias, targets)
    for call, error, text in (
        (lambda: loss(x[0], weight, bias, targets), ValueError, "x: expected shape (N, H), got (3,)"),
        (lambda: loss(x, weight.T, bias, targets), ValueError, "weight: expected shape (V, 3), got (3, 4)"),
        (lambda: loss(x, weight, np.ones(3), targets), ValueError, "bias: expected shape (4,), got (3,)"),
        (lambda: loss(x, weight.astype(np.float32), bias, targets), TypeError, "weight: expected float64, got float32"),
        (lambda: loss(x, weight, bias, np.array([0, 4])), IndexError, "targets: 4 is outside the vocabulary of 4"),
        (lambda: loss(x, weight, bias, np.zeros(3, int)), ValueError, "targets: expected shape (2,), got (3,)"),
        (lambda: loss(x, weight, bias, np.zeros(2)), TypeError, "targets: expected integer ids, got float64"),
        (lambda: loss(x, weight, bias, targets, reduction="max"), ValueError, "reduction: expected 'mean', 'sum' or 'none', got 'max'"),
        (lambda: loss(x, weight, bias, targets, label_smoothing=2), ValueError, "label_smoothing: expected a probability between 0 and 1, got 2"),
        (lambda: forward(fs.Tensor(x), weight, bias, targets), TypeError, "x: expected an array, got a Tensor; linear_cross_entropy records Tensors"),
        (lambda: F.linear_cross_entropy_backward(1, np.ones(2)), TypeError, "cache: expected what linear_cross_entropy_forward returned, got int"),
        (lambda: F.linear_cross_entropy_backward(cache, np.ones(3)), ValueError, "dlosses: expected shape (2,), got (3,)"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == text
