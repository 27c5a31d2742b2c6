"""The memory that one training step of a recurrent layer or of attention takes, seen from outside: the most that the process held, less
what it held before.

    python -m benchmarks.memory LSTM --steps 2000 --batch 16 --inputs 128 --hidden 256 --checkpoint-every 45
    python -m benchmarks.memory attention --implementation numpy --steps 4096 --batch 1 --heads 2 --hidden 64

Asked in a process of its own, for Linux's `VmHWM` is the most since /proc/self/clear_refs was written to, whoever allocated it: NumPy,
the C library or a thread's scratch. Memory that is freed goes back at once (`MALLOC_MMAP_THRESHOLD_`), so nothing is hidden in a heap.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    return _ask(cell, options | ({"checkpoint-every": checkpoint_every} if checkpoint_every else {}))


@functools.cache
def attention_peak_bytes(implementation: str, *, T: int, B: int, heads: int, D: int, threads: int) -> int:
    """What forward and backward take beside q, k, v and dy: the record, scratch, y and the three gradients.

    Parameters
    ----------
    implementation : str
        One of `benchmarks.peers`.
    T, B, heads, D : int
        Queries, and as many keys; batch rows, heads and their size.
    threads : int

    Returns
    -------
    int
    """
    return _ask("attention", {"implementation": implementation, "steps": T, "batch": B, "heads": heads, "hidden": D, "threads": threads})


def _ask(what: str, options: dict[str, Any]) -> int:
    """The answer of a process of its own."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.memory", what, *words]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def can_measure() -> bool:
    """Whether the operating system tells."""
    return os.access(PROC / "clear_refs", os.W_OK)


def _held(field: str) -> int:
    line = next(line for line in (PROC / "status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _rise(train: Callable[[], Any]) -> int:
    before = _held("VmRSS")
    (PROC / "clear_refs").write_text("5")
    train()
    return _held("VmHWM") - before


def _measure_layer(arguments: argparse.Namespace) -> int:
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
    return _rise(lambda: train(arguments.steps))


def _measure_attention(arguments: argparse.Namespace) -> int:
    from benchmarks import peers
    from benchmarks.problems_transformer import Attention

    library = peers.IMPLEMENTATIONS[arguments.implementation](arguments.threads)
    few, all_of_them = (Attention("training", arguments.batch, arguments.heads, T, T, arguments.hidden) for T in (16, arguments.steps))
    library.attention_training(few).run()  # starts the threads
    return _rise(library.attention_training(all_of_them).run)


def main() -> None:
    """Print the bytes."""
    parser = argparse.ArgumentParser(description="Print how many bytes one training step takes at most.")
    parser.add_argument("cell", help="a recurrent layer, or attention")
    for name in ("steps", "batch", "hidden"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--inputs", type=int, help="of a layer")
    parser.add_argument("--checkpoint-every", type=int, help="of a layer")
    parser.add_argument("--heads", type=int, help="of attention")
    parser.add_argument("--implementation", default="fastseq", help="of attention")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print((_measure_attention if arguments.cell == "attention" else _measure_layer)(arguments))


if __name__ == "__main__":
    main()
