"""Where attention's time on a GPU goes, and which cut of its kernels is the fastest: `python -m benchmarks.cuda.tune_attention`.

Answers are compared with float64 first. Then come whole calls beside PyTorch's kernels, each kernel alone, and the cuts of each
(`cuda_attention_mma._Shape`) side by side. Needs CuPy, PyTorch and a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cupy
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fastseq.backends import (
    cuda_attention,
    cuda_attention_call,
    cuda_attention_decode,
    cuda_attention_mma,
    cuda_attention_tiles,
)
from fastseq.backends.attention import AttentionOptions
from fastseq.backends.cuda_launch import properties
from fastseq.backends.precision import set_precision

FLASH, CUDNN, EFFICIENT, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
Shape = cuda_attention_mma._Shape
#: row tiles, warps, columns, blocks of a multiprocessor
CUTS = {
    ("forward", 16, 64): [(2, 4, 128, 2), (2, 4, 64, 2), (1, 4, 64, 4), (1, 4, 128, 3)],
    ("forward", 16, 128): [(2, 4, 64, 2), (2, 4, 32, 2), (1, 4, 64, 3)],
    ("keys", 16, 64): [(2, 4, 32, 2), (1, 4, 64, 3), (1, 4, 64, 4), (2, 2, 32, 4)],
    ("keys", 16, 128): [(1, 4, 64, 2), (1, 4, 32, 2), (1, 4, 32, 3), (1, 8, 64, 1)],
    ("queries", 16, 64): [(2, 4, 64, 2), (2, 4, 32, 2), (1, 4, 64, 3)],
    ("queries", 16, 128): [(2, 4, 32, 2), (1, 4, 64, 2), (1, 4, 32, 3)],
    ("forward", 32, 64): [(2, 4, 64, 2), (2, 4, 32, 2), (1, 4, 64, 3)],
    ("forward", 32, 128): [(1, 4, 32, 2), (2, 4, 16, 2), (1, 4, 16, 3)],
    ("keys", 32, 64): [(2, 4, 32, 2), (1, 4, 32, 3)],
    ("keys", 32, 128): [(1, 8, 32, 1), (1, 4, 32, 1)],
    ("queries", 32, 64): [(2, 4, 32, 2), (1, 4, 32, 3)],
    ("queries", 32, 128): [(1, 8, 32, 1), (1, 4, 32, 1), (2, 4, 16, 1)],
    ("forward", 96, 64): [(1, 4, 32, 3), (1, 4, 64, 3)],
    ("keys", 96, 64): [(1, 4, 32, 2), (1, 4, 32, 3)],
    ("queries", 96, 64): [(1, 4, 32, 2), (1, 4, 32, 3), (2, 4, 32, 2)],
    ("queries", 96, 128): [(1, 8, 32, 1), (2, 4, 16, 1), (1, 4, 32, 1)],
    ("keys", 96, 128): [(1, 8, 32, 1), (1, 4, 32, 1)],
    ("forward", 16, 256): [(1, 8, 32, 1), (1, 8, 64, 1), (1, 4, 64, 1), (1, 4, 32, 2)],
    ("queries", 16, 256): [(1, 8, 32, 1), (1, 4, 32, 1), (1, 4, 64, 1)],
    ("forward", 96, 256): [(1, 4, 16, 1), (1, 4, 32, 1), (1, 8, 16, 1)],
    ("queries", 96, 256): [(1, 4, 16, 1)],
}
WORD = {16: "medium", 32: "high", 96: "highest"}


def seconds(run: Callable[..., Any], *arguments: Any, **keywords: Any) -> float:
    """The median over five turns of several calls in a row between two events."""
    run(*arguments, **keywords)
    start, end = cupy.cuda.Event(), cupy.cuda.Event()

    def turn(n: int) -> float:
        start.record()
        for _ in range(n):
            run(*arguments, **keywords)
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end) / 1e3 / n

    n = max(1, min(50, int(6e-3 / max(turn(2), 1e-6))))
    return statistics.median(turn(n) for _ in range(5))


def arrays(B: int, heads: int, T: int, D: int, kv: int | None = None, Tq: int | None = None, dtype: Any = torch.float32) -> list[torch.Tensor]:
    """q, k, v and dy of normal numbers."""
    torch.manual_seed(0)
    shapes = (heads, Tq or T), (kv or heads, T), (kv or heads, T), (heads, Tq or T)
    return [torch.randn(B, h, t, D, device="cuda", dtype=dtype) for h, t in shapes]


def on_cupy(tensors: list[torch.Tensor]) -> list[Any]:
    return [cupy.from_dlpack(t.detach().contiguous()) for t in tensors]


@contextlib.contextmanager
def cut(side: str, shape: tuple[int, int, int, int]) -> Iterator[None]:
    """One side's kernel in this cut, by every format."""
    before = cuda_attention_mma._shape
    cuda_attention_mma._shape = lambda s, *rest: Shape(*shape) if s == side else before(s, *rest)
    cuda_attention_mma._cut.cache_clear()
    try:
        yield
    finally:
        cuda_attention_mma._shape = before
        cuda_attention_mma._cut.cache_clear()


def gradients(q: Any, k: Any, v: Any, dy: Any, options: AttentionOptions, **keywords: Any) -> tuple[Any, ...]:
    y, lse, _ = cuda_attention.attention_forward(q, k, v, options=options, training=True, **keywords)
    return y, *cuda_attention.attention_backward(q, k, v, y, lse, dy, options=options, **keywords)[:3]


def errors() -> None:
    """The relative error of y and the gradients, by the largest number of each."""
    print("\nerror, relative to the largest number: y dq dk dv")
    for D in (64, 80, 128, 200):
        for words in ({}, {"causal": True}, {"causal": True, "window": 100, "offset": 3}, {"dropout": 0.3, "seed": 7}):
            tensors = arrays(2, 4, 300, D, kv=2)
            options = AttentionOptions(D**-0.5, **words)
            set_precision("highest")
            want = gradients(*[x.astype(cupy.float64) for x in on_cupy(tensors)], options)
            for word in ("highest", "high", "medium"):
                set_precision(word)
                found = gradients(*on_cupy(tensors), options)
                print(f"D{D} {words} {word}:", *(f"{float(abs(a - b).max() / abs(b).max()):.1e}" for a, b in zip(found, want, strict=True)))
    tensors = [t.double().requires_grad_() for t in arrays(2, 4, 300, 64)]
    y = scaled_dot_product_attention(*tensors[:3], is_causal=True)
    y.backward(tensors[3].detach())
    set_precision("highest")
    found = gradients(*on_cupy([t.float() for t in tensors]), AttentionOptions(0.125, True))
    want = on_cupy([y, *(t.grad for t in tensors[:3])])
    print("beside PyTorch in float64:", *(f"{float(abs(a - b).max() / abs(b).max()):.1e}" for a, b in zip(found, want, strict=True)))


def theirs(backend: Any, tensors: list[torch.Tensor], causal: bool, training: bool) -> float:
    """PyTorch's seconds by one of its kernels, nan where it has none."""
    q, k, v, dy = [t.requires_grad_(training and n < 3) for n, t in enumerate(tensors)]
    gqa = k.shape[1] != q.shape[1]

    def run() -> None:
        y = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)
        if training:
            torch.autograd.grad(y, (q, k, v), dy)

    try:
        with sdpa_kernel(backend):
            return seconds(run)
    except RuntimeError:
        torch.cuda.synchronize()
        return float("nan")


def whole() -> None:
    """Whole calls, TFLOP/s, and the ratios to PyTorch's kernels: above 1 is faster than they are."""
    print("\nwhole calls at B4 h16, us and TFLOP/s; then times as fast as PyTorch's")
    for word, D, T in itertools.product(("medium", "high", "highest"), (64, 128), (512, 2048, 8192)):
        if T == 8192 and word != "medium" and D == 128:
            continue
        tensors = arrays(4, 16, T, D)
        q, k, v, dy = on_cupy(tensors)
        kinds = {"flash": FLASH, "cudnn": CUDNN} if word == "medium" else {"efficient": EFFICIENT, "math": MATH}
        if T == 8192:
            kinds.pop("math", None)
        peers = [t.bfloat16() for t in tensors] if word == "medium" else tensors
        torch.backends.cuda.matmul.allow_tf32 = word == "high"
        set_precision(word)
        for causal in (False, True):
            options = AttentionOptions(D**-0.5, causal)
            for training in (False, True):
                forward = functools.partial(seconds, cuda_attention.attention_forward, q, k, v, options=options)
                ours = seconds(gradients, q, k, v, dy, options) if training else forward()
                flop = 4 * 64 * T * T * D * (0.5 if causal else 1) * (3.5 if training else 1)
                ratios = {name: theirs(kind, [t.detach() for t in peers], causal, training) / ours for name, kind in kinds.items()}
                what = f"{word:8s} T{T} D{D} {'causal ' * causal}{'fwd+bwd' if training else 'fwd':8s}"
                words = [f"{name} {x:.2f}" for name, x in ratios.items()]
                print(f"{what}{1e6 * ours:9.0f} us {flop / ours / 1e12:7.1f} TFLOP/s  ", *words, flush=True)


class Problem:
    """A call forwards and backwards, of which each kernel can be run alone."""

    def __init__(self, word: str, D: int, causal: bool) -> None:
        set_precision(word)
        self.causal, options = causal, AttentionOptions(D**-0.5, causal)
        self.q, self.k, self.v, self.dy = on_cupy(arrays(4, 16, 2048, D))
        self.y, self.lse, _ = cuda_attention.attention_forward(self.q, self.k, self.v, options=options, training=True)
        self.outputs = cupy.empty_like(self.q), cupy.empty_like(self.k), cupy.empty_like(self.v), None
        arrays_ = self.q, self.k, self.v, self.y, self.dy, *self.outputs[:3]
        self.call = cuda_attention_call.call_of(arrays_, None, None, options)
        self.plan = self.prepare()

    def prepare(self) -> Any:
        return cuda_attention_mma.prepare(self.q, self.k, self.v, self.call, backward=True)

    def guard(self) -> None:
        cuda_attention_tiles.forward(self.y, self.lse, None, self.q, self.k, self.v, self.call, self.plan.special)

    def kernel(self, side: str) -> str:
        """Time and rate of one side's kernel, as it is cut now."""
        launch, kept = cuda_attention_mma._launch, []
        cuda_attention_mma._launch = lambda s, *rest, **_: kept.append((s, *rest)) if s == side else None
        try:
            cuda_attention_mma.forward(self.y, self.lse, self.q, self.plan, self.call)
            cuda_attention_mma.backward(self.outputs, self.y, self.lse, self.dy, self.plan, self.call)
        finally:
            cuda_attention_mma._launch = launch
        taken = seconds(launch, *kept[0])
        products = {"forward": 2, "queries": 3, "keys": 4}[side]
        flop = 2 * products * 64 * 2048 * 2048 * self.call.D * (0.5 if self.causal else 1)
        return f"{1e6 * taken:.0f} ({flop / taken / 1e12:.0f})"


def pieces() -> None:
    """Each kernel of a call alone."""
    print("\npieces at B4 h16 T2048, us (TFLOP/s of its own products)")
    for form, D, causal in itertools.product((16, 32, 96), (64, 128), (False, True)):
        one = Problem(WORD[form], D, causal)
        found = [f"{name} {1e6 * seconds(run):.0f}" for name, run in (("prepare", one.prepare), ("guard", one.guard))]
        found += [f"{side} {one.kernel(side)}" for side in ("forward", "queries", "keys")]
        print(f"{WORD[form]:8s} D{D} {'causal ' * causal}", *found, flush=True)


def cuts(only: str) -> None:
    """The kernels' cuts side by side."""
    print("\ncuts (row tiles, warps, columns, blocks) at B4 h16 T2048, us (TFLOP/s of its own products): causal, then not")
    for (side, form, D), shapes in CUTS.items():
        if only and only not in f"{side} {form} {D}":
            continue
        both = [Problem(WORD[form], D, causal) for causal in (True, False)]
        for shape in shapes:
            with cut(side, shape):
                try:
                    words = [one.kernel(side) for one in both]
                except Exception as error:
                    words = [f"{type(error).__name__}: {error}"[:80]]
            print(f"{side:8s}{form:3d} D{D:<4d}{shape!s:16s}", *words, flush=True)


def decode() -> None:
    """One query for each head: bytes of k and v in a second, by how finely keys are split."""
    print("\ndecoding at h16 T4096, us (GB/s); then times as fast as PyTorch's float32, and the same numbers in bfloat16")
    chosen = cuda_attention_decode._BLOCKS, cuda_attention_decode._LEAST_KEYS
    for B, D, kv in ((1, 64, 16), (16, 64, 16), (32, 64, 16), (16, 128, 16), (16, 128, 2)):
        tensors = arrays(B, 16, 4096, D, kv=kv, Tq=1)
        q, k, v, _ = on_cupy(tensors)
        set_precision("highest")
        for blocks, keys in (chosen, (8, 256), (16, 256), (32, 128), (64, 256), (16, 512)):
            cuda_attention_decode._BLOCKS, cuda_attention_decode._LEAST_KEYS = blocks, keys
            ours = seconds(cuda_attention.attention_forward, q, k, v, options=AttentionOptions(D**-0.5))
            print(f"B{B} D{D} kv{kv} blocks {blocks} keys {keys}: {1e6 * ours:.0f} us ({2 * k.nbytes / ours / 1e9:.0f} GB/s)", flush=True)
        cuda_attention_decode._BLOCKS, cuda_attention_decode._LEAST_KEYS = chosen
        ours = seconds(cuda_attention.attention_forward, q, k, v, options=AttentionOptions(D**-0.5))
        best = min((theirs(kind, [t.detach() for t in tensors], False, False) for kind in (EFFICIENT, MATH)), key=lambda x: x if x == x else 1)
        half = theirs(FLASH, [t.bfloat16() for t in tensors], False, False)
        print(f"B{B} D{D} kv{kv}: float32 {best / ours:.2f}  bf16 flash {half / ours:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda.tune_attention", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="errors,decode,pieces,whole,cuts", help="of errors, decode, pieces, whole, cuts: in this order")
    parser.add_argument("--only", default="", help='cuts with this in "side format D"')
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # PyTorch says at length why a kernel was not chosen
    print(properties().name, "torch", torch.__version__, "cupy", cupy.__version__)
    parts: dict[str, Callable[[], None]] = {
        "errors": errors, "decode": decode, "pieces": pieces, "whole": whole, "cuts": lambda: cuts(args.only),
    }  # fmt: skip
    for name in args.parts.split(","):
        begin = time.monotonic()
        parts[name]()
        print(f"[{name}: {time.monotonic() - begin:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
