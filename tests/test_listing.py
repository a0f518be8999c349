"""`burnish list` and `burnish recipe`: nothing cut, a page a part, TOML that can be pasted."""

from __future__ import annotations

import os
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from test_cli import run

from burnish import catalog, config
from burnish.tools import listing
from burnish.zoo import MODELS

PARTS = [(kind, name) for kind, table in catalog.BUILTIN.items() for name in table]


def base() -> dict[str, Any]:
    """Return a recipe into which the snippet of any part may be pasted."""
    tree = tomllib.loads(config.packaged_recipe("emoji-qr").read_text("utf-8"))
    return {**tree, "curriculum": {}}


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}-{name}" for kind, name in PARTS])
def test_a_snippet_is_accepted_and_has_every_argument(kind: str, name: str) -> None:
    pasted = tomllib.loads(listing.snippet(kind, name))
    tree = base()
    if kind == "reward":
        tree["rewards"] += pasted.pop("rewards")
        tree["rewards"][-1]["name"] = "pasted"
    if kind == "advantage" or name == "ode":
        # fits those that imitate, too, and a sampler without noise
        tree["objective"] = {"use": "rwr"}
    for section, table in pasted.items():
        tree[section] = table if "use" in table else {**tree[section], **table}

    parsed = config.parse(tree)
    text = listing.snippet(kind, name)
    parameters = catalog.arguments(kind, catalog.resolve(kind, name))
    named = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    if kind == "reward":
        named -= set(config.REWARD_KEYS)  # the table's own
    assert all(f"{name} = " in text for name in named)
    if kind == "prompts" and name not in ("lines", "csv", "jsonl", "pairs", "dataset"):
        assert catalog.build("prompts", parsed.prompts)


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind}-{name}" for kind, name in PARTS])
def test_a_page_has_signature_and_docstring(kind: str, name: str) -> None:
    page = listing.page(kind, name)
    part = catalog.resolve(kind, name)
    assert page.startswith(f"{name}(")
    assert all(line.strip() in page for line in (part.__doc__ or "").splitlines())
    assert all(f"{one.name}: " in page for one in catalog.arguments(kind, part))


def test_types_and_defaults_of_a_reward() -> None:
    page = listing.page("rewards", "clip_similarity")
    assert "    of: Literal['text', 'original'] = \"text\",\n" in page
    assert '[[rewards]]\nuse = "clip_similarity"\nweight = 1.0\n' in page
    for name in catalog.BUILTIN["reward"]:
        recipe = config.packaged_recipe("demo").read_text("utf-8")
        pasted = f'{recipe}\n{listing.snippet("reward", name)}name = "pasted"\n'
        assert len(tomllib.loads(pasted)["rewards"]) == 2, "beside the recipe's own"


def test_a_part_of_ones_own_has_a_page_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def red(images, prompts, gain: float = 2.0, hook=print, more={}):\n"
        '    "Reward red."\n'
        "    return gain * images[:, 0].mean((1, 2))\n"
    )
    page = listing.page("reward", f"{path}:red")
    assert "gain: float = 2.0" in page and "images" not in page.partition("\n")[0]
    assert "gain = 2.0\n# hook = ...   # any\n# more = ...   # any" in page


def test_each_name_is_on_one_line_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert code == 0 and "…" not in out
    for kind in listing.KINDS:
        for name, text in listing.entries(kind).items():
            assert text and any(
                line.startswith(f"  {name} ") and line.endswith(f"  {text}")
                for line in out.splitlines()
            ), name


@pytest.mark.parametrize("width", [20, 40, 60, 100, 200])
def test_a_narrow_terminal_cuts_nothing(width: int) -> None:
    wrapped = listing.listing(width=width)
    assert wrapped.split() == listing.listing().split()
    if width >= 100:
        assert max(map(len, wrapped.splitlines())) <= width


@pytest.mark.parametrize("kind", listing.KINDS)
def test_one_kind_by_its_name_or_plural(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {run(capsys, "list", word)[1] for word in (kind, listing.plural(kind), kind.upper())}
    assert len(texts) == 1
    assert all(f"  {name} " in next(iter(texts)) for name in listing.entries(kind))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "rewrds"], 'did you mean "reward"?'),
        (["list", "aesthetic"], "burnish list reward aesthetic"),
        (["list", "zoo:emoji-sd"], "burnish list zoo zoo:emoji-sd"),
        (["list", "reward", "asthetic"], 'did you mean "aesthetic"?'),
        (["list", "advantage", "parto"], 'did you mean "pareto"?'),
        (["list", "objective", "clip"], 'did you mean "clipped"?'),
        (["list", "kernel", "dim"], 'did you mean "ddim"?'),
        (["list", "guidance", "cgf"], 'did you mean "cfg"?'),
        (["list", "curriculum", "cosin"], 'did you mean "cosine"?'),
        (["list", "prompts", "line"], 'did you mean "lines"?'),
        (["list", "recipe", "dmo"], 'did you mean "demo"?'),
        (["list", "zoo", "emoji-lmc"], 'did you mean "emoji-lcm"?'),
        (["list", "family", "StableDifusionPipeline"], 'did you mean "StableDiffusionPipeline"?'),
        (["list", "reward", "nowhere.py:red"], "nowhere.py: no such file"),
        (["recipe", "dmo"], 'did you mean "demo"?'),
        (["recipe", "../secret"], "there is no recipe ../secret"),
    ],
)
def test_unknown_names(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_a_model_and_a_family_have_pages() -> None:
    assert all(
        MODELS[name] in listing.page("zoo", f"zoo:{name}") for name in listing.entries("zoo")
    )
    assert "unet" in listing.page("families", "StableDiffusionXLPipeline")


@pytest.mark.parametrize("name", config.recipes())
def test_a_recipe_is_printed_as_it_stands(
    name: str,
    capfdbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()  # what `burnish recipe demo > demo` makes first
    with pytest.raises(SystemExit) as ended:
        listing_main("recipe", name)
    out = capfdbinary.readouterr().out
    assert not ended.value.code
    assert out == (files("burnish") / "recipes" / f"{name}.toml").read_bytes()

    Path("my.toml").write_bytes(out)
    os.remove(name)
    assert config.load("my.toml") == config.load(name)


def listing_main(*arguments: str) -> None:
    """Run a command of `burnish`."""
    from burnish.cli import main

    main(list(arguments))


def test_recipe_alone_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "recipe")
    assert out == f"{listing.listing('recipe')}\n"


@pytest.mark.parametrize("kind", catalog.BUILTIN)
def test_types_are_those_of_python(kind: str) -> None:
    for name in catalog.BUILTIN[kind]:
        assert not re.search(
            r"ModelPath|FilePath|DeviceName|Count|IsPath", listing.signature(kind, name)
        )
