"""Sequential, Residual, ModuleList and ModuleDict: modules that hold others under numbers or names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastseq.nn._inputs import real_input
from fastseq.nn.module import Module


def _checked(module: Any, name: str) -> Module:
    if not isinstance(module, Module):
        raise TypeError(f"{name}: expected a Module, got {type(module).__name__}")
    return module


class ModuleList(Module):
    """A list of modules, named by their positions.

    Parameters
    ----------
    modules : iterable of Module

    Examples
    --------
    >>> import fastseq as fs
    >>> layers = fs.nn.ModuleList([fs.nn.Linear(3, 3) for _ in range(2)])
    >>> layers.append(fs.nn.Linear(3, 1))
    ModuleList(
      (0): Linear(in_features=3, out_features=3, bias=True)
      (1): Linear(in_features=3, out_features=3, bias=True)
      (2): Linear(in_features=3, out_features=1, bias=True)
    )
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._items = [_checked(module, f"modules[{i}]") for i, module in enumerate(modules)]

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules held, then those that are attributes."""
        yield from ((str(i), module) for i, module in enumerate(self._items))
        yield from super().named_children()

    def append(self, module: Module) -> ModuleList:
        """Add a module at the end; returns the list."""
        self._items.append(_checked(module, "module"))
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add several modules at the end; returns the list."""
        for module in [_checked(module, f"modules[{i}]") for i, module in enumerate(modules)]:
            self._items.append(module)
        return self

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items)

    def __getitem__(self, index: int | slice) -> Any:
        return (
            type(self).from_configuration({"modules": self._items[index]})
            if isinstance(index, slice)
            else self._items[index]
        )

    def __setitem__(self, index: int, module: Module) -> None:
        self._items[index] = _checked(module, f"modules[{index}]")

    def configuration(self) -> dict[str, Any]:
        """The modules held now."""
        return {"modules": list(self._items)}

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Module:
        """A new container of the same modules."""
        return cls(configuration["modules"])


class Sequential(ModuleList):
    """Modules called one after the other, each on the result of the one before.

    Parameters
    ----------
    *modules : Module

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> net = fs.nn.Sequential(fs.nn.Linear(4, 8), fs.nn.Tanh(), fs.nn.Linear(8, 2))
    >>> net(np.ones((5, 4), np.float32)).shape
    (5, 2)
    >>> list(net.state_dict())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        """The result of all modules in turn, the first called with x."""
        for module in self._items:
            x = module(x)
        return x

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Module:
        """A new container of the same modules."""
        return cls(*configuration["modules"])


class Residual(Sequential):
    """x + F(x), F being the modules called one after the other: a residual block (He et al. 2015).

    Parameters
    ----------
    *modules : Module
        The last one's result has the shape of x.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> block = fs.nn.Residual(fs.nn.LayerNorm(4), fs.nn.Linear(4, 4), fs.nn.ReLU())
    >>> block(np.ones((5, 4), np.float32)).shape
    (5, 4)
    """

    def forward(self, x: Any) -> Any:
        """The sum of x and what the modules make of it."""
        y = super().forward(x)
        x = real_input(x, y.dtype, "x")
        if y.shape != x.shape:
            raise ValueError(f"x: expected the shape that the modules return, {y.shape}, got {x.shape}")
        return x + y


class ModuleDict(Module):
    """Modules under names.

    Parameters
    ----------
    modules : mapping of str to Module

    Examples
    --------
    >>> import fastseq as fs
    >>> heads = fs.nn.ModuleDict({"tag": fs.nn.Linear(8, 5), "slot": fs.nn.Linear(8, 3)})
    >>> list(heads.state_dict())
    ['tag.weight', 'tag.bias', 'slot.weight', 'slot.bias']
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        self._items: dict[str, Module] = {}
        for name, module in (modules or {}).items():
            self[name] = module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules held, then those that are attributes."""
        yield from self._items.items()
        yield from super().named_children()

    def __setitem__(self, name: str, module: Module) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"name: expected a string without dots, got {name!r}")
        self._items[name] = _checked(module, name)

    def __getitem__(self, name: str) -> Module:
        return self._items[name]

    def __delitem__(self, name: str) -> None:
        del self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._items.keys()

    def values(self) -> Iterable[Module]:
        """The modules."""
        return self._items.values()

    def items(self) -> Iterable[tuple[str, Module]]:
        """Names and modules."""
        return self._items.items()

    def configuration(self) -> dict[str, Any]:
        """The modules held now."""
        return {"modules": dict(self._items)}

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Module:
        """A new container of the same modules."""
        return cls(configuration["modules"])
