"""Scaled dot-product attention beside PyTorch's flash path in bfloat16 and its path of float32; additive attention and its decoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cuda.case import Answer, Call, Case
from benchmarks.cuda.device import Device
from benchmarks.cuda.function import DTYPES, WORDS, Function, spread, visible

WIDTH = 1024  # heads times D
TOKENS = 8192  # rows times T


@dataclass(frozen=True, kw_only=True)
class Attention(Function):
    """Scaled dot-product attention, y (B, heads, Tq, D). One query is a step of decoding."""

    B: int
    heads: int
    Tq: int
    Tk: int
    D: int
    causal: bool = False
    ragged: bool = False  # rows of Tk / 4 to Tk keys

    def __str__(self) -> str:
        words = ["attention", self.mode, "causal" * self.causal, "ragged" * self.ragged, "decoding" * (self.Tq == 1),
                 f"B{self.B} h{self.heads} T{self.Tk} D{self.D}", WORDS[self.precision]]
        return " ".join(word for word in words if word)

    @property
    def family(self) -> str:
        form = "one query" if self.Tq == 1 else "ragged" if self.ragged else self.mode
        return f"attention, {form}, {WORDS[self.precision]}"

    @property
    def target(self) -> float | None:
        return 0.6 if self.precision == "medium" else 1.0

    @property
    def flop(self) -> float:
        # Two products forwards, five backwards, which has to compute the scores again; half of the pairs where the future is not seen.
        pairs = self.heads * self.Tq * (sum(spread(self.Tk, self.B)) if self.ragged else self.B * self.Tk) * (0.5 if self.causal else 1)
        return 4.0 * (3.5 if self.mode == "training" else 1) * pairs * self.D

    @property
    def bytes(self) -> float:
        return 4.0 * self.B * self.heads * self.D * 2 * (self.Tq + self.Tk) if self.Tq == 1 else 0.0

    def arrays(self, device: Device) -> dict[str, torch.Tensor]:
        shapes = ((self.B, self.heads, T, self.D) for T in (self.Tq, self.Tk, self.Tk))
        return dict(zip("qkv", device.random(0, *shapes), strict=True))

    def upstream(self, device: Device) -> torch.Tensor:
        return device.random(1, (self.B, self.heads, self.Tq, self.D))[0]

    def _mask(self, device: Device) -> torch.Tensor | None:
        return visible(device, spread(self.Tk, self.B), self.Tk)[:, None, None] if self.ragged else None

    def in_torch(self, device: Device) -> Callable[..., torch.Tensor]:
        mask = self._mask(device)
        return lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal)

    def theirs(self, device: Device) -> dict[str, Call]:
        # With tf32 allowed, its own choice forms products of float32 all the same; plain products take tf32, and a (Tq, Tk) matrix.
        ways = ["flash"] if self.precision == "medium" and not self.ragged else ["own choice", "plain"] if self.precision == "high" else ["own choice"]
        call = super().theirs(device)["eager"]
        return {kernels: call._replace(enter=functools.partial(use, kernels)) for kernels in ways}

    def exactly(self, device: Device) -> Callable[..., torch.Tensor]:
        mask = self._mask(device)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            scores = q @ k.mT / math.sqrt(self.D)
            if self.causal:
                scores.masked_fill_(torch.ones(self.Tq, self.Tk, dtype=torch.bool, device=device.name).triu(1), -math.inf)
            if mask is not None:
                scores.masked_fill_(~mask, -math.inf)
            return torch.softmax(scores, -1) @ v
        return attend

    def in_fastseq(self, device: Device) -> Callable[..., Any]:
        from fastseq.functional import scaled_dot_product_attention

        lengths = {"key_lengths": torch.tensor(spread(self.Tk, self.B)).numpy()} if self.ragged else {}
        return functools.partial(scaled_dot_product_attention, is_causal=self.causal, **lengths)


def use(kernels: str) -> None:
    """Let PyTorch use its flash kernels, cuDNN's, plain products, or what it chooses itself."""
    cuda = torch.backends.cuda
    cuda.enable_flash_sdp(kernels in ("flash", "own choice"))
    cuda.enable_cudnn_sdp(kernels in ("cuDNN", "own choice"))
    cuda.enable_mem_efficient_sdp(kernels == "own choice")
    cuda.enable_math_sdp(kernels in ("plain", "own choice"))


@dataclass(frozen=True, kw_only=True)
class CudnnAttention(Attention):
    """The same beside cuDNN's kernels, which use instructions of the Hopper generation; nothing was promised there."""

    @property
    def family(self) -> str:
        return f"attention beside cuDNN's, {self.mode}, bf16"

    @property
    def target(self) -> float | None:
        return None

    def __str__(self) -> str:
        return f"{super().__str__()}, cuDNN's"

    def theirs(self, device: Device) -> dict[str, Call]:
        call = super().theirs(device)["flash"]
        return {"cuDNN": call._replace(enter=functools.partial(use, "cuDNN" if device.gpu else "own choice"))}


@dataclass(frozen=True, kw_only=True)
class AdditiveAttention(Function):
    """softmax_k(u . tanh(q + k)) v: y (B, Tq, D)."""

    B: int
    Tq: int
    Tk: int
    D: int
    ragged: bool = False  # rows of Tk / 4 to Tk keys

    def __str__(self) -> str:
        return f"additive attention {self.mode} {'ragged ' * self.ragged}B{self.B} Tq{self.Tq} Tk{self.Tk} D{self.D} {WORDS[self.precision]}"

    @property
    def family(self) -> str:
        return f"additive attention, {self.mode}"

    @property
    def target(self) -> float | None:
        return 5.0

    def arrays(self, device: Device) -> dict[str, torch.Tensor]:
        B, Tq, Tk, D = self.B, self.Tq, self.Tk, self.D
        q, k, v, u = device.random(0, (B, Tq, D), (B, Tk, D), (B, Tk, D), (D,))
        return {"q": q, "k": k, "v": v, "u": u / math.sqrt(D)}

    def upstream(self, device: Device) -> torch.Tensor:
        return device.random(1, (self.B, self.Tq, self.D))[0]

    def in_torch(self, device: Device) -> Callable[..., torch.Tensor]:
        hidden = ~visible(device, spread(self.Tk, self.B), self.Tk)[:, None] if self.ragged else None

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            scores = torch.tanh(q[:, :, None] + k[:, None]) @ u
            return torch.softmax(scores if hidden is None else scores.masked_fill(hidden, -torch.inf), -1) @ v
        return attend

    def in_fastseq(self, device: Device) -> Callable[..., Any]:
        from fastseq.functional import additive_attention

        lengths = torch.tensor(spread(self.Tk, self.B)).numpy() if self.ragged else None
        return functools.partial(additive_attention, key_lengths=lengths)


@dataclass(frozen=True, kw_only=True)
class AttentionDecoder(Case):
    """A decoder with additive attention, fed into its cell, over T steps of B rows with memories of S; all sizes are H."""

    cell: str
    mode: str
    B: int
    T: int
    S: int
    H: int

    def __str__(self) -> str:
        return f"decoder {self.cell} {self.mode} B{self.B} T{self.T} S{self.S} H{self.H} {WORDS[self.precision]}"

    @property
    def family(self) -> str:
        return f"decoder with attention, {self.mode}"

    @property
    def target(self) -> float | None:
        return 5.0

    @property
    def flop(self) -> float:
        return 1e9 * self._problem().gflop

    def _problem(self) -> Any:
        from benchmarks.problems_decoder import Decoder

        return Decoder(self.cell, self.mode, self.B, self.T, self.S, self.H)

    def _data(self, device: Device) -> list[torch.Tensor]:
        """x, memory and the upstream gradient of y."""
        return device.random(2, *((steps, self.B, self.H) for steps in (self.T, self.S, self.T)))

    def theirs(self, device: Device) -> dict[str, Call]:
        return {"eager": self._torch_call(device, DTYPES[self.precision])}

    def truth(self, device: Device) -> Answer:
        return self._torch_call(device, torch.float64).answer()

    def _torch_call(self, device: Device, dtype: torch.dtype) -> Call:
        from benchmarks.peers.torch_decoder import decoder

        problem = self._problem()
        layer = decoder(problem).to(device.name, dtype)
        x, memory, dy = (a.to(dtype) for a in self._data(device))
        if self.mode == "inference":
            def run() -> torch.Tensor:
                with torch.inference_mode():
                    return layer(x, memory)
            return Call(run, lambda: {"y": run()})
        x.requires_grad_()
        memory.requires_grad_()

        def train() -> torch.Tensor:
            layer.zero_grad()
            x.grad = memory.grad = None
            y = layer(x, memory)
            y.backward(dy)
            return y

        def answer() -> Answer:
            found = {"y": train().detach(), "dx": x.grad, "dmemory": memory.grad}
            grads = {name: p.grad for name, p in layer.named_parameters()}
            return found | {name: grads[theirs].reshape(w.shape) for (name, w), theirs in zip(problem.weights.items(), layer.names, strict=True)}
        return Call(train, answer)

    def ours(self, device: Device) -> Call:
        import fastseq as fs

        layer = fs.nn.AttentionDecoder(self.H, self.H, self.H, cell=self.cell.lower())
        layer.load_state_dict(self._problem().weights)
        layer = device.module(layer)
        x, memory, dy = map(device.array, self._data(device))
        if self.mode == "inference":
            layer.eval()
            return Call(lambda: layer(x, memory), lambda: {"y": device.tensor(layer(x, memory)[0])})

        def train() -> tuple[Any, ...]:
            layer.zero_grad()
            xt, mt = (fs.Tensor(a, requires_grad=True) for a in (x, memory))
            y, _ = layer(xt, mt)
            y.backward(dy)
            return y, xt, mt

        def answer() -> Answer:
            y, xt, mt = train()
            found = {"y": y.data, "dx": xt.grad, "dmemory": mt.grad} | {name: p.grad for name, p in layer.named_parameters()}
            return {name: device.tensor(a) for name, a in found.items()}
        return Call(train, answer)


def cases() -> Iterator[Case]:
    """All of them."""
    for precision in ("medium", "high", "highest"):
        for mode in ("inference", "training"):
            for D in (64, 128) if precision != "highest" else (64,):
                for T in (512, 2048, 4096):
                    for causal in (False, True):
                        sizes = {"mode": mode, "B": TOKENS // T, "heads": WIDTH // D, "Tq": T, "Tk": T, "D": D, "causal": causal, "precision": precision}
                        yield Attention(**sizes, quick=T == 2048 and D == 64)
                        if precision == "medium" and T == 4096:
                            yield CudnnAttention(**sizes)
            yield Attention(mode=mode, B=8, heads=16, Tq=1024, Tk=1024, D=64, ragged=True, precision=precision, quick=mode == "training" and precision != "highest")
        for B in (1, 32):
            yield Attention(mode="inference", B=B, heads=16, Tq=1, Tk=4096, D=64, precision=precision, quick=B == 32)
    for mode in ("inference", "training"):
        for B, Tq, Tk, D, ragged in ((32, 64, 64, 256, False), (64, 1, 100, 512, False), (16, 128, 128, 512, False), (32, 64, 64, 256, True)):
            yield AdditiveAttention(mode=mode, B=B, Tq=Tq, Tk=Tk, D=D, ragged=ragged, quick=Tq == 64 and not ragged)
        for cell in ("LSTM", "GRU"):
            for B, T, S, H in ((64, 50, 50, 256), (32, 50, 50, 512), (16, 100, 100, 1024)):
                yield AttentionDecoder(cell=cell, mode=mode, B=B, T=T, S=S, H=H, quick=H == 512)
