"""The reference backend: NumPy, one line per equation, written to be read and to be trusted.

It computes in the dtype that it is given; the tests differentiate it numerically in float64 and compare every kernel with it.
Its functions have the signatures of `cpu.py`: arrays are validated, inputs are never changed, results are new arrays.
x_t, h_t, c_t are rows of a batch here, so W x is written x W^T. In each backward function the forward line that is
differentiated stands above the lines that do it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Array = np.ndarray


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit 0
        return 1 / (1 + np.exp(-x))


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "relu": lambda x: np.where(x <= 0, x.dtype.type(0), x),  # a NaN stays
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


def pointwise_forward(x: Array, *, function: str) -> Array:
    """F of each element; function: exp, log, tanh, sigmoid, relu."""
    with np.errstate(all="ignore"):  # infinities and NaN are answers here
        return np.array(_FUNCTIONS[function](x))


def pointwise_backward(saved: Array, dy: Array, *, function: str) -> Array:
    """Dy f'(x), from `saved` = y, but for the logarithm `saved` = x."""
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
    raise ValueError(f"function: {function!r} has no derivative here")


# ---------------------------------------------------------------- softmax and its loss


def softmax_forward(x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis; zeros where all of it is -inf."""
    if x.shape[-1] == 0:
        return x.copy()
    largest = x.max(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        e = np.exp(x - largest)  # the same quotient, without overflow
        return np.where(largest == -np.inf, x.dtype.type(0), e / e.sum(axis=-1, keepdims=True))


def softmax_backward(y: Array, dy: Array) -> Array:
    """Dx of y = softmax(x): dy_j/dx_i = y_j (delta_ij - y_i)."""
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))


def cross_entropy_forward(logits: Array, targets: Array, *, ignore_index: int, label_smoothing: float) -> tuple[Array, Array]:
    """Losses (N,) = -sum_v q_v log softmax(logits)_v, q = (1 - s) onehot(target) + s / V; and log(sum(exp(logits))) (N,)."""
    if logits.shape[1] == 0:
        return np.zeros(len(logits), logits.dtype), np.full(len(logits), -np.inf, logits.dtype)
    largest = logits.max(axis=1)
    with np.errstate(all="ignore"):
        shift = np.where(np.isfinite(largest), largest, logits.dtype.type(0))
        lse = shift + np.log(np.exp(logits - shift[:, None]).sum(axis=1))
    counts = targets != ignore_index
    losses = np.zeros_like(lse)
    if counts.any():
        q = _target_distribution(logits[counts], targets[counts], label_smoothing)
        with np.errstate(invalid="ignore"):
            # The product is taken where q > 0 only: an impossible token of no weight costs nothing.
            losses[counts] = lse[counts] - np.where(q > 0, q * logits[counts], 0).sum(axis=1)
    return losses.astype(logits.dtype), lse


def cross_entropy_backward(
    lse: Array, logits: Array, targets: Array, dlosses: Array, *, ignore_index: int, label_smoothing: float
) -> Array:
    """Dlogits = (softmax(logits) - q) dlosses; zeros for ignored rows. dlosses: (N,), or one number for every row."""
    counts = targets != ignore_index
    dlogits = np.zeros_like(logits)
    if counts.any():
        each = np.broadcast_to(dlosses, targets.shape)[counts, None]
        q = _target_distribution(logits[counts], targets[counts], label_smoothing)
        # losses = lse(logits) - sum_v q_v logits_v, and the gradient of lse is softmax = exp(logits - lse)
        with np.errstate(invalid="ignore"):
            dlogits[counts] = (np.exp(logits[counts] - lse[counts, None]) - q) * each
    return dlogits


def _target_distribution(logits: Array, targets: Array, label_smoothing: float) -> Array:
    q = np.full(logits.shape, label_smoothing / logits.shape[1], logits.dtype)
    q[np.arange(len(targets)), targets] += 1 - label_smoothing
    return q


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


def _philox(key: int, counter: Array) -> Array:
    """Philox4x32-10 (Salmon et al. 2011): counter (n, 4) of 32-bit words in uint64 -> (n, 4) random words, likewise."""
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)
    c0, c1, c2, c3 = counter.T.astype(np.uint64)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & low, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=1)


def dropout(x: Array, *, p: float, seed: int, layer: int, call: int) -> Array:
    """X m / (1 - p): element i is kept where word i % 4 of Philox at counter (i / 4 in two words, call, layer) >= p 2^32."""
    blocks = np.arange((x.size + 3) // 4, dtype=np.uint64)
    rest = np.broadcast_to(np.array([call, layer], np.uint64), (len(blocks), 2))
    counter = np.column_stack([blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32), rest])
    kept = (_philox(seed, counter).reshape(-1)[: x.size] >= p * 2.0**32).reshape(x.shape)
    scale = x.dtype.type(1 / (1 - p)) if p < 1 else x.dtype.type(0)
    return np.where(kept, x * scale, x.dtype.type(0))


# ---------------------------------------------------------------- LSTM


def lstm_pack(w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None, *, packed: Any = None) -> Any:
    """The weights as the other functions take them: here, a snapshot. W (4H, I) and U (4H, H) in the order i, f, g, o."""
    zero = np.zeros(len(w_hh), w_hh.dtype)
    bias = (zero if b_ih is None else b_ih) + (zero if b_hh is None else b_hh)
    return SimpleNamespace(w_ih=w_ih.copy(), w_hh=w_hh.copy(), bias=bias)


def _lstm_cell(x: Array, h: Array, c: Array, weights: Any) -> tuple[Array, ...]:
    """One step: i, f, g, o, then c_t and h_t."""
    a = x @ weights.w_ih.T + h @ weights.w_hh.T + weights.bias
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    i, f, g, o = _sigmoid(a_i), _sigmoid(a_f), np.tanh(a_g), _sigmoid(a_o)
    c = f * c + i * g
    h = o * np.tanh(c)
    return i, f, g, o, c, h


def lstm_forward(x: Array, h_0: Array | None, c_0: Array | None, packed: Any, *, training: bool) -> tuple[Array, Array, Array, Any]:
    """Y (T, B, H) = h_1 ... h_T, the last h and c (B, H), and, in training, what `lstm_backward` needs."""
    T, B, _ = x.shape
    H = packed.w_hh.shape[1]
    h = np.zeros((B, H), x.dtype) if h_0 is None else h_0.copy()
    c = np.zeros((B, H), x.dtype) if c_0 is None else c_0.copy()
    steps = np.empty((T, 6, B, H), x.dtype)
    for t in range(T):
        steps[t] = _lstm_cell(x[t], h, c, packed)
        c, h = steps[t, 4], steps[t, 5]
    y = steps[:, 5].copy()
    cache = SimpleNamespace(x=x, h_0=h_0, c_0=c_0, weights=packed, steps=steps, cells=steps[:, 4]) if training else None
    return y, h.copy(), c.copy(), cache


def lstm_backward(
    cache: Any, dy: Array | None, dh_n: Array | None, dc_n: Array | None, *, need_dx: bool = True, need_weights: bool = True
) -> dict[str, Array | None]:
    """Backpropagation through time: dx, dh_0, dc_0, dw_ih, dw_hh and db, which is the gradient of either bias."""
    weights, x = cache.weights, cache.x
    T, B, H = cache.cells.shape
    dy = np.zeros((T, B, H), x.dtype) if dy is None else dy
    zeros = np.zeros((B, H), x.dtype)
    h_0, c_0 = (zeros if s is None else s for s in (cache.h_0, cache.c_0))
    dh, dc = (zeros if s is None else s for s in (dh_n, dc_n))
    da = np.empty((T, B, 4 * H), dy.dtype)
    for t in reversed(range(T)):
        i, f, g, o, c, _ = cache.steps[t]
        c_before = cache.steps[t - 1, 4] if t else c_0
        # y_t = h_t, and h_t goes on to step t + 1
        dh = dh + dy[t]
        # h_t = o tanh(c_t), and c_t goes on to step t + 1
        do = dh * np.tanh(c)
        dc = dc + dh * o * (1 - np.tanh(c) ** 2)
        # c_t = f c_{t-1} + i g
        df, di, dg = dc * c_before, dc * g, dc * i
        dc = dc * f
        # i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o) and g = tanh(a_g)
        da[t] = np.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)], axis=1)
        # a = x_t W_ih^T + h_{t-1} W_hh^T + b_ih + b_hh
        dh = da[t] @ weights.w_hh
    grads: dict[str, Array | None] = {"dx": None, "dw_ih": None, "dw_hh": None, "db": None}
    if need_dx:
        grads["dx"] = da @ weights.w_ih
    if need_weights:
        h_before = np.concatenate([h_0[None], cache.steps[:, 5]])[:T]
        grads["dw_ih"] = np.einsum("tbg,tbi->gi", da, x)
        grads["dw_hh"] = np.einsum("tbg,tbh->gh", da, h_before)
        grads["db"] = da.sum(axis=(0, 1))
    return grads | {"dh_0": dh.copy(), "dc_0": dc.copy()}


class _LSTMStream:
    """An LSTM that is fed one step at a time."""

    def __init__(self, packed: Any, batch_size: int) -> None:
        self.load(packed)
        shape = (batch_size, packed.w_hh.shape[1])
        self._h, self._c = np.zeros(shape, packed.w_hh.dtype), np.zeros(shape, packed.w_hh.dtype)

    def load(self, packed: Any) -> None:
        """Takes other weights of the same sizes; the state stays."""
        self._packed = packed

    def step(self, x: Array, out: Array | None = None) -> Array:
        """h_t (B, H) of x_t (B, I), written into `out` where it is given."""
        *_, self._c, self._h = _lstm_cell(x, self._h, self._c, self._packed)
        if out is None:
            return self._h.copy()
        out[...] = self._h
        return out

    @property
    def state(self) -> tuple[Array, Array]:
        """Copies of h and c (B, H)."""
        return self._h.copy(), self._c.copy()

    @state.setter
    def state(self, value: tuple[Array, Array]) -> None:
        self._h[...], self._c[...] = value

    def reset(self, rows: Any = None) -> None:
        """Zeros the state, of the given rows or of all."""
        index = slice(None) if rows is None else rows
        self._h[index] = 0
        self._c[index] = 0


def lstm_stream(packed: Any, *, batch_size: int) -> Any:
    """A stream with zero state: `step`, `state`, `reset`, `load`."""
    return _LSTMStream(packed, batch_size)


# ---------------------------------------------------------------- optimisers, in place


def sum_squares(x: Array) -> float:
    """The sum of x_i^2, in double."""
    return float(np.sum(np.square(x, dtype=np.float64)))


def scale(x: Array, factor: float) -> None:
    """X *= factor."""
    x *= x.dtype.type(factor)


def sgd(
    w: Array, velocity: Array | None, grad: Array, *, lr: float, momentum: float, nesterov: bool, first: bool, weight_decay: float
) -> None:
    """One step of gradient descent with momentum, as PyTorch defines it; `first` starts the velocity at the gradient."""
    g = grad + weight_decay * w
    if momentum != 0 and velocity is not None:
        velocity[...] = g if first else momentum * velocity + g
        g = g + momentum * velocity if nesterov else velocity
    w -= lr * g


def adam(
    w: Array,
    m: Array,
    v: Array,
    grad: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None:
    """One step of Adam (Kingma & Ba 2015), or, decoupled, of AdamW (Loshchilov & Hutter 2019); step counts from 1."""
    if decoupled:
        w *= 1 - lr * weight_decay
        g = grad
    else:
        g = grad + weight_decay * w
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    w -= lr * m_hat / (np.sqrt(v_hat) + eps)
