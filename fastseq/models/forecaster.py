"""A forecaster of time series: a recurrent layer reads a window, a linear layer gives all steps of the horizon at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import placed
from fastseq.functional import _check
from fastseq.models._cells import checked_cell, recurrent
from fastseq.nn import Dropout, Linear, Module
from fastseq.nn._inputs import brought, checked_size, real_input
from fastseq.runtime import generator


class Forecaster(Module):
    """The next values of a series from a window of it and of whatever is known beside it.

    Scale what goes in and what comes out with the mean and deviation of the training period, as for any network.

    Parameters
    ----------
    input_size : int
        Numbers known at each step of the window.
    hidden_size : int
        Units of the recurrent layer.
    horizon : int
        Steps ahead to forecast.
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3"}
    num_layers : int
    dropout : float
        Probability of dropping an element of a recurrent layer's output while training.
    anchor : int, optional
        The input that is forecast: its last value is added to every forecast, so that the network says by how much the series
        will change. A series with a trend needs it, and one that changes slowly is learnt faster.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    recurrent : the recurrent layer
    head : nn.Linear

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> model = fs.models.Forecaster(3, 16, horizon=24)
    >>> model(np.zeros((48, 5, 3))).shape
    (5, 24)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        horizon: int,
        *,
        cell: str = "lstm",
        num_layers: int = 1,
        dropout: float = 0.0,
        anchor: int | None = None,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        rng = generator(rng)
        self.horizon = checked_size("horizon", horizon)
        self.cell = checked_cell(cell)
        if anchor is not None and not 0 <= anchor < input_size:
            raise ValueError(f"anchor: expected an input from 0 to {input_size - 1}, got {anchor}")
        self.anchor = anchor
        self.recurrent = recurrent(cell, input_size, hidden_size, num_layers, dropout=dropout, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout, rng=rng)
        self.head = Linear(hidden_size, self.horizon, dtype=dtype, rng=rng)

    def forward(self, x: Any, lengths: Any = None) -> Any:
        """Forecast.

        Parameters
        ----------
        x : (T, B, I), T > 0
            Windows, the oldest step first.
        lengths : (B,) integers from 1 to T, optional
            Where windows are of different lengths: how many steps each has.

        Returns
        -------
        ndarray or Tensor (B, horizon)

        Raises
        ------
        ValueError, TypeError
            Shapes, dtypes or lengths other than these.
        """
        x = self._windows(x)
        if x.ndim != 3 or not len(x):
            raise ValueError(f"x: expected shape (T, B, {self.recurrent.input_size}) with T > 0, got {x.shape}")
        y, _ = self.recurrent(x, lengths=lengths)
        rows = np.arange(x.shape[1])
        last = np.full(len(rows), len(x) - 1) if lengths is None else _check.plain("lengths", lengths) - 1
        if (last < 0).any():
            raise ValueError("lengths: expected at least one step in every window, got 0")
        last, rows = (placed(index, self.head.weight.data) for index in (last, rows))
        change = self.head(self.dropout(y[last, rows]))
        return change if self.anchor is None else change + x[last, rows, self.anchor].reshape((-1, 1))

    def loss(self, *batch: Any) -> Tensor:
        """The mean absolute error of the forecasts for a batch.

        Parameters
        ----------
        *batch : x (T, B, I), and lengths (B,) where there are some, and at last the true values (horizon, B)
            What `fastseq.training.windows` makes.

        Returns
        -------
        Tensor ()
        """
        x, *lengths, target = batch
        forecast = self(Tensor(_check.data(self._windows(x))), *lengths)
        wanted = brought(real_input(_check.data(target), forecast.dtype, "target"), self.head.weight, "target")
        _check.shape("target", wanted, forecast.shape[::-1])
        return functional.l1_loss(forecast, wanted.T)

    def _windows(self, x: Any) -> Any:
        """The windows where the model is, in its dtype; a Tensor that is there stays the same, for its gradient."""
        x = real_input(x, self.recurrent.dtype, "x")
        if type(_check.data(x)) is type(self.head.weight.data):
            return x
        moved = brought(x, self.head.weight, "x")
        return Tensor(moved) if isinstance(x, Tensor) else moved

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class."""
        return {
            "input_size": self.recurrent.input_size,
            "hidden_size": self.recurrent.hidden_size,
            "horizon": self.horizon,
            "cell": self.cell,
            "num_layers": self.recurrent.num_layers,
            "dropout": self.dropout.p,
            "anchor": self.anchor,
            "dtype": self.recurrent.dtype,
        }
