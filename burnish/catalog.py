"""The only registry: names that a configuration gives by `use`, and the things they name.

`use` is a built-in name, `"package.module:name"`, or `"my_file.py:name"`. The other keys of the
table are the arguments of the thing named; they are checked against its signature before it is
called, so a slip in a configuration is found at once and not after an hour. This table holds
strings: nothing is imported before it is used.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from burnish.annotations import fits, readable
from burnish.errors import type_and_message

BUILTIN: dict[str, dict[str, str]] = {
    "reward": {
        "compressibility": "burnish.rewards.compressibility:compressibility",
        "incompressibility": "burnish.rewards.compressibility:incompressibility",
        "clip_similarity": "burnish.rewards.clip:clip_similarity",
        "aesthetic": "burnish.rewards.aesthetic:aesthetic",
        "preference": "burnish.rewards.preference:preference",
        "sentiment": "burnish.rewards.sentiment:sentiment",
        "remote": "burnish.rewards.remote:remote",
        "caption": "burnish.rewards.caption:caption",
        "question": "burnish.rewards.question:question",
        "qr_scan": "burnish.rewards.qr_scan:scan",
        "qr_modules": "burnish.rewards.qr_modules:modules",
        "picture_similarity": "burnish.rewards.picture_similarity:picture_similarity",
        "code_distance": "burnish.rewards.code_distance:code_distance",
    },
    "curriculum": {
        "linear": "burnish.rl.curriculum:LinearCurriculum",
        "cosine": "burnish.rl.curriculum:CosineCurriculum",
        "steps": "burnish.rl.curriculum:StepsCurriculum",
        "gated": "burnish.rl.curriculum:GatedCurriculum",
        "sampled": "burnish.rl.curriculum:SampledCurriculum",
    },
    "advantage": {
        "batch": "burnish.rl.advantages:BatchAdvantage",
        "group": "burnish.rl.advantages:GroupAdvantage",
        # that same one, by its difference from "weighted"
        "normalised": "burnish.rl.advantages:GroupAdvantage",
        "weighted": "burnish.rl.advantages:WeightedAdvantage",
        "pareto": "burnish.rl.pareto:ParetoAdvantage",
        "tracker": "burnish.rl.advantages:TrackerAdvantage",
        "softmax": "burnish.rl.advantages:SoftmaxWeights",
        "top_fraction": "burnish.rl.advantages:TopFractionWeights",
    },
    "objective": {
        "reinforce": "burnish.rl.objectives:Reinforce",
        "clipped": "burnish.rl.objectives:Clipped",
        "rebel": "burnish.rl.objectives:Rebel",
        "rwr": "burnish.rl.objectives:RWR",
        "awm": "burnish.rl.objectives:AWM",
    },
    "kernel": {"ddim": "burnish.diffusion.kernels:DDIM", "lcm": "burnish.diffusion.kernels:LCM"},
    "guidance": {
        "none": "burnish.diffusion.guidance:NoGuidance",
        "cfg": "burnish.diffusion.guidance:CFG",
        "embedded": "burnish.diffusion.guidance:EmbeddedGuidance",
        "dual": "burnish.diffusion.guidance:DualGuidance",
        "embedded_dual": "burnish.diffusion.guidance:EmbeddedDualGuidance",
    },
    "prompts": {
        "animals": "burnish.prompts.sources:animals",
        "imagenet_animals": "burnish.prompts.sources:imagenet_animals",
        "activities": "burnish.prompts.sources:activities",
        "counting": "burnish.prompts.sources:counting",
        "zoo_nouns": "burnish.prompts.sources:zoo_nouns",
        "template": "burnish.prompts.sources:template",
        "lines": "burnish.prompts.sources:lines",
        "csv": "burnish.prompts.sources:csv_table",
        "jsonl": "burnish.prompts.sources:jsonl",
        "list": "burnish.prompts.sources:listed",
        "qr": "burnish.prompts.codes:qr",
    },
}
CALLED_WITH: dict[str, tuple[str, ...]] = {
    "reward": ("images", "prompts"),
    "advantage": ("scores", "weights", "group"),
    "objective": ("replay", "adv"),
    "kernel": ("x_t", "x0", "level_t", "level_s"),
    "guidance": ("raw", "x", "t", "cond", "null"),
    "curriculum": ("progress", "generator"),
}
"""The parameters with which a thing of each kind is called.

A plain function with these first parameters is the thing itself; anything else is called with the
arguments of the table to make it.
"""


IN_MEMORY = "burnish.training.assembly:absent"
"""The name that a run's configuration gives to an object of a Python program."""

PROMPT_FILES: Mapping[str, str] = {
    ".txt": "lines",
    ".csv": "csv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
}
"""The prompt source that reads a file, by the file's ending."""


def prompts_table(value: Any) -> Any:
    """Return the table of a prompt source that is given in short; anything else as it is.

    Args:
        value: a file by its ending, a source that needs no arguments by its name, or a list of
            texts.

    >>> prompts_table("mine.txt"), prompts_table(["a cat"])
    ({'use': 'lines', 'path': 'mine.txt'}, {'use': 'list', 'texts': ['a cat']})
    """
    if isinstance(value, list):
        return {"use": "list", "texts": value}
    if not isinstance(value, str):
        return value

    reader = PROMPT_FILES.get(Path(value).suffix.lower())
    return {"use": reader, "path": value} if reader else {"use": value}


def resolve(kind: str, use: str) -> Callable[..., Any]:
    """Return the function or class that `use` names.

    Raises:
        ValueError, FileNotFoundError: there is none; the message says what is wrong with the name.
    """
    if use in BUILTIN[kind]:
        use = BUILTIN[kind][use]

    module_name, colon, attribute = use.rpartition(":")
    if not colon:
        files = f", or a file ({', '.join(PROMPT_FILES)})" if kind == "prompts" else ""
        raise ValueError(
            f'{kind}: use = "{use}" is unknown; {nearest(use, BUILTIN[kind])}, '
            f'or "my_file.py:name"{files}'
        )
    if not module_name or not attribute:
        raise ValueError(
            f'{kind}: use = "{use}" needs both parts: "my_file.py:name" or "package.module:name"'
        )

    if module_name.endswith(".py"):
        module = _from_file(kind, Path(module_name))
    else:
        module = _from_package(kind, module_name)

    part: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(part):
        public = [
            name
            for name, value in vars(module).items()
            if callable(value) and not name.startswith("_")
        ]
        raise ValueError(
            f'{kind}: {module_name} has no function "{attribute}"; {nearest(attribute, public)}'
        )

    return part


def check(kind: str, table: Mapping[str, Any], where: str = "") -> Callable[..., Any]:
    """Return what `table` names; nothing is called.

    Raises:
        ValueError, FileNotFoundError: the name is unknown, or a key of the table is no argument of
            it, or of the wrong type.
    """
    where = where or kind
    use = table.get("use")

    if not isinstance(use, str) or not use:
        raise ValueError(f'{where}: say which one by use = "..."; {nearest("", BUILTIN[kind])}')

    found = resolve(kind, use)
    given = {key: value for key, value in table.items() if key != "use"}
    parameters = arguments(kind, found)
    accepted = [
        parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD
    ]
    takes_any = len(accepted) < len(parameters)
    hints = _hints(found)

    for key, value in given.items():
        if key not in accepted and not takes_any:
            raise ValueError(f'{where}: {use} does not take "{key}"; {nearest(key, accepted)}')
        if not fits(value, hints.get(key, Any)):
            raise ValueError(
                f"{where}.{key} = {value!r} is of the wrong type; "
                f"{use} wants {readable(hints[key])}"
            )

    for parameter in parameters:
        if (
            parameter.default is parameter.empty
            and parameter.name in accepted
            and parameter.name not in given
        ):
            raise ValueError(f"{where}: {use} needs {parameter.name} = ...; add it")

    return found


def build(kind: str, table: Mapping[str, Any], where: str = "") -> Any:
    """Return the thing that `table` names, made with the table's other keys as arguments.

    A function that is the thing itself, such as a reward `(images, prompts) -> (B,)`, is not called
    but bound to the arguments. What a user wrote is checked against its protocol.

    Raises:
        ValueError, FileNotFoundError: the name, an argument or an attribute is wrong.
    """
    found = check(kind, table, where)
    given = {key: value for key, value in table.items() if key != "use"}

    if _is_itself(kind, found):
        part = update_wrapper(partial(found, **given), found) if given else found
    else:
        try:
            part = found(**given)
        except (ValueError, TypeError) as error:
            key = f"{where or kind}: "
            raise ValueError(f"{key}{str(error).removeprefix(key)}") from error

    from burnish.checked import checked_part

    return checked_part(kind, part, table["use"])


def shown_name(table: Mapping[str, Any]) -> str:
    """Return the name of a part for a reader: its own, if it was an object of a Python program."""
    use = str(table.get("use", ""))
    return str(table.get("name", "an object")) if use == IN_MEMORY else use


def arguments(kind: str, found: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that a table of the configuration may give, in their order.

    Args:
        kind: of the part.
        found: the function or class, from `resolve`.
    """
    return _parameters(found)[len(CALLED_WITH[kind]) if _is_itself(kind, found) else 0 :]


def nearest(word: str, names: Iterable[str]) -> str:
    """Return half a sentence that helps: the closest of `names`, or all of them."""
    names = list(names)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    listed = f"accepted: {', '.join(names)}" if names else "it takes nothing"
    return f'did you mean "{close[0]}"? ({listed})' if close else listed


def _is_itself(kind: str, found: Callable[..., Any]) -> bool:
    wanted = CALLED_WITH.get(kind)
    return (
        wanted is not None
        and tuple(parameter.name for parameter in _parameters(found))[: len(wanted)] == wanted
    )


def _parameters(found: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters by name; a class without an __init__ of its own has none."""
    # typing gives a Protocol an __init__, which a plain subclass inherits
    initialiser: Any = getattr(found, "__init__", None)
    if isinstance(found, type) and initialiser.__name__ == "_no_init_or_replace_init":
        return []

    parameters = inspect.signature(found).parameters.values()
    return [one for one in parameters if one.kind is not one.VAR_POSITIONAL]


def _hints(found: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(found)  # of a dataclass: its fields, which are its arguments
    # an annotation that only a type checker can read: nothing to check against
    except (NameError, TypeError):
        return {}


def _from_package(kind: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{kind}: {name} cannot be imported ({error}); install it, or check the name"
        ) from error


def _from_file(kind: str, path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"{kind}: {path}: no such file; check the path (it is relative to the current folder)"
        )

    # one module a file, however often it is named; a hash separates two files of one name
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"burnish_user_{path.stem}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]

    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None  # it ends in .py
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module

    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(
            f"{kind}: {path} fails when it is read: {type_and_message(error)}"
        ) from error

    return module
