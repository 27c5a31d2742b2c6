"""The persistent LSTM and GRU kernels alone, in several cuts: python benchmarks/cuda/tune_persistent.py [--quick].

Each line is a cut of one case: us per step (the slope between two lengths), us besides, the largest error against a float64 loop relative to
the root mean square, and what the model of `cuda_persistent.py` says.
"""

import argparse
import functools
import statistics
import sys
import time

import cupy
import numpy as np

from fastseq.backends import cuda_launch, cuda_persistent, precision

SHORT, LONG = 100, 400
CALLS = 4  # in a row, so that the device need not wait for the host


def timed(run, repeats=7):
    """Median us of a call by events."""
    run()
    found = []
    for _ in range(repeats):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(CALLS):
            run()
        end.record()
        end.synchronize()
        found.append(1e3 * cupy.cuda.get_elapsed_time(start, end) / CALLS)
    return statistics.median(found)


def sigmoid(x):
    return 1 / (1 + cupy.exp(-x))


def loop(cell, xp, w, b, dy):
    """Y and dgates in float64, with zero states."""
    (T, B, _), H = xp.shape, w.shape[1]
    h = c = cupy.zeros((B, H))
    kept, y = [], []
    for t in range(T):
        p, q = xp[t] + b[0], h @ w.T + b[1]
        if cell == "lstm":
            i, f, g, o = cupy.split(p + q, 4, axis=1)
            i, f, g, o = sigmoid(i), sigmoid(f), cupy.tanh(g), sigmoid(o)
            c_new = f * c + i * g
            kept.append((i, f, g, o, c, c_new))
            c, h = c_new, o * cupy.tanh(c_new)
        else:
            (pr, pz, pn), (qr, qz, qn) = cupy.split(p, 3, axis=1), cupy.split(q, 3, axis=1)
            r, z = sigmoid(pr + qr), sigmoid(pz + qz)
            n = cupy.tanh(pn + r * qn)
            kept.append((r, z, n, qn, h))
            h = z * h + (1 - z) * n
        y.append(h)
    dgates, dh, dc = [None] * T, cupy.zeros((B, H)), cupy.zeros((B, H))
    for t in reversed(range(T)):
        dh = dh + dy[t]
        if cell == "lstm":
            i, f, g, o, before, c = kept[t]
            u = cupy.tanh(c)
            dc = dc + dh * o * (1 - u * u)
            da = [dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), dh * u * o * (1 - o)]
            dc, direct = dc * f, 0
            back = cupy.concatenate(da, axis=1)
        else:
            r, z, n, q, before = kept[t]
            dn = dh * (1 - z) * (1 - n * n)
            da = [dn * q * r * (1 - r), dh * (before - n) * z * (1 - z), dn]
            direct = dh * z
            back = cupy.concatenate([*da[:2], dn * r], axis=1)
        dgates[t] = cupy.concatenate(da, axis=1)
        dh = back @ w + direct
    return cupy.stack(y), cupy.stack(dgates)


def arrays(cell, H, B, T):
    rng, G = np.random.default_rng(1), 4 if cell == "lstm" else 3

    def normal(*shape, spread=1.0):
        return cupy.asarray((spread * rng.standard_normal(shape)).astype(np.float32))

    return normal(T, B, G * H), normal(G * H, H, spread=H**-0.5), (normal(G * H), normal(G * H)), normal(T, B, H)


def error(got, want):
    return float(cupy.abs(got - want).max() / cupy.sqrt((want**2).mean()))


def chosen(cuts, count):
    """The model's best, and the best of each other kind of cut: rows, and how warps or blocks share the work; and what else it may try."""
    found, kinds = [], set()
    for cut in sorted(cuts, key=lambda c: (c.cost, c.grid)):
        kind = (cut.rows, cut.units)
        if kind not in kinds:
            kinds.add(kind)
            found.append(cut)
    found = found[:count]
    best = found[0]
    if isinstance(best, cuda_persistent.Forward):
        return [*found, best._replace(look_first=1 - best.look_first)]
    return [*found, best._replace(at_once=16), best._replace(at_once=4)]


def describe(cut):
    names = ("rows", "units", "shares", "sides", "batch", "look_first") if isinstance(cut, cuda_persistent.Forward) else ("rows", "units", "warps", "tiles", "at_once")
    return " ".join(f"{n}={getattr(cut, n)}" for n in names) + f" grid={cut.grid}"


def one(cell, H, B, kind, count):
    """Prints the lines of a case."""
    precision.set_precision(kind)
    split = 2 if kind == "highest" else 1
    found = cuda_launch.properties()
    sizes = (cell, H, B, split, found.multiprocessors, found.shared_per_block)
    short, long = arrays(cell, H, B, SHORT), arrays(cell, H, B, LONG)
    y, dgates = loop(cell, short[0].astype(np.float64), short[1].astype(np.float64), [b.astype(np.float64) for b in short[2]], short[3].astype(np.float64))
    print(f"{cell} H={H} B={B} {kind}")
    kept = {}

    def forward(cut, training, a):
        return cuda_persistent.forward(cell, *a[:3], None, None, None, None, False, training, cut=cut)

    def backward(cut, a):
        return cuda_persistent.backward(cell, kept[len(a[0])], a[1], a[3], None, None, cut=cut)

    for way, cuts in enumerate((cuda_persistent.forward_cuts(*sizes), cuda_persistent.backward_cuts(*sizes))):
        for number, cut in enumerate(chosen(cuts, count)):
            for training in (True, False) if way == 0 and number == 0 else (True,):
                run = functools.partial(backward, cut) if way else functools.partial(forward, cut, training)
                label = "backward" if way else "forward" if training else "inference"
                try:
                    result = run(short)
                    worst = error(result[0], dgates if way else y)
                    if not kept:
                        kept[SHORT], kept[LONG] = result[3], run(long)[3]
                    times = [timed(functools.partial(run, a)) for a in (short, long)]
                except Exception as failure:
                    print(f"  {label:9} {describe(cut)}: {type(failure).__name__}: {str(failure)[:300]}")
                    continue
                step = (times[1] - times[0]) / (LONG - SHORT)
                print(
                    f"  {label:9} {describe(cut):58} {step:6.2f} us/step + {times[0] - step * SHORT:6.1f} us; "
                    f"error {worst:.1e}; model {cut.cost / 1e3:5.2f}"
                )
                sys.stdout.flush()


def main():
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="two cuts of each case")
    parser.add_argument("--seconds", type=float, default=400, help="no new case is begun later")
    asked = parser.parse_args()
    began = time.perf_counter()
    cases = [
        ("lstm", 128, 32, "high"), ("gru", 128, 32, "high"), ("lstm", 512, 32, "high"), ("lstm", 1024, 32, "high"), ("lstm", 512, 64, "high"),
        ("lstm", 256, 32, "high"), ("lstm", 512, 1, "high"), ("gru", 1024, 32, "high"), ("lstm", 512, 32, "highest"), ("gru", 512, 32, "high"),
        ("lstm", 1024, 64, "high"), ("gru", 256, 32, "high"), ("lstm", 768, 48, "high"), ("lstm", 1024, 32, "highest"), ("lstm", 192, 32, "high"),
    ]  # fmt: skip
    for number, case in enumerate(cases):
        if time.perf_counter() - began > asked.seconds:
            print("out of time before", case)
            break
        one(*case, 2 if asked.quick else 5 if number < 7 else 3)


if __name__ == "__main__":
    main()
