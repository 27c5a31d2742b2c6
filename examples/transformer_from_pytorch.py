"""A transformer encoder moves over from PyTorch: its weights loaded by name, its outputs compared, both timed.

    python examples/transformer_from_pytorch.py
"""

import argparse
import os
import time

import numpy as np

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs


def shortest(runs, rounds):
    """Milliseconds of the fastest of several rounds, in which all take their turn."""
    times = []
    for _ in range(rounds):
        for run in runs:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return [1e3 * min(times[n :: len(runs)]) for n in range(len(runs))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2 if QUICK else 10, help="how often each is timed (default %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="(default %(default)s)")
    parser.add_argument("--width", type=int, default=32 if QUICK else 256, help="d_model, for heads of 32 or fewer (default %(default)s)")
    parser.add_argument("--length", type=int, default=16 if QUICK else 128, help="of the longest text (default %(default)s)")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("nothing to compare with, for PyTorch is missing: pip install torch")
        return
    E, T, B = options.width, options.length, 8
    arguments = {"d_model": E, "nhead": max(1, E // 32), "dim_feedforward": 4 * E, "activation": "gelu", "norm_first": True, "batch_first": True}

    theirs = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(**arguments), options.layers, torch.nn.LayerNorm(E), enable_nested_tensor=False)
    ours = fs.nn.TransformerEncoder(fs.nn.TransformerEncoderLayer(**arguments), options.layers, fs.nn.LayerNorm(E))
    ours.load_state_dict({name: w.numpy() for name, w in theirs.state_dict().items()})
    theirs.eval()
    ours.eval()
    print(f"{len(ours.state_dict())} arrays, {sum(p.size for p in ours.parameters())} numbers, loaded by name")

    rng = np.random.default_rng(0)
    x, lengths = rng.standard_normal((B, T, E), np.float32), rng.integers(T // 2, T + 1, B)
    padding, inside = fs.nn.padding_mask(lengths, T), np.arange(T) < lengths[:, None]
    torch.set_num_threads(fs.get_num_threads())
    there, blocked = torch.from_numpy(x), torch.from_numpy(padding)
    with torch.no_grad():
        want = theirs(there, src_key_padding_mask=blocked).numpy()
    got = ours(x, src_key_padding_mask=padding)
    print(f"texts of {lengths.min()} to {lengths.max()} words: outputs differ by at most {np.abs(got - want)[inside].max():.1e}")
    causal = torch.nn.Transformer.generate_square_subsequent_mask(T)
    with torch.no_grad():
        want = theirs(there, mask=causal, is_causal=True).numpy()
    print(f"causal: by at most {np.abs(ours(x, is_causal=True) - want).max():.1e}")

    dy = rng.standard_normal(x.shape, np.float32)

    def infer_theirs():
        with torch.inference_mode():
            theirs(there, src_key_padding_mask=blocked)

    def train_theirs():
        theirs.zero_grad()
        theirs(there, src_key_padding_mask=blocked).backward(torch.from_numpy(dy))

    def train_ours():
        ours.zero_grad()
        ours(fs.Tensor(x), src_key_padding_mask=padding).backward(dy)

    train_theirs()
    train_ours()
    grads = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    print(f"gradients: by at most {max(np.abs(p.grad - grads[n]).max() / np.abs(grads[n]).max() for n, p in ours.named_parameters()):.1e} of the largest")
    for name, pair in (
        ("inference", (lambda: ours(x, src_key_padding_mask=padding), infer_theirs)),
        ("training, forwards and back", (train_ours, train_theirs)),
    ):
        ms, torch_ms = shortest(pair, options.steps)
        print(f"{name}: {ms:.1f} ms, PyTorch {torch_ms:.1f} ms ({fs.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
