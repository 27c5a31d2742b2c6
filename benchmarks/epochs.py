"""Times one epoch of each example beside the same model in PyTorch, and prints one table.

    python -m benchmarks.epochs --data ../shared/data
    python -m benchmarks.epochs --only translation --seconds 20

Both libraries start from the same weights, and their losses on the first batch must agree before anything is timed. They take turns of a
few batches, all of it twice; of each batch the better time counts, so that what disturbs the machine for a moment meets neither. An
epoch's time is the sum over its batches, or over the first of them where --seconds ends before, scaled to the whole. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import importlib
import math
import pkgutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import fastseq as fs
from benchmarks import machine, twins

Step = Callable[[Any], float]
TURN = 4  # batches before the other library has its turn
ROUNDS = 2
TOLERANCE = 1e-3  # of the first losses: the same weights and the same batch in float32


class Row(NamedTuple):
    """One task: seconds of an epoch in each library, and how much of the epoch was timed."""

    name: str
    fastseq: float
    torch: float
    timed: float

    def __str__(self) -> str:
        return f"| {self.name} | {self.fastseq:.3g} | {self.torch:.3g} | {self.torch / self.fastseq:.2f} | {100 * self.timed:.0f} % |"


def compare(task: Any, data: str | None, seconds: float, seed: int) -> Row:
    """Time one task's module; `seconds` are for both libraries together."""
    batches = task.batches(data)
    steps: tuple[Step, Step] = task.with_fastseq(seed), task.with_torch(seed)
    _check_same([step(batches[0]) for step in steps])
    counted = batches[: _affordable(steps, batches, seconds)]
    best = [[math.inf] * len(counted) for _ in steps]
    for _ in range(ROUNDS):
        for turn in _turns(len(counted)):
            for times, step in zip(best, steps, strict=True):
                for i in turn:
                    times[i] = min(times[i], _timed(step, counted[i]))
    timed = len(counted) / len(batches) * task.SHARE
    return Row(task.NAME, *(sum(times) / timed for times in best), timed)


def _turns(count: int) -> list[range]:
    return [range(begin, min(begin + TURN, count)) for begin in range(0, count, TURN)]


def _affordable(steps: Sequence[Step], batches: Sequence[Any], seconds: float) -> int:
    """How many batches all rounds of both libraries can take in the time, by what two of them needed."""
    probe = batches[1:3] or batches[:1]
    needed = sum(_timed(step, batch) for step in steps for batch in probe) / len(probe)
    return max(1, min(len(batches), int(seconds / (ROUNDS * needed))))


def _timed(step: Step, batch: Any) -> float:
    begin = time.perf_counter()
    step(batch)
    return time.perf_counter() - begin


def _check_same(losses: Sequence[float]) -> None:
    """From the same weights on the same batch: losses that differ come from models that do."""
    if not math.isclose(*losses, rel_tol=TOLERANCE):
        raise AssertionError(f"the losses of the first step differ: fastseq {losses[0]}, PyTorch {losses[1]}")


def tasks(beginning: str = "") -> list[str]:
    """The files of `benchmarks/twins` whose names begin so."""
    return sorted(found.name for found in pkgutil.iter_modules(twins.__path__) if found.name.startswith(beginning))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time one epoch of each example beside the same model in PyTorch.")
    parser.add_argument("--data", help="the folder of real data (default: what the examples make themselves)")
    parser.add_argument("--only", default="", help="the tasks whose names begin so")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each task, both libraries together (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=fs.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import torch

    fs.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    print(f"{machine.processor()}, {args.threads} threads, fastseq {machine.commit()}, PyTorch {torch.__version__}, load {machine.load()}\n")
    print("| task | fastseq, seconds per epoch | PyTorch | ratio | part of the epoch timed |\n|---|---:|---:|---:|---:|")
    rows = []
    for name in tasks(args.only):
        rows.append(compare(importlib.import_module(f"benchmarks.twins.{name}"), args.data, args.seconds, args.seed))
        print(rows[-1], flush=True)
    mean = math.exp(sum(math.log(row.torch / row.fastseq) for row in rows) / len(rows))
    print(f"\nGeometric mean of the ratios: {mean:.2f}, least {min(row.torch / row.fastseq for row in rows):.2f}.")


if __name__ == "__main__":
    main()
