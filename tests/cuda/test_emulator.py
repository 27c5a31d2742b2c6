"""The stand-in for a GPU itself: what it computes, and the mistakes that it finds."""

import contextlib

import numpy as np
import pytest

from tests.cuda.emulator import build


@pytest.fixture
def module(cupy, emulated):
    """Kernels from a text, on the emulator."""

    def made(text, *options, cooperative=False):
        header = '#define FSQ_SHARED(name) unsigned char *const name = emu::emu_self->shared\n'
        return cupy.RawModule(code=header + text, options=("-std=c++17", *options), enable_cooperative_groups=cooperative)

    return made


SUM_OF_WARPS = r"""
extern "C" __global__ void __launch_bounds__(THREADS) next_then_sum(const float *x, float *y, int n) {
    FSQ_SHARED(bytes);
    float *kept = (float *)bytes;
    kept[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    float sum = kept[(threadIdx.x + 1) % blockDim.x];
    for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""


def test_threads_of_a_block_meet_at_barriers_and_shuffles(cupy, module):
    kernel = module(SUM_OF_WARPS, "-DTHREADS=128").get_function("next_then_sum")
    x, y = cupy.arange(128, dtype=np.float32), cupy.empty((10, 128), np.float32)
    for _ in range(2):  # forward and backward
        kernel((10,), (128,), (x, y, np.int32(128)), shared_mem=512)
        want = np.roll(np.arange(128), -1).reshape(4, 32).sum(1).repeat(32)
        np.testing.assert_array_equal(y.get(), np.tile(want, (10, 1)))


@pytest.mark.parametrize(
    "args", [(0, np.int64(1)), (0, np.float32(1)), (0, 1), (np.int32(1), np.int32(1)), (0,), (1, np.int32(1))], ids=str
)
def test_an_argument_of_another_size_than_its_parameter_raises(cupy, module, args):
    kernel = module('extern "C" __global__ void f(const float *x, int n) {}').get_function("f")
    arrays = {0: cupy.zeros(3, np.float32), 1: cupy.zeros(3, np.float64)}
    with pytest.raises(TypeError, match="f: "):
        kernel((1,), (32,), tuple(arrays[a] if type(a) is int and i == 0 else a for i, a in enumerate(args)))


def test_launches_that_a_driver_refuses(cupy, module):
    kernel = module('extern "C" __global__ void __launch_bounds__(64) f() {}').get_function("f")
    kernel((1,), (64,), (), shared_mem=48 * 1024)
    for grid, block, shared in [((1,), (96,), 0), ((0,), (32,), 0), ((1, 70000), (32,), 0), ((1,), (32,), 49 * 1024)]:
        with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
            kernel(grid, block, (), shared_mem=shared)
    kernel.max_dynamic_shared_size_bytes = 100 * 1024
    kernel((1,), (64,), (), shared_mem=100 * 1024)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        kernel.max_dynamic_shared_size_bytes = 300 * 1024


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("if (threadIdx.x < 5) __syncthreads(); else if (threadIdx.x < 40) __syncwarp();", "deadlock.*__syncthreads"),
        ("while (n) emu::emu_poll(\"a flag\");", "deadlock.*normal launch.*a flag"),
        ("FSQ_SHARED(s); s[100 + n] = 1;", "wrote behind|heap-buffer-overflow"),
        ("FSQ_SHARED(s); s[112 + n] = 1;", "outside of any array|heap-buffer-overflow"),
        ("*(volatile int *)(4096LL * n) = 1;", "outside of any array"),
        ("if (threadIdx.x) __shfl_sync(~1u, n, 0);", "lane 1 reads lane 0"),
        ("if (threadIdx.x) __syncthreads(); else __syncthreads_or(1);", "met at barrier 0"),
        ("FSQ_SHARED(s); *(float2 *)(s + 4 * n) = make_float2(1, 2);", "misaligned"),
        ("volatile int local[4]; local[3 + n] = 1;", "outside of a local array"),
        ("volatile char deep[3000000]; deep[n] = 1;", "outside of any array"),
    ],
)
def test_a_kernels_mistake_is_an_exception(cupy, module, body, said):
    kernel = module('extern "C" __global__ void f(int n) {' + body + "}").get_function("f")
    with pytest.raises(RuntimeError, match=said):
        kernel((1,), (64,), (np.int32(1),), shared_mem=100)
    if build.ASAN and "buffer-overflow" in said:
        return  # said once for a place in the code
    with pytest.raises(RuntimeError, match=said):  # again: the first has left the emulator in order
        kernel((1,), (64,), (np.int32(1),), shared_mem=100)


def test_a_store_behind_an_array_is_seen(cupy, module):
    kernel = module('extern "C" __global__ void f(float *x, int n) { x[n] = 1; }').get_function("f")
    with pytest.raises(RuntimeError, match=r"behind the array of argument 0|heap-buffer-overflow"):
        kernel((1,), (1,), (cupy.zeros(7, np.float32), np.int32(7)))


@pytest.mark.skipif(not build.ASAN, reason="AddressSanitizer sees it, see emulator/build.py")
@pytest.mark.parametrize("body", ["x[0] = x[n];", "float4 v = *(const float4 *)(x + n / 4 * 4); *(float4 *)x = v;"])
def test_an_access_behind_an_array_is_seen(cupy, module, body):
    kernel = module('extern "C" __global__ void f(float *x, int n) {' + body + "}").get_function("f")
    with pytest.raises(RuntimeError, match="heap-buffer-overflow"):
        kernel((1,), (1,), (cupy.zeros(7, np.float32), np.int32(7)))


RACES = {
    "no barrier": "x[threadIdx.x] = 1; if (threadIdx.x == 0) y[0] = x[1];",
    "read before": "y[threadIdx.x] = x[threadIdx.x ^ 32]; __syncwarp(); x[threadIdx.x] = 2;",
    "two writers": "x[0] = threadIdx.x;",
    "a shuffle is no fence": "x[threadIdx.x] = 1; __shfl_sync(~0u, 1, 0); y[threadIdx.x] = x[threadIdx.x ^ 1];",
    "a copy over what is read": "if (threadIdx.x < 32) y[threadIdx.x] = x[32 + threadIdx.x]; else emu::emu_copy(\"copy\", x + threadIdx.x, y, 4, 4);"
    "__syncthreads(); emu::emu_copy_commit(); emu::emu_copy_wait(0);",
    "a copy read by others": "emu::emu_copy(\"copy\", x + threadIdx.x, y + 64, 4, 4); emu::emu_copy_commit(); __syncthreads();"
    "emu::emu_copy_wait(0); y[threadIdx.x] = x[threadIdx.x ^ 1];",
    "blocks": "if (threadIdx.x == 0) y[0] = blockIdx.x;",
}
ORDERED = {
    "barrier": "x[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = x[threadIdx.x ^ 1]; __syncthreads(); x[threadIdx.x] = 2;",
    "warp": "x[threadIdx.x] = 1; __syncwarp(); y[threadIdx.x] = x[threadIdx.x ^ 1];",
    "the same value": "x[0] = 1; __syncthreads(); y[threadIdx.x] = x[0];",
    "neighbours": "((char *)x)[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = x[threadIdx.x / 4];",
    "atomics": "if (blockIdx.x == 0 && threadIdx.x == 0) y[70] = 1; __syncthreads();"
    "if (threadIdx.x == 0) { __threadfence(); if (atomicAdd((int *)y + 65, 1) == 1) y[1] = y[70]; }",
}


@pytest.mark.skipif(not build.RACES, reason="a way to run it, see emulator/build.py")
@pytest.mark.parametrize("body", [*RACES, *ORDERED])
def test_accesses_in_no_order_are_seen(cupy, module, body):
    text = {**RACES, **ORDERED}[body]
    kernel = module('extern "C" __global__ void f(float *y) { FSQ_SHARED(bytes); float *x = (float *)bytes;' + text + "}").get_function("f")
    blocks = 2 if body in ("blocks", "atomics") else 1
    raises = pytest.raises(RuntimeError, match=r"race: (writes|reads) .*; nothing puts the two in order")
    for _ in range(2):  # forward and backward
        with raises if body in RACES else contextlib.nullcontext():
            kernel((blocks,), (64,), (cupy.zeros(80, np.float32),), shared_mem=256)


def test_shared_memory_begins_as_no_number(cupy, module):
    text = 'extern "C" __global__ void f(float *y) { FSQ_SHARED(s); y[blockIdx.x] = *(float *)s; *(float *)s = 1; }'
    y = cupy.zeros(2, np.float32)
    module(text).get_function("f")((2,), (1,), (y,), shared_mem=4)
    assert np.isnan(y.get()).all()


def test_subnormal_numbers_are_flushed_in_kernels_only(cupy, module):
    x = cupy.full(1, 1.5e-38, np.float32)
    module('extern "C" __global__ void f(float *x) { *x = *x * 0.5f; }').get_function("f")((1,), (1,), (x,))
    assert x.get()[0] == 0
    assert np.float32(1.5e-38) * np.float32(0.5) != 0


FLAGS = r"""
extern "C" __global__ void ring(unsigned *flags, int *order) {
    if (threadIdx.x == 0) {
        unsigned found;
        while (!(found = emu::load_acquire(flags + blockIdx.x))) {}
        order[blockIdx.x] = found;
        emu::store_release(flags + blockIdx.x + 1, found + 1);
    }
    __syncthreads();
}
"""


def test_blocks_of_a_cooperative_launch_wait_for_each_other(cupy, module, emulated):
    kernel = module(FLAGS, cooperative=True).get_function("ring")
    for _ in range(2):
        flags, order = cupy.zeros(9, np.uint32), cupy.zeros(8, np.int32)
        flags[0] = 1
        kernel((8,), (64,), (flags, order))
        assert order.get().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(RuntimeError, match=r"deadlock: a value that threads wait for is never written; .*load_acquire"):
        kernel((8,), (64,), (cupy.zeros(9, np.uint32), order))
    emulated.multiprocessors = 1
    with pytest.warns(RuntimeWarning, match="will be reduced from 40 to 32"), pytest.raises(RuntimeError, match="deadlock"):
        kernel((40,), (64,), (cupy.zeros(41, np.uint32), cupy.zeros(40, np.int32)))


def test_a_graph_keeps_launches_and_refuses_the_rest(cupy, module, emulated):
    kernel = module('extern "C" __global__ void f(float *x) { x[threadIdx.x] *= 2; }').get_function("f")
    x = cupy.ones(32, np.float32)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        kernel((1,), (32,), (x,))
        kernel((1,), (32,), (x,))
        for forbidden in (lambda: x + 1, x.get, lambda: cupy.empty(3), stream.synchronize, lambda: x.fill(0), lambda: cupy.zeros(3)):
            with pytest.raises(RuntimeError, match="CaptureUnsupported"):
                forbidden()
        graph = stream.end_capture()
        assert (x.get() == 1).all()
        graph.launch(stream)
        graph.launch(stream)
    assert (x.get() == 16).all()


def test_arrays_are_as_strict_as_cupys(cupy, emulated):
    x, host = cupy.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    for mixing in (lambda: x + host, lambda: host + x, lambda: np.asarray(x), lambda: cupy.add(x, host), lambda: x.__setitem__(0, host[0])):
        with pytest.raises(TypeError):
            mixing()
    assert not isinstance(x, np.ndarray)
    assert x.data.ptr % 512 == 0
    assert x.T.base is not None
    assert x[1, 2].shape == ()
    assert isinstance(x.sum(), cupy.ndarray)
    assert isinstance(np.where(x > 2, x, np.float32(0)), cupy.ndarray)
    assert isinstance(np.exp(x), cupy.ndarray)
    assert (np.float32(2) * x).dtype == np.float32
    x[0] += 1
    assert x.get().tolist() == [[1, 2, 3], [3, 4, 5]]
    assert cupy.shares_memory(x, x.T[1:])
    assert np.isnan(cupy.empty(3).get()).all()
    assert x[x > 2].get().tolist() == [3, 3, 4, 5]
    emulated.memory = 100000
    with pytest.raises(MemoryError, match="Out of memory"):
        cupy.empty(200000)
