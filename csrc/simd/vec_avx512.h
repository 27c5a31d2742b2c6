/* vec_avx512.h - the vocabulary of vec.h in 512-bit registers (AVX-512 F, BW, VL, DQ). */
#include <immintrin.h>

#define FSQ_HAS_FMA 1

#if defined FSQ_F32
typedef __m512 vreal;
typedef __mmask16 vmask;
#define VL 16
#define VR(op) _mm512_##op##_ps
#define VRM(op) _mm512_##op##_ps_mask
#define VI(op) _mm512_##op##_epi32
#define VTO_INT _mm512_castps_si512
#define VTO_REAL _mm512_castsi512_ps
#else
typedef __m512d vreal;
typedef __mmask8 vmask;
#define VL 8
#define VR(op) _mm512_##op##_pd
#define VRM(op) _mm512_##op##_pd_mask
#define VI(op) _mm512_##op##_epi64
#define VTO_INT _mm512_castpd_si512
#define VTO_REAL _mm512_castsi512_pd
#endif
typedef __m512i vint;

FSQ_INLINE vmask vfirst(ptrdiff_t n) { return (vmask)((1u << n) - 1); }

FSQ_INLINE vreal vzero(void) { return VR(setzero)(); }
FSQ_INLINE vreal vset1(real x) { return VR(set1)(x); }
FSQ_INLINE vreal vload(const real *p) { return VR(loadu)(p); }
FSQ_INLINE void vstore(real *p, vreal a) { VR(storeu)(p, a); }
FSQ_INLINE vreal vload_n(const real *p, ptrdiff_t n) { return VR(maskz_loadu)(vfirst(n), p); }
FSQ_INLINE void vstore_n(real *p, vreal a, ptrdiff_t n) { VR(mask_storeu)(p, vfirst(n), a); }

FSQ_INLINE vreal vadd(vreal a, vreal b) { return VR(add)(a, b); }
FSQ_INLINE vreal vsub(vreal a, vreal b) { return VR(sub)(a, b); }
FSQ_INLINE vreal vmul(vreal a, vreal b) { return VR(mul)(a, b); }
FSQ_INLINE vreal vdiv(vreal a, vreal b) { return VR(div)(a, b); }
/* 14 bits, in float64 doubled by a step of Newton's. */
#define FSQ_HAS_RECIPROCAL 1
FSQ_INLINE vreal vreciprocal(vreal a) {
    vreal r = VR(rcp14)(a);
    return sizeof(real) == 4 ? r : VR(mul)(r, VR(fnmadd)(a, r, vset1(2)));
}
FSQ_INLINE vreal vsqrt(vreal a) { return VR(sqrt)(a); }
FSQ_INLINE vreal vfma(vreal a, vreal b, vreal c) { return VR(fmadd)(a, b, c); }
FSQ_INLINE vreal vfnma(vreal a, vreal b, vreal c) { return VR(fnmadd)(a, b, c); }
FSQ_INLINE vreal vmin(vreal a, vreal b) { return VR(min)(a, b); }
FSQ_INLINE vreal vmax(vreal a, vreal b) { return VR(max)(a, b); }
FSQ_INLINE vreal vneg(vreal a) { return VR(xor)(a, vset1((real)-0.0)); }
FSQ_INLINE vreal vabs(vreal a) { return VR(andnot)(vset1((real)-0.0), a); }

FSQ_INLINE vmask vlt(vreal a, vreal b) { return VRM(cmp)(a, b, _CMP_LT_OQ); }
FSQ_INLINE vmask vle(vreal a, vreal b) { return VRM(cmp)(a, b, _CMP_LE_OQ); }
FSQ_INLINE vmask vgt(vreal a, vreal b) { return VRM(cmp)(a, b, _CMP_GT_OQ); }
FSQ_INLINE vmask vge(vreal a, vreal b) { return VRM(cmp)(a, b, _CMP_GE_OQ); }
FSQ_INLINE vmask veq(vreal a, vreal b) { return VRM(cmp)(a, b, _CMP_EQ_OQ); }
FSQ_INLINE vmask visnan(vreal a) { return VRM(cmp)(a, a, _CMP_UNORD_Q); }
FSQ_INLINE vmask vand_m(vmask a, vmask b) { return a & b; }
FSQ_INLINE vmask vor_m(vmask a, vmask b) { return a | b; }
FSQ_INLINE int vany(vmask m) { return m != 0; }
FSQ_INLINE vreal vselect(vmask m, vreal a, vreal b) { return VR(mask_blend)(m, b, a); }

FSQ_INLINE vint vbits(vreal a) { return VTO_INT(a); }
FSQ_INLINE vreal vfrombits(vint a) { return VTO_REAL(a); }
FSQ_INLINE vint vi_set1(int64_t x) { return VI(set1)(x); }
FSQ_INLINE vint vi_add(vint a, vint b) { return VI(add)(a, b); }
FSQ_INLINE vint vi_sub(vint a, vint b) { return VI(sub)(a, b); }
FSQ_INLINE vint vi_and(vint a, vint b) { return _mm512_and_si512(a, b); }
FSQ_INLINE vint vi_or(vint a, vint b) { return _mm512_or_si512(a, b); }
FSQ_INLINE vint vi_xor(vint a, vint b) { return _mm512_xor_si512(a, b); }
FSQ_INLINE vint vi_shl(vint a, unsigned n) { return VI(slli)(a, n); }
FSQ_INLINE vint vi_shr(vint a, unsigned n) { return VI(srli)(a, n); }

FSQ_INLINE real vsum(vreal a) { return VR(reduce_add)(a); }
FSQ_INLINE real vmaximum(vreal a) { return VR(reduce_max)(a); }

#if defined FSQ_F32
FSQ_INLINE void vtranspose(vreal r[VL]) {
    vreal s[VL];
    for (int i = 0; i < 16; i += 2) {                       /* pairs of rows, element by element */
        s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {                       /* four rows: 4 x 4 blocks are turned */
        r[i] = _mm512_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(s[i], s[i + 2], 0xEE);
        r[i + 2] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
    }
    for (int h = 0; h < 16; h += 8)                         /* then the blocks themselves, in two rounds */
        for (int i = 0; i < 4; i++) {
            s[h + i] = _mm512_shuffle_f32x4(r[h + i], r[h + i + 4], 0x88);
            s[h + i + 4] = _mm512_shuffle_f32x4(r[h + i], r[h + i + 4], 0xDD);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_f32x4(s[i], s[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(s[i], s[i + 8], 0xDD);
    }
}
FSQ_INLINE void vload_turned(vreal r[VL], const real *const row[VL], ptrdiff_t k) {
#pragma GCC unroll 4
    for (int q = 0; q < 16; q += 4) {                       /* four columns: 4 x 4 blocks side by side, then each is turned */
        vreal s[4], t[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            s[i] = _mm512_castps128_ps512(_mm_loadu_ps(row[i] + k + q));
            s[i] = _mm512_insertf32x4(s[i], _mm_loadu_ps(row[i + 4] + k + q), 1);
            s[i] = _mm512_insertf32x4(s[i], _mm_loadu_ps(row[i + 8] + k + q), 2);
            s[i] = _mm512_insertf32x4(s[i], _mm_loadu_ps(row[i + 12] + k + q), 3);
        }
        for (int i = 0; i < 4; i += 2) {
            t[i] = _mm512_unpacklo_ps(s[i], s[i + 1]);
            t[i + 1] = _mm512_unpackhi_ps(s[i], s[i + 1]);
        }
        r[q] = _mm512_shuffle_ps(t[0], t[2], 0x44);
        r[q + 1] = _mm512_shuffle_ps(t[0], t[2], 0xEE);
        r[q + 2] = _mm512_shuffle_ps(t[1], t[3], 0x44);
        r[q + 3] = _mm512_shuffle_ps(t[1], t[3], 0xEE);
    }
}
#else
FSQ_INLINE void vtranspose(vreal r[VL]) {
    vreal s[VL];
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    for (int h = 0; h < 8; h += 4)
        for (int i = 0; i < 2; i++) {
            r[h + i] = _mm512_shuffle_f64x2(s[h + i], s[h + i + 2], 0x88);
            r[h + i + 2] = _mm512_shuffle_f64x2(s[h + i], s[h + i + 2], 0xDD);
        }
    for (int i = 0; i < 4; i++) {
        s[i] = _mm512_shuffle_f64x2(r[i], r[i + 4], 0x88);
        s[i + 4] = _mm512_shuffle_f64x2(r[i], r[i + 4], 0xDD);
    }
    for (int i = 0; i < 8; i++) r[i] = s[i];
}
FSQ_INLINE void vload_turned(vreal r[VL], const real *const row[VL], ptrdiff_t k) {
#pragma GCC unroll 4
    for (int q = 0; q < 8; q += 2) {
        vreal s[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            s[i] = _mm512_castpd128_pd512(_mm_loadu_pd(row[i] + k + q));
            s[i] = _mm512_insertf64x2(s[i], _mm_loadu_pd(row[i + 2] + k + q), 1);
            s[i] = _mm512_insertf64x2(s[i], _mm_loadu_pd(row[i + 4] + k + q), 2);
            s[i] = _mm512_insertf64x2(s[i], _mm_loadu_pd(row[i + 6] + k + q), 3);
        }
        r[q] = _mm512_unpacklo_pd(s[0], s[1]);
        r[q + 1] = _mm512_unpackhi_pd(s[0], s[1]);
    }
}
#endif
