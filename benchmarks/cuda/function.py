"""A case that is a function of some arrays: forward, or forward and back to all of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cuda.case import Answer, Call, Case
from benchmarks.cuda.device import Device

DTYPES = {"highest": torch.float32, "high": torch.float32, "medium": torch.bfloat16}
WORDS = {"highest": "float32", "high": "tf32", "medium": "bf16"}


@dataclass(frozen=True, kw_only=True)
class Function(Case):
    """y of arrays by name; mode: "inference", or "training" with the gradients of all of them, d and the array's name."""

    mode: str

    @abstractmethod
    def arrays(self, device: Device) -> dict[str, torch.Tensor]:
        """The arguments, float32."""

    @abstractmethod
    def upstream(self, device: Device) -> torch.Tensor | None:
        """The gradient of y; None where y is a loss."""

    @abstractmethod
    def in_torch(self, device: Device) -> Callable[..., torch.Tensor]:
        """PyTorch's function, of any dtype."""

    @abstractmethod
    def in_fastseq(self, device: Device) -> Callable[..., Any]:
        """fastseq's."""

    def exactly(self, device: Device) -> Callable[..., torch.Tensor]:
        """What is true, in float64."""
        return self.in_torch(device)

    def theirs(self, device: Device) -> dict[str, Call]:
        return {"eager": self.torch_call(device, self.in_torch(device), DTYPES[self.precision])}

    def truth(self, device: Device) -> Answer:
        return self.torch_call(device, self.exactly(device), torch.float64).answer()

    def torch_call(self, device: Device, function: Callable[..., torch.Tensor], dtype: torch.dtype) -> Call:
        """The call on arrays of that dtype."""
        arrays, dy = {name: a.to(dtype) for name, a in self.arrays(device).items()}, self.upstream(device)
        if self.mode == "inference":
            def run() -> torch.Tensor:
                with torch.inference_mode():
                    return function(**arrays)
            return Call(run, lambda: {"y": run()})
        dy = None if dy is None else dy.to(dtype)
        for a in arrays.values():
            a.requires_grad_()

        def train() -> torch.Tensor:
            for a in arrays.values():
                a.grad = None
            y = function(**arrays)
            y.backward(dy)
            return y
        return Call(train, lambda: {"y": train().detach()} | {f"d{name}": a.grad for name, a in arrays.items()})

    def ours(self, device: Device) -> Call:
        from fastseq import Tensor

        function, dy = self.in_fastseq(device), self.upstream(device)
        arrays = {name: device.array(a) for name, a in self.arrays(device).items()}
        if self.mode == "inference":
            return Call(lambda: function(**arrays), lambda: {"y": device.tensor(function(**arrays))})
        dy = None if dy is None else device.array(dy)

        def train() -> tuple[Any, dict[str, Any]]:
            tensors = {name: Tensor(a, requires_grad=True) for name, a in arrays.items()}
            y = function(**tensors)
            y.backward(dy)
            return y, tensors

        def answer() -> Answer:
            y, tensors = train()
            return {"y": device.tensor(y.data)} | {f"d{name}": device.tensor(t.grad) for name, t in tensors.items()}
        return Call(train, answer)


def visible(device: Device, lengths: list[int], T: int) -> torch.Tensor:
    """Which of T places each row has, (B, T)."""
    return (torch.arange(T) < torch.tensor(lengths)[:, None]).to(device.name)


def spread(T: int, B: int) -> list[int]:
    """T / 4 to T evenly, shuffled."""
    even = torch.linspace(max(1, T // 4), T, B).round().long()
    return even[torch.randperm(B, generator=torch.Generator().manual_seed(4))].tolist()
