"""Language models beside the same in PyTorch: scores, loss and every gradient."""

import numpy as np
import pytest

import fastseq as fs

torch = pytest.importorskip("torch")
twins = pytest.importorskip("benchmarks.peers.torch_language_model", reason="the benchmarks are not beside the tests")


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "transformer"])
def test_a_language_model_is_pytorch_s(cell, tie_weights):
    model = fs.models.LanguageModel(11, 8, 8, cell=cell, num_layers=2, heads=2, max_length=7, tie_weights=tie_weights, rng=0)
    for parameter in model.parameters():
        parameter.data *= 3  # so that no part is too small to matter
    twin = twins.TorchLanguageModel(model)
    ids, targets = np.random.default_rng(0).integers(0, 11, (2, 7, 3))
    loss = model.loss(ids, targets)
    loss.backward()
    logits, _ = twin(torch.from_numpy(ids))
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    wanted.backward()
    assert np.allclose(model(ids)[0], logits.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert np.isclose(loss.item(), wanted.item(), rtol=1e-5)
    gradients = {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()}
    for name, parameter in model.named_parameters():
        assert np.allclose(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("carry", [False, True])
def test_the_steps_of_both_learn_alike(carry):
    model = fs.models.LanguageModel(11, 8, 8, cell="gru", rng=0)
    batches = np.random.default_rng(0).integers(0, 11, (4, 2, 7, 3))
    steps = [make(model, 1e-2, carry=carry) for make in (twins.torch_step_of, twins.step_of)]
    theirs, ours = ([step(tuple(batch)) for batch in batches] for step in steps)
    assert np.allclose(theirs, ours, rtol=1e-4)
