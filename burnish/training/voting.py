"""Voting: after an iteration's images are sampled, somebody is asked about pairs of them.

    images -> the most informative pairs -> questions -> votes -> [head] -> the reward "votes"

Questions follow from the images, the seed, and the questions and votes that the iteration before
was learned from with; the number of votes that count is noted before they are used. So a run that
was killed asks the same questions, and learns from the same votes, as long as these stand.

With several processes the main one asks about the images of all of them, and tells the others what
the votes say; it alone reads and writes the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from burnish import votes as files
from burnish.images import eight_bit, image_grid, open_image
from burnish.rewards import bradley_terry as bt
from burnish.rewards.bradley_terry import Comparisons, Head
from burnish.rewards.votes import Voter, Votes, comparisons_of, images_of, outcomes, scored
from burnish.runs import Run
from burnish.seeds import generator
from burnish.stages import stage
from burnish.training.image_choice import drawn_together
from burnish.training.job import Job
from burnish.types import Prompt, Scores
from burnish.votes import Known, Question, Vote

Pair = tuple[int, int]
"""The rows of two images of an iteration."""

Shown = tuple[str, frozenset[str]]
"""A prompt, and the names of two images."""

PAUSE = 0.1
"""Seconds between two looks at the votes."""

LEAST_HELD_OUT = 4
"""Comparisons from which on the head's accuracy is measured."""


def reward_of(job: Job) -> tuple[int, Votes] | None:
    """Return the column and the settings of the reward "votes" of a run; None without one."""
    for column, reward in enumerate(job.parts.rewards.values()):
        if isinstance(reward, Votes):
            return column, reward
    return None


def metrics_of(job: Job) -> dict[str, Any]:
    """Return what the record says about the votes; {} in a run without any."""
    found = reward_of(job)
    if found is None:
        return {}
    return {"votes": dict(found[1].metrics), "seconds_waiting": found[1].seconds_waiting}


def with_votes(
    job: Job,
    iteration: int,
    images: Tensor,
    prompts: Sequence[Prompt],
    group: Tensor,
    scores: Scores,
) -> Scores:
    """Return the scores of an iteration with those that votes give; all of them without votes.

    Args:
        job: the run.
        iteration: from 1 on.
        images: (B, 3, H, W) of this process.
        prompts: of these images.
        group: (B,) of these images.
        scores: of these images.
    """
    found = reward_of(job)
    if found is None:
        return scores

    column, reward = found
    voting = Round(job.run, reward, iteration, job.config.seed)
    everything = candidates_of(job, reward, images, prompts, group)
    listed = voting.ask(everything) if job.world.main else []
    started = time.perf_counter()
    wait_for_votes(job, voting, listed)
    reward.seconds_waiting = time.perf_counter() - started

    shared: list[Tensor] = []
    if job.world.main:
        known = files.close_round(job.run, iteration, listed)
        shared = [voting.values(everything, known.votes, listed)]
        reward.metrics = voting.metrics(known)
    (all_values,) = job.world.gather_list(shared)
    values = all_values[job.world.rank * len(images) :][: len(images)]

    parts = scores.parts.clone()
    parts[:, column] = values.to(parts)
    missing = int((~values.isfinite()).sum())
    problem = f"{scores.names[column]}: votes say nothing of {missing} images"
    problems = (*scores.problems, problem) if missing else scores.problems
    return replace(scores, parts=parts, problems=problems)


def wait_for_votes(job: Job, voting: Round, listed: Sequence[Question]) -> None:
    """Wait until the questions of an iteration are answered, where their answers are needed."""
    if job.world.main and voting.reward.voter is not None:
        voting.answer(listed, voting.reward.voter)

    detail = (
        f"{len(listed)} questions of iteration {voting.iteration} want answers; "
        f"{job.run.questions} has them"
    )
    with stage("votes", detail, routine=voting.iteration > 1):
        while job.world.any(job.world.main and voting.lacks(listed)):
            job.poll()
            time.sleep(PAUSE)


@dataclass(frozen=True)
class Candidates:
    """The images of an iteration that questions may be about, those of all processes."""

    images: Tensor  # (B, 3, H, W) uint8, as they are shown
    prompts: Sequence[str]  # B, as they were before expansion
    group: Tensor  # (B,) same number = images of one drawn prompt, of which questions are about two
    features: Tensor | None = None  # (B, D); None: the reward has no model
    pngs: dict[int, bytes] = field(default_factory=dict, repr=False)  # by row, those made so far

    def png(self, row: int) -> bytes:
        """Return an image as the bytes of a PNG."""
        if row not in self.pngs:
            self.pngs[row] = as_png(self.images[row])
        return self.pngs[row]

    def shown(self, pair: Pair) -> Shown:
        """Return what a question about two rows shows, on whichever sides."""
        names = frozenset(files.image_name(self.png(row)) for row in pair)
        return self.prompts[pair[0]], names


def candidates_of(
    job: Job, reward: Votes, images: Tensor, prompts: Sequence[Prompt], group: Tensor
) -> Candidates:
    """Return the images of all processes, by rank.

    Args:
        job: the run.
        reward: of the votes.
        images: (b, 3, H, W) of this process.
        prompts: of these images.
        group: (b,) of these images.
    """
    world = job.world
    pixels = torch.from_numpy(eight_bit(images)).permute(0, 3, 1, 2).contiguous()
    return Candidates(
        world.gather(pixels),
        world.gather_list([prompt.original for prompt in prompts]),
        drawn_together(world.gather(group), job.config.batch.images_per_prompt),
        None if reward.clip is None else world.gather(reward.features(images)),
    )


@dataclass
class Round:
    """The questions of one iteration, and what the votes say of its images."""

    run: Run
    reward: Votes
    iteration: int
    seed: int
    about_head: dict[str, float] = field(default_factory=dict)

    def ask(self, candidates: Candidates) -> list[Question]:
        """Write the questions of the iteration, and return them."""
        stream = generator(self.seed, self.iteration, "questions")
        pairs = self.choose(candidates, stream)
        again = self.repeated(stream)
        listed: list[Question] = []

        for first, second in pairs[: self.reward.per_iteration - len(again)]:
            rows = (first, second) if coin(stream) else (second, first)
            left, right = (files.add_image(self.run, candidates.png(row)) for row in rows)
            prompt = candidates.prompts[first]
            listed.append(files.make_question(self.iteration, len(listed), prompt, left, right))

        for earlier in again:
            sides = (earlier.left, earlier.right)
            left, right = sides if coin(stream) else sides[::-1]
            named = (earlier.prompt, left, right, earlier.id)
            listed.append(files.make_question(self.iteration, len(listed), *named))

        files.ask(self.run, listed)
        return listed

    def choose(self, candidates: Candidates, stream: torch.Generator) -> list[Pair]:
        """Return pairs of different images of one prompt, the most informative ones first.

        Without features they are drawn. None shows what an earlier question or another pair shows.
        """
        pairs = pairs_within(candidates.images, candidates.group)
        count = self.reward.per_iteration
        best: Callable[[Sequence[Pair]], list[Pair]]
        if candidates.features is None:
            order = torch.randperm(len(pairs), generator=stream).tolist()
            pairs = [pairs[number] for number in order]
            best = partial(disjoint_first, count=count)
        else:
            known = self.comparisons(files.known_before(self.run, self.iteration).votes)
            head = bt.blank(candidates.features) if known is None else bt.fit(known)
            best = partial(bt.most_informative, head, candidates.features, count=count)

        before = files.questions_before(self.run, self.iteration)
        earlier = {(one.prompt, frozenset((one.left, one.right))) for one in before}
        while True:
            chosen = best(pairs)
            again = shown_again([candidates.shown(pair) for pair in chosen], earlier)
            if not again:
                return chosen
            left_out = {chosen[number] for number in again}
            pairs = [pair for pair in pairs if pair not in left_out]

    def repeated(self, stream: torch.Generator) -> list[Question]:
        """Return earlier questions that are asked again, of which one image was preferred."""
        before = files.questions_before(self.run, self.iteration)
        repeated = {question.repeats for question in before}
        given = files.votes(self.run, files.known_before(self.run, self.iteration).votes)
        decided = {vote.question for vote in given if vote.answer in ("left", "right")}
        known = [
            question
            for question in before
            if question.id in decided and question.id not in repeated and not question.repeats
        ]

        per_iteration = self.reward.per_iteration
        due, done = (
            int(self.reward.repeats * per_iteration * number)
            for number in (self.iteration, self.iteration - 1)
        )
        order = torch.randperm(len(known), generator=stream).tolist()
        return [known[number] for number in order[: due - done]]

    def answer(self, listed: Sequence[Question], voter: Voter) -> None:
        """Let a program answer the questions that have no vote yet."""
        answered = {vote.question for vote in files.votes(self.run)}
        for question in listed:
            if question.id not in answered:
                left, right = (
                    open_image(files.image_path(self.run, name))
                    for name in (question.left, question.right)
                )
                files.answer(self.run, question.id, voter(question, left, right), 0.0)

    def lacks(self, listed: Sequence[Question]) -> bool:
        """Return whether votes are missing without which the iteration is not learned from."""
        given = files.votes(self.run)
        decided = any(vote.answer != "skip" for vote in given)
        if not self.reward.wait and decided and self.iteration > 1:
            return False
        return bool({question.id for question in listed} - {vote.question for vote in given})

    def comparisons(self, lines: int) -> Comparisons | None:
        """Return the votes in the first lines as comparisons; None if none says anything."""
        by_id = {question.id: question for question in files.questions(self.run)}
        given = files.votes(self.run, lines)
        names = {name for vote in given for name in images_of(by_id, vote)}
        features = {name: self.features_of(name) for name in sorted(names)}
        return comparisons_of(by_id, given, features)

    def features_of(self, name: str) -> Tensor:
        """Return the features (D,) of an image that was asked about, as it was shown.

        They are computed of each image alone, so that they do not depend on when that is done.
        """
        known = self.reward.known_features
        if name not in known:
            image = open_image(files.image_path(self.run, name))
            known[name] = self.reward.features(image[None])[0]
        return known[name]

    def values(self, candidates: Candidates, lines: int, listed: Sequence[Question]) -> Tensor:
        """Return the reward of each image, (B,) float64; NaN of which votes say nothing.

        Args:
            candidates: B images; without features only those that were asked about have a reward.
            lines: of votes.jsonl that count.
            listed: the questions of this iteration.
        """
        nothing = torch.full((len(candidates.images),), torch.nan, dtype=torch.float64)
        if candidates.features is not None:
            known = self.comparisons(lines)
            if known is None:
                return nothing
            return scored(self.reward, self.fitted(known), candidates.features)

        found = outcomes(listed, files.votes(self.run, lines))
        if not found:
            return nothing
        rows = range(len(candidates.images))
        names = [files.image_name(candidates.png(row)) for row in rows]
        return torch.tensor([found.get(name, torch.nan) for name in names], dtype=torch.float64)

    def fitted(self, known: Comparisons) -> Head:
        """Return the head of comparisons, and note how well it foretells them."""
        scale = bt.best_scale(known)
        self.about_head = {"scale": scale}
        if len(known.unit.unique()) >= LEAST_HELD_OUT:
            found = bt.held_out(known, scale)
            self.about_head |= {"accuracy": found.accuracy, "nats": found.nats}
        return bt.fit(known, scale)

    def metrics(self, known: Known) -> dict[str, float]:
        """Return what the record says about votes: how many, how consistent, how foreseeable."""
        given: list[Vote] = files.votes(self.run, known.votes)
        everything = files.questions(self.run, known.questions)
        listed = [question for question in everything if question.iteration <= self.iteration]
        consistent, repeated = files.consistency(listed, given)
        seconds = torch.tensor([vote.seconds for vote in given], dtype=torch.float64)
        counts = {"asked": len(listed), "given": len(given)}
        counts |= {"repeated": repeated, "consistent": consistent}
        times = {"median_seconds": float(seconds.median())} if given else {}
        return {**counts, **times, **self.about_head}


def pairs_within(images: Tensor, group: Tensor) -> list[Pair]:
    """Return the pairs of rows of different images (B, 3, H, W) of one group (B,).

    The first of several equal images stands for them.
    """
    found: list[Pair] = []
    for number in group.unique():
        rows: list[int] = []
        for row in (group == number).nonzero()[:, 0].tolist():
            if not any(images[row].equal(images[other]) for other in rows):
                rows.append(row)
        found += combinations(rows, 2)
    return found


def shown_again(shown: Sequence[Shown], earlier: Set[Shown]) -> list[int]:
    """Return the numbers of what was shown earlier, or comes before in the sequence."""
    seen = set(earlier)
    found = []
    for number, one in enumerate(shown):
        if one in seen:
            found.append(number)
        seen.add(one)
    return found


def disjoint_first(candidates: Sequence[Pair], count: int) -> list[Pair]:
    """Return the first pairs of which no two have an image in common, and then further ones."""
    used: set[int] = set()
    disjoint = []
    for pair in candidates:
        if not used & {*pair}:
            disjoint.append(pair)
            used |= {*pair}

    return [*disjoint, *(pair for pair in candidates if pair not in disjoint)][:count]


def coin(stream: torch.Generator) -> bool:
    """Return True or False, each with the same probability."""
    return bool(torch.rand((), generator=stream) < 0.5)


def as_png(image: Tensor) -> bytes:
    """Return an image (3, H, W) uint8 as the bytes of a PNG."""
    return image_grid(image[None] / 255, 1)[0]
