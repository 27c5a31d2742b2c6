"""JAX's calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.call import Call, one, outputs, stepped
from benchmarks.problems import AdditiveAttention, Arrays, CrossEntropy, Matmul, Recurrent


class JAX:
    """Compiled functions; the LSTM is a `lax.scan` after one product for all inputs."""

    distribution = module = "jax"

    def __init__(self, threads: int) -> None:
        import jax

        del threads  # as many as the process has processors
        jax.config.update("jax_platforms", "cpu")
        self.jax, self.jnp = jax, jax.numpy

    def _compiled(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        compiled, block = self.jax.jit(function), self.jax.block_until_ready
        arguments = self.jax.tree.map(self.jnp.asarray, arguments)
        return lambda: block(compiled(*arguments))

    def matmul(self, problem: Matmul) -> Call:
        return one("c", self._compiled(self.jnp.matmul, *problem.data))

    matmul_packed = matmul

    def _step(self, problem: Recurrent) -> Callable[..., Any]:
        """(h, c) of a step from the weights, the input's part of the sums, and (h, c) before."""
        sigmoid, tanh, split = self.jax.nn.sigmoid, self.jnp.tanh, self.jnp.split

        def step(w: Any, p: Any, h: Any, c: Any) -> Any:
            q = h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
            if problem.cell == "LSTM":
                i, f, g, o = split(p + q, 4, axis=1)
                c = sigmoid(f) * c + sigmoid(i) * tanh(g)
                return sigmoid(o) * tanh(c), c
            if problem.cell == "GRU":
                (p_r, p_z, p_n), (q_r, q_z, q_n) = split(p, 3, axis=1), split(q, 3, axis=1)
                z = sigmoid(p_z + q_z)
                return (1 - z) * tanh(p_n + sigmoid(p_r + q_r) * q_n) + z * h, c
            return tanh(p + q), c
        return step

    def _forward(self, problem: Recurrent) -> Callable[..., Any]:
        step = self._step(problem)

        def forward(w: Any, x: Any) -> Any:
            zero = self.jnp.zeros((problem.B, problem.H), x.dtype)

            def body(state: Any, p: Any) -> Any:
                h, c = step(w, p, *state)
                return (h, c), h
            (h, c), y = self.jax.lax.scan(body, (zero, zero), x @ w["weight_ih_l0"].T + w["bias_ih_l0"])
            return y, (h[None], c[None])
        return forward

    def recurrent_inference(self, problem: Recurrent) -> Call:
        run = self._compiled(self._forward(problem), problem.weights, problem.x)
        return Call(run, lambda: outputs(*run()))

    def recurrent_training(self, problem: Recurrent) -> Call:
        forward = self._forward(problem)

        def both(w: Any, x: Any, dy: Any) -> Any:
            y, back = self.jax.vjp(lambda w, x: forward(w, x)[0], w, x)
            return y, *back(dy)
        run = self._compiled(both, problem.weights, problem.x, problem.dy)

        def answer() -> Arrays:
            y, dw, dx = run()
            return {name: np.asarray(a) for name, a in {"y": y, "dx": dx, **dw}.items()}
        return Call(run, answer)

    def recurrent_step(self, problem: Recurrent) -> Call:
        step = self._step(problem)

        @self.jax.jit
        def whole(w: Any, x: Any, h: Any, c: Any) -> Any:
            return step(w, x @ w["weight_ih_l0"].T + w["bias_ih_l0"], h, c)
        w, x = self.jax.tree.map(self.jnp.asarray, (problem.weights, list(problem.x)))
        state = (self.jnp.zeros((problem.B, problem.H), np.float32),) * 2

        def run(t: int) -> Any:
            nonlocal state
            state = whole(w, x[t], *state)
            return state[0].block_until_ready()
        return stepped(problem, run)

    def _loss(self, logits: Any, targets: Any) -> Any:
        picked = self.jnp.take_along_axis(self.jax.nn.log_softmax(logits), targets[:, None], 1)
        return -picked.mean()

    def cross_entropy_inference(self, problem: CrossEntropy) -> Call:
        return one("loss", self._compiled(self._loss, *problem.data))

    def cross_entropy_training(self, problem: CrossEntropy) -> Call:
        run = self._compiled(self.jax.value_and_grad(self._loss), *problem.data)
        return Call(run, lambda: dict(zip(("loss", "dlogits"), map(np.asarray, run()), strict=True)))

    def _additive(self, problem: AdditiveAttention) -> Callable[..., Any]:
        jnp = self.jnp

        def attend(q: Any, k: Any, v: Any, u: Any) -> Any:
            scores = jnp.tanh(q[:, :, None] + k[:, None]) @ u
            if problem.lengths is not None:
                scores = jnp.where(jnp.arange(problem.Tk) < problem.lengths[:, None, None], scores, -jnp.inf)
            return self.jax.nn.softmax(scores, -1) @ v
        return attend

    def additive_attention_inference(self, problem: AdditiveAttention) -> Call:
        return one("y", self._compiled(self._additive(problem), *problem.data[:4]))

    def additive_attention_training(self, problem: AdditiveAttention) -> Call:
        def both(*arrays: Any) -> Any:
            y, back = self.jax.vjp(self._additive(problem), *arrays[:4])
            return y, *back(arrays[4])
        run = self._compiled(both, *problem.data)
        return Call(run, lambda: dict(zip(("y", "dq", "dk", "dv", "du"), map(np.asarray, run()), strict=True)))
