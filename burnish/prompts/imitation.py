"""The supervised start of an expander: given expansions are imitated before training begins.

loss = -(mean over the given tokens of log p(token | prompt, tokens before))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from burnish.annotations import EMOJI_ENDINGS
from burnish.errors import NoSuchFile
from burnish.prompts.expander import Expander, Expansions
from burnish.prompts.sources import jsonl
from burnish.seeds import generator
from burnish.stages import advance, stage

BATCH = 16  # pairs of an optimizer step

ENDINGS = Path(__file__).parent.parent / "data" / "emoji_endings.jsonl"
"""Three styles and a background behind 24 prompts: `python -m experiments.parrot --only endings`
found them to please the four rewards of the recipe emoji-parrot best."""


def read_pairs(path: str) -> list[tuple[str, str]]:
    """Return the (prompt, words behind it) pairs of a JSONL file.

    Each line is {"prompt": ..., "expansion": ...}; an expansion may begin with its prompt.

    Args:
        path: of the file, or EMOJI_ENDINGS.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is wrong; the message names it.
    """
    pairs = []
    file = str(ENDINGS) if path == EMOJI_ENDINGS else path
    try:
        prompts = jsonl(file)
    except NoSuchFile as error:
        raise error.named("expander", "start") from error

    for row, prompt in enumerate(prompts, 1):
        words = prompt.metadata.get("expansion")
        if not isinstance(words, str) or not words.strip():
            raise ValueError(
                f'{path}, entry {row}: no text under "expansion"; write the prompt with more words'
            )

        pairs.append((prompt.text, _words_behind(prompt.text, words)))

    return pairs


def _words_behind(prompt: str, expansion: str) -> str:
    """Return what an expansion adds to its prompt, on one line.

    A prompt at its beginning is left out where a word ends there, whatever its capitals.
    """
    text = " ".join(expansion.split())
    start = " ".join(prompt.split())
    rest = text[len(start) :]
    if text[: len(start)].lower() == start.lower() and not rest[:1].isalnum():
        text = rest

    return text if text[:1] in (",", ".", ";", ":", " ", "") else f" {text}"


def imitate(
    expander: Expander, pairs: Sequence[tuple[str, str]], epochs: int, lr: float, seed: int
) -> float:
    """Train the expander on given pairs, and return the last epoch's mean loss in nats a token.

    AdamW on the mean log-probability of their tokens.

    Raises:
        ValueError: the loss is not finite any more.
    """
    optimizer = torch.optim.AdamW(expander.trainable, lr=lr, weight_decay=0.0)
    losses = [0.0]

    with stage("imitation", f"{len(pairs)} texts x {epochs} epochs", len(pairs) * epochs):
        for epoch in range(epochs):
            order = torch.randperm(len(pairs), generator=generator(seed, "start", epoch))
            losses = []

            for rows in order.split(BATCH):
                batch = Expansions.from_pairs(
                    [pairs[row] for row in rows.tolist()], expander.prompt_tokens
                )
                logp = expander.replay(batch, torch.arange(len(rows))).logp
                loss = -logp.sum() / batch.action_mask.sum()
                if not loss.isfinite():
                    raise ValueError(
                        f"the imitation of expander.start diverged in epoch {epoch + 1}; set a "
                        f"lower expander.start_lr than {lr:g}"
                    )

                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(expander.trainable, 1.0)
                optimizer.step()
                losses.append(float(loss.detach()))
                advance(len(rows))

    optimizer.zero_grad(set_to_none=True)  # or the first update would add to what is left
    return sum(losses) / len(losses)
