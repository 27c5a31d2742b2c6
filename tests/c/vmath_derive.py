"""Prints the constants of csrc/simd/vmath.h and vmath_avx512.h, derived from their definitions (needs mpmath).

Minimax polynomials come from the Remez exchange: solve for the polynomial whose weighted error has one size and
alternating signs on deg + 2 points, move the points to the extrema of the error, repeat. The tables for tanh hold one
polynomial for each interval of |x|: two intervals for each power of two from 1/16 on, and one for all below.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

import mpmath as mp

mp.mp.dps = 50
MARGIN = mp.mpf("1.0005")  # rounding to n leaves |r| a little above ln(2) / 2


def chebyshev(low: mp.mpf, high: mp.mpf, n: int) -> list[mp.mpf]:
    return [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * mp.mpf(i) / (n - 1)) for i in range(n)]


def extrema(values: list[mp.mpf], wanted: int) -> list[int]:
    """Index of the largest value of each run of one sign, `wanted` runs; the smallest at the ends go first."""
    best = [0]
    for i in range(1, len(values)):
        if mp.sign(values[i]) != mp.sign(values[best[-1]]):
            best.append(i)
        elif abs(values[i]) > abs(values[best[-1]]):
            best[-1] = i
    while len(best) > wanted:
        best.pop(0 if abs(values[best[0]]) < abs(values[best[-1]]) else -1)
    return best


def remez(
    f: Callable[[mp.mpf], mp.mpf], weight: Callable[[mp.mpf], mp.mpf], low: mp.mpf, high: mp.mpf, degree: int
) -> tuple[list[mp.mpf], mp.mpf]:
    """Coefficients, constant first, of the polynomial with the least greatest weight * |f - p|, and that error."""
    n = degree + 2
    points = chebyshev(low, high, n)
    grid = chebyshev(low, high, 60 * n + 1)
    exact, weights = [f(x) for x in grid], [weight(x) for x in grid]
    for _ in range(25):
        a, b = mp.matrix(n, n), mp.matrix(n, 1)
        for i, x in enumerate(points):
            for j in range(degree + 1):
                a[i, j] = x**j
            a[i, n - 1] = (-1) ** i / weight(x)
            b[i] = f(x)
        solution = mp.lu_solve(a, b)
        p = [solution[j] for j in range(degree + 1)]
        errors = [w * (e - mp.polyval(p[::-1], x)) for x, e, w in zip(grid, exact, weights, strict=True)]
        found = extrema(errors, n)
        if len(found) < n:
            break
        points = [grid[i] for i in found]
    return p, max(abs(e) for e in errors)


def exp_tail(terms: int, half_width: mp.mpf, degree: int) -> tuple[list[mp.mpf], mp.mpf]:
    """P with exp(r) = sum_{j < terms} r^j / j! + r^terms P(r), |r| <= half_width."""
    edge = mp.mpf("1e-6")

    def tail(r: mp.mpf) -> mp.mpf:
        if abs(r) < edge:
            return mp.fsum(r**j / mp.factorial(j + terms) for j in range(8))
        return (mp.exp(r) - mp.fsum(r**j / mp.factorial(j) for j in range(terms))) / r**terms

    width = half_width * MARGIN
    return remez(tail, lambda r: max(abs(r), mp.mpf("0.01")) ** terms, -width, width, degree)


def log_tail(degree: int) -> tuple[list[mp.mpf], mp.mpf]:
    """R with log((1 + s) / (1 - s)) = 2 s + s z R(z), z = s^2, for (1 + s) / (1 - s) up to sqrt(2)."""

    def tail(z: mp.mpf) -> mp.mpf:
        if z < mp.mpf("1e-12"):
            return mp.mpf(2) / 3 + 2 * z / 5
        s = mp.sqrt(z)
        return (2 * mp.atanh(s) / s - 2) / z

    greatest = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2 * MARGIN
    return remez(tail, lambda z: max(z, mp.mpf("1e-4")), mp.mpf(0), greatest, degree)


def mills(pole: int, greatest: float, degree: int) -> tuple[list[mp.mpf], mp.mpf]:
    """P with exp(a^2/2) Phi(-a) = P(q) / (a + pole), q = (a - pole) / (a + pole), for 0 <= a <= greatest (relative error).

    Shepherd & Laframboise 1981 have the change of variable; the poles are those of 2, 2.5, 3 ... 6 with the least error.
    """
    k = mp.mpf(pole)

    def scaled(q: mp.mpf) -> mp.mpf:
        a = k * (1 + q) / (1 - q)
        return (a + k) * mp.exp(a * a / 2) * mp.erfc(a / mp.sqrt(2)) / 2

    exact = functools.cache(scaled)
    return remez(exact, lambda q: 1 / exact(q), mp.mpf(-1), (greatest - k) / (greatest + k), degree)


def erf_odd(degree: int) -> tuple[list[mp.mpf], mp.mpf]:
    """P with erf(x) = x P(x^2) for |x| <= 1 (relative error)."""

    def quotient(z: mp.mpf) -> mp.mpf:
        x = mp.sqrt(z)
        return mp.erf(x) / x if z > mp.mpf("1e-20") else 2 / mp.sqrt(mp.pi) * (1 - z / 3)

    return remez(quotient, lambda z: 1 / quotient(z), mp.mpf(0), mp.mpf(1), degree)


def float32(x: mp.mpf) -> float:
    return struct.unpack("f", struct.pack("f", float(x)))[0]


def float32_from_bits(bits: int) -> float:
    return struct.unpack("f", struct.pack("I", bits))[0]


def tanh_tables() -> tuple[list[list[mp.mpf]], mp.mpf]:
    """Seven coefficients and, first, the centre for each of 16 intervals, at the place that bits 22 to 25 of |x| choose."""
    first = 0x3D800000 >> 22  # of 1/16; the interval before it is everything smaller
    rows: list[list[mp.mpf]] = [[]] * 16
    worst = mp.mpf(0)
    for i in range(first - 1, first + 15):
        if i == first - 1:

            def odd(z: mp.mpf) -> mp.mpf:
                a = mp.sqrt(z)
                return (mp.tanh(a) - a) / a**3 if z > mp.mpf("1e-12") else -mp.mpf(1) / 3

            p, error = remez(odd, lambda z: max(z, mp.mpf("1e-6")), mp.mpf(0), mp.mpf(1) / 256, 1)
            rows[i % 16] = [mp.mpf(v) for v in (0, 0, 1, 0, p[0], 0, p[1], 0)]
        else:
            low, high = float32_from_bits(i << 22), min(float32_from_bits((i + 1) << 22), 9.03)
            centre = mp.mpf(float32((low + high) / 2))
            width = max(high - centre, centre - low)
            p, error = remez(
                lambda d, c=centre: mp.tanh(c + d), lambda d, c=centre: 1 / mp.tanh(c + d), -width, width, 6
            )
            rows[i % 16] = [centre, *p]
        worst = max(worst, error)
    return rows, worst


def show(name: str, values: list[mp.mpf], error: mp.mpf | None = None, digits: int = 18) -> None:
    bound = "" if error is None else f" (error 2^{mp.nstr(mp.log(error, 2), 4)})"
    print(f"{name}{bound}:\n    " + ", ".join(mp.nstr(v, digits) for v in values))


def main() -> None:
    half_ln2 = mp.log(2) / 2
    show("float32 exp P", *exp_tail(3, half_ln2, 3), digits=9)
    show("float64 exp P", *exp_tail(3, half_ln2, 8))
    show("float32 log R", *log_tail(2), digits=9)
    show("float64 log R", *log_tail(6))
    show("float32 erf near 0", *erf_odd(6), digits=9)
    show("float64 erf near 0", *erf_odd(11))
    show("float32 mills", *mills(3, 15, 10), digits=9)
    show("float64 mills", *mills(6, 39, 22))
    show("avx512 float32 exp P, r^2 P", *exp_tail(2, half_ln2 / 16, 1), digits=9)
    powers = [mp.mpf(2) ** (mp.mpf(j) / 16) for j in range(16)]
    show("avx512 float32 powers", powers, digits=9)
    show("avx512 float32 powers, relative rest", [v / float32(v) - 1 for v in powers], digits=9)
    rows, error = tanh_tables()
    for k, name in enumerate(["centre", *(f"c{j}" for j in range(7))]):
        show(f"avx512 float32 tanh {name}", [row[k] for row in rows], error, digits=9)


if __name__ == "__main__":
    main()
