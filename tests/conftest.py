"""What the tests share: instruction sets, thread counts, dtypes and random numbers."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import _core, runtime


@pytest.fixture(params=_core.isas_available())
def isa(request):
    """Each instruction set that this build and machine have, in use for the test."""
    before = _core.isa_name()
    _core.isa_select(request.param)
    assert _core.isa_name() == request.param
    yield request.param
    _core.isa_select(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """A number of threads that every operation then really uses, however small its work."""
    with fs.threads(request.param), runtime.force_threads():
        yield request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["f32", "f64"])
def dtype(request):
    """float32 and float64."""
    return request.param


@pytest.fixture
def rng(request):
    """Random numbers that are the same in each run, and others in each test."""
    return np.random.default_rng(list(request.node.nodeid.encode()))
