"""Recurrent layers on a GPU against the reference in float64: every cell and option, all gradients; masks, graphs, caches, bits."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastseq as fs
from fastseq.backends import cpu, reference
from fastseq.backends.recurrent import CELLS, Noise, Weights, gates_of
from tests.recurrent_problems import NOISE, OPTIONS, Problem, assert_all_same, gradients, options_named
from tests.test_recurrent_combinations import problems
from tests.tolerance import assert_close, assert_same_bits


@pytest.fixture(scope="module")
def cuda():
    return importlib.import_module("fastseq.backends.cuda")


@pytest.fixture(autouse=True)
def _step_by_step(monkeypatch):
    """No layer goes to the kernels that do all steps; test_recurrent_persistent.py is about them."""
    monkeypatch.setattr(importlib.import_module("fastseq.backends.cuda_persistent"), "fits", lambda *sizes: False)


@pytest.fixture(scope="module")
def run(cuda, to_gpu):
    """All that forward and backward give on the GPU, as NumPy arrays."""
    return lambda problem, a, **options: {name: g.get() for name, g in problem.results(cuda, to_gpu(a), **options).items()}


def _assert_right(got, problem, a, label=""):
    want = problem.results(reference, a.wide())
    assert got.keys() == want.keys()
    for name in want:
        assert_close(got[name], want[name], dtype=a.x.dtype, terms=2 * problem.terms, name=f"{name} {label}")


@pytest.mark.parametrize("option", OPTIONS, ids=", ".join)
def test_options(run, option, rng):
    problem = OPTIONS[option]
    for dtype in (np.float32, np.float64):
        a = problem.inputs(rng, dtype)
        first = run(problem, a)
        _assert_right(first, problem, a)
        assert_all_same(run(problem, a), first, "recorded")
        assert_all_same(run(problem, a), first, "again")


MANY = ["lstm", "gru", "mut3"]
EVERYTHING = Noise(0.3, 0.2, 0.4, True, 5, 1, 2)


def _everything(cell, **sizes):
    """Two directions with every option that the cell has."""
    noise = EVERYTHING if cell == "lstm" else EVERYTHING._replace(zoneout_c=0.0)
    problem = Problem(cell, directions=2, lengths=True, reset=True, noise=noise, **sizes)
    return replace(problem, layer_norm=cell in ("lstm", "gru"), peephole=cell == "lstm", P=11 if cell == "lstm" else 0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 2, 5, 130), (70, 3, 0, 4)], ids=str)
def test_sizes(run, cell, sizes, rng):
    """One of each; more units than a block has threads; more steps than one stage adds, and no inputs at all."""
    T, B, I, H = sizes
    for problem in (Problem(cell, T, B, I, H), _everything(cell, T=T, B=B, I=I, H=H)):
        a = problem.inputs(rng, np.float64)
        _assert_right(run(problem, a), problem, a, str(sizes))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)], ids=str)
def test_no_steps_or_no_rows(run, cell, sizes, rng):
    for problem in (Problem(cell, T=sizes[0], B=sizes[1]), _everything(cell, T=sizes[0], B=sizes[1])):
        a = problem.inputs(rng, np.float32)
        _assert_right(run(problem, a), problem, a)


@pytest.mark.parametrize("every", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("cell", CELLS)
def test_checkpoints(run, cell, every, rng):
    problem = _everything(cell, T=7, B=3)
    a = problem.inputs(rng, np.float64)
    _assert_right(run(problem, a, checkpoint_every=every), problem, a, f"every {every}")


@pytest.mark.parametrize("cell", MANY)
def test_lengths_of_zero_and_of_all_steps(run, cell, rng):
    problem = replace(_everything(cell), T=3, B=4)
    for lengths in ([0, 0, 0, 0], [3, 3, 3, 3], [0, 3, 1, 0]):
        a = problem.inputs(rng, np.float64)._replace(lengths=np.array(lengths))
        _assert_right(run(problem, a), problem, a, str(lengths))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems(), st.integers(0, 2**32), st.sampled_from([None, 1, 2, 3]))
def test_any_options_at_once(run, problem, seed, every):
    a = problem.inputs(np.random.default_rng(seed), np.float64)
    _assert_right(run(problem, a, checkpoint_every=every), problem, a, f"every {every}")


# ---------------------------------------------------------------- what does not matter


@pytest.mark.parametrize("option", [o for o in OPTIONS if OPTIONS[o].lengths], ids=", ".join)
def test_padding_does_not_matter(run, option, rng):
    problem = OPTIONS[option]
    a = problem.inputs(rng, np.float32)
    past = np.arange(problem.T)[:, None] >= a.lengths
    spoiled = a._replace(x=a.x.copy(), dy=a.dy.copy(), reset=None if a.reset is None else a.reset | past)
    spoiled.x[past] = spoiled.dy[past] = np.nan
    if a.dcells is not None:
        spoiled = spoiled._replace(dcells=a.dcells.copy())
        spoiled.dcells[:, past] = np.nan
    assert_all_same(run(problem, spoiled), run(problem, a), "with NaN in the padding")


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_stops_nan(run, cell, rng):
    problem = Problem(cell, T=4, B=5, reset=True)
    a = problem.inputs(rng, np.float32)
    a = a._replace(reset=np.zeros_like(a.reset))
    a.reset[2] = True
    want, spoiled = run(problem, a), a._replace(x=a.x.copy())
    spoiled.x[1, 2, 0] = np.nan
    assert_same_bits(run(problem, spoiled)["y"][2:], want["y"][2:])
    spoiled = a._replace(dy=a.dy.copy())
    spoiled.dy[2, 2] = np.nan
    got = run(problem, spoiled)
    assert_same_bits(got["dx"][:2], want["dx"][:2])
    assert_same_bits(got["dh_0"], want["dh_0"])


@pytest.mark.parametrize("cell", CELLS)
def test_upstream_gradients_that_are_none_are_zeros(cuda, to_gpu, cell, rng):
    problem = Problem(cell, directions=2)
    a = to_gpu(problem.inputs(rng, np.float32))
    *_, cache = problem.forward(cuda, a)
    given = [n for n in ("dy", "dh_n", "dc_n", "dcells") if getattr(a, n) is not None]
    for name in given:
        only = a._replace(**{n: None for n in given if n != name})
        zeros = a._replace(**{n: 0 * getattr(a, n) for n in given if n != name})
        got, want = gradients(cuda, cache, only), gradients(cuda, cache, zeros)
        for k in want:
            np.testing.assert_array_equal(got[k].get(), want[k].get(), err_msg=f"{k} of {name} alone")


@pytest.mark.parametrize("option", options_named("plain", "all but noise", "layer norm", "two directions, lengths, noise"), ids=", ".join)
def test_recording_and_all_states_change_no_bit(cuda, to_gpu, option, rng):
    problem = OPTIONS[option]
    a = to_gpu(problem.inputs(rng, np.float32))
    y, h_n, c_n, cells, _ = problem.forward(cuda, a)
    for training, states in ((False, False), (True, False), (False, True)):
        for _ in range(2):
            *plain, cache = problem.forward(cuda, a, training=training, states=states)
            assert (cache is None) == (not training)
            for got, want in zip(plain, (y, h_n, c_n, cells if states else None), strict=True):
                assert (got is None) == (want is None)
                if want is not None:
                    assert_same_bits(got.get(), want.get())


def test_what_is_not_needed_does_not_come(cuda, to_gpu, rng):
    problem = Problem("lstm", directions=2)
    a = to_gpu(problem.inputs(rng, np.float32))
    *_, cache = problem.forward(cuda, a)
    grads = cuda.recurrent_backward(cache, a.dy, None, None, need_dx=False, need_weights=False)
    assert grads["dx"] is None
    assert grads["dstates"] is None
    assert grads["weights"] == (None, None)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("name", ["recurrent dropout", "zoneout"])
def test_masks_are_the_cpus(cuda, to_gpu, name, rng):
    """Rounding aside: weights of powers of two make every number exact, so masks of other bits would show."""
    T, B, H = 5, 3, 37
    noise = NOISE[name]
    for direction in (0, 1):
        w = Weights(np.ones((H, 1), np.float32), np.eye(H, dtype=np.float32))
        x = np.exp2(rng.integers(-3, 3, (T, B, 1))).astype(np.float32)
        exact = noise._replace(recurrent_dropout=0.5 if noise.recurrent_dropout else 0.0)
        results = []
        for backend, move in ((cpu, lambda a: a), (cuda, to_gpu)):
            packed = backend.recurrent_pack("rnn_relu", tuple(Weights(*map(move, w[:2])) for _ in range(2)))
            y, *_ = backend.recurrent_forward(move(x), move(np.ones((2, B, H), np.float32)), None, packed, noise=exact)
            results.append(y[..., direction * H : (direction + 1) * H])
        assert_same_bits(results[1].get(), np.ascontiguousarray(results[0]))


def test_keys_are_the_references():
    masks = importlib.import_module("fastseq.backends.cuda_recurrent_masks")
    for noise in NOISE.values():
        for direction in (0, 1):
            for kind, key in enumerate(masks.keys_of(noise, direction)):
                counter = np.array([[kind, noise.layer + direction, noise.call, 0x7265636E]], np.uint64)
                w0, w1 = (int(w) for w in reference._philox(noise.seed, counter)[0, :2])
                assert key == w0 | w1 << 32


# ---------------------------------------------------------------- plans, graphs and caches


@pytest.fixture
def pool():
    """The pool of plans, empty."""
    module = importlib.import_module("fastseq.backends.cuda_recurrent_pool")
    module.clear()
    yield module
    module.clear()


@pytest.mark.parametrize("cell", MANY)
def test_two_caches_at_a_time(cuda, to_gpu, pool, cell, rng):
    problem = _everything(cell, T=5)
    inputs = [to_gpu(problem.inputs(rng, np.float32)) for _ in range(2)]
    want = [{n: g.get() for n, g in problem.results(cuda, a).items()} for a in inputs]
    for _ in range(3):
        caches = [problem.forward(cuda, a)[4] for a in inputs]
        for k in (0, 1, 0):
            got = gradients(cuda, caches[k], inputs[k])
            assert_all_same({n: g.get() for n, g in got.items()}, {n: want[k][n] for n in got}, f"cache {k}")
        del caches
    assert pool.waiting() == 2


@pytest.mark.parametrize("option", options_named("all but noise", "layer norm", "two directions, lengths, noise"), ids=", ".join)
def test_backward_twice(cuda, to_gpu, option, rng):
    problem = OPTIONS[option]
    a = to_gpu(problem.inputs(rng, np.float32))
    *outputs, cache = problem.forward(cuda, a)
    copies = [None if o is None else o.get() for o in outputs]
    first = gradients(cuda, cache, a)
    kept = {name: g.get() for name, g in first.items()}
    gradients(cuda, cache, a._replace(dy=2 * a.dy, dh_n=None, dcells=None))
    assert_all_same({name: g.get() for name, g in gradients(cuda, cache, a).items()}, kept, "again")
    assert_all_same({name: g.get() for name, g in first.items()}, kept, "of the first call")
    for o, copy in zip(outputs, copies, strict=True):
        assert copy is None or o.get().tobytes() == copy.tobytes()


def test_a_plan_records_its_loops_in_the_second_run(cuda, to_gpu, pool, rng):
    problem = Problem("lstm", peephole=True)
    a = to_gpu(problem.inputs(rng, np.float32))
    for recorded in (False, True, True):
        *_, cache = problem.forward(cuda, a)
        plan = cache.held.lease.plan
        gradients(cuda, cache, a)
        loops = [plan.forward_loop, *plan.backward_loops.values()]
        assert [loop.failure for loop in loops] == [None, None]
        assert [loop.recorded for loop in loops] == [recorded, recorded]
        del cache


def test_long_loops_are_several_graphs(run, rng, monkeypatch):
    monkeypatch.setattr(importlib.import_module("fastseq.backends.cuda_graph"), "_AT_ONCE", 3)
    problem = replace(_everything("gru"), T=8, B=2)
    a = problem.inputs(rng, np.float64)
    first = run(problem, a)
    _assert_right(first, problem, a)
    assert_all_same(run(problem, a), first)


def test_a_loop_that_cannot_be_recorded_is_launched(cuda, cupy, to_gpu, pool, rng, monkeypatch):
    """As where something else in the process keeps streams from being captured."""
    problem = Problem("gru", directions=2, reset=True)
    a = to_gpu(problem.inputs(rng, np.float32))

    def refuse(self, *args):
        raise RuntimeError("cudaErrorStreamCaptureUnsupported")

    want = {n: g.get() for n, g in problem.results(cuda, a).items()}
    with monkeypatch.context() as patch:
        graph = importlib.import_module("fastseq.backends.cuda_graph")
        patch.setattr(graph, "_recorded", refuse)
        with pytest.warns(RuntimeWarning, match="kernel by kernel: cudaErrorStreamCaptureUnsupported"):
            assert_all_same({n: g.get() for n, g in problem.results(cuda, a).items()}, want)
        assert_all_same({n: g.get() for n, g in problem.results(cuda, a).items()}, want)
    *_, cache = problem.forward(cuda, a)
    assert cache.held.lease.plan.forward_loop.failure == "cudaErrorStreamCaptureUnsupported"
    pool.clear()
    for _ in range(3):
        assert_all_same({n: g.get() for n, g in problem.results(cuda, a).items()}, want)


def test_another_stream_has_its_own_plans(cuda, cupy, to_gpu, pool, rng):
    """And a cache may be walked back on a stream that is not its own."""
    problem = Problem("lstm", peephole=True)
    a = to_gpu(problem.inputs(rng, np.float32))
    want = {n: g.get() for n, g in problem.results(cuda, a).items()}
    *_, cache = problem.forward(cuda, a)
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.wait_event(cupy.cuda.get_current_stream().record())
    with stream:
        got = {n: g.get() for n, g in gradients(cuda, cache, a).items()}
        assert_all_same(got, {n: want[n] for n in got})
        assert_all_same({n: g.get() for n, g in problem.results(cuda, a).items()}, want)
        stream.synchronize()
    del cache
    assert pool.waiting() == 1  # the first one's memory may still be read by the other stream


def test_the_pool_keeps_no_more_than_its_share(cuda, to_gpu, pool, rng, monkeypatch):
    monkeypatch.setattr(pool, "properties", lambda: SimpleNamespace(memory=0))
    problem = Problem("lstm", peephole=True)
    problem.results(cuda, to_gpu(problem.inputs(rng, np.float32)))
    assert pool.waiting() == 0


def test_a_full_device_gives_up_waiting_plans_first(cuda, to_gpu, pool, rng, monkeypatch):
    small, large = Problem("gru_before", T=3), Problem("gru_before", T=5)
    a = to_gpu(large.inputs(rng, np.float32))
    small.results(cuda, to_gpu(small.inputs(rng, np.float32)))
    made, plans = [], pool.Plan

    def plan(shape):
        made.append(pool.waiting())
        if pool.waiting():
            raise MemoryError("out of memory")
        return plans(shape)

    monkeypatch.setattr(pool, "Plan", plan)
    large.results(cuda, a)
    assert made == [1, 0]


# ---------------------------------------------------------------- weights and stacks


@pytest.mark.parametrize("option", options_named("plain", "all but noise"), ids=", ".join)
def test_weights_are_read_in_every_call(cuda, to_gpu, option, rng):
    problem = OPTIONS[option]
    a = to_gpu(problem.inputs(rng, np.float32))
    packed = cuda.recurrent_pack(problem.cell, a.weights)
    for k, w in enumerate(a.weights):
        for name, value in zip(Weights._fields, w, strict=True):
            if value is not None:
                value[(0,) * value.ndim] += 1
                got = problem.forward(cuda, a, packed=packed)[0]
                assert_same_bits(got.get(), problem.forward(cuda, a)[0].get(), f"after a change of {name}[{k}]")


def test_any_layout_gives_the_same_bits(cuda, cupy, to_gpu, rng):
    problem = _everything("lstm", T=3)
    a = problem.inputs(rng, np.float32)
    want = {n: g.get() for n, g in problem.results(cuda, to_gpu(a)).items()}

    def strided(x):
        wide = cupy.zeros(tuple(2 * n + 1 for n in x.shape), x.dtype)
        view = wide[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
        view[...] = cupy.asarray(x)
        return view

    got = problem.results(cuda, a.mapped(strided))
    assert_all_same({n: g.get() for n, g in got.items()}, want)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru", "mut1"])
def test_stacks(cuda, to_gpu, cell, rng):
    T, B, sizes = 5, 3, (3, 6, 6)
    zoneout = 0.1, 0.2 if cell == "lstm" else 0.0
    rows, weights = gates_of(cell) * 6, []
    for I in sizes[:2]:
        shapes = ((rows, I), (rows, 6), (rows,), None if "mut" in cell else (rows,))
        weights.append(Weights(*(None if shape is None else rng.uniform(-0.5, 0.5, shape) for shape in shapes)))
    x, h_0, c_0 = rng.standard_normal((T, B, 3)), rng.standard_normal((2, B, 6)), rng.standard_normal((2, B, 6)) if cell == "lstm" else None
    lengths, reset = rng.integers(0, T + 1, B), rng.random((T, B)) < 0.2
    results = []
    for backend, move in ((reference, lambda a: a), (cuda, to_gpu)):
        layers = tuple(backend.recurrent_pack(cell, (move(w),)) for w in weights)
        options = {"lengths": move(lengths), "reset": move(reset), "zoneout": zoneout}
        results.append(backend.recurrent_stack(move(x), move(h_0), move(c_0), layers, **options))
    for want, got in zip(*results, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert_close(got.get(), want, terms=100)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.4, "zoneout": 0.2, "dropout": 0.3, "bidirectional": True}], ids=["plain", "noise"])
@pytest.mark.parametrize("kind", [fs.nn.LSTM, fs.nn.GRU, fs.nn.MUT1])
def test_a_layer_trains_as_on_the_cpu(to_gpu, kind, options, rng):
    """The same masks, outputs, states and gradients."""
    x, lengths, results = rng.standard_normal((5, 3, 4)).astype(np.float32), np.array([5, 0, 3]), []
    for place in ("cpu", "cuda"):
        layer = kind(4, 6, num_layers=2, rng=0, **options).to(place)
        xs = fs.Tensor(to_gpu(x) if place == "cuda" else x, requires_grad=True)
        y, state = layer(xs, lengths=lengths)
        (y * y).sum().backward()
        ends = state if isinstance(state, tuple) else (state,)
        found = [y.data, *(e.data for e in ends), xs.grad, *(p.grad for p in layer.parameters())]
        results.append([a.get() if place == "cuda" else a for a in found])
    for want, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
