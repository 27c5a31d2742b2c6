"""What is timed: problems with their data (float32) and their right answers (float64, from `fastseq.backends.reference`).

A problem's `task` names the method of `benchmarks.peers` that solves it; `answer` names and holds what a solution must give.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastseq.backends import reference

Arrays = dict[str, np.ndarray]

#: The largest error that is let through, as a share of the answer's largest entry. Sums of float32 stay far below it; a gate
#: mixed up, a step left out or a reduced precision does not.
TOLERANCE = 1e-4


class WrongAnswerError(AssertionError):
    """An implementation computes something else: it is not timed."""


def verify(problem: Problem, implementation: str, got: Arrays) -> None:
    """Raise WrongAnswerError unless `got` holds the problem's answer, every array of it."""
    for name, want in problem.answer.items():
        if name not in got or got[name].shape != want.shape:
            shape = got[name].shape if name in got else None
            raise WrongAnswerError(f"{implementation}, {problem}: {name}: expected shape {want.shape}, got {shape}")
        error, largest = np.abs(got[name] - want).max(initial=0), np.abs(want).max(initial=0)
        if not error <= TOLERANCE * largest:
            raise WrongAnswerError(f"{implementation}, {problem}: {name}: off by {error:.2g}, entries up to {largest:.2g}")


@dataclass(frozen=True)
class Problem:
    """One line of a table."""

    @property
    def task(self) -> str:
        """The method of an implementation that solves it."""
        raise NotImplementedError

    @property
    def gflop(self) -> float:
        """10^9 operations of its matrix products, a multiply-add being two; 0 where there are none."""
        return 0.0

    @property
    def answer(self) -> Arrays:
        """The arrays that a solution must give, float64."""
        raise NotImplementedError


@dataclass(frozen=True)
class Matmul(Problem):
    """c (M, N) = a (M, K) b (K, N); packed: b stays the same from call to call and may be prepared."""

    M: int
    N: int
    K: int
    packed: bool = False

    def __str__(self) -> str:
        return f"matmul {'packed ' if self.packed else ''}{self.M}x{self.N}x{self.K}"

    @property
    def task(self) -> str:
        return "matmul_packed" if self.packed else "matmul"

    @property
    def gflop(self) -> float:
        return 2e-9 * self.M * self.N * self.K

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """The operands a and b."""
        rng = np.random.default_rng(0)
        return rng.standard_normal((self.M, self.K), np.float32), rng.standard_normal((self.K, self.N), np.float32)

    @cached_property
    def answer(self) -> Arrays:
        a, b = self.data
        return {"c": reference.matmul(a.astype(np.float64), b.astype(np.float64))}


@dataclass(frozen=True)
class LSTM(Problem):
    """One layer, one direction, over T steps of B rows; mode: "inference", "training" (forward and back) or "step"."""

    mode: str
    B: int
    I: int
    H: int
    T: int = 3  # of a stream: how many steps are checked

    def __str__(self) -> str:
        length = "" if self.mode == "step" else f"T{self.T} "
        return f"LSTM {self.mode} {length}B{self.B} I{self.I} H{self.H}"

    @property
    def task(self) -> str:
        return f"lstm_{self.mode}"

    @property
    def gflop(self) -> float:
        steps, passes = (1 if self.mode == "step" else self.T), (3 if self.mode == "training" else 1)
        return 2e-9 * passes * steps * self.B * 4 * self.H * (self.I + self.H)

    @cached_property
    def weights(self) -> Arrays:
        """Under PyTorch's names, drawn as it draws them."""
        rng, bound = np.random.default_rng(1), self.H ** -0.5
        shapes = {"weight_ih_l0": (4 * self.H, self.I), "weight_hh_l0": (4 * self.H, self.H), "bias_ih_l0": (4 * self.H,), "bias_hh_l0": (4 * self.H,)}
        return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}

    @cached_property
    def x(self) -> np.ndarray:
        """Input (T, B, I)."""
        return np.random.default_rng(2).standard_normal((self.T, self.B, self.I), np.float32)

    @cached_property
    def dy(self) -> np.ndarray:
        """Upstream gradient (T, B, H)."""
        return np.random.default_rng(3).standard_normal((self.T, self.B, self.H), np.float32)

    @cached_property
    def answer(self) -> Arrays:
        packed = reference.lstm_pack(*(w.astype(np.float64) for w in self.weights.values()))
        y, h, c, cache = reference.lstm_forward(self.x.astype(np.float64), None, None, packed, training=True)
        if self.mode == "step":
            return {"y": y}
        if self.mode == "inference":
            return {"y": y, "h": h, "c": c}
        grads = reference.lstm_backward(cache, self.dy.astype(np.float64), None, None)
        names = {"dx": "dx", "dw_ih": "weight_ih_l0", "dw_hh": "weight_hh_l0", "db": "bias_ih_l0"}
        return {"y": y} | {name: grads[key] for key, name in names.items()} | {"bias_hh_l0": grads["db"]}


@dataclass(frozen=True)
class CrossEntropy(Problem):
    """The mean over N rows of -log softmax(logits (N, V))[target]; mode: "inference" or "training" (with dlogits)."""

    mode: str
    N: int
    V: int

    def __str__(self) -> str:
        return f"cross-entropy {self.mode} N{self.N} V{self.V}"

    @property
    def task(self) -> str:
        return f"cross_entropy_{self.mode}"

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and targets."""
        rng = np.random.default_rng(0)
        return 3 * rng.standard_normal((self.N, self.V), np.float32), rng.integers(0, self.V, self.N)

    @cached_property
    def answer(self) -> Arrays:
        logits, targets = self.data[0].astype(np.float64), self.data[1]
        options = {"ignore_index": -100, "label_smoothing": 0.0}
        losses, lse = reference.cross_entropy_forward(logits, targets, **options)
        answer = {"loss": np.asarray(losses.mean())}
        if self.mode == "training":
            answer["dlogits"] = reference.cross_entropy_backward(lse, logits, targets, np.asarray(1 / self.N), **options)
        return answer
