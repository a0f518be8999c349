"""Complete pipelines of flow models with random weights: Stable Diffusion 3, FLUX.1, Qwen-Image.

Latents are 4x8x8, images 32x32. T5 and Qwen read prompts letter by letter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _t5_tokenizer(tokens: int) -> Any:
    """Return a tokenizer of letters that reads so many of them."""
    from transformers import T5Tokenizer

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    pieces = [*special, *((letter, -2.0) for letter in ("▁", *letters))]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=tokens)


def _t5(tokenizer: Any, width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def _clip(projected: bool, **changes: Any) -> Any:
    from conftest import _text_config
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(_text_config(num_hidden_layers=2, **changes)).eval()


def build_sd3(with_t5: bool = True, **changes: Any) -> Any:
    """Return a new tiny Stable Diffusion 3.5; `changes` go into the scheduler's configuration.

    Its first block attends twice, as 3.5 medium's do.
    """
    from conftest import _tokenizer
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokenizer = _t5_tokenizer(40)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=16,
            pooled_projection_dim=14,
            pos_embed_max_size=12,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        return StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **changes}),
            vae=_vae(),
            text_encoder=_clip(True, projection_dim=8),
            tokenizer=_tokenizer(),
            text_encoder_2=_clip(True, hidden_size=12, projection_dim=6, hidden_act="gelu"),
            tokenizer_2=_tokenizer(pad_token="!"),
            text_encoder_3=_t5(tokenizer, 24) if with_t5 else None,
            tokenizer_3=tokenizer if with_t5 else None,
        )


def build_qwen_image() -> Any:
    """Return a new tiny Qwen-Image, with an autoencoder of videos."""
    from conftest import qwen_tokenizer
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(8)
        transformer = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(4, 2, 2),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.5, -0.7, 0.1, -0.2],
            latents_std=[2.0, 1.5, 0.7, 1.2],
        )
        return QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_image_seq_len=4,
                max_image_seq_len=64,
                max_shift=0.9,
                shift_terminal=0.02,
            ),
            vae=vae.eval(),
            text_encoder=_qwen_vl(tokenizer),
            tokenizer=tokenizer,
            transformer=transformer.eval(),
        )


def _qwen_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 8,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def tiny_qwen_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen-Image. Shared: do not write into it."""
    return _saved(build_qwen_image(), tmp_path_factory, "tiny_qwen_image")


def build_flux(dev: bool) -> Any:
    """Return a new tiny FLUX.1: dev, with its weight of guidance and shift by size, or schnell."""
    from conftest import _tokenizer
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = _t5_tokenizer(40)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=8,
            guidance_embeds=dev,
            axes_dims_rope=(4, 2, 2),
        )
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0 if dev else 1.0, use_dynamic_shifting=dev, base_image_seq_len=4
            ),
            vae=_vae(),
            text_encoder=_clip(False),
            tokenizer=_tokenizer(),
            text_encoder_2=_t5(tokenizer, 12),
            tokenizer_2=tokenizer,
            transformer=transformer.eval(),
        )


@pytest.fixture(scope="session")
def tiny_flux_dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny FLUX.1 dev. Shared: do not write into it."""
    return _saved(build_flux(dev=True), tmp_path_factory, "tiny_flux_dev")


@pytest.fixture(scope="session")
def tiny_flux_schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny FLUX.1 schnell. Shared: do not write into it."""
    return _saved(build_flux(dev=False), tmp_path_factory, "tiny_flux_schnell")


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion 3.5. Shared: do not write into it."""
    return _saved(build_sd3(), tmp_path_factory, "tiny_sd3")


@pytest.fixture(scope="session")
def tiny_sd3_without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion 3.5 with CLIP alone, and a shift by size. Shared."""
    pipe = build_sd3(with_t5=False, use_dynamic_shifting=True, base_image_seq_len=4)
    return _saved(pipe, tmp_path_factory, "tiny_sd3_without_t5")


def _saved(pipe: Any, tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    folder = tmp_path_factory.mktemp("models") / name
    pipe.save_pretrained(folder)
    return folder
