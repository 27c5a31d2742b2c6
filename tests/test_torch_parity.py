"""The independent witness: PyTorch's results and gradients, where it is installed."""

import numpy as np
import pytest

import fastseq as fs
from fastseq.backends import reference
from tests.cases import CASES, lstm_case
from tests.recurrent_problems import OPTIONS
from tests.tolerance import assert_close

torch = pytest.importorskip("torch")
F = torch.nn.functional
torch.set_num_threads(1)  # at these sizes its threads would only wait for each other

_SKIPPED = {"dropout"}  # its masks are ours alone


def torch_lstm(x, w_ih, w_hh, b_ih=None, b_hh=None, *, h_0=None, c_0=None):
    """torch.nn.LSTM called as a function."""
    B, H = x.shape[1], w_hh.shape[1]
    zeros = torch.zeros((B, H), dtype=x.dtype)
    state = [(zeros if s is None else s)[None] for s in (h_0, c_0)]
    weights = [w_ih, w_hh] + ([] if b_ih is None else [b_ih, b_hh])
    y, h, c = torch.lstm(x, state, weights, b_ih is not None, 1, 0.0, False, False, False)
    return y, h[0], c[0]


def torch_additive(q, k, v, u, *, key_lengths=None, return_weights=False):
    """The composition that one writes in PyTorch, with zeros for the rows that have no key."""
    scores = torch.tanh(q[:, :, None] + k[:, None]) @ u
    if key_lengths is not None:
        scores = scores.masked_fill(torch.arange(k.shape[1]) >= torch.tensor(key_lengths)[:, None, None], -torch.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    return (weights @ v, weights) if return_weights else weights @ v


def torch_attention(
    q, k, v, attn_mask=0.0, *, is_causal=False, causal_offset=0, scale=None, enable_gqa=False, key_lengths=None, window=None, return_weights=False
):  # fmt: skip
    """The composition, with zeros for the queries that see no key."""
    group, (Tq, Tk) = q.shape[-3] // k.shape[-3], (q.shape[-2], k.shape[-2])
    k, v = (x.repeat_interleave(group, -3) for x in (k, v))
    behind = torch.arange(Tq)[:, None] + causal_offset - torch.arange(Tk)
    hidden = (behind < 0 if is_causal else behind != behind) | (behind.abs() >= (window or 2**40))
    if key_lengths is not None:
        hidden = hidden | (torch.arange(Tk) >= torch.tensor(key_lengths)[..., None, None, None])
    scores = q @ k.swapaxes(-1, -2) * (max(q.shape[-1], 1) ** -0.5 if scale is None else scale) + attn_mask
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1).nan_to_num(0.0)
    return (weights @ v, weights) if return_weights else weights @ v


def torch_self_attention(qkv, *, num_heads, batch_first, **options):
    """The same on parts of one array."""
    x = qkv if batch_first else qkv.swapaxes(0, 1)
    heads = x.reshape(*x.shape[:2], 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    y = torch_attention(*heads, **options)
    y, *weights = y if isinstance(y, tuple) else (y,)
    y = y.swapaxes(1, 2).flatten(2)
    return y if batch_first else y.swapaxes(0, 1), *weights


def torch_negative_sampling(positive, negative, *, reduction, count=None):
    losses = -F.logsigmoid(positive) - F.logsigmoid(-negative).mean(-1) * (count or negative.shape[-1])
    return losses if reduction == "none" else getattr(losses, reduction)()


def torch_function(case):
    """What computes the same in PyTorch, from the same arguments."""
    options = dict(case.options)
    if case.op == "lstm":
        return torch_lstm
    if case.op == "scaled_dot_product_attention":
        return lambda *arguments: torch_attention(*arguments, **options)
    if case.op == "self_attention":
        return lambda *arguments: torch_self_attention(*arguments, **options)
    if case.op == "additive_attention":
        return lambda *arguments: torch_additive(*arguments, **options)
    if case.op in ("softmax", "log_softmax"):
        return lambda x: getattr(F, case.op)(x, dim=options.get("axis", -1))
    if case.op == "embedding":
        return lambda ids, weight: F.embedding(ids, weight, **options)
    if case.op == "cross_entropy":
        return lambda logits, targets: F.cross_entropy(logits, targets, **options)
    if case.op in ("linear", "layer_norm", "rms_norm", "linear_cross_entropy"):
        names = list(case.shapes)
        return lambda *arguments: _composed(case.op, dict(zip(names, arguments, strict=True)), options)
    if case.op in ("conv1d", "conv2d"):
        causal = options.pop("causal", False)
        before = options.get("dilation", 1) * (case.shapes["weight"][-1] - 1) if causal else 0
        return lambda x, weight, bias=None: getattr(F, case.op)(F.pad(x, (before, 0)), weight, bias, **options)
    if case.op == "batch_norm":
        names = list(case.shapes)[1:]
        return lambda x, *more: F.batch_norm(x, None, None, training=True, **dict(zip(names, more, strict=True)), **options)
    if case.op in ("gelu", "silu", "softplus", "elu", "leaky_relu", "max_pool2d"):
        return lambda x: getattr(F, case.op)(x, **options)
    if case.op == "binary_cross_entropy_with_logits":
        return lambda x, t: F.binary_cross_entropy_with_logits(x, t, **options | {"pos_weight": torch.tensor(options.get("pos_weight", 1.0))})
    if case.op in ("mse_loss", "l1_loss", "huber_loss"):
        return lambda *arguments: getattr(F, case.op)(*arguments, **options)
    if case.op == "rmse_loss":
        return lambda x, t: F.mse_loss(x, t).sqrt()
    if case.op == "negative_sampling_loss":
        return lambda positive, negative: torch_negative_sampling(positive, negative, **options)
    return lambda *arguments: getattr(torch, case.op)(*arguments)


def _composed(op, arrays, options):
    """What is one call of ours and several of theirs."""
    x, weight, bias = arrays["x"], arrays.get("weight"), arrays.get("bias")
    if op == "linear":
        functions = {"identity": lambda y: y, "gelu": F.gelu}
        function = options.get("function", "identity")
        return functions.get(function, getattr(torch, function, None))(F.linear(x, weight, bias))
    if op == "linear_cross_entropy":
        options.pop("bias", None)
        return F.cross_entropy(F.linear(x, weight, bias), arrays["targets"], **options)
    eps = options.get("eps", 1e-5)
    if op == "rms_norm":
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    s = x + arrays["residual"] if "residual" in arrays else x
    y = F.layer_norm(s, s.shape[-1:], weight, bias, eps)
    return (y, s) if "residual" in arrays else y


def comparable(case):
    """PyTorch's own limits: it refuses these sizes."""
    if case.op == "lstm":
        return all(n > 0 for shape in case.shapes.values() for n in shape)
    if case.op in ("layer_norm", "rms_norm"):
        return case.shapes["x"][-1] > 0
    if case.op == "batch_norm":
        return case.shapes["x"][1] > 0
    return case.op not in _SKIPPED and "dropout_p" not in case.options


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", [c for c in CASES if comparable(c)], ids=str)
def test_values_and_gradients(case, dtype, rng):
    inputs = {name: a.copy() for name, a in case.inputs(rng, dtype).items()}
    got = case.evaluate(inputs, np.random.default_rng(1))
    # In float64 on their side, so that the bound is about our rounding alone.
    wide = {name: torch.from_numpy(a.astype(np.float64) if a.dtype.kind == "f" else a) for name, a in inputs.items()}
    for name in case.differentiable:
        wide[name].requires_grad_()
    outputs = torch_lstm(**wide) if case.op == "lstm" else torch_function(case)(*wide.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = np.random.default_rng(1)
    dys = [np.asarray(upstream.standard_normal(tuple(y.shape))).astype(dtype).astype(np.float64) for y in outputs]
    loss = sum((y * torch.as_tensor(dy)).sum() for y, dy in zip(outputs, dys, strict=True))
    loss.backward()
    for k, y in enumerate(outputs):
        assert_close(got[f"output {k}"], y.detach().numpy(), dtype=dtype, terms=case.terms, name=f"output {k}")
    for name in case.differentiable:
        assert_close(got[f"d{name}"], wide[name].grad.to_dense().numpy(), dtype=dtype, terms=case.terms, name=f"d{name}")


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


# ---------------------------------------------------------------- recurrent layers

RECURRENT = {
    "RNN": ("RNN", {}),
    "RNN of ReLU": ("RNN", {"nonlinearity": "relu"}),
    "LSTM": ("LSTM", {}),
    "LSTM with projection": ("LSTM", {"proj_size": 5}),
    "GRU": ("GRU", {}),
}


def recurrent_pair(kind, dtype, **options):
    """Our layer and theirs, in float64, with the same numbers: their state dict loads as it is."""
    name, more = RECURRENT[kind]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(7, 19, **more, **options, dtype=torch.float32 if dtype == np.float32 else torch.float64)
    ours = getattr(fs.nn, name)(7, 19, **more, **options, dtype=dtype)
    ours.load_state_dict({name: p.numpy() for name, p in theirs.state_dict().items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return ours, theirs.double()


def both(array, requires_grad=True):
    """The same numbers as a Tensor of ours and as one of theirs in float64."""
    return fs.Tensor(array, requires_grad=requires_grad), torch.tensor(array.astype(np.float64), requires_grad=requires_grad)


def assert_the_same_layer(kind, options, B, dtype, rng, lengths=None, given_state=True):
    """Outputs, final states and all gradients, under random gradients of all outputs."""
    ours, theirs = recurrent_pair(kind, dtype, **options)
    T, D, L = 11, 1 + options.get("bidirectional", False), options.get("num_layers", 1)
    lstm, first = RECURRENT[kind][0] == "LSTM", options.get("batch_first", False)
    P = RECURRENT[kind][1].get("proj_size", 19)
    x, xt = both(rng.standard_normal((B, T, 7) if first else (T, B, 7)).astype(dtype))
    states = [both(rng.standard_normal((L * D, B, n)).astype(dtype)) for n in ([P, 19] if lstm else [P])]
    mine, other = ((s[0] for s in states), (s[1] for s in states)) if given_state else ((), ())
    mine, other = (tuple(s) if lstm and given_state else next(iter(s), None) for s in (mine, other))
    y, end = ours(x, mine, lengths=lengths)
    if lengths is None:
        want_y, want_end = theirs(xt, other)
    else:
        pack, unpack = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
        packed = pack(xt, torch.tensor(lengths), batch_first=first, enforce_sorted=False)
        want_y, want_end = theirs(packed, other)
        want_y, _ = unpack(want_y, batch_first=first, total_length=T)
    outputs, wants = ([y, *end], [want_y, *want_end]) if lstm else ([y, end], [want_y, want_end])
    upstream = [rng.standard_normal(o.shape).astype(dtype) for o in outputs]
    loss = sum(((o * g).sum() for o, g in zip(outputs[1:], upstream[1:], strict=True)), (outputs[0] * upstream[0]).sum())
    loss.backward()
    sum((o * torch.tensor(g)).sum() for o, g in zip(wants, upstream, strict=True)).backward()
    pairs = [(f"output {k}", o.data, w) for k, (o, w) in enumerate(zip(outputs, wants, strict=True))]
    pairs += [("dx", x.grad, xt.grad)]
    pairs += [(f"dstate {k}", s.grad, t.grad) for k, (s, t) in enumerate(states) if given_state]
    gradients = dict(ours.named_parameters())
    pairs += [(f"d{name}", gradients[name].grad, p.grad) for name, p in theirs.named_parameters()]
    for name, got, want in pairs:
        assert_close(got, want.detach().numpy(), dtype=dtype, terms=T * L * (26 + B), name=name)


STRUCTURES = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": True, "bias": False},
]


@pytest.mark.parametrize("options", STRUCTURES, ids=str)
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers(kind, options, dtype, rng):
    assert_the_same_layer(kind, options, 4, dtype, rng)
    assert_the_same_layer(kind, options, 1, dtype, rng, given_state=False)


@pytest.mark.parametrize("options", STRUCTURES, ids=str)
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_of_padded_batches(kind, options, dtype, rng):
    """What needs pack_padded_sequence there takes lengths here."""
    assert_the_same_layer(kind, options, 5, dtype, rng, lengths=[3, 11, 1, 8, 11])
    assert_the_same_layer(kind, options, 3, dtype, rng, lengths=[2, 5, 4], given_state=False)


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_without_a_batch(kind, dtype, rng):
    ours, theirs = recurrent_pair(kind, dtype, num_layers=2, bidirectional=True)
    x = rng.standard_normal((11, 7)).astype(dtype)
    y, end = ours(x)
    with torch.no_grad():
        want_y, want_end = theirs(torch.from_numpy(x.astype(np.float64)))
    pairs = [(y, want_y), *(zip(end, want_end, strict=True) if "LSTM" in kind else [(end, want_end)])]
    for got, want in pairs:
        assert_close(got, want.numpy(), dtype=dtype, terms=2 * 11 * 26)


@pytest.mark.parametrize(("kind", "theirs"), [("RNNCell", "RNNCell"), ("LSTMCell", "LSTMCell"), ("GRUCell", "GRUCell")])
def test_recurrent_cells(kind, theirs, dtype, rng):
    theirs = getattr(torch.nn, theirs)(7, 19, dtype=torch.float32 if dtype == np.float32 else torch.float64)
    ours = getattr(fs.nn, kind)(7, 19, dtype=dtype)
    ours.load_state_dict({name: p.numpy() for name, p in theirs.state_dict().items()})
    theirs = theirs.double()
    x, xt = both(rng.standard_normal((4, 7)).astype(dtype))
    states = [both(rng.standard_normal((4, 19)).astype(dtype)) for _ in range(2 if kind == "LSTMCell" else 1)]
    mine, other = (tuple(s[k] for s in states) if len(states) > 1 else states[0][k] for k in (0, 1))
    got, want = ours(x, mine), theirs(xt, other)
    got, want = (got, want) if kind == "LSTMCell" else ((got,), (want,))
    upstream = [rng.standard_normal((4, 19)).astype(dtype) for _ in got]
    sum(((o * g).sum() for o, g in zip(got[1:], upstream[1:], strict=True)), (got[0] * upstream[0]).sum()).backward()
    sum((o * torch.tensor(g)).sum() for o, g in zip(want, upstream, strict=True)).backward()
    pairs = [(o.data, w) for o, w in zip(got, want, strict=True)] + [(x.grad, xt.grad), *((s.grad, t.grad) for s, t in states)]
    gradients = dict(ours.named_parameters())
    pairs += [(gradients[name].grad, p.grad) for name, p in theirs.named_parameters()]
    for o, w in pairs:
        assert_close(o, w.detach().numpy(), dtype=dtype, terms=30)


@pytest.mark.parametrize("option", OPTIONS, ids=", ".join)
def test_the_reference_agrees_with_automatic_differentiation(option, rng):
    """Every cell and option, also those that PyTorch's own layers lack, written out once more and differentiated by it."""
    from tests import torch_recurrent

    problem = OPTIONS[option]
    a = problem.inputs(rng, np.float64)
    got, want = problem.results(reference, a), problem.results(torch_recurrent, a)
    assert got.keys() == want.keys()
    for name in got:
        assert_close(got[name], want[name], terms=problem.terms, name=name)


# ---------------------------------------------------------------- optimisers


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_takes_the_same_steps(momentum, nesterov, dtype, rng):
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.01}
    _same_steps(fs.optim.SGD, torch.optim.SGD, options, dtype, rng)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_takes_the_same_steps(name, weight_decay, dtype, rng):
    options = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": weight_decay}
    _same_steps(getattr(fs.optim, name), getattr(torch.optim, name), options, dtype, rng)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("lr_decay", "initial_accumulator_value", "eps"), [(0.0, 0.0, 1e-10), (0.01, 0.5, 1e-3)])
def test_adagrad_takes_the_same_steps(weight_decay, lr_decay, initial_accumulator_value, eps, dtype, rng):
    options = {"lr": 0.1, "lr_decay": lr_decay, "weight_decay": weight_decay, "initial_accumulator_value": initial_accumulator_value, "eps": eps}
    _same_steps(fs.optim.Adagrad, torch.optim.Adagrad, options, dtype, rng)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_takes_the_same_steps(weight_decay, momentum, centered, dtype, rng):
    options = {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": weight_decay, "momentum": momentum, "centered": centered}
    _same_steps(fs.optim.RMSprop, torch.optim.RMSprop, options, dtype, rng)


def _same_steps(ours, theirs, options, dtype, rng):
    start = rng.standard_normal((5, 7)).astype(dtype)
    p = fs.nn.Parameter(start.copy())
    q = torch.nn.Parameter(torch.from_numpy(start.astype(np.float64)))
    mine, other = ours([p], **options), theirs([q], **options)
    for _ in range(40):
        grad = rng.standard_normal((5, 7)).astype(dtype)
        p.grad, q.grad = grad.copy(), torch.from_numpy(grad.astype(np.float64))
        mine.step()
        other.step()
    assert_close(p.data, q.detach().numpy(), dtype=dtype, terms=400)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # about tensors that their Adagrad makes itself
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("Adagrad", {"lr": 0.1}),
        ("Adagrad", {"lr": 0.1, "lr_decay": 0.02, "initial_accumulator_value": 0.1, "eps": 1e-3}),
        ("SparseAdam", {"lr": 0.02}),
        ("SparseAdam", {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-3}),
    ],
)
def test_sparse_rows_take_the_same_steps(name, options, dtype, rng):
    """A table of which each batch names a few rows, some of them more than once, and one is padding."""
    table = fs.nn.Embedding(50, 7, padding_idx=3, sparse=True, dtype=dtype, rng=0)
    other = torch.nn.Embedding(50, 7, padding_idx=3, sparse=True, dtype=torch.float64)
    with torch.no_grad():
        other.weight.copy_(torch.from_numpy(table.weight.data.astype(np.float64)))
    mine, theirs = getattr(fs.optim, name)(table.parameters(), **options), getattr(torch.optim, name)(other.parameters(), **options)
    for _ in range(40):
        ids, dy = rng.integers(0, 50, (3, 5)), rng.standard_normal((3, 5, 7)).astype(dtype)
        mine.zero_grad()
        theirs.zero_grad()
        table(fs.Tensor(ids)).backward(dy)
        other(torch.from_numpy(ids)).backward(torch.from_numpy(dy.astype(np.float64)))
        assert_close(np.asarray(table.weight.grad), other.weight.grad.to_dense().numpy(), dtype=dtype, terms=15)
        mine.step()
        theirs.step()
    assert_close(table.weight.data, other.weight.detach().numpy(), dtype=dtype, terms=400)
    if name != "SGD":  # their state goes on here
        resumed = getattr(fs.optim, name)(table.parameters(), lr=9.0)
        resumed.load_state_dict(theirs.state_dict())
        assert {k: v for k, v in resumed.param_groups[0].items() if k in options} == options


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
