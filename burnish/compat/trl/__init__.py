"""TRL's DDPOTrainer and AlignPropTrainer on Burnish: a script runs after changing its import line.

TRL 0.23.1 was the last version with them.

    from burnish.compat.trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
    from burnish.compat.trl import AlignPropConfig, AlignPropTrainer, aesthetic_scorer

The names, arguments and meanings are TRL's; what runs is `burnish.train`. `docs/from-trl.md` lists
every option and what becomes of it.
"""

from burnish.compat.trl.alignprop import AlignPropConfig, AlignPropTrainer, aesthetic_scorer
from burnish.compat.trl.options import DDPOConfig
from burnish.compat.trl.pipeline import DefaultDDPOStableDiffusionPipeline
from burnish.compat.trl.trainer import DDPOTrainer

__all__ = [
    "AlignPropConfig",
    "AlignPropTrainer",
    "DDPOConfig",
    "DDPOTrainer",
    "DefaultDDPOStableDiffusionPipeline",
    "aesthetic_scorer",
]
