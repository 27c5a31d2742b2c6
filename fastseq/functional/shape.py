"""Views and joins: reshape, transpose, swapaxes, indexing, split, concatenate, stack, where."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, Tensor, is_recording, record, result
from fastseq.backends import backend_of, is_gpu, namespace, placed
from fastseq.functional import _check


def reshape(x: ArrayOrTensor, *shape: int | tuple[int, ...]) -> ArrayOrTensor:
    """The elements of x in another shape, in the same order; one size may be -1.

    Parameters
    ----------
    x : ndarray or Tensor
    *shape : int, or one tuple of int

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError
        If the number of elements differs.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.reshape(np.arange(4), 2, -1)
    array([[0, 1],
           [2, 3]])
    """
    values = _check.array("x", x)
    sizes: Any = shape[0] if len(shape) == 1 else shape
    try:
        y = values.reshape(sizes)
    except ValueError:
        raise ValueError(f"shape: expected {values.size} elements, as x of shape {values.shape} has, got {sizes}") from None
    return result(y, (x,), lambda dy: (dy.reshape(values.shape),), "reshape")


def transpose(x: ArrayOrTensor, *axes: int | tuple[int, ...]) -> ArrayOrTensor:
    """Reorder the axes of x as NumPy's transpose does; the reverse order where none is given.

    Parameters
    ----------
    x : ndarray or Tensor
    *axes : int, or one tuple of int
        All of x's axes in their new order. To exchange two of them, use `swapaxes`.

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError
        If `axes` is not an order of x's axes.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.transpose(np.zeros((2, 3, 4)), 2, 0, 1).shape
    (4, 2, 3)
    """
    values = _check.array("x", x)
    order: Any = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
    order = tuple(order) if order else tuple(range(values.ndim))[::-1]
    forward = tuple(_check.axis("axes", k, values.ndim) for k in order)
    if sorted(forward) != list(range(values.ndim)):
        raise ValueError(f"axes: expected an order of {values.ndim} axes, got {order}")
    back = tuple(sorted(range(values.ndim), key=forward.__getitem__))
    return result(values.transpose(forward), (x,), lambda dy: (dy.transpose(back),), "transpose")


def swapaxes(x: ArrayOrTensor, axis1: int, axis2: int) -> ArrayOrTensor:
    """Exchange two axes of x.

    Parameters
    ----------
    x : ndarray or Tensor
    axis1, axis2 : int

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError
        If x has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.swapaxes(np.zeros((2, 3, 4)), 0, 2).shape
    (4, 3, 2)
    """
    values = _check.array("x", x)
    first, second = _check.axis("axis1", axis1, values.ndim), _check.axis("axis2", axis2, values.ndim)
    return result(values.swapaxes(first, second), (x,), lambda dy: (dy.swapaxes(first, second),), "swapaxes")


def _getitem(x: Tensor, index: Any) -> ArrayOrTensor:
    """x[index] with NumPy's rules, and integer or boolean Tensors as indices."""
    values = x.data
    parts = index if isinstance(index, tuple) else (index,)
    plain = tuple(_check.data(part) for part in parts)
    on_gpu = is_gpu(values)
    if on_gpu:
        plain = tuple(placed(_positions(part), values) if isinstance(part, list | np.ndarray) else part for part in plain)
    repeats = any(_is_list(part) for part in plain)

    def backward(dy: Array) -> tuple[Array]:
        if repeats and on_gpu:
            return (_added_up(dy, values, plain),)
        dx = namespace(values).zeros_like(values)
        if repeats:  # an element read twice gets two gradients
            np.add.at(dx, plain, dy)
        else:
            dx[plain] = dy
        return (dx,)

    return result(values[plain], (x,), backward, "indexing")


def _positions(part: Any) -> np.ndarray:
    """A list in an index as an array; an empty one is of integers."""
    found = np.asarray(part)
    return found if found.size else found.astype(np.int64)


def _is_list(part: Any) -> bool:
    """Whether this part of an index is a list of positions, of which some may come twice."""
    if isinstance(part, list):
        part = np.asarray(part)
    return getattr(part, "ndim", 0) > 0 and part.dtype != bool


def _added_up(dy: Array, values: Array, index: tuple[Any, ...]) -> Array:
    """The gradient of values[index] on a GPU, where NumPy's `add.at` is a sum in any order: a table's of one column, in the order of dy."""
    positions = namespace(values).arange(values.size).reshape(values.shape)[index]
    column = dy.reshape(dy.size, 1)
    return backend_of(dy).embedding_backward(column, positions.reshape(-1), values.size, padding_idx=-1).reshape(values.shape)


def _iterate(x: Tensor) -> Iterator[ArrayOrTensor]:
    """The rows of x, one after the other."""
    for k in range(len(x)):
        yield x[k]  # type: ignore[index]


def split(x: ArrayOrTensor, sizes: Sequence[int], axis: int = 0) -> tuple[ArrayOrTensor, ...]:
    """Cut x into parts of these sizes along an axis; each part is a view.

    Parameters
    ----------
    x : ndarray or Tensor
    sizes : sequence of int
        Their sum is x's size on that axis.
    axis : int

    Returns
    -------
    tuple of ndarray or Tensor

    Raises
    ------
    ValueError, TypeError
        If the sizes do not add up, or x has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.split(np.arange(5), [2, 3])
    (array([0, 1]), array([2, 3, 4]))
    """
    values = _check.array("x", x)
    axis = _check.axis("axis", axis, values.ndim)
    whole = values.shape[axis]
    sizes = [_check.integer(f"sizes[{k}]", n, 0, whole + 1) for k, n in enumerate(sizes)]
    if sum(sizes) != whole:
        raise ValueError(f"sizes: expected sizes that add up to {whole}, got {sizes}")
    before, ends = (slice(None),) * axis, list(itertools.accumulate(sizes))
    parts = [values[(*before, slice(end - n, end))] for n, end in zip(sizes, ends, strict=True)]
    if not isinstance(x, Tensor):
        return tuple(parts)
    if not is_recording(x):
        return tuple([Tensor(part) for part in parts])

    def backward(*gradients: Array | None) -> tuple[Array]:
        own = namespace(values)
        known = [own.zeros_like(p) if g is None else g for g, p in zip(gradients, parts, strict=True)]
        return (own.concatenate(known, axis=axis),)

    return record(parts, (x,), backward, "split")


def _joined(name: str, tensors: Sequence[ArrayOrTensor]) -> list[Array]:
    arrays = [_check.array(f"{name}[{k}]", x) for k, x in enumerate(tensors)]
    if not arrays:
        raise ValueError(f"{name}: expected at least one array, got none")
    for k, x in enumerate(arrays):
        _check.like(f"{name}[{k}]", x, arrays[0], f"{name}[0]")
    return arrays


def concatenate(tensors: Sequence[ArrayOrTensor], axis: int = 0) -> ArrayOrTensor:
    """Arrays joined along an axis that they have.

    Parameters
    ----------
    tensors : sequence of ndarray or Tensor
        Of one dtype, their shapes equal but for `axis`.
    axis : int

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError, TypeError
        If there is none, or shapes or dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.concatenate([np.zeros((2, 3)), np.ones((1, 3))]).shape
    (3, 3)
    """
    arrays = _joined("tensors", tensors)
    axis = _check.axis("axis", axis, arrays[0].ndim)
    for k, x in enumerate(arrays):
        _check.shape(f"tensors[{k}]", x, tuple("N" if d == axis else n for d, n in enumerate(arrays[0].shape)))
    ends = list(itertools.accumulate(x.shape[axis] for x in arrays))[:-1]
    own = namespace(arrays[0])
    return result(
        own.concatenate(arrays, axis=axis), tuple(tensors), lambda dy: tuple(own.split(dy, ends, axis=axis)), "concatenate"
    )


def stack(tensors: Sequence[ArrayOrTensor], axis: int = 0) -> ArrayOrTensor:
    """Arrays of one shape joined along a new axis.

    Parameters
    ----------
    tensors : sequence of ndarray or Tensor
        Of one dtype and shape.
    axis : int
        Where the new axis stands in the result.

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError, TypeError
        If there is none, or shapes or dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.stack([np.zeros(3), np.ones(3)], axis=1).shape
    (3, 2)
    """
    arrays = _joined("tensors", tensors)
    axis = _check.axis("axis", axis, arrays[0].ndim + 1)
    for k, x in enumerate(arrays):
        _check.shape(f"tensors[{k}]", x, arrays[0].shape)
    own = namespace(arrays[0])
    return result(own.stack(arrays, axis=axis), tuple(tensors), lambda dy: tuple(own.moveaxis(dy, axis, 0)), "stack")


def where(condition: ArrayOrTensor, a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """Elements of a where the condition holds, of b elsewhere.

    Parameters
    ----------
    condition : ndarray or Tensor of bool
    a, b : ndarray, Tensor or Python number
        Arrays of one dtype; all three broadcast.

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    TypeError, ValueError
        If a dtype is wrong, or the shapes do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.where(np.array([True, False]), np.zeros(2), 1.0)
    array([0., 1.])
    """
    chosen = _check.array("condition", condition)
    if chosen.dtype != bool:
        raise TypeError(f"condition: expected bool, got {chosen.dtype}")
    if _check.is_scalar(a) and _check.is_scalar(b):
        raise TypeError("a, b: expected an array or a Tensor on one side")
    given = _check.array("a", a) if _check.is_scalar(b) else _check.array("b", b)
    own = namespace(given)
    x = own.asarray(a, dtype=given.dtype) if _check.is_scalar(a) else _check.array("a", a)
    y = own.asarray(b, dtype=given.dtype) if _check.is_scalar(b) else _check.like("b", b, x, "a")
    if type(chosen) is not type(x):
        if is_gpu(chosen):
            _check.together("condition", chosen, x, "b" if _check.is_scalar(a) else "a")
        chosen = placed(chosen, x)
    try:
        z = own.where(chosen, x, y)
    except ValueError:
        raise ValueError(f"condition, a, b: shapes do not broadcast, got {chosen.shape}, {x.shape} and {y.shape}") from None
    need_a, need_b = _check.wants(a), _check.wants(b)

    def backward(dz: Array) -> tuple[None, Array | None, Array | None]:
        zero = dz.dtype.type(0)
        return (
            None,
            _check.unbroadcast(own.where(chosen, dz, zero), x.shape) if need_a else None,
            _check.unbroadcast(own.where(chosen, zero, dz), y.shape) if need_b else None,
        )

    return result(z, (condition, a, b), backward, "where")


for _name, _method in (
    ("reshape", reshape),
    ("transpose", transpose),
    ("swapaxes", swapaxes),
    ("T", property(transpose, doc="The Tensor with its axes reversed.")),
    ("__getitem__", _getitem),
    ("__iter__", _iterate),
):
    setattr(Tensor, _name, _method)
