"""Gradients by central differences, with nothing of the library in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Arrays of up to so many elements are differenced one by one, larger ones along random directions.
FEW = 32


def along(function: Callable[[], float], x: np.ndarray, direction: np.ndarray, step: float = 1e-4) -> float:
    """The slope of `function`, which reads x (float64, changed and restored), along a direction.

    Two widths are combined (Richardson), so that the error falls with step^4.
    """
    if x.dtype != np.float64:
        raise TypeError(f"x: differences need float64, got {x.dtype}")
    before, slopes = x.copy(), []
    for width in (step, 2 * step):
        x[...] = before + width * direction
        above = function()
        x[...] = before - width * direction
        slopes.append((above - function()) / (2 * width))
    x[...] = before
    return (4 * slopes[0] - slopes[1]) / 3


def gradient(function: Callable[[], float], x: np.ndarray) -> np.ndarray:
    """d function() / d x, element by element."""
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        direction = np.zeros_like(x)
        direction[index] = 1
        result[index] = along(function, x, direction)
    return result


def assert_gradient(got: np.ndarray, function: Callable[[], float], x: np.ndarray, name: str, rng: np.random.Generator) -> None:
    """Raises AssertionError unless `got` is the gradient of `function` for x, to about eight digits of its length."""
    assert got.shape == x.shape, f"{name}: expected shape {x.shape}, got {got.shape}"
    if x.size <= FEW:
        error = got - gradient(function, x)
    else:
        directions = [rng.standard_normal(x.shape) for _ in range(4)]
        error = np.array([float(np.sum(got * d)) - along(function, x, d / np.sqrt(x.size)) * np.sqrt(x.size) for d in directions])
    worst = float(np.max(np.abs(error), initial=0.0))
    allowed = 1e-8 * float(np.sqrt(np.sum(got**2))) + 1e-9
    assert worst <= allowed, f"{name}: off by {worst:.3g}, allowed {allowed:.3g}"
