"""Rows of a table chosen by ids."""

from __future__ import annotations

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import backend_of
from fastseq.functional import _check


def embedding(ids: ArrayOrTensor, weight: ArrayOrTensor, *, padding_idx: int | None = None) -> ArrayOrTensor:
    """weight[ids], with a gradient for weight that sums what came to each row, in the order of the ids.

    Parameters
    ----------
    ids : ndarray or Tensor (...), integer
    weight : ndarray or Tensor (V, D), float32 or float64
    padding_idx : int, optional
        This row of weight gets no gradient.

    Returns
    -------
    ndarray or Tensor (..., D)

    Raises
    ------
    IndexError
        If an id is not in [0, V).
    ValueError, TypeError
        If a shape, a dtype or an option is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.embedding(np.array([2, 0]), np.eye(3))
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """
    table = _check.floats("weight", weight)
    _check.shape("weight", table, ("V", "D"))
    rows, width = table.shape
    found = _check.integers("ids", ids)
    ignored = -1 if padding_idx is None else _check.integer("padding_idx", padding_idx, 0, rows)
    backend = backend_of(table, found)
    _check.size("ids", *found.shape, width)
    _check.ids_inside("ids", found, rows, backend, ids)
    y = backend.embedding_forward(found, table)

    def backward(dy: Array) -> tuple[None, Array]:
        # y[n] = weight[ids[n]]
        return None, backend.embedding_backward(dy, found, rows, padding_idx=ignored)

    return result(y, (ids, weight), backward, "embedding")
