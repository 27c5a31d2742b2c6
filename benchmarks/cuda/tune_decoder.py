"""Where the time of additive attention and of the attention decoder on a GPU goes: `python -m benchmarks.cuda.tune_decoder [--quick]`.

Answers are compared with PyTorch's in float64 first. Then come whole calls beside PyTorch in eager mode, the time that Python alone takes,
the decoder's phases one by one, and the sizes of their tasks side by side. Needs CuPy, PyTorch and a GPU.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
import torch

import fastseq as fs
from benchmarks.peers.torch_decoder import decoder as torch_decoder
from benchmarks.problems_decoder import Decoder
from fastseq import functional
from fastseq.backends import cuda_additive, cuda_decoder
from fastseq.backends import cuda_decoder_cut as cut
from fastseq.backends.cuda_launch import properties

ADDITIVE = [(32, 40, 40, 256), (32, 128, 128, 256), (32, 512, 512, 256), (32, 64, 64, 256), (16, 128, 128, 512), (64, 1, 100, 512)]
SIZES = [(32, 30, 256), (32, 100, 256), (32, 30, 512), (32, 100, 512), (64, 50, 256), (64, 100, 512), (16, 100, 1024)]
_FASTEST = cut.fastest
DECODERS = [(cell, B, T, T, H) for cell in ("LSTM", "GRU") for B, T, H in SIZES]


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """The device's time of a call in a row of them, and the host's: medians over turns."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()

    def turn(n: int) -> tuple[float, float]:
        cupy.cuda.Device().synchronize()
        began = time.perf_counter()
        start.record()
        for _ in range(n):
            run()
        end.record()
        host = time.perf_counter() - began
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end) * 1e-3 / n, host / n

    turn(2)
    n = max(1, min(200, int(4e-3 / turn(2)[0])))
    turns = [turn(n) for _ in range(7)]
    return statistics.median(t[0] for t in turns), statistics.median(t[1] for t in turns)


def us(t: float) -> str:
    return f"{1e6 * t:9.1f}"


def off(got: cupy.ndarray, want: torch.Tensor) -> float:
    """The largest difference, in parts of the largest number."""
    difference = torch.as_tensor(got, device="cuda").double() - want.double()
    return float(difference.abs().max() / want.double().abs().max())


# ---------------------------------------------------------------- additive attention


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.tanh(q[:, :, None] + k[:, None]) @ u, -1) @ v


def additive(B: int, Tq: int, Tk: int, D: int) -> None:
    rng = np.random.default_rng(0)
    shapes = ((B, Tq, D), (B, Tk, D), (B, Tk, D), (D,), (B, Tq, D))
    q, k, v, u, dy = (cupy.asarray(rng.standard_normal(s).astype(np.float32) * (s[-1] ** -0.5 if len(s) == 1 else 1)) for s in shapes)
    theirs = [torch.as_tensor(a, device="cuda") for a in (q, k, v, u)]
    exact = [a[:2].double().requires_grad_() if a.ndim > 1 else a.double().requires_grad_() for a in theirs]
    want = formula(*exact)
    want.backward(torch.as_tensor(dy, device="cuda")[:2].double())
    y, _, cache = functional.additive_attention_forward(q[:2], k[:2], v[:2], u)
    grads = functional.additive_attention_backward(cache, dy[:2])
    errors = [off(y, want.detach()), *(off(grads[f"d{name}"], t.grad) for name, t in zip("qkvu", exact, strict=True))]
    with torch.inference_mode():
        eager = seconds(lambda: formula(*theirs))
    ours = seconds(lambda: functional.additive_attention(q, k, v, u))
    print(f"additive B{B} Tq{Tq} Tk{Tk} D{D}: error of y {errors[0]:.1e}, of gradients {max(errors[1:]):.1e}")
    print(f"  forward            ours {us(ours[0])} (host {us(ours[1])})  eager {us(eager[0])}  x {eager[0] / ours[0]:.1f}")
    leaves = [t.clone().requires_grad_() for t in theirs]
    dy_torch = torch.as_tensor(dy, device="cuda")

    def train_torch() -> None:
        for t in leaves:
            t.grad = None
        formula(*leaves).backward(dy_torch)

    def train() -> None:
        tensors = [fs.Tensor(a, requires_grad=True) for a in (q, k, v, u)]
        functional.additive_attention(*tensors).backward(dy)

    eager, ours = seconds(train_torch), seconds(train)
    print(f"  forward + backward ours {us(ours[0])} (host {us(ours[1])})  eager {us(eager[0])}  x {eager[0] / ours[0]:.1f}")
    weights = cupy.empty((B, Tq, Tk), np.float32)
    ds = cupy.asarray(rng.standard_normal((B, Tq, Tk)).astype(np.float32))
    alone = seconds(lambda: cuda_additive.scores_backward(q, k, u, ds, key_lengths=None))
    units = B * Tq * Tk * D / (32 * properties().multiprocessors * 1.7e9)
    copy = seconds(weights.copy)[0]
    print(f"  dk and du alone {us(alone[0])} (host {us(alone[1])}); 32 units a cycle take {us(units)}, a copy of the weights {us(copy)}")


# ---------------------------------------------------------------- the decoder


def decoder(cell: str, B: int, T: int, S: int, H: int, quick: bool) -> None:
    problem = Decoder(cell, "training", B, T, S, H)
    x, memory, dy = map(cupy.asarray, problem.data)
    layer = fs.nn.AttentionDecoder(H, H, H, cell=cell.lower())
    layer.load_state_dict(problem.weights)
    layer.to("cuda")
    theirs = torch_decoder(problem).to("cuda")
    exact = torch_decoder(problem).to("cuda", torch.float64)
    xt, mt, dyt = (torch.as_tensor(a, device="cuda") for a in (x, memory, dy))
    xe, me = (a.double().requires_grad_() for a in (xt, mt))
    want = exact(xe, me)
    want.backward(dyt.double())

    def train() -> tuple[Any, ...]:
        layer.zero_grad()
        inputs = [fs.Tensor(a, requires_grad=True) for a in (x, memory)]
        y, _ = layer(*inputs)
        y.backward(dy)
        return y, *inputs

    y, x_ours, m_ours = train()
    of_weights = {name: p.grad for name, p in layer.named_parameters()}
    grads = dict(exact.named_parameters())
    pairs = zip(problem.weights.items(), exact.names, strict=True)
    worst = max(off(of_weights[name], grads[their].grad.reshape(w.shape)) for (name, w), their in pairs)
    print(f"decoder {cell} B{B} T{T} S{S} H{H}: error of y {off(y.data, want.detach()):.1e}, dx {off(x_ours.grad, xe.grad):.1e}, "
          f"dmemory {off(m_ours.grad, me.grad):.1e}, weights {worst:.1e}")  # fmt: skip
    ours = seconds(lambda: layer(x, memory))
    with torch.inference_mode():
        eager = seconds(lambda: theirs(xt, mt))
    step = ours[0] / T
    print(f"  forward            ours {us(ours[0])} (host {us(ours[1])})  eager {us(eager[0])}  x {eager[0] / ours[0]:.1f}; a step {us(step)}")
    xg, mg = (a.clone().requires_grad_() for a in (xt, mt))

    def train_torch() -> None:
        theirs.zero_grad()
        xg.grad = mg.grad = None
        theirs(xg, mg).backward(dyt)

    ours, eager = seconds(train), seconds(train_torch)
    print(f"  forward + backward ours {us(ours[0])} (host {us(ours[1])})  eager {us(eager[0])}  x {eager[0] / ours[0]:.1f}")
    phases(layer, x, memory, dy, quick)


def phases(layer: Any, x: cupy.ndarray, memory: cupy.ndarray, dy: cupy.ndarray, quick: bool) -> None:
    """The loops of both directions and each of their phases alone, for the cut that is taken and for others."""
    fastest, call = cut.fastest, cuda_decoder._Loop.__call__
    launches: dict[str, tuple[Any, range, tuple[Any, ...]]] = {}
    chosen: dict[str, list[tuple[Any, Any]]] = {}
    number = 0

    def nth(device: int, problem: cut.Problem) -> tuple[Any, Any]:
        if problem.direction not in chosen:
            chosen[problem.direction] = _others(problem)
        found = chosen[problem.direction]
        return found[min(number, len(found) - 1)]

    def seen(loop: Any, steps: range, arguments: tuple[Any, ...], scale: Any) -> None:
        launches[loop.name] = loop, steps, (*arguments, loop.layout.scores_in_shared, loop.cut.parts, scale)
        call(loop, steps, arguments, scale)

    cut.fastest, cuda_decoder._Loop.__call__ = nth, seen  # type: ignore[method-assign, assignment]
    try:
        while number < (1 if quick else max(map(len, chosen.values()), default=1)):
            y, _ = layer(fs.Tensor(x, requires_grad=True), memory)
            y.backward(dy)
            for name, (loop, steps, arguments) in launches.items():
                if number < len(chosen[name.removeprefix("decoder_")]):
                    times = [seconds(functools.partial(loop.whole, steps, arguments, phase))[0] / len(steps) for phase in (15, 1, 2, 4, 8)]
                    alone = "".join(map(us, times[1:]))
                    rows, units, parts, keeps, holds = loop.cut
                    words = f"{name:16} {rows} {units} parts {parts} {'keeps' * keeps:5} {'holds' * holds:5}"
                    print(f"  {'*' * (number == 0):1} {words}: expected {loop.layout.time:5.1f}, us a step {us(times[0])}; its phases alone{alone}")
            number += 1
    finally:
        cut.fastest, cuda_decoder._Loop.__call__ = fastest, call  # type: ignore[method-assign]


def _others(problem: cut.Problem) -> list[tuple[Any, Any]]:
    """The cut that is taken, it without what it keeps, and the best of other tasks and parts."""
    taken = _FASTEST(0, problem)
    room = properties().shared_per_block // problem.item
    fitting = [(c, there) for c in cut.cuts(problem) if (there := cut.layout(problem, c)).possible and there.reals <= room]
    fitting.sort(key=lambda pair: pair[1].time)
    found = [taken]
    for pair in fitting:
        size, parts = pair[0][:2], pair[0][2]
        new = all(size != other[0][:2] for other in found) or all(parts != other[0][2] for other in found)
        if (new or pair[0][:3] == taken[0][:3]) and pair not in found:
            found.append(pair)
    return found[:9]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, and only the tasks' usual sizes")
    parser.add_argument("--only", choices=("additive", "decoder"))
    chosen = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{properties().name}; float32 products in both; us are medians of calls in a row")
    if chosen.only != "decoder":
        for sizes in ADDITIVE[:4] if chosen.quick else ADDITIVE:
            additive(*sizes)
    if chosen.only != "additive":
        for cell, B, T, S, H in DECODERS[:5] if chosen.quick else DECODERS:
            decoder(cell, B, T, S, H, chosen.quick or cell == "GRU")


if __name__ == "__main__":
    main()
