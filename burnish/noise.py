"""Known noise: log messages of other libraries that tell a user nothing, each by its words.

Everything else that they say is shown. Standard library only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

KNOWN = re.compile(
    # a LoRA need not have layers for every part; each tensor of it is accounted for
    r"^No LoRA keys associated to "
    # Burnish says so itself, with the words that are cut
    r"|^Token indices sequence length is longer than"
    r"|^The following part of your input was truncated because CLIP can only"
    # Burnish raises an error, or the tensors belong to a part that is not used
    r"|^Some weights of .* were not (used when initializing|initialized from the model) "
    r"|LOAD REPORT"
    # diffusers, of a cast that it makes itself, where there are none
    r"|^There are modules in \w+ that should be kept in float32: \[\]"
    # the images are the same without it
    r"|requires torchvision \(not installed\); falling back to"
    # bitsandbytes, which peft imports where it is installed, about kernels for CPUs
    r"|^Failed to load CPU gemm_4bit"
)

LIBRARIES = ("", "diffusers", "transformers", "bitsandbytes")


class WithoutNoise(logging.Filter):
    """A filter that lets everything through but `KNOWN`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a message that is known noise."""
        return not KNOWN.search(record.getMessage())


def silence() -> list[tuple[logging.Handler, logging.Filter]]:
    """Keep known noise out of the output of the libraries that are imported by now.

    Returns:
        The handlers that had no filter yet, each with the filter that it has got.
    """
    handlers = [handler for name in LIBRARIES for handler in logging.getLogger(name).handlers]
    # where a library has no handler of its own
    if logging.lastResort is not None:
        handlers.append(logging.lastResort)

    added: list[tuple[logging.Handler, logging.Filter]] = []
    for handler in handlers:
        if not any(isinstance(known, WithoutNoise) for known in handler.filters):
            added.append((handler, WithoutNoise()))
            handler.addFilter(added[-1][1])
    return added


@contextmanager
def silenced() -> Iterator[None]:
    """Do so within this context only."""
    added = silence()
    try:
        yield
    finally:
        for handler, known in added:
            handler.removeFilter(known)
