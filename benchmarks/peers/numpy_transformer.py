"""A transformer's encoder layer as one writes it in NumPy with care, forwards and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problems import Arrays
from benchmarks.problems_transformer import EncoderLayer

EPS = np.float32(1e-5)


def normalised(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows with mean 0 and variance 1, and 1 / their deviation before."""
    hat = s - s.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((hat * hat).mean(axis=-1, keepdims=True) + EPS)
    hat *= rstd
    return hat, rstd


class Layer:
    """Over rows (B T, E)."""

    def __init__(self, problem: EncoderLayer) -> None:
        self.problem, self.w = problem, problem.weights
        self.scale = np.float32((problem.E // problem.heads) ** -0.5)

    def linear(self, x: np.ndarray, name: str, end: str = ".") -> np.ndarray:
        y = x @ self.w[f"{name}{end}weight"].T
        y += self.w[f"{name}{end}bias"]
        return y

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        """y, and what the way back needs."""
        w, problem = self.w, self.problem
        q, k, v = problem.split(self.linear(x, "self_attn.in_proj", "_"))
        p = q @ k.swapaxes(-1, -2)
        p *= self.scale
        p -= p.max(axis=-1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=-1, keepdims=True)
        heads = problem.join(p @ v)
        first = normalised(self.linear(heads, "self_attn.out_proj") + x)
        middle = first[0] * w["norm1.weight"] + w["norm1.bias"]
        hidden = self.linear(middle, "linear1")
        np.maximum(hidden, 0, out=hidden)
        second = normalised(self.linear(hidden, "linear2") + middle)
        return second[0] * w["norm2.weight"] + w["norm2.bias"], (q, k, v, p, heads, first, middle, hidden, second)

    def both(self, x: np.ndarray, dy: np.ndarray) -> Arrays:
        """y, dx and every parameter's gradient."""
        y, (q, k, v, p, heads, first, middle, hidden, second) = self.forward(x)
        problem, found = self.problem, {"y": y}

        def linear_back(d: np.ndarray, rows: np.ndarray, name: str, end: str = ".") -> np.ndarray:
            found.update({f"{name}{end}weight": d.T @ rows, f"{name}{end}bias": d.sum(axis=0)})
            return d @ self.w[f"{name}{end}weight"]

        def norm_back(d: np.ndarray, saved: tuple[np.ndarray, np.ndarray], name: str) -> np.ndarray:
            hat, rstd = saved
            found.update({f"{name}.weight": (d * hat).sum(axis=0), f"{name}.bias": d.sum(axis=0)})
            d = d * self.w[f"{name}.weight"]
            return rstd * (d - d.mean(axis=-1, keepdims=True) - hat * (d * hat).mean(axis=-1, keepdims=True))

        d = norm_back(dy, second, "norm2")
        d = norm_back(d + linear_back(linear_back(d, hidden, "linear2") * (hidden > 0), middle, "linear1"), first, "norm1")
        dheads = linear_back(d, heads, "self_attn.out_proj").reshape(problem.B, problem.T, problem.heads, -1).swapaxes(1, 2)
        dp = dheads @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
        ds *= self.scale
        dqkv = np.empty((len(x), 3 * problem.E), np.float32)
        for part, grad in zip(problem.split(dqkv), (ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dheads), strict=True):
            part[...] = grad
        found["dx"] = d + linear_back(dqkv, x, "self_attn.in_proj", "_")
        return found
