"""Word vectors: skip-gram with negative sampling (Mikolov et al. 2013). Words that are used alike end up near each other.

Reads a text of words, or CPython's own help texts; shows the nearest words of ten probes, and how near the words of a group
(names, colours, numbers, ...) are to each other and to the other groups. Each probe and group that the text has words for is shown.

    python examples/word_vectors.py                        half a minute; writes word_vectors.png
    python examples/word_vectors.py --data bronte.txt.gz   novels of C. Bronte: half a million words, a minute
"""

import argparse
import os
import re
import time
from itertools import combinations, permutations, product

import numpy as np

import fastseq as fs
from fastseq.text import default_text, read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
RATE = 0.2

PROBES = "shirley red england two mother eyes school window thought went"  # of the novels
HELP_PROBES = "function list class string file returns integer exception true two"
GROUPS = {
    "places": "london england france europe villette briarfield nunnely whinbury yorkshire brussels",
    "names": "shirley caroline robert louis moore graham lucy ginevra frances hunsden",
    "colours": "red blue green white black grey brown purple crimson pink",
    "numbers": "two three four five six seven eight nine ten twenty",
    "family": "mother father sister brother uncle daughter son cousin",
    "types": "list tuple dictionary string integer float",
    "errors": "typeerror valueerror keyerror indexerror attributeerror importerror",
}


def words_of(text):
    """Lower case, without punctuation."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def prepare(text, min_count=5):
    """The vocabulary of what comes often enough, and the text in ids."""
    words = words_of(text)
    vocabulary = fs.models.Vocabulary.from_texts([words], min_count=min_count, unknown=None)
    return vocabulary, vocabulary.encode([word for word in words if word in vocabulary])


def train(vocabulary, ids, options):
    model = fs.models.SkipGram(vocabulary, options.dim, rng=options.seed)
    batches = fs.training.SkipGramBatches(ids, len(vocabulary), batch_size=options.batch_size, rng=options.seed)
    adagrad = fs.optim.Adagrad(model.parameters(), lr=RATE)
    start = time.perf_counter()
    fs.training.fit(model, batches, optimizer=adagrad, epochs=options.epochs)
    seconds = time.perf_counter() - start
    print(f"{options.epochs} epochs in {seconds:.0f} s: {len(ids) * options.epochs / seconds:,.0f} words of text per second")
    return model


def cosines(model, ones, others):
    """The mean cosine between the words of two groups, or of the pairs of one."""
    pairs = combinations(ones, 2) if ones is others else product(ones, others)
    return float(np.mean([model.similarity(a, b) for a, b in pairs]))


def draw(model, groups, path):
    """The groups' words in the plane of their two directions of largest variance, each group in its colour."""
    from matplotlib import pyplot

    words = [word for group in groups.values() for word in group]
    vectors = model.words.weight.data[model.vocabulary.encode(words)]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    _, _, directions = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    places = dict(zip(words, (vectors - vectors.mean(0)) @ directions[:2].T, strict=True))
    figure, ax = pyplot.subplots(figsize=(9, 7), layout="constrained")
    for n, (name, group) in enumerate(groups.items()):
        x, y = np.array([places[word] for word in group]).T
        ax.scatter(x, y, s=14, color=f"C{n}", label=name)
        for word in group:
            ax.annotate(word, places[word], xytext=(4, 2), textcoords="offset points", fontsize=8, color=f"C{n}")
    ax.set(title="Word vectors: their two largest components", xlabel="first component", ylabel="second component")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a text, .gz or not (default: CPython's help texts)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 16, help="passes over the text (default %(default)s)")
    parser.add_argument("--dim", type=int, default=16 if QUICK else 100, help="numbers in a vector (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8192, help="pairs in a batch (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--output", default="word_vectors.png", help="the picture (default %(default)s)")
    options = parser.parse_args()

    text = read_text(options.data) if options.data else default_text()
    vocabulary, ids = prepare(text[:200_000] if QUICK else text)
    print(f"{len(ids):,} words, {len(vocabulary):,} different ones")
    model = train(vocabulary, ids, options)
    for probe in (PROBES if options.data else HELP_PROBES).split():
        if probe in vocabulary:
            print(f"{probe:>10}: " + ", ".join(word for word, _ in model.nearest(probe, 7)))
    known = {name: [word for word in group.split() if word in vocabulary] for name, group in GROUPS.items()}
    groups = {name: group for name, group in known.items() if len(group) >= 4}
    print(f"{'mean cosine':10}" + "".join(f"{name:>10}" for name in groups))
    for name, group in groups.items():
        print(f"{name:>11}" + "".join(f"{cosines(model, group, other):10.2f}" for other in groups.values()))
    closer = sum(cosines(model, a, a) > cosines(model, a, b) for a, b in permutations(groups.values(), 2))
    print(f"closer inside than to another group: {closer} of {len(groups) * (len(groups) - 1)}")
    try:
        draw(model, groups, options.output)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
