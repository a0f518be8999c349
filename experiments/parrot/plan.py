"""The plan: Parrot and its parts, sums of rewards, and rewards alone; and how each is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.running import Trial

SEEDS = (0, 1, 2)
RECIPE = "emoji-parrot"
TASK = "runs"
IMAGES = 64
ITERATIONS = 16
QUERIES = IMAGES * ITERATIONS
EACH = 2  # images of a prompt that are measured
REWARDS = ("aesthetic", "preference", "alignment", "sentiment")
# weights of the original prompt and of the expanded one; together those of training
DUAL = (3.25, 0.75)

PLAIN = ('sampler.identifiers=""', 'expander.model=""')
SUM = (*PLAIN, 'advantage={use="weighted"}')


def weights(values: Sequence[float]) -> tuple[str, ...]:
    """Return the settings that give the rewards these weights."""
    return tuple(f"rewards.{index}.weight={value}" for index, value in enumerate(values))


TRAINED: dict[str, tuple[str, ...]] = {
    **{
        f"only_{name}": (*SUM, *weights([float(name == other) for other in REWARDS]))
        for name in REWARDS
    },
    "ws1": (*SUM, *weights([0.7, 0.1, 0.1, 0.1])),
    "ws2": (*SUM, *weights([0.25] * 4)),
    "normalised": (*PLAIN, 'advantage={use="group"}', *weights([1.0] * 4)),
    "no_expander": ('expander.model=""',),
    "expander_only": ('model.train="none"', 'sampler.identifiers=""', "expander.expansions=8"),
    "parrot": (),
}


@dataclass(frozen=True)
class Arm:
    """One measurement: whose generator, whose expander, and which guidance."""

    generator: str = ""  # a name of TRAINED; "": untrained
    expander: str = ""  # a name of TRAINED, "before": untrained; "": none
    dual: bool = False  # guidance centred on the original prompt


ARMS: dict[str, Arm] = {
    "base": Arm(),
    **{
        name: Arm(name)
        for name in ("only_aesthetic", "only_preference", "only_alignment", "only_sentiment")
    },
    **{name: Arm(name) for name in ("ws1", "ws2", "normalised", "no_expander")},
    "expander_untrained": Arm(expander="before"),
    "expander_only": Arm(expander="expander_only"),
    "expander_only_dual": Arm(expander="expander_only", dual=True),
    "no_joint": Arm("no_expander", "expander_only", dual=True),
    "no_expansion": Arm("parrot"),  # trained with the expander, measured without
    "no_original": Arm("parrot", "parrot"),
    "parrot": Arm("parrot", "parrot", dual=True),
}


def jobs() -> list[Trial]:
    """Return all runs, seed by seed, Parrot's own first."""
    # the measurements are made after training, with the same noise for all arms: a run's own
    # evaluation only shows that it ended
    evaluation = ('evaluation.prompts={use="list",texts=["a cat"]}', "evaluation.unseen={}")
    common = (*evaluation, "run.sample_every=0", "run.checkpoint_every=2")
    return [
        Trial(TASK, name, seed, RECIPE, ITERATIONS, ITERATIONS, (*common, *changes))
        for seed in SEEDS
        for name, changes in reversed(TRAINED.items())
    ]
