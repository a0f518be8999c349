"""`zoo:emoji-flow`: the flow model of the zoo, in Z-Image's architecture, at 128x128 pixels.

It works over the latents of `pretrain.flow_vae`; a small Qwen3 reads the captions and is trained
with it.

`python -m pretrain.flow --minutes 100`. Rectified flow: x_t = (1 - t) x0 + t noise, the network
predicts x0 - noise (Z-Image's sign), times are logit-normal, one caption in ten is replaced by the
empty one, EMA weights. Scenes are encoded once into a pool of latents that `python -m
pretrain.flow_pool` writes. Matrices of the blocks are trained by Muon, everything else by AdamW.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.models.attention_processor import Attention
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from burnish.zoo.scenes import Scenes
from pretrain import loop
from pretrain.flow_pool import read_pool
from pretrain.unet import DROP, PROMPTS

TOKENS = 32  # of a prompt: Z-Image pads to multiples of it
WIDTH = 128  # of the text encoder
SIDE = 16  # of the latents
SHIFT = 2.0  # of the sampling times: t -> shift t / (1 + (shift - 1) t)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def tokenizer() -> Qwen2Tokenizer:
    """Return a byte-level BPE in which each word of the captions is one token."""
    _, scenes = Scenes(0).draw(20000)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((scene.caption for scene in scenes), trainer)
    built = Qwen2Tokenizer(
        vocab=bpe.get_vocab(),
        merges=_merges(bpe),
        model_max_length=512,
        padding_side="right",
        additional_special_tokens=list(SPECIAL[1:]),
    )
    built.chat_template = TEMPLATE
    return built


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    """Return the merges of a byte-pair encoding in their order."""
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


def text_encoder(vocabulary: int) -> Qwen3Model:
    """Return a new text encoder; the pipeline reads what goes into its last layer."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            pad_token_id=0,
            eos_token_id=0,
            bos_token_id=None,
        )
    )


def transformer() -> ZImageTransformer2DModel:
    """Return a new network: 7.7 M parameters, 0.92 GFLOP a call with 32 text tokens."""
    return ZImageTransformer2DModel(
        in_channels=16,
        dim=256,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=WIDTH,
        axes_dims=[16, 24, 24],
        axes_lens=[576, 64, 64],
    )


class PlainAttention:
    """Z-Image's attention in real numbers and plain products: fast to train on a CPU.

    It takes rotations as Z-Image does, complex (B, N, D / 2), or as real pairs (B, N, D / 2, 2).
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        assert freqs_cis is not None
        rotation = torch.view_as_real(freqs_cis) if freqs_cis.is_complex() else freqs_cis
        cos, sin = rotation.to(hidden_states.dtype).unsqueeze(2).unbind(-1)

        def rotate(x: Tensor) -> Tensor:
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)))
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(-1, (attn.heads, -1)))
        value = attn.to_v(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        query = rotate(query).transpose(1, 2)
        key = rotate(key).transpose(1, 2)

        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if attention_mask is not None:
            logits = logits.masked_fill(~attention_mask[:, None, None, :], -torch.inf)

        weights = logits.softmax(-1, dtype=torch.float32).to(value.dtype)
        return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))


class Flow(nn.Module):
    """Text encoder and network, as one module to train, called with whole batches.

    Its result equals the pipeline's calls of both: see `check`.
    """

    image_rotation: Tensor
    caption_rotation: Tensor

    def __init__(self, text: Qwen3Model, network: ZImageTransformer2DModel) -> None:
        super().__init__()
        self.text = text
        self.network = network
        for module in network.modules():
            if isinstance(module, Attention):
                module.set_processor(PlainAttention())

        grid = network.create_coordinate_grid
        caption = grid((TOKENS, 1, 1), (1, 0, 0)).flatten(0, 2)
        image = grid((1, SIDE // 2, SIDE // 2), (TOKENS + 1, 0, 0)).flatten(0, 2)
        rotations = [torch.view_as_real(network.rope_embedder(ids)) for ids in (image, caption)]
        self.register_buffer("image_rotation", rotations[0][None], persistent=False)
        self.register_buffer("caption_rotation", rotations[1][None], persistent=False)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the predicted x0 - noise.

        Args:
            x: noised latents (B, 16, 16, 16).
            t: times (B,): 0 is the image, 1 is noise.
            ids: token ids (B, 32).
            mask: (B, 32), 1 where there is a token.
        """
        network = self.network
        causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=x.device).tril()
        states = self.text.embed_tokens(ids)
        positions = torch.arange(TOKENS, device=x.device)[None]
        rotary = self.text.rotary_emb(states, positions)
        seen = (causal & mask.bool()[:, None, None, :]) | torch.eye(
            TOKENS, dtype=torch.bool, device=x.device
        )
        bias = torch.zeros(seen.shape, dtype=states.dtype, device=x.device)
        bias = bias.masked_fill(~seen, -1e9)
        for layer in self.text.layers[:-1]:
            states = layer(states, attention_mask=bias, position_embeddings=rotary)

        caption = network.cap_embedder(states)
        caption = torch.where(mask.bool()[..., None], caption, network.cap_pad_token)
        for layer in network.context_refiner:
            caption = layer(caption, None, self.caption_rotation)

        time = network.t_embedder((1 - t) * network.t_scale)
        patches = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).permute(0, 2, 4, 3, 5, 1)
        image = network.all_x_embedder["2-1"](patches.flatten(3).flatten(1, 2))
        for layer in network.noise_refiner:
            image = layer(image, None, self.image_rotation, time)

        count = image.shape[1]
        both = torch.cat([image, caption], 1)
        rotation = torch.cat([self.image_rotation, self.caption_rotation], 1)
        for layer in network.layers:
            both = layer(both, None, rotation, time)

        out = network.all_final_layer["2-1"](both, c=time)[:, :count]
        out = out.unflatten(1, (SIDE // 2, SIDE // 2)).unflatten(-1, (2, 2, 16))
        return out.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def tokenize(words: Qwen2Tokenizer, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and masks (N, 32) of captions, as the pipeline makes them."""
    texts = [
        words.apply_chat_template(
            [{"role": "user", "content": caption}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        for caption in captions
    ]
    tokens = words(texts, padding="max_length", max_length=TOKENS, return_tensors="pt")
    if tokens.input_ids.shape[1] > TOKENS:
        raise ValueError(f"a caption has more than {TOKENS} tokens")
    return tokens.input_ids, tokens.attention_mask


def batches(
    words: Qwen2Tokenizer, options: argparse.Namespace, device: torch.device
) -> Callable[[int], Iterator[tuple[Tensor, ...]]]:
    """Return a function of a seed to endless batches: latents, times, noise, token ids, masks."""

    def endless(seed: int) -> Iterator[tuple[Tensor, ...]]:
        pool, captions = read_pool(options.build / "flow-pool")
        ids, masks = tokenize(words, ["", *dict.fromkeys(captions)])
        rows = {caption: row for row, caption in enumerate(dict.fromkeys(["", *captions]))}
        caption_rows = torch.tensor([rows[caption] for caption in captions])
        generator = torch.Generator().manual_seed(seed)
        print(f"{len(pool)} latents, {len(ids)} captions", flush=True)

        while True:
            drawn = torch.randint(len(pool), (options.batch,), generator=generator)
            dropped = torch.rand(options.batch, generator=generator) < DROP
            texts = torch.where(dropped, 0, caption_rows[drawn])
            noise = torch.randn(options.batch, *pool.shape[1:], generator=generator)
            # stratified over the batch: a logit-normal by its quantiles
            order = torch.randperm(options.batch, generator=generator)
            uniform = torch.rand(options.batch, generator=generator)
            quantile = ((order + uniform) / options.batch).clamp(1e-4, 1 - 1e-4)
            t = torch.special.ndtri(quantile).sigmoid()
            batch = (pool[drawn].float(), t, noise, ids[texts], masks[texts])
            yield tuple(part.to(device) for part in batch)

    return endless


def optimizers(flow: Flow, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside blocks and AdamW for the rest."""
    blocks = [*flow.network.layers, *flow.network.noise_refiner, *flow.network.context_refiner]
    blocks += list(flow.text.layers[:-1])
    matrices = [
        parameter
        for block in blocks
        for name, parameter in block.named_parameters()
        if parameter.ndim == 2 and "adaLN" not in name
    ]
    chosen = {id(parameter) for parameter in matrices}
    others = [p for p in flow.parameters() if p.requires_grad and id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, loop.adamw(others, lr, 0.01)]


def pipeline(
    vae: AutoencoderKL, flow: Flow, words: Qwen2Tokenizer, shift: float = SHIFT
) -> ZImagePipeline:
    """Return the stock pipeline around the parts."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    pipe = ZImagePipeline(scheduler, vae, flow.text, words, flow.network)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: ZImagePipeline, prompts: list[str], steps: int, guidance: float) -> Tensor:
    """Return images (n, 3, 128, 128) in [0, 1] of prompts."""
    with loop.autocast(pipe.transformer.device):
        return pipe(
            list(prompts),
            height=128,
            width=128,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            max_sequence_length=TOKENS,
        ).images


@torch.no_grad()
def check(flow: Flow, words: Qwen2Tokenizer) -> float:
    """Return the largest difference between `Flow` and the pipeline's own calls."""
    prompts = ["a cat", "a fox and a guitar on a blue background"]
    pipe = ZImagePipeline(None, None, flow.text, words, flow.network)
    states, _ = pipe.encode_prompt(list(prompts), device="cpu", do_classifier_free_guidance=False)
    x = torch.randn(2, 16, SIDE, SIDE)
    t = torch.tensor([0.3, 0.8])
    stock = flow.network(list(x.unsqueeze(2)), 1 - t, states, return_dict=False)[0]
    ours = flow(x, t, *tokenize(words, prompts))
    return (torch.stack(stock).squeeze(2) - ours).abs().max().item()


def build() -> tuple[Qwen2Tokenizer, Flow]:
    """Return the tokenizer and new networks."""
    words = tokenizer()
    return words, Flow(text_encoder(len(words)), transformer())


def main() -> None:
    parser = loop.arguments(__doc__, minutes=100, batch=128, lr=2e-3)
    parser.add_argument("--warm", type=Path, help="a pipeline whose weights it starts from")
    parser.add_argument("--compile", action="store_true", help="twice as fast; needs a compiler")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    device = torch.device(options.device)
    words, flow = build()
    print("difference to the pipeline:", check(flow, words), flush=True)
    if options.warm:
        pipe = ZImagePipeline.from_pretrained(options.warm, dtype=torch.float32)
        flow.network.load_state_dict(pipe.transformer.state_dict())
        flow.text.load_state_dict(pipe.text_encoder.state_dict())

    flow.text.layers[-1].requires_grad_(False)
    flow.text.norm.requires_grad_(False)
    flow.to(device)
    folder: Path = options.build / "flow-vae" / "model"
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    forward = torch.compile(flow, dynamic=False) if options.compile else flow

    def loss_of(batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
        x0, t, noise, ids, masks = batch
        level = t.view(-1, 1, 1, 1)

        with loop.autocast(device):
            out = forward((1 - level) * x0 + level * noise, t, ids, masks)

        return (out.float() - (x0 - noise)).square().mean(), {}

    def preview() -> Image.Image:
        return loop.grid(draw(pipeline(vae, flow, words), PROMPTS, 28, 3.0), 8, scale=1)

    loop.train(
        "flow",
        flow,
        batches(words, options, device),
        loss_of,
        options,
        preview=preview,
        finish=lambda: pipeline(vae, flow, words).save_pretrained(options.build / "emoji-flow"),
        decay=0.999,
        every=10.0,
        optimizers=optimizers(flow, options.lr),
    )


if __name__ == "__main__":
    main()
