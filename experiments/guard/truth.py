"""The ground truth of this experiment as a reward, so that evaluations measure it.

Nothing is ever trained on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from burnish.types import Prompt
from burnish.zoo import judge
from burnish.zoo.taste import taste as stated_taste


def taste(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Return the stated taste, 1 to 10, whatever the image shows."""
    return stated_taste(images)


class Truth:
    """The stated taste of an image that shows what its prompt names; 1, the worst, of any other.

    The judge says what an image shows.
    """

    def __init__(self) -> None:
        self.judge = judge.load()

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return stated_taste(images).where(self.judge(images, prompts), 1.0)
