"""Rollout against the stock pipeline; replay against rollout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import generator, perturb
from diffusers import DDIMScheduler

from burnish.diffusion import kernels
from burnish.diffusion.guidance import CFG, NoGuidance
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler, join_trajectories
from burnish.diffusion.schedule import read_schedule
from burnish.rl.objectives import Clipped
from burnish.types import Guidance, Prompt, Replay, Trajectory

PROMPTS = [Prompt("a cat"), Prompt("a cat"), Prompt("two dogs"), Prompt("two dogs")]
GROUP = torch.tensor([0, 0, 1, 1])
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def roll(policy: Policy, sampler: Sampler, seed: int = 0) -> Trajectory:
    return sampler.rollout(policy, policy.encode(PROMPTS), GROUP, generator(seed))


def replay_all(
    policy: Policy, sampler: Sampler, traj: Trajectory, reference: bool = False
) -> Replay:
    images = torch.arange(len(traj.group))
    transitions = torch.arange(traj.logp.shape[1]).expand(len(images), -1)
    return sampler.replay(policy, traj, images, transitions, reference)


@pytest.mark.parametrize("weight", [1.0, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_rollout_is_the_stock_pipeline_with_eta(
    make_pipeline: Callable[..., Path], prediction: str, weight: float
) -> None:
    policy = Policy.load(make_pipeline(prediction))
    guidance = CFG(weight) if weight != 1 else NoGuidance()
    traj = roll(policy, Sampler(DDIM(0.8), 5, guidance), seed=3)
    pipe = policy.pipe
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        [prompt.text for prompt in PROMPTS],
        num_inference_steps=5,
        guidance_scale=weight,
        eta=0.8,
        generator=generator(3),
        output_type="latent",
    ).images
    torch.testing.assert_close(traj.latent, stock, rtol=1e-4, atol=1e-4)


def test_shapes_and_the_decoded_latent(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 5, NoGuidance())
    traj = roll(policy, sampler)
    assert sampler.transitions(policy) == 5
    assert traj.x.shape == (4, 6, 4, 8, 8)
    assert traj.logp.shape == (4, 5)
    assert traj.t.shape == (6,)
    assert traj.t.tolist() == [801, 601, 401, 201, 1, -1]
    assert torch.equal(traj.x[:, -1], traj.latent) and traj.x.dtype == torch.float32
    assert not traj.logp.requires_grad and traj.logp.isfinite().all()


def test_all_noise_comes_from_the_one_generator(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    first = roll(policy, sampler, seed=1)
    torch.manual_seed(123)
    assert torch.equal(roll(policy, sampler, seed=1).x, first.x)
    assert not torch.allclose(roll(policy, sampler, seed=2).latent, first.latent)


@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(5.0)], ids=["none", "cfg"])
@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_fresh_trajectory_replays_to_ratio_one(
    make_pipeline: Callable[..., Path],
    prediction: str,
    train: str,
    guidance: Guidance,
) -> None:
    policy = Policy.load(make_pipeline(prediction), train=train)
    sampler = Sampler(DDIM(), 10, guidance)
    perturb(policy)
    traj = roll(policy, sampler)
    replay = replay_all(policy, sampler, traj)
    assert replay.dims == 256 and replay.logp.requires_grad
    assert torch.equal(replay.logp_old, traj.logp)
    # the network's rounding, times guidance's 5, divided by the last transition's std, 0.02
    assert (replay.logp - replay.logp_old).expm1().abs().max() < 5e-6


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ratio_one_in_bfloat16(
    make_pipeline: Callable[..., Path], prediction: str, train: str
) -> None:
    policy = Policy.load(make_pipeline(prediction), train=train, dtype="bfloat16")
    sampler = Sampler(DDIM(), 10, CFG(5.0))
    perturb(policy)
    traj = roll(policy, sampler)
    metrics = Clipped()(replay_all(policy, sampler, traj), torch.ones(4)).metrics
    assert metrics["ratio_deviation"] < 0.1 * 1.64 / 256


def test_replay_takes_any_transitions_of_any_images(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 6, CFG(2.0))
    traj = roll(policy, sampler)
    perturb(policy)
    full = replay_all(policy, sampler, traj, reference=True)
    images = torch.tensor([3, 1])
    transitions = torch.tensor([[5, 0, 2], [1, 1, 4]])
    part = sampler.replay(policy, traj, images, transitions, reference=True)

    for name in ("logp", "logp_old", "logp_ref", "kl"):
        expected = getattr(full, name)[images[:, None], transitions]
        torch.testing.assert_close(getattr(part, name), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_kl_to_the_reference(tiny_pipeline: Path, train: str) -> None:
    policy = Policy.load(tiny_pipeline, train=train, reference=True)
    sampler = Sampler(DDIM(), 4, CFG(2.0))
    traj = roll(policy, sampler)
    at_start = replay_all(policy, sampler, traj, reference=True)
    assert at_start.kl is not None and at_start.logp_ref is not None
    assert at_start.kl.abs().max() < 1e-6
    torch.testing.assert_close(at_start.logp_ref, at_start.logp, rtol=0, atol=1e-6)
    perturb(policy)
    later = replay_all(policy, sampler, traj, reference=True)
    assert later.kl is not None and later.logp_ref is not None
    assert (later.kl > 0).all() and not later.logp_ref.requires_grad
    torch.testing.assert_close(later.logp_ref, traj.logp, rtol=0, atol=1e-6)
    grads = torch.autograd.grad(later.kl.mean(), policy.trainable, allow_unused=True)
    assert sum(float(grad.abs().sum()) for grad in grads if grad is not None) > 0


@pytest.mark.parametrize("train", ["lora", "full"])
def test_gradient_is_that_of_the_density(tiny_pipeline: Path, train: str) -> None:
    """Along a random direction, against a central difference; the reference may come between."""
    policy = Policy.load(tiny_pipeline, train=train, reference=True)
    sampler = Sampler(DDIM(), 4, CFG(2.0))
    perturb(policy, 0.1)
    traj = roll(policy, sampler)
    weights = torch.randn(4, 4, generator=generator(1))

    grads = torch.autograd.grad(
        (replay_all(policy, sampler, traj, reference=True).logp * weights).sum(),
        policy.trainable,
        allow_unused=True,
    )
    norm = sum(float(grad.square().sum()) for grad in grads if grad is not None) ** 0.5
    values = []

    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for p, grad in zip(policy.trainable, grads, strict=True):
                if grad is not None:
                    p.add_(grad / norm, alpha=step)
            values.append(float((replay_all(policy, sampler, traj).logp * weights).sum()))

    assert (values[0] - values[1]) / 2e-3 == pytest.approx(norm, rel=0.05)


@pytest.mark.parametrize(
    "config", [{"set_alpha_to_one": True}, {"steps_offset": 0}], ids=["alpha one", "offset 0"]
)
def test_a_last_transition_without_noise_is_no_action(
    make_pipeline: Callable[..., Path], config: dict[str, object]
) -> None:
    policy = Policy.load(make_pipeline("epsilon"))
    policy.schedule = read_schedule(
        DDIMScheduler.from_config(policy.pipe.scheduler.config, **config)
    )
    sampler = Sampler(DDIM(), 5, NoGuidance())
    traj = roll(policy, sampler)
    assert sampler.transitions(policy) == 4
    assert traj.logp.shape == (4, 4) and traj.x.shape[1] == len(traj.t) == 5
    assert traj.logp.isfinite().all() and traj.latent.isfinite().all()

    if "set_alpha_to_one" in config:
        last = policy.predict(traj.x[:, -1], traj.t[-1].expand(4), traj.cond, NoGuidance())
        torch.testing.assert_close(traj.latent, last)

    assert (replay_all(policy, sampler, traj).logp - traj.logp).expm1().abs().max() < 1e-6


def test_transitions_whose_noise_is_invisible_can_be_left_out(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 5, NoGuidance())
    scheduler = DDIMScheduler.from_config(policy.pipe.scheduler.config)
    scheduler.set_timesteps(5)
    std = [scheduler._get_variance(t, t - 200).sqrt() for t in scheduler.timesteps.tolist()]

    for least_noise in (0.01, 0.03, 0.1, 0.5, 0.8):
        expected = sum(value >= least_noise for value in std)
        assert sampler.transitions(policy, least_noise) == expected

    with pytest.raises(
        ValueError, match=r"no transition has noise of batch.least_noise = 0.9; lower it"
    ):
        sampler.transitions(policy, 0.9)


def test_nothing_to_learn_from(make_pipeline: Callable[..., Path], tiny_pipeline: Path) -> None:
    with pytest.raises(ValueError, match="sampler.steps must be at least 1"):
        Sampler(DDIM(), 0, NoGuidance())

    policy = Policy.load(make_pipeline("epsilon", set_alpha_to_one=True))
    with pytest.raises(ValueError, match="none of 1 transitions has noise"):
        Sampler(DDIM(), 1, NoGuidance()).transitions(policy)

    assert roll(policy, Sampler(DDIM(), 1, NoGuidance())).logp.shape == (4, 0)
    with pytest.raises(ValueError, match=r"larger sampler.kernel.eta"):
        Sampler(DDIM(0.0), 5, NoGuidance()).transitions(policy)

    with pytest.raises(
        ValueError, match=r"only . of 5 transitions have noise: .* larger sampler.kernel.eta"
    ):
        roll(policy, Sampler(DDIM(5e-4), 5, NoGuidance()))


def test_join_is_one_batch(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 3, NoGuidance())
    first = roll(policy, sampler, 1)
    second = roll(policy, sampler, 2)
    both = join_trajectories([first, second])
    assert both.x.shape[0] == len(both.group) == len(both.cond["text"]) == 8
    replay = replay_all(policy, sampler, both)
    torch.testing.assert_close(
        replay.logp.detach(), torch.cat([first.logp, second.logp]), rtol=0, atol=1e-6
    )


def test_a_few_updates_make_rewarded_transitions_likelier(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 4, CFG(2.0))
    traj = roll(policy, sampler)
    adv = torch.tensor([1.0, -1.0, 1.5, -1.5])
    optimizer = torch.optim.Adam(policy.trainable, lr=1e-3)

    for _ in range(3):
        loss = Clipped(clip=50)(replay_all(policy, sampler, traj), adv)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()

    change = replay_all(policy, sampler, traj).logp.detach() - traj.logp
    assert (adv * change.mean(1)).mean() > 0


def test_log_density_is_that_of_the_stored_transition(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 4, NoGuidance())
    traj = roll(policy, sampler)
    t = traj.t[2].expand(4)
    s = traj.t[3].expand(4)
    x0 = policy.predict(traj.x[:, 2], t, traj.cond, NoGuidance())
    transition = DDIM()(traj.x[:, 2], x0, policy.schedule.level(t), policy.schedule.level(s))
    torch.testing.assert_close(kernels.log_prob(transition, traj.x[:, 3]), traj.logp[:, 2])
