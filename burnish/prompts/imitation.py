"""The supervised start of an expander: given expansions are imitated before anything is learned
from pictures.

loss = -(mean over the given tokens of log p(token | prompt, tokens before))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from burnish.prompts import sources as prompts
from burnish.prompts.expander import Expander
from burnish.seeds import generator

AT_ONCE = 16  # pairs of a step


def read_pairs(path: str) -> list[tuple[str, str]]:
    """(prompt, words behind it) of a JSONL file of {"prompt": ..., "expansion": ...}; an expansion
    may begin with its prompt. FileNotFoundError or ValueError with the row.
    """
    found = []

    for row, prompt in enumerate(prompts.jsonl(path), 1):
        words = prompt.metadata.get("expansion")
        if not isinstance(words, str) or not words.strip():
            raise ValueError(
                f'{path}, entry {row}: no text under "expansion"; write the prompt with more words'
            )

        words = words.removeprefix(prompt.text).rstrip()
        found.append(
            (prompt.text, words if words[:1] in (",", ".", ";", ":", " ", "") else f" {words}")
        )

    return found


def imitate(
    expander: Expander, pairs: Sequence[tuple[str, str]], epochs: int, lr: float, seed: int
) -> float:
    """Makes given expansions likelier: AdamW on the mean log-probability of their tokens. Returns
    the last epoch's mean loss in nats a token.
    """
    optimizer = torch.optim.AdamW(expander.trainable, lr=lr, weight_decay=0.0)
    losses = [0.0]

    for epoch in range(epochs):
        order = torch.randperm(len(pairs), generator=generator(seed, "start", epoch))
        losses = []

        for rows in order.split(AT_ONCE):
            batch = expander.pairs([pairs[row] for row in rows.tolist()])
            loss = (
                -expander.replay(batch, torch.arange(len(rows))).logp.sum()
                / batch.action_mask.sum()
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(expander.trainable, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))

    return sum(losses) / len(losses)
