"""Good or bad? One sentence of a film review, read by a bidirectional LSTM with attention pooling or by a transformer and its [CLS].

Without data it makes up reviews such as "the plot is not dull but the music never works", in which a "not" turns what follows and what
stands after "but" counts. With a folder that holds rt-polarity.pos and rt-polarity.neg (.gz or not) it learns from those, and is tested
on the first of ten folds:

    python examples/sentiment.py
    python examples/sentiment.py --data ../shared/data/sentiment
    python examples/sentiment.py --data ../shared/data/sentiment --model transformer
"""

import argparse
import glob
import gzip
import os

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
CLASSES = ["bad", "good"]
MODELS = {
    "lstm": {"embedding_size": 64, "hidden_size": 64, "pooling": "attention", "dropout": 0.5},
    "transformer": {"embedding_size": 64, "hidden_size": 128, "cell": "transformer", "pooling": "cls", "num_layers": 1, "dropout": 0.3},
}


# ---------------------------------------------------------------- data


def made_up(count, rng):
    """Reviews and whether they are good."""
    subjects = "the plot", "the music", "every scene", "the second half", "its hero", "the dialogue"
    words = ["dull", "flat", "a mess", "forgettable", "clumsy"], ["funny", "moving", "a joy", "brilliant", "clever"]

    def clause(good):
        turned = rng.random() < 0.3
        word = rng.choice(words[int(good != turned)])
        return f"{rng.choice(subjects)} is {rng.choice(['not', 'never', 'hardly ever']) + ' ' if turned else ''}{word}"

    labels = rng.integers(2, size=count)
    texts = [f"{clause(rng.integers(2))} but {clause(good)}" if rng.random() < 0.5 else clause(good) for good in labels]
    return texts, labels


def polarity(folder):
    """The sentences of Pang & Lee (2005), half of them good."""
    texts, labels = [], []
    for label, name in enumerate(("neg", "pos")):
        (path,) = glob.glob(os.path.join(folder, f"rt-polarity.{name}*"))
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            found = [line.strip() for line in file]
        texts, labels = texts + found, labels + [label] * len(found)
    return texts, np.array(labels)


# ---------------------------------------------------------------- the model


def first_fold(texts, labels):
    """The rows to train on and those to test on."""
    return next(StratifiedKFold(10, shuffle=True, random_state=0).split(texts, labels))


def built(texts, labels, kind, seed, **changes):
    """A model for these reviews, and the batches to train it on."""
    words = fs.models.Vocabulary.from_texts(texts, min_count=2, padding="<pad>", start="[CLS]")
    model = fs.models.SequenceClassifier(words, CLASSES, rng=seed, **MODELS[kind] | changes)
    return model, fs.training.BucketBatches([words.encode(text) for text in texts], labels, batch_size=32, rng=seed)


# ---------------------------------------------------------------- the picture


def draw(model, texts, path):
    """Reviews, each word the darker the more of it went into the decision."""
    import matplotlib
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(11, 0.45 * len(texts) + 0.3))
    ax.set_axis_off()
    renderer = figure.canvas.get_renderer()
    for row, text in enumerate(texts):
        weights = model.attention(model.vocabulary.encode(text)[:, None])[0]
        verdict = model.classify([text])[0]
        pieces = [(f"{verdict}:", 0.0), *zip(text.split(), weights / weights.max(), strict=True)]
        x = 0.0
        for word, weight in pieces:
            color = matplotlib.colormaps["Oranges"](0.75 * weight)
            drawn = ax.text(x, -row, word, fontsize=10, parse_math=False, weight="bold" if x == 0 else "normal",
                            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5})  # fmt: skip
            x += (drawn.get_window_extent(renderer).width + 7) / ax.get_window_extent(renderer).width
    ax.set_ylim(0.6 - len(texts), 0.8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a folder with rt-polarity.pos and rt-polarity.neg (default: reviews that it makes up)")
    parser.add_argument("--model", choices=MODELS, default="lstm", help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 5, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="sentiment.png", help="the picture (default: %(default)s)")
    options = parser.parse_args()

    rng = np.random.default_rng(options.seed)
    texts, labels = polarity(options.data) if options.data else made_up(200 if QUICK else 3000, rng)
    training, test = first_fold(texts, labels)
    read, held_out = ([texts[i] for i in rows] for rows in (training, test))
    model, batches = built(read, labels[training], options.model, options.seed)
    print(f"{len(read)} reviews to train on, {len(held_out)} held out, {len(model.vocabulary)} words; "
          f"{sum(p.size for p in model.parameters())} parameters")  # fmt: skip

    adam = fs.optim.Adam(model.parameters(), lr=2e-3)
    schedule = fs.optim.CosineDecay(adam, options.epochs * len(batches))
    fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=options.epochs, max_norm=1.0)

    baseline = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(read, labels[training])
    accuracy = np.mean(model.scores(held_out).argmax(axis=1) == labels[test])
    print(f"accuracy on held-out reviews {accuracy:.1%}; TF-IDF and logistic regression {baseline.score(held_out, labels[test]):.1%}")
    try:
        chosen = [text for text in held_out if len(text) < 110]
        draw(model, [chosen[i] for i in rng.permutation(len(chosen))[:12]], options.output)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
