"""Which GPU there is, and one sentence for what keeps the backend from using it."""

from __future__ import annotations

from typing import Any

import cupy

#: Kernels copy to shared memory asynchronously and multiply bfloat16: the Ampere generation's instructions.
LEAST_CAPABILITY = (8, 0)

_NO_DEVICE, _OLD_DRIVER = 100, 35  # cudaErrorNoDevice, cudaErrorInsufficientDriver


def check() -> None:
    """Raises RuntimeError unless kernels can run on the current device."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise RuntimeError(_reason(error)) from None
    if count == 0:
        raise RuntimeError("cuda: no GPU found; the CPU computes with NumPy arrays")
    found = runtime.getDeviceProperties(runtime.getDevice())
    if (found["major"], found["minor"]) < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        raise RuntimeError(f"cuda: expected a GPU of compute capability {least} or later, got {_name(found)} with {found['major']}.{found['minor']}")


def current() -> int:
    """The number of CuPy's current device."""
    return int(cupy.cuda.runtime.getDevice())


def _reason(error: Any) -> str:
    """What the CUDA runtime's refusal means. Without any driver it reports one that is too old, of version 0."""
    status, driver = getattr(error, "status", None), _driver()
    if status == _NO_DEVICE or (status == _OLD_DRIVER and driver == 0):
        return "cuda: no GPU found; the CPU computes with NumPy arrays"
    if status == _OLD_DRIVER:
        needed = _version(cupy.cuda.runtime.runtimeGetVersion())
        return f"cuda: the NVIDIA driver is too old: it knows CUDA {_version(driver)}, CuPy {cupy.__version__} needs {needed}; update the driver"
    return f"cuda: no GPU can be used: {error}"


def _driver() -> int:
    """The newest CUDA version that the driver knows, 1000 major + 10 minor; 0 without a driver."""
    try:
        return int(cupy.cuda.runtime.driverGetVersion())
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _name(properties: dict[str, Any]) -> str:
    name = properties["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def config() -> dict[str, Any] | None:
    """Name, compute capability, memory in bytes and the driver's CUDA version of the current device; None where there is none."""
    runtime = cupy.cuda.runtime
    try:
        if runtime.getDeviceCount() == 0:
            return None
        found = runtime.getDeviceProperties(runtime.getDevice())
    except runtime.CUDARuntimeError:
        return None
    return {
        "name": _name(found),
        "capability": f"{found['major']}.{found['minor']}",
        "memory": int(found["totalGlobalMem"]),
        "driver": _version(_driver()),
    }
