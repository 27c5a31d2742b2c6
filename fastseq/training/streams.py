"""A long text, read piece after piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastseq.functional import _check
from fastseq.nn._inputs import checked_size
from fastseq.runtime import next_seed
from fastseq.training.batches import Seeded


class TextStreams(Seeded):
    """A text cut into streams that are read side by side, so that the state after one piece is the state before the next.

    Parameters
    ----------
    ids : ndarray (n,) of int64, n >= 2
    batch_size, sequence_length : int
        Both are lowered where the text is too short for them.
    shift : bool
        Each pass starts at another place, so that the pieces end elsewhere; False: always at the beginning.
    rng : None, int or numpy.random.Generator
        What the seed of these places is drawn from.

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.training import TextStreams
    >>> for inputs, targets in TextStreams(np.arange(13), 2, 3): print(inputs.T.tolist(), targets.T.tolist())
    [[0, 1, 2], [6, 7, 8]] [[1, 2, 3], [7, 8, 9]]
    [[3, 4, 5], [9, 10, 11]] [[4, 5, 6], [10, 11, 12]]
    """

    def __init__(self, ids: np.ndarray, batch_size: int, sequence_length: int, *, shift: bool = False, rng: Any = None) -> None:
        ids = _check.integers("ids", _check.plain("ids", ids))
        _check.shape("ids", ids, ("n",))
        if len(ids) < 2:
            raise ValueError(f"ids: expected at least 2 characters, got {len(ids)}")
        self.ids, self.shift = ids, shift
        self.sequence_length = min(checked_size("sequence_length", sequence_length), len(ids) - 1)
        self.batch_size = min(checked_size("batch_size", batch_size), (len(ids) - 1) // self.sequence_length)
        self.seed = next_seed(rng) if shift else 0
        self.epoch = 0

    def __len__(self) -> int:
        return (len(self.ids) - 1 - self._slack()) // self.batch_size // self.sequence_length

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        epoch, start = self.epoch, 0
        if self.shift:
            start = int(np.random.default_rng([self.seed, epoch]).integers(self._slack() + 1))
        for count, piece in enumerate(self.pieces(start), 1):
            yield piece
            if count == len(self):
                break
        self.epoch = epoch + 1

    def _slack(self) -> int:
        """How far into the text a pass may start."""
        return min(self.sequence_length, len(self.ids) - 1 - self.batch_size * self.sequence_length) if self.shift else 0

    def pieces(self, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets (T, B) of one pass; `start` characters at the beginning are left out."""
        T, B = self.sequence_length, self.batch_size
        length = (len(self.ids) - 1 - start) // B
        inputs = self.ids[start : start + B * length].reshape(B, length).T
        targets = self.ids[start + 1 : start + 1 + B * length].reshape(B, length).T
        for t in range(0, length - T + 1, T):
            yield np.ascontiguousarray(inputs[t : t + T]), np.ascontiguousarray(targets[t : t + T])
