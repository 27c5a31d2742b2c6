// conv.cu - what stands around the products of a convolution: y = W col(x) + b, dW = dy col(x)^T, dx = col^T(W^T dy).
//
// col(x) (C taps, columns) has a row for each channel and tap of the kernel and a column for each position of each sample of a chunk, so that
// one product serves all groups and samples. cuda_conv.py bounds its size. Bound by the bytes of col, which are written, read by the product, and
// in backward written and gathered again. Sums over taps and chunks have one order.
#include "device.cuh"

struct Window {
    int H, W, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, before_h, before_w, out_w;
};
#define WINDOW int H, int width, int kernel_h, int kernel_w, int stride_h, int stride_w, int dilation_h, int dilation_w, int before_h, int before_w, int out_w
#define THIS_WINDOW {H, width, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, before_h, before_w, out_w}

enum { ROWS = 16 };  // of col for each block, whose threads find their position once

// col of samples [0, n) of x (n, C, H, W), positions [first, first + count) of each.
extern "C" __global__ void conv_columns(REAL *col, const REAL *x, int C, int n, int first, int count, WINDOW) {
    const Window o = THIS_WINDOW;
    const long long columns = (long long)n * count, column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    const int sample = (int)(column / count), position = first + (int)(column - (long long)sample * count), taps = o.kernel_h * o.kernel_w;
    const int top = position / o.out_w * o.stride_h - o.before_h, left = position % o.out_w * o.stride_w - o.before_w;
    const REAL *const from = x + (long long)sample * C * o.H * o.W;
    for (long long start = (long long)blockIdx.y * ROWS; start < (long long)C * taps; start += (long long)gridDim.y * ROWS)
        for (long long row = start; row < start + ROWS && row < (long long)C * taps; row++) {
            const int c = (int)(row / taps), tap = (int)(row - (long long)c * taps);
            const int h = top + tap / o.kernel_w * o.dilation_h, w = left + tap % o.kernel_w * o.dilation_w;
            const bool inside = h >= 0 && h < o.H && w >= 0 && w < o.W;
            col[row * columns + column] = inside ? from[((long long)c * o.H + h) * o.W + w] : (REAL)0;
        }
}

// dx (n, C, H, W): of each element the sum over the taps that read it at one of these positions; add: to what is there.
extern "C" __global__ void conv_gather(REAL *dx, const REAL *col, int C, int n, int first, int count, int out_h, int add, WINDOW) {
    const Window o = THIS_WINDOW;
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, plane = (long long)o.H * o.W, columns = (long long)n * count;
    if (i >= n * C * plane) return;
    const long long both = i / plane;  // sample and channel
    const int at = (int)(i - both * plane), h = at / o.W + o.before_h, w = at % o.W + o.before_w, sample = (int)(both / C), c = (int)(both % C);
    REAL sum = add ? dx[i] : (REAL)0;
    for (int tap_h = 0; tap_h < o.kernel_h; tap_h++) {
        const int down = h - tap_h * o.dilation_h, row = down / o.stride_h;
        if (down < 0 || row * o.stride_h != down || row >= out_h) continue;
        for (int tap_w = 0; tap_w < o.kernel_w; tap_w++) {
            const int along = w - tap_w * o.dilation_w, column = along / o.stride_w;
            if (along < 0 || column * o.stride_w != along || column >= o.out_w) continue;
            const long long position = (long long)row * o.out_w + column - first;
            if (position >= 0 && position < count) sum += col[(((long long)c * o.kernel_h + tap_h) * o.kernel_w + tap_w) * columns + (long long)sample * count + position];
        }
    }
    dx[i] = sum;
}

// Between y (n, O, P) and the products' (O, n count), positions [first, first + count): to y with the bias (or null), or from it.
extern "C" __global__ void conv_exchange(REAL *y, REAL *products, const REAL *bias, int O, int n, int first, int count, int P, int to_y) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, columns = (long long)n * count;
    if (i >= O * columns) return;
    const int o = (int)(i / columns);
    const long long column = i - o * columns, sample = column / count;
    const long long at = (sample * O + o) * P + first + (column - sample * count);
    if (to_y) y[at] = products[i] + (bias ? bias[o] : (REAL)0);
    else products[i] = y[at];
}
