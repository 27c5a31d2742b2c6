"""Embeddings, layer norm and the optimisers' updates on the device, each against the reference."""

import importlib

import numpy as np
import pytest

from fastseq import backends
from fastseq.backends import cuda, reference
from tests.cuda.against_reference import LAYOUTS, check, in_double, laid_out, run
from tests.tolerance import assert_close, assert_same_bits

# ---------------------------------------------------------------- embedding


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(7,), (4, 3), (), (0,), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("D", [8, 6, 5, 0])
def test_embedding_forward(shape, D, layout, dtype, rng):
    ids, weight = np.asarray(rng.integers(0, 9, shape)), rng.standard_normal((9, D)).astype(dtype)
    assert_same_bits(run("embedding_forward", ids, weight, layout=layout), reference.embedding_forward(ids, weight))


# Few places, each of which looks for its like; and sorted ones, in pieces of 32.
@pytest.mark.parametrize("few", [4096, 0], ids=["few", "sorted"])
@pytest.mark.parametrize("padding_idx", [-1, 2])
@pytest.mark.parametrize(("n", "V", "D"), [(300, 3, 8), (70, 40, 6), (33, 3, 5), (1, 4, 4), (0, 4, 4), (40, 5, 530)])
def test_embedding_backward(n, V, D, padding_idx, few, dtype, rng, monkeypatch):
    monkeypatch.setattr("fastseq.backends.cuda_embedding._FEW", few)
    ids, dy = rng.integers(0, V, n), rng.standard_normal((n, D)).astype(dtype)
    check("embedding_backward", dy, ids, V, padding_idx=padding_idx, terms=n)
    assert_same_bits(*(run("embedding_backward", dy, ids, V, padding_idx=padding_idx, layout=layout) for layout in ("dense", "spread")))


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_ids_find_outside(n, rng):
    ids = rng.integers(0, 10, n)
    assert run("ids_find_outside", ids, 10) == -1
    for position in {0, n // 2, n - 1} if n else ():
        for wrong in (10, -1, 2**62, -(2**63)):
            bad = ids.copy()
            bad[position] = wrong
            assert run("ids_find_outside", bad, 10) == position
            bad[-1] = -5
            assert run("ids_find_outside", bad, 10) == position
            assert run("ids_find_outside", bad, 10, layout="spread") == position


# ---------------------------------------------------------------- layer norm


@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, np.float32) for shape in ((3, 1), (2, 9, 20), (70, 67), (2, 1030), (2, 5000), (2, 16390), (0, 5), (3, 0))),
        *((shape, np.float64) for shape in ((2, 9, 20), (70, 67), (2, 16390), (0, 5), (3, 0))),
    ],
    ids=str,
)
def test_layer_norm(shape, centred, dtype, rng):
    N, terms = shape[-1], max(shape)
    x, residual, dy, ds = (rng.standard_normal(shape).astype(dtype) for _ in range(4))
    weight, bias = (rng.standard_normal(N).astype(dtype) for _ in range(2))
    options = {"eps": 0.5, "centred": centred}
    for r, w, b in ((residual, weight, bias), (None, None, None), (None, weight, None), (None, None, bias)):
        check("layer_norm_forward", x, r, w, b, terms=terms, **options)
    _, s, mean, rstd = reference.layer_norm_forward(x, residual, weight, bias, **options)
    for more, w in ((ds, weight), (None, None)):
        check("layer_norm_backward", dy, more, s, mean, rstd, w, terms=terms)
    for needs in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        asked = dict(zip(("need_dx", "need_dweight", "need_dbias"), needs, strict=True))
        check("layer_norm_backward", dy, None, s, mean, rstd, weight, terms=terms, **asked)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layer_norm_in_any_layout(layout, dtype, rng):
    x, residual, dy = (rng.standard_normal((3, 5, 20)).astype(dtype) for _ in range(3))
    weight, bias = (rng.standard_normal(20).astype(dtype) for _ in range(2))
    forward = [x, residual, weight, bias]
    for got, want in zip(*(run("layer_norm_forward", *forward, layout=way, eps=1e-5) for way in (layout, "dense")), strict=True):
        assert_same_bits(got, want)
    _, s, mean, rstd = reference.layer_norm_forward(*forward, eps=1e-5)
    backward = [dy, residual, s, mean, rstd, weight]
    for got, want in zip(*(run("layer_norm_backward", *backward, layout=way) for way in (layout, "dense")), strict=True):
        assert_same_bits(got, want)


def test_a_nan_stays_in_its_row(dtype, rng):
    x = rng.standard_normal((9, 20)).astype(dtype)
    dirty = x.copy()
    dirty[4, 3] = np.nan
    clean, spoiled = (run("layer_norm_forward", v, None, None, None, eps=1e-5)[0] for v in (x, dirty))
    assert np.isnan(spoiled[4]).all()
    assert_same_bits(np.delete(spoiled, 4, 0), np.delete(clean, 4, 0))


# ---------------------------------------------------------------- optimisers


def check_update(name, arrays, *, layout="dense", **options):
    """One update on the device as by the reference in float64."""
    dtype, wide = arrays[0].dtype, [in_double(a).copy() if a is not None else None for a in arrays]
    getattr(reference, name)(*wide, **options)
    moved = [laid_out(a, layout) for a in arrays]
    rows = options.pop("rows", None)
    getattr(cuda, name)(*moved, **options, **({} if rows is None else {"rows": laid_out(rows)}))
    for i, (got, want) in enumerate(zip(moved, wide, strict=True)):
        if want is not None:
            assert_close(got.get(), want, dtype=dtype, terms=8, name=f"{name}, array {i}")


UPDATES = {
    "sgd": (1, [{"momentum": 0.9, "nesterov": n, "first": f} for n, f in ((False, True), (True, False), (False, False))]),
    "adagrad": (1, [{"eps": 1e-10}]),
    "adam": (2, [{"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "decoupled": d, "step": s} for d, s in ((False, 1), (True, 7))]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(67,), (5, 16), (0,), (1, 1)], ids=str)
@pytest.mark.parametrize("name", UPDATES)
def test_updates(name, shape, layout, dtype, rng):
    states, ways = UPDATES[name]
    for options in ways:
        w, grad = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        state = [np.abs(rng.standard_normal(shape)).astype(dtype) for _ in range(states)]
        check_update(name, [w, *state, grad], layout=layout, lr=0.1, weight_decay=0.01, **options)


@pytest.mark.parametrize("D", [8, 6, 5])
@pytest.mark.parametrize("name", UPDATES)
def test_updates_of_rows(name, D, dtype, rng):
    states, ways = UPDATES[name]
    w, grad, rows = rng.standard_normal((9, D)).astype(dtype), rng.standard_normal((3, D)).astype(dtype), np.array([7, 0, 4])
    state = [np.abs(rng.standard_normal(w.shape)).astype(dtype) for _ in range(states)]
    check_update(name, [w, *state, grad], lr=0.1, weight_decay=0.01, rows=rows, **ways[0])
    none = [w, *state, grad[:0]]
    check_update(name, none, lr=0.1, weight_decay=0.01, rows=rows[:0], **ways[0])


def test_plain_descent(dtype, rng):
    w, grad = (rng.standard_normal((5, 7)).astype(dtype) for _ in range(2))
    check_update("sgd", [w, None, grad], lr=0.1, momentum=0.0, nesterov=False, first=True, weight_decay=0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rmsprop(momentum, centred, layout, dtype, rng):
    w, velocity, mean, grad = (rng.standard_normal((5, 17)).astype(dtype) for _ in range(4))
    arrays = [w, 2 + mean**2, velocity if momentum else None, mean if centred else None, grad]
    check_update("rmsprop", arrays, layout=layout, lr=0.1, alpha=0.9, eps=1e-3, momentum=momentum, weight_decay=0.01)


def test_a_variance_below_zero_and_a_nan(dtype):
    w, square, mean, grad = (np.full(9, v, dtype) for v in (1, 1 - 1e-3, 1, 0.99))
    grad[5] = np.nan
    arrays = [laid_out(a) for a in (w, square)]
    cuda.rmsprop(*arrays, None, laid_out(mean), laid_out(grad), lr=0.1, alpha=0.9, eps=1.0, momentum=0.0, weight_decay=0.0)
    got = arrays[0].get()
    assert np.isnan(got[5])
    assert np.allclose(np.delete(got, 5), 1 - 0.1 * 0.99, atol=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adam_of_many_arrays_has_the_bits_of_each(layout, dtype, rng):
    options = {"lr": 0.1, "weight_decay": 0.01, **UPDATES["adam"][1][0]}
    shapes = [(3, 7), (9001,), (0,), (1,), (4096,)]
    work = [tuple(np.abs(rng.standard_normal(shape)).astype(dtype) for _ in range(4)) for shape in shapes]
    work.append(tuple(a.astype(np.float64 if dtype == np.float32 else np.float32) for a in work[0]))
    alone = [tuple(map(laid_out, arrays)) for arrays in work]
    together = [tuple(laid_out(a, layout) for a in arrays) for arrays in work]
    for _ in range(2):
        cuda.adam_all(tuple(together), **options)
        for arrays in alone:
            cuda.adam(*arrays, **options)
    for i, (got, want) in enumerate(zip(together, alone, strict=True)):
        for k in range(4):
            assert_same_bits(got[k].get(), want[k].get(), f"array {k} of {i}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_and_scaling(layout, dtype, rng):
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 7), (20000,), (0,), (1,))]
    got = cuda.sum_squares(*(laid_out(a, layout) for a in arrays))
    assert type(got) is float
    assert got == pytest.approx(reference.sum_squares(*arrays), rel=1e-13)
    assert cuda.sum_squares() == 0.0
    scaled = [laid_out(a, layout) for a in arrays]
    cuda.scale(*scaled, factor=0.3)
    cuda.scale(factor=0.3)
    for x, a in zip(scaled, arrays, strict=True):
        assert_same_bits(x.get(), a * dtype(0.3))


def test_arrays_choose_this_backend():
    assert backends.backend_of(laid_out(np.zeros(3))).__name__ == cuda.__name__


def test_the_tables_of_one_stream_are_not_read_by_another(cupy):
    """A table is sent by the stream that asks first; nothing makes another one wait for it."""
    shares, x = importlib.import_module("fastseq.backends.cuda_optim")._shares, cupy.zeros(5, np.float32)
    first = shares([(x,)])
    assert shares([(x,)]) is first
    with cupy.cuda.Stream(non_blocking=True):
        assert shares([(x,)]) is not first
