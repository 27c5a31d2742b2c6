// attention_pieces.cuh - rows of float32 as tensor cores take them: pieces of 16 bytes, rounded, zeros behind the columns.
#pragma once
#include "attention_mma.cuh"

// A piece of 16 bytes.
__device__ __forceinline__ void store_piece(Element *to, const float (&x)[PER_PIECE]) {
#if FORMAT == 16
    *(uint4 *)to = make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
#elif FORMAT == 32
    *(uint4 *)to = make_uint4(to_tf32(x[0]), to_tf32(x[1]), to_tf32(x[2]), to_tf32(x[3]));
#else
    *(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
#endif
}

// PER_PIECE numbers of a row of `columns`, from d on, zeros behind them. wide: rows begin at multiples of 16 bytes, columns is a multiple of 4.
__device__ __forceinline__ void load_piece(float (&x)[PER_PIECE], const float *row, int d, int columns, bool wide) {
#pragma unroll
    for (int e = 0; e < PER_PIECE; e += 4) {
        if (wide) {
            const float4 four = d + e < columns ? *(const float4 *)(row + d + e) : make_float4(0, 0, 0, 0);
            x[e] = four.x, x[e + 1] = four.y, x[e + 2] = four.z, x[e + 3] = four.w;
        } else {
#pragma unroll
            for (int n = e; n < e + 4; n++) x[n] = d + n < columns ? row[d + n] : 0;
        }
    }
}
