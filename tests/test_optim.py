"""Optimisers against loops written out in NumPy and against PyTorch; clipping; going on exactly after a pause."""

import copy
import math
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn, optim

SHAPES = ((5, 3), (7,), (1, 1, 33), ())
MAKERS = {
    "sgd": (lambda p: optim.SGD(p, lr=0.1), {"lr": 0.1}),
    "momentum": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9), {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
        {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    ),
    "adam": (
        lambda p: optim.Adam(p, lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    "adamw": (
        lambda p: optim.AdamW(p, lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    "defaults": (optim.Adam, {}),
    "adagrad": (
        lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1, weight_decay=0.05, initial_accumulator_value=0.2, eps=1e-6),
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05, "initial_accumulator_value": 0.2, "eps": 1e-6},
    ),
    "adagrad defaults": (optim.Adagrad, {}),
    "rmsprop": (optim.RMSprop, {}),
    "rmsprop momentum": (
        lambda p: optim.RMSprop(p, lr=0.02, alpha=0.8, eps=1e-4, weight_decay=0.1, momentum=0.7),
        {"lr": 0.02, "alpha": 0.8, "eps": 1e-4, "weight_decay": 0.1, "momentum": 0.7},
    ),
    "rmsprop centred": (
        lambda p: optim.RMSprop(p, lr=0.02, alpha=0.8, eps=1e-2, momentum=0.7, centered=True),
        {"lr": 0.02, "alpha": 0.8, "eps": 1e-2, "momentum": 0.7, "centered": True},
    ),
}
THEIRS = {"adam": "Adam", "adamw": "AdamW", "defaults": "Adam", "adagrad": "Adagrad", "rmsprop": "RMSprop"}


def parameters(dtype):
    rng = np.random.default_rng(0)
    return [nn.Parameter(np.array(rng.standard_normal(shape), dtype)) for shape in SHAPES]


def gradients(dtype, steps=6):
    rng = np.random.default_rng(1)
    return [[np.array(rng.standard_normal(shape), dtype) for shape in SHAPES] for _ in range(steps)]


def walk(optimizer, params, grads):
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = g.copy()
        optimizer.step()


def sgd_written_out(w, grads, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    velocity = None
    for g in grads:
        g = g + weight_decay * w
        if momentum:
            velocity = g if velocity is None else momentum * velocity + g
            g = g + momentum * velocity if nesterov else velocity
        w = w - lr * g
    return w


def adam_written_out(w, grads, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    m = v = np.zeros_like(w)
    for step, g in enumerate(grads, 1):
        if decoupled:
            w = w - lr * weight_decay * w
        else:
            g = g + weight_decay * w
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        w = w - lr * (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
    return w


def adagrad_written_out(w, grads, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    total = np.full_like(w, initial_accumulator_value)
    for step, g in enumerate(grads):
        g = g + weight_decay * w
        total = total + g * g
        w = w - lr / (1 + step * lr_decay) * g / (np.sqrt(total) + eps)
    return w


def rmsprop_written_out(w, grads, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    square = mean = velocity = np.zeros_like(w)
    for g in grads:
        g = g + weight_decay * w
        square, mean = alpha * square + (1 - alpha) * g * g, alpha * mean + (1 - alpha) * g
        velocity = momentum * velocity + g / (np.sqrt(square - mean * mean * centered) + eps)
        w = w - lr * velocity
    return w


WRITTEN_OUT = {"SGD": sgd_written_out, "Adagrad": adagrad_written_out, "RMSprop": rmsprop_written_out}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_steps_written_out(name, dtype, tolerance):
    make, options = MAKERS[name]
    params, grads = parameters(dtype), gradients(dtype)
    start = [p.data.astype(np.float64) for p in params]
    views = [p.data for p in params]
    walk(make(params), params, grads)
    for k, (p, w) in enumerate(zip(params, start, strict=True)):
        one = [step[k].astype(np.float64) for step in grads]
        options = options | ({"decoupled": True} if name == "adamw" else {})
        want = WRITTEN_OUT.get(THEIRS.get(name.split()[0], "SGD"), adam_written_out)(w, one, **options)
        assert p.data is views[k]
        assert p.data.dtype == dtype
        assert np.abs(p.data - want).max() < tolerance
        assert np.abs(want - w).max() > 100 * tolerance


@pytest.mark.parametrize("name", MAKERS)
def test_parity_with_pytorch(name):
    torch = pytest.importorskip("torch")
    make, options = MAKERS[name]
    kind = getattr(torch.optim, THEIRS.get(name, THEIRS.get(name.split()[0], "SGD")))
    params, grads = parameters(np.float64), gradients(np.float64)
    others = [torch.nn.Parameter(torch.from_numpy(p.data.copy())) for p in params]
    theirs = kind(others, **options)
    for step in grads:
        for p, g in zip(others, step, strict=True):
            p.grad = torch.from_numpy(g.copy())
        theirs.step()
    walk(make(params), params, grads)
    for p, other in zip(params, others, strict=True):
        assert np.allclose(p.data, other.detach().numpy(), rtol=1e-12, atol=1e-14)
    # and PyTorch's own state goes on here
    resumed = make(params)
    resumed.load_state_dict(theirs.state_dict())
    for p, other, g in zip(params, others, gradients(np.float64, 1)[0], strict=True):
        p.grad, other.grad = g.copy(), torch.from_numpy(g.copy())
    resumed.step()
    theirs.step()
    for p, other in zip(params, others, strict=True):
        assert np.allclose(p.data, other.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", MAKERS)
def test_going_on_from_a_state_gives_the_same_bits(name):
    make, _ = MAKERS[name]
    grads = gradients(np.float32)
    whole = parameters(np.float32)
    walk(make(whole), whole, grads)
    first = parameters(np.float32)
    optimizer = make(first)
    walk(optimizer, first, grads[:3])
    state = optimizer.state_dict()
    second = [nn.Parameter(p.data.copy()) for p in first]
    resumed = make(second)
    resumed.load_state_dict(copy.deepcopy(state))
    walk(optimizer, first, grads[3:4])  # the state is a snapshot: this changes nothing in it
    walk(resumed, second, grads[3:])
    for a, b in zip(whole, second, strict=True):
        assert np.array_equal(a.data, b.data)


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_parameters_and_optimiser_goes_on_alike(twin):
    params, grads = parameters(np.float32), gradients(np.float32)
    adam = optim.Adam(params, lr=0.1)
    walk(adam, params, grads[:3])
    params2, adam2 = twin((params, adam))
    walk(adam, params, grads[3:])
    walk(adam2, params2, grads[3:])
    for a, b in zip(params, params2, strict=True):
        assert a is not b
        assert np.array_equal(a.data, b.data)


def test_a_state_that_does_not_fit_changes_nothing():
    params = parameters(np.float32)
    adam = optim.Adam(params, lr=0.1)
    walk(adam, params, gradients(np.float32, 2))
    before = adam.state_dict()
    for change, error, message in (
        (lambda s: s["param_groups"][0]["params"].pop(), ValueError, "param_groups: expected groups of"),
        (
            lambda s: s["state"][1].update(exp_avg=np.zeros(8)),
            ValueError,
            r"state\[1\]: exp_avg: expected shape \(7,\), got \(8,\)",
        ),
        (lambda s: s["state"][1].pop("exp_avg_sq"), ValueError, r"state\[1\]: expected step, exp_avg, exp_avg_sq, got none of exp_avg_sq"),
        (lambda s: s["state"][0].pop("step"), ValueError, r"state\[0\]: expected step, exp_avg, exp_avg_sq, got none of step"),
        (lambda s: s["param_groups"][0].update(lr=-1.0), ValueError, "lr: expected at least 0"),
        (lambda s: s.pop("state"), TypeError, "state: expected a mapping"),
    ):
        bad = copy.deepcopy(before)
        bad["param_groups"][0]["lr"] = 5.0
        change(bad)
        with pytest.raises(error, match=message):
            adam.load_state_dict(bad)
        after = adam.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert all(
            np.array_equal(after["state"][k][name], value)
            for k, entry in before["state"].items()
            for name, value in entry.items()
        )


def test_groups_have_their_own_options():
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    sgd = optim.SGD([{"params": [a], "lr": 1.0}, {"params": b}], lr=0.1)
    a.grad = b.grad = np.ones(2)
    sgd.step()
    assert a.data.tolist() == [0, 0]
    assert np.allclose(b.data, 0.9)
    sgd.param_groups[1]["lr"] = 0.4
    sgd.step()
    assert np.allclose(b.data, 0.5)
    c = nn.Parameter(np.ones(2))
    sgd.add_param_group({"params": [c], "momentum": 0.5})
    assert [g["momentum"] for g in sgd.param_groups] == [0.0, 0.0, 0.5]
    assert repr(sgd).count("|") == 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: optim.SGD([], lr=0.1), ValueError, "params: expected at least one"),
        (lambda p: optim.SGD(p[0], lr=0.1), TypeError, "params: expected an iterable"),
        (lambda p: optim.SGD([p[0], p[0]], lr=0.1), ValueError, r"params\[1\]: expected each Parameter once"),
        (lambda p: optim.SGD([np.ones(2)], lr=0.1), TypeError, r"params\[0\]: expected a Parameter, got ndarray"),
        (
            lambda p: optim.SGD([fs.Tensor(np.ones(2, int))], lr=0.1),
            TypeError,
            r"params\[0\]: expected float32 or float64",
        ),
        (lambda p: optim.SGD(p, lr=-0.1), ValueError, "lr: expected at least 0.0, got -0.1"),
        (lambda p: optim.SGD(p, lr=math.nan), ValueError, "lr: expected"),
        (lambda p: optim.SGD(p, lr=0.1, nesterov=True), ValueError, "nesterov: expected momentum above 0"),
        (lambda p: optim.Adam(p, betas=(0.9, 1.0)), ValueError, "betas: expected two numbers"),
        (lambda p: optim.Adam(p, betas=0.9), TypeError, "betas: expected two numbers, got 0.9"),
        (lambda p: optim.Adam(p, eps=-1), ValueError, "eps: expected at least"),
        (lambda p: optim.SparseAdam(p, betas=(0.9, 1.0)), ValueError, "betas: expected two numbers"),
        (lambda p: optim.Adagrad(p, lr_decay=-1), ValueError, "lr_decay: expected at least"),
        (lambda p: optim.RMSprop(p, alpha=1.0), ValueError, "alpha: expected a number from 0 up to but not 1, got 1.0"),
        (lambda p: optim.RMSprop(p, momentum=None), TypeError, "momentum: expected a number, got NoneType"),
        (lambda p: optim.Adam(p, lr="0.1"), TypeError, "lr: expected a number, got str"),
        (lambda p: optim.SGD(None, lr=0.1), TypeError, "params: expected an iterable of Parameters, got NoneType"),
        (lambda p: optim.Adam([{"params": p, "momentum": 0.1}]), TypeError, "Adam has no option momentum"),
        (lambda p: optim.Adam([{"lr": 0.1}]), TypeError, 'group: expected a dict with "params"'),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make([nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))])


def test_a_gradient_that_does_not_fit_stops_the_whole_step():
    a, b = nn.Parameter(np.ones(2, np.float32)), nn.Parameter(np.ones(2, np.float32))
    sgd = optim.SGD([a, b], lr=0.1)
    a.grad = np.ones(2, np.float32)
    for wrong in (np.ones(3, np.float32), np.ones(2)):
        b.grad = wrong
        with pytest.raises(ValueError, match="grad: expected float32"):
            sgd.step()
        assert a.data.tolist() == [1, 1]
    b.grad = np.ones(2, np.float32)
    b.data.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        sgd.step()
    assert a.data.tolist() == [1, 1]


def test_parameters_without_gradient_and_with_odd_strides():
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.asfortranarray(np.ones((3, 4))))
    adam = optim.Adam([a, b], lr=0.1)
    b.grad = np.arange(12.0).reshape(4, 3).T - 5
    want = adam_written_out(np.ones((3, 4)), [b.grad], lr=0.1)
    adam.step()
    assert a.data.tolist() == [1, 1]
    assert np.allclose(b.data, want)
    assert 0 not in adam.state_dict()["state"]


def test_zero_grad_drops_gradients():
    a = nn.Parameter(np.ones(2))
    a.grad = np.ones(2)
    optim.SGD([a], lr=0.1).zero_grad()
    assert a.grad is None


def test_a_step_between_forward_and_backward_is_noticed():
    layer = nn.LSTM(2, 3)
    sgd = optim.SGD(layer.parameters(), lr=0.1)
    y, _ = layer(fs.Tensor(np.ones((2, 1, 2), np.float32)))
    for p in layer.parameters():
        p.grad = np.ones_like(p.data)
    sgd.step()
    with pytest.raises(RuntimeError, match="changed"):
        y.sum().backward()


def test_training_brings_the_loss_down():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 4)).astype(np.float32)
    want = x @ rng.standard_normal((4, 2)).astype(np.float32) + 1
    layer = nn.Linear(4, 2, rng=1)
    adam = optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(200):
        adam.zero_grad()
        fs.functional.mse_loss(layer(fs.Tensor(x)), want).backward()
        adam.step()
    assert np.abs(layer(x) - want).max() < 0.01


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_grad_norm(dtype):
    params = parameters(dtype)
    params.append(nn.Parameter(np.ones(2, dtype)))
    for p, g in zip(params, gradients(dtype, 1)[0], strict=False):
        p.grad = g
    flat = np.concatenate([p.grad.ravel() for p in params[:-1]]).astype(np.float64)
    norm = optim.clip_grad_norm(params, 1e9)
    assert math.isclose(norm, np.linalg.norm(flat), rel_tol=1e-6)
    assert np.array_equal(np.concatenate([p.grad.ravel() for p in params[:-1]]), flat.astype(dtype))
    assert optim.clip_grad_norm(iter(params), 0.5) == norm
    clipped = np.concatenate([p.grad.ravel() for p in params[:-1]])
    assert np.allclose(clipped, flat * 0.5 / (norm + 1e-6), rtol=1e-6)
    assert params[-1].grad is None


def test_clip_grad_norm_edges():
    p = nn.Parameter(np.ones(2))
    assert optim.clip_grad_norm([p], 1.0) == 0.0
    p.grad = np.array([3.0, math.nan])
    assert math.isnan(optim.clip_grad_norm([p], 1.0))
    p.grad = np.broadcast_to(np.float64(3.0), (2,))  # read-only, both elements one number in memory
    assert math.isclose(optim.clip_grad_norm(p, 1.0), math.sqrt(18))
    assert math.isclose(np.linalg.norm(p.grad), 1.0, rel_tol=1e-5)
    with pytest.raises(ValueError, match="max_norm: expected at least 0"):
        optim.clip_grad_norm([p], -1.0)


def test_clip_grad_value():
    p, q = nn.Parameter(np.zeros(3)), nn.Parameter(np.zeros(3))
    p.grad = np.array([3.0, -0.5, -7.0])
    optim.clip_grad_value([p, q], 1.0)
    assert p.grad.tolist() == [1.0, -0.5, -1.0]
    with pytest.raises(ValueError, match="clip_value"):
        optim.clip_grad_value([p], -1.0)
