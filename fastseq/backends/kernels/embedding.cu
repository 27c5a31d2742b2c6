// embedding.cu - rows of a table by their number, and the sum of gradients back into them.
//
//   y_i = weight[ids_i],  dweight[v] = the sum of dy_i over the places i of v, in their order
//
// Bound by the bytes of y or dy, which are moved once. A gradient is summed by one owner for each id, without atomics: of few places the block
// of the id's first place, which looks for the others itself; of many, the places come sorted by id (stable), and warps sum up pieces.
// W: elements of an access; D is a multiple of it.
#include "device.cuh"
#include "vector.cuh"

// A warp for each row of y, threadIdx.y.
extern "C" __global__ void embedding_forward(REAL *y, const long long *ids, const REAL *weight, long long n, int D) {
    const long long i = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (i >= n) return;
    const REAL *const from = weight + ids[i] * D;
    REAL *const to = y + i * D;
#pragma unroll 4
    for (int column = (int)threadIdx.x * W; column < D; column += 32 * W) {
        REAL v[W];
        load_lanes(v, from + column);
        store_lanes(to + column, v);
    }
}

enum { OWNERS = 128, ACCESSES = 4 };  // threads of a block, accesses of a thread to a row at a time

__device__ __forceinline__ void add_row(REAL (&sum)[ACCESSES][W], const REAL (&row)[ACCESSES][W]) {
#pragma unroll
    for (int a = 0; a < ACCESSES; a++)
#pragma unroll
        for (int l = 0; l < W; l++) sum[a][l] += row[a][l];
}
// The thread's columns of a row, from `first` on, `step` apart.
__device__ __forceinline__ void load_row(REAL (&row)[ACCESSES][W], const REAL *from, int first, int step, int D) {
#pragma unroll
    for (int a = 0; a < ACCESSES; a++)
        if (first + a * step < D) load_lanes(row[a], from + first + a * step);
}
__device__ __forceinline__ void store_row(REAL *to, const REAL (&row)[ACCESSES][W], int first, int step, int D) {
#pragma unroll
    for (int a = 0; a < ACCESSES; a++)
        if (first + a * step < D) store_lanes(to + first + a * step, row[a]);
}

// A block for each place. dweight is zeros. Shared: 8 words, for votes on two rounds of places in turn.
extern "C" __global__ void __launch_bounds__(OWNERS) embedding_backward_few(REAL *dweight, const REAL *dy, const long long *ids, int n, int D, long long padding_idx) {
    FSQ_SHARED(bytes);
    unsigned *const votes = (unsigned *)bytes;
    const int place = blockIdx.x, thread = threadIdx.x, step = OWNERS * W;
    const long long id = ids[place];
    if (id == padding_idx) return;
    bool earlier = false;
    for (int i = thread; i < place; i += OWNERS) earlier = earlier || ids[i] == id;
    if (__syncthreads_or(earlier)) return;
    int turn = 0;
    for (int first = thread * W; first - thread * W < D; first += ACCESSES * step) {
        REAL sum[ACCESSES][W] = {};
        load_row(sum, dy + (long long)place * D, first, step, D);
        for (int round = place + 1; round < n; round += OWNERS, turn ^= 4) {
            const unsigned same = __ballot_sync(0xffffffffu, round + thread < n && ids[round + thread] == id);
            if (thread % 32 == 0) votes[turn + thread / 32] = same;
            __syncthreads();
            for (int w = 0; w < OWNERS / 32; w++)
                for (unsigned left = votes[turn + w]; left;) {
                    REAL rows[4][ACCESSES][W] = {};  // under way together: a frequent id waits for few of its rows
#pragma unroll
                    for (int u = 0; u < 4; u++) {
                        if (left) load_row(rows[u], dy + (long long)(round + 32 * w + __ffs(left) - 1) * D, first, step, D);
                        left &= left - 1;
                    }
#pragma unroll
                    for (int u = 0; u < 4; u++) add_row(sum, rows[u]);
                }
        }
        store_row(dweight + id * D, sum, first, step, D);
    }
}

// Sorted: order is the places by id. A warp, threadIdx.y, for each position that begins a piece: an id's first, and every 32nd. A piece ends
// before the next one. The first of an id goes to dweight, which is zeros, the others to parts (n / 32, D).
extern "C" __global__ void embedding_backward_pieces(
    REAL *dweight, REAL *parts, const REAL *dy, const long long *ids, const long long *order, long long n, int D, long long padding_idx) {
    const long long position = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (position >= n) return;
    const int lane = threadIdx.x, step = 32 * W;
    const long long id = ids[order[position]];
    const bool begins = position == 0 || ids[order[position - 1]] != id;
    if ((!begins && position % 32 != 0) || id == padding_idx) return;
    const long long mine = position + lane < n && position % 32 + lane < 32 ? order[position + lane] : -1;
    const unsigned others = ~__ballot_sync(0xffffffffu, mine >= 0 && ids[mine < 0 ? 0 : mine] == id);
    const int count = others ? __ffs(others) - 1 : 32;
    REAL *const to = begins ? dweight + id * D : parts + position / 32 * D;
    for (int first = lane * W; first - lane * W < D; first += ACCESSES * step) {
        REAL sum[ACCESSES][W] = {};
#pragma unroll 4
        for (int q = 0; q < count; q++) {
            REAL row[ACCESSES][W] = {};
            load_row(row, dy + __shfl_sync(0xffffffffu, mine, q) * D, first, step, D);
            add_row(sum, row);
        }
        store_row(to, sum, first, step, D);
    }
}

// A warp, threadIdx.y, for each 32nd position: the one where an id's second piece begins adds its pieces up.
extern "C" __global__ void embedding_backward_join(
    REAL *dweight, const REAL *parts, const long long *ids, const long long *order, long long n, int D, long long padding_idx) {
    const long long piece = (long long)blockIdx.x * blockDim.y + threadIdx.y + 1, position = 32 * piece;
    if (position >= n) return;
    const long long id = ids[order[position]];
    if (id == padding_idx || ids[order[position - 1]] != id || (piece > 1 && ids[order[position - 33]] == id)) return;
    const int lane = threadIdx.x, step = 32 * W;
    for (int first = lane * W; first - lane * W < D; first += ACCESSES * step) {
        REAL sum[ACCESSES][W] = {};
        load_row(sum, dweight + id * D, first, step, D);
        for (long long p = piece; 32 * p < n && ids[order[32 * p]] == id; p++) {
            REAL row[ACCESSES][W] = {};
            load_row(row, parts + p * D, first, step, D);
            add_row(sum, row);
        }
        store_row(dweight + id * D, sum, first, step, D);
    }
}

// found (blocks): the greatest n - i of a block's places i whose id is outside [0, limit), or 0. 256 threads.
extern "C" __global__ void ids_find_outside(unsigned *found, const long long *ids, unsigned n, long long limit) {
    FSQ_SHARED(bytes);
    unsigned *const shared = (unsigned *)bytes, most = 0;
    for (unsigned long long i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull)
        if ((ids[i] < 0 || ids[i] >= limit) && most < n - (unsigned)i) most = n - (unsigned)i;
    for (int flip = 16; flip; flip /= 2) {
        const unsigned other = __shfl_xor_sync(0xffffffffu, most, flip);
        most = most < other ? other : most;
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = most;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < 8; warp++) most = most < shared[warp] ? shared[warp] : most;
    found[blockIdx.x] = most;
}
