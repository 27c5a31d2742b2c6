"""Helpers for sequences of unequal lengths and for attention: masks in the modules' polarity, True = blocked, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastseq.autograd import is_recording
from fastseq.functional import _check
from fastseq.nn._inputs import checked_flag, plain_array

_NUMBERS: Any = (bool, int, float, complex, np.number, np.bool_)


def padding_mask(lengths: Any, T: int | None = None) -> np.ndarray:
    """The `key_padding_mask` of sequences of these lengths: True, blocked, past each row's end.

    This is the polarity of `MultiheadAttention` and the transformer's layers, and PyTorch's.
    `functional.scaled_dot_product_attention` takes `key_lengths` themselves.

    Warnings
    --------
    `functional` and the scores `AdditiveAttention`, `DotAttention` and `BilinearAttention` take True = may attend: invert the
    mask for them with ~.

    Parameters
    ----------
    lengths : integers (B,)
        Zero is allowed.
    T : int, optional
        How long the padded sequences are; the largest length if left out.

    Returns
    -------
    ndarray (B, T) of bool

    Raises
    ------
    ValueError, TypeError
        If `lengths` is not one axis of integers from 0 to T.

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.nn.padding_mask([2, 0, 3])
    array([[False, False,  True],
           [ True,  True,  True],
           [False, False, False]])
    """
    values = _check.plain("lengths", lengths)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"lengths: expected shape (B,), got {values.shape}")
    longest = int(values.max(initial=0))
    T = longest if T is None else _check.integer("T", T, 0, 2**62)
    if longest > T or values.min(initial=0) < 0:
        raise ValueError(f"lengths: expected lengths from 0 to {T}, got {longest if longest > T else int(values.min())}")
    return np.arange(T) >= values[:, None]


def causal_mask(T: int) -> np.ndarray:
    """The `attn_mask` that hides the future: True, blocked, where the key stands after the query.

    This is the polarity of `MultiheadAttention` and the transformer's layers, and PyTorch's; `is_causal=True` says the same
    without an array.

    Warnings
    --------
    `functional` and the scores `AdditiveAttention`, `DotAttention` and `BilinearAttention` take True = may attend: invert the
    mask for them with ~.

    Parameters
    ----------
    T : int

    Returns
    -------
    ndarray (T, T) of bool

    Raises
    ------
    ValueError, TypeError
        If T is no integer of at least 0.

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.nn.causal_mask(3)
    array([[False,  True,  True],
           [False, False,  True],
           [False, False, False]])
    """
    return ~np.tri(_check.integer("T", T, 0, 2**31), dtype=bool)


def pad_sequences(
    sequences: Sequence[Any], *, batch_first: bool = False, padding_value: float = 0, T: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of unequal lengths side by side in one array, and their lengths.

    Parameters
    ----------
    sequences : sequence of array_like, each (length, ...)
        Numbers of one dtype and equal shapes past the first axis; a list of lists of ids too. Empty ones fit any.
    batch_first : bool
        Which axis is the batch.
    padding_value : number
        What stands past a row's end; the dtype has to hold it.
    T : int, optional
        How long the result is; as long as the longest sequence if left out.

    Returns
    -------
    batch : ndarray (T, B, ...), or (B, T, ...) with `batch_first`
    lengths : ndarray (B,) of int64

    Raises
    ------
    ValueError, TypeError
        If there is no sequence, one is longer than T or wants a gradient, which is not recorded here, or their dtypes or their
        shapes past the first axis differ; if their dtype cannot hold `padding_value`.

    Examples
    --------
    >>> import fastseq as fs
    >>> batch, lengths = fs.nn.pad_sequences([[5, 6], [7], []], batch_first=True)
    >>> batch, lengths
    (array([[5, 6],
           [7, 0],
           [0, 0]]), array([2, 1, 0]))
    """
    batch_first = checked_flag("batch_first", batch_first)
    arrays = [_sequence(f"sequences[{k}]", s) for k, s in enumerate(sequences)]
    if not arrays:
        raise ValueError("sequences: expected at least one, got none")
    filled = [a for a in arrays if a.size] or arrays
    for k, a in enumerate(arrays):
        if a.ndim == 0 or (a.size and (a.shape[1:] != filled[0].shape[1:])):
            raise ValueError(f"sequences[{k}]: expected shape {('length', *filled[0].shape[1:])}, got {a.shape}")
        if a.size and a.dtype != filled[0].dtype:
            raise TypeError(f"sequences[{k}]: expected {filled[0].dtype}, as those before it, got {a.dtype}")
    lengths = np.array([len(a) for a in arrays], np.int64)
    longest = int(lengths.max())
    T = longest if T is None else _check.integer("T", T, 0, 2**62)
    if longest > T:
        raise ValueError(f"sequences[{int(lengths.argmax())}]: expected at most T = {T} elements, got {longest}")
    padding = _padding(padding_value, filled[0].dtype)
    batch = np.full((len(arrays), T, *filled[0].shape[1:]), padding)
    for row, a in zip(batch, arrays, strict=True):
        row[: len(a)] = a
    return (batch if batch_first else np.ascontiguousarray(batch.swapaxes(0, 1))), lengths


def _sequence(name: str, sequence: Any) -> np.ndarray:
    """One sequence as an array of numbers."""
    if is_recording(sequence):
        raise TypeError(f"{name}: expected an array, got a Tensor that requires a gradient, which padding would lose; use .data or fs.no_grad()")
    array = plain_array(_check.data(sequence), name)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    return array


def _padding(value: Any, dtype: np.dtype) -> Any:
    """The number as one of this dtype."""
    if not isinstance(value, _NUMBERS):
        raise TypeError(f"padding_value: expected a number, got {type(value).__name__}")
    if dtype.kind == "c":
        return dtype.type(value)
    if isinstance(value, complex | np.complexfloating):
        raise TypeError(f"padding_value: expected a number that {dtype} holds, got {value}")
    if dtype.kind == "f":
        if float(np.finfo(dtype).max) < abs(value) != np.inf:
            raise ValueError(f"padding_value: expected a number that {dtype} holds, got {value}")
        return dtype.type(value)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not low <= value <= high or value != int(value):
        raise ValueError(f"padding_value: expected an integer from {low} to {high}, as {dtype} holds, got {value}")
    return dtype.type(int(value))
