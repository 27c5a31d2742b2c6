"""The loss of a batch, and its mean over batches that the model does not learn from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from fastseq.autograd import Tensor, no_grad
from fastseq.backends import is_gpu, placed
from fastseq.models.carried_state import CarriedState
from fastseq.nn import Module
from fastseq.training.random_state import random_state, restore_random_state


def evaluate(model: Any, batches: Iterable[Any], *, loss: Callable[..., Any] | None = None, state: CarriedState | None = None) -> float:
    """The mean loss over batches, in evaluation mode and without gradients.

    The model's modes, the random numbers and a carried state are afterwards what they were before.

    Parameters
    ----------
    model : nn.Module
    batches : iterable of tuples of arrays, (*inputs, target)
    loss, state : as in `fit`
        The state starts anew.

    Returns
    -------
    float
        Each batch counts with its rows where it says how many it has, as those of `Batches` and `BucketBatches` do;
        otherwise all batches count the same.

    Raises
    ------
    ValueError
        If there are no batches.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> model, x = fs.nn.Linear(2, 3, rng=0), np.ones((5, 2), np.float32)
    >>> batches = fs.training.Batches(x, np.zeros(5, int), batch_size=2, shuffle=False)
    >>> fs.training.evaluate(model, batches, loss=fs.functional.cross_entropy) > 0
    True
    """
    total = rows = 0.0
    with without_a_trace(model, state):
        for batch in batches:
            weight = rows_of(batch)
            total += weight * float(batch_loss(model, batch, loss, state).item())
            rows += weight
    if not rows:
        raise ValueError("batches: expected at least one, got none")
    return total / rows


@contextlib.contextmanager
def without_a_trace(model: Module, state: CarriedState | None = None) -> Iterator[None]:
    """Evaluation mode, no gradients, and in the end the modes, random numbers and carried state of the beginning."""
    before = random_state(model)
    state = CarriedState() if state is None else state
    value = state.value
    state.reset()
    try:
        with model.evaluating(), no_grad():
            yield
    finally:
        restore_random_state(before, model)
        state.value = value


def batch_loss(model: Any, batch: Any, loss: Callable[..., Any] | None, state: CarriedState | None) -> Tensor:
    """The loss of one batch, as `fit` computes it; its arrays go where the model is."""
    if not isinstance(batch, (tuple, list)):
        raise TypeError(f"batches: expected tuples of arrays, got {type(batch).__name__}")
    home = next((parameter.data for parameter in model.parameters()), None)
    if is_gpu(home):
        batch = [placed(a, home) if isinstance(a, np.ndarray) and a.dtype.kind in "biuf" else a for a in batch]
    if loss is None:
        value = model.loss(*batch) if state is None else model.loss(*batch, state)
    else:
        if len(batch) < 2:
            raise ValueError(f"batches: expected tuples (*inputs, target), got one of {len(batch)}")
        *inputs, target = batch
        value = loss(model(Tensor(inputs[0]), *inputs[1:]), target)
    if not isinstance(value, Tensor) or value.size != 1:
        came = f"one of shape {value.shape}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss: expected a Tensor of one element, got {came}")
    return value


def rows_of(batch: Any) -> float:
    """What a batch's loss counts in a mean."""
    return float(getattr(batch, "rows", 1))
