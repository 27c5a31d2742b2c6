"""Plans between two calls: the next one of the same shape finds its memory and its graphs again."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from typing import Any

import cupy

from fastseq.backends.cuda_launch import precision, properties
from fastseq.backends.cuda_recurrent_plan import Gradients, Plan, Shape

#: Of one shape; a layer that is called several times before its backward pass has several at a time.
_SPARE = 4
#: The share of the device's memory that waits in the pool.
_SHARE = 16

_Home = tuple[int, int, int, str, Shape]
_lock = threading.RLock()  # a plan comes back where the garbage collector runs, be it inside the lock


class _Shelf:
    """The plans of one shape that nobody uses, the last used last; and where backward writes, one plan's after another's."""

    def __init__(self) -> None:
        self.spare: list[Plan] = []
        self.gradients: Gradients | None = None


_shelves: OrderedDict[_Home, _Shelf] = OrderedDict()


class Lease:
    """A plan in use. What is launched for it on its stream is in order with what its next user launches there."""

    def __init__(self, shape: Shape) -> None:
        self.home = home(shape)
        self._abroad = False  # another stream has used the plan: what is launched on ours next may come too early
        with _lock:
            self._shelf = _shelves.setdefault(self.home, _Shelf())
            _shelves.move_to_end(self.home)
            plan = self._shelf.spare.pop() if self._shelf.spare else None
        self.plan = _made(lambda: Plan(shape)) if plan is None else plan

    def gradients(self) -> Gradients:
        """Where backward writes: nobody else's until the next call, if this is the plan's own stream and thread."""
        if home(self.plan.shape) != self.home:
            self._abroad = True
            return _made(lambda: Gradients(self.plan))
        if self._shelf.gradients is None:
            self._shelf.gradients = _made(lambda: Gradients(self.plan))
        return self._shelf.gradients

    def end(self) -> None:
        """Gives the plan back. The caller has launched its last kernel on it."""
        if self._abroad or sys.is_finalizing():
            return
        with _lock:
            if _shelves.get(self.home) is self._shelf and len(self._shelf.spare) < _SPARE:
                self._shelf.spare.append(self.plan)
                _shrink(properties().memory // _SHARE)


class Held:
    """A lease that ends with the last reference to it."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease

    def __del__(self) -> None:
        self.lease.end()


def home(shape: Shape) -> _Home:
    """Where plans of this shape are, for the current device, stream, thread and precision."""
    return cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr, threading.get_ident(), precision(), shape


def _made(make: Any) -> Any:
    try:
        return make()
    except MemoryError:
        clear()
        return make()


def _shrink(most: int) -> None:
    """Drops the plans that waited longest until the rest has no more bytes than this."""
    # Of copies: what is dropped here, or collected meanwhile, may give plans back, which comes here again.
    waiting = sum([plan.bytes for shelf in list(_shelves.values()) for plan in list(shelf.spare)])
    for name in list(_shelves):
        if waiting <= most:
            return
        shelf = _shelves.pop(name, None)
        waiting -= sum([plan.bytes for plan in shelf.spare]) if shelf is not None else 0


def clear() -> None:
    """Gives the memory of all waiting plans back to CuPy's pool."""
    with _lock:
        _shelves.clear()


def waiting() -> int:
    """How many plans nobody uses."""
    with _lock:
        return sum(len(shelf.spare) for shelf in _shelves.values())
