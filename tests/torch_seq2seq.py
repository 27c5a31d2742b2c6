"""Seq2Seq as one writes it in PyTorch with care, under the same parameter names; a witness, and what benchmarks time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastseq as fs

torch = pytest.importorskip("torch")
nn, pack_padded_sequence, pad_packed_sequence = torch.nn, torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence


class Decoder(nn.Module):
    """A loop over the steps; what no step needs of another is done once: the keys before it, the outputs after it."""

    def __init__(self, input_size: int, hidden_size: int, cell: str, attention: str | None, fed: bool) -> None:
        super().__init__()
        self.cell = (nn.LSTMCell if cell == "lstm" else nn.GRUCell)(input_size + hidden_size * fed, hidden_size)
        self.attention, self.fed, H = attention, fed, hidden_size
        shapes = {"weight_query": (H, H), "weight_key": (H, H), "bias_key": (H,), "weight_score": (H,)} if attention == "additive" else {}
        shapes |= {"weight_query": (H, H)} if attention == "bilinear" else {}
        shapes |= {"weight_out": (H, 2 * H), "bias_out": (H,)} if attention else {}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, x: torch.Tensor, memory: torch.Tensor, blocked: torch.Tensor, state: Any) -> torch.Tensor:
        """x (T, B, I), memory (B, S, H) -> (T, B, H)."""
        keys = memory @ self.weight_key.T + self.bias_key if self.attention == "additive" else memory
        given, outputs = memory[:, -1], []
        for x_t in x.unbind():
            context = given if not self.attention else self._context(self._h(state), keys, memory, blocked) if self.fed else None
            state = self.cell(torch.cat([x_t, context], dim=1) if self.fed else x_t, state)
            h = self._h(state)
            if context is None:  # Luong's form asks after the step
                context = self._context(h, keys, memory, blocked)
            outputs.append(torch.cat([h, context], dim=1) if self.attention else h)
        found = torch.stack(outputs)
        return torch.tanh(found @ self.weight_out.T + self.bias_out) if self.attention else found

    @staticmethod
    def _h(state: Any) -> torch.Tensor:
        return state[0] if isinstance(state, tuple) else state

    def _context(self, h: torch.Tensor, keys: torch.Tensor, memory: torch.Tensor, blocked: torch.Tensor) -> torch.Tensor:
        query = h if self.attention == "dot" else h @ self.weight_query.T
        if self.attention == "additive":
            scores = torch.tanh(query[:, None] + keys) @ self.weight_score
        else:
            scores = torch.bmm(keys, query[:, :, None]).squeeze(2)
        weights = torch.softmax(scores.masked_fill(blocked, -torch.inf), dim=1)
        return torch.bmm(weights[:, None], memory).squeeze(1)


class Seq2Seq(nn.Module):
    """The model of a `fs.models.Seq2Seq`, with its weights; without dropout."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        options = ours.configuration()
        (V, E), (W, H), self.transformer = ours.source_embedding.weight.shape, ours.head.weight.shape, ours.cell == "transformer"
        self.source_embedding, self.target_embedding = nn.Embedding(V, E), nn.Embedding(W, E)
        if self.transformer:
            sizes, layers = (E, options["heads"], options["hidden_size"], 0.0, "gelu"), options["num_layers"]
            one, other = nn.TransformerEncoderLayer(*sizes, norm_first=True), nn.TransformerDecoderLayer(*sizes, norm_first=True)
            self.encoder = nn.TransformerEncoder(one, layers, nn.LayerNorm(E), enable_nested_tensor=False)
            self.decoder = nn.TransformerDecoder(other, layers, nn.LayerNorm(E))
            self.register_buffer("positions", torch.from_numpy(fs.nn.SinusoidalPositionalEncoding(E)(np.zeros((500, E)))), persistent=False)
        else:
            kind = nn.LSTM if ours.cell == "lstm" else nn.GRU
            self.encoder = kind(E, H // (1 + options["bidirectional"]), options["num_layers"], bidirectional=options["bidirectional"])
            self.decoder = Decoder(E, H, ours.cell, options["attention"], options["input_feeding"])
        self.head = nn.Linear(H, W)
        state = {name: torch.tensor(array) for name, array in ours.state_dict().items()}
        cell = {f"decoder.{name}": f"decoder.cell.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        self.load_state_dict({name if self.transformer else cell.get(name, name): array for name, array in state.items()})

    def forward(self, source: torch.Tensor, lengths: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """source (S, B), inputs (T, B) -> logits (T, B, W)."""
        x, y = self.source_embedding(source), self.target_embedding(inputs)
        blocked = torch.arange(len(source)) >= lengths[:, None]
        if self.transformer:
            x, y = (a * a.shape[2] ** 0.5 + self.positions[: len(a), None].to(a.dtype) for a in (x, y))
            memory = self.encoder(x, src_key_padding_mask=blocked)
            causal = nn.Transformer.generate_square_subsequent_mask(len(y), dtype=y.dtype)
            return self.head(self.decoder(y, memory, tgt_mask=causal, memory_key_padding_mask=blocked, tgt_is_causal=True))
        packed, last = self.encoder(pack_padded_sequence(x, lengths, enforce_sorted=False))
        memory = pad_packed_sequence(packed, total_length=len(source))[0]
        last = [torch.cat([s[-2], s[-1]], dim=1) if self.encoder.bidirectional else s[-1] for s in (last if isinstance(last, tuple) else (last,))]
        if not self.decoder.attention:
            memory = last[0][None]
        return self.head(self.decoder(y, memory.transpose(0, 1), blocked, tuple(last) if len(last) == 2 else last[0]))

    def loss(self, source: torch.Tensor, lengths: torch.Tensor, inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of what is wanted; -100 is padding."""
        return nn.functional.cross_entropy(self(source, lengths, inputs).flatten(0, 1), wanted.flatten())
