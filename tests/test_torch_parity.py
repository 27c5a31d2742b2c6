"""The independent witness: PyTorch's results and gradients, where it is installed."""

import numpy as np
import pytest

import fastseq as fs
from tests.cases import CASES, lstm_case
from tests.tolerance import assert_close

torch = pytest.importorskip("torch")
F = torch.nn.functional

_SKIPPED = {"dropout"}  # its masks are ours alone


def torch_lstm(x, w_ih, w_hh, b_ih=None, b_hh=None, *, h_0=None, c_0=None):
    """torch.nn.LSTM called as a function."""
    B, H = x.shape[1], w_hh.shape[1]
    zeros = torch.zeros((B, H), dtype=x.dtype)
    state = [(zeros if s is None else s)[None] for s in (h_0, c_0)]
    weights = [w_ih, w_hh] + ([] if b_ih is None else [b_ih, b_hh])
    y, h, c = torch.lstm(x, state, weights, b_ih is not None, 1, 0.0, False, False, False)
    return y, h[0], c[0]


def torch_function(case):
    """What computes the same in PyTorch, from the same arguments."""
    options = dict(case.options)
    if case.op == "lstm":
        return torch_lstm
    if case.op in ("softmax", "log_softmax"):
        return lambda x: getattr(F, case.op)(x, dim=options.get("axis", -1))
    if case.op == "embedding":
        return lambda ids, weight: F.embedding(ids, weight, **options)
    if case.op == "cross_entropy":
        return lambda logits, targets: F.cross_entropy(logits, targets, **options)
    if case.op == "linear":
        return F.linear
    return lambda *arguments: getattr(torch, case.op)(*arguments)


def comparable(case):
    """PyTorch's own limits: it refuses these sizes."""
    if case.op == "lstm":
        return all(n > 0 for shape in case.shapes.values() for n in shape)
    return case.op not in _SKIPPED


@pytest.mark.parametrize("case", [c for c in CASES if comparable(c)], ids=str)
def test_values_and_gradients(case, dtype, rng):
    inputs = {name: a.copy() for name, a in case.inputs(rng, dtype).items()}
    got = case.evaluate(inputs, np.random.default_rng(1))
    # In float64 on their side, so that the bound is about our rounding alone.
    wide = {name: torch.from_numpy(a.astype(np.float64) if a.dtype.kind == "f" else a) for name, a in inputs.items()}
    for name in case.differentiable:
        wide[name].requires_grad_()
    outputs = torch_lstm(**wide) if case.op == "lstm" else (torch_function(case)(*wide.values()),)
    upstream = np.random.default_rng(1)
    dys = [np.asarray(upstream.standard_normal(tuple(y.shape))).astype(dtype).astype(np.float64) for y in outputs]
    loss = sum((y * torch.as_tensor(dy)).sum() for y, dy in zip(outputs, dys, strict=True))
    loss.backward()
    for k, y in enumerate(outputs):
        assert_close(got[f"output {k}"], y.detach().numpy(), dtype=dtype, terms=case.terms, name=f"output {k}")
    for name in case.differentiable:
        assert_close(got[f"d{name}"], wide[name].grad.numpy(), dtype=dtype, terms=case.terms, name=f"d{name}")


@pytest.mark.parametrize("B", [1, 8])
def test_a_module_with_the_same_state_dict(B, dtype, rng):
    """torch.nn.LSTM and fs.nn.LSTM exchange weights by name."""
    theirs = torch.nn.LSTM(7, 19, dtype=torch.float32 if dtype == np.float32 else torch.float64)
    ours = fs.nn.LSTM(7, 19, dtype=dtype)
    ours.load_state_dict({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    x = rng.standard_normal((11, B, 7)).astype(dtype)
    y, (h, c) = ours(x)
    with torch.no_grad():
        want_y, (want_h, want_c) = theirs.double()(torch.from_numpy(x.astype(np.float64)))
    for got, want in ((y, want_y), (h, want_h), (c, want_c)):
        assert_close(got, want.numpy(), dtype=dtype, terms=11 * 26)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_takes_the_same_steps(momentum, nesterov, dtype, rng):
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.01}
    _same_steps(fs.optim.SGD, torch.optim.SGD, options, dtype, rng)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_takes_the_same_steps(name, weight_decay, dtype, rng):
    options = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": weight_decay}
    _same_steps(getattr(fs.optim, name), getattr(torch.optim, name), options, dtype, rng)


def _same_steps(ours, theirs, options, dtype, rng):
    start = rng.standard_normal((5, 7)).astype(dtype)
    p = fs.nn.Parameter(start.copy())
    q = torch.nn.Parameter(torch.from_numpy(start.astype(np.float64)))
    mine, other = ours([p], **options), theirs([q], **options)
    for _ in range(5):
        grad = rng.standard_normal((5, 7)).astype(dtype)
        p.grad, q.grad = grad.copy(), torch.from_numpy(grad.astype(np.float64))
        mine.step()
        other.step()
    assert_close(p.data, q.detach().numpy(), dtype=dtype, terms=50)


def test_clip_grad_norm_agrees(dtype, rng):
    shapes = [(3, 4), (5,), (2, 2)]
    grads = [rng.standard_normal(s).astype(dtype) for s in shapes]
    ours = [fs.nn.Parameter(np.zeros(s, dtype)) for s in shapes]
    theirs = [torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in shapes]
    for p, q, g in zip(ours, theirs, grads, strict=True):
        p.grad, q.grad = g.copy(), torch.from_numpy(g.astype(np.float64))
    norm = fs.optim.clip_grad_norm(ours, 1.0)
    want = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert abs(norm - float(want)) <= 1e-6 * float(want)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-5)


def test_every_operation_has_a_witness():
    assert {c.op for c in CASES} - {c.op for c in CASES if comparable(c)} == _SKIPPED
    assert not comparable(lstm_case(0, 2, 3, 4))
