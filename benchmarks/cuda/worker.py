"""The process that holds both libraries and times one case after another. Another one watches it: a kernel that never ends ends with it."""

from __future__ import annotations

import functools
import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.cuda.case import Case

START = 240.0  # seconds until a process has imported both libraries and measured the device
LIMIT = 100.0  # seconds for a case, in which its kernels are compiled too

Row = dict[str, Any]


class StartError(RuntimeError):
    """No process that times: a library or the GPU is missing, which its own last words say."""


def serve(connection: Connection, device_name: str, peers_only: bool) -> None:
    """Answer each case with its row until there is none any more."""
    from benchmarks.cuda import device as place

    device = place.Device(device_name)
    if not peers_only:
        import fastseq  # noqa: F401, before the first precision is set
    connection.send({"about": place.describe(device), "rates": (rates := place.measure(device))})
    while (case := connection.recv()) is not None:
        begin = time.perf_counter()
        row: Row = {"case": str(case), "family": case.family, "target": case.target, "precision": case.precision}
        lost = False
        try:
            row["floor"] = case.floor(rates)
            row |= peers(device, case) if peers_only else contest(device, case)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
            row["traceback"] = traceback.format_exc()
        try:
            device.synchronize()
            device.release()
        except Exception:  # the context is broken for good: the next case gets a new process
            lost = True
        connection.send(row | {"seconds": time.perf_counter() - begin, "lost": lost})
        if lost:
            return


def peers(device: Any, case: Case) -> Row:
    """PyTorch alone: every one of its ways."""
    from benchmarks.cuda.device import set_precision
    from benchmarks.cuda.timing import medians

    before = functools.partial(set_precision, case.precision)
    before()
    found = medians(device, case.theirs(device), before)
    way = min(found, key=lambda name: found[name].call)
    return {"theirs": found[way].call, "their_queue": found[way].queued, "way": way, "ways": {name: each.call for name, each in found.items()}}


def contest(device: Any, case: Case) -> Row:
    """Both, once both answers are right."""
    from benchmarks.cuda.case import errors, verify
    from benchmarks.cuda.device import set_precision
    from benchmarks.cuda.timing import fastest, medians

    before = functools.partial(set_precision, case.precision)
    set_precision("highest")
    right = case.truth(device)
    before()
    ways, ours = case.theirs(device), case.ours(device)
    off: dict[str, float] = {}
    for name, call in ways.items():
        if call.enter is not None:
            call.enter()
        for key, error in errors(f"PyTorch, {name}", call.answer(), right).items():
            off[key] = max(error, off.get(key, 0.0))
    mine = errors("fastseq", ours.answer(), right)
    verify(case, mine, off)
    verify(case, errors("fastseq again", ours.answer(), right), off)
    del right
    device.release()
    way = fastest(device, ways, before)
    found = medians(device, {"fastseq": ours, "PyTorch": ways[way]}, before)
    (ours_takes, our_queue), (theirs_takes, their_queue) = found["fastseq"], found["PyTorch"]
    times = {"ours": ours_takes, "theirs": theirs_takes, "our_queue": our_queue, "their_queue": their_queue}
    return times | {"way": way, "chosen": len(ways) > 1, "errors": mine, "their_errors": off}


class Watched:
    """The worker seen from outside: a new one for the cases that are left when one stops or hangs."""

    def __init__(self, device_name: str, peers_only: bool) -> None:
        self.arguments = device_name, peers_only
        self.about: Row | None = None
        self._process: Any = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, *self.arguments), daemon=True)
        self._process.start()
        other.close()
        first = self._answer(START)
        if "error" in first:
            raise StartError(f"the process that times could not start: {first['error']}")
        self.about = self.about or first

    def _answer(self, limit: float) -> Row:
        """What it sends next; where nothing comes it is ended, and the row says why."""
        try:
            if self._connection.poll(limit):
                return self._connection.recv()
            reason = f"no answer within {limit:.0f} s"
        except EOFError:
            self._process.join(5)
            reason = f"the process ended with {self._process.exitcode}"
        self.close()
        return {"error": reason}

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def rows(self, cases: Sequence[Case], seconds: float) -> Iterator[Row]:
        """A row for each case; those for which no time is left say so."""
        end = time.monotonic() + seconds
        for case in cases:
            plain = {"case": str(case), "family": case.family, "target": case.target, "precision": case.precision}
            if time.monotonic() > end:
                yield plain | {"error": "not run: no time left"}
                continue
            if self._process is None:
                self._start()
            self._connection.send(case)
            row = plain | self._answer(LIMIT)
            if row.pop("lost", False):
                self.close()
            yield row
        self.close()
