"""How a QR ControlNet trades readability for pictures: what its control scale does to both.

For every scale, over the same prompts, payloads and noise: the share of pictures that are read, the
similarity to the prompt, to the same picture without control, and to the bare code. Payloads are of
the part that no training draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burnish.diffusion.control import Control
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.prompts.codes import qr as coded
from burnish.qr.layout import layout_of
from burnish.qr.scanner import Scanner, module_errors
from burnish.rewards.clip import Clip
from burnish.rewards.code_distance import code_similarity
from burnish.seeds import generator
from burnish.types import Prompt

CHUNK = 32
SCALES = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0)


@dataclass(frozen=True)
class Point:
    """What pictures are like at one control scale."""

    scale: float
    strict: float  # share read under every condition
    read: float  # share of (picture, condition) pairs that are read
    modules: float  # share of modules on the right side
    clip_text: float  # cosine of picture and prompt
    clip_image: float  # cosine of the picture and the one that the same noise gives without control
    clip_code: float  # cosine of the picture and the bare code


def prompts(nouns: Sequence[str], count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts "a {noun}" by turns, each with an unseen payload of its own."""
    texts = {"use": "template", "text": "a {noun}", "noun": list(nouns)}
    return coded(texts, random=count, seed=seed, part="unseen", combine="turns")[:count]


def curve(
    policy: Policy,
    sampler: Sampler,
    asked: Sequence[Prompt],
    clip: Clip,
    *,
    scales: Sequence[float] = SCALES,
    conditions: str = "all",
    seed: int = 0,
) -> list[Point]:
    """The trade-off, one point a scale; `asked` prompts carry payloads."""
    plain = drawn(policy, replace(sampler, control=Control(0.0)), asked, seed)
    texts = clip.texts([prompt.text for prompt in asked])
    bases = clip.images(plain)
    scanner = Scanner(conditions=conditions)
    layouts = [layout_of(prompt, plain.shape[-1]) for prompt in asked]
    points = []

    for scale in scales:
        images = drawn(policy, replace(sampler, control=Control(scale)), asked, seed)
        readings = scanner.measure(images, layouts)
        seen = clip.images(images)
        points.append(
            Point(
                scale,
                strict=float(readings.strict.double().mean()),
                read=float(readings.fraction.mean()),
                modules=float(1 - module_errors(images, layouts).mean()),
                clip_text=float((seen * texts).sum(1).mean()),
                clip_image=float((seen * bases).sum(1).mean()),
                clip_code=float(code_similarity(clip, images, layouts).mean()),
            )
        )

    return points


def drawn(policy: Policy, sampler: Sampler, asked: Sequence[Prompt], seed: int) -> Tensor:
    """One picture a prompt, (B, 3, H, W) on the CPU; the noise is the same for every sampler."""
    images = []

    for start in range(0, len(asked), CHUNK):
        some = list(asked[start : start + CHUNK])
        cond = sampler.encode(policy, some)
        group = torch.zeros(len(some), dtype=torch.long)
        trajectory = sampler.rollout(policy, cond, group, generator(seed, "steering", start))
        images.append(policy.decode(trajectory.latent).cpu())

    return torch.cat(images)


def table(points: Sequence[Point]) -> str:
    """For a terminal."""
    names = ("scale", "strict", "read", "modules", "clip_text", "clip_image", "clip_code")
    rows = ["  ".join(f"{name:>10}" for name in names)]
    rows += ["  ".join(f"{getattr(point, name):>10.3f}" for name in names) for point in points]
    return "\n".join(rows)
