"""The ground truth of this experiment as a reward, so that evaluations measure it; nothing is ever
trained on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from burnish.types import Prompt
from burnish.zoo import judge
from burnish.zoo.taste import taste as of


def taste(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """The stated taste, 1 to 10, whatever the picture shows."""
    return of(images)


class truth:
    """The stated taste of a picture that shows what was asked, by the judge; 1, the worst, for any
    other.
    """

    def __init__(self) -> None:
        self.judge = judge.load()

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return of(images).where(self.judge(images, prompts), 1.0)
