"""Translation: one recurrent net reads, another writes, with attention or without; or a transformer does both.

Without data it learns to rewrite dates, "march 3, 1998" as "1998-03-03", letter by letter. With pairs of sentences, a line each with
a tab between the two, it translates word by word:

    python examples/translation.py
    python examples/translation.py --data eng-fra.tsv.gz                      # additive attention (Bahdanau et al. 2015)
    python examples/translation.py --data eng-fra.tsv.gz --attention none     # the encoder's last state only (Sutskever et al. 2014)
    python examples/translation.py --data eng-fra.tsv.gz --attention fed      # that state at every step (Cho et al. 2014)
    python examples/translation.py --data eng-fra.tsv.gz --cell transformer   # Vaswani et al. 2017
"""

import argparse
import os
import re

import numpy as np

import fastseq as fs
from fastseq.generation import beam_search, generate
from fastseq.text import read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
MONTHS = "january february march april may june july august september october november december".split()
LONGEST = 30  # tokens of a translation


def dates(count, rng):
    """Pairs of a date as people write it, and as machines do."""
    pairs = []
    for year, month, day in rng.integers((1900, 1, 1), (2100, 13, 29), (count, 3)):
        name = MONTHS[month - 1]
        forms = f"{day} {name} {year}", f"{name} {day}, {year}", f"{day} {name[:3]} {year}", f"in {year}, on {name} {day}"
        pairs.append((forms[rng.integers(len(forms))], f"{year}-{month:02}-{day:02}"))
    return pairs


def words(text):
    """Words in small letters, and signs; an apostrophe stays with what stands before it."""
    return re.findall(r"\w+['\u2019]?|[^\w\s]", text.lower())


def hold_out(pairs, count, rng):
    """Pairs to train on, and {source: its translations} of `count` sources that are not among them."""
    sources = sorted({source for source, _, _ in pairs})
    held_out = {sources[n]: [] for n in rng.permutation(len(sources))[:count]}
    for source, _, text in pairs:
        if source in held_out:
            held_out[source].append(text)
    return [pair for pair in pairs if pair[0] not in held_out], held_out


def in_batches(model, sources, write, size=250):
    """`write(ids, lengths)` of all sources, a batch at a time: one list of what it found."""
    ids = [model.source_vocabulary.encode(source) for source in sources]
    return [found for n in range(0, len(ids), size) for found in write(*fs.nn.pad_sequences(ids[n : n + size]))]


def as_text(model, ids):
    """What was written, without words that the model does not know."""
    text = model.target_vocabulary.decode(ids[ids != model.target_vocabulary.unknown_id])
    return re.sub(r"(['\u2019]) ", r"\1", text)


def bleu(texts, references):
    """sacrebleu's figure, small and capital letters alike; sources may have several translations."""
    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        return float("nan")
    columns = [[r[n] if n < len(r) else None for r in references] for n in range(max(map(len, references)))]
    return corpus_bleu(texts, columns, lowercase=True, force=True).score


def compare_beams(model, held_out, split):
    """Prints how good greedy translations and those of beam search are, and how often the latter are at least as likely."""
    def search(beams, penalty):
        found = in_batches(model, held_out, lambda *source: beam_search(model, *source, beams=beams, max_length=LONGEST, length_penalty=penalty))
        return [best for (best,) in found]

    greedy = search(1, 0.0)
    for name, found in (("greedy", greedy), ("4 beams", search(4, 0.0)), ("4 beams, log-probability per token", search(4, 1.0))):
        texts = [as_text(model, h.ids) for h in found]
        exact = np.mean([split(text) in map(split, right) for text, right in zip(texts, held_out.values(), strict=True)])
        likely = np.mean([h.log_prob >= g.log_prob for h, g in zip(found, greedy, strict=True)])
        print(f"{name}: BLEU {bleu(texts, list(held_out.values())):.1f}, {exact:.1%} exact, {likely:.1%} at least as likely as greedy")


def draw(model, source, path):
    """The map of one translation: what the decoder looked at when it wrote each token."""
    ids = model.source_vocabulary.encode(source)[:, None]
    (written,) = generate(model, ids, max_length=LONGEST, temperature=0)
    print("drawn:", as_text(model, written))
    inputs, _, _ = model.teacher(written[:, None])
    _, weights = model(ids, inputs, return_weights=True)
    try:
        target = [*(model.target_vocabulary.tokens[n] for n in written), "</s>"]
        fs.plot.attention(weights[:, 0], source, target).figure.savefig(path, dpi=120)
        print(f"wrote {path}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="a file of pairs, tab between the two, .gz or not (default: dates, which it makes)")
    parser.add_argument("--cell", choices=["lstm", "gru", "transformer"], default="lstm")
    parser.add_argument("--attention", choices=["additive", "dot", "bilinear", "none", "fed"], default="additive", help="of lstm and gru (default %(default)s)")
    parser.add_argument("--hidden", type=int, help="units; a transformer is half as wide (default 256; dates 128)")
    parser.add_argument("--epochs", type=int, help="(default 10; dates 4)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate at its highest (default %(default)s)")
    parser.add_argument("--checkpoint", help="a file to keep the training in, and to go on from")
    parser.add_argument("--sentence", help="what to draw the map of (default: a held-out one)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rng = np.random.default_rng(options.seed)
    split = words if options.data else list
    pairs = [line.split("\t")[:2] for line in read_text(options.data).splitlines()] if options.data else dates(300 if QUICK else 8000, rng)
    pairs = [(tuple(split(source)), split(target), target) for source, target in pairs]
    training, held_out = hold_out(pairs, 20 if QUICK else 1000, rng)
    kept = {"separator": " ", "min_count": 2} if options.data else {"separator": ""}
    vocabularies = [
        fs.models.Vocabulary.from_texts([source for source, _, _ in training], **kept),
        fs.models.Vocabulary.from_texts([target for _, target, _ in training], start="<s>", stop="</s>", **kept),
    ]
    attention = {"none": None, "fed": None}.get(options.attention, options.attention)
    dropout = 0.0 if not options.data else 0.1 if options.cell == "transformer" else 0.3
    hidden = options.hidden or (32 if QUICK else 256 if options.data else 128)
    size = {"hidden_size": 2 * hidden, "num_layers": 2} if options.cell == "transformer" else {
        "hidden_size": hidden, "attention": attention, "input_feeding": options.attention != "none"}
    model = fs.models.Seq2Seq(*vocabularies, hidden // 2, **size, cell=options.cell, dropout=dropout, rng=rng)
    print(f"{len(training)} pairs to train on, {len(held_out)} sources held out; {sum(p.size for p in model.parameters())} parameters")

    epochs = options.epochs or (1 if QUICK else 10 if options.data else 4)
    encoded = tuple([v.encode(pair[n]) for pair in training] for n, v in enumerate(vocabularies))
    batches = fs.training.BucketBatches(encoded, batch_size=64, rng=rng)
    adam = fs.optim.Adam(model.parameters(), lr=options.lr)
    schedule = fs.optim.WarmupCosine(adam, epochs * len(batches), min(200, len(batches) // 2))
    history = fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=epochs, max_norm=1.0, checkpoint=options.checkpoint)
    print(f"trained for {history.seconds:.0f} s, loss {history['loss'][-1]:.3f}")

    compare_beams(model, held_out, split)
    for source in list(held_out)[:6]:
        (written,) = generate(model, vocabularies[0].encode(source)[:, None], max_length=LONGEST, temperature=0)
        print(f"  {kept['separator'].join(source)}  ->  {as_text(model, written)}  ({held_out[source][0]})")
    if options.cell != "transformer" and attention:
        draw(model, split(options.sentence) if options.sentence else next(source for source in held_out if len(source) > 7), "translation.png")


if __name__ == "__main__":
    main()
