"""Recurrent layers over whole sequences: RNN, LSTM, GRU, MUT1, MUT2 and MUT3, stacked and in both directions.

Their names, layouts and starting values are PyTorch's where PyTorch has them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastseq.backends.recurrent import Weights
from fastseq.functional.mut import full_weights
from fastseq.functional.rnn import cell_named
from fastseq.nn import init
from fastseq.nn._inputs import checked_size
from fastseq.nn._recurrent import RecurrentLayer, Table


class RNN(RecurrentLayer):
    """The simple recurrent network (Elman 1990) over whole sequences.

    h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        Layer l reads the output of layer l - 1.
    nonlinearity : {"tanh", "relu"}
        f.
    bias : bool
        False leaves both biases out.
    batch_first : bool
        True: x and y are (B, T, ...); states stay as they are.
    dropout : float
        Probability of dropping an element of what goes from one layer to the next, while training.
    bidirectional : bool
        A second direction with weights of its own reads from the end; outputs are concatenated.
    recurrent_dropout : float
        Probability of dropping a unit of h_{t-1} in the recurrent product, one mask per sequence, while training
        (Gal & Ghahramani 2016).
    zoneout : float
        Probability that a unit of h_t keeps its value of t - 1 while training; in `eval` mode the expectation
        (Krueger et al. 2017).
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight_ih_l0 : Parameter (H, I); beyond the first layer (H, D H), with D directions
    weight_hh_l0 : Parameter (H, H)
    bias_ih_l0, bias_hh_l0 : Parameter (H,) or None
        And likewise for the other layers, `_l1`, and directions, `_l0_reverse`.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> rnn = fs.nn.RNN(3, 5, num_layers=2)
    >>> y, h = rnn(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 5), (2, 2, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.nonlinearity = nonlinearity
        super().__init__(
            cell_named(nonlinearity), input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, recurrent_dropout=recurrent_dropout, zoneout=zoneout, dtype=dtype, rng=rng
        )  # fmt: skip

    def _own_options(self) -> dict[str, tuple[Any, Any]]:
        return {"nonlinearity": (self.nonlinearity, "tanh")}


class LSTM(RecurrentLayer):
    """Long short-term memory over whole sequences (Hochreiter & Schmidhuber 1997; forget gate, Gers et al. 2000).

    With the gates i, f, o = sigmoid and g = tanh of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh:
    c_t = f c_{t-1} + i g, h_t = o tanh(c_t).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        Layer l reads the output of layer l - 1.
    bias : bool
        False leaves both biases out.
    batch_first : bool
        True: x and y are (B, T, ...); states stay as they are.
    dropout : float
        Probability of dropping an element of what goes from one layer to the next, while training.
    bidirectional : bool
        A second direction with weights of its own reads from the end; outputs are concatenated.
    proj_size : int
        P: h_t = W_hr (o tanh(c_t)) has so many elements instead of H (Sak et al. 2014); 0 for no projection.
    recurrent_dropout : float
        Probability of dropping a unit of h_{t-1} in the recurrent product, one mask per sequence, while training
        (Gal & Ghahramani 2016).
    zoneout : float, or (float, float)
        Probability that a unit of h_t, or of h_t and c_t, keeps its value of t - 1 while training; in `eval` mode the
        expectation (Krueger et al. 2017).
    peephole : bool
        The gates i and f also see p c_{t-1}, and o sees p c_t, with a vector p for each (Gers & Schmidhuber 2000).
    layer_norm : bool
        W_ih x_t and W_hh h_{t-1} are normalised over all 4H sums before the biases are added, and c_t before its tanh
        (Ba et al. 2016).
    forget_bias : float, optional
        What the forget gate's part of bias_ih starts at, that of bias_hh being 0; None: drawn like all others, as PyTorch does.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight_ih_l0 : Parameter (4H, I), gates in the order i, f, g, o; beyond the first layer (4H, D P), with D directions
    weight_hh_l0 : Parameter (4H, P)
    bias_ih_l0, bias_hh_l0 : Parameter (4H,) or None
    weight_hr_l0 : Parameter (P, H), with `proj_size`
    weight_ch_l0 : Parameter (3, H), with `peephole`, in the order i, f, o
    ln_ih_weight_l0, ln_ih_bias_l0, ln_hh_weight_l0, ln_hh_bias_l0 : Parameter (4H,), with `layer_norm`
    ln_c_weight_l0, ln_c_bias_l0 : Parameter (H,), with `layer_norm`
        And likewise for the other layers, `_l1`, and directions, `_l0_reverse`.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> lstm = fs.nn.LSTM(3, 5, bidirectional=True)
    >>> y, (h, c) = lstm(np.ones((7, 2, 3), np.float32), lengths=[7, 4])
    >>> y.shape, h.shape, c.shape
    ((7, 2, 10), (2, 2, 5), (2, 2, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        peephole: bool = False,
        layer_norm: bool = False,
        forget_bias: float | None = 1.0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        hidden_size = checked_size("hidden_size", hidden_size)
        self.proj_size = _proj_size(proj_size, hidden_size)
        if not isinstance(forget_bias, float | int | np.floating | np.integer | None):
            raise TypeError(f"forget_bias: expected a number or None, got {type(forget_bias).__name__}")
        self.peephole, self.layer_norm = bool(peephole), bool(layer_norm)
        super().__init__(
            "lstm", input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, recurrent_dropout=recurrent_dropout, zoneout=zoneout, dtype=dtype, rng=rng,
            proj_size=self.proj_size
        )  # fmt: skip
        if self.bias and forget_bias is not None:
            for table in (table for tables in self._tables for table in tables):
                bias_ih, bias_hh = self._checked(table, True)[2:4]
                init.forget(bias_ih, bias_hh, forget_bias)

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        H = self.hidden_size
        shapes = super()._shapes(inputs)
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, H)
        if self.peephole:
            shapes["weight_ch"] = (3, H)
        if self.layer_norm:
            shapes |= _norms(4 * H) | {"ln_c_weight": (H,), "ln_c_bias": (H,)}
        return shapes

    def _own_options(self) -> dict[str, tuple[Any, Any]]:
        return {
            "proj_size": (self.proj_size, 0),
            "peephole": (self.peephole, False),
            "layer_norm": (self.layer_norm, False),
        }


class GRU(RecurrentLayer):
    """The gated recurrent unit over whole sequences (Cho et al. 2014).

    r, z = sigmoid of W x_t + b_ih + U h_{t-1} + b_hh; h_t = z h_{t-1} + (1 - z) n, with
    n = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn)) as in cuDNN, PyTorch and Keras, or, with `reset_after` False,
    n = tanh(W_n x_t + b_in + U_n (r h_{t-1}) + b_hn) as in the paper and ONNX's default.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        Layer l reads the output of layer l - 1.
    bias : bool
        False leaves both biases out.
    batch_first : bool
        True: x and y are (B, T, ...); states stay as they are.
    dropout : float
        Probability of dropping an element of what goes from one layer to the next, while training.
    bidirectional : bool
        A second direction with weights of its own reads from the end; outputs are concatenated.
    recurrent_dropout : float
        Probability of dropping a unit of h_{t-1} in the recurrent product, one mask per sequence, while training
        (Gal & Ghahramani 2016).
    zoneout : float
        Probability that a unit of h_t keeps its value of t - 1 while training; in `eval` mode the expectation
        (Krueger et al. 2017).
    reset_after : bool
        Which of the two forms.
    layer_norm : bool
        W x_t and U h_{t-1} are normalised over all 3H sums before the biases are added (Ba et al. 2016); only with
        `reset_after`.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight_ih_l0 : Parameter (3H, I), gates in the order r, z, n; beyond the first layer (3H, D H), with D directions
    weight_hh_l0 : Parameter (3H, H)
    bias_ih_l0, bias_hh_l0 : Parameter (3H,) or None
    ln_ih_weight_l0, ln_ih_bias_l0, ln_hh_weight_l0, ln_hh_bias_l0 : Parameter (3H,), with `layer_norm`
        And likewise for the other layers, `_l1`, and directions, `_l0_reverse`.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> gru = fs.nn.GRU(3, 5, batch_first=True)
    >>> y, h = gru(np.ones((2, 7, 3), np.float32))
    >>> y.shape, h.shape
    ((2, 7, 5), (1, 2, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        reset_after: bool = True,
        layer_norm: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        if layer_norm and not reset_after:
            raise ValueError("layer_norm: expected False with reset_after=False, for it normalises the product before the reset, got True")
        self.reset_after, self.layer_norm = bool(reset_after), bool(layer_norm)
        super().__init__(
            "gru" if reset_after else "gru_before", input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, recurrent_dropout=recurrent_dropout, zoneout=zoneout, dtype=dtype,
            rng=rng
        )  # fmt: skip

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        return super()._shapes(inputs) | (_norms(3 * self.hidden_size) if self.layer_norm else {})

    def _own_options(self) -> dict[str, tuple[Any, Any]]:
        return {"reset_after": (self.reset_after, True), "layer_norm": (self.layer_norm, False)}


class _MUT(RecurrentLayer):
    """What the three MUT layers share; see `MUT1` for the parameters."""

    _bases = ("weight_ih", "weight_hh", "bias", "weight_proj")
    _variant: ClassVar[int]
    _blocks: ClassVar[tuple[int, int]]  # that weight_ih and weight_hh have

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(
            f"mut{self._variant}", input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, recurrent_dropout=recurrent_dropout, zoneout=zoneout, dtype=dtype, rng=rng
        )  # fmt: skip

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        H, (of_input, of_state) = self.hidden_size, self._blocks
        shapes = {"weight_ih": (of_input * H, inputs), "weight_hh": (of_state * H, H), "bias": (3 * H,)}
        projects = self._variant != 3 and inputs != H
        return shapes | ({"weight_proj": (H, inputs)} if projects else {})

    def _weights(self, table: Table, plain: bool) -> Weights:
        w_ih, w_hh, bias, *projection = self._checked(table, plain)
        return full_weights(self._variant, w_ih, w_hh, bias, projection[0] if projection else None)


class MUT1(_MUT):
    """The first of the three cells that Jozefowicz et al. (2015) found by search, over whole sequences.

    z = sigmoid(W_z x_t + b_z), r = sigmoid(W_r x_t + U_r h_{t-1} + b_r),
    h_t = z tanh(U_h (r h_{t-1}) + tanh(x_t) + b_h) + (1 - z) h_{t-1}. Where I != H a learned matrix first projects the x_t
    that stands bare: tanh(W_proj x_t).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        Layer l reads the output of layer l - 1.
    bias : bool
        False leaves the bias out.
    batch_first : bool
        True: x and y are (B, T, ...); states stay as they are.
    dropout : float
        Probability of dropping an element of what goes from one layer to the next, while training.
    bidirectional : bool
        A second direction with weights of its own reads from the end; outputs are concatenated.
    recurrent_dropout : float
        Probability of dropping a unit of h_{t-1} in the recurrent products, one mask per sequence, while training
        (Gal & Ghahramani 2016).
    zoneout : float
        Probability that a unit of h_t keeps its value of t - 1 while training; in `eval` mode the expectation
        (Krueger et al. 2017).
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight_ih_l0 : Parameter (2H, I), gates r, z
    weight_hh_l0 : Parameter (2H, H), gates r, h
    bias_l0 : Parameter (3H,) or None, in the order r, z, h
    weight_proj_l0 : Parameter (H, I), where I != H
        And likewise for the other layers, `_l1`, and directions, `_l0_reverse`.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> y, h = fs.nn.MUT1(3, 5)(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    """

    _variant, _blocks = 1, (2, 2)


class MUT2(_MUT):
    """The second of the three cells that Jozefowicz et al. (2015) found by search, over whole sequences.

    z = sigmoid(W_z x_t + U_z h_{t-1} + b_z), r = sigmoid(x_t + U_r h_{t-1} + b_r),
    h_t = z tanh(U_h (r h_{t-1}) + W_h x_t + b_h) + (1 - z) h_{t-1}. Where I != H a learned matrix first projects the x_t
    that stands bare: W_proj x_t.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, recurrent_dropout, zoneout, dtype, rng
        As in `MUT1`.

    Attributes
    ----------
    weight_ih_l0 : Parameter (2H, I), gates z, h
    weight_hh_l0 : Parameter (3H, H), gates r, z, h
    bias_l0 : Parameter (3H,) or None, in the order r, z, h
    weight_proj_l0 : Parameter (H, I), where I != H
        And likewise for the other layers, `_l1`, and directions, `_l0_reverse`.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> y, h = fs.nn.MUT2(3, 5)(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    """

    _variant, _blocks = 2, (2, 3)


class MUT3(_MUT):
    """The third of the three cells that Jozefowicz et al. (2015) found by search, over whole sequences.

    z = sigmoid(W_z x_t + U_z tanh(h_{t-1}) + b_z), r = sigmoid(W_r x_t + U_r h_{t-1} + b_r),
    h_t = z tanh(U_h (r h_{t-1}) + W_h x_t + b_h) + (1 - z) h_{t-1}.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, recurrent_dropout, zoneout, dtype, rng
        As in `MUT1`.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0 : Parameter (3H, I) and (3H, H), gates r, z, h
    bias_l0 : Parameter (3H,) or None, in the order r, z, h
        And likewise for the other layers, `_l1`, and directions, `_l0_reverse`.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> y, h = fs.nn.MUT3(3, 5)(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    """

    _variant, _blocks = 3, (3, 3)


def _norms(sums: int) -> dict[str, tuple[int, ...]]:
    """The layer norm parameters that every cell's products have."""
    return {f"ln_{product}_{part}": (sums,) for product in ("ih", "hh") for part in ("weight", "bias")}


def _proj_size(value: Any, hidden_size: int) -> int:
    """0, or a size below H."""
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        return 0
    size = checked_size("proj_size", value)
    if size >= hidden_size:
        raise ValueError(f"proj_size: expected less than hidden_size, {hidden_size}, got {size}")
    return size
