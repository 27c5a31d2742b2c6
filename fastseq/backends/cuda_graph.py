"""Loops of launches as CUDA graphs: recorded once, and then a single launch for thousands of kernels and products.

A graph holds the addresses that its launches were given, so whoever records one owns the memory they lie in.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import cupy

from fastseq.backends.cuda_launch import scratch, scratch_bytes

#: Steps in one graph: the driver's time to make one grows faster than its length.
_AT_ONCE = 1024

_lock = threading.Lock()
_scratches: dict[tuple[int, int], Any] = {}


class Loop:
    """A loop that is run again and again over the same memory: launched as it stands the first time, recorded the second."""

    def __init__(self) -> None:
        self._graphs: list[Any] | None = None
        self._scratch: Any = None
        self._runs = 0
        self.failure: str | None = None  # what kept it from being recorded: then it is launched as it stands

    def run(self, step: Callable[[int], None], steps: range) -> None:
        """`step(s)` for each s of `steps`, on the current stream; the stream, `step` and `steps` are the same in every call."""
        self._runs += 1
        if self._runs == 2:
            try:
                self._record(step, steps)
            except (RuntimeError, MemoryError) as error:  # of CuPy, CUDA or cuBLAS
                self.failure = str(error)  # the error itself would hold its caller's arrays
                message = f"cuda: a loop could not be recorded as a graph and is launched kernel by kernel: {error}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        if self._graphs is None:
            launch(step, steps)
            return
        for graph in self._graphs:
            graph.launch(cupy.cuda.get_current_stream())

    @property
    def recorded(self) -> bool:
        """Whether the next run is a launch of graphs."""
        return self._graphs is not None

    def _record(self, step: Callable[[int], None], steps: range) -> None:
        self._scratch = _scratch_of(cupy.cuda.get_current_stream().ptr)
        with scratch(self._scratch):
            self._graphs = [_recorded(step, steps[k : k + _AT_ONCE]) for k in range(0, len(steps), _AT_ONCE)]


def launch(step: Callable[[int], None], steps: range) -> None:
    """The loop as it stands, with the products' kernels and bits of the recorded one: cuBLAS chooses them by its scratch too."""
    with scratch(_scratch_of(cupy.cuda.get_current_stream().ptr)):
        for s in steps:
            step(s)


def _scratch_of(stream: int) -> Any:
    """cuBLAS's memory for the graphs of one stream, which run one after another."""
    place = cupy.cuda.runtime.getDevice(), stream
    with _lock:
        if place not in _scratches:
            _scratches[place] = cupy.empty(scratch_bytes(), cupy.uint8)
        return _scratches[place]


def _recorded(step: Callable[[int], None], steps: range) -> Any:
    stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
    with stream:
        stream.begin_capture()
        try:
            for s in steps:
                step(s)
        except BaseException:
            _give_up(stream)
            raise
        return stream.end_capture()


def _give_up(stream: Any) -> None:
    try:
        stream.end_capture()
    except RuntimeError:
        pass  # the error that is on its way says more
