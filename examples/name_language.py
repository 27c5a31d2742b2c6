"""Where does a name come from? A GRU over its letters.

Without data it takes the names that Unicode gives to letters and syllables, which every Python knows, and says which script one is from:
"ALEF" is Hebrew's, "GWEEM" one of the Canadian syllables. With a file of names (a name, a tab and its language a line) it learns from those;
a fifth of the names is held out, and none of them is trained on:

    python examples/name_language.py
    python examples/name_language.py --data ../shared/data/names/names_by_language.tsv
"""

import argparse
import os
import re
import sys
import unicodedata
from collections import Counter

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.model_selection import GroupShuffleSplit

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs


def letters_of_scripts(most=300, least=60):
    """(name of a letter, its script), of scripts with many letters."""
    found = {}
    for code in range(sys.maxunicode + 1):
        match = re.fullmatch(r"(.+?)(?: SMALL| CAPITAL)? (?:LETTER|SYLLABLE) ([A-Z]+)", unicodedata.name(chr(code), ""))
        if match:
            found.setdefault(match[1].title(), set()).add(match[2])
    rng = np.random.default_rng(0)
    large = {script: rng.permutation(sorted(names))[:most] for script, names in found.items() if len(names) >= least}
    return [(str(name), script) for script, names in sorted(large.items()) for name in names]


def names_of(path):
    with open(path, encoding="utf-8") as file:
        return [tuple(line.rstrip("\n").split("\t")) for line in file if line.strip()]


def split(names):
    """Rows to train on and to test on: a name that two languages share, or that comes twice, is on one side only."""
    return next(GroupShuffleSplit(1, test_size=0.2, random_state=0).split(names, groups=names))


def built(names, languages, seed, dropout=0.3):
    """A classifier for these names, and the batches to train it on."""
    classes = sorted(set(languages.tolist()))
    letters = fs.models.Vocabulary.from_texts(names.tolist(), separator="", padding="<pad>")
    model = fs.models.SequenceClassifier(letters, classes, 32, 128, cell="gru", dropout=dropout, rng=seed)
    encoded = [letters.encode(name) for name in names.tolist()]
    return model, fs.training.BucketBatches(encoded, np.searchsorted(classes, languages), batch_size=64, rng=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a file of names, each with a tab and its language (default: letters and their scripts)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 8, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="name_language.png", help="the picture (default: %(default)s)")
    options = parser.parse_args()

    names, languages = map(np.array, zip(*(names_of(options.data) if options.data else letters_of_scripts()), strict=True))
    training, test = split(names)
    model, batches = built(names[training], languages[training], options.seed)
    print(f"{len(training)} names to train on, {len(test)} held out, {len(model.classes)} languages; "
          f"{sum(p.size for p in model.parameters())} parameters")  # fmt: skip

    adam = fs.optim.Adam(model.parameters(), lr=3e-3)
    schedule = fs.optim.CosineDecay(adam, options.epochs * len(batches))
    fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=options.epochs, max_norm=1.0)

    found = np.array(model.classify(names[test].tolist(), batch_size=256))
    usual, _ = Counter(languages[training].tolist()).most_common(1)[0]
    print(f"accuracy on held-out names {accuracy_score(languages[test], found):.1%}; always {usual}: {np.mean(languages[test] == usual):.1%}")
    for i in np.random.default_rng(options.seed).permutation(len(test))[:8]:
        print(f"  {names[test][i]}: {found[i]}" + f" (but it is {languages[test][i]})" * (found[i] != languages[test][i]))
    try:
        matrix = confusion_matrix(languages[test], found, labels=model.classes)
        fs.plot.confusion_matrix(matrix, model.classes).figure.savefig(options.output, dpi=120)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
