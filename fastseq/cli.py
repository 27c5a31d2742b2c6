"""The command `fastseq`: info, train, generate, demo.

Results go to standard output, progress and messages to standard error. Exit code 0: done; 1: failed, with one sentence on
standard error; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

#: How long `demo` trains: with the sample and the table it is done in about a minute.
DEMO_SECONDS = 50.0
#: The share of a text, its last part, that is held out.
PART_HELD_OUT = 0.1


class CommandError(Exception):
    """What ends a command with exit code 1; the message is one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows another one
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return _failed("interrupted")
    except BrokenPipeError:
        # The reader of the output is gone: what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CommandError, ValueError, ImportError, RuntimeError, MemoryError) as error:
        return _failed(str(error) or type(error).__name__)
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _failed(sentence: str) -> int:
    print(f"fastseq: {' '.join(sentence.split())}", file=sys.stderr)
    return 1


# ---------------------------------------------------------------------- the commands


def _info(arguments: argparse.Namespace) -> int:
    from fastseq import runtime

    runtime.look_for_gpu()
    if arguments.json:
        print(json.dumps(runtime.config()))
    else:
        runtime.show_config()
    return 0


def _train(arguments: argparse.Namespace) -> int:
    name, text = _text(arguments.text)
    _, result = _fit(arguments, name, text)
    if arguments.json:
        print(
            json.dumps(
                {
                    "bits_per_char": result.bits_per_char,
                    "train_bits_per_char": result.train_bits_per_char,
                    "chars_per_second": result.chars_per_second,
                    "characters": result.characters,
                    "steps": result.steps,
                    "seconds": result.seconds,
                    "stopped": result.stopped,
                    "model": arguments.output,
                }
            )
        )
    else:
        print(_summary(result, arguments.output))
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from fastseq.generation import generate

    model = _language_model(arguments.model).to(arguments.device)
    prompt, vocabulary, shown = arguments.prompt, model.vocabulary, not arguments.json
    read = model.prompt_ids(prompt)  # before it is shown, for it may be refused
    if shown:
        print(prompt, end="", flush=True)
    (ids,) = generate(
        model,
        read,
        max_length=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        on_token=_writer(vocabulary, prompt) if shown else None,
        rng=arguments.seed,
    )
    print("" if shown else json.dumps({"prompt": prompt, "text": vocabulary.decode(ids)}))
    return 0


def _writer(vocabulary: Any, before: str) -> Callable[[Any], None]:
    """Prints tokens as they come, each apart from what is before it as the vocabulary has it."""
    separator, last = getattr(vocabulary, "separator", ""), before

    def write(token: Any) -> None:
        nonlocal last
        apart = separator if last and not last.endswith(separator) else ""
        last = vocabulary.decode(token)
        print(apart + last, end="", flush=True)

    return write


def _demo(arguments: argparse.Namespace) -> int:
    from fastseq import demo
    from fastseq.generation import generate

    say = _to_stderr if arguments.json else _to_stdout
    say(
        "Training a character language model on the help texts of Python (pydoc_data.topics), "
        f"for {arguments.seconds:.0f} seconds. Ctrl-C ends it early."
    )
    name, text = _text(None)
    model, result = _fit(arguments, name, text)
    say(_summary(result, arguments.output))
    if result.stopped == "interrupted":
        return 1
    say("\nWhat it writes, at temperature 0.6:\n")
    (ids,) = generate(model, "The ", max_length=600, temperature=0.6, rng=arguments.seed)
    say(model.vocabulary.decode(ids))
    step = demo.step_seconds(model.to("cpu").lstm)
    say(
        f"\nOne step of its LSTM ({model.lstm.input_size} -> {model.lstm.hidden_size}), called from Python: {1e6 * step:.1f} us\n"
    )
    table = demo.compare_with_numpy()
    ratio = demo.geometric_mean([row.ratio for row in table])
    for line in _table(table, ratio):
        say(line)
    if arguments.json:
        print(
            json.dumps(
                {
                    "bits_per_char": result.bits_per_char,
                    "chars_per_second": result.chars_per_second,
                    "step_us": 1e6 * step,
                    "numpy_ratio": ratio,
                    "characters": result.characters,
                    "seconds": result.seconds,
                    "model": arguments.output,
                    "table": [
                        {
                            "T": r.T,
                            "B": r.B,
                            "I": r.I,
                            "H": r.H,
                            "fastseq_us": 1e6 * r.fastseq_seconds,
                            "numpy_us": 1e6 * r.numpy_seconds,
                        }
                        for r in table
                    ],
                }
            )
        )
    return 0


# ---------------------------------------------------------------------- their parts


def _text(path: str | None) -> tuple[str, str]:
    """A name to show, and a text that can be trained on."""
    from fastseq.text import check_text, default_text, read_text

    name, text = ("pydoc_data.topics", default_text()) if path is None else (path, read_text(path))
    check_text(name, text)
    return name, text


def _fit(arguments: argparse.Namespace, name: str, text: str) -> tuple[Any, Any]:
    """Train a new model as the arguments say; it and the result."""
    from fastseq import models
    from fastseq.training import character_model

    options = character_model.CharacterOptions(
        epochs=arguments.epochs,
        seconds=arguments.seconds,
        batch_size=arguments.batch_size,
        sequence_length=arguments.sequence_length,
        learning_rate=arguments.learning_rate,
        patience=arguments.patience,
        seed=arguments.seed,
    )
    model = models.LanguageModel(
        models.Vocabulary(text),
        arguments.embedding_size,
        arguments.hidden_size,
        dropout=arguments.dropout,
        rng=arguments.seed,
    ).to(arguments.device)
    for path in filter(None, (arguments.output, arguments.checkpoint)):
        _check_writable(path)
    ids = model.vocabulary.encode(text)
    cut = len(ids) - max(2, round(len(ids) * PART_HELD_OUT))
    _to_stderr(
        f"{name}: {len(ids):,} characters, {len(model.vocabulary)} distinct; the last {len(ids) - cut:,} are held out; "
        f"{sum(p.size for p in model.parameters()):,} parameters"
    )
    if arguments.checkpoint and os.path.exists(arguments.checkpoint):
        _to_stderr(f"going on from {arguments.checkpoint}")
    with _status_line() as show:
        result = character_model.train_character_model(
            model, ids[:cut], ids[cut:], options, path=arguments.output, checkpoint=arguments.checkpoint, on_step=show
        )
    return model, result


def _check_writable(path: str) -> None:
    """Find out before the training, not after it, that the model cannot be written."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise CommandError(f"{path}: expected a file to write to, got a folder")
    if not os.path.isdir(folder):
        raise CommandError(f"{path}: there is no folder {folder} to write to")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{path}: the folder {folder} cannot be written to")


def _language_model(path: str) -> Any:
    from fastseq import models
    from fastseq.nn.serialization import load

    if not os.path.isfile(path):
        raise CommandError(
            f"{path}: there is no such file" if not os.path.exists(path) else f"{path}: expected a model's file"
        )
    model = load(path)
    if not isinstance(model, models.LanguageModel):
        raise CommandError(f"{path}: expected a language model, got a {type(model).__name__}")
    return model


@contextlib.contextmanager
def _status_line() -> Iterator[Any]:
    """A function for `on_step` that shows progress on standard error: a line that changes on a terminal, a line per look otherwise."""
    on_terminal, looked, shown = sys.stderr.isatty(), -1.0, 0.0

    def show(progress: Any) -> None:
        nonlocal looked, shown
        line = f"{100 * progress.share:3.0f} % {_figures(progress)}"
        if on_terminal and time.monotonic() - shown > 0.1:
            shown, columns = time.monotonic(), shutil.get_terminal_size().columns - 1
            print(f"\r{line:{columns}.{columns}}", end="", file=sys.stderr, flush=True)
        elif not on_terminal and progress.held_out_bits == progress.held_out_bits and progress.held_out_bits != looked:
            looked = progress.held_out_bits
            _to_stderr(line)

    try:
        yield show
    finally:
        if on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _figures(progress: Any) -> str:
    """Loss, bits per character, speed and time left."""
    left = progress.seconds * (1 - progress.share) / progress.share if progress.share else 0.0
    held_out = f", held out {progress.held_out_bits:.3f}" if progress.held_out_bits == progress.held_out_bits else ""
    return (
        f"loss {progress.loss:.3f}, {progress.bits_per_char:.3f} bits/char{held_out}, {progress.chars_per_second:,.0f} chars/s, "
        f"{int(left // 60)}:{int(left % 60):02d} left"
    )


def _summary(result: Any, path: str) -> str:
    ends = {
        "finished": "Done",
        "early": "Stopped early, the held-out text no longer getting better,",
        "interrupted": "Interrupted",
    }
    return (
        f"{ends[result.stopped]} after {result.seconds:.1f} s and {result.characters:,} characters "
        f"({result.chars_per_second:,.0f} per second): {result.bits_per_char:.3f} bits per character on held-out text. "
        f"The best model is in {path}"
    )


def _table(rows: Sequence[Any], ratio: float) -> Iterator[str]:
    yield f"{'LSTM, float32, one call':<28}{'fastseq':>16}{'NumPy':>16}{'ratio':>8}"
    for row in rows:
        name = f"T {row.T}, B {row.B}, I {row.I}, H {row.H}"
        yield f"{name:<28}{1e6 * row.fastseq_seconds:>13,.1f} us{1e6 * row.numpy_seconds:>13,.1f} us{row.ratio:>7.1f}x"
    yield f"{'geometric mean':<60}{ratio:>7.1f}x"


def _to_stdout(line: str) -> None:
    print(line, flush=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastseq", description="Recurrent networks on the CPU, or on a GPU: a character language model from end to end."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = _command(commands, "info", _info, "show the version, the instruction set and the number of threads")
    train = _command(commands, "train", _train, "train a character language model on a text")
    train.add_argument(
        "text", nargs="?", metavar="TEXT", help="UTF-8 text, plain or gzip (default: the help texts of Python)"
    )
    train.add_argument(
        "--epochs", type=_positive_float, default=10.0, metavar="N", help="passes over the text (default: %(default)s)"
    )
    train.add_argument("--seconds", type=_positive_float, metavar="N", help="train for so long, in place of --epochs")
    train.add_argument(
        "--checkpoint", metavar="FILE", help="keep here all that is needed to go on; if it is there already, the training goes on from it"
    )
    generate = _command(commands, "generate", _generate, "write text with a model")
    generate.add_argument("model", metavar="MODEL", help="a file that `fastseq train` wrote")
    generate.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with")
    generate.add_argument(
        "--length", type=_natural, default=500, metavar="N", help="characters to write (default: %(default)s)"
    )
    generate.add_argument(
        "--temperature",
        type=_not_negative_float,
        default=0.8,
        metavar="N",
        help="0: always the likeliest (default: %(default)s)",
    )
    generate.add_argument("--top-k", type=_positive_int, help="draw among the K likeliest characters only", metavar="K")
    demo = _command(commands, "demo", _demo, "train, write and measure, in about a minute")
    demo.add_argument(
        "--seconds",
        type=_positive_float,
        default=DEMO_SECONDS,
        metavar="N",
        help="how long to train (default: %(default)s)",
    )
    demo.set_defaults(epochs=1.0, checkpoint=None)
    for command in (train, demo):
        _add_training_arguments(command)
    for command in (train, generate, demo):
        command.add_argument(
            "--seed",
            type=_natural,
            default=None if command is generate else 0,
            metavar="N",
            help="for weights, masks and draws",
        )
    for command in (train, generate, demo):
        command.add_argument(
            "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: an NVIDIA GPU, through CuPy (default: %(default)s)"
        )
    for command in (info, train, generate, demo):
        command.add_argument(
            "--json", action="store_true", help="print the figures as one JSON object, on the last line"
        )
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, kind, default, text in (
        ("--embedding-size", _positive_int, 64, "width of a character's vector"),
        ("--hidden-size", _positive_int, 256, "units of the LSTM"),
        ("--dropout", _share, 0.1, "share of the LSTM's output dropped while training"),
        ("--batch-size", _positive_int, 16, "texts side by side"),
        ("--sequence-length", _positive_int, 32, "characters before each step"),
        ("--learning-rate", _positive_float, 8e-3, "the largest"),
        ("--patience", _positive_int, 4, "stop after so many looks at the held-out text without a better figure"),
    ):
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--output",
        default="language-model.safetensors",
        metavar="MODEL",
        help="where the best model is written (default: %(default)s)",
    )


def _number(
    text: str, kind: Any, least: float, *, above: bool = False, most: float = float("inf"), expected: str
) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not (least < value if above else least <= value) or not value <= most or value == float("inf"):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def _positive_int(text: str) -> int:
    return _number(text, int, 1, expected="an integer of at least 1")


def _natural(text: str) -> int:
    return _number(text, int, 0, expected="an integer of at least 0")


def _positive_float(text: str) -> float:
    return _number(text, float, 0, above=True, expected="a number above 0")


def _not_negative_float(text: str) -> float:
    return _number(text, float, 0, expected="a number of at least 0")


def _share(text: str) -> float:
    return _number(text, float, 0, most=1, expected="a number from 0 to 1")
