"""softmax, its logarithm and their losses, written to be read: the part of `reference.py` that has them."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


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


def mean_loss(losses: Array, targets: Array, *, ignore_index: int) -> tuple[Array, Array]:
    """The mean () of the losses whose target counts, NaN over none of them; and how many count, 1 at least, in the losses' dtype."""
    total, count = losses.sum(dtype=np.float64), int(np.count_nonzero(targets != ignore_index))
    mean = total / count if count else np.nan
    return np.asarray(mean, losses.dtype), np.asarray(max(count, 1), losses.dtype)


# ---------------------------------------------------------------- the logarithm of softmax


def log_softmax_forward(x: Array) -> Array:
    """X - log(sum(exp(x))) over the last axis; -inf, as softmax's zeros have it, where all of it is -inf."""
    if x.shape[-1] == 0:
        return x.copy()
    largest = x.max(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        shifted = x - np.where(largest == -np.inf, x.dtype.type(0), largest)
        y = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.where(largest == -np.inf, x, y)


def log_softmax_backward(y: Array, dy: Array) -> Array:
    """Dx of y = log_softmax(x): dy_j/dx_i = delta_ij - exp(y_i)."""
    return dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)


# ---------------------------------------------------------------- cross entropy of a linear layer


def linear_cross_entropy_forward(
    x: Array, weight: Array, bias: Array | None, targets: Array, *, ignore_index: int, label_smoothing: float
) -> tuple[Array, Array]:
    """Losses (N,) and log(sum(exp(logits))) (N,) of logits = x W^T + b."""
    logits = _logits(x, weight, bias)
    return cross_entropy_forward(logits, targets, ignore_index=ignore_index, label_smoothing=label_smoothing)


def linear_cross_entropy_backward(
    lse: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    dlosses: Array,
    *,
    ignore_index: int,
    label_smoothing: float,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """Dx, dweight and dbias, None where they are not asked for; dlosses: (N,), or one number for every row."""
    logits = _logits(x, weight, bias)
    # losses = cross_entropy(logits)
    dlogits = cross_entropy_backward(lse, logits, targets, dlosses, ignore_index=ignore_index, label_smoothing=label_smoothing)
    # logits = x W^T + b
    return (
        dlogits @ weight if need_dx else None,
        dlogits.T @ x if need_dweight else None,
        dlogits.sum(axis=0) if need_dbias else None,
    )


def _logits(x: Array, weight: Array, bias: Array | None) -> Array:
    logits = x @ weight.T
    return logits if bias is None else logits + bias
