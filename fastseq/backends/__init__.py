"""Where the arithmetic is done: one module per kind of array, all with the same functions.

`cpu` computes on NumPy arrays with the C kernels, `cuda` on CuPy arrays with its own; `reference` is the same in plain NumPy, to read
and to test against. The arrays choose: there is no switch. CuPy is imported by `cuda*.py` alone, and those by the functions below, once
a CuPy array has come or a device was asked for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from fastseq.backends import cpu

_NumPy = np.ndarray


class _Cuda:
    backend: ModuleType | None = None
    array: Any = None  # cupy.ndarray, once one has come


def backend_of(*arrays: Any) -> ModuleType:
    """The backend for these arrays.

    Parameters
    ----------
    *arrays : ndarray
        All NumPy's, or all CuPy's.

    Returns
    -------
    module
        With the functions of `fastseq.backends.reference`.

    Raises
    ------
    TypeError
        If they are of different kinds, or one of them is something else.

    Examples
    --------
    >>> import numpy as np
    >>> backend_of(np.zeros(3)).__name__
    'fastseq.backends.cpu'
    """
    for array in arrays:
        if type(array) is not _NumPy and not isinstance(array, _NumPy):
            return _other(arrays)
    return cpu


def _other(arrays: tuple[Any, ...]) -> ModuleType:
    """The backend where not all arrays are NumPy's."""
    for array in arrays:
        if type(array) is not _Cuda.array:
            break
    else:
        return _cuda()
    on_gpu = [is_gpu(array) for array in arrays]
    if all(on_gpu):
        return _cuda()
    for array, gpu in zip(arrays, on_gpu, strict=True):
        if not gpu and not isinstance(array, _NumPy):
            raise TypeError(foreign(array))
    raise TypeError('expected arrays of one kind, got NumPy and CuPy arrays; move one of them with .to("cuda"), cupy.asarray(x) or x.get()')


def is_gpu(x: Any) -> bool:
    """Whether x is a CuPy array; where CuPy is not imported nothing is."""
    kind = type(x)
    if kind is _NumPy:
        return False
    if kind is _Cuda.array:
        return True
    cupy = sys.modules.get("cupy")
    if cupy is None or not isinstance(x, getattr(cupy, "ndarray", ())):
        return False
    _Cuda.array = cupy.ndarray
    return True


def namespace(array: Any) -> Any:
    """The module that makes arrays of this one's kind: numpy, or cupy for a CuPy array.

    Examples
    --------
    >>> import numpy as np
    >>> namespace(np.zeros(3)).__name__
    'numpy'
    """
    return np if type(array) is _NumPy or not is_gpu(array) else sys.modules["cupy"]


def placed(x: Any, other: Any) -> Any:
    """The array x where the array `other` is: itself, or a copy."""
    if type(x) is type(other):
        return x
    return to_gpu(x) if is_gpu(other) else to_cpu(x)


def foreign(x: Any) -> str:
    """What to say of something that is no array, or one of a library that is not ours."""
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    if hasattr(x, "__cuda_array_interface__"):
        return f"expected a NumPy or CuPy array, got {kind}, which is on a GPU; cupy.asarray(x) shares its memory"
    return f"expected a NumPy array, got {kind}"


def _cuda() -> ModuleType:
    """The backend for CuPy arrays, imported at the first call.

    Raises
    ------
    ImportError
        If CuPy is not installed or does not load.
    RuntimeError
        If there is no GPU that it can use.
    """
    if _Cuda.backend is None:
        _loaded().check()
        from fastseq.backends import cuda as backend

        _Cuda.backend = backend
    return _Cuda.backend


def _loaded() -> Any:
    """The module that asks for the device, which is the first to import CuPy."""
    try:
        from fastseq.backends import cuda_device
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise
        raise ImportError(
            "cuda: CuPy is not installed; pip install 'fastseq-kernels[cuda]' brings cupy-cuda12x, for CUDA 12; "
            "'fastseq-kernels[cuda13]' brings cupy-cuda13x"
        ) from None
    except ImportError as error:
        cause = error.__cause__ or error  # CuPy's own text is a page
        raise ImportError(f"cuda: CuPy is installed but does not load: {str(cause).partition(chr(10))[0]}") from error
    return cuda_device


def to_gpu(x: Any) -> Any:
    """The array on the current device: itself where it is there already; errors as in `_cuda`."""
    if is_gpu(x):
        return x
    _cuda()
    return sys.modules["cupy"].asarray(x)


def to_cpu(x: Any) -> Any:
    """The array in this computer's memory: a NumPy array itself, of a CuPy array a copy, for which the device is waited for."""
    return x.get() if is_gpu(x) else x


def mover(device: Any) -> Callable[[Any], Any]:
    """What moves an array to a device: "cpu", "cuda", or CuPy's current device; errors as in `_cuda`, and ValueError for another device."""
    if isinstance(device, str) and device == "cpu":
        return to_cpu
    device_of_cupy = getattr(getattr(sys.modules.get("cupy"), "cuda", None), "Device", ())
    wanted = f"cuda:{device.id}" if isinstance(device, device_of_cupy) else device
    kind, _, number = wanted.partition(":") if isinstance(wanted, str) else ("", "", "")
    if kind != "cuda" or not (number.isdecimal() or wanted == "cuda"):
        raise ValueError(f'device: expected "cpu" or "cuda", got {device!r}')
    _cuda()
    current = _loaded().current()
    if number and int(number) != current:
        raise ValueError(f"device: expected CuPy's current device, {current}, got {wanted}; with cupy.cuda.Device({number}): makes that one current")
    return to_gpu


def load_cupy() -> None:
    """Imports CuPy where it is installed and loads."""
    with contextlib.suppress(ImportError):
        _loaded()


def gpu_config() -> dict[str, Any] | None:
    """Name, compute capability, memory and driver of the device, where the program has imported CuPy and there is one; imports nothing else."""
    if not hasattr(sys.modules.get("cupy"), "cuda"):
        return None
    return _loaded().config()
