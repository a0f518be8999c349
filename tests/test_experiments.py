"""The experiments: every planned run is a configuration, and its stated cost is true."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from burnish import catalog, zoo
from burnish import config as configuration
from burnish.evaluation.paired import Evaluation
from burnish.prompts.codes import is_unseen
from burnish.qr.layout import layout_of
from burnish.runs import Run
from burnish.training.requirements import check_votes
from burnish.zoo.judge import parse
from experiments import running
from experiments.counting import plan as counting
from experiments.counting.guarded import guard_reasons
from experiments.ddpo_tasks import plan as tasks
from experiments.guard import plan as guard
from experiments.objectives import plan as objectives
from experiments.objectives.outcome import outcome, right_by_prompt, table
from experiments.parrot import arrangements
from experiments.parrot import plan as parrot
from experiments.parrot.arrangements import ARRANGEMENTS, USUAL, best_of_each, compose, pairs
from experiments.parrot.prompts import SETS, by_kind, texts
from experiments.parrot.simulate import front, largest_sum, standardised
from experiments.parrot.tables import LABELS, TABLES, arrangements_table
from experiments.qr_curriculum import plan as codes
from experiments.qr_curriculum.measure import (
    at_rate,
    measured_prompts,
    start_scales,
)
from experiments.rlcm_vs_ddpo import plan
from experiments.rlcm_vs_ddpo.tables import ratio_cell
from experiments.rlcm_vs_ddpo.tables import tables as tables_of_rlcm
from experiments.running import Job, Trial
from experiments.time_to_target import compare
from experiments.votes import plan as voting
from experiments.votes.heads import correlation
from experiments.votes.tables import TABLES as TABLES_OF_VOTES
from experiments.votes.tables import aim_table, budgets_table, with_table


@pytest.mark.parametrize("job", plan.jobs(), ids=lambda job: job.name)
def test_every_arm_draws_as_many_images_an_iteration(job: Trial) -> None:
    config = configuration.load(job.recipe, job.changes())
    assert config.batch.prompts * config.batch.images_per_prompt == plan.IMAGES
    assert not config.batch.baseline and config.batch.epochs == 1
    assert job.iterations % job.every == 0, "the last evaluation is after the last iteration"
    assert config.seed == job.seed and config.evaluation.judge

    names = {"alignment": "clip_similarity"}
    assert config.rewards[0]["use"] == names.get(job.task, job.task)
    assert config.model.id == ("zoo:emoji-lcm" if job.arm in plan.RLCM else "zoo:emoji-sd")


def test_ddpo_as_published_learns_from_all_transitions_of_fifty_calls_with_guidance() -> None:
    job = plan.trial("aesthetic", "ddpo_published", 0)
    config = configuration.load(job.recipe, job.changes())
    assert (config.sampler.steps, config.batch.transitions, config.batch.least_noise) == (50, 0, 0)
    assert config.sampler.guidance["use"] == "cfg" and config.advantage["use"] == "tracker"
    assert config.objective["use"] == "clipped"


@pytest.mark.parametrize("job", objectives.jobs(), ids=lambda job: job.name)
def test_every_objective_learns_from_as_many_images_an_iteration(job: Trial) -> None:
    config = configuration.load(job.recipe, job.changes())
    assert config.batch.prompts * config.batch.images_per_prompt == objectives.IMAGES
    assert not config.batch.baseline and config.evaluation.judge
    assert job.iterations % job.every == 0, "the last evaluation is after the last iteration"

    baseline = objectives.MODELS[job.task.split("/")[0]].baseline
    assert job.iterations <= objectives.trial(*job.task.split("/"), baseline, job.seed).iterations


def evaluations(*gains: float, images: int = 64, spread: float = 0.01) -> list[dict[str, Any]]:
    """Return a curve of two seeds whose gains lie `spread` around these."""
    splits = [
        {
            "gain": gain,
            "ci95": [gain - spread, gain + spread],
            "by_seed": [gain - spread, gain + spread],
            "judge": 1 - i / 10,
        }
        for i, gain in enumerate(gains)
    ]
    return [
        {"images": i * images, "seconds": 2.0 * i, "train": split, "unseen": split}
        for i, split in enumerate(splits)
    ]


def test_a_gain_is_reached_at_a_whole_evaluation() -> None:
    baseline = evaluations(0, 0.1, 0.3, images=256)
    row = outcome(evaluations(0, 0.29, 0.35, 0.6), baseline)
    reached = row["images_to_ddpo"], row["seconds_to_ddpo"], row["judge_at_ddpo"]
    assert reached == (128, 4.0, 0.8)
    assert row["images_to_ddpo_by_seed"] == [128, 128] and row["images"] == 192
    assert outcome(baseline, baseline)["images_to_ddpo"] == 512
    assert outcome(evaluations(0, 0.1, 0.2), baseline)["images_to_ddpo"] is None


def test_a_baseline_that_gained_nothing_is_no_target() -> None:
    for flat in (evaluations(0, 0.005), evaluations(0, -0.2)):
        row = outcome(evaluations(0, 0.1), flat)
        assert row["images_to_ddpo"] is None and row["judge_at_ddpo"] is None


def test_the_page_has_the_tables_of_the_result() -> None:
    root = Path(__file__).parent.parent
    gain = json.loads((root / "experiments" / "objectives" / "result.json").read_text())["gain"]
    page = (root / "docs" / "objectives.md").read_text()
    for model, tasks_of_model in gain.items():
        assert table(tasks_of_model, objectives.MODELS[model].baseline) in page


def test_what_the_judge_sees_is_counted_prompt_by_prompt() -> None:
    judged = [True, True, False, True, False, False]
    rewards = [[0.0]] * 6
    images = Evaluation(["a cat", "a dog"], 3, 0, 6, ["compressibility"], rewards, judged)
    assert right_by_prompt(images) == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("job", tasks.jobs(), ids=lambda job: job.name)
def test_every_algorithm_scores_as_many_images(job: Trial) -> None:
    config = configuration.load(job.recipe, job.changes())
    assert (
        config.batch.prompts * config.batch.images_per_prompt * config.iterations == tasks.QUERIES
    )
    assert not config.batch.baseline and config.iterations % config.evaluation.every == 0
    imitates = config.objective["use"] == "rwr"
    assert (
        imitates
        == (config.advantage["use"] in ("softmax", "top_fraction"))
        == job.arm.startswith("rwr")
    )
    assert config.seed == job.seed and config.evaluation.judge and config.evaluation.unseen
    assert config.rewards[0]["use"] == job.task


@pytest.mark.parametrize("job", guard.jobs(), ids=lambda job: job.name)
def test_the_guard_measures_nothing_of_the_truth(job: guard.Job) -> None:
    config = configuration.load(job.recipe, job.changes())
    panel = str(config.guard.panel)

    if job.arm == "guarded":
        assert (
            config.guard.action == "rollback"
            and not config.evaluation.judge
            and "truth" not in panel
        )
    else:
        assert config.guard.action == "warn" and "truth:Truth" in panel and "truth:taste" in panel

    assert config.iterations % config.evaluation.every == 0


@pytest.mark.parametrize("job", counting.jobs(), ids=lambda job: job.name)
def test_counts_are_asked_for_and_judged_apart(job: Trial) -> None:
    config = configuration.load(job.recipe, job.changes())
    is_paid_for_letters = job.task == counting.LETTERS_TASK
    if not is_paid_for_letters:
        assert [reward["use"] for reward in config.rewards] == ["question"]
        assert config.rewards[0]["writing"] == "keep", "a written answer would be paid"
    assert job.iterations % job.every == 0 and config.seed == job.seed
    assert (config.optimizer.lr == 0) == (job.arm == "control")

    assert config.guard.action == "warn" and config.evaluation.judge
    readers = [reward["model"] for reward in config.guard.panel if reward["use"] == "question"]
    assert readers == ([] if is_paid_for_letters else [counting.OTHER_READER])
    assert counting.OTHER_READER != counting.READER


def test_the_guard_of_counts_goes_by_the_other_reader_and_not_by_the_judge() -> None:
    config = configuration.load(counting.RECIPE)

    def evaluation(reward: float, other: float, right: bool) -> Evaluation:
        spread = [0.02 * (row % 3) for row in range(64)]
        panel = {
            name: [value + part for part in spread]
            for name, value in (("other_reader", other), ("clip_similarity", 0.7), ("text", 0.5))
        }
        parts: list[list[float | None]] = [[reward + part] for part in spread]
        prompts = [f"prompt {row}" for row in range(16)]
        return Evaluation(prompts, 4, 1, 64, ["question"], parts, [right] * 64, panel)

    before = evaluation(0.8, 0.8, True)
    judge_falls = evaluation(0.9, 0.8, False)
    other_reader_falls = evaluation(0.9, 0.5, True)
    both_readers_fall = evaluation(0.5, 0.5, False)

    found = guard_reasons([before, judge_falls, other_reader_falls, both_readers_fall], config)
    assert [bool(reasons) for reasons in found] == [False, True, False]
    assert found[1][0].startswith("other_reader fell")


@pytest.mark.parametrize("budget", [parrot.FULL, parrot.QUICK], ids=["full", "quick"])
def test_every_arm_of_parrot_scores_as_many_images_with_the_same_rewards(
    budget: parrot.Budget,
) -> None:
    for job in parrot.jobs(budget):
        config = configuration.load(job.recipe, job.changes())
        images = config.batch.prompts * config.batch.images_per_prompt * config.iterations
        times = parrot.LONGER.get(job.arm, 1)
        assert images == times * budget.queries or job.arm == "control"
        assert tuple(configuration.reward_names(config.rewards)) == parrot.REWARDS
        assert bool(config.expander.model) == (job.arm in parrot.EXPANDING)
        assert bool(config.expander.start) == (job.arm == "parrot_started")
        identifiers = job.arm in ("parrot", "parrot_started", "no_expander", "control")
        assert bool(config.sampler.identifiers) == identifiers
        assert (config.optimizer.lr == 0) == (job.arm == "control")

        selects = job.arm in ("front", "pareto", "pareto_longer", "expander_only") or identifiers
        assert (config.advantage["use"] == "pareto") == selects
        assert catalog.build("objective", config.objective, "objective").process == "forward"
        assert config.prompts["texts"] == texts("train")


def test_parrot_measures_trained_arms() -> None:
    arms = parrot.ARMS.values()
    known = {*parrot.TRAINED, "", "before"}
    assert {arm.generator for arm in arms} | {arm.expander for arm in arms} == known
    assert set(LABELS) == set(parrot.ARMS)

    runs = {job.arm for job in parrot.jobs(parrot.QUICK)} | {"", "before"}
    quick = [parrot.ARMS[name] for name in parrot.arms(parrot.QUICK)]
    assert {arm.generator for arm in quick} | {arm.expander for arm in quick} == runs


def test_a_report_on_parrot_leaves_out_what_has_not_ended(tmp_path: Path) -> None:
    budget = dataclasses.replace(parrot.FULL, left_out=("ws2",))
    for job in parrot.jobs(budget):
        if (job.arm, job.seed) != ("pareto", 3) and job.arm != "front":
            file = Run(tmp_path / job.name).evaluation_file(job.iterations)
            file.parent.mkdir(parents=True)
            file.touch()

    ended = parrot.finished(tmp_path, budget)
    assert ended.seeds == (1, 2) and set(ended.left_out) == {"ws2", "front"}
    assert parrot.finished(tmp_path, ended) == ended


def test_the_sets_of_parrots_prompts_share_no_noun_and_the_judge_reads_each() -> None:
    nouns = {name: {*words.animals, *words.objects} for name, words in SETS.items()}
    assert len(set.union(*nouns.values())) == sum(map(len, nouns.values()))

    for name in SETS:
        kinds = by_kind(name)
        assert {kind: len(each) for kind, each in kinds.items()} == {
            "pairs": 24,
            "colours": 12,
            "counts": 12,
        }
        for kind, each in kinds.items():
            scenes = [parse(text) for text in each]
            assert all(scene is not None and set(scene.nouns) <= nouns[name] for scene in scenes)
            counted = [scene.count > 1 for scene in scenes if scene]
            coloured = [bool(scene.colour) for scene in scenes if scene]
            assert set(counted) == {kind == "counts"} and set(coloured) == {kind != "pairs"}

        on_colours = " ".join(kinds["colours"])
        assert all(noun in on_colours for noun in nouns[name]), "each noun has a background"


def test_the_search_sees_nothing_that_is_reported() -> None:
    reported = {*texts("train"), *texts("unseen")}
    for job in parrot.search_jobs():
        config = configuration.load(job.recipe, job.changes())
        assert config.seed not in parrot.SEEDS and job.seed == config.seed
        for table_of_prompts in (config.prompts, config.evaluation.prompts):
            assert not reported & set(table_of_prompts["texts"])


def test_selections_of_a_pool_whose_front_is_known() -> None:
    """Of four images two are on the front: the best by the sum, and one with the best alignment."""
    images = torch.tensor(
        [[3.0, 3, 2, 3], [0, 0, 3, 0], [2, 2, 1, 2], [1, 1, 0, 1]], dtype=torch.float64
    )
    z = standardised(images)
    assert front(z).tolist() == [True, True, False, False]
    assert largest_sum((1, 1, 1, 1))(z).tolist() == [True, False, True, False]
    assert largest_sum((1, 1, 9, 1))(z).tolist() == [True, True, False, False]
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(z.square().mean(0), torch.ones(4, dtype=torch.float64))


def test_the_page_on_rlcm_has_the_tables_of_the_result() -> None:
    root = Path(__file__).parent.parent
    result = json.loads((root / "experiments" / "rlcm_vs_ddpo" / "result.json").read_text())
    page = (root / "docs" / "rlcm.md").read_text()
    for table_of_rlcm in tables_of_rlcm(result):
        assert table_of_rlcm in page


def test_a_ratio_says_why_it_is_none() -> None:
    assert ratio_cell({"ratio": 17.04, "judge": 0.955, "bound": None}) == "17.0 (96%)"
    assert ratio_cell({"ratio": None, "bound": "< 2.5"}) == "< 2.5"
    assert ratio_cell({"ratio": None, "bound": None}) == ""  # the baseline gained nothing
    assert ratio_cell(None) == "–"  # it was not run


def test_the_page_on_parrot_has_the_tables_of_the_result() -> None:
    root = Path(__file__).parent.parent
    result = json.loads((root / "experiments" / "parrot" / "result.json").read_text())
    page = (root / "docs" / "parrot.md").read_text()
    for parrot_table in TABLES:
        assert parrot_table(result) in page

    gains = json.loads((root / "experiments" / "parrot" / "arrangements.json").read_text())
    assert arrangements_table(gains) in page


def test_an_arrangement_moves_the_same_sprites() -> None:
    scenes = pairs()[:2]
    usual, other, above = (
        compose(ARRANGEMENTS[name], scenes)
        for name in (USUAL, "the other way round", "one above the other")
    )
    assert usual.shape == (2 * arrangements.IMAGES, 3, 64, 64)
    assert not torch.equal(usual, other)
    assert torch.allclose(usual.mean((1, 2, 3)), other.mean((1, 2, 3)), atol=0.01)

    def is_drawn_on(edge: torch.Tensor) -> bool:
        return bool((edge < 1).any())  # the ground is white

    assert is_drawn_on(usual[..., :12]) and is_drawn_on(usual[..., -12:])
    assert not is_drawn_on(above[..., :12]) and not is_drawn_on(above[..., -12:])


def test_the_best_arrangement_is_chosen_on_other_images_than_it_is_measured_on() -> None:
    gains = np.zeros((2, 1, 4, 4))
    gains[1, 0, :2, 0] = 1  # better on the first half of the images alone
    gains[1, 0, 2:, 0] = -3
    # chosen by the first half and measured on the second: -3; the other way round the usual one
    assert best_of_each(gains).tolist() == [[-1.5, 0, 0, 0]]


@pytest.mark.parametrize("job", voting.jobs(), ids=lambda job: job.name)
def test_a_voter_is_asked_and_the_true_taste_is_only_measured(job: Trial) -> None:
    config = configuration.load(job.recipe, job.changes())
    arm = voting.ARMS[job.arm]
    *others, truth = config.rewards
    assert truth["use"] == voting.TRUTH and config.seed == job.seed
    assert (truth.get("weight", 1) == 0) == arm.votes == bool(others)
    assert (config.optimizer.lr == 0) == (job.arm == "control")
    assert config.batch.prompts * config.batch.images_per_prompt == arm.drawn

    for reward in others:
        assert reward["use"] == voting.VOTER and reward["wrong"] == 0.1
        assert reward["seed"] == job.seed, "each run has wrong answers of its own"
        assert ("model" in reward) == (job.arm == "head")
        check_votes(config, {"voted": catalog.build("reward", reward)})


@pytest.mark.parametrize("votes", voting.PASSES)
def test_a_smaller_budget_is_the_beginning_of_a_larger_one(votes: int) -> None:
    for short, whole in zip(voting.jobs(votes), voting.jobs(), strict=True):
        assert short.name == whole.name and short.iterations <= whole.iterations
        different = set(short.changes()) ^ set(whole.changes())
        assert all(change.startswith("iterations=") for change in different)
        asks = voting.ARMS[short.arm].last * voting.VOTES >= votes
        assert short.iterations * voting.VOTES == votes or not asks

    assert set(voting.BUDGETS) >= set(voting.PASSES)
    assert not any(votes % (voting.EVERY * voting.VOTES) for votes in voting.BUDGETS)


def test_the_voter_of_the_experiment_repeats_no_pair() -> None:
    table_of_voter = {"use": voting.VOTER, "wrong": 0.1, "seed": 3, "per_iteration": 10}
    reward = catalog.build("reward", table_of_voter)
    assert (reward.repeats, reward.per_iteration, reward.clip) == (0.0, 10, None)
    assert (reward.voter.wrong, reward.voter.seed) == (0.1, 3)


def voted_curve(arm: str, gains: list[float], judge: list[float]) -> list[dict[str, Any]]:
    """Return a curve of an arm with an evaluation every five iterations."""
    return [
        {
            "iteration": 5 * i,
            "votes": 50 * i,
            "images": 5 * i * voting.ARMS[arm].drawn,
            "gain": gain,
            "ci95": [gain - 0.1, gain + 0.1],
            "judge": right,
        }
        for i, (gain, right) in enumerate(zip(gains, judge, strict=True))
    ]


def test_the_aim_is_met_by_half_of_both_ceilings_with_the_judge_s_consent() -> None:
    good, bad = [1, 0.98, 0.95], [1, 0.98, 0.94]
    arms = {
        "head": voted_curve("head", [0, 0.3, 0.8], good),
        "rvm": voted_curve("rvm", [0, 0.2, 0.41], good),
        "dpo": voted_curve("dpo", [0, 0.2, 0.39], good),
        "fdfo": voted_curve("fdfo", [0, 0.2, 0.8], bad),
        "taste": voted_curve("taste", [0, 0.3, 0.6], bad),
        "taste_640": voted_curve("taste_640", [0, 0.5, 0.8], good),
    }
    rows = aim_table({"arms": arms}).splitlines()
    assert rows[0].count("from 320 images") == rows[0].count("from 640 images") == 1
    reached = ["met", "met", "missed", "missed", "", ""]
    assert [row.split("|")[-2].strip() for row in rows[2:]] == reached
    assert "| 200 | +0.41 | 68 % | 51 % | 95.0 % | met |" in rows[3]

    rows = budgets_table({"arms": arms}).splitlines()
    assert "| +0.20 [0.10, 0.30], 98 % | +0.41 [0.31, 0.51], 95 % | not run | not run |" in rows[3]


def test_a_table_of_a_page_is_replaced() -> None:
    page = "# A\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\ntext\n\n| c | d |\n"
    new = "| a | b | e |\n|---|---|---|\n| 3 | 4 | 5 |"
    assert with_table(page, new) == f"# A\n\n{new}\n\ntext\n\n| c | d |\n"
    with pytest.raises(ValueError, match="0 tables that begin with 'x'"):
        with_table(page, "| x | y |")


def test_a_head_is_measured_among_the_images_of_a_prompt() -> None:
    """Of prompts that differ by far more than their images, which no pair compares."""
    stream = torch.Generator().manual_seed(0)
    truth = torch.randn(20, 16, generator=stream, dtype=torch.float64)
    truth += 100 * torch.arange(20)[:, None]
    noise = torch.randn(20, 16, 1, generator=stream, dtype=torch.float64)
    assert correlation(truth[..., None], truth, 100, seed=0) > 0.99
    assert abs(correlation(noise, truth, 100, seed=0)) < 0.25


def test_the_page_on_votes_has_the_tables_of_the_result() -> None:
    root = Path(__file__).parent.parent
    result = json.loads((root / "experiments" / "votes" / "result.json").read_text())
    assert result["control"] == 0
    page = (root / "docs" / "votes.md").read_text()
    for table_of_votes in TABLES_OF_VOTES:
        assert table_of_votes(result) in page


SCALES = codes.Scales(first=1.2, starts={"low": 0.7, "middle": 0.9})


@pytest.mark.parametrize("job", codes.jobs(Path("out"), SCALES), ids=lambda job: job.name)
def test_codes_are_measured_where_no_training_was(job: Trial) -> None:
    config = configuration.load(job.recipe, job.changes())
    assert config.model.size == codes.SIZE and config.model.controlnet == zoo.QR_CONTROLNET
    assert config.evaluation.prompts["part"] == "unseen" and "part" not in config.prompts

    scale = SCALES.starts[job.task]
    steps = config.curriculum.get("values", [])
    assert config.sampler.control.scale == scale
    assert bool(steps) == job.arm.endswith("_curriculum")
    is_gated = config.curriculum.get("use") == "gated"
    assert bool(config.curriculum) == (bool(steps) or is_gated)
    assert is_gated == job.arm.endswith("_gated")
    assert not is_gated or config.curriculum["last"] == scale < config.curriculum["first"]
    assert not steps or (steps[0], steps[-1]) == (SCALES.first, scale)
    assert steps.count(scale) * 2 == len(steps) and steps == sorted(steps, reverse=True)
    assert job.arm == "control" or len(steps) <= config.iterations

    rewards = {reward["use"]: reward.get("weight", 1) for reward in config.rewards}
    about_pictures = {"clip_contrast", "picture_similarity"} & set(rewards)
    assert len(about_pictures) == (0 if job.arm == "no_picture" else 2)
    assert not set(rewards) & {"clip_retrieval", "judge"}, "what is measured is in no reward"
    assert (config.optimizer.lr == 0) == (job.arm == "control")

    by_gradient = config.objective["use"] == "latent"
    from_verdicts = job.arm.startswith(("scanner", "strict"))
    assert by_gradient == (not from_verdicts) == (rewards["qr_scan"] == 0)
    strictly = [reward["weight"] for reward in config.rewards if reward.get("strict")]
    assert strictly == ([1] if job.arm.startswith("strict") else [])
    images = config.batch.prompts * config.batch.images_per_prompt
    assert images == 32


def test_the_links_of_the_measurement_are_ordinary_codes_of_the_unseen_part() -> None:
    coded = measured_prompts()
    layouts = [layout_of(prompt, codes.SIZE) for prompt in coded]
    assert {layout.version for layout in layouts} == {1, 2}
    assert all(is_unseen(layout.payload) for layout in layouts)
    assert len(coded) == 3 * 61 and len(measured_prompts(codes.QUICK)) == 6


def test_the_recipe_draws_codes_with_the_zoos_controlnet() -> None:
    config = configuration.load(codes.RECIPE)
    models = (config.model.id, config.model.controlnet)
    assert models == (zoo.QR_GENERATOR, zoo.QR_CONTROLNET) and config.model.size == codes.SIZE
    assert config.prompts["pattern"] == config.evaluation.prompts["pattern"] == codes.PATTERNS


@pytest.mark.parametrize("module", codes.MODULES)
def test_codes_are_measured_with_modules_of_either_side(module: int) -> None:
    for prompt in measured_prompts(codes.QUICK, pattern=[codes.MODULE_PATTERN]):
        settings = {**prompt.metadata, "qr": {"module": module}}
        layout = layout_of(replace(prompt, metadata=settings), codes.SIZE)
        assert (layout.version, layout.module) == (1, module) and is_unseen(layout.payload)


def test_runs_start_where_as_many_are_read_as_planned() -> None:
    """Of a straight line from nothing at 0 to everything at 1; a missing reader changes nothing."""
    start = {
        "0": {"strict": 0.0, "opencv": float("nan")},
        "1": {"strict": 1.0, "opencv": float("nan")},
    }
    scales = start_scales(start)
    wanted = {name: one.read for name, one in codes.STARTS.items()}
    assert scales == codes.Scales(codes.FIRST_READ, wanted)


def test_the_reference_lies_between_scales() -> None:
    start = {"0.5": {"strict": 0.0, "clip_text": 0.8}, "1": {"strict": 0.4, "clip_text": 0.4}}
    reference = at_rate(start, 0.1)
    assert reference["scale"] == pytest.approx(0.625) and reference["clip_text"] == pytest.approx(
        0.7
    )
    with pytest.raises(SystemExit, match="nowhere read in 50%"):
        at_rate(start, 0.5)


def test_once_a_run_has_failed_no_other_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [codes.trial(tmp_path, SCALES, codes.QUICK, "low", "strict", seed) for seed in range(4)]
    began = []

    def fail(job: Job, *_: object, **__: object) -> None:
        began.append(job.name)
        if job is jobs[1]:
            raise SystemExit("burnish train failed")

    monkeypatch.setattr(running, "_train_run", fail)
    with pytest.raises(SystemExit, match="burnish train failed"):
        running.train(jobs, tmp_path, 1)
    assert began == [job.name for job in jobs[:2]]


def test_names_of_runs_differ() -> None:
    names = [job.name for job in plan.jobs()]
    assert len(set(names)) == len(names) == len(plan.SEEDS) * len(plan.TASKS) * len(plan.ARMS)


def curve(seconds: list[float], values: list[float]) -> list[dict[str, Any]]:
    """Return a curve whose rewards and gains are `values`."""
    return [
        {
            "seconds": s,
            "train": {"reward": v, "gain": v, "gain_ci95": [v - 0.1, v + 0.1], "judge": 1 - v / 10},
            "unseen": {"gain": v / 2},
        }
        for s, v in zip(seconds, values, strict=True)
    ]


SLOW = curve([0, 100, 200], [0, 1, 2])


def test_a_level_is_reached_after_whole_iterations() -> None:
    assert compare(SLOW, curve([0, 10, 20], [0, 1.9, 5]), "gain") == {
        "target": 2,
        "baseline_seconds": 200,
        "seconds": 20,
        "judge": 0.5,
        "unseen": 2.5,
        "ratio": 10,
        "bound": None,
    }


def test_a_ratio_that_is_not_known_has_a_bound() -> None:
    never = compare(SLOW, curve([0, 10, 20], [0, 1, 1.9]), "reward")
    assert (never["ratio"], never["bound"]) == (None, "< 10.0")
    at_once = compare(SLOW, curve([0, 10, 20], [3, 4, 5]), "reward")
    assert (at_once["ratio"], at_once["bound"], at_once["seconds"]) == (None, "> 20.0", 0)


def test_a_baseline_that_gained_nothing_surely_has_no_target() -> None:
    for sunk in (curve([0, 100], [2, -1]), curve([0, 100], [0, 0.05])):
        found = compare(sunk, SLOW, "gain")
        assert set(found.values()) == {None}
