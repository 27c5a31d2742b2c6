"""BERT: learn a language by filling in hidden words, then learn a task from that, beside the same model that starts from nothing.

Without data the text is Python's own language reference, and the task is to say which of its pages a sentence is from. With a text and
the folder of film reviews (rt-polarity.pos and rt-polarity.neg, .gz or not) it reads the one and judges the others:

    python examples/bert.py
    python examples/bert.py --data ../shared/data/text/bronte.txt.gz --reviews ../shared/data/sentiment
"""

import argparse
import glob
import os
import re

import numpy as np
from sklearn.model_selection import StratifiedKFold

import fastseq as fs
from fastseq.text import default_text, read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
SPECIAL = {"padding": "[PAD]", "unknown": "[UNK]", "start": "[CLS]", "stop": "[SEP]"}


def sentences_of(text):
    """Sentences of three to a hundred words, in small letters, signs apart; of a longer one its beginning."""
    found = (re.findall(r"\w+|[^\w\s]", sentence) for sentence in re.split(r"(?<=[.!?;])\s+|\n\s*\n", text.lower()))
    return [sentence[:100] for sentence in found if len(sentence) > 2]


def reviews(folder):
    """(sentences, labels) of Pang & Lee's (2005) reviews."""
    files = [read_text(glob.glob(os.path.join(folder, f"rt-polarity.{name}*"))[0]).split("\n") for name in ("neg", "pos")]
    found = [(re.findall(r"\w+|[^\w\s]", line), label) for label, lines in enumerate(files) for line in lines if line.strip()]
    return *zip(*found, strict=True), ["bad", "good"]


def pages(count=4):
    """(sentences, labels) of the longest pages of Python's language reference."""
    from pydoc_data.topics import topics

    names = sorted(topics, key=lambda name: -len(topics[name]))[:count]
    found = {tuple(sentence): label for label, name in enumerate(names) for sentence in sentences_of(topics[name])}
    return list(map(list, found)), list(found.values()), names


def masked_accuracy(model, batches):
    """How many of the hidden words it guesses."""
    right = count = 0
    for ids, lengths, segments, words, _ in batches:
        asked = words != -100
        right += int((model(ids, lengths, segments)[0].argmax(axis=2) == words)[asked].sum())
        count += int(asked.sum())
    return right / count


def fine_tuned(model, read, labels, epochs, seed):
    """A classifier trained on sentences: what of it is not frozen."""
    batches = fs.training.BucketBatches([model.vocabulary.encode(sentence) for sentence in read], labels, batch_size=32, rng=seed)
    adam = fs.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    steps = epochs * len(batches)
    schedule = fs.optim.WarmupCosine(adam, steps, steps // 10)
    fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=epochs, max_norm=1.0)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a text to read, .gz or not (default: Python's language reference)")
    parser.add_argument("--reviews", help="a folder with rt-polarity.pos and rt-polarity.neg (default: pages of the language reference)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 10, help="of reading (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    text = sentences_of((read_text(options.data) if options.data else default_text())[: 20_000 if QUICK else None])
    told, labels, classes = reviews(options.reviews) if options.reviews else pages()
    training, test = next(StratifiedKFold(10, shuffle=True, random_state=0).split(told, labels))
    training, labels = training[:: 10 if QUICK else 1], np.array(labels)
    read = [told[i] for i in training]
    known = fs.models.Vocabulary.from_texts([*text, *read], min_count=5, unknown=None).tokens
    words = fs.models.Vocabulary(["[MASK]", *known], separator=" ", **SPECIAL)
    ids = [words.encode(sentence) for sentence in text]
    held_out = len(ids) // 20
    sizes = (32, 64) if QUICK else (64, 256)
    bert = fs.models.MaskedLanguageModel(words, *sizes, num_layers=2, max_length=128, dropout=0.1, rng=options.seed)
    print(f"{len(ids) - held_out} sentences to read, {held_out} held out, {len(words)} words; {sum(p.size for p in bert.parameters())} parameters")

    batches = fs.training.MaskedPairs(ids[:-held_out], words, batch_size=32, max_length=100, rng=options.seed)
    adam = fs.optim.AdamW(bert.parameters(), lr=3e-3)
    steps = options.epochs * len(batches)
    schedule = fs.optim.WarmupCosine(adam, steps, steps // 20)
    fs.training.fit(bert, batches, optimizer=adam, schedule=schedule, epochs=options.epochs, max_norm=1.0)
    asked = list(fs.training.MaskedPairs(ids[-held_out:], words, batch_size=64, max_length=100, rng=0))
    hidden = np.concatenate([answers[answers != -100] for _, _, _, answers, _ in asked])
    usual = np.bincount(np.concatenate(ids[:-held_out]))[5:].argmax() + 5  # of the words after the special ones
    print(f"hidden words guessed in held-out sentences: {masked_accuracy(bert, asked):.1%}; "
          f"always {words.tokens[usual]!r}: {np.mean(hidden == usual):.1%}")  # fmt: skip
    for sentence in [text[i] for i in range(len(text) - held_out, len(text)) if 6 < len(text[i]) < 16][:6]:
        place = len(sentence) // 2
        said = bert.fill([*sentence[:place], "[MASK]", *sentence[place + 1 :]]).split()[place]
        print("  " + " ".join([*sentence[:place], f"[{said}]", *sentence[place + 1 :]]) + f"   (it was {sentence[place]!r})" * (said != sentence[place]))

    fresh = fs.models.MaskedLanguageModel(words, *sizes, num_layers=2, max_length=128, dropout=0.1, rng=options.seed)
    for name, start, frozen in (("from scratch", fresh, False), ("after reading", bert, False), ("after reading, all but the head frozen", bert, True)):
        model = start.classifier(classes, pooling="mean" if frozen else "cls", dropout=0.3, rng=options.seed)
        model.encoder.requires_grad_(not frozen)
        fine_tuned(model, read, labels[training], 1 if QUICK else 4, options.seed)
        right = np.mean(model.scores([told[i] for i in test]).argmax(axis=1) == labels[test])
        print(f"{name}: {right:.1%} of held-out sentences right ({' or '.join(classes)})")


if __name__ == "__main__":
    main()
