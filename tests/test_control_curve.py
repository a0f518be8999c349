"""The trade-off between codes that are read and images of the prompt, on known images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from burnish.diffusion.guidance import EmbeddedGuidance, NoGuidance
from burnish.diffusion.kernels import DDIM, LCM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.prompts.codes import is_unseen
from burnish.qr.layout import layout_of
from burnish.rewards.clip import Clip
from burnish.tools.control_curve import curve, prompts, table
from burnish.zoo import QR_CONTROLNET, QR_GENERATOR
from burnish.zoo.scenes import article, nouns

NOUNS = [article(noun) for noun in nouns()]


def test_prompts_have_payloads_that_no_training_uses() -> None:
    drawn = prompts(["cat", "dog"], 5, seed=3)
    assert [prompt.text for prompt in drawn] == ["a cat", "a dog", "a cat", "a dog", "a cat"]
    payloads = [prompt.metadata["payload"] for prompt in drawn]
    assert len(set(payloads)) == 5
    assert all(map(is_unseen, payloads))
    assert prompts(["cat", "dog"], 5, seed=3) == drawn != prompts(["cat", "dog"], 5, seed=4)


def test_the_curve(
    tiny_pipeline: Path, tiny_controlnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With images that are mixed with their code by half the scale."""
    policy = Policy.load(tiny_pipeline, controlnet=str(tiny_controlnet), size=64, train="none")
    coded = prompts(["cat", "dog", "fox"], 6)
    sampler = Sampler(DDIM(), 1, NoGuidance())
    codes = torch.stack([layout_of(prompt, 64).draw() for prompt in coded])
    scales = iter((0.0, 0.0, 1.0, 2.0))  # the image without control is sampled first

    def decode(latent: Tensor) -> Tensor:
        weight = next(scales) / 2
        return (1 - weight) * 0.5 * torch.ones_like(codes) + weight * codes

    monkeypatch.setattr(policy, "decode", decode)
    clip = Clip.load("zoo:emoji-clip")
    none, half, full = curve(policy, sampler, coded, clip, NOUNS, scales=(0.0, 1.0, 2.0))
    assert none.clip_image == pytest.approx(1)
    assert (none.strict, none.read) == (0, 0)
    assert none.modules < half.modules <= full.modules == 1
    assert full.strict == full.read == 1
    assert full.clip_code == pytest.approx(1, abs=1e-5)
    assert none.clip_code < full.clip_code
    assert full.clip_image < 1

    # of Micro QR
    assert full.opencv == full.pyzbar == 0 or None in (full.opencv, full.pyzbar)

    assert "strict" in table([none])
    assert len(table([none, half]).splitlines()) == 3
    assert table([replace(none, pyzbar=None)]).splitlines()[1].split()[4] == "-"


def test_the_embedded_controlnet_trades_images_for_codes() -> None:
    policy = Policy.load(QR_GENERATOR, controlnet=QR_CONTROLNET, size=128, train="none")
    coded = prompts(["cat", "dog", "fox", "car"], 12, pattern="https://example.org/{}")
    sampler = Sampler(LCM(), 4, EmbeddedGuidance(4.0))
    clip = Clip.load("zoo:emoji-clip")
    none, half, full = curve(policy, sampler, coded, clip, NOUNS, scales=(0.0, 1.0, 2.0))
    assert none.read == 0
    assert full.strict >= 0.8
    assert none.read < half.read < full.read
    assert none.clip_text > half.clip_text > full.clip_text
    assert none.top5 > full.top5 and none.contrast > half.contrast > full.contrast
    assert full.opencv is None or none.opencv == 0 < 0.5 <= full.opencv
    assert full.pyzbar is None or none.pyzbar == 0 < 0.5 <= full.pyzbar
    assert full.clip_code > half.clip_code > none.clip_code
