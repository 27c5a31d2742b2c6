"""The keys of a recurrent layer's random masks, whose words the kernels draw."""

from __future__ import annotations

from fastseq.backends.recurrent import Noise

_WORD = 2**32 - 1
_TAG = 0x7265636E


def keys_of(noise: Noise, direction: int) -> list[int]:
    """Those of recurrent dropout, and of zoneout of h and of c, as `reference.py` draws them."""
    return [_first_words(noise.seed, (kind, noise.layer + direction, noise.call, _TAG)) for kind in range(3)]


def _first_words(key: int, counter: tuple[int, int, int, int]) -> int:
    """The first two words of a block of Philox4x32-10, which is `reference_philox.py`'s in Python's own numbers: no array for one block."""
    k0, k1 = key & _WORD, key >> 32
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0 | c1 << 32
