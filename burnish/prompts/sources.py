"""Prompt sources: each returns the list of prompts that an iteration draws from.

The sets of DDPO (arXiv 2305.13301): 45 common animals, the 398 animals of ImageNet-1k, 45 animals x
3 activities. Then its counts of animals, the nouns of the embedded models, a list, a text, CSV or
JSON file, and a template with all combinations of its fields. `{noun}` in a text is replaced;
`a {noun}` also gets the right article (`an ant`, `a unicorn`).
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from burnish.annotations import FilePath, IsPath
from burnish.prompts.text_files import prompt_lines, text_lines, text_rows
from burnish.types import MOST_PROMPTS, Prompt

Words = Annotated[list[str] | str, IsPath(names=("animals", "activities"))]
"""Texts, the name of some, or the path of a text file with one a line."""

ANIMALS: tuple[str, ...] = tuple(
    """cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox
    wolf lizard beetle ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog
    chicken duck goose bee pig turkey fly llama camel bat gorilla hedgehog kangaroo""".split()
)
ACTIVITIES: tuple[str, ...] = ("washing the dishes", "riding a bike", "playing chess")
NUMBERS: tuple[str, ...] = tuple("one two three four five six seven eight nine ten".split())
PLURALS: Mapping[str, str] = {  # that no rule gives
    "mouse": "mice", "goose": "geese", "sheep": "sheep", "deer": "deer", "fish": "fish",
    "bison": "bison", "moose": "moose", "wolf": "wolves", "calf": "calves", "leaf": "leaves",
    "knife": "knives", "person": "people", "man": "men", "woman": "women", "child": "children",
    "tooth": "teeth", "foot": "feet", "ox": "oxen", "cactus": "cacti", "cookie": "cookies",
}  # fmt: skip
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

PATHS = ("control", "base")
"""Metadata that names an image."""


def animals(text: str = "{noun}") -> list[Prompt]:
    """Return DDPO's 45 common animals; by default the bare noun, as in the paper's code.

    Args:
        text: with {noun} in it.
    """
    return template(text, noun=list(ANIMALS))


def imagenet_animals(text: str = "{noun}") -> list[Prompt]:
    """Return the 398 animals of ImageNet-1k (classes 0 to 397).

    The prompt is the whole line of synonyms, as in the paper.

    Args:
        text: with {noun} in it.
    """
    nouns = (files("burnish") / "data" / "imagenet_animals.txt").read_text("utf-8")
    return template(text, noun=nouns.splitlines())


def activities(text: str = "a {noun} {activity}") -> list[Prompt]:
    """Return DDPO's 45 animals x 3 activities: "a cat washing the dishes", ...

    Args:
        text: with {noun} and {activity} in it.
    """
    return template(text, noun=list(ANIMALS), activity=list(ACTIVITIES))


def counting(
    numbers: list[str] | None = None, nouns: Words = "animals", text: str = "{number} {nouns}"
) -> list[Prompt]:
    """Return DDPO's counting task: "two cats", ..., "eight kangaroos".

    The metadata has the questions and answers of each for the reward `question`.

    Args:
        numbers: words from "one" to "ten", by default two to eight.
        nouns: singular: a list, `"animals"` (the 45; the paper's 22 are not published) or a text
            file with one a line.
        text: with {number} and {nouns} in it.

    Raises:
        ValueError: a number is none of these words, or `text` lacks a field.

    >>> counting(["two"], ["wolf"])[0].metadata["answers"]
    ['two', 'wolf']
    """
    numbers = list(NUMBERS[1:8]) if numbers is None else numbers
    if not numbers or not set(numbers) <= set(NUMBERS):
        raise ValueError(
            f"prompts: numbers = {numbers!r} must be words from {NUMBERS[0]} to {NUMBERS[-1]}"
        )

    for name in ("number", "nouns"):
        if f"{{{name}}}" not in text:
            raise ValueError(f"prompts: {text!r} must contain {{{name}}}")

    singular_nouns = _values("nouns", nouns)
    check_count({"numbers": numbers, "nouns": singular_nouns})
    return [
        Prompt(
            text.replace("{number}", number).replace("{nouns}", plural(noun)), _count(number, noun)
        )
        for number, noun in product(numbers, singular_nouns)
    ]


def counted(text: str) -> dict[str, Any] | None:
    """Return the metadata of `counting` for a prompt such as "three wolves on a hill".

    It is None for a text without a number and a noun.
    """
    match = re.search(rf"\b({'|'.join(NUMBERS)}) ([a-z]+)\b", text.lower())
    if match is None:
        return None

    number, noun = match.groups()
    return _count(number, noun if number == "one" else singular(noun))


def _count(number: str, noun: str) -> dict[str, Any]:
    questions = [
        f"How many {plural(noun)} are there in this image?",
        "What animal is in this image?",
    ]
    return {"number": number, "noun": noun, "questions": questions, "answers": [number, noun]}


def plural(noun: str) -> str:
    """Return the plural of an English noun: cats, foxes, butterflies, mice."""
    if noun in PLURALS:
        return PLURALS[noun]
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if re.search(r"(s|x|z|ch|sh)$", noun) else f"{noun}s"


def singular(nouns: str) -> str:
    """Return the singular of an English plural; the reverse of `plural` for usual nouns."""
    for noun, many in PLURALS.items():
        if nouns == many:
            return noun
    if nouns.endswith("ies"):
        return f"{nouns[:-3]}y"
    if re.search(r"(x|z|ch|sh|ss|[^oa]us)es$", nouns):  # boxes, but houses and horses
        return nouns[:-2]

    return nouns.removesuffix("s")


def zoo_nouns(
    split: Literal["animals", "objects", "all"] = "animals", text: str = "a {noun}"
) -> list[Prompt]:
    """Return the nouns that the embedded models can draw.

    Args:
        split: "animals" (the paper's 45), "objects" (the rest) or "all".
        text: with {noun} in it.

    Raises:
        ValueError: the split is unknown.
    """
    vocabulary = json.loads((files("burnish") / "zoo" / "vocabulary.json").read_text("utf-8"))
    nouns = {
        "animals": vocabulary["animals"],
        "objects": vocabulary["objects"],
        "all": [*vocabulary["animals"], *vocabulary["objects"]],
    }

    if split not in nouns:
        raise ValueError(f"zoo_nouns: split = {split!r} is unknown; use one of {', '.join(nouns)}")

    return template(text, noun=nouns[split])


def listed(texts: list[str]) -> list[Prompt]:
    """Return prompts written where they are used: `texts = ["a cat", "a dog on the moon"]`.

    Args:
        texts: one a prompt.

    Raises:
        ValueError: there are none, or one is empty or no text; the message names its row.
    """
    if not texts:
        raise ValueError("prompts: texts is empty; give at least one prompt")

    for row, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"prompts: text {row} is {text!r}; give a text that is not empty")

    return [Prompt(text.strip()) for text in texts]


def lines(path: FilePath, text: str = "{noun}") -> list[Prompt]:
    """Return one prompt a line of a UTF-8 text file; empty lines are skipped.

    Space around a prompt is taken away. A table, JSON or another kind of file is refused, and so is
    a comment.

    Args:
        path: of the file.
        text: may wrap each line: "a photo of {noun}".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text file with prompts; the message names the row.
    """
    return template(text, noun=prompt_lines(Path(path)))


def csv_table(path: FilePath, key: str = "prompt") -> list[Prompt]:
    """Return one prompt a row of a CSV file whose first row names the columns.

    A line break in a prompt becomes a space.

    Args:
        path: of the file, separated by commas, semicolons or tabs.
        key: the column of the prompt; the other columns become the prompt's metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such column, or a row does not fit the first; the message names it.
    """
    (first, columns), *rows = _table_rows(Path(path))
    columns = [name.strip() for name in columns]

    if key not in columns:
        raise ValueError(
            f'{path}: its first row names no column "{key}", but {", ".join(columns)}; '
            'set prompts.key to one of them, or take use = "lines" for a file without columns'
        )
    for name in columns:
        if name and columns.count(name) > 1:
            raise ValueError(
                f'{path}, row {first}: several columns are named "{name}"; rename all but one'
            )

    prompts = []
    for row, cells in rows:
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}, row {row}: {len(cells)} cells under {len(columns)} columns; put a text "
                "with a separator in it into double quotes"
            )

        entry = dict(zip(columns, cells, strict=True))
        entry[key] = re.sub(r"\s*\n\s*", " ", entry[key])
        prompts.append(_from_entry(entry, key, f"{path}, row {row}", Path(path).parent))

    if not prompts:
        raise ValueError(f"{path}: no prompts below the first row; write one prompt a row")
    return prompts


def _table_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the number and the cells of each row of a CSV file that is not empty."""
    header = text_rows(path)[0][0]
    lines = [f"{line.strip(' ') if line.strip() else ''}\n" for line in text_lines(path)]
    separator = max(",;\t", key=lines[header - 1].count)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)

    rows = []
    row = 1
    try:
        for cells in reader:
            if cells:
                rows.append((row, cells))
            row = reader.line_num + 1  # a cell in quotes may have several lines
    except csv.Error as error:
        raise ValueError(
            f"{path}, row {row}: no row of a table ({error}); put a text with quotes in it into "
            "double quotes, and write each of its own twice"
        ) from error

    return rows


def jsonl(path: FilePath, key: str = "prompt") -> list[Prompt]:
    """Return one prompt a line of a file of JSON objects, or one an entry of a JSON list.

    Paths of images are relative to the folder of the file: under "control" and "base", and under
    any other key (but "payload") where the image lies there, such as "photos/1.png".

    Args:
        path: of the file.
        key: of the prompt; the rest of an object becomes the prompt's metadata. A text is a prompt
            without metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is no object or has no prompt; the message names it.
    """
    prompts = []

    for place, entry in json_entries(Path(path)):
        if isinstance(entry, str):
            entry = {key: entry}
        prompts.append(_from_entry(entry, key, place, Path(path).parent))

    return prompts


def _from_entry(entry: Any, key: str, place: str, folder: Path) -> Prompt:
    """Return the prompt in an object of a file; its other fields become the metadata.

    Relative paths of images in it begin at `folder`.
    """
    prompt = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f'{place}: no text under "{key}"; give each row one, as {{"{key}": "a cat", ...}} in '
            "JSON"
        )

    metadata = {name: value for name, value in entry.items() if name != key}
    for name in PATHS:
        if not isinstance(metadata.get(name, ""), str | None):
            raise ValueError(
                f'{place}: "{name}" is {metadata[name]!r}; give the path of one image, as a text'
            )

    return Prompt(prompt.strip(), _with_paths(metadata, folder))


def _with_paths(metadata: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return metadata in which relative paths of images begin at `folder`."""

    def located(name: str, value: Any) -> Any:
        if not isinstance(value, str) or not value or name == "payload":
            return value

        path = str(folder / value)
        is_image = value.lower().endswith(IMAGE_ENDINGS) and os.path.isfile(path)
        return path if is_image or name in PATHS else value

    return {name: located(name, value) for name, value in metadata.items()}


def template(text: str = "a {noun}", **fields: Words) -> list[Prompt]:
    """Return every combination of the fields put into `text`.

    The values also become the prompt's metadata.

    Args:
        text: with {name} for each field.
        fields: each a list of texts, `"animals"`, `"activities"`, or the path of a text file with
            one value a line.

    Raises:
        ValueError: a field is missing, is not used in `text`, or is no list of texts.

    >>> [prompt.text for prompt in template("a {colour} ox", colour=["red", "orange"])]
    ['a red ox', 'an orange ox']
    """
    names = re.findall(r"{(\w+)}", text)
    for name in names:
        if name not in fields:
            raise ValueError(f"prompts: {text!r} needs a value for {{{name}}}; add {name} = [...]")

    for name in fields:
        if name not in names:
            raise ValueError(
                f"prompts: {name} is not used in {text!r}; write {{{name}}} in the text or leave "
                "it out"
            )

    values = {name: _values(name, field) for name, field in fields.items()}
    check_count(values)
    combinations = (
        dict(zip(values, combination, strict=True)) for combination in product(*values.values())
    )
    return [Prompt(fill(text, combination), combination) for combination in combinations]


def fill(text: str, fields: Mapping[str, str]) -> str:
    """Return `text` with its {fields} replaced.

    An "a" or "an" directly before a field becomes the article of the value.
    """

    def replace(match: re.Match[str]) -> str:
        value = fields[match["name"]]
        return f"{article(value)} {value}" if match["article"] else value

    return re.sub(r"(?:\b(?P<article>an?) )?{(?P<name>\w+)}", replace, text)


def article(noun: str) -> str:
    """Return "a" or "an", by sound: an ant, an hour, a unicorn."""
    word = noun.lower()
    if re.match(r"uni(?!n)|use|usu|ut[ei]|eu|ewe|one\b|once", word):
        return "a"
    return "an" if re.match(r"[aeiou]|hour|honest|heir", word) else "a"


def _values(name: str, field: Any) -> Sequence[str]:
    if isinstance(field, str):
        known = {"animals": ANIMALS, "activities": ACTIVITIES}
        return known[field] if field in known else prompt_lines(Path(field))

    texts = isinstance(field, Sequence) and all(isinstance(value, str) for value in field)
    if not texts or not field:
        raise ValueError(
            f"prompts: {name} must be a list of texts or the path of a text file, not {field!r}"
        )

    return field


def json_entries(path: Path) -> list[tuple[str, Any]]:
    """Return the place and the value of each line of JSON, or of each entry of a JSON list."""
    if path.is_file() and path.read_bytes().removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        try:
            entries = json.loads(path.read_text("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: not a JSON list ({error}); write [...] around all, or one object a line"
            ) from error
        if not entries:
            raise ValueError(f"{path}: no prompts in it; write at least one")
        return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1)]

    found = []
    for row, line in text_rows(path):
        try:
            found.append((f"{path}, row {row}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, row {row}: not a JSON object ({error}); write one object a line"
            ) from error

    return found


def check_count(parts: Mapping[str, Sequence[Any]]) -> None:
    """Refuse combinations that are too many to be made.

    Args:
        parts: what is combined, by name.

    Raises:
        ValueError: there are more than a source may give.
    """
    count = math.prod(len(values) for values in parts.values())
    if count > MOST_PROMPTS:
        lengths = " x ".join(f"{len(values):,} {name}" for name, values in parts.items())
        raise ValueError(
            f"prompts: {lengths} are {count:,} combinations; make fewer values, for "
            f"{MOST_PROMPTS:,} at most"
        )
