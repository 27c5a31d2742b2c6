"""A character language model with any cell: trained on a text, measured on its last tenth, and then it writes (Karpathy 2015).

    python examples/character_model.py
    python examples/character_model.py --data tinyshakespeare.txt.gz --cell gru
    python examples/character_model.py --data tinyshakespeare.txt.gz --steps 1000 --cell lstm gru mut1 mut2 mut3
"""

import argparse
import math
import os

import fastseq as fs
from fastseq.text import default_text, read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
CELLS = ("lstm", "gru", "rnn", "mut1", "mut2", "mut3")


def bits_per_character(model, held_out):
    """Over a text that is read as 16 texts side by side, each from an empty state."""
    pieces = fs.training.TextStreams(held_out, 16, 256)
    return fs.training.evaluate(model, pieces, state=fs.training.CarriedState()) / math.log(2)


def train(cell, vocabulary, training, held_out, options):
    """A model, and its bits per character on the held-out text after each look at it."""
    model = fs.models.LanguageModel(vocabulary, 64, options.hidden, cell=cell, dropout=options.dropout, rng=options.seed)
    streams = fs.training.TextStreams(training, options.batch, options.length, shift=True, rng=options.seed)
    steps = options.steps or options.epochs * len(streams)
    adam = fs.optim.Adam(model.parameters(), lr=options.rate)

    def look(model):
        return {"bits per character": bits_per_character(model, held_out)}

    history = fs.training.fit(
        model, streams, state=fs.training.CarriedState(), optimizer=adam, schedule=fs.optim.WarmupCosine(adam, steps, steps // 50, 0.02),
        max_norm=1.0, epochs=math.ceil(steps / len(streams)), callbacks=[StopAfter(steps)], validation=look)
    return model, history


class StopAfter(fs.training.Callback):
    """So many steps, wherever in an epoch that is."""

    def __init__(self, steps):
        self.steps = steps

    def on_step(self, progress):
        progress.stop = progress.step >= self.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="UTF-8 text, plain or gzip (default: the help texts of Python)")
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=["lstm"], help="one or several to compare (default lstm)")
    parser.add_argument("--epochs", type=int, default=7, help="(default %(default)s)")
    parser.add_argument("--steps", type=int, default=5 if QUICK else None, help="in place of --epochs")
    parser.add_argument("--hidden", type=int, default=32 if QUICK else 256, help="units of the layer (default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.2, help="while training (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="texts side by side (default %(default)s)")
    parser.add_argument("--length", type=int, default=32, help="characters before each step (default %(default)s)")
    parser.add_argument("--rate", type=float, default=6e-3, help="of learning, the largest (default %(default)s)")
    parser.add_argument("--prompt", default="The ", help="what the sample begins with (default %(default)r)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, masks, streams and the sample (default %(default)s)")
    options = parser.parse_args()

    text = read_text(options.data) if options.data else default_text()
    vocabulary = fs.models.Vocabulary(text)
    ids = vocabulary.encode(text)
    cut = len(ids) - len(ids) // 10
    print(f"{cut:,} characters to train on, {len(ids) - cut:,} held out, {len(vocabulary)} different ones")
    for cell in options.cell:
        model, history = train(cell, vocabulary, ids[:cut], ids[cut:], options)
        bits = history["bits per character"][-1]
        print(f"{cell}: {bits:.3f} bits per character after {history.steps} steps, {history.seconds:.0f} s", flush=True)
    print(options.prompt, end="")
    fs.generation.generate(
        model, options.prompt, max_length=300, temperature=0.7, rng=options.seed, on_token=lambda ids: print(vocabulary.decode(ids), end="", flush=True))
    print()


if __name__ == "__main__":
    main()
