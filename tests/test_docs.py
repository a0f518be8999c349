"""The documentation: README is short and runs, links lead somewhere, and what is named exists."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from test_layers import FLOOR, GROUND, WINGS
from typer.main import get_command

import burnish
from burnish import catalog, cli
from burnish import config as configuration

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "README.md"])
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]*))?\)")
KEY = re.compile(r"(?<![\w./`-])`?((?:\w+\.)+\w+)(?= ?=|`)")

every_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


# README -----------------------------------------------------------------------------------------


def test_readme_is_short_and_in_order() -> None:
    """At most 600 words: a sentence, the image, the two commands, Python, six bullets, links."""
    assert len(README.split()) <= 600
    order = ["fine-tunes image generators", "docs/images/flow.png", "make demo", "make test"]
    order += ["```python", "## What it does", "## Read on"]
    places = [README.index(text) for text in order]
    assert places == sorted(places)

    commands = next(text for _, text in BLOCK.findall(README) if "make demo" in text)
    assert {"make demo", "make test"} <= set(commands.splitlines())
    bullets = README.partition("## What it does")[2].partition("## Read on")[0]
    assert bullets.count("\n- ") == 6


def test_the_python_of_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for one iteration, few images and no evaluation.

    The other block, which draws with a trained adapter, runs in test_zoo.py.
    """
    code, _ = (text for language, text in BLOCK.findall(README) if language == "python")
    assert len(code.splitlines()) <= 14
    assert "iterations=5" in code
    small = ["iterations=1", "batch.prompts=2", "evaluation.images_per_prompt=0"]
    small += ["sampler.steps=2", "batch.transitions=1", "run.sample_every=0"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readme.py").write_text(code.replace('["iterations=5"]', repr(small)))
    runpy.run_path("readme.py")
    assert any((tmp_path / "runs" / "red" / "adapter").iterdir())


# Pages that follow the code ---------------------------------------------------------------------


def test_the_configuration_reference_is_fresh() -> None:
    """Every key, its default and its comment; and every named part with its arguments."""
    generate = load(DOCS / "generate_configuration.py")
    page = (DOCS / "configuration.md").read_text("utf-8")
    assert page == generate.render(), "run: python docs/generate_configuration.py"
    assert set(keys()) <= set(re.findall(r"`([\w.]+)`", page))
    assert not re.findall(r"^.*\| (?:Annotated|[A-Z]\w+) \|.*$", page, re.MULTILINE), (
        "no type for it"
    )
    assert not re.findall(r"^\| `[^`]+` \| [^|]+ \| [^|]+ \|\s*\|$", page, re.MULTILINE)


def test_the_api_reference_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text("utf-8")
    assert sorted(re.findall(r"^::: burnish\.(\w+)$", page, re.MULTILINE)) == sorted(
        burnish.__all__
    )


def test_the_design_states_the_rules_of_the_wings() -> None:
    """The table of docs/design.md has those of tests/test_layers.py."""
    page = (DOCS / "design.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)`(?: \(ground floor\))? \| (.*) \|$", page, re.MULTILINE))

    for name, allowed in (WINGS | FLOOR).items():
        named = set(re.findall(r"`(\w+)`", rows[name]))
        if rows[name].startswith("the ground floor"):
            named |= GROUND
        assert named == allowed, name


def test_the_glossary_is_short() -> None:
    rows = [line for line in (DOCS / "glossary.md").read_text().splitlines() if line[:2] == "| "]
    assert 20 <= len(rows) - 1 <= 25  # less the head


def test_the_site_has_every_page() -> None:
    """Each page below docs/ stands in mkdocs.yml's nav."""
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS).as_posix()}\n" in site, page


def test_the_keys_of_a_log_are_described() -> None:
    """Those that the first iterations of the embedded recipes have."""
    page = (DOCS / "runs.md").read_text("utf-8")
    recipes = json.loads((ROOT / "tests" / "data" / "first_iterations.json").read_text("utf-8"))
    logged = {key for record in recipes.values() for key in record}
    assert logged <= set(re.findall(r"`(\w+)", page.partition("## The log")[2]))


# What pages name --------------------------------------------------------------------------------


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    text = page.read_text("utf-8")

    for target, anchor in LINK.findall(BLOCK.sub("", text)):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target

        if anchor and path.suffix == ".md" and path.name != "api.md":
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{target}#{anchor}"


@every_page
def test_configuration_keys_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # has the names of yesterday

    known = set(keys())
    sections = {key.split(".")[0] for key in known if "." in key}
    tables = {"rewards", "objective", "advantage", "prompts", "curriculum"}
    text = page.read_text("utf-8")
    named = {key for key in KEY.findall(text) if key.split(".")[0] in sections}
    named |= set(re.findall(r"--set '?([a-z][\w.]+)=", text))
    named = {key for key in named if not key.endswith(".json")}

    for key in named:
        parts = key.split(".")
        parents = {".".join(parts[:length]) for length in range(1, len(parts))}
        in_table = parts[0] in tables or parents & {"sampler.kernel", "sampler.guidance"}
        in_table = in_table or parents & {"evaluation.prompts", "evaluation.unseen"}
        assert key in known or key in sections or in_table, f"{page.name}: no key {key}"


@every_page
def test_recipes_and_commands_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    commands = set(get_command(cli.app).commands)

    for command, argument in re.findall(
        r"^(?:.*`)?burnish (\w+)(?: ([a-z]+\w*-[\w-]+))?", text, re.MULTILINE
    ):
        assert command in commands, f"burnish {command}"
        if command in ("train", "check") and argument:
            assert argument in configuration.recipes(), argument


@every_page
def test_modules_and_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")

    if page.name == "CHANGELOG.md":
        return

    for path in re.findall(r"`(burnish(?:\.\w+)+)", text):
        assert resolves(path), path
    for module in re.findall(r"python -m ((?:experiments|pretrain|benchmarks)[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for path in re.findall(r"`((?:burnish|examples|experiments|docs|tests)/[\w/.-]+\.\w+)", text):
        assert (ROOT / path).exists(), path


def resolves(path: str) -> bool:
    """Return if a dotted name is a module, or an attribute of one."""
    value: Any = burnish
    where = "burnish"

    for name in path.split(".")[1:]:
        where = f"{where}.{name}"
        if hasattr(value, name):
            value = getattr(value, name)
        elif hasattr(value, "__path__") and importlib.util.find_spec(where):
            value = importlib.import_module(where)
        else:
            return False

    return True


def keys(kind: Any = configuration.Config, where: str = "") -> Iterator[str]:
    """Yield every key of the configuration, such as "batch.prompts"."""
    hints = get_type_hints(kind)

    for field in fields(kind):
        name = f"{where}.{field.name}" if where else field.name
        if is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], name)
        else:
            yield name


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).strip().replace(" ", "-")


def load(path: Path) -> Any:
    """Return the module in a file."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def test_use_names_in_the_reference_are_those_of_the_catalog() -> None:
    page = (DOCS / "configuration.md").read_text("utf-8")
    for kind, table in catalog.BUILTIN.items():
        part = page.partition(f"### {kind}\n")[2].partition("\n### ")[0]
        assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)[1:] == list(table)
