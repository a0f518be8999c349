"""TRL's DDPOTrainer on Burnish: a script for TRL 0.23.1 runs after changing its import line.

TRL removed the trainer in version 0.24.

    from burnish.compat.trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

The names, arguments and meanings are TRL's; what runs is `burnish.train`. `docs/from-trl.md` lists
every option and what becomes of it. (AlignPropTrainer is not here: it differentiates through the
reward, which no part of Burnish does.)
"""

from burnish.compat.trl.options import DDPOConfig
from burnish.compat.trl.pipeline import DefaultDDPOStableDiffusionPipeline
from burnish.compat.trl.trainer import DDPOTrainer

__all__ = ["DDPOConfig", "DDPOTrainer", "DefaultDDPOStableDiffusionPipeline"]
