"""CuPy's RawModule on the emulator, with the checks that a driver makes and those that it leaves out."""

import warnings
import weakref

import numpy as np

from tests.cuda.emulator import build
from tests.cuda.stand_in import device
from tests.cuda.stand_in.array import ndarray
from tests.cuda.stand_in.device import CUDADriverError, settings

_WITHOUT_OPTING_IN = 48 * 1024
functions = {}  # by the address that the driver's functions take


class RawModule:
    """As `cupy.RawModule`, for code alone."""

    def __init__(self, code, *, options=(), backend="nvrtc", enable_cooperative_groups=False):
        if backend != "nvrtc" or not isinstance(options, tuple):
            raise ValueError("expected backend='nvrtc' and a tuple of options")
        self.code, self.options, self.enable_cooperative_groups = code, options, enable_cooperative_groups
        self._module = None

    def compile(self, log_stream=None):
        if self._module is None:
            device.refuse_while_capturing("load a module")
            self._module = build.Module(self.code, self.options)

    def get_function(self, name):
        """The kernel of this name."""
        self.compile()
        if name not in self._module.kernels:
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}; there are {sorted(self._module.kernels)}")
        return RawKernel(self._module.kernels[name], self.enable_cooperative_groups)


class _Function:
    """As `cupy.cuda.Function`."""

    def __init__(self, ptr):
        self.ptr = ptr

    def __call__(self, grid, block, args, shared_mem=0, stream=None, enable_cooperative_groups=False):
        kernel = functions[self.ptr]
        if stream is not None or enable_cooperative_groups is not kernel.enable_cooperative_groups:
            raise ValueError("expected the current stream, and the function's own kind of launch")
        kernel(grid, block, args, shared_mem=shared_mem)


class RawKernel:
    """As `cupy.RawKernel`."""

    num_regs, local_size_bytes, shared_size_bytes, const_size_bytes = 32, 0, 0, 0

    def __init__(self, kernel, cooperative):
        self._kernel, self.enable_cooperative_groups = kernel, cooperative
        self.name, self.max_threads_per_block = kernel.name, kernel.most_threads
        self.kernel = _Function(id(self))
        functions[id(self)] = self
        self._most_shared = _WITHOUT_OPTING_IN

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._most_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        if not 0 <= size <= settings.shared_per_block:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {size} bytes of shared memory; a block has {settings.shared_per_block}")
        self._most_shared = size

    def __call__(self, grid, block, args, *, shared_mem=0):
        grid, block = _sizes(grid, "grid", (2**31 - 1, 65535, 65535)), _sizes(block, "block", (1024, 1024, 64))
        threads = block[0] * block[1] * block[2]
        if threads > min(1024, self._kernel.most_threads):
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {self.name} takes up to {self._kernel.most_threads} threads, got {threads}")
        if shared_mem > self._most_shared:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {self.name}: {shared_mem} bytes of shared memory, allowed {self._most_shared}")
        if self.enable_cooperative_groups:
            most = device.blocks_per_multiprocessor(threads, shared_mem) * settings.multiprocessors
            if grid[0] * grid[1] * grid[2] > most:
                warnings.warn(f"The grid size will be reduced from {grid[0] * grid[1] * grid[2]} to {most}", RuntimeWarning, stacklevel=3)
                grid = (most, 1, 1)
        data = self._marshalled(args)
        memories = [weakref.ref(a.data.mem) if isinstance(a, ndarray) else None for a in args]

        def run():
            self._kernel.run(grid, block, data, shared_mem, self.enable_cooperative_groups)
            for i, memory in enumerate(memories):
                if memory is not None and memory() is not None and not memory().intact():
                    raise build.EmulatorError(f"{self.name}: something was written behind the array of argument {i}")

        device.submit(run)

    def _marshalled(self, args):
        parameters = self._kernel.parameters
        if len(args) != len(parameters):
            raise TypeError(f"{self.name}: expected {len(parameters)} arguments, got {len(args)}")
        return [_bytes(a, p, f"{self.name}: argument {i}") for i, (a, p) in enumerate(zip(args, parameters, strict=True))]


def _sizes(value, name, most):
    if not isinstance(value, tuple) or not 1 <= len(value) <= 3 or not all(isinstance(v, int | np.integer) for v in value):
        raise TypeError(f"{name}: expected a tuple of one to three whole numbers, got {value!r}")
    sizes = tuple(int(v) for v in value) + (1,) * (3 - len(value))
    if any(not 1 <= s <= m for s, m in zip(sizes, most, strict=True)):
        raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {name} {sizes}, allowed 1 to {most}")
    return sizes


def _bytes(value, parameter, where):
    """An argument as CuPy passes it; wrong sizes and kinds, which a GPU would take as they come, raise."""
    kind, pointer = chr(parameter.kind), None
    if isinstance(value, ndarray):
        pointer = value.data.ptr if value.size else 0
        to, size = chr(parameter.pointee_kind), parameter.pointee_size
        same = value.dtype.itemsize == size and (to != "f" or value.dtype.kind == "f")
        if kind == "p" and size > 1 and to in "if" and not same:
            raise TypeError(f"{where}: an array of {value.dtype} for a pointer to {'floats' if to == 'f' else 'whole numbers'} of {size} bytes")
    elif value is None or isinstance(value, device.MemoryPointer):
        pointer = 0 if value is None else value.ptr
    elif isinstance(value, np.uint64) and kind == "p":
        pointer = int(value)
    if pointer is not None:
        if kind != "p":
            raise TypeError(f"{where}: a pointer for a parameter that is none")
        return pointer.to_bytes(8, "little")
    if isinstance(value, np.ndarray) and kind == "s":
        if value.size != 1 or value.nbytes != parameter.size:
            raise TypeError(f"{where}: {value.nbytes} bytes for a structure of {parameter.size}")
        return value.tobytes()
    if type(value) in (bool, int, float):
        value = {bool: np.bool_, int: np.int64, float: np.float64}[type(value)](value)
    if not isinstance(value, np.generic):
        raise TypeError(f"{where}: unsupported type {type(value)}")
    found = {"f": "f", "i": "i", "u": "i", "b": "i"}[value.dtype.kind]
    if found != kind or value.dtype.itemsize != parameter.size:
        raise TypeError(f"{where}: {value.dtype} for a parameter of kind {kind!r} and {parameter.size} bytes")
    return value.tobytes()
