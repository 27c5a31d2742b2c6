"""The recurrent operations of `fastseq.functional`: explicit pairs, gradients of every array, options and what is refused."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from tests.tolerance import assert_same_bits

T, B, I, H = 4, 2, 3, 5
NORM = {f"ln_{p}_{part}": None for p in ("ih", "hh") for part in ("weight", "bias")}

#: By the test's name: operation, options, and the shapes of its weights.
OPERATIONS = {
    "rnn": ("rnn", {}, {"w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,)}),
    "relu": ("rnn", {"nonlinearity": "relu"}, {"w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": None}),
    "lstm": ("lstm", {}, {"w_ih": (4 * H, I), "w_hh": (4 * H, H), "b_ih": (4 * H,), "b_hh": (4 * H,)}),
    "all of lstm": ("lstm", {}, {"w_ih": (4 * H, I), "w_hh": (4 * H, 2), "b_ih": (4 * H,), "b_hh": (4 * H,), "w_hr": (2, H), "w_ch": (3, H)}
                    | dict.fromkeys(NORM, (4 * H,)) | {"ln_c_weight": (H,), "ln_c_bias": (H,)}),
    "gru": ("gru", {}, {"w_ih": (3 * H, I), "w_hh": (3 * H, H), "b_ih": None, "b_hh": (3 * H,)}),
    "gru before": ("gru", {"reset_after": False}, {"w_ih": (3 * H, I), "w_hh": (3 * H, H), "b_ih": (3 * H,), "b_hh": (3 * H,)}),
    "gru norm": ("gru", {}, {"w_ih": (3 * H, I), "w_hh": (3 * H, H), "b_ih": (3 * H,), "b_hh": (3 * H,)} | dict.fromkeys(NORM, (3 * H,))),
    "mut1": ("mut", {"variant": 1}, {"w_ih": (2 * H, I), "w_hh": (2 * H, H), "bias": (3 * H,), "w_proj": (H, I)}),
    "mut2": ("mut", {"variant": 2}, {"w_ih": (2 * H, I), "w_hh": (3 * H, H), "bias": (3 * H,), "w_proj": (H, I)}),
    "mut3": ("mut", {"variant": 3}, {"w_ih": (3 * H, I), "w_hh": (3 * H, H), "bias": (3 * H,), "w_proj": None}),
}  # fmt: skip
every_operation = pytest.mark.parametrize("kind", OPERATIONS)


def inputs_of(kind, rng, dtype):
    """x, the weights (None for those that are left out) and the initial state, by name."""
    operation, _, shapes = OPERATIONS[kind]
    width = shapes["w_hh"][1]
    shapes = {"x": (T, B, I)} | shapes | {"h_0": (B, width)} | ({"c_0": (B, H)} if operation == "lstm" else {})
    return {n: None if s is None else (0.5 * rng.standard_normal(s)).astype(dtype) for n, s in shapes.items()}


@every_operation
def test_the_explicit_pair_agrees_with_the_tape(kind, dtype, rng):
    operation, options, _ = OPERATIONS[kind]
    arrays = inputs_of(kind, rng, dtype)
    options = options | {"lengths": np.array([4, 2]), "reset": rng.random((T, B)) < 0.3}
    *outputs, cache = getattr(F, f"{operation}_forward")(**arrays, **options)
    upstream = [rng.standard_normal(a.shape).astype(dtype) for a in outputs]
    named = dict(zip(("dh", "dc"), upstream[1:], strict=False))
    tensors = {n: None if a is None else fs.Tensor(a, requires_grad=True) for n, a in arrays.items()}
    recorded = getattr(F, operation)(**tensors, **options)
    total = None
    for got, want, dy in zip(recorded, outputs, upstream, strict=True):
        assert_same_bits(got.data, want)
        total = (got * dy).sum() if total is None else total + (got * dy).sum()
    total.backward()
    for _ in range(2):  # the cache is never changed
        grads = getattr(F, f"{operation}_backward")(cache, upstream[0], **named)
        assert {n for n, g in grads.items() if g is not None} == {f"d{n}" for n, a in arrays.items() if a is not None}
        for name, tensor in tensors.items():
            if tensor is not None:
                assert_same_bits(grads[f"d{name}"], tensor.grad, name)
    states = getattr(F, f"{operation}_backward")(cache, upstream[0], **named, need_dstates=True)["dstates"]
    assert states.shape == outputs[0].shape


@every_operation
def test_gradients(kind, rng):
    operation, options, _ = OPERATIONS[kind]
    names, arrays = zip(*((n, a) for n, a in inputs_of(kind, rng, np.float64).items() if a is not None), strict=True)
    options = options | ({"return_cells": True} if operation == "lstm" else {})
    tensors = [fs.Tensor(a, requires_grad=True) for a in arrays]
    assert fs.gradcheck(lambda *given: getattr(F, operation)(**dict(zip(names, given, strict=True)), **options), tensors)


def test_mut_without_projection_reads_x_itself(rng):
    x = rng.standard_normal((T, B, H))
    for variant, (of_input, of_state) in {1: (2, 2), 2: (2, 3)}.items():
        weights = rng.standard_normal((of_input * H, H)), rng.standard_normal((of_state * H, H)), rng.standard_normal(3 * H)
        bare = F.mut(x, *weights, variant=variant)
        for got, want in zip(bare, F.mut(x, *weights, np.eye(H), variant=variant), strict=True):
            assert_same_bits(got, want)
        inputs = [fs.Tensor(a, requires_grad=True) for a in (x, *weights)]
        assert fs.gradcheck(lambda *given, variant=variant: F.mut(*given, variant=variant), inputs)
        *_, cache = F.mut_forward(x, *weights, None, variant=variant)
        assert F.mut_backward(cache, bare[0])["dw_proj"] is None


def test_noise_has_a_key(rng):
    arrays = inputs_of("gru", rng, np.float64)
    noise = F.Noise(recurrent_dropout=0.5, zoneout_h=0.3, training=True, seed=5, layer=2, call=3)
    y, _ = F.gru(**arrays, noise=noise)
    assert_same_bits(F.gru(**arrays, noise=noise)[0], y)
    for other in (noise._replace(seed=6), noise._replace(layer=3), noise._replace(call=4), noise._replace(training=False)):
        assert not np.array_equal(F.gru(**arrays, noise=other)[0], y)
    tensors = [fs.Tensor(a, requires_grad=True) for a in arrays.values() if a is not None]
    names = [n for n, a in arrays.items() if a is not None]
    assert fs.gradcheck(lambda *given: F.gru(**dict(zip(names, given, strict=True)), noise=noise), tensors)


X, W, U = np.zeros((T, B, I)), np.zeros((3 * H, I)), np.zeros((3 * H, H))
W4, U4 = np.zeros((4 * H, I)), np.zeros((4 * H, H))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.gru(X, W, U[:14]), ValueError, r"w_hh: expected shape \(3 H, H\), got \(14, 5\)"),
        (lambda: F.rnn(X, W[:5], U[:5, :4]), ValueError, r"w_hh: expected shape \(H, H\), got \(5, 4\)"),
        (lambda: F.gru(X, W, U, h_0=np.zeros((3, 5))), ValueError, r"h_0: expected shape \(2, 5\), got \(3, 5\)"),
        (lambda: F.gru(X, W.astype(np.float32), U), TypeError, "w_ih: expected float64, got float32"),
        (lambda: F.gru(X, W, U, ln_ih_weight=np.zeros(15)), TypeError, "ln_ih_bias: expected an array, for layer norm takes"),
        (lambda: F.gru(X, W, U, reset_after="no"), TypeError, "reset_after: expected True or False, got str"),
        (lambda: F.gru(X, W, U, reset_after=False, ln_ih_weight=np.zeros(15)), ValueError, "reset_after: expected True with layer norm"),
        (lambda: F.rnn(X, W[:5], U[:5], nonlinearity="sin"), ValueError, "nonlinearity: expected 'tanh' or 'relu', got 'sin'"),
        (lambda: F.lstm(X, W4, U4, w_hr=np.zeros((2, 5))), ValueError, r"w_hr: expected shape \(5, 5\), got \(2, 5\)"),
        (lambda: F.lstm(X, W4, U4[:, :2], w_hr=np.zeros((2, 4))), ValueError, r"w_hr: expected shape \(2, 5\), got \(2, 4\)"),
        (lambda: F.lstm(X, W4, U4, w_ch=np.zeros((4, 5))), ValueError, r"w_ch: expected shape \(3, 5\), got \(4, 5\)"),
        (lambda: F.lstm(X, W4, U4, lengths=[5, 1]), ValueError, "lengths: expected integers from 0 to 4"),
        (lambda: F.lstm(X, W4, U4, reset=np.zeros((B, T), bool)), ValueError, r"reset: expected shape \(4, 2\), got \(2, 4\)"),
        (lambda: F.lstm(X, W4, U4, noise=0.5), TypeError, "noise: expected a Noise, got float"),
        (lambda: F.lstm(X, W4, U4, noise=F.Noise(zoneout_c=2)), ValueError, "noise.zoneout_c: expected a probability"),
        (lambda: F.lstm(X, W4, U4, noise=F.Noise(seed=-1)), ValueError, r"noise.seed: expected an integer in \[0, "),
        (lambda: F.lstm(X, W4, U4, checkpoint_every=0), ValueError, r"checkpoint_every: expected an integer in \[1, "),
        (lambda: F.mut(X, W, U, variant=4), ValueError, "variant: expected 1, 2 or 3, got 4"),
        (lambda: F.mut(X, W, U, variant=1), ValueError, r"w_hh: expected shape \(2 H, H\), got \(15, 5\)"),
        (lambda: F.mut(X, W[:10], U[:10], variant=1), ValueError, r"w_proj: expected shape \(5, 3\), for I is not H, got None"),
        (lambda: F.mut(X, W, U, None, W[:5], variant=3), ValueError, "w_proj: expected None, for MUT3 projects nothing"),
        (lambda: F.mut(X, W[:10], U, np.zeros(10), W[:5], variant=2), ValueError, r"bias: expected shape \(15,\), got \(10,\)"),
        (lambda: F.gru_forward(fs.Tensor(X), W, U, None, None), TypeError, "x: expected an array, got a Tensor; functional.gru records"),
        (lambda: F.mut_forward(fs.Tensor(X), W, U, None, None, variant=3), TypeError, "x: expected an array, got a Tensor; functional.mut"),
        (lambda: F.lstm_backward(F.gru_forward(X, W, U, None, None)[-1], X), TypeError, "cache: expected what lstm_forward returned, got what gru_forward did"),
        (lambda: F.mut_backward(3, X), TypeError, "cache: expected what mut_forward returned, got int"),
        (lambda: F.gru_backward(F.gru_forward(X, W, U, None, None)[-1], X), ValueError, r"dy: expected shape \(4, 2, 5\), got \(4, 2, 3\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
