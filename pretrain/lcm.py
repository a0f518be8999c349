"""``zoo:emoji-lcm``: the generator distilled into a latent consistency model, pictures in two to eight calls.

``python -m pretrain.lcm --minutes 30``. Latent consistency distillation (arXiv 2310.04378): with the guidance weight
drawn anew for each image and given to the network as an input, the consistency function f at time t shall equal the
averaged network's f one step of the teacher's guided DDIM solver further down, 20 of 1000 timesteps. Huber loss.
"""

from __future__ import annotations

import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn

from burnish.schedule import Schedule
from pretrain import loop
from pretrain.unet import PROMPTS, batches, load, pool_arguments, scheduler

SOLVER = 50  # steps of the teacher's solver
WEIGHTS = (2.0, 8.0)  # range of the guidance weight, as diffusers counts it
TARGET = 0.95  # decay of the averaged network that gives the targets
HUBER = 1e-3
WIDTH = 64  # numbers that tell the network its guidance weight


def student_of(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """The teacher's weights with one more input, silent at first."""
    student = UNet2DConditionModel.from_config({**teacher.config, "time_cond_proj_dim": WIDTH})
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    if missing != ["time_embedding.cond_proj.weight"] or unexpected:
        raise ValueError(f"the teacher is another network: {missing}, {unexpected}")
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student


def solve(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The deterministic DDIM step from ``t`` to ``s`` (B,) with a guess of ``x0``."""
    now, then = schedule.level(t, x.device), schedule.level(s, x.device)
    noise = (x - now.alpha.float() * x0) / now.sigma.float()
    return then.alpha.float() * x0 + then.sigma.float() * noise


def main() -> None:
    parser = loop.arguments(__doc__, minutes=30, batch=64, lr=3e-4)
    pool_arguments(parser)
    parser.add_argument("--warm", action="store_true", help="the teacher is the package's generator, not build/sd's")
    options = parser.parse_args()
    device = torch.device(options.device)
    vae, words, text, teacher = load(options.build, options.warm, device)
    if not options.warm:
        teacher = UNet2DConditionModel.from_pretrained(options.build / "sd" / "unet", dtype=torch.float32).to(device)
    teacher.requires_grad_(False)
    student, target = student_of(teacher), student_of(teacher)
    for network in (teacher, student, target):
        network.to(device, memory_format=torch.channels_last)
        if device.type == "cpu":
            network.set_attn_processor(AttnProcessor())
    noise_schedule = scheduler()
    lcm = LCMScheduler.from_config(noise_schedule.config, original_inference_steps=SOLVER)
    diffusion, consistency = Schedule.of(noise_schedule), Schedule.of(lcm)
    pipe = LatentConsistencyModelPipeline(
        vae, text, words, student, lcm, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        nothing = text(words([""], padding="max_length", return_tensors="pt").input_ids.to(device))[0]
    stride = len(diffusion.alpha) // SOLVER

    def f(network: UNet2DConditionModel, x: Tensor, t: Tensor, states: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            out = network(x, t.to(device), states, timestep_cond=weight).sample
        return consistency.x0(x, t, out)

    def loss_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        x0, states = batch
        t = torch.randint(1, SOLVER + 1, (len(x0),)) * stride - 1
        s = (t - stride).clamp(min=0)
        level = diffusion.level(t, device)
        x = level.alpha.float() * x0 + level.sigma.float() * torch.randn_like(x0)
        x = x.to(memory_format=torch.channels_last)
        weight = torch.empty(len(x0)).uniform_(*WEIGHTS)
        embedding = pipe.get_guidance_scale_embedding(weight - 1, embedding_dim=WIDTH).to(device)
        with torch.no_grad():
            with torch.autocast(device.type, torch.bfloat16):
                both = torch.cat([nothing.expand_as(states).to(states), states])
                v = teacher(torch.cat([x, x]), torch.cat([t, t]).to(device), both).sample
            without, with_prompt = v.float().chunk(2)
            guided = without + weight.to(device).view(-1, 1, 1, 1) * (with_prompt - without)
            y = solve(diffusion, x, diffusion.x0(x, t, guided), t, s).to(memory_format=torch.channels_last)
            wanted = f(target, y, s, states, embedding)
            torch._foreach_lerp_(list(target.parameters()), list(student.parameters()), 1 - TARGET)
        error = f(student, x, t, states, embedding) - wanted
        return ((error**2 + HUBER**2).sqrt() - HUBER).mean(), {"square": error.detach().square().mean().item()}

    def picture() -> Image.Image:
        rows = []
        for steps in (2, 4, 8):
            with torch.autocast(device.type, torch.bfloat16):
                rows.append(
                    pipe(
                        list(PROMPTS[:16]),
                        num_inference_steps=steps,
                        guidance_scale=4.0,
                        generator=torch.Generator().manual_seed(0),
                        output_type="pt",
                    ).images
                )
        return loop.grid(torch.cat(rows), 16)

    loop.train(
        "lcm",
        student,
        batches(vae, words, text, options, device, drop=0.0),
        loss_of,
        options,
        picture=picture,
        finish=lambda: pipe.save_pretrained(options.build / "lcm" / "model"),
        decay=0.995,
        weight_decay=0.0,
    )


if __name__ == "__main__":
    main()
