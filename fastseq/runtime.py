"""What the process decides: instruction set, threads, a GPU's precision, where random numbers come from, and what it tells about itself.

The instruction set and the number of threads are settled when this module is imported, from `FASTSEQ_ISA` and
`FASTSEQ_NUM_THREADS`. Nothing here changes the process's environment.
"""

from __future__ import annotations

import contextlib
import operator
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastseq import _core
from fastseq.backends import gpu_config, load_cupy
from fastseq.backends.precision import get_precision, set_precision

#: The most threads that can be asked for (FSQ_THREADS_MOST in csrc/core/threads.h).
MOST_THREADS = 1024


# ---------------------------------------------------------------- instruction set


def _isa_at_import(name: str | None) -> None:
    """Chooses the instruction set that FASTSEQ_ISA names, or the best one."""
    try:
        _core.isa_select(name or None)
    except ValueError:
        available = ", ".join(_core.isas_available())
        raise ImportError(f"FASTSEQ_ISA: expected an instruction set of this build and machine ({available}), "
                          f"got {name!r}") from None


# ---------------------------------------------------------------- threads


def _thread_count(n: Any) -> int:
    """A number of threads as an int; raises for anything else."""
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n: expected an integer number of threads, got {type(n).__name__}")
    n = operator.index(n)
    if not 1 <= n <= MOST_THREADS:
        raise ValueError(f"n: expected a number of threads from 1 to {MOST_THREADS}, got {n}")
    return n


def _threads_at_import(text: str | None) -> None:
    """Settles the process's number; a FASTSEQ_NUM_THREADS that is no count raises, where C would ignore it."""
    digits = (text or "").strip()
    if digits and not (digits.isascii() and digits.isdecimal() and 1 <= int(digits[:9]) <= MOST_THREADS):
        raise ImportError(f"FASTSEQ_NUM_THREADS: expected a number from 1 to {MOST_THREADS}, got {text!r}")
    _core.threads_set(_core.threads_default())


def set_num_threads(n: int) -> None:
    """Set how many threads the process's operations may use.

    The number is honoured exactly, also above the number of cores. An operation takes one thread where its work does not
    pay for more, while another thread of the process is inside an operation, and in a forked child. A build without OpenMP
    always uses one.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Raises
    ------
    TypeError, ValueError
        Where `n` is not such a number; nothing changes then.

    See Also
    --------
    threads : a number for one Python thread, for a while.

    Examples
    --------
    >>> import fastseq as fs
    >>> before = fs.get_num_threads()
    >>> fs.set_num_threads(1)
    >>> fs.get_num_threads()
    1
    >>> fs.set_num_threads(before)
    """
    _core.threads_set(_thread_count(n))


def get_num_threads() -> int:
    """How many threads the next operation of this Python thread may use.

    At first the least of the process's affinity, its control group's quota (rounded up) and `OMP_NUM_THREADS`;
    `FASTSEQ_NUM_THREADS` overrides all three. All are read when fastseq is imported.

    Returns
    -------
    int
        At least 1. In a forked child always 1: the OpenMP runtime's threads do not survive a fork.

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.get_num_threads() >= 1
    True
    """
    return _core.threads_get()


def threads(n: int) -> contextlib.AbstractContextManager[None]:
    """Use `n` threads inside a `with` block, in this Python thread only.

    Other Python threads keep their number. Blocks nest; the inner one counts. Also a decorator.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Returns
    -------
    context manager

    Raises
    ------
    TypeError, ValueError
        Where `n` is not such a number.

    Examples
    --------
    >>> import fastseq as fs
    >>> with fs.threads(1):
    ...     fs.get_num_threads()
    1
    """
    return _local_threads(_thread_count(n))


@contextlib.contextmanager
def _local_threads(n: int) -> Iterator[None]:
    before = _core.threads_set_local(n)
    try:
        yield
    finally:
        _core.threads_set_local(before)


@contextlib.contextmanager
def force_threads() -> Iterator[None]:
    """Inside a `with` block every operation uses all its threads, however small its work: for tests of small sizes."""
    before = _core.threads_force(True)
    try:
        yield
    finally:
        _core.threads_force(before)


# ---------------------------------------------------------------- a GPU's products


def set_float32_matmul_precision(precision: str) -> None:
    """Set how a GPU multiplies float32 matrices, in the whole process; a CPU always multiplies float32 by float32.

    Arrays are float32 before and after, and sums are formed in float32; float64 is never rounded.

    Parameters
    ----------
    precision : {"highest", "high", "medium"}
        The operands of a product as they are, rounded to tf32 (10 bits after the point), or to bfloat16 (7 bits). The words are PyTorch's.

    Raises
    ------
    ValueError
        For another word; nothing changes then.

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.set_float32_matmul_precision("high")
    >>> fs.get_float32_matmul_precision()
    'high'
    >>> fs.set_float32_matmul_precision("highest")
    """
    set_precision(precision)


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` was last given; "highest" at first.

    Returns
    -------
    str

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.get_float32_matmul_precision()
    'highest'
    """
    return get_precision()


# ---------------------------------------------------------------- random numbers


class _Process:
    generator: np.random.Generator | None = None  # made at the first use: numpy.random is not loaded by `import numpy`


def manual_seed(seed: int) -> None:
    """Seed the generator from which layers draw their weights and the seeds of their masks, unless they are given `rng=`.

    Parameters
    ----------
    seed : int
        At least 0.

    Raises
    ------
    TypeError, ValueError
        Where `seed` is not such a number; the generator stays as it was.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.manual_seed(1); a = fs.nn.Linear(3, 2)
    >>> fs.manual_seed(1); b = fs.nn.Linear(3, 2)
    >>> bool(np.array_equal(a.weight.data, b.weight.data))
    True
    """
    _Process.generator = _seeded("seed", seed)


def generator(rng: int | np.random.Generator | None = None) -> np.random.Generator:
    """What `rng=` means: a generator itself, a new one with that seed, or for None the process's own.

    Parameters
    ----------
    rng : int, numpy.random.Generator or None

    Returns
    -------
    numpy.random.Generator

    Raises
    ------
    TypeError, ValueError
        Where `rng` is none of these, or a negative seed.
    """
    if rng is None:
        if _Process.generator is None:
            _Process.generator = np.random.default_rng()
        return _Process.generator
    return rng if isinstance(rng, np.random.Generator) else _seeded("rng", rng)


def _seeded(name: str, seed: Any) -> np.random.Generator:
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        wanted = "a seed" if name == "seed" else "None, a seed or a numpy.random.Generator"
        raise TypeError(f"{name}: expected {wanted}, got {type(seed).__name__}")
    seed = operator.index(seed)
    if seed < 0:
        raise ValueError(f"{name}: expected a seed of at least 0, got {seed}")
    return np.random.default_rng(seed)


def next_seed(rng: int | np.random.Generator | None = None) -> int:
    """A 64-bit seed for a Philox stream of masks, drawn from `generator(rng)`.

    Returns
    -------
    int
        From 0 to 2^64 - 1.
    """
    return int(generator(rng).integers(2**64, dtype=np.uint64))


# ---------------------------------------------------------------- configuration


def config() -> dict[str, Any]:
    """What this process runs with.

    Returns
    -------
    dict
        version : str; isa : str, the instruction set in use; isas_available : list of str, worst first;
        threads : int, what `get_num_threads` says; openmp : bool, whether this build has OpenMP; python, numpy : str,
        versions; cupy : str or None, the version of CuPy that is installed; gpu : dict or None, name, capability (compute
        capability), memory (bytes) and driver (the newest CUDA version that it knows) of the current GPU, where the program has
        imported CuPy (it is never imported here); machine : str, the processor's architecture.

    Examples
    --------
    >>> import fastseq as fs
    >>> configuration = fs.runtime.config()
    >>> configuration["isa"] in configuration["isas_available"]
    True
    """
    from fastseq import __version__

    return {
        "version": __version__,
        "isa": _core.isa_name(),
        "isas_available": list(_core.isas_available()),
        "threads": get_num_threads(),
        "openmp": bool(_core.has_openmp()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cupy": _cupy_version(),
        "gpu": gpu_config(),
        "machine": platform.machine(),
    }


def look_for_gpu() -> None:
    """Import CuPy where it is installed, so that `config` and `show_config` say which GPU there is; `fastseq info` does it.

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.runtime.look_for_gpu()
    """
    load_cupy()


def _cupy_version() -> str | None:
    """CuPy's version, found without importing it: its packages have another name for each version of CUDA."""
    if "cupy" in sys.modules:
        return getattr(sys.modules["cupy"], "__version__", None)
    import importlib.metadata  # here: most programs never ask

    for package in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def _gpu_text(found: dict[str, Any]) -> str:
    """What `show_config` says of the GPU."""
    if found["cupy"] is None:
        return "none: CuPy is not installed"
    gpu = found["gpu"]
    if gpu is None:
        return "none found" if "cupy" in sys.modules else "not asked for: CuPy is not imported"
    memory = gpu["memory"] / 2**30
    return f"{gpu['name']}, compute capability {gpu['capability']}, {memory:.1f} GiB, driver for CUDA {gpu['driver']}"


def show_config() -> None:
    """Print what this process runs with: version, instruction set, threads, and what it found.

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.show_config()                                      # doctest: +ELLIPSIS
    fastseq ...
    instruction set  ...
    """
    found = config()
    sys.stdout.write(
        f"fastseq {found['version']}\n"
        f"instruction set  {found['isa']} (available: {', '.join(found['isas_available'])})\n"
        f"threads          {found['threads']} ({'OpenMP' if found['openmp'] else 'built without OpenMP: always one'})\n"
        f"Python           {found['python']} on {found['machine']}\n"
        f"NumPy            {found['numpy']}\n"
        f"CuPy             {found['cupy'] or 'not installed'}\n"
        f"GPU              {_gpu_text(found)}\n"
    )


_isa_at_import(os.environ.get("FASTSEQ_ISA"))
_threads_at_import(os.environ.get("FASTSEQ_NUM_THREADS"))
