"""The trade-off of a QR ControlNet between readable codes and images, by control scale.

For every scale, over the same prompts, payloads and noise: the fraction of images that are read,
their similarity to the prompt, alone and beside other prompts, to the same image without control,
and to the bare code. The payloads are of the part that no training draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from burnish.config import ControlConfig
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.prompts.codes import qr as qr_prompts
from burnish.qr.layout import layout_of
from burnish.qr.phone import Phone
from burnish.qr.scanner import Scanner, module_errors
from burnish.rewards.clip import Clip, cosine
from burnish.rewards.clip_contrast import compare_with, contrast, retrieved
from burnish.rewards.code_distance import code_similarity
from burnish.seeds import generator
from burnish.stages import stage
from burnish.types import Prompt

CHUNK = 32
SCALES = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0)


@dataclass(frozen=True)
class Point:
    """The measures of images at one control scale."""

    scale: float
    strict: float  # fraction read under every condition
    read: float  # fraction of (image, condition) pairs that are read
    opencv: float | None  # fraction that OpenCV reads as they are; None: it is not installed
    pyzbar: float | None  # fraction that ZBar reads so
    modules: float  # fraction of modules on the right side
    top5: float  # fraction whose prompt is among the five nearest of all
    contrast: float  # cosine of image and prompt, less its mean to other prompts
    clip_text: float  # cosine of image and prompt
    clip_image: float  # cosine of the image and the one that the same noise gives without control
    clip_code: float  # cosine of the image and the bare code


def prompts(
    nouns: Sequence[str], count: int, seed: int = 0, pattern: list[str] | str = "{}"
) -> list[Prompt]:
    """Return `count` prompts "a {noun}" by turns, each with an unseen payload of its own.

    Args:
        nouns: in this order.
        count: of the prompts.
        seed: of the payloads.
        pattern: of the payloads, as of the prompt source qr.
    """
    texts = {"use": "template", "text": "a {noun}", "noun": list(nouns)}
    coded = qr_prompts(
        texts, random=count, seed=seed, pattern=pattern, part="unseen", combine="turns"
    )
    return coded[:count]


def curve(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    clip: Clip,
    others: Sequence[str],
    *,
    scales: Sequence[float] = SCALES,
    conditions: str = "all",
    seed: int = 0,
) -> list[Point]:
    """Return the trade-off, one point a scale.

    Args:
        policy: a model with a ControlNet.
        sampler: how images are sampled; its control scale is replaced.
        prompts: with payloads.
        clip: for the similarities.
        others: at least five prompts beside those of the images, to compare with.
        scales: of the control.
        conditions: under which the codes are read; see `burnish.qr.conditions`.
        seed: of the noise.
    """
    without_control = replace(sampler, control=ControlConfig(0.0))
    uncontrolled = sample_images(policy, without_control, prompts, seed, "none")
    to_prompt = cosine(clip)
    less_others = compare_with(clip, others, contrast)
    among_first = compare_with(clip, others, retrieved(5))
    base_embeddings = clip.images(uncontrolled)
    scanner = Scanner(conditions=conditions)
    phone = Phone(scanner.decoders)
    layouts = [layout_of(prompt, uncontrolled.shape[-1]) for prompt in prompts]
    points = []

    for scale in scales:
        controlled = replace(sampler, control=ControlConfig(scale))
        images = sample_images(policy, controlled, prompts, seed, f"{scale:g}")
        readings = scanner.measure(images, layouts)
        plain = {name: _share(read) for name, read in phone.plain(images, layouts).items()}

        points.append(
            Point(
                scale,
                strict=float(readings.strict.double().mean()),
                read=float(readings.fraction.mean()),
                opencv=plain["opencv"],
                pyzbar=plain["pyzbar"],
                modules=float(1 - module_errors(images, layouts).mean()),
                top5=float(among_first(images, prompts).mean()),
                contrast=float(less_others(images, prompts).mean()),
                clip_text=float(to_prompt(images, prompts).mean()),
                clip_image=float((clip.images(images) * base_embeddings).sum(1).mean()),
                clip_code=float(code_similarity(clip, images, layouts).mean()),
            )
        )

    return points


def sample_images(
    policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], seed: int, scale: str = ""
) -> Tensor:
    """Return one image a prompt, (B, 3, H, W) on the CPU, from the same noise for every sampler.

    Args:
        policy: the model.
        sampler: how images are sampled.
        prompts: one an image.
        seed: of the noise.
        scale: the control scale in words, for who watches.
    """
    images = []

    with stage("drawing", f"{len(prompts)} images at control scale {scale}", len(prompts)):
        for start in range(0, len(prompts), CHUNK):
            chunk = prompts[start : start + CHUNK]
            noise = generator(seed, "steering", start)
            images.append(sampler.images(policy, chunk, noise, CHUNK))

    return torch.cat(images)


def _share(read: Tensor | None) -> float | None:
    return None if read is None else float(read.double().mean())


def table(points: Sequence[Point]) -> str:
    """Return the points as a table of plain text; a dash stands for what is not known."""
    names = [field.name for field in fields(Point)]
    rows = ["  ".join(f"{name:>10}" for name in names)]

    for point in points:
        values = (getattr(point, name) for name in names)
        cells = (f"{'-':>10}" if value is None else f"{value:>10.3f}" for value in values)
        rows.append("  ".join(cells))

    return "\n".join(rows)
