"""fastseq's calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.call import Call, one, outputs, stepped
from benchmarks.problems import Arrays, Attention, CrossEntropy, Matmul, Recurrent


def inference(layer: Any, x: np.ndarray, **options: Any) -> Call:
    """A recurrent layer in `eval` mode, without a record."""
    layer.eval()

    def answer() -> Arrays:
        y, state, *states = layer(x, **options)
        return outputs(y, state) | ({"states": np.stack(states[0])} if states else {})
    return Call(lambda: layer(x, **options), answer)


def training(layer: Any, x: np.ndarray, dy: np.ndarray, **options: Any) -> Call:
    """A recurrent layer forwards, and back to the gradients of x and all parameters."""
    from fastseq import Tensor

    def run() -> Any:
        layer.zero_grad()
        xt = Tensor(x, requires_grad=True)
        y, *_ = layer(xt, **options)
        y.backward(dy)
        return xt, y

    def answer() -> Arrays:
        xt, y = run()
        return {"y": y.data, "dx": xt.grad} | {name: p.grad for name, p in layer.named_parameters()}
    return Call(run, answer)


class FastSeq:
    """The library that this is all about."""

    distribution, module = "fastseq-kernels", "fastseq"

    def __init__(self, threads: int) -> None:
        import fastseq

        self.fs = fastseq
        fastseq.set_num_threads(threads)

    def matmul(self, problem: Matmul) -> Call:
        a, b = problem.data
        return one("c", lambda: self.fs.functional.matmul(a, b))

    def matmul_packed(self, problem: Matmul) -> Call:
        a, b = problem.data
        packed = self.fs.functional.pack(b)
        return one("c", lambda: self.fs.functional.matmul(a, packed))

    def _layer(self, problem: Recurrent) -> Any:
        kind = getattr(self.fs.nn, problem.cell)
        layer = kind(problem.I, problem.H, num_layers=problem.layers, bidirectional=problem.bidirectional)
        layer.load_state_dict(problem.weights)
        return layer

    def recurrent_inference(self, problem: Recurrent) -> Call:
        return inference(self._layer(problem), problem.x, lengths=problem.lengths)

    def recurrent_training(self, problem: Recurrent) -> Call:
        return training(self._layer(problem), problem.x, problem.dy, lengths=problem.lengths)

    def recurrent_step(self, problem: Recurrent) -> Call:
        stream, x = self._layer(problem).stream(batch_size=problem.B), problem.x
        return stepped(problem, lambda t: stream.step(x[t]))

    stacked_inference = ragged_inference = recurrent_inference
    stacked_training = ragged_training = recurrent_training

    def attention_inference(self, problem: Attention) -> Call:
        q, k, v, _ = problem.data
        return one("y", lambda: self.fs.functional.scaled_dot_product_attention(q, k, v, is_causal=problem.causal))

    def attention_training(self, problem: Attention) -> Call:
        *arrays, dy = problem.data

        def run() -> Any:
            qkv = [self.fs.Tensor(a, requires_grad=True) for a in arrays]
            y = self.fs.functional.scaled_dot_product_attention(*qkv, is_causal=problem.causal)
            y.backward(dy)
            return y, *qkv

        def answer() -> Arrays:
            y, *qkv = run()
            return {"y": y.data} | {name: x.grad for name, x in zip(("dq", "dk", "dv"), qkv, strict=True)}
        return Call(run, answer)

    def cross_entropy_inference(self, problem: CrossEntropy) -> Call:
        logits, targets = problem.data
        return one("loss", lambda: self.fs.functional.cross_entropy(logits, targets))

    def cross_entropy_training(self, problem: CrossEntropy) -> Call:
        logits, targets = problem.data

        def run() -> Any:
            z = self.fs.Tensor(logits, requires_grad=True)
            loss = self.fs.functional.cross_entropy(z, targets)
            loss.backward()
            return loss, z

        def answer() -> Arrays:
            loss, z = run()
            return {"loss": loss.data, "dlogits": z.grad}
        return Call(run, answer)
