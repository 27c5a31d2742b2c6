"""What every CUDA kernel needs around it: compiled once, launched with checked arguments; and products by cuBLAS.

The sources are `kernels/*.cu`. NVRTC compiles one when it is first called, with the element type and the sizes it is specialised
for as macros, and CuPy keeps the result on disk. Everything runs on CuPy's current stream.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends.precision import get_precision as precision

Array = Any

_SOURCES = Path(__file__).parent / "kernels"
_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.M)
#: Dynamic shared memory that a launch may ask for without opting in; the CUDA C++ programming guide, compute capabilities.
_SHARED_WITHOUT_ASKING = 48 * 1024


class Properties(NamedTuple):
    """What the kernels' shapes are chosen by."""

    name: str
    capability: int  # 80: 8.0
    multiprocessors: int
    shared_per_block: int  # bytes, after opting in
    memory: int  # bytes


def properties() -> Properties:
    """Those of the current device."""
    return _properties(cupy.cuda.runtime.getDevice())


@functools.cache
def _properties(device: int) -> Properties:
    found = cupy.cuda.runtime.getDeviceProperties(device)
    name = found["name"].decode() if isinstance(found["name"], bytes) else found["name"]
    capability = 10 * found["major"] + found["minor"]
    return Properties(name, capability, found["multiProcessorCount"], found["sharedMemPerBlockOptin"], found["totalGlobalMem"])


def source(file: str) -> str:
    """A kernel file's text with those that it includes in their places: CuPy's cache looks at the text, not at other files."""
    seen: set[str] = set()

    def expanded(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(lambda found: expanded(found.group(1)), (_SOURCES / name).read_text())

    return expanded(file)


class LaunchRefused(RuntimeError):
    """The blocks of a cooperative launch do not all fit the device at the same time."""


#: What a cooperative launch raises where it is refused, by us or by the driver.
REFUSALS = (LaunchRefused, cupy.cuda.driver.CUDADriverError)


class Kernel:
    """A function of a compiled source; call it with a grid, a block and its arguments."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self._shared = _SHARED_WITHOUT_ASKING
        # What CuPy's own call would look up each time.
        self._launch, self._cooperative = function.kernel, function.enable_cooperative_groups
        self._rooms: dict[tuple[int, int], int] = {}

    def __call__(self, grid: int | tuple[int, ...], block: int | tuple[int, ...], arguments: tuple[Any, ...], shared: int = 0) -> None:
        """Launches on CuPy's current stream; an empty grid launches nothing.

        An argument is an array, None for a null pointer, an int for the kernel's `int`, or a NumPy scalar of the size that the
        kernel declares. `shared` is the dynamic shared memory of a block in bytes.
        """
        grid = grid if isinstance(grid, tuple) else (grid,)
        if 0 in grid:
            return
        block = block if isinstance(block, tuple) else (block,)
        if shared > self._shared:
            self._allow(shared)
        if self._cooperative:
            self._check_room(math.prod(grid), math.prod(block), shared)
        ready = tuple([a if type(a) in _AS_THEY_ARE else _argument(a) for a in arguments])
        self._launch(grid, block, ready, shared, None, self._cooperative)

    def _allow(self, shared: int) -> None:
        if shared > self._shared:
            self.function.max_dynamic_shared_size_bytes = shared
            self._shared = shared

    def _check_room(self, blocks: int, threads: int, shared: int) -> None:
        """Raises where the blocks do not fit: CuPy would warn and launch fewer, and they would wait for the others for ever."""
        room = self._rooms.get((threads, shared))
        if room is None:
            room = self._rooms[threads, shared] = self.blocks_per_multiprocessor(threads, shared) * properties().multiprocessors
        if blocks > room:
            raise LaunchRefused(f"COOPERATIVE_LAUNCH_TOO_LARGE: {blocks} blocks, and {room} run at the same time")

    def blocks_per_multiprocessor(self, threads: int, shared: int = 0) -> int:
        """How many blocks of this size a multiprocessor holds at a time."""
        self._allow(shared)
        return cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(self.function.kernel.ptr, threads, shared)


#: Types of arguments that CuPy takes in the size that they have.
_AS_THEY_ARE = frozenset((cupy.ndarray, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64))
_NULL = np.uint64(0)


def _argument(value: Any) -> Any:
    if type(value) is int:
        return _int32(value)
    if value is None:
        return _NULL
    if type(value) is float or type(value) is bool:
        raise TypeError(f"a kernel's argument has one size: expected np.float32, np.float64 or an int, got {value!r}")
    return value


@functools.lru_cache(1 << 12)
def _int32(n: int) -> np.int32:
    """A kernel's argument of type `int`; kept, because a number takes NumPy longer than a look at the last ones."""
    if not -(2**31) <= n < 2**31:
        raise OverflowError(f"{n} does not fit a kernel's int")
    return np.int32(n)


@functools.lru_cache(1 << 12)
def int64(n: int) -> np.int64:
    """A kernel's argument of type `long long`."""
    return np.int64(n)


def kernel(file: str, name: str, *, cooperative: bool = False, **macros: int | str) -> Kernel:
    """The function `name` of kernels/<file> with these macros, compiled when it is first asked for.

    A cooperative one is launched whole: all its blocks run at the same time, or the launch fails.
    """
    return _kernel(cupy.cuda.runtime.getDevice(), file, name, cooperative, tuple(macros.items()))


@functools.cache
def _kernel(device: int, file: str, name: str, cooperative: bool, macros: tuple[tuple[str, int | str], ...]) -> Kernel:
    return _sorted_kernel(device, file, name, cooperative, tuple(sorted(macros)))


@functools.cache
def _sorted_kernel(device: int, file: str, name: str, cooperative: bool, macros: tuple[tuple[str, int | str], ...]) -> Kernel:
    return Kernel(_module(device, file, cooperative, macros).get_function(name))


@functools.cache
def _module(device: int, file: str, cooperative: bool, macros: tuple[tuple[str, int | str], ...]) -> Any:
    options = ("-std=c++17", *(f"-D{key}={value}" for key, value in macros))
    return cupy.RawModule(code=source(file), options=options, backend="nvrtc", enable_cooperative_groups=cooperative)


def macros_of(dtype: Any) -> dict[str, Any]:
    """The macro that names the type of the elements."""
    return {"REAL": "float" if np.dtype(dtype).char == "f" else "double"}


def contiguous(x: Array) -> Array:
    """x with its elements in order, itself where they are."""
    return x if x.flags.c_contiguous else cupy.ascontiguousarray(x)  # which would make an axis for a number


# ---------------------------------------------------------------- products

_N, _T = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
_BF16 = "H"  # the dtype.char of arrays of uint16, which hold bfloat16 numbers
_KINDS = {"f": 0, "d": 1, _BF16: 14}  # CUDA_R_32F, CUDA_R_64F, CUDA_R_16BF
_FLOAT32, _FLOAT64, _FAST_BF16, _FAST_TF32 = 68, 70, 75, 77  # CUBLAS_COMPUTE_...
_BY_PRECISION = {"highest": _FLOAT32, "high": _FAST_TF32, "medium": _FAST_BF16}
_DEFAULT = -1  # CUBLAS_GEMM_DEFAULT
_NUMBERS: dict[str, Any] = {"f": np.array([0, 1], np.float32), "d": np.array([0, 1], np.float64)}
_ZERO = {kind: pair.ctypes.data for kind, pair in _NUMBERS.items()}  # cuBLAS reads alpha and beta from the host
_ONE = {kind: pair[1:].ctypes.data for kind, pair in _NUMBERS.items()}


def gemm(a: Array, b: Array, out: Array | None = None, *, accumulate: bool = False) -> Array:
    """out (M, N) = a (M, K) @ b (K, N), or += where `accumulate`; with one more axis in front, a product for each of its elements.

    Each array has elements next to each other along one of its last two axes (out: along the last); the other stride is free. Arrays
    of uint16 hold bfloat16 numbers, and their product is float32. Everything else has one dtype: float64 is multiplied exactly, float32
    as `precision()` says. May be captured into a graph: inside of `scratch`.
    """
    into = (out.shape, out.strides, out.dtype.char) if out is not None else _NO_OUT
    plan = _plan(a.shape, a.strides, a.dtype.char, b.shape, b.strides, b.dtype.char, *into)
    sums = plan.sums
    if out is None:
        out = cupy.empty(plan.shape, sums)
    if plan.function is None:
        if not accumulate:
            out.fill(0)
        return out
    compute = _BY_PRECISION[precision()] if plan.compute is None else plan.compute
    numbers = _ONE[sums], b.data.ptr, *plan.right, a.data.ptr, *plan.left, (_ONE if accumulate else _ZERO)[sums], out.data.ptr, *plan.into
    _cublas(plan.function, *plan.sizes, *numbers, compute, _DEFAULT)
    return out


class _Plan(NamedTuple):
    """What cuBLAS is to be told of a product, without addresses."""

    shape: tuple[int, ...]
    sums: str  # the kind of the result's numbers
    function: str | None = None  # None: nothing is multiplied
    compute: int | None = None  # None: as the process's precision says
    sizes: tuple[int, ...] = ()
    right: tuple[int, ...] = ()  # the kind of b, from one of its lines to the next, in a batch from one matrix to the next
    left: tuple[int, ...] = ()
    into: tuple[int, ...] = ()  # in a batch with the number of products


_NO_OUT = (None, None, None)
_Sizes = tuple[int, ...]


@functools.lru_cache(1 << 12)
def _plan(
    shape_a: _Sizes,
    strides_a: _Sizes,
    kind_a: str,
    shape_b: _Sizes,
    strides_b: _Sizes,
    kind_b: str,
    shape_out: _Sizes | None,
    strides_out: _Sizes | None,
    kind_out: str | None,
) -> _Plan:
    """Kept, because a program multiplies the same shapes in every step: Python looks longer at strides than at the last plans."""
    M, K, N = shape_a[-2], shape_a[-1], shape_b[-1]
    sums = "f" if kind_a == _BF16 else kind_a
    shape = (*shape_a[:-2], M, N)
    if 0 in shape or K == 0:
        return _Plan(shape, sums)
    if max(*shape, K) >= 2**31:
        raise OverflowError(f"a product of {shape_a} and {shape_b} has an axis that does not fit cuBLAS's int")
    if shape_out is None or strides_out is None or kind_out is None:
        itemsize = np.dtype(sums).itemsize
        shape_out, strides_out, kind_out = shape, (M * N * itemsize, N * itemsize, itemsize)[-len(shape) :], sums
    compute = _FLOAT64 if kind_a == "d" else _FLOAT32 if kind_a == _BF16 else None
    # cuBLAS counts columns first: to it our arrays are transposes, and out^T = b^T a^T.
    (op_b, *right), (op_a, *left), (_, *into) = (
        _layout(*x) for x in ((shape_b, strides_b, kind_b), (shape_a, strides_a, kind_a), (shape_out, strides_out, kind_out))
    )
    if len(shape) == 2:
        function = "cublasGemmEx"
    else:
        function = "cublasGemmStridedBatchedEx"
        into.append(shape[0])
    return _Plan(shape, sums, function, compute, (op_b, op_a, N, M, K), tuple(right), tuple(left), tuple(into))


class _Handles(threading.local):
    """cuBLAS's handles of this Python thread by device, each with the stream that it was last given."""

    def __init__(self) -> None:
        self.of_device: dict[int, list[int]] = {}
        self.scratch: Array | None = None


_handles = _Handles()
_NO_STREAM = -1


def _cublas(name: str, *arguments: int) -> None:
    """Calls cuBLAS on CuPy's current stream. CuPy's own wrappers refuse to be captured into a graph, and set the stream for each call."""
    functions = _cublas_functions()
    device, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr
    handle = _handles.of_device.get(device)
    if handle is None:
        created = ctypes.c_void_p()
        _ok("cublasCreate_v2", functions["cublasCreate_v2"](ctypes.byref(created)))
        handle = _handles.of_device[device] = [created.value or 0, 0]
    if handle[1] != stream:
        _ok("cublasSetStream_v2", functions["cublasSetStream_v2"](handle[0], stream))
        handle[1] = stream
        if _handles.scratch is not None:
            _ok("cublasSetWorkspace_v2", functions["cublasSetWorkspace_v2"](handle[0], _handles.scratch.data.ptr, _handles.scratch.nbytes))
    _ok(name, functions[name](handle[0], *arguments))


def _ok(name: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{name} failed with status {status}")


@functools.cache
def _cublas_functions() -> dict[str, Any]:
    """cuBLAS's functions with the types of their arguments, from the library that CuPy loads."""
    cupy.cuda.device.get_cublas_handle()  # loads it, from wherever this installation of CuPy has it
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    library = ctypes.CDLL(f"cublas64_{major}.dll" if sys.platform == "win32" else f"libcublas.so.{major}")
    number, pointer, step = ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong
    sizes, matrix = [pointer, number, number, number, number, number, pointer], [pointer, number, number]
    types: dict[str, list[Any]] = {
        "cublasCreate_v2": [pointer],
        "cublasSetStream_v2": [pointer, pointer],
        "cublasSetWorkspace_v2": [pointer, pointer, ctypes.c_size_t],
        "cublasGemmEx": [*sizes, *matrix, *matrix, pointer, *matrix, number, number],
        "cublasGemmStridedBatchedEx": [*sizes, *matrix, step, *matrix, step, pointer, *matrix, step, number, number, number],
    }
    found = {}
    for name, arguments in types.items():
        found[name] = getattr(library, name)
        found[name].argtypes = arguments
    return found


def scratch_bytes() -> int:
    """What cuBLAS takes by itself, for the generation of the current device: with as much it chooses the same kernels."""
    return (32 if properties().capability >= 90 else 4) << 20


@contextmanager
def scratch(memory: Array) -> Iterator[None]:
    """Lets the thread's products use `memory`, for graphs: into a captured stream cuBLAS itself puts an allocation before a product."""
    _change_scratch(memory)
    try:
        yield
    finally:
        _change_scratch(None)


def _change_scratch(memory: Array | None) -> None:
    _handles.scratch = memory
    for handle in _handles.of_device.values():
        handle[1] = _NO_STREAM  # the next product sets its stream, which takes back cuBLAS's own scratch


def _layout(shape: _Sizes, strides: _Sizes, kind: str) -> tuple[int, ...]:
    """How cuBLAS reads the last two axes: as they are or transposed; cuBLAS's kind; and the distances from one line, and matrix, to the next."""
    itemsize = np.dtype(kind).itemsize
    rows, columns = shape[-2:]
    *step, down, along = (stride // itemsize for stride in strides)
    down, along = down if rows > 1 else max(columns, 1), along if columns > 1 else max(rows, 1)
    if (along == 1 or columns == 1) and down >= columns:
        return _N, _KINDS[kind], down, *step
    if (down == 1 or rows == 1) and along >= rows:
        return _T, _KINDS[kind], along, *step
    raise ValueError(f"a product's array needs neighbouring elements along an axis, got strides {strides} for {shape}")
