"""The strength that a LoRA's metadata state: diffusers' and kohya's header, peft's configuration.

Each value that counts is checked, so that a wrong one is named with its key.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."

LARGEST = torch.finfo(torch.float32).max
ALPHA = f"a number of more than 0 and at most {LARGEST:.0e}"
RANK = "a whole number of at least 1"
OBJECT = 'a JSON object, such as {"lora_alpha": 4}'
REMEDY = "correct it there, or save the LoRA again with the program that made it"


def read_metadata(path: Path, header: Mapping[str, str], names: Iterable[str]) -> dict[str, Any]:
    """Return what the header, or peft's configuration beside the file, says of its adapters.

    Args:
        path: of the file.
        header: its texts.
        names: of its tensors.

    Raises:
        ValueError: a value that counts has the wrong type or size.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

    place = f"the header's {LORA_ADAPTER_METADATA_KEY}"
    text: str | bytes = header.get(LORA_ADAPTER_METADATA_KEY, "")
    beside = path.with_name(PEFT_CONFIG)

    if beside.is_file() and (path.name == PEFT_FILE or (not text and _is_pefts(path, names))):
        place = f"the {PEFT_CONFIG} beside it"
        text = beside.read_bytes()

    metadata = _parsed(text or "{}", place)
    for key, value in metadata.items():
        _check_setting(key, value, place)

    return metadata


def kohya_alpha(header: Mapping[str, str], is_conv: bool) -> float | None:
    """Return the alpha that kohya's header states for all layers; None where it states none.

    Args:
        header: the file's texts.
        is_conv: True for a convolution of more than 1x1 (LoCon), which has an alpha of its own: 1
            where it is not stated, as in kohya's programs.

    Raises:
        ValueError: it is no positive number.
    """
    value: Any = header.get("ss_network_alpha", "None")
    if value == "None":
        return None

    key = "ss_network_alpha"
    place = "the header"
    if is_conv:
        key = "conv_alpha"
        place = "the header's ss_network_args"
        arguments = header.get("ss_network_args", "None")
        value = 1 if arguments == "None" else _parsed(arguments, place).get(key, 1)

    try:
        alpha = float(value)
    except (TypeError, ValueError):
        alpha = 0.0
    if not is_positive(alpha):
        raise _complaint(key, value, ALPHA, place)
    return alpha


def is_positive(value: object) -> bool:
    """Return True for a positive number that float32 holds."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value <= LARGEST  # type: ignore[operator]


def _is_pefts(path: Path, names: Iterable[str]) -> bool:
    """Return True for the file, by whatever name, that peft's configuration beside it describes.

    It has peft's names; with peft's own file in the folder too, only peft's prefix tells.
    """
    sign = PEFT_PREFIX if path.with_name(PEFT_FILE).is_file() else ".lora_A."
    return any(sign in name for name in names)


def _parsed(text: str | bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # bytes that are no text too
        value = text
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {reprlib.repr(value)}, but must be {OBJECT}: {REMEDY}")
    return value


def _check_setting(key: str, value: Any, place: str) -> None:
    """Raise ValueError if a value of the metadata has the wrong type or size."""
    kind = key.rpartition(".")[2]  # diffusers puts a part's name before it

    if kind == "lora_alpha" and not is_positive(value):
        raise _complaint(key, value, ALPHA, place)
    if kind == "r" and not _is_rank(value):
        raise _complaint(key, value, RANK, place)
    if kind == "use_rslora" and not isinstance(value, (bool, type(None))):
        raise _complaint(key, value, "true or false", place)
    if kind in ("alpha_pattern", "rank_pattern"):
        _check_pattern(key, value, place)


def _check_pattern(key: str, value: Any, place: str) -> None:
    """Raise ValueError if a pattern does not give numbers by (regular expressions of) layers."""
    if not isinstance(value, (dict, type(None))):
        raise _complaint(key, value, 'a JSON object, such as {"to_q": 4}', place)

    is_alpha = key.endswith("alpha_pattern")
    for layer, number in (value or {}).items():
        if not (is_positive(number) if is_alpha else _is_rank(number)):
            raise _complaint(f"{key}.{layer}", number, ALPHA if is_alpha else RANK, place)
        try:
            re.compile(layer)
        except re.error as error:
            raise _complaint(key, layer, "by layers or regular expressions", place) from error


def _is_rank(value: object) -> bool:
    return is_positive(value) and isinstance(value, int)


def _complaint(key: str, value: object, wanted: str, place: str) -> ValueError:
    return ValueError(f"{key} in {place} is {reprlib.repr(value)}, but must be {wanted}: {REMEDY}")
