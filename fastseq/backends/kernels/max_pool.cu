// max_pool.cu - the greatest element of each window of a plane, and where it stands; dx = the dy of the windows that an element was greatest in.
//
// A window is looked at element by element, row by row, and the first of equal ones counts; a NaN is greater than everything, as in
// PyTorch. What lies outside the plane is never the greatest. Backward asks the windows that contain an element, in their order, without atomics.
// Bound by bytes where windows do not overlap.
#include "device.cuh"

#define WINDOW                                                                                                                                   \
    int H, int width, int kernel_h, int kernel_w, int stride_h, int stride_w, int dilation_h, int dilation_w, int before_h, int before_w, int out_h, int out_w

extern "C" __global__ void max_pool_forward(REAL *y, long long *places, const REAL *x, long long planes, WINDOW) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, windows = (long long)out_h * out_w, plane = i / windows;
    if (plane >= planes) return;
    const int window = (int)(i - plane * windows), top = window / out_w * stride_h - before_h, left = window % out_w * stride_w - before_w;
    const REAL *const from = x + plane * H * width;
    REAL greatest = 0;
    long long place = -1;
    for (int tap_h = 0; tap_h < kernel_h; tap_h++) {
        const int h = top + tap_h * dilation_h;
        if (h < 0 || h >= H) continue;
        for (int tap_w = 0; tap_w < kernel_w; tap_w++) {
            const int w = left + tap_w * dilation_w;
            if (w < 0 || w >= width) continue;
            const REAL v = from[(long long)h * width + w];
            if (place < 0 || v > greatest || v != v) greatest = v, place = (long long)h * width + w;
        }
    }
    y[i] = greatest;
    places[i] = place;
}

extern "C" __global__ void max_pool_backward(REAL *dx, const REAL *dy, const long long *places, long long planes, WINDOW) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, size = (long long)H * width, plane = i / size;
    if (plane >= planes) return;
    const int at = (int)(i - plane * size), h = at / width + before_h, w = at % width + before_w;
    const long long first = plane * out_h * out_w;
    REAL sum = 0;
    for (int tap_h = kernel_h - 1; tap_h >= 0; tap_h--) {  // the last tap sees the element from the first window
        const int down = h - tap_h * dilation_h, row = down / stride_h;
        if (down < 0 || row * stride_h != down || row >= out_h) continue;
        for (int tap_w = kernel_w - 1; tap_w >= 0; tap_w--) {
            const int along = w - tap_w * dilation_w, column = along / stride_w;
            if (along < 0 || column * stride_w != along || column >= out_w) continue;
            const long long window = first + (long long)row * out_w + column;
            if (places[window] == at) sum += dy[window];
        }
    }
    dx[i] = sum;
}
