"""One to many: a language goes in, names come out, letter by letter, from one GRU for all languages.

The language is the first token of each name, the end a token of its own, so that a language model is all that is needed.

    python examples/names_generate.py
    python examples/names_generate.py --data names_by_language.tsv --languages Russian Italian Japanese
"""

import argparse
import math
import os

import numpy as np
from sklearn.model_selection import train_test_split

import fastseq as fs
from fastseq.text import default_text, read_text

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
END = "<end>"


class NameModel(fs.models.LanguageModel):
    def loss(self, inputs, lengths, targets):
        return super().loss(inputs, targets)  # what is past a name's end has no target, so its length need not be known


def read(path):
    """Pairs of a name and its language, each once."""
    return sorted({tuple(line.split("\t")) for line in read_text(path).splitlines()})


def invented(rng):
    """Words of Python's help texts that end in a vowel, and others: two languages that can be told apart."""
    words = sorted({word for word in default_text().split() if word.isascii() and word.isalpha() and len(word) > 3})
    picked = rng.permutation(words)[: 300 if QUICK else 3000]
    return [(word.capitalize(), "Vocalic" if word[-1] in "aeiou" else "Consonantal") for word in picked]


def build(pairs, hidden, seed):
    """A model whose tokens are the end, the languages and the letters."""
    languages = sorted({f"<{language}>" for _, language in pairs})
    letters = sorted({letter for name, _ in pairs for letter in name})
    vocabulary = fs.models.Vocabulary([*languages, *letters], stop=END)
    return NameModel(vocabulary, 32, hidden, cell="gru", dropout=0.2, rng=seed)


def batches(vocabulary, pairs, size, seed):
    """Inputs <language> n a m e, targets n a m e <end>."""
    texts = [vocabulary.encode([f"<{language}>", *name, END]) for name, language in pairs]
    return fs.training.BucketBatches([text[:-1] for text in texts], [text[1:] for text in texts], batch_size=size, rng=seed)


def bits_per_letter(model, pairs):
    """On held-out names, the end counted as a letter."""
    total, count = 0.0, 0
    for inputs, lengths, targets in batches(model.vocabulary, pairs, 200, 0):
        total += float(model.loss(inputs, lengths, targets).item()) * lengths.sum()
        count += lengths.sum()
    return total / count / math.log(2)


def searched(model, pairs, beams):
    """How often the likeliest end of a held-out name that beam search finds is likelier, and less likely, than the greedy one."""
    texts = [model.vocabulary.encode([f"<{language}>", *name[:2]]) for name, language in pairs]
    prompts, lengths = fs.nn.pad_sequences(texts)
    greedy, found = (
        fs.generation.beam_search(model, prompts, lengths, beams=n, max_length=20, length_penalty=0) for n in (1, beams))
    gains = np.array([best.log_prob - one.log_prob for (one,), (best,) in zip(greedy, found, strict=True)])
    return (gains > 1e-6).mean(), (gains < -1e-6).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="lines of a name, a tab and its language (default: words that end in a vowel, or do not)")
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 8, help="passes over the names (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=16 if QUICK else 128, help="units of the GRU (default %(default)s)")
    parser.add_argument("--languages", nargs="*", help="to write names in (default: all)")
    parser.add_argument("--temperature", type=float, default=0.6, help="of the draws (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights, the batches and the draws (default %(default)s)")
    options = parser.parse_args()

    pairs = read(options.data) if options.data else invented(np.random.default_rng(options.seed))
    labels = [language for _, language in pairs]
    training, held_out = train_test_split(pairs, test_size=0.1, stratify=labels, random_state=options.seed)
    model = build(pairs, options.hidden, options.seed)
    print(f"{len(training)} names to train on, {len(held_out)} held out, {len(set(labels))} languages, {len(model.vocabulary)} tokens")

    stream = batches(model.vocabulary, training, 32, options.seed)
    adam = fs.optim.Adam(model.parameters(), lr=3e-3)
    schedule = fs.optim.WarmupCosine(adam, options.epochs * len(stream), len(stream) // 4)
    history = fs.training.fit(
        model, stream, optimizer=adam, schedule=schedule, max_norm=1.0, epochs=options.epochs,
        validation=lambda model: {"bits per letter": bits_per_letter(model, held_out)})
    print(f"{history['bits per letter'][-1]:.3f} bits per letter on held-out names after {options.epochs} epochs, {history.seconds:.0f} s")

    better, worse = searched(model, held_out, 4)
    print(f"ends of held-out names: 4 beams find a likelier one than greedy search for {better:.1%}, a less likely one for {worse:.1%}")

    known = {name for name, _ in pairs}
    for language in options.languages or sorted(set(labels)):
        prompt = np.full((1, 5), model.vocabulary.id(f"<{language}>"))
        written = fs.generation.generate(model, prompt, max_length=20, temperature=options.temperature, top_p=0.95, rng=options.seed)
        names = [model.vocabulary.decode(ids) for ids in written]
        print(f"  {language:12}" + ", ".join(name + "*" * (name not in known) for name in names))
    print("  * no name of the list")


if __name__ == "__main__":
    main()
