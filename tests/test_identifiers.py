"""Reward identifiers: texts for the generator alone, tokens without a file, the stock pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import build_pipeline, build_sdxl, log, perturb
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from burnish import config as configuration
from burnish.config import Config
from burnish.diffusion.policy import Policy
from burnish.prompts import identifiers
from burnish.report.page import write_report
from burnish.rl.advantages import per_transition
from burnish.runs import Run
from burnish.seeds import generator
from burnish.tools.gallery import draw, open_source, preferred
from burnish.tools.preflight import preflight
from burnish.training import baseline
from burnish.training.assembly import Overrides, assemble
from burnish.training.collect import SampledImages
from burnish.training.job import prepare
from burnish.training.loop import train
from burnish.training.prompt_sampling import sample_prompts
from burnish.training.resume import export
from burnish.types import Prompt
from burnish.world import World

REWARDS = """
texts = []
def bright(images, prompts):
    texts.extend(prompt.text for prompt in prompts)
    return images.mean((1, 2, 3))
def red(images, prompts):
    texts.extend(prompt.text for prompt in prompts)
    return images[:, 0].mean((1, 2)) - images.mean((1, 2, 3))
"""


@pytest.fixture
def recipe(make_pipeline: Callable[..., Path], write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        REWARDS,
        iterations=2,
        model={"id": str(make_pipeline())},
        sampler={"identifiers": "tokens"},
        rewards=[
            {"use": "HERE/reward.py:bright"},
            {"use": "HERE/reward.py:red", "weight": 2.0},
        ],
        advantage={"use": "pareto"},
        optimizer={"lr": 1e-3},
        batch={
            "prompts": 2,
            "images_per_prompt": 8,
            "sample_batch": 8,
            "train_batch": 16,
            "minibatches": 2,
        },
        evaluation={"images_per_prompt": 2},
        run={"sample_every": 1, "sample_prompts": 2},
    )


def load(recipe: Path, *overrides: str) -> Config:
    return configuration.load(recipe, overrides)


def test_prefixes_and_shares() -> None:
    assert identifiers.template([1]) == "<reward 2> {}" and identifiers.template([]) == "{}"
    assert identifiers.template(range(3)) == "<reward 1> <reward 2> <reward 3> {}"
    assert identifiers.template(range(2), after=True) == "{} <reward 1> <reward 2>"
    assert Prompt("a {} cat", template="{} <reward 1>").generator_text == "a {} cat <reward 1>"
    assert identifiers.target_rewards(16, 8, 2).tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    assert identifiers.target_rewards(6, 3, 3).tolist() == [0, 1, 2] * 2
    prompt = Prompt("a cat", {"noun": "cat"})
    assert identifiers.with_template([prompt], "<reward 1> {}") == [
        Prompt("a cat", {"noun": "cat"}, "<reward 1> {}")
    ]


def test_identifiers_behind_a_prompt_leave_its_words_unchanged(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline, train="none")
    identifiers.add_tokens(policy.pipe, 2)
    words = len(policy.pipe.tokenizer("a cat").input_ids) - 1
    templates = [identifiers.template(rewards, after=True) for rewards in ([], [0], [1])]
    plain, first, second = (
        policy.encode([Prompt("a cat", template=template)])["text"][0] for template in templates
    )
    torch.testing.assert_close(first[:words], plain[:words])
    assert not torch.allclose(first[words:], plain[words:])
    assert not torch.allclose(first[words:], second[words:])
    before = policy.encode([Prompt("a cat", template=identifiers.template([0]))])["text"][0]
    assert not torch.allclose(before[1:words], plain[1:words])


def test_each_has_a_token_that_is_the_same_in_every_process_and_far_from_the_others() -> None:
    pipes = [build_pipeline(), build_pipeline()]
    before = pipes[0].text_encoder.get_input_embeddings().weight.clone()  # type: ignore[attr-defined]
    identifiers.add_tokens(pipes[0], 3)
    identifiers.add_tokens(pipes[1], 2)
    identifiers.add_tokens(pipes[1], 3)  # the third was missing
    tables = [pipe.text_encoder.get_input_embeddings().weight for pipe in pipes]  # type: ignore[attr-defined]
    assert torch.equal(*tables) and torch.equal(tables[0][: len(before)], before)
    assert not any(p.requires_grad for p in pipes[0].text_encoder.parameters())  # type: ignore[attr-defined]
    identifiers.add_tokens(pipes[0], 3)
    assert len(pipes[0].tokenizer) == len(tables[0]) == len(before) + 3, "nothing is added twice"  # type: ignore[attr-defined]
    ids = pipes[0].tokenizer("<reward 1> <reward 3> a").input_ids  # type: ignore[attr-defined]
    assert ids[1:3] == [len(before), len(before) + 2]
    new = tables[0][len(before) :]
    usual = torch.pdist(before).median()
    assert torch.pdist(new).min() > usual / 3
    padding = before[pipes[0].tokenizer.pad_token_id]  # type: ignore[attr-defined]
    std = before.std(0)
    noise = torch.randn(len(std), generator=generator("identifier", 1))
    torch.testing.assert_close(new[1], padding + 2 * std * noise)


def test_rows_that_a_table_has_to_spare_are_used() -> None:
    pipe = build_pipeline()
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer) + 5, mean_resizing=False)  # type: ignore[attr-defined]
    identifiers.add_tokens(pipe, 2)
    assert len(pipe.text_encoder.get_input_embeddings().weight) == len(pipe.tokenizer) + 3  # type: ignore[attr-defined]
    fresh = build_pipeline()
    identifiers.add_tokens(fresh, 2)
    rows = [
        each.text_encoder.get_input_embeddings().weight[: len(each.tokenizer)]  # type: ignore[attr-defined]
        for each in (pipe, fresh)
    ]
    torch.testing.assert_close(rows[0][-2:], rows[1][-2:])


def test_both_encoders_of_sdxl_and_the_end_of_a_text_in_old_configurations() -> None:
    """Old CLIP takes the largest token for the end of a text: that would be the identifier."""
    pipe = build_sdxl()
    pipe.text_encoder_2.text_model.eos_token_id = 2  # type: ignore[attr-defined]
    policy = Policy.load(pipe)
    identifiers.add_tokens(pipe, 2)
    assert pipe.text_encoder_2.text_model.eos_token_id == pipe.tokenizer_2.eos_token_id  # type: ignore[attr-defined]
    cat, dog = policy.encode(
        [Prompt("a cat", template="<reward 1> {}"), Prompt("a dog", template="<reward 1> {}")]
    )["pooled"]
    assert not torch.allclose(cat, dog), "the summary has read the text behind the identifier"
    prompts = [Prompt("a cat", template=f"<reward {n}> {{}}") for n in (1, 2)]
    first, second = policy.encode(prompts)["text"]

    for half in (slice(0, 8), slice(8, None)):
        difference = (first - second)[:, half].abs().max()
        assert difference > 0.1, "each encoder distinguishes the identifiers"


def test_a_run_asks_for_one_reward_each_and_rewards_read_the_text_alone(
    recipe: Path, tmp_path: Path
) -> None:
    batches: list[SampledImages] = []
    run = Run(train(load(recipe, "iterations=1"), tmp_path / "run", on_images=batches.append))
    (batch,) = batches
    templates = [prompt.template for prompt in batch.prompts]
    assert templates == (["<reward 1> {}"] * 4 + ["<reward 2> {}"] * 4) * 2
    target = batch.scores.target_reward
    assert target is not None
    assert target.tolist() == ([0] * 4 + [1] * 4) * 2
    from burnish.catalog import resolve

    texts = resolve("reward", f"{recipe.parent}/reward.py:bright").__globals__["texts"]
    assert set(texts) == {"a cat", "a dog", "an ox"}
    (record,) = run.records()
    parts = batch.scores.parts

    for index, name in enumerate(("bright", "red")):
        targeted = parts[target == index, index]
        assert record["rewards"][name]["targeted"] == pytest.approx(float(targeted.mean()))
        four = parts[:, index].view(4, 4)  # each prompt with each identifier is a group of its own
        within = float(four.std(1, correction=0).mean())
        assert record["rewards"][name]["within"] == pytest.approx(within)

    assert 4 / 16 <= record["pareto_front"] <= 1
    assert record["zero_advantage"] == pytest.approx(1 - record["pareto_front"])
    assert json.loads((run.samples / "prompts.json").read_text())["texts"] == ["a cat", "a dog"]


def test_each_identifier_has_its_own_number_and_the_same_in_every_iteration(
    recipe: Path, tmp_path: Path
) -> None:
    for name, given in (
        ("list", Overrides()),
        ("drawn", Overrides(source=lambda n: [Prompt("a cat"), Prompt("ox"), Prompt("a")])),
    ):
        changes = ["batch.prompts=3"]
        if given.source:
            changes += ["evaluation.images_per_prompt=0", "run.sample_every=0"]

        config = load(recipe, *changes)
        job = prepare(config, Run.create(tmp_path / name), World(), None, given)
        numbers: dict[tuple[str, str], set[int]] = {}

        for iteration in (1, 2):
            prompts, group = sample_prompts(job, iteration)
            for prompt, number in zip(prompts, group.tolist(), strict=True):
                numbers.setdefault((prompt.text, prompt.template), set()).add(number)

        assert len(numbers) == 6 and all(len(group) == 1 for group in numbers.values())
        assert len(set.union(*numbers.values())) == 6


@pytest.mark.parametrize("kind", ["tokens", "words"])
def test_stop_then_resume_is_the_uninterrupted_run(recipe: Path, tmp_path: Path, kind: str) -> None:
    options = [f"sampler.identifiers={kind}", "iterations=3"]
    uninterrupted = tmp_path / "uninterrupted"
    resumed = tmp_path / "resumed"
    train(load(recipe, *options), uninterrupted)
    train(load(recipe, f"sampler.identifiers={kind}", "iterations=2"), resumed)
    train(load(recipe, *options), resumed, resume=True)
    assert log(resumed) == log(uninterrupted)

    for file in ("evaluation.json", "checkpoints/000003/tensors.safetensors"):
        assert (resumed / file).read_bytes() == (uninterrupted / file).read_bytes()

    with pytest.raises(ValueError, match="another sampler.identifiers"):
        train(load(recipe, "sampler.identifiers=''"), uninterrupted, resume=True)


def test_the_initial_evaluation_is_without_identifiers(recipe: Path, tmp_path: Path) -> None:
    """Nothing is learned here: only the prompts of the model differ."""
    none = ["optimizer.lr=0", "iterations=1"]
    named = Run(train(load(recipe, *none), tmp_path / "named"))
    plain = Run(train(load(recipe, *none, "sampler.identifiers=''"), tmp_path / "plain"))
    before, after = (
        json.loads(named.evaluation_file(n).read_text())["train"]["parts"] for n in (0, 1)
    )
    assert before == json.loads(plain.evaluation_file(0).read_text())["train"]["parts"] != after
    assert named.sample_grid(0).read_bytes() == plain.sample_grid(0).read_bytes()
    assert named.sample_grid(0).read_bytes() != named.sample_grid(1).read_bytes()


def test_their_effect_is_drawn_and_reported(recipe: Path, tmp_path: Path) -> None:
    """Two prompts, for both rewards and for each: six images, the first two are the samples."""
    short = ["iterations=1", "evaluation.images_per_prompt=0"]
    run = Run(train(load(recipe, *short), tmp_path / "named"))
    layout = json.loads(run.identifier_grid(1).with_suffix(".json").read_text())
    assert layout == {
        "texts": ["a cat", "a dog"],
        "rewards": ["all", "bright", "red"],
        "columns": 3,
    }

    with Image.open(run.identifier_grid(1)) as sheet, Image.open(run.sample_grid(1)) as samples:
        size = sheet.height // 2
        tiles = [
            sheet.crop((x, y, x + size, y + size)).tobytes()
            for y in (0, size)
            for x in (0, size, 2 * size)
        ]
        assert tiles[:2] == [samples.crop((x, 0, x + size, size)).tobytes() for x in (0, size)]

    assert len(set(tiles)) == 6
    text = write_report(run.folder).read_text("utf-8")
    assert "<h2>Reward identifiers</h2>" in text and text.count('class="cell identifiers"') == 6
    plain = Run(train(load(recipe, *short, "sampler.identifiers=''"), tmp_path / "plain"))
    assert not plain.identifier_grid(1).exists()
    assert "Reward identifiers" not in write_report(plain.folder).read_text("utf-8")


def test_stock_diffusers_reads_the_adapter_and_the_tokens(recipe: Path, tmp_path: Path) -> None:
    """RUN/adapter is enough for `load_lora_weights` and `load_textual_inversion`."""
    config = load(recipe, "iterations=1", "evaluation.images_per_prompt=0", "run.sample_every=0")
    job = prepare(config, Run.create(tmp_path / "run"), World(), None)
    perturb(job.parts.policy)
    configuration_file = job.run.config
    configuration_file.write_text(configuration.dump(config))
    export(job, 1)

    policy, sampler = open_source(str(job.run.folder))
    both = preferred(str(job.run.folder))
    second = preferred(str(job.run.folder), "red")
    assert (both, second) == ("<reward 1> <reward 2> {}", "<reward 2> {}")
    images = [
        draw(policy, sampler, [Prompt("a cat", template=template)], 2)
        for template in (both, second, "{}")
    ]
    assert not torch.allclose(images[0], images[1])
    assert not torch.allclose(images[1], images[2])

    pipe = StableDiffusionPipeline.from_pretrained(config.model.id)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(job.run.adapter)

    for file in sorted((job.run.adapter / "identifiers").iterdir()):
        pipe.load_textual_inversion(file)

    for template, expected in ((both, images[0]), (second, images[1])):
        stock = pipe(
            [template.replace("{}", "a cat")] * 2,
            num_inference_steps=3,
            guidance_scale=2.0,
            eta=1.0,
            output_type="pt",
            generator=generator(0, "draw"),
        ).images
        torch.testing.assert_close(stock, expected, rtol=1e-3, atol=1e-4)


def test_files_of_both_encoders(tmp_path: Path) -> None:
    pipe = build_sdxl()
    identifiers.add_tokens(pipe, 2)
    identifiers.save_tokens(pipe, 2, tmp_path)
    files = {path.name: load_file(path) for path in tmp_path.iterdir()}
    assert set(files) == {f"reward-{n}{which}.safetensors" for n in (1, 2) for which in ("", "-2")}
    assert files["reward-2.safetensors"]["<reward 2>"].shape == (8,)
    assert files["reward-2-2.safetensors"]["<reward 2>"].shape == (12,)


def test_a_preference_that_cannot_be_had(recipe: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    named = tmp_path / "named"
    plain = tmp_path / "plain"

    for folder, kind in ((named, "words"), (plain, "")):
        folder.mkdir()
        Run(folder).config.write_text(
            configuration.dump(load(recipe, f"sampler.identifiers={kind}"))
        )

    both = preferred(str(named), " red ,bright")
    assert both == "<reward 1> <reward 2> {}", "in the order of the configuration"
    assert preferred(str(named), before=True) == "{}"
    assert preferred(str(plain)) == preferred(str(tiny_pipeline)) == "{}"

    with pytest.raises(ValueError, match='no reward "brihgt"; did you mean "bright"'):
        preferred(str(named), "brihgt")

    for source, before in ((plain, False), (tiny_pipeline, False), (named, True)):
        with pytest.raises(
            ValueError, match="--prefer wants a run that was trained with sampler.identifiers"
        ):
            preferred(str(source), "red", before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.identifiers=token", 'must be "words", "tokens", or "" for none'),
        ("batch.images_per_prompt=5", "make batch.images_per_prompt a multiple of 2"),
        ("rewards.1.weight=0", "one has weight 0"),
        ("batch.baseline=x0_preview", "set batch.baseline = ''"),
        ("objective={use='rebel'}", "'rebel', 'dgpo'. give every image something"),
    ],
)
def test_settings_that_contradict_each_other(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assemble(load(recipe, override))


def test_rebel_wants_two_images_of_each_identifier(recipe: Path) -> None:
    rebel = ["objective={use='rebel'}", "advantage={use='group'}"]
    with pytest.raises(ValueError, match="with sampler.identifiers for each reward"):
        assemble(load(recipe, *rebel, "batch.images_per_prompt=2"))
    assemble(load(recipe, *rebel, "batch.images_per_prompt=4"))


def test_x0_pred_is_judged_by_the_target_reward(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.Tensor] = []

    def recorded(
        adv: torch.Tensor, x0_rewards: torch.Tensor, weights: torch.Tensor, group: torch.Tensor
    ) -> torch.Tensor:
        used.append(weights)
        return per_transition(adv, x0_rewards, weights, group)

    monkeypatch.setattr(baseline, "per_transition", recorded)
    options = [
        "advantage={use='group'}",
        "batch.baseline=x0_preview",
        "iterations=1",
        "evaluation.images_per_prompt=0",
    ]
    (record,) = Run(train(load(recipe, *options), tmp_path / "run")).records()
    assert 0 < record["explained_variance"] < 1 and record["grad_norm"] > 0
    assert used[0].tolist() == ([[1.0, 0.0]] * 4 + [[0.0, 2.0]] * 4) * 2


def test_preflight_warns_of_truncated_prompts_and_of_a_selection_that_selects_nothing(
    recipe: Path,
) -> None:
    texts = [finding.text for finding in preflight(load(recipe))]
    shares = "2 of 3 prompts x 8 images an iteration, 4 for each of 2 identifiers"
    assert any(shares in text for text in texts)
    assert any("of 4 images compared in 2 independent rewards 52% would" in text for text in texts)
    longer = "prompts.texts=['a cat and a dog on a red rug', 'a cat', 'a dog']"
    words = preflight(
        load(recipe, "sampler.identifiers=words", "batch.images_per_prompt=32", longer)
    )
    (length,) = [finding for finding in words if "tokens" in finding.text]
    assert length.level == "warning"
    assert "the text encoder reads 24: its end is cut off" in length.text
    (share,) = [finding for finding in words if "would be dominated by none" in finding.text]
    assert share.level == "ok"
