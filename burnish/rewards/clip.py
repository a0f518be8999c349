"""Image-text similarity: the cosine between CLIP's embeddings of the picture and of its prompt
(arXiv 2103.00020).

    reward = <E_image(image), E_text(prompt)> / (|E_image| |E_text|)     in [-1, 1], in practice within a few hundredths

Works with any `CLIPModel`: a hub id, a folder, or the embedded `zoo:emoji-clip`. Images stay
tensors: they are resized and normalised with the numbers of the model's own processor, and never
rescaled twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from burnish import zoo
from burnish.errors import first_line
from burnish.types import Prompt, Reward


def clip_similarity(
    model: str = "openai/clip-vit-large-patch14",
    device: str = "auto",
    of: Literal["text", "original"] = "text",
) -> Reward:
    """Cosine similarity of each image with its own prompt under a CLIP model.

    Args:
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        device: `auto` takes the device of the images, so that nothing is moved.
        of: what each image is compared with: the prompt's "text", or its "original"
            (`metadata["original"]`), which
            a prompt that was not expanded is itself. With the text, an expansion could earn its own
            reward.

    Raises:
        ValueError: the model cannot be found or is not a CLIP model; later, an original that is no
            text.
    """
    if of not in ("text", "original"):
        raise ValueError(f'clip_similarity.of must be "text" or "original", not "{of}".')
    return cosine(Clip.load(model), device, of)


def cosine(clip: Clip, device: str = "auto", of: Literal["text", "original"] = "text") -> Reward:
    """The similarity of each image with its own prompt, on the device of the images unless another
    is named.
    """
    known: dict[str, Tensor] = {}  # the text tower is frozen: each text passes through it once

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.model.to(images.device if device == "auto" else device)
        texts = [prompt.original if of == "original" else prompt.text for prompt in prompts]
        missing = sorted(set(texts) - known.keys())

        if missing:
            known.update(zip(missing, clip.texts(missing), strict=True))

        return (clip.images(images) * torch.stack([known[text] for text in texts])).sum(-1)

    return reward


@dataclass(frozen=True)
class Clip:
    """Two towers that embed pictures and texts into one space."""

    model: Any  # CLIPModel, float32, frozen
    tokenizer: Any
    mean: Sequence[float]  # of the processor, by channel
    std: Sequence[float]
    size: int  # pixels of the pictures' side

    @classmethod
    def load(cls, name: str, processor: str = "") -> Clip:
        """From a hub id, a folder or the zoo; a ValueError says what is missing. `processor` is
        another such place for the tokenizer and the image processor, where the model has none
        beside it.
        """
        from transformers import AutoTokenizer, CLIPConfig, CLIPModel, ImageProcessingMixin

        source = zoo.resolve(name)
        beside = zoo.resolve(processor or name)

        try:
            model = (
                CLIPModel.from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False)
            )
            tokenizer = AutoTokenizer.from_pretrained(beside)
            # Only its numbers: the processor's class would ask for torchvision.
            numbers, _ = ImageProcessingMixin.get_image_processor_dict(beside)
        except (OSError, ValueError, KeyError) as error:
            kind = "folder" if Path(source).is_dir() else "model id"
            rest = "its tokenizer and its image processor" + (
                f" (these two in '{processor}')" if processor else ""
            )
            reason = first_line(error)
            raise ValueError(
                f"'{name}' is not a {kind} with a CLIPModel, {rest}: {reason}"
            ) from error

        if not isinstance(model.config, CLIPConfig):
            raise ValueError(
                f"'{name}' is a {type(model.config).__name__}, not a CLIPModel; take one with two towers"
            )

        size = int(model.config.vision_config.image_size)
        return cls(model, tokenizer, numbers["image_mean"], numbers["image_std"], size)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D) float32 of length 1, on the CPU."""
        device = self.model.device
        pixels = prepare(images.to(device), self.size, self.mean, self.std)
        with torch.autocast(device.type, enabled=False):
            return _unit(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, D) float32 of length 1, on the CPU; what does not fit the model's length
        is cut off.
        """
        device = self.model.device
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        ).to(device)

        with torch.autocast(device.type, enabled=False):
            return _unit(
                self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            )


def prepare(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, size, size), normalised: shorter edge to `size`, centre
    crop, no rescale.
    """
    height, width = images.shape[-2:]

    if min(height, width) != size:
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        images = functional.interpolate(
            images.float(), size=shape, mode="bicubic", antialias=True
        ).clamp(0, 1)

    top = (images.shape[-2] - size) // 2
    left = (images.shape[-1] - size) // 2
    images = images[..., top : top + size, left : left + size].float()

    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)


def _unit(output: Any) -> Tensor:
    # transformers 5 returns an output object whose pooler_output is the projected embedding; 4.x
    # returned the tensor.
    embedding = output if isinstance(output, Tensor) else output.pooler_output
    return functional.normalize(embedding.float(), dim=-1).cpu()
