"""Seeded mutations of configurations and of a run's files: each is accepted or one sentence.

    python -m tests.mutations 20000

tries so many mutated configurations and prints what came of them; `tests/test_mutations.py` tries a
few hundred, and those of a run's files.
"""

from __future__ import annotations

import copy
import datetime
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from burnish import config as configuration

VALUES: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 0.0, -0.0, 0.5, 1e3, 1e-400, 1e39, 3.5, 2**31, 2**63, -(2**63), 10**400,
    float("nan"), float("inf"), -float("inf"), True, False, "", "False", "true", "None", "nan",
    "3", "1e3", "zoo:nothing", "mine.py:f", "os:system", "a:b:c", ":", ".py:", "animals", "group",
    "cuda", "a\u2028b", "a\x00b", "\x1b[2J", "{noun}", "{", "x" * 3000, [], {}, [1, "a"], [[]],
    [{}],    [float("nan")], [True], ["a", "b"], {"use": "animals"}, {"use": "list", "texts": [1]},
    {"use": 3}, {"a": {"b": {"c": float("inf")}}}, datetime.date(2020, 1, 1),
)  # fmt: skip
"""What a key is set to."""

SPELLINGS = (
    "False", "TRUE", "None", "null", "nan", "+inf", "1e3", "'3'", "3.0", "-0.0",
    "0x" + "f" * 5000, "1" * 5000, "[" * 3000, "{}", "[1,'a']", "{use='animals'}", "2020-01-01",
    "''", "a b", "=", "\\",
)  # fmt: skip
"""What stands behind `--set KEY=`."""


def places(node: Any) -> list[tuple[Any, Any]]:
    """Return every (table or list, key) in a tree."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((node, key))
        if isinstance(node[key], (dict, list)):
            found += places(node[key])
    return found


def mutated(tree: Any, source: random.Random, values: tuple[Any, ...] = VALUES) -> Any:
    """Return a copy of a tree with one to three faults."""
    tree = copy.deepcopy(tree)

    for _ in range(source.choice((1, 1, 1, 2, 3))):
        found = places(tree) if isinstance(tree, (dict, list)) else []
        if not found:
            break
        node, key = source.choice(found)
        kind = source.randrange(10)

        if kind < 6:
            node[key] = copy.deepcopy(source.choice(values))
        elif kind == 6:
            del node[key]
        elif kind == 7 and isinstance(node, dict):
            node[f"{key}{source.choice(('s', '_', ' '))}"] = node.pop(key)
        elif kind == 8:
            node[key] = [node[key]]
        else:
            other, place = source.choice(found)
            copied = other.get(place) if isinstance(other, dict) else other[place:][:1]
            node[key] = copy.deepcopy(copied)

    return tree


def cut(content: bytes, source: random.Random) -> bytes:
    """Return a file's content with its end cut off or a few bytes exchanged."""
    if source.random() < 0.3:
        return content[: source.randrange(len(content) + 1)]

    spoiled = bytearray(content)
    for _ in range(source.randint(1, 4)):
        if spoiled:
            spoiled[source.randrange(len(spoiled))] = source.randrange(256)
    return bytes(spoiled)


def outcome(attempt: Callable[[], object]) -> str:
    """Return "accepted" or "refused"; raise if it is refused without one clear sentence."""
    try:
        attempt()
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RecursionError):
            raise
        text = str(error)
        assert text.strip() and "\n" not in text and "\x1b" not in text, repr(text)
        assert len(text) < 4000, text
        return "refused"
    return "accepted"


def try_configuration(trees: list[Any], source: random.Random, folder: Path) -> str:
    """Mutate one of the configurations and read it."""
    path = folder / "mutated.toml"
    tree = source.choice(trees)
    overrides: list[str] = []
    kind = source.randrange(5)

    if kind == 0:
        names = [".".join(map(str, name)) for name in dotted(tree)]
        overrides = [f"{source.choice(names)}={source.choice(SPELLINGS)}"]
        path.write_bytes(tomli_w.dumps(tree).encode())
    elif kind == 1:
        path.write_bytes(cut(tomli_w.dumps(tree).encode(), source))
    else:
        path.write_bytes(tomli_w.dumps(mutated(tree, source)).encode())

    def attempt() -> None:
        purpose = source.choice(("train", "train", "evaluate", "sample", "compare"))
        config = configuration.load(path, overrides, purpose=purpose)
        path.write_text(configuration.dump(config, folder), "utf-8")
        again = configuration.load(path, purpose=purpose)
        assert configuration.comparable(again) == configuration.comparable(config)

    return outcome(attempt)


def dotted(node: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the dotted names in a tree."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    found = []
    for key in keys:
        found.append((*before, key))
        if isinstance(node[key], (dict, list)):
            found += dotted(node[key], (*before, key))
    return found


def configurations() -> list[Any]:
    """Return every recipe with all of its keys, as a tree."""
    return [asdict(configuration.load(name)) for name in configuration.recipes()]


def main(count: int) -> None:
    """Try mutated configurations and print what came of them."""
    trees = configurations()
    counts: Counter[str] = Counter()

    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            try:
                counts[try_configuration(trees, random.Random(seed), Path(folder))] += 1
            except Exception as error:
                counts[f"{type(error).__name__}"] += 1
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")

    print(json.dumps(counts))


if __name__ == "__main__":
    main(int(sys.argv[1]))
