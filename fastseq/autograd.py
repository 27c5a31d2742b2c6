"""Tensor and the tape: reverse-mode differentiation that knows nodes and gradients, and no operation.

An operation computes its outputs with plain arrays and calls `result` or `record` with a function that turns the
gradients of the outputs into those of the inputs. Each such call becomes a `_Node`; its edges lead to the nodes that made
its inputs, or to leaf Tensors. `Tensor.backward` walks the nodes from the last recorded to the first: whatever uses a
Tensor is recorded after the node that made it, so that order needs no search.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from fastseq.backends import foreign, is_gpu, namespace, to_cpu

Array: TypeAlias = Any  # NumPy's or CuPy's; the tape uses +, copy, base, shape and dtype
ArrayOrTensor: TypeAlias = Any

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_clock = itertools.count()


class _Mode(threading.local):
    recording = True


_mode = _Mode()


class _Node:
    """One recorded call: how gradients pass through it, and where they go."""

    __slots__ = ("backward", "edges", "name", "order", "outputs")

    def __init__(self, name: str, backward: Callable[..., Any], edges: list[tuple[Any, int] | None], outputs: int) -> None:
        self.name = name
        self.backward: Callable[..., Any] | None = backward
        self.edges = edges  # per input: None, (node, which output of it) or (leaf Tensor, its version at forward)
        self.outputs = outputs
        self.order = next(_clock)


class Tensor:
    """An array that remembers how it was computed, so that gradients can flow back through it.

    Operators, indexing and methods such as `reshape`, `sum`, `exp` are defined in `fastseq.functional`. Changing the array
    underneath a recorded Tensor is undefined behaviour.

    Parameters
    ----------
    data : ndarray of NumPy or CuPy
        Taken as it is, without copying; anything else goes through `numpy.asarray`.
    requires_grad : bool
        Whether `backward` leaves a gradient in `.grad` (an array, else None). TypeError unless float32 or float64.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> x = fs.Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.])
    """

    __slots__ = ("__weakref__", "_index", "_node", "_version", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # makes `array + tensor` call Tensor.__radd__

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            raise TypeError("data: expected an array, got a Tensor; pass tensor.data")
        if type(data) is not np.ndarray:
            data = _as_array(data)
        if requires_grad and data.dtype not in _FLOATS:
            raise TypeError(f"requires_grad: only float32 and float64 arrays have gradients, got {data.dtype}")
        self.data: Array = data
        self.grad: Array | None = None
        self.requires_grad = bool(requires_grad)
        self._node: _Node | None = None
        self._index = 0
        self._version = 0  # counted up by whoever changes `data` in place: an optimiser's step

    shape = property(lambda self: self.data.shape, doc="Sizes of the axes.")
    dtype = property(lambda self: self.data.dtype, doc="Type of the elements.")
    ndim = property(lambda self: self.data.ndim, doc="Number of axes.")
    size = property(lambda self: self.data.size, doc="Number of elements.")

    def numpy(self) -> np.ndarray:
        """The array itself, not a copy; what is computed from it is not recorded. TypeError for an array on a GPU, which .data.get() copies."""
        if is_gpu(self.data):
            raise TypeError("a Tensor on a GPU has no NumPy array; .data.get() copies it to this computer's memory")
        return self.data

    def item(self) -> Any:
        """The only element, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """A Tensor of the same array that requires no gradient."""
        return Tensor(self.data)

    def backward(self, grad: Any = None, *, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Adds the gradients of sum(grad * self) to the `.grad` of the leaves that this Tensor was computed from.

        Parameters
        ----------
        grad : ndarray of this Tensor's shape and dtype, optional
            Upstream gradient; may be left out where there is one element.
        retain_graph : bool
            Keeps what was recorded for another call; otherwise it is freed.
        create_graph : bool
            Raises NotImplementedError: there are no second derivatives.

        Raises
        ------
        RuntimeError
            If nothing was recorded, the graph is freed, or an optimiser has changed a parameter since the forward call.
        ValueError, TypeError
            If `grad` is missing or has another shape or dtype. Whatever is raised, no `.grad` has changed.
        """
        if create_graph:
            raise NotImplementedError("create_graph: second derivatives are not offered; a gradient is a plain array")
        if not self.requires_grad:
            raise RuntimeError(
                "backward: this Tensor does not require a gradient, nothing was recorded; wrap the model's inputs in "
                "fs.Tensor(...) and call the model outside fs.no_grad()"
            )
        grad = _upstream(self, grad)
        leaves = {self: grad.copy()} if self._node is None else _propagate(self._node, self._index, grad, retain_graph)
        for leaf, total in leaves.items():
            if leaf.grad is None:
                leaf.grad = total
            else:
                leaf.grad += total

    def __len__(self) -> int:
        return len(self.data)

    def __float__(self) -> float:
        return float(self.data.item())

    def __bool__(self) -> bool:
        return bool(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad and _mode.recording:
            raise TypeError(
                "a Tensor that requires a gradient was used where NumPy wants an array, and the gradient would be lost; "
                "use fastseq.functional, or .data where no gradient is wanted"
            )
        if is_gpu(self.data):
            raise TypeError("a Tensor on a GPU was used where NumPy wants an array; .data.get() copies it to this computer's memory")
        return np.array(self.data, dtype=dtype, copy=copy)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("a Tensor's elements cannot be assigned; use fs.where, or change .data before it is recorded")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._node is not None:
            raise TypeError("a Tensor made by a recorded operation cannot be copied or pickled; use .detach()")
        return type(self), (self.data, self.requires_grad)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"


def _as_array(data: Any) -> Array:
    """What is not an array yet as one, unless something would be lost."""
    if isinstance(data, np.generic):
        return np.asarray(data)
    if is_gpu(data):
        return data
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("data: expected a plain array, got a masked one; fill it first")
    if hasattr(data, "__cuda_array_interface__"):
        raise TypeError(f"data: {foreign(data)}")
    try:
        return np.asarray(data)
    except ValueError:  # rows of unequal lengths, or a tuple of arrays
        raise ValueError(f"data: expected an array, got a {type(data).__name__} that NumPy cannot make one of") from None


def _upstream(tensor: Tensor, grad: Any) -> Array:
    """The gradient that `backward` starts from, checked."""
    if type(grad) is type(tensor.data) and grad.shape == tensor.data.shape and grad.dtype == tensor.data.dtype:
        return grad
    if grad is None:
        if tensor.size != 1:
            raise ValueError(f"grad: a Tensor of shape {tensor.shape} needs an upstream gradient, y.backward(dy)")
        return namespace(tensor.data).ones_like(tensor.data)
    if isinstance(grad, Tensor):
        if grad.requires_grad:
            raise NotImplementedError("grad: second derivatives are not offered; pass grad.data")
        grad = grad.data
    if _shape(grad) != tensor.shape:
        raise ValueError(f"grad: expected shape {tensor.shape}, got {_shape(grad)}")
    if not hasattr(grad, "dtype"):
        return namespace(tensor.data).asarray(grad, dtype=tensor.dtype)
    if is_gpu(grad) is not is_gpu(tensor.data):
        wanted, came = ("CuPy", "NumPy") if is_gpu(tensor.data) else ("NumPy", "CuPy")
        raise TypeError(f"grad: expected a {wanted} array like the Tensor's, got a {came} array")
    if grad.dtype != tensor.dtype:
        raise TypeError(f"grad: expected {tensor.dtype}, got {grad.dtype}")
    return np.asarray(grad) if isinstance(grad, np.generic) else grad


def _shape(x: Any) -> tuple[int, ...]:
    """The shape of an array, or of the one that NumPy would make of x."""
    return x.shape if hasattr(x, "shape") else np.shape(x)


def _reachable(root: _Node) -> list[_Node]:
    """Every node that `root` depends on, the last recorded first, once nothing speaks against a backward pass."""
    found, stack = {root}, [root]
    while stack:
        node = stack.pop()
        if node.backward is None:
            raise RuntimeError("backward: the graph was freed by an earlier backward(); give that call retain_graph=True")
        for edge in node.edges:
            if edge is None:
                continue
            target, number = edge
            if type(target) is not _Node:
                if target._version != number:
                    raise RuntimeError(
                        f"backward: an input of {node.name} was changed in place, by an optimiser's step or the like, "
                        "after the forward call; call the model again"
                    )
            elif target not in found:
                found.add(target)
                stack.append(target)
    return sorted(found, key=operator.attrgetter("order"), reverse=True)


def _propagate(root: _Node, index: int, upstream: Array, retain_graph: bool) -> dict[Tensor, Array]:
    """The total gradient of every leaf that `root` depends on. Nodes are freed on the way, unless they are retained."""
    pending: dict[_Node, list[Array | None]] = {root: [None] * root.outputs}
    pending[root][index] = upstream
    leaves: dict[Tensor, Array] = {}
    for node in _reachable(root):
        grads = pending.pop(node, None)
        backward, edges = node.backward, node.edges
        if not retain_graph:
            node.backward, node.edges = None, []
        if grads is None or backward is None:  # every path to this node ended in None
            continue
        for edge, grad in zip(edges, backward(*grads), strict=True):
            if edge is None or grad is None:
                continue
            target, number = edge
            if type(target) is _Node:
                sums = pending.setdefault(target, [None] * target.outputs)
                # Never in place: the array may be on its way along another edge too.
                total = grad if sums[number] is None else sums[number] + grad
                sums[number] = np.asarray(total) if isinstance(total, np.generic) else total
            elif target in leaves:
                leaves[target] += grad
            else:
                leaves[target] = _own(grad, grads)
    return leaves


def _own(grad: Array, incoming: list[Any]) -> Array:
    """`grad`, copied where somebody else may hold the array."""
    if isinstance(grad, np.generic):
        return np.array(grad)
    if isinstance(grad.base, type(grad)):  # a view; another base is whatever owns the memory
        return grad.copy()
    for other in incoming:
        if grad is other:
            return grad.copy()
    return grad


def is_recording(*inputs: Any) -> bool:
    """Whether an operation on these inputs is to be recorded: one requires a gradient, and gradients are on."""
    if _mode.recording:
        for x in inputs:
            if isinstance(x, Tensor) and x.requires_grad:
                return True
    return False


def record(
    outputs: Sequence[Array], inputs: Sequence[Any], backward: Callable[..., Sequence[Array | None]], name: str
) -> tuple[Tensor, ...]:
    """Puts one call on the tape and returns its outputs as Tensors; only where `is_recording(*inputs)`.

    `backward` gets a gradient per output (None where none came) and returns a gradient or None per input, in `inputs`
    that are Tensors and require one. An array that it returns is fresh and returned once, or a gradient it was given, or a
    view of one. `name` is for messages.
    """
    edges: list[tuple[Any, int] | None] = []
    for x in inputs:
        if not isinstance(x, Tensor) or not x.requires_grad:
            edges.append(None)
        else:
            edges.append((x, x._version) if x._node is None else (x._node, x._index))
    node = _Node(name, backward, edges, len(outputs))
    return tuple([_recorded(data, node, index) for index, data in enumerate(outputs)])


def _recorded(data: Array, node: _Node, index: int) -> Tensor:
    """An output of `node`."""
    tensor = Tensor(data)
    tensor.requires_grad, tensor._node, tensor._index = True, node, index
    return tensor


def result(output: Array, inputs: Sequence[Any], backward: Callable[..., Sequence[Array | None]], name: str) -> ArrayOrTensor:
    """What an operation returns: an array where no input is a Tensor, else a Tensor, recorded where gradients want it."""
    for x in inputs:
        if isinstance(x, Tensor):
            return record((output,), inputs, backward, name)[0] if is_recording(*inputs) else Tensor(output)
    return output


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Switches recording off in this Python thread: `with fs.no_grad():`, or `@fs.no_grad()` above a function."""
    before, _mode.recording = _mode.recording, False
    try:
        yield
    finally:
        _mode.recording = before


class Context:
    """What a `Function` keeps between forward and backward: any attribute, or arrays under PyTorch's two names."""

    saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *arrays: Any) -> None:
        """Keeps `arrays` as `saved_tensors`."""
        self.saved_tensors = arrays


class Function:
    """A user's own operation: static `forward(ctx, *args)` and `backward(ctx, *grads)`, both on plain arrays.

    `apply` runs forward and records its outputs, one array or a tuple. What backward needs is kept as attributes of `ctx`.
    Backward gets a gradient per output (None where none came) and returns a gradient, or None, per argument.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> class Square(fs.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.x = x
    ...         return x * x
    ...     @staticmethod
    ...     def backward(ctx, dy):
    ...         return 2 * ctx.x * dy
    >>> fs.gradcheck(Square.apply, [fs.Tensor(np.array([1.0, 3.0]), requires_grad=True)])
    True
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Runs the operation. A gradient of the wrong shape raises ValueError in the backward pass."""
        context = Context()
        outputs = cls.forward(context, *(x.data if isinstance(x, Tensor) else x for x in args))
        arrays = outputs if isinstance(outputs, tuple) else (outputs,)
        if is_recording(*args):
            arrays = record(arrays, args, functools.partial(cls._checked_backward, context, args), cls.__name__)
        elif any(isinstance(x, Tensor) for x in args):
            arrays = tuple(Tensor(a) for a in arrays)
        return arrays if isinstance(outputs, tuple) else arrays[0]

    @classmethod
    def _checked_backward(cls, context: Any, args: Sequence[Any], *grads: Any) -> list[Array | None]:
        found = cls.backward(context, *grads)
        found = found if isinstance(found, tuple) else (found,)
        if len(found) != len(args):
            raise ValueError(f"{cls.__name__}.backward: expected {len(args)} gradients, one per argument, got {len(found)}")
        for k, (x, grad) in enumerate(zip(args, found, strict=True)):
            if grad is not None and isinstance(x, Tensor) and _shape(grad) != x.shape:
                raise ValueError(f"{cls.__name__}.backward: gradient {k}: expected shape {x.shape}, got {_shape(grad)}")
        # Copies, because a user's backward may return an array that it keeps.
        wanted = zip(args, found, strict=True)
        return [namespace(x.data).array(g, dtype=x.dtype) if isinstance(x, Tensor) and g is not None else None for x, g in wanted]


def gradcheck(
    function: Callable[..., Any], inputs: Sequence[Any], *, eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3
) -> bool:
    """Compares the gradients of `function(*inputs)` with central differences of half-width `eps`.

    Checks those of the float64 Tensors among `inputs` that require a gradient, for one random weighting of the outputs (a
    Tensor or a tuple of them). Returns True; raises AssertionError where a gradient is off by more than
    atol + rtol |difference|, and TypeError for float32, in which differences say nothing.
    """
    checked = {k: x for k, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad}
    for k, x in checked.items():
        if x.dtype != np.float64:
            raise TypeError(f"inputs[{k}]: expected float64, got {x.dtype}")
    if not checked:
        raise ValueError("inputs: none is a Tensor that requires a gradient")
    kept = {k: x.grad for k, x in checked.items()}

    def outputs() -> tuple[Tensor, ...]:
        found = function(*inputs)
        return found if isinstance(found, tuple) else (found,)

    def slope(x: Tensor, index: tuple[int, ...]) -> float:
        sums, before = [], float(x.data[index])
        try:
            for shifted in (before + eps, before - eps):
                x.data[index] = shifted
                with no_grad():
                    sums.append(sum(float((y.data * weight).sum()) for y, weight in zip(outputs(), weights, strict=True)))
        finally:
            x.data[index] = before
        return (sums[0] - sums[1]) / (2 * eps)

    rng = np.random.default_rng(0)
    ys = outputs()
    weights = [namespace(y.data).asarray(rng.standard_normal(y.shape)) for y in ys]
    for x in checked.values():
        x.grad = None
    for y, weight in zip(ys, weights, strict=True):
        if y.requires_grad:
            y.backward(weight, retain_graph=True)
    for k, x in checked.items():
        grad, x.grad = np.asarray(to_cpu(x.grad)) if x.grad is not None else np.zeros(x.shape), kept[k]
        for index in np.ndindex(x.shape):
            difference = slope(x, index)
            if not abs(grad[index] - difference) <= atol + rtol * abs(difference):
                raise AssertionError(f"inputs[{k}] at {index}: gradient {grad[index]:.9g}, differences {difference:.9g}")
    return True
