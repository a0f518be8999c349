"""Whatever the files of a run say, its page and the terminal show it and do not obey it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from PIL import Image

from burnish.errors import printable
from burnish.report import markup, results
from burnish.report.markup import ATTRIBUTES, Html, fill, join, tag
from burnish.report.page import write_report
from burnish.runs import Run

PACKAGE = Path(markup.__file__).parent.parent

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title></pre></textarea><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)" x="',
    "javascript:alert(1)",
    "<a href=javascript:alert(1)>x</a>",
    "<!--",
    "]]><script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "${title} $policy $$",
    "url(http://example.org/x.png)",
    "red; background: url(http://example.org/x.png)",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<meta http-equiv=refresh content='0;url=http://example.org'>",
    "<base href=http://example.org>",
    "<style>*{background:url(http://example.org)}</style>",
    "\x1b[31mred\x1b[0m \x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\ \x07 \x9b31m",
    "[red]x[/red] [link=http://example.org]y[/link]",
    "two\nlines\rone\u2028more\x85",
    "half \ud800 of a character, \x00, \ufffe",
    "\u202eright to left",
)


class Page(HTMLParser):
    """What a browser sees of a page: elements, attributes, text, scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.scripts = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts += data
        elif not self._inside:
            self.words += data


TABLE = {
    "before": 1.0,
    "after": 2.0,
    "paired_mean": 1.0,
    "ci95": [0.5, 1.5],
    "spread": 1.0,
    "weight": 1.0,
}
CONFIG = {
    "model": {"id": "STRING", "train": "STRING"},
    "objective": {"use": "STRING"},
    "advantage": {"use": "STRING"},
    "rewards": [{"use": "STRING", "name": "STRING a"}, {"use": "STRING", "name": "STRING b"}],
    "prompts": {"use": "STRING", "texts": ["STRING"]},
}
FILES: dict[str, Any] = {
    "evaluation.json": {
        "train": {
            **TABLE,
            "judge_before": 0.5,
            "judge_after": 0.5,
            "prompts": 2,
            "images": 4,
            "rewards": {"STRING a": TABLE, "STRING b": {**TABLE, "weight": -1.0}},
            "panel": {"STRING": TABLE},
        },
        "STRING": {**TABLE, "panel": {"STRING": TABLE}},
    },
    "guard.json": {
        "iteration": 2,
        "best": 1,
        "action": "rollback",
        "reasons": ["STRING", "STRING"],
    },
    "samples/prompts.json": {"texts": ["STRING", "STRING"], "columns": 2, "size": 8},
    "samples/identifiers-000002.json": {
        "texts": ["STRING"],
        "rewards": ["STRING", "STRING"],
        "columns": 2,
    },
    "evaluations/000000.json": {
        "train": {
            "prompts": ["STRING", "STRING"],
            "images_per_prompt": 1,
            "rewards": ["STRING a", "STRING b"],
            "parts": [[1, 2], [2, 1]],
        }
    },
}
RECORD = {
    "iteration": 1,
    "images": 4,
    "rewards": {
        "STRING a": {"mean": 1.0, "std": 0.5, "within": 0.25},
        "STRING b": {"mean": 1.0, "std": 0.5, "gain": 0.1, "gain_std": 0.1, "gain_images": 4},
    },
    "missing": {"STRING": 1},
    "problems": ["STRING"],
    "expander_texts": [["STRING", "STRING"]],
    "clip_fraction": 0.1,
}


def filled(value: Any, text: str) -> Any:
    """Return a value with a text in place of every STRING, in keys and in values."""
    if isinstance(value, dict):
        return {key.replace("STRING", text): filled(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, text) for item in value]
    return value.replace("STRING", text) if isinstance(value, str) else value


def hostile_run(folder: Path, text: str) -> Run:
    """Return a run in whose files every string says `text`."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(filled(content, text)))

    toml = text.encode("utf-8", "replace").decode()  # TOML holds no halves of characters
    (folder / "config.toml").write_text(tomli_w.dumps(filled(CONFIG, toml)))
    records = [filled({**RECORD, "iteration": i}, text) for i in (1, 2)]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    for name in ("000000", "000002", "identifiers-000002"):
        Image.new("RGB", (16, 16)).save(folder / "samples" / f"{name}.png")
    return Run(folder)


@pytest.mark.parametrize("text", HOSTILE)
def test_every_string_of_every_file_is_shown_and_not_obeyed(text: str, tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run", text)
    plain = hostile_run(tmp_path / "plain" / "run", "word")
    content = write_report(run.folder).read_text("utf-8")
    page = Page(content)
    expected = Page(write_report(plain.folder).read_text("utf-8"))

    # the same elements, attributes and script as of a run without malice
    assert [(name, set(attrs)) for name, attrs in page.elements] == [
        (name, set(attrs)) for name, attrs in expected.elements
    ]
    assert page.scripts == expected.scripts and page.scripts.strip()
    shown = re.sub("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]", "\ufffd", text)
    assert page.words.count(shown.replace("\r", "\n")) >= 15 or "\n" in text

    for _, attrs in page.elements:
        assert "url(" not in (attrs.get("style") or "")


@pytest.mark.parametrize("text", HOSTILE)
def test_the_terminal_is_told_nothing(text: str, tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run", text)
    heard = list(results.summary(run, 2))
    assert any("The guard ended the run" in line for line in heard)
    assert all(line.isprintable() for line in heard), heard


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "<img src=x onerror=alert(1)> & 'run'", "word")
    page = Page(write_report(run.folder).read_text("utf-8"))
    assert "<img src=x onerror=alert(1)> & 'run'" in page.words
    assert "img" not in [name for name, _ in page.elements]


def test_the_policy_allows_the_page_its_own_script_only(tmp_path: Path) -> None:
    content = write_report(hostile_run(tmp_path / "run", "word").folder).read_text("utf-8")
    page = Page(content)
    (policy,) = [
        attrs["content"] or "" for _, attrs in page.elements if attrs.get("http-equiv") is not None
    ]
    digest = base64.b64encode(hashlib.sha256(page.scripts.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert content.index("Content-Security-Policy") < content.index("<title>")


def test_text_becomes_markup_in_one_module_only() -> None:
    """No other module makes `Html`, and none writes an element by hand."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "markup.py":
            continue
        code = path.read_text("utf-8")
        assert not re.search(r"\bHtml\(", code), path
        if path.parent.name == "report":
            assert not re.search(r"</|/>|<(div|span|svg|p|b|i|td|tr|path)\b", code), path


def test_what_is_not_markup_is_escaped() -> None:
    assert tag("b", "<i>", class_='"x"') == '<b class="&quot;x&quot;">&lt;i&gt;</b>'
    assert tag("b", tag("i"), "&amp;") == "<b><i></i>&amp;amp;</b>"
    assert tag("path", d="M0 0", class_=None) == '<path d="M0 0"/>'
    # what was put together as text is text again
    assert tag("p", f"{tag('b')}", tag("b") + tag("i"), "".join([tag("b")])) == (
        "<p>&lt;b&gt;&lt;/b&gt;&lt;b&gt;&lt;/b&gt;&lt;i&gt;&lt;/i&gt;&lt;b&gt;&lt;/b&gt;</p>"
    )
    assert join(["<", tag("b")]) == "&lt;<b></b>" and isinstance(join(), Html)


@pytest.mark.parametrize("name", ["onclick", "href", "src", "srcdoc", "action", "formaction"])
def test_attributes_that_load_or_execute_do_not_exist(name: str) -> None:
    assert name not in ATTRIBUTES and not any(known.startswith("on") for known in ATTRIBUTES)
    with pytest.raises(ValueError, match=f"no attribute {name}"):
        tag("a", **{name: "x"})


@pytest.mark.parametrize(
    "call",
    [
        lambda: tag("i", style="background: url(http://a)"),
        lambda: tag("i", style='x: "y"'),
        lambda: markup.image_rule("a{}", "png", b""),
        lambda: markup.image_rule("a", "svg+xml", b""),
    ],
)
def test_styles_load_nothing(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="style|letters and digits"):
        call()


def test_a_page_is_filled_with_markup_only() -> None:
    with pytest.raises(TypeError, match="part title of the page is no markup"):
        fill("$title", {"title": "text"})  # type: ignore[dict-item]


@pytest.mark.parametrize("file", ["samples/prompts.json", "samples/identifiers-000002.json"])
def test_numbers_that_are_texts_reach_no_style(file: str, tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run", "word")
    content = json.loads((run.folder / file).read_text())
    (run.folder / file).write_text(json.dumps({**content, "columns": "1%; background: url(//a)"}))
    with pytest.raises(ValueError, match="columns|invalid literal"):
        write_report(run.folder)


def test_printable() -> None:
    assert printable("a cat, ein Kätzchen, 猫 🐈") == "a cat, ein Kätzchen, 猫 🐈"
    assert printable("a\x1b[31mb\nc\u2028d\u202ee\ud800") == r"a\x1b[31mb\nc\u2028d\u202ee\ud800"
