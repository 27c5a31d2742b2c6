"""kill -9 at any moment of a training: the checkpoint is the old one or the new one, and what goes on from it ends with the same bits."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastseq.training.checkpoint import read_checkpoint, write_checkpoint

SCRIPT = Path(__file__).with_name("kill_training.py")


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, str(SCRIPT), *map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True)


def finish(process):
    with process.stdout:
        steps = [int(line) for line in process.stdout]
    assert process.wait(timeout=120) == 0
    return steps


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, rng):
    whole = start("-", tmp_path / "whole.npz")
    checkpoint, kills = tmp_path / "run.checkpoint", 0
    for _ in range(8):
        process = start(checkpoint, tmp_path / "parts.npz")
        for _ in range(rng.integers(1, 6)):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.01))  # into the middle of a step, or of the writing of the checkpoint
        process.kill()
        process.wait()
        process.stdout.close()
        kills += process.returncode == -9
        if checkpoint.exists():
            read_checkpoint(str(checkpoint))
    assert kills == 8
    rest = finish(start(checkpoint, tmp_path / "parts.npz"))
    steps = finish(whole)
    assert steps == list(range(1, 49))  # 8 epochs of 12 batches, two together
    assert rest == list(range(rest[0], 49))
    assert rest[0] > 1
    expected, found = arrays(tmp_path / "whole.npz"), arrays(tmp_path / "parts.npz")
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.npz", "parts.npz", "run.checkpoint"}  # and nothing half-written


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch, moment):
    path = tmp_path / "run.checkpoint"
    write_checkpoint(str(path), {"step": 1, "array": np.arange(3)})

    def fail(*arguments):
        raise OSError("no space left on device")

    if moment == "write":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, moment, fail)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(str(path), {"step": 2, "array": np.arange(4)})
    monkeypatch.undo()
    assert read_checkpoint(str(path))["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.checkpoint"]
