"""Measures how the package reads, and compares it with its targets (docs/design.md).

    python -m tests.style_targets

prints the table. `tests/test_style.py` fails where a target is missed.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "burnish"
BESIDE = ("tests", "experiments", "benchmarks", "pretrain", "examples")
"""Folders whose identifiers are read too."""

LOOP = PACKAGE / "training" / "loop.py"

METHOD = (
    "training/loop",
    "training/collect",
    "training/credit",
    "training/updates",
    "rl/objectives",
)
"""Files to read in order to understand how a run learns."""

PARTS = ("kernel", "guidance", "advantage", "objective", "curriculum", "process", "learner")
BORDER = (PACKAGE / "checked.py", PACKAGE / "training" / "checked_learner.py")
"""The files that look into a part that a user wrote."""

PRIVATE_WORDS = (
    "there asked said told barren apart teach reword wordsmith settled everyone joints company "
    "picture pictures move moves look kept guess guesses chance suit steered weaken previews"
).split()
"""Identifiers of an old private language that must not come back."""

LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    name: str
    value: float
    target: str
    met: bool
    worst: str = ""


@dataclass(frozen=True)
class Source:
    """A parsed file."""

    path: Path
    tree: ast.Module
    lines: list[str]

    def functions(self) -> Iterator[Function]:
        """Yield all functions, nested ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                yield node

    def classes(self) -> Iterator[ast.ClassDef]:
        """Yield all classes."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                yield node


def sources(folder: Path = PACKAGE) -> list[Source]:
    """Return a folder's files, parsed, but for those of hidden folders (virtual environments)."""
    parsed = []
    for path in sorted(folder.rglob("*.py")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        text = path.read_text("utf-8")
        parsed.append(Source(path, ast.parse(text), text.splitlines()))
    return parsed


def body(function: Function) -> list[ast.stmt]:
    """Return a function's statements without its docstring."""
    return function.body[1:] if ast.get_docstring(function) else function.body


def body_range(function: Function) -> range:
    """Return the line numbers of a function's body, blank lines and comments included."""
    statements = body(function)
    if not statements:
        return range(0)
    return range(statements[0].lineno, (function.end_lineno or 0) + 1)


def docstring_lines(source: Source) -> set[int]:
    """Return the line numbers of docstrings and of texts below assignments."""
    found: set[int] = set()
    for node in ast.walk(source.tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        if isinstance(node.value.value, str):
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def tokens_by_line(source: Source) -> dict[int, int]:
    """Return the number of tokens that begin on each line of code."""
    counts: dict[int, int] = {}
    text = "\n".join(source.lines) + "\n"
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in LAYOUT:
            continue
        for line in range(token.start[0], token.end[0] + 1):
            counts.setdefault(line, 0)
        counts[token.start[0]] += 1

    skipped = docstring_lines(source)
    return {line: count for line, count in counts.items() if line not in skipped}


def complexity(function: Function) -> int:
    """Return the cyclomatic complexity of a function: its decisions plus 1."""
    branches = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.comprehension)
    count = 1
    for node in ast.walk(function):
        if isinstance(node, branches):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
    return count


def docstrings(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the name and docstring of each module, class and function that has one."""
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *Function.__args__)):  # type: ignore[attr-defined]
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", source.path.name), text


def probes(source: Source) -> Iterator[str]:
    """Yield getattr and hasattr calls whose first argument is a part of a run."""
    for node in ast.walk(source.tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id in ("getattr", "hasattr") and node.args:
            subject = ast.unparse(node.args[0]).rpartition(".")[2]
            if subject in PARTS:
                yield f"{source.path.name}:{node.lineno} {ast.unparse(node)}"


def identifiers(source: Source) -> Iterator[str]:
    """Yield every name that the code defines or reads."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name


def measures() -> list[Measure]:
    """Return all rows of the table."""
    parsed = sources()
    found = [*function_measures(parsed), *line_measures(parsed), *loop_measures(parsed)]

    methods = [
        (sum(isinstance(node, Function) for node in one.body), one.name)
        for source in parsed
        for one in source.classes()
    ]
    most, name = max(methods)
    found.append(Measure("methods a class, most", most, "<= 10", most <= 10, name))

    openings = [
        f"{source.path.name}: {name}"
        for source in parsed
        for name, text in docstrings(source)
        if re.match(r"(What|How|Whether)\b", text)
    ]
    count = len(openings)
    found.append(Measure("docstrings that open with What", count, "0", not count, *openings[:1]))

    probed = [probe for source in parsed if source.path not in BORDER for probe in probes(source)]
    found.append(Measure("getattr/hasattr on parts", len(probed), "0", not probed, *probed[:1]))

    beside = [source for folder in BESIDE for source in sources(ROOT / folder)]
    words = [
        f"{source.path.name}: {name}"
        for source in [*parsed, *beside]
        for name in identifiers(source)
        if name in PRIVATE_WORDS
    ]
    found.append(Measure("identifiers of the old words", len(words), "0", not words, *words[:1]))
    return found


def function_measures(parsed: list[Source]) -> list[Measure]:
    """Return the rows about the length of functions."""
    lengths = sorted(
        (len(body_range(function)), function.name)
        for source in parsed
        for function in source.functions()
        if source.path != LOOP
    )
    p95 = lengths[int(0.95 * len(lengths))][0]
    longest, name = lengths[-1]
    return [
        Measure("function body, 95 %", p95, "<= 35 lines", p95 <= 35),
        Measure("function body, longest", longest, "<= 60 lines", longest <= 60, name),
    ]


def line_measures(parsed: list[Source]) -> list[Measure]:
    """Return the rows about tokens and blank lines."""
    counts = [count for source in parsed for count in tokens_by_line(source).values()]
    tokens = sum(counts) / len(counts)

    blank = 0
    total = 0
    for source in parsed:
        for function in source.functions():
            lines = [source.lines[number - 1] for number in body_range(function)]
            blank += sum(not line.strip() for line in lines)
            total += len(lines)

    share = 100 * blank / total
    return [
        Measure("tokens a line of code", tokens, "<= 9", tokens <= 9),
        Measure("blank lines inside functions, %", share, ">= 6", share >= 6),
    ]


def loop_measures(parsed: list[Source]) -> list[Measure]:
    """Return the rows about the training loop and the files that explain it."""
    (loop,) = [source for source in parsed if source.path == LOOP]
    (train,) = [function for function in loop.functions() if function.name == "train"]
    lines = len(body_range(train))
    decisions = complexity(train)

    texts = [PACKAGE / f"{name}.py" for name in METHOD]
    reading = sum(len(path.read_text("utf-8").splitlines()) for path in texts)
    files = len(METHOD)
    return [
        Measure("the loop, lines", lines, "<= 60", lines <= 60),
        Measure("the loop, cyclomatic complexity", decisions, "<= 15", decisions <= 15),
        Measure("files to understand the method", files, "<= 5", files <= 5),
        Measure("lines of these files", reading, "<= 950", reading <= 950),
        *field_measures(parsed),
    ]


def field_measures(parsed: list[Source]) -> list[Measure]:
    """Return the rows about the fields of `Job` and of a checkpoint's `State`."""
    limits = {"Job": 6, "State": 4}
    found = []

    for source in parsed:
        if source.path.parent.name != "training":
            continue
        for one in source.classes():
            if one.name in limits:
                fields = sum(isinstance(node, ast.AnnAssign) for node in one.body)
                most = limits[one.name]
                found.append(Measure(f"fields of {one.name}", fields, f"<= {most}", fields <= most))

    return found


def table(rows: list[Measure]) -> str:
    """Return the rows as aligned text."""
    lines = [f"{'':2}{'measure':<36}{'value':>8}  {'target':<12} worst"]
    for row in rows:
        mark = "  " if row.met else "! "
        value = f"{row.value:.1f}".removesuffix(".0")
        lines.append(f"{mark}{row.name:<36}{value:>8}  {row.target:<12} {row.worst}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measures()))
