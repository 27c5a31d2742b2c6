// CUDA's functions of numbers. No system header: NVRTC has none either, and reading them would be most of the compile time.
#pragma once

// One argument: f(double) of libm, f(float) beside it, and CUDA's name for the float one.
#define EMU_MATH1(name)                                                                                             \
    extern "C" double name(double);                                                                                 \
    extern "C" float name##f(float);                                                                                \
    static inline float name(float x) { return __builtin_##name##f(x); }
#define EMU_MATH2(name)                                                                                             \
    extern "C" double name(double, double);                                                                         \
    extern "C" float name##f(float, float);                                                                         \
    static inline float name(float x, float y) { return __builtin_##name##f(x, y); }
EMU_MATH1(exp)
EMU_MATH1(exp2)
EMU_MATH1(expm1)
EMU_MATH1(log)
EMU_MATH1(log2)
EMU_MATH1(log10)
EMU_MATH1(log1p)
EMU_MATH1(tanh)
EMU_MATH1(sinh)
EMU_MATH1(cosh)
EMU_MATH1(sin)
EMU_MATH1(cos)
EMU_MATH1(tan)
EMU_MATH1(atan)
EMU_MATH1(erf)
EMU_MATH1(erfc)
EMU_MATH1(sqrt)
EMU_MATH1(cbrt)
EMU_MATH1(fabs)
EMU_MATH1(floor)
EMU_MATH1(ceil)
EMU_MATH1(trunc)
EMU_MATH1(round)
EMU_MATH1(rint)
EMU_MATH2(fmax)
EMU_MATH2(fmin)
EMU_MATH2(pow)
EMU_MATH2(fmod)
EMU_MATH2(copysign)
EMU_MATH2(atan2)
EMU_MATH2(hypot)
#undef EMU_MATH1
#undef EMU_MATH2
extern "C" double fma(double, double, double);
extern "C" float fmaf(float, float, float);
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
static inline float exp10f(float x) { return __builtin_powf(10.0f, x); }

#define isnan(x) (bool(__builtin_isnan(x)))
#define isinf(x) (bool(__builtin_isinf(x)))
#define isfinite(x) (bool(__builtin_isfinite(x)))
#define signbit(x) (bool(__builtin_signbit(x)))

// The approximate ones are exact here: their error is the hardware's to show.
static inline float __expf(float x) { return __builtin_expf(x); }
static inline float __exp10f(float x) { return exp10f(x); }
static inline float __logf(float x) { return __builtin_logf(x); }
static inline float __log2f(float x) { return __builtin_log2f(x); }
static inline float __sinf(float x) { return __builtin_sinf(x); }
static inline float __cosf(float x) { return __builtin_cosf(x); }
static inline float __powf(float x, float y) { return __builtin_powf(x, y); }
static inline float __fdividef(float x, float y) { // the guide: 0 where 2^126 < |y| < 2^128, whatever the quotient is
    return __builtin_fabsf(y) > 0x1p126f && !__builtin_isinf(y) ? x * 0.0f : x / y;
}
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
// These never become part of a fused multiply-add; nor do they here, through the barrier that hides the value from the compiler.
static inline float emu_kept(float x) { asm("" : "+x"(x)); return x; }
static inline double emu_kept(double x) { asm("" : "+x"(x)); return x; }
static inline float __fadd_rn(float x, float y) { return emu_kept(x + y); }
static inline float __fsub_rn(float x, float y) { return emu_kept(x - y); }
static inline float __fmul_rn(float x, float y) { return emu_kept(x * y); }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
static inline float __frsqrt_rn(float x) { return float(1.0 / __builtin_sqrt(double(x))); }
static inline float __fmaf_rn(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
static inline double __dadd_rn(double x, double y) { return emu_kept(x + y); }
static inline double __dsub_rn(double x, double y) { return emu_kept(x - y); }
static inline double __dmul_rn(double x, double y) { return emu_kept(x * y); }
static inline double __ddiv_rn(double x, double y) { return x / y; }
static inline double __dsqrt_rn(double x) { return __builtin_sqrt(x); }
static inline double __fma_rn(double x, double y, double z) { return __builtin_fma(x, y, z); }

// ---------------------------------------------------------------- bits

template <class To, class From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "one size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }
static inline int __double2hiint(double x) { return int(emu_bits<long long>(x) >> 32); }
static inline int __double2loint(double x) { return int(emu_bits<long long>(x)); }
static inline double __hiloint2double(int high, int low) { return emu_bits<double>((long long)(unsigned(low) | (unsigned long long)(unsigned(high)) << 32)); }
// As the hardware converts: NaN to 0, what does not fit to the nearest that does.
template <class To> static inline To emu_whole(double x, To lowest, To highest) {
    return __builtin_isnan(x) ? To(0) : x <= double(lowest) ? lowest : x >= double(highest) ? highest : To(x);
}
#define EMU_TO_WHOLE(suffix, rounding)                                                                              \
    static inline int __float2int_##suffix(float x) { return emu_whole<int>(rounding(double(x)), -2147483647 - 1, 2147483647); } \
    static inline unsigned __float2uint_##suffix(float x) { return emu_whole<unsigned>(rounding(double(x)), 0u, 4294967295u); }
EMU_TO_WHOLE(rn, __builtin_rint)
EMU_TO_WHOLE(rz, __builtin_trunc)
EMU_TO_WHOLE(ru, __builtin_ceil)
EMU_TO_WHOLE(rd, __builtin_floor)
#undef EMU_TO_WHOLE
static inline float __int2float_rn(int x) { return float(x); }
static inline float __uint2float_rn(unsigned x) { return float(x); }
static inline float __double2float_rn(double x) { return float(x); }
static inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
static inline int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) { return (unsigned long long)((unsigned __int128)x * y >> 64); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) { return unsigned((((unsigned long long)high << 32 | low) << (n & 31)) >> 32); }
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) { return unsigned(((unsigned long long)high << 32 | low) >> (n & 31)); }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return r;
}

// min and max take all pairs of arithmetic types, as CUDA's overloads do.
#define EMU_MIN_MAX(T)                                                                                              \
    static inline T min(T x, T y) { return x < y ? x : y; }                                                         \
    static inline T max(T x, T y) { return x > y ? x : y; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
static inline float min(float x, float y) { return __builtin_fminf(x, y); }
static inline float max(float x, float y) { return __builtin_fmaxf(x, y); }
static inline double min(double x, double y) { return __builtin_fmin(x, y); }
static inline double max(double x, double y) { return __builtin_fmax(x, y); }
static inline unsigned min(int x, unsigned y) { return min(unsigned(x), y); }
static inline unsigned min(unsigned x, int y) { return min(x, unsigned(y)); }
static inline unsigned max(int x, unsigned y) { return max(unsigned(x), y); }
static inline unsigned max(unsigned x, int y) { return max(x, unsigned(y)); }
extern "C" int abs(int);
static inline long long abs(long long x) { return x < 0 ? -x : x; }
static inline float abs(float x) { return __builtin_fabsf(x); }
static inline double abs(double x) { return __builtin_fabs(x); }
