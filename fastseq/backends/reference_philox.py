"""Philox, the counter-based generator of every random mask (part of `reference.py`)."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def philox(key: int, counter: Array) -> Array:
    """Philox4x32-10 (Salmon et al. 2011): counter (n, 4) of 32-bit words in uint64 -> (n, 4) random words, likewise."""
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)
    c0, c1, c2, c3 = counter.T.astype(np.uint64)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & low, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=1)
