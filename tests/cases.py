"""One table of cases, which drives the tests of values, of gradients and the benchmarks' counts of work.

A case names a differentiable operation of `fastseq.functional`, the shapes of its arrays, its options, how much work it is and
how long its sums are. Sizes stand around the vector widths (1, 15, 16, 17; a lane less and more; 2 * 32 + 3), with empty
batches and sequences among them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

import fastseq as fs
from fastseq import functional

#: Lanes and tiles of all instruction sets and both dtypes lie among these: 2, 4, 8 and 16 lanes, tiles of up to 32.
WIDTHS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 67)

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Case:
    """One call of functional.<op>(**inputs, **options)."""

    op: str
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    ids: Mapping[str, int] = field(default_factory=lambda: _NONE)  # integer inputs: drawn below this limit
    positive: bool = False  # inputs above zero only
    flops: int = 0  # of forward, a multiply-add counted as two; a function of an element as one
    terms: int = 1  # of the longest sum in a result or gradient
    outputs: int | None = None  # only so many: the others have no gradient

    def __str__(self) -> str:
        shapes = ",".join(f"{name}{'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        return "-".join([self.op, shapes, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def differentiable(self) -> tuple[str, ...]:
        """Names of the inputs that have a gradient."""
        return tuple(name for name in self.shapes if name not in self.ids)

    def inputs(self, rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
        """Random arrays, read-only because no operation may change them."""
        arrays = {}
        for name, shape in self.shapes.items():
            if name in self.ids:
                array = np.array(rng.integers(0, self.ids[name], shape))
                if "ignore_index" in self.options:
                    array[rng.random(shape) < 0.3] = self.options["ignore_index"]
            else:
                # Weights of a recurrent layer are small, as they are in use: sums of H terms stay of the size of one.
                spread = 1 / np.sqrt(max(shape[-1], 1)) if name.startswith("w_") else 1.0
                normal = spread * rng.standard_normal(shape)
                array = np.array(np.abs(normal) + 0.1 if self.positive else normal, dtype=dtype)
            array.flags.writeable = False
            arrays[name] = array
        return arrays

    def call(self, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The outputs, always as a tuple."""
        outputs = getattr(functional, self.op)(**inputs, **self.options)
        return outputs[: self.outputs] if isinstance(outputs, tuple) else (outputs,)

    def evaluate(self, inputs: Mapping[str, np.ndarray], upstream: Any) -> dict[str, np.ndarray]:
        """Every output, and with `upstream` every gradient under random gradients of all outputs at once."""
        arguments = {name: fs.Tensor(a, requires_grad=name not in self.ids) for name, a in inputs.items()}
        outputs = self.call(arguments if upstream is not None else inputs)
        results = {f"output {k}": y.data if upstream is not None else np.asarray(y) for k, y in enumerate(outputs)}
        if upstream is None:
            return results
        loss = None
        for y in outputs:
            weighted = (y * upstream.standard_normal(y.shape).astype(y.dtype)).sum()
            loss = weighted if loss is None else loss + weighted
        loss.backward()
        return results | {f"d{name}": np.asarray(arguments[name].grad) for name in self.differentiable}


class Rounded:
    """A generator for the reference whose numbers are those that kernels of this dtype were given."""

    def __init__(self, seed: int, dtype: Any) -> None:
        self._rng, self._dtype = np.random.default_rng(seed), dtype

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Normal numbers, rounded."""
        return np.asarray(self._rng.standard_normal(shape)).astype(self._dtype).astype(np.float64)


@contextlib.contextmanager
def computed_by(backend: Any) -> Iterator[None]:
    """Makes `fastseq.functional` use this backend, whatever the arrays: the library itself has no such switch."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(("fastseq.functional.", "fastseq.sparse")) and hasattr(m, "backend_of")]
    before = [m.backend_of for m in modules]
    try:
        for m in modules:
            m.backend_of = lambda *arrays: backend
        yield
    finally:
        for m, original in zip(modules, before, strict=True):
            m.backend_of = original


def reference_results(case: Case, inputs: Mapping[str, np.ndarray], upstream: Any) -> dict[str, np.ndarray]:
    """`case.evaluate` by the reference backend in float64."""
    from fastseq.backends import reference

    wide = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in inputs.items()}
    with computed_by(reference):
        return case.evaluate(wide, upstream)


# ---------------------------------------------------------------- the table


def _pointwise() -> Iterator[Case]:
    for op in ("exp", "log", "tanh", "sigmoid", "relu", "erf", "gelu"):
        for shape in [(), (0,), (2, 0, 3), *((n,) for n in WIDTHS), (3, 5, 7)]:
            yield Case(op, {"x": shape}, positive=op == "log", flops=prod(shape))
    for op, options in (
        ("gelu", {"approximate": "tanh"}), ("silu", {}), ("softplus", {}), ("elu", {}), ("elu", {"alpha": 0.3}), ("leaky_relu", {}),
        ("leaky_relu", {"negative_slope": -0.5}),
    ):  # fmt: skip
        for shape in [(), (0,), *((n,) for n in WIDTHS)]:
            yield Case(op, {"x": shape}, options, flops=prod(shape))


def _softmax() -> Iterator[Case]:
    for op in ("softmax", "log_softmax"):
        for shape in [(0, 5), (3, 0), *((3, n) for n in WIDTHS), (2, 3, 17), (5,)]:
            yield Case(op, {"x": shape}, flops=4 * prod(shape), terms=shape[-1])
        yield Case(op, {"x": (4, 3, 17)}, {"axis": 0}, flops=4 * 204, terms=4)
        yield Case(op, {"x": (4, 3, 17)}, {"axis": -2}, flops=4 * 204, terms=3)


def _cross_entropy() -> Iterator[Case]:
    def case(rows: int, vocabulary: int, **options: Any) -> Case:
        shapes = {"logits": (rows, vocabulary), "targets": (rows,)}
        return Case("cross_entropy", shapes, options, {"targets": vocabulary}, flops=4 * rows * vocabulary, terms=rows + vocabulary)

    for vocabulary in WIDTHS:
        yield case(3, vocabulary)
        yield case(7, vocabulary, label_smoothing=0.1, ignore_index=-100, reduction="sum")
    yield case(7, 17, reduction="none")
    yield case(7, 17, reduction="none", ignore_index=2, label_smoothing=0.3)
    yield case(7, 17, ignore_index=-1)
    yield case(5, 5, label_smoothing=1.0)
    yield case(0, 5, reduction="sum")
    yield case(0, 5, reduction="none")


def _losses() -> Iterator[Case]:
    for op, options in (("mse_loss", {}), ("l1_loss", {}), ("huber_loss", {"delta": 0.7}), ("binary_cross_entropy_with_logits", {"pos_weight": 3.0})):
        for shape in [(), (17,), (3, 5)]:
            for reduction in ("mean", "sum", "none"):
                yield Case(op, {"input": shape, "target": shape}, options | {"reduction": reduction}, terms=prod(shape))
    yield Case("binary_cross_entropy_with_logits", {"input": (4, 3), "target": (4, 3)}, terms=12)
    for shape in [(17,), (3, 5)]:
        yield Case("rmse_loss", {"input": shape, "target": shape}, terms=2 * prod(shape))
    for reduction in ("mean", "sum", "none"):
        yield Case("negative_sampling_loss", {"positive": (5,), "negative": (5, 3)}, {"reduction": reduction}, terms=20)
        yield Case("negative_sampling_loss", {"positive": (2, 3), "negative": (2, 3, 17)}, {"count": 5, "reduction": reduction}, terms=102)


def layer_norm_case(rows: tuple[int, ...], width: int, given: str = "weight bias", **options: Any) -> Case:
    """Layer norm; `given` names the arrays beside x."""
    shapes = {"x": (*rows, width)} | {name: (*rows, width) if name == "residual" else (width,) for name in given.split()}
    return Case("layer_norm", shapes, options, flops=8 * prod(rows) * width, terms=4 * width + prod(rows))


def _layer_norm() -> Iterator[Case]:
    for width in WIDTHS[1:]:  # of one or two numbers little is left but their signs
        yield layer_norm_case((3,), width)
        yield layer_norm_case((2, 3), width, "weight bias residual", eps=1e-3)
        shapes = {"x": (3, width), "weight": (width,)}
        yield Case("rms_norm", shapes, flops=4 * 3 * width, terms=4 * width + 3)
    for given in ("", "weight", "bias", "residual", "weight residual", "bias residual"):
        yield layer_norm_case((3,), 17, given)
    yield layer_norm_case((), 5, "weight bias residual")
    for rows, width in (((0,), 5), ((3,), 0), ((2, 0, 3), 4)):
        yield layer_norm_case(rows, width, "weight bias residual")
    yield layer_norm_case((67,), 9, "weight bias residual")
    yield Case("rms_norm", {"x": (2, 3, 17)}, {"eps": 0.1}, terms=4 * 17)


def _linear_cross_entropy() -> Iterator[Case]:
    def case(rows: int, inputs: int, vocabulary: int, bias: bool = True, **options: Any) -> Case:
        shapes = {"x": (rows, inputs), "weight": (vocabulary, inputs), "bias": (vocabulary,), "targets": (rows,)}
        options |= {} if bias else {"bias": None}
        shapes = {name: shape for name, shape in shapes.items() if bias or name != "bias"}
        terms = 4 * (rows + inputs + vocabulary)
        return Case("linear_cross_entropy", shapes, options, {"targets": vocabulary}, flops=2 * rows * inputs * vocabulary, terms=terms)

    for width in WIDTHS:
        yield case(3, 5, width)
        yield case(7, width, 9, label_smoothing=0.1, ignore_index=-100, reduction="sum")
        yield case(width, 3, 6, bias=False)
    yield case(7, 9, 17, reduction="none", ignore_index=2, label_smoothing=0.3)
    yield case(0, 5, 4, reduction="sum")
    yield case(0, 5, 4, reduction="none", bias=False)
    yield case(3, 0, 5)
    yield case(203, 9, 17)


def _embedding() -> Iterator[Case]:
    def case(ids: tuple[int, ...], rows: int, width: int, **options: Any) -> Case:
        return Case("embedding", {"ids": ids, "weight": (rows, width)}, options, {"ids": rows}, terms=max(prod(ids), 1))

    for width in WIDTHS:
        yield case((5,), 3, width)
    yield case((4, 3), 7, 17, padding_idx=0)
    yield case((4, 3), 7, 17, padding_idx=6)
    yield case((), 3, 4)
    yield case((0, 3), 5, 4)
    yield case((3,), 5, 0)
    yield case((50,), 1, 3)
    for ids, rows, width in (((), 3, 4), ((0, 3), 5, 4), ((3,), 5, 0), ((5,), 3, 17), ((40, 3), 300, 33)):
        yield case(ids, rows, width, sparse=True)
    yield case((4, 3), 7, 17, padding_idx=6, sparse=True)
    yield case((4, 3), 1, 17, padding_idx=0, sparse=True)


def conv_case(x: tuple[int, ...], outputs: int, kernel: tuple[int, ...], *, bias: bool = True, groups: int = 1, **options: Any) -> Case:
    """Convolution of x (N, C, L) or (N, C, H, W)."""
    shapes = {"x": x, "weight": (outputs, x[1] // groups, *kernel)} | ({"bias": (outputs,)} if bias else {})
    options |= {"groups": groups} if groups > 1 else {}
    taps, places = prod(shapes["weight"]), x[0] * prod(x[2:])
    return Case(f"conv{len(kernel)}d", shapes, options, flops=2 * taps * places, terms=taps + places)


def _conv() -> Iterator[Case]:
    for width in WIDTHS:
        yield conv_case((2, 3, width), 4, (min(width, 3),))
        yield conv_case((2, 2, width), 3, (3,), causal=True, dilation=2, bias=False)
        yield conv_case((2, width, 5), 3, (2,), padding=1)
        yield conv_case((2, 2, 5), width, (2,), stride=2)
    yield conv_case((3, 2, 20), 4, (3,), stride=3, padding=2, dilation=2)
    yield conv_case((3, 2, 20), 4, (4,), padding="same")
    yield conv_case((2, 6, 9), 4, (3,), groups=2, causal=True)
    yield conv_case((2, 4, 9), 8, (2,), groups=4, padding="same")
    yield conv_case((1, 180, 40), 5, (3,))  # more than 512 taps
    yield conv_case((2, 2, 13000), 2, (3,), padding=1)  # pieces within a sample
    yield conv_case((0, 2, 9), 3, (3,))
    for size in ((3, 3), (5, 9), (8, 8), (4, 17)):
        yield conv_case((3, 2, *size), 4, (3, 3), padding=1)
        yield conv_case((2, 3, *size), 2, (2, 3), bias=False)
    yield conv_case((2, 3, 9, 10), 4, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(2, 1))
    yield conv_case((2, 4, 6, 7), 6, (3, 3), groups=2, padding="same", dilation=2)
    yield conv_case((2, 3, 7, 5), 4, (1, 1), stride=2)
    yield conv_case((40, 1, 8, 8), 6, (5, 5), padding=2)
    yield conv_case((0, 2, 5, 5), 3, (3, 3))


def _max_pool() -> Iterator[Case]:
    def case(x: tuple[int, ...], kernel: Any, **options: Any) -> Case:
        return Case("max_pool2d", {"x": x}, {"kernel_size": kernel} | options, flops=prod(x), terms=4)

    for width in WIDTHS[1:]:
        yield case((2, 3, 2, width), 2)
    yield case((2, 3, 8, 8), 2)
    yield case((2, 2, 7, 9), (3, 2), stride=(2, 1), padding=1)
    yield case((2, 2, 9, 9), 2, stride=2, dilation=2)
    yield case((2, 2, 7, 8), 3, stride=2, ceil_mode=True, padding=1)
    yield case((0, 2, 4, 4), 2)


def _batch_norm() -> Iterator[Case]:
    def case(x: tuple[int, ...], given: str = "weight bias", **options: Any) -> Case:
        shapes = {"x": x} | dict.fromkeys(given.split(), x[1:2])
        return Case("batch_norm", shapes, options, flops=8 * prod(x), terms=8 * prod(x) // max(x[1], 1) + 8, outputs=1)

    for width in WIDTHS:
        yield case((7, width))
        yield case((3, 2, width) if width > 1 else (5, 2, width))
    for given in ("", "weight", "bias"):
        yield case((5, 3), given)
        yield case((5, 3, 4), given)
    yield case((67, 3), eps=0.1)
    yield case((3, 0))
    yield case((3, 0, 4))


def _linear() -> Iterator[Case]:
    def case(rows: tuple[int, ...], inputs: int, outputs: int, bias: bool = True, **options: Any) -> Case:
        shapes = {"x": (*rows, inputs), "weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {})
        return Case("linear", shapes, options, flops=2 * prod(rows) * inputs * outputs, terms=max(inputs, outputs, prod(rows)))

    for width in WIDTHS:
        yield case((3,), 5, width)
        yield case((width,), 7, 6, bias=False)
        yield case((4,), width, 9)
    yield case((), 4, 3)
    yield case((2, 3), 4, 5)
    yield case((0,), 4, 5)
    yield case((2, 0, 3), 4, 5, bias=False)
    yield case((3,), 0, 5)
    yield case((3,), 4, 0)
    yield case((13,), 70, 37)
    for function in ("tanh", "sigmoid", "relu", "gelu"):
        for rows, inputs, outputs in (((1,), 5, 17), ((3,), 5, 9), ((2, 3), 4, 5), ((13,), 70, 37), ((3,), 0, 5), ((0,), 4, 5)):
            yield case(rows, inputs, outputs, function=function)
        yield case((3,), 5, 33, bias=False, function=function)


def _matmul() -> Iterator[Case]:
    def case(a: tuple[int, ...], b: tuple[int, ...]) -> Case:
        leading = np.broadcast_shapes(a[:-2], b[:-2])
        rows, columns = (a[-2] if len(a) > 1 else 1), (b[-1] if len(b) > 1 else 1)
        flops = 2 * prod(leading) * rows * columns * a[-1]
        return Case("matmul", {"a": a, "b": b}, flops=flops, terms=max(a[-1], prod(leading) * max(rows, columns)))

    for width in WIDTHS:
        yield case((width, 3), (3, 6))
        yield case((4, width), (width, 5))
        yield case((2, 3), (3, width))
    yield case((13, 70), (70, 37))
    yield case((2, 3, 4), (4, 5))
    yield case((3, 4), (2, 4, 5))
    yield case((2, 3, 4), (2, 4, 5))
    yield case((2, 1, 3, 4), (5, 4, 2))
    yield case((1, 3, 4), (2, 4, 5))
    yield case((4,), (4,))
    yield case((4,), (4, 2))
    yield case((3, 4), (4,))
    yield case((2, 3, 4), (4,))
    yield case((4,), (2, 4, 3))
    yield case((0, 4), (4, 3))
    yield case((3, 0), (0, 4))
    yield case((2, 0, 4), (4, 3))
    yield case((0, 3, 4), (0, 4, 5))


def _dropout() -> Iterator[Case]:
    for shape in [(), (0,), *((n,) for n in WIDTHS), (3, 5, 7)]:
        yield Case("dropout", {"x": shape}, {"p": 0.3, "seed": 2**40 + 5, "layer": 3, "call": 7}, flops=prod(shape))
    yield Case("dropout", {"x": (17,)}, {"p": 1.0, "seed": 0}, flops=17)
    yield Case("dropout", {"x": (17,)}, {"p": 0.5, "seed": 2**64 - 1, "layer": 2**32 - 1, "call": 2**32 - 1}, flops=17)


def attention_case(
    lead: tuple[int, ...], Tq: int, Tk: int, D: int, Dv: int | None = None, *, heads: int = 2, kv_heads: int | None = None,
    mask: tuple[int, ...] | None = None, **options: Any,
) -> Case:  # fmt: skip
    """Attention of `heads` heads; mask: the shape of an additive one, which has a gradient too."""
    kv = heads if kv_heads is None else kv_heads
    shapes = {"q": (*lead, heads, Tq, D), "k": (*lead, kv, Tk, D), "v": (*lead, kv, Tk, D if Dv is None else Dv)}
    shapes |= {} if mask is None else {"attn_mask": mask}
    options |= {"enable_gqa": True} if kv != heads else {}
    return Case("scaled_dot_product_attention", shapes, options, flops=4 * prod(shapes["q"]) * Tk, terms=4 * (Tk + D + Tq * heads // max(kv, 1)))


def _attention() -> Iterator[Case]:
    for D in WIDTHS:
        yield attention_case((2,), 3, 5, D, WIDTHS[-1 - WIDTHS.index(D)])
    for T in (2, 15, 16, 17, 63, 64, 65, 130):  # one key alone has no gradient but of its value: see test_attention.py
        yield attention_case((1,), T, T, 9)
        yield attention_case((1,), T, 67, 5, is_causal=True, causal_offset=67 - T)
        yield attention_case((1,), 70, T, 8, 3, is_causal=True)
    for window in (2, 3, 64, 100):
        yield attention_case((1,), 130, 130, 4, window=window)
        yield attention_case((1,), 130, 70, 4, window=window, is_causal=True, causal_offset=3)
    for mask in [(1, 5, 67), (67,), (2, 2, 5, 67), (2, 1, 1, 67)]:  # constant over the keys it has no gradient
        yield attention_case((2,), 5, 67, 8, mask=mask)
    yield attention_case((2,), 1, 67, 17, 5, mask=(6, 1, 67), heads=6, kv_heads=2)
    yield attention_case((2,), 1, 1100, 16, key_lengths=(1100, 700))
    yield attention_case((), 70, 66, 6, heads=6, kv_heads=3, scale=0.7)
    yield attention_case((2, 3), 4, 5, 6, heads=4, kv_heads=1, key_lengths=((0, 1, 2), (3, 4, 5)))
    yield attention_case((3,), 66, 130, 7, key_lengths=(130, 0, 65), is_causal=True, causal_offset=-1, return_weights=True)
    yield attention_case((2,), 5, 67, 8, mask=(5, 67), dropout_p=0.4, seed=5, layer=2, call=7, return_weights=True)
    yield attention_case((2,), 70, 70, 4, dropout_p=1.0, seed=5)
    yield attention_case((2,), 1, 9, 4, dropout_p=0.5, seed=2**64 - 1, return_weights=True)
    for lead, Tq, Tk, D, Dv in [((0,), 3, 4, 5, 6), ((2,), 0, 4, 5, 6), ((2,), 3, 0, 5, 6), ((2,), 1, 0, 5, 6), ((2,), 3, 4, 0, 6), ((2,), 3, 4, 5, 0), ((2,), 1, 4, 0, 0)]:
        yield attention_case(lead, Tq, Tk, D, Dv)
    for batch_first in (True, False):
        options = {"num_heads": 3, "batch_first": batch_first, "is_causal": True, "return_weights": batch_first}
        yield Case("self_attention", {"qkv": (5, 4, 45)}, options, terms=50)
        yield Case("self_attention", {"qkv": (66, 2, 96)}, options | {"num_heads": 2}, terms=200)


def additive_case(B: int, Tq: int, Tk: int, D: int, Dv: int, **options: Any) -> Case:
    """Additive attention. A score adds up D terms; where one weight is near 1 the differences of the gradients cancel, hence the factor."""
    shapes = {"q": (B, Tq, D), "k": (B, Tk, D), "v": (B, Tk, Dv), "u": (D,)}
    pairs = B * Tq * Tk
    return Case("additive_attention", shapes, options, flops=pairs * (4 * D + 2 * Dv), terms=16 * (D + Dv) + Tq + Tk + B * Tq)


def _additive() -> Iterator[Case]:
    for width in WIDTHS:
        yield additive_case(2, 3, 5, width, 3, return_weights=True)
        yield additive_case(1, 1, 5, width, 4)
        yield additive_case(2, 2, width, 5, width, key_lengths=(width // 2, width))
        yield additive_case(1, width, 3, 4, 2, return_weights=True)
    yield additive_case(3, 4, 5, 6, 7, key_lengths=(5, 0, 2), return_weights=True)
    yield additive_case(3, 1, 5, 6, 7, key_lengths=(5, 0, 2), return_weights=True)
    yield additive_case(2, 70, 9, 5, 3)
    for empty in ((0, 2, 3, 4, 5), (2, 0, 3, 4, 5), (2, 3, 0, 4, 5), (2, 3, 4, 0, 5), (2, 3, 4, 5, 0), (2, 1, 0, 4, 5), (2, 1, 3, 4, 0)):
        yield additive_case(*empty, return_weights=True)


def lstm_case(T: int, B: int, I: int, H: int, bias: bool = True, state: str = "hc") -> Case:
    """An LSTM; `state` names the initial states that are given."""
    shapes = {"x": (T, B, I), "w_ih": (4 * H, I), "w_hh": (4 * H, H)}
    shapes |= {"b_ih": (4 * H,), "b_hh": (4 * H,)} if bias else {}
    shapes |= {f"{name}_0": (B, H) for name in state}
    return Case("lstm", shapes, flops=T * B * 8 * H * (I + H), terms=max(T, 1) * (I + H + B))


def _lstm() -> Iterator[Case]:
    for T in (1, 2, 7):
        for B in (1, 3):
            yield lstm_case(T, B, 5, 17)
    for H in WIDTHS:
        yield lstm_case(2, 3, max(H // 2, 1) + 1, H)
    for B in (2, 4, 5, 6, 7, 13):
        yield lstm_case(3, B, 6, 9)
    yield lstm_case(3, 2, 1, 8)
    yield lstm_case(3, 2, 33, 8)
    yield lstm_case(3, 2, 6, 9, bias=False)
    yield lstm_case(3, 2, 6, 9, state="")
    yield lstm_case(3, 2, 6, 9, state="h")
    yield lstm_case(1, 2, 6, 9, state="c")
    yield lstm_case(3, 2, 6, 9, bias=False, state="")
    yield lstm_case(0, 2, 6, 9)
    yield lstm_case(0, 2, 6, 9, state="")
    yield lstm_case(5, 0, 6, 9)
    yield lstm_case(5, 2, 0, 9)
    yield lstm_case(5, 2, 6, 0)
    yield lstm_case(12, 1, 40, 40)


CASES: tuple[Case, ...] = (
    *_pointwise(), *_softmax(), *_cross_entropy(), *_losses(), *_linear_cross_entropy(), *_layer_norm(), *_embedding(), *_linear(), *_matmul(), *_dropout(),
    *_attention(), *_additive(), *_lstm(), *_conv(), *_max_pool(), *_batch_norm(),
)  # fmt: skip
