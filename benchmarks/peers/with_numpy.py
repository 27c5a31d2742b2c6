"""The equations as one writes them in NumPy with care."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers import numpy_transformer
from benchmarks.peers.call import Call, one, outputs, stepped
from benchmarks.problems import (
    AdditiveAttention,
    Arrays,
    CrossEntropy,
    LayerNorm,
    LinearCrossEntropy,
    Matmul,
    Recurrent,
)
from benchmarks.problems_decoder import Decoder
from benchmarks.problems_transformer import Attention, EncoderLayer

# Each cell's step: from the input's part p and the state's part q of its sums to h, c and what the way back needs; then back, from dh and dc to
# dp, dq, and what reaches h and c of the step before past the product. Cells without c hand it through.


def _lstm_forward(p: np.ndarray, q: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[Any, ...]:
    H, a = h.shape[1], p + q
    s = 1 / (1 + np.exp(-a))
    i, f, o, g = s[:, :H], s[:, H:2 * H], s[:, 3 * H:], np.tanh(a[:, 2 * H:3 * H])
    c_new = f * c + i * g
    tanh_c = np.tanh(c_new)
    return o * tanh_c, c_new, (i, f, g, o, c, tanh_c)


def _lstm_backward(saved: Any, dh: np.ndarray, dc: np.ndarray) -> tuple[Any, ...]:
    i, f, g, o, c, tanh_c = saved
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da = np.concatenate([dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)], axis=1)
    return da, da, 0, dc * f


def _gru_forward(p: np.ndarray, q: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[Any, ...]:
    H = h.shape[1]
    s = 1 / (1 + np.exp(-(p[:, :2 * H] + q[:, :2 * H])))
    r, z, q_n = s[:, :H], s[:, H:], q[:, 2 * H:]
    n = np.tanh(p[:, 2 * H:] + r * q_n)
    return n + z * (h - n), c, (r, z, n, q_n, h)


def _gru_backward(saved: Any, dh: np.ndarray, dc: np.ndarray) -> tuple[Any, ...]:
    r, z, n, q_n, h = saved
    dn = dh * (1 - z) * (1 - n * n)
    dr, dz = dn * q_n * r * (1 - r), dh * (h - n) * z * (1 - z)
    return np.concatenate([dr, dz, dn], axis=1), np.concatenate([dr, dz, dn * r], axis=1), dh * z, dc


def _rnn_forward(p: np.ndarray, q: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[Any, ...]:
    h = np.tanh(p + q)
    return h, c, h


def _rnn_backward(saved: Any, dh: np.ndarray, dc: np.ndarray) -> tuple[Any, ...]:
    da = dh * (1 - saved * saved)
    return da, da, 0, dc


_FORWARD = {"LSTM": _lstm_forward, "GRU": _gru_forward, "RNN": _rnn_forward}
_BACKWARD = {"LSTM": _lstm_backward, "GRU": _gru_backward, "RNN": _rnn_backward}


class _Layer:
    """One layer, one direction: the input's product once for all steps, and in training those for the weights' gradients."""

    def __init__(self, problem: Recurrent) -> None:
        self.problem, self.cell = problem, _FORWARD[problem.cell]
        w_ih, w_hh, self.b_ih, self.b_hh = problem.weights.values()
        self.w_ih, self.w_hh = w_ih.T.copy(), w_hh.T.copy()
        if problem.cell != "GRU":  # whose reset gate comes between the two
            self.b_ih, self.b_hh = self.b_ih + self.b_hh, None

    def zeros(self) -> tuple[np.ndarray, np.ndarray]:
        state = np.zeros((self.problem.B, self.problem.H), np.float32)
        return state, state

    def project(self, x: np.ndarray) -> np.ndarray:
        return x @ self.w_ih + self.b_ih

    def step(self, p: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[Any, ...]:
        q = h @ self.w_hh
        return self.cell(p, q if self.b_hh is None else q + self.b_hh, h, c)

    def forward(self, x: np.ndarray) -> tuple[Any, ...]:
        """y, the last h and c, and what the steps saved."""
        p, (h, c), saved = self.project(x), self.zeros(), []
        y = np.empty((len(x), *h.shape), np.float32)
        for t in range(len(x)):
            h, c, of_step = self.step(p[t], h, c)
            y[t] = h
            if self.problem.mode == "training":
                saved.append(of_step)
        return y, h, c, saved

    def backward(self, x: np.ndarray, y: np.ndarray, saved: list[Any], dy: np.ndarray) -> Arrays:
        T, B, H = y.shape
        back, w_hh = _BACKWARD[self.problem.cell], np.ascontiguousarray(self.w_hh.T)
        dp = np.empty((T, B, len(w_hh)), np.float32)
        dq = np.empty_like(dp) if self.problem.cell == "GRU" else dp
        dh, dc = self.zeros()
        for t in reversed(range(T)):
            dp[t], dq[t], past, dc = back(saved[t], dh + dy[t], dc)
            dh = dq[t] @ w_hh + past
        before = np.concatenate([np.zeros((1, B, H), np.float32), y[:-1]])
        rows, of_state = dp.reshape(T * B, -1), dq.reshape(T * B, -1)
        return {"dx": dp @ self.w_ih.T, "weight_ih_l0": rows.T @ x.reshape(T * B, -1), "weight_hh_l0": of_state.T @ before.reshape(T * B, H),
                "bias_ih_l0": rows.sum(axis=0), "bias_hh_l0": of_state.sum(axis=0)}



class NumPy:
    """The equations as one writes them in NumPy with care; its number of threads is the process's."""

    distribution = module = "numpy"

    def __init__(self, threads: int) -> None:
        del threads

    def matmul(self, problem: Matmul) -> Call:
        a, b = problem.data
        return one("c", lambda: a @ b)

    matmul_packed = matmul

    def encoder_layer_inference(self, problem: EncoderLayer) -> Call:
        layer, (x, _) = numpy_transformer.Layer(problem), problem.data
        return one("y", lambda: layer.forward(x.reshape(-1, problem.E))[0].reshape(x.shape))

    def encoder_layer_training(self, problem: EncoderLayer) -> Call:
        layer, (x, dy) = numpy_transformer.Layer(problem), problem.data

        def run() -> Arrays:
            found = layer.both(x.reshape(-1, problem.E), dy.reshape(-1, problem.E))
            return found | {name: found[name].reshape(x.shape) for name in ("y", "dx")}
        return Call(run, run)

    def recurrent_inference(self, problem: Recurrent) -> Call:
        layer = _Layer(problem)

        def answer() -> Arrays:
            y, h, c, _ = layer.forward(problem.x)
            return outputs(y, (h[None], c[None]))
        return Call(lambda: layer.forward(problem.x), answer)

    def recurrent_training(self, problem: Recurrent) -> Call:
        layer = _Layer(problem)

        def run() -> Arrays:
            y, _, _, saved = layer.forward(problem.x)
            return {"y": y} | layer.backward(problem.x, y, saved, problem.dy)
        return Call(run, run)

    def recurrent_step(self, problem: Recurrent) -> Call:
        layer, x = _Layer(problem), problem.x
        h, c = layer.zeros()

        def step(t: int) -> np.ndarray:
            nonlocal h, c
            h, c, _ = layer.step(layer.project(x[t]), h, c)
            return h
        return stepped(problem, step)

    @staticmethod
    def _weights(q: np.ndarray, k: np.ndarray, causal: bool) -> np.ndarray:
        s = (q * np.float32(q.shape[3] ** -0.5)) @ k.swapaxes(2, 3)
        if causal:
            s[:, :, ~np.tri(s.shape[2], dtype=bool)] = -np.inf
        s -= s.max(axis=3, keepdims=True)
        np.exp(s, out=s)
        s /= s.sum(axis=3, keepdims=True)
        return s

    def attention_inference(self, problem: Attention) -> Call:
        q, k, v, _ = problem.data
        return one("y", lambda: self._weights(q, k, problem.causal) @ v)

    def attention_training(self, problem: Attention) -> Call:
        q, k, v, dy = problem.data
        scale = np.float32(problem.D**-0.5)

        def run() -> Arrays:
            p = self._weights(q, k, problem.causal)
            y, dv, ds = p @ v, p.swapaxes(2, 3) @ dy, dy @ v.swapaxes(2, 3)
            ds -= (dy * y).sum(axis=3, keepdims=True)
            ds *= p
            return {"y": y, "dq": ds @ k * scale, "dk": ds.swapaxes(2, 3) @ q * scale, "dv": dv}
        return Call(run, run)

    @staticmethod
    def _loss_and_dlogits(logits: np.ndarray, targets: np.ndarray) -> tuple[np.floating, np.ndarray]:
        rows = np.arange(len(targets))
        z = logits - logits.max(axis=1, keepdims=True)
        e = np.exp(z)
        s = e.sum(axis=1)
        loss = (np.log(s) - z[rows, targets]).mean()
        e /= s[:, None]
        e[rows, targets] -= 1
        e /= len(targets)
        return loss, e

    def cross_entropy_inference(self, problem: CrossEntropy) -> Call:
        logits, targets = problem.data
        rows = np.arange(problem.N)

        def run() -> np.floating:
            z = logits - logits.max(axis=1, keepdims=True)
            return (np.log(np.exp(z).sum(axis=1)) - z[rows, targets]).mean()
        return one("loss", run)

    def cross_entropy_training(self, problem: CrossEntropy) -> Call:
        run = partial(self._loss_and_dlogits, *problem.data)
        return Call(run, lambda: dict(zip(("loss", "dlogits"), map(np.asarray, run()), strict=True)))

    def linear_cross_entropy_inference(self, problem: LinearCrossEntropy) -> Call:
        x, weight, targets = problem.data
        rows = np.arange(problem.N)

        def run() -> np.floating:
            z = x @ weight.T
            z -= z.max(axis=1, keepdims=True)
            return (np.log(np.exp(z).sum(axis=1)) - z[rows, targets]).mean()
        return one("loss", run)

    def linear_cross_entropy_training(self, problem: LinearCrossEntropy) -> Call:
        x, weight, targets = problem.data

        def run() -> tuple[np.floating, np.ndarray, np.ndarray]:
            loss, dlogits = self._loss_and_dlogits(x @ weight.T, targets)
            return loss, dlogits @ weight, dlogits.T @ x
        return Call(run, lambda: dict(zip(("loss", "dx", "dweight"), map(np.asarray, run()), strict=True)))

    @staticmethod
    def _layer_norm(a: Arrays) -> tuple[np.ndarray, ...]:
        """y, s, xhat and 1 / std."""
        s = a["x"] + a["residual"] if "residual" in a else a["x"]
        hat = s - s.mean(axis=1, keepdims=True)
        rstd = 1 / np.sqrt((hat * hat).mean(axis=1, keepdims=True) + np.float32(1e-5))
        hat *= rstd
        return hat * a["weight"] + a["bias"], s, hat, rstd

    def layer_norm_inference(self, problem: LayerNorm) -> Call:
        run = partial(self._layer_norm, problem.data)
        return Call(run, lambda: dict(zip("ys", run()[: 1 + problem.residual], strict=False)))

    def layer_norm_training(self, problem: LayerNorm) -> Call:
        a = problem.data

        def run() -> Arrays:
            y, s, hat, rstd = self._layer_norm(a)
            d = a["dy"] * a["weight"]
            dx = rstd * (d - d.mean(axis=1, keepdims=True) - hat * (d * hat).mean(axis=1, keepdims=True))
            found = {"y": y, "dx": dx, "dweight": (a["dy"] * hat).sum(axis=0), "dbias": a["dy"].sum(axis=0)}
            return found | ({"s": s, "dresidual": dx} if problem.residual else {})
        return Call(run, run)

    def _additive_weights(self, problem: AdditiveAttention) -> tuple[np.ndarray, np.ndarray]:
        """All tanh (B, Tq, Tk, D), and the weights."""
        q, k, _, u, _ = problem.data
        t = np.tanh(q[:, :, None] + k[:, None])
        scores = t @ u
        if problem.lengths is not None:
            scores[np.broadcast_to(np.arange(problem.Tk) >= problem.lengths[:, None, None], scores.shape)] = -np.inf
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return t, e / e.sum(axis=-1, keepdims=True)

    def additive_attention_inference(self, problem: AdditiveAttention) -> Call:
        return one("y", lambda: self._additive_weights(problem)[1] @ problem.data[2])

    def additive_attention_training(self, problem: AdditiveAttention) -> Call:
        _, _, v, u, dy = problem.data

        def run() -> Arrays:
            t, w = self._additive_weights(problem)
            dw = dy @ v.swapaxes(1, 2)
            ds = w * (dw - (w * dw).sum(axis=-1, keepdims=True))
            dx = ds[..., None] * (u * (1 - t * t))
            du = ds.reshape(-1) @ t.reshape(-1, len(u))
            return {"y": w @ v, "dq": dx.sum(axis=2), "dk": dx.sum(axis=1), "dv": w.swapaxes(1, 2) @ dy, "du": du}
        return Call(run, run)

    def attention_decoder_inference(self, problem: Decoder) -> Call:
        (x, memory, _), w, cell, H = problem.data, problem.weights, _FORWARD[problem.cell], problem.H
        w_x, w_c, w_hh = w["weight_ih"][:, :H].T.copy(), w["weight_ih"][:, H:].T.copy(), w["weight_hh"].T.copy()

        def run() -> np.ndarray:
            p, values = x @ w_x + w["bias_ih"], memory.swapaxes(0, 1).copy()
            keys = values @ w["weight_key"].T + w["bias_key"]
            h = c = np.zeros((problem.B, H), np.float32)
            both = np.empty((problem.T, problem.B, 2 * H), np.float32)
            for t in range(problem.T):
                scores = np.tanh((h @ w["weight_query"].T)[:, None] + keys) @ w["weight_score"]
                e = np.exp(scores - scores.max(axis=1, keepdims=True))
                context = ((e / e.sum(axis=1, keepdims=True))[:, None] @ values)[:, 0]
                h, c, _ = cell(p[t] + context @ w_c, h @ w_hh + w["bias_hh"], h, c)
                both[t, :, :H], both[t, :, H:] = h, context
            return np.tanh(both @ w["weight_out"].T + w["bias_out"])
        return one("y", run)
