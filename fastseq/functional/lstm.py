"""The LSTM over a whole sequence (Hochreiter & Schmidhuber 1997; forget gate, Gers 2000), and its explicit pair.

i, f, o = sigmoid and g = tanh of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh;  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, Tensor, is_recording, record
from fastseq.backends import backend_of
from fastseq.functional import _check

_F32, _F64 = _check.FLOATS
_NAMES = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "h_0", "c_0")


class LSTMCache:
    """What `lstm_forward` saves for `lstm_backward`, which never changes it. It refers to the inputs and the weights."""

    __slots__ = ("backend", "biases", "dtype", "saved", "sizes")

    def __init__(self, backend: Any, saved: Any, sizes: tuple[int, int, int], dtype: np.dtype, biases: tuple[bool, bool]) -> None:
        self.backend = backend
        self.saved = saved
        self.sizes = sizes  # T, B, H
        self.dtype = dtype
        self.biases = biases


def _fits(x: Any, w_ih: Any, w_hh: Any, *others: Any) -> bool:
    """Whether `_validate` would find nothing, in the tenth of its time: a short sequence takes little longer itself."""
    if not type(x) is type(w_ih) is type(w_hh) is np.ndarray:
        return False
    dtype, sizes, w, u = x.dtype, x.shape, w_ih.shape, w_hh.shape
    if (dtype is not _F32 and dtype is not _F64) or dtype is not w_ih.dtype or dtype is not w_hh.dtype:
        return False
    if len(sizes) != 3 or len(u) != 2 or u[0] != 4 * u[1] or w != (u[0], sizes[2]):
        return False
    expected: tuple[int, ...] = u[:1]
    for k, a in enumerate(others):
        if k == 2:
            expected = (sizes[1], u[1])
        if a is not None and (type(a) is not np.ndarray or a.dtype is not dtype or a.shape != expected):
            return False
    return sizes[0] * sizes[1] * u[0] <= _check.MOST_ELEMENTS


def _validate(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, h_0: Any, c_0: Any) -> None:
    """Raises unless the arrays fit each other; None stands for zeros."""
    _check.floats("x", x)
    for name, value in zip(_NAMES[1:], (w_ih, w_hh, b_ih, b_hh, h_0, c_0), strict=True):
        if value is not None or name.startswith("w"):
            _check.like(name, value, x)
    _check.shape("w_hh", w_hh, ("4 H", "H"))
    gates, units = w_hh.shape
    if gates != 4 * units:
        raise ValueError(f"w_hh: expected shape (4 H, H), got {w_hh.shape}")
    _check.shape("w_ih", w_ih, (gates, "I"))
    _check.shape("x", x, ("T", "B", w_ih.shape[1]))
    for name, value in (("b_ih", b_ih), ("b_hh", b_hh)):
        if value is not None:
            _check.shape(name, value, (gates,))
    for name, value in (("h_0", h_0), ("c_0", c_0)):
        if value is not None:
            _check.shape(name, value, (x.shape[1], units))
    _check.size("x", *x.shape[:2], gates)


def lstm(
    x: ArrayOrTensor,
    w_ih: ArrayOrTensor,
    w_hh: ArrayOrTensor,
    b_ih: ArrayOrTensor | None = None,
    b_hh: ArrayOrTensor | None = None,
    *,
    h_0: ArrayOrTensor | None = None,
    c_0: ArrayOrTensor | None = None,
    packed: Any = None,
) -> tuple[ArrayOrTensor, ArrayOrTensor, ArrayOrTensor]:
    """An LSTM over a sequence, differentiable in all its arrays.

    Parameters
    ----------
    x : ndarray or Tensor (T, B, I), float32 or float64
    w_ih : ndarray or Tensor (4H, I)
        Gates in the order i, f, g, o, as in PyTorch.
    w_hh : ndarray or Tensor (4H, H)
    b_ih, b_hh : ndarray or Tensor (4H,), optional
    h_0, c_0 : ndarray or Tensor (B, H), optional
        The state before the first step; zeros where None.
    packed : optional
        These very weights as the backend packed them, where the caller keeps them from call to call.

    Returns
    -------
    y : ndarray or Tensor (T, B, H)
        h_t of each step.
    h, c : ndarray or Tensor (B, H)
        The state after the last step.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.

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
    return run((x, w_ih, w_hh, b_ih, b_hh, h_0, c_0), packed)


def run(inputs: tuple[Any, ...], packed: Any = None, *, layer_axis: bool = False) -> tuple[Any, Any, Any]:
    """`lstm` for its arguments in order; with `layer_axis` h and c are (1, B, H), as a layer returns them."""
    arrays = [a.data if isinstance(a, Tensor) else a for a in inputs]
    if not _fits(*arrays):
        _validate(*arrays)
    x, w_ih, w_hh, b_ih, b_hh, _, _ = inputs
    xs, w, u, b, d, h0, c0 = arrays
    backend = backend_of(xs, w, u)
    recording = is_recording(*inputs)
    if packed is None:
        packed = backend.lstm_pack(w, u, b, d)
    y, h, c, cache = backend.lstm_forward(xs, h0, c0, packed, training=recording)
    state = h.shape
    if layer_axis:
        h, c = h[None], c[None]
    if not recording:
        for a in inputs:
            if isinstance(a, Tensor):
                return Tensor(y), Tensor(h), Tensor(c)
        return y, h, c
    need_x, need_weights = _check.wants(x), is_recording(w_ih, w_hh, b_ih, b_hh)

    def backward(dy: Array | None, dh: Array | None, dc: Array | None) -> tuple[Array | None, ...]:
        dh, dc = (None if dh is None else dh.reshape(state)), (None if dc is None else dc.reshape(state))
        grads = backend.lstm_backward(cache, dy, dh, dc, need_dx=need_x, need_weights=need_weights)
        db = grads["db"]
        # The biases are only ever added to each other, so they share one gradient; the tape wants it twice.
        db_hh = db.copy() if db is not None and b is not None and d is not None else db
        return grads["dx"], grads["dw_ih"], grads["dw_hh"], db, db_hh, grads["dh_0"], grads["dc_0"]

    y_, h_, c_ = record((y, h, c), inputs, backward, "lstm")
    return y_, h_, c_


def lstm_forward(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    *,
    h_0: Array | None = None,
    c_0: Array | None = None,
) -> tuple[Array, Array, Array, LSTMCache]:
    """The forward half of `lstm` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x : ndarray (T, B, I), float32 or float64
    w_ih, w_hh : ndarray (4H, I), (4H, H)
    b_ih, b_hh : ndarray (4H,) or None
    h_0, c_0 : ndarray (B, H), optional

    Returns
    -------
    y : ndarray (T, B, H)
    h, c : ndarray (B, H)
    cache : LSTMCache
        For `lstm_backward`; valid as long as y, the inputs and the weights are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> w_ih, w_hh = np.ones((8, 3)), np.ones((8, 2))
    >>> y, h, c, cache = fs.functional.lstm_forward(np.ones((4, 1, 3)), w_ih, w_hh, None, None)
    >>> sorted(fs.functional.lstm_backward(cache, np.ones_like(y)))
    ['db_hh', 'db_ih', 'dc_0', 'dh_0', 'dw_hh', 'dw_ih', 'dx']
    """
    arrays = (x, w_ih, w_hh, b_ih, b_hh, h_0, c_0)
    for name, value in zip(_NAMES, arrays, strict=True):
        if isinstance(value, Tensor):
            raise TypeError(f"{name}: expected an array, got a Tensor; functional.lstm records its own gradient")
    if not _fits(*arrays):
        _validate(*arrays)
    backend = backend_of(x, w_ih, w_hh)
    y, h, c, saved = backend.lstm_forward(x, h_0, c_0, backend.lstm_pack(w_ih, w_hh, b_ih, b_hh), training=True)
    return y, h, c, LSTMCache(backend, saved, y.shape, x.dtype, (b_ih is not None, b_hh is not None))


def lstm_backward(
    cache: LSTMCache, dy: Array, *, dh: Array | None = None, dc: Array | None = None
) -> dict[str, Array | None]:
    """Backpropagation through time (Werbos 1990) from the cache of `lstm_forward`; may be called any number of times.

    Parameters
    ----------
    cache : LSTMCache
    dy : ndarray (T, B, H)
        dL/dy.
    dh, dc : ndarray (B, H), optional
        dL/dh and dL/dc of the final state, beside what reaches it through y.

    Returns
    -------
    dict of ndarray
        dx, dw_ih, dw_hh, db_ih, db_hh, dh_0, dc_0; None for a bias that there was not.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    if not isinstance(cache, LSTMCache):
        raise TypeError(f"cache: expected what lstm_forward returned, got {type(cache).__name__}")
    for name, value, sizes in (("dy", dy, cache.sizes), ("dh", dh, cache.sizes[1:]), ("dc", dc, cache.sizes[1:])):
        if value is not None or name == "dy":
            value = _check.array(name, value)
            if value.dtype != cache.dtype:
                raise TypeError(f"{name}: expected {cache.dtype}, got {value.dtype}")
            _check.shape(name, value, sizes)
    grads = cache.backend.lstm_backward(cache.saved, dy, dh, dc)
    db = grads.pop("db")
    grads["db_ih"] = db if cache.biases[0] else None
    grads["db_hh"] = db.copy() if cache.biases[1] else None
    return grads
