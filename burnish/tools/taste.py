"""Fit a head to pairs of images: `burnish taste fit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from burnish import config as configuration
from burnish.files import write
from burnish.images import open_image
from burnish.prompts.pairs import ImagePair, read_image_pairs
from burnish.rewards.bradley_terry import Comparisons, HeldOut, best_scale, fit, held_out
from burnish.rewards.clip import Clip, Features
from burnish.rewards.taste import head_bytes
from burnish.runs import Run
from burnish.stages import advance, stage

DEFAULT_MODEL = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class FittedTaste:
    """The result of a fit."""

    out: Path
    pairs: int
    images: int
    scale: float  # that was chosen
    held_out: HeldOut

    @property
    def error(self) -> float:
        """The standard error of the accuracy, as if two more pairs were right and two wrong.

        So it is none of 0 where few pairs are all right (Agresti and Coull 1998).
        """
        return float((self.middle * (1 - self.middle) / (self.held_out.count + 4)) ** 0.5)

    @property
    def middle(self) -> float:
        """The middle of the accuracy's interval: two more pairs are right, and two wrong."""
        right = self.held_out.accuracy * self.held_out.count
        return (right + 2) / (self.held_out.count + 4)

    def lines(self) -> list[str]:
        """Return the result in words."""
        found = self.held_out
        lines = [
            f"{self.out}: fitted to {self.pairs} pairs of {self.images} images",
            f"of {found.count} pairs that it had not seen it foretells {found.accuracy:.0%} "
            f"(+- {self.error:.0%}; chance: 50%), at {found.nats:.2f} nats a pair (chance: 0.69)",
        ]
        if self.middle - 2 * self.error <= 0.5:
            lines.append(
                "that may be chance: give more pairs, or pairs that differ in what you care about"
            )
        return lines


def read_by_votes(pairs: Path) -> tuple[str, Features]:
    """Return the model and the features that a run's reward `votes` reads, or else the defaults."""
    run = Run(pairs)
    rewards = configuration.load(run.config, purpose="compare").rewards if run.exists() else []
    settings = next((reward for reward in rewards if reward["use"] == "votes"), {})

    model = settings.get("model") or DEFAULT_MODEL
    return model, settings.get("features", "embedding")


def fit_taste(
    pairs: Path, model: str, out: Path, device: str = "cpu", read: Features = "embedding"
) -> FittedTaste:
    """Fit a head to pairs of images and write it.

    Args:
        pairs: a JSONL file, a folder or a run with votes, see `prompts.pairs`.
        model: a CLIP model: a hub id, a folder or `zoo:emoji-clip`.
        out: the file that is written.
        device: where the model computes.
        read: what of an image, see `Clip.features`.

    Raises:
        ValueError, FileNotFoundError: a pair or an image cannot be read, there are fewer than two
            different pairs, or the model is none.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: a head is a .safetensors file; name it so")

    listed = read_image_pairs(pairs)
    paths = sorted({path for pair in listed for path in (pair.chosen, pair.rejected)})
    if len({_images_of(pair) for pair in listed}) < 2:
        raise ValueError(f"{pairs}: one pair alone says nothing about others; give more")

    clip = Clip.load(model)
    clip.model.to(device)
    features = dict(zip(paths, embed_files(clip, paths, read), strict=True))
    comparisons = comparisons_of(listed, features)
    with stage("fitting", f"{len(listed)} pairs"):
        found = held_out(comparisons)
        scale = best_scale(comparisons)
        head = fit(comparisons, scale)

    about = {
        "pairs": str(len(listed)),
        "accuracy": f"{found.accuracy:.4f}",
        "nats": f"{found.nats:.4f}",
        "held_out": str(found.count),
        "scale": f"{scale:g}",
    }
    is_folder = Path(model).is_dir() and not model.startswith("zoo:")
    name = str(Path(model).resolve()) if is_folder else model
    write(out, head_bytes(head, name, about, read))
    return FittedTaste(out, len(listed), len(paths), scale, found)


def embed_files(clip: Clip, paths: list[Path], read: Features) -> list[Tensor]:
    """Return the features (D,) of the images in files, each computed alone.

    Raises:
        ValueError, FileNotFoundError: an image cannot be read; the message names it.
    """
    found = []
    with stage("embedding", f"{len(paths)} images", len(paths)):
        for path in paths:
            (features,) = clip.features(open_image(path)[None], read)
            found.append(features.cpu().double())
            advance()
    return found


def comparisons_of(listed: list[ImagePair], features: dict[Path, Tensor]) -> Comparisons:
    """Return pairs of images as comparisons of their features; the same pair is one unit."""
    units = {images: number for number, images in enumerate(dict.fromkeys(map(_images_of, listed)))}
    return Comparisons(
        torch.stack([features[pair.chosen] for pair in listed]),
        torch.stack([features[pair.rejected] for pair in listed]),
        torch.tensor([units[_images_of(pair)] for pair in listed]),
    )


def _images_of(pair: ImagePair) -> frozenset[Path]:
    return frozenset((pair.chosen, pair.rejected))
