"""fastseq's calls."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.call import Call, one, outputs, stepped
from benchmarks.problems import (
    AdditiveAttention,
    Arrays,
    CrossEntropy,
    Gelu,
    LayerNorm,
    LinearCrossEntropy,
    Matmul,
    Recurrent,
)
from benchmarks.problems_decoder import Decoder
from benchmarks.problems_transformer import Attention, EncoderLayer


def inference(layer: Any, x: np.ndarray, **options: Any) -> Call:
    """A recurrent layer in `eval` mode, without a record."""
    layer.eval()

    def answer() -> Arrays:
        y, state, *states = layer(x, **options)
        return outputs(y, state) | ({"states": np.stack(states[0])} if states else {})
    return Call(lambda: layer(x, **options), answer)


def training(layer: Any, x: np.ndarray, dy: np.ndarray, **options: Any) -> Call:
    """A layer forwards, and back to the gradients of x and all parameters; a recurrent one gives y and more."""
    from fastseq import Tensor

    def run() -> Any:
        layer.zero_grad()
        xt = Tensor(x, requires_grad=True)
        y = layer(xt, **options)
        y = y[0] if isinstance(y, tuple) else y
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

    def _encoder_layer(self, problem: EncoderLayer) -> Any:
        layer = self.fs.nn.TransformerEncoderLayer(problem.E, problem.heads, problem.F, 0.0, batch_first=True)
        layer.load_state_dict(problem.weights)
        return layer

    def encoder_layer_inference(self, problem: EncoderLayer) -> Call:
        layer, x = self._encoder_layer(problem).eval(), problem.data[0]
        return one("y", lambda: layer(x))

    def encoder_layer_training(self, problem: EncoderLayer) -> Call:
        layer, (x, dy) = self._encoder_layer(problem), problem.data
        return training(layer, x, dy)

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

    def linear_cross_entropy_inference(self, problem: LinearCrossEntropy) -> Call:
        x, weight, targets = problem.data
        return one("loss", lambda: self.fs.functional.linear_cross_entropy(x, weight, None, targets))

    def linear_cross_entropy_training(self, problem: LinearCrossEntropy) -> Call:
        *arrays, targets = problem.data

        def run() -> Any:
            x, weight = (self.fs.Tensor(a, requires_grad=True) for a in arrays)
            loss = self.fs.functional.linear_cross_entropy(x, weight, None, targets)
            loss.backward()
            return loss, x, weight

        def answer() -> Arrays:
            loss, x, weight = run()
            return {"loss": loss.data, "dx": x.grad, "dweight": weight.grad}
        return Call(run, answer)

    def layer_norm_inference(self, problem: LayerNorm) -> Call:
        arrays = {name: problem.data[name] for name in problem.inputs}
        run = partial(self.fs.functional.layer_norm, **arrays)
        return Call(run, lambda: dict(zip(("y", "s"), run(), strict=True)) if problem.residual else {"y": run()})

    def layer_norm_training(self, problem: LayerNorm) -> Call:
        def run() -> Any:
            tensors = {name: self.fs.Tensor(problem.data[name], requires_grad=True) for name in problem.inputs}
            outputs = self.fs.functional.layer_norm(**tensors)
            outputs = outputs if problem.residual else (outputs,)
            outputs[0].backward(problem.data["dy"])
            return outputs, tensors

        def answer() -> Arrays:
            outputs, tensors = run()
            return dict(zip("ys", (y.data for y in outputs), strict=False)) | {f"d{name}": t.grad for name, t in tensors.items()}
        return Call(run, answer)

    def gelu_inference(self, problem: Gelu) -> Call:
        x, _ = problem.data
        return one("y", lambda: self.fs.functional.gelu(x))

    def gelu_training(self, problem: Gelu) -> Call:
        x, dy = problem.data

        def run() -> Any:
            t = self.fs.Tensor(x, requires_grad=True)
            y = self.fs.functional.gelu(t)
            y.backward(dy)
            return y, t

        def answer() -> Arrays:
            y, t = run()
            return {"y": y.data, "dx": t.grad}
        return Call(run, answer)

    def additive_attention_inference(self, problem: AdditiveAttention) -> Call:
        q, k, v, u, _ = problem.data
        return one("y", lambda: self.fs.functional.additive_attention(q, k, v, u, key_lengths=problem.lengths))

    def additive_attention_training(self, problem: AdditiveAttention) -> Call:
        *arrays, dy = problem.data

        def run() -> Any:
            tensors = [self.fs.Tensor(a, requires_grad=True) for a in arrays]
            y = self.fs.functional.additive_attention(*tensors, key_lengths=problem.lengths)
            y.backward(dy)
            return y, tensors

        def answer() -> Arrays:
            y, tensors = run()
            return {"y": y.data} | {name: t.grad for name, t in zip(("dq", "dk", "dv", "du"), tensors, strict=True)}
        return Call(run, answer)

    def _decoder(self, problem: Decoder) -> Any:
        layer = self.fs.nn.AttentionDecoder(problem.H, problem.H, problem.H, cell=problem.cell.lower())
        layer.load_state_dict(problem.weights)
        return layer

    def attention_decoder_inference(self, problem: Decoder) -> Call:
        layer, (x, memory, _) = self._decoder(problem), problem.data
        return one("y", lambda: layer(x, memory)[0])

    def attention_decoder_training(self, problem: Decoder) -> Call:
        layer, (x, memory, dy) = self._decoder(problem), problem.data

        def run() -> Any:
            layer.zero_grad()
            xt, mt = (self.fs.Tensor(a, requires_grad=True) for a in (x, memory))
            y, _ = layer(xt, mt)
            y.backward(dy)
            return y, xt, mt

        def answer() -> Arrays:
            y, xt, mt = run()
            return {"y": y.data, "dx": xt.grad, "dmemory": mt.grad} | {name: p.grad for name, p in layer.named_parameters()}
        return Call(run, answer)
