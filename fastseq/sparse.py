"""Row-sparse gradients: of a large table, the rows that a batch touched and nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastseq.backends import backend_of, is_gpu, namespace, placed


class RowGradient:
    """The gradient of a table (V, D) that is zero outside some of its rows.

    What `Embedding(sparse=True)` leaves in ``weight.grad``. Adding two gives a third, adding an array gives an array, and NumPy
    takes it for the whole array where it needs one. SGD, Adagrad and SparseAdam change only its rows; clipping scales only them.

    Parameters
    ----------
    rows : ndarray (n,) of int64
        Ascending, each once; NumPy's, or CuPy's as `values` are.
    values : ndarray (n, D), float32 or float64
        The gradients of these rows.
    shape : (V, D)
        Of the table.

    Raises
    ------
    ValueError, TypeError
        If rows are not ascending or not in [0, V), or sizes or dtypes do not agree.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> table = fs.nn.Embedding(1000, 2, sparse=True)
    >>> table(fs.Tensor(np.array([7, 3, 7]))).sum().backward()
    >>> table.weight.grad
    RowGradient(2 rows of (1000, 2), float32)
    >>> table.weight.grad.rows.tolist(), table.weight.grad.values.tolist()
    ([3, 7], [[1.0, 1.0], [2.0, 2.0]])
    >>> np.asarray(table.weight.grad).sum()
    np.float32(6.0)
    """

    __slots__ = ("rows", "shape", "values")

    base = None  # no view: the tape need not copy it
    ndim = 2

    def __init__(self, rows: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> None:
        rows = rows if is_gpu(rows) else np.asarray(rows)
        if is_gpu(rows) is not is_gpu(values):
            raise TypeError("rows, values: expected arrays of one kind, got a NumPy and a CuPy array")
        if rows.dtype != np.int64 or rows.ndim != 1:
            raise TypeError(f"rows: expected int64 of shape (n,), got {rows.dtype} of shape {rows.shape}")
        if values.dtype not in (np.float32, np.float64):
            raise TypeError(f"values: expected float32 or float64, got {values.dtype}")
        if values.shape != (len(rows), shape[1]):
            raise ValueError(f"values: expected shape {(len(rows), shape[1])}, got {values.shape}")
        if len(rows) and (rows[0] < 0 or rows[-1] >= shape[0] or not (rows[1:] > rows[:-1]).all()):
            raise ValueError(f"rows: expected ascending ids in [0, {shape[0]}), each once")
        self._take(rows, values, shape)

    def _take(self, rows: Any, values: Any, shape: tuple[int, int]) -> None:
        """Hold arrays that are known to fit."""
        self.rows = rows.view()
        if not is_gpu(rows):
            self.rows.flags.writeable = False  # an optimiser trusts them
        self.values = values
        self.shape = (int(shape[0]), int(shape[1]))

    @classmethod
    def summed(cls, ids: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> RowGradient:
        """The gradient of a table of this shape from values (n, D) at ids (n,) in [0, V): those of one id add up, first to last."""
        own = namespace(values)
        touched = own.zeros(shape[0], bool)
        touched[ids] = True
        rows = own.flatnonzero(touched)
        place = own.empty(shape[0], np.int64)  # the rows that are not touched are never looked at
        place[rows] = own.arange(len(rows))
        made = object.__new__(cls)
        made._take(rows, backend_of(values).embedding_backward(values, place[ids], len(rows), padding_idx=-1), shape)
        return made

    dtype = property(lambda self: self.values.dtype, doc="Type of the elements.")
    size = property(lambda self: math.prod(self.shape), doc="Number of elements, zeros among them.")

    def to_dense(self) -> np.ndarray:
        """The whole array (V, D)."""
        dense = namespace(self.values).zeros(self.shape, self.dtype)
        dense[self.rows] = self.values
        return dense

    def copy(self) -> RowGradient:
        """The same gradient in arrays of its own."""
        made = object.__new__(type(self))
        made._take(self.rows, self.values.copy(), self.shape)
        return made

    def placed(self, other: Any) -> RowGradient:
        """The same gradient where the array `other` is: itself, or a copy."""
        if is_gpu(self.values) is is_gpu(other):
            return self
        made = object.__new__(type(self))
        made._take(placed(self.rows, other), placed(self.values, other), self.shape)
        return made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if is_gpu(self.values):
            raise TypeError("a gradient on a GPU was used where NumPy wants an array; .to_dense().get() copies it to this computer's memory")
        if copy is False:
            raise ValueError("copy: expected None or True, because a RowGradient becomes an array by copying, got False")
        return self.to_dense().astype(self.dtype if dtype is None else dtype, copy=False)

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, RowGradient):
            return self.to_dense() + other
        if other.shape != self.shape or other.dtype != self.dtype:
            raise ValueError(f"gradient: expected {self.dtype} of shape {self.shape}, got {other.dtype} of shape {other.shape}")
        own = namespace(self.values)
        return RowGradient.summed(own.concatenate([self.rows, other.rows]), own.concatenate([self.values, other.values]), self.shape)

    def __imul__(self, factor: float) -> RowGradient:
        self.values *= factor
        return self

    def __itruediv__(self, divisor: float) -> RowGradient:
        self.values /= divisor
        return self

    def __repr__(self) -> str:
        return f"RowGradient({len(self.rows)} rows of {self.shape}, {self.dtype})"
