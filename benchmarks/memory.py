"""The memory that one training step of a recurrent layer takes, seen from outside: the most that the process held, less what it held before.

    python -m benchmarks.memory LSTM --steps 2000 --batch 16 --inputs 128 --hidden 256 --checkpoint-every 45

Asked in a process of its own, for Linux's `VmHWM` is the most since /proc/self/clear_refs was written to, whoever allocated it: NumPy,
the C library or a thread's scratch. Memory that is freed goes back at once (`MALLOC_MMAP_THRESHOLD_`), so nothing is hidden in a heap.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from pathlib import Path

PROC = Path("/proc/self")


@functools.cache
def peak_bytes(cell: str, *, T: int, B: int, I: int, H: int, checkpoint_every: int | None, threads: int) -> int:
    """What forward and backward take beside x, dy and the weights: the record, scratch, y and all gradients.

    Parameters
    ----------
    cell : str
        A layer of `fastseq.nn`.
    T, B, I, H : int
        Steps, batch rows, input and hidden size.
    checkpoint_every : int or None
        As the layer takes it.
    threads : int

    Returns
    -------
    int
    """
    options = {"steps": T, "batch": B, "inputs": I, "hidden": H, "threads": threads}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--checkpoint-every", str(checkpoint_every)] if checkpoint_every else []
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.memory", cell, *words]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def can_measure() -> bool:
    """Whether the operating system tells."""
    return os.access(PROC / "clear_refs", os.W_OK)


def _held(field: str) -> int:
    line = next(line for line in (PROC / "status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _measure(arguments: argparse.Namespace) -> int:
    import numpy as np

    import fastseq

    fastseq.set_num_threads(arguments.threads)
    layer = getattr(fastseq.nn, arguments.cell)(arguments.inputs, arguments.hidden, rng=0)
    x, dy = (np.ones((arguments.steps, arguments.batch, size), np.float32) for size in (arguments.inputs, arguments.hidden))

    def train(steps: int) -> None:
        xt = fastseq.Tensor(x[:steps], requires_grad=True)
        y, _ = layer(xt, checkpoint_every=arguments.checkpoint_every)
        y.backward(dy[:steps])

    train(2)  # starts the threads and packs the weights
    layer.zero_grad()
    before = _held("VmRSS")
    (PROC / "clear_refs").write_text("5")
    train(arguments.steps)
    return _held("VmHWM") - before


def main() -> None:
    """Print the bytes."""
    parser = argparse.ArgumentParser(description="Print how many bytes one training step of a recurrent layer takes at most.")
    parser.add_argument("cell")
    for name in ("steps", "batch", "inputs", "hidden"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--checkpoint-every", type=int)
    parser.add_argument("--threads", type=int, default=1)
    print(_measure(parser.parse_args()))


if __name__ == "__main__":
    main()
