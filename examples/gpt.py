"""GPT: a transformer first learns to write, then to classify sentences from few labels, beside the same model without the first part.

It reads novels, then the sentences to learn from without their labels; its tokens are subwords of the novels. For the second part a linear
layer on the mean of its states takes the place of the head (Radford et al. 2018; Howard & Ruder 2018). Without data it reads Python's help
texts, and says whether a paragraph is from their first or their second half.

    python examples/gpt.py
    python examples/gpt.py --data ../shared/data
"""

import argparse
import gzip
import math
import os
from pathlib import Path

import numpy as np
from kneser_ney import words
from sklearn.model_selection import StratifiedKFold

import fastseq as fs
from fastseq.text import default_text, read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
END = "<end>"


def paragraphs(text):
    """Written as the reviews are: small letters, and spaces between words and signs."""
    return [" ".join(words(part)) for part in text.split("\n\n") if part.strip()]


def novels_and_reviews(folder):
    """Paragraphs, and sentences with their labels: 1 where the review praises a film."""
    sentences = []
    for label, name in enumerate(("neg", "pos")):
        with gzip.open(Path(folder) / "sentiment" / f"rt-polarity.{name}.gz", "rt", encoding="utf-8") as file:
            sentences += [(line.strip(), label) for line in file]
    return paragraphs(read_text(Path(folder) / "text" / "bronte.txt.gz")), sentences


def help_and_lines():
    """Python's help texts, and the beginnings of their paragraphs with the half that they are from."""
    texts = paragraphs(default_text()[: 30_000 if QUICK else None])
    return texts, [(text[:100], int(2 * n >= len(texts))) for n, text in enumerate(texts)]


def split(sentences):
    """The first of ten folds is held out."""
    labels = [label for _, label in sentences]
    parts = next(StratifiedKFold(10, shuffle=True, random_state=0).split(labels, labels))
    return [[sentences[n] for n in part] for part in parts]


class Classifier(fs.nn.Module):
    def __init__(self, language_model, classes, rng=None):
        self.language_model = language_model
        self.head = fs.nn.Linear(language_model.embedding.embedding_dim, classes, rng=rng)

    def forward(self, ids, lengths):
        states, _ = self.language_model.states(ids)
        inside = np.arange(len(ids))[:, None] < lengths
        return self.head((states * (inside / lengths)[:, :, None].astype(np.float32)).sum(axis=0))


def build(vocabulary, width, seed):
    options = {"num_layers": 2, "heads": 4, "dropout": 0.1, "tie_weights": True, "max_length": 128}
    return fs.models.LanguageModel(vocabulary, width, 4 * width, cell="transformer", rng=seed, **options)


def adamw(model, rate, steps):
    """AdamW, and a schedule with a warm-up in the first tenth."""
    optimizer = fs.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    return {"optimizer": optimizer, "schedule": fs.optim.WarmupCosine(optimizer, steps, steps // 10), "max_norm": 1.0}


def encoded(vocabulary, text):
    """Between two ends, as paragraphs stand in the text that is read first."""
    return np.array([vocabulary.stop_id, *vocabulary.encode(text)[:126], vocabulary.stop_id])


def pretrain(model, texts, epochs, rate, seed):
    """Learn to write; the perplexity of a subword in the last twentieth, which is read in windows."""
    ids = model.vocabulary.encode(END.join(texts))
    cut = round(0.95 * len(ids))
    streams = fs.training.TextStreams(ids[:cut], 32, 64, shift=True, rng=seed)
    history = fs.training.fit(
        model, streams, epochs=epochs, validation=fs.training.TextStreams(ids[cut:], 8, 64), **adamw(model, rate, epochs * len(streams)))
    return math.exp(history["validation_loss"][-1])


def finetune(language_model, training, held_out, epochs, rate, seed):
    """The share of right answers on held-out sentences."""
    def columns(part):
        return [encoded(language_model.vocabulary, text) for text, _ in part], np.array([label for _, label in part])

    batches = fs.training.BucketBatches(*columns(training), batch_size=32, rng=seed)
    tests = fs.training.BucketBatches(*columns(held_out), batch_size=100, shuffle=False)
    model = Classifier(language_model, 2, rng=seed)

    def right(model):
        return {"accuracy": sum((model(x, n).argmax(axis=1) == y).sum() for x, n, y in tests) / len(held_out)}

    history = fs.training.fit(
        model, batches, loss=fs.functional.cross_entropy, epochs=epochs, validation=right, **adamw(model, rate, epochs * len(batches)))
    return history["accuracy"][-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a folder with text/bronte.txt.gz and sentiment/rt-polarity.{pos,neg}.gz")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 3, help="of the novels (default %(default)s)")
    parser.add_argument("--more-epochs", type=int, default=1 if QUICK else 5, help="of the sentences without labels (default %(default)s)")
    parser.add_argument("--fine-epochs", type=int, default=1 if QUICK else 6, help="of classifying (default %(default)s)")
    parser.add_argument("--labels", type=int, default=1000, help="so many sentences have one (default %(default)s)")
    parser.add_argument("--width", type=int, default=16 if QUICK else 128, help="of the transformer (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=300 if QUICK else 4000, help="subwords to learn (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, masks and batches (default %(default)s)")
    options = parser.parse_args()

    texts, sentences = novels_and_reviews(options.data) if options.data else help_and_lines()
    training, held_out = split(sentences)
    training = [training[n] for n in np.random.default_rng(options.seed).permutation(len(training))]
    vocabulary = fs.models.SubwordVocabulary.from_texts(texts, size=options.tokens, stop=END)
    print(f"{sum(map(len, texts)):,} characters to read, {len(training):,} sentences, {len(held_out):,} held out, {len(vocabulary):,} subwords")

    model = build(vocabulary, options.width, options.seed)
    print(f"perplexity of a subword of the text: {pretrain(model, texts, options.epochs, 2e-3, options.seed):.1f}", flush=True)
    (ids,) = fs.generation.generate(model, "it was", max_length=40, temperature=0.7, top_p=0.95, rng=options.seed)
    print(f"it was{vocabulary.decode(ids)}")
    unlabelled = [text for text, _ in training]
    print(f"of the sentences: {pretrain(model, unlabelled, options.more_epochs, 1e-3, options.seed):.1f}", flush=True)

    new, labelled = build(vocabulary, options.width, options.seed), training[: options.labels]
    scratch, tuned = (finetune(each, labelled, held_out, options.fine_epochs, 5e-4, options.seed) for each in (new, model))
    print(f"classified rightly with {len(labelled)} labels: {scratch:.1%} from scratch, {tuned:.1%} after reading, {100 * (tuned - scratch):+.1f} points")


if __name__ == "__main__":
    main()
