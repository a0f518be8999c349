"""Random numbers by name: every purpose has a stream of its own, and none is ever stored.

    stream = SHA-256("seed/iteration/purpose/...")

So iteration 12 draws the same numbers whether or not the run was interrupted before it, and one
purpose never shifts the numbers of another.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*keys: object) -> int:
    """Return a 63-bit seed from keys such as (seed, iteration, "noise").

    The same keys give the same number on every machine.
    """
    name = "/".join(map(str, keys))
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*keys: object) -> torch.Generator:
    """Return a CPU generator of the stream that these keys name."""
    return torch.Generator().manual_seed(seed_of(*keys))


def seed_globals(*keys: object) -> None:
    """Seed the global generators from these keys, for rewards of a user that draw from them."""
    seed = seed_of(*keys)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the global generators back, so that code inside shifts nobody's numbers."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
