"""Write docs/configuration.md from burnish/config.py and the catalog.

    python docs/generate_configuration.py            write the page
    python docs/generate_configuration.py --check    exit code 1 if the page is another

A key's text is the comment beside its field, or the comment lines above it. The tables of named
parts come from the catalog: signatures, and the first sentence of each docstring.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from burnish import catalog

DOCS = Path(__file__).parent
PAGE = DOCS / "configuration.md"
SOURCE = DOCS.parent / "burnish" / "config.py"

ROOT = "Config"
TYPES = {"str": "text", "bool": "true or false", "int": "whole number", "float": "number"}
TYPES |= {"Table": "table", "list[Table]": "list of tables"}
TYPES |= dict.fromkeys(("ModelPath", "FilePath", "ExpansionsPath", "DeviceName"), "text")
TYPES |= {"list[str]": "list of texts", "list[float]": "list of numbers"}

INTRODUCTION = """\
# Configuration reference

<!-- Written by `python docs/generate_configuration.py` from the comments in burnish/config.py. -->

A recipe is a TOML file with these keys; all of them have a default but `model.id`, `prompts` and
`rewards`. On the command line any key is changed by its name, `--set batch.prompts=4`, an entry of
a list by its number: `--set rewards.0.weight=2`. An unknown key is an error that names the nearest
known one. Numbers are finite, true and false are written so, and a text that TOML would read as
something else needs quotes: `--set 'prompts.text="3"'`. A relative path counts from the folder of
the file in which it stands (a recipe, a run's `config.toml`), one behind `--set` from the current
folder; an argument of your own function is passed as it is. `burnish list` shows the recipes and
every name that `use = "..."` accepts; beside those,
`use = "my_file.py:name"` and `use = "package.module:name"` name a part of your own
([rewards](guides/own-reward.md), [objectives](guides/own-objective.md)). That is code: where a
recipe names it you are asked once, or give `--trust` ([SECURITY](../SECURITY.md)).
"""

PARTS = """\
## Parts by name

A table of the configuration with `use = "name"` takes the arguments below as its other keys, such
as `kernel = { use = "ddim", eta = 1.0 }`. An argument without a default must be given.
"""


@dataclass(frozen=True)
class Field:
    """A key of a section."""

    name: str
    type: str
    default: str
    comment: str


@dataclass(frozen=True)
class Section:
    """A dataclass of the configuration."""

    text: str
    fields: list[Field]


def comments(source: str) -> dict[int, tuple[str, bool]]:
    """Return the comment of each line, and whether it has the line for itself."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.string.lstrip("#").strip(), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def comment_of(node: ast.AnnAssign, found: dict[int, tuple[str, bool]]) -> str:
    """Return the comment lines above a field and the comments within its lines, joined."""
    above = []
    line = node.lineno - 1

    while line in found and found[line][1]:
        above.append(found[line][0])
        line -= 1

    last = node.end_lineno or node.lineno
    beside = [found[line][0] for line in range(node.lineno, last + 1) if line in found]
    return " ".join([*reversed(above), *beside])


def default_of(node: ast.expr | None) -> str:
    """Return a field's default as TOML writes it; a factory's is what it makes."""
    if node is None:
        return ""

    if isinstance(node, ast.Call) and ast.unparse(node.func) == "field":
        for keyword in node.keywords:
            if keyword.arg in ("default", "default_factory"):
                made = keyword.value
                return default_of(made.body if isinstance(made, ast.Lambda) else made)

    if isinstance(node, ast.Name):
        return {"dict": "{}", "list": "[]"}.get(node.id, node.id)

    return as_toml(ast.literal_eval(node))


def as_toml(value: object) -> str:
    """Return a value as TOML writes it on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(as_toml(item) for item in value)}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"

    return str(value)


def sections(source: str) -> dict[str, Section]:
    """Return the dataclasses of a module by their names, with the fields in their order."""
    found = comments(source)
    result = {}

    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            fields = [
                Field(
                    statement.target.id,
                    ast.unparse(statement.annotation),
                    default_of(statement.value),
                    comment_of(statement, found),
                )
                for statement in node.body
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            ]
            result[node.name] = Section(plain(ast.get_docstring(node) or ""), fields)

    return result


def pages(known: dict[str, Section], name: str = ROOT, where: str = "") -> Iterator[str]:
    """Yield the Markdown of a section and of the sections within it."""
    section = known[name]
    title = f"`[{where}]`" if where else "The file"
    yield f"## {title}\n\n{section.text}\n"

    rows = [field for field in section.fields if field.type not in known]
    if rows:
        lines = "\n".join(row(field, where) for field in rows)
        yield f"| key | type | default | |\n|---|---|---|---|\n{lines}\n"

    for field in section.fields:
        if field.type in known:
            yield from pages(known, field.type, f"{where}.{field.name}" if where else field.name)


def row(field: Field, where: str) -> str:
    """Return the table row of a key."""
    name = f"{where}.{field.name}" if where else field.name
    kind = TYPES.get(field.type, field.type)
    return f"| `{name}` | {kind} | `{cell(field.default)}` | {cell(field.comment)} |"


def cell(text: str) -> str:
    """Return a text that may stand in a table; within code nothing but the bar is special."""
    text = text.replace("|", "\\|")
    return text if "`" in text else text.replace("<", "&lt;")


def parts() -> Iterator[str]:
    """Yield the Markdown of the named parts, one table a kind."""
    yield PARTS

    for kind, table in catalog.BUILTIN.items():
        lines = "\n".join(part_row(kind, name) for name in table)
        yield f"### {kind}\n\n| `use` | arguments | |\n|---|---|---|\n{lines}\n"


def part_row(kind: str, name: str) -> str:
    """Return the table row of a named part."""
    part = catalog.resolve(kind, name)
    parameters = [
        argument(parameter)
        for parameter in inspect.signature(part).parameters.values()
        if parameter.name not in catalog.CALLED_WITH.get(kind, ())
    ]
    return f"| `{name}` | {', '.join(parameters)} | {first_sentence(part)} |"


def argument(parameter: inspect.Parameter) -> str:
    """Return an argument with its default, as a recipe writes it."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return "further keys"
    if parameter.default is parameter.empty:
        return f"`{parameter.name}`"
    if parameter.default is None:
        return f"`{parameter.name}` (none)"

    return f"`{parameter.name} = {as_toml(parameter.default)}`"


def first_sentence(part: object) -> str:
    """Return the first sentence of a docstring, on one line."""
    text = plain(inspect.getdoc(part) or "").split("\n\n")[0]
    return cell(re.split(r"(?<=[.:])\s", text, maxsplit=1)[0].rstrip(":"))


def plain(text: str) -> str:
    """Return a docstring with its paragraphs on one line each, and single backticks for code."""
    paragraphs = [" ".join(part.split()) for part in text.replace("`", "`").split("\n\n")]
    return "\n\n".join(paragraphs)


def render() -> str:
    """Return the whole page."""
    known = sections(SOURCE.read_text("utf-8"))
    return "\n".join([INTRODUCTION, *pages(known), *parts()])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text("utf-8") != render())
    PAGE.write_text(render(), "utf-8")
