"""fastseq: recurrent networks and matrix products on the CPU, hand-written in C, under NumPy arrays; and on NVIDIA GPUs, under CuPy's.

Arrays in, arrays out, nothing recorded. A Tensor among the inputs: Tensors out, and what is needed for the gradient recorded. CuPy arrays
are computed on their GPU, by layers that `.to("cuda")` has moved there.

Examples
--------
>>> import numpy as np
>>> import fastseq as fs
>>> lstm = fs.nn.LSTM(4, 8)
>>> y, (h, c) = lstm(np.zeros((10, 2, 4), np.float32))
>>> y.shape
(10, 2, 8)
"""

from fastseq import diagnostics, functional, generation, models, nn, optim, plot, runtime, training
from fastseq.autograd import Function, Tensor, gradcheck, no_grad
from fastseq.functional import concatenate, stack, where
from fastseq.nn.serialization import load
from fastseq.runtime import (
    get_float32_matmul_precision,
    get_num_threads,
    manual_seed,
    set_float32_matmul_precision,
    set_num_threads,
    show_config,
    threads,
)
from fastseq.sparse import RowGradient

__version__ = "0.1.0"

__all__ = [
    "Function",
    "RowGradient",
    "Tensor",
    "__version__",
    "concatenate",
    "diagnostics",
    "functional",
    "generation",
    "get_float32_matmul_precision",
    "get_num_threads",
    "gradcheck",
    "load",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "optim",
    "plot",
    "runtime",
    "set_float32_matmul_precision",
    "set_num_threads",
    "show_config",
    "stack",
    "threads",
    "training",
    "where",
]
