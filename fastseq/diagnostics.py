"""What a recurrent layer's gradient does on its way back through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastseq.autograd import Array, Tensor
from fastseq.backends import backend_of, namespace, to_cpu
from fastseq.backends.recurrent import Noise
from fastseq.functional.recurrent import checked_lengths, checked_options, checked_reset
from fastseq.nn._inputs import real_input
from fastseq.nn._recurrent import RecurrentLayer
from fastseq.plot import pyplot


def gradient_flow(
    layer: Any,
    x: Any,
    dy: Any = None,
    *,
    loss: Callable[[Tensor], Tensor] | None = None,
    state: Any = None,
    lengths: Any = None,
    reset: Any = None,
    plot: bool = False,
    ax: Any = None,
    label: str = "",
) -> np.ndarray:
    """The norm of dL/dh_t at every time step, which shows whether a layer's gradient vanishes or explodes.

    dL/dh_t is the whole derivative: h_t acts through y_t, the layers above and all steps that follow it (for the reverse
    direction, that come before it). The layer computes as in `eval` mode, and its parameters get no gradient.

    Parameters
    ----------
    layer : RNN, LSTM, GRU, MUT1, MUT2 or MUT3
        With any number of layers and directions.
    x : array or Tensor
        As the layer takes it: (T, B, I), (B, T, I) with `batch_first`, or (T, I).
    dy : array or Tensor, of y's shape
        dL/dy. Either this or `loss`.
    loss : function
        From y, a Tensor, to the loss, a Tensor of one element. Parameters that it uses get their gradients.
    state, lengths, reset
        As in the layer's call.
    plot : bool
        Also draw the norms, on a new figure of pyplot's.
    ax : matplotlib Axes, optional
        Draw them there.
    label : str
        Begins the legend's lines.

    Returns
    -------
    ndarray (L D, T), float64
        The Euclidean norm over all rows and units, of each layer and direction in the order of the layer's state.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or options that the layer refuses, and both or neither of `dy` and `loss`.
    ImportError
        If `plot` is asked for and matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> rnn, x = fs.nn.RNN(3, 16, num_layers=2, rng=0), np.ones((50, 4, 3), np.float32)
    >>> norms = fs.diagnostics.gradient_flow(rnn, x, loss=lambda y: y[-1].sum())
    >>> norms.shape, bool(norms[0, 0] < 1e-6 * norms[0, -1])
    ((2, 50), True)
    """
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")
    if (dy is None) == (loss is None):
        raise TypeError(f"dy, loss: expected one of the two, got {'neither' if dy is None else 'both'}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: expected a function of y, got {type(loss).__name__}")
    x = _real(layer, "x", x)
    if x.ndim not in (2, 3) or x.shape[-1] != layer.input_size:
        raise ValueError(f"x: expected three axes, or two for a single sequence, the last of {layer.input_size}, got shape {x.shape}")
    y, caches = _forward(layer, x, state, lengths, reset)
    if loss is not None:
        given = Tensor(y, requires_grad=True)
        result = loss(given)
        if not isinstance(result, Tensor) or result.data.size != 1:
            came = f"one of shape {result.shape}" if isinstance(result, Tensor) else type(result).__name__
            raise TypeError(f"loss: expected a function that returns a Tensor of one element, got {came}")
        result.backward()
        dy = namespace(y).zeros_like(y) if given.grad is None else given.grad
    dy = _real(layer, "dy", dy)
    if dy.shape != y.shape:
        raise ValueError(f"dy: expected y's shape {y.shape}, got {dy.shape}")
    norms = _backward(caches, _time_first(layer, dy))
    if plot or ax is not None:
        _draw(norms, pyplot().subplots()[1] if ax is None else ax, label, 1 + layer.bidirectional)
    return norms


def _real(layer: RecurrentLayer, name: str, value: Any) -> Array:
    return real_input(value.data if isinstance(value, Tensor) else value, layer.dtype, name)


def _time_first(layer: RecurrentLayer, a: Array) -> Array:
    """x, y or dy with the axes (T, B, ...); the same call leads back."""
    if a.ndim == 2:
        return a[:, None]
    return namespace(a).ascontiguousarray(a.swapaxes(0, 1)) if layer.batch_first else a


def _forward(layer: RecurrentLayer, x: Array, state: Any, lengths: Any, reset: Any) -> tuple[Array, list[Any]]:
    """y in x's layout, and what the backend keeps of each layer."""
    y = _time_first(layer, x)
    layer._beside_weights("x", y)
    T, B, _ = y.shape
    batch = () if x.ndim == 2 else (B,)
    lengths, reset = checked_lengths(lengths, T, *batch), checked_reset(reset, *x.shape[:-1])
    if reset is not None:
        reset = reset.reshape(T, 1) if not batch else reset.T if layer.batch_first else reset
    options = checked_options(y, T, B, lengths, reset)
    noise = Noise(zoneout_h=layer.zoneout[0], zoneout_c=layer.zoneout[1])
    h_0, c_0 = (None, None) if state is None else layer._split(state, *layer._state_shapes(*batch))
    D, backend, caches = 1 + layer.bidirectional, backend_of(y), []
    for number, packed in enumerate(layer._all_packed()):
        h, c = (None if a is None else _real(layer, "state", a[number * D :][:D]).reshape(D, B, -1) for a in (h_0, c_0))
        y, *_, cache = backend.recurrent_forward(y, h, c, packed, noise=noise, training=True, **options)
        caches.append(cache)
    return y[:, 0] if not batch else _time_first(layer, y), caches


def _backward(caches: list[Any], dy: Array) -> np.ndarray:
    """The norms, from the last layer down: the dx of one is the dy of the layer below."""
    backend = backend_of(dy)
    norms: list[np.ndarray] = []
    for number in reversed(range(len(caches))):
        found = backend.recurrent_backward(
            caches[number], dy, None, None, need_dx=number > 0, need_weights=False, need_dstates=True
        )
        states = to_cpu(found["dstates"]).astype(np.float64)  # whose squares do not underflow where the gradient has vanished
        norms.insert(0, np.sqrt(np.einsum("dtbp,dtbp->dt", states, states)))
        dy = found["dx"]
    return np.concatenate(norms)


def _draw(norms: np.ndarray, ax: Any, label: str, directions: int) -> None:
    for row, values in enumerate(norms):
        place = f"layer {row // directions}" + ", reverse" * (row % directions)
        name = ", ".join([label] * bool(label) + [place] * (len(norms) > 1 or not label))
        ax.plot(np.where(values > 0, values, np.nan), label=name)
    ax.set_yscale("log")
    ax.set_xlabel("time step t")
    ax.set_ylabel("norm of dL/dh$_t$")
    ax.legend()
