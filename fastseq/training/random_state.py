"""Everything that the random numbers of a training come from, as one value that can be saved and put back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fastseq.nn import Module
from fastseq.runtime import generator

#: What a layer with random masks knows of them: Philox is keyed by the seed and the number of the call.
_COUNTERS = ("_seed", "_calls")


def random_state(model: Module, *others: Any) -> dict[str, Any]:
    """The process's generators (fastseq's, NumPy's and Python's), each module's seed and counter of calls, and the generators that
    modules and `others` hold as attributes.
    """
    return {
        "process": generator().bit_generator.state,
        "numpy": np.random.get_state(),  # noqa: NPY002 -- what a user's own code may draw from
        "python": random.getstate(),
        "held": {name: value.bit_generator.state if isinstance(value, np.random.Generator) else value
                 for name, _, value in _held(model, others)},
    }  # fmt: skip


def restore_random_state(state: Mapping[str, Any], model: Module, *others: Any) -> None:
    """Put back what `random_state` took; the next draws are those that came after it."""
    generator().bit_generator.state = state["process"]
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    for name, attributes, value in _held(model, others):
        if name not in state["held"]:
            continue  # it has come since
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = state["held"][name]
        else:
            attributes[name.rpartition(".")[2]] = state["held"][name]


def _held(model: Module, others: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(dotted name, the object's attributes, value) of each seed, counter and generator."""
    owners = [(path, vars(module)) for path, module in model.named_modules()]
    owners += [(f"other {number}", vars(other)) for number, other in enumerate(others) if hasattr(other, "__dict__")]
    for path, attributes in owners:
        for attribute, value in list(attributes.items()):
            if attribute in _COUNTERS or isinstance(value, np.random.Generator):
                yield f"{path}.{attribute}", attributes, value
