"""The command as a user calls it: in a process of its own, on tiny budgets."""

import contextlib
import gzip
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastseq as fs
from fastseq import cli, demo

TEXT = "the cat sat on the mat and the dog sat on the log, said the cat to the dog.\n" * 60
TINY = ["--epochs", "2", "--hidden-size", "16", "--embedding-size", "8", "--batch-size", "4", "--seed", "1"]


def heed_interrupts():
    """A shell lets what it starts in the background ignore Ctrl-C, and so would the command under test."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command(*arguments, folder, **options):
    environment = {**os.environ, "PYTHONPATH": str(Path(fs.__file__).parents[1]), "PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [sys.executable, "-m", "fastseq", *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        **options,
    )


def run(*arguments, folder):
    process = command(*arguments, folder=folder)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    code, out, err = run("train", "text.txt", *TINY, "--output", "cat.safetensors", folder=folder)
    assert code == 0, err
    return folder, out, err


def test_info(tmp_path):
    code, out, err = run("info", folder=tmp_path)
    assert (code, err) == (0, "")
    assert f"fastseq {fs.__version__}" in out
    assert str(fs.get_num_threads()) in out
    code, out, err = run("info", "--json", folder=tmp_path)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found.pop("gpu") is None or found["cupy"]
    assert found == {name: value for name, value in fs.runtime.config().items() if name != "gpu"}


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_info_asks_for_the_gpu(tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text("__version__ = '13.4'")  # loads, and finds nothing
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    code, out, err = run("info", folder=tmp_path)
    assert (code, err) == (0, "")
    assert "CuPy             13.4\nGPU              none found\n" in out


def test_train_says_what_it_reached_and_where_the_model_is(trained):
    folder, out, err = trained
    assert re.search(
        r"Done after \d+\.\d s and [\d,]+ characters \([\d,]+ per second\): \d\.\d+ bits per character on held-out text",
        out,
    )
    assert "The best model is in cat.safetensors" in out
    assert re.search(r"text.txt: 4,560 characters, 17 distinct; the last 456 are held out; [\d,]+ parameters", err)
    assert re.search(r"100 % loss \d\.\d+, \d\.\d+ bits/char, held out \d\.\d+, [\d,]+ chars/s, 0:00 left", err)
    assert sorted(os.listdir(folder)) == ["cat.safetensors", "text.txt"]
    assert isinstance(fs.load(folder / "cat.safetensors"), fs.models.LanguageModel)


def test_train_json_and_gzip(tmp_path):
    (tmp_path / "text").write_bytes(gzip.compress(TEXT.encode()))
    code, out, err = run("train", "text", *TINY, "--json", folder=tmp_path)
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["stopped"] == "finished"
    assert 0 < figures["bits_per_char"] < 5
    assert figures["chars_per_second"] > 0
    assert figures["model"] == "language-model.safetensors"
    assert (tmp_path / "language-model.safetensors").exists()


def test_generate_repeats_with_its_seed(trained):
    folder, *_ = trained
    arguments = ("generate", "cat.safetensors", "--prompt", "the c", "--length", 50, "--temperature", 0.7, "--top-k", 5)
    code, out, err = run(*arguments, "--seed", 3, folder=folder)
    assert (code, err) == (0, "")
    assert out.startswith("the c")
    assert len(out) == 5 + 50 + 1
    assert run(*arguments, "--seed", 3, folder=folder)[1] == out
    assert run(*arguments, "--seed", 4, folder=folder)[1] != out
    code, line, _ = run(*arguments, "--seed", 3, "--json", folder=folder)
    assert json.loads(line) == {"prompt": "the c", "text": out[5:-1]}


@pytest.mark.parametrize("prompt", ["the cat", "the cat ", ""])
def test_words_are_written_apart(prompt, tmp_path):
    words = fs.models.Vocabulary(["the", "cat", "sat"], separator=" ")
    fs.models.LanguageModel(words, 4, 8, rng=0).save(tmp_path / "words")
    code, out, err = run("generate", "words", "--prompt", prompt, "--length", 9, "--seed", 1, folder=tmp_path)
    assert (code, err) == (0, "")
    assert len(words.encode(out.strip())) == len(words.encode(prompt)) + 9
    assert "  " not in out


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
@pytest.mark.parametrize("arguments", [("generate", "cat.safetensors"), ("train", "text.txt", "--output", "other"), ("demo", "--output", "other")])
def test_a_gpu_without_cupy_is_one_sentence(arguments, trained):
    folder, *_ = trained
    code, out, err = run(*arguments, "--device", "cuda", folder=folder)
    assert code == 1
    assert "other" not in os.listdir(folder)
    assert err.splitlines()[-1].startswith("fastseq: cuda: CuPy is not installed; pip install 'fastseq-kernels[cuda]'")
    assert len(err.splitlines()) == 1
    assert "Done" not in out


def test_generate_prints_as_it_comes(trained):
    folder, *_ = trained
    process = command("generate", "cat.safetensors", "--length", 10**8, "--seed", 1, folder=folder)
    assert len(process.stdout.read(200)) == 200
    process.stdout.close()  # as `| head` does
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "text.txt: there is no such file"),
        (b"", "text.txt: the text is empty"),
        (b"a", "text.txt: the text has only one distinct character"),
        (b"a" * 9999, "text.txt: the text has only one distinct character"),
        (b"\x7fELF\0\0", "text.txt: expected text, got binary data"),
        (b"caf\xe9" * 100, "text.txt: expected UTF-8 text"),
        (b"short", "text.txt: expected at least 100 characters"),
    ],
)
def test_a_text_that_cannot_be_trained_on_gets_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    code, out, err = run("train", "text.txt", *TINY, folder=tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith(f"fastseq: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "language-model.safetensors").exists()


def test_an_output_that_cannot_be_written_is_found_before_the_training(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    for output, message in (
        ("nowhere/model", "there is no folder"),
        (".", "expected a file to write to, got a folder"),
    ):
        code, out, err = run("train", "text.txt", "--output", output, folder=tmp_path)
        assert (code, out) == (1, "")
        assert message in err
        assert err.count("\n") == 1


def test_a_model_that_cannot_be_used_gets_one_sentence(trained, tmp_path):
    folder, *_ = trained
    whole = (folder / "cat.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-10])
    damaged = bytearray(whole)
    damaged[-10] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    fs.nn.Linear(2, 2).save(tmp_path / "linear")
    for name, message in (
        ("nothing", "nothing: there is no such file"),
        (".", ".: expected a model's file"),
        ("cut", "cut: tensor "),
        ("damaged", "damaged: tensor "),
        ("linear", "linear: expected a language model, got a Linear"),
    ):
        code, out, err = run("generate", name, folder=tmp_path)
        assert (code, out) == (1, "")
        assert err.startswith(f"fastseq: {message}")
        assert err.count("\n") == 1
    code, out, err = run("generate", folder / "cat.safetensors", "--prompt", "Cat\u00e9", folder=tmp_path)
    assert (code, out) == (1, "")
    assert err == "fastseq: prompt: the model's vocabulary has no 'C' '\\xe9'\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["train", "--epochs", "0"],
        ["train", "--epochs", "x"],
        ["train", "--dropout", "1.5"],
        ["train", "--learning-rate", "inf"],
        ["train", "--seconds", "nan"],
        ["generate"],
        ["train", "a", "b"],
        ["generate", "m", "--top-k", "0"],
        ["generate", "m", "--temperature", "-1"],
        ["info", "--seed", "1"],
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path, arguments):
    code, out, err = run(*arguments, folder=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("usage: fastseq")


def test_ctrl_c_keeps_what_was_learnt(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    options = ("--seconds", 60, "--patience", 1000, "--hidden-size", 16, "--output", "kept")
    process = command("train", "text.txt", *options, folder=tmp_path)
    while "% loss" not in (line := process.stderr.readline()):  # until after the first look at the held-out text
        assert line, "the training ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert re.search(r"Interrupted after .* bits per character on held-out text. The best model is in kept", out)
    assert "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == ["kept", "text.txt"]
    assert isinstance(fs.load(tmp_path / "kept"), fs.models.LanguageModel)


def test_a_training_that_was_ended_goes_on_from_its_checkpoint(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    longer = ["--epochs", "30", *TINY[2:], "--dropout", "0.3", "--patience", "100"]
    code, _, err = run("train", "text.txt", *longer, "--output", "whole", folder=tmp_path)
    assert code == 0, err
    parts = ["train", "text.txt", *longer, "--output", "parts", "--checkpoint", "run.checkpoint"]
    process = command(*parts, folder=tmp_path)
    while "% loss" not in (line := process.stderr.readline()):  # until after the first look at the held-out text
        assert line, "the training ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Interrupted" in out
    assert "Traceback" not in err
    code, out, err = run(*parts, folder=tmp_path)
    assert code == 0, err
    assert "Done" in out
    assert "going on from run.checkpoint" in err
    whole, parts = (fs.load(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all((array == parts[name]).all() for name, array in whole.items())


def test_a_loss_that_is_no_number_is_a_failure_with_one_sentence(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    code, out, err = run("train", "text.txt", *TINY, "--learning-rate", "1e38", folder=tmp_path)
    assert (code, out) == (1, "")
    assert "the loss became" in err.splitlines()[-1]
    assert "try a smaller learning rate" in err.splitlines()[-1]


def test_demo_ends_with_a_sample_a_latency_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare = demo.compare_with_numpy
    monkeypatch.setattr(demo, "compare_with_numpy", lambda: compare(((3, 2, 4, 5), (1, 1, 2, 7)), seconds=0.01))
    assert cli.main(["demo", "--seconds", "1", "--hidden-size", "16", "--output", "m"]) == 0
    out = capsys.readouterr().out
    assert "The best model is in m" in out
    sample = out[out.index("What it writes") : out.index("One step of its LSTM")]
    assert len(sample) > 600
    assert re.search(r"One step of its LSTM \(64 -> 16\), called from Python: \d+\.\d us", out)
    row = r"^T \d+, B \d+, I \d+, H \d+ +[\d,.]+ us +[\d,.]+ us +[\d.]+x$"
    assert len(re.findall(row, out, re.MULTILINE)) == 2
    assert re.search(r"geometric mean +[\d.]+x\n$", out)


def test_demo_json_is_the_only_thing_on_standard_output(tmp_path):
    code, out, err = run("demo", "--seconds", 2, "--hidden-size", 16, "--output", "m", "--json", folder=tmp_path)
    assert code == 0, err
    assert out.count("\n") == 1
    figures = json.loads(out)
    assert all(figures[name] > 0 for name in ("bits_per_char", "chars_per_second", "step_us", "numpy_ratio"))
    assert len(figures["table"]) == len(demo.CASES)
    assert "What it writes" in err
    assert "geometric mean" in err


def test_main_returns_the_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == fs.__version__
    assert cli.main(["train", "nothing"]) == 1
    assert capsys.readouterr().err == "fastseq: nothing: there is no such file\n"
    monkeypatch.setattr(cli, "_text", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "fastseq: interrupted\n"
    with contextlib.suppress(SystemExit):
        cli.main(["--help"])
    assert "generate" in capsys.readouterr().out
