"""Attention by each of the classical scores, for one head: additive, dot product, bilinear; and pooling of a recurrent layer's outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import placed
from fastseq.functional import _check
from fastseq.functional.recurrent import checked_lengths
from fastseq.nn import init
from fastseq.nn._inputs import any_real_input, checked_dtype, checked_size, plain_array, real_input
from fastseq.nn.linear import Linear
from fastseq.nn.module import Module, Parameter
from fastseq.runtime import generator


class _Scored(Module):
    """The call that the scores share: softmax over the keys of a score of each query and key, times the values."""

    dtype: np.dtype
    query_size: int
    key_size: int

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any = None,
        *,
        key_lengths: Any = None,
        attn_mask: Any = None,
        return_weights: bool = False,
    ) -> Any:
        """Attend.

        Parameters
        ----------
        query : (B, Tq, Dq)
        key : (B, Tk, Dk)
        value : (B, Tk, Dv), optional
            The keys themselves if left out.
        key_lengths : (B,) integers from 0 to Tk, optional
            How many keys each row has.
        attn_mask : bool (True = may attend) or float (added to the scores), optional
            Broadcast to (B, Tq, Tk).
        return_weights : bool
            Also the weights.

        Returns
        -------
        y : (B, Tq, Dv)
            Arrays for arrays, a Tensor where an input is one. Zeros for a query that may attend to nothing.
        weights : (B, Tq, Tk)
            With `return_weights`.

        Raises
        ------
        ValueError, TypeError
            Shapes or dtypes other than these.
        """
        query = self._own(query, "query", None)
        dtype = query.dtype
        key = self._own(key, "key", dtype)
        value = key if value is None else self._own(value, "value", dtype)
        query_size, key_size = self._sizes(query)
        _check.shape("query", query, ("B", "Tq", query_size))
        _check.shape("key", key, (len(query), "Tk", key_size))
        _check.shape("value", value, (len(query), key.shape[1], "Dv"))
        if attn_mask is not None:
            attn_mask = _mask(attn_mask, dtype, (len(query), query.shape[1], key.shape[1]))
        recording = any(isinstance(a, Tensor) for a in (query, key, value, attn_mask))
        options = {"key_lengths": key_lengths, "attn_mask": attn_mask, "return_weights": return_weights}
        return self._attend(query, key, value, recording, options)

    def _own(self, x: Any, name: str, dtype: Any) -> Any:
        """An input in the module's dtype."""
        return real_input(x, self.dtype, name)

    def _sizes(self, query: Any) -> tuple[Any, Any]:
        """The last axes of query and key."""
        return self.query_size, self.key_size

    def _attend(self, query: Any, key: Any, value: Any, recording: bool, options: dict[str, Any]) -> Any:
        raise NotImplementedError


class AdditiveAttention(_Scored):
    """Attention by the score u . tanh(W q + W' k + b) (Bahdanau et al. 2015), fused: see `functional.additive_attention`.

    Projections and bias start uniform in +-1/sqrt of their input's size, u in +-1/sqrt(units).

    Parameters
    ----------
    query_size, key_size : int
        Dq and Dk.
    units : int
        The length of u.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator
        What the weights are drawn from; None: the process's generator (`fs.manual_seed`).

    Attributes
    ----------
    query_proj.weight : Parameter (units, query_size)
        W.
    key_proj.weight : Parameter (units, key_size)
        W'.
    bias, u : Parameter (units,)

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> attention = fs.nn.AdditiveAttention(4, 6, units=8)
    >>> y, weights = attention(np.ones((2, 3, 4)), np.ones((2, 5, 6)), key_lengths=[5, 2], return_weights=True)
    >>> y.shape, weights[1, 0].tolist()
    ((2, 3, 6), [0.5, 0.5, 0.0, 0.0, 0.0])
    """

    def __init__(self, query_size: int, key_size: int, units: int, *, dtype: Any = np.float32, rng: Any = None) -> None:
        self.query_size, self.key_size = checked_size("query_size", query_size), checked_size("key_size", key_size)
        self.units, self.dtype = checked_size("units", units), checked_dtype(dtype)
        drawn = generator(rng)
        self.query_proj = Linear(self.query_size, self.units, bias=False, dtype=self.dtype, rng=drawn)
        self.key_proj = Linear(self.key_size, self.units, bias=False, dtype=self.dtype, rng=drawn)
        self.bias = Parameter(init.uniform(drawn, (self.units,), self.query_size**-0.5, self.dtype))
        self.u = Parameter(init.uniform(drawn, (self.units,), self.units**-0.5, self.dtype))

    def _attend(self, query: Any, key: Any, value: Any, recording: bool, options: dict[str, Any]) -> Any:
        parameters = self.query_proj.weight, self.bias, self.key_proj.weight, self.u
        W, b, W_key, u = parameters if recording else (p.data for p in parameters)
        return functional.additive_attention(functional.linear(query, W, b), functional.linear(key, W_key), value, u, **options)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"query_size={self.query_size}, key_size={self.key_size}, units={self.units}"


class DotAttention(_Scored):
    """Attention by the score q . k (Luong et al. 2015), or q . k / sqrt(D) (Vaswani et al. 2017); it has no parameters.

    It computes in query's dtype, float32 or float64.

    Parameters
    ----------
    scaled : bool
        Whether to divide by sqrt(D).

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> memory = np.eye(3, dtype=np.float32)[None]
    >>> fs.nn.DotAttention(scaled=False)(1000 * memory[:, 1:2], memory)
    array([[[0., 1., 0.]]], dtype=float32)
    """

    def __init__(self, scaled: bool = True) -> None:
        self.scaled = _check.boolean("scaled", scaled)

    def _own(self, x: Any, name: str, dtype: Any) -> Any:
        return any_real_input(x, name) if dtype is None else real_input(x, dtype, name)

    def _sizes(self, query: Any) -> tuple[Any, Any]:
        return "D", query.shape[-1] if query.ndim else "D"

    def _attend(self, query: Any, key: Any, value: Any, recording: bool, options: dict[str, Any]) -> Any:
        return _dot(query, key, value, None if self.scaled else 1.0, **options)

    def extra_repr(self) -> str:
        """Whether scores are scaled."""
        return f"scaled={self.scaled}"


class BilinearAttention(_Scored):
    """Attention by the score q W k (the "general" one of Luong et al. 2015).

    W starts uniform in +-1/sqrt(query_size).

    Parameters
    ----------
    query_size, key_size : int
        Dq and Dk.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight : Parameter (query_size, key_size)
        W.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> attention = fs.nn.BilinearAttention(4, 6)
    >>> attention(np.ones((2, 3, 4)), np.ones((2, 5, 6))).shape
    (2, 3, 6)
    """

    def __init__(self, query_size: int, key_size: int, *, dtype: Any = np.float32, rng: Any = None) -> None:
        self.query_size, self.key_size = checked_size("query_size", query_size), checked_size("key_size", key_size)
        self.dtype = checked_dtype(dtype)
        self.weight = Parameter(init.uniform(generator(rng), (self.query_size, self.key_size), self.query_size**-0.5, self.dtype))

    def _attend(self, query: Any, key: Any, value: Any, recording: bool, options: dict[str, Any]) -> Any:
        projected = functional.matmul(query, self.weight if recording else self.weight.data)
        return _dot(projected, key, value, 1.0, **options)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"query_size={self.query_size}, key_size={self.key_size}"


class AttentionPooling(Module):
    """One vector for a sequence of a recurrent layer's outputs: the steps, weighed by how well they fit the last one.

    q_t = tanh(W h_t + b); weights = softmax over t of q_t . q_last, where last is the row's own last step; sum_t weights_t h_t.
    W and b start uniform in +-1/sqrt(hidden_size).

    Parameters
    ----------
    hidden_size : int
        H.
    attention_size : int
        The length of q_t.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight : Parameter (attention_size, hidden_size)
        W.
    bias : Parameter (attention_size,)
        b.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> pool = fs.nn.AttentionPooling(4, 8)
    >>> y, weights = pool(np.ones((5, 2, 4)), [5, 2], return_weights=True)
    >>> y.shape, weights[1].tolist()
    ((2, 4), [0.5, 0.5, 0.0, 0.0, 0.0])
    """

    def __init__(self, hidden_size: int, attention_size: int, *, dtype: Any = np.float32, rng: Any = None) -> None:
        self.hidden_size, self.attention_size = checked_size("hidden_size", hidden_size), checked_size("attention_size", attention_size)
        self.dtype = checked_dtype(dtype)
        drawn, bound = generator(rng), self.hidden_size**-0.5
        self.weight = Parameter(init.uniform(drawn, (self.attention_size, self.hidden_size), bound, self.dtype))
        self.bias = Parameter(init.uniform(drawn, (self.attention_size,), bound, self.dtype))

    def forward(self, h: Any, lengths: Any = None, *, return_weights: bool = False) -> Any:
        """Pool.

        Parameters
        ----------
        h : (T, B, H)
        lengths : (B,) integers from 0 to T, optional
            The steps of each row; zeros come out for a row without any.
        return_weights : bool
            Also the weights.

        Returns
        -------
        y : (B, H)
        weights : (B, T)
            With `return_weights`.

        Raises
        ------
        ValueError, TypeError
            Shapes or dtypes other than these.
        """
        h = real_input(h, self.dtype, "h")
        _check.shape("h", h, ("T", "B", self.hidden_size))
        T, B, H = h.shape
        lengths = np.full(B, T) if lengths is None else checked_lengths(lengths, T, B)
        by_row = h.swapaxes(0, 1)
        if T == 0:  # nothing is the last step
            y = by_row.sum(axis=1)
            return (y, by_row.sum(axis=2)) if return_weights else y
        W, b = (p if isinstance(h, Tensor) else p.data for p in (self.weight, self.bias))
        q = functional.linear(by_row, W, b, function="tanh")
        data = _check.data(q)
        last = q[placed(np.arange(B), data), placed(np.maximum(lengths, 1) - 1, data)].reshape((B, 1, self.attention_size))
        y, weights = _dot(last, q, by_row, 1.0, key_lengths=lengths, return_weights=True)
        y = y.reshape((B, H))
        return (y, weights.reshape((B, T))) if return_weights else y

    def extra_repr(self) -> str:
        """Sizes."""
        return f"hidden_size={self.hidden_size}, attention_size={self.attention_size}"


def _mask(attn_mask: Any, dtype: np.dtype, full: tuple[int, ...]) -> Any:
    """A mask of bool, or of numbers in the module's dtype."""
    mask = attn_mask if isinstance(attn_mask, Tensor) else plain_array(attn_mask, "attn_mask")
    if mask.ndim > 3 or any(n not in (1, m) for n, m in zip(mask.shape[::-1], full[::-1], strict=False)):
        raise ValueError(f"attn_mask: expected a shape that broadcasts to {full}, got {mask.shape}")
    return real_input(mask, dtype, "attn_mask") if mask.dtype.kind == "f" else mask


def _dot(
    query: Any, key: Any, value: Any, scale: float | None, *, key_lengths: Any = None, attn_mask: Any = None, return_weights: bool = False
) -> Any:
    """softmax(scale q k^T + mask) v for arrays without an axis of heads."""
    query, key, value = (a.reshape((len(a), 1, *a.shape[1:])) for a in (query, key, value))
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.reshape((len(attn_mask), 1, *attn_mask.shape[1:]))
    outputs = functional.scaled_dot_product_attention(
        query, key, value, attn_mask, scale=scale, key_lengths=key_lengths, return_weights=return_weights
    )
    if not return_weights:
        return outputs.reshape((len(query), *outputs.shape[2:]))
    return tuple(a.reshape((len(query), *a.shape[2:])) for a in outputs)
