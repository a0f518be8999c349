"""Pictures on demand: a run or a model opened for sampling, drawn from seeded noise, saved as a
grid or one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from burnish import config as configuration
from burnish.catalog import nearest
from burnish.config import reward_names
from burnish.diffusion.guidance import CFG, DualGuidance, EmbeddedDualGuidance, EmbeddedGuidance
from burnish.diffusion.kernels import DDIM, LCM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander
from burnish.runs import Run
from burnish.seeds import generator
from burnish.training.assembly import load_expander, load_policy, load_sampler
from burnish.types import Prompt

CHUNK = 16  # images sampled at once


def open_source(
    source: str,
    *,
    steps: int = 0,
    guidance: float = -1.0,
    before: bool = False,
    strength: float = 1.0,
    controlnet: str = "",
) -> tuple[Policy, Sampler]:
    """A policy and a sampler from a run directory (as it was trained) or from any model id.

    Args:
        source: a run directory, `zoo:NAME`, a model folder or a hub id.
        steps: network calls an image; 0 takes the run's, or 50, or 4 of a consistency model.
        guidance: its weight, if the model is guided; negative takes the run's, or 5 (1.5 of an
            LCM-LoRA).
        before: a run's model before it was trained.
        strength: of a run's adapter, from 0 (as before training) to 1 (as trained); beyond 1 it is
            exaggerated.
        controlnet: of a model that is no run: `zoo:NAME`, a folder or a hub id.
    """
    run = Run(Path(source))

    if run.exists():
        config = configuration.load(run.config)
        if not before and not run.adapter.is_dir():
            raise FileNotFoundError(
                f"{run.adapter} is missing: train {source} first, or draw with --before"
            )

        policy = load_policy(
            config, adapter="" if before or config.model.train == "none" else str(run.adapter)
        )

        if strength != 1:
            policy.set_lora_scale(strength)

        sampler = load_sampler(config)
        if guidance >= 0:
            kind = EmbeddedGuidance if policy.takes_weight else CFG
            sampler = replace(sampler, guidance=kind(guidance))

        return policy, replace(sampler, steps=steps or sampler.steps)

    if strength != 1:
        raise ValueError(
            f"--strength is the strength of what a run has learned, and {source} is no run"
        )

    policy = Policy.load(source, controlnet=controlnet, train="none")

    if policy.takes_weight:
        asked: Callable[..., Tensor] = EmbeddedGuidance(5.0 if guidance < 0 else guidance)
    # a consistency model without that input has learned guidance already and bears little on top
    else:
        usual = 1.5 if policy.schedule.consistency else 5.0
        asked = CFG(usual if guidance < 0 else guidance)

    if policy.schedule.consistency:
        return policy, Sampler(LCM(), steps or 4, asked)

    return policy, Sampler(DDIM(), steps or 50, asked)


def centred(guidance: Callable[..., Tensor], share: float) -> Callable[..., Tensor]:
    """The same guidance with a `share` of its weight, from 0 to 1, on the prompt as it was before
    it was expanded.

    Raises:
        ValueError: it is neither `cfg` nor `embedded`.
    """
    if isinstance(guidance, CFG):
        return DualGuidance(
            share * guidance.weight, (1 - share) * guidance.weight, guidance.negative
        )
    if isinstance(guidance, EmbeddedGuidance):
        return EmbeddedDualGuidance(share * guidance.weight, (1 - share) * guidance.weight)

    raise ValueError(
        "only guidance 'cfg' or 'embedded' has a weight to share with the original prompt (--original)"
    )


def preferred(source: str, names: str = "", before: bool = False) -> str:
    """What to put around a text, {}, so that a run with reward identifiers pleases the rewards of
    these `names`.

    Args:
        source: a run directory, or anything else that `open_source` opens, which has no
            identifiers.
        names: separated by commas; "" asks for all rewards of the run.
        before: the run's model before it was trained, to which identifiers mean nothing.

    Returns:
        The text and its identifiers; "{}" if there are none.

    Raises:
        ValueError: there are names, but no identifiers, or no such reward.
    """
    run = Run(Path(source))
    config = configuration.load(run.config) if run.exists() else None

    if config is None or not config.sampler.identifiers or before:
        if names:
            raise ValueError(
                f"--prefer wants a run that was trained with sampler.identifiers, which {source} "
                f"{'was not yet (leave out --before)' if before else 'was not'}"
            )

        return "{}"

    known = reward_names(config.rewards)
    wanted = [name.strip() for name in names.split(",") if name.strip()]

    for name in wanted:
        if name not in known:
            raise ValueError(f'--prefer: {source} has no reward "{name}"; {nearest(name, known)}')

    places = [place for place, name in enumerate(known) if name in wanted or not wanted]
    return identifiers.template(places, config.sampler.identifiers_after)


def open_expander(source: str, policy: Policy, *, before: bool = False) -> Expander | None:
    """The prompt expander of a run, as it was trained or `before`; None if it has none, or `source`
    is no run.
    """
    run = Run(Path(source))
    config = configuration.load(run.config) if run.exists() else None

    if config is None or not config.expander.model:
        return None

    learned = run.adapter / "expander"
    return load_expander(
        config, policy, "" if before or config.expander.train == "none" else str(learned)
    )


def draw(
    policy: Policy,
    sampler: Sampler,
    texts: Sequence[str | Prompt],
    count: int,
    seed: int = 0,
    expander: Expander | None = None,
) -> Tensor:
    """`count` images of each text, (texts * count, 3, H, W) in [0, 1]; a text's noise does not
    depend on the others.

    With an `expander` each image has words of its own behind its text.
    """
    images = []

    for text in texts:
        prompt = Prompt(text) if isinstance(text, str) else text
        noise = generator(seed, "draw")

        for start in range(0, count, CHUNK):
            rows = min(CHUNK, count - start)
            some = [prompt] * rows

            if expander is not None:
                # from its own chance, or all texts of a grid would get the same words
                some = expander.draw(
                    some, generator(seed, "expansions", prompt.text, start)
                ).prompts

            cond = sampler.encode(policy, some)
            trajectory = sampler.rollout(policy, cond, torch.zeros(rows, dtype=torch.long), noise)
            images.append(policy.decode(trajectory.latent).cpu())

    return torch.cat(images)


def save(images: Tensor, texts: Sequence[str], count: int, out: Path) -> Path:
    """A grid with one row a text if `out` ends in .png, else a folder of single files; returns
    `out`.
    """
    pixels = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)

    if out.suffix.lower() == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        _, height, width, _ = pixels.shape
        sheet = (
            pixels.view(len(texts), count, height, width, 3)
            .transpose(1, 2)
            .reshape(len(texts) * height, -1, 3)
        )
        Image.fromarray(sheet.numpy()).save(out)

        return out

    if out.is_file():
        raise FileExistsError(
            f"{out} is a file; give a name that ends in .png for a grid, or a folder"
        )

    out.mkdir(parents=True, exist_ok=True)
    for row, picture in enumerate(pixels):
        words = re.sub(r"[^a-z0-9]+", "-", texts[row // count].lower()).strip("-")[:60]
        Image.fromarray(picture.numpy()).save(
            out / f"{row // count:02d}-{words}-{row % count:02d}.png"
        )

    return out
