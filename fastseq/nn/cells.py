"""Recurrent cells: one step of one layer, for loops of the user's own. Names and layouts are PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq.autograd import Tensor
from fastseq.backends.recurrent import gates_of
from fastseq.functional.rnn import cell_named
from fastseq.nn._inputs import checked_dtype, checked_size, real_input
from fastseq.nn._recurrent import RecurrentModule
from fastseq.runtime import generator


class _Cell(RecurrentModule):
    """One step of a layer."""

    def __init__(self, cell: str, input_size: int, hidden_size: int, bias: bool, dtype: Any, rng: Any) -> None:
        self._cell = cell
        self.input_size = checked_size("input_size", input_size)
        self.hidden_size = H = checked_size("hidden_size", hidden_size)
        self.bias, self.dtype = bool(bias), checked_dtype(dtype)
        sums = gates_of(cell) * H
        shapes = {"weight_ih": (sums, self.input_size), "weight_hh": (sums, H), "bias_ih": (sums,), "bias_hh": (sums,)}
        self._tables = ((self._draw(shapes, "", generator(rng), H**-0.5),),)

    def forward(self, x: Any, state: Any = None) -> Any:
        """One step.

        Parameters
        ----------
        x : (B, I), or (I,) for a single row
        state : h (B, H), for an LSTM (h, c); without B for a single row; optional
            Zeros if left out.

        Returns
        -------
        h, for an LSTM (h, c) : like `state`, after the step

        Raises
        ------
        ValueError, TypeError
            Shapes or dtypes other than these.
        """
        x = real_input(x, self.dtype, "x")
        I, H, batch = self.input_size, self.hidden_size, x.shape[:-1]
        if x.ndim not in (1, 2) or x.shape[-1] != I:
            raise ValueError(f"x: expected shape (B, {I}) or ({I},), got {x.shape}")
        shape = (*batch, H)
        rows = batch[0] if batch else 1
        h_0, c_0 = (None, None) if state is None else self._split(state, shape, shape)
        h_0, c_0 = (None if a is None else a.reshape((1, rows, H)) for a in (h_0, c_0))
        one = self._recorded_layer if any(isinstance(a, Tensor) for a in (x, h_0, c_0)) else self._layer
        _, h, c, _ = one(0, x.reshape((1, rows, I)), h_0, c_0, {})
        h = h.reshape(shape)
        return h if c is None else (h, c.reshape(shape))

    def extra_repr(self) -> str:
        """Sizes, and the options that are not the default."""
        return f"{self.input_size}, {self.hidden_size}" + ", bias=False" * (not self.bias)


class RNNCell(_Cell):
    """One step of an `RNN`: h' = f(W_ih x + b_ih + W_hh h + b_hh).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    bias : bool
        False leaves both biases out.
    nonlinearity : {"tanh", "relu"}
        f.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight_ih, weight_hh : Parameter (H, I) and (H, H)
    bias_ih, bias_hh : Parameter (H,) or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> cell = fs.nn.RNNCell(3, 5)
    >>> cell(np.ones((2, 3), np.float32)).shape
    (2, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.nonlinearity = nonlinearity
        super().__init__(cell_named(nonlinearity), input_size, hidden_size, bias, dtype, rng)

    def extra_repr(self) -> str:
        """Sizes, and the options that are not the default."""
        return super().extra_repr() + (f", nonlinearity={self.nonlinearity}" if self.nonlinearity != "tanh" else "")


class LSTMCell(_Cell):
    """One step of an `LSTM`: gates i, f, g, o of W_ih x + b_ih + W_hh h + b_hh; c' = f c + i g, h' = o tanh(c').

    All parameters start uniform in +-1/sqrt(H), the forget gate's bias too, as PyTorch's do.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    bias : bool
        False leaves both biases out.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight_ih, weight_hh : Parameter (4H, I) and (4H, H)
    bias_ih, bias_hh : Parameter (4H,) or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> cell = fs.nn.LSTMCell(3, 5)
    >>> h, c = cell(np.ones((2, 3), np.float32))
    >>> h.shape, c.shape
    ((2, 5), (2, 5))
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, *, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        super().__init__("lstm", input_size, hidden_size, bias, dtype, rng)


class GRUCell(_Cell):
    """One step of a `GRU`: r, z = sigmoid of W x + b_ih + U h + b_hh; h' = z h + (1 - z) tanh(W_n x + b_in + r (U_n h + b_hn)).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    bias : bool
        False leaves both biases out.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight_ih, weight_hh : Parameter (3H, I) and (3H, H), gates in the order r, z, n
    bias_ih, bias_hh : Parameter (3H,) or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> cell = fs.nn.GRUCell(3, 5)
    >>> cell(np.ones((2, 3), np.float32)).shape
    (2, 5)
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, *, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        super().__init__("gru", input_size, hidden_size, bias, dtype, rng)
