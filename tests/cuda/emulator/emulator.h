// CUDA C++ for g++: included before a kernel's source, which then is C++17 that runs on the CPU. Only what the kernels use is here.
#pragma once
#include "launch.h"
#include "runtime.h"

#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __shared__ static_assert(false, "shared memory is dynamic: FSQ_SHARED")
#ifndef EMU_FIND_KERNELS // left in the preprocessed text, where build.py looks for them
#define __global__
#define __launch_bounds__(...)
#endif

#define threadIdx (emu::emu_self->thread_index)
#define blockIdx (emu::emu_self->block_index)
#define blockDim (emu::emu_block)
#define gridDim (emu::emu_grid)
#define warpSize 32

#include "math.h"

// ---------------------------------------------------------------- waiting for each other

static inline void __syncthreads() { emu::emu_barrier("__syncthreads", 0, 0, 1, emu::SYNC, 0); }
static inline int __syncthreads_or(int p) { return emu::emu_barrier("__syncthreads_or", 0, 0, 1, emu::OR, p != 0); }
static inline int __syncthreads_and(int p) { return emu::emu_barrier("__syncthreads_and", 0, 0, 1, emu::AND, p != 0); }
static inline int __syncthreads_count(int p) { return emu::emu_barrier("__syncthreads_count", 0, 0, 1, emu::COUNT, p != 0); }
static inline void __threadfence() { emu::emu_fence(); }
static inline void __threadfence_block() {}
static inline void __threadfence_system() { emu::emu_fence(); }
static inline void __nanosleep(unsigned) { emu::emu_poll("__nanosleep"); }
static inline void __trap() { emu::emu_fail("the kernel called __trap"); }

static inline void __syncwarp(unsigned mask = ~0u) {
    emu::emu_warp("__syncwarp", mask, nullptr, nullptr, [](void *, const void *const *, void *const *, unsigned) {}, nullptr);
}

namespace emu {

// Each lane gets the value of the lane that source(lane) names; its own where that is outside of its segment.
template <class T, class Source>
T shuffle(const char *name, unsigned mask, T value, Source source) {
    struct Deposit { T value; int source; };
    return warp_exchange<T>(name, mask, Deposit{value, source(int(emu_self->lane))}, [name](auto lane, auto result, unsigned lanes) {
        for (int i = 0; i < 32; i++) {
            if (!(lanes >> i & 1)) continue;
            int from = lane[i]->source;
            if (!(lanes >> from & 1)) emu_fail("%s: lane %d reads lane %d, which does not take part", name, i, from);
            *result[i] = lane[from]->value;
        }
    });
}

}  // namespace emu

template <class T> static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return emu::shuffle("__shfl_sync", mask, value, [=](int lane) { return (lane & -width) | (source & (width - 1)); });
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emu::shuffle("__shfl_up_sync", mask, value, [=](int lane) { return (lane & (width - 1)) >= int(delta) ? lane - int(delta) : lane; });
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emu::shuffle("__shfl_down_sync", mask, value, [=](int lane) { return (lane & (width - 1)) + int(delta) < width ? lane + int(delta) : lane; });
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
    return emu::shuffle("__shfl_xor_sync", mask, value, [=](int lane) {
        int other = lane ^ flip;
        return other < (lane & -width) + width ? other : lane; // lanes of later segments cannot be read
    });
}

static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return emu::warp_exchange<unsigned>("__ballot_sync", mask, predicate, [](auto lane, auto result, unsigned lanes) {
        unsigned votes = 0;
        for (int i = 0; i < 32; i++)
            if (lanes >> i & 1) votes |= unsigned(*lane[i] != 0) << i;
        for (int i = 0; i < 32; i++)
            if (lanes >> i & 1) *result[i] = votes;
    });
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T> static inline T emu_reduce(const char *name, unsigned mask, T value, T (*combine)(T, T)) {
    return emu::warp_exchange<T>(name, mask, value, [combine](auto lane, auto result, unsigned lanes) {
        T total{};
        bool first = true;
        for (int i = 0; i < 32; i++)
            if (lanes >> i & 1) total = first ? *lane[i] : combine(total, *lane[i]), first = false;
        for (int i = 0; i < 32; i++)
            if (lanes >> i & 1) *result[i] = total;
    });
}
template <class T> static inline T __reduce_add_sync(unsigned mask, T v) { return emu_reduce<T>("__reduce_add_sync", mask, v, [](T a, T b) { return a + b; }); }
template <class T> static inline T __reduce_max_sync(unsigned mask, T v) { return emu_reduce<T>("__reduce_max_sync", mask, v, [](T a, T b) { return a > b ? a : b; }); }
template <class T> static inline T __reduce_min_sync(unsigned mask, T v) { return emu_reduce<T>("__reduce_min_sync", mask, v, [](T a, T b) { return a < b ? a : b; }); }
static inline unsigned __activemask() { emu::emu_fail("__activemask is not a promise about who is here: pass the mask"); }

// ---------------------------------------------------------------- atomics, on whole numbers only: sums of floats would depend on the order

#define EMU_UNSEEN __attribute__((noinline, no_sanitize("thread"))) // by the search for races: one access that nothing can divide
template <class T> static EMU_UNSEEN T emu_load(const T *p) {
    asm("" ::: "memory");
    return *p;
}
template <class T> static EMU_UNSEEN void emu_store(T *p, T value) {
    *p = value;
    asm("" ::: "memory");
}
template <class T> static inline T emu_atomic(T *address, T value) {
    static_assert(T(0.5) == T(0), "atomics on floats are not deterministic");
    T old = emu_load(address);
    emu_store(address, value);
    emu::emu_atomic_order(address);
    return old;
}
template <class T> struct emu_same { typedef T type; };
#define EMU_ATOMIC(name, expression)                                                                                \
    template <class T> static inline T name(T *address, typename emu_same<T>::type v) {                             \
        T old = emu_load(address);                                                                                  \
        return emu_atomic(address, T(expression));                                                                  \
    }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicExch, ((void)old, v))
#undef EMU_ATOMIC
template <class T> static inline T atomicCAS(T *address, typename emu_same<T>::type compare, typename emu_same<T>::type v) {
    T old = emu_load(address);
    return emu_atomic(address, old == compare ? v : old);
}
static inline unsigned atomicInc(unsigned *address, unsigned limit) { return emu_atomic(address, emu_load(address) >= limit ? 0u : emu_load(address) + 1); }

// ---------------------------------------------------------------- flags between blocks: device.cuh's instructions

namespace emu {

template <class T> static inline T load_relaxed(const T *p) { return emu_load(p); }
template <class T> static inline void store_relaxed(T *p, T value) {
    emu_store(p, value);
    emu_progress();
}
static inline unsigned load_acquire(const unsigned *p) {
    emu_poll("load_acquire");
    unsigned value = emu_load(p);
    emu_order(p, 1, 0, 1);
    return value;
}
static inline void store_release(unsigned *p, unsigned value) {
    emu_store(p, value);
    emu_order(p, 0, 1, 0);
}
static inline unsigned add_release(unsigned *p, unsigned value, bool acquires) {
    unsigned before = emu_load(p);
    emu_store(p, before + value);
    emu_order(p, acquires, 1, 1);
    return before;
}

}  // namespace emu

// ---------------------------------------------------------------- loads and stores with a cache hint

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldca(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline void __stcg(T *p, typename emu_same<T>::type v) { *p = v; }
template <class T> static inline void __stcs(T *p, typename emu_same<T>::type v) { *p = v; }
