"""After the time loop of a recurrent layer's backward pass: the gradients of x and of the weights, from those of all steps' sums at once."""

from __future__ import annotations

import functools
from typing import Any

import cupy

from fastseq.backends.cuda_launch import Kernel, gemm, int64, kernel, macros_of
from fastseq.backends.cuda_recurrent_plan import Gradients, Plan, by_units, end_kernel
from fastseq.backends.recurrent import CELLS, Weights

Array = Any

_COLUMNS = 128
_CHUNKS = 256


def gradients(
    plan: Plan, w: Gradients, directions: tuple[Weights, ...], x: Array, dx: Array | None, need_weights: bool
) -> list[Weights | None]:
    """Those of the weights of each direction, where x (T, B, I) has no padding; dx gets x's, the reverse direction's added to it."""
    T, B, I = x.shape
    found: list[Weights | None] = []
    for d, weights in enumerate(directions):
        dp, dr = (a[d].reshape(T * B, -1) for a in (w.dp, w.dr))
        grads: dict[str, Array] = {}
        if need_weights:
            _add_vectors(plan, w, d, weights, grads)
            grads["w_hh"] = _of_w_hh(plan, d, dr)
            if plan.projected:
                grads["w_hr"] = gemm(w.dht[d].reshape(T * B, -1).T, plan.extra[d].reshape(T * B, -1))
        if plan.normed:
            flags = None if plan.flags is None else plan.flags[d]
            arguments = dp, plan.x_sums[d], plan.x_stats[d], weights.ln_ih_weight, flags, dp.shape[1]
            plan.by_rows("norm_rows_backward", T * B, arguments)
        if need_weights:
            grads["w_ih"] = gemm(dp.T, x.reshape(T * B, I))
            found.append(Weights(*[None if value is None else grads[name] for name, value in weights._asdict().items()]))
        if dx is not None:
            gemm(dp, weights.w_ih, dx.reshape(T * B, I), accumulate=plan.shape.first + d > 0)
    return found if need_weights else [None] * len(directions)


def _of_w_hh(plan: Plan, d: int, dr: Array) -> Array:
    """The products of all steps' gradients with what W_hh multiplies."""
    H, cell = plan.shape.H, plan.shape.cell
    k = plan.operands(d).reshape(len(dr), -1)
    if not plan.gated:
        return gemm(dr.T, k)
    out = cupy.empty((3 * H, H), dr.dtype)
    gemm(dr[:, :H].T, k, out[:H])
    if cell == "mut1":
        out[H : 2 * H] = 0
    else:
        gemm(dr[:, H : 2 * H].T, plan.inner[d].reshape(len(dr), H) if cell == "mut3" else k, out[H : 2 * H])
    gemm(dr[:, 2 * H :].T, plan.extra[d].reshape(len(dr), H), out[2 * H :])
    return out


class Sums:
    """Over the rows (T B) of one direction, in the two stages of kernels/recurrent_sums.cu."""

    def __init__(self, rows: int, dtype: Any) -> None:
        self._rows, self._dtype = rows, dtype
        self._chunk = max(32, -(-rows // _CHUNKS))
        self._chunks = -(-rows // self._chunk)

    def _kernel(self, name: str) -> Kernel:
        return _sum_kernel(cupy.cuda.runtime.getDevice(), name, self._dtype)

    def _added(self, parts: Array, copies: int = 1) -> Array:
        """(sums, copies, N) from parts (sums, chunks, N)."""
        sums, _, N = parts.shape
        out = cupy.empty((sums, copies, N), parts.dtype)
        self._kernel("add_chunks")((-(-N // _COLUMNS), sums), _COLUMNS, (out, parts, self._chunks, N, copies))
        return out

    def columns(self, dy: Array, copies: int = 1) -> Array:
        """The sum of dy's rows, (copies, N)."""
        return self._columns(dy, None, None, None, copies)[0]

    def of_biases(self, weights: Weights, dp: Array, dq: Array) -> dict[str, Array]:
        """Those of the biases that there are, from the gradients of x's and of h's sums, which may be the same array."""
        both = weights.b_ih is not None and weights.b_hh is not None
        if both and dp is dq:
            b_ih, b_hh = self.columns(dp, 2)
            return {"b_ih": b_ih, "b_hh": b_hh}
        given = (("b_ih", weights.b_ih, dp), ("b_hh", weights.b_hh, dq))
        return {name: self.columns(dy)[0] for name, b, dy in given if b is not None}

    def normal_columns(self, dy: Array, x: Array, stats: Array, flags: Array | None) -> tuple[Array, Array, Array]:
        """The sum of dy's rows twice, and that of dy times the normal numbers of x, which has these statistics."""
        found = self._columns(dy, x, stats, flags, 2)
        return found[0, 0], found[0, 1], found[1, 0]

    def _columns(self, dy: Array, x: Array | None, stats: Array | None, flags: Array | None, copies: int) -> Array:
        N = dy.shape[-1]
        parts = cupy.empty((1 if x is None else 2, self._chunks, N), self._dtype)
        arguments = parts, dy, x, stats, 0 if stats is None else stats.shape[-1], flags, self._rows, N, self._chunk
        self._kernel("columns")((-(-N // _COLUMNS), self._chunks), _COLUMNS, arguments)
        return self._added(parts, copies)

    def of_cells(self, name: str, plan: Plan, d: int, sums: int) -> Array:
        """Parts (sums, chunks, H), or what the kernel makes of them, for which the plan's cells are gone through again."""
        parts = cupy.empty((sums, self._chunks, plan.shape.H), self._dtype)
        self._kernel(name)((-(-plan.shape.H // _COLUMNS), self._chunks), _COLUMNS, (plan.struct, parts, d, self._chunk))
        return parts

    def peepholes(self, plan: Plan, d: int) -> Array:
        """(3, H)."""
        parts = self.of_cells("peephole_columns", plan, d, 3)
        return self._added(parts.reshape(1, self._chunks, 3 * plan.shape.H)).reshape(3, -1)

    def norm_c(self, plan: Plan, d: int) -> Array:
        """(2, H): of the bias and the gain."""
        return self._added(self.of_cells("norm_c_columns", plan, d, 2))[:, 0]


@functools.cache
def _sum_kernel(device: int, name: str, dtype: Any) -> Kernel:
    return kernel("recurrent_sums.cu", name, CELL=CELLS.index("lstm"), **macros_of(dtype))


def without_padding(x: Array, lengths: Array | None, start: int = 0) -> Array:
    """x (T, B, I), of the steps from `start` on, with zeros where a row has no step: what stands there may be no number."""
    if lengths is None or 0 in x.shape:
        return x
    (T, B, I), out = x.shape, cupy.empty_like(x)
    by_units(end_kernel("masked", x.dtype), T * B, I, (out, x, lengths, B, I, int64(start)))
    return out


def _add_vectors(plan: Plan, w: Gradients, d: int, weights: Weights, grads: dict[str, Array]) -> None:
    """Biases, peepholes, and layer norms' gains and biases."""
    sums, flags = Sums(plan.shape.T * plan.shape.B, plan.dtype), None if plan.flags is None else plan.flags[d]
    if plan.normed:
        grads["b_hh"], grads["ln_hh_bias"], grads["ln_hh_weight"] = sums.normal_columns(w.dq[d], plan.q[d], plan.stats[d], flags)
        grads["b_ih"], grads["ln_ih_bias"], grads["ln_ih_weight"] = sums.normal_columns(w.dp[d], plan.x_sums[d], plan.x_stats[d], flags)
    else:
        dq = w.dq[d]
        grads |= sums.of_biases(weights, w.dp[d] if plan.shape.cell == "gru" else dq, dq)
    if weights.w_ch is not None:
        grads["w_ch"] = sums.peepholes(plan, d)
    if plan.normed and plan.shape.cell == "lstm":
        grads["ln_c_bias"], grads["ln_c_weight"] = sums.norm_c(plan, d)
