"""What a training writes to standard error, and that it writes nothing else."""

import io
import re
import sys

import pytest

import fastseq as fs
from fastseq.training import Batches, EarlyStopping
from tests.training_problems import Interrupt, Net, data, train


class Terminal(io.StringIO):
    """Standard error where somebody watches."""

    def isatty(self):
        return True


def test_a_line_for_each_epoch(capsys):
    train(Net(), epochs=3, validation=lambda model: {"accuracy": 0.5}, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"(epoch \d/3  loss \d\.\d+  accuracy 0\.5  \d+\.\d s\n){3}", err)


def test_many_epochs_have_no_more_than_about_a_hundred_lines(capsys):
    train(Net(), Batches(*data(), batch_size=50), epochs=950, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert 90 < len(lines) < 105
    assert lines[0].startswith("epoch 1/950 ")
    assert lines[-1].startswith("epoch 950/950 ")


def test_a_long_epoch_shows_that_it_lives(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    train(Net(), progress=True)
    assert re.search(r"^epoch 1/1  batch \d/7  loss \d\.\d+  \d+\.\d s\n", capsys.readouterr().err)


def test_nothing_is_written_where_nothing_is_asked_for(capsys):
    train(Net())
    assert capsys.readouterr() == ("", "")


def test_ends_before_the_time_and_goings_on_are_said(capsys, tmp_path):
    for step in (10, 0):
        train(Net(), epochs=2, callbacks=[Interrupt(step)], checkpoint=tmp_path / "checkpoint", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:3] == ["interrupted after step 10, epoch 2/2, batch 3", "going on after step 10, epoch 2/2, batch 3"]
    train(Net(), epochs=200, callbacks=[EarlyStopping(1, "loss", min_delta=9)], progress=True)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/200", "2/200"]


def test_a_bar_where_somebody_watches(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train(Net(), epochs=2, progress=True)
    written = terminal.getvalue()
    assert "epoch 1/2:" in written
    assert re.search(r"epoch 2/2  loss \d\.\d+  \d+\.\d s\n", written)


def test_the_bar_goes_away_whatever_happens(monkeypatch):
    tqdm = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr(sys, "stderr", Terminal())
    x, y = data()
    x[30] = float("nan")
    with pytest.raises(fs.training.TrainingDiverged):
        train(Net(), Batches(x, y, batch_size=8, shuffle=False), progress=True)
    assert not tqdm._instances


def test_lines_do_without_tqdm(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)  # the import fails
    train(Net(), epochs=2, progress=True)
    assert re.fullmatch(r"(epoch \d/2  loss \d\.\d+  \d+\.\d s\n){2}", terminal.getvalue())
