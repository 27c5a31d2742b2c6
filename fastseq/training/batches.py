"""Mini-batches: of arrays, of ragged sequences grouped by length, of a series' windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastseq.functional import _check
from fastseq.nn import pad_sequences
from fastseq.nn._inputs import checked_size
from fastseq.runtime import next_seed

#: What cross entropy passes over.
IGNORED = -100


class Batch(tuple[Any, ...]):
    """The arrays of a batch, and how many rows it has, by which `fit` weighs its loss."""

    rows: int

    def __new__(cls, arrays: Sequence[Any], rows: int) -> Batch:
        """The arrays as a tuple."""
        self = super().__new__(cls, arrays)
        self.rows = rows
        return self

    def __getnewargs__(self) -> tuple[Sequence[Any], int]:
        """For copies, and for other processes."""
        return tuple(self), self.rows


class Seeded:
    """Passes whose order follows from (`seed`, `epoch`) alone."""

    seed: int
    epoch: int

    def state_dict(self) -> dict[str, int]:
        """What the coming passes follow from."""
        return {"seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on with the pass of which `state_dict` was taken."""
        self.seed, self.epoch = int(state["seed"]), int(state["epoch"])


class _Shuffled(Seeded):
    """Batches of n rows, in an order that follows from (seed, epoch) alone."""

    def __init__(self, n: int, batch_size: int, shuffle: bool, rng: Any) -> None:
        if not n:
            raise ValueError("batches: expected at least one row, got none")
        self.rows, self.batch_size, self.shuffle = n, checked_size("batch_size", batch_size), bool(shuffle)
        self.seed = next_seed(rng) if shuffle else 0
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        for rows in self._order(np.random.default_rng([self.seed, epoch])):
            yield self._batch(rows)
        self.epoch = epoch + 1  # only where the pass was gone through: a look at one batch changes nothing

    def _order(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The rows of each batch of an epoch."""
        rows = rng.permutation(self.rows) if self.shuffle else np.arange(self.rows)
        for begin in range(0, self.rows, self.batch_size):
            yield rows[begin : begin + self.batch_size]

    def _batch(self, rows: np.ndarray) -> Batch:
        raise NotImplementedError


class Batches(_Shuffled):
    """Mini-batches of arrays whose rows belong together, in a new order each epoch.

    Parameters
    ----------
    *arrays : array_like, each of n rows along its first axis
        Inputs, then the target.
    batch_size : int
        The last batch of an epoch has the rows that are left.
    shuffle : bool
        False keeps the order: for validation and tests.
    rng : None, int or numpy.random.Generator
        What the seed of the orders is drawn from.
    axis : int
        Where the rows stand in the batches: 1 makes time-first batches (T, B, ...) of arrays (n, T, ...). An array
        with fewer axes keeps its rows first.

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.training import Batches
    >>> batches = Batches(np.zeros((5, 7, 3)), np.arange(5), batch_size=2, shuffle=False, axis=1)
    >>> [(x.shape, y.tolist()) for x, y in batches]
    [((7, 2, 3), [0, 1]), ((7, 2, 3), [2, 3]), ((7, 1, 3), [4])]
    """

    def __init__(self, *arrays: Any, batch_size: int, shuffle: bool = True, rng: Any = None, axis: int = 0) -> None:
        if not arrays:
            raise ValueError("arrays: expected at least one, got none")
        self.arrays = [_check.plain(f"arrays[{k}]", array) for k, array in enumerate(arrays)]
        for k, array in enumerate(self.arrays):
            if array.ndim == 0 or len(array) != len(self.arrays[0]):
                raise ValueError(f"arrays[{k}]: expected {len(self.arrays[0])} rows, as arrays[0] has, got shape {array.shape}")
        self.axis = _check.integer("axis", axis, 0, max(array.ndim for array in self.arrays))
        super().__init__(len(self.arrays[0]), batch_size, shuffle, rng)

    def _batch(self, rows: np.ndarray) -> Batch:
        taken = [array[rows] for array in self.arrays]
        return Batch([np.ascontiguousarray(np.moveaxis(a, 0, self.axis)) if a.ndim > self.axis > 0 else a for a in taken], len(rows))


class BucketBatches(_Shuffled):
    """Batches of sequences of about equal lengths, padded to the longest of each: little is computed for nothing.

    Each epoch the sequences are shuffled, sorted by length within pools of `pool` batches, and the batches shuffled again.
    A batch is ``(padded (T, B, ...), lengths (B,), *targets)``.

    Parameters
    ----------
    sequences : sequence of n array_like, each (length, ...); or a tuple of several such columns
        Integers (ids) or floats. Each of several columns is padded for itself and followed by its own lengths.
    *targets : sequence of n
        A number for each sequence makes an array (B,). A sequence for each, such as tags, is padded to (T, B, ...): with
        -100, which `cross_entropy` passes over, for integers, with 0 for floats.
    batch_size : int
    shuffle : bool
        False sorts by length, longest last, in one order for all epochs: for validation and tests.
    pool : int
        How many batches are sorted together: more, and less is padded; fewer, and the order is more random.
    padding : int or float
        What stands past the ends of the sequences.
    rng : None, int or numpy.random.Generator
        What the seed of the orders is drawn from.

    Examples
    --------
    >>> from fastseq.training import BucketBatches
    >>> batches = BucketBatches([[1, 2, 3], [4], [5, 6]], [[7, 8, 9], [7], [8, 9]], batch_size=2, shuffle=False)
    >>> for ids, lengths, tags in batches: print(ids.T.tolist(), lengths, tags.T.tolist())
    [[4, 0], [5, 6]] [1 2] [[7, -100], [8, 9]]
    [[1, 2, 3]] [3] [[7, 8, 9]]
    >>> pairs = BucketBatches(([[1, 2], [3]], [[4], [5, 6]]), batch_size=2, shuffle=False)
    >>> [[part.T.tolist() for part in batch] for batch in pairs]
    [[[[3, 0], [1, 2]], [1, 2], [[5, 6], [4, 0]], [2, 1]]]
    """

    def __init__(
        self, sequences: Any, *targets: Any, batch_size: int, shuffle: bool = True, pool: int = 50, padding: float = 0, rng: Any = None
    ) -> None:
        columns = sequences if isinstance(sequences, tuple) else (sequences,)
        self.columns = [_ragged(column) for column in columns]
        for k, row in ((k, row) for column in self.columns for k, row in enumerate(column)):
            if row.ndim == 0 or row.dtype.kind not in "biuf":
                raise TypeError(f"sequences[{k}]: expected an array of numbers (length, ...), got {row.dtype} of shape {row.shape}")
        self.targets = [_target(target) for target in targets]
        n = len(self.columns[0])
        for name, column in [(f"sequences[{k}]", c) for k, c in enumerate(self.columns)] + [(f"targets[{k}]", t) for k, t in enumerate(self.targets)]:
            if len(column) != n:
                raise ValueError(f"{name}: expected {n} rows, as the first sequences have, got {len(column)}")
        super().__init__(n, batch_size, shuffle, rng)
        self.pool, self.padding = checked_size("pool", pool), padding
        lengths = [np.array([len(row) for row in column], np.int64) for column in self.columns]
        # By the first column's length, then by the next one's.
        self._rank = np.empty(n, np.int64)
        self._rank[np.lexsort(lengths[::-1])] = np.arange(n)

    def _order(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        if not self.shuffle:
            order = np.argsort(self._rank)
            return iter([order[i : i + self.batch_size] for i in range(0, self.rows, self.batch_size)])
        rows, size = rng.permutation(self.rows), self.batch_size * self.pool
        pools = [rows[i : i + size] for i in range(0, self.rows, size)]
        order = np.concatenate([part[np.argsort(self._rank[part])] for part in pools])
        batches = [order[i : i + self.batch_size] for i in range(0, self.rows, self.batch_size)]
        return iter([batches[i] for i in rng.permutation(len(batches))])

    def _batch(self, rows: np.ndarray) -> Batch:
        parts: list[np.ndarray] = []
        for column in self.columns:
            parts += pad_sequences([column[i] for i in rows], padding_value=self.padding)
        for target in self.targets:
            if isinstance(target, np.ndarray):
                parts.append(target[rows])
            else:
                padding = IGNORED if target[0].dtype.kind in "iu" else 0
                parts.append(pad_sequences([target[i] for i in rows], padding_value=padding)[0])
        return Batch(parts, len(rows))


def _ragged(column: Any) -> list[np.ndarray]:
    """A column's sequences as arrays; the empty ones, of which `[]` says no dtype, are like the others."""
    rows = [np.asarray(row) for row in column]
    like = next((row for row in rows if row.size), None)
    return rows if like is None else [row if row.size else np.zeros((0, *like.shape[1:]), like.dtype) for row in rows]


def _target(target: Any) -> np.ndarray | list[np.ndarray]:
    """An array of a number for each sequence, or a list of a sequence for each."""
    if isinstance(target, np.ndarray) and target.dtype != object:
        return target
    rows = _ragged(target)
    return np.asarray(rows) if rows and rows[0].ndim == 0 else rows


def windows(
    series: Any, length: int, horizon: int, *, target: int | Sequence[int] | None = None, stride: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Every stretch of a series with what comes after it: x never holds a value from the time that y is of, or later.

    Split a series in time first and take each part's windows: windows from before and after a cut would overlap.

    Parameters
    ----------
    series : array_like (N, I), or (N,) for I = 1
        Values in the order of time.
    length : int
        T, how many values to look back on.
    horizon : int
        How many values ahead to predict.
    target : int or sequence of int, optional
        Which columns to predict. One gives y its two axes; several give y (horizon, W, columns). The only column where
        the series has one.
    stride : int
        From the beginning of a window to that of the next.

    Returns
    -------
    x : ndarray (T, W, I)
    y : ndarray (horizon, W)
        y[k, w] comes k + 1 steps after x[-1, w].

    Raises
    ------
    ValueError, TypeError
        If the series is too short for one window, has no column `target`, or has several and `target` is left out.

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.training import windows
    >>> x, y = windows(np.arange(6.0), length=3, horizon=2)
    >>> x[:, :, 0].T.tolist(), y.T.tolist()
    ([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[3.0, 4.0], [4.0, 5.0]])
    """
    values = np.asarray(series)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"series: expected numbers, got {values.dtype}")
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(f"series: expected shape (N, I) or (N,), got {values.shape}")
    for name, value in (("length", length), ("horizon", horizon), ("stride", stride)):
        checked_size(name, value)
    columns = values.shape[1]
    if target is None and columns != 1:
        raise ValueError(f"target: expected a column to predict, for the series has {columns}, got None")
    target = 0 if target is None else target
    for column in np.ravel(target).tolist():
        _check.integer("target", column, -columns, columns)
    begins = np.arange(0, len(values) - length - horizon + 1, stride)
    if not len(begins):
        raise ValueError(f"series: expected at least length + horizon = {length + horizon} values, got {len(values)}")
    x = values[begins + np.arange(length)[:, None]]
    y = values[begins + length + np.arange(horizon)[:, None]]
    return x, np.ascontiguousarray(y[..., target])
