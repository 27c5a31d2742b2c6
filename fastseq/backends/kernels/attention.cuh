// attention.cuh - what the kernels of scaled dot-product attention share: which keys a query sees, masks, dropout.
//
// Query i sees the keys j with i + low <= j <= i + high (causal attention, an offset and a window are such a band), j < key_length, and
// what the mask leaves. A hidden score is -inf whatever the key holds.
#pragma once
#include "device.cuh"
#include "philox.cuh"

// Of an array (B, heads, T, columns) in elements; columns are neighbours.
struct Strides {
    long long b, h, row;
};

// What every kernel takes by value: cuda_attention_call.py makes it.
struct Problem {
    const void *mask;
    const long long *lengths;                               // of the keys, for each b, or null
    long long mask_b, mask_h, mask_query, mask_key;         // strides in elements, 0 where it is broadcast
    Strides q, k, v, y, dy, dq, dk, dv;
    unsigned long long seed;                                // Philox's key
    long long threshold;                                    // a weight is kept where its word is not less; 0: no dropout
    int mask_kind;                                          // 0: none, 1: bytes, 0 = hidden, 2: numbers to add
    int B, heads, group, Tq, Tk, D, Dv, low, high;          // group: heads of q for each of k and v
    int wide;                                               // bit n: the rows of array n (of those above) may be read 16 bytes at a time
    int rows_q, rows_k;                                     // of a head in what attention_prepare.cu makes: multiples of a tile's
    int heads_k, heads_q;                                   // whose keys and values, or queries and gradients, the L2 cache holds together
    REAL scale, kept;                                       // kept: what a weight that dropout leaves is multiplied by
};

enum { WIDE_Q = 1, WIDE_K = 2, WIDE_V = 4, WIDE_Y = 8, WIDE_DY = 16, WIDE_DQ = 32, WIDE_DK = 64, WIDE_DV = 128 };

// Which tile of which head a block has. Heads come in groups that the L2 cache holds; of all heads of a group the first tile comes first,
// then the second: where tiles differ in work, those with the most are to be first, so that the device is busy to the end.
struct Turn {
    int head, tile;
};
__device__ __forceinline__ Turn turn_of(int block, int tiles, int heads, int together) {
    const int group = block / (together * tiles), at = block % (together * tiles), first = group * together;
    const int here = heads - first < together ? heads - first : together;
    return {first + at % here, at / here};
}

// Where a head of an array begins.
template <class T> __device__ __forceinline__ T *rows_of(T *x, const Strides &s, int b, int h) { return x + b * s.b + h * s.h; }

__device__ __forceinline__ REAL infinity() { return (REAL)__int_as_float(0x7f800000); }
__device__ __forceinline__ bool is_finite(REAL x) { return x - x == 0; }
__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int greatest(int a, int b) { return a > b ? a : b; }

__device__ __forceinline__ int keys_of(const Problem &p, int b) { return p.lengths ? (int)p.lengths[b] : p.Tk; }

// The keys [from, to) that some of the queries [i, i + n) see.
struct Range {
    int from, to;
};
__device__ __forceinline__ Range keys_seen(const Problem &p, int n_keys, int i, int n) {
    return {greatest(i + p.low, 0), least(i + n + p.high, n_keys)};
}
// The queries that see some of the keys [j, j + n).
__device__ __forceinline__ Range queries_seeing(const Problem &p, int n_keys, int j, int n) {
    if (j >= n_keys) return {0, 0};
    return {greatest(j - p.high, 0), least(least(j + n, n_keys) - p.low, p.Tq)};
}
// Whether each of the queries [i, i + rows) sees each of the keys [j, j + columns), but for the mask.
__device__ __forceinline__ bool all_seen(const Problem &p, int n_keys, int i, int rows, int j, int columns) {
    return i + rows <= p.Tq && j + columns <= n_keys && j >= i + rows - 1 + p.low && j + columns - 1 <= i + p.high;
}
__device__ __forceinline__ bool seen(const Problem &p, int n_keys, int i, int j) {
    return i < p.Tq && j < n_keys && j >= i + p.low && j <= i + p.high;
}

// Where the mask of a head begins, in elements.
__device__ __forceinline__ long long mask_place(const Problem &p, int b, int h) { return b * p.mask_b + h * p.mask_h; }

// The score of a pair after the mask.
__device__ __forceinline__ REAL masked(const Problem &p, long long head, int i, int j, REAL score) {
    if (p.mask_kind == 0) return score;
    long long at = head + i * p.mask_query + j * p.mask_key;
    if (p.mask_kind == 1) return ((const unsigned char *)p.mask)[at] ? score : -infinity();
    REAL number = ((const REAL *)p.mask)[at];
    return number == -infinity() ? number : score + number;
}

// The words of the four keys from 4 block on, for query i of head `row`, b heads + h.
__device__ __forceinline__ uint4 dropout_words(const Problem &p, int block, int row, int i) {
    return philox(p.seed, make_uint4((unsigned)block, (unsigned)i, (unsigned)row, 0));
}

// What dropout multiplies the weight of a pair by.
__device__ __forceinline__ REAL dropout_of(const Problem &p, int row, int i, int j) {
    const uint4 words = dropout_words(p, j / 4, row, i);
    const unsigned word = (j & 3) == 0 ? words.x : (j & 3) == 1 ? words.y : (j & 3) == 2 ? words.z : words.w;
    return (long long)word >= p.threshold ? p.kept : 0;
}
