/* vec_portable.h - the vocabulary of vec.h in 16-byte GCC/clang vectors: SSE2 on x86-64, NEON on arm64.
 *
 * Intrinsics stand only where the compiler may not or does not find the one instruction by itself: arm64's fused multiply-add
 * (-ffp-contract=off), square roots, x86's minimum and maximum. */
#if defined __aarch64__
#include <arm_neon.h>
#define FSQ_HAS_FMA 1
#else
#define FSQ_HAS_FMA 0
#if defined __x86_64__
#include <emmintrin.h>
#endif
#endif

#define FSQ_HAS_RECIPROCAL 0

#if defined FSQ_F32
#define VL 4
typedef int32_t real_int;
typedef int32_t vint __attribute__((vector_size(16)));
typedef uint32_t vuint __attribute__((vector_size(16)));
#else
#define VL 2
typedef int64_t real_int;
typedef int64_t vint __attribute__((vector_size(16)));
typedef uint64_t vuint __attribute__((vector_size(16)));
#endif
typedef real vreal __attribute__((vector_size(16)));
typedef vint vmask;                                         /* all ones or all zeros in each lane */

#if defined FSQ_F32
FSQ_INLINE vreal vset1(real x) { return (vreal){x, x, x, x}; }
#else
FSQ_INLINE vreal vset1(real x) { return (vreal){x, x}; }
#endif
FSQ_INLINE vreal vzero(void) { return vset1(0); }
FSQ_INLINE vreal vload(const real *p) { vreal a; memcpy(&a, p, sizeof a); return a; }
FSQ_INLINE void vstore(real *p, vreal a) { memcpy(p, &a, sizeof a); }
FSQ_INLINE vreal vload_n(const real *p, ptrdiff_t n) {
    vreal a = vzero();
    for (int i = 0; i < VL; i++)
        if (i < n) a[i] = p[i];
    return a;
}
FSQ_INLINE void vstore_n(real *p, vreal a, ptrdiff_t n) {
    for (int i = 0; i < VL; i++)
        if (i < n) p[i] = a[i];
}

FSQ_INLINE vint vbits(vreal a) { return (vint)a; }
FSQ_INLINE vreal vfrombits(vint a) { return (vreal)a; }
FSQ_INLINE vreal vselect(vmask m, vreal a, vreal b) { return (vreal)(((vint)a & m) | ((vint)b & ~m)); }

FSQ_INLINE vmask vlt(vreal a, vreal b) { return a < b; }
FSQ_INLINE vmask vle(vreal a, vreal b) { return a <= b; }
FSQ_INLINE vmask vgt(vreal a, vreal b) { return a > b; }
FSQ_INLINE vmask vge(vreal a, vreal b) { return a >= b; }
FSQ_INLINE vmask veq(vreal a, vreal b) { return a == b; }
FSQ_INLINE vmask visnan(vreal a) { return a != a; }
FSQ_INLINE vmask vand_m(vmask a, vmask b) { return a & b; }
FSQ_INLINE vmask vor_m(vmask a, vmask b) { return a | b; }
FSQ_INLINE int vany(vmask m) {
    int any = 0;
    for (int i = 0; i < VL; i++) any |= m[i] != 0;
    return any;
}

FSQ_INLINE vreal vadd(vreal a, vreal b) { return a + b; }
FSQ_INLINE vreal vsub(vreal a, vreal b) { return a - b; }
FSQ_INLINE vreal vmul(vreal a, vreal b) { return a * b; }
FSQ_INLINE vreal vdiv(vreal a, vreal b) { return a / b; }
FSQ_INLINE vreal vneg(vreal a) { return (vreal)((vint)a ^ (vint)vset1((real)-0.0)); }
FSQ_INLINE vreal vabs(vreal a) { return (vreal)((vint)a & ~(vint)vset1((real)-0.0)); }
#if defined __x86_64__ && defined FSQ_F32
FSQ_INLINE vreal vmin(vreal a, vreal b) { return (vreal)_mm_min_ps((__m128)a, (__m128)b); }
FSQ_INLINE vreal vmax(vreal a, vreal b) { return (vreal)_mm_max_ps((__m128)a, (__m128)b); }
FSQ_INLINE vreal vsqrt(vreal a) { return (vreal)_mm_sqrt_ps((__m128)a); }
#elif defined __x86_64__
FSQ_INLINE vreal vmin(vreal a, vreal b) { return (vreal)_mm_min_pd((__m128d)a, (__m128d)b); }
FSQ_INLINE vreal vmax(vreal a, vreal b) { return (vreal)_mm_max_pd((__m128d)a, (__m128d)b); }
FSQ_INLINE vreal vsqrt(vreal a) { return (vreal)_mm_sqrt_pd((__m128d)a); }
#else
FSQ_INLINE vreal vmin(vreal a, vreal b) { return vselect(a < b, a, b); }
FSQ_INLINE vreal vmax(vreal a, vreal b) { return vselect(a > b, a, b); }
#if defined __aarch64__ && defined FSQ_F32
FSQ_INLINE vreal vsqrt(vreal a) { return (vreal)vsqrtq_f32((float32x4_t)a); }
#elif defined __aarch64__
FSQ_INLINE vreal vsqrt(vreal a) { return (vreal)vsqrtq_f64((float64x2_t)a); }
#else
FSQ_INLINE vreal vsqrt(vreal a) {
    for (int i = 0; i < VL; i++) a[i] = sizeof(real) == 4 ? (real)sqrtf((float)a[i]) : (real)sqrt((double)a[i]);
    return a;
}
#endif
#endif
#if defined __aarch64__ && defined FSQ_F32
FSQ_INLINE vreal vfma(vreal a, vreal b, vreal c) { return (vreal)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
FSQ_INLINE vreal vfnma(vreal a, vreal b, vreal c) { return (vreal)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#elif defined __aarch64__
FSQ_INLINE vreal vfma(vreal a, vreal b, vreal c) { return (vreal)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
FSQ_INLINE vreal vfnma(vreal a, vreal b, vreal c) { return (vreal)vfmsq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
FSQ_INLINE vreal vfma(vreal a, vreal b, vreal c) { return a * b + c; }
FSQ_INLINE vreal vfnma(vreal a, vreal b, vreal c) { return c - a * b; }
#endif

FSQ_INLINE vint vi_set1(int64_t x) { return (vint){0} + (real_int)x; }
FSQ_INLINE vint vi_add(vint a, vint b) { return (vint)((vuint)a + (vuint)b); }
FSQ_INLINE vint vi_sub(vint a, vint b) { return (vint)((vuint)a - (vuint)b); }
FSQ_INLINE vint vi_and(vint a, vint b) { return a & b; }
FSQ_INLINE vint vi_or(vint a, vint b) { return a | b; }
FSQ_INLINE vint vi_xor(vint a, vint b) { return a ^ b; }
FSQ_INLINE vint vi_shl(vint a, unsigned n) { return (vint)((vuint)a << n); }
FSQ_INLINE vint vi_shr(vint a, unsigned n) { return (vint)((vuint)a >> n); }

FSQ_INLINE real vsum(vreal a) {
#if defined FSQ_F32
    return (a[0] + a[2]) + (a[1] + a[3]);
#else
    return a[0] + a[1];
#endif
}
FSQ_INLINE real vmaximum(vreal a) {
    real m = a[0];
    for (int i = 1; i < VL; i++) m = m > a[i] ? m : a[i];
    return m;
}
FSQ_INLINE void vtranspose(vreal r[VL]) {
    vreal s[VL];
#if defined FSQ_F32
    for (int i = 0; i < VL; i++) s[i] = (vreal){r[0][i], r[1][i], r[2][i], r[3][i]};
#else
    for (int i = 0; i < VL; i++) s[i] = (vreal){r[0][i], r[1][i]};
#endif
    for (int i = 0; i < VL; i++) r[i] = s[i];
}
FSQ_INLINE void vload_turned(vreal r[VL], const real *const row[VL], ptrdiff_t k) {
    for (int i = 0; i < VL; i++) r[i] = vload(row[i] + k);
    vtranspose(r);
}
