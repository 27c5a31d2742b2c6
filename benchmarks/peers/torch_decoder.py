"""A decoder with additive attention as one writes it in PyTorch with care: a loop in Python over the steps of the target."""

from __future__ import annotations

import torch

from benchmarks.problems_decoder import Decoder


class AttentionDecoder(torch.nn.Module):
    """What no step needs of another is done once: the keys before the loop, the outputs after it."""

    #: Its parameters in the order of the problem's weights.
    names = ("cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh", "query.weight", "key.weight", "key.bias", "score.weight", "output.weight",
             "output.bias")

    def __init__(self, cell: str, size: int) -> None:
        super().__init__()
        self.lstm = cell == "LSTM"
        self.cell = getattr(torch.nn, f"{cell}Cell")(2 * size, size)
        self.query, self.key = torch.nn.Linear(size, size, bias=False), torch.nn.Linear(size, size)
        self.score, self.output = torch.nn.Linear(size, 1, bias=False), torch.nn.Linear(2 * size, size)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        values = memory.transpose(0, 1).contiguous()
        keys, both = self.key(values), []
        h = c = x.new_zeros(x.shape[1], self.cell.hidden_size)
        for x_t in x.unbind():
            scores = self.score(torch.tanh(self.query(h)[:, None] + keys)).squeeze(2)
            context = torch.bmm(torch.softmax(scores, dim=1)[:, None], values).squeeze(1)
            fed = torch.cat([x_t, context], dim=1)
            if self.lstm:
                h, c = self.cell(fed, (h, c))
            else:
                h = self.cell(fed, h)
            both.append(torch.cat([h, context], dim=1))
        return torch.tanh(self.output(torch.stack(both)))


def decoder(problem: Decoder) -> AttentionDecoder:
    """The module with the problem's weights."""
    made = AttentionDecoder(problem.cell, problem.H)
    state = {name: torch.from_numpy(w) for name, w in zip(made.names, problem.weights.values(), strict=True)}
    made.load_state_dict({name: w[None] if name == "score.weight" else w for name, w in state.items()})
    return made
