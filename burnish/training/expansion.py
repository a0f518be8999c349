"""The prompt expander in training: the texts it draws for an iteration, and what it learns.

    advantage of a text = mean advantage of its images - mean of that over the texts of the prompt
    loss                = mean over texts of
                          (-advantage * sum of its log-probabilities + kl * KL to the start)

One optimizer step an iteration, on policy, so nothing needs clipping. Parrot (arXiv 2401.05675) has
the raw reward in place of the advantage, and no KL. Where an advantage is 0 and expander.kl is 0,
nothing is learned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from burnish.config import Config
from burnish.prompts.expander import Expander, Expansions
from burnish.types import Prompt

EXAMPLES = 4  # expansions of an iteration that the record keeps


def texts_per_prompt(config: Config) -> int:
    """Return the number of different texts for one drawn prompt."""
    return config.expander.expansions * config.identifier_count


def expand_prompts(
    expander: Expander, prompts: list[Prompt], config: Config, generator: torch.Generator
) -> tuple[list[Prompt], Expansions]:
    """Return the expanded prompts of B images, and the texts: neighbouring images share one."""
    images_per_text = config.batch.images_per_prompt // texts_per_prompt(config)
    drawn = expander.draw(prompts[::images_per_text], generator)
    expanded = [prompt for prompt in drawn.prompts for _ in range(images_per_text)]
    return expanded, drawn


def text_advantages(adv: Tensor, valid: Tensor, group: Tensor, texts: int) -> Tensor:
    """Return the advantage (texts,) float32 of each text from its images' `adv` (B,).

    Images of a text are neighbours. Only `valid` (B,) ones count; a text without one has exactly
    0 and is compared with no other.
    """
    counts = valid.view(texts, -1).float()
    values = adv.float().view(texts, -1)
    mean = (values * counts).sum(1) / counts.sum(1).clamp(min=1)

    text_valid = counts.any(1)
    text_group = group.view(texts, -1)[:, 0]
    same_prompt = ((text_group[:, None] == text_group) & text_valid).float()
    baseline = same_prompt @ mean / same_prompt.sum(1).clamp(min=1)
    return torch.where(text_valid, mean - baseline, 0.0)


def expander_metrics(drawn: Expansions) -> dict[str, Any]:
    """Return the mean log-probability and length of texts, the truncated fraction, examples."""
    return {
        "logp": float(drawn.logp.sum(1).mean()),
        "length": float(drawn.action_mask.sum(1).double().mean()),
        "truncated": float(drawn.truncated.double().mean()),
        "texts": [[prompt.metadata["original"], prompt.text] for prompt in _examples(drawn)],
    }


def expander_update(
    expander: Expander, drawn: Expansions, adv: Tensor, config: Config
) -> dict[str, float]:
    """Accumulate the gradient of the loss over the texts; return its KL and ratio deviation.

    Args:
        expander: whose weights get the gradient.
        drawn: the texts.
        adv: (texts,) their advantages.
        config: for expander.kl and batch.train_batch.
    """
    distance = 0.0
    deviation = 0.0

    for rows in torch.arange(len(adv)).split(config.batch.train_batch):
        replay = expander.replay(drawn, rows, reference=expander.remembers)
        logp = replay.logp.sum(1)
        loss = -(adv[rows].to(logp) * logp).sum()

        if replay.kl is not None:
            loss = loss + config.expander.kl * replay.kl.sum()
            distance += float(replay.kl.detach().sum())

        (loss / len(adv)).backward()
        ratio = logp.detach().cpu() - drawn.logp[rows].sum(1)
        deviation = max(deviation, float(ratio.expm1().abs().max()))

    metrics = {"kl": distance / len(adv)} if expander.remembers else {}
    return metrics | {"ratio_deviation": deviation}


def _examples(drawn: Expansions) -> list[Prompt]:
    """Return a few of the expanded prompts, at even distances."""
    prompts = drawn.prompts
    if len(prompts) <= EXAMPLES:
        return list(prompts)
    return [prompts[index * len(prompts) // EXAMPLES] for index in range(EXAMPLES)]
