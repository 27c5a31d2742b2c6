"""cuBLAS's products on the host's memory: matrices whose columns come one after another, by their addresses."""

import ctypes
import functools

import numpy as np

from tests.cuda.emulator import build
from tests.cuda.stand_in import device

HANDLE = 0xB1A5
_DTYPES = {0: np.float32, 1: np.float64, 14: np.uint16}  # CUDA_R_32F, CUDA_R_64F, CUDA_R_16BF


class CUBLASError(RuntimeError):
    """What cuBLAS answers with a status."""


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
    with np.errstate(all="ignore"):  # cuBLAS says nothing of NaN and infinities
        if k:
            total = alpha * (_operand(a, kind_a, transa, m, k, lda, compute, "A") @ _operand(b, kind_b, transb, k, n, ldb, compute, "B"))
        if beta != 0:
            total = total + beta * (out if kind_c != 14 else (out.astype(np.uint32) << 16).view(np.float32))
    out[...] = total if kind_c != 14 else (bf16(total).view(np.uint32) >> 16).astype(np.uint16)


def _run(a, b, c, transposed, sizes, numbers, compute):
    """The products of matrices given as (pointer, kind, leading dimension, step, ...)."""
    for i in range(sizes[3]):
        places = [x[0] + i * x[3] * np.dtype(_DTYPES[x[1]]).itemsize for x in (a, b, c)]
        (_, kind_a, lda, _), (_, kind_b, ldb, _), (_, kind_c, ldc, _) = a, b, c
        left, right = (numbers[0], places[0], kind_a, lda), (places[1], kind_b, ldb, numbers[1])
        _product(*transposed, *sizes[:3], *left, *right, places[2], kind_c, ldc, compute)


def _submit(handle, transa, transb, m, n, k, alpha, beta, a, b, c, count, compute):
    _check(handle, (a[1], b[1], c[1]), compute)
    numbers = _scalar(alpha, compute), _scalar(beta, compute)
    device.submit(lambda: _run(a, b, c, (transa, transb), (m, n, k, count), numbers, compute))


def _create(place):
    ctypes.c_void_p.from_address(place).value = HANDLE


def _set_stream(handle, stream):
    if stream != device.get_current_stream().ptr:
        raise CUBLASError(f"INVALID_VALUE: the stream at {stream:#x} is not the current one")


def _set_workspace(handle, memory, size):
    device.host_bytes(memory, size)[-1].item()  # it is there to its end


def _gemm(handle, transa, transb, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c, ldc, compute, algo):
    _submit(handle, transa, transb, m, n, k, alpha, beta, (a, kind_a, lda, 0), (b, kind_b, ldb, 0), (c, kind_c, ldc, 0), 1, compute)


def _gemm_batched(
    handle, transa, transb, m, n, k, alpha, a, kind_a, lda, step_a, b, kind_b, ldb, step_b, beta, c, kind_c, ldc, step_c, count, compute, algo
):
    matrices = (a, kind_a, lda, step_a), (b, kind_b, ldb, step_b), (c, kind_c, ldc, step_c)
    _submit(handle, transa, transb, m, n, k, alpha, beta, *matrices, count, compute)


# The types of the C functions, p pointer, i int, l long long; each calls back to Python.
_GEMM = "p iiiii p pii pii p pii ii"
_BATCHED = "p iiiii p piil piil p piil iii"
_FUNCTIONS = {
    "cublasCreate_v2": ("p", _create),
    "cublasSetStream_v2": ("pp", _set_stream),
    "cublasSetWorkspace_v2": ("ppl", _set_workspace),
    "cublasGemmEx": (_GEMM, _gemm),
    "cublasGemmStridedBatchedEx": (_BATCHED, _gemm_batched),
}
_TYPES = {"p": ("void *", ctypes.c_void_p), "i": ("int", ctypes.c_int), "l": ("long long", ctypes.c_longlong)}
_kept = []  # what C points to
#: Why the last call failed, for a test's message.
failures = []


def _callback(function, letters):
    def call(*arguments):
        try:
            function(*(0 if a is None else a for a in arguments))
        except Exception as error:
            failures.append(error)
            return 7  # CUBLAS_STATUS_INVALID_VALUE
        return 0

    return ctypes.CFUNCTYPE(ctypes.c_int, *(_TYPES[x][1] for x in letters))(call)


@functools.cache
def load():
    """Loads a libcublas.so.13 whose functions are those above, for whoever asks the loader for that name."""
    lines = []
    for name, (letters, _) in _FUNCTIONS.items():
        letters = letters.replace(" ", "")
        types = ", ".join(f"{_TYPES[x][0]} a{k}" for k, x in enumerate(letters))
        names = ", ".join(f"a{k}" for k in range(len(letters)))
        lines.append(f'extern "C" {{ int (*{name}_called)({types}); int {name}({types}) {{ return {name}_called({names}); }} }}')
    library = ctypes.CDLL(str(build.compiled("cublas", "\n".join(lines), ("-Wl,-soname,libcublas.so.13",))), mode=ctypes.RTLD_GLOBAL)
    for name, (letters, function) in _FUNCTIONS.items():
        callback = _callback(function, letters.replace(" ", ""))
        ctypes.c_void_p.in_dll(library, f"{name}_called").value = ctypes.cast(callback, ctypes.c_void_p).value
        _kept.append(callback)
    _kept.append(library)
    return HANDLE
