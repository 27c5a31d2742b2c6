"""Which recurrent layers go to the kernels that do all steps, what is around them, and what happens where a launch is refused."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from fastseq.backends import reference
from tests.recurrent_problems import NOISE, OPTIONS, Problem, assert_all_same, gradients
from tests.tolerance import assert_close, assert_same_bits

PLAIN = ["plain", "no bias", "one bias", "the other bias", "no state", "lengths", "reset", "two directions", "two directions, lengths, reset"]


@pytest.fixture(scope="module")
def cuda():
    return importlib.import_module("fastseq.backends.cuda")


@pytest.fixture
def kernels(monkeypatch):
    """The module that launches them; `calls` counts."""
    module = importlib.import_module("fastseq.backends.cuda_persistent")
    monkeypatch.setattr(importlib.import_module("fastseq.backends.cuda_recurrent_persistent"), "_refused", {})
    module.calls = []

    def counted(name, inner):
        def call(*args, **keywords):
            module.calls.append(name)
            return inner(*args, **keywords)

        return call

    for name in ("forward", "backward"):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    yield module
    del module.calls


def _host(results):
    return {name: a.get() for name, a in results.items()}


def _inputs(problem, rng, to_gpu, dtype=np.float32):
    """Without the gradients of all c, for which a layer is gone through step by step."""
    a = problem.inputs(rng, dtype)._replace(dcells=None)
    return a, to_gpu(a)


def _grads(cuda, cache, a):
    grads = cuda.recurrent_backward(cache, a.dy, a.dh_n, a.dc_n)
    found = {name: grads[name].get() for name in ("dx", "dh_0", "dc_0") if grads[name] is not None}
    for k, dw in enumerate(grads["weights"]):
        found |= {f"d{name}[{k}]": g.get() for name, g in dw._asdict().items() if g is not None}
    return found


def _wanted(problem, a):
    return problem.results(reference, a.wide())


@pytest.mark.parametrize("option", PLAIN)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_layers_without_options(cuda, kernels, to_gpu, cell, option, rng):
    problem = replace(OPTIONS[cell, option], H=24)
    a, b = _inputs(problem, rng, to_gpu)
    y, h_n, c_n, _, cache = problem.forward(cuda, b)
    got = _grads(cuda, cache, b) | _host({n: v for n, v in (("y", y), ("h_n", h_n), ("c_n", c_n)) if v is not None})
    assert kernels.calls == ["forward"] * problem.directions + ["backward"] * problem.directions
    want = _wanted(problem, a)
    for name in got:
        assert_close(got[name], want[name], terms=4 * problem.terms, name=name)
    assert set(want) - set(got) <= {"cells", "dstates"}
    plain = problem.forward(cuda, b, training=False)
    for one, other in zip(plain[:3], (y, h_n, c_n), strict=True):
        assert other is None or one.get().tobytes() == other.get().tobytes()
    again = _grads(cuda, cache, b)
    for name in again:
        assert_same_bits(again[name], got[name], name)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_arrays_at_any_address(cuda, cupy, kernels, to_gpu, cell, rng, monkeypatch):
    """The kernels read 16 bytes at a time, which begin at multiples of 16: a misplaced read ends a CUDA program's context."""
    problem = Problem(cell, H=24)
    _, b = _inputs(problem, rng, to_gpu)

    def shifted(x):
        if isinstance(x, cupy.ndarray) and x.dtype == np.float32:
            memory = cupy.empty(x.size + 4, np.float32)
            place = (memory.data.ptr % 16 // 4 + 1) % 4 or 4
            found = memory[place : place + x.size].reshape(x.shape)
            found[...] = x
            return found
        if isinstance(x, tuple):
            return type(x)(*map(shifted, x)) if hasattr(x, "_fields") else tuple(map(shifted, x))
        return x

    def results(a):
        y, *_, cache = problem.forward(cuda, a)
        return {"y": y.get()} | _grads(cuda, cache, a)

    want, asked = results(b), []
    launch = importlib.import_module("fastseq.backends.cuda_launch").Kernel.__call__

    def looked_at(self, grid, block, arguments, shared=0):
        if self.function.name.startswith("persistent"):
            asked.extend(x.data.ptr % 16 for x in arguments if isinstance(x, cupy.ndarray) and x.dtype == np.float32 and x.ndim > 1)
        launch(self, grid, block, arguments, shared)

    monkeypatch.setattr(importlib.import_module("fastseq.backends.cuda_launch").Kernel, "__call__", looked_at)
    assert_all_same(results(shifted(b)), want)
    assert asked
    assert not any(asked)


def test_all_others_go_step_by_step(cuda, kernels, to_gpu, rng):
    options = [OPTIONS["lstm", n] for n in ("peephole", "projection", "layer norm", "zoneout", "zoneout expected", "recurrent dropout")]
    for problem in [*options, Problem("gru_before"), Problem("rnn_tanh"), Problem("gru", noise=NOISE["zoneout"]), Problem("lstm", T=0)]:
        _, b = _inputs(problem, rng, to_gpu)
        problem.forward(cuda, b)
    _, b = _inputs(Problem("lstm"), rng, to_gpu, np.float64)
    Problem("lstm").forward(cuda, b)
    _, b = _inputs(Problem("lstm"), rng, to_gpu)
    Problem("lstm").forward(cuda, b, states=True)
    Problem("lstm").forward(cuda, b, checkpoint_every=2)
    assert kernels.calls == []


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_gradients_of_all_states_are_made_step_by_step(cuda, kernels, to_gpu, cell, rng):
    problem = replace(OPTIONS[cell, "two directions, lengths, reset"], H=24)
    a, b = _inputs(problem, rng, to_gpu)
    *_, cache = problem.forward(cuda, b)
    got, want = _host(gradients(cuda, cache, b)), _wanted(problem, a)
    for name in got:
        assert_close(got[name], want[name], terms=4 * problem.terms, name=name)
    assert kernels.calls == ["forward"] * 2


def _driver_error(cupy, name):
    """What CuPy raises; a real one is made of a number, and its text asks the driver."""
    error = cupy.cuda.driver.CUDADriverError
    found = error.__new__(error, name)
    RuntimeError.__init__(found, name)
    return found


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_a_refused_launch(cuda, cupy, kernels, to_gpu, half, rng, monkeypatch):
    """As where another program holds multiprocessors: then and from then on step by step."""
    problem = Problem("gru", H=24, directions=2, lengths=True)
    a, b = _inputs(problem, rng, to_gpu)
    around = importlib.import_module("fastseq.backends.cuda_recurrent_persistent")

    def refuse(*args, **keywords):
        raise _driver_error(cupy, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE")

    with monkeypatch.context() as patch:
        patch.setattr(kernels, half, refuse)
        with pytest.warns(RuntimeWarning, match="no cooperative launch for gru, H 24, B 5"):
            first = _grads(cuda, problem.forward(cuda, b)[4], b)
    assert "COOPERATIVE_LAUNCH_TOO_LARGE" in next(iter(around.refusals().values()))
    want = _wanted(problem, a)
    for name in first:
        assert_close(first[name], want[name], terms=4 * problem.terms, name=name)
    before = len(kernels.calls)
    *_, cache = problem.forward(cuda, b)
    assert_all_same(_grads(cuda, cache, b), first)
    assert len(kernels.calls) == before
