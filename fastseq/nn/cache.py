"""Keys and values kept from step to step, so that a transformer writes one position at a time."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastseq.backends import is_gpu, namespace, placed
from fastseq.functional import _check
from fastseq.nn._inputs import checked_size
from fastseq.nn.module import Module

#: Where a deepcopy's memo lists the caches that it has copied.
_TWINS = "fastseq.nn.KeyValueCache"


class KeyValueCache:
    """The keys and values of positions that attention has seen, so that each is computed once.

    One object serves a whole model: every `MultiheadAttention` in it finds its own part. Pass it as `cache=` to an attention
    layer, to a `TransformerEncoder` used as a decoder-only stack, or to a `TransformerDecoder`. Self-attention then appends
    what it is given to the cache and looks at everything in it, always causally; attention to another sequence, a decoder's
    memory, computes the memory's keys and values in the first call and does not look at the memory again.

    A cache belongs to the model object that filled it: another one cannot go on from there, not even a copy, but model and cache
    that `copy.deepcopy` or pickle takes together go on as a pair.

    A layer with `add_bias_kv` or `add_zero_attn` takes no cache. Nothing is recorded: decode with arrays, or under `fs.no_grad()`.

    Parameters
    ----------
    max_length : int, optional
        Room for so many positions is taken at once, and more raise. If left out, room grows by doubling.

    Attributes
    ----------
    lengths : ndarray (B,) of int64
        How many positions each row has; empty before the first call.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> layer = fs.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, rng=0)
    >>> model = fs.nn.TransformerEncoder(layer, 2).eval()
    >>> x = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(np.float32)
    >>> cache = fs.nn.KeyValueCache()
    >>> steps = [model(x[:, t : t + 1], cache=cache) for t in range(5)]
    >>> np.allclose(np.concatenate(steps, axis=1), model(x, is_causal=True), atol=1e-5)
    True
    >>> cache.lengths
    array([5])
    """

    def __init__(self, max_length: int | None = None) -> None:
        self.max_length = None if max_length is None else checked_size("max_length", max_length)
        self._own: dict[Any, OwnKeys] = {}  # by the attention module
        self._memory: dict[Any, MemoryKeys] = {}

    @property
    def lengths(self) -> np.ndarray:
        """How many positions each row has: (B,) int64, a copy."""
        for part in self._own.values():
            return part.lengths.copy()
        return np.zeros(0, np.int64)

    def reset(self, rows: Any = None) -> None:
        """Forget every position, and the memory: of all rows, or of those that `rows` picks.

        Parameters
        ----------
        rows : index, slice, sequence of indices or mask (B,), optional
            These rows begin anew; their memory's keys are computed again in the next call, from the memory that it is given.

        Raises
        ------
        IndexError
            If there are no such rows.
        """
        if rows is None:
            self._own.clear()
            self._memory.clear()
            return
        rows = list(rows) if isinstance(rows, tuple) else rows
        parts = self._parts()
        for part in parts:
            _check_rows(rows, part.batch)
        for part in parts:
            part.reset(rows)

    def reorder(self, indices: Any) -> None:
        """Let row r go on from what row indices[r] has seen, as beam search wants it; the batch may grow or shrink.

        Masks that are given with each call, such as `memory_key_padding_mask`, are the caller's to reorder.

        Parameters
        ----------
        indices : integers (new B,)

        Raises
        ------
        IndexError
            If there are no such rows.
        TypeError, ValueError
            If they are not one axis of integers.
        """
        indices = _check.plain("indices", indices)
        if indices.dtype.kind not in "iu":
            raise TypeError(f"indices: expected integers, got {indices.dtype}")
        if indices.ndim != 1:
            raise ValueError(f"indices: expected shape (B,), got {indices.shape}")
        parts = self._parts()
        for part in parts:
            if indices.size and not (0 <= indices.min() and indices.max() < part.batch):
                raise IndexError(f"indices: expected rows from 0 to {part.batch - 1}, got {indices.tolist()}")
        for part in parts:
            part.reorder(indices)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Whatever is raised inside, wrong input or an interrupt between two layers, leaves the cache as it was."""
        lengths = {owner: part.lengths for owner, part in self._own.items()}
        stale = {owner: part.stale.copy() for owner, part in self._memory.items()}
        try:
            yield
        except BaseException:
            self._own = {owner: self._own[owner] for owner in lengths}
            self._memory = {owner: self._memory[owner] for owner in stale}
            for owner, n in lengths.items():
                self._own[owner].lengths = n
            for owner, rows in stale.items():
                self._memory[owner].stale = rows
            raise

    def _parts(self) -> list[OwnKeys | MemoryKeys]:
        return [*self._own.values(), *self._memory.values()]

    def _own_part(self, owner: Any, counts: np.ndarray) -> OwnKeys:
        """The part of a self-attention, of whose rows each has counts[b] new positions; a new part only in the first call."""
        part = self._own.get(owner)
        if part is None:
            for other in self._own.values():
                if not np.array_equal(other.lengths, counts):
                    raise ValueError(
                        "cache: expected the model that filled it, got a layer that it has not seen, "
                        f"with {other.lengths.max(initial=0)} positions in it; cache.reset() begins anew"
                    )
            part = self._own[owner] = OwnKeys(self.max_length)
        return part

    def _memory_part(self, owner: Any) -> MemoryKeys | None:
        """The part of an attention to a memory, once there is one."""
        return self._memory.get(owner)

    def _keep_memory(self, owner: Any, keys: np.ndarray, values: np.ndarray) -> MemoryKeys:
        """Make that part."""
        part = self._memory[owner] = MemoryKeys(keys, values)
        return part

    def __deepcopy__(self, memo: dict[Any, Any]) -> KeyValueCache:
        """Another cache for the same model, or for its copy where one deepcopy takes both."""
        twin = KeyValueCache(self.max_length)
        twin._own = {memo.get(id(owner), owner): copy.deepcopy(part, memo) for owner, part in self._own.items()}
        twin._memory = {memo.get(id(owner), owner): copy.deepcopy(part, memo) for owner, part in self._memory.items()}
        memo.setdefault(_TWINS, []).append(twin)  # for owners that are copied after it
        return twin

    def _follow(self, owner: Any, twin: Any) -> None:
        """Let the parts of one owner be those of its copy."""
        for name in ("_own", "_memory"):
            parts = getattr(self, name)
            if owner in parts:
                setattr(self, name, {twin if o is owner else o: part for o, part in parts.items()})

    def __repr__(self) -> str:
        most = "" if self.max_length is None else f"max_length={self.max_length}, "
        return f"KeyValueCache({most}lengths={self.lengths.tolist()})"


class CachingModule(Module):
    """A module that takes `cache=`; a call that fails leaves the cache as it was."""

    def __deepcopy__(self, memo: dict[Any, Any]) -> CachingModule:
        """A copy, to which caches that were copied by the same deepcopy belong."""
        memo[id(self)] = twin = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        for cache in memo.get(_TWINS, ()):
            cache._follow(self, twin)
        return twin

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward` on the same arguments."""
        cache = kwargs.get("cache")
        if cache is None:
            return self.forward(*args, **kwargs)
        if not isinstance(cache, KeyValueCache):
            raise TypeError(f"cache: expected a KeyValueCache, got {type(cache).__name__}")
        with cache._whole():
            return self.forward(*args, **kwargs)


class OwnKeys:
    """The keys and values of one self-attention: (B, heads, room, D), of which each row has used `lengths`."""

    def __init__(self, max_length: int | None) -> None:
        self.max_length = max_length
        self.lengths = np.zeros(0, np.int64)
        self.keys: Any = None
        self.values: Any = None

    @property
    def batch(self) -> int:
        """B."""
        return len(self.lengths)

    def append(self, k: np.ndarray, v: np.ndarray, counts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take keys and values (B, heads, T, D), of which row b has counts[b], or all; views of what is there now, and the
        rows' lengths before.
        """
        B, _, T, _ = k.shape
        if self.keys is not None and (len(self.keys) != B or self.keys.dtype != k.dtype):
            raise ValueError(
                f"query: expected {len(self.keys)} rows, as the cache has, got {B}; "
                "cache.reset() begins anew, cache.reorder(indices) changes the rows"
            )
        if self.keys is not None and is_gpu(self.keys) is not is_gpu(k):
            raise ValueError("cache: expected the device that it was filled on, got the other one; cache.reset() begins anew")
        before = np.zeros(B, np.int64) if self.keys is None else self.lengths
        after = before + (T if counts is None else counts)
        most = int(after.max(initial=0))
        if self.max_length is not None and most > self.max_length:
            raise ValueError(f"cache: expected at most max_length = {self.max_length} positions, got {most}")
        self._make_room(most, k, v)
        if counts is None and B and (before == before[0]).all():
            self.keys[:, :, before[0] : most], self.values[:, :, before[0] : most] = k, v
        else:
            new = np.arange(T) < (after - before)[:, None]
            row, step = np.nonzero(new)
            row, step, place = (placed(a, k) for a in (row, step, before[row] + step))
            for room, x in ((self.keys, k), (self.values, v)):
                room.swapaxes(1, 2)[row, place] = x.swapaxes(1, 2)[row, step]
        self.lengths = after
        return self.keys[:, :, :most], self.values[:, :, :most], before

    def _make_room(self, length: int, k: np.ndarray, v: np.ndarray) -> None:
        room = 0 if self.keys is None else self.keys.shape[2]
        if self.keys is not None and length <= room:
            return
        size = self.max_length or max(length, 2 * room, 16)
        for name, x in (("keys", k), ("values", v)):
            # Zeros: rows are of unequal lengths, and what is past an end may be multiplied by a weight of zero.
            grown = namespace(x).zeros((*x.shape[:2], size, x.shape[3]), x.dtype)
            if room:
                grown[:, :, :room] = getattr(self, name)
            setattr(self, name, grown)

    def reset(self, rows: Any) -> None:
        """Let these rows be empty; what they held is written over."""
        self.lengths[rows] = 0

    def reorder(self, indices: np.ndarray) -> None:
        """Row r becomes what row indices[r] was."""
        rows = placed(indices, self.keys)
        self.keys, self.values, self.lengths = self.keys[rows], self.values[rows], self.lengths[indices]


class MemoryKeys:
    """The keys and values (B, heads, Tk, D) of a memory; those of `stale` rows are to be computed again."""

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        # Copies: steps read them often, and a head's rows one after the other come faster than views of a joint projection.
        own = namespace(keys)
        self.keys, self.values = own.array(keys, order="C"), own.array(values, order="C")
        self.stale = np.zeros(len(keys), bool)

    @property
    def batch(self) -> int:
        """B."""
        return len(self.keys)

    def renew(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Take the keys and values of the stale rows."""
        rows = placed(self.stale, self.keys)
        self.keys[rows], self.values[rows] = keys, values
        self.stale[...] = False

    def reset(self, rows: Any) -> None:
        """Have these rows computed again."""
        self.stale[rows] = True

    def reorder(self, indices: np.ndarray) -> None:
        """Row r becomes what row indices[r] was."""
        rows = placed(indices, self.keys)
        self.keys, self.values, self.stale = self.keys[rows], self.values[rows], self.stale[indices]


def _check_rows(rows: Any, batch: int) -> None:
    try:
        np.empty(batch, bool)[rows]
    except IndexError as error:
        raise IndexError(f"rows: expected an index, a slice, a sequence or a mask for {batch} rows; {error}") from None
