"""Medians of calls that take turns."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable

from benchmarks.cuda.case import Call
from benchmarks.cuda.device import Device, Seconds

REPEATS = 20  # turns of each at least
TURN = 2e-3  # seconds that a turn lasts about, so that the clock's steps do not count
SPENT = 0.3  # seconds after which more than the least number of turns is not wanted


def medians(device: Device, calls: dict[str, Call], before: Callable[[], None], repeats: int = REPEATS) -> dict[str, Seconds]:
    """Seconds for each name: the medians over the turns.

    A turn is several calls in a row between two events, on a stream that was idle before, divided by their number: what a loop in a
    program takes, launches included. Every other round goes through the calls backwards. `before` sets what all calls need.
    """
    names = list(calls)

    def turn(name: str, n: int) -> Seconds:
        before()
        if (enter := calls[name].enter) is not None:
            enter()
        return device.seconds(calls[name].run, n)

    numbers = {}
    for name in names:
        turn(name, 2)
        best = min(turn(name, 1).call, turn(name, 2).call)
        numbers[name] = max(1, min(200, math.ceil(TURN / best)))
    times: dict[str, list[Seconds]] = {name: [] for name in names}
    total = 0.0
    gc.collect()
    gc.disable()
    try:
        while len(times[names[0]]) < repeats or (total < SPENT and len(times[names[0]]) < 3 * repeats):
            for name in names if len(times[names[0]]) % 2 == 0 else reversed(names):
                times[name].append(turn(name, numbers[name]))
                total += times[name][-1].call * numbers[name]
    finally:
        gc.enable()
    return {name: Seconds(*map(statistics.median, zip(*found, strict=True))) for name, found in times.items()}


def fastest(device: Device, calls: dict[str, Call], before: Callable[[], None]) -> str:
    """The name of the one that is fastest, by a few turns."""
    if len(calls) == 1:
        return next(iter(calls))
    found = medians(device, calls, before, repeats=3)
    return min(found, key=lambda name: found[name].call)

