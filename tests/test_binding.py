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
from fastseq.backends.recurrent import Noise, Weights, gates_of
from tests.tolerance import assert_same_bits

T, B, I, H = 4, 3, 5, 19


def new_weights(rng, dtype=np.float32, inputs=I, hidden=H, cell="lstm"):
    gates = gates_of(cell) * hidden
    return Weights(*((0.3 * rng.standard_normal(shape)).astype(dtype) for shape in ((gates, inputs), (gates, hidden), gates, gates)))


def lstm_pack(rng, dtype=np.float32, inputs=I, hidden=H, packed=None):
    return cpu.recurrent_pack("lstm", (new_weights(rng, dtype, inputs, hidden),), packed=packed)


def new_stream(rng, dtype=np.float32, layers=1, cell="lstm"):
    packed = (cpu.recurrent_pack(cell, (new_weights(rng, dtype, H if above else I, H, cell),)) for above in range(layers))
    stream = cpu.recurrent_stream(tuple(packed), batch_size=B)
    h, c = rng.standard_normal((2, layers, B, H)).astype(dtype)
    stream.state = (h, c) if cell == "lstm" else h
    return stream


def same_state(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert_same_bits(a, b, "state")


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


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_stream_goes_through_pickle_and_copy(cell, layers, isa, dtype, rng):
    stream = new_stream(rng, dtype, layers, cell)
    x = rng.standard_normal((B, I)).astype(dtype)
    twins = pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream)
    want = stream.step(x)
    for twin in twins:
        assert_same_bits(twin.step(x), want, "h")
        same_state(twin.state, stream.state)


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
        for call in (lambda: stream.step(x), lambda: cpu.matmul(x.T, packed), lambda: cpu.recurrent_forward(x[None], None, None, *stream.layers)):
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


@pytest.mark.parametrize("layers", [1, 3])
def test_a_step_into_out_allocates_nothing(layers, rng):
    stream, x, out = new_stream(rng, layers=layers), rng.standard_normal((B, I)).astype(np.float32), np.empty((B, H), np.float32)
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
    same_state(stream.state, before)


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
        (None, TypeError, rf"x: expected an array of shape \({B}, {I}\), got NoneType"),
        (np.zeros((B, I), ">f4"), TypeError, r"x: expected this machine's byte order, got >f4; astype\('float32'\) converts it"),
        (np.ma.masked_array(np.zeros((B, I), np.float32), True), TypeError, "x: expected a plain array, got a masked one; fill it first"),
    ],
    ids=["complex", "half", "wide", "three axes", "None", "byte order", "masked"],
)
def test_a_wrong_step_changes_nothing(x, error, message, rng):
    stream = new_stream(rng)
    before = stream.state
    with pytest.raises(error, match=message):
        stream.step(x)
    same_state(stream.state, before)


@pytest.mark.parametrize("rows", [[2], [1.5], "a", np.array([True, False, True])], ids=str)
def test_rows_that_are_not_there_cannot_be_reset(rows, rng):
    stream = fs.nn.LSTM(3, 4, rng=0).stream(batch_size=2)
    stream.step(rng.standard_normal((2, 3)).astype(np.float32))
    before = stream.state
    with pytest.raises(IndexError, match="rows: expected"):
        stream.reset(rows=rows)
    for got, want in zip(stream.state, before, strict=True):
        assert_same_bits(got, want)


def test_out_may_be_x(rng):
    weights = new_weights(rng, inputs=H)
    one, other = (cpu.recurrent_stream((cpu.recurrent_pack("lstm", (weights,)),), batch_size=B) for _ in range(2))
    x = rng.standard_normal((B, H)).astype(np.float32)
    want = one.step(x)
    assert_same_bits(other.step(x, x), want, "h")


@pytest.mark.parametrize("cell", ["lstm", "rnn_relu", "gru", "mut1"])
def test_a_stacked_stream_gives_the_bits_of_its_layers_one_after_the_other(cell, isa, dtype, rng):
    weights = [new_weights(rng, dtype, H if above else I, H, cell) for above in range(3)]
    packed = tuple(cpu.recurrent_pack(cell, (w._replace(b_hh=None) if cell == "mut1" else w,)) for w in weights)
    stream = cpu.recurrent_stream(packed, batch_size=B, zoneout=(0.25, 0.5 if cell == "lstm" else 0.0))
    xs = y = rng.standard_normal((T, B, I)).astype(dtype)
    got = [stream.step(x) for x in xs]
    finals = []
    for layer in packed:
        y, *states = cpu.recurrent_forward(y, None, None, layer, noise=Noise(zoneout_h=0.25, zoneout_c=0.5))[:3]
        finals.append(states)
    assert_same_bits(np.stack(got), y, "y")
    state = stream.state if cell == "lstm" else (stream.state,)
    for ours, theirs in zip(state, zip(*finals, strict=True), strict=False):
        assert_same_bits(ours, np.concatenate(theirs), "state")


def test_a_stream_takes_a_layers_state_and_refuses_others(rng):
    stream = new_stream(rng)
    h, c = rng.standard_normal((2, 1, B, H)).astype(np.float32)
    for state in ((h, c), (h[0], c[0])):
        stream.state = h + 1, c
        stream.state = state
        same_state(stream.state, (h, c))
    for wrong in ((h, c[:, :2]), (h.astype(np.complex64), c), (h,), h, (h, None)):
        with pytest.raises((TypeError, ValueError), match="state"):
            stream.state = wrong
        same_state(stream.state, (h, c))


def test_the_state_of_stacked_layers(rng):
    stream = new_stream(rng, layers=2, cell="gru")
    h = rng.standard_normal((2, B, H)).astype(np.float32)
    stream.state = h
    for wrong in (h[0], h[:1], (h, h), None):
        with pytest.raises((TypeError, ValueError), match=rf"state: expected .*\(2, {B}, {H}\)"):
            stream.state = wrong
    assert_same_bits(stream.state, h, "state")
    stream.reset(rows=(0, 2))
    h[:, [0, 2]] = 0
    assert_same_bits(stream.state, h, "state")


def test_a_stream_loads_weights_of_its_own_sizes_only(rng):
    stream = new_stream(rng)
    for wrong in (lstm_pack(rng, np.float64), lstm_pack(rng, inputs=I + 1), lstm_pack(rng, hidden=H + 1), cpu.recurrent_pack("gru", (new_weights(rng, cell="gru"),))):
        with pytest.raises(ValueError, match=rf"layers: expected float32 weights of lstm, .*, input_size {I}, hidden_size {H}, .*, got"):
            stream.load((wrong,))
    with pytest.raises(ValueError, match="layers: expected 1, got 2"):
        stream.load(stream.layers * 2)
    with pytest.raises(RuntimeError, match="refresh: this stream has no layer"):
        stream.refresh()


def test_a_stream_is_a_snapshot_of_every_array(rng):
    """Peepholes and layer norm are read from the arrays in each step: they must be the stream's own."""
    weights = new_weights(rng)._replace(
        w_ch=rng.standard_normal((3, H)).astype(np.float32),
        **{f"ln_{name}_{part}": rng.standard_normal(n).astype(np.float32) for name, n in (("ih", 4 * H), ("hh", 4 * H), ("c", H)) for part in ("weight", "bias")},
    )
    one, other = (cpu.recurrent_stream((cpu.recurrent_pack("lstm", (weights,)),), batch_size=B) for _ in range(2))
    x = rng.standard_normal((B, I)).astype(np.float32)
    want = one.step(x)
    for array in weights:
        if array is not None:
            array[...] = 0
    assert_same_bits(pickle.loads(pickle.dumps(other)).step(x), want, "h of a pickle")
    assert_same_bits(other.step(x), want, "h")


def test_a_stream_follows_a_new_number_of_threads(rng):
    """Scratch depends on the number of threads: a stream must ask for it again."""
    packed = lstm_pack(rng, hidden=200)
    one, other = (cpu.recurrent_stream((packed,), batch_size=40) for _ in range(2))
    for n in (1, 4, 2, 3):
        x = rng.standard_normal((40, I)).astype(np.float32)
        with fs.threads(n), fs.runtime.force_threads():
            got = one.step(x)
        with fs.threads(1):
            assert_same_bits(got, other.step(x), f"{n} threads")


# ---------------------------------------------------------------- memory


def test_a_stream_takes_layers_that_fit_only(rng):
    one = lstm_pack(rng)
    both = cpu.recurrent_pack("lstm", (new_weights(rng), new_weights(rng)))
    for layers in ((), (both,), (one, one), (one, lstm_pack(rng, np.float64, H))):
        with pytest.raises(ValueError, match="layers: "):
            cpu.recurrent_stream(layers, batch_size=1)


def test_panels_are_packed_again_only_where_a_number_changed(dtype, rng):
    """And the arrays that come with them are those given last."""
    small = {"w_ch": (3, H), "ln_ih_weight": 4 * H, "ln_ih_bias": 4 * H, "ln_hh_weight": 4 * H, "ln_hh_bias": 4 * H, "ln_c_weight": H, "ln_c_bias": H}
    directions = [
        Weights(*new_weights(rng, dtype)[:4], None, *(rng.standard_normal(shape).astype(dtype) for shape in small.values())) for _ in range(2)
    ]
    packed = cpu.recurrent_pack("lstm", tuple(directions))
    assert packed.directions[1].w_hh is directions[1].w_hh
    twins = tuple(Weights(*(None if a is None else np.asfortranarray(a) for a in weights)) for weights in directions)
    assert cpu.recurrent_pack("lstm", twins, packed=packed) is packed
    assert packed.directions[0].b_ih is twins[0].b_ih
    assert packed.directions[0].w_ih.flags.c_contiguous
    for weights in directions:
        for array in weights:
            if array is not None:
                array.flat[-1] += 1
                again = cpu.recurrent_pack("lstm", tuple(directions), packed=packed)
                assert again is not packed
                packed = again
    assert cpu.recurrent_pack("lstm", tuple(directions[::-1]), packed=packed) is not packed
    assert cpu.recurrent_pack("lstm", (directions[0]._replace(b_ih=None), directions[1]), packed=packed) is not packed


def test_backward_reads_the_weights_of_its_own_forward(rng):
    """Another pack of the same numbers lends its arrays to the panels: a cache keeps those that it was made with."""
    weights, x = new_weights(rng), rng.standard_normal((T, B, I)).astype(np.float32)
    packed = cpu.recurrent_pack("lstm", (weights,))
    y, *_, cache = cpu.recurrent_forward(x, None, None, packed, training=True)
    want = cpu.recurrent_backward(cache, y, None, None)
    others = Weights(*(None if a is None else a.copy() for a in weights))
    assert cpu.recurrent_pack("lstm", (others,), packed=packed) is packed
    for array in others[:4]:
        array[...] = 0
    assert_same_bits(cpu.recurrent_backward(cache, y, None, None)["dx"], want["dx"], "dx")


@pytest.mark.parametrize("every", [1, 3, 4, 100])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_checkpoints_change_no_bit(cell, directions, every, isa, dtype, rng):
    steps, lengths = 8, np.array([8, 0, 5])
    packed = cpu.recurrent_pack(cell, tuple(new_weights(rng, dtype, cell=cell) for _ in range(directions)))
    x, dy = (rng.standard_normal((steps, B, n)).astype(dtype) for n in (I, directions * H))
    h_0, c_0, dh_n, dc_n = rng.standard_normal((4, directions, B, H)).astype(dtype)
    dcells = rng.standard_normal((directions, steps, B, H)).astype(dtype)
    if cell == "gru":
        c_0 = dc_n = dcells = None
    options = {"lengths": lengths, "reset": rng.random((steps, B)) < 0.2, "noise": Noise(0.3, 0.2, 0.1 if cell == "lstm" else 0.0, True, 5), "states": True}
    outputs, gradients = [], []
    for k in (None, every):
        *output, cache = cpu.recurrent_forward(x, h_0, c_0, packed, training=True, checkpoint_every=k, **options)
        outputs.append(output)
        gradients += [cpu.recurrent_backward(cache, dy, dh_n, dc_n, dcells=dcells, need_dstates=True) for _ in range(2)]
    for whole, parts in zip(*outputs, strict=True):
        if whole is not None:
            assert_same_bits(parts, whole, "outputs")
    for other in gradients[1:]:
        for name in ("dx", "dh_0", "dc_0", "dstates"):
            if gradients[0][name] is not None:
                assert_same_bits(other[name], gradients[0][name], name)
        for ours, theirs in zip(other["weights"], gradients[0]["weights"], strict=True):
            for name, a, b in zip(Weights._fields, ours, theirs, strict=True):
                if b is not None:
                    assert_same_bits(a, b, name)


def test_lengths_changed_after_forward_do_no_harm(rng):
    lengths = np.array([4, 2, 3])
    y, *_, cache = cpu.recurrent_forward(rng.standard_normal((T, B, I)).astype(np.float32), None, None, lstm_pack(rng), lengths=lengths, training=True)
    want = cpu.recurrent_backward(cache, y, None, None)["dx"]
    lengths[...] = 1 << 40
    assert_same_bits(cpu.recurrent_backward(cache, y, None, None)["dx"], want, "dx")


def test_a_cache_in_use_is_never_given_out_again(rng):
    """Caches above 32 MB come from memory that is kept: not while somebody holds it."""
    packed = lstm_pack(rng, inputs=2, hidden=64)
    xs = [rng.standard_normal((260, 128, 2), dtype=np.float32) for _ in range(2)]
    caches = [cpu.recurrent_forward(x, None, None, packed, training=True)[4] for x in xs]
    assert caches[0].saved.nbytes > 32 << 20
    before = [cache.saved.copy() for cache in caches]
    assert caches[0].saved.ctypes.data != caches[1].saved.ctypes.data
    held = caches[0].saved  # an array of it is enough
    address = caches[1].saved.ctypes.data
    caches.clear()
    again = cpu.recurrent_forward(xs[1], None, None, packed, training=True)[4]
    assert again.saved.ctypes.data == address  # the one that nobody holds
    assert_same_bits(again.saved, before[1], "saved")
    assert_same_bits(held, before[0], "saved")


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
from fastseq.backends.recurrent import Noise, Weights, gates_of
from fastseq.backends.recurrent import Weights
w = Weights(*(np.full(s, 0.1, np.float32) for s in ((256, 2), (256, 64), (256,), (256,))))
packed = cpu.recurrent_pack("lstm", (w,))
small = np.ones((3, 2, 2), np.float32)
want = cpu.recurrent_forward(small, None, None, packed, training=True)[0]
large = np.broadcast_to(np.float32(1), (2**11, 2**11, 2))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
for _ in range(3):
    for call in (lambda: cpu.recurrent_forward(large, None, None, packed, training=True), lambda: cpu.pack(np.broadcast_to(small[0], (2**13, 2, 2)).reshape(-1, 2)[:, :1] @ np.ones((1, 2**16), np.float32))):
        try:
            call()
        except MemoryError:
            continue
        raise SystemExit("no MemoryError")
    assert np.array_equal(cpu.recurrent_forward(small, None, None, packed, training=True)[0], want)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits of the address space are Linux's here")
    environment = os.environ | {"FASTSEQ_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("call", [lambda x: cpu.scale(x, factor=2.0), lambda x: cpu.sgd(x, None, x, lr=1, momentum=0, nesterov=False, first=True, weight_decay=0)])
def test_a_read_only_array_is_not_changed_in_place(call):
    x = np.ones((2, 3), np.float32)
    x.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only one of shape \(2, 3\)"):
        call(x)
    assert (x == 1).all()
