"""On a GPU alone: sizes that fill it, against the reference and, bit for bit, against themselves."""

import numpy as np
import pytest

from fastseq.backends import cuda, reference
from fastseq.backends.window import Window
from tests.cuda.against_reference import check, laid_out, run
from tests.tolerance import assert_same_bits

pytestmark = pytest.mark.usefixtures("real_gpu")

LOSS = {"ignore_index": -100, "label_smoothing": 0.1}


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3000, 256), (2000, 1024), (700, 650), (300, 10_000), (100, 32_000)], ids=str)
def test_rows(shape, rng):
    x, dy, residual = (normal(rng, *shape) for _ in range(3))
    weight, bias = normal(rng, shape[1]), normal(rng, shape[1])
    targets = rng.integers(0, shape[1], shape[0])
    check("softmax_forward", x, terms=shape[1] // 8)
    check("softmax_backward", reference.softmax_forward(x), dy, terms=shape[1])
    check("bias_backward", dy, terms=shape[0])
    check("layer_norm_forward", x, residual, weight, bias, eps=1e-5, terms=shape[1])
    _, s, mean, rstd = reference.layer_norm_forward(x, residual, weight, bias, eps=1e-5)
    check("layer_norm_backward", dy, None, s, mean, rstd, weight, terms=shape[0])
    check("cross_entropy_forward", x, targets, terms=shape[1] // 8, **LOSS)
    lse = reference.cross_entropy_forward(x, targets, **LOSS)[1]
    check("cross_entropy_backward", lse, x, targets, np.array(0.01, np.float32), terms=16, **LOSS)


@pytest.mark.parametrize(("n", "V", "D"), [(2240, 10_000, 512), (20_000, 300, 650), (100_000, 5, 64)])
def test_tables(n, V, D, rng):
    ids, dy = rng.integers(0, V, n), normal(rng, n, D)
    check("embedding_backward", dy, ids, V, padding_idx=3, terms=n)


def test_dropout_of_many(rng):
    x, options = normal(rng, 3_000_001), {"p": 0.2, "seed": 7, "layer": 1, "call": 2}
    assert_same_bits(run("dropout", x, **options), reference.dropout(x, **options))


def thrice(name, *arrays, **options):
    """Asserts that three calls give the same bits."""
    moved = [laid_out(a) for a in arrays]
    found = [getattr(cuda, name)(*moved, **options) for _ in range(3)]
    for again in found[1:]:
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (found[0], again)), strict=True):
            if a is not None:
                assert_same_bits(b.get() if hasattr(b, "get") else np.asarray(b), a.get() if hasattr(a, "get") else np.asarray(a), name)


def test_every_call_has_the_same_bits(rng):
    M, N, V = 3000, 650, 2000
    x, dy, weight = normal(rng, M, N), normal(rng, M, N), normal(rng, N)
    table, bias, targets = normal(rng, V, N) / 25, normal(rng, V), rng.integers(0, V, M)
    thrice("bias_backward", dy)
    _, s, mean, rstd = reference.layer_norm_forward(x, None, weight, None, eps=1e-5)
    thrice("layer_norm_backward", dy, None, s, mean, rstd, weight)
    thrice("embedding_backward", dy, targets, V, padding_idx=-1)
    thrice("embedding_backward", normal(rng, 20_000, 64), rng.integers(0, 50, 20_000), 50, padding_idx=-1)
    lse = run("linear_cross_entropy_forward", x, table, bias, targets, **LOSS)[1]
    thrice("linear_cross_entropy_backward", lse, x, table, bias, targets, np.array(0.01, np.float32), **LOSS)
    thrice("sum_squares", x, table)
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), (28, 28))
    image, filters = normal(rng, 16, 32, 28, 28), normal(rng, 32, 16, 3, 3)
    thrice("conv_backward", image, image, filters, groups=2, window=window)
    planes = image.reshape(16, 32, -1)
    thrice("batch_norm_backward", planes, planes, None, planes.mean((0, 2)), planes.var((0, 2)), eps=1e-5, given=False)
