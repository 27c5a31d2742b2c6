"""What the tests of attention share: arrays, the equation itself, and a call with its gradients."""

import numpy as np

import fastseq as fs
from fastseq import functional

attend = functional.scaled_dot_product_attention


def arrays(rng, dtype, B=2, heads=2, Tq=5, Tk=7, D=4, Dv=3, kv_heads=None):
    """q, k, v."""
    kv = heads if kv_heads is None else kv_heads
    return [rng.standard_normal(shape).astype(dtype) for shape in ((B, heads, Tq, D), (B, kv, Tk, D), (B, kv, Tk, Dv))]


def plain(q, k, v, seen=True, scale=None, mask=0.0):
    """The equation itself, in float64; seen: which keys, of any shape that broadcasts."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    s = (q @ k.swapaxes(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale) + mask
    e = np.where(seen, np.exp(s - s.max(initial=0)), 0)
    return e / np.maximum(e.sum(-1, keepdims=True), 1e-300) @ v


def gradients(inputs, dy, **options):
    """y and the gradients of q, k, v."""
    tensors = [fs.Tensor(x, requires_grad=True) for x in inputs]
    y = attend(*tensors, **options)
    y.backward(dy)
    return [y.data, *(t.grad for t in tensors)]
