"""cuBLAS's products on the host's memory: matrices whose columns come one after another, by their addresses."""

import ctypes

import numpy as np

from tests.cuda.stand_in import device

HANDLE = 0xB1A5
_DTYPES = {0: np.float32, 1: np.float64, 14: np.uint16}  # CUDA_R_32F, CUDA_R_64F, CUDA_R_16BF


class CUBLASError(RuntimeError):
    """As `cupy_backends.cuda.libs.cublas` has it, with a text alone."""


def bf16(x):
    """float32 rounded to bfloat16, to the nearest and ties to even, as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32))


def tf32(x):
    """float32 rounded to 10 bits of mantissa, to the nearest and ties away, as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def _matrix(pointer, kind, rows, columns, leading, name):
    dtype = np.dtype(_DTYPES[kind])
    if leading < max(1, rows):
        raise CUBLASError(f"CUBLAS_STATUS_INVALID_VALUE: {name} has a leading dimension of {leading} for {rows} rows")
    if pointer % dtype.itemsize or not pointer:
        raise CUBLASError(f"CUBLAS_STATUS_INVALID_VALUE: {name} lies at {pointer:#x}")
    count = leading * (columns - 1) + rows
    flat = np.frombuffer((ctypes.c_ubyte * (count * dtype.itemsize)).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (dtype.itemsize, leading * dtype.itemsize))


def _scalar(pointer, compute):
    return np.frombuffer(device.host_bytes(pointer, 8 if compute == 70 else 4), np.float64 if compute == 70 else np.float32)[0]


def _operand(pointer, kind, transposed, rows, columns, leading, compute, name):
    """op(matrix), rounded as the computation has it."""
    shape = (columns, rows) if transposed else (rows, columns)
    x = _matrix(pointer, kind, *shape, leading, name)
    if kind == 14:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    elif compute in (75, 77):
        x = bf16(x) if compute == 75 else tf32(x)
    return x.T if transposed else x


def _check(handle, kinds, compute):
    if handle != HANDLE:
        raise CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED")
    allowed = {68: [(0, 0, 0), (14, 14, 0), (14, 14, 14)], 70: [(1, 1, 1)], 75: [(0, 0, 0)], 77: [(0, 0, 0)]}
    if kinds not in allowed.get(compute, ()):
        raise CUBLASError(f"CUBLAS_STATUS_NOT_SUPPORTED: types {kinds} with the computation {compute}")


def _product(transa, transb, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c, ldc, compute):
    if 0 in (m, n):
        return
    out = _matrix(c, kind_c, m, n, ldc, "C")
    total = np.zeros((m, n), out.dtype if kind_c != 14 else np.float32)
    if k:
        total = alpha * (_operand(a, kind_a, transa, m, k, lda, compute, "A") @ _operand(b, kind_b, transb, k, n, ldb, compute, "B"))
    if beta != 0:
        total = total + beta * (out if kind_c != 14 else (out.astype(np.uint32) << 16).view(np.float32))
    out[...] = total if kind_c != 14 else (bf16(total).view(np.uint32) >> 16).astype(np.uint16)


def gemmEx(handle, transa, transb, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c, ldc, compute, algo):
    """C = alpha op(A) op(B) + beta C."""
    _check(handle, (kind_a, kind_b, kind_c), compute)
    numbers = _scalar(alpha, compute), _scalar(beta, compute)
    device.submit(
        lambda: _product(
            transa, transb, m, n, k, numbers[0], a, kind_a, lda, b, kind_b, ldb, numbers[1], c, kind_c, ldc, compute
        )
    )


def gemmStridedBatchedEx(
    handle, transa, transb, m, n, k, alpha, a, kind_a, lda, step_a, b, kind_b, ldb, step_b, beta, c, kind_c, ldc, step_c, count, compute, algo
):
    """The same for matrices that lie `step` elements apart."""
    _check(handle, (kind_a, kind_b, kind_c), compute)
    numbers = _scalar(alpha, compute), _scalar(beta, compute)
    sizes = [np.dtype(_DTYPES[kind]).itemsize for kind in (kind_a, kind_b, kind_c)]

    def run():
        for i in range(count):
            places = [p + i * step * size for p, step, size in zip((a, b, c), (step_a, step_b, step_c), sizes, strict=True)]
            _product(
                transa, transb, m, n, k, numbers[0], places[0], kind_a, lda, places[1], kind_b, ldb, numbers[1], places[2], kind_c, ldc, compute
            )

    device.submit(run)
