"""A `LanguageModel` of fastseq in PyTorch's layers, with its weights, and a training step of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fastseq as fs
from fastseq.models import LanguageModel


class TorchLanguageModel(torch.nn.Module):
    """The cells that PyTorch has, and the transformer; parameters under the names that fastseq's model has."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        options: dict[str, Any] = model.configuration()
        V, E, H, L, p = len(model.vocabulary), *(options[name] for name in ("embedding_size", "hidden_size", "num_layers", "dropout"))
        self.cell = model.cell
        self.embedding = torch.nn.Embedding(V, E)
        if self.cell == "transformer":
            if options["positions"] != "learned":
                raise ValueError("model: expected learned positions")
            layer = torch.nn.TransformerEncoderLayer(E, options["heads"], H, p, "gelu", norm_first=True)
            self.transformer = torch.nn.TransformerEncoder(layer, L, torch.nn.LayerNorm(E), enable_nested_tensor=False)
            self.positions, self.dropout = torch.nn.Embedding(options["max_length"], E), torch.nn.Dropout(p)
        else:
            self.add_module(self.cell, getattr(torch.nn, self.cell.upper())(E, H, L, dropout=p if L > 1 else 0.0))
            self.input_dropout, self.output_dropout = torch.nn.Dropout(p / 2), torch.nn.Dropout(p)
        self.head = torch.nn.Linear(E if self.cell == "transformer" else H, V)
        if options["tie_weights"]:
            self.head.weight = self.embedding.weight
        self.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()})

    def forward(self, ids: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Ids (T, B) -> logits (T, B, V) and the state; a transformer's is None."""
        x = self.embedding(ids)
        if self.cell == "transformer":
            T = len(ids)
            mask = torch.nn.Transformer.generate_square_subsequent_mask(T, device=x.device)
            x = self.dropout(x + self.positions.weight[:T, None])
            return self.head(self.transformer(x, mask, is_causal=True)), None
        y, state = self.get_submodule(self.cell)(self.input_dropout(x), state)
        return self.head(self.output_dropout(y)), state


Step = Callable[[Any], float]


def step_of(model: LanguageModel, rate: float, carry: bool = False) -> Step:
    """A step of fastseq on (inputs, targets), with `carry` from the state that the call before has left."""
    parameters, state = list(model.train().parameters()), fs.training.CarriedState() if carry else None
    adam = fs.optim.Adam(parameters, lr=rate)

    def step(batch: Any) -> float:
        inputs, *_, targets = batch
        loss = model.loss(inputs, targets, state)
        adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(parameters, 1.0)
        adam.step()
        return float(loss.item())

    return step


def torch_step_of(model: LanguageModel, rate: float, carry: bool = False) -> Step:
    """Likewise in PyTorch."""
    twin, state = TorchLanguageModel(model).train(), None
    adam = torch.optim.Adam(twin.parameters(), lr=rate, fused=True)

    def step(batch: Any) -> float:
        nonlocal state
        inputs, *_, targets = map(torch.from_numpy, batch)
        logits, after = twin(inputs, state)
        state = detached(after) if carry else None
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        adam.step()
        return float(loss.item())

    return step


def detached(state: Any) -> Any:
    """The state without what it was computed from."""
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return None if state is None else state.detach()
