"""After the time loop of a recurrent layer's backward pass: the gradients of x and of the weights, from those of all steps' sums at once."""

from __future__ import annotations

from typing import Any

import cupy

from fastseq.backends.cuda_launch import gemm
from fastseq.backends.cuda_recurrent_plan import Gradients, Plan
from fastseq.backends.recurrent import Weights

Array = Any

_COLUMNS = 128
_CHUNKS = 256


def gradients(
    plan: Plan, w: Gradients, directions: tuple[Weights, ...], x: Array, dx: Array | None, need_weights: bool
) -> list[Weights | None]:
    """Those of the weights of each direction; dx (T, B, I) gets x's, the reverse direction's added to it."""
    T, B, I = x.shape
    x = clean = x.reshape(T * B, I)
    found: list[Weights | None] = []
    if need_weights and plan.flags is not None:  # what stands where a row has no step may be no number
        clean = cupy.empty_like(x)
        if I:
            plan.by_units(plan.end("masked"), T * B, I, clean, x, I)
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
            grads["w_ih"] = gemm(dp.T, clean)
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


class _Sums:
    """Launches of the two stages of kernels/recurrent_sums.cu."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows = plan.shape.T * plan.shape.B
        self._chunk = max(32, -(-self._rows // _CHUNKS))
        self._chunks = -(-self._rows // self._chunk)

    def _added(self, parts: Array) -> Array:
        out = cupy.empty(parts.shape[-1], parts.dtype)
        self._plan.end("add_chunks", "recurrent_sums.cu")(-(-out.size // _COLUMNS), _COLUMNS, (out, parts, self._chunks, out.size))
        return out

    def _parts(self, *sizes: int) -> Array:
        return cupy.empty(sizes, self._plan.dtype)

    def plain(self, dy: Array, d: int, x: Array | None = None, stats: Array | None = None) -> list[Array]:
        """The sum of dy's rows, and with x and its statistics that of dy times the normal numbers."""
        N, flags = dy.shape[-1], self._plan.flags
        parts = self._parts(1 if x is None else 2, self._chunks, N)
        width = 0 if stats is None else stats.shape[-1]
        arguments = parts, dy, x, stats, width, None if flags is None else flags[d], self._rows, N, self._chunk
        self._plan.end("columns", "recurrent_sums.cu")((-(-N // _COLUMNS), self._chunks), _COLUMNS, arguments)
        return [self._added(part) for part in parts]

    def by_units(self, name: str, d: int, *sizes: int) -> Array:
        """What one of the kernels that go through the cells again leaves: parts of these sizes."""
        parts = self._parts(*sizes)
        grid = -(-self._plan.shape.H // _COLUMNS), self._chunks
        self._plan.end(name, "recurrent_sums.cu")(grid, _COLUMNS, (self._plan.struct, parts, d, self._chunk))
        return parts

    def peepholes(self, d: int) -> Array:
        return self._added(self.by_units("peephole_columns", d, self._chunks, 3 * self._plan.shape.H)).reshape(3, -1)

    def norm_c(self, d: int) -> list[Array]:
        return [self._added(part) for part in self.by_units("norm_c_columns", d, 2, self._chunks, self._plan.shape.H)]


def _add_vectors(plan: Plan, w: Gradients, d: int, weights: Weights, grads: dict[str, Array]) -> None:
    """Biases, peepholes, and layer norms' gains and biases."""
    sums = _Sums(plan)
    if plan.normed:
        grads["b_hh"], grads["ln_hh_weight"] = sums.plain(w.dq[d], d, plan.q[d], plan.stats[d])
        grads["b_ih"], grads["ln_ih_weight"] = sums.plain(w.dp[d], d, plan.x_sums[d], plan.x_stats[d])
        grads["ln_hh_bias"], grads["ln_ih_bias"] = grads["b_hh"].copy(), grads["b_ih"].copy()
    else:
        if weights.b_hh is not None or (weights.b_ih is not None and plan.shape.cell != "gru"):
            grads["b_hh"] = sums.plain(w.dq[d], d)[0]
        if weights.b_ih is not None:
            grads["b_ih"] = sums.plain(w.dp[d], d)[0] if plan.shape.cell == "gru" else grads["b_hh"].copy()
    if weights.w_ch is not None:
        grads["w_ch"] = sums.peepholes(d)
    if plan.normed and plan.shape.cell == "lstm":
        grads["ln_c_bias"], grads["ln_c_weight"] = sums.norm_c(d)
