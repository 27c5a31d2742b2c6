"""Row-sparse gradients: their sums, what takes them and what refuses them, and the same steps as dense ones where nothing else is said."""

import copy
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq import nn, optim
from tests.tolerance import assert_same_bits


def gradient(ids, table, seed=0):
    """A dense and a row-sparse gradient of the same rows."""
    dy = np.random.default_rng(seed).standard_normal((*np.shape(ids), table.shape[1])).astype(table.dtype)
    both = []
    for sparse in (False, True):
        weight = nn.Parameter(table.copy())
        F.embedding(fs.Tensor(np.array(ids, np.int64)), weight, sparse=sparse).backward(dy)
        both.append(weight.grad)
    return both


TABLE = np.random.default_rng(9).standard_normal((40, 5)).astype(np.float32)


@pytest.mark.parametrize("ids", [[], [3], [7, 3, 7, 39, 0, 7], np.arange(40), [[2, 2], [5, 2]]], ids=str)
def test_the_same_sums_as_a_dense_gradient(ids, threads):
    dense, rows = gradient(ids, TABLE)
    assert rows.rows.tolist() == sorted(set(np.ravel(ids).astype(int).tolist()))
    assert_same_bits(rows.to_dense(), dense)
    assert_same_bits(np.asarray(rows), dense)
    assert np.asarray(rows, np.float64).dtype == np.float64
    assert (rows.shape, rows.dtype, rows.ndim, rows.size) == (dense.shape, dense.dtype, dense.ndim, dense.size)


def test_gradients_accumulate_until_zero_grad():
    weight, want = nn.Parameter(TABLE.copy()), np.zeros_like(TABLE)
    for k, ids in enumerate(([3, 1, 3], [5, 1], [])):
        dense, _ = gradient(ids, TABLE, seed=k)
        F.embedding(fs.Tensor(np.array(ids, np.int64)), weight, sparse=True).backward(np.random.default_rng(k).standard_normal((len(ids), 5)).astype(np.float32))
        want = want + dense
        assert_same_bits(np.asarray(weight.grad), want)
    assert weight.grad.rows.tolist() == [1, 3, 5]
    optim.SGD([weight], lr=1.0).zero_grad()
    assert weight.grad is None


@pytest.mark.parametrize("first", ["rows", "dense"])
def test_a_table_used_twice_gets_the_sum(first):
    """Rows and rows in one backward pass; with a use of the whole table (a tied head) the sum is an array."""
    ids = fs.Tensor(np.array([1, 4]))
    weight = nn.Parameter(TABLE.copy())
    (F.embedding(ids, weight, sparse=True) + 2 * F.embedding(fs.Tensor(np.array([4, 9])), weight, sparse=True)).sum().backward()
    assert weight.grad.rows.tolist() == [1, 4, 9]
    assert weight.grad.values[:, 0].tolist() == [1, 3, 2]
    weight.grad = None
    parts = [F.embedding(ids, weight, sparse=True).sum(), (3 * weight).sum()]
    (parts[0] + parts[1] if first == "rows" else parts[1] + parts[0]).backward()
    assert type(weight.grad) is np.ndarray
    assert weight.grad[:, 0].tolist() == [4 if k in (1, 4) else 3 for k in range(40)]
    for k in range(2):  # and over two passes, in either order
        weight.grad = None
        for part in (k, 1 - k):
            (F.embedding(ids, weight, sparse=True).sum() if part else (3 * weight).sum()).backward()
        assert np.asarray(weight.grad)[:, 0].tolist() == [4 if k in (1, 4) else 3 for k in range(40)]


def test_it_copies_scales_and_pickles():
    _, rows = gradient([3, 1, 3], TABLE)
    before = np.asarray(rows)
    for twin in (rows.copy(), copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):
        twin *= 2.0
        assert_same_bits(np.asarray(twin), 2 * before)
        twin /= 4.0
        assert_same_bits(np.asarray(twin), before / 2)
        assert_same_bits(np.asarray(rows), before)
    assert np.isfinite(rows).all()


def test_finite_differences_agree():
    weight = fs.Tensor(TABLE[:6].astype(np.float64), requires_grad=True)
    ids = np.array([[0, 3], [3, 5]])
    assert fs.gradcheck(lambda w: F.tanh(F.embedding(ids, w, sparse=True)), [weight])


# ---------------------------------------------------------------- optimisers and clipping

EXACT = {  # a row without a gradient is one with a gradient of zero
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1),
}
LAZY = {"sparse adam": lambda p: optim.SparseAdam(p, lr=0.05, betas=(0.8, 0.9), eps=1e-4)}


@pytest.mark.parametrize("name", EXACT)
def test_the_same_steps_as_with_dense_gradients(name, dtype, threads, rng):
    one, two = (nn.Embedding(30, 9, padding_idx=2, sparse=sparse, dtype=dtype, rng=0) for sparse in (False, True))
    optimizers = [EXACT[name](t.parameters()) for t in (one, two)]
    for _ in range(12):
        ids, dy = rng.integers(0, 30, (4, 3)), rng.standard_normal((4, 3, 9)).astype(dtype)
        norms = []
        for table, optimizer in zip((one, two), optimizers, strict=True):
            optimizer.zero_grad()
            table(fs.Tensor(ids)).backward(dy)
            table(fs.Tensor(ids[:2])).backward(dy[:2])  # a second batch into the same gradient
            norms.append(optim.clip_grad_norm(table.parameters(), 2.0))
            optim.clip_grad_value(table.parameters(), 0.4)
            optimizer.step()
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        np.testing.assert_allclose(one.weight.data, two.weight.data, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", LAZY)
def test_rows_without_a_gradient_stay(name, rng):
    table = nn.Embedding(30, 9, sparse=True, rng=0)
    optimizer, start = LAZY[name](table.parameters()), table.weight.data.copy()
    for _ in range(5):
        optimizer.zero_grad()
        table(fs.Tensor(rng.integers(0, 10, 20))).backward(rng.standard_normal((20, 9)).astype(np.float32))
        optimizer.step()
    assert_same_bits(table.weight.data[10:], start[10:])
    assert np.abs(table.weight.data[:10] - start[:10]).min() > 0
    assert not optimizer.state_dict()["state"][0]["exp_avg"][10:].any()


@pytest.mark.parametrize("name", EXACT | LAZY)
def test_going_on_from_a_state_gives_the_same_bits(name, rng):
    batches = [(rng.integers(0, 30, 20), rng.standard_normal((20, 9)).astype(np.float32)) for _ in range(8)]

    def walk(table, optimizer, some):
        for ids, dy in some:
            optimizer.zero_grad()
            table(fs.Tensor(ids)).backward(dy)
            optimizer.step()

    make = (EXACT | LAZY)[name]
    whole, first, second = (nn.Embedding(30, 9, sparse=True, rng=0) for _ in range(3))
    walk(whole, make(whole.parameters()), batches)
    optimizer = make(first.parameters())
    walk(first, optimizer, batches[:3])
    second.load_state_dict(first.state_dict())
    resumed = make(second.parameters())
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    walk(second, resumed, batches[3:])
    assert_same_bits(second.weight.data, whole.weight.data)


@pytest.mark.parametrize(
    ("make", "who"),
    [
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9), "SGD with momentum"),
        (lambda p: optim.SGD(p, lr=0.1, weight_decay=0.1), "SGD with weight_decay"),
        (lambda p: optim.Adagrad(p, weight_decay=0.1), "Adagrad with weight_decay"),
        (optim.RMSprop, "RMSprop"),
        (optim.Adam, "Adam"),
        (optim.AdamW, "AdamW"),
    ],
)
def test_what_changes_every_row_refuses(make, who):
    head, table = nn.Linear(5, 2, rng=0), nn.Embedding(40, 5, sparse=True, rng=0)
    optimizer = make([*head.parameters(), *table.parameters()])
    head(table(fs.Tensor(np.array([1, 2])))).sum().backward()
    before = head.weight.data.copy()
    with pytest.raises(TypeError, match=f"grad: {who} changes every row at every step, got a row-sparse gradient; use Embedding"):
        optimizer.step()
    assert_same_bits(head.weight.data, before)


def test_sparse_adam_refuses_a_dense_gradient():
    head = nn.Linear(5, 2)
    head(fs.Tensor(np.ones(5))).sum().backward()
    with pytest.raises(TypeError, match=r"grad: SparseAdam takes the gradients of Embedding\(sparse=True\), got a dense one"):
        optim.SparseAdam(head.parameters()).step()


def test_a_gradient_of_another_table_is_refused():
    weight = nn.Parameter(TABLE.copy())
    weight.grad = fs.RowGradient(np.array([3]), np.ones((1, 5), np.float32), (41, 5))
    with pytest.raises(ValueError, match=r"grad: expected float32 of shape \(40, 5\), got float32 of shape \(41, 5\)"):
        optim.SGD([weight], lr=0.1).step()
    _, rows = gradient([1], TABLE)
    with pytest.raises(ValueError, match=r"gradient: expected float32 of shape \(40, 5\), got float32 of shape \(41, 5\)"):
        rows + weight.grad
    with pytest.raises(ValueError, match="read-only"):
        rows.rows[0] = 99


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda rows, values: fs.RowGradient(rows[::-1], values, (9, 2)), ValueError, r"rows: expected ascending ids in \[0, 9\), each once"),
        (lambda rows, values: fs.RowGradient(rows * 0, values, (9, 2)), ValueError, "rows: expected ascending"),
        (lambda rows, values: fs.RowGradient(rows, values, (3, 2)), ValueError, "rows: expected ascending"),
        (lambda rows, values: fs.RowGradient(rows - 2, values, (9, 2)), ValueError, "rows: expected ascending"),
        (lambda rows, values: fs.RowGradient(rows.astype(np.int32), values, (9, 2)), TypeError, "rows: expected int64 of shape"),
        (lambda rows, values: fs.RowGradient(rows, values, (9, 3)), ValueError, r"values: expected shape \(2, 3\), got \(2, 2\)"),
        (lambda rows, values: fs.RowGradient(rows, values.astype(int), (9, 2)), TypeError, "values: expected float32 or float64, got int64"),
        (lambda rows, values: np.array(fs.RowGradient(rows, values, (9, 2)), copy=False), ValueError, "copy: expected None or True"),
        (lambda rows, values: F.embedding(rows * 0, 2 * nn.Parameter(values), sparse=True), ValueError, "weight: expected a Parameter with sparse=True"),
        (lambda rows, values: F.embedding(rows * 0, values, sparse=2), TypeError, "sparse: expected True or False, got 2"),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(np.array([1, 3]), np.ones((2, 2)))


def test_a_sparse_embedding_is_saved_and_shown_as_one(tmp_path):
    table = nn.Embedding(5, 2, padding_idx=1, sparse=True)
    assert repr(table) == "Embedding(5, 2, padding_idx=1, sparse=True)"
    table.save(tmp_path / "table.safetensors")
    assert fs.load(tmp_path / "table.safetensors").sparse
