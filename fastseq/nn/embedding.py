"""Embedding: a row of a table for each id."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.functional import _check
from fastseq.nn import init
from fastseq.nn._inputs import checked_dtype, checked_size, id_input, where_the_layer_is
from fastseq.nn.module import Module, Parameter
from fastseq.runtime import generator


class Embedding(Module):
    """A table of vectors, looked up by id.

    The table starts standard normal, as PyTorch's; the row of `padding_idx` starts at zero and gets no gradient.

    Parameters
    ----------
    num_embeddings : int
        Rows of the table: ids run from 0 to num_embeddings - 1.
    embedding_dim : int
        Length of each row.
    padding_idx : int, optional
        The id whose row stays as it is; negative counts from the end.
    sparse : bool
        The gradient of `weight` is a `fastseq.RowGradient`: the rows that a batch names, and no zeros for the others. For tables of
        many more rows than that, with `SGD`, `Adagrad` or `SparseAdam`.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight : Parameter (num_embeddings, embedding_dim)

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> table = fs.nn.Embedding(10, 4, padding_idx=0)
    >>> table(np.array([[1, 2, 0]])).shape
    (1, 3, 4)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        sparse: bool = False,
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.num_embeddings = checked_size("num_embeddings", num_embeddings)
        self.embedding_dim = checked_size("embedding_dim", embedding_dim)
        if padding_idx is not None:
            padding_idx = _check.integer("padding_idx", padding_idx, -self.num_embeddings, self.num_embeddings)
        self.sparse = _check.boolean("sparse", sparse)
        self.padding_idx = None if padding_idx is None else padding_idx % self.num_embeddings
        self.dtype = checked_dtype(dtype)
        table = init.normal(generator(rng), (num_embeddings, embedding_dim), self.dtype)
        if self.padding_idx is not None:
            table[self.padding_idx] = 0
        self.weight = Parameter(table)

    def forward(self, ids: Any) -> Any:
        """ids, integers of any shape -> (*ids.shape, embedding_dim). IndexError for an id that the table does not have."""
        ids = id_input(ids, "ids")
        where_the_layer_is("ids", ids.data if isinstance(ids, Tensor) else ids, self.weight.data)
        weight = self.weight if isinstance(ids, Tensor) else self.weight.data
        return functional.embedding(ids, weight, padding_idx=self.padding_idx, sparse=self.sparse)

    def extra_repr(self) -> str:
        """Sizes and padding."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}{', sparse=True' if self.sparse else ''}"
