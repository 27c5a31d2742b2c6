"""A language model of words: an RNN, GRU, LSTM or a small transformer beside Kneser-Ney n-grams, by perplexity on one held-out text.

    python examples/word_model.py
    python examples/word_model.py --data book.txt.gz --cell rnn gru lstm transformer
"""

import argparse
import math
import os

from kneser_ney import KneserNey, corpus

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
RATES = {"lstm": 4e-3, "gru": 4e-3, "rnn": 2e-3, "transformer": 2e-3}  # of learning, the largest


def build(vocabulary, cell, width, dropout, seed):
    """One layer as wide as the vectors of the words, which are the rows of the head too; or two transformer layers."""
    if cell == "transformer":
        options = {"hidden_size": 4 * width, "num_layers": 2, "heads": 4, "max_length": 64}
    else:
        options = {"hidden_size": width}
    return fs.models.LanguageModel(vocabulary, width, cell=cell, dropout=dropout, tie_weights=True, rng=seed, **options)


def perplexity(model, ids, length):
    """Over all words but the first: each after all before it, or for a transformer after half of `length` at least."""
    transformer = model.cell == "transformer"
    step, total, state = length // 2 if transformer else 1000, 0.0, None
    for n in range(0, len(ids) - 1, step):
        before = min(n, length - step) if transformer else 0
        targets = ids[n + 1 : n + 1 + step]
        logits, state = model(ids[n - before : n + len(targets), None], state)
        total += float(fs.functional.cross_entropy(logits[before:, 0], targets, reduction="sum"))
    return math.exp(total / (len(ids) - 1))


def train(model, training, held_out, epochs, seed):
    """Adam with a warm-up and a cosine, streams of words side by side, the state carried over; the held-out perplexity in the end."""
    length = 64 if model.cell == "transformer" else 32
    streams = fs.training.TextStreams(training, 16, length, shift=True, rng=seed)
    adam, steps = fs.optim.Adam(model.parameters(), lr=RATES[model.cell]), epochs * len(streams)
    history = fs.training.fit(
        model, streams, state=fs.training.CarriedState(), optimizer=adam, schedule=fs.optim.WarmupCosine(adam, steps, len(streams) // 5, floor=0.02),
        max_norm=1.0, epochs=epochs, validation=lambda model: {"perplexity": perplexity(model, held_out, length)})
    return history["perplexity"][-1], history.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="UTF-8 text, plain or gzip (default: the help texts of Python)")
    parser.add_argument("--cell", nargs="+", choices=RATES, default=["lstm"], help="one or several (default lstm)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 4, help="(default %(default)s)")
    parser.add_argument("--order", type=int, default=5, help="of n-grams, from 1 to this (default %(default)s)")
    parser.add_argument("--words", type=int, default=500 if QUICK else 10_000, help="most frequent words that are known (default %(default)s)")
    parser.add_argument("--width", type=int, default=32 if QUICK else 200, help="of word vectors and layers (default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.3, help="while training (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, masks and streams (default %(default)s)")
    options = parser.parse_args()

    vocabulary, training, held_out = corpus(options.data, options.words)
    print(f"{len(training):,} words to train on, {len(held_out):,} held out, {len(vocabulary):,} known")
    grams = KneserNey(training, len(vocabulary), options.order)
    for order in range(1, options.order + 1):
        print(f"{order}-gram: perplexity {grams.perplexity(held_out, order):.1f}", flush=True)
    del grams  # large
    for cell in options.cell:
        model = build(vocabulary, cell, options.width, options.dropout, options.seed)
        figure, seconds = train(model, training, held_out, options.epochs, options.seed)
        print(f"{cell}: perplexity {figure:.1f} after {options.epochs} epochs, {seconds:.0f} s", flush=True)
    (ids,) = fs.generation.generate(model, held_out[:8], max_length=30, temperature=0.8, stop=(), rng=options.seed)
    print(f"{vocabulary.decode(held_out[:8])} ... {vocabulary.decode(ids)}")


if __name__ == "__main__":
    main()
