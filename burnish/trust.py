"""Consent to code that a file names: before it is imported, once, and remembered by what it is.

A recipe and a run's config.toml are data but for `use = "file.py:name"` and
`use = "package.module:name"`, which import that file or module and call what it has. Importing is
executing, so consent comes first, and the sources are found without importing anything, not even
the package around a module. A consent is remembered by the contents of the file and the name in
it; of an installed module by its name, its contents and the arguments that it gets.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from burnish.catalog import check_file, code_file, is_code
from burnish.references import NamedPart

Trust = bool | Callable[[str], bool]
"""Yes, no, or a function that is given the question and returns the answer."""


class UntrustedCodeError(ValueError):
    """A file names code that nobody has consented to."""


@dataclass(frozen=True)
class Code:
    """Code that a table names."""

    where: str
    use: str
    arguments: dict[str, Any]

    def files(self) -> list[Path]:
        """Return the files that importing it executes, as far as they are known before."""
        file = code_file(self.use)
        return [Path(file)] if file else _module_files(self.use.rpartition(":")[0])

    def digest(self) -> str:
        """Return what it is remembered by; "" if its source is not found."""
        files = self.files()
        if not files:
            return ""

        identity: Any = self.use.rpartition(":")[2]
        if not code_file(self.use):
            identity = [self.use, self.arguments]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
        try:
            for file in files:
                digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError:
            return ""
        return digest.hexdigest()

    def described(self) -> str:
        """Return its place, name, arguments and file on one line, with nothing hidden in it."""
        values = "".join(f", {key!r} = {_quoted(value)}" for key, value in self.arguments.items())
        files = self.files()
        file = f" from {str(files[-1])!r}" if files and not code_file(self.use) else ""
        return f"{self.where} = {self.use!r}{file}{values}"


def require_trust(
    parts: Iterable[NamedPart], typed: Collection[str], trust: Trust, source: str
) -> None:
    """Return if the user consents to all code that a file names.

    Args:
        parts: named by the file, or by the user.
        typed: names that the user wrote in this command, which is consent.
        trust: to the others.
        source: the file, for the question.

    Raises:
        FileNotFoundError: a file of code is not there.
        UntrustedCodeError: they do not consent.
    """
    codes = [
        Code(part.where, use, {key: one for key, one in part.table.items() if key != "use"})
        for part in parts
        if isinstance(use := part.table.get("use"), str) and is_code(part.kind, use)
    ]
    for code in codes:
        if file := code_file(code.use):
            check_file(code.where, Path(file), code.use.removeprefix(file))
    unknown = [code for code in codes if code.use not in typed and not is_remembered(code)]

    if unknown and trust is not True:
        listed = "\n".join(f"  {code.described()}" for code in unknown)
        question = f"{source} runs code that is not part of Burnish:\n{listed}\nDo you trust it?"
        if not trust or not trust(question):
            raise UntrustedCodeError(
                f"{'; '.join(code.described() for code in unknown)}: code that is not part of "
                "Burnish, which would run with your rights; read it, and if you trust it add "
                "--trust (in Python trust=True)"
            )

    for code in codes:
        remember(code)


def is_remembered(code: Code) -> bool:
    """Return whether the user has consented to this code before."""
    digest = code.digest()
    try:
        return bool(digest) and (folder() / digest).is_file()
    except (OSError, RuntimeError):  # a folder that may not be entered; no home folder
        return False


def remember(code: Code) -> None:
    """Note the user's consent; where the folder cannot be written the question comes again."""
    digest = code.digest()
    if not digest or is_remembered(code):
        return

    with suppress(OSError, RuntimeError):
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder() / digest).write_text(f"{code.described()}\n", "utf-8", errors="replace")


def folder() -> Path:
    """Return the folder with one small file for each consent; deleting it takes them back."""
    if sys.platform == "win32" and os.environ.get("APPDATA"):
        return Path(os.environ["APPDATA"]) / "burnish" / "trusted"

    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".config"
    return base / "burnish" / "trusted"


def _quoted(value: Any) -> str:
    """Return a value with its length where it is too long to be shown whole."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"


def _module_files(module: str) -> list[Path]:
    """Return the files of a module and of the packages around it, which are not imported."""
    names = module.split(".")
    search: list[str] | None = None
    files: list[Path] = []

    for count in range(1, len(names) + 1):
        spec = _find_spec(".".join(names[:count]), search)
        if spec is None:
            return []
        if spec.has_location and spec.origin:
            files.append(Path(spec.origin))
        if count == len(names):
            break

        try:
            search = list(spec.submodule_search_locations or ())
        except KeyError:  # a namespace within another that is not imported
            return []

    return files


def _find_spec(name: str, search: list[str] | None) -> ModuleSpec | None:
    loaded: ModuleSpec | None = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded

    found = (
        finder.find_spec(name, search) for finder in sys.meta_path if hasattr(finder, "find_spec")
    )
    try:
        return next((spec for spec in found if spec is not None), None)
    except (ImportError, ValueError, KeyError):
        return None
