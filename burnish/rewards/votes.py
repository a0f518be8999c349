"""People's votes as a reward: while a model trains, somebody says which of two images is better.

With a `model`, a preference head on that CLIP's features (`bradley_terry`) is fitted anew to all
votes in each iteration, and its score is every image's reward. Without one only the images that
were asked about have a reward, and only from this iteration's votes: 1 if preferred, -1 if not or
if both were bad, the mean of these in several questions.

The questions and the answers are files of the run (`burnish.votes`); `training.voting` asks them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from burnish.annotations import Bounds, Count, DeviceName, ModelPath
from burnish.rewards.bradley_terry import Comparisons, Head
from burnish.rewards.clip import Clip, Features
from burnish.rewards.training_only import TrainingReward
from burnish.seeds import generator
from burnish.types import Prompt
from burnish.votes import Choice, Question, Vote

Voter = Callable[[Question, Tensor, Tensor], Choice]
"""(question, left image (3, H, W), right image) -> the answer."""


@dataclass
class Votes(TrainingReward):
    """The settings of a run's votes, the model whose features are read, and what was measured.

    Attributes:
        clip: the model; None: only images that were asked about have a reward.
        per_iteration: questions.
        repeats: share of the questions that show an earlier pair again.
        wait: for all answers of an iteration before its images are learned from.
        most_unknown: an image of which more is unknown gets no reward, see `rewards.taste`.
        device: of the model; "auto" takes the images'.
        read: what of the model, see `Clip.features`.
        voter: answers at once, in place of a person.
        metrics: about the last round of questions, for the record.
        seconds_waiting: in which its answers were waited for.
        known_features: (D,) of each image that was asked about, by its name.
    """

    clip: Clip | None = None
    per_iteration: int = 8
    repeats: float = 0.125
    wait: bool = True
    most_unknown: float = 1.0
    device: str = "auto"
    read: Features = "embedding"
    voter: Voter | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds_waiting: float = 0.0
    known_features: dict[str, Tensor] = field(default_factory=dict, repr=False)
    of_iterations = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return a 0 for each image, (B,): the place of what whole iterations are given."""
        return torch.zeros(len(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, D) float64 on the CPU of images (B, 3, H, W)."""
        assert self.clip is not None  # asked for only with a model
        self.clip.move_to(self.device, images)
        return self.clip.features(images, self.read).cpu().double()


def votes(
    model: ModelPath = "",
    per_iteration: Count = 8,
    repeats: Annotated[float, Bounds(0, 1, open_most=True)] = 0.125,
    wait: bool = True,
    most_unknown: Annotated[float, Bounds(0, 1, open_least=True)] = 1.0,
    device: DeviceName = "auto",
    features: Features = "embedding",
) -> Votes:
    """Reward what somebody prefers who is asked about pairs of images while the model trains.

    Evaluations leave it out: add another reward with weight = 0.0 for these. `burnish taste fit
    RUN` makes a reward of all votes afterwards.

    Args:
        model: a CLIP model on whose features a head learns from the votes to score all images; ""
            for none: then only images that were asked about have a reward, and the others need
            scoring.missing = "mask".
        per_iteration: pairs that are asked about in each iteration.
        repeats: share of them that show an earlier pair again, which measures how consistent the
            answers are.
        wait: learn from an iteration only when all its questions are answered; false: go on with
            what the head knows, once the first iteration's are.
        most_unknown: an image of which a larger part of the score is unknown, from 0 to 1, gets
            none.
        device: of the model; `auto` takes the device of the images.
        features: what the head reads of an image: the model's "embedding", which tells what it
            shows, or its "patches", which tell how it looks.

    Raises:
        ValueError: the model cannot be found or is not a CLIP model.
    """
    clip = Clip.load(model) if model else None
    return Votes(clip, per_iteration, repeats, wait, most_unknown, device, features)


@dataclass(frozen=True)
class SimulatedVoter:
    """A voter with a stated taste, who is wrong now and then; the same question, the same answer.

    Attributes:
        taste: (images (B, 3, H, W)) -> (B,), such as `burnish.zoo.taste.taste`.
        wrong: share of the answers that are turned round.
        seed: of these.
    """

    taste: Callable[[Tensor], Tensor]
    wrong: float = 0.1
    seed: int = 0

    def __call__(self, question: Question, left: Tensor, right: Tensor) -> Choice:
        """Return the side of the image that it likes more."""
        ratings = self.taste(torch.stack([left, right]))
        draw = torch.rand((), generator=generator(self.seed, "voter", question.id))
        prefers_left = bool(ratings[0] > ratings[1]) != bool(draw < self.wrong)
        return "left" if prefers_left else "right"


def comparisons_of(
    listed: Mapping[str, Question], given: Sequence[Vote], features: Mapping[str, Tensor]
) -> Comparisons | None:
    """Return votes as comparisons of features; None if there is none to learn from.

    Where both images were bad, the mean of all images is better than each.

    Args:
        listed: the questions by id.
        given: the votes; those on other questions are left out.
        features: (D,) of each image by its name.
    """
    shown = {name for vote in given for name in images_of(listed, vote)}
    if not shown:
        return None

    mean = torch.stack([features[name] for name in sorted(shown)]).mean(0)
    units: dict[frozenset[str], int] = {}
    rows: list[tuple[Tensor, Tensor, int]] = []

    for vote in given:
        names = images_of(listed, vote)
        if not names:
            continue
        left, right = (features[name] for name in names)
        unit = units.setdefault(frozenset(names), len(units))
        if vote.answer == "both_bad":
            rows += [(mean, left, unit), (mean, right, unit)]
        else:
            rows.append((left, right, unit) if vote.answer == "left" else (right, left, unit))

    better, worse, numbers = zip(*rows, strict=True)
    return Comparisons(torch.stack(better), torch.stack(worse), torch.tensor(numbers))


def images_of(listed: Mapping[str, Question], vote: Vote) -> tuple[str, ...]:
    """Return the names of the two images of a vote; () if it says nothing about them."""
    question = listed.get(vote.question)
    if question is None or vote.answer == "skip":
        return ()
    return question.left, question.right


def outcomes(listed: Sequence[Question], given: Sequence[Vote]) -> dict[str, float]:
    """Return the mean outcome of each image that questions were about and votes say something of.

    Args:
        listed: questions of one iteration.
        given: votes.
    """
    by_id = {question.id: question for question in listed}
    found: dict[str, list[float]] = {}

    for vote in given:
        question = by_id.get(vote.question)
        if question is None or vote.answer == "skip":
            continue
        for side, name in (("left", question.left), ("right", question.right)):
            found.setdefault(name, []).append(1.0 if vote.answer == side else -1.0)

    return {name: sum(values) / len(values) for name, values in found.items()}


def scored(votes: Votes, head: Head, features: Tensor) -> Tensor:
    """Return the head's score of each image, (B,) float64; NaN of which too much is unknown."""
    score, unknown = head.score(features)
    return torch.where(unknown > votes.most_unknown, torch.nan, score)
