"""Files of weights as people have them: half-precision variants, networks in folders, pickles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from burnish import pretrained

VARIANT = re.compile(r"[\w-]+\.(?P<variant>\w+)(-\d+-of-\d+)?\.safetensors")
PLAIN = re.compile(r"[\w-]+\.safetensors")

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of files that may run code when they are read."""


def choose_variant(names: Iterable[str], wanted: str | None, place: str | Path) -> str | None:
    """Return the variant of the weight files to read; None for files without one.

    Where a folder has no files of the `wanted` variant it is read without; where it has one variant
    only, that is read.

    Args:
        names: of the files in the folder.
        wanted: such as "fp16"; None: no matter which.
        place: the folder, for messages.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: there are several variants and nothing else, and none is wanted.
    """
    found = list(names)
    variants = {match["variant"] for name in found if (match := VARIANT.fullmatch(name))}
    if wanted in variants:
        return wanted
    if any(PLAIN.fullmatch(name) for name in found):
        return None
    if len(variants) == 1:
        return variants.pop()

    if variants:
        listed = ", ".join(sorted(variants))
        raise ValueError(
            f"{place} has the variants {listed} and no weights without one: name one of them, such "
            f'as model.variant = "{min(variants)}"'
        )
    pickled = any(name.endswith(PICKLES) for name in found)
    remedy = "; what it has are pickles, which are not read" if pickled else ""
    raise FileNotFoundError(f"{place} has no weights (*.safetensors){remedy}")


def folder_variant(folder: Path, wanted: str | None) -> str | None:
    """Return the variant to read of the weight files in a folder; see `choose_variant`."""
    return choose_variant((path.name for path in folder.iterdir()), wanted, folder)


def find_network(source: str, key: str, variant: str | None = None) -> tuple[Path, str | None]:
    """Return the folder of a network that is not a whole pipeline, and the variant to read of it.

    From the hub only its configuration and the weights of this variant are fetched.

    Args:
        source: `zoo:NAME`, a folder, a hub id, or OWNER/NAME/FOLDER of the hub.
        key: what asks for it, such as "model.controlnet"; begins the error message.
        variant: of its files that is wanted.

    Raises:
        FileNotFoundError: there is no such folder, or no weights are in it.
        ValueError: the hub does not give it, or it is a pickle.
    """
    check_is_no_pickle(source, key)
    inside = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)/([\w.-]+(?:/[\w.-]+)*)", source)
    first = Path(source).expanduser().parts[:1]
    is_path = Path(*first).exists() or source.endswith(pretrained.FILE_ENDINGS)

    if inside is None or is_path or pretrained.looks_like_a_path(inside[1]):
        found = pretrained.find(source, key)
        repository, folder = str(found), ""
    else:
        repository, folder = inside.groups()
        found = _cached_folder(repository, folder, key, source)

    if isinstance(found, Path):
        return found, folder_variant(found, variant)
    return _fetched(repository, folder, key, variant)


def _cached_folder(repository: str, folder: str, key: str, source: str) -> Path | None:
    """Return a folder of a model in the cache, if the hub cannot be asked; None if it has it."""
    config = f"{folder}/config.json"
    cached, files = pretrained.ask_hub(repository, key, config, None, source)
    if cached is not None or config in files:
        return cached

    folders = sorted(name.rpartition("/")[0] for name in files if name.endswith("/config.json"))
    listed = f"; it has {', '.join(folders)}" if folders else ""
    raise ValueError(f"{key}: the hub's {repository} has no network in {folder}{listed}")


def _fetched(repository: str, folder: str, key: str, wanted: str | None) -> tuple[Path, str | None]:
    """Return the folder in the cache of a network on the hub, fetched, and its variant."""
    from huggingface_hub import snapshot_download

    _, files = pretrained.ask_hub(repository, key, "", None)
    inside = [name for name in files if name.rpartition("/")[0] == folder]
    place = "/".join(filter(None, (repository, folder)))
    variant = choose_variant((PurePosixPath(name).name for name in inside), wanted, place)
    weights = [
        name
        for name in inside
        if (match := (VARIANT if variant else PLAIN).fullmatch(PurePosixPath(name).name))
        and (not variant or match["variant"] == variant)
    ]
    configurations = [name for name in inside if name.endswith(".json")]

    try:
        root = snapshot_download(repository, allow_patterns=[*configurations, *weights])
    except Exception as error:  # network, authorisation, disk: each library has its own
        raise pretrained.hub_error(error, repository, key) from error
    return Path(root) / folder, variant


def check_is_no_pickle(source: str, key: str) -> None:
    """Raise ValueError for a file that may run code when it is read."""
    if source.endswith(PICKLES):
        raise ValueError(
            f"{key}: {source} is a pickle, which can run code when it is read: take the same model "
            "as .safetensors, or convert it where you trust it"
        )
