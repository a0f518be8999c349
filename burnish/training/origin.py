"""Where a run comes from: its configuration, the files that this names, the number of processes.

Each checkpoint keeps a copy, so that a resume compares what goes on with what was trained, and not
a file with itself. Of files it has digests: of code and prompt files, adapters, model folders, and
of the images that prompts name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.catalog import IN_MEMORY
from burnish.config import Config, RunConfig
from burnish.files import dumps
from burnish.training.assembly import EvaluationParts, Parts
from burnish.types import Prompt
from burnish.world import World

# What may differ from the first start on resume: how long, how fast and what is kept, but not what
# is learned.
MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "iterations": (),
    "run": tuple(field.name for field in fields(RunConfig)),
    "model": ("device", "gradient_checkpointing", "offload", "prompt_signs", "text_encoder"),
    "batch": ("sample_batch", "train_batch"),
    "evaluation": ("every",),
    "scoring": ("retries", "timeout", "missing", "patience"),
    "guard": ("action", "kl", "drop", "patience"),
}

GUARD_MAY_BECOME = {
    "none": ("none",),  # nothing was measured that it could watch
    "warn": ("none", "warn", "stop"),  # the checkpoint that it would go back to may be gone
    "stop": ("none", "warn", "stop"),
    "rollback": ("none", "warn", "stop", "rollback"),
}
"""The actions that a run's guard may have on resume, by the one it had."""

EVALUATED = ("file", "evaluation", "expander", "guard", "model", "prompts", "rewards", "sampler")
"""The beginnings of the names of what decides the numbers of an evaluation."""

LARGE = 1 << 24  # bytes: of a file of more than two times this, only both ends count
READ = (".json", ".model", ".safetensors", ".txt")
"""The endings of the files that count in a folder of a model or an adapter."""


def origin_of(config: Config, world: World, parts: EvaluationParts | None = None) -> dict[str, Any]:
    """Return where a run comes from, as JSON: "config", "processes", "files", "images", "pairs".

    Args:
        config: of the run.
        world: its processes.
        parts: of the run; without them there are no "images". With pairs of images that are
            learned from there are also "pairs", a digest; with a LoRA that changes text encoders
            "lora_texts", as a policy has them.
    """
    origin = {"config": asdict(config), "processes": world.count, "files": named_files(config)}
    if parts is not None:
        prompts = _prompts_of(parts)
        images = named_images(prompts)
        origin["images"] = images
        if pairs := pairs_digest(prompts.get("prompts", ()), images):
            origin["pairs"] = pairs
        if parts.policy.lora_texts:
            origin["lora_texts"] = parts.policy.lora_texts

    return origin


def _prompts_of(parts: EvaluationParts) -> dict[str, list[Prompt]]:
    trained = {"prompts": parts.prompts} if isinstance(parts, Parts) else {}
    return trained | parts.evaluation_prompts


def named_files(config: Config) -> dict[str, str]:
    """Return the digest of each file or folder that a configuration names, by its key."""
    digests: dict[str, str] = {}

    for name, value in leaves(asdict(config)):
        if name.startswith("run.") or name.endswith(".texts") or name == "texts":
            continue

        texts = value if isinstance(value, list) else [value]
        for text in texts:
            path = _code_file(text) if name.endswith(".use") else _data_file(text)
            if path is not None:
                digests[name] = digests.get(name, "") + _digest(path)

    return digests


def named_images(prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, str]:
    """Return the digest of each file that prompts name in their metadata, by its path."""
    paths = {
        text
        for source in prompts.values()
        for prompt in source
        for text in prompt.metadata.values()
        if isinstance(text, str) and Path(text).suffix
    }
    return {text: _digest(Path(text)) for text in sorted(paths) if _is_file(text)}


def pairs_digest(prompts: Sequence[Prompt], images: Mapping[str, str]) -> str:
    """Return the digest of the pairs of images that prompts name, in their order; "" of none.

    Args:
        prompts: from `prompts.pairs`, or others.
        images: the digest of each image by its path.
    """
    sides = ("chosen", "rejected")
    pairs = [
        [prompt.text, *(images.get(str(prompt.metadata[side])) for side in sides)]
        for prompt in prompts
        if all(side in prompt.metadata for side in sides)
    ]
    return hashlib.sha256(dumps(pairs).encode("utf-8", "replace")).hexdigest() if pairs else ""


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs, beyond what may change: a remark by the name of each.

    Args:
        old: an origin; what it lacks is not compared.
        new: another one.
    """
    found = _changed_keys(old, new)

    if old.get("processes", new["processes"]) != new["processes"]:
        found["number of processes"] = f"it was {old['processes']}, and is {new['processes']} now"

    images = new.get("images", old.get("images", {}))
    for path, digest in old.get("images", {}).items():
        if path not in images:
            is_there = _is_file(path)
            found[f"file {path}"] = "no prompt names it any more" if is_there else "it is missing"
        elif images[path] != digest:
            found[f"file {path}"] = "it has changed"

    # older versions noted none; another image is found above
    if not found and old.get("pairs", new.get("pairs")) != new.get("pairs"):
        found["prompts (pairs of images)"] = "they, or their order, are others: votes or files came"
    return found


def decides_evaluations(changed: Iterable[str]) -> bool:
    """Return whether the numbers of an evaluation depend on any of the names in `changes`."""
    return any(name.split(".")[0].split(" ")[0] in EVALUATED for name in changed)


def _changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of the configuration that differ, or whose file does, with a remark."""
    before = dict(leaves(_completed(Config(), old.get("config", new["config"]))))
    now = dict(leaves(new["config"]))
    old_files = old.get("files", {})
    found = {}

    for name in now | before:
        digests = (old_files.get(name), new["files"].get(name))
        same_file = digests[0] is not None and digests[0] == digests[1]
        values = (before.get(name), now.get(name))
        lost = digests[0] is not None and digests[1] is None

        if lost and _file_name(values[0]) == _file_name(values[1]):
            found[name] = _missing(name, values[1])
        elif values[0] != values[1]:
            moved = same_file and _attribute(values[0]) == _attribute(values[1])
            if not moved and not _may_change(name, *values):
                found[name] = f"it was {_quoted(values[0])}"
        elif digests[0] is not None and not same_file:
            found[name] = f"the file of {values[1]} has changed"

    return found


def _completed(section: Any, table: Any) -> Any:
    """Return a table of a configuration with the keys that an older version did not have."""
    if not is_dataclass(section):
        return table

    defaults = {field.name: getattr(section, field.name) for field in fields(section)}
    return {
        key: _completed(default, table.get(key, _plain(default)))
        for key, default in defaults.items()
    }


def _plain(default: Any) -> Any:
    return asdict(default) if is_dataclass(default) else default  # type: ignore[arg-type]


def _may_change(name: str, before: Any, now: Any) -> bool:
    """Return whether a key may have another value on resume."""
    if name == "guard.action":
        return now in GUARD_MAY_BECOME.get(before, ())

    section, _, key = name.partition(".")
    return section in MAY_CHANGE and (not key or key.split(".")[0] in MAY_CHANGE[section])


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the (dotted name, value) of everything in a tree of tables and lists of tables.

    >>> dict(leaves({"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4]}))
    {'a.b': 1, 'c.0.d': 2, 'e': [3, 4]}
    """
    if isinstance(value, (list, tuple)):
        if not any(isinstance(item, Mapping) for item in value):
            yield name, list(value)
            return
        value = {str(index): item for index, item in enumerate(value)}

    if not isinstance(value, Mapping):
        yield name, value
        return

    for key, item in value.items():
        yield from leaves(item, f"{name}.{key}" if name else str(key))


def _code_file(use: Any) -> Path | None:
    """Return the file of a `use` that is the user's: "my_file.py:name" or "package.module:name"."""
    module, _, attribute = str(use).rpartition(":")
    if not module or not attribute or module.split(".")[0] == "burnish":
        return None
    if module.endswith(".py"):
        return Path(module) if _is_file(module) else None

    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found and found.origin and _is_file(found.origin) else None


def _data_file(text: Any) -> Path | None:
    """Return the path that a text is, if a file is there, or a folder and it has a separator."""
    if not isinstance(text, str) or not text:
        return None

    path = Path(text)
    try:
        exists = path.is_file() or (len(path.parts) > 1 and path.is_dir())
    except (OSError, ValueError):  # much too long, or with characters that no path has
        return None
    return path if exists else None


def _is_file(text: str) -> bool:
    path = _data_file(text)
    return path is not None and path.is_file()


def _attribute(value: Any) -> str:
    """Return the name behind the file in a `use`; "" of a path."""
    module, _, attribute = str(value).rpartition(":")
    return attribute if module.endswith(".py") else ""


def _file_name(value: Any) -> Any:
    """Return the last part of a path, or of a `use`; of what is no text that itself."""
    return Path(value).name if isinstance(value, str) else value


def _missing(name: str, value: Any) -> str:
    """Return the remark about a file that is not where a configuration says now."""
    remark = f"the file of {value} is missing"
    if not isinstance(value, str):
        return remark
    return (
        f"{remark}, which was looked for as {os.path.abspath(value)}; give its place by --set "
        f"{name}=FOLDER/{Path(value).name}"
    )


def _digest(path: Path) -> str:
    """Return a SHA-256 of a file's content, or of the names and contents in a folder."""
    digest = hashlib.sha256()
    if path.is_file():
        _add_content(digest, path)
        return digest.hexdigest()

    for file in sorted(one for one in path.rglob("*") if one.suffix in READ and one.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\n".encode("utf-8", "backslashreplace"))
        _add_content(digest, file)
    return digest.hexdigest()


def _add_content(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{size}\n".encode())

    with open(path, "rb") as file:
        digest.update(file.read(LARGE))
        if size > 2 * LARGE:
            file.seek(-LARGE, 2)
        digest.update(file.read(LARGE))


def _quoted(value: Any) -> str:
    """Return a value for a message, cut if it is long."""
    if value == IN_MEMORY:
        return "an object of a Python program"

    text = "not set" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
