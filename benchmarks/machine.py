"""The machine under the benchmarks: its measured peak, its load, and which sources run on it."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

#: Width of a register in bytes, and the compiler's flags, by fastseq's name of the instruction set.
ISAS = {
    "portable": (16, []),
    "neon": (16, []),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "avx512": (64, ["-mavx512f", "-mprefer-vector-width=512"]),
}
CHAINS = 12
BURST = 0.004  # seconds: shorter than a scheduler's slice, so that some bursts have the core to themselves
SECONDS = 0.35


class NoPeak(RuntimeError):
    """The peak cannot be measured here; the message says why."""


def peak_gflops(isa: str, threads: int) -> dict[int, float]:
    """The rate of float32 multiply-adds, counted twice, that one thread and `threads` threads at once reach.

    Parameters
    ----------
    isa : str
        The instruction set whose registers are used.
    threads : int

    Returns
    -------
    dict of int to float
        Number of threads: GFLOP/s of all of them together, the best of many bursts.

    Raises
    ------
    NoPeak
        Without a C compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        kernel = _compiled(isa, Path(folder))
        operations = 2 * CHAINS * ISAS[isa][0] // 4
        return {n: _best_rate(kernel, operations, n) for n in sorted({1, threads})}


def _compiled(isa: str, folder: Path) -> Any:
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    width, flags = ISAS[isa]
    library = folder / "peak.so"
    command = [compiler[0], "-O3", "-ffp-contract=fast", "-shared", "-fPIC", *flags, f"-DBYTES={width}", str(HERE / "peak.c"), "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NoPeak(f"the machine's peak needs a C compiler: {error}") from None
    if done.returncode:
        raise NoPeak(f"the machine's peak needs a C compiler: {shlex.join(command)} said: {done.stderr.strip()}")
    kernel = ctypes.CDLL(str(library)).peak  # a CDLL's functions run without the GIL
    kernel.argtypes, kernel.restype = [ctypes.c_long, ctypes.c_float, ctypes.c_float], ctypes.c_float
    return kernel


def _best_rate(kernel: Any, operations: int, threads: int) -> float:
    rounds, spent = 1 << 12, 0.0
    while spent < BURST:
        rounds *= 2
        spent = _together(kernel, rounds, 1)
    best, end = 0.0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        best = max(best, threads * rounds * operations / _together(kernel, rounds, threads))
    return best / 1e9


def _together(kernel: Any, rounds: int, threads: int) -> float:
    """Seconds from the first worker's start to the last one's end."""
    times: list[tuple[float, float]] = []
    start = threading.Barrier(threads)

    def work() -> None:
        start.wait()
        begin = time.perf_counter()
        kernel(rounds, 0.999, 0.001)
        times.append((begin, time.perf_counter()))

    workers = [threading.Thread(target=work) for _ in range(threads - 1)]
    for worker in workers:
        worker.start()
    work()
    for worker in workers:
        worker.join()
    return max(end for _, end in times) - min(begin for begin, _ in times)


def commit() -> str:
    """The commit of the sources, with "+" behind it where they differ from it; "unknown" outside a repository."""
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=10", "HEAD")
    return "unknown" if head is None else head + ("+" if git("status", "--porcelain") else "")


def processor() -> str:
    """The processor's name as the operating system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load() -> float:
    """Processes that wanted a core, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)
