"""Image-text similarity: the cosine between CLIP's embeddings of the image and of its prompt.

    reward = <E_image(image), E_text(prompt)> / (|E_image| |E_text|)

in [-1, 1], in practice within a few hundredths (CLIP: arXiv 2103.00020).

Works with any `CLIPModel`: a hub id, a folder, or the embedded `zoo:emoji-clip`. Images stay
tensors: they are resized and normalised with the numbers of the model's own processor, and never
rescaled twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from burnish import pretrained, zoo
from burnish.errors import first_line
from burnish.types import Prompt, Reward


def clip_similarity(
    model: str = "openai/clip-vit-large-patch14",
    device: str = "auto",
    of: Literal["text", "original"] = "text",
) -> Reward:
    """Reward the cosine similarity of each image with its own prompt under a CLIP model.

    Args:
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        device: `auto` takes the device of the images, so that nothing is moved.
        of: the text that each image is compared with: the prompt's "text", or its "original"
            (`metadata["original"]`); a prompt that was not expanded is its own original. With the
            text, an expansion could earn its own reward.

    Raises:
        ValueError: the model cannot be found or is not a CLIP model; later, an original that is no
            text.
    """
    if of not in ("text", "original"):
        raise ValueError(f'clip_similarity.of must be "text" or "original", not "{of}"')
    return cosine(Clip.load(model), device, of)


def cosine(clip: Clip, device: str = "auto", of: Literal["text", "original"] = "text") -> Reward:
    """Reward the cosine similarity of each image with its own prompt.

    Args:
        clip: the model.
        device: `auto` takes the device of the images.
        of: the prompt's "text" or its "original".
    """
    embeddings: dict[str, Tensor] = {}  # the text tower is frozen: each text passes it once

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        texts = [prompt.original if of == "original" else prompt.text for prompt in prompts]
        new_texts = sorted(set(texts) - embeddings.keys())

        if new_texts:
            embeddings.update(zip(new_texts, clip.texts(new_texts), strict=True))

        embedded = torch.stack([embeddings[text] for text in texts])
        return (clip.images(images) * embedded).sum(-1)

    return reward


@dataclass(frozen=True)
class Clip:
    """Two towers that embed images and texts into one space."""

    model: Any  # CLIPModel, float32, frozen
    tokenizer: Any
    mean: Sequence[float]  # of the processor, by channel
    std: Sequence[float]
    size: int  # side of the model's images in pixels

    @classmethod
    def load(cls, name: str, processor: str = "") -> Clip:
        """Return a CLIP model from a hub id, a folder or the zoo.

        Args:
            name: of the model.
            processor: another such place for the tokenizer and the image processor, where the
                model has none beside it.

        Raises:
            ValueError: something is missing; the message says what.
        """
        from transformers import AutoTokenizer, CLIPConfig, CLIPModel, ImageProcessingMixin

        source = pretrained.find(name, "a reward's model")
        beside = pretrained.find(processor, "a reward's model") if processor else source

        try:
            model = pretrained.load(CLIPModel, source, part="CLIP model", dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(beside)
            # Only its numbers: the processor's class would ask for torchvision.
            numbers, _ = ImageProcessingMixin.get_image_processor_dict(beside)
        except (OSError, ValueError, KeyError) as error:
            place = f" (these two in '{processor}')" if processor else ""
            problem = zoo.load_problem(
                name, f"a CLIPModel, its tokenizer and its image processor{place}"
            )
            raise ValueError(f"{problem}: {first_line(error)}") from error

        if not isinstance(model.config, CLIPConfig):
            raise ValueError(
                f"'{name}' is a {type(model.config).__name__}, not a CLIPModel; "
                "take one with two towers"
            )

        model.eval().requires_grad_(False)
        size = int(model.config.vision_config.image_size)
        return cls(model, tokenizer, numbers["image_mean"], numbers["image_std"], size)

    def move_to(self, device: str, images: Tensor) -> None:
        """Move the model to `device`; "auto" stands for the device of `images`."""
        self.model.to(images.device if device == "auto" else device)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Return the embeddings of images (B, 3, H, W) in [0, 1], on the model's device.

        Returns:
            (B, D) float32 of length 1, on the CPU.
        """
        device = self.model.device
        pixels = prepare(images.to(device), self.size, self.mean, self.std)
        with torch.autocast(device.type, enabled=False):
            return _unit_length(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of B texts; the part beyond the model's length is cut off.

        Returns:
            (B, D) float32 of length 1, on the CPU.
        """
        device = self.model.device
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(device)

        with torch.autocast(device.type, enabled=False):
            output = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            return _unit_length(output)


def prepare(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images as a CLIP model reads them: resized, cropped and normalised, not rescaled.

    Args:
        images: (B, 3, H, W) in [0, 1].
        size: of the result; the shorter edge is resized to it, then the centre is cut out.
        mean: by channel.
        std: by channel.

    Returns:
        (B, 3, size, size) float32.
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


def _unit_length(output: Any) -> Tensor:
    """Return the projected embeddings of a tower's output, scaled to length 1, on the CPU."""
    return functional.normalize(output.pooler_output.float(), dim=-1).cpu()
