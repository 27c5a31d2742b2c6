"""MUT1, MUT2 and MUT3 over a whole sequence (Jozefowicz et al. 2015), and their explicit pair.

h_t = z n + (1 - z) h_{t-1}, with s = sigmoid:
    MUT1  z = s(W_z x_t + b_z)                     r = s(W_r x_t + U_r h_{t-1} + b_r)  n = tanh(U_h (r h_{t-1}) + tanh(x_t) + b_h)
    MUT2  z = s(W_z x_t + U_z h_{t-1} + b_z)       r = s(x_t + U_r h_{t-1} + b_r)      n = tanh(U_h (r h_{t-1}) + W_h x_t + b_h)
    MUT3  z = s(W_z x_t + U_z tanh(h_{t-1}) + b_z) r = s(W_r x_t + U_r h_{t-1} + b_r)  n = tanh(U_h (r h_{t-1}) + W_h x_t + b_h)
Where I != H a learned (H, I) matrix first projects the x_t that stands bare in MUT1 and MUT2.
"""

from __future__ import annotations

from typing import Any

from fastseq.autograd import Array, ArrayOrTensor, Tensor
from fastseq.backends import namespace
from fastseq.functional import _check
from fastseq.functional.recurrent import NO_NOISE, Noise, RecurrentCache, Weights, backward_half, forward_half, single
from fastseq.functional.shape import concatenate

#: Blocks of w_ih and w_hh by variant, in the order r, z, h.
_BLOCKS = {1: (2, 2), 2: (2, 3), 3: (3, 3)}


def mut(
    x: ArrayOrTensor,
    w_ih: ArrayOrTensor,
    w_hh: ArrayOrTensor,
    bias: ArrayOrTensor | None = None,
    w_proj: ArrayOrTensor | None = None,
    *,
    variant: int,
    h_0: ArrayOrTensor | None = None,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    checkpoint_every: int | None = None,
) -> tuple[ArrayOrTensor, ArrayOrTensor]:
    """One of the three MUT cells over a sequence, differentiable in all its arrays.

    Parameters
    ----------
    x : ndarray or Tensor (T, B, I), float32 or float64
    w_ih : ndarray or Tensor, (2H, I) of r, z for MUT1 and of z, h for MUT2; (3H, I) of r, z, h for MUT3
    w_hh : ndarray or Tensor, (2H, H) of r, h for MUT1; (3H, H) of r, z, h for the others
    bias : ndarray or Tensor (3H,), optional
        In the order r, z, h.
    w_proj : ndarray or Tensor (H, I)
        What projects x_t in MUT1 and MUT2; may be left out where I = H. MUT3 has none.
    variant : {1, 2, 3}
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
    >>> y, h = fs.functional.mut(np.ones((5, 2, 4)), np.zeros((8, 4)), np.zeros((8, 4)), variant=1)
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 4))
    """
    _validate(variant, x, w_ih, w_hh, bias, w_proj)
    options = {"lengths": lengths, "reset": reset, "noise": noise, "checkpoint_every": checkpoint_every}
    return single(f"mut{variant}", x, full_weights(variant, w_ih, w_hh, bias, w_proj), h_0, **options)[:2]


def mut_forward(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    bias: Array | None,
    w_proj: Array | None,
    *,
    variant: int,
    h_0: Array | None = None,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, MUTCache]:
    """The forward half of `mut` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x, w_ih, w_hh, bias, w_proj, h_0 : ndarray
    variant, lengths, reset, noise, checkpoint_every
        All as in `mut`.

    Returns
    -------
    y : ndarray (T, B, H)
    h : ndarray (B, H)
    cache : MUTCache
        For `mut_backward`; valid as long as y and the inputs are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> weights = np.ones((4, 3)), np.ones((4, 2)), None, np.ones((2, 3))
    >>> y, h, cache = fs.functional.mut_forward(np.ones((4, 1, 3)), *weights, variant=1)
    >>> sorted(fs.functional.mut_backward(cache, np.ones_like(y)))
    ['dbias', 'dh_0', 'dw_hh', 'dw_ih', 'dw_proj', 'dx']
    """
    for name, value in zip(("x", "w_ih", "w_hh", "bias", "w_proj"), (x, w_ih, w_hh, bias, w_proj), strict=True):
        if isinstance(value, Tensor):
            raise TypeError(f"{name}: expected an array, got a Tensor; functional.mut records its own gradient")
    _validate(variant, x, w_ih, w_hh, bias, w_proj)
    weights = full_weights(variant, w_ih, w_hh, bias, w_proj)
    options = {"lengths": lengths, "reset": reset, "noise": noise, "checkpoint_every": checkpoint_every}
    y, h, _, cache = forward_half("mut", f"mut{variant}", x, weights, h_0, **options)
    return y, h, MUTCache(variant, cache, w_proj is not None)


class MUTCache:
    """What `mut_forward` saves for `mut_backward`, which never changes it."""

    __slots__ = ("projects", "recurrent", "variant")

    def __init__(self, variant: int, recurrent: RecurrentCache, projects: bool) -> None:
        self.variant = variant
        self.recurrent = recurrent
        self.projects = projects


def mut_backward(
    cache: MUTCache, dy: Array, *, dh: Array | None = None, need_dstates: bool = False
) -> dict[str, Array | None]:
    """Backpropagation through time (Werbos 1990) from the cache of `mut_forward`; may be called any number of times.

    Parameters
    ----------
    cache : MUTCache
    dy : ndarray (T, B, H)
        dL/dy.
    dh : ndarray (B, H), optional
        dL/dh of the final state, beside what reaches it through y.
    need_dstates : bool
        Also the whole gradient of h_t at each step.

    Returns
    -------
    dict of ndarray
        dx, dw_ih, dw_hh, dbias, dw_proj, dh_0, None for a bias or projection that there was not; with `need_dstates`
        dstates (T, B, H).

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    if not isinstance(cache, MUTCache):
        raise TypeError(f"cache: expected what mut_forward returned, got {type(cache).__name__}")
    grads: dict[str, Any] = backward_half("mut", cache.recurrent, dy, dh, need_dstates=need_dstates)
    del grads["db_hh"]
    grads["dbias"], grads["dw_proj"] = grads.pop("db_ih"), None
    H = cache.recurrent.hidden_size
    w, u = grads["dw_ih"], grads["dw_hh"]
    if cache.variant == 1:  # w_ih = [w_ih, w_proj], w_hh = [r, 0, h]
        grads["dw_ih"], projection = w[: 2 * H], w[2 * H :]
        grads["dw_hh"] = namespace(u).concatenate([u[:H], u[2 * H :]])
    elif cache.variant == 2:  # w_ih = [w_proj, w_ih]
        grads["dw_ih"], projection = w[H:], w[:H]
    if cache.projects:
        grads["dw_proj"] = projection
    return grads


def full_weights(
    variant: int, w_ih: ArrayOrTensor, w_hh: ArrayOrTensor, bias: ArrayOrTensor | None, w_proj: ArrayOrTensor | None
) -> Weights:
    """The backends' form: all three blocks of either matrix, what x_t stands bare for being an identity; recorded for Tensors."""
    if variant == 3:
        return Weights(w_ih, w_hh, bias)
    H = w_hh.shape[1]
    own = namespace(_check.data(w_hh))
    bare = own.eye(H, dtype=w_hh.dtype) if w_proj is None else w_proj
    if variant == 2:
        return Weights(concatenate([bare, w_ih]), w_hh, bias)
    w_hh = concatenate([w_hh[:H], own.zeros((H, H), w_hh.dtype), w_hh[H:]])
    return Weights(concatenate([w_ih, bare]), w_hh, bias)


def _validate(variant: Any, x: Any, w_ih: Any, w_hh: Any, bias: Any, w_proj: Any) -> None:
    """Raises unless the weights have the variant's blocks; the rest is found with the full matrices."""
    if not isinstance(variant, int) or isinstance(variant, bool) or variant not in _BLOCKS:
        raise ValueError(f"variant: expected 1, 2 or 3, got {variant!r}")
    x = _check.floats("x", x)
    w, u = _check.like("w_ih", w_ih, x), _check.like("w_hh", w_hh, x)
    of_input, of_state = _BLOCKS[variant]
    _check.shape("w_hh", u, (f"{of_state} H", "H"))
    H = u.shape[1]
    if len(u) != of_state * H:
        raise ValueError(f"w_hh: expected shape ({of_state} H, H), got {u.shape}")
    _check.shape("w_ih", w, (of_input * H, "I"))
    _check.shape("x", x, ("T", "B", w.shape[1]))
    if bias is not None:
        _check.shape("bias", _check.like("bias", bias, x), (3 * H,))
    if w_proj is None:
        if variant != 3 and w.shape[1] != H:
            raise ValueError(f"w_proj: expected shape ({H}, {w.shape[1]}), for I is not H, got None")
    elif variant == 3:
        raise ValueError("w_proj: expected None, for MUT3 projects nothing")
    else:
        _check.shape("w_proj", _check.like("w_proj", w_proj, x), (H, w.shape[1]))
