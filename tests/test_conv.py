"""Convolution: its door, PyTorch's modules, and what a row's bits depend on. Values and gradients of every option: cases.py."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq import nn
from fastseq.backends import cpu
from fastseq.backends.window import Window
from tests.tolerance import assert_close, assert_same_bits


def test_an_output_is_what_the_equation_says(rng):
    x, weight, bias = rng.standard_normal((2, 4, 9)), rng.standard_normal((6, 2, 3)), rng.standard_normal(6)
    y = F.conv1d(x, weight, bias, stride=2, padding=1, dilation=2, groups=2)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1)))
    for n, o, p in np.ndindex(y.shape):
        group = o // 3
        seen = padded[n, 2 * group : 2 * group + 2, 2 * p : 2 * p + 5 : 2]
        assert np.isclose(y[n, o, p], bias[o] + np.sum(weight[o] * seen))
    assert y.shape == (2, 6, (9 + 2 - 2 * 2 - 1) // 2 + 1)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 4), (5, 2)])
def test_a_causal_convolution_sees_nothing_later(kernel, dilation, rng):
    conv = nn.Conv1d(3, 4, kernel, dilation=dilation, causal=True, rng=0)
    x = rng.standard_normal((2, 3, 20)).astype(np.float32)
    y = conv(x)
    assert y.shape == (2, 4, 20)
    later = x.copy()
    later[:, :, 12:] = 100
    assert_same_bits(conv(later)[:, :, :12], y[:, :, :12])
    earlier = x.copy()
    earlier[:, :, 12 - dilation * (kernel - 1)] = 100  # the farthest that position 12 sees
    assert not np.array_equal(conv(earlier)[:, :, 12], y[:, :, 12])
    recorded = fs.Tensor(x, requires_grad=True)
    conv(recorded)[:, :, 12].sum().backward()
    assert not recorded.grad[:, :, 13:].any()


@pytest.mark.parametrize("size", [(4, 130), (3, 16, 17), (2, 5000)])
def test_a_row_has_its_bits_in_any_batch(size, dtype, isa, threads, rng):
    """Forward and dx; few positions share a piece with other rows, many are cut into pieces within a row."""
    x = rng.standard_normal((9, *size)).astype(dtype)
    weight = rng.standard_normal((6, size[0], *[3] * (len(size) - 1))).astype(dtype)
    function = F.conv1d if x.ndim == 3 else F.conv2d
    whole = fs.Tensor(x, requires_grad=True)
    y = function(whole, weight, padding=1)
    dy = rng.standard_normal(y.shape).astype(dtype)
    y.backward(dy)
    for first, end in ((0, 1), (4, 6), (8, 9)):
        part = fs.Tensor(x[first:end], requires_grad=True)
        found = function(part, weight, padding=1)
        found.backward(dy[first:end])
        assert_same_bits(found.data, y.data[first:end])
        assert_same_bits(part.grad, whole.grad[first:end])


def test_scratch_does_not_grow_with_the_image(rng):
    """A piece at a time: hundreds of megabytes of columns would not fit what a thread keeps, nor be needed."""
    x, weight = np.zeros((1, 8, 1, 400_000), np.float32), rng.standard_normal((2, 8, 1, 9)).astype(np.float32)
    window = Window((1, 9), (1, 1), (1, 1), (0, 4), (1, 400_000))
    x[0, :, 0, -1] = 1
    y = cpu.conv_forward(x, weight, None, groups=1, window=window)
    assert_close(y[0, :, 0, -1], weight[:, :, 0, 4].sum(1), terms=72)
    assert not y[..., :-5].any()


def test_it_starts_as_pytorch_s(rng):
    conv = nn.Conv2d(8, 300, 3, groups=2, rng=0)
    bound = (4 * 9) ** -0.5
    assert conv.weight.shape == (300, 4, 3, 3)
    for p in (conv.weight.data, conv.bias.data):
        assert abs(p).max() <= bound
        assert abs(abs(p).mean() - bound / 2) < bound / 10
    assert nn.Conv1d(2, 3, 4, bias=False).bias is None


CONVS = [
    (1, {"kernel_size": 3}),
    (1, {"kernel_size": 4, "stride": 2, "padding": 3, "dilation": 2, "groups": 2}),
    (1, {"kernel_size": 5, "padding": "same", "bias": False}),
    (2, {"kernel_size": 3, "padding": 1}),
    (2, {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2), "groups": 4}),
    (2, {"kernel_size": 3, "padding": "same", "dilation": 2}),
]


@pytest.mark.parametrize(("axes", "options"), CONVS)
def test_pytorch_s_state_dict_moves_over(axes, options, rng):
    torch = pytest.importorskip("torch")
    theirs = (torch.nn.Conv1d if axes == 1 else torch.nn.Conv2d)(4, 8, **options)
    ours = (nn.Conv1d if axes == 1 else nn.Conv2d)(4, 8, **options)
    ours.load_state_dict({name: p.detach().numpy() for name, p in theirs.state_dict().items()})
    x = rng.standard_normal((3, 4, *[11] * axes)).astype(np.float32)
    t, u = fs.Tensor(x, requires_grad=True), torch.from_numpy(x).requires_grad_()
    y, z = ours(t), theirs(u)
    assert y.shape == tuple(z.shape)
    np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    z.sum().backward()
    np.testing.assert_allclose(t.grad, u.grad.numpy(), rtol=1e-5, atol=1e-5)
    for name, p in theirs.named_parameters():
        np.testing.assert_allclose(getattr(ours, name).grad, p.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_arrays_in_arrays_out_and_gradients_only_where_wanted(rng):
    conv = nn.Conv1d(2, 3, 2, rng=0)
    x = rng.standard_normal((2, 2, 5))
    assert type(conv(x)) is np.ndarray
    assert conv(x).dtype == np.float32
    conv.weight.requires_grad = False
    conv(fs.Tensor(x)).sum().backward()
    assert conv.weight.grad is None
    assert np.array_equal(conv.bias.grad, [8, 8, 8])


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(4, 2, 3, causal=True, dilation=2, groups=2), lambda: nn.Conv2d(4, 2, (3, 1), padding="same")])
def test_it_saves_loads_and_says_what_it_is(make, tmp_path, rng):
    conv = make()
    conv.save(tmp_path / "conv")
    again = fs.load(tmp_path / "conv")
    x = rng.standard_normal((2, 4, *[7] * conv.axes)).astype(np.float32)
    assert np.array_equal(again(x), conv(x))
    assert repr(again) == repr(conv)
    assert f"kernel_size={conv.kernel_size}" in repr(conv)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("operation", ["conv1d", "conv2d"])
def test_explicit_pairs_are_the_two_halves(operation, bias, dtype, rng):
    axes = 1 if operation == "conv1d" else 2
    x, weight = rng.standard_normal((3, 4, *[9] * axes)).astype(dtype), rng.standard_normal((6, 2, *[3] * axes)).astype(dtype)
    b = rng.standard_normal(6).astype(dtype) if bias else None
    options = {"stride": 2, "padding": 1, "groups": 2}
    tensors = [None if a is None else fs.Tensor(a, requires_grad=True) for a in (x, weight, b)]
    want = getattr(F, operation)(*tensors, **options)
    dy = rng.standard_normal(want.shape).astype(dtype)
    want.backward(dy)
    y, cache = getattr(F, f"{operation}_forward")(x, weight, b, **options)
    assert_same_bits(y, want.data)
    for _ in range(2):
        grads = getattr(F, f"{operation}_backward")(cache, dy)
        for name, t in zip(("dx", "dweight", "dbias"), tensors, strict=True):
            assert grads[name] is None if t is None else assert_same_bits(grads[name], t.grad, name) is None
    other = "conv2d" if operation == "conv1d" else "conv1d"
    with pytest.raises(TypeError, match=f"cache: expected what {other}_forward returned, got what {operation}_forward did"):
        getattr(F, f"{other}_backward")(cache, dy)
    with pytest.raises(ValueError, match=r"dy: expected shape \(3, 6, 5"):
        getattr(F, f"{operation}_backward")(cache, dy[:2])
    with pytest.raises(TypeError, match=f"x: expected an array, got a Tensor; {operation} records"):
        getattr(F, f"{operation}_forward")(tensors[0], weight)


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.conv1d(ones(3, 5), ones(2, 3, 1)), ValueError, r"x: expected shape \(N, C, L\), got \(3, 5\)"),
        (lambda: F.conv1d(ones(1, 3, 5), ones(2, 4, 1)), ValueError, r"x: expected shape \(N, 4, L\), got \(1, 3, 5\)"),
        (lambda: F.conv2d(ones(1, 3, 5, 5), ones(2, 3, 1)), ValueError, r"weight: expected shape \(O, C / groups, kernel_h, kernel_w\)"),
        (lambda: F.conv1d(ones(1, 4, 5), ones(3, 2, 1), groups=2), ValueError, "weight: expected its 3 channels to come in 2 equal groups"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 5)), ValueError, "x: expected at least 5 elements for a kernel of 5, dilation 1, got 3"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 0)), ValueError, r"weight: expected at least one element, got shape \(1, 1, 0\)"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 1), ones(2)), ValueError, r"bias: expected shape \(1,\), got \(2,\)"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 1).astype(float)), TypeError, "weight: expected float32, got float64"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 1), stride=0), ValueError, r"stride: expected an integer in \[1, "),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 1), stride=(1, 1)), ValueError, r"stride: expected one integer, got \(1, 1\)"),
        (lambda: F.conv2d(ones(1, 1, 3, 3), ones(1, 1, 1, 1), padding=(1, 2, 3)), ValueError, "padding: expected an integer or 2 of them, got"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 1), padding="full"), ValueError, "padding: expected 'valid' or 'same', got 'full'"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 1), padding="same", stride=2), ValueError, "padding: expected a number where stride is not 1"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 1), padding=1, causal=True), ValueError, "padding: expected 0 with causal=True"),
        (lambda: F.conv1d(ones(1, 1, 3), ones(1, 1, 1), causal=2), TypeError, "causal: expected True or False, got 2"),
        (lambda: nn.Conv1d(3, 4, 1, groups=2), ValueError, "in_channels: expected a multiple of groups 2, got 3"),
        (lambda: nn.Conv1d(4, 3, 1, groups=2), ValueError, "out_channels: expected a multiple of groups 2, got 3"),
        (lambda: nn.Conv2d(1, 1, 0), ValueError, r"kernel_size: expected an integer in \[1, "),
        (lambda: nn.Conv1d(1, 1, 1, padding=1, causal=True), ValueError, "padding: expected 0 with causal=True"),
        (lambda: nn.Conv1d(1, 1, 1)(ones(1, 1)), ValueError, r"x: expected shape \(N, C, L\)"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
