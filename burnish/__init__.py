"""Burnish: fine-tune image generators with reinforcement learning, on your own definition of good.

    import burnish

    config = burnish.load_config("demo", ["iterations=20"])
    burnish.train(config, "runs/mine")

The names below are imported when they are first used, so `import burnish` and `burnish --help` take
no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.config import Config
    from burnish.config import load as load_config
    from burnish.diffusion.policy import Policy
    from burnish.diffusion.sampler import Sampler
    from burnish.objective_check import check_objective
    from burnish.report.frame import frame
    from burnish.rewards import check_reward, score
    from burnish.runs import Run
    from burnish.training.assembly import Overrides
    from burnish.training.batch import Credit, RolloutBatch
    from burnish.training.learners import Learner
    from burnish.training.loop import train
    from burnish.types import (
        Advantage,
        Curriculum,
        Gaussian,
        Guidance,
        Kernel,
        Level,
        Loss,
        Objective,
        Prompt,
        Replay,
        Scores,
        Trajectory,
        differentiable,
    )

__version__ = "0.1.0"

__all__ = [
    "Advantage",
    "Config",
    "Credit",
    "Curriculum",
    "Gaussian",
    "Guidance",
    "Kernel",
    "Learner",
    "Level",
    "Loss",
    "Objective",
    "Overrides",
    "Policy",
    "Prompt",
    "Replay",
    "RolloutBatch",
    "Run",
    "Sampler",
    "Scores",
    "Trajectory",
    "check_objective",
    "check_reward",
    "differentiable",
    "frame",
    "load_config",
    "score",
    "train",
]

_MODULES = {
    "Config": "config",
    "Credit": "training.batch",
    "Learner": "training.learners",
    "Overrides": "training.assembly",
    "Policy": "diffusion.policy",
    "RolloutBatch": "training.batch",
    "Run": "runs",
    "Sampler": "diffusion.sampler",
    "check_objective": "objective_check",
    "check_reward": "rewards",
    "frame": "report.frame",
    "load_config": "config",
    "score": "rewards",
    "train": "training.loop",
}
"""The modules that define the public names which are not in `types`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")

    module = import_module(f"burnish.{_MODULES.get(name, 'types')}")
    value = getattr(module, "load" if name == "load_config" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
