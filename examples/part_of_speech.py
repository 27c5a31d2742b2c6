"""Parts of speech: a bidirectional LSTM over words, and over the letters of each word, so that it has an idea of words it never saw.

Without data it makes up sentences whose nouns, verbs and adverbs are invented and told by their endings alone, among little words that
everyone knows ("the glimness of a plonk varted fabously"). With the folder of UD English Web Treebank as tsv (a word, a tab and its tag a
line; an empty line between sentences) it learns from those, and is tested on the test part:

    python examples/part_of_speech.py
    python examples/part_of_speech.py --data ../shared/data/tagging/ud_ewt
"""

import argparse
import glob
import gzip
import os
from collections import Counter, defaultdict

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs


# ---------------------------------------------------------------- data


def made_up(count, rng):
    """Sentences as lists of (word, tag)."""
    endings = {"NOUN": ["ness", "ment", "er", "ity", ""], "ADJ": ["ous", "ful", "ish", ""], "VERB": ["ed", "ates", "ifies", "s"], "ADV": ["ly"]}
    small = {"DET": ["the", "a", "every", "this"], "ADP": ["of", "in", "with", "under"], "CCONJ": ["and", "but"], "PUNCT": [".", "!", "?"],
             "PRON": ["she", "it", "they", "who"]}  # fmt: skip
    begin, middle, end = ["gl", "pl", "v", "f", "tr", "sn", "m", "k"], ["a", "o", "i", "u", "e"], ["nk", "m", "rt", "b", "st", "g", "l"]

    def word(tag):
        if tag in small:
            return rng.choice(small[tag])
        stem = "".join(rng.choice(part) for part in [begin, middle, end] * rng.integers(1, 3))
        return stem + rng.choice(endings[tag])

    sentences = []
    for _ in range(count):
        thing = ["DET", *["ADJ"] * rng.integers(2), "NOUN"]
        subject = ["PRON"] if rng.random() < 0.3 else thing + ["ADP", "DET", "NOUN"] * rng.integers(2)
        tags = [*subject, "VERB", *["ADV"] * rng.integers(2), *thing * rng.integers(2), "PUNCT"]
        sentences.append([(word(tag), tag) for tag in tags])
    return sentences


def treebank(folder, part):
    """The sentences of a file, as lists of (word, tag)."""
    (path,) = glob.glob(os.path.join(folder, f"*_{part}.tsv*"))
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        blocks = file.read().split("\n\n")
    return [[tuple(line.split("\t")) for line in block.split("\n") if line] for block in blocks if block.strip()]


def built(training, seed, dropout=0.5):
    """A tagger for these sentences, and the batches to train it on."""
    tags = sorted({tag for sentence in training for _, tag in sentence})
    read = [[word for word, _ in sentence] for sentence in training]
    words = fs.models.Vocabulary.from_texts(read, min_count=2, padding="<pad>")
    letters = fs.models.Vocabulary.from_texts([word for sentence in read for word in sentence], separator="", padding="<pad>")
    model = fs.models.SequenceTagger(words, tags, 100, 100, characters=letters, dropout=dropout, rng=seed)
    answers = [[tags.index(tag) for _, tag in sentence] for sentence in training]
    return model, fs.training.BucketBatches([model.encode(sentence) for sentence in read], answers, batch_size=32, rng=seed)


def usual_tags(training, test):
    """Each word's most frequent tag, and the most frequent of all for words never seen: what there is to beat."""
    seen = defaultdict(Counter)
    for word, tag in (pair for sentence in training for pair in sentence):
        seen[word][tag] += 1
    usual = Counter(tag for counts in seen.values() for tag in counts.elements()).most_common(1)[0][0]
    return [seen[word].most_common(1)[0][0] if word in seen else usual for sentence in test for word, _ in sentence]


def draw(true, found, tags, path):
    fs.plot.confusion_matrix(confusion_matrix(true, found, labels=tags), tags).figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a folder with files *_train.tsv and *_test.tsv (default: sentences that it makes up)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 5, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="part_of_speech.png", help="the picture (default: %(default)s)")
    options = parser.parse_args()

    if options.data:
        training, test = (treebank(options.data, part) for part in ("train", "test"))
    else:
        training, test = (made_up(count, np.random.default_rng([options.seed, count])) for count in ((100, 50) if QUICK else (2000, 500)))
    model, batches = built(training, options.seed)
    print(f"{len(training)} sentences to train on, {len(test)} to test; {len(model.vocabulary)} words, {len(model.tags)} tags; "
          f"{sum(p.size for p in model.parameters())} parameters")  # fmt: skip

    adam = fs.optim.Adam(model.parameters(), lr=3e-3)
    schedule = fs.optim.CosineDecay(adam, options.epochs * len(batches))
    fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=options.epochs, max_norm=1.0)

    sentences = [[word for word, _ in sentence] for sentence in test]
    found = [tag for sentence in model.tag(sentences) for tag in sentence]
    true = [tag for sentence in test for _, tag in sentence]
    new = np.array([word not in model.vocabulary for sentence in sentences for word in sentence])
    right = np.array(found) == np.array(true)
    print(f"tokens right {right.mean():.2%}, of those not in its vocabulary {right[new].mean():.2%}; "
          f"each word's usual tag {accuracy_score(true, usual_tags(training, test)):.2%}")  # fmt: skip
    for words_of in sentences[:4]:
        print("  " + " ".join(f"{word}/{tag}" for word, tag in zip(words_of, model.tag([words_of])[0], strict=True)))
    try:
        draw(true, found, model.tags, options.output)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
