"""The quality of the embedded models on fresh scenes and fresh noise, beside the goals.

vae_psnr_db      10 log10(1 / mean squared error) of decode(encode(scene)), over all pixels of all
                 scenes
clip_top1        single-sprite scenes whose most similar text among "a {noun}", all nouns, is the
                 right one
judge_nouns      generated "a {noun}" in which the judge sees that noun first
judge_animals    the same for the 45 animals
background       generated "a {noun} on a {colour} background" in which the judge sees that colour
counts           generated "two/three {nouns}" in which the judge sees that noun and that number
pairs            generated "a {noun} and a {noun}" in which the judge sees both nouns first
sample_seconds   16 images at 25 steps with guidance, decoded
flow_...         the same of `emoji-flow`: its autoencoder, and images of 28 steps without noise
flow_seconds     8 of its images at 10 steps with guidance, decoded
lcm_4_steps      the consistency model's judge_nouns at 4 network calls, as a fraction of the
                 generator's at 25 steps
lcm_2_steps      the same at 2
caption_nouns    scenes of one noun whose caption by the captioner names it and nothing else
caption_pairs    scenes of two nouns whose caption names both
caption_counts   scenes of one to three of a noun about which "how many {nouns} are there?" is
                 answered right
caption_text     "is there any text in this image?" answered right on scenes, half of which have
                 words drawn on them
caption_drawn    generated "a {noun}" whose caption names the noun that the judge sees first
expansions       "a {noun}", expanded, is still that noun, and has a style or a background, and
                 nothing else
qr_read          images of the ControlNet at control scale 2 that are read under every condition
qr_unread        the same at scale 0, where there is no code
weights_mb       all weights of the zoo together

The effect of the control scale on the ControlNet's images is a curve of its own (`control`, see
`burnish.tools.control_curve`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from burnish import zoo
from burnish.diffusion.guidance import CFG, EmbeddedGuidance
from burnish.diffusion.kernels import DDIM, LCM, ODE
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.prompts.expander import Expander
from burnish.prompts.sources import zoo_nouns
from burnish.qr.layout import TINY
from burnish.rewards.clip import Clip
from burnish.rewards.vlm import Local
from burnish.seeds import generator
from burnish.stages import stage
from burnish.tools.control_curve import Point, curve
from burnish.tools.control_curve import prompts as qr_prompts
from burnish.tools.gallery import open_source
from burnish.types import Prompt
from burnish.zoo import QR_CONTROLNET, QR_GENERATOR
from burnish.zoo import judge as judging
from burnish.zoo import questions as asking
from burnish.zoo.scenes import NUMBERS, Scene, Scenes, nouns, vocabulary

STEPS = 25
FLOW_STEPS = 28
WEIGHT = 4.0
CHUNK = 64
# label, whether the value must be at least or at most the goal, the goal
GOALS: dict[str, tuple[str, str, float]] = {
    "vae_psnr_db": ("VAE reconstruction, PSNR in dB", ">=", 27.0),
    "clip_top1": ("CLIP finds the noun of a scene", ">=", 0.90),
    "judge_nouns": ('"a {noun}" judged right, all nouns', ">=", 0.75),
    "judge_animals": ('"a {noun}" judged right, 45 animals', ">=", 0.80),
    "background": ("background colour right", ">=", 0.90),
    "counts": ('"two/three {nouns}" right', ">=", 0.60),
    "pairs": ("both nouns of a pair right", ">=", 0.35),
    "sample_seconds": ("16 images at 25 steps, seconds", "<=", 10.0),
    "flow_vae_psnr_db": ("emoji-flow: VAE, PSNR in dB", ">=", 27.0),
    "flow_nouns": ('emoji-flow: "a {noun}" right', ">=", 0.80),
    "flow_background": ("emoji-flow: background colour right", ">=", 0.90),
    "flow_counts": ('emoji-flow: "two/three {nouns}" right', ">=", 0.55),
    "flow_pairs": ("emoji-flow: both nouns of a pair", ">=", 0.30),
    "flow_seconds": ("emoji-flow: 8 images, 10 steps, s", "<=", 6.0),
    "lcm_4_steps": ("emoji-lcm's nouns in 4 calls, share", ">=", 0.85),
    "lcm_2_steps": ("emoji-lcm's nouns in 2 calls, share", ">=", 0.70),
    "caption_nouns": ("captions name the noun of a scene", ">=", 0.90),
    "caption_pairs": ("captions name both nouns of a pair", ">=", 0.60),
    "caption_counts": ("the captioner counts to three", ">=", 0.90),
    "caption_text": ("the captioner notices text", ">=", 0.95),
    "caption_drawn": ("captions agree with the judge, nouns", ">=", 0.90),
    "expansions": ("expansions by the grammar", ">=", 0.95),
    "qr_read": ("codes read at control scale 2", ">=", 0.95),
    "qr_unread": ("codes read without control", "<=", 0.0),
    "weights_mb": ("all weights, MB", "<=", 93.0),
}


def measure(images: int = 4, seed: int = 1) -> tuple[dict[str, float], list[Point]]:
    """Return every number of the table, and the ControlNet's curve.

    Args:
        images: generated for each noun; 24 times as many for each other question and for each
            point of the curve.
        seed: of the scenes and the noise.
    """
    policy = Policy.load("zoo:emoji-sd", train="none")
    sampler = Sampler(DDIM(), STEPS, CFG(WEIGHT))
    # far from the small seeds that training draws its scenes with
    scenes = Scenes(seed * 1_000_003 + 17)
    wanted = questions(seed, 24 * images)
    wanted["nouns"] = [Scene((noun,)) for noun in nouns() for _ in range(images)]

    generated = {
        kind: _generate_scenes(policy, sampler, wanted[kind], seed, kind) for kind in wanted
    }
    right = {kind: _judged(generated[kind], wanted[kind], kind) for kind in wanted}
    animals = len(vocabulary()["animals"]) * images

    fractions = _consistency_fractions(wanted["nouns"], seed, right["nouns"])
    points = control(24 * images, seed)

    return {
        "vae_psnr_db": round(vae_psnr(policy, scenes), 2),
        "clip_top1": round(clip_top1(scenes), 4),
        "judge_nouns": round(float(right["nouns"].mean()), 4),
        "judge_animals": round(float(right["nouns"][:animals].mean()), 4),
        **{kind: round(float(right[kind].mean()), 4) for kind in ("background", "counts", "pairs")},
        "sample_seconds": round(sample_seconds(policy, sampler), 2),
        **flow(wanted, seed),
        **{name: round(float(fraction), 4) for name, fraction in fractions.items()},
        **{name: round(fraction, 4) for name, fraction in captioner(scenes).items()},
        "caption_drawn": round(agreement(generated["nouns"], 1), 4),
        "expansions": round(expansions(seed), 4),
        "qr_read": round(points[-1].strict, 4),
        "qr_unread": round(points[0].strict, 4),
        "weights_mb": round(zoo.weights_mb(), 2),
    }, points


def flow(wanted: Mapping[str, Sequence[Scene]], seed: int) -> dict[str, float]:
    """Return the numbers of `emoji-flow`; the judge sees its images at 64 pixels."""
    policy = Policy.load("zoo:emoji-flow", train="none")
    sampler = Sampler(ODE(), FLOW_STEPS, CFG(WEIGHT))
    scenes = Scenes(seed * 1_000_003 + 29, size=128)
    right = {
        f"flow_{kind}": _judged(_generate_scenes(policy, sampler, drawn, seed, kind), drawn, kind)
        for kind, drawn in wanted.items()
    }
    seconds = sample_seconds(policy, Sampler(ODE(), 10, CFG(WEIGHT)), 8)
    return {
        "flow_vae_psnr_db": round(vae_psnr(policy, scenes), 2),
        **{name: round(float(rows.mean()), 4) for name, rows in right.items()},
        "flow_seconds": round(seconds, 2),
    }


def questions(seed: int, count: int) -> dict[str, list[Scene]]:
    """Return `count` scenes for the generator to draw, of each of three kinds."""
    rng = np.random.default_rng([seed, 4711])
    words = nouns()
    colours = [colour for colour in vocabulary()["colours"] if colour != "white"]

    return {
        "background": [
            Scene((str(rng.choice(words)),), colour=colours[i % len(colours)]) for i in range(count)
        ],
        "counts": [Scene((str(rng.choice(words)),), count=2 + i % 2) for i in range(count)],
        "pairs": [
            Scene(tuple(map(str, rng.choice(words, 2, replace=False)))) for _ in range(count)
        ],
    }


def _generate_scenes(
    policy: Policy, sampler: Sampler, scenes: Sequence[Scene], seed: int, kind: str
) -> Tensor:
    prompts = [Prompt(scene.caption) for scene in scenes]
    detail = f"{len(scenes)} images of {kind} in {sampler.steps} steps"
    with stage("drawing", detail, len(scenes)):
        return generate(policy, sampler, prompts, generator(seed, "zoo check", kind))


def _judged(images: Tensor, scenes: Sequence[Scene], kind: str) -> Tensor:
    """Return (B,) float64: 1 where the judge sees in the image what the scene describes."""
    verdict = judging.load().classify(images)
    return torch.tensor(
        [_shows(verdict, row, scene, kind) for row, scene in enumerate(scenes)]
    ).double()


def _shows(verdict: judging.Verdict, row: int, scene: Scene, kind: str) -> bool:
    if kind == "background":
        return list(vocabulary()["colours"])[int(verdict.colour[row])] == scene.colour

    same_nouns = verdict.names(row, len(scene.nouns)) == set(scene.nouns)
    same_count = kind != "counts" or int(verdict.count[row]) == scene.count
    return same_nouns and same_count


def _consistency_fractions(scenes: Sequence[Scene], seed: int, right: Tensor) -> dict[str, Tensor]:
    """Return the consistency model's judge_nouns as a fraction of the generator's, by steps."""
    policy = Policy.load("zoo:emoji-lcm", train="none")
    fractions = {}

    for steps in (4, 2):
        sampler = Sampler(LCM(), steps, EmbeddedGuidance(WEIGHT))
        images = _generate_scenes(policy, sampler, scenes, seed, "nouns")
        fractions[f"lcm_{steps}_steps"] = _judged(images, scenes, "nouns").mean() / right.mean()

    return fractions


def generate(
    policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], noise: torch.Generator
) -> Tensor:
    """Return one image a prompt, (B, 3, H, W) in [0, 1], on the CPU."""
    return sampler.images(policy, prompts, noise, CHUNK)


@torch.no_grad()
def vae_psnr(policy: Policy, scenes: Scenes, count: int = 512) -> float:
    """Return the PSNR of reconstructed scenes of every kind, in dB."""
    pixels, _ = scenes.draw(count, "any")
    vae = policy.pipe.vae
    squared = 0.0

    for chunk in _as_images(pixels).split(CHUNK):
        latent = vae.encode(chunk.to(policy.device, vae.dtype) * 2 - 1).latent_dist.mode()
        decoded = vae.decode(latent).sample.float().cpu().add(1).div(2).clamp(0, 1)
        squared += float((decoded - chunk).square().mean((1, 2, 3)).sum())

    return 10 * math.log10(count / squared)


def clip_top1(scenes: Scenes, count: int = 512) -> float:
    """Return the fraction of single-sprite scenes for which CLIP ranks the right noun first."""
    pixels, shown = scenes.draw(count, "single")
    clip = Clip.load("zoo:emoji-clip")
    words = nouns()
    texts = clip.texts([Scene((noun,)).caption for noun in words])
    best = (clip.images(_as_images(pixels)) @ texts.T).argmax(1).tolist()
    return sum(words[i] == scene.nouns[0] for i, scene in zip(best, shown, strict=True)) / count


def captioner(scenes: Scenes, count: int = 256) -> dict[str, float]:
    """Return the captioner's fraction of right answers to each of four questions.

    Each question is asked about `count` fresh scenes.
    """
    model = Local.load("zoo:emoji-captioner")

    def answers(pixels: Tensor, questions: Sequence[str]) -> list[str]:
        return [answer or "" for answer in model(_as_images(pixels), questions)]

    right: dict[str, list[bool]] = {}

    for name, kind in (("caption_nouns", "single"), ("caption_pairs", "pair")):
        pixels, shown = scenes.draw(count, kind)
        captions = answers(pixels, [asking.CAPTION] * count)
        right[name] = [
            named(caption) == set(scene.nouns)
            for caption, scene in zip(captions, shown, strict=True)
        ]

    halves = [scenes.draw(count // 2, kind) for kind in ("single", "count")]
    pixels = torch.cat([pixels for pixels, _ in halves])
    shown = [scene for _, half in halves for scene in half]
    plurals = vocabulary()["plurals"]
    numbers = answers(pixels, [f"how many {plurals[s.nouns[0]]} are there?" for s in shown])
    right["caption_counts"] = [
        answer == NUMBERS[scene.count] for answer, scene in zip(numbers, shown, strict=True)
    ]

    pixels, _ = scenes.draw(count)
    for row in range(0, count, 2):
        word = str(scenes.rng.choice(asking.NUMBERS[1:]))
        pixels[row] = torch.from_numpy(asking.write(pixels[row].numpy(), word, scenes.rng))

    with_text = answers(pixels, [asking.TEXT] * count)
    right["caption_text"] = [
        answer == ("no" if row % 2 else "yes") for row, answer in enumerate(with_text)
    ]

    return {name: sum(rows) / len(rows) for name, rows in right.items()}


def agreement(images: Tensor, things: int) -> float:
    """Return the fraction of images whose caption names just the judge's likeliest nouns.

    Args:
        images: (B, 3, H, W) in [0, 1].
        things: in each image, one or two.
    """
    captions = Local.load("zoo:emoji-captioner")(images, [asking.CAPTION] * len(images))
    verdict = judging.load().classify(images)
    agreed = [
        named(caption or "") == verdict.names(row, things) for row, caption in enumerate(captions)
    ]
    return sum(agreed) / len(agreed)


def expansions(seed: int) -> float:
    """Return the fraction of nouns whose expansion is a caption of that one thing, and more.

    The caption must have a style, or a background, or both.
    """
    prompts = [Prompt(Scene((noun,)).caption) for noun in nouns()]
    expander = Expander.load("zoo:emoji-expander", train="none")
    expanded = expander.draw(prompts, generator(seed, "zoo check", "expansions")).prompts

    right = [
        after.text != before.text and after.text in _captions(noun)
        for noun, before, after in zip(nouns(), prompts, expanded, strict=True)
    ]
    return sum(right) / len(right)


def _captions(noun: str) -> set[str]:
    """Return the captions of one thing in every style on every background."""
    known = vocabulary()
    return {
        Scene((noun,), colour=colour, style=style).caption
        for style in ("", *known["styles"])
        for colour in known["colours"]
    }


def control(count: int, seed: int) -> list[Point]:
    """Return the ControlNet's curve over its control scale, of `count` prompts with links.

    They are ordinary QR codes, on the smallest canvas that takes them.
    """
    policy, sampler = open_source(QR_GENERATOR, controlnet=QR_CONTROLNET)
    policy.resize(TINY)
    prompts = qr_prompts(nouns(), count, seed, "https://example.org/{}")
    others = [prompt.text for prompt in zoo_nouns("all")]
    clip = Clip.load("zoo:emoji-clip")
    return curve(policy, sampler, prompts, clip, others, seed=seed)


def named(caption: str) -> set[str]:
    """Return the nouns of the vocabulary that a caption names."""
    scene = judging.parse(caption)
    return set(scene.nouns) if scene else set()


def sample_seconds(policy: Policy, sampler: Sampler, count: int = 16) -> float:
    """Return the seconds for `count` images after a warm-up.

    It is the better of two times, because the machine may be busy.
    """
    prompts = [Prompt(Scene((noun,)).caption) for noun in nouns()[:count]]
    generate(policy, Sampler(sampler.kernel, 2, sampler.guidance), prompts, generator("warm"))
    times = []

    for attempt in range(2):
        started = time.perf_counter()
        generate(policy, sampler, prompts, generator("time", attempt))
        times.append(time.perf_counter() - started)

    return min(times)


def table(measured: Mapping[str, float]) -> str:
    """Return the numbers beside their goals as plain text, one line each."""
    lines = [f"{'':36} {'measured':>9}   {'goal':>8}"]

    for key, (label, sign, goal) in GOALS.items():
        value = measured[key]
        reached = value >= goal if sign == ">=" else value <= goal

        if goal <= 1:  # a fraction
            shown = f"{value:.1%}"
            wanted = f"{goal:.0%}"
        else:
            shown = f"{value:.2f}"
            wanted = f"{goal:g}"

        mark = "ok" if reached else "MISSED"
        lines.append(f"{label:36} {shown:>9}   {sign} {wanted:>5}   {mark}")

    return "\n".join(lines)


def _as_images(pixels: Tensor) -> Tensor:
    """Return bytes (B, H, W, 3) as images (B, 3, H, W) in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(255)
