// attention_hide.cuh - what masks and dropout do to scores that lie in a warp's fragments (attention_mma.cuh).
//
// EXTRAS: whether there is a mask or dropout; without, only edges are looked at, and only in tiles that have some. TURNED: whether the
// rows of a tile of scores are keys and its columns queries.
#pragma once
#include "attention_mma.cuh"

template <bool TURNED> struct Pairs {
    const Problem &p;
    int n_keys, row, column;        // of the tile of scores that the warp has: the first row and column, counted from the arrays' begin
    long long mask;
    int head;

    // -inf where a query does not see a key; `whole`: all do, but for the mask.
    __device__ __forceinline__ void hide(float (&s)[ROW_TILES][SCORE_TILES][4], bool whole) const {
        if (whole && (!EXTRAS || p.mask_kind == 0)) return;
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int r = row + 16 * m + g + 8 * (e / 2), c = column + 8 * n + 2 * t + e % 2;
                    const int i = TURNED ? c : r, j = TURNED ? r : c;
                    if (!seen(p, n_keys, i, j)) s[m][n][e] = -infinity();
                    else if (EXTRAS) s[m][n][e] = masked(p, mask, i, j, s[m][n][e]);
                }
    }

    // s *= dropout's factors. Four scores of a lane are in four blocks of Philox, each of which has words for three lanes more, so each
    // of the four makes one block; where a row has the neighbours in a block, two of two lanes.
    __device__ __forceinline__ void drop(float (&s)[4], int m, int n) const {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, r = row + 16 * m + g, c = column + 8 * n + 2 * t;
        unsigned word[4];
        if (!TURNED) {
            const bool odd = t & 1;
            const uint4 w = dropout_words(p, c / 4, head, odd ? r + 8 : r);
            const unsigned first = __shfl_xor_sync(0xffffffffu, odd ? w.x : w.z, 1), second = __shfl_xor_sync(0xffffffffu, odd ? w.y : w.w, 1);
            word[0] = odd ? first : w.x, word[1] = odd ? second : w.y;
            word[2] = odd ? w.z : first, word[3] = odd ? w.w : second;
        } else {
            const int a = g & 3;                            // makes the block of s[a], and has word a of all four
            const uint4 w = dropout_words(p, (r + 8 * (a / 2)) / 4, head, c + a % 2);
            unsigned got[4];
#pragma unroll
            for (int x = 0; x < 4; x++) {
                const int b = a ^ x;
                const unsigned given = b == 0 ? w.x : b == 1 ? w.y : b == 2 ? w.z : w.w;
                got[x] = x == 0 ? given : __shfl_xor_sync(0xffffffffu, given, 4 * x);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int x = a ^ e;
                word[e] = x == 0 ? got[0] : x == 1 ? got[1] : x == 2 ? got[2] : got[3];
            }
        }
#pragma unroll
        for (int e = 0; e < 4; e++) s[e] *= (long long)word[e] >= p.threshold ? p.kept : 0;
    }
};
