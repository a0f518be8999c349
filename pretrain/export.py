"""Puts what was trained into the package: ``python -m pretrain.export``.

Copies ``build/`` to ``burnish/zoo/`` as float16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    LatentConsistencyModelPipeline,
    StableDiffusionPipeline,
)
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    LlavaForConditionalGeneration,
    ResNetForImageClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from burnish.zoo import SHARED
from pretrain.clip import MEAN, STD
from pretrain.data import ZOO


def export_sd(build: Path, target: Path) -> None:
    StableDiffusionPipeline.from_pretrained(
        build / "sd", dtype=torch.float16, safety_checker=None
    ).save_pretrained(target)


def export_lcm(build: Path, target: Path) -> None:
    """Without the parts that it shares with the generator."""
    pipe = LatentConsistencyModelPipeline.from_pretrained(
        build / "lcm" / "model", dtype=torch.float16
    )
    pipe.save_pretrained(target)

    for part in SHARED[target.name]:
        shutil.rmtree(target / part)


def export_qr(build: Path, target: Path) -> None:
    ControlNetModel.from_pretrained(
        build / "controlnet" / "model", dtype=torch.float16
    ).save_pretrained(target)


def export_decoder(build: Path, target: Path) -> None:
    AutoencoderKL.from_pretrained(
        build / "vae-decoder" / "model", dtype=torch.float16
    ).save_pretrained(target)


def export_clip(build: Path, target: Path) -> None:
    source = next(
        folder for job in ("clip-image", "clip") if (folder := build / job / "model").exists()
    )
    CLIPModel.from_pretrained(source, dtype=torch.float16).save_pretrained(target)
    words = CLIPTokenizer.from_pretrained(source)
    side = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size=side, image_mean=list(MEAN), image_std=list(STD)
    )
    CLIPProcessor(images, words).save_pretrained(target)


def export_judge(build: Path, target: Path) -> None:
    ResNetForImageClassification.from_pretrained(
        build / "judge" / "model", dtype=torch.float16
    ).save_pretrained(target)


def export_captioner(build: Path, target: Path) -> None:
    source = build / "captioner" / "model"
    LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float16).save_pretrained(
        target
    )
    AutoProcessor.from_pretrained(source).save_pretrained(target)


def export_expander(build: Path, target: Path) -> None:
    source = build / "expander" / "model"
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def spread_vocabulary(folder: Path) -> None:
    """Beside the tokenizer.json of a byte-pair encoding, the vocabulary in the two files that
    transformers 4 reads.
    """
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    if words["type"] != "BPE":
        return

    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in words["merges"]]
    (folder / "vocab.json").write_text(json.dumps(words["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


MODELS = {
    "emoji-sd": export_sd,
    "emoji-sd/vae": export_decoder,
    "emoji-lcm": export_lcm,
    "emoji-qr": export_qr,
    "emoji-clip": export_clip,
    "emoji-captioner": export_captioner,
    "emoji-expander": export_expander,
    "emoji-judge": export_judge,
}
LATER = {
    "emoji-sd/vae": "vae-decoder",
    "emoji-lcm": "lcm",
    "emoji-qr": "controlnet",
    "emoji-captioner": "captioner",
    "emoji-expander": "expander",
}  # exported only where these jobs were run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ", ".join(MODELS)
    parser.add_argument(
        "models",
        nargs="*",
        help=f"which of {names} (emoji-sd/vae: what pretrain.vae --decoder made); all",
    )
    parser.add_argument("--build", type=Path, default=Path("build"))
    options = parser.parse_args()
    trained = [
        name for name in MODELS if name not in LATER or (options.build / LATER[name]).exists()
    ]

    for name in options.models or trained:
        target = ZOO / name
        shutil.rmtree(target, ignore_errors=True)
        MODELS[name](options.build, target)

        for file in target.rglob("tokenizer.json"):
            spread_vocabulary(file.parent)

        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        print(f"{target.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
