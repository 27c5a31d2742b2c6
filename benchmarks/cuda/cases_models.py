"""The training step of a language model: embedding, layers, head and loss, the gradients clipped, Adam."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cuda.case import Answer, Call, Case
from benchmarks.cuda.device import Device
from benchmarks.cuda.function import WORDS

RATE, MAX_NORM = 1e-3, 1.0
STEPS = 3  # of which losses and norms are compared


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Case):
    """A batch (T, B) of V tokens; cell: "lstm", "gru" or "transformer", whose feed-forward parts are 4 E wide."""

    cell: str
    V: int
    E: int
    layers: int
    T: int
    B: int

    def __str__(self) -> str:
        name = {"lstm": "LSTM", "gru": "GRU", "transformer": "GPT"}[self.cell]
        return f"training step {name} L{self.layers} V{self.V} E{self.E} T{self.T} B{self.B} {WORDS[self.precision]}"

    @property
    def family(self) -> str:
        return "training step of a language model" if self.cell != "transformer" else "training step of a GPT"

    @property
    def target(self) -> float | None:
        return 1.2 if self.cell != "transformer" else None

    @property
    def flop(self) -> float:
        E, pairs = self.E, 2 * self.T if self.cell == "transformer" else 0
        layer = {"lstm": 8 * E * E, "gru": 6 * E * E, "transformer": 12 * E * E + pairs * E}[self.cell]
        return 3 * 2.0 * self.T * self.B * (self.layers * layer + E * self.V)

    def _model(self) -> Any:
        import fastseq as fs

        hidden = 4 * self.E if self.cell == "transformer" else self.E
        options = {"heads": max(1, self.E // 64), "max_length": self.T} if self.cell == "transformer" else {}
        return fs.models.LanguageModel(self.V, self.E, hidden, cell=self.cell, num_layers=self.layers, rng=0, **options)

    def _batch(self, device: Device) -> list[torch.Tensor]:
        """Inputs and targets."""
        return device.integers(0, self.V, (self.T, self.B), (self.T, self.B))

    def theirs(self, device: Device) -> dict[str, Call]:
        return {"eager": self._call(lambda: self._torch_step(device, torch.float32))}

    def truth(self, device: Device) -> Answer:
        return self._call(lambda: self._torch_step(device, torch.float64)).answer()

    def ours(self, device: Device) -> Call:
        return self._call(lambda: self._fastseq_step(device))

    def _call(self, built: Callable[[], Callable[[], tuple[Any, Any]]]) -> Call:
        """A step changes the model, so that each answer has a new one."""
        def answer() -> Answer:
            step = built()
            found = [tuple(float(number) for number in step()) for _ in range(STEPS)]
            losses, norms = zip(*found, strict=True)
            return {"losses": torch.tensor(losses, dtype=torch.float64), "norms": torch.tensor(norms, dtype=torch.float64)}
        return Call(built(), answer)

    def _torch_step(self, device: Device, dtype: torch.dtype) -> Callable[[], tuple[Any, Any]]:
        from benchmarks.peers.torch_language_model import TorchLanguageModel

        twin = TorchLanguageModel(self._model()).to(device.name, dtype).train()
        adam = torch.optim.Adam(twin.parameters(), lr=RATE, fused=True)
        parameters, (inputs, targets) = list(twin.parameters()), self._batch(device)
        half = self.precision == "medium" and dtype == torch.float32

        def step() -> tuple[Any, Any]:
            with torch.autocast(device.name, torch.bfloat16) if half else contextlib.nullcontext():
                logits, _ = twin(inputs)
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            adam.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            adam.step()
            return loss.detach(), norm
        return step

    def _fastseq_step(self, device: Device) -> Callable[[], tuple[Any, Any]]:
        import fastseq as fs

        model = device.module(self._model().train())
        parameters, (inputs, targets) = list(model.parameters()), map(device.array, self._batch(device))
        adam = fs.optim.Adam(parameters, lr=RATE)

        def step() -> tuple[Any, Any]:
            loss = model.loss(inputs, targets)
            adam.zero_grad()
            loss.backward()
            norm = fs.optim.clip_grad_norm(parameters, MAX_NORM)
            adam.step()
            return loss.detach(), norm
        return step


def cases() -> Iterator[LanguageModel]:
    """All of them."""
    for cell, layers, T, B, precision, quick in (
        ("lstm", 1, 35, 64, "high", True), ("lstm", 2, 35, 64, "high", True), ("lstm", 1, 100, 32, "high", False), ("lstm", 2, 100, 32, "medium", False),
        ("gru", 1, 35, 64, "high", True), ("gru", 2, 100, 32, "high", False), ("lstm", 1, 35, 64, "highest", False),
    ):
        yield LanguageModel(cell=cell, V=10_000, E=512, layers=layers, T=T, B=B, precision=precision, quick=quick)
    for precision in ("high", "medium"):
        yield LanguageModel(cell="transformer", V=10_000, E=512, layers=4, T=256, B=16, precision=precision, quick=precision == "high")
