"""Codes on canvases: geometry against segno's own matrices, error rates against a loop, errors."""

from __future__ import annotations

import builtins
import math
import random
from itertools import product
from typing import Any

import numpy as np
import pytest
import segno
import torch

import burnish.qr.layout
from burnish.images import eight_bit
from burnish.qr.decoders import decoder, find
from burnish.qr.layout import Layout, fit, layout_of
from burnish.types import Prompt

MICRO = [("M1", "12345"), ("M2", "AB12C"), ("M2", "AB12CD"), ("M3", "hello"), ("M4", "Hello, you")]


def grey(layout: Layout) -> torch.Tensor:
    """Return the modules (n, n) bool of a drawing: True where the whole square is black."""
    image = layout.draw()[0]
    size = layout.module
    n = len(layout.modules)
    rows = [
        [
            image[
                layout.left + r * size : layout.left + (r + 1) * size,
                layout.left + c * size : layout.left + (c + 1) * size,
            ]
            for c in range(n)
        ]
        for r in range(n)
    ]
    assert all(float(square.min()) == float(square.max()) for row in rows for square in row)

    return torch.tensor([[float(square[0, 0]) == 0 for square in row] for row in rows])


@pytest.mark.parametrize(
    ("version", "payload"),
    [*MICRO, *((v, f"https://example.org/{v}"[: v * 8]) for v in range(1, 11))],
)
def test_the_drawing_is_segnos_matrix(version: int | str, payload: str) -> None:
    side = 112 if isinstance(version, str) else 768
    layout = fit(payload, side, version=version)
    expected = segno.make(
        payload, version=version, error=layout.error or None, mask=layout.mask, boost_error=False
    )
    assert layout.designator == expected.designator and layout.micro == expected.is_micro
    matrix = torch.tensor([list(row) for row in expected.matrix]) == 1
    assert torch.equal(grey(layout), matrix) and torch.equal(layout.modules, matrix)
    outside = layout.draw()[0].clone()
    end = layout.left + len(matrix) * layout.module
    outside[layout.left : end, layout.left : end] = 1
    border = layout.quiet
    assert border >= layout.module and layout.left >= border and side - end >= border
    field = outside[layout.left - border : end + border, layout.left - border : end + border]
    assert bool((field == 1).all())
    outside[layout.left - border : end + border, layout.left - border : end + border] = 0.5

    if not layout.micro:
        assert bool((outside == 0.5).all()), "grey outside of the quiet zone"


@pytest.mark.parametrize("side", [64, 72, 80, 96, 120, 128, 160, 256, 384, 512, 640, 768, 1024])
def test_codes_lie_on_the_grid_of_the_latents(side: int) -> None:
    for payload in ("1", "AB12C", "https://example.org/abc"):
        try:
            layout = fit(payload, side)
        except ValueError:
            assert side < 128 and len(payload) > 5
            continue

        assert layout.module % 4 == 0 and layout.left % 4 == 0
        assert layout.left % 8 == 0 or side < 512
        assert layout.micro == (side < 128)
        assert layout.module == 16 if side >= 512 else layout.module in (4, 8)


@pytest.mark.parametrize("side", [192, 200, 256, 320, 384, 480, 504])
def test_modules_of_8_px_do_not_fill_the_blocks_of_zxing(side: int) -> None:
    layout = fit("HELLO", side)
    assert (layout.module, layout.left % 8) == (8, 4)
    end = layout.left + layout.module * len(layout.modules)
    assert layout.left >= layout.module and side - end >= layout.left


def test_the_tiny_canvas_is_as_measured() -> None:
    layout = fit("AB12C", 64)
    assert (layout.designator, len(layout.modules), layout.module, layout.left) == (
        "M2-M",
        13,
        4,
        4,
    )
    assert fit("AB12CD", 64).designator == "M2-L"
    assert fit("12345", 64).designator == "M2-M", (
        "M1 corrects nothing, so it is taken only if asked for"
    )
    assert layout.draw().shape == (3, 64, 64) and bool((layout.draw()[:, 56:] == 1).all())
    assert bool((layout.draw(ground=0.5)[:, 61:] == 0.5).all())


@pytest.mark.parametrize("length", [5, 7, 8, 14, 15, 20, 27, 40, 62])
def test_error_correction_does_not_raise_the_version(length: int) -> None:
    layout = fit("x" * length, 512)
    versions = {
        level: segno.make("x" * length, error=level, micro=False).version for level in "mqh"
    }
    smallest = segno.make("x" * length, error="m", micro=False, boost_error=False).version
    highest = [
        level
        for level in "MQH"
        if segno.make("x" * length, error=level, micro=False, boost_error=False).version == smallest
    ][-1]
    assert (layout.version, layout.error) == (smallest, highest), versions


def test_settings_are_kept() -> None:
    layout = fit("HELLO", 512, error="Q", version=4, mask=6, module=12, quiet=2)
    assert (layout.designator, layout.mask, layout.module, layout.quiet) == ("4-Q", 6, 12, 24)
    assert layout.left == (512 - 33 * 12) // 2 // 4 * 4
    assert fit("HELLO", 512, error="L").error == "L"
    assert fit("HELLO", 512, error="Q", mask=6) == fit("HELLO", 512, error="Q", mask=6)
    assert fit("HELLO", 512, mask=6) != fit("HELLO", 512, mask=5)


@pytest.mark.parametrize(
    ("payload", "side", "settings", "message"),
    [
        ("", 64, {}, "the payload is ''; give a text of at least one character"),
        (
            "AB12CDE",
            64,
            {},
            "'AB12CDE' does not fit a canvas of 64 px; shorten it to 6 of its 7 characters, or .* "
            "72 px",
        ),
        ("hello", 64, {}, "take a canvas of 72 px, or write it in capital letters"),
        ("x" * 100, 128, {}, "shorten it to 42 of its 100 characters, or take a canvas of 176 px"),
        ("A", 40, {}, "take a canvas of 64 px"),
        ("A", 512, {"module": 30}, "with module = 30; take a canvas of 696 px"),
        ("A", 512, {"version": 40}, "with version = 40; take a canvas of 720 px"),
        (
            "x" * 20,
            512,
            {"version": "M4"},
            "with version = 'M4'; shorten it to 15 of its 20 characters",
        ),
        ("A", 64, {"version": "M1"}, "does not fit .* let version, error and module be chosen"),
        ("AB12C", 64, {"quiet": 2}, "with quiet = 2; take a canvas of 72 px"),
        ("AB12C", 64, {"error": "H"}, "corrects up to Q .* canvas of at least 128 px"),
        ("A", 512, {"error": "X"}, "error = 'X': take one of L, M, Q, H"),
        ("A", 512, {"version": 41}, "version = 41: take 1 to 40, or M1"),
        ("A", 512, {"version": True}, "version = True"),
        ("A", 64, {"mask": 4}, r"mask = 4: take 0 to 3 \(Micro QR\)"),
        ("A", 512, {"mask": 8}, "mask = 8: take 0 to 7"),
        ("A", 512, {"module": 0}, "module = 0: take a whole number of at least 2"),
        ("A", 512, {"quiet": 0}, "quiet = 0: take a whole number of at least 1"),
        ("A", 0, {}, "side = 0"),
        ("A", 512, {"mask": 1.0}, "mask = 1.0: take 0 to 7"),
        ("A", 512, {"version": 2.0}, "version = 2.0: take 1 to 40"),
        ("A", 512, {"version": []}, r"version = \[\]: take 1 to 40"),
        ("a\ud800", 512, {}, "half of a character .* give valid Unicode"),
        ("é" * 3000, 512, {}, "does not fit a canvas of 512 px; shorten it to"),
    ],
)
def test_a_misfit_is_explained(
    payload: str, side: int, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(payload, side, **settings)


def test_the_advice_of_the_error_fits() -> None:
    assert fit("AB12CDE"[:6], 64) and fit("AB12CDE", 72) and fit("hello", 72) and fit("HELLO", 64)
    assert fit("x" * 42, 128)
    assert fit("x" * 100, 176)
    assert fit("A", 696, module=30)
    assert fit("A", 720, version=40)


def pixel_luminance(image: torch.Tensor, y: int, x: int) -> float:
    """Return Rec. 601 luminance of one pixel."""
    red, green, blue = (float(image[channel, y, x]) for channel in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def in_finder(layout: Layout, row: int, column: int) -> bool:
    """Return True for a module of a finder pattern."""
    n = len(layout.modules)
    if row < 7 and column < 7:
        return True

    others = (row >= n - 7 and column < 7) or (row < 7 and column >= n - 7)
    return others and not layout.micro


def loop(layout: Layout, image: torch.Tensor, middle: int) -> tuple[torch.Tensor, float, float]:
    """Return luminance (n, n), error rate and error rate by area, one module after another.

    `middle` is the side of the middle of a module in px.
    """
    n = len(layout.modules)
    size = layout.module
    low = (size - middle) // 2
    central = range(low, low + middle)
    luminance = torch.zeros(n, n, dtype=torch.float64)
    wrong = 0.0
    area = 0.0
    total = 0.0

    for row, column in product(range(n), range(n)):
        weight = 2 if in_finder(layout, row, column) else 1
        total += weight
        top = layout.left + row * size
        left = layout.left + column * size
        values = {
            (y, x): pixel_luminance(image, top + y, left + x)
            for y, x in product(range(size), range(size))
        }

        mean = sum(values[y, x] for y, x in product(central, central)) / middle**2
        luminance[row, column] = mean

        if layout.modules[row, column]:
            wrong += weight * (mean > 0.45)
            area += weight * sum(value > 0.45 for value in values.values()) / size**2
        else:
            wrong += weight * (mean < 0.65)
            area += weight * sum(value < 0.65 for value in values.values()) / size**2

    return luminance, wrong / total, area / total


@pytest.mark.parametrize(
    ("payload", "side", "settings"),
    [("AB12C", 64, {}), ("hello", 120, {}), ("hello", 128, {}), ("a.org", 512, {"module": 9})],
)
def test_luminance_and_errors_are_those_of_a_loop(
    payload: str, side: int, settings: dict[str, Any]
) -> None:
    layout = fit(payload, side, **settings)
    stream = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, side, side, generator=stream, dtype=torch.float64)
    images[1] = 0.3 * layout.draw().double() + 0.7 * images[1]
    middle = {4: 2, 8: 4, 9: 3, 16: 6}[layout.module]

    luminance, errors, by_area = zip(
        *(loop(layout, image, middle) for image in images), strict=True
    )

    exactly = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(layout.luminance(images), torch.stack(luminance), **exactly)
    expected = torch.tensor(errors, dtype=torch.float64)
    torch.testing.assert_close(layout.errors(images), expected, **exactly)
    expected = torch.tensor(by_area, dtype=torch.float64)
    torch.testing.assert_close(layout.errors(images, by_area=True), expected, **exactly)
    assert 0 < layout.errors(images)[1] < layout.errors(images)[0] < 1


def test_soft_errors_are_a_sigmoid_of_how_far_a_px_lies_beyond_its_threshold() -> None:
    """Against a loop in float64, and the gradient against finite differences."""
    layout = fit("AB12C", 64)
    stream = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=stream, dtype=torch.float64)
    grey = (image[0] * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    total = 0.0

    for row, column in product(range(len(layout.modules)), repeat=2):
        y = grey[layout.left + 4 * row :, layout.left + 4 * column :][:4, :4]
        beyond = y - 0.45 if layout.modules[row, column] else 0.65 - y
        wrong = 1 / (1 + torch.exp(-(beyond + 0.05) / 0.1))
        total += float(wrong.mean() * layout.weight()[row, column])

    expected = image.new_tensor([total / float(layout.weight().sum())])
    found = layout.errors(image, by_area=True, soft=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    for by_area in (True, False):
        grown = image.clone().requires_grad_()
        layout.errors(grown, by_area, soft=0.1).sum().backward()
        step = 1e-6 * torch.randn(image.shape, generator=stream, dtype=torch.float64)
        ahead, behind = (layout.errors(image + sign * step, by_area, 0.1) for sign in (1, -1))
        change = (grown.grad * step).sum()
        torch.testing.assert_close((ahead - behind)[0] / 2, change, rtol=1e-6, atol=0)


@pytest.mark.parametrize("payload", ["HTTP://AB12C.ORG", "https://example.org/AB12C"])  # 5, 4 px
def test_cells_are_means_of_parts_of_a_module(payload: str) -> None:
    """Against a loop in float64: of 5 px, the halves of a side are its first and last three."""
    layout = fit(payload, 128)
    stream = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 128, 128, generator=stream, dtype=torch.float64)
    grey = (image[0] * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    half = (layout.module + 1) // 2
    halves = (slice(0, half), slice(layout.module - half, layout.module))
    wrong = {"hard": 0.0, "soft": 0.0}

    for row, column in product(range(len(layout.modules)), repeat=2):
        top, left = (layout.left + layout.module * place for place in (row, column))
        module = grey[top : top + layout.module, left : left + layout.module]
        weight = float(layout.weight()[row, column])

        for vertical, horizontal in product(halves, repeat=2):
            y = float(module[vertical, horizontal].mean())
            beyond = y - 0.45 if layout.modules[row, column] else 0.65 - y
            wrong["hard"] += weight * (beyond > 0) / 4
            wrong["soft"] += weight / (1 + math.exp(-(beyond + 0.05) / 0.1)) / 4

    for name, soft in (("hard", 0.0), ("soft", 0.1)):
        expected = image.new_tensor([wrong[name] / float(layout.weight().sum())])
        found = layout.errors(image, by_area=True, soft=soft, cells=2)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_cells_leave_an_image_detail_that_is_finer() -> None:
    layout = fit("https://example.org/AB12C", 128)
    image = layout.draw()
    image[:, ::2, ::2] = 0.5  # every fourth px
    image = image[None]
    assert layout.errors(image, by_area=True).item() == pytest.approx(0.25)
    assert layout.errors(image, by_area=True, cells=2).item() == 0


def test_light_modules_around_a_code_may_count_too() -> None:
    layout = fit("HTTP://AB12C.ORG", 128)
    n, size, left = len(layout.modules), layout.module, layout.left
    image = layout.draw(1.0)[None]
    image[:, :, left - size : left, left : left + n * size] = 0.0  # a dark row above the code
    ring = (n + 2) ** 2 - n**2
    expected = n / (float(layout.weight().sum()) + ring)
    assert layout.errors(image).item() == 0
    assert layout.errors(image, around=1).item() == pytest.approx(expected)
    assert layout.errors(image, by_area=True, around=1).item() == pytest.approx(expected)
    most = layout.left // size  # no more than the canvas has
    assert layout.errors(image, around=99).item() == layout.errors(image, around=most).item() > 0


def test_error_rates_of_known_images() -> None:
    layout = fit("AB12C", 64)
    code = layout.draw()[None]
    dark = float((layout.modules * layout.weight()).sum() / layout.weight().sum())
    assert layout.errors(code).item() == 0
    assert layout.errors(1 - code).item() == 1
    assert layout.errors(torch.ones_like(code)).item() == pytest.approx(dark)
    assert layout.errors(torch.zeros_like(code)).item() == pytest.approx(1 - dark)
    assert layout.errors(torch.full_like(code, 0.5)).item() == 1, "grey is neither dark nor light"


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a canvas of 64 x 64 px, but the images are of shape \(3, 128, 128\)"
    ):
        fit("AB12C", 64).errors(torch.zeros(1, 3, 128, 128))


def test_the_code_of_a_prompt() -> None:
    prompt = Prompt("a cat", {"payload": "HELLO", "qr": {"mask": 2}})
    assert layout_of(prompt, 512) == fit("HELLO", 512, mask=2)
    assert layout_of(prompt, 512) is layout_of(Prompt("a dog", dict(prompt.metadata)), 512), (
        "laid out once"
    )

    for metadata, message in (
        ({}, "the prompt 'a cat' has no payload to encode"),
        ({"payload": 5}, "has no payload"),
        (
            {"payload": "HELLO", "qr": {"masque": 2}},
            "the prompt 'a cat' has qr = .* give a table of error, version, mask",
        ),
        ({"payload": "HELLO", "qr": {"mask": 9}}, "the prompt 'a cat': mask = 9"),
    ):
        with pytest.raises(ValueError, match=message):
            layout_of(Prompt("a cat", metadata), 512)


ALPHABETS = {
    "digits": "0123456789",
    "alphanumeric": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:",
    "ascii": "".join(map(chr, range(32, 127))),
    "control": "".join(map(chr, range(32))) + "\x7f\x80\x85ab",
    "space": " \t\n\r\xa0\u2028\u3000",
    "latin": "°±²ÀÉÑßàçéñöüÿ abc019",
    "latin-extended": "ĀćĘğŁőŠźŽƒ abc",
    "greek": "ΑΒΓΔΩαβγδπω ",
    "cyrillic": "АБВГДабвгдёЖщ ",
    "hebrew": "אבגדהשת ",
    "arabic": "ابتثجحمنوي٠١٢٣ ",
    "thai": "กขคงจฉชาเแโ",
    "kanji": "日本語点茗漢字東京",
    "kana": "あいうえおんアイウエオン",
    "halfwidth": "ｱｲｳｴｵﾊﾝｶｸ｡｢｣",
    "fullwidth": "ＡＢＣａｂｃ０１２～￥",
    "hangul": "가나다라마바사한글",
    "emoji": "😀😎🚀🐈👩🏽‍🚀🇪🇺❤️",
    "symbols": "€™–“”…←→∀∑≠⌘\\¥‾",
    "private": "\ufeff\ufffd\ue000\uffff",
    "mixed": "a1 é日😀ж°\nZ%",
}


@pytest.mark.parametrize("name", ALPHABETS)
def test_every_code_is_read_back_exactly(name: str) -> None:
    """By another binarizer than the one that `fit` tries first, in QR and Micro QR."""
    stream = random.Random(name)
    read = decoder("zxing-global")
    drawn = {True: 0, False: 0}

    for length, side in product((1, 2, 3, 5, 9, 20), (64, 80, 104, 128, 256, 512)):
        payload = "".join(stream.choice(ALPHABETS[name]) for _ in range(length))
        try:
            layout = fit(payload, side)
        except ValueError as error:
            if "does not fit" in str(error) and side < 256:
                continue
            raise

        drawn[layout.micro] += 1
        pixels = eight_bit(layout.draw()[None])[0, ..., 0].copy()
        assert read(pixels) == [payload], (payload, side)

    assert drawn[True] > 4 and drawn[False] > 10


@pytest.mark.parametrize(
    "payload",
    [" a", "a ", "  ", "007", "20°C", "https://example.org/ä?q=日", "a\r\nb\n", "\\000026", "]C1x"],
)
def test_no_character_is_lost_at_the_ends(payload: str) -> None:
    pixels = eight_bit(fit(payload, 256).draw()[None])[0, ..., 0].copy()
    assert [code.payload for code in find(pixels)] == [payload]


def test_ascii_is_encoded_as_before() -> None:
    for payload in ("HELLO", "123", "https://example.org"):
        plain = segno.make(payload, error="M", micro=False)
        expected = torch.tensor([list(row) for row in plain.matrix]) == 1
        assert torch.equal(fit(payload, 512).modules, expected)


def test_a_code_that_nothing_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burnish.qr.layout, "decoder", lambda name: lambda pixels: ["OTHER"])
    message = (
        r"no reader reads the bare code of the payload 'UNREAD' \(1-H, mask \d, modules of 16 px, "
        r"on 512 px\); take a larger module"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            fit("UNREAD", 512)


def test_a_code_is_read_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counting(name: str) -> Any:
        reads.append(name)
        return lambda pixels: ["ONCE"]

    monkeypatch.setattr(burnish.qr.layout, "decoder", counting)
    assert fit("ONCE", 512) is fit("ONCE", 512) and len(reads) == 1
    assert fit("ONCE", 512, mask=3).mask == 3 and len(reads) == 2


@pytest.mark.parametrize("side", [200, 256, 320, 480, 512, 640, 768])
def test_flat_coloured_modules_are_read(side: int) -> None:
    """Every module has one colour of its own, so no block within a module has any contrast."""
    stream = np.random.default_rng(side)
    read = decoder("zxing")

    for mask in range(8):
        layout = fit("https://example.org/abc"[: side // 12], side, mask=mask)
        n = len(layout.modules)
        image = eight_bit(layout.draw()[None])[0, ..., 0].copy()
        dark = stream.uniform(0, 50, (n, n))
        light = stream.uniform(205, 255, (n, n))
        colours = np.where(layout.modules, dark, light).astype(np.uint8)
        code = slice(layout.left, layout.left + n * layout.module)
        image[code, code] = colours.repeat(layout.module, 0).repeat(layout.module, 1)
        assert read(image) == [layout.payload], mask


def test_without_segno_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "segno":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install segno"):
        fit("WITHOUT SEGNO", 512)


def test_modules_beyond_the_quiet_zone_do_not_count_and_nan_is_wrong() -> None:
    layout = fit("HTTP://EXAMPLE.ORG", 256, quiet=1, module=8)
    assert layout.errors(layout.draw()[None], around=2).item() == 0
    assert layout.errors(torch.full((1, 3, 256, 256), torch.nan)).item() == 1
    many, all_px = (layout.errors(layout.draw()[None] * 0.6, True, cells=n) for n in (10**6, 8))
    assert torch.equal(many, all_px)
