"""Helpers for sequences of unequal lengths and for attention: masks in the modules' polarity, True = blocked, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastseq.functional import _check


def padding_mask(lengths: Any, T: int | None = None) -> np.ndarray:
    """The `key_padding_mask` of sequences of these lengths: True, blocked, past each row's end.

    This is the polarity of the attention modules, and PyTorch's. `functional.scaled_dot_product_attention` takes `key_lengths`
    themselves.

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
    values = np.asarray(_check.data(lengths))
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

    This is the polarity of the attention modules, and PyTorch's; `is_causal=True` says the same without an array.

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
        Of one dtype and equal shapes past the first axis; a list of lists of ids too.
    batch_first : bool
        Which axis is the batch.
    padding_value : number
        What stands past a row's end.
    T : int, optional
        How long the result is; as long as the longest sequence if left out.

    Returns
    -------
    batch : ndarray (T, B, ...), or (B, T, ...) with `batch_first`
    lengths : ndarray (B,) of int64

    Raises
    ------
    ValueError, TypeError
        If there is no sequence, one is longer than T, or their shapes past the first axis differ.

    Examples
    --------
    >>> import fastseq as fs
    >>> batch, lengths = fs.nn.pad_sequences([[5, 6], [7], []], batch_first=True)
    >>> batch, lengths
    (array([[5, 6],
           [7, 0],
           [0, 0]]), array([2, 1, 0]))
    """
    arrays = [np.asarray(_check.data(s)) for s in sequences]
    if not arrays:
        raise ValueError("sequences: expected at least one, got none")
    filled = [a for a in arrays if a.size] or arrays
    for k, a in enumerate(arrays):
        if a.ndim == 0 or (a.size and (a.shape[1:] != filled[0].shape[1:])):
            raise ValueError(f"sequences[{k}]: expected shape {('length', *filled[0].shape[1:])}, got {a.shape}")
    lengths = np.array([len(a) for a in arrays], np.int64)
    longest = int(lengths.max())
    T = longest if T is None else _check.integer("T", T, 0, 2**62)
    if longest > T:
        raise ValueError(f"sequences[{int(lengths.argmax())}]: expected at most T = {T} elements, got {longest}")
    batch = np.full((len(arrays), T, *filled[0].shape[1:]), padding_value, np.result_type(*{a.dtype for a in filled}))
    for row, a in zip(batch, arrays, strict=True):
        row[: len(a)] = a
    return (batch if batch_first else np.ascontiguousarray(batch.swapaxes(0, 1))), lengths
