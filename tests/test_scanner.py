"""Scannability against codes that must and must not be read; conditions, verdicts, the command."""

from __future__ import annotations

import ctypes
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import segno
import torch
from PIL import Image, ImageFilter
from test_cli import run
from torch import Tensor
from torch.nn.functional import interpolate

from burnish.images import eight_bit, open_image
from burnish.qr import conditions
from burnish.qr import verify as verification
from burnish.qr.decoders import BINARIZERS, decoder, find, variants
from burnish.qr.layout import Layout, fit
from burnish.qr.scanner import Readings, Scanner
from burnish.qr.verify import verify
from burnish.rewards import check_reward
from burnish.rewards.qr_modules import modules
from burnish.rewards.qr_scan import scan
from burnish.types import Prompt, is_differentiable

ZXING = tuple(BINARIZERS)


def text(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=length))


def codes(side: int, length: int, count: int, version: str | None = None) -> list[Layout]:
    """Bare codes of different payloads, under each mask in turn."""
    return [fit(text(length, seed), side, mask=seed % 4, version=version) for seed in range(count)]


def drawn(layouts: list[Layout]) -> Tensor:
    return torch.stack([layout.draw() for layout in layouts])


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("side", "length", "count", "version"),
    [
        (64, 5, 24, None),
        (64, 6, 24, None),
        (72, 8, 12, "M3"),
        (80, 12, 12, "M4"),
        (120, 5, 8, None),
        (128, 6, 8, None),
        (160, 12, 8, "M4"),
        (256, 12, 4, None),
        (512, 24, 4, None),
    ],
)
def test_a_bare_code_is_read_under_every_condition(
    side: int, length: int, count: int, version: str | None
) -> None:
    layouts = codes(side, length, count, version)
    readings = Scanner(ZXING, "all").measure(drawn(layouts), layouts)
    missed = [
        (d, c)
        for d, row in enumerate(readings.table.all(0).tolist())
        for c, good in enumerate(row)
        if not good
    ]
    assert [(readings.decoders[d], readings.conditions[c]) for d, c in missed] == []
    assert readings.strict.all() and readings.fraction.eq(1).all()


def test_an_image_without_a_code_is_never_read() -> None:
    layouts = codes(64, 5, 16)
    scanner = Scanner(ZXING, "all", softened=True)

    for images in (torch.ones(16, 3, 64, 64), torch.zeros(16, 3, 64, 64), noise(16, 3, 64, 64)):
        readings = scanner.measure(images, layouts)
        assert readings.softened is not None
        assert not readings.softened.any()
        assert not readings.lenient.any()


def test_another_payload_is_not_this_one() -> None:
    layouts = codes(64, 5, 16)
    readings = Scanner(ZXING, "all", softened=True).measure(
        drawn(layouts), layouts[1:] + layouts[:1]
    )
    assert not readings.lenient.any() and not readings.table.any()
    near = [fit(layout.payload[:-1] + "-", 64) for layout in layouts]
    assert not Scanner(ZXING).measure(drawn(layouts), near).lenient.any()


def test_texts_are_read_exactly_as_they_were_encoded() -> None:
    for payload in (
        "https://example.org/?a=b&c",
        "two\nlines\x00",
        "äöü",
        "日本語",
        "🦊 fox",
        " space ",
    ):
        layout = fit(payload, 512)
        assert Scanner(ZXING, ["full"]).measure(layout.draw()[None], [payload]).strict.all(), (
            payload
        )


def test_a_payload_may_be_a_text() -> None:
    readings = Scanner().measure(fit("AB12C", 64).draw()[None], ["AB12C"])
    assert readings.table.shape == (1, 1, 8) and readings.conditions == conditions.TRAIN

    with pytest.raises(ValueError, match="1 images but 2 payloads"):
        Scanner().measure(torch.ones(1, 3, 64, 64), ["A", "B"])
    with pytest.raises(ValueError, match="square canvases, but the images are 64 x 32 px"):
        Scanner().measure(torch.ones(1, 3, 32, 64), ["A"])


def test_workers_change_nothing() -> None:
    layouts = codes(256, 8, 8)
    images = 0.25 * drawn(layouts) + 0.75 * noise(8, 3, 256, 256)
    alone, together = (
        Scanner(ZXING, "train", True, workers).measure(images, layouts) for workers in (1, 4)
    )
    assert torch.equal(alone.table, together.table)
    assert alone.softened is not None and together.softened is not None
    assert torch.equal(alone.softened, together.softened)
    assert alone.table.any() and not alone.table.all()


def test_training_and_judging_do_not_share_conditions() -> None:
    assert set(conditions.TRAIN).isdisjoint(conditions.HELD_OUT)
    assert (
        conditions.condition_names("all")
        == conditions.TRAIN + conditions.HELD_OUT
        == tuple(conditions.CONDITIONS)
    )
    assert conditions.condition_names("held_out") == conditions.HELD_OUT
    assert conditions.condition_names("blur") == ("blur",)

    for wrong in ("blurred", ["blur", "x"], []):
        with pytest.raises(
            ValueError, match="take 'train', 'held_out', 'all', or a list of full, half"
        ):
            conditions.condition_names(wrong)


@pytest.mark.parametrize("name", conditions.CONDITIONS)
@pytest.mark.parametrize("size", [(64, 64), (1, 1), (37, 90), (512, 512)])
def test_a_condition_is_the_same_each_time_and_leaves_the_image(
    name: str, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    image = Image.fromarray(pixels)
    first, second = (np.asarray(conditions.CONDITIONS[name](image, 4.0)) for _ in range(2))
    assert np.array_equal(first, second) and first.dtype == np.uint8 and first.ndim == 2
    assert np.array_equal(np.asarray(image), pixels)

    if size == (512, 512):
        assert name == "full" or first.shape != pixels.shape or not np.array_equal(first, pixels)


def test_conditions_are_as_documented() -> None:
    """A tiny code keeps modules that can be read, a large one shrinks as a photo would."""
    wide = Image.new("L", (512, 512), 255)
    tiny = Image.new("L", (64, 64), 255)
    sizes = {
        name: [
            conditions.CONDITIONS[name](image, module).width
            for image, module in ((wide, 16), (tiny, 4))
        ]
        for name in conditions.CONDITIONS
    }
    assert sizes["half"] == [256, 48]
    assert sizes["third"] == [159, 32]
    assert sizes["screen"] == [480, 192]
    assert sizes["tilt"] == sizes["lean"] == [512, 192] and sizes["blur"] == [512, 64]
    grey = Image.new("L", (8, 8), 100)
    levels = {
        n: int(np.asarray(conditions.CONDITIONS[n](grey, 4))[0, 0])
        for n in ("dark", "bright", "pale", "deep")
    }
    assert levels == {"dark": 80, "bright": 120, "pale": 121, "deep": 83}
    noisy = conditions.CONDITIONS["noise"](Image.new("L", (256, 256), 128), 4)
    assert np.asarray(noisy).std() == pytest.approx(12.75, abs=0.3)
    black = Image.new("L", (100, 100), 0)
    tilted = np.asarray(conditions.CONDITIONS["tilt"](black, 16))
    assert tilted[2, 50] == tilted[50, 0] == 255
    assert tilted[8, 50] == 0
    assert tilted[97, 1] == 0, "moved at the top only"
    assert np.asarray(conditions.soften(grey, 16, 0))[0, 0] == 100
    assert np.asarray(conditions.soften(grey, 16, 2))[0, 0] == round((100 - 128) * 0.85 + 148)


def test_an_image_is_read_more_the_more_of_it_is_code() -> None:
    layouts = codes(64, 5, 12)
    code = drawn(layouts)
    background = noise(12, 3, 64, 64)
    scanner = Scanner(("zxing",), "all")
    blends = [a * code + (1 - a) * background for a in (0, 0.25, 0.5, 0.75, 1)]
    read = [float(scanner.measure(blend, layouts).fraction.mean()) for blend in blends]
    assert read == sorted(read) and read[0] == 0 and read[-1] == 1 and 0 < read[2] < 1


def test_the_verdicts_are_all_any_and_in_between() -> None:
    table = torch.tensor(
        [
            [[1, 1], [1, 1]],  # all
            [[1, 0], [0, 1]],  # each condition by some decoder
            [[1, 0], [1, 0]],  # one condition only
            [[0, 0], [0, 0]],
        ]
    ).bool()
    readings = Readings(table, ("a", "b"), ("x", "y"), table)
    assert readings.strict.tolist() == [True, False, False, False]
    assert readings.phone.tolist() == [True, True, False, False]
    assert readings.lenient.tolist() == [True, True, True, False]
    assert readings.fraction.tolist() == [1, 0.5, 0.5, 0]
    softer = table.clone()
    softer[3, 1] = True
    phone = Readings(table, ("a", "b"), ("x", "y"), softer).phone
    assert phone.tolist() == [True, True, False, True]

    with pytest.raises(ValueError, match="'phone' needs softened images"):
        _ = Readings(table, ("a", "b"), ("x", "y")).phone


def test_softening_only_adds() -> None:
    layouts = codes(64, 5, 12)
    images = 0.45 * drawn(layouts) + 0.55 * noise(12, 3, 64, 64)
    readings = Scanner(("zxing",), "all", softened=True).measure(images, layouts)
    assert readings.softened is not None and (readings.softened | ~readings.table).all()
    assert readings.softened.sum() > readings.table.sum(), (
        "or the verdict phone would be worth nothing"
    )


def test_variants() -> None:
    assert variants("zxing") == ZXING
    assert variants("zxing-fixed") == ("zxing-fixed",)
    assert variants("opencv") == ("opencv",)


@pytest.mark.parametrize("name", ["opencv", "pyzbar"])
def test_other_decoders_read_bare_codes_and_refuse_micro(name: str) -> None:
    try:
        scanner = Scanner([name], ["full", "half", "jpeg"])
    except ValueError as error:
        pytest.skip(str(error))

    layouts = [fit(f"https://example.org/{i}", 512, error="H") for i in range(2)]
    assert scanner.measure(drawn(layouts), layouts).strict.all()
    assert not scanner.measure(drawn(layouts), layouts[::-1]).lenient.any()
    assert not scanner.measure(noise(2, 3, 512, 512), layouts).lenient.any()

    with pytest.raises(
        ValueError, match=f"decoder '{name}' cannot read Micro QR, as which 'AB12C' is drawn"
    ):
        scanner.measure(fit("AB12C", 64).draw()[None], ["AB12C"])


@pytest.mark.parametrize(
    ("name", "package", "message"),
    [
        ("zxing", "zxingcpp", "pip install zxing-cpp"),
        ("opencv", "cv2", "pip install opencv-python-headless"),
        ("pyzbar", "pyzbar", "libzbar0"),
    ],
)
def test_a_missing_package_is_named(
    name: str, package: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=message):
        decoder(name)


def test_opencv_and_pyzbar_return_the_texts_of_their_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With stand-ins, since neither need be installed."""
    detector = SimpleNamespace(
        detectAndDecode=lambda image: ("HELLO" if image.any() else "", None, None)
    )
    monkeypatch.setitem(
        sys.modules, "cv2", SimpleNamespace(QRCodeDetector=lambda: detector, error=RuntimeError)
    )
    read = SimpleNamespace(
        decode=lambda image, symbols: [SimpleNamespace(data="é".encode())] * int(image.any())
    )
    read.ZBarSymbol = SimpleNamespace(QRCODE=1)
    monkeypatch.setitem(sys.modules, "pyzbar", SimpleNamespace(pyzbar=read))
    monkeypatch.setitem(sys.modules, "pyzbar.pyzbar", read)

    for name, text in (("opencv", "HELLO"), ("pyzbar", "é")):
        assert decoder(name)(np.ones((4, 4), np.uint8)) == [text]
        assert decoder(name)(np.zeros((4, 4), np.uint8)) == []


class PanicException(BaseException):
    """As a library in Rust raises it."""


RAISED = [
    PanicException("index out of bounds"),
    UnicodeDecodeError("utf-8", b"\x93\xfa", 0, 1, "invalid start byte"),
    RuntimeError("assertion"),
    ValueError("bad"),
    AttributeError("no such attribute"),
    MemoryError(),
    IndexError(),
    ctypes.ArgumentError("wrong"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", ["opencv", "pyzbar", "zxing", "zxing-global"])
def test_an_image_on_which_a_library_raises_is_not_read(
    name: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise error

    class Cv2Error(Exception):
        pass

    detector = SimpleNamespace(detectAndDecode=fail)
    cv2 = SimpleNamespace(QRCodeDetector=lambda: detector, error=Cv2Error)
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    zbar = SimpleNamespace(decode=fail, ZBarSymbol=SimpleNamespace(QRCODE=1))
    monkeypatch.setitem(sys.modules, "pyzbar", SimpleNamespace(pyzbar=zbar))
    monkeypatch.setitem(sys.modules, "pyzbar.pyzbar", zbar)
    layout = fit("HELLO", 128)
    monkeypatch.setattr("zxingcpp.read_barcodes", fail)
    monkeypatch.setattr("burnish.qr.decoders._reported", set())

    readings = Scanner([name], ["full", "half"]).measure(layout.draw()[None], [layout])
    assert not readings.table.any() and find(np.zeros((8, 8), np.uint8)) == []
    messages = [record.getMessage() for record in caplog.records if f"'{name}'" in record.message]
    foreign_text = name == "opencv" and isinstance(error, UnicodeError)
    assert len(messages) == (0 if foreign_text else 1)
    assert all(type(error).__name__ in message for message in messages)


def test_an_interrupted_reader_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zxingcpp.read_barcodes", interrupt)
    for read in (decoder("zxing"), find):
        with pytest.raises(KeyboardInterrupt):
            read(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize("name", ["opencv", "zxing", "pyzbar"])
def test_a_library_that_cannot_be_imported_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"opencv": "cv2", "zxing": "zxingcpp", "pyzbar": "pyzbar"}[name]
    (tmp_path / f"{package}.py").write_text("raise OSError('libGL.so.1: no such file')")
    for loaded in [key for key in sys.modules if key.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="install .*libGL.so.1: no such file"):
        decoder(name)


def test_a_kanji_code_does_not_end_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2")
    code = segno.make("日本語", mode="kanji", micro=False)
    code.save(str(tmp_path / "kanji.png"), scale=10)
    arguments = ("--verify", str(tmp_path / "kanji.png"), "--decoder", "zxing")
    assert run(capsys, "qr", "日本語", *arguments, "--decoder", "opencv", "--json")[0] == 0


def test_unknown_decoders_are_refused() -> None:
    with pytest.raises(
        ValueError, match="decoder 'zbar' is unknown; take one of zxing, zxing-global"
    ):
        Scanner(["zbar"])

    with pytest.raises(ValueError, match="decoders is empty"):
        Scanner([])


def test_a_code_is_found_with_its_kind_and_its_modules() -> None:
    for layout in (
        fit("AB12C", 64),
        fit("hello", 80),
        fit("hello", 160, version="M4"),
        fit("a.org/abc", 512),
    ):
        (code,) = find(eight_bit(layout.draw()[None])[0][..., 0].copy())
        assert (code.payload, code.designator) == (layout.payload, layout.designator)
        assert code.module == pytest.approx(layout.module, rel=0.02)


def prompts_for(*payloads: str) -> list[Prompt]:
    return [Prompt(f"an image of {payload}", {"payload": payload}) for payload in payloads]


def test_the_reward_is_the_share_read_and_the_share_of_right_modules() -> None:
    layouts = codes(64, 5, 3)
    prompts = prompts_for(*(layout.payload for layout in layouts))
    layouts = [fit(layout.payload, 64) for layout in layouts]
    images = drawn(layouts)
    images[1] = 1.0
    images[2, :, 4:20, 4:20] = 0.5
    readings = Scanner(("zxing",), "train").measure(images, layouts)
    right = torch.tensor(
        [1 - float(layout.errors(images[i : i + 1])) for i, layout in enumerate(layouts)]
    )
    values = scan()(images, prompts)
    torch.testing.assert_close(values, readings.fraction + 0.5 * right.double())
    assert values[0] == 1.5
    assert 0 < values[1] < 0.5
    assert torch.equal(scan(module_weight=0)(images, prompts), readings.fraction)


def test_the_strict_reward_knows_nothing_of_an_image_that_one_condition_fails() -> None:
    layout = fit("AB12C", 64)
    grey = torch.full((3, 64, 64), 0.5)
    images = torch.stack([share * layout.draw() + (1 - share) * grey for share in (1.0, 0.12, 0.0)])
    readings = Scanner(("zxing",), "train").measure(images, [layout] * 3)
    assert 0 < readings.fraction[1] < 1, "or this shows nothing"

    values = scan(module_weight=0, strict=True)(images, prompts_for(*["AB12C"] * 3))
    assert values.tolist() == [1.0, 0.0, 0.0]


def test_the_reward_separates_images_that_no_decoder_reads() -> None:
    layout = fit("AB12C", 64)
    images = torch.stack(
        [a * layout.draw() + (1 - a) * noise(3, 64, 64) for a in (0.0, 0.1, 0.15, 0.2)]
    )
    values = scan()(images, prompts_for(*["AB12C"] * 4))
    assert not Scanner().measure(images, [layout] * 4).lenient.any(), "or this shows nothing"
    assert values.isfinite().all() and values.tolist() == sorted(set(values.tolist()))


def test_the_reward_keeps_its_contract_on_both_canvases() -> None:
    prompts = [
        Prompt("a cat", {"payload": "AB12C"}),
        Prompt("a dog", {"payload": "HELLO", "qr": {"mask": 1}}),
    ]
    assert check_reward(scan(), size=64, prompts=prompts) == []
    assert check_reward(scan(["zxing-fixed"], "held_out"), size=160, prompts=prompts) == []


def test_the_reward_names_what_a_prompt_lacks() -> None:
    with pytest.raises(ValueError, match="the prompt 'a cat' has no payload"):
        scan()(torch.ones(1, 3, 64, 64), [Prompt("a cat")])

    with pytest.raises(
        ValueError, match="the prompt 'an image of hello': the payload 'hello' does not fit"
    ):
        scan()(torch.ones(1, 3, 64, 64), prompts_for("hello"))

    with pytest.raises(ValueError, match="module_weight = -1"):
        scan(module_weight=-1)


def test_the_reward_lets_a_decoder_be_held_out() -> None:
    layout = fit("AB12C", 64)
    images = torch.stack([0.5 * layout.draw() + 0.5 * noise(3, 64, 64), layout.draw()])
    trained, held_out = (
        scan([name], "all", 0)(images, prompts_for("AB12C", "AB12C"))
        for name in ("zxing", "zxing-fixed")
    )
    assert trained[1] == held_out[1] == 1 and trained[0] != held_out[0]


def save(image: Tensor, path: Path) -> str:
    Image.fromarray(eight_bit(image[None])[0]).save(path)
    return str(path)


def test_the_command_reads_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = save(fit("AB12C", 64).draw(), tmp_path / "bare.png")
    code, out, _ = run(capsys, "qr", "--verify", bare)
    assert code == 0
    assert "'AB12C' (M2-M, modules of 4.0 px)" in out
    assert "strict yes   phone no   lenient yes" in out
    assert "phone: Micro QR: most phone cameras do not read it" in out
    assert all(f"\n{name} " in out for name in conditions.CONDITIONS)

    code, out, _ = run(capsys, "qr", "OTHER", "--verify", bare, "--json")
    verdict = json.loads(out)
    assert code == 1
    assert verdict["others"] == ["AB12C"]
    assert not verdict["lenient"]
    assert verdict["fraction"] == 0

    code, out, _ = run(capsys, "qr", "--verify", save(noise(3, 40, 60), tmp_path / "noise.png"))
    assert code == 1 and "payload  not read" in out and "lenient no" in out


def test_the_command_takes_images_of_any_size_and_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = fit("https://example.org", 512)
    code = Image.fromarray(eight_bit(layout.draw()[None])[0])
    wide = Image.new("RGBA", (2600, 1100), (0, 0, 0, 0))
    wide.paste(code.rotate(7, expand=True, fillcolor=(255, 255, 255)), (1300, 200))
    wide.save(tmp_path / "wide.png")
    Image.new("L", (1, 1)).save(tmp_path / "one.png")
    code.convert("P").save(tmp_path / "palette.gif")
    code, out, _ = run(capsys, "qr", "--verify", str(tmp_path / "wide.png"), "--json")
    verdict = json.loads(out)
    assert code == 0
    assert verdict["payload"] == "https://example.org"
    assert verdict["code"] == layout.designator
    assert verdict["strict"] and set(verdict["read"]) == {"zxing"}
    assert verdict["phone"] is (None if "not known" in verdict["phone_note"] else True)
    assert run(capsys, "qr", "--verify", str(tmp_path / "palette.gif"))[0] == 0
    assert run(capsys, "qr", "--verify", str(tmp_path / "one.png"))[0] == 1


def test_the_command_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    content = Path(save(noise(3, 64, 64), tmp_path / "good.png")).read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])

    for name, words in (
        ("text.png", "not an image"),
        ("half.png", "not an image"),
        ("none.png", "no such image"),
    ):
        code, out, err = run(capsys, "qr", "--verify", str(tmp_path / name))
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err and name in err

    assert "not an image" in run(capsys, "qr", "--verify", str(tmp_path))[2]
    code, _, err = run(capsys, "qr", "--verify", str(tmp_path / "good.png"), "--decoder", "eyes")
    assert code == 2 and "decoder 'eyes' is unknown" in err


def test_the_module_term_alone() -> None:
    """A reward of its own, so that it is normalised by itself."""
    layout = fit("AB12C", 64)
    images = torch.stack([layout.draw(), torch.full((3, 64, 64), 0.5), 1 - layout.draw()])
    prompts = [Prompt("a cat", {"payload": "AB12C"})] * 3
    torch.testing.assert_close(modules()(images, prompts), 1 - layout.errors(images).double())
    assert modules()(images, prompts).tolist()[0] == 1
    assert modules()(images, prompts).tolist()[2] == 0


def test_the_module_term_by_area_separates_images_whose_module_centres_are_right() -> None:
    """Modules whose edges are grey: no module is wrong, and half of a light module's 16 px is."""
    layout = fit("AB12C", 64)
    clean = layout.draw()
    edged = layout.draw()
    corner = slice(layout.left, layout.left + len(layout.modules) * layout.module)
    rows = torch.arange(64)[corner]
    edged[:, rows[(rows - layout.left) % 4 == 0]] = 0.55
    edged[:, rows[(rows - layout.left) % 4 == 3]] = 0.55
    images = torch.stack([clean, edged])
    prompts = [Prompt("a cat", {"payload": "AB12C"})] * 2
    assert modules()(images, prompts).tolist() == [1, 1]
    assert modules(by_area=True)(images, prompts).tolist() == [1, 0.5]


def test_cells_need_an_area() -> None:
    with pytest.raises(ValueError, match="set by_area = true"):
        modules(cells=2)


def test_the_module_term_has_a_gradient_where_it_is_soft() -> None:
    assert is_differentiable(modules(by_area=True, soft=0.08)) and not is_differentiable(modules())
    prompts = ["a cat"]
    coded = [Prompt(text, {"payload": "AB12C"}) for text in prompts]
    assert check_reward(modules(soft=0.08), prompts=coded, gradient=True) == []
    with pytest.raises(ValueError, match="difference of luminances"):
        modules(soft=-1)


def test_what_zxing_does_not_find_other_readers_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payload is what any reader found, and phones then read it: so it is read at all."""
    Image.fromarray(eight_bit(fit("HELLO", 128).draw()[None])[0]).save(path := tmp_path / "a.png")
    monkeypatch.setattr(verification, "find", lambda pixels: [])
    seen = decoder("pyzbar")
    monkeypatch.setattr(verification, "decoder", lambda name: seen)
    found = verify(path)
    assert found.payload == "HELLO" and found.strict

    monkeypatch.setattr(verification, "Scanner", BlindScanner)
    found = verify(path)
    assert (found.payload, found.strict, found.phone, found.lenient) == ("HELLO", False, True, True)


class BlindScanner(Scanner):
    """A scanner whose readers find nothing."""

    def scan_image(self, *arguments: Any) -> Any:
        none = np.zeros((len(self.decoders), len(self.conditions)), dtype=bool)
        return none, none


def test_an_image_is_verified_under_the_conditions_that_selected_it(tmp_path: Path) -> None:
    """Corners found in a soft image are off by a few hundredths, and its modules still 4 px."""
    stream = torch.Generator().manual_seed(0)
    scanner = Scanner(["zxing"], "all")
    sizes = set()
    verdicts = []

    for row in range(12):
        soft = interpolate(
            torch.rand(1, 3, 32, 32, generator=stream), scale_factor=2, mode="bicubic"
        ).clamp(0, 1)
        mixed = Image.fromarray(eight_bit(0.5 * fit("AB12C", 64).draw()[None] + 0.5 * soft)[0])
        mixed.filter(ImageFilter.GaussianBlur(0.8)).save(path := tmp_path / f"{row}.png")
        verdict = verify(path)
        sizes.add(verdict.module)
        verdicts.append(verdict.strict)
        strict = scanner.measure(open_image(path)[None], ["AB12C"]).strict
        assert verdict.strict == bool(strict), f"image {row}"

    assert sizes == {4.0}
    assert len(set(verdicts)) == 2, "some are read under every condition and some are not"
