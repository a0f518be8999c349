"""The policy: a diffusion model as "x0 given (x, t, cond)", with the weights that learn and the
ways to set them aside.

What learns is a LoRA adapter or the whole network. Its weights are float32 always; ``dtype`` is the
precision of what is frozen and of the arithmetic (autocast), the same while sampling and while
training. Dropout is off always.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.diffusion import control, lora
from burnish.diffusion.cpu import optimize_for_cpu
from burnish.diffusion.families import LARGE, SMALL_ONES, Family, family_of
from burnish.diffusion.loading import attach_controlnet, load_pipeline, resize
from burnish.diffusion.schedule import Schedule
from burnish.diffusion.shared_trunk import share_guidance_trunk
from burnish.types import Cond, Guidance, Prompt

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXTS_KEPT = 1024
"""Encoded prompts that are remembered; in float32 one takes 0.24 MB of Stable Diffusion 1.x, 0.64
MB of SDXL.
"""


class Policy:
    """A generator that can be sampled and trained. Made by ``Policy.load``.

    Attributes:
        pipe: the diffusers pipeline, usable as it is.
        schedule: its noise schedule.
        has_controlnet: whether it has a ControlNet, so that prompts need a control picture.
        latent_shape: (C, h, w).
        trainable: the parameters that learn, float32; empty with ``train="none"``.
        device, dtype: where and in which precision the network computes.
        train: "lora", "full" or "none".
        takes_weight: whether the network has an input for the guidance weight: guidance "embedded".
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        train: str,
        dtype: torch.dtype,
        first: list[Tensor] | None = None,
        decode_at_once: int = 0,
        trainable_parts: str = "",
    ) -> None:
        """``first``: with "full", a copy of the weights before training, in the order of
        ``trainable``.
        """
        self.pipe = pipe
        self.train = train
        self.dtype = dtype
        self.schedule = Schedule.of(pipe.scheduler)
        self.latent_shape = family.latent_shape(pipe)
        self._family = family
        self._decode_at_once = decode_at_once
        network = getattr(pipe, family.network)
        self.takes_weight = getattr(network.config, "time_cond_proj_dim", None) is not None
        self.has_controlnet = hasattr(pipe, "controlnet")
        self.device = network.device
        self._learners = _learners(pipe, family, trainable_parts)
        self._whole: nn.Module = next(iter(self._learners.values()))

        if len(self._learners) > 1:
            self._whole = nn.ModuleDict(self._learners)

        self._named = {name: p for name, p in self._whole.named_parameters() if p.requires_grad}
        self.trainable = list(self._named.values())
        self._first = first
        self._switch = lora.AdapterSwitch(self._whole, self.trainable, first)
        self._texts: dict[str, Cond] = {}
        self._null: Cond = {}

    @classmethod
    def load(
        cls,
        model: str | Path | DiffusionPipeline,
        *,
        train: str = "lora",
        rank: int = 4,
        alpha: float = 4,
        targets: Sequence[str] = TARGETS,
        dtype: str = "float32",
        device: str | torch.device = "auto",
        gradient_checkpointing: bool = False,
        decode_at_once: int = 0,
        revision: str | None = None,
        variant: str | None = None,
        scheduler: str = "",
        fused_lora: str | Path | None = None,
        adapter: str | Path | None = None,
        reference: bool = False,
        controlnet: str = "",
        trainable_parts: str = "",
        size: int = 0,
    ) -> Policy:
        """A policy from ``zoo:NAME``, a pipeline's folder, a hub id, or a diffusers pipeline in
        memory.

        Args:
            model: what to load. A pipeline is taken over: moved, cast, frozen and given the adapter
                as it is.
            train: "lora", "full" or "none" (evaluation only).
            rank: of a new LoRA adapter.
            alpha: its scale times its rank.
            targets: ends of the names of the layers that get one.
            dtype: "float32", "float16" or "bfloat16".
            device: "auto" takes the GPU where there is one.
            gradient_checkpointing: less memory, a third more time.
            decode_at_once: pictures decoded at a time; 0 takes one if they are large,
                ``SMALL_ONES`` otherwise.
            revision: of the hub.
            variant: of the weight files, such as "fp16".
            scheduler: "lcm" samples it as a consistency model; "" as it comes.
            fused_lora: a LoRA (folder or hub id) that becomes part of the model, also of
                ``reference()``: an LCM-LoRA.
            adapter: a folder that ``save_adapter`` wrote, to start from.
            reference: with "full", keep a copy of the first weights for ``reference()``; an adapter
                needs none.
            controlnet: ``zoo:NAME``, a folder or a hub id of a ControlNet that the pictures follow.
            trainable_parts: "controlnet", "both", or "" for the model's own network.
            size: of the pictures' sides in pixels; 0 as the model was made for.

        Raises:
            FileNotFoundError: there is no such model, or it or the adapter misses a part, which is
                named.
            ValueError: a setting or a file is wrong; the message names it.

        Example:
            >>> policy = Policy.load("zoo:emoji-sd")                                      # doctest: +SKIP
            >>> policy.encode([Prompt("a fox")])["text"].shape                           # doctest: +SKIP
        """
        _check(train, rank, alpha, dtype, decode_at_once)
        whole = torch.float32 if train == "full" else DTYPES[dtype]
        pipe = load_pipeline(
            model,
            dtype=DTYPES[dtype],
            network_dtype=DTYPES[dtype] if trainable_parts == "controlnet" else whole,
            device=_device(device),
            revision=revision,
            variant=variant,
        )

        if size:
            resize(pipe, size)

        if scheduler == "lcm":
            from diffusers import LCMScheduler

            pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)

        if fused_lora is not None:
            lora.merge_lora(pipe, fused_lora)

        if controlnet:
            pipe = attach_controlnet(
                pipe, controlnet, whole if trainable_parts else DTYPES[dtype], pipe.unet.device
            )

        family = family_of(type(pipe).__name__)
        learners = _learners(pipe, family, trainable_parts)
        _open(pipe, family, learners, train, rank, alpha, targets)
        keep = train == "full" and reference
        first = (
            [p.detach().clone() for part in learners.values() for p in part.parameters()]
            if keep
            else None
        )

        if adapter is not None:
            for name in learners:
                lora.read_adapter(pipe, name, _home(Path(adapter), name, family), train, alpha)

        if gradient_checkpointing:
            for name in (family.network, "controlnet"):
                if part := getattr(pipe, name, None):
                    part.enable_gradient_checkpointing()

        for part in _networks(pipe):
            part.eval()  # the adapter's layers too

        return cls(pipe, family, train, DTYPES[dtype], first, decode_at_once, trainable_parts)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        """The prompts as the network reads them, one row a prompt; each text is encoded once and
        remembered.

        One by one, so that a text's states do not depend, in the last bit, on its neighbours. With
        a ControlNet, also each prompt's control picture (see ``control``).
        """
        rows = [self._states(prompt.generator_text) for prompt in prompts]
        while len(self._texts) > TEXTS_KEPT:
            del self._texts[next(iter(self._texts))]

        cond = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

        if self.has_controlnet:
            _, height, width = self.latent_shape
            scale = self.pipe.vae_scale_factor
            cond["control"] = control.control_images(prompts, height * scale, width * scale).to(
                self.device
            )

        return cond

    def _states(self, text: str) -> Cond:
        if text not in self._texts:
            self._texts[text] = self._family.encode(self.pipe, [text])
        return self._texts[text]

    @torch.no_grad()
    def null(self, n: int, text: str = "") -> Cond:
        """What guidance asks in place of a prompt, for ``n`` rows: an empty text, or what the model
        was trained with.

        With ``text`` a negative prompt. Encoded once and remembered.
        """
        self._null = self._null or self._family.null(self.pipe)
        row = self._states(text) if text else self._null
        return {name: value.expand(n, *value.shape[1:]) for name, value in row.items()}

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Where ``n`` trajectories start: (n, *latent) float32, drawn from the CPU ``generator``."""
        return torch.randn((n, *self.latent_shape), generator=generator).to(self.device)

    def predict(self, x: Tensor, t: Tensor, cond: Cond, guidance: Guidance) -> Tensor:
        """The network's guided guess of x0, (B, *latent) float32, at ``x`` and times ``t`` (B,)
        int64 on the CPU.
        """

        def raw(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return self._family.call(self.pipe, x.to(self.dtype), t, cond)

        # encoded outside of autocast, like every other prompt
        null = self.null(len(x), guidance.negative)
        # without the prompt, not without control
        null |= {name: cond[name] for name in control.KEYS if name in cond}

        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = guidance(raw, x, t.to(self.device, non_blocking=True), cond, null)

        return self.schedule.x0(x, t, out)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1].

        Raises:
            RuntimeError: they are not finite; as black pictures they would please many a reward.
        """
        at_once = self._decode_at_once or (1 if latent[0, 0].numel() > LARGE else SMALL_ONES)
        images = torch.cat(
            [self._family.decode(self.pipe, chunk) for chunk in latent.split(at_once)]
        )

        if not images.isfinite().all():
            raise RuntimeError(
                "the decoded images are not finite: the weights have diverged (lower optimizer.lr), or the decoder "
                "overflows in float16 (set model.dtype to bfloat16 or float32)."
            )

        return images

    @torch.no_grad()
    def embed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (B, *latent) float32 of images (B, 3, H, W) in [0, 1]: drawn from the
        autoencoder's posterior.
        """
        return self._family.embed(self.pipe, images, generator)

    def reference(self) -> AbstractContextManager[None]:
        """Within it the network is the one before training."""
        if self.train == "full" and self._first is None:
            raise RuntimeError(
                "a fully trained policy has a reference only if it was loaded with reference=True."
            )
        return self._switch.at("reference")

    def merged(self) -> AbstractContextManager[None]:
        """Within it the adapter costs nothing and cannot be trained. The base weights come back bit
        for bit.
        """
        return self._switch.at("merged")

    def set_lora_scale(self, strength: float) -> None:
        """Multiplies the adapter's effect, for drawing: a dial from the untrained model (0) to the
        trained one (1).

        Raises:
            ValueError: there is no adapter, because the whole network was trained.
        """
        if self.train == "full":
            raise ValueError(
                "a strength other than 1 needs a LoRA adapter; this model was trained whole."
            )
        lora.set_lora_scale(self._whole, strength)

    def state(self) -> dict[str, Tensor]:
        """A copy of what was learned by parameter name, float32 on the CPU."""
        return {
            name: p.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, p in self._named.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``state`` gave; raises ValueError and changes nothing if it does not fit."""
        lora.copy_state(self._named, state, "the checkpoint")

    def save_adapter(self, folder: str | Path) -> None:
        """Writes what was learned: a LoRA for diffusers' ``pipe.load_lora_weights(folder)``, or the
        whole network.

        What a ControlNet learned goes to ``folder/controlnet``, for ``ControlNetModel``'s
        ``load_lora_adapter`` or ``from_pretrained``.
        """
        with lora.publishing(Path(folder)) as made:
            for name in self._learners:
                home = _home(made, name, self._family)
                home.mkdir(exist_ok=True)
                lora.write_adapter(self.pipe, name, home, whole=self.train == "full")


def _check(train: str, rank: int, alpha: float, dtype: str, decode_at_once: int) -> None:
    if train not in ("lora", "full", "none"):
        raise ValueError(f"model.train must be 'lora', 'full' or 'none', not '{train}'.")
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype must be one of {', '.join(DTYPES)}, not '{dtype}'.")
    if rank < 1 or not alpha > 0:
        raise ValueError(
            f"model.rank must be at least 1 and model.alpha > 0, not {rank} and {alpha}."
        )
    if decode_at_once < 0:
        raise ValueError(
            f"model.decode_at_once must be 0 (as their size suggests) or more, not {decode_at_once}."
        )


def _learners(pipe: Any, family: Family, trainable_parts: str) -> dict[str, nn.Module]:
    """The parts of the pipeline that learn, by name."""
    names = {
        "": (family.network,),
        "controlnet": ("controlnet",),
        "both": (family.network, "controlnet"),
    }

    if trainable_parts not in names:
        raise ValueError(
            f"model.trainable_parts must be 'controlnet', 'both' or '' (the model's own), not '{trainable_parts}'."
        )
    if trainable_parts and not hasattr(pipe, "controlnet"):
        raise ValueError(
            f"model.trainable_parts = '{trainable_parts}' needs a ControlNet: set model.controlnet."
        )

    return {name: getattr(pipe, name) for name in names[trainable_parts]}


def _home(folder: Path, part: str, family: Family) -> Path:
    """Where in an adapter's folder what ``part`` learned lies."""
    return folder if part == family.network else folder / part


def _open(
    pipe: Any,
    family: Family,
    learners: Mapping[str, nn.Module],
    train: str,
    rank: int,
    alpha: float,
    targets: Sequence[str],
) -> None:
    """Gives the learners what learns in them, and nothing else anything; layers that are fast and
    precise.
    """
    if family.upcast and pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
        # it overflows in float16; the stock pipeline does the same, picture by picture
        pipe.vae.to(torch.float32)
    for part in _networks(pipe):
        part.requires_grad_(False)

    for learner in learners.values():
        if train == "lora":
            lora.add_lora(learner, rank, alpha, targets)
        elif train == "full":
            learner.requires_grad_(True)
            # a ControlNet that came with its pipeline may be in half precision
            for parameter in learner.parameters():
                parameter.data = parameter.data.float()

    network = getattr(pipe, family.network)
    for module in (network, pipe.vae, getattr(pipe, "controlnet", None)):
        if module is not None:
            optimize_for_cpu(module, family.latent_shape(pipe))

    share_guidance_trunk(network)


def _networks(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def _device(name: str | torch.device) -> torch.device:
    """With "auto" this process's GPU (torchrun numbers them), or the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
