"""Multi-head attention with PyTorch's arguments, parameter names and mask polarity (Vaswani et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor, is_recording
from fastseq.backends import namespace, placed, to_cpu
from fastseq.functional import _check
from fastseq.nn import init
from fastseq.nn._inputs import checked_dtype, checked_flag, checked_size, plain_array, real_input, where_the_layer_is
from fastseq.nn._masks import row_lengths, visible
from fastseq.nn.cache import CachingModule, KeyValueCache, MemoryKeys
from fastseq.nn.linear import Linear
from fastseq.nn.module import Parameter
from fastseq.nn.positions import RotaryEmbedding
from fastseq.runtime import generator, next_seed


class MultiheadAttention(CachingModule):
    """Attention of several heads between learned projections of queries, keys and values.

    A PyTorch state dict loads as it is. As there, True in a boolean mask means blocked, and numbers are added to the scores.
    It differs from PyTorch in that a query that sees nothing gets zeros before the last projection, where PyTorch has NaN; that
    `is_causal=True` needs no mask, and together with one it applies too; and that `key` and `value` may be left out.

    Weights start Xavier-uniform, biases at zero and `out_proj.weight` as a Linear's, as PyTorch's.

    Parameters
    ----------
    embed_dim : int
        E, the width of queries and of the output.
    num_heads : int
        A divisor of E.
    dropout : float in [0, 1]
        Probability with which an attention weight is zeroed while training.
    bias : bool
        False leaves the projections' biases out.
    add_bias_kv : bool
        Every query also sees one learned key and value.
    add_zero_attn : bool
        Every query also sees a key and a value of zeros.
    kdim, vdim : int, optional
        Widths of keys and values, E if left out.
    batch_first : bool
        Arrays are (B, T, E) in place of (T, B, E).
    rotary : RotaryEmbedding, optional
        Turns queries and keys by their positions, which a cache counts on; for self-attention only.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator
        What weights, and the seed of dropout, are drawn from.

    Attributes
    ----------
    in_proj_weight : Parameter (3E, E)
        The projections of queries, keys and values; None where kdim or vdim is not E.
    q_proj_weight, k_proj_weight, v_proj_weight : Parameter (E, E), (E, kdim), (E, vdim)
        In its place; None where it is there.
    in_proj_bias : Parameter (3E,) or None
    bias_k, bias_v : Parameter (1, 1, E) or None
    out_proj : Linear

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> attention = fs.nn.MultiheadAttention(8, 2, batch_first=True, rng=0)
    >>> x = np.ones((3, 5, 8), np.float32)
    >>> y, weights = attention(x, key_padding_mask=fs.nn.padding_mask([5, 2, 0]))
    >>> y.shape, weights.shape
    ((3, 5, 8), (3, 5, 5))
    >>> weights[1, 0].tolist(), weights[2, 0].tolist()
    ([0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        rotary: RotaryEmbedding | None = None,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.embed_dim = E = checked_size("embed_dim", embed_dim)
        self.num_heads = checked_size("num_heads", num_heads)
        if E % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim = {E}, got {num_heads}")
        self.head_dim = E // self.num_heads
        self.dropout = _check.probability("dropout", dropout)
        self.kdim = E if kdim is None else checked_size("kdim", kdim)
        self.vdim = E if vdim is None else checked_size("vdim", vdim)
        self.add_zero_attn, self.batch_first = checked_flag("add_zero_attn", add_zero_attn), checked_flag("batch_first", batch_first)
        bias, add_bias_kv = checked_flag("bias", bias), checked_flag("add_bias_kv", add_bias_kv)
        self.dtype = checked_dtype(dtype)
        if rotary is not None and not (isinstance(rotary, RotaryEmbedding) and rotary.head_dim == self.head_dim):
            raise ValueError(f"rotary: expected a RotaryEmbedding of head_dim {self.head_dim}, got {rotary!r}")
        if rotary is not None and rotary.dtype != self.dtype:
            raise TypeError(f"rotary: expected one of dtype {self.dtype}, as the layer's, got {rotary.dtype}")
        if rotary is not None and (self.kdim, self.vdim) != (E, E):
            raise ValueError(f"rotary: expected None with kdim = {self.kdim} and vdim = {self.vdim}, for it is for self-attention only")
        drawn = generator(rng)
        self._draw(drawn, bias, add_bias_kv)
        self.rotary = rotary
        self._seed, self._calls = next_seed(drawn), 0

    def _draw(self, rng: np.random.Generator, bias: bool, add_bias_kv: bool) -> None:
        E, dtype = self.embed_dim, self.dtype

        def xavier(columns: int, rows: int = E) -> Parameter:
            return Parameter(init.xavier_uniform(rng, (rows, columns), dtype))

        together = self.kdim == E and self.vdim == E
        self.in_proj_weight = xavier(E, 3 * E) if together else None
        self.q_proj_weight = None if together else xavier(E)
        self.k_proj_weight = None if together else xavier(self.kdim)
        self.v_proj_weight = None if together else xavier(self.vdim)
        self.in_proj_bias = Parameter(np.zeros(3 * E, dtype)) if bias else None
        # Xavier-normal of a (1, 1, E) array has deviation sqrt(2 / (E + E)).
        self.bias_k = Parameter(init.normal(rng, (1, 1, E), dtype, E**-0.5)) if add_bias_kv else None
        self.bias_v = Parameter(init.normal(rng, (1, 1, E), dtype, E**-0.5)) if add_bias_kv else None
        self.out_proj = Linear(E, E, bias=bias, dtype=dtype, rng=rng)
        if self.out_proj.bias is not None:
            self.out_proj.bias.data[...] = 0

    def forward(
        self,
        query: Any,
        key: Any = None,
        value: Any = None,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        cache: KeyValueCache | None = None,
    ) -> tuple[Any, Any]:
        """Let each position of `query` look at `key` and take from `value`.

        Parameters
        ----------
        query : (Tq, B, E), with `batch_first` (B, Tq, E), or (Tq, E)
        key : (Tk, B, kdim), laid out as `query`; optional
            `query` itself if left out: self-attention, which is one projection where the three are the same object.
        value : (Tk, B, vdim); optional
            `key` itself if left out.
        key_padding_mask : (B, Tk), or (Tk,) for a single sequence; optional
            Of bool, True = blocked (`fs.nn.padding_mask`), or numbers that are added to the scores.
        need_weights : bool
            False leaves the weights out, which is faster and takes far less memory.
        attn_mask : (Tq, Tk) or (B heads, Tq, Tk), optional
            Of bool, True = blocked (`fs.nn.causal_mask`), or numbers that are added to the scores; a Tensor gets a gradient.
        average_attn_weights : bool
            False returns the weights of each head.
        is_causal : bool
            Query i sees the keys up to i only; no mask is needed for it.
        cache : KeyValueCache, optional
            Self-attention appends `query` to it and looks at all that is there, causally; a right-padding
            `key_padding_mask` (B, Tq) then says how many positions each row has, and Tk counts the cache's. Attention to
            another `key` projects it in the first call only. Not with `add_bias_kv` or `add_zero_attn`.

        Returns
        -------
        output : like `query`
        weights : (B, Tq, Tk), per head (B, heads, Tq, Tk), without B for a single sequence; or None
            After dropout, as in PyTorch.

        Raises
        ------
        ValueError, TypeError
            Shapes, dtypes, masks or options that do not fit.
        """
        need_weights = checked_flag("need_weights", need_weights)
        average_attn_weights = checked_flag("average_attn_weights", average_attn_weights)
        is_causal = checked_flag("is_causal", is_causal, "; a mask is attn_mask")
        own = (key is None or key is query) and (value is None or value is query)
        joint = value is None or value is key
        query = self._door(query, "query", self.embed_dim)
        if not isinstance(query, Tensor) and (isinstance(attn_mask, Tensor) or isinstance(key_padding_mask, Tensor)):
            query = Tensor(query)
        if own:
            key = value = query
        else:
            if self.rotary is not None:
                raise ValueError("key: expected query itself, for a layer with rotary positions attends to itself only")
            key = query if key is None else self._door(key, "key", self.kdim, query)
            value = key if joint else self._door(value, "value", self.vdim, query)
        single = query.ndim == 2
        if single:
            query, key, value = self._batched(query, key, value)
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask if isinstance(key_padding_mask, Tensor) else plain_array(key_padding_mask, "key_padding_mask")
                key_padding_mask = key_padding_mask.reshape((1, -1))
        if cache is not None:
            output, weights = self._cached(query, key, value, key_padding_mask, attn_mask, is_causal, cache, need_weights)
        else:
            output, weights = self._attended(query, key, value, key_padding_mask, attn_mask, is_causal, need_weights)
        output = self._project(output, self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(axis=1)
        if single:
            output = output.reshape((output.shape[1] if self.batch_first else output.shape[0], self.embed_dim))
            weights = None if weights is None else weights.reshape(weights.shape[1:])
        return output, weights

    # ------------------------------------------------------------------ the door

    def _door(self, x: Any, name: str, width: int, query: Any = None) -> Any:
        """An input of the layer's dtype whose shape fits, and fits the query."""
        x = real_input(x, self.dtype, name)
        where_the_layer_is(name, x.data if isinstance(x, Tensor) else x, self.out_proj.weight.data)
        shape, axis = x.shape, self._batch_axis
        if len(shape) not in (2, 3) or shape[-1] != width or (query is not None and len(shape) != query.ndim):
            wanted = [f"(B, T, {width})" if self.batch_first else f"(T, B, {width})", f"(T, {width})"]
            wanted = wanted if query is None else [wanted[3 - query.ndim]]
            raise ValueError(f"{name}: expected shape {' or '.join(wanted)}, got {shape}")
        if query is not None and len(shape) == 3 and shape[axis] != query.shape[axis]:
            raise ValueError(f"{name}: expected {query.shape[axis]} rows, as query has, got {shape[axis]}")
        return x

    @property
    def _batch_axis(self) -> int:
        return 0 if self.batch_first else 1

    def _batched(self, *inputs: Any) -> list[Any]:
        """Single sequences as batches of one; what was one object stays one."""
        made: dict[int, Any] = {}
        for x in inputs:
            if id(x) not in made:
                made[id(x)] = x.reshape((1, *x.shape) if self.batch_first else (x.shape[0], 1, x.shape[1]))
        return [made[id(x)] for x in inputs]

    # ------------------------------------------------------------------ attention

    def _attended(
        self, query: Any, key: Any, value: Any, padding: Any, attn_mask: Any, is_causal: bool, need_weights: bool
    ) -> tuple[Any, Any]:
        """What the heads found, side by side, and the weights (B, heads, Tq, Tk) if needed."""
        first, heads = self.batch_first, self.num_heads
        B, Tq = query.shape[:2] if first else query.shape[1::-1]
        Tk = key.shape[1 if first else 0]
        added = (self.bias_k is not None) + self.add_zero_attn
        options = {"return_weights": need_weights, **self._dropout_key()}
        if key is query and value is query and self.in_proj_weight is not None and not added and self.rotary is None:
            seen = visible(attn_mask, padding, is_causal, (B, heads, Tq, Tk), self.dtype)
            joined = self._project(query, self.in_proj_weight, self.in_proj_bias)
            found = functional.self_attention(joined, heads, batch_first=first, **seen._asdict(), **options)
            return found if need_weights else (found, None)
        q, k, v = (self._heads(x) for x in self._projected(query, key, value))
        if k.shape[:3] != v.shape[:3]:
            raise ValueError(f"value: expected {Tk} positions, as key has, got {v.shape[2]}")
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        if added:
            k, v = self._with_added(k, self.bias_k), self._with_added(v, self.bias_v)
        seen = visible(attn_mask, padding, is_causal, (B, heads, Tq, Tk), self.dtype, added)
        found = functional.scaled_dot_product_attention(q, k, v, **seen._asdict(), **options)
        y, weights = found if need_weights else (found, None)
        return self._joined(y), weights

    def _dropout_key(self) -> dict[str, Any]:
        if not self.training or self.dropout == 0:
            return {}
        self._calls += 1
        return {"dropout_p": self.dropout, "seed": self._seed, "call": self._calls % 2**32}

    def _projected(self, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
        """Queries, keys and values (.., .., E); in one product where key and value are one object."""
        E, weight, bias = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if weight is not None and key is query and value is query:
            return functional.split(self._project(query, weight, bias), [E] * 3, axis=-1)
        recording = any(isinstance(x, Tensor) for x in (query, key, value))
        arrays = [None if p is None else p if recording else p.data for p in (weight, bias)]
        if weight is not None and key is value:
            parts = [(None,) * 2 if a is None else functional.split(a, [E, 2 * E]) for a in arrays]
            q = functional.linear(query, parts[0][0], parts[1][0])
            k, v = functional.split(functional.linear(key, parts[0][1], parts[1][1]), [E, E], axis=-1)
            return q, k, v
        biases = (None,) * 3 if arrays[1] is None else functional.split(arrays[1], [E] * 3)
        if weight is not None:
            weights = functional.split(arrays[0], [E] * 3)
        else:
            own = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            weights = tuple(p if recording else p.data for p in own if p is not None)
        q, k, v = (functional.linear(*each) for each in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _project(self, x: Any, weight: Any, bias: Any) -> Any:
        if isinstance(x, Tensor):
            return functional.linear(x, weight, bias)
        return functional.linear(x, weight.data, None if bias is None else bias.data)

    def _with_added(self, x: Any, bias: Any) -> Any:
        """Keys or values (B, heads, Tk, D), followed by the learned one and by zeros where the layer has them."""
        own = namespace(x.data if isinstance(x, Tensor) else x)
        parts, zeros = [x], own.zeros((x.shape[0], self.num_heads, 1, self.head_dim), self.dtype)
        if bias is not None:
            one = (bias if isinstance(x, Tensor) else bias.data).reshape((1, self.num_heads, 1, self.head_dim))
            parts.append(functional.add(one, zeros))
        if self.add_zero_attn:
            parts.append(zeros)
        return functional.concatenate(parts, axis=2)

    def _heads(self, x: Any) -> Any:
        """(B, T, E) or (T, B, E) as views of (B, heads, T, D)."""
        x = x.reshape((*x.shape[:2], self.num_heads, self.head_dim))
        return x.transpose((0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3))

    def _joined(self, y: Any) -> Any:
        """The way back: the heads side by side."""
        y = y.transpose((0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3))
        return y.reshape((*y.shape[:2], self.embed_dim))

    # ------------------------------------------------------------------ with a cache

    def _cached(
        self, query: Any, key: Any, value: Any, padding: Any, attn_mask: Any, is_causal: bool, cache: KeyValueCache, need_weights: bool
    ) -> tuple[Any, Any]:
        """What `_attended` returns, from keys and values of which the cache has some."""
        inputs = (query, key, value)
        wrapped = any(isinstance(x, Tensor) for x in inputs)
        if self.bias_k is not None or self.add_zero_attn:
            raise ValueError("cache: expected None, for a layer with add_bias_kv or add_zero_attn cannot use one")
        if wrapped and is_recording(*inputs, *self.parameters()):
            raise ValueError("cache: expected None while recording; decode with arrays, or under fs.no_grad()")
        own = key is query and value is query
        query, key, value, padding = (x.data if isinstance(x, Tensor) else x for x in (query, key, value, padding))
        part: Any
        if own:
            q, k, v = (self._heads(x) for x in self._projected(query, query, query))
            counts = None if padding is None else self._counts(padding, q.shape)
            part = cache._own_part(self, np.full(len(q), q.shape[2]) if counts is None else counts)
            if self.rotary is not None:
                offset = part.lengths if part.batch == len(q) else 0
                q, k = self.rotary(q, offset=offset), self.rotary(k, offset=offset)
            keys, values, before = part.append(k, v, counts)
            options = self._seen_in_cache(q.shape, keys.shape[2], before, counts, attn_mask)
        else:
            q, part = self._memory(query, key, value, cache)
            keys, values = part.keys, part.values
            options = visible(attn_mask, padding, is_causal, (*q.shape[:3], keys.shape[2]), self.dtype)._asdict()
        options |= self._dropout_key()
        found = functional.scaled_dot_product_attention(q, keys, values, return_weights=need_weights, **options)
        y, weights = found if need_weights else (found, None)
        y = self._joined(y)
        return (Tensor(y), None if weights is None else Tensor(weights)) if wrapped else (y, weights)

    def _counts(self, padding: Any, shape: tuple[int, ...]) -> np.ndarray | None:
        """How many of the new positions each row has; None where it has all."""
        B, _, T, _ = shape
        padding = to_cpu(plain_array(padding, "key_padding_mask"))
        if padding.dtype != bool or padding.shape != (B, T):
            raise ValueError(f"key_padding_mask: expected bool of shape ({B}, {T}), got {padding.dtype} of shape {padding.shape}")
        counts = row_lengths(padding)
        if counts is None:
            raise ValueError("key_padding_mask: expected True past the end of each row only, for the rest enters the cache")
        return counts if counts.min(initial=T) < T else None

    def _seen_in_cache(
        self, shape: tuple[int, ...], Tk: int, before: np.ndarray, counts: np.ndarray | None, attn_mask: Any
    ) -> dict[str, Any]:
        """Options of the attention of T new positions, where row b had before[b]: its query i sees the keys up to before[b] + i."""
        B, heads, T, _ = shape
        mask = visible(attn_mask, None, False, (B, heads, T, Tk), self.dtype).attn_mask
        even = B == 0 or bool((before == before[0]).all())
        lengths = None if even and counts is None else before + (T if counts is None else counts)
        if T == 1:
            return {"attn_mask": mask, "key_lengths": lengths}
        if even:
            offset = int(before[0]) if B else 0
            return {"attn_mask": mask, "key_lengths": lengths, "is_causal": True, "causal_offset": offset}
        sees = np.arange(Tk) <= before[:, None, None, None] + np.arange(T)[:, None]
        if mask is not None:
            sees = placed(sees, mask)
            sees = sees & mask if mask.dtype == bool else namespace(mask).where(sees, mask, self.dtype.type(-np.inf))
        return {"attn_mask": sees, "key_lengths": lengths}

    def _memory(self, query: np.ndarray, key: Any, value: Any, cache: KeyValueCache) -> tuple[np.ndarray, MemoryKeys]:
        """The query's heads, and the memory's keys and values, computed unless the cache has them."""
        part, time = cache._memory_part(self), 1 - self._batch_axis
        if key.shape[time] != value.shape[time]:
            raise ValueError(f"value: expected {key.shape[time]} positions, as key has, got {value.shape[time]}")
        if part is None:
            q, k, v = (self._heads(x) for x in self._projected(query, key, value))
            return q, cache._keep_memory(self, k, v)
        if part.batch != query.shape[self._batch_axis]:
            raise ValueError(
                f"query: expected {part.batch} rows, as the cache has, got {query.shape[self._batch_axis]}; "
                "cache.reset() begins anew, cache.reorder(indices) changes the rows"
            )
        if part.keys.shape[2] != key.shape[time]:
            raise ValueError(
                f"key: expected {part.keys.shape[2]} positions, as in the first call, got {key.shape[time]}; "
                "cache.reset() begins anew, and rows that do so alone are padded to that length"
            )
        if part.stale.any():
            stale = placed(part.stale, key)
            rows = (stale,) if self.batch_first else (slice(None), stale)
            some, fresh = key[rows], value[rows] if value is not key else None
            q, k, v = self._projected(query[rows], some, some if fresh is None else fresh)
            part.renew(self._heads(k), self._heads(v))
        E, weight = self.embed_dim, self.in_proj_weight
        first = self.q_proj_weight.data if weight is None else weight.data[:E]  # type: ignore[union-attr]
        return self._heads(functional.linear(query, first, None if self.in_proj_bias is None else self.in_proj_bias.data[:E])), part

    def extra_repr(self) -> str:
        """Sizes, and the options that are not the default."""
        E = self.embed_dim
        shown = {"kdim": (self.kdim, E), "vdim": (self.vdim, E), "dropout": (self.dropout, 0), "bias": (self.in_proj_bias is not None, True)}
        shown |= {"add_bias_kv": (self.bias_k is not None, False), "add_zero_attn": (self.add_zero_attn, False)}
        shown |= {"batch_first": (self.batch_first, False)}
        more = "".join(f", {name}={value}" for name, (value, default) in shown.items() if value != default)
        return f"{E}, num_heads={self.num_heads}{more}"
