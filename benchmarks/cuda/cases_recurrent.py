"""LSTM and GRU beside cuDNN through PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cuda.case import Answer, Call, Case
from benchmarks.cuda.device import Device
from benchmarks.cuda.function import DTYPES, WORDS, spread, visible

GATES = {"LSTM": 4, "GRU": 3}
#: The widest layers that PyTorch gives to cuDNN's persistent kernels: aten/src/ATen/native/cudnn/RNN.cpp, use_rnn_persist_small_h.
PERSISTENT = 192


@dataclass(frozen=True, kw_only=True)
class Recurrent(Case):
    """Layers of H units on x (T, B, H); mode: "inference" or "training" (forward, and back to x and all weights)."""

    cell: str
    mode: str
    H: int
    B: int
    T: int
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False  # rows of T / 4 to T steps, in no order
    half: bool = False  # PyTorch's layer in float16, which cuDNN has persistent kernels for where bfloat16 has none
    graph: bool = False  # PyTorch's call recorded as a CUDA graph beforehand

    def __str__(self) -> str:
        words = [self.cell, self.mode, *(("ragged",) if self.ragged else ()), f"L{self.layers}" * (self.layers > 1), "both ways" * self.bidirectional,
                 f"T{self.T} B{self.B} H{self.H}", WORDS[self.precision], "beside float16" * self.half, "beside a graph" * self.graph]
        return " ".join(word for word in words if word)

    @property
    def family(self) -> str:
        if self.half:
            return f"{self.cell} {self.mode}, bf16 beside float16"
        if self.graph:
            return f"recurrent {self.mode}, tf32 beside PyTorch in a CUDA graph"
        form = "ragged" if self.ragged else "stacked or both ways" if self.layers > 1 or self.bidirectional else None
        size = f"H <= {PERSISTENT}" if self.H <= PERSISTENT else f"H > {PERSISTENT}"
        return f"recurrent, {form}" if form else f"{self.cell} {self.mode}, {size}, {WORDS[self.precision]}"

    @property
    def target(self) -> float | None:
        if self.precision == "highest" or self.graph or self.layers > 1 or self.bidirectional:
            return None
        return 1.5 if self.ragged or (self.H > PERSISTENT and not self.half) else 0.8

    @property
    def D(self) -> int:
        """Directions."""
        return 1 + self.bidirectional

    @property
    def flop(self) -> float:
        inputs = self.H + (self.layers - 1) * self.D * self.H
        steps = sum(self.lengths()) if self.ragged else self.T * self.B
        return (3 if self.mode == "training" else 1) * 2.0 * steps * self.D * GATES[self.cell] * self.H * (inputs + self.layers * self.H)

    def lengths(self) -> list[int]:
        """Steps of each row."""
        return spread(self.T, self.B)

    def _module(self) -> Any:
        torch.manual_seed(1)
        return getattr(torch.nn, self.cell)(self.H, self.H, num_layers=self.layers, bidirectional=self.bidirectional)

    def _data(self, device: Device) -> list[torch.Tensor]:
        """x and the upstream gradient of y."""
        return device.random(2, (self.T, self.B, self.H), (self.T, self.B, self.D * self.H))

    def _inside(self, device: Device, dtype: torch.dtype) -> torch.Tensor:
        """1 where a row has a step, (T, B, 1)."""
        return visible(device, self.lengths(), self.T).T[:, :, None].to(dtype)

    def theirs(self, device: Device) -> dict[str, Call]:
        dtype = torch.float16 if self.half else DTYPES[self.precision]
        ways = {"padded, masked": False, "packed": True} if self.ragged and not self.bidirectional else {"packed" if self.ragged else "cuDNN": self.ragged}
        calls = {name: self._torch_call(device, dtype, packed) for name, packed in ways.items()}
        return {"graph": recorded(calls["cuDNN"])} if self.graph and device.gpu else calls

    def truth(self, device: Device) -> Answer:
        return self._torch_call(device, torch.float64, packed=self.ragged).answer()

    def _torch_call(self, device: Device, dtype: torch.dtype, packed: bool) -> Call:
        layer = self._module().to(device.name, dtype)
        x, dy = (a.to(dtype) for a in self._data(device))
        lengths = torch.tensor(self.lengths()) if self.ragged else None
        inside = None if lengths is None else self._inside(device, dtype)
        rnn = torch.nn.utils.rnn

        def forward(x: torch.Tensor) -> torch.Tensor:
            if lengths is None:
                return layer(x)[0]
            if packed:
                return rnn.pad_packed_sequence(layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))[0], total_length=self.T)[0]
            return layer(x)[0] * inside

        if self.mode == "inference":
            layer.eval()

            def run() -> torch.Tensor:
                with torch.inference_mode():
                    return forward(x)
            return Call(run, lambda: {"y": run()})
        x.requires_grad_()

        def train() -> torch.Tensor:
            layer.zero_grad()
            x.grad = None
            y = forward(x)
            y.backward(dy)
            return y
        return Call(train, lambda: {"y": train().detach(), "dx": x.grad} | {name: p.grad for name, p in layer.named_parameters()})

    def ours(self, device: Device) -> Call:
        import fastseq as fs

        layer = getattr(fs.nn, self.cell)(self.H, self.H, num_layers=self.layers, bidirectional=self.bidirectional)
        layer.load_state_dict({name: w.numpy() for name, w in self._module().state_dict().items()})
        layer = device.module(layer)
        x, dy = map(device.array, self._data(device))
        options = {"lengths": torch.tensor(self.lengths()).numpy()} if self.ragged else {}
        if self.mode == "inference":
            layer.eval()
            return Call(lambda: layer(x, **options), lambda: {"y": device.tensor(layer(x, **options)[0])})

        def train() -> tuple[Any, Any]:
            layer.zero_grad()
            xt = fs.Tensor(x, requires_grad=True)
            y = layer(xt, **options)[0]
            y.backward(dy)
            return xt, y

        def answer() -> Answer:
            xt, y = train()
            found = {"y": y.data, "dx": xt.grad} | {name: p.grad for name, p in layer.named_parameters()}
            return {name: device.tensor(a) for name, a in found.items()}
        return Call(train, answer)


def recorded(call: Call) -> Call:
    """The call as a CUDA graph: one launch, of the same kernels on the same memory."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            call.run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call.answer()

    def again() -> Answer:
        graph.replay()
        return {name: tensor.clone() for name, tensor in answer.items()}
    return Call(graph.replay, again)


MODES = ("inference", "training")
WIDTHS = (64, 128, 192, 256, 512, 768, 1024)
#: H, B, T beside every width with 32 rows of 100 steps.
TF32 = ((256, 1, 100), (512, 1, 100), (1024, 1, 100), (256, 16, 100), (1024, 16, 100), (128, 64, 100), (512, 64, 100), (1024, 64, 100),
        (128, 32, 1000), (256, 32, 1000), (1024, 32, 1000), (512, 1, 1000))
BF16 = ((512, 1, 100), (1024, 64, 100), (512, 32, 1000))
QUICK = ((128, 32, 100), (256, 32, 100), (512, 32, 100), (1024, 32, 100), (512, 1, 100))


def cases() -> Iterator[Recurrent]:
    """All of them."""
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
    for cell in GATES:
        for mode in MODES:
            for precision, more in (("high", TF32), ("medium", BF16)):
                for H, B, T in (*((H, 32, 100) for H in WIDTHS), *more):
                    quick = (H, B, T) in QUICK and (precision == "high" or (H, B) == (512, 32))
                    yield Recurrent(cell=cell, mode=mode, H=H, B=B, T=T, precision=precision, quick=quick)
            for H in (256, 512, 1024) if cell == "LSTM" else ():
                yield Recurrent(cell=cell, mode=mode, H=H, B=64, T=100, precision="medium", half=True, quick=H == 512)
            for H in (256, 512, 1024):
                yield Recurrent(cell=cell, mode=mode, H=H, B=32, T=100, graph=True, quick=H == 512 and cell == "LSTM")
            for H in (128, 512, 1024):
                yield Recurrent(cell=cell, mode=mode, H=H, B=32, T=100, precision="highest", quick=H == 512 and cell == "LSTM")
            for H, B, T in ((256, 32, 100), (512, 32, 100), (1024, 32, 100), (512, 64, 1000)):
                yield Recurrent(cell=cell, mode=mode, H=H, B=B, T=T, ragged=True, quick=(H, T) == (512, 100))
            yield Recurrent(cell=cell, mode=mode, H=512, B=32, T=100, precision="medium", ragged=True)
            yield Recurrent(cell=cell, mode=mode, H=512, B=32, T=100, bidirectional=True, quick=cell == "LSTM")
            yield Recurrent(cell=cell, mode=mode, H=512, B=32, T=100, layers=2, quick=cell == "LSTM")
            yield Recurrent(cell=cell, mode=mode, H=512, B=32, T=100, bidirectional=True, ragged=True)
