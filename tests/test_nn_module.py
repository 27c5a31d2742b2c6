"""Module, Parameter and the containers: the tree, its state, copies and text."""

import copy
import gc
import importlib.util
import pickle
import weakref

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn


class Tied(nn.Module):
    """Two layers that share one weight, a buffer, and a child in a dict."""

    def __init__(self, width=3):
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("mean", np.arange(width, dtype=np.float32))
        self.more = nn.ModuleDict({"a": nn.Linear(width, 1, bias=False)})

    def forward(self, x):
        return self.more["a"](self.second(self.first(x)) - self.mean)


def test_parameters_come_once_and_in_the_order_of_assignment():
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == [
        "first.weight",
        "first.bias",
        "second.bias",
        "more.a.weight",
    ]
    assert len({id(p) for p in model.parameters()}) == 4
    assert [name for name, _ in model.named_buffers()] == ["mean"]
    assert next(model.buffers()) is model.mean
    assert [name for name, _ in model.named_modules()] == ["", "first", "second", "more", "more.a"]
    assert list(model.children()) == [model.first, model.second, model.more]


def test_parameter_is_a_tensor_that_requires_a_gradient():
    parameter = nn.Parameter(np.zeros(3))
    assert isinstance(parameter, fs.Tensor)
    assert parameter.requires_grad
    assert not nn.Parameter(np.zeros(3), requires_grad=False).requires_grad


@pytest.mark.parametrize("data", [np.zeros(3, np.int64), np.zeros(3, np.float16), np.zeros(3, complex), [1.0], None])
def test_parameter_refuses_what_cannot_be_trained(data):
    with pytest.raises(TypeError, match="data: expected an array of float32 or float64"):
        nn.Parameter(data)


def test_state_dict_is_a_snapshot_under_every_name():
    model = Tied()
    state = model.state_dict()
    assert list(state) == ["mean", "first.weight", "first.bias", "second.weight", "second.bias", "more.a.weight"]
    assert state["first.weight"] is state["second.weight"]
    before = state["first.weight"].copy()
    model.first.weight.data[...] = 7
    assert np.array_equal(state["first.weight"], before)


def test_load_state_dict_takes_everything_in_place():
    model, other = Tied(), Tied()
    views = {name: p.data for name, p in model.named_parameters()}
    versions = [p._version for p in model.parameters()]
    other.mean[...] = -1
    report = model.load_state_dict(other.state_dict())
    assert report == ([], [])
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert np.array_equal(a.data, b.data)
        assert a.data is views[name]
    assert np.array_equal(model.mean, [-1, -1, -1])
    assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))


def test_load_state_dict_converts_real_dtypes_and_unwraps_tensors():
    layer = nn.Linear(2, 1)
    layer.load_state_dict({"weight": [[1, 2]], "bias": fs.Tensor(np.array([0.5]))})
    assert layer.weight.data.dtype == np.float32
    assert layer.weight.data.tolist() == [[1, 2]]
    assert layer.bias.data.tolist() == [0.5]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("first.bias"), ValueError, "missing first.bias"),
        (lambda s: s.update(extra=np.zeros(1)), ValueError, "unexpected extra"),
        (
            lambda s: s.update({"second.bias": np.zeros(4)}),
            ValueError,
            r"second.bias: expected shape \(3,\), got \(4,\)",
        ),
        (lambda s: s.update({"second.weight": np.zeros((3, 3))}), ValueError, "one shared Parameter"),
        (
            lambda s: s.update({"second.bias": np.zeros(3, complex)}),
            TypeError,
            "second.bias: expected an array of numbers",
        ),
        (lambda s: s.update({"second.bias": ["a", "b", "c"]}), TypeError, "second.bias: expected an array of numbers"),
        (
            lambda s: s.update({"second.bias": [[1], [2, 3]]}),
            TypeError,
            "second.bias: expected an array of float32, got a list that is none",
        ),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_load_state_dict_is_all_or_nothing(change, error, message, strict):
    model = Tied()
    before = model.state_dict()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    change(state)
    if not strict and ("missing" in message or "unexpected" in message):
        report = model.load_state_dict(state, strict=False)
        assert (report.missing_keys, report.unexpected_keys) == (
            (["first.bias"], []) if "missing" in message else ([], ["extra"])
        )
        return
    with pytest.raises(error, match=message):
        model.load_state_dict(state, strict=strict)
    assert all(np.array_equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_number_too_large_becomes_infinite_and_an_integer_buffer_takes_integers():
    layer = nn.Linear(1, 1, bias=False)
    layer.load_state_dict({"weight": [[1e300]]})
    assert layer.weight.data.tolist() == [[np.inf]]
    layer.register_buffer("count", np.zeros(1, np.int64))
    layer.load_state_dict({"weight": [[1]], "count": np.array([7], np.int8)})
    assert layer.count.tolist() == [7]
    with pytest.raises(TypeError, match="count: expected an array of numbers that int64 can hold, got float64"):
        layer.load_state_dict({"weight": [[2]], "count": [0.5]})
    assert layer.weight.data.tolist() == [[1]]


def test_load_state_dict_names_everything_that_is_wrong():
    state = Tied().state_dict()
    del state["mean"], state["first.bias"]
    state |= {"x": np.zeros(1), "y": np.zeros(1), "second.bias": np.zeros((1, 3))}
    with pytest.raises(
        ValueError, match=r"state for Tied: missing mean, first.bias; unexpected x, y; second.bias: expected"
    ):
        Tied().load_state_dict(state)


def test_load_state_dict_refuses_a_read_only_target_and_a_non_mapping():
    layer = nn.Linear(2, 1)
    state = layer.state_dict()
    layer.bias.data.flags.writeable = False
    with pytest.raises(ValueError, match="bias: the module's own array is read-only"):
        layer.load_state_dict({name: value + 1 for name, value in state.items()})
    assert np.array_equal(layer.weight.data, state["weight"])
    with pytest.raises(TypeError, match="state: expected a mapping"):
        layer.load_state_dict([("weight", state["weight"])])


def test_one_name_of_a_shared_parameter_is_enough():
    model = Tied()
    state = model.state_dict()
    del state["first.weight"]
    assert model.load_state_dict(state) == ([], [])


def test_tied_weights_get_the_sum_of_both_gradients():
    model = Tied()
    x = np.ones((2, 3), np.float32)
    model(fs.Tensor(x)).sum().backward()
    upstream = np.broadcast_to(model.more["a"].weight.data, (2, 3))
    hidden = model.first(x)
    want = upstream.T @ hidden + (upstream @ model.first.weight.data).T @ x
    assert np.allclose(model.first.weight.grad, want, rtol=1e-5, atol=1e-6)


def test_deepcopy_and_pickle_are_independent_and_keep_ties():
    model = Tied().eval()
    x = np.ones((2, 3), np.float32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.first.weight is twin.second.weight
        assert not twin.training
        assert np.array_equal(twin(x), model(x))
        twin.first.weight.data[...] += 1
        twin.mean[...] = 9
        assert not np.array_equal(twin(x), model(x))
        assert model.mean.tolist() == [0, 1, 2]


def test_train_eval_zero_grad_and_requires_grad_reach_the_whole_tree():
    model = Tied()
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    assert model.train() is model
    assert all(m.training for m in model.modules())
    model(fs.Tensor(np.ones((1, 3), np.float32))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert model.requires_grad_(False) is model
    assert not any(p.requires_grad for p in model.parameters())
    assert not model(fs.Tensor(np.ones((1, 3), np.float32))).requires_grad


def test_to_the_cpu_and_to_nowhere():
    model = Tied()
    held = model.first.weight.data
    assert model.to("cpu") is model
    assert model.first.weight.data is held
    for device in ("tpu", "cuda:x", 0, None):
        with pytest.raises(ValueError, match='device: expected "cpu" or "cuda", got'):
            model.to(device)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_to_a_gpu_without_cupy_says_what_to_install():
    model = Tied()
    with pytest.raises(ImportError, match=r"^cuda: CuPy is not installed; pip install 'fastseq-kernels\[cuda\]'"):
        model.to("cuda")
    assert isinstance(model.first.weight.data, np.ndarray)


def test_attributes_keep_their_kind():
    model = Tied()
    with pytest.raises(TypeError, match=r"weight: expected a Parameter or None, got ndarray; .*data\[...\]"):
        model.first.weight = np.zeros((3, 3), np.float32)
    with pytest.raises(TypeError, match="first: expected a Module or None, got int"):
        model.first = 3
    with pytest.raises(TypeError, match="mean: expected an array, for it is a buffer"):
        model.mean = 0.0
    model.mean = np.ones(3, np.float32)
    assert model.state_dict()["mean"].tolist() == [1, 1, 1]
    model.first.bias = None
    assert "first.bias" not in model.state_dict()


@pytest.mark.parametrize(
    ("name", "array", "error"),
    [
        ("a.b", np.zeros(1), ValueError),
        ("", np.zeros(1), ValueError),
        ("first", np.zeros(1), ValueError),
        ("new", [0.0], TypeError),
    ],
)
def test_register_buffer_refuses(name, array, error):
    with pytest.raises(error):
        Tied().register_buffer(name, array)


def test_buffers_belong_to_their_module_alone():
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    one.register_buffer("count", np.zeros(1))
    assert list(two.state_dict()) == ["weight", "bias"]


def test_a_child_may_hold_its_parent():
    model = Tied()
    model.first.owner = model
    assert len(list(model.parameters())) == 4
    assert model.load_state_dict(model.state_dict()) == ([], [])


def test_a_module_is_freed_when_its_last_reference_goes():
    model = Tied()
    model(fs.Tensor(np.ones((1, 3), np.float32))).sum().backward()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_forward_must_be_defined():
    with pytest.raises(NotImplementedError, match="Module does not define forward"):
        nn.Module()(1)


def test_sequential_calls_in_order_and_slices():
    net = nn.Sequential(nn.Linear(4, 8, rng=0), nn.Tanh(), nn.Linear(8, 2, rng=1))
    x = np.ones((5, 4), np.float32)
    assert np.array_equal(net(x), net[2](net[1](net[0](x))))
    assert isinstance(net[:2], nn.Sequential)
    assert np.array_equal(net[:2](x), net[1](net[0](x)))
    assert len(net) == 3
    net[1] = nn.ReLU()
    assert np.array_equal(net(x), net[2](np.maximum(net[0](x), 0)))
    assert repr(net) == (
        "Sequential(\n  (0): Linear(in_features=4, out_features=8, bias=True)\n  (1): ReLU()\n"
        "  (2): Linear(in_features=8, out_features=2, bias=True)\n)"
    )


def test_module_list_and_dict_register_what_they_hold():
    layers = nn.ModuleList([nn.Linear(2, 2)])
    layers.append(nn.Linear(2, 2)).extend([nn.Linear(2, 1)])
    assert list(layers.state_dict())[::2] == ["0.weight", "1.weight", "2.weight"]
    assert [layer.out_features for layer in layers] == [2, 2, 1]
    heads = nn.ModuleDict({"training": nn.Linear(2, 2), "forward": nn.Linear(2, 1)})
    assert [*heads.keys()] == [*heads] == ["training", "forward"]
    assert "forward" in heads
    del heads["forward"]
    assert list(heads.state_dict()) == ["training.weight", "training.bias"]
    assert heads.training is True


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(nn.Tanh), lambda: nn.ModuleList([3]), lambda: nn.ModuleDict({"a": None})]
)
def test_containers_refuse_what_is_no_module(make):
    with pytest.raises(TypeError, match="expected a Module"):
        make()


@pytest.mark.parametrize("name", ["a.b", "", 3])
def test_module_dict_refuses_names_that_a_state_could_not_hold(name):
    with pytest.raises(ValueError, match="without dots"):
        nn.ModuleDict({name: nn.Tanh()})


def test_configuration_is_what_the_class_was_called_with():
    assert nn.Linear(3, 4, bias=False, rng=5).configuration() == {"in_features": 3, "out_features": 4, "bias": False}
    assert Tied(width=2).configuration() == {"width": 2}

    class Positional(nn.Module):
        def __init__(self, *sizes):
            self.sizes = sizes

    with pytest.raises(TypeError, match=r"argument sizes .* cannot be saved by name"):
        Positional(1, 2).configuration()


def test_nested_repr_is_indented():
    text = repr(Tied())
    assert text.splitlines()[0] == "Tied("
    assert "\n  (more): ModuleDict(\n    (a): Linear(in_features=3, out_features=1, bias=False)\n  )\n)" in text
