"""What parameters start from: the distributions that layers draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastseq.nn._inputs import checked_elements
from fastseq.runtime import generator


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


# ---------------------------------------------------------------- for a user's own start: parameter.data[...] = orthogonal(parameter.shape, rng=0)


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many inputs an output adds up, and how many outputs an input goes to: (outputs, inputs, *kernel)."""
    if len(shape) < 2:
        raise ValueError(f"shape: expected at least two axes, (outputs, inputs, *kernel), got {shape}")
    return shape[1] * math.prod(shape[2:]), shape[0] * math.prod(shape[2:])


def _drawn(rng: Any, shape: tuple[int, ...], deviation: float, distribution: str, dtype: Any) -> np.ndarray:
    if distribution not in ("uniform", "normal"):
        raise ValueError(f"distribution: expected 'uniform' or 'normal', got {distribution!r}")
    if distribution == "normal":
        return normal(generator(rng), shape, np.dtype(dtype), deviation)
    return uniform(generator(rng), shape, deviation * 3**0.5, np.dtype(dtype))


def glorot(
    shape: tuple[int, ...], *, gain: float = 1.0, distribution: str = "uniform", dtype: Any = np.float32, rng: Any = None
) -> np.ndarray:
    """Weights with variance 2 gain^2 / (inputs + outputs): for tanh and sigmoid (Glorot & Bengio 2010; "Xavier").

    Parameters
    ----------
    shape : tuple of int
        (outputs, inputs, *kernel).
    gain : float
    distribution : {"uniform", "normal"}
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Returns
    -------
    ndarray of this shape

    Raises
    ------
    ValueError
        If shape has fewer than two axes, or the distribution is another word.

    Examples
    --------
    >>> import fastseq as fs
    >>> weight = fs.nn.init.glorot((200, 100), rng=0)
    >>> round(float(weight.std() ** 2 * 300), 1)
    2.0
    """
    return _drawn(rng, shape, gain * (2 / sum(_fans(shape))) ** 0.5, distribution, dtype)


def he(
    shape: tuple[int, ...], *, gain: float = 2**0.5, distribution: str = "uniform", dtype: Any = np.float32, rng: Any = None
) -> np.ndarray:
    """Weights with variance gain^2 / inputs, 2 / inputs for a ReLU (He et al. 2015; "Kaiming"); arguments as in `glorot`.

    Examples
    --------
    >>> import fastseq as fs
    >>> layer = fs.nn.Linear(100, 200)
    >>> layer.weight.data[...] = fs.nn.init.he(layer.weight.shape, distribution="normal", rng=0)
    >>> round(float(layer.weight.data.std() ** 2 * 100), 1)
    2.0
    """
    return _drawn(rng, shape, gain / _fans(shape)[0] ** 0.5, distribution, dtype)


def orthogonal(shape: tuple[int, ...], *, gain: float = 1.0, dtype: Any = np.float32, rng: Any = None) -> np.ndarray:
    """Rows (or, where there are more rows than columns, columns) of length `gain` at right angles, uniformly drawn (Saxe et al. 2014).

    A recurrent matrix that starts so neither shrinks nor stretches the state. Axes after the first count as one; other
    arguments as in `glorot`.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> weight = fs.nn.init.orthogonal((3, 5), rng=0)
    >>> np.allclose(weight @ weight.T, np.eye(3), atol=1e-6)
    True
    """
    _fans(shape)
    checked_elements("shape", *shape)
    rows, columns = shape[0], math.prod(shape[1:])
    drawn = generator(rng).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(drawn)
    q = q * np.sign(np.diag(r))  # so that the distribution is uniform
    return (gain * (q if rows >= columns else q.T)).reshape(shape).astype(dtype)
