"""The optimizer: AdamW (arXiv 1711.05101), its two moments in 32 bits or in 8.

In 8 bits (arXiv 2110.02861) every 256 values of a moment share a scale. Tensors of fewer than 4096
values stay in 32 bits, so the small matrices of a LoRA gain next to nothing; a fully trained
network keeps 2 bytes a weight and not 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from burnish.config import OptimizerConfig

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def adamw(settings: OptimizerConfig) -> MakeOptimizer:
    """Return a function that makes the optimizer of some parameters.

    It is called before a model is loaded, so that a missing library is reported at once.

    Raises:
        ValueError: 8 bits are wanted, and the library for them is not installed.
    """
    kind = _eight_bit() if settings.eight_bit else torch.optim.AdamW

    def make(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        if settings.eight_bit:
            # the 8-bit step would do it, and a resumed run has to start from the same
            for parameter in parameters:
                parameter.data = parameter.data.contiguous()

        optimizer: torch.optim.Optimizer = kind(
            [{"params": list(parameters)}],  # which may be none: a generator that is not trained
            lr=settings.lr,
            betas=(settings.betas[0], settings.betas[1]),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        return optimizer

    return make


def _eight_bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            "optimizer.eight_bit needs the package bitsandbytes: pip install bitsandbytes, or set "
            "it to false"
        ) from error

    kind: Callable[..., torch.optim.Optimizer] = AdamW8bit
    return kind
