"""Interpolated Kneser-Ney n-grams, orders 1 to 5: what a word model has to beat (Kneser & Ney 1995; Chen & Goodman 1999).

    python examples/kneser_ney.py
    python examples/kneser_ney.py --data book.txt.gz
"""

import argparse
import math
import os
import re
from collections import Counter

from tqdm import tqdm

import fastseq as fs
from fastseq.text import default_text, read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
HELD_OUT = 0.05


def words(text):
    """Words in small letters, and signs."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?|--|[^\w\s]", text.lower())


def corpus(path, size):
    """A vocabulary of the `size` most frequent words and the unknown one, and the ids of the first 95 % and the last 5 % of a text."""
    tokens = words(read_text(path) if path else default_text())
    tokens = tokens[:20_000] if QUICK else tokens
    cut = round(len(tokens) * (1 - HELD_OUT))
    vocabulary = fs.models.Vocabulary.from_texts([tokens[:cut]], size=size)
    return vocabulary, vocabulary.encode(tokens[:cut]), vocabulary.encode(tokens[cut:])


class KneserNey:
    """The n-grams of a text, up to an order, and the probability that they give to a word after others.

    p_n(w | u v) = max(c(u v w) - D, 0) / c(u v) + D N(u v) / c(u v) p_{n-1}(w | v), with N(u v) the number of different words after u v,
    and D = n_1 / (n_1 + 2 n_2) from how many n-grams came once and twice. Below the highest order c(v w) is not how often v w came
    but after how many different words. The last step down is to 1 / V, so that every word has a probability.
    """

    def __init__(self, ids, size, order):
        self.size = size
        ids = list(map(int, ids))
        grams = [Counter(zip(*(ids[k:] for k in range(n)), strict=False)) for n in range(1, order + 1)]
        after = [Counter(gram[1:] for gram in longer) for longer in grams[1:]]
        self.highest, self.lower = [list(map(Order, counts)) for counts in (grams, after)]

    def probability(self, context, word, order):
        """Of a word after a tuple of words, of which the last `order` - 1 count."""
        p = 1 / self.size
        for n in range(1, order + 1):
            counts = (self.highest if n == order else self.lower)[n - 1]
            before = context[len(context) - n + 1 :]
            if len(before) == n - 1 and before in counts.total:
                p = counts.share(before, word) + counts.rest(before) * p
        return p

    def perplexity(self, ids, order):
        """exp of the mean cross-entropy of all words of a text but the first, which has nothing before it."""
        ids = list(map(int, ids))
        places = tqdm(range(1, len(ids)), desc=f"order {order}", unit="word", disable=None, leave=False)
        logs = [math.log(self.probability(tuple(ids[max(0, n - order + 1) : n]), ids[n], order)) for n in places]
        return math.exp(-sum(logs) / len(logs))


class Order:
    """The counts of one order."""

    def __init__(self, counts):
        self.counts = counts
        self.total, self.kinds = Counter(), Counter()
        for gram, n in counts.items():
            self.total[gram[:-1]] += n
            self.kinds[gram[:-1]] += 1
        times = Counter(counts.values())
        self.discount = times[1] / (times[1] + 2 * times[2]) if times[1] else 0.5

    def share(self, before, word):
        return max(self.counts.get((*before, word), 0) - self.discount, 0) / self.total[before]

    def rest(self, before):
        """What the discounts have set free."""
        return self.discount * self.kinds[before] / self.total[before]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="UTF-8 text, plain or gzip (default: the help texts of Python)")
    parser.add_argument("--order", type=int, default=5, help="from 1 to this (default %(default)s)")
    parser.add_argument("--words", type=int, default=10_000, help="most frequent words that are known (default %(default)s)")
    options = parser.parse_args()
    vocabulary, training, held_out = corpus(options.data, options.words)
    unknown = (held_out == vocabulary.unknown_id).mean()
    print(f"{len(training):,} words to count, {len(held_out):,} held out; {len(vocabulary):,} known, {unknown:.1%} of the held-out ones unknown")
    model = KneserNey(training, len(vocabulary), options.order)
    for order in range(1, options.order + 1):
        print(f"{order}-gram: perplexity {model.perplexity(held_out, order):.1f}")


if __name__ == "__main__":
    main()
