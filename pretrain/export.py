"""Put the trained models into the package: `python -m pretrain.export`.

It copies `build/` to `burnish/zoo/` as float16.
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
    ZImagePipeline,
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
    """Write the generator."""
    pipe = StableDiffusionPipeline.from_pretrained(
        build / "sd", dtype=torch.float16, safety_checker=None
    )
    pipe.save_pretrained(target)


def export_lcm(build: Path, target: Path) -> None:
    """Write a consistency model without the parts that it shares with the generator."""
    source = build / target.name.removeprefix("emoji-") / "model"
    pipe = LatentConsistencyModelPipeline.from_pretrained(source, dtype=torch.float16)
    pipe.save_pretrained(target)

    for part in SHARED[target.name]:
        shutil.rmtree(target / part)


def export_flow(build: Path, target: Path) -> None:
    """Write the flow model."""
    pipe = ZImagePipeline.from_pretrained(build / "emoji-flow", dtype=torch.float16)
    pipe.save_pretrained(target)


def export_qr(build: Path, target: Path) -> None:
    """Write a ControlNet."""
    source = build / target.name.replace("emoji-qr", "controlnet") / "model"
    ControlNetModel.from_pretrained(source, dtype=torch.float16).save_pretrained(target)


def export_decoder(build: Path, target: Path) -> None:
    """Write the generator's autoencoder with its sharper decoder."""
    source = build / "vae-decoder" / "model"
    AutoencoderKL.from_pretrained(source, dtype=torch.float16).save_pretrained(target)


def export_clip(build: Path, target: Path) -> None:
    """Write CLIP with its processor, of the last finished job."""
    folders = [build / job / "model" for job in ("clip-image", "clip")]
    source = next(folder for folder in folders if folder.exists())
    CLIPModel.from_pretrained(source, dtype=torch.float16).save_pretrained(target)

    tokenizer = CLIPTokenizer.from_pretrained(source)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    CLIPProcessor(images, tokenizer).save_pretrained(target)


def export_judge(build: Path, target: Path) -> None:
    """Write a judge."""
    source = build / target.name.removeprefix("emoji-") / "model"
    model = ResNetForImageClassification.from_pretrained(source, dtype=torch.float16)
    model.save_pretrained(target)


def export_captioner(build: Path, target: Path) -> None:
    """Write a captioner with its processor."""
    source = build / target.name.removeprefix("emoji-") / "model"
    model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float16)
    model.save_pretrained(target)
    AutoProcessor.from_pretrained(source).save_pretrained(target)


def export_expander(build: Path, target: Path) -> None:
    """Write the expander with its tokenizer."""
    source = build / "expander" / "model"
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def read_as_float32(config: Path) -> None:
    """Let a model's configuration say that its half-precision file is read as float32.

    transformers takes the precision from there and diffusers does not: a stock pipeline without
    arguments would get a text tower in another precision than its network.
    """
    text = config.read_text()
    config.write_text(text.replace('"dtype": "float16"', '"dtype": "float32"'))


def forget_folder(config: Path) -> None:
    """Remove the folder that a model was trained in from the configuration that diffusers wrote."""
    content = json.loads(config.read_text())
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2) + "\n")


def spread_vocabulary(folder: Path) -> None:
    """Write the vocabulary of a byte-pair encoding in the two files that transformers 4 reads.

    They lie beside its tokenizer.json.
    """
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    if model["type"] != "BPE":
        return

    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


MODELS = {
    "emoji-sd": export_sd,
    "emoji-sd/vae": export_decoder,
    "emoji-lcm": export_lcm,
    "emoji-lcm-128": export_lcm,
    "emoji-flow": export_flow,
    "emoji-qr": export_qr,
    "emoji-qr-128": export_qr,
    "emoji-clip": export_clip,
    "emoji-captioner": export_captioner,
    "emoji-captioner-128": export_captioner,
    "emoji-expander": export_expander,
    "emoji-judge": export_judge,
    "emoji-code-judge": export_judge,
}
# exported only where these jobs were run
OPTIONAL_JOBS = {
    "emoji-sd/vae": "vae-decoder",
    "emoji-lcm": "lcm",
    "emoji-lcm-128": "lcm-128",
    "emoji-flow": "flow",
    "emoji-qr": "controlnet",
    "emoji-qr-128": "controlnet-128",
    "emoji-captioner": "captioner",
    "emoji-captioner-128": "captioner-128",
    "emoji-expander": "expander",
    "emoji-code-judge": "code-judge",
}


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
        name
        for name in MODELS
        if name not in OPTIONAL_JOBS or (options.build / OPTIONAL_JOBS[name]).exists()
    ]

    for name in options.models or trained:
        target = ZOO / name
        shutil.rmtree(target, ignore_errors=True)
        MODELS[name](options.build, target)

        for file in target.rglob("config.json"):
            read_as_float32(file)
            forget_folder(file)
        for file in target.rglob("model_index.json"):
            forget_folder(file)
        for file in target.rglob("tokenizer.json"):
            spread_vocabulary(file.parent)

        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        print(f"{target.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
