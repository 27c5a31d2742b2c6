"""Where a number that is not finite came from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastseq.autograd import Tensor
from fastseq.backends import is_gpu, namespace, to_cpu
from fastseq.models.carried_state import CarriedState
from fastseq.nn import Module
from fastseq.training.evaluation import batch_loss, without_a_trace


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer a finite number; the message says where that began.

    Attributes
    ----------
    epoch, batch, step : int
        From 1: the epoch, the batch in it, and the step that was not made.
    where : str
        What was the first that was not finite.
    """

    def __init__(self, message: str, epoch: int = 0, batch: int = 0, step: int = 0, where: str = "") -> None:
        super().__init__(message)
        self.epoch, self.batch, self.step, self.where = epoch, batch, step, where


def not_finite(model: Module) -> set[str]:
    """The names of the parameters and buffers that are not."""
    return {name for _, name, array in _named(model) if _bad(array)}


def origin_of_loss(
    model: Module, batch: Any = (), loss: Any = None, state: CarriedState | None = None, *, constants: Collection[str] = ()
) -> str:
    """What was not finite first, where the loss is not: a parameter, the batch, or a module's output when it is computed again.

    `constants` are the names of buffers that are not finite by design.
    """
    for kind, name, array in _named(model):
        if _bad(array) and name not in constants:
            return f"the {kind} {name} holds {_first(array)}"
    for k, array in enumerate(batch):
        if _bad(array):
            return f"array {k} of the batch holds {_first(array)}"
        if getattr(array, "size", 1) == 0:
            return f"array {k} of the batch is empty"
    found: list[str] = []
    with _watched(model, found), without_a_trace(model, state), np.errstate(all="ignore"):
        batch_loss(model, batch, loss, state)
    return found[0] if found else "no module's output: the loss itself overflows, or it was a matter of dropout or of the carried state"


def origin_of_gradient(model: Module) -> str:
    """Which parameter's gradient is not finite; of several the last one of the model, for gradients come from the end."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and _bad(getattr(p.grad, "values", p.grad))]
    if not bad:
        return "the norm of the gradient overflows"
    return f"the gradient of {bad[-1]} is not finite" + (f", nor are those of {len(bad) - 1} parameters before it" if bad[1:] else "")


@contextmanager
def _watched(model: Module, found: list[str]) -> Iterator[None]:
    """Each module's output is looked at as it comes: those of the parts before that of the whole."""
    watched = [module for _, module in model.named_modules()]
    for name, module in model.named_modules():
        module.__dict__["forward"] = _watching(name, module, module.forward, found)
    try:
        yield
    finally:
        for module in watched:
            del module.__dict__["forward"]


def _watching(name: str, module: Module, forward: Callable[..., Any], found: list[str]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        for array in _leaves(output):
            if _bad(array):
                found.append(f"the output of {name or 'the model'} ({type(module).__name__}) holds {_first(array)}, and nothing before it")
                break
        return output

    return watched


def _leaves(value: Any) -> Iterator[np.ndarray]:
    """The arrays in a module's output."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, Tensor):
        yield value.data
    elif isinstance(value, np.ndarray) or is_gpu(value):
        yield value


def _named(model: Module) -> Iterator[tuple[str, str, np.ndarray]]:
    """("parameter" or "buffer", name, array) of each."""
    for name, parameter in model.named_parameters():
        yield "parameter", name, parameter.data
    for name, array in model.named_buffers():
        yield "buffer", name, array


def _bad(array: Any) -> bool:
    array = array.data if isinstance(array, Tensor) else array
    if not (isinstance(array, np.ndarray) or is_gpu(array)) or array.dtype.kind != "f":
        return False
    return not bool(namespace(array).isfinite(array).all())


def _first(array: Any) -> str:
    array = to_cpu(array.data if isinstance(array, Tensor) else array)
    at = np.unravel_index(np.flatnonzero(~np.isfinite(array))[0], array.shape)
    return f"{array[at]} at [{', '.join(map(str, at))}]"
