"""The simple recurrent network over a whole sequence (Elman 1990), and its explicit pair.

h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), f = tanh or max(0, .).
"""

from __future__ import annotations

from typing import Any

from fastseq.autograd import Array, ArrayOrTensor
from fastseq.functional.recurrent import NO_NOISE, Noise, RecurrentCache, Weights, backward_half, forward_half, single


def rnn(
    x: ArrayOrTensor,
    w_ih: ArrayOrTensor,
    w_hh: ArrayOrTensor,
    b_ih: ArrayOrTensor | None = None,
    b_hh: ArrayOrTensor | None = None,
    *,
    nonlinearity: str = "tanh",
    h_0: ArrayOrTensor | None = None,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    checkpoint_every: int | None = None,
) -> tuple[ArrayOrTensor, ArrayOrTensor]:
    """An Elman network over a sequence, differentiable in all its arrays.

    Parameters
    ----------
    x : ndarray or Tensor (T, B, I), float32 or float64
    w_ih, w_hh : ndarray or Tensor (H, I) and (H, H)
    b_ih, b_hh : ndarray or Tensor (H,), optional
    nonlinearity : {"tanh", "relu"}
    h_0 : ndarray or Tensor (B, H), optional
        The state before the first step; zeros where None.
    lengths : (B,) integers from 0 to T, optional
        How many steps each row has; y is 0 beyond, and the last state is that of the row's own end.
    reset : (T, B) bool, optional
        True where zeros, and no gradient, cross from step t-1 to step t.
    noise : Noise
        Recurrent dropout and zoneout with the key of their masks.
    checkpoint_every : int, optional
        Keep the state of every so many steps only, and compute the rest again in the backward pass; on the CPU the same bits.

    Returns
    -------
    y : ndarray or Tensor (T, B, H)
        h_t of each step.
    h : ndarray or Tensor (B, H)
        The state after the last step.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit.

    Notes
    -----
    Denormal numbers are flushed to zero inside.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, h = fs.functional.rnn(np.ones((5, 2, 3)), np.zeros((4, 3)), np.zeros((4, 4)))
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 4))
    """
    options = {"lengths": lengths, "reset": reset, "noise": noise, "checkpoint_every": checkpoint_every}
    return single(cell_named(nonlinearity), x, Weights(w_ih, w_hh, b_ih, b_hh), h_0, **options)[:2]


def rnn_forward(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    *,
    nonlinearity: str = "tanh",
    h_0: Array | None = None,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, RecurrentCache]:
    """The forward half of `rnn` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x, w_ih, w_hh, b_ih, b_hh, h_0 : ndarray
    nonlinearity, lengths, reset, noise, checkpoint_every
        All as in `rnn`.

    Returns
    -------
    y : ndarray (T, B, H)
    h : ndarray (B, H)
    cache : RecurrentCache
        For `rnn_backward`; valid as long as y, the inputs and the weights are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, h, cache = fs.functional.rnn_forward(np.ones((4, 1, 3)), np.ones((2, 3)), np.ones((2, 2)), None, None)
    >>> sorted(fs.functional.rnn_backward(cache, np.ones_like(y)))
    ['db_hh', 'db_ih', 'dh_0', 'dw_hh', 'dw_ih', 'dx']
    """
    options = {"lengths": lengths, "reset": reset, "noise": noise, "checkpoint_every": checkpoint_every}
    y, h, _, cache = forward_half("rnn", cell_named(nonlinearity), x, Weights(w_ih, w_hh, b_ih, b_hh), h_0, **options)
    return y, h, cache


def rnn_backward(
    cache: RecurrentCache, dy: Array, *, dh: Array | None = None, need_dstates: bool = False
) -> dict[str, Array | None]:
    """Backpropagation through time (Werbos 1990) from the cache of `rnn_forward`; may be called any number of times.

    Parameters
    ----------
    cache : RecurrentCache
    dy : ndarray (T, B, H)
        dL/dy.
    dh : ndarray (B, H), optional
        dL/dh of the final state, beside what reaches it through y.
    need_dstates : bool
        Also the whole gradient of h_t at each step.

    Returns
    -------
    dict of ndarray
        dx, dw_ih, dw_hh, db_ih, db_hh, dh_0, None for a bias that there was not; with `need_dstates` dstates (T, B, H).

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    return backward_half("rnn", cache, dy, dh, need_dstates=need_dstates)


def cell_named(nonlinearity: Any) -> str:
    """The name among the backends' cells."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    return f"rnn_{nonlinearity}"
