"""Hooks of mkdocs: what lies outside docs/ joins the site, and formulas become MathML.

README.md is the first page. A relative link is followed from where its page lies in the repository:
to another page of the site, or to a file that is then copied into the site. So the same links work
on the repository's own pages and on the site, and a link to a file that is not there is a warning.
"""

from __future__ import annotations

import re
from html import unescape
from os.path import normpath, relpath
from pathlib import Path
from posixpath import dirname, join
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent

ADDED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages outside docs/: path in the repository -> path in the site."""

LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?(\))")
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/, and the files that pages link to."""
    for source, target in ADDED.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))

    linked = {
        path
        for file in files.documentation_pages()
        for path in outside(Path(file.abs_src_path).read_text("utf-8"), source_of(file.src_uri))
    }

    for path in sorted(linked):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))

    return files


def source_of(page: str) -> str:
    """Return where a page of the site lies in the repository."""
    return {target: source for source, target in ADDED.items()}.get(page, f"docs/{page}")


def target_of(path: str) -> str:
    """Return where a file of the repository lies in the site."""
    if path in ADDED:
        return ADDED[path]

    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"


def outside(text: str, source: str) -> set[str]:
    """Return the existing files beyond the site's own pages that a page links to."""
    paths = {normpath(join(dirname(source), found[2])) for found in LINK.finditer(text)}
    return {
        path for path in paths if target_of(path) == f"files/{path}" and (ROOT / path).is_file()
    }


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point a page's links at where their targets lie in the site."""
    source = source_of(page.file.src_uri)
    here = dirname(page.file.src_uri) or "."

    def moved(found: re.Match[str]) -> str:
        target = target_of(normpath(join(dirname(source), found[2])))
        return f"{found[1]}{relpath(target, here)}{found[3] or ''}{found[4]}"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script."""
    html = INLINE.sub(lambda found: convert(unescape(found[1]).strip()), html)
    return BLOCK.sub(lambda found: convert(unescape(found[1]).strip(), display="block"), html)
