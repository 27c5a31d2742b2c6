"""What parameters start from: the distributions that layers draw."""

from __future__ import annotations

import math

import numpy as np

from fastseq.nn._inputs import checked_elements


def uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float, dtype: np.dtype) -> np.ndarray:
    """Uniform in [-bound, bound): PyTorch's start of linear and recurrent layers, with bound = 1 / sqrt(width)."""
    checked_elements("sizes", *shape)
    return rng.uniform(-bound, bound, shape).astype(dtype)


def xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uniform with variance 2 / (inputs + outputs): PyTorch's start of attention's projections (Glorot & Bengio 2010)."""
    return uniform(rng, shape, (6 / ((shape[0] + shape[1]) * math.prod(shape[2:]))) ** 0.5, dtype)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, deviation: float = 1.0) -> np.ndarray:
    """Normal with mean 0: PyTorch's start of embeddings with deviation 1."""
    checked_elements("sizes", *shape)
    return (rng.standard_normal(shape) * deviation).astype(dtype)


def recurrent(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], bound: float, dtype: np.dtype
) -> np.ndarray:
    """A recurrent layer's parameter: uniform, but gains of layer norm start at 1 and its biases at 0."""
    if name.startswith("ln_"):
        return np.full(shape, 1 if "weight" in name else 0, dtype)
    return uniform(rng, shape, bound, dtype)


def forget(bias_ih: np.ndarray, bias_hh: np.ndarray, value: float) -> None:
    """Set the forget gate's part of an LSTM's biases (4H), so that a new layer remembers (Jozefowicz et al. 2015)."""
    gate = slice(len(bias_ih) // 4, len(bias_ih) // 2)
    bias_ih[gate], bias_hh[gate] = value, 0
