"""Denoising: spans of a text are cut out, and an encoder-decoder writes what stood there (T5: Raffel et al. 2020; BART: Lewis et al. 2020).

The model reads "the l<0>e of a num<1>" and writes "<0>iteral valu<1>ber". Without data the text is Python's documentation, by characters:

    python examples/denoising.py
    python examples/denoising.py --data book.txt.gz --words
"""

import argparse
import os
import re

import numpy as np

import fastseq as fs
from fastseq.generation import generate
from fastseq.text import default_text, read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
SPANS = ["<0>", "<1>", "<2>"]  # what stands for a span in the text, and before it in the answer
IDS = [3, 4, 5]  # theirs, after those of unknown, start and stop
MASKED, TEXT = "\033[4m", "\033[0m"  # underlined, and not


def mask(piece, rng, longest):
    """A piece of text with spans of 1 to `longest` tokens cut out, and the answer, both with IDS for the spans."""
    lengths = rng.integers(1, longest + 1, len(SPANS))
    begins = np.sort(rng.choice(np.arange(1, len(piece) - lengths.sum()), len(SPANS), replace=False)) + np.cumsum(lengths) - lengths
    source, target, at = [], [], 0
    for span, begin, length in zip(IDS, begins, lengths, strict=True):
        source += [*piece[at:begin], span]
        target += [span, *piece[begin : begin + length]]
        at = begin + length
    return np.array([*source, *piece[at:]]), np.array(target)


class Masked:
    """Batches of all pieces, masked anew in each epoch."""

    def __init__(self, pieces, size, longest, seed):
        self.pieces, self.size, self.longest, self.seed, self.epoch = pieces, size, longest, seed, 0

    def __len__(self):
        return -(-len(self.pieces) // self.size)

    def __iter__(self):
        rng, self.epoch = np.random.default_rng([self.seed, self.epoch]), self.epoch + 1
        rows = rng.permutation(len(self.pieces))
        for n in range(0, len(rows), self.size):
            pairs = [mask(self.pieces[row], rng, self.longest) for row in rows[n : n + self.size]]
            yield *fs.nn.pad_sequences([source for source, _ in pairs]), *fs.nn.pad_sequences([target for _, target in pairs])


def spans(ids):
    """{span: its tokens} of an answer."""
    found, current = {span: [] for span in IDS}, []
    for token in ids:
        current = found.get(token, current)
        if token not in found:
            current.append(token)
    return found


def restored(source, answer, vocabulary):
    """The text with the spans of an answer in it, underlined."""
    found = spans(answer)
    parts = [MASKED + vocabulary.decode(found[token]) + TEXT if token in found else vocabulary.tokens[token] for token in source]
    return vocabulary.separator.join(parts)


def measure(model, pairs):
    """Shares of masked tokens that are right: by copying what stands before the span, given all before it, and written freely."""
    copied = given = written = count = 0
    for n in range(0, len(pairs), 200):
        sources, targets = zip(*pairs[n : n + 200], strict=True)
        (source, lengths), (target, target_lengths) = fs.nn.pad_sequences(sources), fs.nn.pad_sequences(targets)
        inputs, wanted, steps = model.teacher(target, target_lengths)
        asked = (wanted > max(IDS)) | (wanted == model.target_vocabulary.unknown_id)
        given += int((model(source, inputs, lengths, steps).argmax(-1) == wanted)[asked].sum())
        answers = generate(model, source, lengths, max_length=len(target) + 5, temperature=0)
        for read, right, answer in zip(sources, targets, answers, strict=True):
            found = spans(answer)
            for span, tokens in spans(right).items():
                before = read[np.flatnonzero(read == span)[0] - 1]
                copied += sum(token == before for token in tokens)
                written += sum(a == b for a, b in zip(tokens, found[span], strict=False))
                count += len(tokens)
    return copied / count, given / count, written / count


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a text, .gz or not (default: Python's documentation)")
    parser.add_argument("--words", action="store_true", help="mask words in place of characters")
    parser.add_argument("--cell", choices=["gru", "lstm", "transformer"], default="gru")
    parser.add_argument("--size", type=int, default=32 if QUICK else 128, help="width of a transformer, half that of a recurrent net (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 5, help="(default %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate at its highest (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rng = np.random.default_rng(options.seed)
    text = read_text(options.data) if options.data else default_text()
    text = re.findall(r"\w+|[^\w\s]", text.lower()) if options.words else re.sub(r"[-=+|\s]{2,}|\s", " ", text)
    length, longest = (24, 3) if options.words else (64, 6)  # of a piece, of a span
    cut = len(text) * 95 // 100  # the end is held out
    ordinary = fs.models.Vocabulary.from_texts([list(text[:cut])], separator="", size=8000).tokens[1:]
    vocabulary = fs.models.Vocabulary(
        [*SPANS, *ordinary], separator=" " if options.words else "", unknown="<unk>", start="<s>", stop="</s>")
    ids = vocabulary.encode(list(text))
    pieces = [ids[n : n + length] for n in range(0, len(ids) - length + 1, length)][: 200 if QUICK else None]
    training, held_out = pieces[: len(pieces) * 95 // 100], pieces[len(pieces) * 95 // 100 :]

    size = {"embedding_size": options.size, "hidden_size": 4 * options.size, "num_layers": 2} if options.cell == "transformer" else {
        "embedding_size": options.size // 2, "hidden_size": 2 * options.size}
    model = fs.models.Seq2Seq(vocabulary, vocabulary, **size, cell=options.cell, rng=rng)
    print(f"{len(training)} pieces to train on, {len(held_out)} held out; {sum(p.size for p in model.parameters())} parameters")
    batches = Masked(training, 32, longest, options.seed)
    adam = fs.optim.Adam(model.parameters(), lr=options.lr)
    schedule = fs.optim.WarmupCosine(adam, options.epochs * len(batches), min(200, len(batches) // 2))
    history = fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=options.epochs, max_norm=1.0)
    print(f"trained for {history.seconds:.0f} s, loss {history['loss'][-1]:.3f}")

    pairs = [mask(piece, rng, longest) for piece in held_out]
    print("masked tokens that are right: {:.1%} copied, {:.1%} given those before, {:.1%} written freely".format(*measure(model, pairs)))
    shown = fs.nn.pad_sequences([source for source, _ in pairs[:5]])
    for (source, target), answer in zip(pairs, generate(model, *shown, max_length=40, temperature=0), strict=False):
        print(f"\n  read   {vocabulary.decode(source)}\n  wrote  {restored(source, answer, vocabulary)}\n  right  {restored(source, target, vocabulary)}")


if __name__ == "__main__":
    main()
