"""The LSTM over a whole sequence (Hochreiter & Schmidhuber 1997; forget gate, Gers et al. 2000), and its explicit pair.

i, f, o = sigmoid and g = tanh of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh;  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t).
With peepholes (Gers & Schmidhuber 2000) i and f also see p c_{t-1}, and o sees p c_t. With a projection (Sak et al. 2014)
h_t = W_hr (o tanh(c_t)). With layer norm (Ba et al. 2016) W_ih x_t, W_hh h_{t-1} and the c_t in tanh(c_t) are normalised.
"""

from __future__ import annotations

from typing import Any

from fastseq.autograd import Array, ArrayOrTensor
from fastseq.functional.recurrent import NO_NOISE, Noise, RecurrentCache, Weights, backward_half, forward_half, single


def lstm(
    x: ArrayOrTensor,
    w_ih: ArrayOrTensor,
    w_hh: ArrayOrTensor,
    b_ih: ArrayOrTensor | None = None,
    b_hh: ArrayOrTensor | None = None,
    *,
    h_0: ArrayOrTensor | None = None,
    c_0: ArrayOrTensor | None = None,
    w_hr: ArrayOrTensor | None = None,
    w_ch: ArrayOrTensor | None = None,
    ln_ih_weight: ArrayOrTensor | None = None,
    ln_ih_bias: ArrayOrTensor | None = None,
    ln_hh_weight: ArrayOrTensor | None = None,
    ln_hh_bias: ArrayOrTensor | None = None,
    ln_c_weight: ArrayOrTensor | None = None,
    ln_c_bias: ArrayOrTensor | None = None,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    return_cells: bool = False,
    checkpoint_every: int | None = None,
) -> tuple[ArrayOrTensor, ...]:
    """An LSTM over a sequence, differentiable in all its arrays.

    Parameters
    ----------
    x : ndarray or Tensor (T, B, I), float32 or float64
    w_ih : ndarray or Tensor (4H, I)
        Gates in the order i, f, g, o, as in PyTorch.
    w_hh : ndarray or Tensor (4H, P)
        P = H, unless there is a projection.
    b_ih, b_hh : ndarray or Tensor (4H,), optional
    h_0, c_0 : ndarray or Tensor (B, P) and (B, H), optional
        The state before the first step; zeros where None.
    w_hr : ndarray or Tensor (P, H), optional
        The projection.
    w_ch : ndarray or Tensor (3, H), optional
        Peepholes in the order i, f, o.
    ln_ih_weight, ln_ih_bias, ln_hh_weight, ln_hh_bias : ndarray or Tensor (4H,), optional
        Gain and bias of the two products' layer norm; given with the next two or not at all.
    ln_c_weight, ln_c_bias : ndarray or Tensor (H,), optional
        Those of c_t's.
    lengths : (B,) integers from 0 to T, optional
        How many steps each row has; y is 0 beyond, and the last state is that of the row's own end.
    reset : (T, B) bool, optional
        True where zeros, and no gradient, cross from step t-1 to step t.
    noise : Noise
        Recurrent dropout and zoneout with the key of their masks.
    return_cells : bool
        Also return c_t of each step.
    checkpoint_every : int, optional
        Keep the state of every so many steps only, and compute the rest again in the backward pass; on the CPU the same bits.

    Returns
    -------
    y : ndarray or Tensor (T, B, P)
        h_t of each step.
    h, c : ndarray or Tensor (B, P) and (B, H)
        The state after the last step.
    cells : ndarray or Tensor (T, B, H)
        With `return_cells` only.

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
    >>> y, h, c = fs.functional.lstm(np.ones((5, 2, 3)), np.zeros((16, 3)), np.zeros((16, 4)))
    >>> y.shape, h.shape, c.shape
    ((5, 2, 4), (2, 4), (2, 4))
    """
    weights = Weights(
        w_ih, w_hh, b_ih, b_hh, w_hr, w_ch, ln_ih_weight, ln_ih_bias, ln_hh_weight, ln_hh_bias, ln_c_weight, ln_c_bias
    )
    options = {"lengths": lengths, "reset": reset, "noise": noise, "checkpoint_every": checkpoint_every}
    y, h, c, cells = single("lstm", x, weights, h_0, c_0, states=return_cells, **options)
    return (y, h, c, cells) if return_cells else (y, h, c)


def lstm_forward(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    *,
    h_0: Array | None = None,
    c_0: Array | None = None,
    w_hr: Array | None = None,
    w_ch: Array | None = None,
    ln_ih_weight: Array | None = None,
    ln_ih_bias: Array | None = None,
    ln_hh_weight: Array | None = None,
    ln_hh_bias: Array | None = None,
    ln_c_weight: Array | None = None,
    ln_c_bias: Array | None = None,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, Array, RecurrentCache]:
    """The forward half of `lstm` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x, w_ih, w_hh, b_ih, b_hh, h_0, c_0, w_hr, w_ch : ndarray
    ln_ih_weight, ln_ih_bias, ln_hh_weight, ln_hh_bias, ln_c_weight, ln_c_bias : ndarray
    lengths, reset, noise, checkpoint_every
        All as in `lstm`.

    Returns
    -------
    y : ndarray (T, B, P)
    h, c : ndarray (B, P) and (B, H)
    cache : RecurrentCache
        For `lstm_backward`; valid as long as y, the inputs and the weights are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> w_ih, w_hh = np.ones((8, 3)), np.ones((8, 2))
    >>> y, h, c, cache = fs.functional.lstm_forward(np.ones((4, 1, 3)), w_ih, w_hh, None, None)
    >>> sorted(fs.functional.lstm_backward(cache, np.ones_like(y)))
    ['db_hh', 'db_ih', 'dc_0', 'dh_0', 'dw_hh', 'dw_ih', 'dx']
    """
    weights = Weights(
        w_ih, w_hh, b_ih, b_hh, w_hr, w_ch, ln_ih_weight, ln_ih_bias, ln_hh_weight, ln_hh_bias, ln_c_weight, ln_c_bias
    )
    options = {"lengths": lengths, "reset": reset, "noise": noise, "checkpoint_every": checkpoint_every}
    return forward_half("lstm", "lstm", x, weights, h_0, c_0, **options)


def lstm_backward(
    cache: RecurrentCache,
    dy: Array,
    *,
    dh: Array | None = None,
    dc: Array | None = None,
    need_dstates: bool = False,
) -> dict[str, Array | None]:
    """Backpropagation through time (Werbos 1990) from the cache of `lstm_forward`; may be called any number of times.

    Parameters
    ----------
    cache : RecurrentCache
    dy : ndarray (T, B, P)
        dL/dy.
    dh, dc : ndarray (B, P) and (B, H), optional
        dL/dh and dL/dc of the final state, beside what reaches it through y.
    need_dstates : bool
        Also the whole gradient of h_t at each step.

    Returns
    -------
    dict of ndarray
        dx, dw_ih, dw_hh, db_ih, db_hh, dh_0, dc_0, None for a bias that there was not; with a d before its name each other
        weight that there was; with `need_dstates` dstates (T, B, P).

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    return backward_half("lstm", cache, dy, dh, dc, need_dstates=need_dstates)
