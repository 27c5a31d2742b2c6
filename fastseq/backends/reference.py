"""The reference backend: NumPy, one line per equation, written to be read and to be trusted.

It computes in the dtype that it is given; the tests differentiate it numerically in float64 and compare every kernel with it.
Its functions have the signatures of `cpu.py`: arrays are validated, inputs are never changed, results are new arrays.
x_t, h_t, c_t are rows of a batch here, so W x is written x W^T. In each backward function the forward line that is
differentiated stands above the lines that do it. The recurrent cells are in `reference_recurrent.py`, attention is in
`reference_attention.py` and `reference_additive.py`, softmax and its losses are in `reference_softmax.py`, layer norm is in `reference_norm.py`,
the attention decoder is in `reference_decoder.py`, convolution, pooling and batch norm are in `reference_conv.py`, the optimisers' updates
are in `reference_optim.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastseq.backends import reference_recurrent
from fastseq.backends.recurrent import Noise, Weights, gates_of
from fastseq.backends.reference_additive import additive_attention_backward, additive_attention_forward  # noqa: F401
from fastseq.backends.reference_attention import attention_backward, attention_forward  # noqa: F401
from fastseq.backends.reference_conv import (  # noqa: F401
    batch_norm_backward,
    batch_norm_forward,
    conv_backward,
    conv_forward,
    max_pool_backward,
    max_pool_forward,
)
from fastseq.backends.reference_decoder import (  # noqa: F401
    attention_decoder_backward,
    attention_decoder_forward,
    attention_decoder_pack,
)
from fastseq.backends.reference_norm import layer_norm_backward, layer_norm_forward  # noqa: F401
from fastseq.backends.reference_optim import adagrad, adam, adam_all, rmsprop, scale, sgd, sum_squares  # noqa: F401
from fastseq.backends.reference_philox import philox as _philox
from fastseq.backends.reference_softmax import (  # noqa: F401
    cross_entropy_backward,
    cross_entropy_forward,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
    log_softmax_backward,
    log_softmax_forward,
    mean_loss,
    softmax_backward,
    softmax_forward,
)

Array = np.ndarray

_NO_NOISE = Noise()


def _each(function: Callable[[float], float], x: Array) -> Array:
    """A function of Python's `math`, element by element."""
    return np.asarray(np.frompyfunc(function, 1, 1)(x.astype(np.float64))).astype(x.dtype)


def _gelu(x: Array) -> Array:
    """x Phi(x), Phi the normal distribution's function (Hendrycks & Gimpel 2016); -0 at -infinity, where it tends to."""
    return np.where(x == -np.inf, x.dtype.type(-0.0), x * _each(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), x))


_TANH_SCALE, _TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(x: Array) -> Array:
    """The same with Phi(x) ~ (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 = sigmoid of twice that argument."""
    inner = _TANH_SCALE * (x + _TANH_CUBIC * x**3)
    return np.where(x == -np.inf, x.dtype.type(-0.0), x * reference_recurrent.sigmoid(2 * inner))


def _silu(x: Array) -> Array:
    """X sigmoid(x); -0 at -infinity, where it tends to."""
    return np.where(x == -np.inf, x.dtype.type(-0.0), x * reference_recurrent.sigmoid(x))


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": reference_recurrent.sigmoid,
    "relu": lambda x: np.where(x <= 0, x.dtype.type(0), x),  # a NaN stays
    "erf": lambda x: _each(math.erf, x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "softplus": lambda x: np.logaddexp(x, x.dtype.type(0)),
}

_WITH_PARAMETER: dict[str, Callable[[Array, float], Array]] = {
    "elu": lambda x, p: np.where(x < 0, x.dtype.type(p) * np.expm1(np.minimum(x, 0)), x),
    "leaky_relu": lambda x, p: np.where(x < 0, x.dtype.type(p) * x, x),
}


# ---------------------------------------------------------------- products


def matmul(a: Array, b: Any, *, bias: Array | None = None, function: str = "identity") -> Array:
    """f(a b + bias): a (..., M, K), b (..., K, N) or a `pack`, bias (N,)."""
    sums = a @ (b.matrix if isinstance(b, SimpleNamespace) else b)
    if bias is not None:
        sums = sums + bias
    return _FUNCTIONS[function](sums)


def pack(b: Array) -> Any:
    """A snapshot of b (K, N) for `matmul`."""
    return SimpleNamespace(matrix=b.copy(), shape=b.shape, dtype=b.dtype)


def bias_backward(dy: Array) -> Array:
    """The gradient of a bias (N,) that was added to every row of (M, N)."""
    return dy.sum(axis=0)


# ---------------------------------------------------------------- pointwise


def pointwise_forward(x: Array, *, function: str, parameter: float = 0.0) -> Array:
    """F of each element; function: exp, log, tanh, sigmoid, relu, erf, gelu, gelu_tanh, silu, softplus, elu, leaky_relu (with parameter)."""
    with np.errstate(all="ignore"):  # infinities and NaN are answers here
        if function in _WITH_PARAMETER:
            return np.array(_WITH_PARAMETER[function](x, parameter))
        return np.array(_FUNCTIONS[function](x))


def pointwise_backward(saved: Array, dy: Array, *, function: str, parameter: float = 0.0) -> Array:
    """Dy f'(x), from `saved` = y, but for log, erf and those after it `saved` = x."""
    with np.errstate(all="ignore"):
        if function == "exp":  # y = exp(x)
            return dy * saved
        if function == "log":  # y = log(x)
            return dy / saved
        if function == "tanh":  # y = tanh(x)
            return dy * (1 - saved * saved)
        if function == "sigmoid":  # y = 1 / (1 + exp(-x))
            return dy * saved * (1 - saved)
        if function == "relu":  # y = max(x, 0)
            return np.where(saved > 0, dy, dy.dtype.type(0))
        if function == "erf":  # y = erf(x)
            return dy * dy.dtype.type(2 / math.sqrt(math.pi)) * np.exp(-saved * saved)
        if function == "elu":  # y = x, or below 0 p (exp(x) - 1); at 0 the derivative from below
            return np.where(saved > 0, dy, dy * dy.dtype.type(parameter) * np.exp(np.minimum(saved, 0)))
        if function == "leaky_relu":  # y = x, or below 0 p x; at 0 the derivative from below
            return np.where(saved > 0, dy, dy * dy.dtype.type(parameter))
        if function == "softplus":  # y = log(1 + exp(x))
            return dy * reference_recurrent.sigmoid(saved)
        if function == "silu":  # y = x sigmoid(x); beyond 800 the derivative is 0 or 1
            x = np.clip(saved, -800, 800)
            return dy * reference_recurrent.sigmoid(x) * (1 + x * reference_recurrent.sigmoid(-x))
        x = np.clip(saved, -40, 40)  # beyond, the derivatives of both forms of gelu are 0 or 1
        if function == "gelu":  # y = x Phi(x)
            phi = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
            return (dy * (_each(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), x) + x * phi)).astype(dy.dtype)
        if function == "gelu_tanh":  # y = x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))
            s = reference_recurrent.sigmoid(2 * _TANH_SCALE * (x + _TANH_CUBIC * x**3))
            return dy * (s + x * s * (1 - s) * 2 * _TANH_SCALE * (1 + 3 * _TANH_CUBIC * x * x))
    raise ValueError(f"function: {function!r} has no derivative here")


def sum_backward(dy: Array, shape: tuple[int, ...], axes: tuple[int, ...], *, count: int) -> Array:
    """The gradient of x, of this shape, in sum(x, axes) / count: dy / count for each element, as a view of so many numbers."""
    kept = tuple(1 if k in axes else n for k, n in enumerate(shape))
    return np.broadcast_to(dy.reshape(kept) / count, shape)


# ---------------------------------------------------------------- embedding


def embedding_forward(ids: Array, weight: Array) -> Array:
    """weight[ids]."""
    return weight[ids]


def embedding_backward(dy: Array, ids: Array, num_embeddings: int, *, padding_idx: int) -> Array:
    """Dweight (V, D): the sum of dy over the places of each id; padding_idx (-1: none) gets zeros."""
    dweight = np.zeros((num_embeddings, dy.shape[-1]), dy.dtype)
    np.add.at(dweight, ids, dy)
    if padding_idx >= 0:
        dweight[padding_idx] = 0
    return dweight


def ids_find_outside(ids: Array, limit: int) -> int:
    """The flat position of the first id outside [0, limit), or -1."""
    outside = ((ids < 0) | (ids >= limit)).reshape(-1)
    return int(outside.argmax()) if outside.any() else -1


# ---------------------------------------------------------------- dropout


def dropout(x: Array, *, p: float, seed: int, layer: int, call: int) -> Array:
    """X m / (1 - p): element i is kept where word i % 4 of Philox at counter (i / 4 in two words, call, layer) >= p 2^32."""
    blocks = np.arange((x.size + 3) // 4, dtype=np.uint64)
    rest = np.broadcast_to(np.array([call, layer], np.uint64), (len(blocks), 2))
    counter = np.column_stack([blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32), rest])
    kept = (_philox(seed, counter).reshape(-1)[: x.size] >= p * 2.0**32).reshape(x.shape)
    factor = x.dtype.type(1 / (1 - p)) if p < 1 else x.dtype.type(0)
    return np.where(kept, x * factor, x.dtype.type(0))


# ---------------------------------------------------------------- recurrent layers


def _drawn(noise: Noise, kind: int, direction: int, t: int, p: float, like: Array) -> Array:
    """True with probability p for each row and unit of `like` at step t; kind: 0 recurrent dropout, 1 zoneout of h, 2 of c."""
    B, units = like.shape
    blocks = (units + 3) // 4
    w0, w1 = _philox(noise.seed, np.array([[kind, noise.layer + direction, noise.call, 0x7265636E]], np.uint64))[0, :2]
    b, block = np.indices((B, blocks)).reshape(2, -1)
    counters = np.stack([block, np.full_like(b, t), b, np.zeros_like(b)], axis=1)
    words = _philox(int(w0) | int(w1) << 32, counters).reshape(B, 4 * blocks)[:, :units]
    return words < math.ceil(p * 2.0**32)


def _dropout_mask(noise: Noise, direction: int, h: Array) -> Array:
    """d: 0 with probability p, else 1 / (1 - p), the same at every step."""
    p = noise.recurrent_dropout
    if not noise.training or p == 0:
        return np.ones_like(h)
    if p == 1:
        return np.zeros_like(h)
    return (~_drawn(noise, 0, direction, 0, p, h) / (1 - p)).astype(h.dtype)


def _zoneout_mask(noise: Noise, kind: int, direction: int, t: int, state: Array) -> Array:
    """m: how much of the old state stays, 0 or 1 in training, else what that is on average."""
    p = noise.zoneout_h if kind == 1 else noise.zoneout_c
    if not noise.training or p == 0:
        return np.full_like(state, p)
    return _drawn(noise, kind, direction, t, p, state).astype(state.dtype)


def recurrent_pack(cell: str, directions: tuple[Weights, ...], *, packed: Any = None) -> Any:
    """A layer as the other functions take it: here, a snapshot; `packed` itself, from an earlier call, where no number has changed."""
    numbers = [None if w is None else (w.dtype, w.shape, w.tobytes()) for weights in directions for w in weights]
    if packed is not None and packed.cell == cell and packed.numbers == numbers:
        return packed
    copies = tuple(Weights(*(None if w is None else w.copy() for w in weights)) for weights in directions)
    return SimpleNamespace(cell=cell, directions=copies, numbers=numbers)


def _with_zeros(cell: str, w: Weights) -> Weights:
    """Zeros for biases and peepholes that there are not, so that the equations have them."""
    rows, dtype = len(w.w_ih), w.w_ih.dtype
    b_ih, b_hh = (np.zeros(rows, dtype) if b is None else b for b in (w.b_ih, w.b_hh))
    w_ch = np.zeros((3, rows // gates_of(cell)), dtype) if w.w_ch is None else w.w_ch
    return w._replace(b_ih=b_ih, b_hh=b_hh, w_ch=w_ch)


def _sizes(packed: Any) -> tuple[int, int]:
    """P and H."""
    rows, P = packed.directions[0].w_hh.shape
    return P, rows // gates_of(packed.cell)


def _step_forward(cell: str, w: Weights, s: Any) -> tuple[Array, Array]:
    """h_t and c_t: the cell's h~ and c~, and zoneout."""
    h_new, c_new = reference_recurrent.FORWARD[cell](w, s)
    return s.m_h * s.h + (1 - s.m_h) * h_new, s.m_c * s.c + (1 - s.m_c) * c_new


def _step_backward(cell: str, w: Weights, dw: dict[str, Array], s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    """The gradients of x_t, h_{t-1} and c_{t-1} from those of h_t and c_t; those of the weights are added to dw."""
    # h_t = m_h h_{t-1} + (1 - m_h) h~, c_t = m_c c_{t-1} + (1 - m_c) c~
    dx, dh_cell, dc_cell = reference_recurrent.BACKWARD[cell](w, dw, s, (1 - s.m_h) * dh, (1 - s.m_c) * dc)
    return dx, s.m_h * dh + dh_cell, s.m_c * dc + dc_cell


def _crossings(reset: Array | None, lengths: Array, T: int, direction: int) -> Array:
    """(T, B, 1): True where a boundary lies between step t and the one that ran before it; reset[t] is between t - 1 and t."""
    cut = np.zeros((T, len(lengths)), bool)
    if reset is not None and direction == 0:
        cut[:] = reset
    elif reset is not None:
        cut[:-1] = reset[1:] & (np.arange(1, T)[:, None] < lengths)  # a row's last step comes from no other
    return cut[:, :, None]


def recurrent_forward(
    x: Array,
    h_0: Array | None,
    c_0: Array | None,
    packed: Any,
    *,
    lengths: Array | None = None,
    reset: Array | None = None,
    noise: Noise = _NO_NOISE,
    training: bool = False,
    states: bool = False,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, Array | None, Array | None, Any]:
    """y (T, B, D P), the last h and c, every c (D, T, B, H) where `states` asks, and, in training, what `recurrent_backward` needs.

    All steps are kept, whatever `checkpoint_every` says.
    """
    (T, B, _), D, (P, H) = x.shape, len(packed.directions), _sizes(packed)
    lengths = np.full(B, T) if lengths is None else lengths
    h_n = np.zeros((D, B, P), x.dtype) if h_0 is None else h_0.copy()
    c_n = np.zeros((D, B, H), x.dtype) if c_0 is None else c_0.copy()
    y = np.zeros((T, B, D, P), x.dtype)
    cells = np.zeros((D, T, B, H), x.dtype)
    steps: list[list[Any]] = [[] for _ in range(D)]
    for direction, weights in enumerate(packed.directions):
        w = _with_zeros(packed.cell, weights)
        h, c = h_n[direction], c_n[direction]  # of each row after its latest step
        d, cut = _dropout_mask(noise, direction, h), _crossings(reset, lengths, T, direction)
        for t in reversed(range(T)) if direction else range(T):
            rows = np.flatnonzero(t < lengths)  # the rows that have a step t; the others wait, or are done
            s = SimpleNamespace(direction=direction, t=t, rows=rows, cut=cut[t, rows], x=x[t, rows], d=d[rows])
            s.h, s.c = (np.where(s.cut, x.dtype.type(0), state[rows]) for state in (h, c))
            s.m_h, s.m_c = (_zoneout_mask(noise, kind, direction, t, state)[rows] for kind, state in ((1, h), (2, c)))
            h[rows], c[rows] = _step_forward(packed.cell, w, s)
            y[t, rows, direction], cells[direction, t, rows] = h[rows], c[rows]
            steps[direction].append(s)
    lstm = packed.cell == "lstm"
    cache = SimpleNamespace(cell=packed.cell, weights=packed.directions, shape=x.shape, P=P, H=H, steps=steps) if training else None
    return y.reshape(T, B, D * P), h_n, c_n if lstm else None, cells if lstm and states else None, cache


def recurrent_backward(
    cache: Any,
    dy: Array | None,
    dh_n: Array | None,
    dc_n: Array | None,
    *,
    dcells: Array | None = None,
    need_dx: bool = True,
    need_weights: bool = True,
    need_dstates: bool = False,
) -> dict[str, Any]:
    """Backpropagation through time: dx, dh_0, dc_0, weights (`Weights` of gradients for each direction) and dstates."""
    (T, B, _), D, P, H = cache.shape, len(cache.weights), cache.P, cache.H
    dtype = cache.weights[0].w_ih.dtype
    dy = np.zeros((T, B, D, P), dtype) if dy is None else dy.reshape(T, B, D, P)
    dcells = np.zeros((D, T, B, H), dtype) if dcells is None else dcells
    dh_0 = np.zeros((D, B, P), dtype) if dh_n is None else dh_n.copy()
    dc_0 = np.zeros((D, B, H), dtype) if dc_n is None else dc_n.copy()
    dx, dstates = np.zeros(cache.shape, dtype), np.zeros((D, T, B, P), dtype)
    dweights: list[Weights | None] = []
    for direction, weights in enumerate(cache.weights):
        w, dw = _with_zeros(cache.cell, weights), dict[str, Array]()
        dh, dc = dh_0[direction], dc_0[direction]  # of each row's state before the latest step walked back
        for s in reversed(cache.steps[direction]):
            t, rows = s.t, s.rows
            # y_t = h_t and cells_t = c_t, which go on to the next step or are the last
            dh_t, dc_t = dh[rows] + dy[t, rows, direction], dc[rows] + dcells[direction, t, rows]
            dstates[direction, t, rows] = dh_t
            dx_t, dh_t, dc_t = _step_backward(cache.cell, w, dw, s, dh_t, dc_t)
            dx[t, rows] += dx_t
            # Nothing crosses a reset.
            dh[rows], dc[rows] = (np.where(s.cut, dtype.type(0), grad) for grad in (dh_t, dc_t))
        present = {name: a for name, a in weights._asdict().items() if a is not None}
        dweights.append(weights._replace(**{name: dw.get(name, np.zeros_like(a)) for name, a in present.items()}))
    return {
        "dx": dx if need_dx else None,
        "dh_0": dh_0,
        "dc_0": dc_0 if cache.cell == "lstm" else None,
        "weights": tuple(dweights if need_weights else [None] * D),
        "dstates": dstates if need_dstates else None,
    }


def recurrent_stack(
    x: Array,
    h_0: Array | None,
    c_0: Array | None,
    layers: tuple[Any, ...],
    *,
    lengths: Array | None = None,
    reset: Array | None = None,
    zoneout: tuple[float, float] = (0.0, 0.0),
) -> tuple[Array, Array, Array | None]:
    """Packed layers of one direction, each on the one before, without a record: the last y, and h (L, B, P) and c (L, B, H) at the end."""
    noise = Noise(zoneout_h=zoneout[0], zoneout_c=zoneout[1])
    h, c = [], []
    for l, packed in enumerate(layers):
        h_l, c_l = (None if s is None else s[l : l + 1] for s in (h_0, c_0))
        x, h_n, c_n, *_ = recurrent_forward(x, h_l, c_l, packed, lengths=lengths, reset=reset, noise=noise)
        h.append(h_n)
        if c_n is not None:
            c.append(c_n)
    return x, np.concatenate(h), np.concatenate(c) if c else None


class _RecurrentStream:
    """Stacked layers of one direction that are fed one step at a time."""

    def __init__(self, layers: tuple[Any, ...], batch_size: int, zoneout: tuple[float, float]) -> None:
        (P, H), dtype = _sizes(layers[0]), layers[0].directions[0].w_ih.dtype
        self._h, self._c = (np.zeros((len(layers), batch_size, n), dtype) for n in (P, H))
        self._zoneout = zoneout
        self.load(layers)

    def load(self, layers: tuple[Any, ...]) -> None:
        """Takes other weights of the same sizes; the state stays."""
        self._layers = [(packed.cell, _with_zeros(packed.cell, packed.directions[0])) for packed in layers]

    def step(self, x: Array, out: Array | None = None) -> Array:
        """h_t (B, P) of the top layer for x_t (B, I), written into `out` where it is given."""
        m_h, m_c = self._zoneout
        for (cell, w), h, c in zip(self._layers, self._h, self._c, strict=True):
            s = SimpleNamespace(x=x, h=h.copy(), c=c.copy(), d=1, m_h=m_h, m_c=m_c)
            h[...], c[...] = _step_forward(cell, w, s)
            x = h
        if out is None:
            return x.copy()
        out[...] = x
        return out

    @property
    def state(self) -> Any:
        """Copies of h (L, B, P), and with an LSTM of (h, c), c (L, B, H)."""
        return (self._h.copy(), self._c.copy()) if self._layers[0][0] == "lstm" else self._h.copy()

    @state.setter
    def state(self, value: Any) -> None:
        if self._layers[0][0] == "lstm":
            self._h[...], self._c[...] = value
        else:
            self._h[...] = value

    def reset(self, rows: Any = None) -> None:
        """Zeros the state, of the given rows or of all."""
        index = slice(None) if rows is None else rows
        self._h[:, index] = 0
        self._c[:, index] = 0


def recurrent_stream(layers: tuple[Any, ...], *, batch_size: int, zoneout: tuple[float, float] = (0.0, 0.0)) -> Any:
    """A stream with zero state: `step`, `state`, `reset`, `load`."""
    return _RecurrentStream(layers, batch_size, zoneout)
