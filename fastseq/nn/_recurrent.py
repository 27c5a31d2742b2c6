"""What the recurrent layers and cells share: their parameters' tables, their states, and the walk through layers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import backend_of
from fastseq.backends.recurrent import Noise, Weights, gates_of
from fastseq.functional._check import probability
from fastseq.functional.recurrent import checked_lengths, checked_options, checked_reset, run
from fastseq.nn import init
from fastseq.nn._inputs import checked_dtype, checked_elements, checked_size, real_input, where_the_layer_is
from fastseq.nn.module import Module, Parameter
from fastseq.runtime import generator, next_seed

#: A direction's parameters in the order of `Weights`, each with its shape; None for what there is not.
Table = tuple[tuple[str, tuple[int, ...]] | None, ...]
_BASES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_ch", "ln_ih_weight", "ln_ih_bias",
          "ln_hh_weight", "ln_hh_bias", "ln_c_weight", "ln_c_bias")  # fmt: skip


class RecurrentModule(Module):
    """A module whose parameters are the weights of recurrent layers."""

    _transient = ("_packed",)
    _packed: Any = None
    _cell: str
    _tables: tuple[tuple[Table, ...], ...]  # by layer and direction
    _bases: ClassVar[tuple[str, ...]] = _BASES
    dtype: np.dtype
    bias: bool

    def _draw(self, shapes: dict[str, tuple[int, ...]], suffix: str, rng: np.random.Generator, bound: float) -> Table:
        """Make one direction's parameters and return their table. With `bias` False those named bias are None."""
        table: list[tuple[str, tuple[int, ...]] | None] = []
        for base in self._bases:
            if base not in shapes:
                table.append(None)
                continue
            name, shape = base + suffix, shapes[base]
            absent = base.startswith("bias") and not self.bias
            setattr(self, name, None if absent else Parameter(init.recurrent(rng, name, shape, bound, self.dtype)))
            table.append((name, shape))
        while table[-1] is None:
            table.pop()
        return tuple(table)

    def _weights(self, table: Table, plain: bool) -> Weights:
        """One direction's weights as the operation takes them: Parameters, or their arrays if `plain`."""
        return Weights(*self._checked(table, plain))

    def _checked(self, table: Table, plain: bool) -> list[Any]:
        """One direction's Parameters, or their arrays, once they are known to have their shapes and dtypes."""
        held, dtype = self.__dict__, self.dtype
        found: list[Any] = []
        for entry in table:
            if entry is None:
                found.append(None)
                continue
            name, shape = entry
            parameter = held[name]
            if parameter is None:
                if not name.startswith("bias"):
                    raise ValueError(f"{name}: expected {dtype} of shape {shape}, got None")
                found.append(None)
                continue
            data = parameter.data
            if data.shape != shape or (data.dtype is not dtype and data.dtype != dtype):
                raise ValueError(f"{name}: expected {dtype} of shape {shape}, got {data.dtype} of shape {data.shape}")
            found.append(data if plain else parameter)
        return found

    def _packed_layer(self, layer: int, weights: tuple[Weights, ...], backend: Any) -> Any:
        """The backend's form of a layer's arrays, made again only where a number has changed since the last call."""
        before = self._packed
        if before is None:
            before = self.__dict__["_packed"] = [None] * len(self._tables)  # past __setattr__, whose checks it does not need
        packed = before[layer] = backend.recurrent_pack(self._cell, weights, packed=before[layer])
        return packed

    def _layer(self, layer: int, x: Any, h_0: Any, c_0: Any, options: dict[str, Any]) -> Any:
        """y, h, c and the c of all steps of one layer, from arrays."""
        backend = backend_of(x)
        weights = tuple([self._weights(table, True) for table in self._tables[layer]])
        if type(x) is not type(weights[0].w_ih):
            where_the_layer_is("x", x, weights[0].w_ih)
        packed = self._packed_layer(layer, weights, backend)
        return backend.recurrent_forward(x, h_0, c_0, packed, **options)[:4]

    def _recorded_layer(self, layer: int, x: Any, h_0: Any, c_0: Any, options: dict[str, Any]) -> Any:
        """`_layer` where an input is a Tensor."""
        weights = tuple([self._weights(table, False) for table in self._tables[layer]])
        arrays = tuple([Weights(*[w.data if isinstance(w, Tensor) else w for w in direction]) for direction in weights])
        data = x.data if isinstance(x, Tensor) else x
        if type(data) is not type(arrays[0].w_ih):
            where_the_layer_is("x", data, arrays[0].w_ih)
        packed = self._packed_layer(layer, arrays, backend_of(data))
        return run(self._cell, x, weights, h_0, c_0, packed, **options)

    def _one_state(self, name: str, value: Any, shape: tuple[int, ...]) -> Any:
        """A state's array in the layer's dtype."""
        value = real_input(value, self.dtype, name)
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
        self._beside_weights(name, value)
        return value

    def _beside_weights(self, name: str, value: Any) -> None:
        """Raises where an input is not where the layer is."""
        first = self._tables[0][0][0]
        if first is not None:
            where_the_layer_is(name, value.data if isinstance(value, Tensor) else value, self.__dict__[first[0]].data)

    def _split(self, state: Any, of_h: tuple[int, ...], of_c: tuple[int, ...]) -> tuple[Any, Any]:
        """h_0 and c_0 (None but for an LSTM) from the user's state."""
        came = f"{type(state).__name__} of {len(state)}" if isinstance(state, (tuple, list)) else type(state).__name__
        if self._cell != "lstm":
            if isinstance(state, tuple):
                raise TypeError(f"state: expected one array h_0 of shape {of_h}, got {came}")
            return self._one_state("state", state, of_h), None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            each = f"each of shape {of_h}" if of_h == of_c else f"of shapes {of_h} and {of_c}"
            raise TypeError(f"state: expected (h_0, c_0), {each}, got {came}")
        return self._one_state("h_0", state[0], of_h), self._one_state("c_0", state[1], of_c)


class RecurrentLayer(RecurrentModule):
    """Layers of one cell, each with one or two directions, over whole sequences."""

    # For type checkers; what there is of these, and of the other layers', is made by `_draw`.
    weight_ih_l0: Parameter
    weight_hh_l0: Parameter
    bias_ih_l0: Parameter | None
    bias_hh_l0: Parameter | None

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        recurrent_dropout: float,
        zoneout: Any,
        dtype: Any,
        rng: Any,
        proj_size: int = 0,
    ) -> None:
        self._cell = cell
        self.input_size = checked_size("input_size", input_size)
        self.hidden_size = checked_size("hidden_size", hidden_size)
        self.num_layers = checked_size("num_layers", num_layers)
        self.bias, self.batch_first, self.bidirectional = bool(bias), bool(batch_first), bool(bidirectional)
        self.dropout = probability("dropout", dropout)
        self.recurrent_dropout = probability("recurrent_dropout", recurrent_dropout)
        self.zoneout = _zoneout(zoneout, cell == "lstm")
        self.dtype = checked_dtype(dtype)
        self._width = proj_size or self.hidden_size  # of h in one direction
        rng = generator(rng)
        suffixes = ("", "_reverse")[: 1 + self.bidirectional]
        tables, bound = [], self.hidden_size**-0.5
        for layer in range(self.num_layers):
            shapes = self._shapes(len(suffixes) * self._width if layer else self.input_size)
            tables.append(tuple([self._draw(shapes, f"_l{layer}{suffix}", rng, bound) for suffix in suffixes]))
        self._tables = tuple(tables)
        # Only what draws masks takes a seed, so that the weights of other layers do not depend on it.
        self._seed = next_seed(rng) if self._is_noisy() or self.dropout else 0
        self._calls = 0

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one direction that reads `inputs` numbers, by their names without suffix."""
        sums = gates_of(self._cell) * self.hidden_size
        return {"weight_ih": (sums, inputs), "weight_hh": (sums, self._width), "bias_ih": (sums,), "bias_hh": (sums,)}

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        return_states: bool = False,
        checkpoint_every: int | None = None,
    ) -> Any:
        """Run over sequences. L layers, D directions, P = `proj_size` where there is one, else H.

        Parameters
        ----------
        x : (T, B, I), (B, T, I) with `batch_first`, or (T, I) for a single sequence
        state : h_0 (L D, B, P), for an LSTM (h_0, c_0) with c_0 (L D, B, H); without B for a single sequence; optional
            Zeros if left out. A Parameter is a learned state, and gets its gradient.
        lengths : (B,) integers from 0 to T in any order, or one integer for a single sequence; optional
            How many steps each row has; a CuPy array is copied from the GPU, which waits for it. Beyond them y is 0; the final state is that of the row's own end, where the
            reverse direction starts.
        reset : bool of x's shape without the last axis, optional
            True at t: the state that crosses from t-1 to t, in either direction, is replaced by zeros, and its gradient.
        return_states : bool
            Also return the states of every step and layer.
        checkpoint_every : int, optional
            Keep the states of every so many steps for the backward pass, which computes the others again: less memory,
            and on the CPU the same bits.

        Returns
        -------
        y : x's shape with D P in place of I
        state : like the argument, after each row's last step
        states : h (L D, T, B, P), for an LSTM (h, c) with c (L D, T, B, H); with `return_states` only
            Without B for a single sequence.

        Raises
        ------
        ValueError, TypeError
            Shapes, dtypes or options other than these.
        """
        x = real_input(x, self.dtype, "x")
        shape = x.shape
        if len(shape) != 3 or shape[2] != self.input_size or self.batch_first:
            return self._rearranged(x, state, lengths, reset, return_states, checkpoint_every)
        h_0, c_0 = (None, None) if state is None else self._split(state, *self._state_shapes(shape[1]))
        options: dict[str, Any] = {}
        if lengths is not None or reset is not None or checkpoint_every is not None:
            options = checked_options(x, shape[0], shape[1], lengths, reset, checkpoint_every)
        return self._run(x, h_0, c_0, return_states, options)

    def _rearranged(
        self, x: Any, state: Any, lengths: Any, reset: Any, return_states: bool, checkpoint_every: int | None
    ) -> Any:
        """`forward` on a single sequence, with the batch first, or on a shape that is wrong."""
        shape = x.shape
        if len(shape) not in (2, 3) or shape[-1] != self.input_size:
            batched = f"(B, T, {self.input_size})" if self.batch_first else f"(T, B, {self.input_size})"
            raise ValueError(f"x: expected shape {batched} or (T, {self.input_size}), got {shape}")
        single = len(shape) == 2
        batch = () if single else shape[:1]
        steps = shape[0] if single else shape[1]
        h_0, c_0 = (None, None) if state is None else self._split(state, *self._state_shapes(*batch))
        lengths, reset = checked_lengths(lengths, steps, *batch), checked_reset(reset, *shape[:-1])
        if not single:
            reset = None if reset is None else reset.T
            options = checked_options(x, steps, shape[0], lengths, reset, checkpoint_every)
            y, *rest = self._run(x.swapaxes(0, 1), h_0, c_0, return_states, options)
            return y.swapaxes(0, 1), *rest
        reset, h_0, c_0 = (None if a is None else a.reshape((len(a), 1, *a.shape[1:])) for a in (reset, h_0, c_0))
        options = checked_options(x, steps, 1, lengths, reset, checkpoint_every)
        y, *rest = self._run(x.reshape(steps, 1, shape[1]), h_0, c_0, return_states, options)
        return y.reshape(steps, y.shape[2]), *(_without_batch(part) for part in rest)

    def _run(self, x: Any, h_0: Any, c_0: Any, return_states: bool, options: dict[str, Any]) -> Any:
        """`forward` on x (T, B, I), h_0 (L D, B, P), c_0 (L D, B, H) and options that have been checked."""
        tensors = isinstance(x, Tensor) or isinstance(h_0, Tensor) or isinstance(c_0, Tensor)
        one = self._recorded_layer if tensors else self._layer
        if return_states:
            options["states"] = True
        noisy = self._is_noisy()
        call = self._next_call() if self.training and (noisy or self.dropout) else 0
        if self.num_layers == 1:
            if noisy:
                options["noise"] = self._noise(0, call)
            y, h, c, cells = one(0, x, h_0, c_0, options)
            return self._result(y, h, c, cells, (y,)) if return_states else (y, h if c is None else (h, c))
        if not (tensors or self.bidirectional or return_states or (self.training and (noisy or self.dropout))):
            return self._stacked(x, h_0, c_0, options)
        y, D, each, outputs = x, 1 + self.bidirectional, [], []
        for layer in range(self.num_layers):
            if layer:
                y = functional.dropout(y, self.dropout, training=self.training, seed=self._seed, layer=layer, call=call)
            if noisy:
                options["noise"] = self._noise(layer, call)
            rows = slice(layer * D, (layer + 1) * D)
            h, c = (None if a is None else a[rows] for a in (h_0, c_0))
            y, *ends = one(layer, y, h, c, options)
            each.append(ends)
            outputs.append(y)
        h, c, cells = (None if parts[0] is None else functional.concatenate(parts) for parts in zip(*each, strict=True))
        return self._result(y, h, c, cells, outputs) if return_states else (y, h if c is None else (h, c))

    def _stacked(self, x: Any, h_0: Any, c_0: Any, options: dict[str, Any]) -> Any:
        """All layers in one call of the backend, which may let them work at the same time."""
        self._beside_weights("x", x)
        options = {name: options[name] for name in ("lengths", "reset") if name in options}
        backend = backend_of(x)
        y, h, c = backend.recurrent_stack(x, h_0, c_0, self._all_packed(), zoneout=self.zoneout, **options)
        return y, h if c is None else (h, c)

    def _result(self, y: Any, h: Any, c: Any, cells: Any, outputs: Any) -> Any:
        """What `forward` returns with the states, which it takes from the y of each layer."""
        T, B, _ = y.shape
        shape = T, B, 1 + self.bidirectional, self._width
        parts = [a.reshape(shape).transpose((2, 0, 1, 3)) for a in outputs]
        hidden = parts[0] if len(parts) == 1 else functional.concatenate(parts)
        return (y, h, hidden) if c is None else (y, (h, c), (hidden, cells))

    def _state_shapes(self, *batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        rows = self.num_layers * (1 + self.bidirectional)
        return (rows, *batch, self._width), (rows, *batch, self.hidden_size)

    def _is_noisy(self) -> bool:
        return self.recurrent_dropout != 0.0 or self.zoneout != (0.0, 0.0)

    def _next_call(self) -> int:
        """The number of this call, so that each one draws masks of its own."""
        calls = self.__dict__["_calls"] = (self._calls + 1) % 2**32
        return calls

    def _noise(self, layer: int, call: int) -> Noise:
        """What the backend makes a layer's masks from; a direction adds one to its number."""
        return Noise(self.recurrent_dropout, *self.zoneout, self.training, self._seed, 2 * layer, call)

    def stream(self, batch_size: int = 1) -> Any:
        """One step at a time, with a snapshot of the weights: a stream whose `step(x, out=None)` takes (B, I) and gives (B, P).

        On the CPU the steps give the same bits as the call on the whole sequence in `eval` mode. `state` reads and sets what the layer
        returns as state; `reset(rows=None)` zeroes it; `refresh()` takes the layer's weights again.

        Parameters
        ----------
        batch_size : int
            B.

        Raises
        ------
        ValueError
            For a bidirectional layer, whose reverse direction begins at the end.

        Examples
        --------
        >>> import numpy as np, fastseq as fs
        >>> stream = fs.nn.LSTM(3, 5).stream()
        >>> stream.step(np.ones((1, 3), np.float32)).shape
        (1, 5)
        """
        if self.bidirectional:
            raise ValueError("stream: expected a layer of one direction, for the reverse one begins at the end, got bidirectional=True")
        batch_size = checked_size("batch_size", batch_size)
        checked_elements("batch_size", batch_size, max(self.input_size, self.hidden_size))
        backend = backend_of(*(parameter.data for parameter in self.parameters()))
        stream = backend.recurrent_stream(self._all_packed(), batch_size=batch_size, zoneout=self.zoneout)
        stream.source = self._all_packed
        return stream

    def _all_packed(self) -> tuple[Any, ...]:
        """The weights of all layers as a stream takes them."""
        layers = [tuple([self._weights(table, True) for table in tables]) for tables in self._tables]
        return tuple([self._packed_layer(k, ws, backend_of(ws[0].w_ih)) for k, ws in enumerate(layers)])

    def extra_repr(self) -> str:
        """Sizes, and the options that are not the default."""
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *self._options_shown()])

    def _options_shown(self) -> list[str]:
        zoneout = self.zoneout[0] if not self.zoneout[1] else self.zoneout
        values = {"num_layers": (self.num_layers, 1), "bias": (self.bias, True), "batch_first": (self.batch_first, False),
                  "dropout": (self.dropout, 0), "bidirectional": (self.bidirectional, False),
                  "recurrent_dropout": (self.recurrent_dropout, 0), "zoneout": (zoneout, 0)} | self._own_options()  # fmt: skip
        return [f"{name}={value}" for name, (value, default) in values.items() if value != default]

    def _own_options(self) -> dict[str, tuple[Any, Any]]:
        """The cell's own options and their defaults, for `repr`."""
        return {}


def _zoneout(value: Any, lstm: bool) -> tuple[float, float]:
    """(p_h, p_c) from p_h, or for an LSTM from (p_h, p_c)."""
    if not isinstance(value, (tuple, list)):
        return probability("zoneout", value), 0.0
    if not lstm or len(value) != 2:
        wanted = "a probability or a pair (p_h, p_c)" if lstm else "a probability"
        raise TypeError(f"zoneout: expected {wanted}, got {type(value).__name__} of {len(value)}")
    return probability("zoneout", value[0]), probability("zoneout", value[1])


def _without_batch(part: Any) -> Any:
    """A state, or the states of all steps, of a single sequence: the axis before the last has one element and goes."""
    if isinstance(part, tuple):
        return tuple([_without_batch(a) for a in part])
    return part.reshape((*part.shape[:-2], part.shape[-1]))
