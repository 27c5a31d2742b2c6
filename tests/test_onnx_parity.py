"""A second witness, where it is installed: ONNX Runtime, whose GRU has both forms and whose LSTM has peepholes."""

import numpy as np
import pytest

import fastseq as fs

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

T, B, I, H = 9, 4, 6, 13
LENGTHS = [3, 9, 1, 7]


def blocks(parameter, order):
    """A parameter's blocks of H rows in another order of the gates."""
    return np.concatenate([np.split(parameter, len(order))[k] for k in order])


def run_onnx(operator, inputs, **attributes):
    """The outputs Y (T, D, B, H), Y_h (and Y_c) of one node with these inputs by name, the absent ones None."""
    given = {name: value for name, value in inputs.items() if value is not None}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    names = [name if name in given else "" for name in inputs]
    node = onnx.helper.make_node(operator, names, outputs, hidden_size=H, **attributes)
    types = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int32): onnx.TensorProto.INT32}
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [onnx.helper.make_tensor_value_info(name, types[value.dtype], value.shape) for name, value in given.items()],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)


def node_inputs(layer, x, order, lengths, state, peephole=False):
    """What the node takes, from the layer's parameters; `order` says which of our gates stand where in ONNX."""
    sides = ["_l0", "_l0_reverse"][: 1 + layer.bidirectional]

    def all_sides(function):
        return np.stack([function({n: p.data for n, p in layer.named_parameters()}, side) for side in sides])

    inputs = {
        "X": x,
        "W": all_sides(lambda p, s: blocks(p["weight_ih" + s], order)),
        "R": all_sides(lambda p, s: blocks(p["weight_hh" + s], order)),
        "B": all_sides(lambda p, s: np.concatenate([blocks(p["bias_ih" + s], order), blocks(p["bias_hh" + s], order)])),
        "sequence_lens": None if lengths is None else np.array(lengths, np.int32),
        "initial_h": state[0],
    }
    if len(state) > 1:
        inputs["initial_c"] = state[1]
        # Peepholes are i, o, f there.
        inputs["P"] = all_sides(lambda p, s: blocks(p["weight_ch" + s].reshape(-1), (0, 2, 1))) if peephole else None
    return inputs


def assert_agree(layer, x, state, lengths, want):
    """Their float32 against ours: the sums have I + H terms over T steps, each of the size of one."""
    y, end = layer(x, state if len(state) > 1 else state[0], lengths=lengths)
    theirs = np.concatenate(list(want[0].swapaxes(0, 1)), axis=-1)
    ends = end if len(state) > 1 else (end,)
    for got, wanted in zip((y, *ends), (theirs, *want[1:]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=5e-6)


@pytest.fixture
def data(rng):
    def draw(layer):
        for p in layer.parameters():
            p.data[...] = 0.4 * rng.standard_normal(p.data.shape)
        D = 1 + layer.bidirectional
        return [rng.standard_normal(shape).astype(np.float32) for shape in ((T, B, I), (D, B, H), (D, B, H))]

    return draw


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["reset after", "reset before"])
def test_gru(reset_after, bidirectional, lengths, data):
    layer = fs.nn.GRU(I, H, reset_after=reset_after, bidirectional=bidirectional)
    x, h, _ = data(layer)
    direction = "bidirectional" if bidirectional else "forward"
    inputs = node_inputs(layer, x, (1, 0, 2), lengths, [h])  # z, r, h there
    want = run_onnx("GRU", inputs, linear_before_reset=int(reset_after), direction=direction)
    assert_agree(layer, x, [h], lengths, want)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])
@pytest.mark.parametrize("peephole", [False, True], ids=["plain", "peephole"])
def test_lstm(peephole, bidirectional, lengths, data):
    layer = fs.nn.LSTM(I, H, peephole=peephole, bidirectional=bidirectional)
    x, h, c = data(layer)
    direction = "bidirectional" if bidirectional else "forward"
    inputs = node_inputs(layer, x, (0, 3, 1, 2), lengths, [h, c], peephole)  # i, o, f, c there
    want = run_onnx("LSTM", inputs, direction=direction)
    assert_agree(layer, x, [h, c], lengths, want)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn(nonlinearity, bidirectional, lengths, data):
    layer = fs.nn.RNN(I, H, nonlinearity=nonlinearity, bidirectional=bidirectional)
    x, h, _ = data(layer)
    for p in layer.parameters():
        p.data *= 0.5  # ReLU units that do not grow
    activations = [{"tanh": "Tanh", "relu": "Relu"}[nonlinearity]] * (1 + bidirectional)
    direction = "bidirectional" if bidirectional else "forward"
    want = run_onnx("RNN", node_inputs(layer, x, (0,), lengths, [h]), direction=direction, activations=activations)
    assert_agree(layer, x, [h], lengths, want)
