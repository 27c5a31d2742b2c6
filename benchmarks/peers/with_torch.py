"""PyTorch's calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

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


class PyTorch:
    """Its own layers and functions; inference under `inference_mode`."""

    distribution = module = "torch"

    def __init__(self, threads: int) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(threads)

    def _inference(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        mode = self.torch.inference_mode

        def run() -> Any:
            with mode():
                return function(*arguments)
        return run

    def matmul(self, problem: Matmul) -> Call:
        return one("c", self._inference(self.torch.matmul, *map(self.torch.from_numpy, problem.data)))

    matmul_packed = matmul

    def _encoder_layer(self, problem: EncoderLayer) -> Any:
        layer = self.torch.nn.TransformerEncoderLayer(problem.E, problem.heads, problem.F, 0.0, batch_first=True)
        layer.load_state_dict({name: self.torch.from_numpy(w) for name, w in problem.weights.items()})
        return layer

    def encoder_layer_inference(self, problem: EncoderLayer) -> Call:
        return one("y", self._inference(self._encoder_layer(problem).eval(), self.torch.from_numpy(problem.data[0])))

    def encoder_layer_training(self, problem: EncoderLayer) -> Call:
        layer = self._encoder_layer(problem)
        return self._training(layer, layer, *problem.data)

    def _layer(self, problem: Recurrent) -> Callable[..., Any]:
        """The layer as a call, and itself. Rows of different lengths stay padded and are masked: `pack_padded_sequence` is slower."""
        torch = self.torch
        layer = getattr(torch.nn, problem.cell)(problem.I, problem.H, num_layers=problem.layers, bidirectional=problem.bidirectional)
        layer.load_state_dict({name: torch.from_numpy(w) for name, w in problem.weights.items()})
        if problem.lengths is None:
            return layer, layer
        inside = (torch.arange(problem.T)[:, None] < torch.from_numpy(problem.lengths))[:, :, None].float()

        def masked(x: Any) -> Any:
            y, state = layer(x)
            return y * inside, state
        return masked, layer

    def recurrent_inference(self, problem: Recurrent) -> Call:
        forward, layer = self._layer(problem)
        layer.eval()
        run = self._inference(forward, self.torch.from_numpy(problem.x))
        return Call(run, lambda: outputs(*run()))

    def recurrent_training(self, problem: Recurrent) -> Call:
        forward, layer = self._layer(problem)
        return self._training(lambda x: forward(x)[0], layer, problem.x, problem.dy)

    def _training(self, forward: Callable[..., Any], layer: Any, *arrays: Any) -> Call:
        """A layer forwards from x to y, and back from dy to the gradients of x and all parameters."""
        x, dy = map(self.torch.from_numpy, arrays)
        x.requires_grad_()

        def run() -> Any:
            layer.zero_grad()
            x.grad = None
            y = forward(x)
            y.backward(dy)
            return y

        def answer() -> Arrays:
            y = run()
            return {"y": y.detach().numpy(), "dx": x.grad.numpy()} | {name: p.grad.numpy() for name, p in layer.named_parameters()}
        return Call(run, answer)

    def recurrent_step(self, problem: Recurrent) -> Call:
        torch, x = self.torch, self.torch.from_numpy(problem.x)
        cell = getattr(torch.nn, f"{problem.cell}Cell")(problem.I, problem.H).eval()
        cell.load_state_dict({name.removesuffix("_l0"): torch.from_numpy(w) for name, w in problem.weights.items()})
        state, lstm = torch.zeros(problem.B, problem.H), problem.cell == "LSTM"
        state = (state, state) if lstm else state

        def run(t: int) -> Any:
            nonlocal state
            with torch.inference_mode():
                state = cell(x[t], state)
            return state[0] if lstm else state
        return stepped(problem, run)

    stacked_inference = ragged_inference = recurrent_inference
    stacked_training = ragged_training = recurrent_training

    def attention_inference(self, problem: Attention) -> Call:
        attend = partial(self.torch.nn.functional.scaled_dot_product_attention, is_causal=problem.causal)
        return one("y", self._inference(attend, *map(self.torch.from_numpy, problem.data[:3])))

    def attention_training(self, problem: Attention) -> Call:
        *qkv, dy = map(self.torch.from_numpy, problem.data)
        for x in qkv:
            x.requires_grad_()

        def run() -> Any:
            for x in qkv:
                x.grad = None
            y = self.torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=problem.causal)
            y.backward(dy)
            return y

        def answer() -> Arrays:
            y = run()
            return {"y": y.detach().numpy()} | {name: x.grad.numpy() for name, x in zip(("dq", "dk", "dv"), qkv, strict=True)}
        return Call(run, answer)

    def cross_entropy_inference(self, problem: CrossEntropy) -> Call:
        return one("loss", self._inference(self.torch.nn.functional.cross_entropy, *map(self.torch.from_numpy, problem.data)))

    def cross_entropy_training(self, problem: CrossEntropy) -> Call:
        logits, targets = map(self.torch.from_numpy, problem.data)
        logits.requires_grad_()

        def run() -> Any:
            logits.grad = None
            loss = self.torch.nn.functional.cross_entropy(logits, targets)
            loss.backward()
            return loss
        return Call(run, lambda: {"loss": run().detach().numpy(), "dlogits": logits.grad.numpy()})

    def linear_cross_entropy_inference(self, problem: LinearCrossEntropy) -> Call:
        functional = self.torch.nn.functional
        x, weight, targets = map(self.torch.from_numpy, problem.data)
        return one("loss", self._inference(lambda: functional.cross_entropy(functional.linear(x, weight), targets)))

    def linear_cross_entropy_training(self, problem: LinearCrossEntropy) -> Call:
        functional = self.torch.nn.functional
        x, weight, targets = map(self.torch.from_numpy, problem.data)
        x.requires_grad_()
        weight.requires_grad_()

        def run() -> Any:
            x.grad = weight.grad = None
            loss = functional.cross_entropy(functional.linear(x, weight), targets)
            loss.backward()
            return loss
        return Call(run, lambda: {"loss": run().detach().numpy(), "dx": x.grad.numpy(), "dweight": weight.grad.numpy()})

    def _layer_norm(self, problem: LayerNorm) -> tuple[Callable[..., Any], Any]:
        """The call, whose results are a tuple, and its tensors."""
        tensors = {name: self.torch.from_numpy(array) for name, array in problem.data.items()}

        def forward() -> Any:
            s = tensors["x"] + tensors["residual"] if problem.residual else tensors["x"]
            y = self.torch.nn.functional.layer_norm(s, s.shape[-1:], tensors["weight"], tensors["bias"])
            return (y, s) if problem.residual else (y,)
        return forward, tensors

    def layer_norm_inference(self, problem: LayerNorm) -> Call:
        forward, _ = self._layer_norm(problem)
        run = self._inference(forward)
        return Call(run, lambda: dict(zip("ys", (a.numpy() for a in run()), strict=False)))

    def layer_norm_training(self, problem: LayerNorm) -> Call:
        forward, tensors = self._layer_norm(problem)
        for name in problem.inputs:
            tensors[name].requires_grad_()

        def run() -> Any:
            for name in problem.inputs:
                tensors[name].grad = None
            outputs = forward()
            outputs[0].backward(tensors["dy"])
            return outputs

        def answer() -> Arrays:
            found = dict(zip("ys", (a.detach().numpy() for a in run()), strict=False))
            return found | {f"d{name}": tensors[name].grad.numpy() for name in problem.inputs}
        return Call(run, answer)

    def gelu_inference(self, problem: Gelu) -> Call:
        return one("y", self._inference(self.torch.nn.functional.gelu, self.torch.from_numpy(problem.data[0])))

    def gelu_training(self, problem: Gelu) -> Call:
        x, dy = map(self.torch.from_numpy, problem.data)
        x.requires_grad_()

        def run() -> Any:
            x.grad = None
            y = self.torch.nn.functional.gelu(x)
            y.backward(dy)
            return y
        return Call(run, lambda: {"y": run().detach().numpy(), "dx": x.grad.numpy()})

    def _additive(self, problem: AdditiveAttention) -> Callable[..., Any]:
        torch = self.torch
        hidden = None if problem.lengths is None else torch.arange(problem.Tk) >= torch.from_numpy(problem.lengths)[:, None, None]

        def attend(q: Any, k: Any, v: Any, u: Any) -> Any:
            scores = torch.tanh(q[:, :, None] + k[:, None]) @ u
            return torch.softmax(scores if hidden is None else scores.masked_fill(hidden, -torch.inf), -1) @ v
        return attend

    def additive_attention_inference(self, problem: AdditiveAttention) -> Call:
        return one("y", self._inference(self._additive(problem), *map(self.torch.from_numpy, problem.data[:4])))

    def additive_attention_training(self, problem: AdditiveAttention) -> Call:
        *arrays, dy = map(self.torch.from_numpy, problem.data)
        attend = self._additive(problem)
        for a in arrays:
            a.requires_grad_()

        def run() -> Any:
            for a in arrays:
                a.grad = None
            y = attend(*arrays)
            y.backward(dy)
            return y

        def answer() -> Arrays:
            y = run()
            return {"y": y.detach().numpy()} | {name: a.grad.numpy() for name, a in zip(("dq", "dk", "dv", "du"), arrays, strict=True)}
        return Call(run, answer)

    def attention_decoder_inference(self, problem: Decoder) -> Call:
        from benchmarks.peers.torch_decoder import decoder

        x, memory, _ = map(self.torch.from_numpy, problem.data)
        return one("y", self._inference(decoder(problem), x, memory))

    def attention_decoder_training(self, problem: Decoder) -> Call:
        from benchmarks.peers.torch_decoder import decoder

        (x, memory, dy), layer = map(self.torch.from_numpy, problem.data), decoder(problem)
        x.requires_grad_()
        memory.requires_grad_()

        def run() -> Any:
            layer.zero_grad()
            x.grad = memory.grad = None
            y = layer(x, memory)
            y.backward(dy)
            return y

        def answer() -> Arrays:
            y = run()
            found = {"y": y.detach().numpy(), "dx": x.grad.numpy(), "dmemory": memory.grad.numpy()}
            grads = {name: p.grad.numpy() for name, p in layer.named_parameters()}
            return found | {name: grads[theirs].reshape(w.shape) for (name, w), theirs in zip(problem.weights.items(), layer.names, strict=True)}
        return Call(run, answer)
