"""What the tests share: instruction sets, thread counts, dtypes and random numbers."""

import contextlib
import os
import signal

import numpy as np
import pytest
from hypothesis import settings

import fastseq as fs
from fastseq import _core, runtime

# The same examples in each run, and none judged by its time.
settings.register_profile("fastseq", deadline=None, derandomize=True, database=None)
settings.register_profile("long", deadline=None, database=None, max_examples=5000)  # tests/full.sh
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fastseq"))

# Shells start background jobs with Ctrl-C ignored, and Python leaves it so; fit then does too, and its tests could not press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


#: All pairs of the two fixtures above, for tests with so many cases that each walks through them with `using`.
WAYS = [(name, n) for name in _core.isas_available() for n in (1, 2, 3)]


@contextlib.contextmanager
def using(isa, threads):
    """What the fixtures `isa` and `threads` do, for a `with` block."""
    before = _core.isa_name()
    _core.isa_select(isa)
    try:
        with fs.threads(threads), runtime.force_threads():
            yield
    finally:
        _core.isa_select(before)


@pytest.fixture(params=[np.float32, np.float64], ids=["f32", "f64"])
def dtype(request):
    """float32 and float64."""
    return request.param


@pytest.fixture
def rng(request):
    """Random numbers that are the same in each run, and others in each test."""
    return np.random.default_rng(list(request.node.nodeid.encode()))
