"""The memory of a decoder, made ready for any number of calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import is_gpu, namespace, placed
from fastseq.functional import _check
from fastseq.functional.matmul import linear
from fastseq.functional.recurrent import checked_lengths


class DecoderMemory:
    """A memory made ready for a decoder: what does not change from step to step is computed once.

    Parameters
    ----------
    values : ndarray or Tensor (B, S, M)
        The memory with the batch first, zeros past each row's end.
    keys : ndarray or Tensor (B, S, A) or None
        W_k m + b_k, with additive attention.
    lengths : (B,) integers from 0 to S, or None

    Raises
    ------
    ValueError, TypeError
        If they do not fit each other.
    """

    __slots__ = ("keys", "lengths", "placed_lengths", "values")

    def __init__(self, values: ArrayOrTensor, keys: ArrayOrTensor | None, lengths: Any) -> None:
        data = _check.floats("values", values)
        _check.shape("values", data, ("B", "S", "M"))
        if keys is not None:
            _check.shape("keys", _check.like("keys", keys, data, "values"), (*data.shape[:2], "A"))
        self.values = values
        self.keys = keys
        found = checked_memory_lengths("lengths", lengths, data.shape[1], len(data))
        self.lengths = None if found is None else found.copy()  # C trusts them
        self.placed_lengths = None if found is None else placed(self.lengths, data)  # where the backend wants them

    @property
    def shape(self) -> tuple[int, ...]:
        """(S, B, M), as the memory that it was made from."""
        B, S, M = self.values.shape
        return S, B, M

    def reorder(self, indices: Any) -> DecoderMemory:
        """The memory whose row i is row indices[i] of this one: for beam search, where hypotheses change their places.

        Parameters
        ----------
        indices : (N,) integers from 0 to B - 1

        Returns
        -------
        DecoderMemory of batch N

        Raises
        ------
        TypeError, IndexError
            For anything but such integers.
        """
        found = _check.integers("indices", _check.plain("indices", indices))
        if found.ndim != 1:
            raise ValueError(f"indices: expected shape (N,), got {found.shape}")
        B = self.values.shape[0]
        if found.size and not (found.min() >= 0 and found.max() < B):
            wrong = found[(found < 0) | (found >= B)][0]
            raise IndexError(f"indices: expected integers from 0 to {B - 1}, got {wrong}")
        rows = placed(found, _check.data(self.values))
        keys = None if self.keys is None else self.keys[rows]
        return DecoderMemory(self.values[rows], keys, None if self.lengths is None else self.lengths[found])

    def __repr__(self) -> str:
        return f"DecoderMemory(shape={self.shape})"


def decoder_memory(
    memory: ArrayOrTensor, w_key: ArrayOrTensor | None = None, b_key: ArrayOrTensor | None = None, *, lengths: Any = None
) -> DecoderMemory:
    """Make a memory ready for `attention_decoder`, once for any number of calls.

    Parameters
    ----------
    memory : ndarray or Tensor (S, B, M), float32 or float64
    w_key, b_key : ndarray or Tensor (A, M) and (A,), optional
        With additive attention.
    lengths : (B,) integers from 0 to S, optional
        What lies beyond is not read.

    Returns
    -------
    DecoderMemory

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> ready = fs.functional.decoder_memory(np.ones((5, 2, 3)), np.ones((4, 3)), np.zeros(4))
    >>> ready.keys.shape, ready.reorder([1, 1, 0])
    ((2, 5, 4), DecoderMemory(shape=(5, 3, 3)))
    """
    return made_ready(memory, w_key, b_key, lengths, "lengths")


def made_ready(memory: ArrayOrTensor, w_key: ArrayOrTensor | None, b_key: ArrayOrTensor | None, lengths: Any, name: str) -> DecoderMemory:
    """`decoder_memory` for a caller whose lengths have this name."""
    data = _check.floats("memory", memory)
    _check.shape("memory", data, ("S", "B", "M"))
    found = checked_memory_lengths(name, lengths, *data.shape[:2])

    def backward(dvalues: Array) -> tuple[Array]:
        # values = memory with the batch first, zeros past the ends
        return (_cleared(dvalues, found).swapaxes(0, 1),)

    ready = result(_cleared(namespace(data).ascontiguousarray(data.swapaxes(0, 1)), found), (memory,), backward, "decoder_memory")
    keys = None if w_key is None else linear(ready, w_key, b_key)
    return DecoderMemory(ready, keys, found)


def checked_memory_lengths(name: str, lengths: Any, steps: int, batch: int) -> Array | None:
    """How much of the memory each row has, checked."""
    return checked_lengths(lengths, steps, batch, name=name, limit="the memory's length")


def _cleared(values: Array, lengths: Array | None) -> Array:
    """Values (B, S, M) with zeros past the rows' ends."""
    if lengths is None:
        return values
    values = values.copy()
    if is_gpu(values):  # one pass, where a loop would launch a kernel for each row
        values[placed(np.arange(values.shape[1]) >= lengths[:, None], values)] = 0
        return values
    for b, length in enumerate(lengths):
        values[b, length:] = 0
    return values
