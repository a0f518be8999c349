"""References of a configuration to what lies outside it: parts, code of others, and files.

All of it works on a tree of plain tables, as TOML is read. A relative path in a file is relative to
the folder of that file; in a program, and behind --set, to the current folder. So a tree that is
read is moved from the file's folder to the current one, and one that is written the other way:
a run and the files that it names can be moved together.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

from burnish import catalog
from burnish.annotations import IsPath, marks

Purpose = Literal["train", "evaluate", "rejudge", "sample", "redraw", "compare"]
"""Uses of a configuration.

"rejudge" evaluates by other rewards than its own, "redraw" samples its own prompts, "compare"
builds nothing.
"""

KINDS: Mapping[str, str] = {
    "sampler.kernel": "kernel",
    "sampler.guidance": "guidance",
    "advantage": "advantage",
    "curriculum": "curriculum",
    "objective": "objective",
    "prompts": "prompts",
    "evaluation.prompts": "prompts",
    "evaluation.unseen": "prompts",
    "rewards": "reward",
    "guard.panel": "reward",
}
"""The kind of the part that a table names, or each table of a list."""

_REJUDGED = (
    "sampler.kernel",
    "sampler.guidance",
    "prompts",
    "evaluation.prompts",
    "evaluation.unseen",
    "guard.panel",
)
NEEDED: Mapping[Purpose, tuple[str, ...]] = {
    "train": tuple(KINDS),
    "evaluate": (*_REJUDGED, "rewards"),
    "rejudge": _REJUDGED,
    "sample": ("sampler.kernel", "sampler.guidance"),
    "redraw": ("sampler.kernel", "sampler.guidance", "prompts"),
    "compare": (),
}
"""The tables whose parts are built for a purpose."""


@dataclass(frozen=True)
class NamedPart:
    """A table with `use`, and where it stands."""

    where: str
    kind: str
    table: dict[str, Any]


@dataclass(frozen=True)
class NamedPath:
    """A path, and the table that holds it under a key; `suffix` stands behind it."""

    where: str
    table: dict[str, Any]
    key: str
    path: str
    hub: bool = False
    suffix: str = ""


def parts(tree: Mapping[str, Any], purpose: Purpose = "train") -> Iterator[NamedPart]:
    """Yield the tables that name parts which are built for a purpose, nested ones too.

    What is no table is left out: the annotations of the configuration refuse it.
    """
    evaluates = purpose in ("evaluate", "rejudge")

    for where in NEEDED[purpose]:
        value: Any = tree
        for key in where.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None

        if where == "prompts" and evaluates and _lookup(tree, "evaluation", "prompts"):
            continue  # others are evaluated
        if where == "guard.panel" and evaluates and not _guards(tree):
            continue

        listed = enumerate(value) if isinstance(value, list) else ()
        tables = [(where, value), *((f"{where}.{index}", item) for index, item in listed)]
        for name, table in tables:
            yield from _named(name, KINDS[where], table)


def paths(tree: Mapping[str, Any], schema: Any) -> Iterator[NamedPath]:
    """Yield the paths in the sections of `schema`, a dataclass, and in the tables of parts.

    What a part of others takes is unknown, so of these only the file of its code is.
    """
    yield from _section_paths(tree, schema, "")

    for part in parts(tree):
        use = part.table.get("use")
        if not isinstance(use, str):
            continue
        if use in catalog.BUILTIN[part.kind]:
            yield from _argument_paths(part, use)
        elif file := catalog.code_file(use):
            suffix = use.removeprefix(file)
            yield NamedPath(f"{part.where}.use", part.table, "use", file, suffix=suffix)


def rebase(tree: dict[str, Any], schema: Any, old: Path, new: Path | None) -> None:
    """Rewrite the relative paths in a tree from one folder to another; None: make them absolute."""
    for named in list(paths(tree, schema)):
        moved = rebased(named.path, old, new, hub=named.hub)
        named.table[named.key] = f"{moved}{named.suffix}"


def rebased(path: str, old: Path, new: Path | None = None, *, hub: bool = False) -> str:
    """Return a path that is relative to `old` as one that is relative to `new`.

    Args:
        path: which stays if it is absolute.
        old: the folder of the file in which it stands.
        new: the folder from which it is looked up; None: the result is absolute.
        hub: it may also be `zoo:NAME` or an id on the hub, which stays.
    """
    if not path or (hub and not _is_local(path, old)):
        return path

    expanded = os.path.expanduser(path)
    if os.path.isabs(expanded):
        return expanded
    if new is not None and os.path.realpath(old) == os.path.realpath(new):
        return path

    folder, name = os.path.split(os.path.join(old, expanded))
    target = os.path.join(os.path.realpath(folder), name)
    if new is None:
        return os.path.normpath(target)

    try:
        moved = Path(os.path.relpath(target, os.path.realpath(new))).as_posix()
    except ValueError:  # another drive of Windows
        return target
    # otherwise a folder that is missing would look like an id on the hub
    return f"./{moved}" if hub and not moved.startswith("..") else moved


def _is_local(name: str, folder: Path) -> bool:
    """Return whether a model's name is a folder or file: it looks like one, or is there.

    With two slashes it may be OWNER/NAME/FILE of the hub, unless its first part is a folder.
    """
    if name.startswith("zoo:") or "://" in name:
        return False
    if name.startswith((".", "~")) or os.path.isabs(name) or "\\" in name:
        return True
    if name.count("/") > 1:
        return os.path.isdir(os.path.join(folder, name.partition("/")[0]))
    return os.path.exists(os.path.join(folder, name))


def _named(where: str, kind: str, table: Any) -> Iterator[NamedPart]:
    if not isinstance(table, dict) or not table:
        return

    yield NamedPart(where, kind, table)
    if kind in ("prompts", "reward") and catalog.is_own(kind, table.get("use")):
        # a source or reward of the catalog may take its texts from a source
        for key, value in table.items():
            if isinstance(value, dict) and "use" in value:
                yield from _named(f"{where}.{key}", "prompts", value)


def _section_paths(tree: Mapping[str, Any], schema: Any, where: str) -> Iterator[NamedPath]:
    hints = typing.get_type_hints(schema, include_extras=True)

    for key, hint in hints.items():
        value = tree.get(key)
        name = f"{where}.{key}" if where else key
        if is_dataclass(hint) and isinstance(value, dict):
            yield from _section_paths(value, hint, name)
        elif isinstance(value, str) and isinstance(tree, dict):
            for mark in marks(hint, IsPath):
                if value not in mark.names:
                    yield NamedPath(name, tree, key, value, mark.hub)


def _argument_paths(part: NamedPart, use: str) -> Iterator[NamedPath]:
    hints = catalog.argument_hints(catalog.resolve(part.kind, use))

    for key, value in part.table.items():
        if key == "use" or not isinstance(value, str):
            continue
        for mark in marks(hints.get(key, hints.get(catalog.OTHER_KEYS)), IsPath):
            if value not in mark.names:
                yield NamedPath(f"{part.where}.{key}", part.table, key, value, mark.hub)


def _lookup(tree: Mapping[str, Any], section: str, key: str) -> Any:
    table = tree.get(section)
    return table.get(key) if isinstance(table, Mapping) else None


def _guards(tree: Mapping[str, Any]) -> bool:
    return _lookup(tree, "guard", "action") not in (None, "none")
