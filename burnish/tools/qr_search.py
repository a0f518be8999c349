"""Search for images that are QR codes and are read under every condition.

Every image that a user gets has been read back, so the number of tries is part of the result: it
says how good the model and its control scale are at this payload. Without a wish for a scale the
search begins at a low one, at which an image shows its prompt, and rises while nothing is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from burnish import catalog
from burnish import config as configuration
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.files import make_folder, write
from burnish.images import eight_bit, image_grid
from burnish.qr.layout import TINY, Layout, layout_of
from burnish.qr.phone import Phone
from burnish.qr.scanner import Scanner
from burnish.runs import Run
from burnish.seeds import generator
from burnish.tools.gallery import CHUNK, open_source
from burnish.tools.qr_tries import Try, tries_of
from burnish.trust import Trust
from burnish.types import Prompt
from burnish.zoo import MICRO_QR_CONTROLNET, QR_CONTROLNET, QR_GENERATOR, QR_SCALE

STEP = 0.2  # by which the control scale rises after a batch in which no image is read
LARGEST_SCALE = 2.0  # to which it rises: there, little is left but the code


@dataclass(frozen=True)
class FoundImage:
    """An image that is read under every condition, and the number of its try, from 1."""

    image: Tensor  # (3, H, W) in [0, 1], on the CPU
    attempt: int
    phone: bool | None = None  # independent readers read it; None: not known


@dataclass(frozen=True)
class Search:
    """The result of a search."""

    images: list[FoundImage]  # at most as many as were wanted
    tries: int
    passed: int  # tries that are read under every condition, kept or not
    read: int  # tries that some decoder reads under some condition, kept or not
    payload: str  # as the decoders read it back; "" if nothing was kept
    scales: tuple[float, float]  # control scale of the first tries and of the last


def open_controlled(
    source: str,
    controlnet: str = "",
    *,
    steps: int = 0,
    guidance: float = -1.0,
    scale: float = -1.0,
    trust: Trust = False,
) -> tuple[Policy, Sampler]:
    """Return a policy with a ControlNet, and its sampler.

    Args:
        source: a run whose model has a ControlNet, `zoo:NAME`, a model folder or a hub id.
        controlnet: of a model: `zoo:NAME`, a folder or a hub id; a run has its own, and the zoo's
            models have theirs.
        steps: network calls an image; 0 takes the run's, or 50, or 4 of a consistency model.
        guidance: its weight; negative takes the run's, or 5 (1.5 of an LCM-LoRA).
        scale: of the control; negative takes the run's, or that from which `search` may rise: 1, of
            the zoo's ControlNets `burnish.zoo.QR_SCALE`.
        trust: whether to import the code that a run names for its sampler; see `config.load`.

    Raises:
        FileNotFoundError, ValueError: there is no such thing, or it has no ControlNet.
    """
    if source.startswith("zoo:"):
        controlnet = controlnet or (
            QR_CONTROLNET if source == QR_GENERATOR else MICRO_QR_CONTROLNET
        )
    if not isfinite(scale):
        raise ValueError(f"--scale {scale}: take a finite number, such as 1.4")
    if controlnet in (QR_CONTROLNET, MICRO_QR_CONTROLNET) and scale < 0:
        scale = QR_SCALE

    policy, sampler = open_source(
        source, steps=steps, guidance=guidance, controlnet=controlnet, trust=trust
    )

    if not policy.has_controlnet:
        if Run(Path(source)).exists():
            raise ValueError(
                f"{source} is a run without a ControlNet: "
                "give one that trained with model.controlnet"
            )

        raise ValueError(
            f"{source} draws no codes by itself: give a ControlNet for it by --controlnet"
        )

    if scale >= 0:
        sampler = replace(sampler, control=replace(sampler.control, scale=scale))

    return policy, sampler


def scale_step(source: str, scale: float) -> float:
    """Return by how much a search raises the control scale while nothing is read; 0: never.

    Args:
        source: a run directory, which has a scale of its own, or any other model.
        scale: that the user wants; negative: none.
    """
    return 0.0 if scale >= 0 or Run(Path(source)).exists() else STEP


def choose_canvas(policy: Policy, prompt: Prompt, size: int = 0) -> Layout:
    """Make the model's canvas one on which an ordinary QR code of the payload fits.

    That is the model's own canvas if it has 128 px and the code fits; else the next larger one, up
    to twice as large, on which a module has at least one pixel of the latents.

    Args:
        policy: a model with a ControlNet, whose canvas is changed.
        prompt: with a payload.
        size: side of the canvas in px that is wanted instead; below 128 px the code is Micro QR.

    Returns:
        The code on that canvas.

    Raises:
        ValueError: the payload fits no canvas, or not the one that is wanted.
    """
    latent_pixel = policy.latent_pixel
    first = max(TINY, latent_pixel * max(policy.latent_shape[-2:]))

    for side in () if size else range(first, 2 * first, 8):
        try:
            policy.resize(side)  # the model does not draw all sizes
            layout = layout_of(prompt, side)
        except ValueError:
            continue

        if layout.module >= latent_pixel:
            return layout

    side = size or 2 * first
    try:
        policy.resize(side)
        return layout_of(prompt, side)
    except ValueError as reason:
        about_size = "does not fit" in str(reason) or "model.size" in str(reason)
        hint = " (--size sets it)" if about_size else ""
        raise ValueError(f"{reason}{hint}") from reason


def deciding_decoders(source: str, decoders: Sequence[str]) -> tuple[str, ...]:
    """Return the decoders that choose the images and those of the rewards of a run.

    Args:
        source: a run directory, or any other model.
        decoders: that choose.
    """
    run = Run(Path(source))
    if not run.exists():
        return tuple(decoders)

    config = configuration.load(run.config, purpose="compare")
    # a guard that acts on its panel chooses the weights
    watched = [] if config.guard.action in ("none", "warn") else config.guard.panel
    names = ("qr_scan", catalog.BUILTIN["reward"]["qr_scan"])
    tables = [table for table in (*config.rewards, *watched) if table["use"] in names]
    used = [name for table in tables for name in table.get("decoders") or ("zxing",)]
    return (*decoders, *used)


def code_settings(source: str) -> dict[str, Any]:
    """Return the settings that the codes of a run's prompts have; {} of any other model."""
    run = Run(Path(source))
    if not run.exists():
        return {}

    prompts = configuration.load(run.config, purpose="compare").prompts
    return dict(prompts.get("code") or {})


def check_out(folder: Path) -> None:
    """Refuse a folder that could not be written, before the search.

    Raises:
        OSError: a file is in its place, or there is no permission.
    """
    place = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )

    if not place.is_dir():
        raise FileExistsError(f"{place} is a file; choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} cannot be written; choose another --out")


def search(
    policy: Policy,
    sampler: Sampler,
    prompt: Prompt,
    scanner: Scanner,
    *,
    count: int,
    tries: int,
    seed: int = 0,
    step: float = 0.0,
    phone: Phone | None = None,
    on_try: Callable[[int, int], None] = lambda sampled, found: None,
    on_read: Callable[[Sequence[Try]], None] | None = None,
) -> Search:
    """Sample `prompt` with its payload until enough images are read under every condition.

    The n-th image of a seed is the same whatever `count` and `tries` are.

    Args:
        policy: a model with a ControlNet.
        sampler: how images are sampled.
        prompt: with a payload.
        scanner: reads the images.
        count: of images to find.
        tries: the images to sample at most.
        seed: of the noise.
        step: added to the control scale after a batch in which no image is read under every
            condition, up to `LARGEST_SCALE`.
        phone: gives the verdict `phone` on what is kept; by default the readers of other libraries
            than the scanner's.
        on_try: called after each batch with the numbers of images sampled and found so far.
        on_read: called before that with the batch's images and who reads each.

    Raises:
        ValueError: the payload does not fit the model's canvas.
    """
    phone = phone or Phone(scanner.decoders)
    readable: list[FoundImage] = []
    passed = 0
    read = 0
    sampled = 0
    first_scale = scale = next_scale = sampler.control.scale

    while sampled < tries and len(readable) < count:
        scale = next_scale
        controlled = replace(sampler, control=replace(sampler.control, scale=scale))
        noise = generator(seed, "art", sampled)
        images = controlled.images(policy, [prompt] * CHUNK, noise, CHUNK)[: tries - sampled]

        layout = layout_of(prompt, images.shape[-1])
        readings = scanner.measure(images, [layout] * len(images))
        passed += int(readings.strict.sum())
        read += int(readings.lenient.sum())

        for row in readings.strict.nonzero().flatten().tolist():
            if len(readable) < count:
                grey = Image.fromarray(eight_bit(images[row : row + 1])[0]).convert("L")
                verdict = phone.reads(grey, layout.payload, layout.module, layout.micro)
                readable.append(FoundImage(images[row], sampled + row + 1, verdict))

        if on_read is not None:
            numbers = [found.attempt for found in readable]
            on_read(tries_of(images, readings, layout, phone, sampled + 1, scale, numbers))

        if not readings.strict.any():
            next_scale = max(scale, min(LARGEST_SCALE, scale + step))

        sampled += len(images)
        on_try(sampled, len(readable))

    # a strict reading is an exact one
    payload = layout.payload if readable else ""
    return Search(readable, sampled, passed, read, payload, (first_scale, scale))


def summary(result: Search, layout: Layout, phone: Phone) -> str:
    """Return two lines about a search: how many images are read, at which scale, and by whom."""
    outcome = "raise --scale or --tries"
    if result.images:
        outcome = f"{len(result.images)} kept, they say {result.payload!r}"

    verdicts = [found.phone for found in result.images]
    known = verdicts and not layout.micro and None not in verdicts
    counted = f"{verdicts.count(True)} of {len(verdicts)} " if known else ""

    first, last = (f"{scale:.3g}" for scale in result.scales)
    scales = first if first == last else f"{first} to {last}"

    return (
        f"{result.passed} of {result.tries} tries are read under every condition, "
        f"{result.read} under some; {outcome}\n"
        f"code {layout.designator} on {layout.side} px, control scale {scales}; "
        f"phone: {counted}{phone.note(layout.micro)}"
    )


def save(result: Search, folder: Path) -> list[Path]:
    """Write one PNG an image, named by its try, and return the paths.

    An image of an earlier search that has the same name stays: the new one gets a further number.

    Raises:
        OSError: the folder is a file, or cannot be written.
    """
    make_folder(folder)
    paths = []

    for found in result.images:
        content = image_grid(found.image[None])[0]
        name = f"code-{found.attempt:04d}"
        path = folder / f"{name}.png"

        for further in count(2):
            if not path.exists() or path.read_bytes() == content:
                break
            path = folder / f"{name}-{further}.png"

        write(path, content)
        paths.append(path)

    return paths
