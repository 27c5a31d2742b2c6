"""How the attention decoder's steps are cut into tasks of blocks, and what a block keeps in shared memory for all steps.

A step is bound by what each block reads of the second-level cache between two barriers: states, contexts and gradients of its rows, which
others have just written, and weights, keys and memory, unless it keeps them. Every cut that fits is given its time by what it reads, what it
multiplies and its barriers, and the fastest is taken.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from fastseq.backends.cuda_launch import properties

THREADS, _WARPS, _SCRATCH = 256, 8, 1024  # as the kernels have them
_SCORES_BYTES = 32 * 1024  # the most that a row's scores take of shared memory; longer ones are kept where the weights will be
_MOST_PARTS = 8
# Of one multiprocessor: bytes a microsecond while all of them read the same states, and microseconds of a barrier, measured on an H200 and an
# H100; multiply-adds and units of additive scores a microsecond, assumed: half of what there could be.
_READS, _PRODUCTS, _SCORES, _BARRIER = 25e3, 110e3, 40e3, 1.1


class Sizes(NamedTuple):
    """Of a call."""

    T: int
    B: int
    S: int
    I: int
    H: int
    M: int
    A: int


class Problem(NamedTuple):
    """What a cut depends on."""

    direction: str  # "forward" or "backward"
    gates: int
    sizes: Sizes
    item: int  # bytes of an element
    projects: bool  # there is W_q
    additive: bool


class Cut(NamedTuple):
    """What is chosen."""

    rows: int  # of the batch, for a lane: a task has 8 of each
    units: int  # for a lane: a task has 4 of each
    parts: int  # blocks of a row in attention
    keeps: bool  # their keys and memory
    holds: bool  # the weights


class Layout(NamedTuple):
    """A cut's launch: shared memory in reals, as the kernels take it."""

    possible: bool  # there are as many multiprocessors as tasks that keep something
    tasks: int  # of the phase that has most
    scores_in_shared: int
    stage: int  # of a warp
    keep_at: int  # 0: nothing is kept
    hold_first: int  # -1: nothing is held; the product with W_q
    hold_second: int  # the cell's
    reals: int
    time: float  # of a step, in microseconds


class _Product(NamedTuple):
    """One product of a step."""

    columns: int  # of a lane
    terms: tuple[int, ...]  # of its sums, by segment
    groups: int  # of columns: tasks for some rows


def _quads(n: int) -> int:
    return -(-n // 4) * 4


def _products(problem: Problem, units: int) -> list[_Product | None]:
    """The products with W_q, None without, and that of the cell."""
    (_, _, _, _, H, M, A), gates = problem.sizes, problem.gates
    if problem.direction == "forward":
        first, second = _Product(units, (H,), -(-A // (4 * units))), _Product(gates * units, (M, H), -(-H // (4 * units)))
    else:
        first = _Product(units, (A,), -(-H // (4 * units)))
        second = _Product(2 * units, (2 * H, (gates - 2) * H), -(-M // (8 * units)) - (-H // (8 * units)))
    return [first if problem.projects else None, second]


def layout(problem: Problem, cut: Cut) -> Layout:
    """Where a cut has what in shared memory, and how long a step takes."""
    (_, B, S, _, _, M, A), item = problem.sizes, problem.item
    chunk, rows, both = 128 // item, 8 * cut.rows, _products(problem, cut.units)
    products = [p for p in both if p is not None]
    tasks = [p.groups * -(-B // rows) for p in products]
    scores_in_shared = S * item <= _SCORES_BYTES
    most, multiprocessors = max(p.columns for p in products), properties().multiprocessors
    alone = max(tasks[0] * cut.holds, tasks[-1] * cut.holds, cut.parts * B * cut.keeps)  # tasks with a multiprocessor of their own
    possible = alone <= multiprocessors and (cut.parts == 1 or scores_in_shared)
    stage = (rows + 4 * most * (not cut.holds)) * (chunk + 4)
    of_row = _quads(max(A, M)) + _SCRATCH + 4 + S * scores_in_shared
    at = _quads(max(_WARPS * stage, _WARPS * rows * 4 * most, of_row))
    of_keys, summed = (A, M) if problem.direction == "forward" else (M, A)
    share = -(-S // cut.parts) * _quads(of_keys)
    if cut.parts > 1 or problem.additive:
        share += S * _quads(-(-summed // cut.parts))
    keep_at = at if cut.keeps else 0
    at += share * cut.keeps
    holds = []
    for p in both:
        holds.append(at if cut.holds and p is not None else -1)
        at += 4 * p.columns * (sum(-(-k // chunk) * chunk for k in p.terms) + 4) if cut.holds and p is not None else 0
    time = 0.0
    for p, n in zip(products, tasks, strict=True):
        turns, terms = -(-n // multiprocessors), sum(p.terms)
        reads = terms * (rows + 4 * p.columns * (not cut.holds)) * item
        time += turns * (reads / _READS + terms * rows * 4 * p.columns / _PRODUCTS) + _BARRIER
    turns = -(-B * cut.parts // multiprocessors)
    time += turns * (share * item * (not cut.keeps) / _READS + share / _SCORES) + _BARRIER * min(cut.parts, 2)
    return Layout(possible, max(*tasks, B * cut.parts), int(scores_in_shared), stage, keep_at, holds[0], holds[1], at, time)


def cuts(problem: Problem) -> Iterator[Cut]:
    """All that there are for so many rows; float64 has no room for two units."""
    B = problem.sizes.B
    tasks = [(1, 1), (1, 2)] if B <= 8 else [(2, 1), (2, 2)] if B <= 16 else [(2, 1), (2, 2), (4, 1), (4, 2)]
    most = max(1, min(properties().multiprocessors // max(B, 1), _MOST_PARTS))
    for (rows, units), parts, keeps, holds in itertools.product(tasks, range(1, most + 1), (True, False), (True, False)):
        if problem.item == 4 or units == 1:
            yield Cut(rows, units, parts, keeps, holds)


@functools.lru_cache(256)
def fastest(device: int, problem: Problem) -> tuple[Cut, Layout]:
    """The cut whose time is the least among those that fit the shared memory of a block."""
    room, found = properties().shared_per_block // problem.item, None
    for cut in cuts(problem):
        there = layout(problem, cut)
        if there.possible and there.reals <= room and (found is None or there.time < found[1].time):
            found = cut, there
    if found is None:
        room = properties().shared_per_block
        raise ValueError(f"attention_decoder: a row of {problem.sizes} does not fit the {room} bytes of shared memory of a block")
    return found
