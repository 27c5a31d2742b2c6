"""Rows of a table chosen by ids."""

from __future__ import annotations

from fastseq.autograd import Array, ArrayOrTensor, Tensor, result
from fastseq.backends import backend_of, namespace
from fastseq.functional import _check
from fastseq.sparse import RowGradient


def embedding(
    ids: ArrayOrTensor, weight: ArrayOrTensor, *, padding_idx: int | None = None, sparse: bool = False
) -> ArrayOrTensor:
    """weight[ids], with a gradient for weight that sums what came to each row, in the order of the ids.

    Parameters
    ----------
    ids : ndarray or Tensor (...), integer
    weight : ndarray or Tensor (V, D), float32 or float64
    padding_idx : int, optional
        This row of weight gets no gradient.
    sparse : bool
        The gradient is a `fastseq.RowGradient` of the rows that ids name, not an array of the size of weight, which must be a
        Parameter or another Tensor that was not computed.

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
    found = _check.integers("ids", ids, table, "weight")
    ignored = -1 if padding_idx is None else _check.integer("padding_idx", padding_idx, 0, rows)
    backend = backend_of(table, found)
    _check.size("ids", *found.shape, width)
    _check.ids_inside("ids", found, rows, backend, ids)
    if _check.boolean("sparse", sparse) and isinstance(weight, Tensor) and weight._node is not None:
        raise ValueError("weight: expected a Parameter with sparse=True, whose gradient no other operation takes, got a computed Tensor")
    y = backend.embedding_forward(found, table)

    def backward(dy: Array) -> tuple[None, Array]:
        # y[n] = weight[ids[n]]
        if sparse:
            return None, _touched_rows(dy.reshape(found.size, width), found.reshape(-1), ignored, table.shape)
        return None, backend.embedding_backward(dy, found, rows, padding_idx=ignored)

    return result(y, (ids, weight), backward, "embedding")


def _touched_rows(dy: Array, ids: Array, ignored: int, shape: tuple[int, int]) -> RowGradient:
    """dy (n, D) at ids (n,) as the gradient of a table of this shape, without the ignored row."""
    if ignored >= 0:
        kept = namespace(ids).flatnonzero(ids != ignored)
        dy, ids = dy[kept], ids[kept]
    return RowGradient.summed(ids, dy, shape)
