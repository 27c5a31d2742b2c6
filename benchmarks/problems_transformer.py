"""Scaled dot-product attention and a transformer's encoder layer as problems; as `benchmarks.problems`, which they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.problems import Arrays, Problem
from fastseq.backends import reference
from fastseq.backends.attention import AttentionOptions


@dataclass(frozen=True)
class Attention(Problem):
    """Scaled dot-product attention, y (B, heads, Tq, D); mode: "inference" or "training" (with the gradients of q, k and v).

    One query is a step of decoding, which sees all keys.
    """

    mode: str
    B: int
    heads: int
    Tq: int
    Tk: int
    D: int
    causal: bool = False

    def __str__(self) -> str:
        form = "decoding " if self.Tq == 1 else "causal " if self.causal else ""
        return f"attention {self.mode} {form}B{self.B} h{self.heads} Tq{self.Tq} Tk{self.Tk} D{self.D}"

    @property
    def task(self) -> str:
        return f"attention_{self.mode}"

    @property
    def gflop(self) -> float:
        # Two products forwards, five backwards, which has to compute the scores again; half of them where the future is not seen.
        pairs = self.B * self.heads * self.Tq * self.Tk * (0.5 if self.causal else 1)
        return 4e-9 * (3.5 if self.mode == "training" else 1) * pairs * self.D

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """q, k, v and the upstream gradient of y."""
        rng = np.random.default_rng(0)
        q, k, v, dy = (rng.standard_normal((self.B, self.heads, T, self.D), np.float32) for T in (self.Tq, self.Tk, self.Tk, self.Tq))
        return q, k, v, dy

    @cached_property
    def answer(self) -> Arrays:
        q, k, v, dy = (a.astype(np.float64) for a in self.data)
        options = AttentionOptions(self.D**-0.5, causal=self.causal)
        y, lse, _ = reference.attention_forward(q, k, v, options=options, training=True)
        if self.mode == "inference":
            return {"y": y}
        dq, dk, dv, _ = reference.attention_backward(q, k, v, y, lse, dy, options=options)
        return {"y": y, "dq": dq, "dk": dk, "dv": dv}


@dataclass(frozen=True)
class EncoderLayer(Problem):
    """y (B, T, E) of PyTorch's TransformerEncoderLayer, post-norm, ReLU, no dropout; mode: "inference" or "training" (all gradients)."""

    mode: str
    B: int
    T: int
    E: int
    heads: int
    F: int

    def __str__(self) -> str:
        return f"encoder layer {self.mode} B{self.B} T{self.T} E{self.E} h{self.heads} F{self.F}"

    @property
    def task(self) -> str:
        return f"encoder_layer_{self.mode}"

    @property
    def gflop(self) -> float:
        rows = self.B * self.T
        forward = 2 * rows * (4 * self.E * self.E + 2 * self.E * self.F) + 4 * rows * self.T * self.E
        return 1e-9 * forward * (3 if self.mode == "training" else 1)

    @cached_property
    def weights(self) -> Arrays:
        """Under PyTorch's names."""
        rng, E, F = np.random.default_rng(1), self.E, self.F
        shapes = {"self_attn.in_proj_weight": (3 * E, E), "self_attn.in_proj_bias": (3 * E,), "self_attn.out_proj.weight": (E, E),
                  "self_attn.out_proj.bias": (E,), "linear1.weight": (F, E), "linear1.bias": (F,), "linear2.weight": (E, F), "linear2.bias": (E,),
                  "norm1.weight": (E,), "norm1.bias": (E,), "norm2.weight": (E,), "norm2.bias": (E,)}
        return {name: (rng.uniform(-1, 1, shape) * shape[-1] ** -0.5 + ("norm" in name and "weight" in name)).astype(np.float32)
                for name, shape in shapes.items()}

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x and the upstream gradient of y, (B, T, E) both."""
        rng, shape = np.random.default_rng(0), (self.B, self.T, self.E)
        return rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)

    def split(self, qkv: np.ndarray) -> np.ndarray:
        """(B T, 3 E) as (3, B, heads, T, D), views."""
        return qkv.reshape(self.B, self.T, 3, self.heads, self.E // self.heads).transpose(2, 0, 3, 1, 4)

    def join(self, heads: np.ndarray) -> np.ndarray:
        """(B, heads, T, D) as (B T, E)."""
        return heads.transpose(0, 2, 1, 3).reshape(self.B * self.T, self.E)

    @cached_property
    def answer(self) -> Arrays:
        w = {name: a.astype(np.float64) for name, a in self.weights.items()}
        x, dy = (a.reshape(-1, self.E).astype(np.float64) for a in self.data)

        def linear(rows: np.ndarray, name: str, end: str = ".") -> np.ndarray:
            return reference.matmul(rows, w[f"{name}{end}weight"].T, bias=w[f"{name}{end}bias"])

        def norm(rows: np.ndarray, residual: np.ndarray, name: str) -> tuple[np.ndarray, ...]:
            return reference.layer_norm_forward(rows, residual, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

        q, k, v = self.split(linear(x, "self_attn.in_proj", "_"))
        options = AttentionOptions(q.shape[-1] ** -0.5)
        heads, lse, _ = reference.attention_forward(q, k, v, options=options, training=True)
        middle, *first = norm(linear(self.join(heads), "self_attn.out_proj"), x, "norm1")
        hidden = np.maximum(linear(middle, "linear1"), 0)
        y, *second = norm(linear(hidden, "linear2"), middle, "norm2")
        found = {"y": y.reshape(self.data[0].shape)}
        if self.mode == "inference":
            return found

        def linear_back(d: np.ndarray, rows: np.ndarray, name: str, end: str = ".") -> np.ndarray:
            found.update({f"{name}{end}weight": reference.matmul(d.T, rows), f"{name}{end}bias": reference.bias_backward(d)})
            return reference.matmul(d, w[f"{name}{end}weight"])

        def norm_back(d: np.ndarray, saved: list[np.ndarray], name: str) -> np.ndarray:
            needs = {"need_dx": True, "need_dweight": True, "need_dbias": True}
            d, found[f"{name}.weight"], found[f"{name}.bias"] = reference.layer_norm_backward(d, None, *saved, w[f"{name}.weight"], **needs)
            return d

        d = norm_back(dy, second, "norm2")
        d = norm_back(d + linear_back(linear_back(d, hidden, "linear2") * (hidden > 0), middle, "linear1"), first, "norm1")
        dheads = linear_back(d, self.join(heads), "self_attn.out_proj").reshape(self.B, self.T, self.heads, -1).transpose(0, 2, 1, 3)
        *dqkv, _ = reference.attention_backward(q, k, v, heads, lse, dheads, options=options)
        joined = np.stack(dqkv).transpose(1, 3, 0, 2, 4).reshape(len(x), 3 * self.E)
        found["dx"] = (d + linear_back(joined, x, "self_attn.in_proj", "_")).reshape(self.data[0].shape)
        return found
