"""The models that put labels on sequences as one writes them in PyTorch: packed sequences, and the parameter names of `fastseq.models`."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Encoder(torch.nn.Module):
    """Embedding and a recurrent layer in both directions over the sequences without their padding."""

    def __init__(self, ours: Any, features: int = 0) -> None:
        super().__init__()
        self.lstm_or_gru, table = ours.cell, ours.embedding
        self.embedding = torch.nn.Embedding(table.num_embeddings, table.embedding_dim, table.padding_idx)
        layer = getattr(ours, ours.cell)
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[ours.cell]
        setattr(self, ours.cell, kind(table.embedding_dim + features, layer.hidden_size, bidirectional=True))

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor, features: torch.Tensor | None = None) -> tuple[Any, torch.Tensor]:
        x = self.embedding(ids)
        if features is not None:
            x = torch.cat([x, features], 2)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, state = getattr(self, self.lstm_or_gru)(packed)
        h = state[0] if self.lstm_or_gru == "lstm" else state
        return y, torch.cat([h[0], h[1]], 1)


class Pool(torch.nn.Module):
    """`fastseq.nn.AttentionPooling`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.empty(size, size)), torch.nn.Parameter(torch.empty(size))

    def forward(self, h: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        q = torch.tanh(F.linear(h, self.weight, self.bias))
        last = q[lengths - 1, torch.arange(len(lengths))]
        scores = (q * last).sum(2).masked_fill(torch.arange(len(h))[:, None] >= lengths, -torch.inf)
        return (torch.softmax(scores, 0)[..., None] * h).sum(0)


class Classifier(torch.nn.Module):
    """`fastseq.models.SequenceClassifier` of a recurrent layer, with its weights."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(ours.encoder), torch.nn.Linear(ours.encoder.size, len(ours.classes))
        self.pool = Pool(ours.encoder.size) if ours.pooling == "attention" else None
        _take_weights(self, ours)

    def loss(self, ids: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        y, last = self.encoder(ids, lengths)
        pooled = last if self.pool is None else self.pool(pad_packed_sequence(y)[0], lengths)
        return F.cross_entropy(self.head(pooled), labels)


class Tagger(torch.nn.Module):
    """`fastseq.models.SequenceTagger` with characters, with its weights."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.padding = ours.characters.padding_id
        self.speller, self.encoder = Encoder(ours.speller), Encoder(ours.encoder, ours.speller.size)
        self.head = torch.nn.Linear(ours.encoder.size, len(ours.tags))
        self.class_head = None if ours.classes is None else torch.nn.Linear(ours.encoder.size, len(ours.classes))
        _take_weights(self, ours)

    def loss(self, tokens: torch.Tensor, lengths: torch.Tensor, tags: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        ids, letters = tokens[..., 0], tokens[..., 1:]
        real = torch.arange(len(ids))[:, None] < lengths
        words = letters[real]  # without the padding between sentences
        _, spelled = self.speller(words.T, (words != self.padding).sum(1))
        features = spelled.new_zeros(*ids.shape, spelled.shape[1])
        features[real] = spelled
        y, last = self.encoder(ids, lengths, features)
        # The packed states are scored as they are, beside the tags packed in the same way.
        packed = pack_padded_sequence(tags, lengths, enforce_sorted=False).data
        loss = F.cross_entropy(self.head(y.data), packed)
        return loss if self.class_head is None else loss + F.cross_entropy(self.class_head(last), classes)


def _take_weights(model: torch.nn.Module, ours: Any) -> None:
    model.load_state_dict({name: torch.from_numpy(w) for name, w in ours.state_dict().items()})
