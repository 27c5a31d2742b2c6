"""AttentionDecoder, the layer: its forms against loops of steps and PyTorch, generation, and what bad input gets."""

import copy
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close, assert_same_bits

T, B, S, I, H, M = 5, 4, 6, 3, 8, 8
FORMS = [
    {"cell": cell, "attention": attention, "input_feeding": fed}
    for cell in ("lstm", "gru")
    for attention in ("additive", "dot", "scaled_dot", "bilinear", None)
    for fed in (True, False)
]
LENGTHS, MEMORY_LENGTHS = np.array([5, 2, 0, 4]), np.array([6, 1, 3, 0])
form = pytest.mark.parametrize("options", FORMS, ids=lambda o: "-".join(map(str, o.values())))


def made(options, dtype=np.float64, **more):
    return nn.AttentionDecoder(I, H, M, dtype=dtype, rng=1, **options, **more)


def inputs(rng, dtype=np.float64):
    """x, memory, and the state of an LSTM; a GRU takes its first array."""
    shapes = (T, B, I), (S, B, M), (B, H), (B, H)
    x, memory, h, c = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, memory, (h, c)


def state_for(options, state):
    return state if options["cell"] == "lstm" else state[0]


def flat(state):
    return state if isinstance(state, tuple) else (state,)


# ---------------------------------------------------------------- values


def numpy_decoder(layer, x, memory, state, lengths, memory_lengths):
    """The equations, row by row and step by step."""
    w = {name: p.data for name, p in layer.named_parameters()}
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    outputs, weights = np.zeros((T, B, H)), np.zeros((T, B, S))
    ends = [a.copy() for a in flat(state)]

    def cell(fed, h, c):
        p, q = w["weight_ih"] @ fed + w["bias_ih"], w["weight_hh"] @ h + w["bias_hh"]
        if layer.cell == "lstm":
            i, f, g, o = np.split(p + q, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            return sigmoid(o) * np.tanh(c), c
        (p_r, p_z, p_n), (q_r, q_z, q_n) = np.split(p, 3), np.split(q, 3)
        z = sigmoid(p_z + q_z)
        return z * h + (1 - z) * np.tanh(p_n + sigmoid(p_r + q_r) * q_n), None

    def attend(s, m):
        if layer.attention == "additive":
            e = np.tanh(w["weight_query"] @ s + m @ w["weight_key"].T + w["bias_key"]) @ w["weight_score"]
        else:
            q = w["weight_query"] @ s if layer.attention == "bilinear" else s
            e = m @ q / (np.sqrt(M) if layer.attention == "scaled_dot" else 1)
        a = np.exp(e - e.max(initial=-np.inf)) if len(m) else np.zeros(0)
        return a / a.sum() if len(m) else a

    for b in range(B):
        m = memory[: memory_lengths[b], b]
        h, c = ends[0][b], ends[1][b] if layer.cell == "lstm" else None
        for t in range(lengths[b]):
            context = (m[-1] if len(m) else np.zeros(M)) if layer.attention is None else None
            if layer.attention and layer.input_feeding:
                a = attend(h, m)
                context = a @ m
            h, c = cell(np.concatenate([x[t, b], context]) if layer.input_feeding else x[t, b], h, c)
            if layer.attention and not layer.input_feeding:
                a = attend(h, m)
                context = a @ m
            if layer.attention:
                weights[t, b, : len(m)] = a
                outputs[t, b] = np.tanh(w["weight_out"] @ np.concatenate([h, context]) + w["bias_out"])
            else:
                outputs[t, b] = h
        for end, now in zip(ends, (h, c), strict=False):
            end[b] = now
    return outputs, ends, weights


@form
def test_every_form_is_its_equations(options, rng):
    layer, (x, memory, state) = made(options), inputs(rng)
    state = state_for(options, state)
    want, ends, weights = numpy_decoder(layer, x, memory, state, LENGTHS, MEMORY_LENGTHS)
    asked = {"return_weights": True} if options["attention"] else {}
    got, end, *a = layer(x, memory, state, lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS, **asked)
    assert_close(got, want, terms=100, name="outputs")
    for one, other in zip(flat(end), ends, strict=True):
        assert_close(one, other, terms=100, name="state")
    if asked:
        assert_close(a[0], weights, terms=100, name="weights")


@form
def test_gradients_of_every_form(options, rng):
    layer, (x, memory, state) = made(options), inputs(rng)
    state = state_for(options, state)
    arrays = {"x": x, "memory": memory} | dict(zip(("h_0", "c_0"), flat(state), strict=False))
    tensors = {name: fs.Tensor(a, requires_grad=True) for name, a in arrays.items()}
    asked = {"return_weights": True} if options["attention"] else {}
    upstream = np.random.default_rng(3)
    weights = [upstream.standard_normal(shape) for shape in ((T, B, H), (B, H), (B, H), (T, B, S))]

    def run(a):
        its = (a["h_0"], a["c_0"]) if options["cell"] == "lstm" else a["h_0"]
        y, end, *rest = layer(a["x"], a["memory"], its, lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS, **asked)
        ends = [*flat(end), None][:2]
        return [o for o in zip([y, *ends, *(rest or [None])], weights, strict=True) if o[0] is not None]

    sum((o * d).sum() for o, d in run(tensors)).backward()
    grads = {name: t.grad for name, t in tensors.items()} | {name: p.grad for name, p in layer.named_parameters()}
    for name, a in (arrays | {name: p.data for name, p in layer.named_parameters()}).items():
        if name == "memory" and options["attention"] is None and not options["input_feeding"]:
            assert grads[name] is None  # it is not used
            continue
        assert_gradient(grads[name], lambda: sum(float(np.sum(o * d)) for o, d in run(arrays)), a, name, rng)


@form
def test_step_by_step_is_the_whole(options, dtype, rng):
    layer, (x, memory, state) = made(options, dtype), inputs(rng, dtype)
    state = state_for(options, state)
    asked = {"return_weights": True} if options["attention"] else {}
    want, end, *weights = layer(x, memory, state, memory_lengths=MEMORY_LENGTHS, **asked)
    ready = layer.start(memory, MEMORY_LENGTHS)
    its = state
    for t in range(T):
        y, state, *a = layer.step(x[t], ready, state, **asked)
        again, its, *_ = layer.step(x[t], memory, its, memory_lengths=MEMORY_LENGTHS, **asked)
        assert_same_bits(again, y)
        if options["attention"] is None or options["input_feeding"]:
            assert_same_bits(y, want[t])
            assert not a or np.array_equal(a[0], weights[0][t])
        else:  # one query may take another order of additions
            assert_close(y, want[t], terms=100)
    for one, other in zip(flat(state), flat(end), strict=True):
        assert_same_bits(one, other)


@form
def test_reordered_rows_for_beam_search(options, rng):
    layer, (x, memory, state) = made(options), inputs(rng)
    order = np.array([3, 3, 0, 1, 1])
    ready = layer.start(memory, MEMORY_LENGTHS)
    _, state = layer.step(x[0], ready, state_for(options, state))
    state = tuple(a[order] for a in state) if isinstance(state, tuple) else state[order]
    got, _ = layer.step(x[1][order], ready.reorder(order), state)
    want, _ = layer.step(x[1][order], np.ascontiguousarray(memory[:, order]), state, memory_lengths=MEMORY_LENGTHS[order])
    assert_close(got, want, terms=50)


@form
def test_arrays_give_the_bits_of_tensors(options, dtype, rng):
    layer, (x, memory, _) = made(options, dtype), inputs(rng, dtype)
    plain, _ = layer(x, memory, lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS)
    recorded, _ = layer(fs.Tensor(x), memory, lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS)
    other, _ = layer(x, fs.Tensor(memory), lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS)
    assert isinstance(plain, np.ndarray)
    for tensor in (recorded, other):
        assert isinstance(tensor, fs.Tensor)
        assert_same_bits(tensor.data, plain)
    if options["attention"]:
        assert recorded.requires_grad
        assert other.requires_grad


def test_changed_weights_are_seen_and_gradients_reach_them_through_a_ready_memory(rng):
    layer, (x, memory, _) = made({}), inputs(rng)
    before, _ = layer(x, memory)
    layer.weight_hh.data[...] *= 2
    after, _ = layer(x, memory)
    assert not np.array_equal(before, after)
    fresh = made({})
    fresh.load_state_dict(layer.state_dict())
    assert_same_bits(fresh(x, memory)[0], after)
    ready = layer.start(fs.Tensor(memory))
    output, _ = layer.step(fs.Tensor(x[0]), ready)
    output.sum().backward()
    assert np.any(layer.weight_key.grad != 0)


# ---------------------------------------------------------------- PyTorch


def torch_loop(torch, layer, x, memory, state, lengths, memory_lengths):
    """The same as a PyTorch module's loop over the steps, with PyTorch's own cells; outputs, state and weights."""
    w = {name: torch.from_numpy(p.data.astype(np.float64)).requires_grad_() for name, p in layer.named_parameters()}
    cell = (torch.lstm_cell if layer.cell == "lstm" else torch.gru_cell)
    values = memory.transpose(0, 1)
    hidden = torch.arange(S)[None] >= torch.from_numpy(memory_lengths)[:, None]
    keys = values @ w["weight_key"].T + w["bias_key"] if layer.attention == "additive" else values

    def attend(h):
        query = h if "weight_query" not in w else h @ w["weight_query"].T
        if layer.attention == "additive":
            scores = torch.tanh(query[:, None] + keys) @ w["weight_score"]
        else:
            scores = (keys @ query[:, :, None])[:, :, 0] * (M**-0.5 if layer.attention == "scaled_dot" else 1)
        a = torch.softmax(scores.masked_fill(hidden, -1e30), dim=1).masked_fill(hidden, 0)
        return a, (a[:, None] @ values)[:, 0]

    outputs, weights = [], []
    for t in range(T):
        alive = torch.from_numpy(lengths > t)[:, None]
        a, context = attend(state[0])
        fed = torch.cat([x[t], context], dim=1)
        its = (state,) if layer.cell == "lstm" else state
        new = cell(fed, *its, w["weight_ih"], w["weight_hh"], w["bias_ih"], w["bias_hh"])
        new = new if layer.cell == "lstm" else (new,)
        state = tuple(torch.where(alive, n, s) for n, s in zip(new, state, strict=True))
        outputs.append(alive * torch.tanh(torch.cat([new[0], context], dim=1) @ w["weight_out"].T + w["bias_out"]))
        weights.append(alive * a)
    return (torch.stack(outputs), *state, torch.stack(weights)), w


@pytest.mark.parametrize("options", [o for o in FORMS if o["attention"] and o["input_feeding"]], ids=lambda o: "-".join(map(str, o.values())))
def test_pytorch_finds_the_same(options, dtype, rng):
    torch = pytest.importorskip("torch")
    layer, (x, memory, state) = made(options, dtype), inputs(rng, dtype)
    state, memory_lengths = flat(state_for(options, state)), np.maximum(MEMORY_LENGTHS, 1)
    arrays = [x, memory, *state]
    theirs = [torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in arrays]
    want, w = torch_loop(torch, layer, theirs[0], theirs[1], tuple(theirs[2:]), LENGTHS, memory_lengths)
    upstream = [rng.standard_normal(tuple(o.shape)).astype(dtype) for o in want]
    sum((o * torch.from_numpy(d.astype(np.float64))).sum() for o, d in zip(want, upstream, strict=True)).backward()
    ours = [fs.Tensor(a, requires_grad=True) for a in arrays]
    its = tuple(ours[2:]) if options["cell"] == "lstm" else ours[2]
    outputs, end, a = layer(ours[0], ours[1], its, lengths=LENGTHS, memory_lengths=memory_lengths, return_weights=True)
    got = (outputs, *flat(end), a)
    sum((o * d).sum() for o, d in zip(got, upstream, strict=True)).backward()
    for name, one, other in zip(("outputs", "h", "c", "weights"), got, want, strict=False):
        assert_close(one.data, other.detach().numpy(), dtype=dtype, terms=200, name=name)
    for name, one, other in zip(("x", "memory", "h_0", "c_0"), ours, theirs, strict=False):
        assert_close(one.grad, other.grad.numpy(), dtype=dtype, terms=200, name=f"d{name}")
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, w[name].grad.numpy(), dtype=dtype, terms=200, name=f"d{name}")


# ---------------------------------------------------------------- the module


@form
def test_saved_pickled_and_copied(options, rng, tmp_path):
    pytest.importorskip("safetensors")
    layer, (x, memory, _) = made(options, np.float32), inputs(rng)
    want, _ = layer(x, memory)
    layer.save(tmp_path / "decoder.safetensors")
    for twin in (fs.load(tmp_path / "decoder.safetensors"), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert repr(twin) == repr(layer)
        assert_same_bits(twin(x, memory)[0], want)


def test_parameters_and_repr():
    layer = nn.AttentionDecoder(3, 5, 4, attention_size=6)
    assert repr(layer) == "AttentionDecoder(3, 5, 4, attention_size=6)"
    assert {name: p.shape for name, p in layer.named_parameters()} == {
        "weight_ih": (20, 7), "weight_hh": (20, 5), "bias_ih": (20,), "bias_hh": (20,), "weight_query": (6, 5), "weight_key": (6, 4),
        "bias_key": (6,), "weight_score": (6,), "weight_out": (5, 9), "bias_out": (5,)}  # fmt: skip
    layer = nn.AttentionDecoder(3, 5, 4, cell="gru", attention="general", input_feeding=False)
    assert repr(layer) == "AttentionDecoder(3, 5, 4, cell='gru', attention='bilinear', input_feeding=False)"
    assert {name: p.shape for name, p in layer.named_parameters()} == {
        "weight_ih": (15, 3), "weight_hh": (15, 5), "bias_ih": (15,), "bias_hh": (15,), "weight_query": (4, 5), "weight_out": (5, 9), "bias_out": (5,)}  # fmt: skip
    assert [name for name, _ in nn.AttentionDecoder(3, 5, 4, attention=None).named_parameters()] == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    twins = [nn.AttentionDecoder(3, 5, 4, rng=7).state_dict() for _ in range(2)]
    for name in twins[0]:
        assert_same_bits(twins[0][name], twins[1][name], name)


@form
@pytest.mark.parametrize("empty", ["T", "B", "S"])
def test_empty_sizes(options, empty):
    sizes = {"T": 3, "B": 2, "S": 4} | {empty: 0}
    layer = made(options, np.float32)
    x, memory = np.ones((sizes["T"], sizes["B"], I), np.float32), np.ones((sizes["S"], sizes["B"], M), np.float32)
    xt = fs.Tensor(x, requires_grad=True)
    y, state = layer(xt, memory)
    assert y.shape == (sizes["T"], sizes["B"], H)
    assert flat(state)[0].shape == (sizes["B"], H)
    y.sum().backward()
    assert xt.grad.shape == x.shape
    assert np.isfinite(xt.grad).all()


@pytest.mark.parametrize(("arguments", "options", "error", "text"), [
    ((0, 5, 4), {}, ValueError, "input_size: expected at least 1, got 0"),
    ((3, 5, 4), {"cell": "rnn"}, ValueError, "cell: expected 'lstm' or 'gru', got 'rnn'"),
    ((3, 5, 4), {"attention": "luong"}, ValueError, "attention: expected one of"),
    ((3, 5, 4), {"attention": False}, ValueError, "expected one of 'additive', 'dot', 'scaled_dot', 'bilinear' or None, got False"),
    ((3, 5, 4), {"attention": "dot"}, ValueError, "memory_size: expected 5, the hidden_size, for dot attention, got 4"),
    ((3, 5, 5), {"attention": "dot", "attention_size": 3}, ValueError, "attention_size: expected None with dot attention, got 3"),
    ((3, 5, 4), {"input_feeding": None}, TypeError, "input_feeding: expected True or False, got NoneType"),
    ((3, 5, 4), {"dtype": np.float16}, TypeError, "dtype: expected float32 or float64"),
])  # fmt: skip
def test_bad_arguments(arguments, options, error, text):
    with pytest.raises(error, match=text):
        nn.AttentionDecoder(*arguments, **options)


def test_bad_calls(rng):
    layer, (x, memory, state) = made({}), inputs(rng)
    for call, error, text in [
        (lambda: layer(x[:, :, :2], memory), ValueError, r"x: expected shape \(T, B, 3\), got \(5, 4, 2\)"),
        (lambda: layer(x, memory[:, :, :2]), ValueError, r"memory: expected shape \(S, B, 8\), got \(6, 4, 2\)"),
        (lambda: layer(x, memory[:, :2]), ValueError, r"memory: expected shape \(S, 4, 8\), for x has 4 rows, got a batch of 2"),
        (lambda: layer(x, memory, state[0]), TypeError, r"state: expected \(h_0, c_0\)"),
        (lambda: layer(x, memory, (state[0][:2], state[1])), ValueError, r"state: expected h of shape \(4, 8\), got \(2, 8\)$"),
        (lambda: layer(x, memory, (state[0], state[1][None])), ValueError,
         r"state: expected c of shape \(4, 8\), got \(1, 4, 8\); an encoder's last layer is \(h\[-1\], c\[-1\]\) of its state"),
        (lambda: made({"cell": "gru"})(x, memory, state[0][None]), ValueError,
         r"state: expected h of shape \(4, 8\), got \(1, 4, 8\); an encoder's last layer is h\[-1\] of its state"),
        (lambda: layer(x, memory, memory_lengths=[7, 1, 1, 1]), ValueError,
         "^memory_lengths: expected integers from 0 to 6, the memory's length, got 7"),
        (lambda: made({"attention": None})(x, memory, memory_lengths=[7, 1, 1, 1]), ValueError, "^memory_lengths: expected integers from 0 to 6"),
        (lambda: layer.start(memory, [7, 1, 1, 1]), ValueError, "^memory_lengths: expected integers from 0 to 6, the memory's length, got 7"),
        (lambda: layer.step(x[0], memory, memory_lengths=[1.0] * 4), TypeError, "^memory_lengths: expected integers, got float64"),
        (lambda: layer(x, memory, lengths=[6, 0, 0, 0]), ValueError, "lengths: expected integers from 0 to 5, the number of steps, got 6"),
        (lambda: layer(x.astype(complex), memory), TypeError, "x: expected float32, float64, integers or bools"),
        (lambda: layer.step(x, memory), ValueError, r"x: expected shape \(B, 3\), got \(5, 4, 3\)"),
        (lambda: layer(x, layer.start(memory), memory_lengths=[1] * 4), TypeError, "memory_lengths: expected None with a memory"),
        (lambda: made({"attention": "dot"})(x, layer.start(memory)), ValueError, "memory: expected float64 of size 8 from this decoder's start"),
        (lambda: made({}, attention_size=5)(x, layer.start(memory)), ValueError, "memory: expected float64 of size 8 from this decoder's start"),
        (lambda: made({"attention": None})(x, memory, return_weights=True), ValueError, "return_weights: expected False"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_other_dtypes_are_converted_at_the_door(rng):
    layer, (x, memory, _) = made({}, np.float32), inputs(rng)
    got, _ = layer(x, memory)
    assert got.dtype == np.float32
    assert_same_bits(layer(x.astype(np.float32), memory.astype(np.float32))[0], got)
