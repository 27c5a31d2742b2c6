"""Linear, Embedding, Dropout and the activation modules."""

import math

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn


def test_linear_over_any_leading_dimensions():
    layer = nn.Linear(3, 2, rng=0)
    weight, bias = layer.weight.data, layer.bias.data
    for shape in [(3,), (4, 3), (2, 4, 3), (0, 3), (2, 0, 5, 3)]:
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        y = layer(x)
        assert type(y) is np.ndarray
        assert y.shape == (*shape[:-1], 2)
        assert np.allclose(y, x @ weight.T + bias, rtol=1e-5, atol=1e-6)
    assert nn.Linear(3, 2, bias=False).bias is None


def test_linear_and_embedding_start_as_pytorch_s():
    weight = nn.Linear(400, 300, rng=0).weight.data
    bound = 1 / math.sqrt(400)
    assert abs(weight).max() <= bound
    assert abs(abs(weight).mean() - bound / 2) < bound / 100
    table = nn.Embedding(300, 400, padding_idx=-1, rng=0)
    assert abs(table.weight.data[:-1].std() - 1) < 0.01
    assert table.padding_idx == 299
    assert not table.weight.data[299].any()


def test_layers_take_a_seed_a_generator_or_the_process_s_generator():
    assert np.array_equal(nn.Linear(3, 2, rng=4).weight.data, nn.Linear(3, 2, rng=np.random.default_rng(4)).weight.data)
    fs.manual_seed(7)
    first = nn.LSTM(3, 2).weight_hh_l0.data
    second = nn.LSTM(3, 2).weight_hh_l0.data
    fs.manual_seed(7)
    assert np.array_equal(nn.LSTM(3, 2).weight_hh_l0.data, first)
    assert not np.array_equal(first, second)
    with pytest.raises(TypeError, match="rng: expected"):
        nn.Linear(3, 2, rng="seed")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("given", [np.float32, np.float64, np.int64, np.uint8, bool])
def test_a_layer_converts_at_its_door(dtype, given):
    x = (np.arange(12).reshape(4, 3) % 2).astype(given)
    for layer in (nn.Linear(3, 2, dtype=dtype, rng=0), nn.LSTM(3, 2, dtype=dtype, rng=0)):
        y = layer(x if isinstance(layer, nn.Linear) else x[:, None])
        y = y[0] if isinstance(y, tuple) else y
        assert y.dtype == dtype
        want = layer(x.astype(dtype) if isinstance(layer, nn.Linear) else x[:, None].astype(dtype))
        assert np.array_equal(y, want[0] if isinstance(want, tuple) else want)


def test_the_gradient_flows_back_through_the_conversion():
    layer = nn.Linear(3, 2, rng=0)
    x = fs.Tensor(np.ones((4, 3)), requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.dtype == np.float64
    assert np.allclose(x.grad, np.broadcast_to(layer.weight.data.sum(0), (4, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(3, 2), lambda: nn.LSTM(3, 2), nn.Tanh, nn.Softmax, lambda: nn.Dropout(0.5)]
)
@pytest.mark.parametrize("given", [np.float16, np.longdouble, np.complex64, object])
def test_dtypes_that_a_layer_refuses(make, given):
    for wrap in (lambda x: x, fs.Tensor):
        with pytest.raises(TypeError, match="x: expected float32, float64, integers or bools"):
            make()(wrap(np.ones((4, 1, 3)).astype(given)))


def test_other_byte_orders_and_masks():
    layer = nn.Linear(3, 2, rng=0)
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(layer(x.astype(">f4")), layer(x))
    with pytest.raises(TypeError, match="x: expected a plain array, got a masked one"):
        layer(np.ma.masked_less(x, 2))


def test_text_is_no_input():
    with pytest.raises(TypeError, match="x: expected float32"):
        nn.Linear(3, 2)("abc")


class OnTheGpu:
    """What another library's array on a GPU looks like from outside."""

    __cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": (0, False), "version": 3}


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 2), lambda: nn.LSTM(3, 2), lambda: nn.Embedding(3, 2)])
def test_an_array_on_the_gpu_is_refused_by_name(make):
    with pytest.raises(TypeError, match=r"^(x|ids): expected a NumPy or CuPy array, got .*OnTheGpu, .*cupy\.asarray\(x\)"):
        make()(OnTheGpu())


def test_linear_refuses_other_widths():
    with pytest.raises(ValueError, match="x: expected"):
        nn.Linear(3, 2)(np.ones((4, 5), np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: nn.Linear(n, 2),
        lambda n: nn.Linear(2, n),
        lambda n: nn.LSTM(n, 2),
        lambda n: nn.LSTM(2, n),
        lambda n: nn.Embedding(n, 2),
        lambda n: nn.Embedding(2, n),
    ],
)
def test_sizes_are_positive_integers(make):
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        make(0)
    with pytest.raises(TypeError, match="expected an integer, got float"):
        make(2.0)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, "nonsense", complex])
def test_layers_compute_in_float32_or_float64(dtype):
    for make in (
        lambda: nn.Linear(3, 2, dtype=dtype),
        lambda: nn.LSTM(3, 2, dtype=dtype),
        lambda: nn.Embedding(3, 2, dtype=dtype),
    ):
        with pytest.raises(TypeError, match="dtype: expected float32 or float64"):
            make()


def test_tensor_in_tensor_out_and_recorded():
    layer = nn.Linear(3, 2)
    y = layer(fs.Tensor(np.ones((4, 3), np.float32)))
    assert isinstance(y, fs.Tensor)
    assert y.requires_grad
    y.backward(np.ones((4, 2), np.float32))
    assert np.array_equal(layer.bias.grad, [4, 4])
    with fs.no_grad():
        assert not layer(fs.Tensor(np.ones((4, 3), np.float32))).requires_grad


def test_a_layer_sees_the_weights_of_the_moment():
    layer = nn.Linear(2, 2, rng=0)
    view = layer.weight.data[:1]
    layer.weight.data[...] = 0
    layer.bias.data[...] = 0
    view[...] = 3
    assert layer(np.ones(2, np.float32)).tolist() == [6, 0]


@pytest.mark.parametrize("ids", [np.int8, np.int32, np.int64, np.uint8, np.uint64])
def test_embedding_takes_any_integers(ids):
    table = nn.Embedding(5, 3)
    x = np.array([[4, 0], [1, 1]], ids)
    assert np.array_equal(table(x), table.weight.data[x.astype(int)])
    assert table(np.empty((2, 0), ids)).shape == (2, 0, 3)


def test_embedding_gradient_sums_over_places_and_leaves_padding_out():
    table = nn.Embedding(5, 2, padding_idx=1)
    y = table(fs.Tensor(np.array([4, 1, 4, 0], np.int32)))
    y.backward(np.arange(8, dtype=np.float32).reshape(4, 2))
    assert table.weight.grad.tolist() == [[6, 7], [0, 0], [0, 0], [0, 0], [4, 6]]


@pytest.mark.parametrize("bad", [5, -1, 2**40])
def test_embedding_refuses_ids_outside_by_value(bad):
    with pytest.raises(IndexError, match=rf"ids: {bad} .*5"):
        nn.Embedding(5, 3)(np.array([0, bad]))


def test_embedding_refuses():
    table = nn.Embedding(5, 3)
    with pytest.raises(TypeError, match="ids: expected integers, got float64"):
        table(np.array([1.0]))
    with pytest.raises(TypeError, match="ids: expected integers, got bool"):
        table(np.array([True]))
    with pytest.raises(IndexError, match="ids: expected ids that fit int64"):
        table(np.array([2**63], np.uint64))
    with pytest.raises(TypeError, match="sparse: expected True or False, got str"):
        nn.Embedding(5, 3, sparse="rows")
    for padding in (5, -6):
        with pytest.raises(ValueError, match="padding_idx: expected"):
            nn.Embedding(5, 3, padding_idx=padding)


def test_dropout_masks_follow_seed_and_call():
    x = np.ones(10_000, np.float32)
    one, two = nn.Dropout(0.25, rng=3), nn.Dropout(0.25, rng=3)
    first, second = one(x), one(x)
    assert np.array_equal(first, two(x))
    assert np.array_equal(second, two(x))
    assert not np.array_equal(first, second)
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.02
    assert not np.array_equal(first, nn.Dropout(0.25, rng=4)(x))
    assert one.eval()(x) is x
    assert nn.Dropout(0.0)(x) is x
    assert not nn.Dropout(1.0)(x).any()


def test_dropout_gradient_uses_the_same_mask():
    layer = nn.Dropout(0.5, rng=0)
    x = fs.Tensor(np.ones((100, 3)), requires_grad=True)
    y = layer(x)
    y.backward(np.ones((100, 3)))
    assert np.array_equal(x.grad, y.data)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="p: expected a probability from 0 to 1"):
        nn.Dropout(p)


@pytest.mark.parametrize(
    ("make", "function"),
    [
        (nn.ReLU, lambda x: np.maximum(x, 0)),
        (nn.Tanh, np.tanh),
        (nn.Sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (nn.Softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        (nn.LogSoftmax, lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))),
    ],
)
def test_activations(make, function):
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    layer = make()
    assert np.allclose(layer(x), function(x), rtol=1e-12)
    assert layer(x.astype(np.float32)).dtype == np.float32
    assert layer(np.arange(4).reshape(1, 4)).dtype == np.float32
    t = fs.Tensor(x, requires_grad=True)
    assert fs.gradcheck(layer, [t])


@pytest.mark.parametrize("make", [nn.Softmax, nn.LogSoftmax])
def test_softmax_is_over_the_last_axis(make):
    assert make(dim=-1).dim == -1
    with pytest.raises(ValueError, match="dim: expected -1"):
        make(dim=0)
