"""Pairs of images of which one was preferred, from files: what is learned from without sampling.

FILE.jsonl            {"prompt": "a fox", "chosen": "1.png", "rejected": "2.png"} a line; paths
                      are relative to the file's folder
FOLDER/chosen/a.png, FOLDER/rejected/a.png, FOLDER/chosen/a.txt
                      two images of one name (endings may differ), and the text of their prompt
RUN                   the directory of a run with votes (`burnish.votes`): the images that
                      somebody preferred to others
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from burnish import votes
from burnish.annotations import FilePath
from burnish.errors import NoSuchFile
from burnish.files import read_text
from burnish.prompts.sources import IMAGE_ENDINGS, json_entries
from burnish.runs import Run
from burnish.types import Prompt

IMAGES_OF_A_PAIR = 2


@dataclass(frozen=True)
class ImagePair:
    """Two images of one prompt, of which the first was preferred."""

    prompt: str
    chosen: Path
    rejected: Path


def pairs(path: FilePath) -> list[Prompt]:
    """Return the prompt of each pair of images that was chosen from before; see `prompts.pairs`.

    A training then learns from these images and samples none; batch.images_per_prompt is 2. The
    paths of the two are the prompt's metadata "chosen" and "rejected".

    Args:
        path: a JSONL file of {"prompt", "chosen", "rejected"}, a folder with the folders chosen and
            rejected, or a run directory with votes.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a pair lacks an image or its prompt; the message names the file and the row.
    """
    return [
        Prompt(pair.prompt, {"chosen": str(pair.chosen), "rejected": str(pair.rejected)})
        for pair in read_image_pairs(Path(path))
    ]


def images_of_pairs(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return prompts that name one image each, in place of two copies of the prompt of each pair.

    Their metadata has the path, "image", and whether it is the chosen one, "preferred".

    Args:
        prompts: from `pairs`, each twice.
    """
    named = []
    for row, prompt in enumerate(prompts):
        key = ("chosen", "rejected")[row % IMAGES_OF_A_PAIR]
        image = {"image": prompt.metadata[key], "preferred": key == "chosen"}
        named.append(replace(prompt, metadata={**prompt.metadata, **image}))
    return named


def read_image_pairs(path: Path) -> list[ImagePair]:
    """Return the pairs in a JSONL file, a folder of images or a run directory.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a pair lacks an image or its prompt, or there is none.
    """
    if not path.exists():
        raise NoSuchFile(path, "file or folder of pairs")
    if not path.is_dir():
        return [_from_row(entry, place, path.parent) for place, entry in json_entries(path)]
    if Run(path).votes.exists():
        return _from_votes(Run(path))
    return _from_folder(path)


def _from_row(entry: object, place: str, folder: Path) -> ImagePair:
    """Return the pair in a row of a file."""
    example = '{"prompt": "a cat", "chosen": "1.png", "rejected": "2.png"}'
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: not a pair; write {example}")

    texts = {}
    for key in ("prompt", "chosen", "rejected"):
        text = entry.get(key)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'{place}: no text under "{key}"; write {example}')
        texts[key] = text.strip()

    paths = {key: folder / texts[key] for key in ("chosen", "rejected")}
    for key, path in paths.items():
        if not path.is_file():
            raise ValueError(f'{place}: "{key}" is {path}, and no image is there; check the path')
    if paths["chosen"] == paths["rejected"]:
        raise ValueError(f"{place}: both images are {paths['chosen']}; give two different ones")

    return ImagePair(texts["prompt"], paths["chosen"], paths["rejected"])


def _from_folder(folder: Path) -> list[ImagePair]:
    """Return the pairs of a folder with the folders chosen and rejected."""
    chosen = _images_by_name(folder / "chosen")
    rejected = _images_by_name(folder / "rejected")
    if not chosen:
        raise ValueError(
            f"{folder}: no pairs in it; put preferred images into {folder / 'chosen'}, the others "
            f"under the same names into {folder / 'rejected'}, or give a JSONL file"
        )
    if alone := sorted(chosen.keys() ^ rejected.keys()):
        folders = ("chosen", "rejected") if alone[0] in chosen else ("rejected", "chosen")
        raise ValueError(
            f"{folder}: {folders[0]}/{alone[0]} has no image of that name in {folders[1]}; add it, "
            "or remove this one"
        )

    found = []
    for name, path in chosen.items():
        caption = path.with_suffix(".txt")
        text = read_text(caption).strip() if caption.is_file() else ""
        if not text:
            raise ValueError(f"{path}: its prompt is not known; write it into {caption}")
        found.append(ImagePair(text, path, rejected[name]))
    return found


def _images_by_name(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by their names without the ending.

    Raises:
        ValueError: two have the same name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.lower().endswith(IMAGE_ENDINGS):
            continue
        if path.stem in found:
            raise ValueError(
                f"{folder}: {found[path.stem].name} and {path.name} have the same name, so it is "
                "not known which one is meant; rename or remove one"
            )
        found[path.stem] = path
    return found


def _from_votes(run: Run) -> list[ImagePair]:
    """Return the pairs of a run of which somebody preferred one."""
    preferred = votes.preferences(run)
    if not preferred:
        raise ValueError(f"{run.votes}: no vote for one of two images stands; vote first")
    return [
        ImagePair(prompt, votes.image_path(run, better), votes.image_path(run, worse))
        for prompt, better, worse in preferred
    ]
