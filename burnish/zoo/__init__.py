"""The zoo: small models shipped with the package, so that every algorithm runs end to end on a laptop CPU.

    zoo:emoji-sd      a Stable Diffusion pipeline about emoji, 64x64 pixels, v-prediction
    zoo:emoji-clip    the CLIP model it reads its prompts with; as a reward
    zoo:emoji-judge   a classifier (noun, colour, count), trained apart: for evaluation only, never a reward

A `zoo:` id stands wherever a hub id or a folder does. How the models were made: `pretrain/`. Standard library only.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

NAMES = ("emoji-sd", "emoji-clip", "emoji-judge")
_HOME = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The models that this installation has."""
    return tuple(name for name in NAMES if (_HOME / name).is_dir())


def path(name: str) -> Path:
    """The folder of an embedded model; `name` with or without `zoo:`.

    Raises:
        ValueError: there is no such model; the message lists what there is.
        FileNotFoundError: the model belongs to the zoo, but this installation came without its weights.
    """
    bare = name.removeprefix("zoo:")
    if bare not in NAMES:
        near = get_close_matches(bare, NAMES, n=1)
        hint = f"; did you mean zoo:{near[0]}?" if near else ""
        raise ValueError(f"the zoo has no '{bare}'{hint} It has: {', '.join(f'zoo:{name}' for name in NAMES)}")
    folder = _HOME / bare
    if not folder.is_dir():
        raise FileNotFoundError(f"zoo:{bare} belongs in {folder}, which is missing: reinstall burnish with its weights")
    return folder


def resolve(model: str) -> str:
    """A model id as the loaders of diffusers and transformers want it: `zoo:NAME` becomes its folder."""
    return str(path(model)) if model.startswith("zoo:") else model


def weights_mb() -> float:
    """Size of all weights in the zoo, in MB of 1,000,000 bytes."""
    return sum(file.stat().st_size for file in _HOME.rglob("*.safetensors")) / 1e6
