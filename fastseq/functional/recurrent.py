"""What the recurrent operations share: their checks, the one call of the backend with its record, and the explicit pairs.

A layer's weights are a tuple of `Weights`, one for each direction; a state has one row of (B, H) for each direction too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, Tensor, is_recording, record
from fastseq.backends import backend_of, is_gpu, namespace, placed
from fastseq.backends.recurrent import Noise, Weights, gates_of
from fastseq.functional import _check

NO_NOISE = Noise()
_F32, _F64 = _check.FLOATS
_NORMS = ("ln_ih_weight", "ln_ih_bias", "ln_hh_weight", "ln_hh_bias", "ln_c_weight", "ln_c_bias")


# ---------------------------------------------------------------- the call


def run(
    cell: str,
    x: ArrayOrTensor,
    directions: tuple[Weights, ...],
    h_0: ArrayOrTensor | None,
    c_0: ArrayOrTensor | None,
    packed: Any,
    **options: Any,
) -> tuple[Any, ...]:
    """One recurrent layer on checked arguments: y (T, B, D P), h (D, B, P), c (D, B, H) and, with `states`, the c of all steps.

    An input is a Tensor, and so are the results; the last two are None for cells without c. h_0 is (D, B, P), c_0 (D, B, H),
    `packed` what `pack` made of `directions`, and `options` are those of the backends' recurrent_forward.
    """
    weights = [w for direction in directions for w in direction if w is not None]
    inputs = (x, h_0, c_0, *weights)
    recording = is_recording(*inputs)
    xs, h0, c0 = [a.data if isinstance(a, Tensor) else a for a in inputs[:3]]
    backend = backend_of(xs)
    *outputs, cache = backend.recurrent_forward(xs, h0, c0, packed, training=recording, **options)
    if not recording:
        return tuple([None if a is None else Tensor(a) for a in outputs])
    need_dx, need_weights = _check.wants(x), is_recording(*weights)
    present = [k for k, a in enumerate(outputs) if a is not None]

    def backward(*given: Array | None) -> tuple[Array | None, ...]:
        upstream: list[Array | None] = [None] * 4
        for k, grad in zip(present, given, strict=True):
            upstream[k] = grad
        dy, dh, dc, dcells = upstream
        grads = backend.recurrent_backward(cache, dy, dh, dc, dcells=dcells, need_dx=need_dx, need_weights=need_weights)
        each: list[Any] = [None] * len(weights)
        if need_weights:
            pairs = zip(directions, grads["weights"], strict=True)
            each = [g for ws, gs in pairs for w, g in zip(ws, gs, strict=True) if w is not None]
        return grads["dx"], grads["dh_0"], grads["dc_0"], *each

    recorded = iter(record([outputs[k] for k in present], inputs, backward, cell))
    return tuple([None if a is None else next(recorded) for a in outputs])


def single(
    cell: str,
    x: ArrayOrTensor,
    weights: Weights,
    h_0: ArrayOrTensor | None,
    c_0: ArrayOrTensor | None = None,
    *,
    states: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    """What `run` returns, for one direction and a state of (B, H) arrays, once everything is checked; arrays for arrays."""
    inputs = (x, h_0, c_0, *weights)
    for a in inputs:
        if isinstance(a, Tensor):
            break
    else:
        checked = _checked(cell, x, h_0, c_0, weights, **options)
        backend = backend_of(x)
        packed = backend.recurrent_pack(cell, (weights,))
        y, *rest = backend.recurrent_forward(x, _outer(h_0), _outer(c_0), packed, states=states, **checked)[:4]
        return y, *[None if a is None else a[0] for a in rest]
    xs, h0, c0, *arrays = [a.data if isinstance(a, Tensor) else a for a in inputs]
    plain = Weights(*arrays)
    checked = _checked(cell, xs, h0, c0, plain, **options)
    packed = backend_of(xs).recurrent_pack(cell, (plain,))
    y, *rest = run(cell, x, (weights,), _outer(h_0), _outer(c_0), packed, states=states, **checked)
    return y, *[None if a is None else a.reshape(a.shape[1:]) for a in rest]


def _outer(state: ArrayOrTensor | None) -> ArrayOrTensor | None:
    """A state (B, H) with the axis of the directions."""
    return None if state is None else state.reshape((1, *state.shape))


# ---------------------------------------------------------------- the explicit pairs


class RecurrentCache:
    """What a forward half saves for its backward half, which never changes it. It refers to the inputs and the weights."""

    __slots__ = ("backend", "hidden_size", "like", "operation", "present", "saved", "sizes")

    def __init__(self, operation: str, backend: Any, saved: Any, y: Array, hidden_size: int, present: tuple[str, ...]) -> None:
        self.operation = operation
        self.backend = backend
        self.saved = saved
        self.sizes = y.shape  # T, B, P
        self.like = namespace(y).empty(0, y.dtype)  # of the kind and dtype of its gradients
        self.hidden_size = hidden_size
        self.present = present  # names of the weights that there are


def forward_half(
    operation: str, cell: str, x: Array, weights: Weights, h_0: Array | None, c_0: Array | None = None, **options: Any
) -> tuple[Array, Array, Array | None, RecurrentCache]:
    """y (T, B, P), the last h (B, P) and c (B, H) or None, and what `backward_half` needs, from plain arrays."""
    for name, value in zip(("x", "h_0", "c_0", *Weights._fields), (x, h_0, c_0, *weights), strict=True):
        if isinstance(value, Tensor):
            raise TypeError(f"{name}: expected an array, got a Tensor; functional.{operation} records its own gradient")
    checked = _checked(cell, x, h_0, c_0, weights, **options)
    backend = backend_of(x)
    packed = backend.recurrent_pack(cell, (weights,))
    y, h, c, _, saved = backend.recurrent_forward(x, _outer(h_0), _outer(c_0), packed, training=True, **checked)
    present = tuple(name for name, w in zip(Weights._fields, weights, strict=True) if w is not None)
    cache = RecurrentCache(operation, backend, saved, y, len(weights.w_hh) // gates_of(cell), present)
    return y, h[0], None if c is None else c[0], cache


def backward_half(
    operation: str,
    cache: RecurrentCache,
    dy: Array,
    dh: Array | None,
    dc: Array | None = None,
    *,
    need_dstates: bool = False,
) -> dict[str, Array | None]:
    """The gradients by name: dx, dh_0, dc_0, d<weight> for each weight, None for a bias that there was not; and dstates."""
    if not isinstance(cache, RecurrentCache) or cache.operation != operation:
        came = f"what {cache.operation}_forward did" if isinstance(cache, RecurrentCache) else type(cache).__name__
        raise TypeError(f"cache: expected what {operation}_forward returned, got {came}")
    T, B, P = cache.sizes
    for name, value, sizes in (("dy", dy, (T, B, P)), ("dh", dh, (B, P)), ("dc", dc, (B, cache.hidden_size))):
        if value is not None or name == "dy":
            _check.gradient(name, value, cache.like, sizes)
    found = cache.backend.recurrent_backward(cache.saved, dy, _outer(dh), _outer(dc), need_dstates=need_dstates)
    weights = found["weights"][0]._asdict()
    grads = {"dx": found["dx"], "dh_0": found["dh_0"][0], "db_ih": None, "db_hh": None}
    if found["dc_0"] is not None:
        grads["dc_0"] = found["dc_0"][0]
    grads |= {f"d{name}": weights[name] for name in cache.present}
    return grads | ({"dstates": found["dstates"][0]} if need_dstates else {})


# ---------------------------------------------------------------- checks


def checked_lengths(lengths: Any, steps: int, *batch: int, name: str = "lengths", limit: str = "the number of steps") -> Array | None:
    """Lengths (B,), or () without a batch, from 0 to T and of any integer dtype, as NumPy's int64 (B,) or (1,); `limit` says what T is."""
    if lengths is None:
        return None
    found = _check.counts(name, lengths)
    _check.shape(name, found, batch)
    if found.size and not (found.min() >= 0 and found.max() <= steps):
        wrong = found[(found < 0) | (found > steps)][0]
        raise ValueError(f"{name}: expected integers from 0 to {steps}, {limit}, got {wrong}")
    return np.ascontiguousarray(found, np.int64)


def checked_reset(reset: Any, *sizes: int) -> Array | None:
    """A mask of bools, (T, B): NumPy's, or CuPy's for a CuPy array."""
    if reset is None:
        return None
    found = _check.mask("reset", reset)
    if found.dtype != bool:
        raise TypeError(f"reset: expected bool, got {found.dtype}")
    _check.shape("reset", found, sizes)
    return namespace(found).ascontiguousarray(found)


def checked_options(
    x: Any, steps: int, batch: int, lengths: Any = None, reset: Any = None, checkpoint_every: int | None = None
) -> dict[str, Any]:
    """The options of `run` among these, checked, and where x is; what is None is left out."""
    options: dict[str, Any] = {}
    x = _check.data(x)
    if lengths is not None:
        options["lengths"] = placed(checked_lengths(lengths, steps, batch), x)
    if reset is not None:
        options["reset"] = placed(checked_reset(reset, steps, batch), x)
    if checkpoint_every is not None:
        options["checkpoint_every"] = _check.integer("checkpoint_every", checkpoint_every, 1, 2**62)
    return options


def _checked_noise(noise: Any) -> Noise:
    if not isinstance(noise, Noise):
        raise TypeError(f"noise: expected a Noise, got {type(noise).__name__}")
    for name in ("recurrent_dropout", "zoneout_h", "zoneout_c"):
        _check.probability(f"noise.{name}", getattr(noise, name))
    for name, limit in (("seed", 2**64), ("layer", 2**32 - 1), ("call", 2**32)):
        _check.integer(f"noise.{name}", getattr(noise, name), 0, limit)
    if not isinstance(noise.training, bool):
        raise TypeError(f"noise.training: expected True or False, got {type(noise.training).__name__}")
    return noise


def _checked(
    cell: str,
    x: Any,
    h_0: Any,
    c_0: Any,
    weights: Weights,
    *,
    lengths: Any = None,
    reset: Any = None,
    noise: Noise = NO_NOISE,
    checkpoint_every: int | None = None,
) -> dict[str, Any]:
    """The options of `run`, once arrays and options are known to fit."""
    if not _fits(gates_of(cell), x, h_0, c_0, weights):
        _validate(gates_of(cell), x, h_0, c_0, weights)
    if lengths is None and reset is None and noise is NO_NOISE and checkpoint_every is None:
        return {}
    steps, batch, _ = x.shape
    return checked_options(x, steps, batch, lengths, reset, checkpoint_every) | {"noise": _checked_noise(noise)}


def _fits(gates: int, x: Any, h_0: Any, c_0: Any, weights: Weights) -> bool:
    """Whether `_validate` would find nothing, in the tenth of its time: a short sequence takes little longer itself.

    Only where the weights are the four that every cell has.
    """
    w_ih, w_hh, b_ih, b_hh, *others = weights
    kind = type(x)
    if not kind is type(w_ih) is type(w_hh) or (kind is not np.ndarray and not is_gpu(x)):
        return False
    for a in others:
        if a is not None:
            return False
    dtype, sizes, w, u = x.dtype, x.shape, w_ih.shape, w_hh.shape
    if (dtype is not _F32 and dtype is not _F64) or dtype is not w_ih.dtype or dtype is not w_hh.dtype:
        return False
    if len(sizes) != 3 or len(u) != 2 or u[0] != gates * u[1] or w != (u[0], sizes[2]):
        return False
    for a, expected in ((b_ih, u[:1]), (b_hh, u[:1]), (h_0, (sizes[1], u[1])), (c_0, (sizes[1], u[1]))):
        if a is not None and (type(a) is not kind or a.dtype is not dtype or a.shape != expected):
            return False
    return sizes[0] * sizes[1] * u[0] <= _check.MOST_ELEMENTS


def _validate(gates: int, x: Any, h_0: Any, c_0: Any, weights: Weights) -> None:
    """Raises unless the arrays fit each other; None stands for zeros, or for what the layer does not have."""
    _check.floats("x", x)
    named = weights._asdict() | {"h_0": h_0, "c_0": c_0}
    for name, value in named.items():
        if value is not None or name in ("w_ih", "w_hh"):
            _check.like(name, value, x)
    _validate_norms(weights, lstm=gates == 4)
    w_ih, w_hh, w_hr = weights.w_ih, weights.w_hh, weights.w_hr
    sums = "H" if gates == 1 else f"{gates} H"
    width = "H" if w_hr is None else "P"
    _check.shape("w_hh", w_hh, (sums, width))
    rows, P = w_hh.shape
    H = rows // gates
    if rows != gates * H or (w_hr is None and P != H):
        raise ValueError(f"w_hh: expected shape ({sums}, {width}), got {w_hh.shape}")
    _check.shape("w_ih", w_ih, (rows, "I"))
    _check.shape("x", x, ("T", "B", w_ih.shape[1]))
    expected = {"w_hr": (P, H), "w_ch": (3, H), "ln_c_weight": (H,), "ln_c_bias": (H,)}
    expected |= {"h_0": (x.shape[1], P), "c_0": (x.shape[1], H)}
    for name, value in named.items():
        if value is not None and name not in ("w_ih", "w_hh"):
            _check.shape(name, value, expected.get(name, (rows,)))
    _check.size("x", *x.shape[:2], rows)
    backend_of(x, *(a for a in named.values() if a is not None))


def _validate_norms(weights: Weights, *, lstm: bool) -> None:
    """Raises unless layer norm has all of its gains and biases, or none."""
    names = _NORMS if lstm else _NORMS[:4]
    missing = [name for name in names if getattr(weights, name) is None]
    if missing and len(missing) < len(names):
        raise TypeError(f"{missing[0]}: expected an array, for layer norm takes {', '.join(names)}, got None")
