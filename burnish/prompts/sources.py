"""Prompt sources: each returns the list of prompts that an iteration draws from.

The sets of DDPO (arXiv 2305.13301): 45 common animals, the 398 animals of ImageNet-1k, 45 animals x
3 activities. Then its counts of animals, the nouns of the embedded models, a list, a text, CSV or
JSON file, and a template with all combinations of its fields. `{noun}` in a text is replaced;
`a {noun}` also gets the right article (`an ant`, `a unicorn`).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from burnish.types import Prompt

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
# characters: a text encoder reads 77 tokens, so a longer line is a mistake, not a prompt
LONGEST_LINE = 2000


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
    numbers: list | None = None, nouns: Any = "animals", text: str = "{number} {nouns}"
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

    return [
        Prompt(
            text.replace("{number}", number).replace("{nouns}", plural(noun)), _count(number, noun)
        )
        for number, noun in product(numbers, _values("nouns", nouns))
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


def zoo_nouns(split: str = "animals", text: str = "a {noun}") -> list[Prompt]:
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


def listed(texts: list) -> list[Prompt]:
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

    return [Prompt(text) for text in texts]


def lines(path: str, text: str = "{noun}") -> list[Prompt]:
    """Return one prompt a line of a UTF-8 text file; empty lines are skipped.

    Args:
        path: of the file.
        text: may wrap each line: "a photo of {noun}".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text file with prompts; the message names the row.
    """
    return template(text, noun=[line for _, line in _rows(Path(path))])


def csv_table(path: str, key: str = "prompt") -> list[Prompt]:
    """Return one prompt a row of a CSV file whose first row names the columns.

    Args:
        path: of the file, separated by commas, semicolons or tabs.
        key: the column of the prompt; the other columns become the prompt's metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such column, or a row does not fit the first; the message names it.
    """
    rows = _rows(Path(path))
    separator = max(",;\t", key=rows[0][1].count)
    reader = csv.reader([line for _, line in rows], delimiter=separator)
    columns = [name.strip() for name in next(reader)]

    if key not in columns:
        raise ValueError(
            f'{path}: its first row names no column "{key}", but {", ".join(columns)}; '
            'set prompts.key to one of them, or take use = "lines" for a file without columns'
        )

    prompts = []
    for cells in reader:
        row = rows[reader.line_num - 1][0]
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}, row {row}: {len(cells)} cells under {len(columns)} columns; put a text "
                f"with {separator!r} in it into double quotes"
            )

        entry = dict(zip(columns, cells, strict=True))
        prompts.append(_from_entry(entry, key, f"{path}, row {row}"))

    if not prompts:
        raise ValueError(f"{path}: no prompts below the first row; write one prompt a row")
    return prompts


def jsonl(path: str, key: str = "prompt") -> list[Prompt]:
    """Return one prompt a line of a file of JSON objects, or one an entry of a JSON list.

    Args:
        path: of the file.
        key: of the prompt; the rest of an object becomes the prompt's metadata. A text is a prompt
            without metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is no object or has no prompt; the message names it.
    """
    prompts = []

    for place, entry in _json_entries(Path(path)):
        if isinstance(entry, str):
            entry = {key: entry}
        prompts.append(_from_entry(entry, key, place))

    return prompts


def _from_entry(entry: Any, key: str, place: str) -> Prompt:
    """Return the prompt in an object of a file; its other fields become the metadata."""
    prompt = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f'{place}: no text under "{key}"; give each row one, as {{"{key}": "a cat", ...}} in '
            "JSON"
        )
    return Prompt(prompt, {name: value for name, value in entry.items() if name != key})


def template(text: str = "a {noun}", **fields: Any) -> list[Prompt]:
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
        return known[field] if field in known else [line for _, line in _rows(Path(field))]

    texts = isinstance(field, Sequence) and all(isinstance(value, str) for value in field)
    if not texts or not field:
        raise ValueError(
            f"prompts: {name} must be a list of texts or the path of a text file, not {field!r}"
        )

    return field


def _json_entries(path: Path) -> list[tuple[str, Any]]:
    """Return the place and the value of each line of JSON, or of each entry of a JSON list."""
    if path.is_file() and path.read_bytes().removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        try:
            entries = json.loads(path.read_text("utf-8-sig"))
        except ValueError as error:
            raise ValueError(
                f"{path}: not a JSON list ({error}); write [...] around all, or one object a line"
            ) from error
        if not entries:
            raise ValueError(f"{path}: no prompts in it; write at least one")
        return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1)]

    found = []
    for row, line in _rows(path):
        try:
            found.append((f"{path}, row {row}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, row {row}: not a JSON object ({error.msg}); write one object a line"
            ) from error

    return found


def _rows(path: Path) -> list[tuple[int, str]]:
    """Return the (row number, line) of every line that is not empty."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such prompt file; check the path (it is relative to the current folder)"
        )
    if not path.is_file():
        raise ValueError(
            f"{path}: a folder, not a prompt file; give a text file with one prompt a line"
        )

    rows = []

    for row, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line = raw.decode("utf-8-sig" if row == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, row {row}: not UTF-8 text; save the file as UTF-8"
            ) from error

        if any(ord(character) < 32 and character != "\t" for character in line):
            raise ValueError(
                f"{path}, row {row}: a binary file, not text; give a text file with one prompt a "
                "line"
            )
        if len(line) > LONGEST_LINE:
            raise ValueError(
                f"{path}, row {row}: {len(line)} characters in one line; keep a prompt under "
                f"{LONGEST_LINE} (a text encoder reads about 77 tokens)"
            )

        if line:
            rows.append((row, line))

    if not rows:
        raise ValueError(f"{path}: no prompts in it; write one prompt a line")

    return rows
