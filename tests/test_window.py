"""Windows of stochastic transitions and shared starts: against loops written out by hand."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, log
from diffusers import DDIMScheduler
from torch import Tensor

from burnish import config as configuration
from burnish.config import WindowConfig
from burnish.diffusion.guidance import CFG, NoGuidance
from burnish.diffusion.kernels import DDIM, LCM, ODE
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.diffusion.schedule import read_schedule
from burnish.diffusion.window import SharedStarts, window_at
from burnish.runs import Run
from burnish.seeds import generator as stream_of
from burnish.tools.preflight import preflight
from burnish.training.collect import Collector
from burnish.training.iteration_sampler import iteration_sampler
from burnish.training.job import Job, prepare
from burnish.training.loop import train
from burnish.types import Prompt, Trajectory
from burnish.world import World

PROMPTS = [Prompt("a cat"), Prompt("a cat"), Prompt("two dogs"), Prompt("two dogs")]
GROUP = torch.tensor([3, 3, 8, 8])
SCHEDULER = DDIMScheduler(steps_offset=1, set_alpha_to_one=False)
IDEA = Path(__file__).parent.parent / "docs" / "idea.md"


class Toy:
    """A policy in float64 that predicts x0 = 0.3 x + its prompt's number; no network."""

    device = torch.device("cpu")
    latent_shape = (1, 2, 2)

    def __init__(self) -> None:
        self.schedule = read_schedule(SCHEDULER)
        self.rows = 0

    def noise(self, n: int, stream: torch.Generator) -> Tensor:
        return torch.randn((n, *self.latent_shape), generator=stream, dtype=torch.float64)

    def predict(self, x: Tensor, t: Tensor, cond: dict[str, Tensor], guidance: object) -> Tensor:
        self.rows += len(x)
        return 0.3 * x + cond["number"].view(-1, 1, 1, 1)

    @contextmanager
    def merged(self) -> Iterator[None]:
        yield


def toy_roll(policy: Any, sampler: Sampler, **options: Any) -> Trajectory:
    cond = {"number": torch.tensor([0.5, 0.5, -1.0, -1.0], dtype=torch.float64)}
    return sampler.rollout(policy, cond, GROUP, generator(4), **options)


def roll(policy: Policy, sampler: Sampler, **options: Any) -> Trajectory:
    return sampler.rollout(policy, policy.encode(PROMPTS), GROUP, generator(4), **options)


def replayed(policy: Policy, sampler: Sampler, trajectory: Trajectory) -> Tensor:
    images, transitions = trajectory.logp.shape
    every = torch.arange(transitions).expand(images, -1)
    return sampler.replay(policy, trajectory, torch.arange(images), every).logp.detach()


@pytest.mark.parametrize("window", [range(0, 2), range(2, 4), range(4, 6), range(0, 6)])
def test_outside_of_the_window_the_transitions_are_the_ode_s(window: range) -> None:
    """By the formulas of DDIM with eta = 0.7 and eta = 0, in float64."""
    policy: Any = Toy()
    sampler = Sampler(DDIM(0.7), 6, NoGuidance(), window=window)
    trajectory = toy_roll(policy, sampler, keep_x0_pred=True)

    abar = SCHEDULER.alphas_cumprod.double()
    abar = torch.cat([abar, abar[:1]])  # the last time is -1
    times = sampler.times(policy)
    stream = generator(4)
    x = policy.noise(4, stream)
    number = torch.tensor([0.5, 0.5, -1.0, -1.0]).double().view(-1, 1, 1, 1)
    states = []
    x0_preds = []

    for i, (t, s) in enumerate(pairwise(times)):
        eta = 0.7 if i in window else 0.0
        x0 = 0.3 * x + number
        eps = (x - abar[t].sqrt() * x0) / (1 - abar[t]).sqrt()
        std = eta * ((1 - abar[s]) / (1 - abar[t]) * (1 - abar[t] / abar[s])).sqrt()
        if i in window:
            states.append(x)
            x0_preds.append(x0)
        x = abar[s].sqrt() * x0 + (1 - abar[s] - std**2).sqrt() * eps
        if i in window:
            x = x + std * torch.randn(x.shape, generator=stream, dtype=torch.float64)
            after = x

    torch.testing.assert_close(trajectory.latent, x, rtol=1e-10, atol=1e-10)
    expected = torch.stack([*states, after], 1)
    torch.testing.assert_close(trajectory.x, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(trajectory.x0_pred, torch.stack(x0_preds, 1), rtol=1e-10, atol=1e-10)
    assert trajectory.t.equal(times[window.start : window.stop + 1])
    assert trajectory.logp.shape == (4, len(window)) and trajectory.logp.isfinite().all()


def test_a_window_in_the_stock_scheduler(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    trajectory = roll(policy, Sampler(DDIM(), 5, NoGuidance(), window=range(1, 3)))
    scheduler = DDIMScheduler.from_config(policy.pipe.scheduler.config)
    scheduler.set_timesteps(5)
    stream = generator(4)
    x = policy.noise(4, stream)

    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            out = policy.pipe.unet(x, t, policy.encode(PROMPTS)["text"]).sample
            eta = 1.0 if i in (1, 2) else 0.0
            x = scheduler.step(out, t, x, eta=eta, generator=stream).prev_sample

    torch.testing.assert_close(trajectory.latent, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("window", [range(0, 1), range(2, 4), range(3, 5)])
def test_the_ratio_is_one_before_the_first_update(
    tiny_pipeline: Path, window: range, shared: bool
) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 5, CFG(3.0), window=window)
    trajectory = roll(policy, sampler, starts=SharedStarts(("key",)) if shared else None)
    assert trajectory.logp.shape == (4, len(window))
    assert (replayed(policy, sampler, trajectory) - trajectory.logp).expm1().abs().max() < 1e-6

    with_ode = Sampler(DDIM(), 5, CFG(3.0), window=range(0))
    replay = replayed(policy, with_ode, trajectory)
    assert (replay - trajectory.logp).abs().max() < 1e-6, "a run's own sampler has no window"


def test_a_window_of_everything_is_none_and_an_empty_one_is_the_ode(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    whole = roll(policy, Sampler(DDIM(), 4, NoGuidance()))
    window = roll(policy, Sampler(DDIM(), 4, NoGuidance(), window=range(4)))
    assert window.x.equal(whole.x) and window.logp.equal(whole.logp)

    empty = roll(policy, Sampler(DDIM(), 4, NoGuidance(), window=range(0)))
    assert empty.latent.equal(roll(policy, Sampler(ODE(), 4, NoGuidance())).latent)
    assert empty.logp.shape == (4, 0)


def test_transitions_of_a_window_are_counted(tiny_pipeline: Path) -> None:
    """The five standard deviations are 0.82, 0.65, 0.43, 0.041 and 0.021 (docs/idea.md)."""
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 5, NoGuidance(), window=range(2, 5))
    assert sampler.transitions(policy) == 3
    assert sampler.transitions(policy, 0.03) == 2
    assert sampler.transitions(policy, 0.1) == 1
    with pytest.raises(ValueError, match=r"batch.least_noise = 0.5"):
        sampler.transitions(policy, 0.5)


def test_windows_that_do_not_exist(tiny_pipeline: Path, tiny_lcm: Path) -> None:
    for window in (range(3, 6), range(-1, 2), range(0, 4, 2)):
        with pytest.raises(ValueError, match="not one of transitions side by side in 5 steps"):
            Sampler(DDIM(), 5, NoGuidance(), window=window)

    policy = Policy.load(tiny_lcm)
    sampler = Sampler(LCM(), 4, NoGuidance(), window=range(2, 4))
    with pytest.raises(ValueError, match=r"a transition of the window range\(2, 4\) has no noise"):
        sampler.transitions(policy)


# Starts that a group shares ---------------------------------------------------------------------


def test_a_shared_start_is_computed_once_for_each_prompt() -> None:
    policy: Any = Toy()
    sampler = Sampler(DDIM(), 6, NoGuidance(), window=range(4, 5))
    trajectory = toy_roll(policy, sampler, starts=SharedStarts(("key",)))
    assert policy.rows == 4 * 2 + 2 * 4, "four transitions for each prompt, two for each image"

    first = trajectory.x[:, 0]
    assert first[0].equal(first[1]) and first[2].equal(first[3]) and not first[0].equal(first[2])
    assert not trajectory.latent[0].equal(trajectory.latent[1])


def test_a_shared_prefix_is_the_unshared_one(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against images that each take all steps, from the same noise."""
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 5, CFG(3.0), window=range(3, 4))
    trajectory = roll(policy, sampler, starts=SharedStarts(("key",)))
    noises = [
        torch.randn(1, 4, 8, 8, generator=stream_of("key", number)) for number in (3, 3, 8, 8)
    ]
    monkeypatch.setattr(policy, "noise", lambda rows, stream: torch.cat(noises))
    alone = roll(policy, sampler)
    torch.testing.assert_close(trajectory.x, alone.x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trajectory.latent, alone.latent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, range(2, 4)])
def test_a_group_that_is_split_over_chunks_has_one_start(window: range | None) -> None:
    policy: Any = Toy()
    sampler = Sampler(DDIM(), 5, NoGuidance(), window=window)
    whole = toy_roll(policy, sampler, starts=SharedStarts(("key",)))
    starts = SharedStarts(("key",))
    number = torch.tensor([0.5, 0.5, -1.0, -1.0], dtype=torch.float64)
    policy.rows = 0
    parts = [
        sampler.rollout(policy, {"number": number[rows]}, GROUP[rows], generator(), starts=starts)
        for rows in (slice(0, 1), slice(1, 3), slice(3, 4))
    ]
    first = torch.cat([part.x[:, 0] for part in parts])
    torch.testing.assert_close(first, whole.x[:, 0], rtol=0, atol=0)
    prefix = window.start if window else 0
    assert policy.rows == 2 * prefix + 4 * (5 - prefix)


def test_texts_of_a_group_share_the_noise_and_not_the_state() -> None:
    policy: Any = Toy()
    cond = {"number": torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)}
    group = torch.zeros(3, dtype=torch.long)

    def first(window: range | None) -> Tensor:
        sampler = Sampler(DDIM(), 5, NoGuidance(), window=window)
        starts = SharedStarts(("key",))
        return sampler.rollout(policy, cond, group, generator(), starts=starts).x[:, 0]

    noise, states = first(None), first(range(2, 3))
    assert noise[0].equal(noise[1])
    assert states[0].equal(states[2]) and not states[0].equal(states[1])


# Where the window lies --------------------------------------------------------------------------


def test_mixgrpo_s_schedule() -> None:
    """25 steps, size 4, one further every 25 iterations and back to the start at the end."""
    window = WindowConfig(size=4, placement="sliding", every=25)
    first = 0
    for iteration in range(1, 1201):
        assert window_at(window, iteration, 25, seed=0) == range(first, first + 4), iteration
        if iteration % 25 == 0:
            first = first + 1 if first + 4 < 25 else 0


def test_a_random_window_covers_its_range_evenly_and_stays_for_its_iterations() -> None:
    window = WindowConfig(size=2, first=2, last=6, placement="random", every=3)
    drawn = [window_at(window, iteration, 9, seed=5) for iteration in range(1, 3001)]
    assert all(len({drawn[i + k] for k in range(3)}) == 1 for i in range(0, 3000, 3))
    counts = [drawn[::3].count(range(first, first + 2)) for first in range(1, 5)]
    assert sum(counts) == 1000 and min(counts) > 200
    assert drawn[::3] != [window_at(window, i, 9, seed=6) for i in range(1, 3001, 3)]


def test_a_fixed_window_stays() -> None:
    window = WindowConfig(size=2, first=3, placement="fixed")
    assert {window_at(window, iteration, 9, 0) for iteration in range(1, 20)} == {range(2, 4)}


# Runs -------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n",
        iterations=3,
        sampler={
            "steps": 5,
            "shared_noise": True,
            "window": {"size": 2, "placement": "random"},
        },
        rewards=[{"use": "HERE/reward.py:bright"}],
        batch={"prompts": 2, "images_per_prompt": 4, "sample_batch": 3, "minibatches": 1},
        evaluation={"images_per_prompt": 1},
        run={"sample_every": 0},
    )


def make_job(recipe: Path, folder: Path, *overrides: str) -> Job:
    config = configuration.load(recipe, overrides)
    return prepare(config, Run.create(folder), World())


def test_the_images_of_an_iteration(recipe: Path, tmp_path: Path) -> None:
    job = make_job(recipe, tmp_path / "run")
    batch = Collector(job).collect(2)
    trajectory = batch.trajectory
    window = iteration_sampler(job, 2).window
    assert window == window_at(job.config.sampler.window, 2, 5, 0)
    assert trajectory.logp.shape == (8, 2)
    assert trajectory.t.equal(job.parts.sampler.times(job.parts.policy)[window.start :][:3])

    for prompt in (trajectory.x[:4, 0], trajectory.x[4:, 0]):
        torch.testing.assert_close(prompt, prompt[:1].expand(4, -1, -1, -1), rtol=0, atol=1e-5)
    assert not torch.allclose(trajectory.x[0, 0], trajectory.x[4, 0], atol=1e-2)
    assert len(trajectory.latent.flatten(1).unique(dim=0)) == 8

    again = make_job(recipe, tmp_path / "again")
    assert Collector(again).collect(2).trajectory.x.equal(trajectory.x)

    evaluated = job.parts.sampler
    assert evaluated.window == range(0), "evaluations follow the ODE"


def test_without_a_window_nothing_has_changed(recipe: Path, tmp_path: Path) -> None:
    """All transitions are the kernel's, from the noise of one stream."""
    changes = ("sampler.window.size=0", "sampler.shared_noise=false", "batch.sample_batch=8")
    job = make_job(recipe, tmp_path / "run", *changes)
    batch = Collector(job).collect(1)
    sampler = Sampler(DDIM(), 5, CFG(2.0))
    cond = sampler.encode(job.parts.policy, batch.prompts)
    stream = stream_of(0, 1, "noise", 0)
    expected = sampler.rollout(job.parts.policy, cond, batch.group, stream)
    assert batch.trajectory.x.equal(expected.x)
    assert job.parts.sampler.window is None


def test_a_stopped_run_goes_on_with_the_same_windows(recipe: Path, tmp_path: Path) -> None:
    config = configuration.load(recipe, ["evaluation.images_per_prompt=0"])
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(config, whole)

    answers = chain([False] * 8, repeat(True))
    train(config, resumed, stop=partial(next, answers))
    assert 0 < len(log(resumed)) < 3

    train(config, resumed, resume=True)
    assert log(resumed) == log(whole)


@pytest.mark.parametrize(
    "changes",
    [
        ("sampler.window.size=1", "batch.baseline=x0_preview"),
        ("batch.transitions=1", "batch.least_noise=0.1"),
        ("objective.use=rebel",),
        ("sampler.identifiers=words",),
    ],
    ids=["baseline", "fewer transitions", "rebel", "identifiers"],
)
def test_a_run_with_a_window_and(recipe: Path, tmp_path: Path, changes: tuple[str, ...]) -> None:
    train(
        configuration.load(recipe, ("iterations=1", "evaluation.images_per_prompt=0", *changes)),
        tmp_path / "run",
    )
    (record,) = log(tmp_path / "run")
    assert record["grad_norm"] > 0
    assert record.get("ratio_deviation", 0.0) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("sampler.window.size=6",), "size = 6 does not fit into the transitions 1 to 5"),
        (("sampler.window.first=5",), "size = 2 does not fit into the transitions 5 to 5"),
        (("sampler.window.last=6",), "last = 6, but only the first 5 transitions have noise"),
        (
            ("sampler.window.last=4", "batch.least_noise=0.1"),
            "last = 4, but only the first 3 transitions have noise",
        ),
        (("batch.transitions=3",), "batch.transitions = 3, but .* has only 2 noisy transitions"),
        (("sampler.window.placement=slides",), '"random", "sliding" or "fixed"'),
        (("sampler.window.every=0",), "at least 1 iteration"),
        (("sampler.window.first=0",), "at least 1, the first transition"),
        (("objective.use=awm",), "this objective learns from the finished images"),
        (
            ("objective.use=awm", "sampler.window.size=0", "sampler.kernel.use=ode"),
            "sampler.shared_noise with a kernel without noise makes all images of a prompt the",
        ),
        (
            ("guard.action=warn", "guard.kl=3", "evaluation.every=1"),
            "guard.kl is measured on transitions with noise",
        ),
    ],
)
def test_settings_that_cannot_be(
    recipe: Path, tmp_path: Path, changes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_job(recipe, tmp_path / "run", *changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ((), r"transitions \d to \d of 5 are .* in the first iteration, others of 1 to 5 later"),
        (
            ("sampler.window.placement=sliding", "iterations=3"),
            "transitions 1 to 2 of 5 are .*; the window comes to 4 in this run",
        ),
        (
            ("sampler.window.placement=sliding", "iterations=9"),
            "transitions 1 to 2 of 5 are .*; the window comes to 5 in this run",
        ),
        (("sampler.window.placement=fixed",), "transitions 1 to 2 of 5 are .*, and in all others"),
    ],
)
def test_check_says_what_is_trained(recipe: Path, changes: tuple[str, ...], text: str) -> None:
    findings = preflight(configuration.load(recipe, changes))
    assert not [finding for finding in findings if finding.level == "error"]
    (found,) = [f for f in findings if f.text.startswith("transitions ")]
    assert re.search(text, found.text)
    (ratio,) = [f for f in findings if f.text.startswith("ratio - 1")]
    assert ratio.level == "ok"


@pytest.mark.parametrize("number", [0, 1], ids=["Flow-GRPO-Fast", "MixGRPO"])
def test_the_settings_of_the_docs_run(
    write_recipe: Callable[..., Path], tiny_z_image: Path, tmp_path: Path, number: int
) -> None:
    section = IDEA.read_text("utf-8").split("## A window of noise")[1].split("\n## ")[0]
    blocks = re.findall(r"```toml\n(.*?)```", section, re.S)
    assert len(blocks) == 2
    recipe = write_recipe(
        iterations=1,
        model={"id": str(tiny_z_image)},
        evaluation={"images_per_prompt": 1},
        run={"sample_every": 0},
        **tomllib.loads(blocks[number]),
    )
    images = ("batch.prompts=1", "batch.images_per_prompt=4", "batch.minibatches=1")
    config = configuration.load(recipe, images)
    assert config.sampler.window.size and config.sampler.kernel["use"] == "flow_grpo"
    train(config, tmp_path / "run")
    (record,) = log(tmp_path / "run")
    assert record["ratio_deviation"] < 1e-5
