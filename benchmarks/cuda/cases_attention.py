"""Scaled dot-product attention beside PyTorch's flash path in bfloat16, and its path of float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cuda.case import Answer, Call, Case
from benchmarks.cuda.device import Device

WIDTH = 1024  # heads times D
TOKENS = 8192  # rows times T


@dataclass(frozen=True, kw_only=True)
class Attention(Case):
    """y (B, heads, Tq, D); mode: "inference" or "training" (with the gradients of q, k and v). One query is a step of decoding."""

    mode: str
    B: int
    heads: int
    Tq: int
    Tk: int
    D: int
    causal: bool = False
    ragged: bool = False  # rows of Tk / 4 to Tk keys

    def __str__(self) -> str:
        words = ["attention", self.mode, "causal" * self.causal, "ragged" * self.ragged, "decoding" * (self.Tq == 1),
                 f"B{self.B} h{self.heads} T{self.Tk} D{self.D}", {"highest": "float32", "high": "tf32", "medium": "bf16"}[self.precision]]
        return " ".join(word for word in words if word)

    @property
    def family(self) -> str:
        form = "one query" if self.Tq == 1 else "ragged" if self.ragged else self.mode
        return f"attention, {form}, {'bf16' if self.precision == 'medium' else 'float32'}"

    @property
    def target(self) -> float | None:
        return 0.6 if self.precision == "medium" else 1.0

    @property
    def flop(self) -> float:
        # Two products forwards, five backwards, which has to compute the scores again; half of the pairs where the future is not seen.
        pairs = self.heads * self.Tq * (sum(self.lengths()) if self.ragged else self.B * self.Tk) * (0.5 if self.causal else 1)
        return 4.0 * (3.5 if self.mode == "training" else 1) * pairs * self.D

    @property
    def bytes(self) -> float:
        return 4.0 * self.B * self.heads * self.D * 2 * (self.Tq + self.Tk) if self.Tq == 1 else 0.0

    def lengths(self) -> list[int]:
        """Keys of each row."""
        return torch.linspace(self.Tk // 4, self.Tk, self.B).round().long().tolist()

    def _data(self, device: Device) -> list[torch.Tensor]:
        """q, k, v and the upstream gradient of y."""
        return device.random(0, *((self.B, self.heads, T, self.D) for T in (self.Tq, self.Tk, self.Tk, self.Tq)))

    def _visible(self, device: Device) -> torch.Tensor | None:
        """(B, 1, 1, Tk), or None where every row has all keys."""
        if not self.ragged:
            return None
        return (torch.arange(self.Tk) < torch.tensor(self.lengths())[:, None])[:, None, None].to(device.name)

    def theirs(self, device: Device) -> dict[str, Call]:
        dtype = torch.bfloat16 if self.precision == "medium" else torch.float32
        visible = self._visible(device)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, visible, is_causal=self.causal)

        only = "flash" if self.precision == "medium" and not self.ragged else "own choice"
        return {only: self._torch_call(attend, [a.to(dtype) for a in self._data(device)])._replace(enter=lambda: backend(only))}

    def truth(self, device: Device) -> Answer:
        visible = self._visible(device)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            scores = q @ k.mT / math.sqrt(self.D)
            if self.causal:
                scores.masked_fill_(torch.ones(self.Tq, self.Tk, dtype=torch.bool, device=device.name).triu(1), -math.inf)
            if visible is not None:
                scores.masked_fill_(~visible, -math.inf)
            return torch.softmax(scores, -1) @ v
        return self._torch_call(attend, [a.double() for a in self._data(device)]).answer()

    def _torch_call(self, attend: Callable[..., torch.Tensor], arrays: list[torch.Tensor]) -> Call:
        *qkv, dy = arrays
        if self.mode == "inference":
            def run() -> torch.Tensor:
                with torch.inference_mode():
                    return attend(*qkv)
            return Call(run, lambda: {"y": run()})
        for x in qkv:
            x.requires_grad_()

        def train() -> torch.Tensor:
            for x in qkv:
                x.grad = None
            y = attend(*qkv)
            y.backward(dy)
            return y
        return Call(train, lambda: {"y": train().detach()} | {name: x.grad for name, x in zip(("dq", "dk", "dv"), qkv, strict=True)})

    def ours(self, device: Device) -> Call:
        import fastseq as fs

        *arrays, dy = map(device.array, self._data(device))
        options: dict[str, Any] = {"is_causal": self.causal}
        if self.ragged:
            options["key_lengths"] = torch.tensor(self.lengths()).numpy()
        attend = fs.functional.scaled_dot_product_attention
        if self.mode == "inference":
            return Call(lambda: attend(*arrays, **options), lambda: {"y": device.tensor(attend(*arrays, **options))})

        def train() -> tuple[Any, ...]:
            qkv = [fs.Tensor(a, requires_grad=True) for a in arrays]
            y = attend(*qkv, **options)
            y.backward(dy)
            return y, *qkv

        def answer() -> Answer:
            y, *qkv = train()
            return {"y": device.tensor(y.data)} | {name: device.tensor(x.grad) for name, x in zip(("dq", "dk", "dv"), qkv, strict=True)}
        return Call(train, answer)


def backend(only: str) -> None:
    """Let PyTorch use its flash kernels, cuDNN's, or what it chooses itself."""
    cuda = torch.backends.cuda
    cuda.enable_flash_sdp(only in ("flash", "own choice"))
    cuda.enable_cudnn_sdp(only in ("cuDNN", "own choice"))
    cuda.enable_mem_efficient_sdp(only == "own choice")
    cuda.enable_math_sdp(only == "own choice")


@dataclass(frozen=True, kw_only=True)
class CudnnAttention(Attention):
    """The same beside cuDNN's kernels, which use instructions of the Hopper generation; nothing was promised there."""

    @property
    def family(self) -> str:
        return f"attention beside cuDNN, {self.mode}, bf16"

    @property
    def target(self) -> float | None:
        return None

    def __str__(self) -> str:
        return f"{super().__str__()}, cuDNN"

    def theirs(self, device: Device) -> dict[str, Call]:
        call = super().theirs(device)["flash"]
        return {"cuDNN": call._replace(enter=lambda: backend("cuDNN" if device.gpu else "own choice"))}


def cases() -> Iterator[Attention]:
    """All of them."""
    for precision in ("medium", "high"):
        for mode in ("inference", "training"):
            for D in (64, 128):
                for T in (512, 2048, 4096):
                    for causal in (False, True):
                        sizes = {"mode": mode, "B": TOKENS // T, "heads": WIDTH // D, "Tq": T, "Tk": T, "D": D, "causal": causal, "precision": precision}
                        yield Attention(**sizes, quick=T == 2048 and D == 64)
                        if precision == "medium" and T == 4096:
                            yield CudnnAttention(**sizes)
            yield Attention(mode=mode, B=8, heads=16, Tq=1024, Tk=1024, D=64, ragged=True, precision=precision, quick=mode == "training")
        for B in (1, 32):
            yield Attention(mode="inference", B=B, heads=16, Tq=1, Tk=4096, D=64, precision=precision, quick=B == 32)
    yield Attention(mode="training", B=4, heads=16, Tq=2048, Tk=2048, D=64, precision="highest")
