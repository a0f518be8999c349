"""The list of everything that a recipe can name, and one page about each: `burnish list`.

A page of a part of the catalog has its signature, its docstring, and a piece of TOML with every
argument, which may be pasted into a recipe in place of the recipe's own table.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

import tomli_w

from burnish import catalog, config, zoo
from burnish.diffusion.families import FAMILIES

KINDS = ("recipe", *catalog.BUILTIN, "zoo", "family")
PLURALS: Mapping[str, str] = {
    "family": "families",
    "prompts": "prompt sources",
    "zoo": "models",
    "curriculum": "curricula",
}
"""Plurals that are not the kind and an s."""

HEADS: Mapping[str, str] = {
    "reward": "[[rewards]]",
    "kernel": "[sampler.kernel]",
    "guidance": "[sampler.guidance]",
}
"""The heads of a kind's tables in a recipe, if they are not the kind in brackets."""

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "clip_contrast": {"others": ["a cat", "a dog", "a car"]},
    "clip_retrieval": {"others": ["a cat", "a dog", "a car"]},
    "remote": {"url": "http://127.0.0.1:8000/score"},
    "linear": {"first": 1.4, "last": 0.8},
    "cosine": {"first": 1.4, "last": 0.8},
    "steps": {"values": [1.4, 1.1, 0.8]},
    "gated": {"first": 1.4, "last": 0.8},
    "sampled": {"first": 1.4, "last": 0.8},
    "template": {"text": "a {colour} {noun}", "colour": ["red", "blue"], "noun": ["cat", "dog"]},
    "lines": {"path": "prompts.txt"},
    "csv": {"path": "prompts.csv"},
    "jsonl": {"path": "prompts.jsonl"},
    "pairs": {"path": "pairs.jsonl"},
    "dataset": {"id": "OWNER/NAME"},
    "taste": {"head": "taste.safetensors"},
    "list": {"texts": ["a cat", "a dog on the moon"]},
    "qr": {"texts": ["a cat", "a dog"], "random": 100},
}
"""Values of the arguments that have no default of any use, by the part's name."""


def listing(kind: str = "", width: int = 0) -> str:
    """Return the names of a kind, or of all kinds, each with a sentence about it.

    Args:
        kind: one of `KINDS`, or its plural; "" for all.
        width: columns in which a sentence is wrapped, without cutting it; 0 leaves each on its
            line.

    Raises:
        ValueError: there is no such kind; the message names the nearest.
    """
    if kind:
        return "\n".join(_rows(entries(known_kind(kind)), width))

    blocks = [[plural(one), *_rows(entries(one), width)] for one in KINDS]
    return "\n\n".join("\n".join(block) for block in blocks)


def page(kind: str, name: str) -> str:
    """Return everything about one recipe, part, model or family.

    Args:
        kind: one of `KINDS`, or its plural.
        name: of the thing; of a part also "my_file.py:name".

    Raises:
        ValueError, FileNotFoundError: there is no such kind or thing; the message names the
            nearest.
    """
    kind = known_kind(kind)
    if kind in catalog.BUILTIN:
        return _part_page(kind, name)

    name = name.removeprefix("zoo:") if kind == "zoo" else name
    texts = entries(kind)
    if name not in texts:
        raise ValueError(f'{kind}: "{name}" is unknown; {catalog.nearest(name, texts)}')

    if kind == "recipe":
        return (
            f"{recipe_summary(name)}\n\n"
            f"burnish train {name}\n"
            f"burnish recipe {name} > my.toml      the same, to edit; then: burnish train my.toml"
        )
    if kind == "zoo":
        return (
            f"zoo:{name}: {texts[name]}\n{zoo.size_mb(name):.1f} MB, {zoo.path(name)}\n\n"
            f"A zoo: id stands wherever a hub id or a folder does."
        )
    return (
        f"{name}: {texts[name]}\n\nmodel.id may be any folder or hub id of this diffusers pipeline."
    )


def known_kind(word: str) -> str:
    """Return the kind that a word means, such as "reward" for "rewards".

    Raises:
        ValueError: there is none; the message names the nearest, or the kind of a thing that is
            called so.
    """
    words = {
        word: kind
        for kind in KINDS
        for name in (kind, plural(kind))
        for word in (name, f"{name}s", name.removesuffix("s"))
    }
    if word.lower() in words:
        return words[word.lower()]

    owners = [kind for kind in KINDS if word.removeprefix("zoo:") in _names(kind)]
    if owners:
        ways = " or ".join(f"burnish list {kind} {word}" for kind in owners)
        raise ValueError(f'"{word}" is no kind, but the name of one; ask for it by: {ways}')

    close = get_close_matches(word.lower(), words, n=1)
    hint = f'did you mean "{words[close[0]]}"? ' if close else ""
    raise ValueError(f'list: "{word}" is no kind of thing; {hint}(accepted: {", ".join(KINDS)})')


def plural(kind: str) -> str:
    """Return what several things of a kind are called."""
    return PLURALS.get(kind, f"{kind}s")


def entries(kind: str) -> dict[str, str]:
    """Return the names of a kind with a sentence about each."""
    if kind == "recipe":
        return {name: first_sentence(recipe_summary(name)) for name in config.recipes()}
    if kind == "zoo":
        return {name: zoo.MODELS[name] for name in zoo.names()}
    if kind == "family":
        return {name: _about_family(name) for name in FAMILIES}

    return {
        name: first_sentence(inspect.getdoc(catalog.resolve(kind, name)) or "")
        for name in catalog.BUILTIN[kind]
    }


def first_sentence(text: str) -> str:
    """Return the first sentence of the first paragraph of a text, on one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.)\s(?=[A-Z])", paragraph, maxsplit=1)[0]
    return sentence if sentence.endswith("...") else sentence.rstrip(".:")


def recipe_summary(name: str) -> str:
    """Return the comment that a recipe opens with, up to its first empty line."""
    lines = config.packaged_recipe(name).read_text("utf-8").splitlines()
    return "\n".join(line.lstrip("# ") for line in takewhile(lambda line: line.strip("# "), lines))


def snippet(kind: str, name: str) -> str:
    """Return the table of a part in TOML, with all of its arguments that TOML can write.

    Args:
        kind: a kind of the catalog.
        name: of the part.

    Raises:
        ValueError, FileNotFoundError: there is no such part.
    """
    example = EXAMPLES.get(name, {})
    table: dict[str, Any] = {"use": name}
    if kind == "reward":
        table["weight"] = 1.0
    unset = []

    part = catalog.resolve(kind, name)
    hints = _plain_hints(part)

    for parameter in catalog.arguments(kind, part):
        value = example.get(parameter.name, parameter.default)
        own_key = kind == "reward" and parameter.name in config.REWARD_KEYS
        if parameter.kind is parameter.VAR_KEYWORD or own_key:
            continue
        if value is parameter.empty or not _fits_toml(value):
            unset.append(f"# {parameter.name} = ...   # {_annotation(parameter, hints)}\n")
        else:
            table[parameter.name] = value

    # one by one: of a short list of tables tomli_w would make a list that cannot be added to
    lines = [tomli_w.dumps({key: value}) for key, value in {**table, **example}.items()]
    return "\n".join([HEADS.get(kind, f"[{kind}]"), "".join([*lines, *unset])])


def signature(kind: str, name: str) -> str:
    """Return a part's arguments with their types and defaults, as Python writes them."""
    parts = []
    part = catalog.resolve(kind, name)
    hints = _plain_hints(part)

    for parameter in catalog.arguments(kind, part):
        text = f"{parameter.name}: {_annotation(parameter, hints)}"
        if parameter.kind is parameter.VAR_KEYWORD:
            text = f"**{text}"
        elif parameter.default is not parameter.empty:
            default = parameter.default
            text += f" = {json.dumps(default) if isinstance(default, str) else repr(default)}"
        parts.append(text)

    line = f"{name}({', '.join(parts)})"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def _part_page(kind: str, name: str) -> str:
    """Return the page of a part of the catalog: what it is, and how a recipe uses it."""
    part = catalog.resolve(kind, name)
    text = inspect.getdoc(part) or "It has no docstring."
    return f"{signature(kind, name)}\n\n{text}\n\nIn a recipe:\n\n{snippet(kind, name)}".rstrip()


def _fits_toml(value: object) -> bool:
    """Return whether TOML can write a value on a line of its own; None it cannot."""
    if isinstance(value, Mapping):
        return False

    try:
        tomli_w.dumps({"value": value})
    except TypeError:
        return False
    return True


def _annotation(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> str:
    """Return a parameter's type as Python writes it, without the rules of `annotations`."""
    hint = hints.get(parameter.name, parameter.annotation)
    if hint is parameter.empty:
        return "any"
    return hint if isinstance(hint, str) else inspect.formatannotation(hint)


def _plain_hints(part: Any) -> dict[str, Any]:
    """Return the types of a part's arguments; {} where one can only be read by a type checker."""
    called: Any = getattr(part, "__init__", None) if isinstance(part, type) else part

    try:
        return typing.get_type_hints(called)
    except (NameError, TypeError, AttributeError):
        return {}


def _about_family(name: str) -> str:
    """Return a sentence about the models of a diffusers pipeline."""
    family = FAMILIES[name]
    text = f"trains the pipeline's {family.network}"
    if family.controlnet_pipeline:
        text += f"; with model.controlnet it becomes a {family.controlnet_pipeline}"
    return text


def _names(kind: str) -> Sequence[str]:
    """Return the names of a kind; no part is imported."""
    tables: Mapping[str, Callable[[], Sequence[str]]] = {
        "recipe": config.recipes,
        "zoo": zoo.names,
        "family": lambda: tuple(FAMILIES),
    }
    return tables[kind]() if kind in tables else tuple(catalog.BUILTIN[kind])


def _rows(texts: Mapping[str, str], width: int) -> list[str]:
    """Return one row a name, its sentence wrapped behind it if there is a width."""
    column = max(len(name) for name in texts)
    rows = []

    for name, text in texts.items():
        head = f"  {name:<{column}}  "
        indent = " " * len(head)

        # in a narrow terminal the sentence goes below its name
        if width and len(head) > width // 2:
            rows.append(f"  {name}")
            head = indent = " " * 6

        row = head + text
        if width:
            row = textwrap.fill(
                text,
                max(width, 2 * len(head)),
                initial_indent=head,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        rows.append(row)

    return rows
