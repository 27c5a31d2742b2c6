"""What all pictures share: matplotlib, imported when one is asked for, a place to draw, and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastseq.autograd import Tensor
from fastseq.backends import to_cpu


def pyplot() -> Any:
    """matplotlib.pyplot, or one sentence that says what to install."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError('plot: matplotlib is missing; install it with pip install "fastseq-kernels[plot]"') from None
    return pyplot


def axes(ax: Any, size: Sequence[float]) -> Any:
    """The Axes that was given, or that of a new figure of about so many inches across and down."""
    if ax is None:
        return pyplot().subplots(figsize=[max(each, 1.8) for each in size], layout="constrained")[1]
    if not isinstance(ax, pyplot().Axes):
        raise TypeError(f"ax: expected a matplotlib Axes, got {type(ax).__name__}")
    return ax


def numbers(name: str, x: Any) -> np.ndarray:
    """Real numbers as float64."""
    a = np.asarray(to_cpu(x.data if isinstance(x, Tensor) else x))
    if a.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got {a.dtype}")
    return a.astype(np.float64)
