"""cuda_launch.py: sources put together, arguments checked, and products in every layout."""

import numpy as np
import pytest

from fastseq.backends import precision
from fastseq.backends.cuda_launch import gemm, kernel, macros_of, source


def test_a_source_holds_its_includes_once():
    text = source("dropout.cu")
    assert "#include" not in text.replace("//", "")
    assert text.count("Philox4x32-10 (Salmon") == 1


def test_arguments_have_the_kernels_sizes(cupy):
    dropout = kernel("dropout.cu", "dropout", **macros_of(np.float32))
    x = cupy.ones(8, np.float32)
    rest = (np.uint32(0), np.float32(2), np.uint64(1), np.uint32(0), np.uint32(0))
    dropout(1, 32, (x, x, np.int64(8), *rest))
    assert (x.get() == 2).all()
    dropout(0, 32, (x, x, np.int64(8), *rest))  # launches nothing
    with pytest.raises(TypeError, match="one size"):
        dropout(1, 32, (x, x, np.int64(8), np.uint32(0), 2.0, *rest[2:]))
    with pytest.raises(OverflowError, match="does not fit"):
        dropout(1, 32, (x, x, 2**31, *rest))


def layouts(cupy, to_gpu, x):
    """x as the C-contiguous array, the transpose of one, and a part of a wider one."""
    yield to_gpu(x)
    yield to_gpu(np.ascontiguousarray(np.swapaxes(x, -1, -2))).swapaxes(-1, -2)
    wide = cupy.empty((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    wide[..., 1 : 1 + x.shape[-1]] = to_gpu(x)
    yield wide[..., 1 : 1 + x.shape[-1]]


@pytest.mark.parametrize("front", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize(("M", "K", "N"), [(5, 7, 4), (1, 6, 3), (4, 1, 5), (3, 5, 1), (1, 1, 1), (2, 0, 3), (0, 3, 2)])
def test_products_of_every_layout(cupy, to_gpu, rng, dtype, front, M, K, N):
    a, b, c = (rng.standard_normal((*front, *shape)).astype(dtype) for shape in ((M, K), (K, N), (M, N)))
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for left in layouts(cupy, to_gpu, a):
        for right in layouts(cupy, to_gpu, b):
            np.testing.assert_allclose(gemm(left, right).get(), a @ b, atol=tolerance)
            for out in list(layouts(cupy, to_gpu, c))[::2]:
                assert gemm(left, right, out, accumulate=True) is out
                np.testing.assert_allclose(out.get(), a @ b + c, atol=tolerance)


@pytest.mark.parametrize(("word", "error"), [("highest", 2e-6), ("high", 3e-3), ("medium", 3e-2)])
def test_float32_products_have_the_process_precision(to_gpu, rng, monkeypatch, word, error):
    monkeypatch.setattr(precision, "_process", word)
    a, b = (rng.standard_normal((64, 64)) for _ in range(2))
    found = np.abs(gemm(to_gpu(a.astype(np.float32)), to_gpu(b.astype(np.float32))).get() - a @ b).max() / np.sqrt(64)
    assert error / 100 < found < error
    assert np.abs(gemm(to_gpu(a), to_gpu(b)).get() - a @ b).max() < 1e-13


def test_products_of_bfloat16_are_float32(to_gpu, rng):
    def bits(x):
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    a, b = (np.round(rng.standard_normal(shape) * 8) for shape in ((3, 4), (4, 5)))  # whole numbers below 128 are bfloat16's too
    product = gemm(to_gpu(bits(a)), to_gpu(bits(b)))
    assert product.dtype == np.float32
    np.testing.assert_array_equal(product.get(), a @ b)


def test_a_product_is_captured_into_a_graph(cupy, to_gpu, rng):
    a, b = to_gpu(rng.standard_normal((3, 4))), to_gpu(rng.standard_normal((4, 5)))
    out = gemm(a, b)
    want, stream = out.get(), cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        gemm(a, b, out)
        graph = stream.end_capture()
    a *= 2
    graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(out.get(), 2 * want)
