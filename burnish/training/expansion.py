"""The wording of prompts: what the loop asks the expander for, and what the expander learns from
the pictures.

    advantage of a text = mean advantage of its pictures - the mean of that over the texts of the
    same prompt
    loss                = mean over texts of (-advantage * sum of its log-probabilities + kl * KL to the start)

One step an iteration, on policy, so nothing needs clipping. Parrot (arXiv 2401.05675) has the raw
reward in place of the advantage, and no KL. Where an advantage is 0 and no KL is asked for, nothing
moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.config import Config
from burnish.prompts.expander import Expansions
from burnish.seeds import generator
from burnish.training.job import Job
from burnish.types import Prompt

SHOWN = 4  # expansions of an iteration that the record keeps


def reword(job: Job, asked: list[Prompt], iteration: int) -> tuple[list[Prompt], Expansions | None]:
    """The prompts of an iteration's images (B), expanded, and the texts that were drawn for them,
    one for so many neighbours; without an expander the prompts as they are.
    """
    expander = job.parts.expander
    if expander is None:
        return asked, None

    chance = generator(job.config.seed, iteration, "expansions", job.world.rank)
    each = job.config.batch.images_per_prompt // texts_per_prompt(job.config)
    drawn = expander.draw(asked[::each], chance)
    return [prompt for prompt in drawn.prompts for _ in range(each)], drawn


def texts_per_prompt(config: Config) -> int:
    """Different texts for one drawn prompt: with identifiers so many for each reward."""
    return config.expander.expansions * (len(config.rewards) if config.sampler.identifiers else 1)


def worth(adv: Tensor, there: Tensor, group: Tensor, texts: int) -> Tensor:
    """The advantage (texts,) float32 of each text, from those of its images ``adv`` (B,),
    neighbours.

    Only images ``there`` (B,) count; a text without one has exactly 0 and is compared with no
    other.
    """
    seen = there.view(texts, -1).float()
    values = adv.float().view(texts, -1)
    mean = (values * seen).sum(1) / seen.sum(1).clamp(min=1)
    valid = seen.any(1)
    group = group.view(texts, -1)[:, 0]
    alike = ((group[:, None] == group) & valid).float()
    return torch.where(valid, mean - alike @ mean / alike.sum(1).clamp(min=1), 0.0)


def teach(
    job: Job, drawn: Expansions | None, adv: Tensor, there: Tensor, group: Tensor
) -> dict[str, Any]:
    """One step of the expander on an iteration's images: their advantages, whether they have
    scores, and their prompts, (B,) each. Returns what the record says about it; {} without an
    expander.
    """
    expander = job.parts.expander
    optimizer = job.wordsmith

    if expander is None or drawn is None:
        return {}

    record: dict[str, Any] = {
        "expander_logp": float(drawn.logp.sum(1).mean()),
        "expander_length": float(drawn.action_mask.sum(1).double().mean()),
        "expander_cut": float(drawn.truncated.double().mean()),
        "expansions": [[new.metadata["original"], new.text] for new in _spread(drawn.prompts)],
    }
    own = worth(adv, there, group, len(drawn.prompts))
    kl = job.config.expander.kl

    if optimizer is None or not job.world.any(bool(own.any()) or kl > 0):
        return record

    optimizer.zero_grad(set_to_none=True)
    distance = 0.0
    deviation = 0.0

    for rows in torch.arange(len(own)).split(job.config.batch.train_batch):
        say = expander.replay(drawn, rows, reference=expander.remembers)
        logp = say.logp.sum(1)
        loss = -(own[rows].to(logp) * logp).sum()

        if say.kl is not None:
            loss = loss + kl * say.kl.sum()
            distance += float(say.kl.detach().sum())

        (loss / len(own)).backward()
        change = (logp.detach().cpu() - drawn.logp[rows].sum(1)).expm1().abs().max()
        deviation = max(deviation, float(change))

    job.world.average_gradients(expander.trainable)
    norm = torch.nn.utils.clip_grad_norm_(expander.trainable, job.config.optimizer.max_grad_norm)

    if not norm.isfinite():
        raise RuntimeError(
            "the expander's gradient is not finite any more; start again with a lower expander.lr"
        )

    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    more = {"expander_kl": distance / len(own)} if expander.remembers else {}

    return (
        record | more | {"expander_ratio_deviation": deviation, "expander_grad_norm": float(norm)}
    )


def _spread(found: Sequence[Prompt]) -> list[Prompt]:
    return (
        [found[place * len(found) // SHOWN] for place in range(SHOWN)]
        if len(found) > SHOWN
        else list(found)
    )
