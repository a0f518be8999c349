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
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from burnish.annotations import ArgumentsOf, complaint, marks, number_complaint
from burnish.errors import NoSuchFile, type_and_message

OTHER_KEYS = "**"
"""The name under which `argument_hints` has the annotation of all further keys."""

IN_MEMORY = "burnish.training.assembly:absent"
"""The name that a run's configuration gives to an object of a Python program."""

BUILTIN: dict[str, dict[str, str]] = {
    "reward": {
        "compressibility": "burnish.rewards.compressibility:compressibility",
        "incompressibility": "burnish.rewards.compressibility:incompressibility",
        "clip_similarity": "burnish.rewards.clip:clip_similarity",
        "clip_contrast": "burnish.rewards.clip_contrast:clip_contrast",
        "clip_retrieval": "burnish.rewards.clip_contrast:clip_retrieval",
        "aesthetic": "burnish.rewards.aesthetic:aesthetic",
        "preference": "burnish.rewards.preference:preference",
        "sentiment": "burnish.rewards.sentiment:sentiment",
        "remote": "burnish.rewards.remote:remote",
        "caption": "burnish.rewards.caption:caption",
        "question": "burnish.rewards.question:question",
        "qr_scan": "burnish.rewards.qr_scan:scan",
        "qr_modules": "burnish.rewards.qr_modules:modules",
        "picture_similarity": "burnish.rewards.picture_similarity:picture_similarity",
        "taste": "burnish.rewards.taste:taste",
        "votes": "burnish.rewards.votes:votes",
        "chosen": "burnish.rewards.training_only:chosen",
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
        "none": "burnish.rl.advantages:NoAdvantage",
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
        "dppo": "burnish.rl.objectives:DPPO",
        "rwr": "burnish.rl.forward_objectives:RWR",
        "awm": "burnish.rl.forward_objectives:AWM",
        "rvm": "burnish.rl.forward_objectives:RVM",
        "ram": "burnish.rl.forward_objectives:RAM",
        "nft": "burnish.rl.forward_objectives:NFT",
        "dgpo": "burnish.rl.forward_objectives:DGPO",
        "latent": "burnish.rl.chain_objectives:Latent",
        "fdfo": "burnish.rl.chain_objectives:FDFO",
        "dpo": "burnish.rl.dpo:DPO",
    },
    "kernel": {
        "ddim": "burnish.diffusion.kernels:DDIM",
        "lcm": "burnish.diffusion.kernels:LCM",
        "ode": "burnish.diffusion.kernels:ODE",
        "cps": "burnish.diffusion.kernels:CPS",
        "precise": "burnish.diffusion.kernels:Precise",
        "churn": "burnish.diffusion.kernels:Churn",
        "renoise": "burnish.diffusion.kernels:Renoise",
        "flow_grpo": "burnish.diffusion.kernels:FlowGRPO",
        "dance_grpo": "burnish.diffusion.kernels:DanceGRPO",
    },
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
        "dataset": "burnish.prompts.datasets:dataset",
        "list": "burnish.prompts.sources:listed",
        "qr": "burnish.prompts.codes:qr",
        "pairs": "burnish.prompts.pairs:pairs",
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

BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

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
    if isinstance(value, Mapping):
        texts = value.get("texts")
        nested = is_own("prompts", value.get("use")) and isinstance(texts, (str, Mapping))
        return {**value, "texts": prompts_table(texts)} if nested else value
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
    if wrong := number_complaints(given, where):
        raise ValueError(wrong)

    parameters = arguments(kind, found, given)
    _check_arguments(found, given, where, use, parameters, _or_itself(kind, found))
    if _is_itself(kind, found, given):
        from burnish.user_code import check_signature

        check_signature(f"{where}: {kind} {use}", partial(found, **given), CALLED_WITH[kind])

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

    from burnish.checked import checked_part

    if _is_itself(kind, found, given):
        part = update_wrapper(partial(found, **given), found) if given else found
    else:
        part = _made(kind, found, given, f"{where or kind}: {table['use']}")

    return checked_part(kind, part, table["use"], CALLED_WITH.get(kind, ()))


def _made(kind: str, found: Callable[..., Any], given: dict[str, Any], name: str) -> Any:
    """Return what a factory or class makes of its arguments.

    Raises:
        ValueError: it raises; what a user wrote may raise anything.
    """
    from burnish.checked import is_built_in
    from burnish.seeds import random_state_kept
    from burnish.user_code import described, run_user

    where = name.partition(": ")[0]
    if is_built_in(found):
        try:
            return found(**given)
        except NoSuchFile as error:
            if error.setting:  # of a part within this one
                raise
            for key, value in given.items():
                if isinstance(value, str) and Path(value) == error.path:
                    raise error.named(where, key) from error
            raise
        except (ValueError, TypeError, FileNotFoundError) as error:
            error_type = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            message = str(error).removeprefix(f"{where}: ")
            # what begins with an argument's name is about this key of the table
            about_key = message.partition(": ")[0] in [one.name for one in _parameters(found)]
            raise error_type(f"{where}{'.' if about_key else ': '}{message}") from error

    try:
        with random_state_kept():
            return run_user(name, found, **given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} raised {described(error)}") from error


def is_own(kind: str, use: Any) -> bool:
    """Return whether a name is one of the table's, in short or in full."""
    return isinstance(use, str) and use in (*BUILTIN[kind], *BUILTIN[kind].values())


def is_code(kind: str, use: str) -> bool:
    """Return whether a name stands for code that a file chose: for none of the table's own."""
    return ":" in use and not is_own(kind, use) and use != IN_MEMORY


def code_file(use: str) -> str:
    """Return the file in a name such as "my_file.py:name"; "" if it is another name."""
    module = use.rpartition(":")[0]
    return module if module.endswith(".py") else ""


def argument_hints(found: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of the arguments of a function, or of the class's __init__.

    A bare argument whose default is a number or a truth value must be one, so that a text such as
    "False" is never taken for true.
    """
    initialiser: Any = getattr(found, "__init__", None) if isinstance(found, type) else found
    try:
        hints = typing.get_type_hints(initialiser, include_extras=True)
    # an annotation that only a type checker can read: nothing to check against
    except (NameError, TypeError, AttributeError):
        hints = {}

    for parameter in _parameters(found):
        if parameter.kind is parameter.VAR_KEYWORD:
            hints[OTHER_KEYS] = hints.pop(parameter.name, Any)
        elif parameter.annotation is parameter.empty and isinstance(parameter.default, bool):
            hints[parameter.name] = bool
        elif parameter.annotation is parameter.empty and isinstance(
            parameter.default, (int, float)
        ):
            hints[parameter.name] = float

    return hints


def number_complaints(value: Any, name: str) -> str:
    """Return the first complaint about a number anywhere in tables and lists; "" without one."""
    if isinstance(value, Mapping):
        found = (number_complaints(item, f"{name}.{key}") for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        found = (number_complaints(item, f"{name}.{index}") for index, item in enumerate(value))
    else:
        return number_complaint(value, name)
    return next((wrong for wrong in found if wrong), "")


def shown_name(table: Mapping[str, Any]) -> str:
    """Return the name of a part for a reader: its own, if it was an object of a Python program."""
    use = str(table.get("use", ""))
    return str(table.get("name", "an object")) if use == IN_MEMORY else use


def arguments(
    kind: str, found: Callable[..., Any], given: Mapping[str, Any] | None = None
) -> list[inspect.Parameter]:
    """Return the parameters that a table of the configuration may give, in their order.

    Args:
        kind: of the part.
        found: the function or class, from `resolve`.
        given: the keys of the table, but for `use`.
    """
    parameters = _parameters(found)
    if not _is_itself(kind, found, given or {}):
        return parameters

    places = [one for one in parameters if one.kind in BY_PLACE][: len(CALLED_WITH[kind])]
    return [one for one in parameters if one not in places]


def nearest(word: str, names: Iterable[str]) -> str:
    """Return half a sentence that helps: the closest of `names`, or all of them."""
    names = list(names)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    listed = f"accepted: {', '.join(names)}" if names else "it takes nothing"
    return f'did you mean "{close[0]}"? ({listed})' if close else listed


def _check_arguments(
    found: Callable[..., Any],
    given: Mapping[str, Any],
    where: str,
    use: str,
    parameters: Sequence[inspect.Parameter],
    otherwise: str = "",
) -> None:
    """Refuse arguments that a function does not take, that do not fit, or that are missing.

    The table gives `parameters`; `otherwise` ends the message about a missing one.
    """
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    accepted = [parameter.name for parameter in parameters if parameter.kind not in variable]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    hints = argument_hints(found)

    for key, value in given.items():
        if key not in accepted and not takes_any:
            raise ValueError(f'{where}: {use} does not take "{key}"; {nearest(key, accepted)}')

        hint = hints.get(key, hints.get(OTHER_KEYS, Any))
        if wrong := complaint(value, hint, f"{where}.{key}"):
            raise ValueError(wrong)
        for mark in marks(hint, ArgumentsOf) if isinstance(value, Mapping) else ():
            module, _, name = mark.function.partition(":")
            function = getattr(importlib.import_module(module), name)
            taken = _parameters(function)[mark.bound :]
            _check_arguments(function, value, f"{where}.{key}", key, taken)

    for parameter in parameters:
        if (
            parameter.default is parameter.empty
            and parameter.name in accepted
            and parameter.name not in given
        ):
            raise ValueError(f"{where}: {use} needs {parameter.name} = ...; add it{otherwise}")


def _is_itself(kind: str, found: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    """Return whether a function is the thing itself, rather than one that makes it.

    It is if it has the known parameters, or takes as many by their places, whatever their names
    are, and the table gives none of them.
    """
    wanted = CALLED_WITH.get(kind)
    if wanted is None or isinstance(found, type):
        return False

    parameters = _parameters(found)
    if {*wanted} <= {one.name for one in parameters}:
        return True
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return True

    needed = [one.name for one in parameters if one.kind in BY_PLACE and one.default is one.empty]
    return len(needed) == len(wanted) and not {*needed} & given.keys()


def _or_itself(kind: str, found: Callable[..., Any]) -> str:
    """Return what else may be wrong with a function that makes a part, but lacks an argument."""
    if kind not in CALLED_WITH or isinstance(found, type):
        return ""
    return (
        f"; if it is the {kind} itself, and does not make one, it has to take "
        f"({', '.join(CALLED_WITH[kind])})"
    )


def _parameters(found: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters; a class without an __init__ of its own has none."""
    # typing gives a Protocol an __init__, which a plain subclass inherits
    initialiser: Any = getattr(found, "__init__", None)
    if isinstance(found, type) and initialiser.__name__ == "_no_init_or_replace_init":
        return []

    try:
        return list(inspect.signature(found).parameters.values())
    except ValueError:  # of a function in C
        return []


def _from_package(kind: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        reason = error if isinstance(error, ImportError) else type_and_message(error)
        raise ValueError(
            f"{kind}: {name} cannot be imported ({reason}); install it, or check the name"
        ) from error


def check_file(where: str, path: Path, suffix: str = "") -> None:
    """Refuse a file of code that is not there.

    Args:
        where: the table stands that names it, or its kind.
        path: of the file.
        suffix: what stands behind it in `use`, if a configuration names it.
    """
    if not path.is_file():
        missing = NoSuchFile(path, where=where)
        raise missing.named(where, "use", suffix) if suffix else missing


def _from_file(kind: str, path: Path) -> Any:
    check_file(kind, path)

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

    from burnish.seeds import random_state_kept
    from burnish.user_code import described, run_user

    try:
        with random_state_kept():
            run_user(str(path), specification.loader.exec_module, module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{kind}: {path} fails when it is read: {described(error)}") from error

    return module
