"""The binding: results and scratch are whose they should be, snapshots stay what they are, and strides cost nothing."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

import fastseq as fs
from fastseq import _core
from fastseq.backends import cpu
from tests.tolerance import assert_same_bits

T, B, I, H = 4, 3, 5, 19


def lstm_weights(rng, dtype=np.float32, inputs=I, hidden=H):
    shapes = ((4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,))
    return [(0.3 * rng.standard_normal(shape)).astype(dtype) for shape in shapes]


def new_stream(rng, dtype=np.float32):
    stream = cpu.lstm_stream(cpu.lstm_pack(*lstm_weights(rng, dtype)), batch_size=B)
    stream.state = rng.standard_normal((2, B, H))[0].astype(dtype), rng.standard_normal((B, H)).astype(dtype)
    return stream


# ---------------------------------------------------------------- operands of matmul

LEADING = [((), ()), ((2,), ()), ((2, 3), ()), ((2,), (2,)), ((2, 3), (2, 3)), ((3,), (2, 1)), ((2, 1), (1, 3)), ((), (2, 3)), ((0, 2), (2,))]


@pytest.mark.parametrize(("lead_a", "lead_b"), LEADING, ids=str)
@pytest.mark.parametrize("layout", ["dense", "transposed", "reversed", "every other", "axes swapped"])
def test_matmul_takes_any_leading_axes_and_strides(lead_a, lead_b, layout, dtype, rng):
    def laid_out(shape):
        if layout == "transposed":
            return rng.standard_normal((*shape[:-2], shape[-1], shape[-2])).astype(dtype).swapaxes(-1, -2)
        if layout == "every other":
            return rng.standard_normal((*shape[:-1], 2 * shape[-1])).astype(dtype)[..., ::2]
        if layout == "axes swapped" and len(shape) == 4:
            return rng.standard_normal((shape[1], shape[0], *shape[2:])).astype(dtype).swapaxes(0, 1)
        x = rng.standard_normal(shape).astype(dtype)
        return x[..., ::-1, ::-1] if layout == "reversed" else x

    a, b = laid_out((*lead_a, 4, 7)), laid_out((*lead_b, 7, 6))
    got = cpu.matmul(a, b)
    assert got.dtype == dtype
    assert got.flags.c_contiguous
    assert_same_bits(got, cpu.matmul(np.ascontiguousarray(a), np.ascontiguousarray(b)), layout)
    np.testing.assert_allclose(got, a.astype(np.float64) @ b.astype(np.float64), rtol=0, atol=50 * np.finfo(dtype).eps)


@pytest.mark.parametrize("spoil", ["unaligned", "odd stride", "other byte order", "read-only"])
def test_operands_that_c_cannot_read_are_copied(spoil, dtype, rng):
    a, b = rng.standard_normal((3, 4)).astype(dtype), rng.standard_normal((4, 5)).astype(dtype)
    size = a.itemsize
    if spoil == "unaligned":
        given = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(dtype).reshape(3, 4)
        assert not given.flags.aligned
    elif spoil == "odd stride":
        given = np.zeros(a.shape, np.dtype({"names": ["x"], "formats": [dtype], "offsets": [0], "itemsize": size + 1}))["x"]
        given[...] = a
        assert given.strides[1] == size + 1
    elif spoil == "other byte order":
        given = a.astype(np.dtype(dtype).newbyteorder())
    else:
        given = a.copy()
        given.flags.writeable = False
    assert_same_bits(cpu.matmul(given, b), cpu.matmul(a, b), spoil)
    assert_same_bits(cpu.softmax_forward(given), cpu.softmax_forward(a), spoil)


def test_operands_larger_than_memory_are_refused():
    a = np.broadcast_to(np.float32(1), (1, 2**60))
    with pytest.raises(ValueError, match="fewer than 2"):
        cpu.matmul(a, a.T)
    assert cpu.matmul(np.zeros((0, 2**40), np.float32), np.zeros((2**40, 0), np.float32)).shape == (0, 0)


# ---------------------------------------------------------------- snapshots


@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (70, 130)], ids=str)
def test_packs_go_through_pickle_and_copy(sizes, isa, dtype, rng):
    b = rng.standard_normal(sizes).astype(dtype)
    packed = cpu.pack(b)
    for twin in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        assert twin.shape == sizes
        assert twin.dtype == dtype
        assert_same_bits(twin.numpy(), packed.numpy(), "panels")


def test_a_stream_goes_through_pickle_and_copy(isa, dtype, rng):
    stream = new_stream(rng, dtype)
    x = rng.standard_normal((B, I)).astype(dtype)
    twins = pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream)
    want = stream.step(x)
    for twin in twins:
        assert_same_bits(twin.step(x), want, "h")
        for ours, theirs in zip(twin.state, stream.state, strict=True):
            assert_same_bits(ours, theirs, "state")


def test_a_pickle_is_for_any_instruction_set(rng):
    names = _core.isas_available()
    if len(names) < 2:
        pytest.skip("one instruction set")
    before = _core.isa_name()
    x = rng.standard_normal((B, I)).astype(np.float32)
    try:
        _core.isa_select(names[-1])
        stream = new_stream(rng)
        text, packed = pickle.dumps(stream), cpu.pack(x)
        want = stream.step(x)
        _core.isa_select(names[0])
        np.testing.assert_allclose(pickle.loads(text).step(x), want, rtol=1e-5, atol=1e-6)
        for call in (lambda: stream.step(x), lambda: cpu.matmul(x.T, packed), lambda: cpu.lstm_forward(x[None], None, None, stream.weights, training=False)):
            with pytest.raises(RuntimeError, match=f"packed for {names[-1]}, but {names[0]} is in use"):
                call()
    finally:
        _core.isa_select(before)


def test_an_unknown_instruction_set_changes_nothing():
    before = _core.isa_name()
    with pytest.raises(ValueError, match="'sse17'"):
        _core.isa_select("sse17")
    assert _core.isa_name() == before


# ---------------------------------------------------------------- streams


def most_allocated(call):
    """Bytes that Python and NumPy hold at most during 100 calls, beyond what they held before."""
    for _ in range(3):
        call()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(100):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_step_into_out_allocates_nothing(rng):
    stream, x, out = new_stream(rng), rng.standard_normal((B, I)).astype(np.float32), np.empty((B, H), np.float32)
    assert most_allocated(lambda: stream.step(x)) >= out.nbytes
    assert most_allocated(lambda: stream.step(x, out)) < out.nbytes  # the loop itself takes a little


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.empty((B, H)), ValueError),
        (np.empty((H, B), np.float32).T, ValueError),
        (np.empty((B, H + 1), np.float32), ValueError),
        ([[0.0] * H] * B, TypeError),
    ],
    ids=["float64", "Fortran order", "too wide", "list"],
)
def test_a_wrong_out_changes_nothing(out, error, rng):
    stream = new_stream(rng)
    before = stream.state
    with pytest.raises(error, match=rf"out: expected a writable float32 array \({B}, {H}\) in C order, got"):
        stream.step(np.ones((B, I), np.float32), out)
    for ours, theirs in zip(stream.state, before, strict=True):
        assert_same_bits(ours, theirs, "state")


def test_a_read_only_out_is_refused(rng):
    out = np.empty((B, H), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writable"):
        new_stream(rng).step(np.ones((B, I), np.float32), out)


@pytest.mark.parametrize("kind", [np.float64, np.int8, np.bool_, list])
def test_a_stream_converts_its_input(kind, rng):
    x = rng.integers(0, 2, (B, I))
    streams = new_stream(np.random.default_rng(1)), new_stream(np.random.default_rng(1))
    given = x.tolist() if kind is list else x.astype(kind)
    assert_same_bits(streams[0].step(given), streams[1].step(x.astype(np.float32)), "h")


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((B, I), np.complex64), TypeError, "x: expected float32, float64, integers or bools"),
        (np.zeros((B, I), np.float16), TypeError, "got float16"),
        (np.zeros((B, I + 1), np.float32), ValueError, rf"x: expected shape \({B}, {I}\), got \({B}, {I + 1}\)"),
        (np.zeros((1, B, I), np.float32), ValueError, rf"got \(1, {B}, {I}\)"),
        (None, TypeError, "x: expected"),
    ],
    ids=["complex", "half", "wide", "three axes", "None"],
)
def test_a_wrong_step_changes_nothing(x, error, message, rng):
    stream = new_stream(rng)
    before = stream.state
    with pytest.raises(error, match=message):
        stream.step(x)
    for ours, theirs in zip(stream.state, before, strict=True):
        assert_same_bits(ours, theirs, "state")


def test_a_stream_takes_a_layers_state_and_refuses_others(rng):
    stream = new_stream(rng)
    h, c = rng.standard_normal((2, 1, B, H)).astype(np.float32)
    stream.state = h, c
    assert_same_bits(stream.state[0], h[0], "h")
    assert_same_bits(stream.state[1], c[0], "c")
    for wrong in ((h, c[:, :2]), (h.astype(np.complex64), c), (h,), h):
        with pytest.raises((TypeError, ValueError), match="state"):
            stream.state = wrong
        assert_same_bits(stream.state[0], h[0], "h")
        assert_same_bits(stream.state[1], c[0], "c")


def test_a_stream_loads_weights_of_its_own_sizes_only(rng):
    stream = new_stream(rng)
    for wrong in (lstm_weights(rng, np.float64), lstm_weights(rng, inputs=I + 1), lstm_weights(rng, hidden=H + 1)):
        with pytest.raises(ValueError, match=f"packed: expected float32 weights for input_size {I} and hidden_size {H}, got"):
            stream.load(cpu.lstm_pack(*wrong))
    with pytest.raises(RuntimeError, match="refresh: this stream has no layer"):
        stream.refresh()


def test_a_stream_follows_a_new_number_of_threads(rng):
    """Scratch depends on the number of threads: a stream must ask for it again."""
    weights = cpu.lstm_pack(*lstm_weights(rng, hidden=200))
    one, other = (cpu.lstm_stream(weights, batch_size=40) for _ in range(2))
    for n in (1, 4, 2, 3):
        x = rng.standard_normal((40, I)).astype(np.float32)
        with fs.threads(n), fs.runtime.force_threads():
            got = one.step(x)
        with fs.threads(1):
            assert_same_bits(got, other.step(x), f"{n} threads")


# ---------------------------------------------------------------- memory


def test_a_cache_in_use_is_never_given_out_again(rng):
    """Caches above 32 MB come from memory that is kept: not while somebody holds it."""
    packed = cpu.lstm_pack(*lstm_weights(rng, inputs=2, hidden=64))
    xs = [rng.standard_normal((260, 128, 2), dtype=np.float32) for _ in range(2)]
    caches = [cpu.lstm_forward(x, None, None, packed, training=True)[3] for x in xs]
    assert caches[0].gates.nbytes > 32 << 20
    before = [cache.gates.copy() for cache in caches]
    assert caches[0].gates.ctypes.data != caches[1].gates.ctypes.data
    held = caches[0].gates  # an array of it is enough
    address = caches[1].gates.ctypes.data
    caches.clear()
    again = cpu.lstm_forward(xs[1], None, None, packed, training=True)[3]
    assert again.gates.ctypes.data == address  # the one that nobody holds
    assert_same_bits(again.gates, before[1], "gates")
    assert_same_bits(held, before[0], "gates")


def test_scratch_belongs_to_the_thread(rng):
    a, b = rng.standard_normal((2, 150, 150)).astype(np.float32)
    want = cpu.matmul(a, b)
    wrong = []

    def work():
        for _ in range(50):
            if not np.array_equal(cpu.matmul(a, b), want):
                wrong.append(threading.get_ident())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_out_of_memory_raises_and_leaves_everything_usable():
    """In a process that may have little: results and scratch that do not fit raise MemoryError, and what fits still works."""
    program = """
import resource
import numpy as np
from fastseq.backends import cpu
w = [np.full(s, 0.1, np.float32) for s in ((256, 2), (256, 64), (256,), (256,))]
packed = cpu.lstm_pack(*w)
small = np.ones((3, 2, 2), np.float32)
want = cpu.lstm_forward(small, None, None, packed, training=True)[0]
large = np.broadcast_to(np.float32(1), (2**11, 2**11, 2))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
for _ in range(3):
    for call in (lambda: cpu.lstm_forward(large, None, None, packed, training=True), lambda: cpu.pack(np.broadcast_to(small[0], (2**13, 2, 2)).reshape(-1, 2)[:, :1] @ np.ones((1, 2**16), np.float32))):
        try:
            call()
        except MemoryError:
            continue
        raise SystemExit("no MemoryError")
    assert np.array_equal(cpu.lstm_forward(small, None, None, packed, training=True)[0], want)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits of the address space are Linux's here")
    environment = os.environ | {"FASTSEQ_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("call", [lambda x: cpu.scale(x, 2.0), lambda x: cpu.sgd(x, None, x, lr=1, momentum=0, nesterov=False, first=True, weight_decay=0)])
def test_a_read_only_array_is_not_changed_in_place(call):
    x = np.ones((2, 3), np.float32)
    x.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only one of shape \(2, 3\)"):
        call(x)
    assert (x == 1).all()
