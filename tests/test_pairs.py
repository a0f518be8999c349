"""Pairs of images from files: read, opened, encoded and learned from in place of a rollout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_loop import first_batch, load

from burnish import votes
from burnish.config import Config
from burnish.images import fit_image, open_image
from burnish.prompts.pairs import ImagePair, images_of_pairs, pairs, read_image_pairs
from burnish.rewards.training_only import Chosen
from burnish.runs import Run
from burnish.seeds import generator
from burnish.tools.preflight import preflight
from burnish.training.loop import train
from burnish.training.origin import changes, named_images, pairs_digest
from burnish.types import Prompt

QUICK = ("evaluation.images_per_prompt=0", "run.sample_every=0")


def draw(path: Path, colour: str, size: tuple[int, int] = (20, 30)) -> Path:
    """Write an image of one colour."""
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of three pairs."""
    rows = []
    for number, prompt in enumerate(("a cat", "a dog", "a cat")):
        draw(tmp_path / f"{number}w.png", "white")
        draw(tmp_path / f"{number}b.jpg", "navy")
        rows.append({"prompt": prompt, "chosen": f"{number}w.png", "rejected": f"{number}b.jpg"})

    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_file_names_its_images_relative_to_itself(file: Path) -> None:
    first = read_image_pairs(file)[0]
    assert first == ImagePair("a cat", file.parent / "0w.png", file.parent / "0b.jpg")
    assert len(pairs(str(file))) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3", "row 2: not a pair"),
        ('{"chosen": "0w.png", "rejected": "0b.jpg"}', 'row 2: no text under "prompt"'),
        ('{"prompt": "x", "chosen": "0w.png"}', 'row 2: no text under "rejected"'),
        (
            '{"prompt": "x", "chosen": "0w.png", "rejected": "none.png"}',
            r'row 2: "rejected" is .*none.png, and no image',
        ),
        ('{"prompt": "x", "chosen": "0w.png", "rejected": "0w.png"}', "row 2: both images are"),
    ],
)
def test_a_wrong_row_is_named(file: Path, row: str, message: str) -> None:
    first = file.read_text().splitlines()[0]
    file.write_text(f"{first}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_image_pairs(file)


def test_a_folder_pairs_images_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pairs in it; put preferred images into"):
        read_image_pairs(tmp_path)

    chosen = draw(tmp_path / "chosen/a.png", "red")
    with pytest.raises(ValueError, match="chosen/a has no image of that name in rejected"):
        read_image_pairs(tmp_path)

    rejected = draw(tmp_path / "rejected/a.webp", "red")
    with pytest.raises(ValueError, match=r"its prompt is not known; write it into .*a\.txt"):
        read_image_pairs(tmp_path)

    (tmp_path / "chosen/a.txt").write_text("a fox\n")
    assert read_image_pairs(tmp_path) == [ImagePair("a fox", chosen, rejected)]

    draw(tmp_path / "rejected/a.png", "blue")
    with pytest.raises(ValueError, match=r"rejected: a\.png and a\.webp have the same name"):
        read_image_pairs(tmp_path)


def test_another_order_or_side_of_pairs_is_another_training(file: Path) -> None:
    found = pairs(str(file))
    images = named_images({"prompts": found})
    digest = pairs_digest(found, images)
    assert digest == pairs_digest(pairs(str(file)), images) and len(digest) == 64

    config = asdict(Config())
    first = found[0].metadata
    turned = Prompt(found[0].text, {"chosen": first["rejected"], "rejected": first["chosen"]})
    for others in ([turned, *found[1:]], [found[1], found[0], found[2]], found[1:]):
        new = pairs_digest(others, images)
        old = {"images": images, "pairs": digest, "processes": 1}
        now = {**old, "config": config, "files": {}, "pairs": new}
        assert list(changes({**old, "config": config}, now)) == ["prompts (pairs of images)"]
    assert not changes({**old, "config": config}, {**now, "pairs": digest})

    left_out = {path: one for path, one in images.items() if path != first["chosen"]}
    found_changes = changes({**old, "config": config}, {**now, "images": left_out})
    assert found_changes == {f"file {first['chosen']}": "no prompt names it any more"}
    assert pairs_digest([Prompt("a cat")], {}) == ""


def test_the_votes_of_a_run_are_pairs(tmp_path: Path) -> None:
    run = Run(tmp_path)
    one, other = (votes.add_image(run, content) for content in (b"1", b"2"))
    listed = [votes.make_question(1, n, "a fox", one, other) for n in range(3)]
    votes.ask(run, listed)
    votes.answer(run, listed[0].id, "skip", 1)
    with pytest.raises(ValueError, match="no vote for one of two images"):
        read_image_pairs(tmp_path)

    votes.answer(run, listed[1].id, "right", 1)
    paths = [votes.image_path(run, name) for name in (other, one)]
    assert read_image_pairs(tmp_path) == [ImagePair("a fox", *paths)]


def test_nothing_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder of pairs"):
        pairs(str(tmp_path / "none"))


def test_an_image_is_cut_at_its_longer_edges() -> None:
    image = torch.rand(3, 30, 20).mul(255).round() / 255
    assert fit_image(image, 20, 20).equal(image[:, 5:25])
    assert fit_image(image, 30, 20).equal(image)
    assert fit_image(image, 10, 10).shape == (3, 10, 10)


def test_the_reward_knows_pairs_only(file: Path) -> None:
    twice = [prompt for prompt in pairs(str(file)) for _ in range(2)]
    images = torch.zeros(6, 3, 4, 4)
    assert Chosen()(images, images_of_pairs(twice)).tolist() == [1, 0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="knows only the images of pairs"):
        Chosen()(images[:1], [Prompt("a cat")])


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], file: Path) -> Path:
    """Return the recipe of an offline DPO."""
    return write_recipe(
        iterations=2,
        prompts={"use": "pairs", "path": str(file)},
        rewards=[{"use": "chosen"}],
        objective={"use": "dpo"},
        optimizer={"lr": 1e-3},
        batch={
            "prompts": 3,
            "images_per_prompt": 2,
            "sample_batch": 3,
            "minibatches": 1,
            "transitions": 2,
        },
        run={"sample_every": 0},
    )


def test_the_images_of_an_iteration_are_those_of_the_file(
    recipe: Path, file: Path, tmp_path: Path
) -> None:
    job, batch, _ = first_batch(load(recipe, *QUICK), tmp_path / "job")
    assert batch.scores.parts[:, 0].tolist() == [1, 0, 1, 0, 1, 0]
    assert batch.trajectory.logp.shape == (6, 0)

    policy = job.parts.policy
    side = policy.latent_shape[1] * policy.latent_pixel
    images = [
        fit_image(open_image(Path(prompt.metadata["image"])), side, side)
        for prompt in batch.prompts
    ]
    stream = generator(job.config.seed, 1, "noise", 0)
    latents = [policy.embed(torch.stack(chunk), stream) for chunk in (images[:3], images[3:])]
    torch.testing.assert_close(batch.trajectory.latent, torch.cat(latents))


def test_pairs_are_learned_from_and_other_rewards_evaluated(recipe: Path, tmp_path: Path) -> None:
    rewards = "rewards=[{use='chosen'},{use='compressibility',weight=0.0}]"
    config = load(
        recipe,
        rewards,
        "model.train=full",
        "evaluation.images_per_prompt=1",
        "evaluation.prompts=['a cat', 'a dog']",
    )
    run = Run(train(config, tmp_path / "out"))
    first, last = run.records()
    assert (first["preference_margin"], first["preference_right"]) == (0, 0)
    assert last["preference_margin"] > 0
    assert first["rewards"]["chosen"]["mean"] == 0.5
    assert "gain" not in first["rewards"]["chosen"]

    comparison = json.loads(run.evaluation.read_text())["train"]
    assert list(comparison["rewards"]) == ["compressibility"]
    assert comparison["paired_mean"] == comparison["rewards"]["compressibility"]["paired_mean"] != 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.use=clipped", "finished images without transitions; set objective.use"),
        ("batch.images_per_prompt=4", "batch.images_per_prompt = 2"),
        ("evaluation.images_per_prompt=1", "knows only images that are trained on"),
        ("expander={model='zoo:emoji-expander',expansions=2}", "leave expander.model"),
    ],
)
def test_what_cannot_be_learned_from_pairs_is_refused(
    recipe: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        first_batch(load(recipe, *QUICK, override), tmp_path / "job")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "prompts=['a cat','a dog']",
            "rewards=[{use='votes'}]",
            "scoring.missing=mask",
            "batch.sample_batch=4",
        ),
    ],
)
def test_a_run_of_pairs_or_votes_is_checked(recipe: Path, overrides: tuple[str, ...]) -> None:
    findings = preflight(load(recipe, *QUICK, *overrides))
    assert [finding for finding in findings if finding.level == "error"] == []
    named = any("reward chosen: 0 to 1" in finding.text for finding in findings)
    assert named != bool(overrides)
