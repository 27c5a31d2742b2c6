"""What every optimiser shares: parameter groups, gradients, a state that can be saved and taken up again exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastseq.autograd import Tensor
from fastseq.backends import is_gpu, placed, to_cpu
from fastseq.sparse import RowGradient

_FLOATS = (np.float32, np.float64)

#: A parameter's array, its gradient, the rows that this belongs to (None: all), and the state.
_Entry = tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]


class Optimizer:
    """The base of the optimisers.

    A subclass names its per-parameter arrays in `_arrays`, checks its options in `_check` and changes one parameter in
    `_update`; one that takes row-sparse gradients says so in `_refusal`.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        A dict is a group: ``{"params": [...], "lr": ...}`` with options that differ from the others'.
    defaults : dict
        The options of a group that does not say otherwise.

    Attributes
    ----------
    param_groups : list of dict
        Each with ``"params"`` and its options; ``optimizer.param_groups[0]["lr"] = 1e-4`` takes effect at the next step.
    """

    # Names of the arrays that are kept for a parameter, as PyTorch names them, and of what a state has to have.
    _arrays: tuple[str, ...] = ()
    _needed: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError("params: expected an iterable of Parameters, got one; put it into a list")
        if not isinstance(params, Iterable):
            raise TypeError(f"params: expected an iterable of Parameters, got {type(params).__name__}")
        entries = list(params)
        if not entries:
            raise ValueError("params: expected at least one Parameter, got an empty list")
        self.defaults = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self._state: dict[Tensor, dict[str, Any]] = {}
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Train further parameters with options of their own: ``{"params": [...], "lr": ...}``."""
        if not isinstance(group, dict) or "params" not in group:
            came = f"one with {', '.join(map(str, group)) or 'nothing'}" if isinstance(group, dict) else type(group).__name__
            raise TypeError(f'group: expected a dict with "params", got {came}')
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for i, parameter in enumerate(params):
            _check_parameter(parameter, i)
            if id(parameter) in known:
                raise ValueError(f"params[{i}]: expected each Parameter once, got this one twice")
            known.add(id(parameter))
        unknown = set(group) - set(self.defaults) - {"params"}
        if unknown:
            raise TypeError(f"group: {type(self).__name__} has no option {', '.join(sorted(unknown))}")
        options = {**self.defaults, **{k: v for k, v in group.items() if k != "params"}}
        self._check(options)
        self.param_groups.append({"params": params, **options})

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient, in place.

        Raises
        ------
        ValueError, TypeError
            A gradient of another shape or dtype than its parameter, or of a kind that this optimiser does not take, or a parameter
            whose array is read-only; then none has changed.
        """
        work = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        for group, parameters in work:
            for parameter in parameters:
                _check_gradient(parameter)
                reason = self._refusal(isinstance(parameter.grad, RowGradient), group)
                if reason:
                    raise TypeError(f"grad: {reason}")
        for group, parameters in work:
            for parameter in parameters:
                parameter._version += 1
            self._update_all([self._entry(parameter) for parameter in parameters], group)

    def _entry(self, parameter: Tensor) -> _Entry:
        """What an update works on."""
        found: Any = parameter.grad
        rows, gradient = (found.rows, found.values) if isinstance(found, RowGradient) else (None, found)
        data, state = parameter.data, self._state.setdefault(parameter, {})
        if state and self._arrays and type(state.get(self._arrays[0], data)) is not type(data):  # the module has moved and taken its Parameters along
            state.update({name: placed(state[name], data) for name in self._arrays if name in state})
        return data, gradient, rows, state

    def _check(self, options: dict[str, Any]) -> None:
        """Raise ValueError where an option has no meaning."""
        raise NotImplementedError

    def _refusal(self, by_rows: bool, group: dict[str, Any]) -> str:
        """Why gradients by rows, or of whole arrays, cannot be taken with these options; "" where they can."""
        return every_row(type(self).__name__) if by_rows else ""

    def _update_all(self, entries: list[_Entry], group: dict[str, Any]) -> None:
        """`_update` of a group's parameters that have a gradient; in one call, where the backend has one."""
        for entry in entries:
            self._update(*entry, group)

    def _update(
        self, array: np.ndarray, gradient: np.ndarray, rows: np.ndarray | None, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Change `array` and `state` in place by one step; with `rows` the gradient belongs to these rows, the others are zero."""
        raise NotImplementedError

    # ------------------------------------------------------------------ saving and going on

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on besides parameters and gradients.

        Returns
        -------
        dict
            ``{"state": {position: {...}}, "param_groups": [...]}`` in PyTorch's layout, parameters replaced by their
            positions, arrays copied: NumPy's, wherever the parameters are.
        """
        state, groups, position = {}, [], 0
        for group in self.param_groups:
            positions = list(range(position, position + len(group["params"])))
            position += len(positions)
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": positions})
            for i, parameter in zip(positions, group["params"], strict=True):
                kept = self._state.get(parameter)
                if kept:
                    state[i] = {k: v.copy() if isinstance(v, np.ndarray) else to_cpu(v) for k, v in kept.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken: the next steps give the same bits.

        Raises
        ------
        ValueError
            Other numbers of groups or parameters, options out of range, or arrays that are missing or of other shapes. Nothing has changed
            then.
        """
        if not isinstance(state, Mapping) or "state" not in state or "param_groups" not in state:
            raise TypeError('state: expected a mapping with "state" and "param_groups"')
        given, own = state["param_groups"], self.param_groups
        if [len(g["params"]) for g in given] != [len(g["params"]) for g in own]:
            raise ValueError(
                f"param_groups: expected groups of {[len(g['params']) for g in own]} parameters, "
                f"got {[len(g['params']) for g in given]}"
            )
        options = [{k: g.get(k, o[k]) for k in self.defaults} for g, o in zip(given, own, strict=True)]
        for group_options in options:
            self._check(group_options)
        kept = {}
        for g, o in zip(given, own, strict=True):
            for position, parameter in zip(g["params"], o["params"], strict=True):
                if position in state["state"]:
                    kept[parameter] = self._taken(position, state["state"][position], parameter)
        for group, group_options in zip(own, options, strict=True):
            group.update(group_options)
        self._state = kept

    def _taken(self, position: int, entry: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
        """One parameter's state, checked and copied."""
        missing = [name for name in self._needed if entry.get(name) is None]
        if missing:
            raise ValueError(f"state[{position}]: expected {', '.join(self._needed)}, got none of {', '.join(missing)}")
        result: dict[str, Any] = {}
        if "step" in entry:
            result["step"] = int(entry["step"])
        for name in self._arrays:
            if entry.get(name) is None:
                continue
            array = np.asarray(to_cpu(entry[name])).astype(parameter.data.dtype)
            if array.shape != parameter.data.shape:
                raise ValueError(f"state[{position}]: {name}: expected shape {parameter.data.shape}, got {array.shape}")
            result[name] = placed(array, parameter.data)
        return result

    def __repr__(self) -> str:
        groups = [
            "; ".join([f"{len(g['params'])} parameters", *(f"{k}={v}" for k, v in g.items() if k != "params")])
            for g in self.param_groups
        ]
        return f"{type(self).__name__}({' | '.join(groups)})"


def _check_parameter(parameter: Any, i: int) -> None:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"params[{i}]: expected a Parameter, got {type(parameter).__name__}")
    if parameter.data.dtype not in _FLOATS:
        raise TypeError(f"params[{i}]: expected float32 or float64, got {parameter.data.dtype}")


def every_row(who: str) -> str:
    """The refusal of a gradient by rows by what changes all rows at every step."""
    return f"{who} changes every row at every step, got a row-sparse gradient; use Embedding(sparse=False), or SparseAdam"


def _check_gradient(parameter: Tensor) -> None:
    gradient: Any = parameter.grad
    data = parameter.data
    if not isinstance(gradient, (np.ndarray, RowGradient)) and not is_gpu(gradient):
        raise TypeError(f"grad: expected an array, got {type(gradient).__name__}")
    values = gradient.values if isinstance(gradient, RowGradient) else gradient
    if type(values) is not type(data) and is_gpu(values) is not is_gpu(data):
        wanted, came = ("CuPy", "NumPy") if is_gpu(data) else ("NumPy", "CuPy")
        raise TypeError(f"grad: expected a {wanted} array, as the parameter is, got a {came} array")
    if gradient.shape != data.shape or gradient.dtype != data.dtype:
        raise ValueError(
            f"grad: expected {data.dtype} of shape {data.shape}, got {gradient.dtype} of shape {gradient.shape}"
        )
    if not getattr(data.flags, "writeable", True):  # a CuPy array always is
        raise ValueError(f"data: expected an array that can be changed, got a read-only one of shape {data.shape}")


def checked_at_least(name: str, value: float, least: float = 0.0) -> None:
    """Raise unless `value` is a number of at least `least`: TypeError or ValueError."""
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not value >= least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
