"""Where an element stands in its sequence, for attention, which does not know: sinusoidal, learned, one-hot and rotary positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import placed
from fastseq.functional import _check
from fastseq.nn import init
from fastseq.nn._inputs import checked_dtype, checked_flag, checked_size, real_input
from fastseq.nn.dropout import Dropout
from fastseq.nn.module import Module, Parameter
from fastseq.runtime import generator


class _Positions(Module):
    """What the encodings share: which axis is time, and positions that begin at an offset, or at one for each row."""

    batch_first: bool
    dtype: np.dtype

    def _door(self, x: Any, width: int | None) -> Any:
        x = real_input(x, self.dtype, "x")
        E = "E" if width is None else width
        if len(x.shape) not in (2, 3) or width not in (None, x.shape[-1]):
            raise ValueError(f"x: expected shape {f'(B, T, {E})' if self.batch_first else f'(T, B, {E})'} or (T, {E}), got {x.shape}")
        return x

    def _at(self, shape: tuple[int, ...], offset: Any) -> np.ndarray:
        """The positions, integers that broadcast to the shape without its last axis."""
        if len(shape) == 2:
            return _positions(shape[0], offset, ())
        B, T = shape[:2] if self.batch_first else shape[1::-1]
        positions = _positions(T, offset, (B,))
        if self.batch_first:
            return positions
        return positions[:, None] if positions.ndim == 1 else positions.T


def _positions(T: int, offset: Any, batch: tuple[int, ...]) -> np.ndarray:
    """offset + 0, 1, ..., T - 1: (T,), or (B, T) where each row has its own offset."""
    offset = _check.plain("offset", offset)
    if offset.dtype.kind not in "iu":
        raise TypeError(f"offset: expected integers, got {offset.dtype}")
    if offset.shape not in ((), batch):
        raise ValueError(f"offset: expected an integer{f' or shape ({batch[0]},)' if batch else ''}, got shape {offset.shape}")
    if offset.size and offset.min() < 0:
        raise ValueError(f"offset: expected at least 0, got {offset.min()}")
    return offset[..., None] + np.arange(T)


def _angles(positions: np.ndarray, frequencies: int, width: int, base: float) -> np.ndarray:
    """position / base^(2i / width) for i = 0, 1, ..., frequencies - 1: (..., frequencies) float64."""
    return positions[..., None] * base ** (-2.0 * np.arange(frequencies) / width)


def _checked_base(base: Any) -> float:
    if isinstance(base, bool) or not isinstance(base, float | int | np.floating | np.integer):
        raise TypeError(f"base: expected a number, got {type(base).__name__}")
    if not 0 < base < np.inf:
        raise ValueError(f"base: expected a positive number, got {base}")
    return float(base)


class SinusoidalPositionalEncoding(_Positions):
    """x plus sines and cosines of the position (Vaswani et al. 2017), then dropout.

    Element 2i gets sin(t / base^(2i/E)) and element 2i + 1 the cosine of the same. Sequences may be of any length.

    Parameters
    ----------
    d_model : int
        E.
    dropout : float in [0, 1]
    batch_first : bool
        x is (B, T, E) in place of (T, B, E).
    base : float
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator
        What dropout's seed is drawn from.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> encode = fs.nn.SinusoidalPositionalEncoding(4, dtype=np.float64)
    >>> encode(np.zeros((2, 4))).round(3)
    array([[0.   , 1.   , 0.   , 1.   ],
           [0.841, 0.54 , 0.01 , 1.   ]])
    """

    _transient = ("_table",)
    _table: Any = None

    def __init__(
        self, d_model: int, dropout: float = 0.0, batch_first: bool = False, *, base: float = 10000.0, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        self.d_model, self.batch_first = checked_size("d_model", d_model), checked_flag("batch_first", batch_first)
        self.base, self.dtype = _checked_base(base), checked_dtype(dtype)
        self.dropout = Dropout(dropout, rng=rng)

    def forward(self, x: Any, *, offset: Any = 0) -> Any:
        """x + the encoding of positions offset, offset + 1, ...; x (T, B, E), with `batch_first` (B, T, E), or (T, E).

        offset: an integer, or (B,) of them, such as a `KeyValueCache`'s `lengths`.
        """
        x = self._door(x, self.d_model)
        at, data = self._at(x.shape, offset), _check.data(x)
        return self.dropout(functional.add(x, self._rows(int(at.max(initial=0)) + 1, data)[placed(at, data)]))

    def _rows(self, length: int, x: Any) -> Any:
        """The encodings of positions 0, 1, ..., at least `length` of them, where x is; kept for the next call."""
        table = self._table
        if table is None or len(table) < length or type(table) is not type(x):
            E, size = self.d_model, max(length, 2 * (0 if table is None else len(table)))
            angles = _angles(np.arange(size), (E + 1) // 2, E, self.base)
            table = np.empty((size, E), self.dtype)
            table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles[:, : E // 2])
            self._table = table = placed(table, x)
        return table

    def extra_repr(self) -> str:
        """Width, and the options that are not the default."""
        return f"{self.d_model}" + f", base={self.base}" * (self.base != 10000.0) + ", batch_first=True" * self.batch_first


class LearnedPositionalEncoding(_Positions):
    """x plus a learned vector for each position, then dropout.

    The vectors start normal with deviation 0.02, as BERT's and GPT-2's.

    Parameters
    ----------
    max_length : int
        Positions run from 0 to max_length - 1.
    d_model : int
        E.
    dropout : float in [0, 1]
    batch_first : bool
        x is (B, T, E) in place of (T, B, E).
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight : Parameter (max_length, E)

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> encode = fs.nn.LearnedPositionalEncoding(16, 4)
    >>> encode(np.zeros((5, 2, 4), np.float32)).shape
    (5, 2, 4)
    """

    def __init__(
        self, max_length: int, d_model: int, dropout: float = 0.0, batch_first: bool = False, *, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        self.max_length, self.d_model = checked_size("max_length", max_length), checked_size("d_model", d_model)
        self.batch_first, self.dtype, drawn = checked_flag("batch_first", batch_first), checked_dtype(dtype), generator(rng)
        self.weight = Parameter(init.normal(drawn, (self.max_length, self.d_model), self.dtype, 0.02))
        self.dropout = Dropout(dropout, rng=drawn)

    def forward(self, x: Any, *, offset: Any = 0) -> Any:
        """x + the vectors of positions offset, offset + 1, ...; x (T, B, E), with `batch_first` (B, T, E), or (T, E).

        offset: an integer, or (B,) of them, such as a `KeyValueCache`'s `lengths`.
        """
        x = self._door(x, self.d_model)
        at = _inside(self._at(x.shape, offset), self.max_length)
        weight: Any = self.weight if isinstance(x, Tensor) else self.weight.data
        T = x.shape[1 if self.batch_first and len(x.shape) == 3 else 0]
        if at.size == T > 0:  # neighbours in the table: nothing has to be looked up, nor on a GPU looked at
            first = int(at.flat[0])
            rows = weight[first : first + T].reshape((*at.shape, self.d_model))
        else:
            rows = functional.embedding(placed(at, self.weight.data), weight)
        return self.dropout(functional.add(x, rows))

    def extra_repr(self) -> str:
        """Sizes, and the options that are not the default."""
        return f"{self.max_length}, {self.d_model}" + ", batch_first=True" * self.batch_first


class OneHotPositionalEncoding(_Positions):
    """x with max_length elements more, of which that of the position is 1.

    Parameters
    ----------
    max_length : int
        Positions run from 0 to max_length - 1.
    batch_first : bool
        x is (B, T, E) in place of (T, B, E).
    dtype : float32 or float64

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.OneHotPositionalEncoding(3)(np.full((2, 1), 7))
    array([[7., 1., 0., 0.],
           [7., 0., 1., 0.]], dtype=float32)
    """

    def __init__(self, max_length: int, batch_first: bool = False, *, dtype: Any = np.float32) -> None:
        self.max_length = checked_size("max_length", max_length)
        self.batch_first, self.dtype = checked_flag("batch_first", batch_first), checked_dtype(dtype)

    def forward(self, x: Any, *, offset: Any = 0) -> Any:
        """x (T, B, E), with `batch_first` (B, T, E), or (T, E) -> the same with E + max_length.

        offset: an integer, or (B,) of them: where the first element stands.
        """
        x = self._door(x, None)
        at = _inside(self._at(x.shape, offset), self.max_length)
        ones = np.eye(self.max_length, dtype=self.dtype)[np.broadcast_to(at, x.shape[:-1])]
        return functional.concatenate([x, placed(ones, _check.data(x))], axis=-1)

    def extra_repr(self) -> str:
        """The length, and the option that is not the default."""
        return f"{self.max_length}" + ", batch_first=True" * self.batch_first


def _inside(positions: np.ndarray, max_length: int) -> np.ndarray:
    last = int(positions.max(initial=0))
    if last >= max_length:
        raise ValueError(f"x: expected positions below max_length = {max_length}, got one at {last}")
    return positions


class RotaryEmbedding(Module):
    """Queries or keys turned by their positions, so that scores depend on distances (Su et al. 2021).

    Pair i of the D elements is turned by the angle t / base^(2i/D). Give it to a `MultiheadAttention` or a transformer's layer as
    `rotary=`, or call it on the heads of your own attention. Values are not turned.

    Parameters
    ----------
    head_dim : int
        D, even.
    base : float
    interleaved : bool
        Pairs are neighbours, as in the paper; False: i and i + D/2, as GPT-NeoX and Llama have them.
    dtype : float32 or float64

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> rotary = fs.nn.RotaryEmbedding(8)
    >>> q = np.ones((1, 2, 5, 8), np.float32)                 # (B, heads, T, D)
    >>> scores = rotary(q) @ rotary(q).swapaxes(-1, -2)
    >>> np.allclose(scores[..., 0, 1], scores[..., 3, 4], atol=1e-5)
    True
    """

    _transient = ("_tables",)
    _tables: tuple[Any, Any] | None = None

    def __init__(self, head_dim: int, base: float = 10000.0, interleaved: bool = True, *, dtype: Any = np.float32) -> None:
        self.head_dim = checked_size("head_dim", head_dim)
        if self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number, got {head_dim}")
        self.base, self.interleaved, self.dtype = _checked_base(base), checked_flag("interleaved", interleaved), checked_dtype(dtype)

    def forward(self, x: Any, *, offset: Any = 0) -> Any:
        """x (..., T, D) -> the same, each vector turned.

        offset: the first vector's position, or one for each x[b] as (B,).
        """
        x = real_input(x, self.dtype, "x")
        if len(x.shape) < 2 or x.shape[-1] != self.head_dim:
            raise ValueError(f"x: expected shape (..., T, {self.head_dim}), got {x.shape}")
        at = _positions(x.shape[-2], offset, x.shape[:1] if len(x.shape) > 2 else ())
        if at.ndim == 2:
            at = at.reshape((len(at), *(1,) * (len(x.shape) - 3), at.shape[1]))
        data = _check.data(x)
        cos, sin = self._rows(int(at.max(initial=0)) + 1, data)
        at = placed(at, data)
        return functional.rotary_embedding(x, cos[at], sin[at], interleaved=self.interleaved)

    def _rows(self, length: int, x: Any) -> tuple[Any, Any]:
        """Cosines and sines of positions 0, 1, ..., at least `length` of them, where x is; kept for the next call."""
        tables = self._tables
        if tables is None or len(tables[0]) < length or type(tables[0]) is not type(x):
            size = max(length, 2 * (0 if tables is None else len(tables[0])))
            angles = _angles(np.arange(size), self.head_dim // 2, self.head_dim, self.base)
            self._tables = tables = (placed(np.cos(angles).astype(self.dtype), x), placed(np.sin(angles).astype(self.dtype), x))
        return tables

    def extra_repr(self) -> str:
        """The width, and the options that are not the default."""
        return f"{self.head_dim}" + f", base={self.base}" * (self.base != 10000.0) + ", interleaved=False" * (not self.interleaved)
