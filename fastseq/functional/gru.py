"""The GRU over a whole sequence (Cho et al. 2014), in both of its forms, and its explicit pair.

r, z = sigmoid of W x_t + b_ih + U h_{t-1} + b_hh;  h_t = z h_{t-1} + (1 - z) n. The candidate n is
    tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn))  where the reset comes after the product (cuDNN, PyTorch, Keras), and
    tanh(W_n x_t + b_in + U_n (r h_{t-1}) + b_hn)  where it comes before (Cho et al., ONNX's default).
With layer norm (Ba et al. 2016) W x_t and U h_{t-1} are normalised, each over all of its 3H sums.
"""

from __future__ import annotations

from typing import Any

from fastseq.autograd import Array, ArrayOrTensor
from fastseq.functional import _check
from fastseq.functional.recurrent import NO_NOISE, Noise, RecurrentCache, Weights, backward_half, forward_half, single


def gru(
    x: ArrayOrTensor,
    w_ih: ArrayOrTensor,
    w_hh: ArrayOrTensor,
    b_ih: ArrayOrTensor | None = None,
    b_hh: ArrayOrTensor | None = None,
    *,
    reset_after: bool = True,
    h_0: ArrayOrTensor | None = None,
    ln_ih_weight: ArrayOrTensor | None = None,
    ln_ih_bias: ArrayOrTensor | None = None,
    ln_hh_weight: ArrayOrTensor | None = None,
    ln_hh_bias: ArrayOrTensor | None = None,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    checkpoint_every: int | None = None,
) -> tuple[ArrayOrTensor, ArrayOrTensor]:
    """A GRU over a sequence, differentiable in all its arrays.

    Parameters
    ----------
    x : ndarray or Tensor (T, B, I), float32 or float64
    w_ih, w_hh : ndarray or Tensor (3H, I) and (3H, H)
        Gates in the order r, z, n, as in PyTorch.
    b_ih, b_hh : ndarray or Tensor (3H,), optional
    reset_after : bool
        Which of the two forms.
    h_0 : ndarray or Tensor (B, H), optional
        The state before the first step; zeros where None.
    ln_ih_weight, ln_ih_bias, ln_hh_weight, ln_hh_bias : ndarray or Tensor (3H,), optional
        Gain and bias of the two products' layer norm, all or none; only with `reset_after`.
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
    >>> y, h = fs.functional.gru(np.ones((5, 2, 3)), np.zeros((12, 3)), np.zeros((12, 4)))
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 4))
    """
    weights = Weights(w_ih, w_hh, b_ih, b_hh, None, None, ln_ih_weight, ln_ih_bias, ln_hh_weight, ln_hh_bias)
    options = {"lengths": lengths, "reset": reset, "noise": noise, "checkpoint_every": checkpoint_every}
    return single(_cell(reset_after, weights), x, weights, h_0, **options)[:2]


def gru_forward(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    *,
    reset_after: bool = True,
    h_0: Array | None = None,
    ln_ih_weight: Array | None = None,
    ln_ih_bias: Array | None = None,
    ln_hh_weight: Array | None = None,
    ln_hh_bias: Array | None = None,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, RecurrentCache]:
    """The forward half of `gru` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x, w_ih, w_hh, b_ih, b_hh, h_0 : ndarray
    ln_ih_weight, ln_ih_bias, ln_hh_weight, ln_hh_bias : ndarray
    reset_after, lengths, reset, noise, checkpoint_every
        All as in `gru`.

    Returns
    -------
    y : ndarray (T, B, H)
    h : ndarray (B, H)
    cache : RecurrentCache
        For `gru_backward`; valid as long as y, the inputs and the weights are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, h, cache = fs.functional.gru_forward(np.ones((4, 1, 3)), np.ones((6, 3)), np.ones((6, 2)), None, None)
    >>> sorted(fs.functional.gru_backward(cache, np.ones_like(y)))
    ['db_hh', 'db_ih', 'dh_0', 'dw_hh', 'dw_ih', 'dx']
    """
    weights = Weights(w_ih, w_hh, b_ih, b_hh, None, None, ln_ih_weight, ln_ih_bias, ln_hh_weight, ln_hh_bias)
    options = {"lengths": lengths, "reset": reset, "noise": noise, "checkpoint_every": checkpoint_every}
    y, h, _, cache = forward_half("gru", _cell(reset_after, weights), x, weights, h_0, **options)
    return y, h, cache


def gru_backward(
    cache: RecurrentCache, dy: Array, *, dh: Array | None = None, need_dstates: bool = False
) -> dict[str, Array | None]:
    """Backpropagation through time (Werbos 1990) from the cache of `gru_forward`; may be called any number of times.

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
        dx, dw_ih, dw_hh, db_ih, db_hh, dh_0, None for a bias that there was not; dln_ih_weight and so on where there was
        layer norm; with `need_dstates` dstates (T, B, H).

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    return backward_half("gru", cache, dy, dh, need_dstates=need_dstates)


def _cell(reset_after: bool, weights: Weights) -> str:
    """The form's name among the backends' cells."""
    reset_after = _check.boolean("reset_after", reset_after)
    if not reset_after and any(w is not None for w in weights[6:]):
        raise ValueError("reset_after: expected True with layer norm, got False")
    return "gru" if reset_after else "gru_before"
