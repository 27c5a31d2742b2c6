/* vec_avx2.h - the vocabulary of vec.h in 256-bit registers (AVX2 and FMA). */
#include <immintrin.h>

#define FSQ_HAS_FMA 1

#if defined FSQ_F32
typedef __m256 vreal;
#define VL 8
#define VR(op) _mm256_##op##_ps
#define VI(op) _mm256_##op##_epi32
#define VI_SET1(x) _mm256_set1_epi32((int32_t)(x))
#define VTO_INT _mm256_castps_si256
#define VTO_REAL _mm256_castsi256_ps
#else
typedef __m256d vreal;
#define VL 4
#define VR(op) _mm256_##op##_pd
#define VI(op) _mm256_##op##_epi64
#define VI_SET1(x) _mm256_set1_epi64x(x)
#define VTO_INT _mm256_castpd_si256
#define VTO_REAL _mm256_castsi256_pd
#endif
typedef __m256i vint;
typedef vreal vmask;                                        /* all ones or all zeros in each lane */

/* All ones in the first n lanes: a window of this table. */
static const int64_t vec_window[2 * 4] = {-1, -1, -1, -1, 0, 0, 0, 0};
FSQ_INLINE vint vfirst(ptrdiff_t n) {
    const char *end = (const char *)vec_window + 32;
    return _mm256_loadu_si256((const __m256i *)(end - n * (ptrdiff_t)sizeof(real)));
}

FSQ_INLINE vreal vzero(void) { return VR(setzero)(); }
FSQ_INLINE vreal vset1(real x) { return VR(set1)(x); }
FSQ_INLINE vreal vload(const real *p) { return VR(loadu)(p); }
FSQ_INLINE void vstore(real *p, vreal a) { VR(storeu)(p, a); }
FSQ_INLINE vreal vload_n(const real *p, ptrdiff_t n) { return VR(maskload)(p, vfirst(n)); }
FSQ_INLINE void vstore_n(real *p, vreal a, ptrdiff_t n) { VR(maskstore)(p, vfirst(n), a); }

FSQ_INLINE vreal vadd(vreal a, vreal b) { return VR(add)(a, b); }
FSQ_INLINE vreal vsub(vreal a, vreal b) { return VR(sub)(a, b); }
FSQ_INLINE vreal vmul(vreal a, vreal b) { return VR(mul)(a, b); }
FSQ_INLINE vreal vdiv(vreal a, vreal b) { return VR(div)(a, b); }
#if defined FSQ_F32
#define FSQ_HAS_RECIPROCAL 1                                /* 11 bits */
FSQ_INLINE vreal vreciprocal(vreal a) { return _mm256_rcp_ps(a); }
#else
#define FSQ_HAS_RECIPROCAL 0
#endif
FSQ_INLINE vreal vsqrt(vreal a) { return VR(sqrt)(a); }
FSQ_INLINE vreal vfma(vreal a, vreal b, vreal c) { return VR(fmadd)(a, b, c); }
FSQ_INLINE vreal vfnma(vreal a, vreal b, vreal c) { return VR(fnmadd)(a, b, c); }
FSQ_INLINE vreal vmin(vreal a, vreal b) { return VR(min)(a, b); }
FSQ_INLINE vreal vmax(vreal a, vreal b) { return VR(max)(a, b); }
FSQ_INLINE vreal vneg(vreal a) { return VR(xor)(a, vset1((real)-0.0)); }
FSQ_INLINE vreal vabs(vreal a) { return VR(andnot)(vset1((real)-0.0), a); }

FSQ_INLINE vmask vlt(vreal a, vreal b) { return VR(cmp)(a, b, _CMP_LT_OQ); }
FSQ_INLINE vmask vle(vreal a, vreal b) { return VR(cmp)(a, b, _CMP_LE_OQ); }
FSQ_INLINE vmask vgt(vreal a, vreal b) { return VR(cmp)(a, b, _CMP_GT_OQ); }
FSQ_INLINE vmask vge(vreal a, vreal b) { return VR(cmp)(a, b, _CMP_GE_OQ); }
FSQ_INLINE vmask veq(vreal a, vreal b) { return VR(cmp)(a, b, _CMP_EQ_OQ); }
FSQ_INLINE vmask visnan(vreal a) { return VR(cmp)(a, a, _CMP_UNORD_Q); }
FSQ_INLINE vmask vand_m(vmask a, vmask b) { return VR(and)(a, b); }
FSQ_INLINE vmask vor_m(vmask a, vmask b) { return VR(or)(a, b); }
FSQ_INLINE int vany(vmask m) { return VR(movemask)(m) != 0; }
FSQ_INLINE vreal vselect(vmask m, vreal a, vreal b) { return VR(blendv)(b, a, m); }

FSQ_INLINE vint vbits(vreal a) { return VTO_INT(a); }
FSQ_INLINE vreal vfrombits(vint a) { return VTO_REAL(a); }
FSQ_INLINE vint vi_set1(int64_t x) { return VI_SET1(x); }
FSQ_INLINE vint vi_add(vint a, vint b) { return VI(add)(a, b); }
FSQ_INLINE vint vi_sub(vint a, vint b) { return VI(sub)(a, b); }
FSQ_INLINE vint vi_and(vint a, vint b) { return _mm256_and_si256(a, b); }
FSQ_INLINE vint vi_or(vint a, vint b) { return _mm256_or_si256(a, b); }
FSQ_INLINE vint vi_xor(vint a, vint b) { return _mm256_xor_si256(a, b); }
FSQ_INLINE vint vi_shl(vint a, unsigned n) { return VI(slli)(a, (int)n); }
FSQ_INLINE vint vi_shr(vint a, unsigned n) { return VI(srli)(a, (int)n); }

FSQ_INLINE real vsum(vreal a) {
    real t[VL];
    vstore(t, a);
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) t[i] += t[i + n];
    return t[0];
}
FSQ_INLINE real vmaximum(vreal a) {
    real t[VL];
    vstore(t, a);
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) t[i] = t[i] > t[i + n] ? t[i] : t[i + n];
    return t[0];
}

#if defined FSQ_F32
FSQ_INLINE void vtranspose(vreal r[VL]) {
    vreal s[VL];
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xEE);
        r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        s[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        s[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = s[i];
}
FSQ_INLINE void vload_turned(vreal r[VL], const real *const row[VL], ptrdiff_t k) {
#pragma GCC unroll 2
    for (int q = 0; q < 8; q += 4) {                        /* four columns: 4 x 4 blocks side by side, then each is turned */
        vreal s[4], t[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            s[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row[i] + k + q)), _mm_loadu_ps(row[i + 4] + k + q), 1);
        for (int i = 0; i < 4; i += 2) {
            t[i] = _mm256_unpacklo_ps(s[i], s[i + 1]);
            t[i + 1] = _mm256_unpackhi_ps(s[i], s[i + 1]);
        }
        r[q] = _mm256_shuffle_ps(t[0], t[2], 0x44);
        r[q + 1] = _mm256_shuffle_ps(t[0], t[2], 0xEE);
        r[q + 2] = _mm256_shuffle_ps(t[1], t[3], 0x44);
        r[q + 3] = _mm256_shuffle_ps(t[1], t[3], 0xEE);
    }
}
#else
FSQ_INLINE void vtranspose(vreal r[VL]) {
    vreal s[VL];
    for (int i = 0; i < 4; i += 2) {
        s[i] = _mm256_unpacklo_pd(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_pd(r[i], r[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[i] = _mm256_permute2f128_pd(s[i], s[i + 2], 0x20);
        r[i + 2] = _mm256_permute2f128_pd(s[i], s[i + 2], 0x31);
    }
}
FSQ_INLINE void vload_turned(vreal r[VL], const real *const row[VL], ptrdiff_t k) {
#pragma GCC unroll 2
    for (int q = 0; q < 4; q += 2) {
        vreal s[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
            s[i] = _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(row[i] + k + q)), _mm_loadu_pd(row[i + 2] + k + q), 1);
        r[q] = _mm256_unpacklo_pd(s[0], s[1]);
        r[q + 1] = _mm256_unpackhi_pd(s[0], s[1]);
    }
}
#endif
