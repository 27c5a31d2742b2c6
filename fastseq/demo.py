"""What `fastseq demo` measures: the latency of one step, and LSTMs beside the same equations in plain NumPy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastseq.nn import LSTM

#: (T, B, I, H) of the table: a step, a small and a large layer on one sequence, and two batches.
CASES = ((1, 1, 64, 128), (100, 1, 16, 32), (100, 1, 64, 128), (100, 16, 64, 128), (100, 32, 128, 256))


@dataclass(frozen=True)
class Comparison:
    """Seconds for one call of an LSTM layer, and of NumPy on the same weights and input."""

    T: int
    B: int
    I: int
    H: int
    fastseq_seconds: float
    numpy_seconds: float

    @property
    def ratio(self) -> float:
        """How many times faster fastseq is."""
        return self.numpy_seconds / self.fastseq_seconds


def step_seconds(layer: LSTM, steps: int = 2000) -> float:
    """The median time of `stream.step` for one row, over `steps` calls from Python."""
    stream = layer.stream()
    x = np.zeros((1, layer.input_size), layer.dtype)
    times = np.empty(steps)
    for i in range(steps):
        begin = time.perf_counter()
        stream.step(x)
        times[i] = time.perf_counter() - begin
    return float(np.median(times))


def compare_with_numpy(cases: tuple[tuple[int, int, int, int], ...] = CASES, seconds: float = 0.4) -> list[Comparison]:
    """Time LSTM inference, float32, beside NumPy; the results are compared first.

    Parameters
    ----------
    cases : tuples (T, B, I, H)
    seconds : float
        How long to time each case.

    Raises
    ------
    AssertionError
        If the two results differ by more than rounding.
    """
    return [_compare(*case, seconds) for case in cases]


def geometric_mean(ratios: list[float]) -> float:
    """The mean of factors."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _compare(T: int, B: int, I: int, H: int, seconds: float) -> Comparison:
    layer = LSTM(I, H, rng=0)
    x = np.random.default_rng(1).standard_normal((T, B, I), dtype=np.float32)
    plain = _numpy_lstm(layer)
    error = float(np.abs(layer(x)[0] - plain(x)).max())
    if not error < 1e-4:
        raise AssertionError(f"LSTM T{T} B{B} I{I} H{H}: fastseq and NumPy differ by {error}")
    own, numpy = _best_times((lambda: layer(x), lambda: plain(x)), seconds)
    return Comparison(T, B, I, H, own, numpy)


def _numpy_lstm(layer: LSTM) -> Callable[[np.ndarray], np.ndarray]:
    """The layer's forward pass as one writes it in NumPy with care: one product for all inputs, one for each step."""
    H = layer.hidden_size
    w_ih, w_hh = layer.weight_ih_l0.data.T.copy(), layer.weight_hh_l0.data.T.copy()
    assert layer.bias_ih_l0 is not None
    assert layer.bias_hh_l0 is not None
    bias = layer.bias_ih_l0.data + layer.bias_hh_l0.data

    def forward(x: np.ndarray) -> np.ndarray:
        T, B, _ = x.shape
        z = x @ w_ih + bias
        h, c, y = np.zeros((B, H), x.dtype), np.zeros((B, H), x.dtype), np.empty((T, B, H), x.dtype)
        for t in range(T):
            a = z[t] + h @ w_hh
            s = 1 / (1 + np.exp(-a))
            c = s[:, H : 2 * H] * c + s[:, :H] * np.tanh(a[:, 2 * H : 3 * H])
            h = s[:, 3 * H :] * np.tanh(c)
            y[t] = h
        return y

    return forward


def _best_times(calls: tuple[Callable[[], Any], ...], seconds: float) -> list[float]:
    """The shortest time of each call, in turns, so that what disturbs the machine meets all of them."""
    best = [math.inf] * len(calls)
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < 3 or time.perf_counter() < end:
        for i, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - begin)
        rounds += 1
    return best
