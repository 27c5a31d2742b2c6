// attention_prepare.cu - operands as the tensor cores' kernels read them: rows of DIM elements of their type, zeros behind the columns and
// behind the last row, each head's rows at a multiple of a tile.
//
//   q' = scale q, k' = k, v' = v (and dy' = dy), rounded to FORMAT; delta = dy . y
// One pass over each array, bound by its bytes. Numbers that are infinite or NaN, or become so, set `special`: a product of tiles would
// take them to queries that do not see them, so attention_forward.cu and attention_backward.cu then do the work.
#define ROW_TILES 1
#define WARPS 8
#define COLUMNS 16
#include "attention_pieces.cuh"

// What a product takes for a number. bfloat16's largest one is a little less than float32's, so rounding may give an infinity.
__device__ __forceinline__ float rounded(float x) {
    return FORMAT == 96 ? x : FORMAT == 32 ? __uint_as_float(to_tf32(x)) : from_bf16(to_bf16(x));
}

__device__ __forceinline__ bool any_odd(const float (&x)[PER_PIECE]) {
    bool found = false;
#pragma unroll
    for (int e = 0; e < PER_PIECE; e++) found |= !is_finite(rounded(x[e]));
    return found;
}

__device__ __forceinline__ void prepare(Element *to, const float *x, const Strides &of, int *special, int piece, long long row, int rows, int heads,
                                        int T, int columns, float factor, bool wide) {
    const int i = (int)(row % rows), b = (int)(row / rows / heads), h = (int)(row / rows % heads);
    float numbers[PER_PIECE] = {};
    if (i < T) load_piece(numbers, rows_of(x, of, b, h) + i * of.row, piece * PER_PIECE, columns, wide);
#pragma unroll
    for (int e = 0; e < PER_PIECE; e++) numbers[e] *= factor;
    if (any_odd(numbers)) *special = 1;
    store_piece(to + row * DIM + piece * PER_PIECE, numbers);
}

// blockIdx.y: k, v or, for the backward pass alone, q. A thread makes a piece.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_prepare(Element *to_k, Element *to_v, Element *to_q, int *special, const float *k, const float *v, const float *q,
                      const __grid_constant__ Problem p) {
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x, row = at / PIECES;
    const int piece = (int)(at % PIECES), kv_heads = p.heads / p.group;
    const long long rows = blockIdx.y == 2 ? (long long)p.B * p.heads * p.rows_q : (long long)p.B * kv_heads * p.rows_k;
    if (row >= rows) return;
    if (blockIdx.y == 0) prepare(to_k, k, p.k, special, piece, row, p.rows_k, kv_heads, p.Tk, p.D, 1, p.wide & WIDE_K);
    else if (blockIdx.y == 1) prepare(to_v, v, p.v, special, piece, row, p.rows_k, kv_heads, p.Tk, p.Dv, 1, p.wide & WIDE_V);
    else prepare(to_q, q, p.q, special, piece, row, p.rows_q, p.heads, p.Tq, p.D, p.scale, p.wide & WIDE_Q);
}

// A warp makes a row of dy, and what its weights and their gradients are formed with: lse, 0 for a query that sees nothing, and delta.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_prepare_gradient(Element *to, float2 *stats, int *special, const float *dy, const float *y, const float *lse,
                               const __grid_constant__ Problem p) {
    const long long row = ((long long)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (row >= (long long)p.B * p.heads * p.rows_q) return;
    const int lane = threadIdx.x % 32, i = (int)(row % p.rows_q), b = (int)(row / p.rows_q / p.heads), h = (int)(row / p.rows_q % p.heads);
    float sum = 0;
    for (int piece = lane; piece < PIECES; piece += 32) {
        float gradient[PER_PIECE] = {}, output[PER_PIECE] = {};
        if (i < p.Tq) {
            load_piece(gradient, rows_of(dy, p.dy, b, h) + i * p.dy.row, piece * PER_PIECE, p.Dv, p.wide & WIDE_DY);
            load_piece(output, rows_of(y, p.y, b, h) + i * p.y.row, piece * PER_PIECE, p.Dv, p.wide & WIDE_Y);
        }
#pragma unroll
        for (int e = 0; e < PER_PIECE; e++) sum += rounded(gradient[e]) * output[e];    // as dp has it: the two cancel where one key is seen
        if (any_odd(gradient)) *special = 1;
        store_piece(to + row * DIM + piece * PER_PIECE, gradient);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane > 0) return;
    const float shift = i < p.Tq ? lse[row / p.rows_q * p.Tq + i] : 0;
    stats[row] = make_float2(shift == -infinity() ? 0 : shift, sum);
}
