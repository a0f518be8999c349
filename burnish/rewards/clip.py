"""Image-text similarity: the cosine between CLIP's embeddings of the image and of its prompt.

    reward = <E_image(image), E_text(prompt)> / (|E_image| |E_text|)

in [-1, 1], in practice within a few hundredths (CLIP: arXiv 2103.00020).

Works with any `CLIPModel`: a hub id, a folder, or the embedded `zoo:emoji-clip`. Images stay
tensors: they are resized and normalised with the numbers of the model's own processor, and never
rescaled twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from burnish import pretrained, zoo
from burnish.annotations import DeviceName, ModelPath
from burnish.errors import first_line
from burnish.prompt_warnings import PromptWarnings
from burnish.rewards.isolated import isolated
from burnish.types import Prompt, Reward, differentiable

Compared = Literal["text", "original"]
"""The text of a prompt that images are compared with."""

Features = Literal["embedding", "patches"]
"""Features of an image for a head: CLIP's embedding, or the image tower's patches, see `Clip`."""

ImageReader = Callable[[Any, Tensor], Tensor]
"""(a CLIPModel, prepared images (B, 3, H, W)) -> (B, D), on the CPU."""


def clip_similarity(
    model: ModelPath = "openai/clip-vit-large-patch14",
    device: DeviceName = "auto",
    of: Compared = "text",
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


def cosine(clip: Clip, device: str = "auto", of: Compared = "text") -> Reward:
    """Reward the cosine similarity of each image with its own prompt.

    Args:
        clip: the model.
        device: `auto` takes the device of the images.
        of: the prompt's "text" or its "original".
    """
    embed_texts = remembering(clip)

    @differentiable
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        texts = embed_texts(compared_texts(prompts, of))
        return (clip.images(images) * texts).sum(-1)

    return reward


def compared_texts(prompts: Sequence[Prompt], of: Compared) -> list[str]:
    """Return the text of each prompt that its images are compared with."""
    return [prompt.original if of == "original" else prompt.text for prompt in prompts]


def remembering(clip: Clip) -> Callable[[Sequence[str]], Tensor]:
    """Return `clip.texts` with a memory: the tower is frozen, so each text passes it once."""
    embeddings: dict[str, Tensor] = {}

    def texts(wanted: Sequence[str]) -> Tensor:
        new_texts = sorted(set(wanted) - embeddings.keys())
        if new_texts:
            embeddings.update(zip(new_texts, clip.texts(new_texts), strict=True))

        return torch.stack([embeddings[text] for text in wanted])

    return texts


@dataclass(frozen=True)
class Clip:
    """Two towers that embed images and texts into one space."""

    model: Any  # CLIPModel, float32, frozen
    tokenizer: Any
    mean: Sequence[float]  # of the processor, by channel
    std: Sequence[float]
    size: int  # side of the model's images in pixels

    @classmethod
    def load(cls, name: str, processor: str = "", key: str = "model") -> Clip:
        """Return a CLIP model from a hub id, a folder or the zoo.

        Args:
            name: of the model.
            processor: another such place for the tokenizer and the image processor, where the
                model has none beside it.
            key: of the configuration that names it, for messages.

        Raises:
            ValueError: something is missing; the message says what.
        """
        from transformers import AutoTokenizer, CLIPConfig, CLIPModel, ImageProcessingMixin

        source = pretrained.find(name, key)
        beside = pretrained.find(processor, "processor") if processor else source

        try:
            model = pretrained.load(CLIPModel, source, part="CLIP model", dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(beside, trust_remote_code=False)
            # Only its numbers: the processor's class would ask for torchvision.
            numbers, _ = ImageProcessingMixin.get_image_processor_dict(beside)
            mean = [float(value) for value in numbers["image_mean"]]
            std = [float(value) for value in numbers["image_std"]]
        except Exception as error:  # a damaged file makes the libraries below raise anything
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
        return cls(model, tokenizer, mean, std, size)

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self.model.config.projection_dim)

    def feature_width(self, which: Features) -> int:
        """Return how many numbers `features` gives of an image."""
        if which == "embedding":
            return self.width
        return 2 * int(self.model.config.vision_config.hidden_size)

    def move_to(self, device: str, images: Tensor) -> None:
        """Move the model to `device`; "auto" stands for the device of `images`."""
        self.model.to(images.device if device == "auto" else device)

    def images(self, images: Tensor) -> Tensor:
        """Return the embeddings of images (B, 3, H, W) in [0, 1], with a gradient if they have one.

        Returns:
            (B, D) float32 of length 1, on the CPU; NaN for an image that the model fails on.
        """
        return _read(self, images, _embeddings, self.width)

    def features(self, images: Tensor, which: Features = "embedding") -> Tensor:
        """Return what a head reads of images (B, 3, H, W) in [0, 1].

        The embedding tells what an image shows, and was trained to tell nothing else. Of the
        patches it is the mean and the standard deviation of each of their numbers after half of the
        tower's layers: colours, surfaces and sizes, by which the images of one prompt differ.

        Returns:
            (B, D) float32, on the CPU; NaN for an image that the model fails on.
        """
        if which == "embedding":
            return self.images(images)
        return _read(self, images, _patches, self.feature_width(which))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of B texts; the part beyond the model's length is cut off.

        A warning, once, names what is cut.

        Each text is encoded alone: beside others the last bit of its embedding would depend on
        them, and so a resumed run on what was remembered before.

        Returns:
            (B, D) float32 of length 1, on the CPU; NaN for a text that the model fails on.
        """

        def embed(chosen: Sequence[str]) -> list[Tensor]:
            return [self._text(text) for text in chosen]

        none = torch.full((self.width,), torch.nan)
        found = torch.stack(isolated(embed, texts, none, "texts", all_may_fail=True))
        is_read = ~found.isnan().any(-1)
        self._warnings.check(text for text, fine in zip(texts, is_read, strict=True) if fine)
        return found

    @cached_property
    def _warnings(self) -> PromptWarnings:
        """Warnings of texts that are cut."""
        return PromptWarnings(
            [self.tokenizer], "a reward's CLIP model", length=self._length, signs=False
        )

    @property
    def _length(self) -> int:
        """Tokens of the longest text."""
        return int(self.model.config.text_config.max_position_embeddings)

    def _text(self, text: str) -> Tensor:
        """Return the embedding (D,) of a text."""
        device = self.model.device
        tokens = self.tokenizer(
            [text],
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).to(device)

        with torch.autocast(device.type, enabled=False):
            output = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            return _unit_length(output)[0]


def _read(clip: Clip, images: Tensor, read: ImageReader, width: int) -> Tensor:
    """Return (B, width) of what is read of images; NaN for one that the model fails on."""
    device = clip.model.device

    def rows_read(rows: Sequence[int]) -> Sequence[Tensor]:
        chosen = images if len(rows) == len(images) else images[list(rows)]
        pixels = prepare(chosen.to(device), clip.size, clip.mean, clip.std)
        with torch.autocast(device.type, enabled=False):
            return list(read(clip.model, pixels))

    none = torch.full((width,), torch.nan)
    return torch.stack(isolated(rows_read, range(len(images)), none, "images"))


def _embeddings(model: Any, pixels: Tensor) -> Tensor:
    """Return the embeddings (B, D) of prepared images."""
    return _unit_length(model.get_image_features(pixel_values=pixels))


def _patches(model: Any, pixels: Tensor) -> Tensor:
    """Return mean and spread of the patches (B, 2 D) of prepared images; see `Clip.features`."""
    states = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    patches = states[len(states) // 2][:, 1:].float()  # the first is of the whole image
    return torch.cat([patches.mean(1), patches.std(1, correction=0)], 1).cpu()


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
