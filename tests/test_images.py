"""Image files of every kind, the way they are resized, and the errors about wrong ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from burnish.diffusion.control import control_images
from burnish.images import eight_bit, open_image, resize_image
from burnish.qr.layout import fit
from burnish.qr.verify import verify
from burnish.types import Prompt

RAMP = np.linspace(0, 1, 256)[None].repeat(4, 0)  # (4, 256), its mean is 0.5
BYTES = (RAMP * 255).round().astype(np.uint8)
WORDS = (RAMP * 65535).round().astype(np.uint16)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png16(path: Path, values: np.ndarray, colour: int, *chunks: bytes) -> None:
    """Write a PNG of 16 bits, of a kind of colour that Pillow reads but does not write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))


def grey_palette() -> Image.Image:
    image = Image.fromarray(BYTES, "P")
    image.putpalette([value for value in range(256) for _ in range(3)])
    return image


def save(kind: str, folder: Path) -> Path:
    """Write the ramp as a file of one kind."""
    name, _, ending = kind.partition(".")
    path = folder / kind
    opaque = np.full_like(BYTES, 255)
    images = {
        "L": lambda: Image.fromarray(BYTES),
        "RGB": lambda: Image.fromarray(BYTES).convert("RGB"),
        "CMYK": lambda: Image.fromarray(BYTES).convert("CMYK"),
        "LA": lambda: Image.merge("LA", [Image.fromarray(BYTES), Image.fromarray(opaque)]),
        "RGBA": lambda: Image.fromarray(BYTES).convert("RGBA"),
        "P": grey_palette,
        "I;16": lambda: Image.fromarray(WORDS),
        "I": lambda: Image.fromarray(WORDS.astype(np.int32)),
        "F": lambda: Image.fromarray(RAMP.astype(np.float32)),
    }

    if name in images:
        images[name]().save(path)
    elif ending == "pgm":
        path.write_bytes(b"P5 256 4 65535\n" + WORDS.astype(">u2").tobytes())
    else:
        channels = {"RGB16": 3, "LA16": 2, "RGBA16": 4}[name]
        values = np.stack([WORDS] * channels, -1)
        if name in ("LA16", "RGBA16"):
            values[..., -1] = 65535
        png16(path, values, {"RGB16": 2, "LA16": 4, "RGBA16": 6}[name])

    return path


@pytest.mark.parametrize(
    "kind",
    [
        *("L.png", "RGB.png", "LA.png", "RGBA.png", "P.png", "P.gif", "I;16.png"),
        *("L.tiff", "RGB.tiff", "CMYK.tiff", "I;16.tiff", "I.tiff", "F.tiff"),
        *("grey16.pgm", "RGB16.png", "LA16.png", "RGBA16.png"),
    ],
)
def test_a_ramp_stays_a_ramp(kind: str, tmp_path: Path) -> None:
    image = open_image(save(kind, tmp_path))
    assert image.shape == (3, 4, 256) and image.dtype == torch.float32
    assert float(image.mean()) == pytest.approx(0.5, abs=1 / 255)
    expected = torch.from_numpy(RAMP).float().expand(3, -1, -1)
    torch.testing.assert_close(image, expected, rtol=0, atol=1 / 255)


@pytest.mark.parametrize("kind", ["L.png", "RGB.png", "RGBA.png", "P.png"])
def test_eight_bits_are_exact(kind: str, tmp_path: Path) -> None:
    image = open_image(save(kind, tmp_path))
    assert torch.equal(image[0], torch.from_numpy(BYTES).float() / 255)
    assert np.array_equal(eight_bit(image[None])[0, ..., 2], BYTES)


@pytest.mark.parametrize("kind", ["I;16.png", "I;16.tiff", "I.tiff", "grey16.pgm"])
def test_sixteen_bits_are_exact(kind: str, tmp_path: Path) -> None:
    image = open_image(save(kind, tmp_path))
    assert torch.equal(image[1], torch.from_numpy(WORDS / 65535).float())


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    image = open_image(save("F.tiff", tmp_path))
    assert torch.equal(image[2], torch.from_numpy(RAMP).float())


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    half.paste((0, 0, 255, 0), (0, 0, 2, 2))
    half.save(tmp_path / "half.png")
    column = open_image(tmp_path / "half.png")[:, 0].T.tolist()
    assert column == [[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]]

    grey_palette().save(tmp_path / "palette.png", transparency=0)
    palette = open_image(tmp_path / "palette.png")[:, 0]
    assert palette[:, 0].tolist() == [1, 1, 1] and palette[0, 1] == pytest.approx(1 / 255)

    transparent = chunk(b"tRNS", struct.pack(">H", 0))  # grey 0 is transparent
    png16(tmp_path / "deep.png", WORDS, 0, transparent)
    deep = open_image(tmp_path / "deep.png")[:, 0]
    assert deep[:, 0].tolist() == [1, 1, 1] and deep[0, 1] == pytest.approx(1 / 255)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_the_image_is_upright(mode: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new(mode, (40, 20)).save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").shape == (3, 40, 20)


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text.png: not an image that can be read"):
        open_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"none.png: no such image"):
        open_image(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP.astype(np.float32) * 255, r"between 0 and 255, not in \[0, 1\]"),
        (RAMP.astype(np.float32) - 0.5, r"between -0.5 and 0.5, not in \[0, 1\]"),
        (np.full((2, 2), np.nan, np.float32), r"between nan and nan, not in \[0, 1\]"),
        (WORDS.astype(np.int32) * 2, r"between 0 and 131070, not in \[0, 65535\]"),
    ],
)
def test_values_outside_of_their_range_are_an_error(
    values: np.ndarray, words: str, tmp_path: Path
) -> None:
    Image.fromarray(values).save(tmp_path / "wild.tiff")
    with pytest.raises(ValueError, match=f"wild.tiff: its values lie {words}"):
        open_image(tmp_path / "wild.tiff")


def test_an_image_is_resized_as_pillow_does(tmp_path: Path) -> None:
    image = open_image(save("RGB.png", tmp_path))
    assert resize_image(image, 4, 256) is image
    small = Image.open(tmp_path / "RGB.png").resize((64, 2), Image.Resampling.LANCZOS)
    assert np.array_equal(eight_bit(resize_image(image, 2, 64)[None])[0], np.asarray(small))


@pytest.mark.parametrize("kind", ["I;16.png", "F.tiff"])
def test_a_control_image_may_be_of_any_kind(kind: str, tmp_path: Path) -> None:
    prompt = Prompt("a cat", {"control": str(save(kind, tmp_path))})
    control = control_images([prompt], 4, 256)[0]
    assert float(control.mean()) == pytest.approx(0.5, abs=1 / 255)


def test_a_code_is_verified_in_sixteen_bits(tmp_path: Path) -> None:
    code = fit("AB12C", 64).draw()[0].numpy()
    Image.fromarray((code * 65535).astype(np.uint16)).save(tmp_path / "code.png")
    assert verify(tmp_path / "code.png").strict
