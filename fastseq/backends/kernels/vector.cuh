// Accesses of 16 bytes, LANES elements of REAL at a time, where arrays and sizes allow them, else of 8 or of one element.
//
// A kernel that is bound by bytes asks for them with as few instructions as it can.
#pragma once

#define LANES (16 / (int)sizeof(REAL))

__device__ __forceinline__ void load_lanes(float (&v)[4], const float *p) {
    const float4 a = *reinterpret_cast<const float4 *>(p);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
}
__device__ __forceinline__ void load_lanes(double (&v)[2], const double *p) {
    const double2 a = *reinterpret_cast<const double2 *>(p);
    v[0] = a.x, v[1] = a.y;
}
__device__ __forceinline__ void load_lanes(float (&v)[2], const float *p) {
    const float2 a = *reinterpret_cast<const float2 *>(p);
    v[0] = a.x, v[1] = a.y;
}
__device__ __forceinline__ void load_lanes(REAL (&v)[1], const REAL *p) { v[0] = *p; }
__device__ __forceinline__ void store_lanes(float *p, const float (&v)[2]) { *reinterpret_cast<float2 *>(p) = make_float2(v[0], v[1]); }
__device__ __forceinline__ void store_lanes(REAL *p, const REAL (&v)[1]) { *p = v[0]; }
__device__ __forceinline__ void store_lanes(float *p, const float (&v)[4]) { *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]); }
__device__ __forceinline__ void store_lanes(double *p, const double (&v)[2]) { *reinterpret_cast<double2 *>(p) = make_double2(v[0], v[1]); }

// Whether 16 bytes at p can be one access; a null pointer, which is never read, can.
__device__ __forceinline__ bool on_lanes(const void *p) { return ((unsigned long long)p & 15) == 0; }

// K elements from index i on, of n; those past the end count as 0. whole: the arrays are on lanes.
template <int K> __device__ __forceinline__ void load_at(REAL (&v)[K], const REAL *p, long long i, long long n, bool whole) {
    if (whole && i + K <= n) {
        load_lanes(v, p + i);
        return;
    }
#pragma unroll
    for (int l = 0; l < K; l++) v[l] = i + l < n ? p[i + l] : (REAL)0;
}
template <int K> __device__ __forceinline__ void store_at(REAL *p, const REAL (&v)[K], long long i, long long n, bool whole) {
    if (whole && i + K <= n) {
        store_lanes(p + i, v);
        return;
    }
#pragma unroll
    for (int l = 0; l < K; l++)
        if (i + l < n) p[i + l] = v[l];
}
