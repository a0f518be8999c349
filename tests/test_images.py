"""Image files of every kind, the way they are resized, and the errors about wrong ones."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import burnish.images
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
        *("L.tiff", "RGB.tiff", "CMYK.tiff", "I;16.tiff", "F.tiff"),
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


@pytest.mark.parametrize("kind", ["I;16.png", "I;16.tiff", "grey16.pgm"])
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


def header_only(path: Path, width: int, height: int) -> None:
    """Write a PNG of a certain size without pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    header_only(tmp_path / "huge.png", 60_000, 60_000)
    header_only(tmp_path / "large.png", 11_000, 11_000)
    header_only(tmp_path / "zero.png", 0, 10)
    Image.new("RGB", (300, 300), "red").save(tmp_path / "whole.jpg")
    Image.new("RGB", (300, 300), "red").save(tmp_path / "whole.png")

    for name in ("whole.jpg", "whole.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"half-{name}").write_bytes(content[: len(content) // 2])

    for name, words in {
        "text.png": "not an image that can be read; give a PNG or JPEG",
        "empty.png": "an empty file, not an image; give a PNG or JPEG",
        "folder.png": "a folder, not an image; give the path of a PNG or JPEG",
        "huge.png": "too large an image .* scale it down",
        "large.png": "too large an image .* scale it down",  # by a warning, which is an error here
        "zero.png": "not an image that can be read; give a PNG or JPEG",
        "half-whole.jpg": "not an image that can be read .*truncated.*; copy or save it anew",
        "half-whole.png": "not an image that can be read .*; copy or save it anew",
    }.items():
        with pytest.raises(ValueError, match=f"/{name}: {words}") as error:
            open_image(tmp_path / name)
        assert str(error.value).count(name) == 1 and "\n" not in str(error.value)

    with pytest.raises(FileNotFoundError, match=r"none.png: no such image"):
        open_image(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_the_first_of_several_frames_is_taken_and_said_once(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 4), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"frames.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:])

    for _ in range(2):
        assert open_image(path)[:, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.02)

    (record,) = caplog.records
    assert (
        record.getMessage() == f"{path}: an animation or file of 3 images; the first one is taken"
    )


def test_one_bit_and_other_modes(tmp_path: Path) -> None:
    Image.fromarray(BYTES).convert("1", dither=Image.Dither.NONE).save(tmp_path / "bit.png")
    assert open_image(tmp_path / "bit.png").unique().tolist() == [0, 1]
    Image.new("RGB", (4, 4), "red").save(tmp_path / "colour.png", transparency=(255, 0, 0))
    assert open_image(tmp_path / "colour.png").unique().tolist() == [1]
    Image.new("LA", (4, 4), (0, 51)).save(tmp_path / "veil.png")
    assert float(open_image(tmp_path / "veil.png")[0, 0, 0]) == pytest.approx(0.8)
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "ink.jpg")
    assert open_image(tmp_path / "ink.jpg")[:, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.02)


def test_nothing_else_opens_an_image_file() -> None:
    """But for images that Burnish wrote itself: in memory, the sprites, a run's grids."""
    package = Path(burnish.images.__file__).parent
    opening = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"Image\.open\(|imread|imageio|tifffile", path.read_text("utf-8"))
    }
    own = {"qr/conditions.py", "zoo/scenes.py", "report/page.py", "tools/export.py"}
    assert opening == {"images.py"} | own


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP.astype(np.float32) * 255, r"between 0 and 255, not in \[0, 1\]"),
        (RAMP.astype(np.float32) - 0.5, r"between -0.5 and 0.5, not in \[0, 1\]"),
        (np.full((2, 2), np.nan, np.float32), r"between nan and nan, not in \[0, 1\]"),
    ],
)
def test_values_outside_of_their_range_are_an_error(
    values: np.ndarray, words: str, tmp_path: Path
) -> None:
    Image.fromarray(values).save(tmp_path / "wild.tiff")
    with pytest.raises(ValueError, match=f"wild.tiff: its values lie {words}"):
        open_image(tmp_path / "wild.tiff")


@pytest.mark.parametrize("values", [BYTES.astype(np.int32), WORDS.astype(np.int32)])
def test_whole_numbers_of_32_bits_are_an_error(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "long.tiff")
    with pytest.raises(ValueError, match=r"long.tiff: .* 32 bits.*; save it with 8 or 16 bits$"):
        open_image(tmp_path / "long.tiff")


@pytest.mark.parametrize("values", [BYTES, WORDS, RAMP.astype(np.float32)])
def test_a_tiff_in_which_zero_is_white(values: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "inverted.tiff"
    Image.fromarray(values).save(path)
    content = path.read_bytes()
    black_is_zero, white_is_zero = (struct.pack("<HHII", 262, 3, 1, kind) for kind in (1, 0))
    assert content.count(black_is_zero) == 1
    path.write_bytes(content.replace(black_is_zero, white_is_zero))

    expected = torch.from_numpy(1 - RAMP).float()
    torch.testing.assert_close(open_image(path)[0], expected, rtol=0, atol=1 / 255)


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
