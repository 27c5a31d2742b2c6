"""device.cuh: each instruction against what it is for, on a GPU as in the emulator."""

import numpy as np
import pytest

from fastseq.backends.cuda_launch import source


@pytest.fixture(scope="module")
def module(cupy):
    made = cupy.RawModule(code=source("device.cuh") + KERNELS, options=("-std=c++17",))
    cooperative = cupy.RawModule(code=source("device.cuh") + KERNELS, options=("-std=c++17",), enable_cooperative_groups=True)
    return lambda name: (cooperative if name == "pass_on" else made).get_function(name)


KERNELS = r"""
#define G (threadIdx.x % 32 / 4)
#define T (threadIdx.x % 4)

extern "C" __global__ void product_tf32(const float *a, const float *b, float *d, int rounds) {
    float sum[4] = {d[G * 8 + 2 * T], d[G * 8 + 2 * T + 1], d[(G + 8) * 8 + 2 * T], d[(G + 8) * 8 + 2 * T + 1]};
    unsigned left[4] = {to_tf32(a[G * 8 + T]), to_tf32(a[(G + 8) * 8 + T]), to_tf32(a[G * 8 + T + 4]), to_tf32(a[(G + 8) * 8 + T + 4])};
    unsigned right[2] = {to_tf32(b[T * 8 + G]), to_tf32(b[(T + 4) * 8 + G])};
    if (!rounds) {
        for (int i = 0; i < 4; i++) left[i] = __float_as_uint(a[(G + i % 2 * 8) * 8 + T + i / 2 * 4]);
        for (int i = 0; i < 2; i++) right[i] = __float_as_uint(b[(T + 4 * i) * 8 + G]);
    }
    mma_tf32(sum, left, right);
    for (int i = 0; i < 4; i++) d[(G + i / 2 * 8) * 8 + 2 * T + i % 2] = sum[i];
}

// a (16, 16) and b (16, 8) row by row, through shared memory as bfloat16
extern "C" __global__ void product_bf16(const float *a, const float *b, float *d, int by_hand) {
    FSQ_SHARED(bytes);
    unsigned *A = (unsigned *)bytes, *B = A + 16 * 8, *columns = B + 16 * 4;
    for (int i = threadIdx.x; i < 128; i += 32) A[i] = pack_bf16(a[2 * i], a[2 * i + 1]);
    for (int i = threadIdx.x; i < 64; i += 32) B[i] = pack_bf16(b[2 * i], b[2 * i + 1]);
    for (int i = threadIdx.x; i < 64; i += 32) columns[i] = pack_bf16(b[2 * (i % 8) * 8 + i / 8], b[(2 * (i % 8) + 1) * 8 + i / 8]);
    __syncwarp();
    float sum[4] = {0, 0, 0, 0};
    unsigned left[4], right[2];
    const int lane = threadIdx.x;
    if (by_hand) {
        for (int i = 0; i < 4; i++) left[i] = A[(G + i % 2 * 8) * 8 + T + i / 2 * 4];
        for (int i = 0; i < 2; i++) right[i] = columns[G * 8 + T + i * 4]; // B^T lies row by row
    } else {
        ldmatrix_x4(left, A + (lane % 8 + lane / 8 % 2 * 8) * 8 + lane / 16 * 4);
        unsigned both[4];
        ldmatrix_x4_trans(both, B + lane % 16 * 4);
        for (int i = 0; i < 2; i++) right[i] = both[i];
        if (both[2] != both[0] || both[3] != both[1]) sum[0] = 1e30f;
    }
    mma_bf16(sum, left, right);
    for (int i = 0; i < 4; i++) d[(G + i / 2 * 8) * 8 + 2 * T + i % 2] = sum[i];
}

extern "C" __global__ void convert(const float *x, unsigned *tf32, unsigned *bf16, float *back, float *powers) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    tf32[i] = to_tf32(x[i]);
    bf16[i] = pack_bf16(x[i], 1.0f);
    back[i] = unpack_bf16(bf16[i]).x + (unpack_bf16(bf16[i]).y - 1.0f) + (from_bf16(to_bf16(x[i])) - unpack_bf16(bf16[i]).x);
    powers[i] = exp2_approx(x[i]);
}

// y[i] = x[i] for i < n and 0 behind, through two groups of copies of which the last is not waited for
extern "C" __global__ void copied(const float *x, float *y, int n) {
    FSQ_SHARED(bytes);
    float *kept = (float *)bytes;
    const int i = 4 * threadIdx.x, left = n - i;
    cp_async_16(kept + i, x + (left > 0 ? i : 0), left <= 0 ? 0 : left < 4 ? 4 * left : 16);
    cp_async_commit();
    cp_async_16(kept + 128 + i, x, 0);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const int other = (i + 64) % 128;
    for (int j = 0; j < 4; j++) y[other + j] = kept[other + j];
    cp_async_wait<0>();
}

// Rounds in which every block writes its numbers and reads those of the block before it.
extern "C" __global__ void pass_on(float4 *numbers, unsigned *arrived, unsigned *last, int rounds) {
    const unsigned blocks = gridDim.x, before = (blockIdx.x + blocks - 1) % blocks;
    float4 mine = make_float4(blockIdx.x, threadIdx.x, 0, 1);
    for (int round = 0; round < rounds; round++) {
        float4 *here = numbers + round % 2 * blocks * blockDim.x;
        store_cg(here + blockIdx.x * blockDim.x + threadIdx.x, mine);
        __syncthreads();
        if (threadIdx.x == 0) {
            add_release(arrived, 1);
            while (load_acquire(arrived) < blocks * (round + 1)) {}
        }
        __syncthreads();
        mine = load_cg(here + before * blockDim.x + threadIdx.x);
        mine.z += 1;
    }
    numbers[(2 * blocks + blockIdx.x) * blockDim.x + threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x == 0 && add_acquire_release(arrived + 1, 1) == blocks - 1) store_release(last, 1);
}
"""


def bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def tf32(x):
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def cut(x):
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("rounds", [1, 0])
def test_products_in_tf32(cupy, to_gpu, module, rng, rounds):
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    d = to_gpu(c)
    module("product_tf32")((1,), (32,), (to_gpu(a), to_gpu(b), d, np.int32(rounds)))
    seen = tf32 if rounds else cut
    np.testing.assert_allclose(d.get(), seen(a).astype(float) @ seen(b) + c, rtol=0, atol=2e-6)


@pytest.mark.parametrize("by_hand", [1, 0])
def test_products_in_bf16(cupy, to_gpu, module, rng, by_hand):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 16), (16, 8)))
    d = cupy.empty((16, 8), np.float32)
    module("product_bf16")((1,), (32,), (to_gpu(a), to_gpu(b), d, np.int32(by_hand)), shared_mem=4 * (128 + 64 + 64))
    np.testing.assert_allclose(d.get(), bf16(a).astype(float) @ bf16(b), rtol=0, atol=4e-6)


def test_conversions_round_as_numbers_do(cupy, to_gpu, module, rng):
    x = np.concatenate(
        [
            rng.standard_normal(200) * 2.0 ** rng.integers(-30, 30, 200),
            np.float32([0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 2**-11 + 2**-23, -1 - 2**-11, 3e38, np.inf, -np.inf, np.nan]),
            np.linspace(-140, 130, 44),
        ]
    ).astype(np.float32)
    words = [cupy.empty(256, np.uint32) for _ in range(2)]
    numbers = [cupy.empty(256, np.float32) for _ in range(2)]
    module("convert")((2,), (128,), (to_gpu(x), *words, *numbers))
    known = ~np.isnan(x)
    np.testing.assert_array_equal(words[0].get().view(np.float32)[known], np.where(np.isfinite(x), tf32(x), x)[known])
    np.testing.assert_array_equal(words[1].get()[known], 0x3F80 << 16 | bf16(x).view(np.uint32)[known] >> 16)
    assert np.isnan(words[0].get().view(np.float32)[~known]).all()
    finite = np.abs(x) < 1e30
    np.testing.assert_array_equal(numbers[0].get()[finite], bf16(x)[finite])
    assert np.isnan(numbers[0].get()[~known]).all()
    with np.errstate(over="ignore"):  # to inf, in float32 too
        want = np.exp2(x.astype(float)).astype(np.float32)
    want[want < 2.0**-126] = 0
    np.testing.assert_allclose(numbers[1].get(), want, rtol=3e-7, atol=2.0**-126)


@pytest.mark.parametrize("n", [128, 127, 65, 2, 1])
def test_copies_arrive_when_they_are_waited_for(cupy, to_gpu, module, rng, n):
    x = rng.standard_normal(n).astype(np.float32)
    y = cupy.empty(128, np.float32)
    module("copied")((1,), (32,), (to_gpu(x), y, np.int32(n)), shared_mem=4 * 256)
    want = np.zeros(128, np.float32)
    want[:n] = x
    np.testing.assert_array_equal(y.get(), want)


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_blocks_exchange_numbers(cupy, module, rounds):
    numbers, counters = cupy.empty((3, 4, 64, 4), np.float32), cupy.zeros(3, np.uint32)
    module("pass_on")((4,), (64,), (numbers, counters, counters[2:], np.int32(rounds)))
    block, thread = np.divmod(np.arange(256), 64)
    want = np.stack([(block - rounds) % 4, thread, np.full(256, rounds), np.ones(256)], 1)
    assert counters.get().tolist() == [4 * rounds, 4, 1]
    np.testing.assert_array_equal(numbers.get()[2].reshape(256, 4), want)
