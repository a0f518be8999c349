"""The voter of this experiment in the place of a person: votes that answer themselves."""

from __future__ import annotations

from burnish.rewards.clip import Features
from burnish.rewards.votes import SimulatedVoter, Votes, votes
from burnish.zoo.taste import taste


def voted(
    seed: int = 0,
    wrong: float = 0.1,
    model: str = "",
    features: Features = "embedding",
    per_iteration: int = 10,
) -> Votes:
    """Reward as `votes` does, with a voter who has the stated taste and is wrong now and then.

    No pair is asked about twice: a repeated question measures the voter and teaches nothing.

    Args:
        seed: of the wrong answers.
        wrong: share of the answers that are turned round.
        model: a CLIP model whose features a preference head reads; "" for none.
        features: what of the model, see `burnish.rewards.votes`.
        per_iteration: questions.
    """
    reward = votes(model, per_iteration, repeats=0.0, features=features)
    reward.voter = SimulatedVoter(taste, wrong, seed)
    return reward
