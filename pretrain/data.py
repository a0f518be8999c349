"""Icon sets -> sprites: download the pinned SVG sets with npm, and render one atlas a set.

`python -m pretrain.data` writes `burnish/zoo/sprites/<set>.png` (RGBA, one 56-pixel sprite a
noun of the vocabulary, in its order), `burnish/zoo/sprites/large/<set>.png` (112-pixel sprites of
the sets with a style word, for scenes of 128 pixels) and `burnish/zoo/vocabulary.json`. A noun
that a set does not have stays transparent there.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from pathlib import Path

from PIL import Image

ZOO = Path(__file__).resolve().parent.parent / "burnish" / "zoo"
SIZE = 56
COLUMNS = 10

# set -> version; licences in docs/zoo.md. The share-alike sets are left out on purpose.
PACKAGES = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fxemoji": "1.2.2",
}
STYLES = {"noto": "noto", "twemoji": "twemoji", "fluent": "fluent-emoji"}  # style word -> set

ANIMALS = (  # the 45 common animals of DDPO, in its order
    "cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox "
    "wolf lizard beetle ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle "
    "frog chicken duck goose bee pig turkey fly llama camel bat gorilla hedgehog kangaroo"
).split()
OBJECTS = (  # everything else the generator knows; RL trains on the animals and tests on these
    "penguin elephant panda koala owl octopus crab snail giraffe unicorn "
    "pizza hamburger apple banana strawberry watermelon lemon carrot mushroom cheese doughnut "
    "cookie cake pineapple avocado "
    "guitar trumpet violin drum umbrella hammer key gift candle bell crown camera robot ghost "
    "balloon trophy "
    "rocket car bus bicycle train airplane sailboat helicopter tractor "
    "cactus sunflower rose tulip tree cloud rainbow castle house chess basketball"
).split()

# noun -> icon names to try in order, where the noun itself is not the icon's name everywhere
ICONS = {
    "sheep": ["ewe"],
    "squirrel": ["chipmunk"],
    "bee": ["honeybee"],
    "apple": ["red-apple"],
    "cheese": ["cheese-wedge"],
    "cake": ["birthday-cake", "shortcake"],
    "gift": ["wrapped-gift", "wrapped-present"],
    "robot": ["robot", "robot-face"],
    "car": ["automobile"],
    "train": ["locomotive", "train"],
    "tree": ["deciduous-tree"],
    "house": ["house", "house-building"],
    "chess": ["chess-pawn"],
    "lion": ["lion", "lion-face"],
    "fox": ["fox", "fox-face"],
    "wolf": ["wolf", "wolf-face"],
    "bear": ["bear", "bear-face"],
    "panda": ["panda", "panda-face"],
    "unicorn": ["unicorn", "unicorn-face"],
}
# resvg drops parts of these; the flat set's stand in
BORROWED = {("fluent-emoji", "bird"), ("fluent-emoji", "turkey")}
PLURALS = {  # where adding "s" is wrong
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
    "fox": "foxes",
    "wolf": "wolves",
    "mouse": "mice",
    "goose": "geese",
    "fly": "flies",
    "butterfly": "butterflies",
    "octopus": "octopuses",
    "strawberry": "strawberries",
    "bus": "buses",
    "cactus": "cacti",
    "chess": "chess pieces",
}
COLOURS = {
    "white": (255, 255, 255),
    "red": (222, 62, 62),
    "orange": (244, 152, 52),
    "yellow": (250, 222, 84),
    "green": (88, 180, 92),
    "blue": (74, 140, 232),
    "purple": (148, 98, 204),
    "pink": (250, 172, 204),
    "gray": (160, 160, 160),
    "black": (28, 28, 28),
}


def download(folder: Path) -> Path:
    """Install the pinned icon packages with the npm client and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"@iconify-json/{name}@{version}" for name, version in PACKAGES.items()]
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *names],
        cwd=folder,
        check=True,
    )

    return folder / "node_modules" / "@iconify-json"


def svg(icons: dict, name: str) -> str | None:
    """Return the SVG text of an icon of an Iconify set; None where the set lacks it.

    Aliases are followed.
    """
    for _ in range(5):
        if name in icons["icons"]:
            icon = icons["icons"][name]
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            left = icon.get("left", 0)
            top = icon.get("top", 0)

            return (
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
                f"{icon['body']}</svg>"
            )

        alias = icons.get("aliases", {}).get(name)
        if alias is None:
            return None

        name = alias["parent"]

    return None


def render(text: str, size: int) -> Image.Image:
    """Return an SVG as an RGBA sprite, its drawn part centred and filling `size` pixels."""
    import resvg_py  # to make the sprites; what trains on them works without it

    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=4 * size, height=4 * size))
    # RGBA: what is not drawn stays transparent, so that the sprite goes on any background
    with Image.open(io.BytesIO(png)) as file:
        image = file.convert("RGBA")

    box = image.getchannel("A").getbbox()

    if box:
        image = image.crop(box)

    scale = size / max(image.size)
    scaled = [max(1, round(side * scale)) for side in image.size]
    image = image.resize(scaled, Image.Resampling.LANCZOS)
    sprite = Image.new("RGBA", (size, size))
    sprite.paste(image, ((size - image.width) // 2, (size - image.height) // 2))

    return sprite


def atlas(
    sets: dict[str, dict], name: str, nouns: list[str], size: int
) -> tuple[Image.Image, list[str]]:
    """Return all nouns of one set on one sheet, and the nouns that the set does not have."""
    rows = -(-len(nouns) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * size, rows * size))
    missing = []

    for index, noun in enumerate(nouns):
        icons = sets["fluent-emoji-flat" if (name, noun) in BORROWED else name]
        texts = [svg(icons, icon) for icon in ICONS.get(noun, [noun])]
        text = next(filter(None, texts), None)

        if text is None:
            missing.append(noun)
            continue

        sheet.paste(render(text, size), (index % COLUMNS * size, index // COLUMNS * size))

    return sheet, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache", type=Path, default=Path("build/icons"), help="where npm puts the icon sets"
    )
    cache = parser.parse_args().cache
    source = cache / "node_modules" / "@iconify-json"

    if not source.exists():
        download(cache)

    nouns = ANIMALS + OBJECTS
    (ZOO / "sprites" / "large").mkdir(parents=True, exist_ok=True)
    sets = {name: json.loads((source / name / "icons.json").read_text()) for name in PACKAGES}

    for name in PACKAGES:
        sheet, missing = atlas(sets, name, nouns, SIZE)
        sheet.save(ZOO / "sprites" / f"{name}.png", optimize=True)

        if name in STYLES.values():
            large, _ = atlas(sets, name, nouns, 2 * SIZE)
            large.save(ZOO / "sprites" / "large" / f"{name}.png", optimize=True)

        print(
            f"{name}: {len(nouns) - len(missing)} sprites; missing: {', '.join(missing) or 'none'}"
        )

    vocabulary = {
        "animals": ANIMALS,
        "objects": OBJECTS,
        "colours": COLOURS,
        "styles": STYLES,
        "sets": list(PACKAGES),
        "plurals": {noun: PLURALS.get(noun, noun + "s") for noun in nouns},
    }
    (ZOO / "vocabulary.json").write_text(json.dumps(vocabulary, indent=1) + "\n")


if __name__ == "__main__":
    main()
