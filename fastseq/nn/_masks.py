"""From the modules' masks, where True is blocked, to what the functions take: True = may attend, lengths, and a causal flag."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import is_gpu, namespace, placed
from fastseq.nn._inputs import plain_array, real_input
from fastseq.nn.masks import causal_mask


class Visible(NamedTuple):
    """Which keys a query sees, as `functional.scaled_dot_product_attention` wants to know it."""

    attn_mask: Any = None
    key_lengths: np.ndarray | None = None
    is_causal: bool = False


_ALL = Visible()
_CAUSAL = Visible(is_causal=True)


def _is_causal(mask: Any, shape: tuple[int, int]) -> bool:
    """Whether the mask, of this shape, blocks the keys after the query and does nothing else: a flag then says it, and lets
    the kernels skip what is hidden. A mask that wants a gradient stays one.
    """
    if isinstance(mask, Tensor):
        if mask.requires_grad:
            return False
        mask = mask.data
    # To look into a mask on a GPU would wait for it: there it stays a mask.
    if not isinstance(mask, np.ndarray) or mask.shape != shape or shape[0] != shape[1] or shape[0] < 2:
        return False
    T = shape[0]
    if mask.dtype == bool:
        return bool(mask[0, 1]) and np.array_equal(mask, causal_mask(T))
    # As many numbers that are not 0 as there are blocked keys, and each of these is -inf: the others are 0.
    hidden = mask[0, 1] == -np.inf and np.count_nonzero(mask) == T * (T - 1) // 2
    return bool(hidden) and np.array_equal(mask == -np.inf, causal_mask(T))


def visible(
    attn_mask: Any, key_padding_mask: Any, is_causal: bool, sizes: tuple[int, int, int, int], dtype: np.dtype, added: int = 0
) -> Visible:
    """The masks of a module's call, checked and merged.

    sizes: B, heads, Tq, Tk. added: so many keys follow the Tk, of which every query sees all.
    """
    if attn_mask is None and key_padding_mask is None and not (added and is_causal):
        return _CAUSAL if is_causal else _ALL
    B, _heads, Tq, Tk = sizes
    masks = []
    if attn_mask is not None and _is_causal(attn_mask, (Tq, Tk)):
        is_causal = True
    elif attn_mask is not None:
        masks.append(_attention_mask(attn_mask, sizes, dtype))
    lengths = None
    if key_padding_mask is not None:
        padding = _checked(key_padding_mask, "key_padding_mask", dtype)
        if padding.shape != (B, Tk):
            raise ValueError(f"key_padding_mask: expected shape ({B}, {Tk}), got {padding.shape}")
        if padding.dtype == bool and not added and not is_gpu(_plain(padding)):
            lengths = row_lengths(_plain(padding))
        if lengths is None:
            masks.append(padding.reshape((B, 1, 1, Tk)))
    if added:
        if is_causal:
            masks.append(~np.tri(Tq, Tk, dtype=bool))
            is_causal = False
        masks = [_followed(mask, added) for mask in masks]
    return Visible(merged(masks, dtype), lengths, bool(is_causal))


def merged(masks: list[Any], dtype: np.dtype) -> Any:
    """One mask in the functions' polarity from several in the modules'; None from none."""
    if not masks:
        return None
    first_on_gpu = next((_plain(mask) for mask in masks if is_gpu(_plain(mask))), None)
    if first_on_gpu is not None:
        masks = [mask if isinstance(mask, Tensor) else placed(mask, first_on_gpu) for mask in masks]
    blocked = None
    for mask in masks:
        if mask.dtype == bool:
            blocked = _plain(mask) if blocked is None else blocked | _plain(mask)
    added = [mask for mask in masks if mask.dtype != bool]
    if not added:
        return ~blocked  # type: ignore[operator]
    if blocked is not None:
        added.append(namespace(blocked).where(blocked, dtype.type(-np.inf), dtype.type(0)))
    total = added[0]
    for mask in added[1:]:
        total = functional.add(total, mask)
    return total


def row_lengths(padding: np.ndarray) -> np.ndarray | None:
    """The lengths of rows that are blocked past their ends and nowhere else; None for any other mask."""
    T = padding.shape[1]
    lengths = T - np.count_nonzero(padding, axis=1)
    return lengths if np.array_equal(padding, np.arange(T) >= lengths[:, None]) else None


def _attention_mask(attn_mask: Any, sizes: tuple[int, int, int, int], dtype: np.dtype) -> Any:
    """(Tq, Tk), or (B heads, Tq, Tk) as (B, heads, Tq, Tk)."""
    B, heads, Tq, Tk = sizes
    mask = _checked(attn_mask, "attn_mask", dtype)
    if mask.shape == (Tq, Tk):
        return mask
    if mask.shape != (B * heads, Tq, Tk):
        raise ValueError(f"attn_mask: expected shape ({Tq}, {Tk}) or ({B * heads}, {Tq}, {Tk}), got {mask.shape}")
    return mask.reshape((B, heads, Tq, Tk))


def _checked(mask: Any, name: str, dtype: np.dtype) -> Any:
    """A mask of bool, or of the layer's dtype; PyTorch's CPU tensors too."""
    if not isinstance(mask, Tensor):
        mask = plain_array(mask, name)
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind != "f":
        raise TypeError(f"{name}: expected bool (True = blocked) or floats (added to the scores), got {mask.dtype}")
    return real_input(mask, dtype, name)


def _followed(mask: Any, added: int) -> Any:
    """The mask with as many columns more, in which nothing is blocked."""
    return functional.concatenate([mask, namespace(_plain(mask)).zeros((*mask.shape[:-1], added), mask.dtype)], axis=-1)


def _plain(mask: Any) -> np.ndarray:
    return mask.data if isinstance(mask, Tensor) else mask
