"""Spelling to sound: a GRU reads a word's letters, another with attention writes its phonemes.

Without data it learns from words of Python's own documentation, spoken by a few rules of English. With a pronouncing dictionary in
cmudict's form (WORD 1 P IH1 T ...), from that; a digit behind a vowel is its stress:

    python examples/phonemes.py
    python examples/phonemes.py --data cmudict.gz --words tensor kernel
"""

import argparse
import os
import re

import numpy as np

import fastseq as fs
from fastseq.generation import generate
from fastseq.text import default_text, read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
LONGEST = 40  # phonemes of a word
RULES = {
    "tion": "SH AH N", "igh": "AY", "ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "ng": "NG", "ck": "K", "qu": "K W", "wh": "W",
    "ee": "IY", "ea": "IY", "oo": "UW", "ou": "AW", "ow": "OW", "oi": "OY", "oy": "OY", "ai": "EY", "ay": "EY", "au": "AO", "ar": "AA R",
    "er": "ER", "ir": "ER", "or": "AO R", "ur": "ER", "ce": "S EH", "ci": "S IH", "cy": "S IY", "ge": "JH EH", "gi": "JH IH", "gy": "JH IY",
    "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M",
    "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V", "w": "W", "x": "K S", "y": "IY", "z": "Z",
}  # fmt: skip


def spoken(word):
    """A word by the rules, the longest first; an e at its end is silent and makes the vowel before it long."""
    phonemes, long = [], re.search(r"([aiou])([^aeiouwxy])e$", word)
    for letters in re.findall("|".join(sorted(RULES, key=len, reverse=True)), word[:-1] if long else word):
        phonemes += RULES[letters].split()
    if long:
        phonemes[-2 if len(phonemes) > 1 else -1] = {"a": "EY", "i": "AY", "o": "OW", "u": "UW"}[long[1]]
    return phonemes


def default_dictionary():
    return {word: [spoken(word)] for word in sorted(set(re.findall(r"[a-z]{3,}", default_text())))}


def read_dictionary(path):
    """{word: its pronunciations}"""
    dictionary = {}
    for line in read_text(path).splitlines():
        word, _, *phonemes = line.lower().split()
        dictionary.setdefault(word, []).append([p.upper() for p in phonemes])
    return dictionary


def distance(a, b):
    """How many phonemes must be put in, left out or replaced to make b of a (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def pronounce(model, words, size=500):
    """The likeliest phoneme each time, of all words, a batch at a time."""
    found = []
    for n in range(0, len(words), size):
        source = fs.nn.pad_sequences([model.source_vocabulary.encode(word) for word in words[n : n + size]])
        found += [model.target_vocabulary.decode(ids).split() for ids in generate(model, *source, max_length=LONGEST, temperature=0)]
    return found


def error_rates(found, dictionary, stress):
    """Wrong phonemes for each right one, and the share of words with any; of several pronunciations the nearest counts."""
    shown = list if stress else lambda phonemes: [p.rstrip("012") for p in phonemes]
    nearest = [min((distance(shown(said), shown(right)), len(right)) for right in dictionary[word]) for word, said in found.items()]
    wrong, right = np.sum(nearest, axis=0)
    return wrong / right, np.mean([n > 0 for n, _ in nearest])


def draw(model, word, path):
    """What the decoder looked at when it wrote each phoneme."""
    source = model.source_vocabulary.encode(word)[:, None]
    (ids,) = generate(model, source, max_length=LONGEST, temperature=0)
    _, weights = model(source, model.teacher(ids[:, None])[0], return_weights=True)
    try:
        fs.plot.attention(weights[:, 0], word, [*model.target_vocabulary.decode(ids).split(), "</s>"]).figure.savefig(path, dpi=120)
        print(f"wrote {path}: {word}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a pronouncing dictionary, .gz or not (default: words of Python's documentation, by rules)")
    parser.add_argument("--hidden", type=int, default=32 if QUICK else 192, help="units of encoder and decoder (default %(default)s)")
    parser.add_argument("--epochs", type=int, help="(default 3; the documentation's words 8)")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate at its highest (default %(default)s)")
    parser.add_argument("--checkpoint", help="a file to keep the training in, and to go on from")
    parser.add_argument("--words", nargs="*", default=["tokenizer"], help="to pronounce; the first one's map is drawn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rng = np.random.default_rng(options.seed)
    dictionary = read_dictionary(options.data) if options.data else default_dictionary()
    words = rng.permutation(sorted(dictionary)).tolist()[: 300 if QUICK else None]
    held_out, training = words[: len(words) // 20], words[len(words) // 20 :]  # a word with all its pronunciations
    pairs = [(word, phonemes) for word in training for phonemes in dictionary[word]]
    letters = fs.models.Vocabulary("".join(sorted(dictionary)))
    phonemes = fs.models.Vocabulary(sorted({p for _, said in pairs for p in said}), separator=" ", start="<s>", stop="</s>")
    model = fs.models.Seq2Seq(letters, phonemes, 64, options.hidden, cell="gru", dropout=0.1, rng=rng)
    print(f"{len(training)} words to train on, {len(held_out)} held out; {sum(p.size for p in model.parameters())} parameters")

    epochs = options.epochs or (1 if QUICK else 3 if options.data else 8)
    encoded = [letters.encode(word) for word, _ in pairs], [phonemes.encode(said) for _, said in pairs]
    batches = fs.training.BucketBatches(encoded, batch_size=128 if options.data else 32, rng=rng)
    adam = fs.optim.Adam(model.parameters(), lr=options.lr)
    schedule = fs.optim.WarmupCosine(adam, epochs * len(batches), min(100, len(batches) // 2))
    history = fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=epochs, max_norm=1.0, checkpoint=options.checkpoint)
    print(f"trained for {history.seconds:.0f} s, loss {history['loss'][-1]:.3f}")

    found = dict(zip(held_out, pronounce(model, held_out), strict=True))
    for name, stress in (("phonemes", False), ("phonemes and stress", True))[: 2 if options.data else 1]:
        print("{}: {:.1%} wrong (phoneme error rate), {:.1%} of words with a mistake".format(name, *error_rates(found, dictionary, stress)))
    for word in options.words:
        print(f"  {word}  ->  {' '.join(pronounce(model, [word])[0])}")
    draw(model, options.words[0] if options.words else held_out[0], "phonemes.png")


if __name__ == "__main__":
    main()
