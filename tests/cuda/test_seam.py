"""Above the kernels: operations without one give NumPy's results on a GPU, and what comes from the wrong side is named."""

import re

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq.backends import backend_of, is_gpu, namespace, placed
from tests.cases import CASES
from tests.tolerance import assert_close, assert_same_bits

_MASK = np.array([[True, False, True, False], [False, False, True, True], [True, True, False, False]])

#: Operations of glue alone, by name: a function of two Tensors (3, 4).
GENERIC = {
    "add": lambda a, b: a + b + 1.5,
    "sub": lambda a, b: 2.0 - (a - b[:1]),
    "mul": lambda a, b: 3 * a * b[:, :1],
    "div": lambda a, b: a / (b * b + 1.0) / 2,
    "pow": lambda a, b: (a * a + 0.1) ** b + b**2 + 2.0 ** (a * 0.1),
    "pow at zero": lambda a, b: (a * 0.0) ** (b * b + 1.0),
    "neg": lambda a, b: -a,
    "compare and where": lambda a, b: F.where(_MASK, a, b) + F.where(_MASK, a, 0.0),
    "reshape": lambda a, b: a.reshape(2, -1) @ b.reshape(-1, 2),
    "transpose": lambda a, b: a.transpose(1, 0) @ b,
    "swapaxes": lambda a, b: F.matmul(a, F.swapaxes(b, 0, 1)),
    "split": lambda a, b: F.split(a, [1, 3], axis=1)[1] * b[:, 1:],
    "concatenate": lambda a, b: F.concatenate([a, b, a], axis=1),
    "stack": lambda a, b: F.stack([a, b], axis=1),
    "rows": lambda a, b: a[1:] * b[0],
    "a list with the same row twice": lambda a, b: a[[0, 2, 0]] * b,
    "an array with the same element twice": lambda a, b: a[np.array([0, 2, 0]), np.array([1, 1, 1])] + b[:, 0],
    "an empty list": lambda a, b: a[[]].sum() + b,
    "a mask": lambda a, b: a[_MASK] * b[_MASK],
    "iteration": lambda a, b: sum(row * 2.0 for row in a) * b[0],
    "sum": lambda a, b: a.sum(axis=0) * b.sum(axis=(0, 1)) + a.sum(axis=1, keepdims=True) * b,
    "mean": lambda a, b: a.mean() * b.mean(axis=1),
    "max": lambda a, b: a.max(axis=1) * b.max(),
    "max of equal numbers": lambda a, b: (a * 0.0).max(axis=0) + b.max(axis=0),
    "hardtanh": lambda a, b: F.hardtanh(a, -0.5, 0.5) + F.relu6(b * 4),
    "selu": lambda a, b: F.selu(a) * F.mish(b),
    "softsign": lambda a, b: F.softsign(a) + F.logsigmoid(b),
    "rotary_embedding": lambda a, b: F.rotary_embedding(a, b.data[:, :2], b.data[:, 2:]) + F.rotary_embedding(b, a.data[:, :2], a.data[:, 2:], interleaved=False),
    "rmse_loss of equal arrays": lambda a, b: F.rmse_loss(a, a.detach()) + F.rmse_loss(a, b),
    "no positive weights of the host": lambda a, b: F.binary_cross_entropy_with_logits(a, (b * b).detach(), pos_weight=[1.0, 2.0, 3.0, 0.5]),
}


def computed(operation, arrays, to_gpu=None):
    """The result and the gradients, NumPy's."""
    tensors = [fs.Tensor(a if to_gpu is None else to_gpu(a), requires_grad=True) for a in arrays]
    y = operation(*tensors)
    upstream = np.random.default_rng(3).standard_normal(y.shape).astype(y.dtype)
    y.backward(upstream if to_gpu is None else to_gpu(upstream))
    found = [y.data, *(t.grad for t in tensors if t.grad is not None)]
    return [a if to_gpu is None else a.get() for a in found]


@pytest.mark.parametrize("name", GENERIC)
def test_glue_gives_numpys_values_and_gradients(name, dtype, rng, to_gpu):
    arrays = [rng.standard_normal((3, 4)).astype(dtype) for _ in range(2)]
    want, got = computed(GENERIC[name], arrays), computed(GENERIC[name], arrays, to_gpu)
    assert len(want) == len(got)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, dtype=dtype, terms=12, name=name)


def test_an_element_that_is_read_often_sums_in_one_order(rng, to_gpu):
    x, rows = rng.standard_normal((3, 5)).astype(np.float32), rng.integers(0, 3, 200)
    first, second = (computed(lambda t: t[rows], [x], to_gpu)[1] for _ in range(2))
    assert_same_bits(first, second)


# ---------------------------------------------------------------- two kinds of arrays


def distinct():
    """One case of each operation and each set of arguments, of those with several."""
    found = {(case.op, *case.shapes): case for case in CASES if len(case.shapes) > 1}
    return list(found.values())


@pytest.mark.parametrize("case", distinct(), ids=lambda case: "-".join([case.op, *case.shapes]))
def test_an_argument_on_the_wrong_side_is_named(case, rng, to_gpu):
    inputs = case.inputs(rng, np.float32)
    for wrong in inputs:
        for on_gpu in (False, True):
            sides = {name: to_gpu(a) if (name == wrong) is on_gpu else a for name, a in inputs.items()}
            for wrap in (lambda name, a: a, lambda name, a: fs.Tensor(a, requires_grad=name not in case.ids)):
                if wrong == "attn_mask" and not on_gpu and not isinstance(wrap("q", sides[wrong]), fs.Tensor):
                    continue  # copied: a mask is an option
                with pytest.raises(TypeError, match=r"expected a (CuPy|NumPy) array like \w+, got a (CuPy|NumPy) array; ") as caught:
                    case.call({name: wrap(name, a) for name, a in sides.items()})
                assert re.search(rf"\b{wrong}\b", str(caught.value)), caught.value
                assert "\n" not in str(caught.value)


def test_the_advice_is_what_helps(to_gpu):
    x, weight = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(TypeError) as caught:
        F.linear(to_gpu(x), weight)
    assert str(caught.value) == (
        'weight: expected a CuPy array like x, got a NumPy array; move weight with cupy.asarray(weight), '
        'or the layer that has it with .to("cuda"), or x with .get()'
    )
    with pytest.raises(TypeError) as caught:
        F.linear(x, to_gpu(weight))
    assert str(caught.value) == 'weight: expected a NumPy array like x, got a CuPy array; move x with cupy.asarray(x), or the layer with .to("cpu")'


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda g, a: g + a, "b"),
        (lambda g, a: F.mul(a, g), "b"),
        (lambda g, a: F.concatenate([g, a]), r"tensors\[1\]"),
        (lambda g, a: F.stack([a, a, g]), r"tensors\[2\]"),
        (lambda g, a: F.where(a.data > 0, g, a), "b"),
        (lambda g, a: F.where(g.data > 0, a, 0.0), "condition"),
        (lambda g, a: F.rotary_embedding(g, a.data[:, :2], g.data[:, 2:]), "cos"),
    ],
)
def test_glue_names_what_is_on_the_wrong_side(call, name, to_gpu):
    a = np.ones((3, 4), np.float32)
    with pytest.raises(TypeError, match=rf"^{name}: expected a (CuPy|NumPy) array like "):
        call(fs.Tensor(to_gpu(a)), fs.Tensor(a))


@pytest.mark.parametrize("wrong", ["query", "key", "value"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_an_attention_layer_names_what_is_on_the_wrong_side(wrong, where, rng, to_gpu):
    layer = fs.nn.MultiheadAttention(4, 2, rng=0).to(where)
    arrays = {name: rng.standard_normal((3, 2, 4)).astype(np.float32) for name in ("query", "key", "value")}
    placed_there = {name: to_gpu(x) if (where == "cuda") is not (name == wrong) else x for name, x in arrays.items()}
    kind = "CuPy" if where == "cuda" else "NumPy"
    with pytest.raises(TypeError, match=f"^{wrong}: expected a {kind} array, for this layer is on the"):
        layer(**placed_there)


def test_the_backend_of_both_kinds_is_none(cupy, to_gpu):
    a = np.ones(3)
    assert backend_of(a).__name__ == "fastseq.backends.cpu"
    assert backend_of(to_gpu(a), to_gpu(a)).__name__ == "fastseq.backends.cuda"
    with pytest.raises(TypeError, match="expected arrays of one kind, got NumPy and CuPy arrays"):
        backend_of(a, to_gpu(a))
    with pytest.raises(TypeError, match=r"expected a NumPy array, got builtins\.list"):
        backend_of(to_gpu(a), [1.0])
    assert namespace(to_gpu(a)) is cupy
    assert (is_gpu(a), is_gpu(to_gpu(a)), is_gpu(3.0)) == (False, True, False)
    assert placed(a, a) is a
    assert is_gpu(placed(a, to_gpu(a)))
    assert isinstance(placed(to_gpu(a), a), np.ndarray)


def test_an_explicit_gradient_comes_from_the_same_side(rng, to_gpu):
    x, w = (to_gpu(rng.standard_normal(shape).astype(np.float32)) for shape in ((2, 3), (3,)))
    y, cache = F.layer_norm_forward(x, w)
    with pytest.raises(TypeError, match="dy: expected a CuPy array like x, got a NumPy array"):
        F.layer_norm_backward(cache, y.get())
    tensor = fs.Tensor(x, requires_grad=True)
    with pytest.raises(TypeError, match="grad: expected a CuPy array like the Tensor's, got a NumPy array"):
        tensor.backward(x.get())


# ---------------------------------------------------------------- options, which lie on either side


def test_lengths_and_masks_of_either_side_give_the_same(rng, to_gpu):
    q = to_gpu(rng.standard_normal((2, 2, 4, 3)).astype(np.float32))
    mask, lengths = rng.random((4, 4)) < 0.7, np.array([4, 2])
    added = np.where(mask, 0.5, -np.inf).astype(np.float32)
    for options in ({"key_lengths": lengths}, {"attn_mask": mask}, {"attn_mask": added}):
        of_host = F.scaled_dot_product_attention(q, q, q, **options)
        of_device = F.scaled_dot_product_attention(q, q, q, **to_gpu(options))
        want = F.scaled_dot_product_attention(q.get(), q.get(), q.get(), **options)
        assert_same_bits(of_host.get(), of_device.get())
        assert_close(of_host.get(), want, terms=8)
    listed = F.scaled_dot_product_attention(q, q, q, key_lengths=[4, 2])
    assert_same_bits(listed.get(), F.scaled_dot_product_attention(q, q, q, key_lengths=lengths).get())


def test_ids_that_are_outside_are_one_sentence(to_gpu):
    table = to_gpu(np.ones((4, 2), np.float32))
    with pytest.raises(IndexError, match="ids: 7 is outside the vocabulary of 4"):
        F.embedding(to_gpu(np.array([1, 7, 9])), table)
    with pytest.raises(IndexError, match="targets: -1 is outside the vocabulary of 2"):
        F.cross_entropy(table, to_gpu(np.array([0, 1, -100, -1])))


def test_a_packed_operand_stays_where_it_was_packed(rng, to_gpu):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3), (3, 4)))
    packed = F.pack(to_gpu(b))
    assert_close(F.matmul(to_gpu(a), packed).get(), a @ b, terms=3)
    with pytest.raises(TypeError, match="b: expected the pack of a NumPy array like a"):
        F.matmul(a, packed)
    with pytest.raises(TypeError, match="b: expected the pack of a CuPy array like a"):
        F.matmul(to_gpu(a), F.pack(b))


# ---------------------------------------------------------------- the tape


def test_a_tensor_on_a_gpu_does_not_become_a_numpy_array(to_gpu):
    x = fs.Tensor(to_gpu(np.array([2.0])), requires_grad=True)
    for call in (x.numpy, lambda: np.asarray(x.detach())):
        with pytest.raises(TypeError, match=r"\.data\.get\(\)"):
            call()
    assert (x.item(), float(x), bool(x), len(x)) == (2.0, 2.0, True, 1)
    assert repr(x) == "Tensor(array([2.]), requires_grad=True)"


def test_gradcheck_and_functions_of_users(cupy, to_gpu):
    class Cube(fs.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.x = x
            return x**3

        @staticmethod
        def backward(ctx, dy):
            return 3 * ctx.x**2 * dy

    x = fs.Tensor(to_gpu(np.array([1.0, -2.0, 0.5])), requires_grad=True)
    assert fs.gradcheck(Cube.apply, [x])
    assert fs.gradcheck(lambda t: (t * t).sum() * t, [x])
    Cube.apply(x).sum().backward()
    Cube.apply(x).sum().backward()  # adds up in an array of its own
    assert isinstance(x.grad, cupy.ndarray)
    assert x.grad.get().tolist() == [6.0, 24.0, 1.5]


def test_a_gradient_that_is_a_view_is_copied(to_gpu):
    x = fs.Tensor(to_gpu(np.ones((2, 3))), requires_grad=True)
    upstream = to_gpu(np.ones((3, 2)))
    x.transpose(1, 0).backward(upstream)
    x.grad += 1
    assert upstream.get().max() == 1
    x.grad = None
    x.sum().backward()
    x.grad += 1  # a broadcast number, which cannot be written to
    assert x.grad.get().tolist() == [[2.0] * 3] * 2


def test_after_running_out_of_memory_all_goes_on(cupy, to_gpu):
    layer, x = fs.nn.Linear(64, 64, rng=0).to("cuda"), to_gpu(np.ones((64, 64), np.float32))
    want = layer(x).get()
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    limit, used = pool.get_limit(), pool.used_bytes()
    pool.set_limit(size=used + 2**20)
    try:
        tensor = fs.Tensor(x, requires_grad=True)
        with pytest.raises(MemoryError):
            F.matmul(F.reshape(tensor, 4096, 1), F.reshape(tensor, 1, 4096))
    finally:
        pool.set_limit(size=limit)
    del tensor
    assert pool.used_bytes() <= used
    assert_same_bits(layer(x).get(), want)


# ---------------------------------------------------------------- row-sparse gradients


def test_a_row_sparse_gradient_on_a_gpu(rng, cupy, to_gpu):
    ids, values = to_gpu(np.array([4, 1, 4])), rng.standard_normal((3, 2)).astype(np.float32)
    grad = fs.RowGradient.summed(ids, to_gpu(values), (6, 2))
    dense = np.zeros((6, 2), np.float32)
    np.add.at(dense, ids.get(), values)
    assert repr(grad) == "RowGradient(2 rows of (6, 2), float32)"
    assert_close(grad.to_dense().get(), dense)
    assert_close((grad + grad).to_dense().get(), 2 * dense)
    assert_close((grad + to_gpu(dense)).get(), 2 * dense)
    other = grad.copy()
    other *= 3.0
    assert_close(other.to_dense().get(), 3 * dense)
    assert_close(grad.placed(dense).to_dense(), dense)
    assert isinstance(grad.rows, cupy.ndarray)
    with pytest.raises(TypeError, match=r"\.to_dense\(\)\.get\(\)"):
        np.asarray(grad)
    with pytest.raises(TypeError, match="rows, values: expected arrays of one kind"):
        fs.RowGradient(np.array([0, 1]), to_gpu(values[:2]), (6, 2))
