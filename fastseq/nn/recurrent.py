"""Recurrent layers: the LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq.autograd import Tensor
from fastseq.backends import backend_of
from fastseq.functional.lstm import run
from fastseq.nn import init
from fastseq.nn._inputs import checked_dtype, checked_elements, checked_size, real_input
from fastseq.nn.module import Module, Parameter
from fastseq.runtime import generator


class LSTM(Module):
    """Long short-term memory over whole sequences, one layer, forwards in time.

    With the gates i, f, o = sigmoid and g = tanh of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh:
    c_t = f c_{t-1} + i g, h_t = o tanh(c_t).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        Only 1 in this version.
    bias : bool
        False leaves both biases out.
    batch_first : bool
        True: x and y are (B, T, ...).
    bidirectional : bool
        Only False in this version.
    forget_bias : float, optional
        What the forget gate's part of bias_ih starts at, that of bias_hh being 0; None: drawn like all others, as PyTorch does.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight_ih_l0 : Parameter (4H, I), gates in the order i, f, g, o
    weight_hh_l0 : Parameter (4H, H)
    bias_ih_l0, bias_hh_l0 : Parameter (4H,) or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> lstm = fs.nn.LSTM(3, 5)
    >>> y, (h, c) = lstm(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape, c.shape
    ((7, 2, 5), (1, 2, 5), (1, 2, 5))
    """

    _transient = ("_packed",)
    _packed: Any = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        forget_bias: float | None = 1.0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        if num_layers != 1:
            raise ValueError(f"num_layers: expected 1, the only depth that this version has, got {num_layers!r}")
        if bidirectional:
            raise ValueError("bidirectional: expected False, for this version has one direction, got True")
        self.input_size, self.hidden_size = (
            checked_size("input_size", input_size),
            checked_size("hidden_size", hidden_size),
        )
        self.num_layers, self.bidirectional = 1, False
        self.bias, self.batch_first, self.dtype = bool(bias), bool(batch_first), checked_dtype(dtype)
        self._shapes = (
            (4 * self.hidden_size, self.input_size),
            (4 * self.hidden_size, self.hidden_size),
            (4 * self.hidden_size,),
        )
        w_ih, w_hh, biases = init.lstm(
            generator(rng), self.input_size, self.hidden_size, self.bias, forget_bias, self.dtype
        )
        self.weight_ih_l0, self.weight_hh_l0 = Parameter(w_ih), Parameter(w_hh)
        self.bias_ih_l0 = Parameter(biases[0]) if biases else None
        self.bias_hh_l0 = Parameter(biases[1]) if biases else None

    def forward(self, x: Any, state: Any = None, *, return_states: bool = False) -> Any:
        """Run over a sequence.

        Parameters
        ----------
        x : (T, B, I), (B, T, I) with `batch_first`, or (T, I) for a single sequence
        state : (h_0, c_0), each (1, B, H), or (1, H) for a single sequence; optional
            Zeros if left out.
        return_states : bool
            Also return the states of every step.

        Returns
        -------
        y : x's shape with H in place of I
        state : (h_n, c_n), shaped like (h_0, c_0)
        states : (h, c), each (1, T, B, H), or (1, T, H) for a single sequence; with `return_states` only
            Plain arrays, outside the tape; for a Tensor they cost the forward pass once more.

        Raises
        ------
        ValueError, TypeError
            Shapes or dtypes other than these.
        """
        x = real_input(x, self.dtype, "x")
        shape = x.shape
        if len(shape) != 3 or shape[2] != self.input_size or self.batch_first:
            return self._rearranged(x, state, return_states)
        if state is None:
            return self._run(x, None, None, return_states)
        return self._run(x, *self._state(state, (1, shape[1], self.hidden_size)), return_states)

    def _run(self, x: Any, h_0: Any, c_0: Any, return_states: bool) -> Any:
        """`forward` on x (T, B, I) and states (B, H) or None that have been checked."""
        if isinstance(x, Tensor) or isinstance(h_0, Tensor) or isinstance(c_0, Tensor):
            return self._record(x, h_0, c_0, return_states)
        backend = backend_of(x)
        y, h_n, c_n, cache = backend.lstm_forward(x, h_0, c_0, self._weights(backend), training=return_states)
        state = (h_n[None], c_n[None])
        return (y, state, (y[None], cache.cells[None])) if return_states else (y, state)

    def _record(self, x: Any, h_0: Any, c_0: Any, return_states: bool) -> Any:
        """`_run` with a Tensor among the inputs."""
        backend = backend_of(*(a.data if isinstance(a, Tensor) else a for a in (x, h_0, c_0) if a is not None))
        packed = self._weights(backend)
        inputs = (x, self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0, h_0, c_0)
        y, h_n, c_n = run(inputs, packed, layer_axis=True)
        state = (h_n, c_n)
        if not return_states:
            return y, state
        plain = [a.data if isinstance(a, Tensor) else a for a in (x, h_0, c_0)]
        cells = backend.lstm_forward(*plain, packed, training=True)[3].cells
        return y, state, (y.data[None], cells[None])

    def _rearranged(self, x: Any, state: Any, return_states: bool) -> Any:
        """`forward` on a single sequence, with the batch first, or on a shape that is wrong."""
        shape, H = x.shape, self.hidden_size
        if len(shape) not in (2, 3) or shape[-1] != self.input_size:
            batched = f"(B, T, {self.input_size})" if self.batch_first else f"(T, B, {self.input_size})"
            raise ValueError(f"x: expected shape {batched} or (T, {self.input_size}), got {shape}")
        single = len(shape) == 2
        batch = 1 if single else shape[0]
        h_0, c_0 = (None, None) if state is None else self._state(state, (1, H) if single else (1, batch, H))
        x = x.reshape(shape[0], 1, shape[1]) if single else x.swapaxes(0, 1)
        y, state, *states = self._run(x, h_0, c_0, return_states)
        if not single:
            return y.swapaxes(0, 1), state, *states
        y, state = y.reshape(shape[0], H), tuple(s.reshape(1, H) for s in state)
        return y, state, *(tuple(s[:, :, 0] for s in pair) for pair in states)

    def _state(self, state: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """(h_0, c_0), each (B, H), from a state whose arrays must have `shape`."""
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            came = f"{type(state).__name__} of {len(state)}" if isinstance(state, (tuple, list)) else type(state).__name__
            raise TypeError(f"state: expected (h_0, c_0), each of shape {shape}, got {came}")
        pair = []
        for name, array in zip(("h_0", "c_0"), state, strict=True):
            array = real_input(array, self.dtype, name)
            if array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
            pair.append(array.reshape(shape[-2:]))
        return pair[0], pair[1]

    def stream(self, batch_size: int = 1) -> Any:
        """One step at a time, with a snapshot of the weights: a stream whose `step(x, out=None)` takes (B, I) and gives (B, H).

        The steps give the same bits as the call on the whole sequence. `state` reads and sets (h, c), each (B, H);
        `reset(rows=None)` zeroes it; `refresh()` takes the layer's weights again.

        Parameters
        ----------
        batch_size : int
            B.

        Examples
        --------
        >>> import numpy as np, fastseq as fs
        >>> stream = fs.nn.LSTM(3, 5).stream()
        >>> stream.step(np.ones((1, 3), np.float32)).shape
        (1, 5)
        """
        batch_size = checked_size("batch_size", batch_size)
        checked_elements("batch_size", batch_size, max(self.input_size, self.hidden_size))
        backend = backend_of(self.weight_ih_l0.data)
        stream = backend.lstm_stream(self._weights(backend), batch_size=batch_size)
        stream.source = self._weights
        return stream

    def _weights(self, backend: Any = None) -> Any:
        """The packed weights, made again by the backend only where a weight has changed since the last call."""
        w_ih, w_hh, b_ih, b_hh = self.weight_ih_l0.data, self.weight_hh_l0.data, None, None
        of_input, of_state, of_bias = self._shapes
        dtype = self.dtype
        same = w_ih.shape == of_input and w_hh.shape == of_state and w_ih.dtype is dtype and w_hh.dtype is dtype
        if self.bias_ih_l0 is not None:
            b_ih = self.bias_ih_l0.data
            same = same and b_ih.shape == of_bias and b_ih.dtype is dtype
        if self.bias_hh_l0 is not None:
            b_hh = self.bias_hh_l0.data
            same = same and b_hh.shape == of_bias and b_hh.dtype is dtype
        if not same:  # or perhaps the same under another dtype object
            self._check_weights()
        packed = (backend or backend_of(w_ih)).lstm_pack(w_ih, w_hh, b_ih, b_hh, packed=self._packed)
        self.__dict__["_packed"] = packed  # past __setattr__, whose checks it does not need
        return packed

    def _check_weights(self) -> None:
        """Raise for the first parameter that no longer has the shape and dtype of this layer."""
        of_input, of_state, of_bias = self._shapes
        for name, shape in (
            ("weight_ih_l0", of_input),
            ("weight_hh_l0", of_state),
            ("bias_ih_l0", of_bias),
            ("bias_hh_l0", of_bias),
        ):
            parameter = getattr(self, name)
            if parameter is None and name.startswith("bias"):
                continue
            data = parameter.data
            if data.shape != shape or data.dtype != self.dtype:
                raise ValueError(
                    f"{name}: expected {self.dtype} of shape {shape}, got {data.dtype} of shape {data.shape}"
                )

    def extra_repr(self) -> str:
        """Sizes, and the options that are not the default."""
        options = "".join([", bias=False"] * (not self.bias) + [", batch_first=True"] * self.batch_first)
        return f"{self.input_size}, {self.hidden_size}{options}"
