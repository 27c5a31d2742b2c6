"""A module goes to a GPU and comes back: parameters, gradients, buffers, the optimiser's arrays, files and copies; and what keeps it from going."""

import copy
import pickle
import types

import numpy as np
import pytest

import fastseq as fs
from fastseq import backends
from fastseq.backends import is_gpu
from fastseq.nn import BatchNorm1d, Embedding, Linear, Module, Sequential, Tanh
from fastseq.plot.figure import numbers
from tests.tolerance import assert_close, assert_same_bits


class Tied(Module):
    """A table that is read and written, a buffer, and what is used by nobody."""

    def __init__(self):
        self.embedding = Embedding(7, 4, rng=0)
        self.norm = BatchNorm1d(4)
        self.head = Linear(4, 7, bias=False, rng=1)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", np.array([True, False]))

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids)))


def arrays_of(model):
    return [*(p.data for p in model.parameters()), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def learn(model, optimizer, ids, targets):
    optimizer.zero_grad()
    loss = fs.functional.cross_entropy(model(fs.Tensor(ids)), targets)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.fixture
def batch(rng):
    return rng.integers(0, 7, 9), rng.integers(0, 7, 9)


def test_everything_goes_and_comes_back(batch):
    model = Tied()
    before, parameters = model.state_dict(), list(model.parameters())
    fs.functional.cross_entropy(model(fs.Tensor(batch[0])), batch[1]).backward()
    grads = [p.grad for p in parameters]
    assert model.to("cuda") is model
    assert all(map(is_gpu, arrays_of(model)))
    assert list(model.parameters()) == parameters  # the same objects
    assert model.head.weight is model.embedding.weight
    for name, array in model.state_dict().items():
        assert isinstance(array, np.ndarray)
        if "running" not in name and "tracked" not in name:
            assert_same_bits(array, before[name], name)
    model.to("cpu")
    assert not any(map(is_gpu, arrays_of(model)))
    for p, grad in zip(parameters, grads, strict=True):
        assert_same_bits(p.grad, grad)


def test_a_second_move_costs_nothing(cupy):
    model = Tied().to("cuda")
    held = arrays_of(model)
    for device in ("cuda", f"cuda:{cupy.cuda.runtime.getDevice()}", cupy.cuda.Device()):
        assert all(a is b for a, b in zip(arrays_of(model.to(device)), held, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: fs.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: fs.optim.Adam(p, lr=0.1),
        lambda p: fs.optim.AdamW(p, lr=0.1),
        lambda p: fs.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
        lambda p: fs.optim.Adagrad(p, lr=0.1),
    ],
    ids=["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"],
)
def test_an_optimiser_goes_on_where_its_parameters_went(make, batch, to_gpu):
    model, moving = Tied(), Tied()
    optimizer, other = make(model.parameters()), make(moving.parameters())
    for device in ("cpu", "cuda", "cuda", "cpu"):
        moving.to(device)
        want = learn(model, optimizer, *batch)
        got = learn(moving, other, *(to_gpu(batch) if device == "cuda" else batch))
        assert got == pytest.approx(want, rel=1e-4)
        state = other.state_dict()["state"]
        assert all(isinstance(a, np.ndarray) for entry in state.values() for a in entry.values() if not isinstance(a, int))
    for name, array in moving.state_dict().items():
        if array.dtype.kind == "f":
            assert_close(array, model.state_dict()[name], terms=2000, name=name)
    again = make(moving.to("cuda").parameters())
    again.load_state_dict(other.state_dict())
    assert all(is_gpu(a) for entry in again._state.values() for name, a in entry.items() if name != "step")
    learn(moving, again, *to_gpu(batch))


@pytest.mark.parametrize("cell", ["lstm", "transformer"])
def test_a_language_model_waits_for_nothing_once_it_has_begun(cell, rng, emulated, monkeypatch):
    model = fs.models.LanguageModel(7, 8, 8, cell=cell, heads=2, max_length=8, rng=0).to("cuda")
    inputs, targets = (backends.to_gpu(rng.integers(0, 7, (3, 2))) for _ in range(2))
    before, at_head, head = emulated.host_reads, [], type(model.head).forward
    monkeypatch.setattr(type(model.head), "forward", lambda self, x: at_head.append(emulated.host_reads) or head(self, x))
    model.loss(inputs, targets).backward()
    assert at_head[-1:] == [emulated.host_reads] == [before + 2]  # ids and targets, before the first product
    targets[1, 1] = 7
    with pytest.raises(IndexError, match="targets: 7 is outside the vocabulary of 7"):
        model.loss(inputs, targets)


def test_clipping_reads_one_number(rng, emulated):
    model = Sequential(Linear(3, 5, rng=0), Tanh(), Linear(5, 2, rng=1))
    x = rng.standard_normal((4, 3)).astype(np.float32)
    (model(fs.Tensor(x)) ** 2).sum().backward()
    norm, grads = fs.optim.clip_grad_norm(model.parameters(), 1e9), [p.grad for p in model.parameters()]
    model.to("cuda")
    reads = emulated.host_reads
    assert fs.optim.clip_grad_norm(model.parameters(), norm / 2) == pytest.approx(norm, rel=1e-6)
    assert emulated.host_reads - reads == 1
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert_close(p.grad.get(), grad / 2, terms=8)
    fs.optim.clip_grad_value(model.parameters(), 1e-3)
    assert max(float(abs(p.grad).max()) for p in model.parameters()) <= 1.001e-3


def test_files_are_the_same_from_both_sides(tmp_path):
    model = Sequential(Linear(3, 5, rng=0), Tanh(), Linear(5, 2, rng=1))
    model.save(tmp_path / "cpu")
    model.to("cuda").save(tmp_path / "cuda")
    loaded = fs.load(tmp_path / "cuda")
    assert not any(map(is_gpu, arrays_of(loaded)))
    for a, b in zip(arrays_of(loaded), arrays_of(fs.load(tmp_path / "cpu")), strict=True):
        assert_same_bits(a, b)
    loaded.to("cuda").load_state_dict(model.state_dict())
    assert all(map(is_gpu, arrays_of(loaded)))


def test_a_state_of_either_kind_is_taken(to_gpu):
    model = Linear(3, 2, rng=0).to("cuda")
    state = {"weight": np.ones((2, 3)), "bias": np.zeros(2)}
    for given in (state, to_gpu(state), {name: fs.Tensor(to_gpu(a)) for name, a in state.items()}):
        model.weight.data[...] = 7
        held = model.weight.data
        model.load_state_dict(given)
        assert model.weight.data is held
        assert_same_bits(model.weight.data.get(), np.ones((2, 3), np.float32))


def test_pickles_and_copies_stay_on_the_gpu():
    model = Tied().to("cuda")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(map(is_gpu, arrays_of(twin)))
        assert twin.head.weight is twin.embedding.weight
        assert twin.head.weight.data is not model.head.weight.data
        for (name, a), b in zip(twin.state_dict().items(), model.state_dict().values(), strict=True):
            assert_same_bits(a, b, name)


def test_row_sparse_gradients_move_too(to_gpu):
    table = Embedding(6, 2, sparse=True, rng=0)
    table(fs.Tensor(np.array([4, 1, 4]))).sum().backward()
    want = table.weight.grad.to_dense()
    table.to("cuda")
    assert_same_bits(table.weight.grad.to_dense().get(), want)
    fs.optim.SGD(table.parameters(), lr=1.0).step()
    fs.optim.SparseAdam(table.parameters(), lr=0.1).step()
    table.weight.grad = want
    with pytest.raises(TypeError, match="grad: expected a CuPy array, as the parameter is, got a NumPy array"):
        fs.optim.SGD(table.parameters(), lr=1.0).step()


def test_layers_say_where_they_are(rng, to_gpu):
    x = rng.standard_normal((4, 2, 3)).astype(np.float32)
    for layer in (Linear(3, 2), fs.nn.LSTM(3, 2), fs.nn.LSTM(3, 2, num_layers=2), fs.nn.GRU(3, 2), fs.nn.LayerNorm(3)):
        for wrap in (lambda a: a, fs.Tensor):
            with pytest.raises(TypeError, match=r'got a .* array; move .*\.to\("cuda"\)'):
                layer(wrap(to_gpu(x)))
    layer = fs.nn.LSTM(3, 2).to("cuda")
    with pytest.raises(TypeError, match=r"x: expected a CuPy array, for this layer is on the GPU, got a NumPy array; move x with cupy\.asarray\(x\)"):
        layer(x)
    with pytest.raises(TypeError, match="h_0: expected a CuPy array, for this layer is on the GPU"):
        layer(to_gpu(x), (np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.float32)))
    for given, got in ((x[0], "a NumPy array"), (x[0].tolist(), "list")):
        with pytest.raises(TypeError, match=rf"x: expected a CuPy array of shape \(2, 3\), .* got {got}; cupy\.asarray\(x\) moves it"):
            layer.stream(2).step(given)
    embedding = Embedding(5, 2)
    with pytest.raises(TypeError, match=r'ids: expected a NumPy array, for this layer is on the CPU, got a CuPy array; .*\.to\("cuda"\)'):
        embedding(to_gpu(np.array([1])))
    with pytest.raises(TypeError, match=r"ids: expected a CuPy array, for this layer is on the GPU, got a NumPy array; move ids with cupy\.asarray\(ids\)"):
        embedding.to("cuda")([1])


def test_fit_brings_batches_to_the_model(rng, to_gpu):
    x = rng.standard_normal((12, 3)).astype(np.float32)
    losses = []
    for device, move in (("cpu", lambda a: a), ("cuda", lambda a: a), ("cuda", to_gpu)):
        model = Linear(3, 1, rng=0).to(device)
        batches = fs.training.Batches(move(x), move(x[:, :1]), batch_size=4, rng=0)
        optimizer = fs.optim.SGD(model.parameters(), lr=0.1)
        history = fs.training.fit(model, batches, loss=fs.functional.mse_loss, optimizer=optimizer, epochs=2, progress=False)
        losses.append(history["loss"])
        assert is_gpu(model.weight.data) is (device == "cuda")
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_pictures_fetch_their_numbers(rng, to_gpu):
    weights = rng.random((2, 3))
    for given in (to_gpu(weights), fs.Tensor(to_gpu(weights))):
        assert_same_bits(numbers("weights", given), weights)


# ---------------------------------------------------------------- what keeps it from going


@pytest.fixture
def asked_anew(monkeypatch):
    """As in a process that has not yet looked for a GPU."""
    monkeypatch.setattr(backends._Cuda, "backend", None)


def refused(cupy, status):
    """What the CUDA runtime raises, with its number."""

    def call(*args):
        error = cupy.cuda.runtime.CUDARuntimeError.__new__(cupy.cuda.runtime.CUDARuntimeError)
        error.status = status
        raise error

    return call


def stays(model, error, message):
    before = arrays_of(model)
    with pytest.raises(error, match=message) as caught:
        model.to("cuda")
    assert "\n" not in str(caught.value)
    assert all(a is b for a, b in zip(arrays_of(model), before, strict=True))


@pytest.mark.parametrize(
    ("status", "driver", "message"),
    [
        (100, 12040, "^cuda: no GPU found"),
        (35, 0, "^cuda: no GPU found"),
        (35, 11020, r"^cuda: the NVIDIA driver is too old: it knows CUDA 11\.2, CuPy .* needs \d+\.\d+; update the driver"),
        (999, 12040, "^cuda: no GPU can be used: "),
    ],
)
def test_no_gpu_and_an_old_driver_are_one_sentence_each(status, driver, message, cupy, asked_anew, monkeypatch):
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", refused(cupy, status))
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: driver)
    stays(Tied(), RuntimeError, message)
    assert fs.runtime.config()["gpu"] is None


def test_a_gpu_that_is_too_old(cupy, asked_anew, monkeypatch):
    found = dict(cupy.cuda.runtime.getDeviceProperties(0), name=b"Tesla V100", major=7, minor=0)
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceProperties", lambda device: found)
    stays(Tied(), RuntimeError, r"^cuda: expected a GPU of compute capability 8\.0 or later, got Tesla V100 with 7\.0")


def test_another_gpu_than_the_current_one():
    stays_where = Tied()
    with pytest.raises(ValueError, match=r"device: expected CuPy's current device, 0, got cuda:7; with cupy\.cuda\.Device\(7\)"):
        stays_where.to("cuda:7")


@pytest.mark.parametrize("device", ["gpu", "cuda:", None, 0, np.zeros(2)], ids=str)
def test_what_is_no_device(device):
    with pytest.raises(ValueError, match='device: expected "cpu" or "cuda", got '):
        Tied().to(device)


def test_a_move_that_runs_out_of_memory_moves_nothing(cupy):
    class Large(Module):
        def __init__(self):
            self.small, self.large = Linear(3, 2, rng=0), Linear(1, 1, rng=0)
            self.large.weight = fs.nn.Parameter(np.zeros((4096, 4096), np.float32))

    large = Large()
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    limit = pool.get_limit()
    pool.set_limit(size=pool.used_bytes() + 2**20)
    try:
        stays(large, MemoryError, ".")
    finally:
        pool.set_limit(size=limit)
    model = Tied().to("cuda")  # the process goes on
    assert is_gpu(model(cupy.asarray(np.array([1, 2]))))


def test_the_configuration_names_the_gpu(capsys):
    found = fs.runtime.config()["gpu"]
    assert set(found) == {"name", "capability", "memory", "driver"}
    fs.show_config()
    printed = capsys.readouterr().out
    assert found["name"] in printed
    assert f"compute capability {found['capability']}" in printed


def test_a_loaded_cupy_without_its_libraries_says_so(asked_anew, monkeypatch):
    def loaded():
        raise ImportError("cuda: CuPy is installed but does not load: libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(backends, "_loaded", loaded)
    stays(Tied(), ImportError, "does not load")


def test_only_cupys_own_arrays_count(cupy, monkeypatch):
    other = types.SimpleNamespace(__cuda_array_interface__={"version": 3}, dtype=np.dtype(np.float32), shape=(2,))
    assert not is_gpu(other)
    with pytest.raises(TypeError, match=r"x: expected a NumPy or CuPy array, got .*SimpleNamespace, which is on a GPU; cupy\.asarray\(x\)"):
        Linear(2, 3)(other)
