"""Checks that end a run from whose rewards nothing can be learned, instead of letting it go on.

If the rewards are the same for every image, they end it in the first iteration; one of several that
is so is warned of. Where no image has an advantage, because all images of a prompt have the same
rewards, the first iterations decide: a coarse reward may need a few until an image succeeds. Later
that may mean that all images do.
"""

from __future__ import annotations

import warnings

from burnish.rl.advantages import weights_per_image
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.credit import FIRST_ITERATIONS, assign_credit, first_iterations
from burnish.training.job import Job
from burnish.types import Scores
from burnish.world import World


class ScoreChecks:
    """Ends a run from whose rewards nothing can be learned.

    Args:
        job: the run.
        done: iterations that an earlier start has finished.

    Raises:
        ValueError: no reward has a weight.
    """

    def __init__(self, job: Job, done: int = 0) -> None:
        self.parts = job.parts
        self.limit = first_iterations(job.config.iterations)
        self.iterations = job.config.iterations
        self.patience = job.config.scoring.patience
        # a curriculum may begin where every image succeeds, so equal rewards are allowed then
        self.expects_spread = not job.parts.curriculum.varies
        self.empty_iterations = 0  # in a row: without one image that has all its rewards

        if not job.parts.weights.any():
            raise ValueError(
                "every reward has weight 0, so there is nothing to learn; set rewards.0.weight"
            )

        records = job.run.records() if 0 < done < FIRST_ITERATIONS else []
        shares = [record["zero_advantage"] for record in records if record["iteration"] <= done]
        self.learned = done >= FIRST_ITERATIONS or any(share < 1 for share in shares)
        self.idle_iterations = len(shares)  # from the start: without an advantage
        self.tied_iterations = 0  # from the start: with the same rewards for all images of a prompt

    def check(self, scores: Scores, iteration: int) -> None:
        """Check the rewards of an iteration's images, those of all processes.

        Raises:
            ValueError: a reward is the same for all images of the first iteration.
            RuntimeError: too many iterations in a row had no image with all its rewards.
        """
        self.empty_iterations = 0 if scores.valid.any() else self.empty_iterations + 1
        if iteration == 1 and self.expects_spread:
            self.check_spread(scores)

        if self.empty_iterations >= self.patience:
            raise RuntimeError(
                f"no image of the last {self.empty_iterations} iterations got its rewards "
                f"({'; '.join(scores.problems)}); fix the reward, then go on with --resume"
            )

    def check_spread(self, scores: Scores) -> None:
        """Refuse rewards that are the same for every image, and warn of one that is.

        In a later iteration it may mean that all images succeed.
        """
        scored = scores.parts[scores.valid]
        if len(scored) > 1 and bool((scored == scored[0]).all()):
            raise ValueError(
                f"reward '{', '.join(scores.names)}' gave {scored[0].tolist()} to all "
                f"{len(scored)} images of the first iteration, so there is nothing to learn from; "
                "try it alone with burnish.check_reward"
            )

        weights = self.parts.weights.tolist()
        for name, weight, values in zip(scores.names, weights, scored.unbind(1), strict=True):
            if weight and len(values) > 1 and bool((values == values[0]).all()):
                warnings.warn(
                    f"reward '{name}' gave {float(values[0]):g} to all {len(values)} images of the "
                    "first iteration: if that stays so, nothing is learned from it; try it alone "
                    "with burnish.check_reward",
                    stacklevel=3,
                )

    def assign_credit(self, batch: RolloutBatch, scores: Scores, world: World) -> Credit:
        """Return the credit of this process's images, if there is anything to learn from it.

        Args:
            batch: this process's images.
            scores: of all processes' images.
            world: the processes.

        Raises:
            ValueError: from the start no image was better than another one.
        """
        credit = assign_credit(self.parts, batch, scores, world)
        if credit.empty or self.learned or not self.expects_spread:
            return credit

        ties = self.has_only_ties(scores, batch, world)
        compares = self.parts.advantage.imitates and self.parts.advantage.compares_images
        idle = credit.metrics["zero_advantage"] == 1 or (ties and compares)
        self.learned = not idle and not ties
        self.idle_iterations += idle
        self.tied_iterations += ties

        if self.idle_iterations >= self.limit:
            raise ValueError(self.nothing_to_learn(scores, ties))
        if self.tied_iterations == self.limit:
            warnings.warn(
                f"{self.tie(scores)}: if it depends on the prompt alone, there is nothing to learn "
                "from",
                stacklevel=2,
            )
        if idle and self.iterations == 1:  # which may be chance, so it is no error
            warnings.warn(self.nothing_to_learn(scores, ties), stacklevel=2)
        return credit

    def has_only_ties(self, scores: Scores, batch: RolloutBatch, world: World) -> bool:
        """Return whether all images of each prompt have the same rewards, of several images.

        Rewards of weight 0 do not count: nothing is learned from them.
        """
        group = world.gather(batch.group)[scores.valid]
        counted = weights_per_image(self.parts.weights, scores) != 0
        rewards = (scores.parts * counted.to(scores.parts))[scores.valid]
        _, first, counts = group.unique(return_inverse=True, return_counts=True)
        sums = rewards.new_zeros(len(counts), rewards.shape[1]).index_add(0, first, rewards)
        equal = (rewards - (sums / counts[:, None])[first]).abs() <= 1e-9 * rewards.abs()
        return bool(equal.all()) and bool((counts > 1).any())

    def nothing_to_learn(self, scores: Scores, ties: bool) -> str:
        """Return the sentence about iterations without an advantage."""
        if lacking := int((~scores.valid).sum()):
            return (
                f"no image of {self.first} has an advantage, so there is nothing to learn from: "
                f"{lacking} of {len(scores.valid)} images lack a reward "
                f"({'; '.join(scores.problems)}), and the others of a prompt are alike or alone; "
                "fix the reward, or raise batch.images_per_prompt"
            )
        if ties:
            return (
                f"{self.tie(scores)}, so there is nothing to learn from; it may depend on the "
                "prompt alone: try it with burnish.check_reward"
            )
        return (
            f"no image of {self.first} has an advantage, so there is nothing to learn from; look "
            "at advantage.use, or raise batch.images_per_prompt"
        )

    @property
    def first(self) -> str:
        """The first iterations, in words."""
        several = f"the first {self.limit} iterations"
        return "the only iteration" if self.iterations == 1 else several

    def tie(self, scores: Scores) -> str:
        """Return half a sentence about equal rewards."""
        weights = self.parts.weights.tolist()
        names = [name for name, weight in zip(scores.names, weights, strict=True) if weight]
        return (
            f"reward '{', '.join(names)}' gave the same to all images of each prompt in "
            f"{self.first}"
        )
