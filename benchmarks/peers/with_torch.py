"""PyTorch's calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.peers.call import Call, one, outputs, stepped
from benchmarks.problems import Arrays, Attention, CrossEntropy, Matmul, Recurrent


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
        (forward, layer), dy = self._layer(problem), self.torch.from_numpy(problem.dy)
        x = self.torch.from_numpy(problem.x).requires_grad_()

        def run() -> Any:
            layer.zero_grad()
            x.grad = None
            y, _ = forward(x)
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
