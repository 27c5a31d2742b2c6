"""LeNet."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq.models import LeNet


def test_it_is_its_layers(rng):
    model = LeNet(10, image_size=(9, 8), channels=3, kernel_size=3, rng=0)
    x = rng.standard_normal((5, 3, 9, 8)).astype(np.float32)
    h = F.max_pool2d(F.relu(model.conv1(x)), 2)
    h = F.max_pool2d(F.relu(model.conv2(h)), 2)
    assert h.shape == (5, 16, 2, 2)
    assert np.array_equal(model(x), model.head(h.reshape(5, -1)))
    assert [layer.out_features for layer in model.head.layers] == [120, 84, 10]


def test_gradients(rng):
    model = LeNet(2, image_size=4, kernel_size=3, widths=(2, 3, 4, 3), activation="tanh", dtype=np.float64, rng=0)
    assert fs.gradcheck(model, [fs.Tensor(rng.standard_normal((2, 1, 4, 4)), requires_grad=True)])
    model(fs.Tensor(rng.standard_normal((2, 1, 4, 4)))).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_it_saves_and_loads(tmp_path, rng):
    model = LeNet(4, image_size=8, widths=(2, 3, 5, 4), dropout=0.2, rng=0).eval()
    model.save(tmp_path / "lenet")
    x = rng.standard_normal((2, 1, 8, 8))
    assert np.array_equal(fs.load(tmp_path / "lenet").eval()(x), model(x))


def test_the_same_in_pytorch(rng):
    torch = pytest.importorskip("torch")
    model = LeNet(10, rng=0)
    t = torch.nn
    theirs = t.Sequential(
        t.Conv2d(1, 6, 5, padding=2), t.ReLU(), t.MaxPool2d(2), t.Conv2d(6, 16, 5, padding=2), t.ReLU(), t.MaxPool2d(2), t.Flatten(),
        t.Linear(784, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10),
    )  # fmt: skip
    state = dict(zip(theirs.state_dict(), (torch.from_numpy(a) for a in model.state_dict().values()), strict=True))
    theirs.load_state_dict(state)
    x, targets = rng.standard_normal((8, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 8)
    loss = F.cross_entropy(model(fs.Tensor(x)), targets)
    want = t.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(targets))
    assert np.isclose(loss.item(), want.item(), rtol=1e-5)
    loss.backward()
    want.backward()
    for ours, p in zip(model.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(ours.grad, p.grad.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LeNet(10, image_size=3), r"image_size: expected an integer in \[4, "),
        (lambda: LeNet(10, widths=(1, 2, 3)), "widths: expected an integer or 4 of them"),
        (lambda: LeNet(10)(np.zeros((2, 28, 28))), r"x: expected shape \(N, 1, 28, 28\), got \(2, 28, 28\)"),
        (lambda: LeNet(0), "sizes: expected at least 1, got 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
