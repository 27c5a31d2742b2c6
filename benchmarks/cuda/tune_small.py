"""Where the time of the kernels that are bound by bytes goes, and that of the calls around them: `python -m benchmarks.cuda.tune_small`.

For each operation of the CUDA backend, at a size that fills the GPU: microseconds on the device, the share of a copy's bandwidth that
this is, and PyTorch's time for the same; then microseconds of the host for a call of a size that takes none on the device. Needs
CuPy, PyTorch and a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cupy
import numpy as np
import torch

from fastseq.backends import cuda, cuda_launch, cuda_layout, window
from fastseq.backends.precision import set_precision

F = torch.nn.functional
ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False, "step": 3}
LOSS = {"ignore_index": -100, "label_smoothing": 0.0}


class Row(NamedTuple):
    """An operation: bytes that it has to move, our call and PyTorch's."""

    name: str
    bytes: float
    ours: Callable[[], Any]
    theirs: Callable[[], Any] | None


def normal(*shape: int) -> Any:
    return cupy.random.standard_normal(shape, dtype=cupy.float32)


def integers(high: int, n: int) -> Any:
    return cupy.random.randint(0, high, n).astype(cupy.int64)


def on_torch(*arrays: Any) -> list[torch.Tensor]:
    return [torch.from_dlpack(a) for a in arrays]


def device_seconds(run: Callable[[], Any]) -> float:
    """The median over five turns of several calls in a row between two events."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()

    def turn(n: int) -> float:
        start.record()
        for _ in range(n):
            run()
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end) / 1e3 / n

    turn(2)
    n = max(2, min(100, int(5e-3 / turn(2))))
    return statistics.median(turn(n) for _ in range(5))


def host_seconds(run: Callable[[], Any]) -> float:
    """The median time of a call until it returns, while the device has next to nothing to do."""
    for _ in range(20):
        run()
    cupy.cuda.Device().synchronize()
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        for _ in range(40):
            run()
        times.append((time.perf_counter() - begin) / 40)
        cupy.cuda.Device().synchronize()
    return statistics.median(times)


def elements(n: int) -> Iterator[Row]:
    x, dy = normal(n), normal(n)
    tx, tdy = on_torch(x, dy)
    yield Row("gelu", 8 * n, lambda: cuda.pointwise_forward(x, function="gelu"), lambda: F.gelu(tx))
    yield Row(
        "gelu backward", 12 * n, lambda: cuda.pointwise_backward(x, dy, function="gelu"), lambda: torch.ops.aten.gelu_backward(tdy, tx)
    )
    yield Row("tanh", 8 * n, lambda: cuda.pointwise_forward(x, function="tanh"), lambda: torch.tanh(tx))
    yield Row("dropout", 8 * n, lambda: cuda.dropout(x, p=0.3, seed=1, layer=0, call=0), lambda: F.dropout(tx, 0.3))


def rows(M: int, N: int) -> Iterator[Row]:
    x, dy = normal(M, N), normal(M, N)
    weight, bias = normal(N), normal(N)
    tx, tdy, tw, tb = on_torch(x, dy, weight, bias)
    n, size = 4 * M * N, f"{M} x {N}"
    y = cuda.softmax_forward(x)
    (ty,) = on_torch(y)
    yield Row(f"softmax {size}", 2 * n, lambda: cuda.softmax_forward(x), lambda: torch.softmax(tx, -1))
    yield Row(
        f"softmax backward {size}", 3 * n, lambda: cuda.softmax_backward(y, dy), lambda: torch._softmax_backward_data(tdy, ty, -1, tx.dtype)
    )
    yield Row(f"bias backward {size}", n, lambda: cuda.bias_backward(x), lambda: tx.sum(0))
    yield Row(
        f"layer norm {size}", 2 * n, lambda: cuda.layer_norm_forward(x, None, weight, bias, eps=1e-5), lambda: F.layer_norm(tx, (N,), tw, tb)
    )
    _, s, mean, rstd = cuda.layer_norm_forward(x, None, weight, bias, eps=1e-5)
    tmean, trstd = (t[:, None] for t in on_torch(mean, rstd))
    yield Row(
        f"layer norm backward {size}",
        3 * n,
        lambda: cuda.layer_norm_backward(dy, None, s, mean, rstd, weight),
        lambda: torch.ops.aten.native_layer_norm_backward(tdy, tx, (N,), tmean, trstd, tw, tb, [True] * 3),
    )


def losses(N: int, V: int, H: int) -> Iterator[Row]:
    logits, targets, one = normal(N, V), integers(V, N), cupy.ones((), cupy.float32)
    tlogits, ttargets = on_torch(logits, targets)
    lse, n, size = cuda.cross_entropy_forward(logits, targets, **LOSS)[1], 4 * N * V, f"{N} x {V}"
    yield Row(f"cross entropy {size}", n, lambda: cuda.cross_entropy_forward(logits, targets, **LOSS), lambda: F.cross_entropy(tlogits, ttargets))
    yield Row(f"cross entropy backward {size}", 2 * n, lambda: cuda.cross_entropy_backward(lse, logits, targets, one, **LOSS), None)
    x, weight, bias = normal(N, H), normal(V, H) * H**-0.5, normal(V)
    tx, tw, tb = (t.requires_grad_() for t in on_torch(x, weight, bias))
    lse = cuda.linear_cross_entropy_forward(x, weight, bias, targets, **LOSS)[1]

    def theirs() -> None:
        F.cross_entropy(F.linear(tx, tw, tb), ttargets).backward()

    def ours() -> None:
        cuda.linear_cross_entropy_forward(x, weight, bias, targets, **LOSS)
        cuda.linear_cross_entropy_backward(lse, x, weight, bias, targets, one, **LOSS)

    yield Row(f"linear cross entropy both ways {size} H{H}", 0, ours, theirs)
    yield Row(f"  forward alone {size} H{H}", 0, lambda: cuda.linear_cross_entropy_forward(x, weight, bias, targets, **LOSS), None)


def tables(N: int, V: int, E: int) -> Iterator[Row]:
    weight, ids, dy = normal(V, E), integers(V, N), normal(N, E)
    tw, tids, tdy = on_torch(weight, ids, dy)
    size = f"{N} of {V} x {E}"
    yield Row(f"embedding {size}", 8 * N * E, lambda: cuda.embedding_forward(ids, weight), lambda: F.embedding(tids, tw))
    yield Row(
        f"embedding backward {size}",
        4 * E * (N + V),
        lambda: cuda.embedding_backward(dy, ids, V, padding_idx=-1),
        lambda: torch.ops.aten.embedding_dense_backward(tdy, tids, V, -1, False),
    )


def updates(count: int, n: int) -> Iterator[Row]:
    work = [tuple(normal(n) for _ in range(4)) for _ in range(count)]
    parameters = [torch.nn.Parameter(t) for t in on_torch(*(w for w, *_ in work))]
    for p, t in zip(parameters, on_torch(*(g for *_, g in work)), strict=True):
        p.grad = t
    fused, eager = torch.optim.Adam(parameters, fused=True), torch.optim.Adam(parameters)
    arrays = [[each[k] for each in work] for k in range(4)]
    size = f"{count} x {n}"
    yield Row(f"adam {size}, PyTorch fused", 28 * n * count, lambda: cuda.adam_all(tuple(work), **ADAM), fused.step)
    yield Row(f"adam {size}, PyTorch as it comes", 28 * n * count, lambda: cuda.adam_all(tuple(work), **ADAM), eager.step)
    yield Row(
        f"norm {size}", 4 * n * count, lambda: cuda.sum_squares(*arrays[3]), lambda: torch.nn.utils.clip_grad_norm_(parameters, 1e9).item()
    )


def images() -> Iterator[Row]:
    x, dy = normal(64, 256, 784), normal(64, 256, 784)
    weight, bias = normal(256), normal(256)
    tx, tw, tb = on_torch(x, weight, bias)
    n = 4 * x.size
    yield Row(
        "batch norm 64 x 256 x 784",
        2 * n,
        lambda: cuda.batch_norm_forward(x, weight, bias, eps=1e-5),
        lambda: F.batch_norm(tx, None, None, tw, tb, True),
    )
    _, mean, variance = cuda.batch_norm_forward(x, weight, bias, eps=1e-5)
    yield Row(
        "batch norm backward", 3 * n, lambda: cuda.batch_norm_backward(dy, x, weight, mean, variance, eps=1e-5, given=False), None
    )
    pool = window.Window((2, 2), (2, 2), (1, 1), (0, 0), (56, 56))
    images = normal(64, 64, 112, 112)
    (timages,) = on_torch(images)
    _, places = cuda.max_pool_forward(images, window=pool)
    dpool = normal(*places.shape)
    yield Row(
        "max pool 2", 7 * images.size, lambda: cuda.max_pool_forward(images, window=pool), lambda: F.max_pool2d(timages, 2, return_indices=True)
    )
    yield Row("max pool 2 backward", 7 * images.size, lambda: cuda.max_pool_backward(dpool, places, images.shape, window=pool), None)


def convolution(N: int, C: int, side: int, kernel: int, groups: int) -> Iterator[Row]:
    x, weight = normal(N, C, side, side), normal(C, C // groups, kernel, kernel)
    tx, tw = on_torch(x, weight)
    p = kernel // 2
    options: dict[str, Any] = {"groups": groups, "window": window.Window((kernel, kernel), (1, 1), (1, 1), (p, p), (side, side))}
    y = cuda.conv_forward(x, weight, None, **options)
    (ty,) = on_torch(y)
    size = f"{N} x {C} x {side}^2, {kernel}^2, {groups} groups"
    yield Row(f"conv {size}", 0, lambda: cuda.conv_forward(x, weight, None, **options), lambda: F.conv2d(tx, tw, padding=p, groups=groups))
    yield Row(
        "  backward",
        0,
        lambda: cuda.conv_backward(y, x, weight, need_dbias=False, **options),
        lambda: torch.ops.aten.convolution_backward(ty, tx, tw, None, (1, 1), (p, p), (1, 1), False, (0, 0), groups, (True, True, False)),
    )


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "elements": lambda: elements(1 << 26),
    "rows": lambda: (row for shape in ((65536, 256), (16384, 1024), (8192, 4096), (2048, 16384)) for row in rows(*shape)),
    "losses": lambda: (row for shape in ((2240, 10000, 512), (4096, 32000, 1024)) for row in losses(*shape)),
    "tables": lambda: (row for shape in ((2240, 10000, 512), (65536, 32000, 512)) for row in tables(*shape)),
    "updates": lambda: (row for shape in ((1, 1 << 26), (16, 1 << 20), (12, 1 << 12)) for row in updates(*shape)),
    "images": images,
    "convolutions": lambda: (row for sizes in ((64, 64, 56, 3, 1), (64, 256, 14, 1, 1), (64, 256, 28, 3, 256)) for row in convolution(*sizes)),
}


def copy_rate() -> float:
    """Bytes a second, read and written, of an array beyond the caches."""
    a = cupy.zeros(1 << 28, cupy.float32)
    b = cupy.empty_like(a)
    return 2 * a.nbytes / device_seconds(lambda: cupy.copyto(b, a))


def on_device(parts: list[str]) -> None:
    copy = copy_rate()
    print(f"{cuda_launch.properties().name}: a copy {copy / 1e9:.0f} GB/s\n\noperation | us | of a copy's rate | PyTorch us | ratio")
    for part in parts:
        for row in PARTS[part]():
            ours = device_seconds(row.ours)
            theirs = device_seconds(row.theirs) if row.theirs else float("nan")
            print(f"{row.name} | {1e6 * ours:.1f} | {row.bytes / ours / copy:.0%} | {1e6 * theirs:.1f} | {theirs / ours:.2f}", flush=True)


def pieces() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What a call is made of."""
    x = normal(8, 8)
    y = cupy.empty_like(x)
    layout = cuda_layout.row_layout(8, x.dtype)
    kernel = cuda_launch.kernel("pointwise.cu", "pointwise_forward", REAL="float")
    arguments = (y, x, np.int64(64), 3, np.float32(0))
    ready = (y, x, np.int64(64), np.int32(3), np.float32(0))
    yield "cupy.empty", lambda: cupy.empty((8, 8), x.dtype)
    yield "cupy.zeros", lambda: cupy.zeros((8, 8), x.dtype)
    yield "contiguous", lambda: cuda_launch.contiguous(x)
    yield "aligned", lambda: cuda_layout.aligned(x)
    yield "kernel()", lambda: cuda_launch.kernel("pointwise.cu", "pointwise_forward", REAL="float")
    yield "layout.kernel()", lambda: layout.kernel("softmax.cu", "softmax_forward")
    yield "getDevice", cupy.cuda.runtime.getDevice
    yield "x.data.ptr", lambda: x.data.ptr
    yield "current stream", lambda: cupy.cuda.get_current_stream().ptr
    yield "Kernel", lambda: kernel(1, 64, arguments)
    yield "CuPy's RawKernel", lambda: kernel.function((1,), (64,), ready)
    yield "CuPy's Function", lambda: kernel.function.kernel((1,), (64,), ready)
    yield "gemm", lambda: cuda_launch.gemm(x, x, y)


def on_host() -> None:
    print("\nmicroseconds of the host")
    for name, run in pieces():
        print(f"  {name}: {1e6 * host_seconds(run):.2f}")
    print("call of a small size | us | PyTorch us")
    small = (elements(64), rows(8, 64), losses(8, 64, 8), tables(8, 64, 8), updates(1, 64), updates(12, 64))
    for group in small:
        for row in group:
            theirs = host_seconds(row.theirs) if row.theirs else float("nan")
            print(f"{row.name} | {1e6 * host_seconds(row.ours):.1f} | {1e6 * theirs:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(("host", *PARTS)), help="comma-separated: host, " + ", ".join(PARTS))
    parser.add_argument("--precision", default="high", help="of float32 products, here and in PyTorch")
    asked = parser.parse_args()
    set_precision(asked.precision)
    torch.set_float32_matmul_precision(asked.precision)
    wanted = asked.parts.split(",")
    if "host" in wanted:
        on_host()
    on_device([part for part in wanted if part != "host"])


if __name__ == "__main__":
    main()
