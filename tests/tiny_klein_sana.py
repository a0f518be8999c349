"""Tiny FLUX.2 [klein] and Sana pipelines of random weights; images 32x32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def build_klein(**changes: object) -> Any:
    """Return a new tiny FLUX.2 [klein]; `changes` go into the pipeline, such as `is_distilled`.

    Three of the 27 layers of its text encoder are read, and its latents' statistics are not those
    of new ones.
    """
    from conftest import qwen_tokenizer
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = qwen_tokenizer()

    with torch.random.fork_rng():
        torch.manual_seed(6)
        text = Qwen3Config(
            vocab_size=len(tokenizer),  # type: ignore[arg-type]
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=27,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=4,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        vae = AutoencoderKLFlux2(
            block_out_channels=(4, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=2,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
        )
        vae.bn.running_mean.normal_(std=0.3)
        vae.bn.running_var.uniform_(0.5, 2.0)
        transformer = Flux2Transformer2DModel(
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        )
        pipe = Flux2KleinPipeline(
            FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
            ),
            vae.eval(),
            Qwen3ForCausalLM(text).eval(),
            tokenizer,
            transformer.eval(),
            **changes,
        )

    return pipe


def build_sana(**changes: object) -> Any:
    """Return a new tiny Sana; `changes` go into its scheduler, Sana's own if there are none."""
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = gemma_tokenizer()
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    if changes:
        scheduler = DPMSolverMultistepScheduler(**changes)

    with torch.random.fork_rng():
        torch.manual_seed(7)
        text = Gemma2Config(
            vocab_size=len(tokenizer),  # type: ignore[arg-type]
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            max_position_embeddings=2048,
        )
        vae = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(4, 8, 8),
            decoder_block_out_channels=(4, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.41407,
        )
        transformer = SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=8,
        )

    return SanaPipeline(
        tokenizer, Gemma2Model(text).eval(), vae.eval(), transformer.eval(), scheduler
    )


SANA_SCHEDULER = {
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "use_flow_sigmas": True,
}
"""What differs in Sana's scheduler_config.json from a new DPMSolverMultistepScheduler."""


def gemma_tokenizer() -> object:
    """Return a tokenizer of letters."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = [*special, "▁", "\n", *letters]
    vocab = {token: number for number, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocab, add_bos_token=True)


@pytest.fixture(scope="session")
def tiny_klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny FLUX.2 [klein] base. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "tiny_klein"
    build_klein().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_klein_distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny distilled FLUX.2 [klein]. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "tiny_klein_distilled"
    build_klein(is_distilled=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Sana with Euler's scheduler. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "tiny_sana"
    build_sana().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sana_solver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Sana with Sana's own scheduler. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "tiny_sana_solver"
    build_sana(**SANA_SCHEDULER).save_pretrained(folder)
    return folder
