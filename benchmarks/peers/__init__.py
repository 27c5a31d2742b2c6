"""fastseq and what a user would pick instead, each as callables that solve the same problems.

One class for each library, imported when it is made; a method for each task that the library can do takes the problem and gives a
`Call`. All run in this process with the same number of threads. Nothing but the call itself is timed: data is in the library's own
type, models are built and compiled, weights that stay the same are prepared.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

from benchmarks.peers.with_fastseq import FastSeq
from benchmarks.peers.with_jax import JAX
from benchmarks.peers.with_numpy import NumPy
from benchmarks.peers.with_onnx import ONNXRuntime, OpenVINO
from benchmarks.peers.with_torch import PyTorch
from benchmarks.problems import Problem

IMPLEMENTATIONS: dict[str, Any] = {"fastseq": FastSeq, "numpy": NumPy, "torch": PyTorch, "onnxruntime": ONNXRuntime, "openvino": OpenVINO, "jax": JAX}


def installed() -> list[str]:
    """The names of those that can be imported."""
    return [name for name, kind in IMPLEMENTATIONS.items()
            if all(importlib.util.find_spec(module) for module in (kind.module, *getattr(kind, "needs", ())))]


def version(name: str) -> str:
    """The installed version of an implementation."""
    try:
        return importlib.metadata.version(IMPLEMENTATIONS[name].distribution)
    except importlib.metadata.PackageNotFoundError:  # the tree itself, not installed
        return str(getattr(importlib.import_module(IMPLEMENTATIONS[name].module), "__version__", "unknown"))


def can(name: str, problem: Problem) -> bool:
    """Whether the implementation has the problem's task."""
    return hasattr(IMPLEMENTATIONS[name], problem.task)
