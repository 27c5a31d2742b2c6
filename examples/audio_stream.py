"""Sound, sample by sample: a small LSTM learns a distortion and then runs as a plug-in would, one call for each sample.

What it learns is made up: a soft clipper whose gain sags with loudness, behind a low-pass filter. The stream gives the same bits
as the layer on the whole recording, and allocates nothing while it runs.

    python examples/audio_stream.py        writes audio_stream.wav: left what went in, right what came out
"""

import argparse
import os
import time
import wave

import numpy as np

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
RATE, PIECE, PIECES = 44_100, 256, 16


def plucks(seconds, rng):
    """Strings plucked a few times a second."""
    t, sound = np.arange(int(seconds * RATE)) / RATE, np.zeros(int(seconds * RATE))
    for start in np.arange(0, seconds, 0.25):
        since, pitch = np.maximum(t - start, 0), 110 * 2 ** (rng.integers(0, 25) / 12)
        partials = sum(np.sin(2 * np.pi * pitch * k * since) / k for k in (1, 2, 3))
        sound += (t >= start) * np.exp(-6 * since) * partials
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def amplifier(sound):
    """What is to be learned."""
    out, loudness, low = np.empty_like(sound), 0.0, 0.0
    for i, sample in enumerate(sound):
        loudness += 0.002 * (abs(sample) - loudness)
        low += 0.4 * (np.tanh(8 * sample / (1 + 4 * loudness)) - low)
        out[i] = 0.7 * low
    return out


def train(lstm, head, dry, wet, steps):
    """Truncated backpropagation through PIECES stretches of sound side by side; the error relative to the signal."""
    parameters = [*lstm.parameters(), *head.parameters()]
    adam, state, errors = fs.optim.Adam(parameters, lr=5e-3), None, []
    dry, wet = (a[: len(a) // PIECES * PIECES].reshape(PIECES, -1).T[:, :, None] for a in (dry, wet))
    for step in range(steps):
        start = step * PIECE % (len(dry) - PIECE)
        x, wanted = (np.ascontiguousarray(a[start : start + PIECE]) for a in (dry, wet))
        y, state = lstm(fs.Tensor(x), state)
        state = tuple(s.detach() for s in state)
        loss = fs.functional.mse_loss(head(y) + x, wanted)
        adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(parameters, 1.0)
        adam.step()
        errors.append(loss.item() / np.mean(wanted**2))
    return float(np.mean(errors[-max(1, steps // 10) :]))


def run(lstm, head, dry):
    """The recording one sample after another, as it would come from a sound card, and the seconds that it took."""
    stream, hidden, out = lstm.stream(), np.empty((1, lstm.hidden_size), np.float32), np.empty_like(dry)
    weight, bias = head.weight.data[0], head.bias.data[0]
    begin = time.perf_counter()
    for i in range(len(dry)):
        stream.step(dry[i : i + 1, None], out=hidden)
        out[i] = hidden[0] @ weight + bias + dry[i]
    return out, time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3 if QUICK else 600, help="of training (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2 if QUICK else 4, help="of sound (default %(default)s)")
    parser.add_argument("--output", default="audio_stream.wav", help="(default %(default)s)")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    lstm, head = fs.nn.LSTM(1, 20, rng=0), fs.nn.Linear(20, 1, rng=1)
    dry = plucks(options.seconds, rng)
    error = train(lstm, head, dry, amplifier(dry), options.steps)
    print(f"error of the model: {error:.1%} of the signal's power")

    dry = plucks(options.seconds, rng)  # another tune
    wet, seconds = run(lstm, head, dry)
    print(f"{len(dry)} samples in {seconds:.2f} s: {1e6 * seconds / len(dry):.1f} us each, {options.seconds / seconds:.1f} times real time")
    stream = lstm.stream()
    same = np.array_equal(np.stack([stream.step(x) for x in dry[:1000, None, None]]), lstm(dry[:1000, None, None])[0])
    print(f"the stream and the whole sequence have {'the same bits' if same else 'different bits'}")
    with wave.open(options.output, "wb") as file:
        file.setparams((2, 2, RATE, len(dry), "NONE", "not compressed"))
        file.writeframes((32767 * np.clip(np.stack([dry, wet], axis=1), -1, 1)).astype("<i2").tobytes())
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
