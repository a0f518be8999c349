"""The training data of the embedded models: scenes with codes or letters, packed questions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zxingcpp
from PIL import Image

from burnish import zoo
from burnish.diffusion.schedule import read_schedule
from burnish.zoo import judge as judging
from burnish.zoo.scenes import Scenes
from pretrain import captioner, controlnet, controlnet_lcm, lettering, loop
from pretrain import judge as judge_training
from pretrain.shading import codes, shaded
from pretrain.unet import encode_scenes

GREY = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)


def test_modules_move_in_luminance_and_keep_their_hue() -> None:
    images = torch.rand(8, 3, 16, 16, dtype=torch.float64, generator=torch.Generator())
    code = (torch.rand(8, 1, 16, 16, generator=torch.Generator()) < 0.5).double()
    dark = (code == 0).expand_as(images)
    before = (images * GREY).sum(1, keepdim=True)

    for share in (0.0, 0.3, 1.0):
        after = shaded(images, code, torch.full((8, 1, 1, 1), share, dtype=torch.float64))
        luminance = (after * GREY).sum(1, keepdim=True)

        bound = torch.where(code == 0, 1 - 0.78 * share, 0.82 * share)
        limited = torch.where(code == 0, before.minimum(bound), before.maximum(bound))
        assert torch.allclose(luminance, limited)

        # colours, or their complements, are scaled by one number a pixel
        cross = torch.linalg.cross(images, after, dim=1)[dark]
        complements = torch.linalg.cross(1 - images, 1 - after, dim=1)[~dark]
        assert max(cross.abs().max(), complements.abs().max()) < 1e-12

    assert torch.equal(shaded(images, code, torch.zeros(8, 1, 1, 1)), images)


@pytest.mark.parametrize("size", [64, 128])
def test_codes_in_scenes_are_read_where_they_are_strong(size: int) -> None:
    pixels, _ = Scenes(0, size=size).draw(12, "single")
    images = pixels.permute(0, 3, 1, 2).float() / 255
    code = codes(12, 0, size)[:, None].float() / 255
    read = {}

    for share in (0.0, 1.0):
        coded = shaded(images, code, torch.full((12, 1, 1, 1), share))
        arrays = (coded * 255).round().byte().permute(0, 2, 3, 1).numpy()
        read[share] = sum(bool(zxingcpp.read_barcodes(array)) for array in arrays)

    assert read[0.0] == 0
    assert read[1.0] >= 9


def test_codes_have_modules_of_the_sides_that_were_asked_for() -> None:
    """At the left of a code's first row is the upper edge of a finder pattern, of seven modules."""
    images = codes(6, 0, 128, modules=(4, 5))
    assert all(zxingcpp.read_barcodes(image.numpy()) for image in images)
    firsts = [next(row for row in image.tolist() if 0 in row) for image in images]
    edges = ["".join("#" if value == 0 else "." for value in row).strip(".") for row in firsts]
    assert [edge.index(".") / 7 for edge in edges] == [4, 4, 5, 4, 4, 5]


@pytest.mark.parametrize(
    ("units", "expected"),
    [({"avx512_bf16": True}, True), ({"avx512_bf16": False, "amx_bf16": False}, False), ({}, True)],
)
def test_bfloat16_is_used_where_the_processor_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, units: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    with loop.autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == expected


def test_worker_processes_have_seeds_of_their_own() -> None:
    def source(seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        while True:
            yield rng.random(3)

    drawn = loop.in_workers(source, 5, 2)
    first, second, third = (next(drawn) for _ in range(3))
    alone = source(5)

    assert np.array_equal(first, next(alone))
    assert np.array_equal(second, next(source(5 + 1_000_003)))
    assert np.array_equal(third, next(alone))
    assert np.array_equal(next(loop.in_workers(source, 5, 0)), first)


def test_a_part_of_the_judges_scenes_gets_codes() -> None:
    (small, shown), (large, _) = next(judge_training.drawn(64, True, 0))
    assert small.shape == (48, 64, 64, 3)
    assert large.shape == (16, 128, 128, 3)
    assert all(len(scene.nouns) == 2 for scene in shown[:16])

    torch.manual_seed(0)
    pools = judge_training.Codes({64: 4}, 0, torch.device("cpu"))
    images = torch.from_numpy(small).permute(0, 3, 1, 2).float().repeat(8, 1, 1, 1) / 255
    changed = (pools.put_into(images) != images).flatten(1).any(1).float().mean()
    assert changed == pytest.approx(judge_training.CODED, abs=0.08)


@pytest.mark.parametrize("size", [64, 128])
def test_one_judge_sees_nouns_under_codes_and_the_other_does_not(size: int) -> None:
    judges = [judging.load(f"zoo:emoji-{name}") for name in ("judge", "code-judge")]
    plain, coded = judge_training.under_codes(judges, size, 48)
    assert min(plain[0], coded[0]) >= 0.95
    assert plain[-1] < 0.3 < plain[1]
    assert min(coded) >= 0.9

    with pytest.raises(ValueError, match="the zoo has no 'emoji-juge'"):
        judging.load("zoo:emoji-juge")


@pytest.mark.parametrize("size", [64, 128])
def test_letters_lie_in_the_image_and_can_be_seen(size: int) -> None:
    pytest.importorskip("matplotlib", reason="its fonts")
    rng = np.random.default_rng(0)
    texts = ["three cats", "2", "hippopotamuses", "a\nb"] * 8
    strokes = np.stack([lettering.letters(text, size, rng) for text in texts])
    assert strokes.shape == (32, size, size)
    assert (strokes.max((1, 2)) > 150).all()
    assert ((strokes > 99).mean((1, 2)) < 0.5).all()

    torch.manual_seed(0)
    images = torch.rand(320, 3, 1, 1).expand(-1, -1, size, size)
    drawn = torch.from_numpy(strokes)[:, None].float().repeat(10, 1, 1, 1) / 255
    laid = lettering.inked(images, drawn)
    assert laid.min() >= 0 and laid.max() <= 1
    assert ((laid - images).abs().amax((1, 2, 3)) > 0.99 * lettering.VISIBLE).all()

    bare = lettering.inked(images, torch.zeros(320, 1, size, size))
    assert torch.equal(bare, images)


def test_images_are_enlarged_as_the_processor_does() -> None:
    pixels, _ = Scenes(0).draw(4)
    x = captioner.normalise(pixels)
    processor = captioner.processor(captioner.tokenizer(128), 128).image_processor
    wanted = processor([Image.fromarray(image) for image in pixels.numpy()], return_tensors="pt")
    off = (captioner.resized(x, 128).clamp(-1, 1) - wanted["pixel_values"]).abs()
    # PIL rounds and clamps between its two passes
    assert off.max() < 0.1
    assert off.mean() < 2e-3


def test_an_enlarged_captioner_begins_with_what_the_old_one_knows() -> None:
    text = captioner.tokenizer()
    old = captioner.build(text, 64, warm=True).eval()
    x = captioner.normalise(Scenes(0).draw(4)[0])

    same = captioner.enlarged(old, 64).eval()
    before, after = (
        model.model.get_image_features(pixel_values=x).pooler_output for model in (old, same)
    )
    assert torch.allclose(torch.stack(list(before)), torch.stack(list(after)), atol=1e-5)

    large = captioner.build(text, 128)
    assert sum(p.numel() for p in large.parameters()) * 2 < 6e6  # bytes in half precision
    answers = captioner.answers(large.eval(), text, x, captioner.TEXT)
    assert set(answers) <= {"yes", "no"}


def test_packed_questions_are_answered_as_alone() -> None:
    text = captioner.tokenizer()
    model = captioner.build(text, 64, warm=True).eval()
    x = captioner.normalise(Scenes(0).draw(2)[0])
    rows = [[("what is this?", "fox"), ("do you see a cat?", "no")], [("how many?", "two")]]

    def loss_of(pixels: torch.Tensor, rows: list[list[tuple[str, str]]]) -> torch.Tensor:
        table = torch.from_numpy(captioner.question_table(rows, text))
        return captioner.losses(model, captioner.Pack(pixels, *table.unbind(-1)))[0]

    with torch.no_grad():
        packed = loss_of(x, rows)
        alone = [loss_of(x[:1], [[rows[0][0]]]), loss_of(x[:1], [[rows[0][1]]])]
        alone.append(loss_of(x[1:], [rows[1]]))

    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)
    assert not torch.allclose(packed[:2], packed[2:4], atol=1e-2)


def test_a_job_says_at_once_that_it_could_not_draw_its_curve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loop, "find_spec", lambda name: None)
    options = argparse.Namespace(build=tmp_path, lr=0.1, seed=0, minutes=1)
    with pytest.raises(SystemExit, match=r"matplotlib: pip install -e '\.\[pretrain\]'"):
        loop.train("job", torch.nn.Linear(1, 1), pytest.fail, pytest.fail, options)


@pytest.fixture(scope="module")
def distillation() -> controlnet_lcm.Distillation:
    device = torch.device("cpu")
    pipe = controlnet.load(zoo.path("emoji-lcm-128"), zoo.path("emoji-qr-128"), device)
    return controlnet_lcm.Distillation(pipe, read_schedule(pipe.scheduler))


def test_what_the_controlnet_learns_is_the_generators_answer_with_the_code(
    distillation: controlnet_lcm.Distillation,
) -> None:
    pixels, _ = Scenes(0, size=128).draw(4, "single")
    scenes = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    plain = encode_scenes(distillation.pipe.vae, scenes)
    code = codes(4, 0, 128, modules=(5,))[:, None].expand(-1, 3, -1, -1).float() / 255

    without = distillation.target(plain, code, torch.zeros(4))
    assert torch.allclose(without, plain, atol=1e-5)  # at scale 0 nothing is moved

    coded = distillation.decode(distillation.target(plain, code, torch.full((4,), 2.0)))
    arrays = (coded * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    assert sum(bool(zxingcpp.read_barcodes(array)) for array in arrays) >= 3


def test_the_controlnet_learns_at_the_generator_which_stays_as_it_is(
    distillation: controlnet_lcm.Distillation,
) -> None:
    pipe = distillation.pipe
    options = argparse.Namespace(pool=10, codes=4, size=128, modules=[4, 5], batch=2)
    x0, states, code, _ = next(controlnet.batches(pipe, options, torch.device("cpu"), drop=0.0)(0))
    torch.manual_seed(0)
    loss, values = distillation.loss((x0, states, code, torch.zeros(2)))
    assert loss < 1e-8 and values["plain"] < 1e-8  # the ControlNet has no say, and nothing to do

    loss, values = distillation.loss((x0, states, code, torch.full((2,), 1.5)))
    loss.backward()
    assert 0 < loss < values["plain"]  # it starts from one that has learned to draw codes
    assert all(weight.grad is None for weight in pipe.unet.parameters())
    assert any(weight.grad.any() for weight in pipe.controlnet.parameters())
