"""Dropout: elements set to zero at random while training (Srivastava et al. 2014)."""

from __future__ import annotations

from typing import Any

from fastseq import functional
from fastseq.nn._inputs import any_real_input
from fastseq.nn.module import Module
from fastseq.runtime import next_seed


class Dropout(Module):
    """Each element is zero with probability p, and the others are divided by 1 - p; nothing happens in `eval` mode.

    The masks come from Philox, so they depend on the seed and on how often the layer was called, never on threads.

    Parameters
    ----------
    p : float
        From 0 to 1.
    rng : None, int or numpy.random.Generator
        What the layer's seed is drawn from; None: the process's generator (`fs.manual_seed`).

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> drop = fs.nn.Dropout(0.5, rng=0)
    >>> sorted(set(drop(np.ones(100, np.float32)).tolist()))
    [0.0, 2.0]
    >>> drop.eval()(np.ones(3, np.float32)).tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(self, p: float = 0.5, *, rng: Any = None) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p: expected a probability from 0 to 1, got {p}")
        self.p = float(p)
        self._seed = next_seed(rng)
        self._calls = 0

    def forward(self, x: Any) -> Any:
        """Zero some elements of x, of any shape, if training."""
        x = any_real_input(x, "x")
        if not self.training or self.p == 0:
            return x
        self._calls += 1
        return functional.dropout(x, self.p, seed=self._seed, call=self._calls % 2**32)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"
