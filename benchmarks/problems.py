"""What is timed: problems with their data (float32) and their right answers (float64, from `fastseq.backends.reference`).

A problem's `task` names the method of `benchmarks.peers` that solves it; `answer` names and holds what a solution must give.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastseq.backends import reference
from fastseq.backends.recurrent import Weights

Arrays = dict[str, np.ndarray]

#: The largest error that is let through, as a share of the answer's largest entry. Sums of float32 stay far below it; a gate
#: mixed up, a step left out or a reduced precision does not.
TOLERANCE = 1e-4

#: The cells by PyTorch's names: the backends' names, sums per hidden unit, and the weights of a direction without their suffix.
CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class WrongAnswerError(AssertionError):
    """An implementation computes something else: it is not timed."""


def verify(problem: Problem, implementation: str, got: Arrays) -> None:
    """Raise WrongAnswerError unless `got` holds the problem's answer."""
    compare(f"{implementation}, {problem}", got, problem.answer)


def compare(who: str, got: Arrays, right: Arrays) -> None:
    """Raise WrongAnswerError unless every array of `right` is in `got`, within the tolerance."""
    for name, want in right.items():
        if name not in got or got[name].shape != want.shape:
            shape = got[name].shape if name in got else None
            raise WrongAnswerError(f"{who}: {name}: expected shape {want.shape}, got {shape}")
        error, largest = np.abs(got[name] - want).max(initial=0), np.abs(want).max(initial=0)
        if not error <= TOLERANCE * largest:
            raise WrongAnswerError(f"{who}: {name}: off by {error:.2g}, entries up to {largest:.2g}")


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
class Recurrent(Problem):
    """Layers of a cell over T steps of B rows; mode: "inference", "training" (forward and back) or "step".

    `ragged`: rows of T / 10 to T steps, 0.55 T on average, in no order.
    """

    cell: str  # "LSTM", "GRU" or "RNN"
    mode: str
    B: int
    I: int
    H: int
    T: int = 3  # of a stream: how many steps are checked
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        length, stack = "" if self.mode == "step" else f"T{self.T} ", f"L{self.layers} D{self.D} " if self.form == "stacked" else ""
        form = "" if self.form == "recurrent" else f"{self.form} "
        return f"{self.cell} {self.mode} {form}{stack}{length}B{self.B} I{self.I} H{self.H}"

    @property
    def form(self) -> str:
        """What a library must be able to do: "recurrent" is one layer, one direction, rows of one length."""
        return "ragged" if self.ragged else "stacked" if self.layers > 1 or self.bidirectional else "recurrent"

    @property
    def task(self) -> str:
        return f"{self.form}_{self.mode}"

    @property
    def D(self) -> int:
        """Directions."""
        return 1 + self.bidirectional

    @property
    def suffixes(self) -> list[tuple[str, ...]]:
        """The ends of the weights' names, by layer and direction."""
        return [tuple(f"_l{layer}{direction}" for direction in ("", "_reverse")[:self.D]) for layer in range(self.layers)]

    @property
    def gflop(self) -> float:
        rows = self.B if self.mode == "step" else self.T * self.B if self.lengths is None else int(self.lengths.sum())
        inputs = self.I + (self.layers - 1) * self.D * self.H
        multiply_adds = self.D * GATES[self.cell] * self.H * (inputs + self.layers * self.H)
        return 2e-9 * (3 if self.mode == "training" else 1) * rows * multiply_adds

    @cached_property
    def weights(self) -> Arrays:
        """Under PyTorch's names, drawn as it draws them."""
        rng, bound, sums = np.random.default_rng(1), self.H ** -0.5, GATES[self.cell] * self.H
        made: Arrays = {}
        for layer, suffixes in enumerate(self.suffixes):
            shapes = (sums, self.D * self.H if layer else self.I), (sums, self.H), (sums,), (sums,)
            for suffix in suffixes:
                made |= {name + suffix: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in zip(WEIGHTS, shapes, strict=True)}
        return made

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """Steps of each row (B,), the first one all of them; None where all rows have T."""
        if not self.ragged:
            return None
        lengths = np.random.default_rng(4).integers(max(1, self.T // 10), self.T + 1, self.B)
        lengths[0] = self.T
        return lengths

    @cached_property
    def x(self) -> np.ndarray:
        """Input (T, B, I)."""
        return np.random.default_rng(2).standard_normal((self.T, self.B, self.I), np.float32)

    @cached_property
    def dy(self) -> np.ndarray:
        """Upstream gradient (T, B, D H)."""
        return np.random.default_rng(3).standard_normal((self.T, self.B, self.D * self.H), np.float32)

    @cached_property
    def answer(self) -> Arrays:
        """Step: y. Inference: y and the final states, but with ragged rows y alone: padding and a mask give no more. Training: y and gradients."""
        y, states, caches = self.x.astype(np.float64), [], []
        for suffixes in self.suffixes:
            directions = tuple(Weights(*(self.weights[name + suffix].astype(np.float64) for name in WEIGHTS)) for suffix in suffixes)
            packed = reference.recurrent_pack(CELLS[self.cell], directions)
            training = self.mode == "training"
            y, *ends, _, cache = reference.recurrent_forward(y, None, None, packed, lengths=self.lengths, training=training)
            states.append(ends)
            caches.append(cache)
        if self.mode == "training":
            return {"y": y} | self._gradients(caches)
        parts = {"h": [h for h, _ in states], "c": [c for _, c in states if c is not None]}
        ends = {name: np.concatenate(each) for name, each in parts.items() if each}
        return {"y": y} | (ends if self.task in ("recurrent_inference", "stacked_inference") else {})

    def _gradients(self, caches: list[Any]) -> Arrays:
        upstream, found = self.dy.astype(np.float64), {}
        for suffixes, cache in zip(reversed(self.suffixes), reversed(caches), strict=True):
            grads = reference.recurrent_backward(cache, upstream, None, None)
            upstream = grads["dx"]
            for suffix, each in zip(suffixes, grads["weights"], strict=True):
                found |= {name + suffix: grad for name, grad in zip(WEIGHTS, each, strict=False)}
        return {"dx": upstream, **found}


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


@dataclass(frozen=True)
class LinearCrossEntropy(Problem):
    """The mean over N rows of -log softmax(x (N, H) W^T)[target], W (V, H); mode: "inference" or "training" (with dx and dW)."""

    mode: str
    N: int
    H: int
    V: int

    def __str__(self) -> str:
        return f"linear cross-entropy {self.mode} N{self.N} H{self.H} V{self.V}"

    @property
    def task(self) -> str:
        return f"linear_cross_entropy_{self.mode}"

    @property
    def gflop(self) -> float:
        return 2e-9 * (3 if self.mode == "training" else 1) * self.N * self.H * self.V

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, W and targets."""
        rng = np.random.default_rng(0)
        weight = self.H**-0.5 * rng.standard_normal((self.V, self.H), np.float32)
        return rng.standard_normal((self.N, self.H), np.float32), weight, rng.integers(0, self.V, self.N)

    @cached_property
    def answer(self) -> Arrays:
        x, weight, targets = (a.astype(np.float64) if a.dtype.kind == "f" else a for a in self.data)
        options = {"ignore_index": -100, "label_smoothing": 0.0}
        losses, lse = reference.linear_cross_entropy_forward(x, weight, None, targets, **options)
        answer = {"loss": np.asarray(losses.mean())}
        if self.mode == "training":
            dlosses = np.asarray(1 / self.N)
            dx, dweight, _ = reference.linear_cross_entropy_backward(lse, x, weight, None, targets, dlosses, **options, need_dbias=False)
            answer |= {"dx": dx, "dweight": dweight}
        return answer


@dataclass(frozen=True)
class LayerNorm(Problem):
    """y = layer norm of x (M, N), or of s = x + residual, which is wanted too; mode: "inference" or "training" (with all gradients, from dy alone)."""

    mode: str
    M: int
    N: int
    residual: bool = False

    def __str__(self) -> str:
        return f"layer norm {self.mode} {'residual ' if self.residual else ''}M{self.M} N{self.N}"

    @property
    def task(self) -> str:
        return f"layer_norm_{self.mode}"

    @cached_property
    def data(self) -> Arrays:
        """x, weight, bias, dy and perhaps residual."""
        rng = np.random.default_rng(0)
        names = ["x", "dy", *(("residual",) if self.residual else ())]
        made = {name: rng.standard_normal((self.M, self.N), np.float32) for name in names}
        return made | {name: rng.standard_normal(self.N, np.float32) for name in ("weight", "bias")}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that have a gradient."""
        return ("x", "weight", "bias", *(("residual",) if self.residual else ()))

    @cached_property
    def answer(self) -> Arrays:
        a = {name: array.astype(np.float64) for name, array in self.data.items()}
        y, s, mean, rstd = reference.layer_norm_forward(a["x"], a.get("residual"), a["weight"], a["bias"], eps=1e-5)
        answer = {"y": y} | ({"s": s} if self.residual else {})
        if self.mode == "training":
            dx, dweight, dbias = reference.layer_norm_backward(a["dy"], None, s, mean, rstd, a["weight"])
            answer |= {"dx": dx, "dweight": dweight, "dbias": dbias} | ({"dresidual": dx} if self.residual else {})
        return answer


@dataclass(frozen=True)
class Gelu(Problem):
    """y = x Phi(x) of n elements; mode: "inference" or "training" (with dx)."""

    mode: str
    n: int

    def __str__(self) -> str:
        return f"gelu {self.mode} n{self.n}"

    @property
    def task(self) -> str:
        return f"gelu_{self.mode}"

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x and dy."""
        rng = np.random.default_rng(0)
        return rng.standard_normal(self.n, np.float32), rng.standard_normal(self.n, np.float32)

    @cached_property
    def answer(self) -> Arrays:
        x, dy = (a.astype(np.float64) for a in self.data)
        answer = {"y": reference.pointwise_forward(x, function="gelu")}
        return answer | ({"dx": reference.pointwise_backward(x, dy, function="gelu")} if self.mode == "training" else {})


@dataclass(frozen=True)
class AdditiveAttention(Problem):
    """softmax_k(u . tanh(q + k)) v: y (B, Tq, D), values as wide as keys; mode: "inference" or "training" (with all gradients).

    `ragged`: rows of Tk / 10 to Tk keys, 0.55 Tk on average, in no order.
    """

    mode: str
    B: int
    Tq: int
    Tk: int
    D: int
    ragged: bool = False

    def __str__(self) -> str:
        return f"additive attention {self.mode} {'ragged ' if self.ragged else ''}B{self.B} Tq{self.Tq} Tk{self.Tk} D{self.D}"

    @property
    def task(self) -> str:
        return f"additive_attention_{self.mode}"

    @cached_property
    def data(self) -> tuple[np.ndarray, ...]:
        """Projected queries and keys, values, u, and the upstream gradient of y."""
        rng, (B, Tq, Tk, D) = np.random.default_rng(0), (self.B, self.Tq, self.Tk, self.D)
        shapes = (B, Tq, D), (B, Tk, D), (B, Tk, D), (D,), (B, Tq, D)
        return tuple([(rng.standard_normal(shape) / np.sqrt(D) ** (len(shape) == 1)).astype(np.float32) for shape in shapes])

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """Keys of each row (B,), the first one all of them; None where all rows have Tk."""
        if not self.ragged:
            return None
        lengths = np.random.default_rng(4).integers(max(1, self.Tk // 10), self.Tk + 1, self.B)
        lengths[0] = self.Tk
        return lengths

    @cached_property
    def answer(self) -> Arrays:
        *arrays, dy = (a.astype(np.float64) for a in self.data)
        parts: list[list[np.ndarray]] = []
        for b in range(self.B):  # row by row: all tanh at once would be large
            q, k, v = (a[b : b + 1] for a in arrays[:3])
            lengths = None if self.lengths is None else self.lengths[b : b + 1]
            y, weights = reference.additive_attention_forward(q, k, v, arrays[3], key_lengths=lengths, need_weights=True)
            grads = reference.additive_attention_backward(q, k, v, arrays[3], weights, dy[b : b + 1], key_lengths=lengths)
            parts.append([y, *grads[:4]])
        y, dq, dk, dv, du = zip(*parts, strict=True)
        answer = {"y": np.concatenate(y)}
        if self.mode == "training":
            answer |= {"dq": np.concatenate(dq), "dk": np.concatenate(dk), "dv": np.concatenate(dv), "du": np.sum(du, axis=0)}
        return answer
