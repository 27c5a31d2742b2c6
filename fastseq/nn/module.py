"""Module and Parameter: a tree of named arrays that can be trained, saved, copied and shown.

A module's parameters, buffers and children are plain attributes: what is found in the instance's ``__dict__``, in the
order of assignment, is what the module has. Reading an attribute therefore costs nothing beyond Python's own look-up.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from fastseq.autograd import Tensor
from fastseq.backends import is_gpu, mover, namespace, placed, to_cpu


class Parameter(Tensor):
    """A Tensor that a module owns and an optimiser changes.

    Parameters
    ----------
    data : ndarray of float32 or float64, any shape
        Taken as it is, without copying.
    requires_grad : bool
        False freezes it.

    Raises
    ------
    TypeError
        If `data` is not an array of float32 or float64.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Parameter(np.zeros((2, 3), np.float32)).requires_grad
    True
    """

    __slots__ = ()

    def __init__(self, data: np.ndarray, requires_grad: bool = True) -> None:
        dtype = getattr(data, "dtype", None)
        if dtype != np.float32 and dtype != np.float64:
            raise TypeError(f"data: expected an array of float32 or float64, got {dtype or type(data).__name__}")
        super().__init__(data, requires_grad=requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        copied = type(self)(namespace(self.data).array(self.data), self.requires_grad)
        memo[id(self)] = copied
        return copied


class LoadReport(NamedTuple):
    """What `Module.load_state_dict` did not find on either side: names, empty lists where all of them agreed."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """The base of every layer and model: parameters, buffers, children, and what can be done with all of them.

    A subclass assigns Parameters and Modules to attributes in ``__init__`` and defines ``forward``. Assigning one
    Parameter twice ties the weights: it is yielded once, updated once and saved once.

    Attributes
    ----------
    training : bool
        True after `train` (and at first), False after `eval`; dropout looks at it.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> class Tagger(fs.nn.Module):
    ...     def __init__(self, words, tags):
    ...         self.embedding = fs.nn.Embedding(words, 8)
    ...         self.head = fs.nn.Linear(8, tags)
    ...     def forward(self, ids):
    ...         return self.head(self.embedding(ids))
    >>> tagger = Tagger(100, 5)
    >>> tagger(np.array([3, 1, 4])).shape
    (3, 5)
    >>> [name for name, _ in tagger.named_parameters()]
    ['embedding.weight', 'head.weight', 'head.bias']
    """

    training: bool = True
    # Attributes that are neither pickled nor copied: what can be made again from the parameters.
    _transient: tuple[str, ...] = ()
    _buffer_names: tuple[str, ...] = ()
    _arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __new__(cls, *args: Any, **kwargs: Any) -> Module:
        """Keep the arguments, from which `configuration` says how to make the module again."""
        self = super().__new__(cls)
        if (args or kwargs) and cls.configuration is Module.configuration:
            self.__dict__["_arguments"] = (args, kwargs)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward` on the same arguments."""
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module computes; every subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __setattr__(self, name: str, value: Any) -> None:
        held = self.__dict__.get(name)
        for kind, advice in ((Parameter, "change its values with .data[...] = ..."), (Module, "assign another module")):
            if isinstance(held, kind) and not (value is None or isinstance(value, kind)):
                raise TypeError(f"{name}: expected a {kind.__name__} or None, got {type(value).__name__}; {advice}")
        if name in self._buffer_names and not _is_array(value):
            raise TypeError(f"{name}: expected an array, for it is a buffer, got {type(value).__name__}")
        self.__dict__[name] = value

    def register_buffer(self, name: str, array: np.ndarray) -> None:
        """Make `array` the attribute `name`: part of the state, moved and saved, but not trained.

        Parameters
        ----------
        name : str
            An attribute name without dots.
        array : ndarray, any shape and real dtype
        """
        if "." in name or not name:
            raise ValueError(f"name: expected an attribute name without dots, got {name!r}")
        if not _is_array(array):
            raise TypeError(f"array: expected an array, got {type(array).__name__}")
        if hasattr(self, name):
            raise ValueError(f"name: {name!r} is an attribute of this {type(self).__name__} already")
        self.__dict__["_buffer_names"] = (*self._buffer_names, name)
        self.__dict__[name] = array

    # ------------------------------------------------------------------ walking the tree

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes of this one, with their names."""
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """The modules that are attributes of this one."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """The module itself, under the name '', and all below it with dotted names, each once."""
        yield from _walk(self, prefix, set())

    def modules(self) -> Iterator[Module]:
        """The module itself and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Every Parameter of the tree, each once, with the first of its dotted names."""
        seen: set[int] = set()
        for name, parameter in self._entries(Parameter, prefix):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Every Parameter of the tree, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """Every buffer of the tree with its dotted name."""
        for path, module in self.named_modules(prefix):
            for name in module._buffer_names:
                yield _join(path, name), module.__dict__[name]

    def buffers(self) -> Iterator[np.ndarray]:
        """Every buffer of the tree."""
        return (buffer for _, buffer in self.named_buffers())

    def _entries(self, kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Attributes of one kind in the whole tree, under all of their names."""
        for path, module in _walk(self, prefix, None):
            for name, value in module.__dict__.items():
                if isinstance(value, kind):
                    yield _join(path, name), value

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, np.ndarray]:
        """A snapshot of every parameter and buffer.

        Returns
        -------
        dict of str to ndarray
            NumPy copies, wherever the module is, under PyTorch's names. A shared Parameter stands under each of its names.
        """
        copies: dict[int, np.ndarray] = {}
        state = {}
        for name, array in self._state_arrays():
            if id(array) not in copies:
                copies[id(array)] = to_cpu(array) if is_gpu(array) else np.array(array)
            state[name] = copies[id(array)]
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadReport:
        """Take parameters and buffers from `state`: all of them, or none where anything is wrong.

        Values are written into the arrays that the module has, so older views and optimisers see them.

        Parameters
        ----------
        state : mapping of str to array
            What `state_dict` gave, or a PyTorch state dict; other real dtypes are converted, and values go where the module is.
            One of the names of a shared Parameter is enough.
        strict : bool
            False passes over names that only one side has.

        Returns
        -------
        LoadReport
            ``missing_keys`` and ``unexpected_keys``.

        Raises
        ------
        ValueError
            Names missing or unexpected (if `strict`), shapes that differ; all of them are named.
        TypeError
            `state` is no mapping, or a value is not an array of real numbers.

        Examples
        --------
        >>> import numpy as np, fastseq as fs
        >>> layer = fs.nn.Linear(2, 1)
        >>> layer.load_state_dict({"weight": np.ones((1, 2)), "bias": np.zeros(1)})
        LoadReport(missing_keys=[], unexpected_keys=[])
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping of names to arrays, got {type(state).__name__}")
        targets = dict(self._state_arrays())
        given = {id(targets[name]) for name in state if name in targets}
        report = LoadReport(
            [name for name in targets if name not in state and id(targets[name]) not in given],
            [name for name in state if name not in targets],
        )
        problems = []
        if strict:
            problems += [f"missing {', '.join(report.missing_keys)}"] if report.missing_keys else []
            problems += [f"unexpected {', '.join(map(str, report.unexpected_keys))}"] if report.unexpected_keys else []
        values = {name: _state_value(name, state[name], targets[name]) for name in state if name in targets}
        problems += _disagreements(values, targets)
        if problems:
            raise ValueError(f"state for {type(self).__name__}: {'; '.join(problems)}")
        for name, value in values.items():
            targets[name][...] = placed(value, targets[name])
        for parameter in self.parameters():
            parameter._version += 1
        return report

    def _state_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every parameter's array and every buffer, under all of their names: parameters before buffers in each module."""
        for path, module in _walk(self, "", None):
            for name, value in module.__dict__.items():
                if isinstance(value, Parameter):
                    yield _join(path, name), value.data
            for name in module._buffer_names:
                yield _join(path, name), module.__dict__[name]

    def save(self, path: Any) -> None:
        """Write the model to one safetensors file, from which `fs.load` builds it again; see `fastseq.load`."""
        from fastseq.nn.serialization import save

        save(self, path)

    def configuration(self) -> dict[str, Any]:
        """The arguments with which this module's class builds it again: those that it was made with.

        `rng` is left out, for the weights come from the file. A class whose arguments cannot be written to a file (numbers,
        strings, lists, dicts, dtypes and modules can) overrides this and `from_configuration`.
        """
        args, kwargs = self._arguments
        bound = inspect.signature(type(self).__init__).bind(self, *args, **kwargs)
        names = list(bound.arguments)[1:]
        result = {}
        for name in names:
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                result.update(bound.arguments[name])
            elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
                raise TypeError(
                    f"{type(self).__name__}: the positional argument {name} of its __init__ cannot be saved by name; "
                    "define configuration() and from_configuration()"
                )
            else:
                result[name] = bound.arguments[name]
        result.pop("rng", None)
        return result

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Module:
        """A new module from what `configuration` gave."""
        return cls(**configuration)

    # ------------------------------------------------------------------ modes

    def train(self, mode: bool = True) -> Module:
        """Set training mode (dropout on) in the whole tree; returns the module."""
        for module in self.modules():
            module.__dict__["training"] = bool(mode)
        return self

    def eval(self) -> Module:
        """Set evaluation mode (dropout off) in the whole tree; returns the module."""
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode within a `with` block; after it every module of the tree is in the mode that it was in before."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.__dict__["training"] = mode

    def zero_grad(self) -> None:
        """Drop the gradients of every parameter."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Say whether the tree's parameters take part in training; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad)
        return self

    def to(self, device: Any) -> Self:
        """Move parameters, their gradients and buffers to a device; returns the module.

        On "cuda" the module takes CuPy arrays, and gives them. The Parameters stay the same objects, so that an optimiser goes on with
        them; its own arrays follow at its next step. State dicts and files are NumPy's wherever the module is. Streams and caches that
        were made before stay where they are.

        Parameters
        ----------
        device : "cpu", "cuda", or CuPy's current device
            To use another of several GPUs, make it CuPy's current one first.

        Raises
        ------
        ValueError
            For another device.
        ImportError, RuntimeError
            If CuPy is not installed, or there is no GPU that it can use. Nothing has moved then, nor where memory runs out on the way.

        Examples
        --------
        >>> import fastseq as fs
        >>> layer = fs.nn.Linear(3, 2)
        >>> layer.to("cpu") is layer
        True
        """
        move = mover(device)
        parameters = list(self.parameters())
        arrays: dict[int, Any] = {}  # by what they are made of, so that what was one array stays one
        for array in (*(p.data for p in parameters), *self.buffers()):
            if id(array) not in arrays:
                arrays[id(array)] = array, move(array)
        grads = [_moved_gradient(p.grad, arrays[id(p.data)][1]) for p in parameters]
        for parameter, grad in zip(parameters, grads, strict=True):
            held, moved = arrays[id(parameter.data)]
            if moved is not held:
                parameter.data, parameter._version = moved, parameter._version + 1
            parameter.grad = grad
        for module in self.modules():
            for name in module._buffer_names:
                module.__dict__[name] = arrays[id(module.__dict__[name])][1]
            for name in module._transient:
                module.__dict__.pop(name, None)
        return self

    # ------------------------------------------------------------------ copies and text

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._transient}

    def extra_repr(self) -> str:
        """What `repr` shows between the brackets of a module without children; layers define it."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return "\n  ".join([f"{type(self).__name__}(", *([extra] if extra else []), *lines]) + "\n)"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _walk(
    module: Module, path: str, seen: set[int] | None, above: tuple[int, ...] = ()
) -> Iterator[tuple[str, Module]]:
    """The tree, parents first. With `seen` each module comes once; without, under each of its names. A child that
    holds one of the modules above it does not lead back up.
    """
    if id(module) in (above if seen is None else seen):
        return
    if seen is not None:
        seen.add(id(module))
    yield path, module
    for name, child in module.named_children():
        yield from _walk(child, _join(path, name), seen, (*above, id(module)))


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray) or is_gpu(x)


def _moved_gradient(grad: Any, data: Any) -> Any:
    """A parameter's gradient where its array is."""
    return grad.placed(data) if hasattr(grad, "placed") else None if grad is None else placed(grad, data)


def _state_value(name: str, value: Any, target: np.ndarray) -> np.ndarray:
    """The numbers in `value` as a NumPy array of the target's dtype."""
    try:
        array = np.asarray(to_cpu(value.data if isinstance(value, Tensor) else value))
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, PyTorch's bfloat16
        raise TypeError(
            f"{name}: expected an array of {target.dtype}, got a {type(value).__name__} that is none ({error})"
        ) from None
    if array.dtype.kind not in ("fiub" if target.dtype.kind == "f" else "iub"):
        raise TypeError(f"{name}: expected an array of numbers that {target.dtype} can hold, got {array.dtype}")
    with np.errstate(all="ignore"):
        return array.astype(target.dtype, copy=False)


def _disagreements(values: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> list[str]:
    """One sentence for each value that cannot be written into its target."""
    problems: list[str] = []
    first: dict[int, str] = {}
    for name, value in values.items():
        target = targets[name]
        other = first.setdefault(id(target), name)
        if value.shape != target.shape:
            problems.append(f"{name}: expected shape {target.shape}, got {value.shape}")
        elif not getattr(target.flags, "writeable", True):  # a CuPy array always is
            problems.append(f"{name}: the module's own array is read-only")
        elif other != name and not np.array_equal(values[other], value, equal_nan=True):
            problems.append(
                f"{other} and {name} are one shared Parameter, but the state holds different values for them"
            )
    return problems
