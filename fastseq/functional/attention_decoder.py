"""The decoder of a sequence-to-sequence model over a whole target sequence, attention fed into its cell, and its explicit pair.

Bahdanau et al. (2015). Before step j the state s_{j-1} looks at the memory m_1 ... m_S of its row:

    q_j  = W_q s_{j-1}                       (dot: q_j = s_{j-1})
    e_ji = u . tanh(q_j + W_k m_i + b_k)     additive
           q_j . m_i                         dot, and bilinear, where it is s W_q^T m; scaled_dot: over sqrt(M)
    a_j  = softmax over i of e_j,  c_j = sum_i a_ji m_i
    s_j  = cell(s_{j-1}, [x_j; c_j])         LSTM or GRU
    o_j  = tanh(W_o [s_j; c_j] + b_o)

The query of step j depends on step j - 1, so the steps cannot be one product; all else (W_k m, the part of x_j in the cell, o_j, and the
gradients of all weights) is.
"""

from __future__ import annotations

from typing import Any

from fastseq.autograd import Array, ArrayOrTensor, Tensor, is_recording, record
from fastseq.backends import backend_of, placed
from fastseq.backends.attention_decoder import DecoderWeights
from fastseq.backends.recurrent import gates_of
from fastseq.functional import _check
from fastseq.functional.decoder_memory import DecoderMemory, made_ready
from fastseq.functional.recurrent import checked_lengths

ATTENTIONS = ("additive", "dot", "scaled_dot", "bilinear")
CELLS = ("lstm", "gru")


def attention_decoder(
    x: ArrayOrTensor,
    memory: ArrayOrTensor | DecoderMemory,
    w_ih: ArrayOrTensor,
    w_hh: ArrayOrTensor,
    b_ih: ArrayOrTensor,
    b_hh: ArrayOrTensor,
    w_out: ArrayOrTensor,
    b_out: ArrayOrTensor,
    *,
    cell: str = "lstm",
    attention: str = "additive",
    w_query: ArrayOrTensor | None = None,
    w_key: ArrayOrTensor | None = None,
    b_key: ArrayOrTensor | None = None,
    u: ArrayOrTensor | None = None,
    h_0: ArrayOrTensor | None = None,
    c_0: ArrayOrTensor | None = None,
    lengths: Any = None,
    memory_lengths: Any = None,
    return_weights: bool = False,
) -> tuple[Any, ...]:
    """A decoder over a target sequence, its attention fed into the cell; differentiable in all its arrays.

    Parameters
    ----------
    x : ndarray or Tensor (T, B, I), float32 or float64
        The targets, one step late: teacher forcing.
    memory : ndarray or Tensor (S, B, M), or DecoderMemory
        What is attended to, usually an encoder's outputs.
    w_ih, w_hh : ndarray or Tensor (G H, I + M) and (G H, H)
        The cell's, on [x_j; c_j]; G = 4 gates in the order i, f, g, o (LSTM) or 3 in the order r, z, n (GRU).
    b_ih, b_hh : ndarray or Tensor (G H,)
    w_out, b_out : ndarray or Tensor (H, H + M) and (H,)
        The output's, on [s_j; c_j].
    cell : {"lstm", "gru"}
    attention : {"additive", "dot", "scaled_dot", "bilinear"}
        "dot" and "scaled_dot" need H = M. "general", Luong's name, is "bilinear".
    w_query : ndarray or Tensor (A, H), for "bilinear" (M, H)
    w_key, b_key, u : ndarray or Tensor (A, M), (A,) and (A,)
        With "additive" only; a `DecoderMemory` has the first two in it.
    h_0, c_0 : ndarray or Tensor (B, H), optional
        The state before the first step, c_0 for an LSTM; zeros where None.
    lengths : (B,) integers from 0 to T, optional
        How many steps each row has; beyond, outputs and weights are 0, and the last state is that of the row's own end.
    memory_lengths : (B,) integers from 0 to S, optional
        How much of the memory each row has; a row with nothing gets the context 0.
    return_weights : bool
        Also return a.

    Returns
    -------
    outputs : ndarray or Tensor (T, B, H)
        o_j of each step.
    h, c : ndarray or Tensor (B, H)
        The state after the last step; c is None for a GRU.
    weights : ndarray or Tensor (T, B, S)
        With `return_weights` only.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit.

    Notes
    -----
    Denormal numbers are flushed to zero inside. Step by step, with the state handed on, the results have the same
    bits on the CPU; on a GPU they agree to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> x, memory = np.ones((5, 2, 3)), np.ones((7, 2, 4))
    >>> o, h, c, a = fs.functional.attention_decoder(
    ...     x, memory, *[np.zeros((16, n)) for n in (7, 4)], np.zeros(16), np.zeros(16), np.zeros((4, 8)), np.zeros(4),
    ...     attention="dot", return_weights=True)
    >>> o.shape, h.shape, a.shape
    ((5, 2, 4), (2, 4), (5, 2, 7))
    """
    return_weights = _check.boolean("return_weights", return_weights)
    weights = DecoderWeights(w_ih, w_hh, b_ih, b_hh, w_out, b_out, w_query, u)
    ready = _ready(attention, memory, w_key, b_key, memory_lengths)
    run = _Run(cell, attention, x, ready, weights, h_0, c_0, lengths)
    o, h, c, a = decode(run.packed(), x, ready, weights, h_0, c_0, scale=run.scale, lengths=run.lengths)
    return (o, h, c, a) if return_weights else (o, h, c)


def decode(
    packed: Any,
    x: ArrayOrTensor,
    memory: DecoderMemory,
    weights: DecoderWeights,
    h_0: ArrayOrTensor | None,
    c_0: ArrayOrTensor | None,
    *,
    scale: float,
    lengths: Array | None,
) -> tuple[Any, ...]:
    """Outputs, h, c and attention weights, from checked arguments; `packed` is what the backend's pack made of `weights`."""
    inputs = (x, memory.keys, memory.values, h_0, c_0, *weights)
    arrays = [a.data if isinstance(a, Tensor) else a for a in inputs[:5]]
    backend = backend_of(arrays[0])
    recording = is_recording(*inputs)
    *outputs, cache = backend.attention_decoder_forward(
        *arrays, packed, scale=scale, lengths=lengths, memory_lengths=memory.placed_lengths, training=recording
    )
    if not recording:
        tensors = any(isinstance(a, Tensor) for a in inputs)
        return tuple([Tensor(a) if tensors and a is not None else a for a in outputs])
    present = [k for k, a in enumerate(outputs) if a is not None]

    def backward(*given: Array | None) -> tuple[Array | None, ...]:
        upstream: list[Array | None] = [None] * 4
        for k, grad in zip(present, given, strict=True):
            upstream[k] = grad
        grads = backend.attention_decoder_backward(cache, *upstream)
        return *(grads[name] for name in ("dx", "dkeys", "dmemory", "dh_0", "dc_0")), *grads["weights"]

    recorded = iter(record([outputs[k] for k in present], inputs, backward, "attention_decoder"))
    return tuple([None if a is None else next(recorded) for a in outputs])


# ---------------------------------------------------------------- the explicit pair


class DecoderCache:
    """What `attention_decoder_forward` saves for `attention_decoder_backward`, which never changes it."""

    __slots__ = ("backend", "keys", "memory", "saved", "shapes", "w_key")

    def __init__(self, backend: Any, saved: Any, memory: DecoderMemory, w_key: Array | None, shapes: tuple[Any, ...]) -> None:
        self.backend = backend
        self.saved = saved
        self.memory = memory
        self.w_key = w_key
        self.shapes = shapes  # of outputs, h, c and weights


def attention_decoder_forward(
    x: Array,
    memory: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array,
    b_hh: Array,
    w_out: Array,
    b_out: Array,
    *,
    cell: str = "lstm",
    attention: str = "additive",
    w_query: Array | None = None,
    w_key: Array | None = None,
    b_key: Array | None = None,
    u: Array | None = None,
    h_0: Array | None = None,
    c_0: Array | None = None,
    lengths: Any = None,
    memory_lengths: Any = None,
) -> tuple[Array, Array, Array | None, Array, DecoderCache]:
    """The forward half of `attention_decoder` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x, memory, w_ih, w_hh, b_ih, b_hh, w_out, b_out, w_query, w_key, b_key, u, h_0, c_0 : ndarray
    cell, attention, lengths, memory_lengths
        All as in `attention_decoder`.

    Returns
    -------
    outputs : ndarray (T, B, H)
    h, c : ndarray (B, H)
        c None for a GRU.
    weights : ndarray (T, B, S)
    cache : DecoderCache
        Valid as long as the inputs and the results are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> arrays = [np.ones(shape) for shape in ((4, 1, 3), (5, 1, 2), (6, 5), (6, 2), 6, 6, (2, 4), 2)]
    >>> *outputs, cache = fs.functional.attention_decoder_forward(*arrays, cell="gru", attention="dot")
    >>> sorted(fs.functional.attention_decoder_backward(cache, np.ones((4, 1, 2))))
    ['db_hh', 'db_ih', 'db_out', 'dh_0', 'dmemory', 'dw_hh', 'dw_ih', 'dw_out', 'dx']
    """
    weights = DecoderWeights(w_ih, w_hh, b_ih, b_hh, w_out, b_out, w_query, u)
    named = {"x": x, "memory": memory, "w_key": w_key, "b_key": b_key, "h_0": h_0, "c_0": c_0} | weights._asdict()
    for name, value in named.items():
        if isinstance(value, Tensor):
            raise TypeError(f"{name}: expected an array, got a Tensor; functional.attention_decoder records its own gradient")
    ready = _ready(attention, memory, w_key, b_key, memory_lengths)
    run = _Run(cell, attention, x, ready, weights, h_0, c_0, lengths)
    backend = backend_of(x)
    *outputs, saved = backend.attention_decoder_forward(
        x, ready.keys, ready.values, h_0, c_0, run.packed(), scale=run.scale, lengths=run.lengths, memory_lengths=ready.placed_lengths,
        training=True)  # fmt: skip
    shapes = tuple([None if a is None else a.shape for a in outputs])
    return *outputs, DecoderCache(backend, saved, ready, w_key, shapes)


def attention_decoder_backward(
    cache: DecoderCache,
    doutputs: Array,
    *,
    dh: Array | None = None,
    dc: Array | None = None,
    dweights: Array | None = None,
) -> dict[str, Array]:
    """Backpropagation through time from the cache of `attention_decoder_forward`; may be called any number of times.

    Parameters
    ----------
    cache : DecoderCache
    doutputs : ndarray (T, B, H)
    dh, dc : ndarray (B, H), optional
        dL/dh and dL/dc of the final state, beside what reaches it through the outputs.
    dweights : ndarray (T, B, S), optional
        dL/da of the attention weights.

    Returns
    -------
    dict of ndarray
        dx, dmemory, dh_0, for an LSTM dc_0, and with a d before its name each weight that there was.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    _check.made_by("attention_decoder_forward", cache, DecoderCache)
    given = {"doutputs": doutputs, "dh": dh, "dc": dc, "dweights": dweights}
    for (name, value), expected in zip(given.items(), cache.shapes, strict=True):
        if value is None and name != "doutputs":
            continue
        if expected is None:
            raise TypeError(f"{name}: expected None with a GRU, got {type(value).__name__}")
        _check.gradient(name, value, cache.memory.values, expected)
    backend, values = cache.backend, cache.memory.values
    found = backend.attention_decoder_backward(cache.saved, doutputs, dh, dc, dweights)
    grads = {name: found[name] for name in ("dx", "dh_0", "dc_0") if found[name] is not None}
    grads |= {f"d{name}": a for name, a in found["weights"]._asdict().items() if a is not None}
    dmemory = found["dmemory"]
    if cache.w_key is not None:
        # keys = memory W_k^T + b_k
        dkeys = found["dkeys"].reshape(-1, len(cache.w_key))
        grads["dw_key"], grads["db_key"] = backend.matmul(dkeys.T, values.reshape(-1, values.shape[2])), backend.bias_backward(dkeys)
        dmemory = dmemory + backend.matmul(dkeys, cache.w_key).reshape(values.shape)
    return grads | {"dmemory": dmemory.swapaxes(0, 1)}


# ---------------------------------------------------------------- checks


def checked_attention(value: Any, other: str = "") -> str:
    """The name of a score, "general" as "bilinear"; `other`: what the caller takes beside them."""
    found = "bilinear" if isinstance(value, str) and value == "general" else value
    if not isinstance(found, str) or found not in ATTENTIONS:
        raise ValueError(f"attention: expected one of {', '.join(map(repr, ATTENTIONS))}{other}, got {value!r}")
    return found


def scale_of(attention: str | None, size: int) -> float:
    """What a dot product of vectors of this size is multiplied by."""
    return size**-0.5 if attention == "scaled_dot" and size else 1.0


def _ready(attention: Any, memory: Any, w_key: Any, b_key: Any, lengths: Any) -> DecoderMemory:
    """The memory as a DecoderMemory that fits the attention."""
    additive = checked_attention(attention) == "additive"
    if isinstance(memory, DecoderMemory):
        if lengths is not None or w_key is not None or b_key is not None:
            raise TypeError("memory_lengths, w_key, b_key: expected None with a DecoderMemory, which has them in it, got others")
    else:
        for name, value in (("w_key", w_key), ("b_key", b_key)):
            if (value is not None) != additive:
                raise TypeError(f"{name}: expected {'an array' if additive else 'None'} with {attention} attention, got {type(value).__name__}")
        memory = made_ready(memory, w_key, b_key, lengths, "memory_lengths")
    if (memory.keys is not None) != additive:
        raise ValueError(f"memory: expected one {'with' if additive else 'without'} keys for {attention} attention, got another")
    return memory


class _Run:
    """The checked options of one call."""

    def __init__(
        self, cell: Any, attention: Any, x: Any, memory: DecoderMemory, weights: DecoderWeights, h_0: Any, c_0: Any, lengths: Any
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f"cell: expected 'lstm' or 'gru', got {cell!r}")
        self.cell, self.attention = cell, checked_attention(attention)
        self.weights = DecoderWeights(*[_check.data(w) for w in weights])
        values = _check.floats("x", x)
        named = self.weights._asdict() | {"h_0": _check.data(h_0), "c_0": _check.data(c_0)}
        self._presence(named)
        for name, value in (named | {"memory": memory.values}).items():
            if value is not None:
                _check.like(name, value, values)
        self._shapes(values, memory, named)
        found = checked_lengths(lengths, *values.shape[:2])
        self.lengths = None if found is None else placed(found, values)
        self.scale = scale_of(self.attention, memory.shape[2])
        backend_of(values, *(a for a in named.values() if a is not None))

    def packed(self) -> Any:
        """The backend's form of the weights."""
        return backend_of(self.weights.w_ih).attention_decoder_pack(self.cell, self.weights)

    def _presence(self, named: dict[str, Any]) -> None:
        """Raises unless the weights that this attention has, and no others, are given."""
        has = {"w_query": self.attention in ("additive", "bilinear"), "u": self.attention == "additive"}
        for name, value in named.items():
            if name in ("h_0", "c_0"):
                continue
            if (value is not None) != has.get(name, True):
                wanted = "an array" if has.get(name, True) else "None"
                raise TypeError(f"{name}: expected {wanted} with {self.attention} attention, got {type(value).__name__}")
        if self.cell == "gru" and named["c_0"] is not None:
            raise TypeError(f"c_0: expected None with a GRU, got {type(named['c_0']).__name__}")

    def _shapes(self, x: Array, memory: DecoderMemory, named: dict[str, Any]) -> None:
        """Raises unless the shapes fit each other."""
        gates = gates_of(self.cell)
        S, B, M = memory.shape
        _check.shape("x", x, ("T", B, "I"))
        T, _, I = x.shape
        _check.shape("w_hh", named["w_hh"], (f"{gates} H", "H"))
        rows, H = named["w_hh"].shape
        if rows != gates * H:
            raise ValueError(f"w_hh: expected shape ({gates} H, H), got {named['w_hh'].shape}")
        if self.attention in ("dot", "scaled_dot") and H != M:
            raise ValueError(f"memory: expected shape (S, B, {H}), as wide as the state for {self.attention} attention, got {(S, B, M)}")
        A = H if named["w_query"] is None else len(named["w_query"]) if self.attention == "additive" else M
        expected = {"w_ih": (rows, I + M), "b_ih": (rows,), "b_hh": (rows,), "w_out": (H, H + M), "b_out": (H,), "w_query": (A, H)}
        expected |= {"u": (A,), "h_0": (B, H), "c_0": (B, H)}
        for name, sizes in expected.items():
            if named[name] is not None:
                _check.shape(name, named[name], sizes)
        if memory.keys is not None:
            keys = _check.data(memory.keys)
            if keys.shape[2] != A:
                raise ValueError(f"w_key: expected shape ({A}, M), for w_query has {A} rows, got ({keys.shape[2]}, {M})")
        _check.size("x", T, B, max(rows, H + M, S, A))
