"""Commands that the studio starts for a run, and the checks before.

A training is `burnish train`, as somebody would type it, so its checks and sentences are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.errors import printable
from burnish.studio.folder import RunsFolder
from burnish.studio.processes import Processes

if TYPE_CHECKING:
    from burnish.references import Purpose

CHECK = "check"
"""The name under which a check is shown; it is no run."""

OF_RUN = "run:"
"""Begins what is trained as a run was: a run may have the name of a recipe."""


@dataclass(frozen=True)
class Plan:
    """A training that somebody wants: the fields of the form."""

    recipe: str  # the name of a recipe; or OF_RUN, and that of a run with the configuration
    name: str  # of the new run
    changes: tuple[str, ...] = ()  # KEY=VALUE


@dataclass
class Launches:
    """Starts commands about the runs of a folder.

    Args:
        folder: of the runs.
        allow_code: whether configurations may name Python code.
    """

    folder: RunsFolder
    allow_code: bool = False
    searches: set[str] = field(default_factory=set)  # names of processes that look for codes

    def __post_init__(self) -> None:
        """Have no process yet."""
        self.processes = Processes(self.folder, self.allow_code)

    def check(self, plan: Plan) -> None:
        """Start `burnish check` of a plan."""
        source = checked_source(self.folder, plan, self.allow_code)
        self.processes.launch(CHECK, ["check", source, *options(plan.changes)], trusts=True)

    def start(self, plan: Plan) -> None:
        """Start to train a new run.

        Raises:
            ValueError, OSError: what is wrong with the plan.
        """
        out = new_folder(self.folder, plan.name)
        source = checked_source(self.folder, plan, self.allow_code)
        arguments = ["train", source, *options(plan.changes), f"--out={out}"]
        self.processes.launch(plan.name, arguments, trusts=True)

    def resume(self, name: str, changes: Sequence[str] = (), accept: bool = False) -> None:
        """Start to go on with a run.

        Raises:
            ValueError, OSError: what is wrong with it, or with the changes.
        """
        run = self.folder.own(name)
        check_configuration(run.config, changes, self.allow_code)
        arguments = ["train", str(run.config), *options(changes), "--resume", f"--out={run.folder}"]
        arguments += ["--accept-changes"] if accept else []
        self.processes.let_end(name)
        self.processes.launch(name, arguments, trusts=True)

    def draw(self, name: str, strength: float) -> None:
        """Start to draw the sample grid of a run that does not train, at a strength.

        Raises:
            ValueError, OSError: what is wrong with the run.
        """
        run = self.folder.own(name)
        check_configuration(run.config, (), self.allow_code, purpose="redraw")
        arguments = ["sample", str(run.folder), "--grid", f"--strength={strength:g}"]
        self.processes.let_end(name)
        self.processes.launch(name, arguments, trusts=True)

    def branch(self, name: str, iteration: int, new: str) -> bool:
        """Copy a run as it was after an iteration; return whether it is done, or goes on.

        Raises:
            ValueError: it cannot be; the command's sentence says why.
        """
        out = new_folder(self.folder, new)
        run = self.folder.own(name)
        arguments = ["branch", f"--out={out}", str(run.folder), str(iteration)]
        return self.processes.finish(new, arguments)

    def roll_back(self, name: str, iteration: int) -> bool:
        """Take a run back to what it was after an iteration; return whether it is done.

        Raises:
            ValueError: it cannot be; the command's sentence says why.
        """
        run = self.folder.own(name)
        self.processes.let_end(name)
        return self.processes.finish(name, ["rollback", str(run.folder), str(iteration)])

    def search(self, name: str, arguments: list[str]) -> None:
        """Start a search for codes, whose arguments come from `burnish.studio.codes`.

        Raises:
            ValueError: its name is none, or is taken.
        """
        out = new_folder(self.folder, name)
        self.processes.launch(name, ["qr", "--keep-tries", f"--out={out}", *arguments], trusts=True)
        self.searches.add(name)

    def failures(self) -> list[str]:
        """Return the names of what was started here and failed before it became a run."""
        known = {*self.folder.names(), *self.searches, CHECK}
        return sorted(self.processes.failed() - known)


def new_folder(folder: RunsFolder, name: str) -> Path:
    """Return the path of a new run or search, which is not made.

    Raises:
        ValueError: its name is none, or is taken.
    """
    if name == CHECK:
        raise ValueError(f"{name} is no name for a folder; choose another one")
    return folder.new(name)


def checked_source(folder: RunsFolder, plan: Plan, allow_code: bool) -> str:
    """Return what to train: the name of a recipe, or the path of a run's configuration.

    Raises:
        ValueError, OSError: the configuration is wrong; the sentence is the command line's.
    """
    from burnish.config import recipes

    source = plan.recipe
    if source.startswith(OF_RUN):
        source = str(folder.run(source.removeprefix(OF_RUN)).config)
    elif source not in recipes():
        raise ValueError(f"there is no recipe {printable(source)}; choose one of the list")
    check_configuration(source, plan.changes, allow_code)
    return source


def check_configuration(
    source: str | Path,
    changes: Sequence[str],
    allow_code: bool,
    purpose: Purpose = "train",
) -> None:
    """Refuse a configuration that is wrong, in the words of the command line, or names code.

    Nothing that it names is imported unless that is allowed.

    Args:
        source: the name of a recipe, or the path of a configuration.
        changes: KEY=VALUE.
        allow_code: whether it may name Python code.
        purpose: what it is read for.

    Raises:
        ValueError, OSError: the sentence.
    """
    from burnish import config, references
    from burnish.catalog import is_code

    whole = asdict(config.load(source, changes, purpose="compare"))
    codes = [
        f"{part.where} = {part.table['use']}"
        for part in references.parts(whole)
        if is_code(part.kind, str(part.table.get("use", "")))
    ]
    if codes and not allow_code:
        raise ValueError(
            f"it names Python code ({printable(', '.join(codes))}), which would run with your "
            "rights; read it, and if you trust it start the studio with --allow-code"
        )

    config.load(source, changes, purpose=purpose, trust=allow_code)


def options(changes: Sequence[str]) -> list[str]:
    """Return changed keys as options of the command line."""
    return [f"--set={change}" for change in changes]
