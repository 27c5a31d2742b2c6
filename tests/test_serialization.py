"""Models in files: what comes back, what damage does, what a crash leaves."""

import contextlib
import json
import os
import struct

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn
from fastseq.nn import serialization


class Net(nn.Module):
    def __init__(self, width, *, names=("a", "b"), dtype=np.float32, head=None, options=None):
        self.names, self.options = names, options
        self.embedding = nn.Embedding(5, width, dtype=dtype)
        self.lstm = nn.LSTM(width, width, batch_first=True, bias=False, dtype=dtype)
        self.head = head or nn.Linear(width, 5, dtype=dtype)
        self.register_buffer("count", np.zeros(2, np.int64))
        self.register_buffer("rate", np.array(0.5))

    def forward(self, ids):
        return self.head(self.lstm(self.embedding(ids))[0])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_a_model_comes_back_with_its_configuration(path):
    head = nn.Sequential(
        nn.Dropout(0.25), nn.Linear(4, 8, dtype=np.float64), nn.Tanh(), nn.Linear(8, 5, dtype=np.float64)
    )
    model = Net(4, names=("x", ("y", 2)), dtype=np.float64, head=head, options={"rate": 0.5, "deep": [1, None, True]})
    model.count[...] = [3, 4]
    model.save(path)
    twin = fs.load(str(path))
    assert isinstance(twin, Net)
    assert (twin.names, twin.options) == (("x", ("y", 2)), {"rate": 0.5, "deep": [1, None, True]})
    assert repr(twin) == repr(model)
    assert twin.lstm.batch_first
    assert twin.count.tolist() == [3, 4]
    assert twin.rate.shape == ()
    assert twin.head[0].p == 0.25
    assert not twin.training
    ids = np.array([[0, 1, 4]])
    y, want = twin(ids), model.eval()(ids)
    assert y.dtype == np.float64
    assert np.array_equal(y, want)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 2, bias=False),
        nn.LSTM(3, 2, forget_bias=None),
        nn.Embedding(5, 2, padding_idx=-2),
        nn.Dropout(0.5),
        nn.Softmax(dim=-1),
        nn.ModuleDict({"a": nn.ReLU()}),
        nn.ModuleList([nn.Linear(1, 1)]),
        fs.models.LanguageModel("abc", 3, 4, dropout=0.5),
    ],
)
def test_every_layer_comes_back(path, layer):
    layer.save(path)
    twin = fs.load(path)
    assert repr(twin) == repr(layer)
    for (name, a), (other, b) in zip(layer.state_dict().items(), twin.state_dict().items(), strict=True):
        assert name == other
        assert np.array_equal(a, b)


def test_shared_weights_are_stored_once_and_shared_again(path):
    model = Net(5)
    model.head.weight = model.embedding.weight
    model.save(path)
    twin = fs.load(path)
    assert twin.head.weight is twin.embedding.weight
    assert np.array_equal(twin.head.weight.data, model.embedding.weight.data)
    safetensors = pytest.importorskip("safetensors.numpy")
    assert sorted(safetensors.load_file(path)) == [
        "count",
        "embedding.weight",
        "head.bias",
        "lstm.weight_hh_l0",
        "lstm.weight_ih_l0",
        "rate",
    ]


def test_an_odd_layout_in_memory_is_no_matter(path):
    layer = nn.Linear(3, 2)
    layer.weight.data = np.asfortranarray(layer.weight.data)
    layer.save(path)
    assert np.array_equal(fs.load(path).weight.data, layer.weight.data)


def test_a_cut_file_names_the_tensor(path):
    nn.Linear(30, 20).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors: .*(cut off|damaged|no safetensors file)"):
            fs.load(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"tensor (weight|bias) is cut off"):
        fs.load(path)


def test_every_flipped_byte_is_noticed(path):
    layer = nn.Linear(3, 2)
    layer.save(path)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for position in [*range(0, header, 3), *range(header, len(whole))]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        if position >= header:
            with pytest.raises(ValueError, match=r"model\.safetensors: tensor (weight|bias) is damaged"):
                fs.load(path)
            continue
        twin = None
        with contextlib.suppress(ValueError):  # white space around the header's JSON may change without harm
            twin = fs.load(path)
        if twin is not None:
            assert all(
                np.array_equal(a, b)
                for a, b in zip(twin.state_dict().values(), layer.state_dict().values(), strict=True)
            )


def rewrite(path, change):
    """The file with its header changed, checksums made to fit."""
    import zlib

    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    description = json.loads(header["__metadata__"]["fastseq"])
    change(header, description)
    text = json.dumps(description)
    header["__metadata__"].update(fastseq=text, crc32=str(zlib.crc32(text.encode())))
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + whole[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h, d: d["model"]["arguments"].update(out_features=3),
            r"bias: expected shape \(3,\), got \(2,\); weight: expected shape \(3, 3\), got \(2, 3\)",
        ),
        (lambda h, d: d["model"]["arguments"].update(bias=False), "unexpected bias"),
        (lambda h, d: d["model"]["arguments"].update(surprise=1), "surprise"),
        (lambda h, d: d["model"].update(module="fastseq.nn.Nothing"), "class fastseq.nn.Nothing is not defined"),
        (lambda h, d: d["model"].update(module="os.system"), "class os.system is not defined"),
        (lambda h, d: d.update(model={"list": [1]}), "expected a model"),
        (lambda h, d: d.update(format=2), "expected format 1, got 2"),
        (lambda h, d: d.update(shared={"bias": "nowhere"}), "nowhere"),
        (lambda h, d: h.update(gain=h.pop("weight")), "tensor weight is missing"),
        (lambda h, d: h["weight"].update(shape=[3, 2]), "tensor weight is damaged"),
        (lambda h, d: h["weight"].update(dtype="I32"), "tensor weight is damaged"),
    ],
)
def test_a_file_that_says_something_else(path, change, message):
    nn.Linear(3, 2).save(path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=message) as error:
        fs.load(path)
    assert str(error.value).startswith(str(path))


def test_files_that_are_no_models(path, tmp_path):
    for content in (
        b"",
        b"hello",
        b"\0" * 100,
        b"\xff" * 100,
        os.urandom(1000),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors: "):
            fs.load(path)
    with pytest.raises(FileNotFoundError):
        fs.load(tmp_path / "nothing")
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"weight": np.ones(3, np.float32)}, path)
    with pytest.raises(ValueError, match="no fastseq model"):
        fs.load(path)
    assert safetensors.load_file(path)["weight"].tolist() == [1, 1, 1]


def test_a_class_that_cannot_be_written_says_so(path):
    model = Net(4, options=object())
    with pytest.raises(TypeError, match=r"Net.options: expected numbers, .*got object; define configuration\(\)"):
        model.save(path)
    assert not path.exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    nn.Linear(3, 2).save(path)
    before = path.read_bytes()

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serialization.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        nn.Linear(30, 20).save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_link_stays_a_link(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    nn.Linear(3, 2).save(link)
    assert link.is_symlink()
    assert isinstance(fs.load(path), nn.Linear)


def test_the_file_has_the_permissions_of_any_new_file(path, tmp_path):
    nn.Linear(3, 2).save(path)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
