"""The state that goes on from one batch to the next, where the batches are pieces of one long sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastseq.autograd import Tensor
from fastseq.backends import placed, to_cpu


class CarriedState:
    """A recurrent state that is carried from batch to batch while the gradient is not: truncated backpropagation through time.

    ``model.loss(*batch, state)`` starts from `value` and leaves there what the next batch goes on from (Williams & Peng 1990).
    `fastseq.training.fit` takes one as ``state=``.

    Attributes
    ----------
    value : Tensor, array, tuple of these, or None
        None is the beginning of a sequence. What is assigned is cut off from what was recorded.

    Examples
    --------
    >>> import fastseq as fs
    >>> model, state = fs.models.LanguageModel("ab", 4, 8), fs.training.CarriedState()
    >>> loss = model.loss([[0], [1]], [[1], [0]], state)
    >>> [part.shape for part in state.value]
    [(1, 1, 8), (1, 1, 8)]
    """

    def __init__(self) -> None:
        self._value: Any = None

    @property
    def value(self) -> Any:
        """What comes before the next batch."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        self._value = _each(value, lambda part: part.detach() if isinstance(part, Tensor) else part)

    def reset(self) -> None:
        """Forget: what comes next does not follow what came last."""
        self._value = None

    def state_dict(self) -> dict[str, Any]:
        """The arrays of `value`, NumPy's wherever they are."""
        return {"value": _each(self._value, lambda part: to_cpu(part.data if isinstance(part, Tensor) else part))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._value = _each(state["value"], Tensor)


    def placed(self, other: Any) -> Any:
        """`value` where the array `other` is: a checkpoint's parts are NumPy's, and a model may have moved since the last batch."""
        return _each(self._value, lambda part: Tensor(placed(part.data, other)) if isinstance(part, Tensor) else placed(part, other))


def _each(value: Any, change: Any) -> Any:
    """`change` of every part of a state."""
    if isinstance(value, (tuple, list)):
        return tuple(_each(part, change) for part in value)
    return None if value is None else change(value)
