"""Images that are QR codes: the images found, the number of tries, the command's output."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_cli import run
from torch import Tensor

from burnish import config as configuration
from burnish.annotations import complaint
from burnish.diffusion.guidance import NoGuidance
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.images import open_image
from burnish.qr.decoders import decoder, independent
from burnish.qr.layout import fit
from burnish.qr.phone import Phone
from burnish.qr.scanner import Scanner
from burnish.qr.verify import verify
from burnish.run_files import SearchFile, TryRow
from burnish.runs import Run
from burnish.seeds import generator
from burnish.tools import qr_search
from burnish.tools.qr_search import (
    choose_canvas,
    code_settings,
    deciding_decoders,
    open_controlled,
    save,
    scale_step,
    search,
)
from burnish.tools.qr_tries import TryLog
from burnish.types import Prompt
from burnish.zoo import QR_SCALE

CODE = fit("AB12C", 64).draw()
PROMPT = Prompt("a cat", {"payload": "AB12C"})


@pytest.fixture
def controlled(
    tiny_pipeline: Path, tiny_controlnet: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Policy, Sampler]:
    """A model whose fifth, tenth, ... image of a batch is the bare code.

    The sixth, eleventh, ... is a code that is hardly read.
    """
    policy = Policy.load(tiny_pipeline, controlnet=str(tiny_controlnet), size=64, train="none")

    def decode(latent: Tensor) -> Tensor:
        images = torch.rand(len(latent), 3, 64, 64, generator=torch.Generator().manual_seed(0))
        images[4::5] = CODE
        images[5::5] = 0.5 + 0.08 * (CODE - 0.5)
        return images

    monkeypatch.setattr(policy, "decode", decode)
    return policy, Sampler(DDIM(), 1, NoGuidance())


def test_images_that_are_read_are_kept(controlled: tuple[Policy, Sampler], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    result = search(
        *controlled, PROMPT, Scanner(), count=4, tries=100, on_try=lambda *call: calls.append(call)
    )
    assert [found.attempt for found in result.images] == [5, 10, 15, 16 + 5] and result.tries == 32
    assert (result.payload, result.passed) == ("AB12C", 6), "those beyond the four count too"
    assert result.read >= 6 and calls == [(16, 3), (32, 4)]

    paths = save(result, tmp_path / "out")
    assert [path.name for path in paths] == [f"code-00{n}.png" for n in ("05", "10", "15", "21")]
    assert torch.equal(open_image(paths[0]), CODE)

    few = search(*controlled, PROMPT, Scanner(), count=4, tries=7)
    assert [found.attempt for found in few.images] == [5] and few.tries == 7
    none_read = search(*controlled, PROMPT, Scanner(), count=1, tries=4)
    assert (none_read.images, none_read.tries, none_read.payload) == ([], 4, "")


def test_every_try_is_written_with_who_reads_it(
    controlled: tuple[Policy, Sampler], tmp_path: Path
) -> None:
    (tmp_path / "tries").mkdir()
    (tmp_path / "tries" / "0099.png").write_text("of an earlier search")
    log = TryLog(tmp_path, payload="AB12C", tries=16)
    scanner = Scanner(["zxing", "zxing-fixed"], "all")
    result = search(*controlled, PROMPT, scanner, count=2, tries=16, on_read=log.add)

    assert json.loads((tmp_path / "search.json").read_text())["payload"] == "AB12C"
    rows = [json.loads(line) for line in (tmp_path / "tries.jsonl").read_text().splitlines()]
    assert [row["attempt"] for row in rows] == list(range(1, 17))
    assert [row["attempt"] for row in rows if row["accepted"]] == [5, 10]
    assert [row["attempt"] for row in rows if row["strict"]] == [5, 10, 15]
    assert not [wrong for row in rows if (wrong := complaint(row, TryRow, ""))]

    images = torch.stack([open_image(tmp_path / "tries" / f"{n:04d}.png") for n in range(1, 17)])
    layout = fit("AB12C", 64)
    for row, errors in zip(rows, layout.errors(images).tolist(), strict=True):
        assert row["module_errors"] == pytest.approx(errors, abs=1e-2)
    readings = scanner.measure(images, [layout] * 16).table.sum(2).tolist()
    assert [list(row["read"].values()) for row in rows] == readings
    assert torch.equal(images[4], result.images[0].image)
    assert len(list((tmp_path / "tries").iterdir())) == 16

    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="choose another --out"):
        TryLog(tmp_path / "file")


def test_the_control_scale_rises_while_nothing_is_read(
    controlled: tuple[Policy, Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes of which the first two batches have none; then it stays."""
    policy, sampler = controlled
    scales: list[float] = []
    draw = Sampler.images

    def images(self: Sampler, *arguments: Any) -> Tensor:
        scales.append(self.control.scale)
        drawn = draw(self, *arguments)
        return drawn if len(scales) > 2 else torch.ones_like(drawn)

    monkeypatch.setattr(Sampler, "images", images)
    low = replace(sampler, control=replace(sampler.control, scale=0.7))
    result = search(policy, low, PROMPT, Scanner(), count=5, tries=100, step=0.1)
    assert scales == pytest.approx([0.7, 0.8, 0.9, 0.9])
    assert result.scales == pytest.approx((0.7, 0.9)) and len(result.images) == 5

    scales.clear()
    monkeypatch.setattr(policy, "decode", lambda latent: torch.ones(len(latent), 3, 64, 64))
    high = replace(sampler, control=replace(sampler.control, scale=1.95))
    for step, wanted in ((0.1, [1.95, 2.0, 2.0]), (0.0, [1.95, 1.95, 1.95])):
        search(policy, high, PROMPT, Scanner(), count=1, tries=48, step=step)
        assert scales[-3:] == pytest.approx(wanted)


def test_only_a_scale_that_nobody_chose_rises(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert scale_step("zoo:emoji-lcm", -1.0) > 0 == scale_step("zoo:emoji-lcm", 0.9)
    (tmp_path / "run").mkdir()
    write_recipe().rename(tmp_path / "run" / "config.toml")
    assert scale_step(str(tmp_path / "run"), -1.0) == 0


def test_a_folder_that_is_a_file(controlled: tuple[Policy, Sampler], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError, match="out could not be written: a file is in the way"):
        save(search(*controlled, PROMPT, Scanner(), count=1, tries=5), tmp_path / "out")


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_where_nothing_can_be_written_no_search_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(qr_search, "open_controlled", lambda *a, **b: pytest.fail("a model"))
    code, _, err = run(capsys, "qr", "HELLO", "--prompt", "a cat", "--out", str(tmp_path / out))
    assert code == 2 and "file is a file; choose another --out" in err


def test_an_earlier_image_of_the_same_name_stays(
    controlled: tuple[Policy, Sampler], tmp_path: Path
) -> None:
    (tmp_path / "code-0005.png").write_text("of another search")
    found = search(*controlled, PROMPT, Scanner(), count=1, tries=5)
    for _ in range(2):  # the second time it is there as it is
        assert save(found, tmp_path) == [tmp_path / "code-0005-2.png"]
    assert (tmp_path / "code-0005.png").read_text() == "of another search"


@pytest.mark.parametrize("name", ["tries/thesis.txt", "search.json", "tries.jsonl"])
def test_a_search_deletes_no_file_that_no_search_wrote(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"mine": true}')
    with pytest.raises(FileExistsError, match=rf"{name} is of no search for codes"):
        TryLog(tmp_path, payload="AB12C")
    assert (tmp_path / name).read_text() == '{"mine": true}'


def test_a_scale_is_a_finite_number() -> None:
    with pytest.raises(ValueError, match="--scale nan: take a finite number"):
        open_controlled("zoo:emoji-lcm", scale=math.nan)


def test_codes_of_a_run_are_as_its_prompts_had_them(tmp_path: Path) -> None:
    settings = ['prompts.code={error="M",mask=3}', "guard.action=stop"]
    reader = '[{use="burnish.rewards.qr_scan:scan",decoders=["opencv"]}]'
    config = configuration.load("emoji-qr", [*settings, f"rewards={reader}"])
    run = Run(tmp_path)
    run.config.write_text(configuration.dump(config, tmp_path))
    assert code_settings(str(tmp_path)) == {"error": "M", "mask": 3}
    assert code_settings("zoo:emoji-lcm") == {}

    # a reward by its whole name, and the panel of a guard that acts, took part too
    assert deciding_decoders(str(tmp_path), ["zxing"]) == ("zxing", "opencv")
    panel = '[{use="qr_scan",decoders=["pyzbar"]}]'
    watched = configuration.load("emoji-qr", [*settings, f"guard.panel={panel}"])
    run.config.write_text(configuration.dump(watched, tmp_path))
    assert deciding_decoders(str(tmp_path), ["zxing"])[-1] == "pyzbar"


def test_models_without_a_controlnet_are_an_error(
    tiny_pipeline: Path, tiny_controlnet: Path
) -> None:
    message = "draws no codes by itself: give a ControlNet for it by --controlnet"
    with pytest.raises(ValueError, match=message):
        open_controlled(str(tiny_pipeline))

    policy, sampler = open_controlled(
        str(tiny_pipeline), str(tiny_controlnet), steps=3, guidance=2.0, scale=1.5
    )
    assert policy.has_controlnet and (sampler.steps, sampler.control.scale) == (3, 1.5)
    assert open_controlled(str(tiny_pipeline), str(tiny_controlnet))[1].control.scale == 1.0


@pytest.mark.parametrize("model", ["zoo:emoji-lcm", "zoo:emoji-lcm-128"])
def test_embedded_models_draw_codes_with_their_embedded_controlnet(model: str) -> None:
    policy, sampler = open_controlled(model, scale=2.0)
    result = search(policy, sampler, PROMPT, Scanner(), count=1, tries=16)
    assert sampler.steps == 4 and result.payload == "AB12C"
    assert str(policy.pipe.controlnet.config["_name_or_path"]).endswith(
        model.replace("zoo:emoji-lcm", "emoji-qr")
    )


def test_the_command(
    controlled: tuple[Policy, Sampler],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[Any] = []

    def open_fake(*arguments: str, **settings: Any) -> tuple[Policy, Sampler]:
        opened.append(arguments)
        return controlled

    monkeypatch.setattr(qr_search, "open_controlled", open_fake)
    options = ["--prompt", "a cat", "--out", str(tmp_path / "out"), "--n", "2", "--model", "m"]
    options += ["--size", "64"]
    code, out, _ = run(capsys, "qr", "AB12C", *options)
    assert code == 0 and "3 of 16 tries are read under every condition" in out
    assert "2 kept, they say 'AB12C'" in out
    assert (
        "code M2-M on 64 px, control scale 1; phone: Micro QR: most phone cameras do not read it"
        in out
    )
    assert opened[0] == ("m", ""), "a run has its own ControlNet"

    code, out, _ = run(capsys, "qr", "AB12C", *options, "--json", "--controlnet", "c")
    content = json.loads(out)
    assert code == 0 and (content["payload"], len(content["files"])) == ("AB12C", 2)
    assert (content["kept"], content["tries"], content["passed"]) == (2, 16, 3)
    assert (content["code"], content["size"], content["phone"]) == ("M2-M", 64, [False, False])
    assert opened[1] == ("m", "c")

    run(capsys, "qr", "AB12C", *options, "--keep-tries")
    wanted = json.loads((tmp_path / "out" / "search.json").read_text())
    assert not complaint(wanted, SearchFile, "")
    assert (wanted["code"], wanted["size"], wanted["count"]) == ("M2-M", 64, 2)
    assert len(list((tmp_path / "out" / "tries").iterdir())) == 16

    code, out, _ = run(capsys, "qr", "AB12C", *options, "--tries", "4")
    assert code == 1 and "0 of 4 tries" in out, "nothing is read"

    code, _, err = run(capsys, "qr", "AB12C")
    assert code == 2
    assert "qr needs a PAYLOAD and a --prompt to draw, or --verify IMAGE to read" in err

    payload = "much too long for sixty-four pixels"
    code, _, err = run(capsys, "qr", payload, "--prompt", "a cat", "--model", "m", "--size", "64")
    assert code == 2 and "does not fit a canvas of 64 px; take a canvas of 128 px (--size" in err

    payload = "x" * 300
    code, _, err = run(capsys, "qr", payload, "--prompt", "a cat", "--model", "m")
    assert code == 2 and err.count("\n") == 1
    assert "does not fit a canvas of 256 px; shorten it to 251 of its 300 characters" in err
    assert "or take a canvas of" in err and "(--size sets it)" in err

    code, _, err = run(capsys, "qr", "AB", "--prompt", "a cat", "--model", "m", "--size", "63")
    assert code == 2 and "size = 63" in err and "a multiple of" in err and "(--size sets it)" in err

    code, _, err = run(capsys, "qr", "a\udcff", "--prompt", "a cat", "--model", "m")
    assert code == 2 and "half of a character" in err and "--size" not in err


@pytest.mark.parametrize(
    ("payload", "designator", "side"),
    [
        ("HELLO", "1-H", 128),
        ("https://example.org", "2-Q", 128),
        ("20°C", "1-H", 128),
        ("日本語のテキスト", "2-M", 128),
        ("x" * 42, "3-M", 128),
        ("x" * 60, "4-M", 144),
        ("x" * 150, "8-M", 208),
    ],
)
def test_the_canvas_holds_an_ordinary_code(
    payload: str, designator: str, side: int, tiny_pipeline: Path, tiny_controlnet: Path
) -> None:
    policy = Policy.load(tiny_pipeline, controlnet=str(tiny_controlnet), size=64, train="none")
    prompt = Prompt("a cat", {"payload": payload})
    layout = choose_canvas(policy, prompt)
    assert not layout.micro and layout.module >= policy.pipe.vae_scale_factor
    assert (layout.designator, layout.side) == (designator, side)
    assert policy.encode([prompt])["control"].shape == (1, 3, side, side)
    images = Sampler(DDIM(), 1, NoGuidance()).images(policy, [prompt], generator(0, "x"), 1)
    assert images.shape == (1, 3, side, side)


def test_a_canvas_that_is_large_enough_is_kept(tiny_pipeline: Path, tiny_controlnet: Path) -> None:
    policy = Policy.load(tiny_pipeline, controlnet=str(tiny_controlnet), size=192, train="none")
    assert choose_canvas(policy, Prompt("a cat", {"payload": "HELLO"})).side == 192
    assert choose_canvas(policy, PROMPT, 64).designator == "M2-M"


def test_readers_that_a_reward_used_are_not_independent(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert deciding_decoders("zoo:emoji-lcm", ["zxing"]) == ("zxing",)
    folder = tmp_path / "run"
    folder.mkdir()
    rewards = [{"use": "qr_scan", "decoders": ["opencv"]}, {"use": "compressibility"}]
    write_recipe(rewards=rewards).rename(folder / "config.toml")
    assert independent(deciding_decoders(str(folder), ["zxing"])) == ("pyzbar",)


def test_phone_is_what_independent_readers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = {"pyzbar": ["HELLO"], "opencv": []}

    def installed(name: str) -> Callable[[Any], list[str]]:
        if name not in readings:
            raise ValueError("not installed")
        return lambda pixels: readings[name]

    monkeypatch.setattr("burnish.qr.phone.decoder", installed)
    image = Image.new("L", (128, 128), 255)
    assert Phone(["zxing"]).reads(image, "HELLO", 4, micro=False) is True
    assert Phone(["zxing", "pyzbar"]).reads(image, "HELLO", 4, micro=False) is False
    assert Phone(["zxing"]).reads(image, "HELLO", 4, micro=True) is False
    assert Phone(["zxing"]).note() == "by pyzbar and opencv"
    del readings["pyzbar"]
    assert Phone(["zxing"]).note() == (
        "by opencv; not installed: pyzbar (pip install pyzbar; apt install libzbar0)"
    )
    del readings["opencv"]
    assert Phone(["zxing"]).reads(image, "HELLO", 4, micro=False) is None
    assert "no independent reader is installed: pyzbar (pip install" in Phone(["zxing"]).note()
    assert "every reader took part" in Phone(["zxing", "pyzbar", "opencv"]).note()


def test_each_independent_reader_says_what_it_reads_in_the_plain_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenCV as it is; a ZBar that is not installed."""

    def installed(name: str) -> Callable[[Any], list[str]]:
        if name == "pyzbar":
            raise ValueError("not installed")
        return decoder(name)

    monkeypatch.setattr("burnish.qr.phone.decoder", installed)
    link, other = fit("https://example.org", 128), fit("https://example.com", 128)
    code = link.draw()
    blank = torch.ones(3, 128, 128)
    images = torch.stack([code, blank, code])
    found = Phone(["zxing"]).plain(images, [link, link, other])
    assert found.keys() == {"opencv", "pyzbar"} and found["pyzbar"] is None
    assert found["opencv"] is not None and found["opencv"].tolist() == [True, False, False]

    micro = fit("AB12C", 64)
    monkeypatch.setattr("burnish.qr.phone.decoder", lambda name: lambda pixels: ["AB12C"])
    for reader in Phone(["zxing"]).plain(micro.draw()[None], [micro]).values():
        assert reader is not None and reader.tolist() == [False]


def test_the_first_command_that_anybody_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompt", "a cat", "--out", str(tmp_path), "--n", "1", "--json"]
    code, out, _ = run(capsys, "qr", "https://example.org", *options)
    content = json.loads(out)
    assert code == 0 and (content["code"], content["size"]) == ("2-Q", 128)
    assert content["scales"][0] == QR_SCALE
    verdict = verify(Path(content["files"][0]))
    assert verdict.payload == "https://example.org" and verdict.strict
    assert verdict.phone == content["phone"][0]
