"""Streams on a GPU: the steps of the sequence, one graph each, over a state that can be read, set and reset."""

import copy
import importlib
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq.backends import reference
from fastseq.backends.recurrent import CELLS, Noise
from tests.recurrent_problems import Problem
from tests.tolerance import assert_close, assert_same_bits


@pytest.fixture(scope="module")
def cuda():
    return importlib.import_module("fastseq.backends.cuda")


def _layers(problem, rng, dtype):
    """Weights of two layers, and x."""
    above = Problem(problem.cell, I=problem.P or problem.H, H=problem.H, P=problem.P, peephole=problem.peephole, layer_norm=problem.layer_norm)
    return (problem.weights(rng, dtype), above.weights(rng, dtype)), rng.standard_normal((5, 3, problem.I)).astype(dtype)


def _options(cell):
    yield {}
    if cell == "lstm":
        yield {"peephole": True, "P": 4, "layer_norm": True}
    if cell == "gru":
        yield {"layer_norm": True}


def _tupled(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_steps_of_the_sequence(cuda, to_gpu, cell, dtype, rng):
    zoneout = 0.2, 0.3 if cell == "lstm" else 0.0
    for options in _options(cell):
        weights, x = _layers(Problem(cell, **options), rng, dtype)
        stream = cuda.recurrent_stream(tuple(cuda.recurrent_pack(cell, (to_gpu(w),)) for w in weights), batch_size=3, zoneout=zoneout)
        want = x.astype(np.float64)
        ends = []
        for w in weights:
            wide = type(w)(*(None if a is None else a.astype(np.float64) for a in w))
            packed = reference.recurrent_pack(cell, (wide,))
            want, h, c, *_ = reference.recurrent_forward(want, None, None, packed, noise=Noise(zoneout_h=zoneout[0], zoneout_c=zoneout[1]))
            ends.append((h[0], c) if c is None else (h[0], c[0]))
        for t in range(5):
            assert_close(stream.step(to_gpu(x[t])).get(), want[t], dtype=dtype, terms=2000, name=f"step {t}")
        assert [loop.recorded for loop in stream._loops.values()] == [True]
        for part, found in enumerate(_tupled(stream.state)):
            for k, end in enumerate(ends):
                assert_close(found[k].get(), end[part], dtype=dtype, terms=2000, name=f"state of layer {k}")


def test_each_cuda_stream_has_a_graph_of_its_own(cupy, to_gpu, rng):
    """A graph's products have the scratch of the CUDA stream it was recorded for, where graphs run one after another."""
    stream, x = fs.nn.GRU(4, 5, rng=0).to("cuda").eval().stream(batch_size=3), to_gpu(rng.standard_normal((3, 4)).astype(np.float32))
    other = cupy.cuda.Stream(non_blocking=True)
    for _ in range(3):
        stream.step(x)
    cupy.cuda.get_current_stream().synchronize()
    with other:
        for _ in range(3):
            stream.step(x)
    other.synchronize()
    graphs = list(stream._loops.values())
    assert len(graphs) == 2
    assert graphs[0]._scratch is not graphs[1]._scratch


@pytest.mark.parametrize("kind", [fs.nn.LSTM, fs.nn.GRU, fs.nn.MUT3])
def test_state_out_and_reset(cupy, to_gpu, kind, rng):
    layer = kind(4, 5, num_layers=2, rng=0).to("cuda").eval()
    x = to_gpu(rng.standard_normal((4, 3, 4)).astype(np.float32))
    stream = layer.stream(batch_size=3)
    first = [stream.step(x[t]).get() for t in range(4)]
    end = [a.get() for a in _tupled(stream.state)]
    stream.reset()
    out = cupy.empty((3, 5), np.float32)
    for t in range(4):
        assert stream.step(x[t], out) is out
        assert_same_bits(out.get(), first[t])
    _tupled(stream.state)[0][...] = 9  # a copy
    for got, want in zip(_tupled(stream.state), end, strict=True):
        assert_same_bits(got.get(), want)
    stream.reset(rows=[1])
    for got, want in zip(_tupled(stream.state), end, strict=True):
        assert not got.get()[:, 1].any()
        assert_same_bits(got.get()[:, [0, 2]], want[:, [0, 2]])
    for rows in (np.array([True, False, True]), 1, slice(0, 1), cupy.asarray([2])):
        stream.reset(rows=rows)
    assert not any(a.get().any() for a in _tupled(stream.state))
    state = tuple(map(cupy.asarray, end))
    stream.state = state if len(state) > 1 else state[0]
    for got, want in zip(_tupled(stream.state), end, strict=True):
        assert_same_bits(got.get(), want)
    with pytest.raises(IndexError, match="rows: expected an index"):
        stream.reset(rows=[7])


def test_a_snapshot_until_refreshed_that_travels(to_gpu, rng):
    layer = fs.nn.LSTM(4, 5, rng=0).to("cuda").eval()
    x = to_gpu(rng.standard_normal((3, 2, 4)).astype(np.float32))
    stream = layer.stream(batch_size=2)
    stream.step(x[0])
    layer.weight_hh_l0.data[...] *= 2
    state, want = stream.state, stream.step(x[1]).get()
    for one in (stream, copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        one.state = state
        assert_same_bits(one.step(x[1]).get(), want)
    stream.state = state
    stream.refresh()
    assert (stream.step(x[1]).get() != want).any()


def test_what_it_refuses(cuda, cupy, to_gpu, rng):
    weights, x = _layers(Problem("gru"), rng, np.float32)
    layers = tuple(cuda.recurrent_pack("gru", (to_gpu(w),)) for w in weights)
    stream = cuda.recurrent_stream(layers, batch_size=3)
    want = stream.step(to_gpu(x[0])).get()
    before = stream.state.get()
    for bad, error, message in (
        (x[0], TypeError, "x: expected a CuPy array"),
        (to_gpu(x[0, :2]), ValueError, r"x: expected shape \(3, 6\)"),
        (to_gpu(x[0] + 1j), TypeError, "got complex"),
    ):
        with pytest.raises(error, match=message):
            stream.step(bad)
    turned = cupy.empty((9, 3), np.float32).T
    for out, error in ((np.empty((3, 9), np.float32), TypeError), (cupy.empty((3, 9), np.float64), ValueError), (turned, ValueError)):
        with pytest.raises(error, match="out: expected"):
            stream.step(to_gpu(x[1]), out)
    assert_same_bits(stream.state.get(), before)
    again = cuda.recurrent_stream(layers, batch_size=3)
    assert_same_bits(again.step(to_gpu(x[0])).get(), want)
    assert_same_bits(stream.step(to_gpu(x[1].astype(np.float64))).get(), again.step(to_gpu(x[1])).get())
    with pytest.raises(ValueError, match="do not go above"):
        cuda.recurrent_stream(layers[::-1], batch_size=3)
    with pytest.raises(ValueError, match="layers: expected 2"):
        stream.load(layers[:1])
    with pytest.raises(ValueError, match="layers: expected float32 weights"):
        stream.load(layers[::-1])
    with pytest.raises(ValueError, match="at least one"):
        cuda.recurrent_stream((), batch_size=3)
    with pytest.raises(RuntimeError, match="refresh"):
        stream.refresh()


def test_a_step_allocates_nothing(cuda, cupy, to_gpu, rng, monkeypatch):
    """With `out`: everything lies where it lay before."""
    weights, x = _layers(Problem("lstm"), rng, np.float32)
    stream = cuda.recurrent_stream(tuple(cuda.recurrent_pack("lstm", (to_gpu(w),)) for w in weights), batch_size=3)
    x, out = to_gpu(x), cupy.empty((3, 9), np.float32)
    for t in range(3):
        stream.step(x[t], out)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    for name in ("empty", "zeros", "empty_like"):
        monkeypatch.setattr(cupy, name, None)
    for t in range(5):
        stream.step(x[t], out)
    assert pool.used_bytes() == before
