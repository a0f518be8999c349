"""Images on demand: open a run or a model, sample it from seeded noise, save the images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from burnish import config as configuration
from burnish.catalog import nearest
from burnish.config import Config, reward_names
from burnish.diffusion.guidance import (
    CFG,
    DualGuidance,
    EmbeddedDualGuidance,
    EmbeddedGuidance,
    NoGuidance,
)
from burnish.diffusion.kernels import DDIM, LCM, ODE
from burnish.diffusion.loading import present_device
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.files import make_folder, write
from burnish.images import image_grid
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander, expand_in_chunks
from burnish.runs import Run
from burnish.seeds import generator
from burnish.stages import stage
from burnish.training.assembly import add_identifiers, load_expander, load_policy, load_sampler
from burnish.training.export import exported_iteration
from burnish.trust import Trust
from burnish.types import Guidance, Prompt

CHUNK = 16  # images sampled at once


def open_source(
    source: str,
    *,
    steps: int = 0,
    guidance: float = -1.0,
    before: bool = False,
    strength: float = 1.0,
    controlnet: str = "",
    model_config: str = "",
    trust: Trust = False,
) -> tuple[Policy, Sampler]:
    """Return a policy and a sampler of a run directory, as it was trained, or of any model id.

    Args:
        source: a run directory, `zoo:NAME`, a model folder or a hub id.
        steps: network calls an image; 0 takes the run's, or 50, 28 of a flow, 4 of a consistency
            model or of one that says that it is distilled.
        guidance: its weight, if the model is guided; negative takes the run's, or 5 (1.5 of an
            LCM-LoRA, 4.5 of a flow, or 3.5 where that is an input).
        before: a run's model before it was trained.
        strength: of a run's adapter, from 0 (as before training) to 1 (as trained); beyond 1 it is
            exaggerated.
        controlnet: of a model that is no run: `zoo:NAME`, a folder or a hub id.
        model_config: of a model in a single file: the model whose configuration it has.
        trust: whether to import the code that a run names for its sampler; see `config.load`.

    Raises:
        FileNotFoundError: the run has no adapter yet.
        ValueError: a strength is given for a model that is no run, or a `model_config` for a run.
    """
    run = Run(Path(source))
    if run.exists():
        if model_config:
            raise ValueError(f"--config is for a model in a single file, and {source} is a run")
        config = configuration.load(run.config, purpose="sample", trust=trust)
        return _open_run(run, config, steps, guidance, before, strength)

    if strength != 1:
        raise ValueError(
            f"--strength is the strength of what a run has learned, and {source} is no run"
        )
    check_is_no_lost_run(run.folder)

    return _open_model(source, steps, guidance, controlnet, model_config)


def drawn_state(source: str, before: bool = False) -> str:
    """Return what of a run is drawn: "runs/a after iteration 12"; "" of anything else."""
    run = Run(Path(source))
    if not run.exists():
        return ""
    if before:
        return f"{source} before training"

    iteration = exported_iteration(run)
    return f"{source} as trained" if iteration is None else f"{source} after iteration {iteration}"


def check_is_no_lost_run(folder: Path) -> None:
    """Refuse a missing folder beside runs: a hub would be asked for a misspelt name."""
    siblings = folder.parent
    if folder.exists() or siblings == Path() or not siblings.is_dir():
        return

    runs = sorted(path.name for path in siblings.iterdir() if Run(path).exists())
    if runs:
        raise FileNotFoundError(f"{folder} is missing; {siblings} has {', '.join(runs)}")


def _open_run(
    run: Run, config: Config, steps: int, guidance: float, before: bool, strength: float
) -> tuple[Policy, Sampler]:
    if not before:
        exported_iteration(run)  # refuses another state than the run's newest

    untrained = before or config.model.train == "none"
    device = present_device(config.model.device)
    with stage("loading", f"model {config.model.id}"):
        policy = load_policy(config, device, adapter="" if untrained else str(run.adapter))
    if not before:
        add_identifiers(config, policy, str(run.adapter))

    if strength != 1:
        policy.set_lora_scale(strength)

    sampler = load_sampler(config)
    if guidance >= 0:
        sampler = replace(sampler, guidance=_with_weight(sampler.guidance, policy, guidance))

    return policy, replace(sampler, steps=steps or sampler.steps)


def _with_weight(guidance: Guidance, policy: Policy, weight: float) -> Guidance:
    """Return a run's guidance with another weight; of another kind, the one that is usual.

    Of a guidance with two weights it is their sum, which they share as before.
    """
    if isinstance(guidance, DualGuidance | EmbeddedDualGuidance):
        whole = guidance.w1 + guidance.w2
        if whole and weight:
            shares = (guidance.w1 / whole, guidance.w2 / whole)
            return replace(guidance, w1=weight * shares[0], w2=weight * shares[1])
    if policy.takes_weight:
        return EmbeddedGuidance(weight)
    return replace(guidance, weight=weight) if isinstance(guidance, CFG) else CFG(weight)


def _open_model(
    source: str, steps: int, guidance: float, controlnet: str, model_config: str
) -> tuple[Policy, Sampler]:
    with stage("loading", f"model {source}"):
        policy = Policy.load(source, controlnet=controlnet, config=model_config, train="none")
    consistency = policy.schedule.consistency
    flow = not policy.schedule.variance_preserving

    if policy.takes_weight:
        default = 3.5 if flow else 5.0
        guided: Guidance = EmbeddedGuidance(default if guidance < 0 else guidance)
    else:
        # a consistency model without that input has learned guidance already, and tolerates
        # only a little more on top
        default = 1.5 if consistency else 4.5 if flow else 5.0
        guided = CFG(default if guidance < 0 else guidance)

    if consistency:
        return policy, Sampler(LCM(), steps or 4, guided)
    if policy.pipe.config.get("is_distilled"):
        return policy, Sampler(ODE(), steps or 4, NoGuidance() if guidance < 0 else guided)
    if flow:
        return policy, Sampler(ODE(), steps or 28, guided)
    return policy, Sampler(DDIM(), steps or 50, guided)


def centred(guidance: Guidance, fraction: float) -> Guidance:
    """Return the guidance with a `fraction` of its weight on the prompt before expansion.

    Args:
        guidance: `cfg` or `embedded`.
        fraction: from 0 to 1.

    Raises:
        ValueError: the guidance is of another kind.
    """
    if isinstance(guidance, CFG) and guidance.rescale:
        raise ValueError("--original goes with a guidance without rescale; leave one of them out")
    if isinstance(guidance, CFG):
        return DualGuidance(
            fraction * guidance.weight, (1 - fraction) * guidance.weight, guidance.negative
        )
    if isinstance(guidance, EmbeddedGuidance):
        return EmbeddedDualGuidance(fraction * guidance.weight, (1 - fraction) * guidance.weight)

    raise ValueError(
        "only guidance 'cfg' or 'embedded' has a weight to share with the original prompt "
        "(--original)"
    )


def preferred(source: str, names: str = "", before: bool = False) -> str:
    """Return the template {} that puts the identifiers of the named rewards around a text.

    Args:
        source: a run directory, or anything else that `open_source` opens, which has no
            identifiers.
        names: of rewards, separated by commas; "" means all rewards of the run.
        before: the run's model before it was trained, to which identifiers mean nothing.

    Returns:
        "{}" if there are no identifiers.

    Raises:
        ValueError: there are names, but no identifiers, or no such reward.
    """
    config = _run_config(source)

    if config is None or not config.sampler.identifiers or before:
        if names:
            reason = "was not yet (leave out --before)" if before else "was not"
            raise ValueError(
                "--prefer wants a run that was trained with sampler.identifiers, "
                f"which {source} {reason}"
            )

        return "{}"

    known = reward_names(config.rewards)
    wanted = [name.strip() for name in names.split(",") if name.strip()]

    for name in wanted:
        if name not in known:
            raise ValueError(f'--prefer: {source} has no reward "{name}"; {nearest(name, known)}')

    indices = [index for index, name in enumerate(known) if name in wanted or not wanted]
    return identifiers.template(indices, config.sampler.identifiers_after)


def open_expander(source: str, policy: Policy, *, before: bool = False) -> Expander | None:
    """Return the prompt expander of a run, as it was trained or `before`.

    None if the run has no expander, or `source` is no run.
    """
    config = _run_config(source)
    if config is None or not config.expander.model:
        return None

    untrained = before or config.expander.train == "none"
    adapter = "" if untrained else str(Run(Path(source)).adapter / "expander")
    return load_expander(config, policy, adapter)


def _run_config(source: str) -> Config | None:
    """Return the configuration of a run; None if `source` is no run."""
    run = Run(Path(source))
    return configuration.load(run.config, purpose="compare") if run.exists() else None


def draw(
    policy: Policy,
    sampler: Sampler,
    texts: Sequence[str | Prompt],
    count: int,
    seed: int = 0,
    expander: Expander | None = None,
) -> Tensor:
    """Return `count` images of each text, (texts * count, 3, H, W) in [0, 1], on the CPU.

    Args:
        policy: the model.
        sampler: how images are sampled.
        texts: or prompts. A text's noise does not depend on the other texts.
        count: of images for each text.
        seed: of the noise and of the expansions.
        expander: expands the prompt of each image on its own.
    """
    images = []
    total = len(texts) * count

    with stage("drawing", f"{len(texts)} prompts x {count} = {total} images", total):
        for text in texts:
            prompt = Prompt(text) if isinstance(text, str) else text
            # from a random stream of each text, or all texts of a grid would be expanded alike
            keys = (seed, "expansions", prompt.text)
            prompts = expand_in_chunks(expander, [prompt] * count, CHUNK, *keys)
            images.append(sampler.images(policy, prompts, generator(seed, "draw"), CHUNK))

    return torch.cat(images)


def check_out(out: Path) -> None:
    """Refuse a place where no images can be written, before any are drawn.

    Raises:
        FileExistsError: a grid is wanted where a folder is, or a folder where a file is.
    """
    is_grid = out.suffix.lower() == ".png"
    if is_grid and out.is_dir():
        raise FileExistsError(f"{out} is a folder; give another name for the grid")
    if not is_grid and out.is_file():
        raise FileExistsError(
            f"{out} is a file; give a name that ends in .png for a grid, or a folder"
        )


def save(images: Tensor, texts: Sequence[str], count: int, out: Path) -> Path:
    """Write a grid with one row a text if `out` ends in .png, else a folder of single files.

    Args:
        images: (texts * count, 3, H, W) in [0, 1].
        texts: one for every `count` images; they name the single files.
        count: of images for each text.
        out: the path, which is returned.

    Raises:
        FileExistsError: a folder is wanted, but `out` is a file.
    """
    check_out(out)
    if out.suffix.lower() == ".png":
        png, _ = image_grid(images, columns=count)
        write(out, png)
        return out

    make_folder(out)
    for row, image in enumerate(images.split(1)):
        slug = re.sub(r"[^a-z0-9]+", "-", texts[row // count].lower()).strip("-")[:60]
        name = f"{row // count:02d}-{slug}-{row % count:02d}.png"
        write(out / name, image_grid(image)[0])

    return out
