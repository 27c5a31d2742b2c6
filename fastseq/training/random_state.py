"""Everything that the random numbers of a training come from, as one value that can be saved and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastseq.nn import Module
from fastseq.runtime import generator

#: What a layer with random masks knows of them: Philox is keyed by the seed and the number of the call.
_COUNTERS = ("_seed", "_calls")


def random_state(model: Module) -> dict[str, Any]:
    """The process's generators (fastseq's, NumPy's and Python's), and each module's seed, counter of calls and own generators."""
    return {
        "process": generator().bit_generator.state,
        "numpy": np.random.get_state(),  # noqa: NPY002 -- the state that a user's own code may draw from
        "python": random.getstate(),
        "modules": {name: value.bit_generator.state if isinstance(value, np.random.Generator) else value for name, _, _, value in _sources(model)},
    }


def restore_random_state(model: Module, state: Mapping[str, Any]) -> None:
    """Put back what `random_state` took; the next draws are those that came after it."""
    generator().bit_generator.state = state["process"]
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    for name, module, attribute, value in _sources(model):
        if name in state["modules"]:
            if isinstance(value, np.random.Generator):
                value.bit_generator.state = state["modules"][name]
            else:
                module.__dict__[attribute] = state["modules"][name]


def _sources(model: Module) -> Iterator[tuple[str, Module, str, Any]]:
    """(dotted name, module, attribute, value) of each seed, counter and generator in the tree."""
    for path, module in model.named_modules():
        for attribute, value in list(module.__dict__.items()):
            if attribute in _COUNTERS or isinstance(value, np.random.Generator):
                yield f"{path}.{attribute}", module, attribute, value
