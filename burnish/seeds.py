"""Random numbers by name: every use of chance derives its own stream from what it is for, and none
is ever stored.

    stream = SHA-256("seed/iteration/purpose/...")

So iteration 12 draws the same numbers whether or not the run was interrupted before it, and one use
of chance never shifts another.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def number(*keys: object) -> int:
    """A 63-bit seed from keys such as (seed, iteration, "noise"); the same keys, the same number,
    on every machine.
    """
    return (
        int.from_bytes(hashlib.sha256("/".join(map(str, keys)).encode()).digest()[:8], "big") >> 1
    )


def generator(*keys: object) -> torch.Generator:
    """A CPU generator of the stream that these keys name."""
    return torch.Generator().manual_seed(number(*keys))


def seed_globals(*keys: object) -> None:
    """Start the global generators from these keys too: a user's reward may draw from them."""
    seed = number(*keys)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
