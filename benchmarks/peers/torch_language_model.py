"""A `LanguageModel` of fastseq in PyTorch's layers, with its weights."""

from __future__ import annotations

from typing import Any

import torch

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
            mask = torch.nn.Transformer.generate_square_subsequent_mask(T)
            x = self.dropout(x + self.positions.weight[:T, None])
            return self.head(self.transformer(x, mask, is_causal=True)), None
        y, state = self.get_submodule(self.cell)(self.input_dropout(x), state)
        return self.head(self.output_dropout(y)), state
