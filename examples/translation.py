"""Translation with attention: a bidirectional LSTM reads, an AttentionDecoder writes and looks back (Bahdanau et al. 2015).

Without data it learns to rewrite dates, "march 3, 1998" as "1998-03-03", letter by letter, for which it has to find the month in the
middle of what it read. With pairs of sentences, a line each with a tab between the two, it translates word by word:

    python examples/translation.py
    python examples/translation.py --data eng-fra.tsv.gz --steps 3000
"""

import argparse
import gzip
import os
import re
from collections import Counter

import numpy as np
from tqdm import tqdm

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
PAD, START, END, UNKNOWN = range(4)
MONTHS = "january february march april may june july august september october november december".split()


# ---------------------------------------------------------------- data


def dates(count, rng):
    """Pairs of a date as people write it, and as machines do."""
    pairs = []
    for year, month, day in rng.integers((1900, 1, 1), (2100, 13, 29), (count, 3)):
        name = MONTHS[month - 1]
        forms = f"{day} {name} {year}", f"{name} {day}, {year}", f"{day} {name[:3]} {year}", f"in {year}, on {name} {day}"
        pairs.append((forms[rng.integers(len(forms))], f"{year}-{month:02}-{day:02}"))
    return pairs


def sentences(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        return [tuple(line.rstrip("\n").split("\t")[:2]) for line in file]


def words(text):
    """Words in small letters, and signs; an apostrophe stays with what stands before it."""
    return re.findall(r"\w+['\u2019]?|[^\w\s]", text.lower())


class Vocabulary:
    def __init__(self, texts, least):
        counts = Counter(token for text in texts for token in text)
        self.tokens = ["<pad>", "<start>", "<end>", "<unknown>", *sorted(token for token, n in counts.items() if n >= least)]
        self.ids = {token: n for n, token in enumerate(self.tokens)}

    def encode(self, text):
        return [self.ids.get(token, UNKNOWN) for token in text] + [END]

    def decode(self, ids):
        return [self.tokens[i] for i in ids]


def split(pairs, held_out, rng):
    """Training pairs and held-out ones, no source of which is trained on."""
    sources = sorted({source for source, _ in pairs})
    kept = set(rng.permutation(sources)[:held_out].tolist())
    return [p for p in pairs if p[0] not in kept], [p for p in pairs if p[0] in kept]


def batches(pairs, size, rng):
    """Endless batches of sentences of about the same length: (T, B) ids, padded, and lengths."""
    while True:
        order = rng.permutation(len(pairs))
        for pool in np.array_split(order, max(1, len(pairs) // (50 * size))):
            pool = sorted(pool, key=lambda n: len(pairs[n][0]))
            starts = np.arange(0, len(pool), size)
            for start in rng.permutation(starts):
                yield [pairs[n] for n in pool[start : start + size]]


# ---------------------------------------------------------------- the model


class Translator(fs.nn.Module):
    def __init__(self, source_size, target_size, embedding, hidden, dropout, rng):
        self.source = fs.nn.Embedding(source_size, embedding, padding_idx=PAD, rng=rng)
        self.target = fs.nn.Embedding(target_size, embedding, padding_idx=PAD, rng=rng)
        self.encoder = fs.nn.LSTM(embedding, hidden // 2, bidirectional=True, rng=rng)
        self.decoder = fs.nn.AttentionDecoder(embedding, hidden, hidden, rng=rng)
        self.head = fs.nn.Linear(hidden, target_size, rng=rng)
        self.dropout = fs.nn.Dropout(dropout, rng=rng)

    def encode(self, source, lengths):
        """The memory (S, B, hidden), and the two directions' last states side by side: where the decoder begins."""
        memory, (h, c) = self.encoder(self.dropout(self.source(source)), lengths=lengths)
        return self.dropout(memory), tuple(fs.concatenate([s[0], s[1]], axis=1) for s in (h, c))

    def forward(self, source, source_lengths, target, target_lengths):
        """What the decoder says at each step, given all right words before it (T, B, hidden); the head makes words of it."""
        memory, state = self.encode(source, source_lengths)
        x = self.dropout(self.target(target))
        outputs, _ = self.decoder(x, memory, state, lengths=target_lengths, memory_lengths=source_lengths)
        return self.dropout(outputs)

    def translate(self, source, lengths, most=40):
        """The likeliest word each time, until all have ended: ids and attention weights, a list for each sentence."""
        memory, state = self.encode(source, lengths)
        memory = self.decoder.start(memory, lengths)
        last, ids, weights = np.full(source.shape[1], START), [], []
        while len(ids) < most and not (ids and (np.stack(ids) == END).any(axis=0).all()):
            output, state, a = self.decoder.step(self.target(last), memory, state, return_weights=True)
            last = self.head(output).argmax(-1)
            ids.append(last)
            weights.append(a)
        ids, weights = np.stack(ids, axis=1), np.stack(weights, axis=1)
        ends = [(*np.flatnonzero(row == END), most - 1)[0] + 1 for row in ids]
        return [row[:end].tolist() for row, end in zip(ids, ends, strict=True)], [a[:end] for a, end in zip(weights, ends, strict=True)]


def prepared(batch):
    """(source, its lengths, target one step late, its lengths, target)."""
    source, source_lengths = fs.nn.pad_sequences([s for s, _ in batch], padding_value=PAD)
    late, target_lengths = fs.nn.pad_sequences([[START, *t[:-1]] for _, t in batch], padding_value=PAD)
    wanted, _ = fs.nn.pad_sequences([t for _, t in batch], padding_value=PAD)
    return source, source_lengths, late, target_lengths, wanted


def loss_of(model, batch):
    source, source_lengths, late, target_lengths, wanted = prepared(batch)
    outputs = model(fs.Tensor(source), source_lengths, fs.Tensor(late), target_lengths)
    return fs.functional.linear_cross_entropy(
        outputs.reshape(-1, outputs.shape[2]), model.head.weight, model.head.bias, wanted.reshape(-1), ignore_index=PAD)


def train(model, pairs, steps, lr, rng):
    adam, average = fs.optim.Adam(model.parameters(), lr=lr), None
    batch, bar = batches(pairs, 64, rng), tqdm(range(steps), desc="training", unit="step", disable=None)
    for step in bar:
        adam.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))  # falls in the second half
        loss = loss_of(model, next(batch))
        adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(model.parameters(), 1.0)
        adam.step()
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        bar.set_postfix_str(f"loss {average:.3f}", refresh=False)
    return average


def measure(model, pairs):
    """On held-out pairs: mean loss and share of right tokens, given all right ones before; share of exact translations."""
    losses, right, count, exact = 0.0, 0, 0, 0
    answers = {}
    for source, target in pairs:
        answers.setdefault(tuple(source), []).append(target)
    for start in range(0, len(pairs), 250):
        batch = pairs[start : start + 250]
        source, source_lengths, late, target_lengths, wanted = prepared(batch)
        logits = model.head(model(source, source_lengths, late, target_lengths))
        asked = wanted != PAD
        losses += float(fs.functional.cross_entropy(logits[asked], wanted[asked], reduction="sum"))
        right, count = right + int((logits.argmax(-1) == wanted)[asked].sum()), count + int(asked.sum())
        found, _ = model.translate(source, source_lengths)
        exact += sum(ids in answers[tuple(s)] for (s, _), ids in zip(batch, found, strict=True))
    return losses / count, right / count, exact / len(pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a file of pairs, tab between the two, .gz or not (default: dates, which it makes)")
    parser.add_argument("--steps", type=int, default=3 if QUICK else 600, help="of training (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=32 if QUICK else 128, help="units of encoder and decoder (default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.0, help="while training (default %(default)s)")
    parser.add_argument("--sentence", help="what to draw the map of (default: a held-out one)")
    parser.add_argument("--output", default="translation.png", help="the picture (default %(default)s)")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    tokens = words if options.data else list
    pairs = sentences(options.data) if options.data else dates(500 if QUICK else 10_000, rng)
    training, held_out = split(pairs, 50 if QUICK else 1000, rng)
    vocabularies = [Vocabulary([tokens(pair[n]) for pair in training], 2 if options.data else 1) for n in (0, 1)]
    encoded = [[tuple(v.encode(tokens(text)) for v, text in zip(vocabularies, pair, strict=True)) for pair in part] for part in (training, held_out)]
    model = Translator(*(len(v.tokens) for v in vocabularies), options.hidden // 2, options.hidden, options.dropout, rng)
    print(f"{len(training)} pairs to train on, {len(held_out)} held out; {sum(p.size for p in model.parameters())} parameters")

    loss = train(model.train(), encoded[0], options.steps, 3e-3, rng)
    model.eval()
    print("loss while training {:.3f}; held out: loss {:.3f}, {:.1%} of tokens right, {:.1%} of translations exact".format(loss, *measure(model, encoded[1])))

    shown = [held_out[n] for n in rng.choice(len(held_out), 6, replace=False)]
    if options.sentence:
        shown[0] = options.sentence, ""
    read = [vocabularies[0].encode(tokens(source)) for source, _ in shown]
    found, weights = model.translate(*fs.nn.pad_sequences(read, padding_value=PAD))
    written = [vocabularies[1].decode(ids) for ids in found]
    for (source, target), text in zip(shown, written, strict=True):
        print(f"  {source}  ->  {(' ' if options.data else '').join(text[:-1])}" + f"  ({target})" * bool(target))
    try:
        source = [*tokens(shown[0][0]), "<end>"]
        fs.plot.attention(weights[0][:, : len(source)], source, written[0]).figure.savefig(options.output, dpi=120)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
