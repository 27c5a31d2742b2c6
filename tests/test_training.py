"""`fit`: what it computes, how it stops, and that it goes on exactly where it was."""

import os
import signal

import numpy as np
import pytest

import fastseq as fs
from fastseq.training import Callback, CarriedState, TextStreams, fit


def language_training():
    """A model, its streams and its optimiser, always the same."""
    fs.manual_seed(1)
    model = fs.models.LanguageModel("ab c", 8, 16, dropout=0.3)
    streams = TextStreams(model.vocabulary.encode("ab c" * 800), 4, 16, shift=True)
    return model, streams, fs.optim.Adam(model.parameters(), lr=1e-2)


class Interrupt(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, progress):
        if progress.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [1, 48, 49, 50, 120])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, step):
    results = []
    for parts in ([0], [step, 0]):
        for at in parts:
            model, streams, adam = language_training()
            history = fit(model, streams, state=CarriedState(), optimizer=adam, epochs=3, max_norm=1.0, validation=streams, callbacks=[Interrupt(at)],
                          checkpoint=tmp_path / f"{len(parts)}", progress=False)  # fmt: skip
            assert (history.stopped, history.steps) == (("interrupted", at) if at else ("finished", 147))
        results.append((history["loss"], history["validation_loss"], model.state_dict()))
    (loss, validation, whole), (loss_again, validation_again, again) = results
    assert loss == loss_again
    assert validation == validation_again
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
