"""The policy: a diffusion model as "x0 given (x, t, cond)", with the weights that learn.

A LoRA adapter or the whole network learns. Its weights are float32 always; `dtype` is the
precision of what is frozen and of the arithmetic (autocast), the same while sampling and while
training. Dropout is off always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.diffusion import lora, lora_file
from burnish.diffusion.control import CONTROL_KEYS, control_images
from burnish.diffusion.families import family_of, skip_layers
from burnish.diffusion.family import (
    CONTROLNET,
    LARGE_IMAGE,
    SMALL_IMAGES_AT_ONCE,
    Family,
    end_dropout,
    sides_of,
)
from burnish.diffusion.frozen_linear import computing_device, offload_weights
from burnish.diffusion.loading import (
    attach_controlnet,
    attach_vae,
    choose_device,
    load_pipeline,
    place_parts,
)
from burnish.diffusion.policy_settings import DTYPES, check_settings
from burnish.diffusion.prompt_encoder import PromptEncoder
from burnish.diffusion.quantization import quantization_of, quantize
from burnish.diffusion.schedule import Flow, Schedule, on_device, read_schedule
from burnish.diffusion.sharding import copies_held, shard
from burnish.diffusion.weights import (
    TrainableWeights,
    all_weights,
    called_networks,
    copy_weights,
    enable_gradient_checkpointing,
    prepare_networks,
    read_adapters,
    trainable_networks,
)
from burnish.types import Cond, Guidance, Prompt

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class Policy(TrainableWeights):
    """A generator that can be sampled and trained. Made by `Policy.load`.

    Attributes:
        pipe: the diffusers pipeline, usable as it is.
        schedule: its noise schedule.
        has_controlnet: True if it has a ControlNet, so that prompts need a control image.
        latent_shape: (C, h, w).
        latent_pixel: the side in pixels of what one latent pixel stands for.
        trainable: the parameters that learn, float32; empty with `train="none"`.
        named_trainable: the same by name.
        device: where the network computes.
        dtype: the precision it computes in.
        quantization: how its frozen weights are stored: "int8", "nf4", or "" as `dtype` says.
        train: "lora", "full" or "none".
        prompt_encoder: its text encoders, with what they returned; `check` warns of cut prompts,
            `free` takes the text encoders out of memory.
        takes_weight: True if the network has an input for the guidance weight ("embedded").
        lora_texts: the text encoders that a LoRA changes and that do not learn, by the key of the
            configuration that names it ("model.fused_lora", "model.adapter").
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        train: str,
        dtype: torch.dtype,
        initial: list[Tensor] | None = None,
        decode_at_once: int = 0,
        trainable_parts: str = "",
        text_layers: Mapping[str, Tensor] | None = None,
        prompt_encoder: PromptEncoder | None = None,
    ) -> None:
        """Wrap a pipeline that is ready to be sampled and trained; see `Policy.load`.

        Args:
            pipe: the diffusers pipeline.
            family: its family.
            train: "lora", "full" or "none".
            dtype: the precision of the arithmetic.
            initial: with "full", a copy of the weights before training, in the order of
                `trainable`.
            decode_at_once: images decoded at a time; 0: as their size suggests.
            trainable_parts: "controlnet", "both", or "" for the model's own network.
            text_layers: a LoRA's layers in the text encoders, which do not learn.
            prompt_encoder: that has encoded prompts already; None: a new one.
        """
        super().__init__(pipe, family, train, trainable_parts, initial, text_layers)
        self.dtype = dtype
        self.schedule: Schedule = read_schedule(pipe.scheduler, family.grid(pipe))
        self.latent_shape = family.latent_shape(pipe)
        self.latent_pixel = family.latent_pixel(pipe)
        self.takes_weight = family.weight_width(pipe) is not None
        self.has_controlnet = hasattr(pipe, CONTROLNET)
        self.lora_texts: dict[str, list[str]] = {}
        self.device = computing_device(family.network_of(pipe))
        self.quantization = quantization_of(family.network_of(pipe))
        self.prompt_encoder = (
            PromptEncoder(pipe, family, self.device) if prompt_encoder is None else prompt_encoder
        )
        self._decode_at_once = decode_at_once

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
        size: int | Sequence[int] = 0,
        config: str = "",
        vae: str = "",
        clip_skip: int = 0,
        quantization: str = "",
        offload: bool = False,
        text_encoder: str = "keep",
        sharded: bool = False,
        encode_first: Callable[[PromptEncoder], None] | None = None,
    ) -> Policy:
        """Return a policy of `zoo:NAME`, a folder, a hub id, or a diffusers pipeline in memory.

        Args:
            model: what to load, also a checkpoint in a single file. A pipeline is taken over:
                moved, cast, frozen and given the adapter as it is.
            train: "lora", "full" or "none" (evaluation only).
            rank: of a new LoRA adapter.
            alpha: its scale times its rank.
            targets: ends of the names of the layers that get one.
            dtype: "float32", "float16" or "bfloat16".
            device: "auto" takes the GPU where there is one.
            gradient_checkpointing: less memory, a third more time.
            decode_at_once: images decoded at a time; 0 takes one if they are large, and
                `SMALL_IMAGES_AT_ONCE` otherwise.
            revision: of the hub.
            variant: of the weight files, such as "fp16".
            scheduler: "lcm" samples it as a consistency model; "" as it comes.
            fused_lora: a LoRA (folder or hub id) that becomes part of the model, also of
                `reference()`: an LCM-LoRA.
            adapter: a LoRA (folder, file or hub id) to start from, such as `save_adapter` wrote;
                its own strength counts, whatever `alpha` says.
            reference: with "full", keep a copy of the first weights for `reference()`; an adapter
                needs none.
            controlnet: `zoo:NAME`, a folder or a hub id of a ControlNet that the images follow.
            trainable_parts: "controlnet", "both", or "" for the model's own network.
            size: of the images' sides in pixels, or their width and height; 0 as the model was made
                for.
            config: of a model in a single file: the model whose configuration it has.
            vae: a folder, a file or a hub id of another autoencoder.
            clip_skip: layers of the text encoder that are left out, as diffusers counts them.
            quantization: "int8" or "nf4" stores the network's frozen weights in so few bits, with a
                fused LoRA in them; needs bitsandbytes.
            offload: keep the weights of the network's linear layers in main memory, and bring each
                to the device for every product.
            text_encoder: "keep" has the text encoders on the device; "cpu" leaves them in main
                memory, where they encode.
            sharded: each of the processes of `torch.distributed` keeps a part of the network's
                frozen weights, with "full" of all; they call the policy equally often, together.
            encode_first: called with the prompt encoder while only the text encoders are on the
                device, to encode prompts and `free` these.

        Raises:
            FileNotFoundError: there is no such model, or it or the adapter misses a part, which is
                named.
            ValueError: a setting or a file is wrong; the message names it.

        Example:
            >>> policy = Policy.load("zoo:emoji-sd")                                # doctest: +SKIP
            >>> policy.encode([Prompt("a fox")])["text"].shape                      # doctest: +SKIP
        """
        check_settings(
            train, rank, alpha, dtype, decode_at_once, quantization, offload, device, sharded
        )
        frozen_dtype = DTYPES[dtype]
        trained_dtype = torch.float32 if train == "full" else frozen_dtype

        target = choose_device(device)
        waits = _waits(target, bool(quantization) or offload or sharded, text_encoder, encode_first)
        pipe = load_pipeline(
            model,
            dtype=frozen_dtype,
            network_dtype=frozen_dtype if trainable_parts == "controlnet" else trained_dtype,
            device="cpu" if waits else target,
            waits=waits,
            revision=revision,
            variant=variant,
            config=config,
        )
        family = family_of(type(pipe).__name__)
        if vae:
            attach_vae(pipe, vae, frozen_dtype, variant)
        _check_network(pipe, family, dtype, sharded)

        fused_texts = _change(pipe, family, model, size, scheduler, fused_lora, clip_skip)
        if controlnet:
            control_dtype = trained_dtype if trainable_parts else frozen_dtype
            pipe = attach_controlnet(pipe, controlnet, control_dtype, variant)
            family = family_of(type(pipe).__name__)

        _store_weights(family.network_of(pipe), quantization, offload, target)
        prompt_encoder = PromptEncoder(pipe, family, target)
        end_dropout(pipe)
        if waits:
            _place(pipe, family, target, text_encoder, encode_first, prompt_encoder, sharded)

        trainable = trainable_networks(pipe, family, trainable_parts)
        prepare_networks(pipe, family, trainable, train, rank, alpha, targets, target)
        initial = copy_weights(trainable) if train == "full" and reference else None
        text = {} if adapter is None else read_adapters(pipe, family, trainable, adapter, train)

        if gradient_checkpointing:
            enable_gradient_checkpointing(pipe, family)
        end_dropout(pipe)  # of the adapter's layers too

        if sharded:
            shard(called_networks(pipe, family), target, train)
            initial = initial and copies_held(initial, all_weights(trainable))

        parts = (initial, decode_at_once, trainable_parts, text, prompt_encoder)
        policy = cls(pipe, family, train, frozen_dtype, *parts)
        policy.lora_texts = _lora_texts(fused_texts, text)
        return policy

    def set_lora_scale(self, strength: float) -> None:
        """Multiply the adapter's effect, for sampling; see `TrainableWeights`."""
        super().set_lora_scale(strength)
        if not self.prompt_encoder.freed:  # then no layer of a text encoder has changed
            self.prompt_encoder.clear()

    def resize(self, size: int | Sequence[int]) -> None:
        """Give the images another size from now on.

        Args:
            size: of the sides in pixels, or width and height.

        Raises:
            ValueError: the model has no images of that size, or its text encoders are freed.
        """
        if self.prompt_encoder.freed:
            raise ValueError("prompts were encoded for images of one size: resize before")

        self._family.resize(self.pipe, sides_of(size))
        self.latent_shape = self._family.latent_shape(self.pipe)
        # the size of an image may be a part of what is remembered of a prompt
        self.prompt_encoder.clear()

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        """Return the prompts as the network reads them, one row a prompt.

        Each text is encoded once and remembered. With a ControlNet, the condition also has each
        prompt's control image (see `control`).

        Args:
            prompts: one a row.

        Raises:
            ValueError: a prompt has no control image that can be read.
        """
        cond = self.prompt_encoder.encode([prompt.generator_text for prompt in prompts])

        if self.has_controlnet:
            _, height, width = self.latent_shape
            side = self.latent_pixel
            images = control_images(prompts, height * side, width * side)
            cond["control"] = images.to(self.device)

        return cond

    @torch.no_grad()
    def null(self, n: int, text: str = "") -> Cond:
        """Return `n` rows of what guidance uses in place of a prompt, encoded once.

        Args:
            n: the number of rows.
            text: a negative prompt; "": the empty text, or what the model was trained with.
        """
        return self.prompt_encoder.null(n, text)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Return the starts (n, *latent) float32 of `n` trajectories, drawn on the CPU.

        Args:
            n: the number of trajectories.
            generator: of the CPU; the noise comes from it.
        """
        return torch.randn((n, *self.latent_shape), generator=generator).to(self.device)

    def predict(self, x: Tensor, t: Tensor, cond: Cond, guidance: Guidance) -> Tensor:
        """Return the network's guided prediction of x0, (B, *latent) float32.

        Args:
            x: (B, *latent) noisy latents.
            t: (B,) their times, int64, on the CPU.
            cond: B encoded prompts.
            guidance: the way in which the network is called.

        Raises:
            ValueError: it is not the one that this network takes.
        """
        outputs: list[Tensor] = []

        def raw(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            _check_weight(cond, self.takes_weight)
            outputs.append(self._family.call(self.pipe, x.to(self.dtype), t, cond))
            return outputs[-1]

        # encoded outside of autocast, like every other prompt
        null = self.null(len(x), guidance.negative)
        # without the prompt, not without control
        null |= {name: cond[name] for name in CONTROL_KEYS if name in cond}

        # of a device without memory the CPU's autocast stands for its own (`allocations`)
        kind = "cpu" if self.device.type == "meta" else self.device.type
        half = self.dtype != torch.float32
        # what autocast remembers of weights would outlive their coming together
        with torch.autocast(kind, self.dtype, enabled=half, cache_enabled=not self.sharded):
            out = guidance(raw, x, on_device(t, self.device), cond, null)

        if self._family.after_guidance is not None and out is not outputs[-1]:
            prompt_out = outputs[-1][-len(x) :]  # the prompts are the last rows of a call
            out = self._family.after_guidance(out, prompt_out)

        return self.schedule.x0(x, t, out)

    def decode(self, latent: Tensor, gradient: bool = False) -> Tensor:
        """Return the images (B, 3, H, W) float32 in [0, 1] of latents (B, *latent).

        Args:
            latent: finished latents, as many as there are; they are decoded a few at a time.
            gradient: keep what the gradient to the latents needs, which is a lot of memory: give
                no more than `decoded_at_once` of them.

        Raises:
            RuntimeError: they are not finite; as black images they would please many a reward.
        """
        chunks = latent.split(decoded_at_once(self))
        with torch.set_grad_enabled(gradient):
            images = torch.cat([self._family.decode(self.pipe, chunk) for chunk in chunks])

        if not images.isfinite().all():
            raise RuntimeError(
                "the decoded images are not finite: the weights have diverged (lower "
                "optimizer.lr), or the decoder overflows in float16 (set model.dtype to bfloat16 "
                "or float32)"
            )

        return images

    @torch.no_grad()
    def embed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents (B, *latent) float32 of images (B, 3, H, W) in [0, 1].

        They are drawn from the autoencoder's posterior.

        Args:
            images: on any device.
            generator: of the CPU; the draw comes from it.
        """
        return self._family.embed(self.pipe, images, generator)


def _lora_texts(fused: list[str], adapter: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the text encoders that a merged LoRA and an adapter change, where they do."""
    found = {"model.fused_lora": fused, "model.adapter": lora_file.text_parts(adapter)}
    return {key: parts for key, parts in found.items() if parts}


def _change(
    pipe: Any,
    family: Family,
    model: object,
    size: int | Sequence[int],
    scheduler: str,
    fused_lora: str | Path | None,
    clip_skip: int,
) -> list[str]:
    """Change a pipeline as its user wants it: see `Policy.load`.

    Returns:
        The text encoders that the merged LoRA changes.
    """
    if size:
        family.resize(pipe, sides_of(size))
    if scheduler == "lcm":
        _make_consistent(pipe, model)
    texts = lora.merge_lora(pipe, fused_lora) if fused_lora is not None else []
    if clip_skip:
        skip_layers(pipe, clip_skip)
    return texts


def _store_weights(network: Any, quantization: str, offload: bool, device: torch.device) -> None:
    """Store a network's frozen weights in few bits, or in main memory, or both."""
    if quantization:
        quantize(network, quantization, device)
    if offload:
        offload_weights(network, device)


def _waits(
    device: torch.device,
    changed: bool,
    text_encoder: str,
    encode_first: Callable[[PromptEncoder], None] | None,
) -> bool:
    """Return whether a pipeline waits in main memory, and comes to the device part by part.

    What has no memory cannot wait in any.

    Args:
        device: on which the network will compute.
        changed: the network comes to the device in another form.
        text_encoder: see `Policy.load`.
        encode_first: the same.
    """
    if device.type == "meta":
        return False
    return changed or encode_first is not None or text_encoder == "cpu"


def _place(
    pipe: Any,
    family: Family,
    device: torch.device,
    text_encoder: str,
    encode_first: Callable[[PromptEncoder], None] | None,
    prompt_encoder: PromptEncoder,
    sharded: bool,
) -> None:
    """Bring a pipeline's parts to the device: first the text encoders, which may encode then.

    Networks that are to be sharded stay where they are.
    """
    if text_encoder != "cpu":
        place_parts(pipe, device, texts=True)
    if encode_first is not None:
        encode_first(prompt_encoder)
    place_parts(pipe, device, texts=False, left=called_networks(pipe, family) if sharded else ())


def decoded_at_once(policy: Policy) -> int:
    """Return how many images a policy decodes at a time: 1 where they are large."""
    _, height, width = policy.latent_shape
    pixels = height * width * policy.latent_pixel**2
    at_once = 1 if pixels > LARGE_IMAGE else SMALL_IMAGES_AT_ONCE
    return policy._decode_at_once or at_once


def _make_consistent(pipe: Any, model: object) -> None:
    """Let a diffusion model be sampled as a consistency model.

    Raises:
        ValueError: it is a flow.
    """
    from diffusers import LCMScheduler

    if isinstance(read_schedule(pipe.scheduler), Flow):
        raise ValueError(
            f'model.scheduler = "lcm" makes a consistency model of a diffusion model, and '
            f"{model} is a flow; leave it out"
        )
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)


def _check_weight(cond: Cond, takes_weight: bool) -> None:
    """Raise ValueError if a network lacks its guidance weight, or gets one without use for it."""
    if "guidance" in cond and not takes_weight:
        raise ValueError(
            "this network has no input for a guidance weight, so guidance 'embedded' cannot be "
            "used: take 'cfg' or 'none'"
        )
    if "guidance" not in cond and takes_weight:
        raise ValueError(
            "this network takes its guidance weight as an input: use guidance 'embedded'"
        )


def _check_network(pipe: Any, family: Family, dtype: str, sharded: bool) -> None:
    """Raise ValueError if the network's sums overflow in float16, or if it cannot be sharded."""
    names = (name for name, _ in family.network_of(pipe).named_modules())
    if sharded and any("_orig_mod" in name for name in names):
        raise ValueError(
            "sharded = True divides the layers' weights, and torch.compile has made one program of "
            "them: give a pipeline that is not compiled"
        )
    if dtype == "float16" and not family.float16:
        raise ValueError(
            f'model.dtype = "float16" overflows in the network of a {type(pipe).__name__}; use '
            '"bfloat16" or "float32"'
        )
