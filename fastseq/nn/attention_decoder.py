"""AttentionDecoder: the decoder of a sequence-to-sequence model, over a whole target sequence or one step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import backend_of, namespace, placed
from fastseq.backends.attention_decoder import DecoderWeights
from fastseq.backends.recurrent import gates_of
from fastseq.functional import _check
from fastseq.functional.attention_decoder import CELLS, checked_attention, decode, scale_of
from fastseq.functional.decoder_memory import DecoderMemory, checked_memory_lengths, made_ready
from fastseq.functional.recurrent import checked_lengths
from fastseq.nn import init
from fastseq.nn._inputs import checked_dtype, checked_size, real_input, where_the_layer_is
from fastseq.nn._recurrent import RecurrentModule
from fastseq.nn.module import Parameter
from fastseq.runtime import generator

_ATTENTION = ("weight_query", "weight_key", "bias_key", "weight_score", "weight_out", "bias_out")


class AttentionDecoder(RecurrentModule):
    """A recurrent decoder that attends to a memory, usually an encoder's outputs.

    With `input_feeding` (Bahdanau et al. 2015) the state s_{j-1} scores the memory m_1 ... m_S of its row:
    e_ji = u . tanh(W_q s + W_k m_i + b_k) for "additive", s . m_i for "dot", over sqrt(M) for "scaled_dot", (W_q s) . m_i for
    "bilinear"; a_j = softmax over i of e_j, c_j = sum_i a_ji m_i; s_j = cell(s_{j-1}, [x_j; c_j]); the output is
    o_j = tanh(W_o [s_j; c_j] + b_o). Without it (Luong et al. 2015) s_j = cell(s_{j-1}, x_j) comes first, and s_j scores the memory.

    With `attention` None there is neither score nor W_o, and the output is s_j: c, fed at every step, is the memory's last step of
    each row (Cho et al. 2014), or, without `input_feeding`, nothing.

    Parameters
    ----------
    input_size, hidden_size, memory_size : int
        I, H and M, the sizes of x_j, s_j and m_i.
    cell : {"lstm", "gru"}
    attention : {"additive", "dot", "scaled_dot", "bilinear"} or None
        "dot" and "scaled_dot" need H = M. "general", Luong's name, is "bilinear".
    attention_size : int, optional
        A, the size of additive attention's query and keys; H if left out.
    input_feeding : bool
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator
        What the weights are drawn from, uniform in +-1/sqrt(width of their sums), the cell's in +-1/sqrt(H) as PyTorch's.

    Attributes
    ----------
    weight_ih : Parameter (G H, I + M), x first; (G H, I) where nothing is fed; G = 4 (LSTM: i, f, g, o) or 3 (GRU: r, z, n)
    weight_hh : Parameter (G H, H)
    bias_ih, bias_hh : Parameter (G H,)
    weight_query : Parameter (A, H), for "bilinear" (M, H), else None
    weight_key, bias_key, weight_score : Parameter (A, M), (A,) and (A,), W_k, b_k and u of "additive", else None
    weight_out, bias_out : Parameter (H, H + M), the state first, and (H,); None without attention

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> decoder = fs.nn.AttentionDecoder(3, 5, 4)
    >>> x, memory = np.ones((6, 2, 3), np.float32), np.ones((7, 2, 4), np.float32)
    >>> outputs, (h, c), weights = decoder(x, memory, memory_lengths=[7, 2], return_weights=True)
    >>> outputs.shape, h.shape, weights[0, 1].round(2)
    ((6, 2, 5), (2, 5), array([0.5, 0.5, 0. , 0. , 0. , 0. , 0. ], dtype=float32))

    After an encoder of the same hidden size, its outputs are the memory, and the state of its last layer is the first state:

    >>> encoder, decoder = fs.nn.LSTM(8, 5, num_layers=2), fs.nn.AttentionDecoder(3, 5, 5)
    >>> memory, (h, c) = encoder(np.ones((7, 2, 8), np.float32), lengths=[7, 2])
    >>> outputs, state = decoder(x, memory, (h[-1], c[-1]), memory_lengths=[7, 2])
    >>> outputs.shape
    (6, 2, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        *,
        cell: str = "lstm",
        attention: str | None = "additive",
        attention_size: int | None = None,
        input_feeding: bool = True,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f"cell: expected 'lstm' or 'gru', got {cell!r}")
        self.cell = self._cell = cell
        self.attention = None if attention is None else checked_attention(attention, " or None")
        self.input_size = I = checked_size("input_size", input_size)
        self.hidden_size = H = checked_size("hidden_size", hidden_size)
        self.memory_size = M = checked_size("memory_size", memory_size)
        if self.attention in ("dot", "scaled_dot") and H != M:
            raise ValueError(f"memory_size: expected {H}, the hidden_size, for {self.attention} attention, got {M}")
        if attention_size is not None and self.attention != "additive":
            raise ValueError(f"attention_size: expected None with {attention} attention, got {attention_size}")
        self.attention_size = A = H if attention_size is None else checked_size("attention_size", attention_size)
        self.input_feeding, self.bias, self.dtype = _check.boolean("input_feeding", input_feeding), True, checked_dtype(dtype)
        rng, G = generator(rng), gates_of(cell)
        shapes = {"weight_ih": (G * H, I + M * self.input_feeding), "weight_hh": (G * H, H), "bias_ih": (G * H,), "bias_hh": (G * H,)}
        self._tables = ((self._draw(shapes, "", rng, H**-0.5),),)
        additive, attends = self.attention == "additive", self.attention is not None
        own = {
            "weight_query": ((A if additive else M, H), H, additive or self.attention == "bilinear"),
            "weight_key": ((A, M), M, additive),
            "bias_key": ((A,), M, additive),
            "weight_score": ((A,), A, additive),
            "weight_out": ((H, H + M), H + M, attends),
            "bias_out": ((H,), H + M, attends),
        }
        for name, (shape, width, there) in own.items():
            setattr(self, name, Parameter(init.uniform(rng, shape, width**-0.5, self.dtype)) if there else None)
        self._own_table = tuple([(name, shape) if there else None for name, (shape, _, there) in own.items()])

    # ------------------------------------------------------------------ the calls

    def forward(
        self,
        x: Any,
        memory: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        memory_lengths: Any = None,
        return_weights: bool = False,
    ) -> Any:
        """Decode whole target sequences: teacher forcing.

        Parameters
        ----------
        x : (T, B, I)
            The targets, one step late.
        memory : (S, B, M), or what `start` made of it
        state : h (B, H), for an LSTM (h, c); optional
            Zeros if left out.
        lengths : (B,) integers from 0 to T, optional
            How many steps each target has. Beyond, outputs and weights are 0; the final state is that of the row's own end.
        memory_lengths : (B,) integers from 0 to S, optional
            How much of the memory each row has. With nothing the context and its weights are 0.
        return_weights : bool
            Also return a.

        Returns
        -------
        outputs : (T, B, H)
        state : like the argument, after each row's last step
        weights : (T, B, S), with `return_weights`

        Raises
        ------
        ValueError, TypeError
            Shapes, dtypes or options other than these.
        """
        return_weights = _check.boolean("return_weights", return_weights)
        if return_weights and self.attention is None:
            raise ValueError("return_weights: expected False, for this decoder has no attention, got True")
        x = real_input(x, self.dtype, "x")
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x: expected shape (T, B, {self.input_size}), got {x.shape}")
        T, B, _ = x.shape
        h_0, c_0 = (None, None) if state is None else self._split(state, (B, self.hidden_size), (B, self.hidden_size))
        found = checked_lengths(lengths, T, B)
        ready = self._ready(memory, memory_lengths, any(isinstance(a, Tensor) for a in (x, h_0, c_0)))
        if ready.shape[1] != B:
            raise ValueError(f"memory: expected shape (S, {B}, {self.memory_size}), for x has {B} rows, got a batch of {ready.shape[1]}")
        plain = not any(isinstance(a, Tensor) for a in (x, ready.values, ready.keys, h_0, c_0))
        x = x if plain or isinstance(x, Tensor) else Tensor(x)  # so that what is made of it is recorded
        if self.attention is None:
            outputs, h, c = self._plain_decoder(x, ready, h_0, c_0, found)
        elif self.input_feeding:
            outputs, h, c, weights = self._fed(x, ready, h_0, c_0, found, plain)
        else:
            outputs, h, c, weights = self._attending_after(x, ready, h_0, c_0, found, plain, return_weights)
        state = h if c is None else (h, c)
        return (outputs, state, weights) if return_weights else (outputs, state)

    def start(self, memory: Any, memory_lengths: Any = None) -> DecoderMemory:
        """Make a memory ready for any number of calls and steps, which then do not project it again.

        Parameters
        ----------
        memory : (S, B, M)
        memory_lengths : (B,) integers from 0 to S, optional

        Returns
        -------
        DecoderMemory
            Takes the place of the memory; with the weights of now. `reorder(indices)` gives its rows in another order, for beam
            search.

        Raises
        ------
        ValueError, TypeError
            Shapes or dtypes other than these.

        Examples
        --------
        >>> import numpy as np, fastseq as fs
        >>> decoder = fs.nn.AttentionDecoder(3, 5, 4, cell="gru")
        >>> ready = decoder.start(np.ones((7, 1, 4), np.float32))
        >>> output, h = decoder.step(np.ones((1, 3), np.float32), ready)
        >>> output, h = decoder.step(np.ones((2, 3), np.float32), ready.reorder([0, 0]), h[[0, 0]])
        >>> output.shape
        (2, 5)
        """
        return self._ready(memory, memory_lengths, False)

    def step(
        self, x: Any, memory: Any, state: Any = None, *, memory_lengths: Any = None, return_weights: bool = False
    ) -> Any:
        """One step, for generation; with the state handed on, on the CPU the same bits as the call on whole sequences where inputs are fed.

        Parameters
        ----------
        x : (B, I)
        memory : what `start` made of it, or (S, B, M), which is then projected in each step
        state : h (B, H), for an LSTM (h, c); optional
        memory_lengths : (B,) integers from 0 to S, optional
        return_weights : bool

        Returns
        -------
        output : (B, H)
        state : like the argument, after the step
        weights : (B, S), with `return_weights`

        Raises
        ------
        ValueError, TypeError
            Shapes, dtypes or options other than these.
        """
        x = real_input(x, self.dtype, "x")
        if x.ndim != 2 or x.shape[1] != self.input_size:
            raise ValueError(f"x: expected shape (B, {self.input_size}), got {x.shape}")
        found = self.forward(x.reshape((1, *x.shape)), memory, state, memory_lengths=memory_lengths, return_weights=return_weights)
        return tuple([a if k == 1 else a[0] for k, a in enumerate(found)])

    # ------------------------------------------------------------------ the forms

    def _one_state(self, name: str, value: Any, shape: tuple[int, ...]) -> Any:
        """An array of the state in the layer's dtype; of an encoder's state its layers' axis is to go."""
        value = real_input(value, self.dtype, "state")
        if value.shape != shape:
            last = "(h[-1], c[-1])" if self._cell == "lstm" else "h[-1]"
            hint = f"; an encoder's last layer is {last} of its state" if len(value.shape) == 3 else ""
            raise ValueError(f"state: expected {'c' if name == 'c_0' else 'h'} of shape {shape}, got {value.shape}{hint}")
        return value

    def _own(self, plain: bool) -> dict[str, Any]:
        """The parameters beside the cell's, checked; their arrays if `plain`."""
        return dict(zip(_ATTENTION, self._checked(self._own_table, plain), strict=True))

    def _ready(self, memory: Any, lengths: Any, recorded: bool) -> DecoderMemory:
        """The memory as the calls use it; `recorded`: a Tensor comes with it."""
        if isinstance(memory, DecoderMemory):
            if lengths is not None:
                raise TypeError("memory_lengths: expected None with a memory that start made ready, got lengths")
            size = None if memory.keys is None else memory.keys.shape[2]
            wanted = self.attention_size if self.attention == "additive" else None
            if memory.values.shape[2] != self.memory_size or memory.values.dtype != self.dtype or size != wanted:
                raise ValueError(f"memory: expected {self.dtype} of size {self.memory_size} from this decoder's start, got another")
            return memory
        memory = real_input(memory, self.dtype, "memory")
        if memory.ndim != 3 or memory.shape[2] != self.memory_size:
            raise ValueError(f"memory: expected shape (S, B, {self.memory_size}), got {memory.shape}")
        if self.attention is None:
            return DecoderMemory(self._last(memory, checked_memory_lengths("memory_lengths", lengths, *memory.shape[:2])), None, None)
        own = self._own(not (recorded or isinstance(memory, Tensor)))
        return made_ready(memory, own["weight_key"], own["bias_key"], lengths, "memory_lengths")

    def _last(self, memory: Any, lengths: Any) -> Any:
        """The last step of each row's memory (B, 1, M), zeros where there is none."""
        S, B, M = memory.shape
        data = _check.data(memory)
        if S == 0:
            zeros = namespace(data).zeros((B, 1, M), self.dtype)
            return Tensor(zeros) if isinstance(memory, Tensor) else zeros
        if lengths is None:
            return memory[-1].reshape((B, 1, M))
        last = memory[placed(np.maximum(lengths, 1) - 1, data), placed(np.arange(B), data)]
        return functional.where((lengths > 0)[:, None], last, 0.0).reshape((B, 1, M))

    def _fed(self, x: Any, memory: DecoderMemory, h_0: Any, c_0: Any, lengths: Any, plain: bool) -> Any:
        """The fused operation."""
        arrays, own = self._weights(self._tables[0][0], True), self._own(True)
        of_all = DecoderWeights(*arrays[:4], *(own[n] for n in ("weight_out", "bias_out", "weight_query", "weight_score")))
        data = _check.data(x)
        for name, value in (("x", data), ("memory", _check.data(memory.values))):
            where_the_layer_is(name, value, arrays[0])
        backend = backend_of(data)
        packed = backend.attention_decoder_pack(self._cell, of_all, packed=self._packed)
        self.__dict__["_packed"] = packed                   # past __setattr__, whose checks it does not need
        if not plain:
            held, own = self._weights(self._tables[0][0], False), self._own(False)
            of_all = DecoderWeights(*held[:4], *(own[n] for n in ("weight_out", "bias_out", "weight_query", "weight_score")))
        scale = scale_of(self.attention, self.memory_size)
        return decode(packed, x, memory, of_all, h_0, c_0, scale=scale, lengths=None if lengths is None else placed(lengths, data))

    def _states(self, x: Any, h_0: Any, c_0: Any, lengths: Any) -> Any:
        """The cell over x, without attention: all states (T, B, H), and the last h and c (B, H)."""
        B, H = x.shape[1], self.hidden_size
        h_0, c_0 = (None if a is None else a.reshape((1, B, H)) for a in (h_0, c_0))
        one = self._recorded_layer if any(isinstance(a, Tensor) for a in (x, h_0, c_0)) else self._layer
        y, h, c, _ = one(0, x, h_0, c_0, {} if lengths is None else {"lengths": placed(lengths, _check.data(x))})
        return y, h.reshape((B, H)), None if c is None else c.reshape((B, H))

    def _plain_decoder(self, x: Any, memory: DecoderMemory, h_0: Any, c_0: Any, lengths: Any) -> Any:
        if self.input_feeding:
            T, B, _ = x.shape
            fed = memory.values.reshape((1, B, self.memory_size)) + namespace(_check.data(memory.values)).zeros((T, 1, 1), self.dtype)
            x = functional.concatenate([x, fed], axis=2)
        return self._states(x, h_0, c_0, lengths)

    def _attending_after(
        self, x: Any, memory: DecoderMemory, h_0: Any, c_0: Any, lengths: Any, plain: bool, return_weights: bool
    ) -> Any:
        """Luong's form: all states first, then all queries at once."""
        y, h, c = self._states(x, h_0, c_0, lengths)
        own = self._own(plain)
        queries = y.swapaxes(0, 1)
        if own["weight_query"] is not None:
            queries = functional.linear(queries, own["weight_query"])
        if self.attention == "additive":
            found = functional.additive_attention(
                queries, memory.keys, memory.values, own["weight_score"], key_lengths=memory.lengths, return_weights=return_weights)
        else:
            found = self._dot(queries, memory, return_weights)
        contexts, weights = found if return_weights else (found, None)
        both = functional.concatenate([y, contexts.swapaxes(0, 1)], axis=2)
        outputs = functional.linear(both, own["weight_out"], own["bias_out"], function="tanh")
        weights = None if weights is None else weights.swapaxes(0, 1)
        if lengths is not None:
            alive = (np.arange(len(x))[:, None] < lengths)[:, :, None]
            outputs = functional.where(alive, outputs, 0.0)
            weights = None if weights is None else functional.where(alive, weights, 0.0)
        return outputs, h, c, weights

    def _dot(self, queries: Any, memory: DecoderMemory, return_weights: bool) -> Any:
        """Contexts (B, T, M), and weights (B, T, S), of scores that are dot products: one head."""
        B, S, M = memory.values.shape
        one = [a.reshape((B, 1, *a.shape[1:])) for a in (queries, memory.values)]
        found = functional.scaled_dot_product_attention(
            one[0], one[1], one[1], scale=scale_of(self.attention, M), key_lengths=memory.lengths, return_weights=return_weights)
        T = queries.shape[1]
        return (found[0].reshape((B, T, M)), found[1].reshape((B, T, S))) if return_weights else found.reshape((B, T, M))

    def extra_repr(self) -> str:
        """Sizes, and the options that are not the default."""
        options = {"cell": (self.cell, "lstm"), "attention": (self.attention, "additive"), "attention_size": (self.attention_size, self.hidden_size),
                   "input_feeding": (self.input_feeding, True)}  # fmt: skip
        shown = [f"{name}={value!r}" for name, (value, default) in options.items() if value != default]
        return ", ".join([f"{self.input_size}, {self.hidden_size}, {self.memory_size}", *shown])
