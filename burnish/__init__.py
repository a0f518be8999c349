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
    from burnish.rewards import check_reward, score
    from burnish.training.assembly import Overrides
    from burnish.training.loop import train
    from burnish.types import Gaussian, Level, Loss, Prompt, Replay, Scores, Trajectory

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Gaussian",
    "Level",
    "Loss",
    "Overrides",
    "Policy",
    "Prompt",
    "Replay",
    "Sampler",
    "Scores",
    "Trajectory",
    "check_reward",
    "load_config",
    "score",
    "train",
]

_HOMES = {
    "Config": "config:Config",
    "load_config": "config:load",
    "Overrides": "training.assembly:Overrides",
    "Policy": "diffusion.policy:Policy",
    "Sampler": "diffusion.sampler:Sampler",
    "check_reward": "rewards:check_reward",
    "score": "rewards:score",
    "train": "training.loop:train",
    **{
        name: f"types:{name}"
        for name in ("Gaussian", "Level", "Loss", "Prompt", "Replay", "Scores", "Trajectory")
    },
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")

    module, attribute = _HOMES[name].split(":")
    value = getattr(import_module(f"burnish.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
