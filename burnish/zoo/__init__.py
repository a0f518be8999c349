"""The zoo: small models in the package; with them every algorithm runs on a laptop CPU, end to end.

A `zoo:` id stands wherever a hub id or a folder does. `pretrain/` made the models. Standard library
only.

Models share parts: the consistency model reads and decodes with the diffusion model's, which are in
the package once. Its whole folder is put together, of links where the system has them, in the
user's cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

MODELS: Mapping[str, str] = {
    "emoji-sd": "a Stable Diffusion pipeline about emoji, 64x64 pixels, v-prediction",
    "emoji-lcm": "emoji-sd distilled into a consistency model: images in 1 to 8 network calls",
    "emoji-lcm-128": "the same for images of 128x128 pixels",
    "emoji-flow": "a Z-Image pipeline about emoji, 128x128 pixels: a flow model",
    "emoji-qr": "a ControlNet for emoji-sd and emoji-lcm that draws a Micro QR code into images",
    "emoji-qr-128": "a ControlNet for emoji-lcm-128 that draws an ordinary QR code into images",
    "emoji-clip": "the CLIP model that the generators read prompts with; as a reward",
    "emoji-aesthetic": "a head on emoji-clip that predicts a stated taste; a reward to be fooled",
    "emoji-preference": "a head on emoji-clip that predicts another taste, in conflict with that",
    "emoji-captioner": "a vision-language model that answers questions about images; as a reward",
    "emoji-captioner-128": "the captioner at 128x128 pixels, which notices letters in an image",
    "emoji-expander": "a language model that adds a style and a background to a prompt",
    "emoji-judge": "a classifier (noun, colour, count), trained separately: never a reward",
    "emoji-code-judge": "a judge that sees nouns under QR codes too: never a reward",
}
"""The models by name, with a sentence about each."""

QR_GENERATOR = "zoo:emoji-lcm-128"
"""The generator that draws images with codes, where none is named."""

QR_CONTROLNET = "zoo:emoji-qr-128"
"""The ControlNet that it draws them with."""

MICRO_QR_GENERATOR, MICRO_QR_CONTROLNET = "zoo:emoji-lcm", "zoo:emoji-qr"
"""The same for canvases that are too small for an ordinary QR code; and the ControlNet of every
generator that was made for 64 px.
"""

QR_SCALE = 1.4
"""The control scale from which `burnish qr` rises with either: few images are read there, but all
show things.
"""

NAMES = tuple(MODELS)
# parts that a model takes from another one: {model: {part: path in the zoo}}
SHARED = {
    name: {part: f"emoji-sd/{part}" for part in ("vae", "text_encoder", "tokenizer")}
    for name in ("emoji-lcm", "emoji-lcm-128")
}
_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Return the names of the models that this installation has."""
    return tuple(name for name in NAMES if (_FOLDER / name).is_dir())


def path(name: str) -> Path:
    """Return the folder of an embedded model.

    Args:
        name: of the model, with or without `zoo:`.

    Raises:
        ValueError: there is no such model; the message lists all models.
        FileNotFoundError: the model belongs to the zoo, but this installation came without its
            weights.
        OSError: the folder of a model that shares parts cannot be made in the cache.
    """
    bare = name.removeprefix("zoo:")

    if bare not in NAMES:
        near = get_close_matches(bare, NAMES, n=1)
        end = f"; did you mean zoo:{near[0]}?" if near else "."
        known = ", ".join(f"zoo:{model}" for model in NAMES)
        raise ValueError(f"the zoo has no '{bare}'{end} It has: {known}")

    folder = _FOLDER / bare
    if not folder.is_dir():
        raise FileNotFoundError(
            f"zoo:{bare} belongs in {folder}, which is missing: reinstall burnish with its weights"
        )

    return _assemble(bare) if bare in SHARED else folder


def resolve(model: str) -> str:
    """Return a model id as diffusers and transformers read it: `zoo:NAME` becomes its folder."""
    return str(path(model)) if model.startswith("zoo:") else model


def load_problem(model: str, parts: str) -> str:
    """Return the beginning of the error message about a model id or folder without its parts.

    Args:
        model: as the user wrote it.
        parts: that belong there, such as "a CLIPModel and its tokenizer".
    """
    kind = "folder" if Path(resolve(model)).is_dir() else "model id"
    return f"'{model}' is not a {kind} with {parts}"


def size_mb(name: str) -> float:
    """Return the size of a model in the package in MB of 1,000,000 bytes.

    Shared parts count for the model whose folder they are in.
    """
    return sum(file.stat().st_size for file in (_FOLDER / name).rglob("*") if file.is_file()) / 1e6


def weights_mb() -> float:
    """Return the size of all weights in the zoo in MB of 1,000,000 bytes."""
    return sum(file.stat().st_size for file in _FOLDER.rglob("*.safetensors")) / 1e6


def _assemble(name: str) -> Path:
    """Return the folder of a model that shares parts; it is made once for every state of them."""
    parts = {part.name: part for part in sorted((_FOLDER / name).iterdir())}
    parts |= {part: _FOLDER / source for part, source in SHARED[name].items()}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish"
    folder = cache / f"{name}-{_fingerprint(parts)}"

    if folder.is_dir():
        return folder

    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    except OSError as error:
        raise OSError(
            f"zoo:{name} is put together in {cache}, which cannot be written ({error.strerror}): "
            "set XDG_CACHE_HOME to a folder that can"
        ) from error

    try:
        for part, source in parts.items():
            _link(source, temporary / part)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.is_dir():  # otherwise another process was faster
            raise

    return folder


def _fingerprint(parts: Mapping[str, Path]) -> str:
    """Return a hash of the paths, sizes and times of all files of a model."""
    files: list[Path] = []
    for part in parts.values():
        files += part.rglob("*") if part.is_dir() else [part]

    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return sha256(repr(state).encode()).hexdigest()[:16]


def _link(source: Path, target: Path) -> None:
    """Make `target` a link to a file or folder, or a copy where links are not allowed."""
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:  # Windows without the right to make links
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
