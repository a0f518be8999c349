"""TRL's DDPOTrainer, which left TRL with version 0.24: a script for 0.23.1 runs after changing its
import line.

    from burnish.compat.trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

The names, arguments and meanings are TRL's; what runs is `burnish.train`. `docs/from-trl.md` lists
every option and what becomes of it. (AlignPropTrainer is not here: it differentiates through the
reward, which no part of Burnish does.)
"""

from burnish.compat.trl.options import DDPOConfig
from burnish.compat.trl.pipeline import DefaultDDPOStableDiffusionPipeline
from burnish.compat.trl.trainer import DDPOTrainer

__all__ = ["DDPOConfig", "DDPOTrainer", "DefaultDDPOStableDiffusionPipeline"]
