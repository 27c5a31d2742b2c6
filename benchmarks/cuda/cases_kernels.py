"""The operations beside the layers: losses, layer norm, embedding, GELU, Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cuda.case import Answer, Call, Case
from benchmarks.cuda.device import Device
from benchmarks.cuda.function import WORDS, Function


class _Other(Function):
    """Under one heading; nothing was promised."""

    @property
    def family(self) -> str:
        return f"other operations, {self.mode}"

    @property
    def target(self) -> float | None:
        return None

    def upstream(self, device: Device) -> torch.Tensor | None:
        return None


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(_Other):
    """The mean over N rows of -log softmax(logits (N, V))[target]."""

    N: int
    V: int

    def __str__(self) -> str:
        return f"cross-entropy {self.mode} N{self.N} V{self.V}"

    @property
    def bytes(self) -> float:
        return 4.0 * self.N * self.V * (3 if self.mode == "training" else 1)

    def arrays(self, device: Device) -> dict[str, torch.Tensor]:
        return {"logits": 3 * device.random(0, (self.N, self.V))[0]}

    def in_torch(self, device: Device) -> Callable[..., torch.Tensor]:
        targets = device.integers(1, self.V, (self.N,))[0]
        return lambda logits: torch.nn.functional.cross_entropy(logits, targets)

    def in_fastseq(self, device: Device) -> Callable[..., Any]:
        from fastseq.functional import cross_entropy

        targets = device.array(device.integers(1, self.V, (self.N,))[0])
        return lambda logits: cross_entropy(logits, targets)


@dataclass(frozen=True, kw_only=True)
class LinearCrossEntropy(_Other):
    """The same of the logits x (N, H) W^T."""

    N: int
    H: int
    V: int

    def __str__(self) -> str:
        return f"linear cross-entropy {self.mode} N{self.N} H{self.H} V{self.V} {WORDS[self.precision]}"

    @property
    def flop(self) -> float:
        return 2.0 * (3 if self.mode == "training" else 1) * self.N * self.H * self.V

    def arrays(self, device: Device) -> dict[str, torch.Tensor]:
        x, weight = device.random(0, (self.N, self.H), (self.V, self.H))
        return {"x": x, "weight": weight * self.H**-0.5}

    def in_torch(self, device: Device) -> Callable[..., torch.Tensor]:
        targets = device.integers(1, self.V, (self.N,))[0]
        return lambda x, weight: torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight), targets)

    def in_fastseq(self, device: Device) -> Callable[..., Any]:
        from fastseq.functional import linear_cross_entropy

        targets = device.array(device.integers(1, self.V, (self.N,))[0])
        return lambda x, weight: linear_cross_entropy(x, weight, None, targets)


@dataclass(frozen=True, kw_only=True)
class LayerNorm(_Other):
    """Of x (M, N)."""

    M: int
    N: int

    def __str__(self) -> str:
        return f"layer norm {self.mode} M{self.M} N{self.N}"

    @property
    def bytes(self) -> float:
        return 4.0 * self.M * self.N * (5 if self.mode == "training" else 2)

    def arrays(self, device: Device) -> dict[str, torch.Tensor]:
        return dict(zip(("x", "weight", "bias"), device.random(0, (self.M, self.N), (self.N,), (self.N,)), strict=True))

    def upstream(self, device: Device) -> torch.Tensor:
        return device.random(1, (self.M, self.N))[0]

    def in_torch(self, device: Device) -> Callable[..., torch.Tensor]:
        return lambda x, weight, bias: torch.nn.functional.layer_norm(x, (self.N,), weight, bias)

    def in_fastseq(self, device: Device) -> Callable[..., Any]:
        from fastseq.functional import layer_norm

        return layer_norm


@dataclass(frozen=True, kw_only=True)
class Gelu(_Other):
    """x Phi(x) of n elements."""

    n: int

    def __str__(self) -> str:
        return f"gelu {self.mode} n{self.n}"

    @property
    def bytes(self) -> float:
        return 4.0 * self.n * (5 if self.mode == "training" else 2)

    def arrays(self, device: Device) -> dict[str, torch.Tensor]:
        return {"x": device.random(0, (self.n,))[0]}

    def upstream(self, device: Device) -> torch.Tensor:
        return device.random(1, (self.n,))[0]

    def in_torch(self, device: Device) -> Callable[..., torch.Tensor]:
        return lambda x: torch.nn.functional.gelu(x)

    def in_fastseq(self, device: Device) -> Callable[..., Any]:
        from fastseq.functional import gelu

        return gelu


@dataclass(frozen=True, kw_only=True)
class Embedding(_Other):
    """N rows of a table (V, E), and back: the gradient's rows are sums in one order."""

    N: int
    V: int
    E: int

    def __str__(self) -> str:
        return f"embedding {self.mode} N{self.N} V{self.V} E{self.E}"

    @property
    def bytes(self) -> float:
        return 4.0 * self.E * (2 * self.N + (self.N + self.V if self.mode == "training" else 0))

    def arrays(self, device: Device) -> dict[str, torch.Tensor]:
        return {"weight": device.random(0, (self.V, self.E))[0]}

    def upstream(self, device: Device) -> torch.Tensor:
        return device.random(1, (self.N, self.E))[0]

    def in_torch(self, device: Device) -> Callable[..., torch.Tensor]:
        ids = device.integers(2, self.V, (self.N,))[0]
        return lambda weight: torch.nn.functional.embedding(ids, weight)

    def in_fastseq(self, device: Device) -> Callable[..., Any]:
        from fastseq.functional import embedding

        ids = device.array(device.integers(2, self.V, (self.N,))[0])
        return lambda weight: embedding(ids, weight)


@dataclass(frozen=True, kw_only=True)
class Adam(Case):
    """A step of the optimiser on some matrices of n numbers each."""

    matrices: int
    n: int

    def __str__(self) -> str:
        return f"Adam, {self.matrices} matrices of {self.n}"

    @property
    def family(self) -> str:
        return "other operations, training"

    @property
    def target(self) -> float | None:
        return None

    @property
    def bytes(self) -> float:
        return 7.0 * 4 * self.matrices * self.n

    def _arrays(self, device: Device, seed: int) -> list[torch.Tensor]:
        return device.random(seed, *[(self.n,)] * self.matrices)

    def theirs(self, device: Device) -> dict[str, Call]:
        return {"fused": self._torch_call(device, torch.float32, fused=True)}

    def truth(self, device: Device) -> Answer:
        return self._torch_call(device, torch.float64, fused=False).answer()

    def _torch_call(self, device: Device, dtype: torch.dtype, fused: bool) -> Call:
        def built() -> tuple[list[torch.Tensor], torch.optim.Adam]:
            parameters = [a.to(dtype) for a in self._arrays(device, 0)]
            for p, grad in zip(parameters, self._arrays(device, 1), strict=True):
                p.requires_grad_()
                p.grad = grad.to(dtype)
            return parameters, torch.optim.Adam(parameters, lr=1e-2, fused=fused)

        def answer() -> Answer:
            parameters, adam = built()
            for _ in range(3):
                adam.step()
            return {"w": torch.stack(parameters).detach()}
        return Call(built()[1].step, answer)

    def ours(self, device: Device) -> Call:
        import fastseq as fs

        def built() -> tuple[list[Any], Any]:
            parameters = [fs.nn.Parameter(device.array(a)) for a in self._arrays(device, 0)]
            for p, grad in zip(parameters, self._arrays(device, 1), strict=True):
                p.grad = device.array(grad)
            return parameters, fs.optim.Adam(parameters, lr=1e-2)

        def answer() -> Answer:
            parameters, adam = built()
            for _ in range(3):
                adam.step()
            return {"w": torch.stack([device.tensor(p.data) for p in parameters])}
        return Call(built()[1].step, answer)


def cases() -> Iterator[Case]:
    """All of them."""
    for mode in ("inference", "training"):
        yield CrossEntropy(mode=mode, N=4096, V=32_000, quick=mode == "training")
        yield LinearCrossEntropy(mode=mode, N=4096, H=1024, V=32_000, quick=mode == "training")
        yield LayerNorm(mode=mode, M=8192, N=1024, quick=mode == "training")
        yield Gelu(mode=mode, n=2**24)
        yield Embedding(mode=mode, N=16_384, V=32_000, E=512, quick=mode == "training")
    yield Adam(matrices=16, n=2**20, quick=True)
    yield Adam(matrices=64, n=4096)
