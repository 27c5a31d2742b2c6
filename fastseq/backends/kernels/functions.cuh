// The functions of pointwise operations and their derivatives, with the limits of csrc/kernels/pointwise.c: infinities and NaN come out as
// they do of reference.py.
#pragma once

// In the order of cuda_pointwise.py's FUNCTIONS.
enum { IDENTITY, EXP, LOG, TANH, SIGMOID, RELU, ERF, GELU, GELU_TANH, SILU, SOFTPLUS, ELU, LEAKY_RELU };

__device__ __forceinline__ REAL sigmoid(REAL x) { return 1 / (1 + exp(-x)); }
__device__ __forceinline__ REAL clamped(REAL x, REAL most) { return fmin(most, fmax(-most, x)); }

// 2 sqrt(2 / pi) (x + 0.044715 x^3), whose sigmoid stands for Phi(x).
__device__ __forceinline__ REAL tanh_argument(REAL x) { return x * fma(x * x, (REAL)0.0713548162726002488, (REAL)1.59576912160573071); }

// Phi, the normal distribution's function.
__device__ __forceinline__ REAL normal(REAL x) { return (REAL)0.5 * erfc((REAL)-0.707106781186547524 * x); }

// f(x); p: the function's parameter, where it has one. The lower limits keep -infinity from 0 times infinity.
template <int F> __device__ __forceinline__ REAL value_of(REAL x, REAL p) {
    if constexpr (F == EXP) return exp(x);
    else if constexpr (F == LOG) return log(x);
    else if constexpr (F == TANH) return tanh(x);
    else if constexpr (F == SIGMOID) return sigmoid(x);
    else if constexpr (F == RELU) return x <= 0 ? (REAL)0 : x;  // a NaN stays
    else if constexpr (F == ERF) return erf(x);
    else if constexpr (F == GELU) return (x < -40 ? (REAL)-40 : x) * normal(x);
    else if constexpr (F == GELU_TANH) return (x < -40 ? (REAL)-40 : x) * sigmoid(tanh_argument(clamped(x, 40)));
    else if constexpr (F == SILU) return (x < -800 ? (REAL)-800 : x) * sigmoid(x);
    else if constexpr (F == SOFTPLUS) return fmax(x, (REAL)0) + log1p(exp(-fabs(x)));
    else if constexpr (F == ELU) return x < 0 ? p * expm1(x) : x;
    else if constexpr (F == LEAKY_RELU) return x < 0 ? p * x : x;
    else return x;
}

// dy f'(x) from s = y; for LOG, ERF and what follows them s = x.
template <int F> __device__ __forceinline__ REAL gradient_of(REAL s, REAL dy, REAL p) {
    if constexpr (F == EXP) return dy * s;
    else if constexpr (F == LOG) return dy / s;
    else if constexpr (F == TANH) return dy * fma(-s, s, (REAL)1);
    else if constexpr (F == SIGMOID) return dy * (s * (1 - s));
    else if constexpr (F == RELU) return s > 0 ? dy : (REAL)0;
    else if constexpr (F == ERF) return dy * ((REAL)1.12837916709551257 * exp(-s * s));
    else if constexpr (F == GELU) {  // Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
        const REAL x = clamped(s, 40);
        return dy * (s == s ? fma(x * (REAL)0.398942280401432678, exp((REAL)-0.5 * x * x), normal(x)) : s);
    } else if constexpr (F == GELU_TANH) {  // q + x q (1 - q) t', q = sigmoid(t); 1 - q is made of exp(-|t|), for it is small where t is large
        const REAL x = clamped(s, 40), t = tanh_argument(x);
        const REAL e = exp(-fabs(t)), greater = 1 / (1 + e), less = e * greater;
        const REAL slope = fma(x * x, (REAL)0.214064448817800746, (REAL)1.59576912160573071);
        return dy * (s == s ? fma(x * slope, less * greater, t < 0 ? less : greater) : s);
    } else if constexpr (F == SILU) {  // q + x q (1 - q), q = sigmoid(x)
        const REAL x = clamped(s, 800), e = exp(-fabs(x)), greater = 1 / (1 + e), less = e * greater;
        return dy * (s == s ? fma(x * less, greater, x < 0 ? less : greater) : s);
    } else if constexpr (F == SOFTPLUS) return dy * sigmoid(s);
    else if constexpr (F == ELU) return s > 0 ? dy : dy * (p * exp(s));  // at 0 the derivative from below, as PyTorch's
    else if constexpr (F == LEAKY_RELU) return s > 0 ? dy : p * dy;
    else return dy;
}

// does(F) for the function of that number: one question for all of a thread's elements.
#define FOR_FUNCTION(function, does)                                                                                                \
    switch (function) {                                                                                                             \
    case EXP: does(EXP); break;                                                                                                     \
    case LOG: does(LOG); break;                                                                                                     \
    case TANH: does(TANH); break;                                                                                                   \
    case SIGMOID: does(SIGMOID); break;                                                                                             \
    case RELU: does(RELU); break;                                                                                                   \
    case ERF: does(ERF); break;                                                                                                     \
    case GELU: does(GELU); break;                                                                                                   \
    case GELU_TANH: does(GELU_TANH); break;                                                                                         \
    case SILU: does(SILU); break;                                                                                                   \
    case SOFTPLUS: does(SOFTPLUS); break;                                                                                           \
    case ELU: does(ELU); break;                                                                                                     \
    case LEAKY_RELU: does(LEAKY_RELU); break;                                                                                       \
    default: break;                                                                                                                 \
    }
