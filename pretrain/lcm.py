"""`zoo:emoji-lcm`: the generator distilled into a latent consistency model.

It makes images in two to eight network calls.

`python -m pretrain.lcm --minutes 27`. Latent consistency distillation (arXiv 2310.04378): with
the guidance weight drawn anew for each image and given to the network as an input, the consistency
function f at time t shall equal the averaged network's f one step of the teacher's guided DDIM
solver later, 20 of 1000 timesteps. Huber loss.

`zoo:emoji-lcm-128` draws images of 128 pixels. Its teacher is `build/sd-128`, which `pretrain.unet`
makes, and which is not in the package; some minutes of a GPU:
`python -m pretrain.lcm --warm --size 128 --minutes 3.2 --batch 256 --lr 5e-4`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn

from burnish.diffusion.schedule import Schedule, read_schedule
from burnish.zoo.scenes import SIZE
from pretrain import loop
from pretrain.unet import PROMPTS, batches, load, pool_arguments, scheduler

TIMESTEPS = 1000  # of the diffusion model's training
SOLVER = 50  # steps of the teacher's solver
WEIGHTS = (2.0, 8.0)  # range of the guidance weight, as diffusers counts it
TARGET = 0.95  # decay of the averaged network that gives the targets
HUBER = 1e-3
WIDTH = 64  # numbers in the embedding of the guidance weight


def student_of(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of the teacher with one more input, which has no effect at first."""
    student = UNet2DConditionModel.from_config({**teacher.config, "time_cond_proj_dim": WIDTH})
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)

    if missing != ["time_embedding.cond_proj.weight"] or unexpected:
        raise ValueError(f"the teacher is another network: {missing}, {unexpected}")

    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student


def solve(schedule: Schedule, x: Tensor, x0_pred: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the deterministic DDIM step from time `t` (B,) to `s` (B,)."""
    level_t = schedule.level(t, x.device)
    level_s = schedule.level(s, x.device)
    noise = (x - level_t.alpha.float() * x0_pred) / level_t.sigma.float()
    return level_s.alpha.float() * x0_pred + level_s.sigma.float() * noise


@dataclass(frozen=True)
class Distillation:
    """The teacher, the network that learns, and its running average, which gives the targets."""

    pipe: LatentConsistencyModelPipeline
    teacher: UNet2DConditionModel
    target: UNet2DConditionModel
    diffusion: Schedule
    consistency: Schedule
    null_states: Tensor  # text states of the empty prompt (1, tokens, width)

    @property
    def student(self) -> UNet2DConditionModel:
        """The network that learns."""
        return self.pipe.unet

    def f(
        self, network: UNet2DConditionModel, x: Tensor, t: Tensor, states: Tensor, weight: Tensor
    ) -> Tensor:
        """Return the consistency function at `x`, float32; `weight` is embedded."""
        with loop.autocast(x.device):
            output = network(x, t.to(x.device), states, timestep_cond=weight).sample
        return self.consistency.x0(x, t, output)

    def guided(self, x: Tensor, t: Tensor, states: Tensor, weight: Tensor) -> Tensor:
        """Return the teacher's output with classifier-free guidance of `weight` (B,), float32."""
        with loop.autocast(x.device):
            both = torch.cat([self.null_states.expand_as(states).to(states), states])
            output = self.teacher(torch.cat([x, x]), torch.cat([t, t]).to(x.device), both).sample
        null, prompted = output.float().chunk(2)
        return null + weight.to(x.device).view(-1, 1, 1, 1) * (prompted - null)

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the Huber distance of f at t from the averaged network's f at s.

        Between t and s is one guided step of the teacher.
        """
        x0, states = batch
        stride = TIMESTEPS // SOLVER
        t = torch.randint(1, SOLVER + 1, (len(x0),)) * stride - 1
        s = (t - stride).clamp(min=0)
        level = self.diffusion.level(t, x0.device)
        x = level.alpha.float() * x0 + level.sigma.float() * torch.randn_like(x0)
        x = x.to(memory_format=torch.channels_last)
        weight = torch.empty(len(x0)).uniform_(*WEIGHTS)
        embedding = self.pipe.get_guidance_scale_embedding(weight - 1, embedding_dim=WIDTH)
        embedding = embedding.to(x0.device)

        with torch.no_grad():
            x0_pred = self.diffusion.x0(x, t, self.guided(x, t, states, weight))
            x_s = solve(self.diffusion, x, x0_pred, t, s).to(memory_format=torch.channels_last)
            expected = self.f(self.target, x_s, s, states, embedding)
            torch._foreach_lerp_(
                list(self.target.parameters()), list(self.student.parameters()), 1 - TARGET
            )

        error = self.f(self.student, x, t, states, embedding) - expected
        loss = ((error**2 + HUBER**2).sqrt() - HUBER).mean()
        return loss, {"square": error.detach().square().mean().item()}

    def preview(self) -> Image.Image:
        """Return images of sixteen prompts with two, four and eight network calls."""
        rows = []

        for steps in (2, 4, 8):
            with loop.autocast(self.student.device):
                output = self.pipe(
                    list(PROMPTS[:16]),
                    num_inference_steps=steps,
                    guidance_scale=4.0,
                    generator=torch.Generator().manual_seed(0),
                    output_type="pt",
                )

            rows.append(output.images)

        return loop.grid(torch.cat(rows), 16)


def prepare(options: argparse.Namespace, device: torch.device) -> Distillation:
    """Return all parts on the device, the student and its average equal to the teacher."""
    vae, tokenizer, text, teacher = load(options.build, options.warm, device)
    if not options.warm or options.size != SIZE:
        folder = options.build / loop.sized("sd", options.size) / "unet"
        teacher = UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32).to(device)

    student = student_of(teacher)
    target = student_of(teacher)

    for network in (teacher, student, target):
        network.to(device, memory_format=torch.channels_last)
        if device.type == "cpu":
            network.set_attn_processor(AttnProcessor())

    teacher.requires_grad_(False)
    ddim = scheduler()
    lcm = LCMScheduler.from_config(ddim.config, original_inference_steps=SOLVER)
    pipe = LatentConsistencyModelPipeline(
        vae,
        text,
        tokenizer,
        student,
        lcm,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)

    with torch.no_grad():
        ids = tokenizer([""], padding="max_length", return_tensors="pt").input_ids
        null_states = text(ids.to(device))[0]

    return Distillation(pipe, teacher, target, read_schedule(ddim), read_schedule(lcm), null_states)


def main() -> None:
    parser = loop.arguments(__doc__, minutes=27, batch=32, lr=4e-4)
    pool_arguments(parser)
    parser.add_argument(
        "--warm", action="store_true", help="the teacher is the package's generator, not build/sd's"
    )
    options = parser.parse_args()
    name = loop.sized("lcm", options.size)
    device = torch.device(options.device)
    job = prepare(options, device)
    loop.train(
        name,
        job.student,
        batches(job.pipe.vae, job.pipe.tokenizer, job.pipe.text_encoder, options, device, drop=0.0),
        job.loss,
        options,
        preview=job.preview,
        finish=lambda: job.pipe.save_pretrained(options.build / name / "model"),
        decay=0.995,
        weight_decay=0.0,
    )


if __name__ == "__main__":
    main()
