"""A `cupy` for machines without a GPU: arrays over host memory, kernels on the emulator, products by NumPy.

It has what this package and its tests use of CuPy, and refuses what CuPy refuses: NumPy arrays next to its own, implicit conversions,
arguments of the wrong size. A name that is missing here is added after a look at whether CuPy has it.
"""

import types

import numpy as np

from tests.cuda.emulator.build import EmulatorError as EmulatorError
from tests.cuda.stand_in import blas, device, raw
from tests.cuda.stand_in.array import apply, empty_numpy, ndarray, unwrapped, wrapped
from tests.cuda.stand_in.device import settings as settings

# NumPy's functions that CuPy has under the same name, with the same meaning.
_FUNCTIONS = """
abs absolute add all allclose amax amin any append arange_ arccos arcsin arctan arctan2 argmax argmin argsort around array_equal atleast_1d
atleast_2d average bincount bitwise_and bitwise_or bitwise_xor broadcast_arrays broadcast_to cbrt ceil clip column_stack concatenate copysign cos
cosh count_nonzero cross cumprod cumsum deg2rad diag diagonal diff divide divmod dot dstack einsum equal exp exp2 expand_dims expm1 flip floor
floor_divide fmax fmin fmod greater greater_equal hstack hypot invert isclose isfinite isinf isnan kron left_shift less less_equal log log10 log1p
log2 logaddexp logical_and logical_not logical_or logical_xor matmul max maximum mean median min minimum mod moveaxis multiply nan_to_num negative
nonzero not_equal outer pad percentile power prod ptp ravel reciprocal remainder repeat reshape right_shift rint roll rollaxis rot90 round
searchsorted sign signbit sin sinh sort split sqrt square squeeze stack std subtract sum swapaxes take take_along_axis tan tanh tensordot tile
trace transpose tri tril triu true_divide trunc unique unravel_index var vdot vstack where flatnonzero partition argpartition array_split vsplit hsplit
""".replace("arange_", "").split()
_REDUCTIONS = {"sum", "prod", "max", "min", "amax", "amin", "mean", "any", "all", "std", "var"}
_VALUES = """
float32 float64 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_ complex64 complex128 dtype newaxis inf nan pi e finfo iinfo
result_type can_cast promote_types issubdtype floating integer generic ufunc isscalar ndim shape
""".split()


def _delegate(name):
    function = getattr(np, name)

    def call(*args, **keywords):
        if name in _REDUCTIONS and {"where", "initial"} & keywords.keys():
            raise TypeError(f"cupy.{name} takes neither where nor initial")
        return apply(function, *args, **keywords)

    call.__name__ = call.__qualname__ = name
    return call


def _asarray(a, dtype=None, order=None, *, copy=None):
    device.refuse_while_capturing("bring an array to the device")
    if isinstance(a, ndarray) and not copy and (dtype is None or a.dtype == np.dtype(dtype)) and order in (None, "K", "A"):
        return a
    if isinstance(a, list | tuple) and any(isinstance(x, ndarray) for x in a):
        a = np.asarray(unwrapped(a))
    found = np.array(a._a if isinstance(a, ndarray) else a, dtype=dtype, order=order or "K")
    return wrapped(found)


def _array(object, dtype=None, copy=True, order="K", subok=False, ndmin=0):
    found = _asarray(object, dtype, order, copy=copy)
    return found.reshape((1,) * (ndmin - found.ndim) + found.shape) if found.ndim < ndmin else found


def _ascontiguousarray(a, dtype=None):
    if isinstance(a, ndarray) and a.ndim and a._a.flags.c_contiguous and (dtype is None or a.dtype == np.dtype(dtype)):
        return a
    if isinstance(a, ndarray):
        found = empty_numpy(a.shape or (1,), dtype or a.dtype)
        found[...] = a._a
        return ndarray._of(found)
    return _asarray(np.ascontiguousarray(a, dtype))


def _empty(shape, dtype=float, order="C"):
    a = empty_numpy(shape, dtype)
    return ndarray._of(a if order == "C" else empty_numpy(a.shape, dtype, np.empty(a.shape, dtype, order=order).strides))


def _filled(value):
    def call(shape, dtype=float, order="C"):
        found = _empty(shape, dtype, order)
        found.fill(value)
        return found

    return call


def _full(shape, fill_value, dtype=None, order="C"):
    found = _empty(shape, dtype or np.asarray(unwrapped(fill_value)).dtype, order)
    found.fill(fill_value)
    return found


def _like(value):
    def call(a, dtype=None, order="K", subok=None, shape=None):
        if isinstance(a, np.ndarray):
            raise TypeError(f"Unsupported type {type(a)}")
        dense = np.empty_like(a._a, dtype, order, shape=shape)
        found = ndarray._of(empty_numpy(dense.shape, dense.dtype, dense.strides))
        if value is not None:
            found.fill(value)
        return found

    return call


def _full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    found = _like(None)(a, dtype, order, subok, shape)
    found.fill(fill_value)
    return found


def _made(function):
    return lambda *args, **keywords: wrapped(function(*args, **keywords))


def _copyto(dst, src, casting="same_kind", where=None):
    device.refuse_while_capturing("copy an array")
    np.copyto(dst._a, unwrapped(src), casting=casting, where=True if where is None else unwrapped(where))



def _drawing(function):
    def call(*args, dtype=None, **keywords):
        found = np.asarray(function(*args, **keywords))
        return wrapped(found if dtype is None else found.astype(dtype))

    return call


def _random():
    """As much of cupy.random as timing needs: numbers of no particular sequence."""
    module = types.ModuleType("cupy.random")
    state = np.random.RandomState(0)
    module.seed = state.seed
    for name in ("rand", "randn", "random", "randint", "standard_normal", "uniform", "permutation"):
        setattr(module, name, _drawing(getattr(state, name)))
    return module


def _cuda(cupy):
    cuda = types.ModuleType("cupy.cuda")
    runtime, driver, stream, dev, memory = (types.ModuleType(f"cupy.cuda.{n}") for n in ("runtime", "driver", "stream", "device", "memory"))
    runtime.CUDARuntimeError = device.CUDARuntimeError
    runtime.getDevice = lambda: 0
    runtime.getDeviceCount = lambda: 1
    runtime.setDevice = lambda d: device.Device(d).use()
    runtime.getDeviceProperties = device.getDeviceProperties
    runtime.memGetInfo = device.memGetInfo
    runtime.deviceSynchronize = lambda: device.Device().synchronize()
    runtime.runtimeGetVersion = runtime.driverGetVersion = lambda: 13000
    runtime.is_hip = False
    driver.CUDADriverError = device.CUDADriverError
    driver.occupancyMaxActiveBlocksPerMultiprocessor = lambda function, threads, shared: device.blocks_per_multiprocessor(threads, shared)
    dev.get_cublas_handle = cuda.get_cublas_handle = blas.load
    dev.Device = device.Device
    memory.OutOfMemoryError, memory.MemoryPointer, memory.MemoryPool = device.OutOfMemoryError, device.MemoryPointer, device.MemoryPool
    for name in ("Stream", "Event", "get_current_stream", "get_elapsed_time"):
        setattr(stream, name, getattr(device, name))
        setattr(cuda, name, getattr(device, name))
    for name in ("Device", "Graph", "MemoryPointer", "MemoryPool", "alloc"):
        setattr(cuda, name, getattr(device, name))
    cuda.is_available = lambda: True
    cuda.runtime, cuda.driver, cuda.stream, cuda.device, cuda.memory = runtime, driver, stream, dev, memory
    return [cuda, runtime, driver, stream, dev, memory]


def modules():
    """All modules of the stand-in by name, for `sys.modules`."""
    cupy = types.ModuleType("cupy", __doc__)
    cupy.__path__, cupy.__version__ = [], "14.2.0"
    for name in _FUNCTIONS:
        setattr(cupy, name, _delegate(name))
    for name in _VALUES:
        setattr(cupy, name, getattr(np, name))
    cupy.ndarray, cupy.RawModule, cupy.RawKernel = ndarray, raw.RawModule, raw.RawKernel
    cupy.asarray, cupy.array, cupy.ascontiguousarray, cupy.copyto = _asarray, _array, _ascontiguousarray, _copyto
    cupy.empty, cupy.zeros, cupy.ones, cupy.full = _empty, _filled(0), _filled(1), _full
    cupy.empty_like, cupy.zeros_like, cupy.ones_like, cupy.full_like = _like(None), _like(0), _like(1), _full_like
    cupy.arange, cupy.linspace, cupy.eye, cupy.identity = map(_made, (np.arange, np.linspace, np.eye, np.identity))
    cupy.asnumpy = lambda a, stream=None, order="C", out=None, *, blocking=True: a.get(out=out) if isinstance(a, ndarray) else np.asarray(a, order=order)
    cupy.get_array_module = lambda *args: cupy if any(isinstance(a, ndarray) for a in args) else np
    cupy.copy = lambda a, order="K": a.copy()
    cupy.shares_memory = lambda a, b: np.shares_memory(a._a, b._a)
    cupy.may_share_memory = lambda a, b: np.may_share_memory(a._a, b._a)
    cupy.get_default_memory_pool = device.MemoryPool
    cupy.get_default_pinned_memory_pool = device.MemoryPool
    cupy.random = _random()
    found = [cupy, cupy.random, *_cuda(cupy)]
    cupy.cuda = found[2]
    cupy.cuda.__path__ = []
    return {module.__name__: module for module in found}
