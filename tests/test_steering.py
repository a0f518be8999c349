"""The trade-off between being read and being a picture, on models whose pictures are known."""

from __future__ import annotations

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


def test_prompts_carry_payloads_that_no_training_draws() -> None:
    asked = prompts(["cat", "dog"], 5, seed=3)
    assert [prompt.text for prompt in asked] == ["a cat", "a dog", "a cat", "a dog", "a cat"]
    payloads = [prompt.metadata["payload"] for prompt in asked]
    assert len(set(payloads)) == 5 and all(map(is_unseen, payloads))
    assert prompts(["cat", "dog"], 5, seed=3) == asked != prompts(["cat", "dog"], 5, seed=4)


def test_the_curve(
    tiny_pipeline: Path, tiny_controlnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that is mixed with its code by half the scale."""
    policy = Policy.load(tiny_pipeline, controlnet=str(tiny_controlnet), size=64, train="none")
    asked = prompts(["cat", "dog", "fox"], 6)
    sampler = Sampler(DDIM(), 1, NoGuidance())
    codes = torch.stack([layout_of(prompt, 64).draw() for prompt in asked])
    scales = iter((0.0, 0.0, 1.0, 2.0))  # the picture without control is drawn first

    def decode(latent: Tensor) -> Tensor:
        share = next(scales) / 2
        return (1 - share) * 0.5 * torch.ones_like(codes) + share * codes

    monkeypatch.setattr(policy, "decode", decode)
    nothing, half, whole = curve(
        policy, sampler, asked, Clip.load("zoo:emoji-clip"), scales=(0.0, 1.0, 2.0)
    )
    assert nothing.clip_image == pytest.approx(1) and (nothing.strict, nothing.read) == (0, 0)
    assert nothing.modules < half.modules <= whole.modules == 1 and whole.strict == whole.read == 1
    assert whole.clip_code == pytest.approx(1, abs=1e-5) and nothing.clip_code < whole.clip_code
    assert (
        whole.clip_image < 1
        and "strict" in table([nothing])
        and len(table([nothing, half]).splitlines()) == 3
    )


def test_the_embedded_controlnet_trades_pictures_for_codes() -> None:
    policy = Policy.load("zoo:emoji-lcm", controlnet="zoo:emoji-qr", train="none")
    asked = prompts(["cat", "dog", "fox", "car"], 16)
    sampler = Sampler(LCM(), 4, EmbeddedGuidance(4.0))
    clip = Clip.load("zoo:emoji-clip")
    bare, some, whole = curve(policy, sampler, asked, clip, scales=(0.0, 1.0, 2.0))
    assert bare.read == 0 and whole.strict >= 0.8 and bare.read < some.read < whole.read
    assert (
        bare.clip_text > some.clip_text > whole.clip_text
        and whole.clip_code > some.clip_code > bare.clip_code
    )
