"""What does a spoken command want, and which words say of what? One bidirectional LSTM with two heads: an intent for the sentence, a slot for each word.

Without data it makes up commands ("wake me at half past 7", "play brel by norwin sal"), whose names are invented. With a folder of snips' files
(*train.jsonl and *validate.jsonl, .gz or not) it learns from those. The score of slots is that of the CoNLL evaluation: a slot is
found where its first word, its last word and its type are right.

    python examples/intents_slots.py
    python examples/intents_slots.py --data ../shared/data/tagging/snips
"""

import argparse
import glob
import gzip
import json
import os
import re
from collections import Counter

import numpy as np

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs


# ---------------------------------------------------------------- data


def made_up(count, rng):
    """Commands as (words, tags, intent)."""
    forms = [
        ("play", "play {track} by {artist}"), ("play", "play something by {artist}"), ("play", "i want to hear {track}"),
        ("alarm", "wake me at {time}"), ("alarm", "set an alarm for {time} {day}"), ("alarm", "{day} i have to be up at {time}"),
        ("book", "a table for {number} at {place} {day}"), ("book", "book {place} for {number} people at {time}"),
        ("weather", "will it rain in {city} {day}"), ("weather", "what is it like in {city} at {time}"),
    ]  # fmt: skip
    syllables = ["nor", "win", "sal", "bre", "tal", "mi", "ko", "ran", "del", "vi", "os", "ta"]

    def value(slot):
        if slot == "time":
            return f"{rng.choice(['half past', 'quarter to', ''])} {rng.integers(1, 13)}".strip()
        if slot == "day":
            return rng.choice(["tomorrow", "on friday", "next sunday", "tonight"])
        if slot == "number":
            return str(rng.choice(["two", "three", "five", "nine"]))
        return " ".join("".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(rng.integers(1, 4)))

    made = []
    for _ in range(count):
        intent, form = forms[rng.integers(len(forms))]
        pieces = [(value(piece[1:-1]), piece[1:-1]) if piece[0] == "{" else (piece, None) for piece in re.findall(r"{\w+}|[^{}]+", form)]
        made.append((*tagged(pieces), intent))
    return made


def snips(folder, part):
    (path,) = glob.glob(os.path.join(folder, f"*{part}.jsonl*"))
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [(*tagged([(piece["text"], piece.get("entity")) for piece in record["data"]]), record["intent"]) for record in records]


def tagged(pieces):
    """Words in small letters, and a tag for each: B-slot for a slot's first word, I-slot within it, O outside."""
    words, tags = [], []
    for text, slot in pieces:
        found = re.findall(r"\w+|[^\w\s]", text.lower())
        words += found
        tags += ["O"] * len(found) if slot is None else [f"B-{slot}", *[f"I-{slot}"] * (len(found) - 1)][: len(found)]
    return words, tags


def built(training, seed, dropout=0.5):
    """A tagger with two heads for these commands, and the batches to train it on."""
    read, slots, wishes = zip(*training, strict=True)
    tags, intents = sorted({tag for row in slots for tag in row}), sorted(set(wishes))
    words = fs.models.Vocabulary.from_texts(read, min_count=2, padding="<pad>")
    letters = fs.models.Vocabulary.from_texts([word for sentence in read for word in sentence], separator="", padding="<pad>")
    model = fs.models.SequenceTagger(words, tags, 100, 100, characters=letters, classes=intents, dropout=dropout, rng=seed)
    answers = [[tags.index(tag) for tag in row] for row in slots], [intents.index(wish) for wish in wishes]
    return model, fs.training.BucketBatches([model.encode(sentence) for sentence in read], *answers, batch_size=32, rng=seed)


# ---------------------------------------------------------------- the score


def spans(tags):
    """{(first, one past the last, slot)}: an I- that does not go on what stands before it begins a span, as in conlleval."""
    found, begin = set(), 0
    for i, tag in enumerate([*tags, "O"]):
        before = tags[i - 1] if i else "O"
        goes_on = tag[:2] == "I-" and before[2:] == tag[2:] and before != "O"
        if before != "O" and not goes_on:
            found.add((begin, i, before[2:]))
        if tag != "O" and not goes_on:
            begin = i
    return found


def f1(true, found):
    """Harmonic mean of how many found spans are right and how many of the true ones are found, over all sentences."""
    pairs = [(spans(t), spans(f)) for t, f in zip(true, found, strict=True)]
    right, said, wanted = (sum(map(len, each)) for each in ([t & f for t, f in pairs], [f for _, f in pairs], [t for t, _ in pairs]))
    return 2 * right / max(1, said + wanted)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a folder with files *train.jsonl and *validate.jsonl (default: commands that it makes up)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 8, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    if options.data:
        training, test = snips(options.data, "train"), snips(options.data, "validate")
    else:
        training, test = (made_up(count, np.random.default_rng([options.seed, count])) for count in ((100, 50) if QUICK else (2000, 500)))
    model, batches = built(training, options.seed)
    print(f"{len(training)} commands to train on, {len(test)} to test; {len(model.classes)} intents, {len(model.tags)} tags, "
          f"{len(model.vocabulary)} words; {sum(p.size for p in model.parameters())} parameters")  # fmt: skip

    adam = fs.optim.Adam(model.parameters(), lr=3e-3)
    schedule = fs.optim.CosineDecay(adam, options.epochs * len(batches))
    fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=options.epochs, max_norm=1.0)

    sentences, true, wanted = zip(*test, strict=True)
    found, guessed = zip(*model.tag(sentences), strict=True)
    usual = Counter(intent for _, _, intent in training).most_common(1)[0][0]
    print(f"intents right {np.mean(np.array(guessed) == np.array(wanted)):.2%} (always {usual}: {wanted.count(usual) / len(wanted):.2%}); F1 of slots {100 * f1(true, found):.2f}")
    for sentence, tags_of, intent in list(zip(sentences, found, guessed, strict=True))[:: max(1, len(test) // 5)]:
        shown = [f"{slot}={' '.join(sentence[begin:end])}" for begin, end, slot in sorted(spans(tags_of))]
        print(f"  {' '.join(sentence)}\n    -> {intent}: {', '.join(shown) or 'no slots'}")


if __name__ == "__main__":
    main()
