"""A run's own sample grid, drawn after training with its adapter at another strength."""

from __future__ import annotations

from pathlib import Path

from burnish import config as configuration
from burnish.files import write
from burnish.images import image_grid
from burnish.prompts import identifiers
from burnish.run_control import strength_grid
from burnish.runs import Run
from burnish.tools.gallery import open_expander, open_source, preferred
from burnish.training.assembly import load_prompts
from burnish.training.export import exported_iteration
from burnish.training.samples import fixed_images, spread_prompts
from burnish.trust import Trust


def redraw(folder: Path, strength: float, trust: Trust = False) -> Path:
    """Draw a run's sample grid as its training does when it is asked for a strength.

    Args:
        folder: the run directory.
        strength: of the adapter, from 0 (as before training) to 1 (as trained), or more.
        trust: whether to import the code that the run names for its sampler and prompts.

    Returns:
        The path of the grid, in RUN/samples.

    Raises:
        FileNotFoundError: there is no run, or it has no adapter yet.
        ValueError: the run has no prompts of its own, or its weights have no strength.
    """
    run = Run.open(folder)
    config = configuration.load(run.config, purpose="redraw", trust=trust)
    iteration = exported_iteration(run)
    prompts = spread_prompts(load_prompts(config.prompts, "prompts"), config.run.sample_prompts)
    if iteration is None or not prompts:
        raise ValueError(
            f"{run.folder} has no prompts in its configuration to draw; give some by --prompt"
        )

    source = str(run.folder)
    policy, sampler = open_source(source, strength=strength, trust=trust)
    expander = open_expander(source, policy)
    drawn = identifiers.with_template(prompts, preferred(source))
    images = fixed_images(config, policy, sampler, expander, drawn)

    path = strength_grid(run, iteration, strength)
    write(path, image_grid(images)[0])
    return path
