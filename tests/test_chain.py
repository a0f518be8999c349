"""The chain: autograd through detached network inputs, and FDFO's published formula, in float64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, log
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from torch import Tensor, nn

from burnish.config import Config, load
from burnish.diffusion import kernels
from burnish.diffusion.chain import ChainProcess, output_scales, sensitivities
from burnish.diffusion.guidance import NoGuidance
from burnish.diffusion.sampler import Sampler
from burnish.diffusion.schedule import Schedule, read_schedule
from burnish.rewards import check_reward
from burnish.rewards.compressibility import compressibility
from burnish.rl.chain_objectives import FDFO, Latent
from burnish.runs import Run
from burnish.tools.preflight import preflight
from burnish.training.assembly import Overrides
from burnish.training.chain import differences
from burnish.training.job import Job, prepare
from burnish.training.loop import train
from burnish.training.updates import GeneratorUpdates
from burnish.types import Kernel, Trajectory, differentiable
from burnish.world import World

STEPS = 4
BATCH = 3
SCHEDULERS: dict[str, Any] = {
    "epsilon": DDIMScheduler(clip_sample=False),
    "v": DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "lcm": LCMScheduler(clip_sample=False),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}
CHAINS: dict[str, tuple[str, Kernel]] = {
    "ddim": ("epsilon", kernels.DDIM(1.0)),
    "ddim of v": ("v", kernels.DDIM(0.5)),
    "ddim without noise": ("epsilon", kernels.DDIM(0.0)),
    "lcm": ("lcm", kernels.LCM()),
    "ode": ("flow", kernels.ODE()),
    "cps": ("flow", kernels.CPS()),
    "precise": ("flow", kernels.Precise()),
    "churn": ("flow", kernels.Churn(0.0025)),
    "renoise": ("flow", kernels.Renoise()),
    "flow_grpo": ("flow", kernels.FlowGRPO()),
    "dance_grpo": ("flow", kernels.DanceGRPO()),
}


class Tiny(nn.Module):
    """A policy of one convolution in float64, which knows the time."""

    latent_shape = (2, 3, 3)
    device = torch.device("cpu")

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.schedule = schedule
        self.layer = nn.Conv2d(3, 2, 3, padding=1).double()

    def noise(self, n: int, stream: torch.Generator) -> Tensor:
        return torch.randn((n, *self.latent_shape), generator=stream, dtype=torch.float64)

    def merged(self) -> Any:
        return nullcontext()

    def predict(self, x: Tensor, t: Tensor, cond: Any, guidance: Any) -> Tensor:
        sigma = self.schedule.level(t).sigma.expand(-1, 1, 3, 3)
        return self.schedule.x0(x, t, torch.tanh(self.layer(torch.cat([x, sigma], 1))))


def tiny_chain(name: str) -> tuple[Any, Sampler]:
    scheduler, kernel = CHAINS[name]
    policy: Any = Tiny(read_schedule(SCHEDULERS[scheduler]))
    return policy, Sampler(kernel, STEPS, NoGuidance())


def roll(policy: Any, sampler: Sampler) -> Trajectory:
    group = torch.zeros(BATCH, dtype=torch.int64)
    return sampler.rollout(policy, {}, group, generator(), keep_ode=True)


def reward(latent: Tensor) -> Tensor:
    return (latent.sin() * latent.cos().mean((1, 2, 3), keepdim=True)).sum((1, 2, 3))


def by_autograd(policy: Any, sampler: Sampler, last: int) -> tuple[Tensor, list[Tensor]]:
    """Return the finished latents and the gradients of the mean reward, the oracle.

    The network's input is detached, and its output before the `last` calls.
    """
    times = sampler.times(policy)
    stream = generator()
    x = policy.noise(BATCH, stream)

    for i, (t, s) in enumerate(pairwise(times)):
        rows = t.expand(BATCH)
        sigma = policy.schedule.level(rows).sigma.expand(-1, 1, 3, 3)
        out = torch.tanh(policy.layer(torch.cat([x.detach(), sigma], 1)))
        out = out if i >= STEPS - last else out.detach()
        x0 = policy.schedule.x0(x, rows, out)
        level_s = policy.schedule.level(s.expand(BATCH))
        transition = sampler.kernel(x, x0, policy.schedule.level(rows), level_s)
        noisy = bool((transition.std > kernels.LEAST_STD).all())
        x = kernels.sample(transition, stream) if noisy else transition.mean

    return x, list(torch.autograd.grad(reward(x).mean(), list(policy.parameters())))


def chain_process(policy: Any, sampler: Sampler, trajectory: Trajectory, last: int) -> ChainProcess:
    leaf = trajectory.latent.clone().requires_grad_()
    (direction,) = torch.autograd.grad(reward(leaf).sum(), leaf)
    factors = last * sensitivities(sampler, policy)[-last:]
    return ChainProcess(policy, sampler, trajectory, direction, factors)


def all_pairs(last: int) -> tuple[Tensor, Tensor]:
    return torch.arange(BATCH).repeat_interleave(last), torch.arange(last).repeat(BATCH)


@pytest.mark.parametrize("last", [1, 3, STEPS])
@pytest.mark.parametrize("name", CHAINS)
def test_the_gradient_is_autograds_through_the_chain(name: str, last: int) -> None:
    policy, sampler = tiny_chain(name)
    trajectory = roll(policy, sampler)
    latent, expected = by_autograd(policy, sampler, last)
    torch.testing.assert_close(trajectory.latent, latent)

    process = chain_process(policy, sampler, trajectory, last)
    images, calls = all_pairs(last)
    # in two pieces of different sizes, as micro-batches are
    for rows in (slice(0, last), slice(last, None)):
        replay = process.replay(images[rows], calls[rows])
        loss = Latent()(replay, torch.ones(len(images[rows])))
        (loss.value * len(images[rows]) / len(images)).backward()

    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        torch.testing.assert_close(-parameter.grad, gradient, rtol=1e-7, atol=1e-12)


def test_a_kernel_that_is_no_sum_is_refused() -> None:
    policy, sampler = tiny_chain("cps")

    class Squared(kernels.CPS):
        def __call__(self, x_t: Tensor, x0: Tensor, *levels: Any) -> Any:
            return super().__call__(x_t, x0**2, *levels)

    with pytest.raises(ValueError, match="no weighted sum of x_t and x0"):
        sensitivities(replace(sampler, kernel=Squared()), policy)


def test_the_kl_is_half_the_squared_distance_of_outputs() -> None:
    policy, sampler = tiny_chain("ode")
    trajectory = roll(policy, sampler)
    process = chain_process(policy, sampler, trajectory, STEPS)
    images, calls = all_pairs(STEPS)
    anchor = process.predictions([(images, calls)], nullcontext())
    before = policy.layer.bias.detach().clone()
    with torch.no_grad():
        policy.layer.weight *= 1.5

    replay = replace(process, anchor=anchor).replay(images, calls, reference=True)
    x = process.states(images, calls)
    sigma = policy.schedule.level(process.times[calls]).sigma.expand(-1, 1, 3, 3)
    inputs = torch.cat([x, sigma], 1)
    now = torch.tanh(policy.layer(inputs))
    then = torch.tanh(nn.functional.conv2d(inputs, policy.layer.weight / 1.5, before, padding=1))
    expected = (now - then).square().sum((1, 2, 3)) / 2
    assert replay.kl is not None
    torch.testing.assert_close(replay.kl[:, 0].double(), expected, rtol=1e-4, atol=1e-6)


# Finite differences -----------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("name", ["churn", "ddim", "ddim of v"])
def test_fdfo_is_the_published_loss(name: str, moved: bool) -> None:
    """A target delta / ms(delta) beside the old output, and SPO's quadratic penalty."""
    policy, sampler = tiny_chain(name)
    trajectory = roll(policy, sampler)
    scale = output_scales(sampler, policy)
    factors = scale / trajectory.latent[0].numel()
    delta = trajectory.latent - trajectory.latent.mean(0)
    direction = differences(trajectory.latent, trajectory.group).double()
    process = ChainProcess(policy, sampler, trajectory, direction, factors)
    images, calls = all_pairs(STEPS)
    adv = torch.tensor([0.7, -1.2, 0.5])[images]
    old = process.predict(images, calls).detach()
    process = replace(process, old=process.predictions([(images, calls)], nullcontext()))
    if moved:
        with torch.no_grad():
            policy.layer.weight += 0.02

    loss = FDFO(limit=0.03)(process.replay(images, calls), adv)
    loss.value.backward()
    found = [parameter.grad.clone() for parameter in policy.parameters()]
    policy.zero_grad()

    to_output = scale[calls].view(-1, 1, 1, 1)
    ms = delta.square().mean((1, 2, 3), keepdim=True)
    target = to_output * old + (delta / ms)[images]
    likelihood = -(to_output * process.predict(images, calls) - target).square().mean((1, 2, 3))
    old_likelihood = -(to_output * old - target).square().mean((1, 2, 3))
    ratio = (likelihood - old_likelihood).exp()
    spo = -adv * ratio + adv.abs() / (2 * 0.03) * (ratio - 1).square()
    spo.mean().backward()

    torch.testing.assert_close(loss.value.double(), spo.mean(), rtol=1e-4, atol=1e-5)
    for one, parameter in zip(found, policy.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-4)


def test_differences_are_those_of_pairs() -> None:
    latent = torch.randn(6, 2, 3, 3, generator=generator())
    latent[5] = latent[4]
    found = differences(latent, torch.tensor([0, 0, 1, 1, 2, 2]))
    half = (latent[0] - latent[1]) / 2
    torch.testing.assert_close(found[0], half / half.square().mean())
    torch.testing.assert_close(found[1], -found[0])
    assert not found[4:].any()


# In a run ---------------------------------------------------------------------------------------

SMALL = (
    "batch={prompts=2,images_per_prompt=2,sample_batch=3,train_batch=3,minibatches=1}",
    "iterations=2",
    "evaluation.images_per_prompt=0",
    "run.sample_every=0",
)
LATENT = ("objective={use='latent'}", "advantage={use='none'}")


@differentiable
def redness(images: Tensor, prompts: Any) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3)) ** 2


@differentiable
def contrast(images: Tensor, prompts: Any) -> Tensor:
    return 50 * images.var((1, 2, 3))


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe()


def config_of(recipe: Path, *changes: str) -> Config:
    return load(recipe, [*SMALL, *LATENT, *changes])


def prepared(recipe: Path, folder: Path, *changes: str) -> tuple[Job, GeneratorUpdates]:
    overrides = Overrides(rewards={"redness": redness, "contrast": contrast})
    config = overrides.apply_to(config_of(recipe, *changes))
    job = prepare(config, Run(folder), World(), overrides=overrides)
    learner: Any = job.learners["generator"]
    return job, learner.updates


def collected(job: Job) -> Any:
    from burnish.training.collect import Collector

    return Collector(job).collect(1)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_direction_is_the_gradient_through_the_decoder(
    recipe: Path, tmp_path: Path, normalise: bool
) -> None:
    changes = (
        f"chain.normalise={str(normalise).lower()}",
        "rewards=[{use='compressibility',name='redness',weight=2.0},"
        "{use='compressibility',name='contrast',weight=-1.0}]",
    )
    job, updates = prepared(recipe, tmp_path, *changes)
    batch = collected(job)
    pairs = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    process: Any = updates.process(batch, [pairs])

    pipe = job.parts.policy.pipe
    leaf = batch.trajectory.latent.detach().clone().requires_grad_()
    decoded = pipe.vae.decode(leaf / pipe.vae.config.scaling_factor).sample
    images = (decoded / 2 + 0.5).clamp(0, 1)
    alone = [
        torch.autograd.grad(one(images, []).sum(), leaf, retain_graph=True)[0]
        for one in (redness, contrast)
    ]
    if normalise:
        alone = [one / one.flatten(1).norm(dim=1).square().mean().sqrt() for one in alone]
    torch.testing.assert_close(process.direction, 2 * alone[0] - alone[1], rtol=1e-3, atol=1e-6)


def test_a_missing_image_has_no_direction(recipe: Path, tmp_path: Path) -> None:
    job, updates = prepared(recipe, tmp_path)
    batch = collected(job)
    batch.scores.parts[2, 0] = torch.nan
    pairs = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    process: Any = updates.process(batch, [pairs])
    assert process.direction.flatten(1).any(1).tolist() == [True, True, False, True]


def test_predictions_are_read_where_they_are_trained(recipe: Path, tmp_path: Path) -> None:
    """ReFL: one call of the last two, the reward of its x0, whose factor is 1."""
    changes = ("chain={read='prediction',last=2,normalise=false}", "batch.transitions=1")
    job, updates = prepared(recipe, tmp_path, *changes)
    batch = collected(job)
    (images, calls) = updates.pairs(1, torch.ones(4))[0]
    process: Any = updates.process(batch, [(images, calls)])
    assert len(images) == 4 and int(calls.max()) <= 1

    policy = job.parts.policy
    with torch.enable_grad():
        x0 = process.predict(images, calls)
        decoded = policy.decode(x0, gradient=True)
        values = redness(decoded, []) + contrast(decoded, [])
    parameters = policy.trainable
    expected = torch.autograd.grad(values.mean(), parameters, allow_unused=True)
    loss = Latent()(process.replay(images, calls), torch.ones(4)).value
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(-one, other, rtol=1e-3, atol=1e-6)


def test_a_ramp_weighs_late_calls_more(recipe: Path, tmp_path: Path) -> None:
    job, updates = prepared(recipe, tmp_path, "chain={ramp=true,last=2}")
    batch = collected(job)
    plain = sensitivities(job.parts.sampler, job.parts.policy)[-2:]
    process = updates.chain.undirected(batch)
    torch.testing.assert_close(process.factors, 2 * plain * torch.tensor([0.5, 1.0]))


def test_a_run_raises_its_reward(recipe: Path, tmp_path: Path) -> None:
    config = config_of(recipe, "iterations=6", "optimizer={lr=1e-2,warmup=0}", "model.train=full")
    overrides = Overrides(rewards={"redness": redness})
    records = log(train(config, tmp_path / "run", overrides=overrides))
    rewards = [record["rewards"]["redness"]["mean"] for record in records]
    assert rewards[-1] > rewards[0] + 0.02
    assert all(record["zero_advantage"] == 0 for record in records)


def test_micro_batches_change_nothing(recipe: Path, tmp_path: Path) -> None:
    overrides = Overrides(rewards={"redness": redness, "contrast": contrast})
    norms = []
    for size in (1, 5, 24):
        config = config_of(recipe, f"batch.train_batch={size}", "iterations=1")
        run = train(config, tmp_path / str(size), overrides=overrides)
        norms.append(log(run)[0]["grad_norm"])
    assert norms[0] > 0
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


REWARD = """
import burnish

@burnish.differentiable
def dark(images, prompts, scale=1.0):
    return -scale * images.mean((1, 2, 3))
"""


def test_check_rehearses_a_chain(write_recipe: Callable[..., Path]) -> None:
    """A function in a file keeps its mark, with arguments of the table too."""
    reward = {"use": "HERE/reward.py:dark", "scale": 2.0}
    path = write_recipe(REWARD, rewards=[reward], advantage={"use": "none"})
    findings = preflight(load(path, [*SMALL, "objective={use='latent'}", "chain.last=2"]))
    assert [finding.text for finding in findings if finding.level == "error"] == []
    text = "3 of 3 images have a gradient of the rewards; 2 calls follow it"
    assert text in [finding.text for finding in findings]


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((), "reward 'compressibility' is not differentiable"),
        (("advantage={use='group'}",), 'set advantage.use = "none" with it'),
        (("objective={use='clipped'}",), 'set advantage.use = "none" with it'),
        (("chain.last=9",), "chain.last = 9, but an image takes only"),
        (("chain.last=1", "batch.transitions=2"), "batch.transitions = 2, but only 1 calls"),
        (("batch.baseline=x0_preview",), "set batch.baseline = ''"),
        (("forward.anchor=images",), 'forward.anchor = "images"'),
        (("objective={use='fdfo'}", "advantage={use='batch'}"), "sampler.shared_noise = true"),
        (("sampler.window.size=1",), "sampler.window.size = 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(
    recipe: Path, tmp_path: Path, changes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(config_of(recipe, *changes), Run(tmp_path), World())


def test_check_reward_tries_the_gradient() -> None:
    def plain(images: Tensor, prompts: Any) -> Tensor:
        return images.mean((1, 2, 3))

    @differentiable
    def detached(images: Tensor, prompts: Any) -> Tensor:
        return images.detach().mean((1, 2, 3))

    @differentiable
    def rooted(images: Tensor, prompts: Any) -> Tensor:
        return images[:, 0].var((1, 2)).sqrt() + images.mean((1, 2, 3))

    @differentiable
    def stepped(images: Tensor, prompts: Any) -> Tensor:
        return (images.round() + 0 * images).mean((1, 2, 3))

    @differentiable
    def in_place(images: Tensor, prompts: Any) -> Tensor:
        grown = images.exp()
        value = grown.exp().mean((1, 2, 3)) + (grown * grown).mean((1, 2, 3))
        grown.mul_(2)
        return value

    (found,) = check_reward(in_place)
    assert "reward 'reward' fails where its gradient is taken: RuntimeError" in found
    assert check_reward(redness) == check_reward(plain) == []
    (found,) = check_reward(plain, gradient=True)
    assert "it is differentiable, but does not say so" in found
    (found,) = check_reward(compressibility(), gradient=True)
    assert found == "it is not differentiable, so objective latent refuses it"
    (found,) = check_reward(detached)
    assert "its values have no gradient to the images" in found
    (found,) = check_reward(rooted)
    assert "is not finite for 3 of 8 images" in found
    (found,) = check_reward(stepped)
    assert "is 0 everywhere" in found
