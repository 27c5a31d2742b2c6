"""The GPU that both libraries share: arrays without a copy, one stream, one clock, one precision. "cpu" is there to try the cases."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any, NamedTuple

import torch

#: PyTorch's word for products of float32 under fastseq's: its own "medium" may round to bfloat16, which no layer of cuDNN does.
_THEIRS = {"highest": "highest", "high": "high", "medium": "high"}
PRODUCTS = {"highest": torch.float32, "high": torch.float32, "medium": torch.bfloat16}


class Seconds(NamedTuple):
    """How long a call takes, and how long until Python goes on; where they are alike the GPU waits for its work."""

    call: float
    queued: float


class Device:
    """Where the arrays are: "cuda" or "cpu"."""

    def __init__(self, name: str) -> None:
        self.name, self.gpu = name, name == "cuda"

    def synchronize(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give both libraries' cached memory back, so that one does not hold what the other needs."""
        if self.gpu:
            torch.cuda.empty_cache()
            if (cupy := sys.modules.get("cupy")) is not None:
                cupy.get_default_memory_pool().free_all_blocks()

    def array(self, tensor: torch.Tensor) -> Any:
        """The same memory as fastseq takes it: a CuPy array on the GPU, a NumPy array beside it."""
        tensor = tensor.detach().contiguous()
        if not self.gpu:
            return tensor.numpy()
        import cupy

        return cupy.from_dlpack(tensor)

    def tensor(self, array: Any) -> torch.Tensor:
        """And back."""
        return torch.from_dlpack(array) if self.gpu else torch.from_numpy(array)

    def random(self, seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        """Standard normal numbers in float32, the same at each call."""
        generator = torch.Generator(self.name).manual_seed(seed)
        return [torch.randn(shape, generator=generator, device=self.name) for shape in shapes]

    def integers(self, seed: int, high: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        """Integers from 0 to high - 1, the same at each call."""
        generator = torch.Generator(self.name).manual_seed(seed)
        return [torch.randint(high, shape, generator=generator, device=self.name) for shape in shapes]

    def module(self, layer: Any) -> Any:
        """A layer of fastseq on this device."""
        return layer.to("cuda") if self.gpu else layer

    def seconds(self, run: Any, calls: int) -> Seconds:
        """Of a call, among several in a row as a program makes them: by events on the stream, which is idle before."""
        self.synchronize()
        if self.gpu:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        queued = time.perf_counter() - begin
        if not self.gpu:
            return Seconds(queued / calls, queued / calls)
        last.record()
        last.synchronize()
        return Seconds(first.elapsed_time(last) / 1e3 / calls, queued / calls)


def set_precision(precision: str) -> None:
    """How products of float32 are formed, in both libraries as far as they are loaded."""
    torch.set_float32_matmul_precision(_THEIRS[precision])
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    if (fastseq := sys.modules.get("fastseq")) is not None:
        fastseq.set_float32_matmul_precision(precision)


def measure(device: Device) -> dict[str, float]:
    """The floors' rates: operations a second of a large product in each precision, and bytes a second of a copy, read and written."""
    n, copied = (8192, 1 << 28) if device.gpu else (256, 1 << 16)
    rates = {}
    for precision, dtype in PRODUCTS.items():
        set_precision(precision)
        a, b = (x.to(dtype) for x in device.random(0, (n, n), (n, n)))
        out = torch.empty_like(a)
        rates[precision] = 2.0 * n**3 / _best(device, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
    source = torch.zeros(copied, device=device.name)
    target = torch.empty_like(source)
    rates["bytes"] = 8.0 * copied / _best(device, lambda: target.copy_(source))
    device.release()
    return rates


def _best(device: Device, run: Any) -> float:
    device.seconds(run, 3)
    return min(device.seconds(run, 5).call for _ in range(5))


def describe(device: Device) -> dict[str, str]:
    """What stands above the table: the GPU, its driver, and the libraries' versions."""
    if not device.gpu:
        return {"device": "the CPU, to try the cases", "PyTorch": torch.__version__}
    found = torch.cuda.get_device_properties(0)
    about = {
        "device": f"{found.name}, {found.multi_processor_count} multiprocessors, {found.total_memory / 2**30:.0f} GiB",
        "driver": _driver(),
        "PyTorch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "cuDNN": str(torch.backends.cudnn.version()),
    }
    try:
        import cupy
    except ImportError:
        return about
    return about | {"CuPy": cupy.__version__}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
