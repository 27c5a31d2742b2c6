"""What parameters start from: the distributions that layers draw."""

from __future__ import annotations

import math

import numpy as np

from fastseq.nn._inputs import checked_elements


def uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float, dtype: np.dtype) -> np.ndarray:
    """Uniform in [-bound, bound): PyTorch's start of linear and recurrent layers, with bound = 1 / sqrt(width)."""
    checked_elements("sizes", *shape)
    return rng.uniform(-bound, bound, shape).astype(dtype)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Standard normal: PyTorch's start of embeddings."""
    checked_elements("sizes", *shape)
    return rng.standard_normal(shape).astype(dtype)


def lstm(
    rng: np.random.Generator, input_size: int, hidden_size: int, bias: bool, forget_bias: float | None, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """weight_ih (4H, I), weight_hh (4H, H), and (bias_ih (4H), bias_hh (4H)) or None; gates in the order i, f, g, o.

    Uniform in +-1/sqrt(H) as PyTorch's; then the forget gate's part of bias_ih is `forget_bias` and that of bias_hh 0, so
    that a new layer remembers (Jozefowicz et al. 2015); None leaves them as drawn.
    """
    bound, width = 1 / math.sqrt(hidden_size), 4 * hidden_size
    weight_ih = uniform(rng, (width, input_size), bound, dtype)
    weight_hh = uniform(rng, (width, hidden_size), bound, dtype)
    if not bias:
        return weight_ih, weight_hh, None
    bias_ih, bias_hh = uniform(rng, (width,), bound, dtype), uniform(rng, (width,), bound, dtype)
    if forget_bias is not None:
        bias_ih[hidden_size : 2 * hidden_size], bias_hh[hidden_size : 2 * hidden_size] = forget_bias, 0
    return weight_ih, weight_hh, (bias_ih, bias_hh)
