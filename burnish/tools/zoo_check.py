"""How good the embedded models are, measured on fresh scenes and fresh noise, beside what they must
reach.

vae_psnr_db      10 log10(1 / mean squared error) of decode(encode(scene)), over all pixels of all scenes
clip_top1        single-sprite scenes whose most similar text among "a {noun}", all nouns, is the right one
judge_nouns      generated "a {noun}" in which the judge sees that noun first; judge_animals: the 45
background       generated "a {noun} on a {colour} background" in which the judge sees that colour
counts           generated "two/three {nouns}" in which the judge sees that noun and that number
pairs            generated "a {noun} and a {noun}" in which the judge sees both nouns first
sample_seconds   16 images at 25 steps with guidance, decoded
lcm_4_steps      the consistency model's judge_nouns at 4 network calls, as a share of the generator's at 25 steps
lcm_2_steps      the same at 2
caption_nouns    scenes of one noun whose caption by the captioner names it and nothing else
caption_pairs    scenes of two nouns whose caption names both
caption_counts   scenes of one to three of a noun about which "how many {nouns} are there?" is answered right
caption_text     "is there any text in this image?" answered right on scenes, half of which have words drawn on them
caption_drawn    generated "a {noun}" whose caption names the noun that the judge sees first
expansions       "a {noun}", expanded, is still that noun, and has a style or a background, and nothing else
qr_read          pictures of the ControlNet at control scale 2 that are read under every condition
qr_unread        the same at scale 0, where there is no code
weights_mb       all weights of the zoo together

What its control scale does to the ControlNet's pictures is a curve of its own (`control`, see
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
from burnish.diffusion.kernels import DDIM, LCM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.prompts.expander import Expander
from burnish.rewards.clip import Clip
from burnish.rewards.vlm import Local
from burnish.seeds import generator
from burnish.tools.control_curve import Point, curve
from burnish.tools.control_curve import prompts as coded
from burnish.tools.gallery import open_source
from burnish.types import Prompt
from burnish.zoo import judge as judging
from burnish.zoo import questions as asking
from burnish.zoo.scenes import NUMBERS, Scene, Scenes, nouns, vocabulary

STEPS = 25
WEIGHT = 4.0
CHUNK = 64
# what it is, whether it must be at least or at most, the value
GOALS: dict[str, tuple[str, str, float]] = {
    "vae_psnr_db": ("VAE reconstruction, PSNR in dB", ">=", 27.0),
    "clip_top1": ("CLIP finds the noun of a scene", ">=", 0.90),
    "judge_nouns": ('"a {noun}" judged right, all nouns', ">=", 0.75),
    "judge_animals": ('"a {noun}" judged right, 45 animals', ">=", 0.80),
    "background": ("background colour right", ">=", 0.90),
    "counts": ('"two/three {nouns}" right', ">=", 0.60),
    "pairs": ("both nouns of a pair right", ">=", 0.35),
    "sample_seconds": ("16 images at 25 steps, seconds", "<=", 10.0),
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
    "weights_mb": ("all weights, MB", "<=", 55.0),
}


def measure(images: int = 4, seed: int = 1) -> tuple[dict[str, float], list[Point]]:
    """Every number of the table, and the ControlNet's curve. `images` are generated for each noun,
    24 times as many for each other question and each point of the curve.
    """
    policy = Policy.load("zoo:emoji-sd", train="none")
    sampler = Sampler(DDIM(), STEPS, CFG(WEIGHT))
    judge = judging.load()
    # far from the small seeds that training draws its scenes with
    scenes = Scenes(seed * 1_000_003 + 17)
    asked = questions(seed, 24 * images)
    asked["nouns"] = [Scene((noun,)) for noun in nouns() for _ in range(images)]

    def drawn(policy: Policy, sampler: Sampler, name: str) -> Tensor:
        prompts = [Prompt(scene.caption) for scene in asked[name]]
        return generate(policy, sampler, prompts, generator(seed, "zoo check", name))

    def judged(pictures: Tensor, name: str) -> Tensor:
        verdict = judge.classify(pictures)
        return torch.tensor(
            [_shows(verdict, row, scene, name) for row, scene in enumerate(asked[name])]
        ).double()

    pictures = {name: drawn(policy, sampler, name) for name in asked}
    right = {name: judged(pictures[name], name) for name in asked}
    few = Policy.load("zoo:emoji-lcm", train="none")
    shares = {
        f"lcm_{steps}_steps": judged(
            drawn(few, Sampler(LCM(), steps, EmbeddedGuidance(WEIGHT)), "nouns"), "nouns"
        ).mean()
        / right["nouns"].mean()
        for steps in (4, 2)
    }
    animals = len(vocabulary()["animals"]) * images
    points = control(24 * images, seed)

    return {
        "vae_psnr_db": round(vae_psnr(policy, scenes), 2),
        "clip_top1": round(clip_top1(scenes), 4),
        "judge_nouns": round(float(right["nouns"].mean()), 4),
        "judge_animals": round(float(right["nouns"][:animals].mean()), 4),
        **{name: round(float(right[name].mean()), 4) for name in ("background", "counts", "pairs")},
        "sample_seconds": round(sample_seconds(policy, sampler), 2),
        **{name: round(float(share), 4) for name, share in shares.items()},
        **{name: round(share, 4) for name, share in captioner(scenes).items()},
        "caption_drawn": round(agreement(pictures["nouns"], 1), 4),
        "expansions": round(expansions(seed), 4),
        "qr_read": round(points[-1].strict, 4),
        "qr_unread": round(points[0].strict, 4),
        "weights_mb": round(zoo.weights_mb(), 2),
    }, points


def questions(seed: int, count: int) -> dict[str, list[Scene]]:
    """`count` scenes to ask the generator for, of each of three kinds."""
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


def _shows(verdict: judging.Verdict, row: int, scene: Scene, kind: str) -> bool:
    if kind == "background":
        return list(vocabulary()["colours"])[int(verdict.colour[row])] == scene.colour
    seen = verdict.names(row, len(scene.nouns)) == set(scene.nouns)
    return seen and (kind != "counts" or int(verdict.count[row]) == scene.count)


def generate(
    policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], noise: torch.Generator
) -> Tensor:
    """One image a prompt, (B, 3, 64, 64) in [0, 1]."""
    images = []

    for start in range(0, len(prompts), CHUNK):
        some = prompts[start : start + CHUNK]
        trajectory = sampler.rollout(
            policy, policy.encode(some), torch.zeros(len(some), dtype=torch.long), noise
        )
        images.append(policy.decode(trajectory.latent))

    return torch.cat(images)


@torch.no_grad()
def vae_psnr(policy: Policy, scenes: Scenes, count: int = 512) -> float:
    """Reconstruction of scenes of every kind, in dB."""
    images, _ = scenes.draw(count, "any")
    vae = policy.pipe.vae
    squared = 0.0

    for chunk in images.permute(0, 3, 1, 2).float().div(255).split(CHUNK):
        latent = vae.encode(chunk.to(policy.device, vae.dtype) * 2 - 1).latent_dist.mode()
        again = vae.decode(latent).sample.float().cpu().add(1).div(2).clamp(0, 1)
        squared += float((again - chunk).square().mean((1, 2, 3)).sum())

    return 10 * math.log10(count / squared)


def clip_top1(scenes: Scenes, count: int = 512) -> float:
    """Share of single-sprite scenes for which CLIP ranks the right noun first."""
    images, shown = scenes.draw(count, "single")
    clip = Clip.load("zoo:emoji-clip")
    words = nouns()
    texts = clip.texts([Scene((noun,)).caption for noun in words])
    best = (clip.images(images.permute(0, 3, 1, 2).float().div(255)) @ texts.T).argmax(1).tolist()
    return sum(words[i] == scene.nouns[0] for i, scene in zip(best, shown, strict=True)) / count


def captioner(scenes: Scenes, count: int = 256) -> dict[str, float]:
    """How often the captioner is right about fresh scenes, `count` for each of the four questions."""
    ask = Local.load("zoo:emoji-captioner")

    def replies(images: Tensor, questions: Sequence[str]) -> list[str]:
        return [
            reply or "" for reply in ask(images.permute(0, 3, 1, 2).float().div(255), questions)
        ]

    right: dict[str, list[bool]] = {}

    for name, kind in (("caption_nouns", "single"), ("caption_pairs", "pair")):
        images, shown = scenes.draw(count, kind)
        said = replies(images, [asking.CAPTION] * count)
        right[name] = [
            named(text) == set(scene.nouns) for text, scene in zip(said, shown, strict=True)
        ]

    halves = [scenes.draw(count // 2, kind) for kind in ("single", "count")]
    images = torch.cat([images for images, _ in halves])
    shown = [scene for _, some in halves for scene in some]
    many = [f"how many {vocabulary()['plurals'][scene.nouns[0]]} are there?" for scene in shown]
    said = replies(images, many)
    right["caption_counts"] = [
        text == NUMBERS[scene.count] for text, scene in zip(said, shown, strict=True)
    ]
    images, _ = scenes.draw(count)

    for row in range(0, count, 2):
        word = str(scenes.rng.choice(asking.NUMBERS[1:]))
        images[row] = torch.from_numpy(asking.write(images[row].numpy(), word, scenes.rng))

    said = replies(images, [asking.TEXT] * count)
    right["caption_text"] = [text == ("no" if row % 2 else "yes") for row, text in enumerate(said)]
    return {name: sum(each) / len(each) for name, each in right.items()}


def agreement(pictures: Tensor, things: int) -> float:
    """Share of pictures of one or two things whose caption names just those that the judge finds
    likeliest.
    """
    said = Local.load("zoo:emoji-captioner")(pictures, [asking.CAPTION] * len(pictures))
    verdict = judging.load().classify(pictures)
    return sum(
        named(text or "") == verdict.names(row, things) for row, text in enumerate(said)
    ) / len(said)


def expansions(seed: int) -> float:
    """Share of nouns whose expansion is a caption of that one thing in a style, on a background, or
    both.
    """
    texts = [Scene((noun,)).caption for noun in nouns()]
    drawn = Expander.load("zoo:emoji-expander", train="none").draw(
        [Prompt(text) for text in texts], generator(seed, "zoo check", "expansions")
    )
    known = vocabulary()
    right = [
        prompt.text != text
        and any(
            prompt.text == Scene((noun,), colour=colour, style=style).caption
            for style in ("", *known["styles"])
            for colour in known["colours"]
        )
        for noun, prompt, text in zip(nouns(), drawn.prompts, texts, strict=True)
    ]

    return sum(right) / len(right)


def control(count: int, seed: int) -> list[Point]:
    """What its control scale does to the ControlNet's pictures, of `count` prompts with payloads."""
    policy, sampler = open_source("zoo:emoji-lcm", controlnet="zoo:emoji-qr")
    asked = coded(nouns(), count, seed)
    return curve(policy, sampler, asked, Clip.load("zoo:emoji-clip"), seed=seed)


def named(caption: str) -> set[str]:
    """The nouns of the vocabulary that a caption names."""
    scene = judging.parse(caption)
    return set(scene.nouns) if scene else set()


def sample_seconds(policy: Policy, sampler: Sampler, count: int = 16) -> float:
    """Seconds for `count` images after a warm-up; the better of two, for the machine may be busy."""
    prompts = [Prompt(Scene((noun,)).caption) for noun in nouns()[:count]]
    generate(policy, Sampler(sampler.kernel, 2, sampler.guidance), prompts, generator("warm"))
    times = []

    for attempt in range(2):
        started = time.perf_counter()
        generate(policy, sampler, prompts, generator("time", attempt))
        times.append(time.perf_counter() - started)

    return min(times)


def table(measured: Mapping[str, float]) -> str:
    """The numbers beside their goals, one line each."""
    lines = [f"{'':36} {'measured':>9}   {'goal':>8}"]

    for key, (what, sign, goal) in GOALS.items():
        value = measured[key]
        reached = value >= goal if sign == ">=" else value <= goal
        share = goal <= 1
        shown, wanted = (f"{value:.1%}", f"{goal:.0%}") if share else (f"{value:.2f}", f"{goal:g}")
        lines.append(f"{what:36} {shown:>9}   {sign} {wanted:>5}   {'ok' if reached else 'MISSED'}")

    return "\n".join(lines)
