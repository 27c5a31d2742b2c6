"""Every case of the table on a GPU: values and all gradients against the reference in float64, and the same without a record."""

import importlib
import inspect

import numpy as np
import pytest

import fastseq as fs
from fastseq.backends import reference
from tests.cases import CASES, Rounded, reference_results
from tests.tolerance import assert_close, assert_same_bits


def public(module):
    """Its functions, and those that it takes from its other files, <module>_<family>.py."""
    return {n: f for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__.startswith(module.__name__) and n[0] != "_"}


def test_the_backend_has_the_functions_of_the_reference():
    ours, theirs = public(importlib.import_module("fastseq.backends.cuda")), public(reference)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        assert inspect.signature(ours[name]) == inspect.signature(theirs[name]), name


def evaluate(case, inputs, upstream, cupy):
    """`case.evaluate` on the GPU, its results as NumPy arrays."""
    arguments = {name: fs.Tensor(a, requires_grad=name not in case.ids) for name, a in inputs.items()}
    outputs = case.call(arguments)
    loss = None
    for y in outputs:
        weighted = (y * cupy.asarray(np.asarray(upstream.standard_normal(y.shape)).astype(y.dtype))).sum()
        loss = weighted if loss is None else loss + weighted
    loss.backward()
    grads = {f"d{name}": arguments[name].grad for name in case.differentiable}
    dense = {name: g.to_dense() if isinstance(g, fs.RowGradient) else g for name, g in grads.items()}
    return {f"output {k}": y.data.get() for k, y in enumerate(outputs)} | {name: g.get() for name, g in dense.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, dtype, rng, cupy, to_gpu):
    inputs = case.inputs(rng, dtype)
    want = reference_results(case, inputs, Rounded(1, dtype))
    on_gpu = to_gpu(inputs)
    got = evaluate(case, on_gpu, np.random.default_rng(1), cupy)
    assert got.keys() == want.keys()
    for name in got:
        terms = case.terms
        if (case.op, name) == ("tanh", "dx"):  # 1 - y^2 has the last bit of y, which CUDA's tanh may have otherwise, 2 / (1 - y^2) times
            terms += np.max(2 / (1 - want["output 0"] ** 2), initial=0)
        assert_close(got[name], want[name], dtype=dtype, terms=terms, name=name)
    for k, y in enumerate(case.call(on_gpu)):  # a call that records nothing gives the same
        assert_same_bits(y.get(), got[f"output {k}"], f"output {k}")
    for name, a in on_gpu.items():
        assert_same_bits(a.get(), inputs[name], name)
