"""HTML and SVG, escaped at one place: text becomes markup in `tag` and nowhere else.

    Html    markup. Every other str is text, and so are `+`, f-strings and `str.join` of markup.
    tag     an element: text among its children, and each attribute, is escaped here
    join    several pieces of markup as one
    fill    the page: a template of our own around pieces of markup, nothing else

So a name from a run's files, which anybody may have written, cannot become markup by an oversight:
what was not escaped is escaped once too often, and seen. Attributes that load or execute something
do not exist here, and the page's Content-Security-Policy forbids every script but its own.
Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from html import escape
from string import Template

VOID = frozenset("br hr input meta line path circle rect".split())
"""Elements without content."""

ATTRIBUTES = frozenset(
    "class style role aria-label type min max value data-frames colspan viewBox width height d r "
    "x y x1 x2 y1 y2 cx cy text-anchor".split()
)
"""All attributes that a page may have: none of them loads, links or executes anything."""

KEYWORDS = {name.replace("-", "_"): name for name in ATTRIBUTES} | {"class_": "class"}
"""The attributes by the keywords of `tag`."""

STYLE = re.compile(r"[-\w\s:;.%/]*", re.ASCII)
"""Inline CSS without brackets and quotes, and so without addresses."""

UNSAFE = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that a page cannot hold: control characters, halves of characters."""

SPECIAL = re.compile(f"[&<>\"']|{UNSAFE.pattern}")
"""Characters that `text` replaces: most texts have none, and this one search finds it out."""

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class Html(str):
    """Markup that needs no escaping; only this module makes it."""

    __slots__ = ()


Child = Html | str | int | float


def text(value: object) -> Html:
    """Return a text as markup that shows it; markup stays as it is."""
    if isinstance(value, Html):
        return value

    plain = str(value)
    return Html(escape(UNSAFE.sub("\ufffd", plain)) if SPECIAL.search(plain) else plain)


def join(parts: Iterable[Child] = ()) -> Html:
    """Return pieces as one; those that are text are escaped."""
    return Html("".join(text(part) for part in parts))


def tag(name: str, *children: Child, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: of the element.
        children: markup, or text, which is escaped.
        attributes: `class_` is class, `aria_label` is aria-label; None leaves one out.

    Raises:
        ValueError: an attribute is none of `ATTRIBUTES`, or a style could load something.
    """
    opening = name
    for key, value in attributes.items():
        attribute = KEYWORDS.get(key)
        if attribute is None:
            raise ValueError(f"a page has no attribute {key}; see ATTRIBUTES")
        if attribute == "style" and not STYLE.fullmatch(str(value)):
            raise ValueError(f"{value!r} is no plain inline style")
        if value is not None:
            opening += f' {attribute}="{text(str(value))}"'

    if name in VOID:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{join(children)}</{name}>")


def image_rule(name: str, kind: str, content: bytes) -> Html:
    """Return the CSS that shows an image as the background of a class.

    Args:
        name: of the class, letters and digits.
        kind: "png" or "jpeg".
        content: of the image's file.
    """
    if not (name.isalnum() and kind.isalnum()):
        raise ValueError(f"{name!r} or {kind!r} has more than letters and digits")

    data = base64.b64encode(content).decode()
    return Html(f'.{name} {{ background-image: url("data:image/{kind};base64,{data}"); }}\n')


def fill(template: str, parts: Mapping[str, Html]) -> str:
    """Return a template with `parts` in it, and `$policy`: what the page may load and run.

    Raises:
        TypeError: a part is text, which nobody has escaped.
    """
    for name, part in parts.items():
        if not isinstance(part, Html):
            raise TypeError(f"part {name} of the page is no markup")

    scripts = [hashlib.sha256(source.encode()).digest() for source in SCRIPT.findall(template)]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in scripts)
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(template).substitute(parts, policy=policy)
