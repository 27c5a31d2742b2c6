"""Self-attention from its equations: without parameters, with queries, keys and values, with several heads, and why it needs positions.

Each word looks at all words and takes a mean of them, weighted by how well they fit. Nothing in that knows where a word stands: the
words in another order give the same results in that order. So a layer that is to repeat the previous word cannot learn it, until
positions are written beside the words.

    python examples/toy_self_attention.py
"""

import argparse
import os

import numpy as np
from tqdm import tqdm

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
SENTENCE = "the cat sat on the mat".split()
LETTERS, LENGTH = 12, 10  # of the task


def attention(q, k, v, hidden=None):
    """softmax(q k^T / sqrt(d)) v and the weights; `hidden`: True where a query (row) must not see a key (column)."""
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    if hidden is not None:
        scores = fs.where(hidden, -np.inf, scores)
    weights = fs.functional.softmax(scores)
    return weights @ v, weights


def single_head(x, w, hidden=None):
    """x (..., T, E) -> (..., T, D): each word asks with x W_q, answers with x W_k, and hands out x W_v."""
    return attention(x @ w["q"], x @ w["k"], x @ w["v"], hidden)


def multi_head(x, w, heads, hidden=None):
    """The same in `heads` parts of the width, side by side again, then W_o."""
    T, D = x.shape[-2], w["q"].shape[1] // heads
    q, k, v = ((x @ w[name]).reshape(T, heads, D).swapaxes(0, 1) for name in "qkv")
    y, weights = attention(q, k, v, hidden)
    return y.swapaxes(0, 1).reshape(T, heads * D) @ w["o"], weights


def matrices(rng, E, D, names):
    return {name: (rng.standard_normal((E, D)) * E**-0.5).astype(np.float32) for name in names}


def one_hot_positions(x):
    """x (..., T, E) with T elements more, of which that of the position is 1."""
    T = x.shape[-2]
    return np.concatenate([x, np.broadcast_to(np.eye(T, dtype=x.dtype), (*x.shape[:-1], T))], axis=-1)


def off(a, b):
    """The largest difference, in words."""
    difference = np.abs(a - b).max()
    return "the same" if difference < 1e-5 else f"off by {difference:.2f}"


def look(rng):
    """The three forms on one sentence, and what they do not know."""
    vector = {word: rng.standard_normal(8).astype(np.float32) for word in sorted(set(SENTENCE))}
    x = np.stack([vector[word] for word in SENTENCE])  # (T, E)
    w, w_wide = matrices(rng, 8, 8, "qkvo"), matrices(rng, 8 + len(x), 8, "qkv")
    y, weights = attention(x, x, x)
    print(f"without parameters, {SENTENCE[-1]!r} takes " + ", ".join(f"{a:.2f} {word}" for a, word in zip(weights[-1], SENTENCE, strict=True)))
    print("one fused operation:", off(y, fs.functional.scaled_dot_product_attention(x, x, x)))
    joined = x @ np.concatenate([w["q"], w["k"], w["v"]], axis=1)
    print("two heads, fused:", off(multi_head(x, w, 2)[0], fs.functional.self_attention(joined[None], 2)[0] @ w["o"]))

    order = rng.permutation(len(x))
    for name, layer in {
        "without parameters": lambda x: attention(x, x, x)[0],
        "single head": lambda x: single_head(x, w)[0],
        "multi-head": lambda x: multi_head(x, w, 2)[0],
        "single head, one-hot positions": lambda x: single_head(one_hot_positions(x), w_wide)[0],
    }.items():
        print(f"words in another order, {name}: results in that order are {off(layer(x[order]), layer(x)[order])}")

    later = ~np.tri(len(x), dtype=bool)  # the causal mask
    changed = x.copy()
    changed[4:] = rng.standard_normal((2, 8))
    for name, hidden in (("no mask", None), ("causal mask", later)):
        print(f"other words at the end, {name}: the first four results are {off(single_head(x, w, hidden)[0][:4], single_head(changed, w, hidden)[0][:4])}")


def learn(positions, steps, rng):
    """Train one causal head to repeat the previous letter: share of right ones, and the weights for one text."""
    E = LETTERS + LENGTH * positions
    w = {name: fs.nn.Parameter(a) for name, a in matrices(rng, E, 32, "qkv").items()}
    head, later = fs.nn.Linear(32, LETTERS, rng=rng), ~np.tri(LENGTH, dtype=bool)
    parameters = [*w.values(), *head.parameters()]
    adam = fs.optim.Adam(parameters, lr=1e-2)

    def batch():
        ids = rng.integers(0, LETTERS, (32, LENGTH))
        x = np.eye(LETTERS, dtype=np.float32)[ids]
        return ids, one_hot_positions(x) if positions else x

    for _ in tqdm(range(steps), desc="one-hot positions" if positions else "no positions", disable=None):
        ids, x = batch()
        y, _ = single_head(fs.Tensor(x), w, later)
        loss = fs.functional.cross_entropy(head(y)[:, 1:].reshape(-1, LETTERS), ids[:, :-1].reshape(-1))
        adam.zero_grad()
        loss.backward()
        adam.step()
    ids, x = batch()
    y, weights = single_head(x, {name: p.data for name, p in w.items()}, later)
    return float((head(y).argmax(-1)[:, 1:] == ids[:, :-1]).mean()), ids[0], weights[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3 if QUICK else 500, help="of training (default %(default)s)")
    parser.add_argument("--output", default="toy_self_attention.png", help="the picture (default %(default)s)")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    look(rng)
    for positions in (False, True):
        right, ids, weights = learn(positions, options.steps, rng)
        print(f"repeating the previous letter, {'one-hot' if positions else 'no'} positions: {right:.0%} right, by chance {1 / LETTERS:.0%}", flush=True)
    try:
        text = "".join("abcdefghijkl"[i] for i in ids)
        ax = fs.plot.attention(weights, text, text, title="each letter looks at the one before")
        ax.figure.savefig(options.output, dpi=120)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
