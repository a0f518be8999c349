"""Complete pipelines of some 20,000 random parameters, written to disk once a session.

They are Stable Diffusion 1.x and 2.x, SDXL, a consistency model and ControlNets. Latents are 4x8x8,
images 32x32, prompts are tokenized letter by letter (22 letters at most; lower case, digits,
punctuation).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # several processes share the cores; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tomli_w
import torch
from tiny_flow_models import (  # noqa: F401 (fixtures)
    tiny_flux_dev,
    tiny_flux_schnell,
    tiny_qwen_image,
    tiny_sd3,
    tiny_sd3_without_t5,
)
from tiny_klein_sana import (  # noqa: F401
    tiny_klein,
    tiny_klein_distilled,
    tiny_sana,
    tiny_sana_solver,
)
from torch import Tensor

from burnish import trust
from burnish.runs import Run

TOKENS = 24
TIMING = ("seconds_sampling", "seconds_scoring", "seconds_training")
"""Keys of a record that differ from run to run."""

GPU_TESTS_ON = os.environ.get("BURNISH_GPU_TESTS_ON", "cuda")
"""The device of the tests marked `gpu`; "cpu" runs their code where there is no CUDA device."""


TINY_MODELS = {
    "sd15": "tiny_sd1",
    "lcm": "tiny_lcm",
    "sd21": "tiny_sd2",
    "sdxl": "tiny_sdxl",
    "sd35": "tiny_sd3",
    "flux": "tiny_flux_dev",
    "qwen": "tiny_qwen_image",
    "klein": "tiny_klein_distilled",
    "zimage": "tiny_z_image",
    "sana": "tiny_sana",
    "klein-pickscore-ram": "tiny_klein",  # the base model, which guidance goes with
}
"""The fixture of a model of the same architecture, by how a recipe's name begins."""


def tiny_model(recipe: str) -> str:
    """Return the name of the fixture with a tiny model of a hub recipe's architecture."""
    return TINY_MODELS[max((key for key in TINY_MODELS if recipe.startswith(key)), key=len)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device, unless they are to run without."""
    if torch.cuda.is_available() or GPU_TESTS_ON == "cpu":
        return

    for item in items:
        # not item.keywords, which also has the names of the folders around the tests
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip("needs a CUDA device"))


@pytest.fixture(autouse=True)
def _consents(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trust the code of the tests' own recipes, but for tests marked `untrusted`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    if not request.node.get_closest_marker("untrusted"):
        monkeypatch.setattr(trust, "is_remembered", lambda code: True)


@pytest.fixture
def device() -> str:
    """The device of a test marked `gpu`."""
    return GPU_TESTS_ON


def alike(found: Tensor, expected: Tensor) -> bool:
    """Return whether two outputs of equal weights are the same but for rounding.

    How some CPUs round depends on where in memory weights begin, which a file decides.
    """
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded random generator."""
    return torch.Generator().manual_seed(seed)


def perturb(policy: Any, size: float = 0.3) -> None:
    """Add noise to a policy's weights, as if it had been trained."""
    with torch.no_grad():
        for i, p in enumerate(policy.trainable):
            scale = p.std() if policy.train == "full" and p.numel() > 1 else 1
            noise = torch.randn(p.shape, generator=generator(i)).to(p.device)
            p.add_(size * scale * noise)


def _tokenizer(**changes: object) -> object:
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("!"), ord("~") + 1) if not chr(c).isupper()]
    ends = [letter + "</w>" for letter in letters]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *ends]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TOKENS, **changes)


def _text_config(**changes: object) -> Any:
    from transformers import CLIPTextConfig

    config = {
        "vocab_size": len(_tokenizer()),  # type: ignore[arg-type]
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return CLIPTextConfig(**{**config, **changes})


def _scheduler(kind: str, prediction: str, **changes: object) -> object:
    from diffusers import DDIMScheduler, PNDMScheduler

    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "prediction_type": prediction,
        **changes,
    }

    if kind == "pndm":
        return PNDMScheduler(skip_prk_steps=True, **config)

    return DDIMScheduler(**{"clip_sample": False, **config})


def build_pipeline(
    prediction: str = "epsilon", scheduler: str = "ddim", **changes: object
) -> object:
    """Return a new tiny Stable Diffusion 1.x; `changes` go into the scheduler's configuration."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=8,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
            mid_block_add_attention=False,
        )

        return StableDiffusionPipeline(
            vae=vae.eval(),
            text_encoder=CLIPTextModel(_text_config()).eval(),
            tokenizer=_tokenizer(),
            unet=unet.eval(),
            scheduler=_scheduler(scheduler, prediction, **changes),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def build_lcm() -> object:
    """Return a new tiny latent consistency model, like LCM_Dreamshaper_v7.

    Its network has four blocks, and the guidance weight is one of its inputs.
    """
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

    parts = dict(build_pipeline().components)  # type: ignore[attr-defined]

    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts["unet"] = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8, 16, 16),
            down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=8,
            norm_num_groups=4,
            time_cond_proj_dim=16,
        ).eval()

    # at random weights the guidance embedding must show
    torch.nn.init.normal_(parts["unet"].time_embedding.cond_proj.weight, generator=generator())
    parts["scheduler"] = LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    parts = {name: part for name, part in parts.items() if name not in ("image_encoder",)}

    return LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def build_sd2(**changes: object) -> object:
    """Return a new tiny Stable Diffusion 2.x.

    It has v-prediction, OpenCLIP's text tower, heads by block and linear layers. `changes` go
    into the scheduler's configuration.
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    parts = dict(build_pipeline().components)  # type: ignore[attr-defined]

    with torch.random.fork_rng():
        torch.manual_seed(2)
        text = _text_config(
            hidden_size=12, num_hidden_layers=3, hidden_act="gelu", projection_dim=6
        )
        parts["text_encoder"] = CLIPTextModel(text).eval()
        parts["unet"] = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(2, 4),
            cross_attention_dim=12,
            norm_num_groups=4,
            use_linear_projection=True,
            upcast_attention=True,
        ).eval()

    parts["tokenizer"] = _tokenizer(pad_token="!")
    parts["scheduler"] = _scheduler("ddim", "v_prediction", **changes)
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def build_sdxl(**changes: object) -> object:
    """Return a new tiny SDXL; `changes` go into the pipeline.

    It has two text encoders, the pooled text of the second, sizes as inputs, and SDXL's scheduler.
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    vae = build_pipeline().vae  # type: ignore[attr-defined]
    vae.register_to_config(force_upcast=True, scaling_factor=0.13025)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        second = _text_config(
            hidden_size=12, num_hidden_layers=2, hidden_act="gelu", projection_dim=6
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(2, 2, 4),
            cross_attention_dim=8 + 12,
            transformer_layers_per_block=(1, 1, 2),
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 + 6 * 4,
        )
        pipe = StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(_text_config(num_hidden_layers=2)).eval(),
            text_encoder_2=CLIPTextModelWithProjection(second).eval(),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(pad_token="!"),
            unet=unet.eval(),
            scheduler=EulerDiscreteScheduler.from_config(SDXL_SCHEDULER),
            **changes,
        )

    return pipe


SDXL_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
"""The contents of SDXL's scheduler_config.json, keys of other schedulers included."""


def build_z_image() -> object:
    """Return a new tiny Z-Image; Qwen3 reads its prompts byte by byte."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = qwen_tokenizer()

    with torch.random.fork_rng():
        torch.manual_seed(5)
        text = Qwen3Config(
            vocab_size=len(tokenizer),  # type: ignore[arg-type]
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=4,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            scaling_factor=0.36,
            shift_factor=0.12,
        )
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=16,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[4, 2, 2],
            axes_lens=[128, 16, 16],
        )

    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae.eval(),
        Qwen3Model(text).eval(),
        tokenizer,
        transformer.eval(),
    )


def qwen_tokenizer() -> object:
    """Return a tokenizer of bytes with a chat template."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate([*special, *letters])},
        merges=[],
        model_max_length=64,
        padding_side="right",
        additional_special_tokens=special[1:],
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    return tokenizer


@pytest.fixture(scope="session")
def tiny_z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Z-Image."""
    folder = tmp_path_factory.mktemp("models") / "tiny_z_image"
    build_z_image().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion 2.x. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("tiny-sd2")
    build_sd2().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def tiny_zero_snr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion 2.x whose schedule begins in pure noise.

    Shared: do not write into it.
    """
    folder = tmp_path_factory.mktemp("tiny-zero-snr")
    build_sd2(rescale_betas_zero_snr=True, timestep_spacing="trailing").save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SDXL. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("tiny-sdxl")
    build_sdxl().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def tiny_lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny latent consistency model. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("tiny-lcm")
    build_lcm().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def make_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that returns a pipeline's folder; each pipeline is built once.

    `make_pipeline(prediction="epsilon", scheduler="ddim", **scheduler_config) -> folder`
    """
    folders: dict[str, Path] = {}

    def make(prediction: str = "epsilon", scheduler: str = "ddim", **changes: object) -> Path:
        key = repr((prediction, scheduler, sorted(changes.items())))
        if key not in folders:
            folder = tmp_path_factory.mktemp("tiny")
            build_pipeline(prediction, scheduler, **changes).save_pretrained(folder)  # type: ignore[attr-defined]
            folders[key] = folder

        return folders[key]

    return make


@pytest.fixture(scope="session")
def tiny_sd1(make_pipeline: Callable[..., Path]) -> Path:
    """The folder of a tiny Stable Diffusion 1.x with its original kind of scheduler.

    Shared: do not write into it.
    """
    return make_pipeline("epsilon", "pndm")


@pytest.fixture(scope="session")
def tiny_pipeline(make_pipeline: Callable[..., Path]) -> Path:
    """The folder of a tiny v-prediction Stable Diffusion for `Policy.load`.

    Shared: do not write into it.
    """
    return make_pipeline("v_prediction")


def log(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run without their times."""
    return [
        {key: value for key, value in record.items() if not key.startswith("seconds_")}
        for record in Run(folder).records()
    ]


@pytest.fixture
def write_recipe(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the recipe of a small run and returns its path.

    `write_recipe(code="", **tables) -> path`: a table with `use` replaces the default one, any
    other completes it. `code` is written to `tmp_path/reward.py`. HERE in the tables stands for
    `tmp_path`.
    """
    defaults: dict[str, Any] = {
        "model": {"id": str(tiny_pipeline), "device": "cpu"},
        "sampler": {"steps": 3, "guidance": {"use": "cfg", "weight": 2.0}},
        "prompts": {"use": "list", "texts": ["a cat", "a dog", "an ox"]},
        "rewards": [{"use": "compressibility"}],
    }

    def write(code: str = "", **tables: Any) -> Path:
        if code:
            (tmp_path / "reward.py").write_text(code)

        tree = {**defaults, **tables}
        for name, table in tables.items():
            if isinstance(table, dict) and "use" not in table:
                tree[name] = {**defaults.get(name, {}), **table}

        path = tmp_path / "tiny.toml"
        path.write_text(tomli_w.dumps(tree).replace("HERE", str(tmp_path)), "utf-8")
        return path

    return write


class LocalServer:
    """A real HTTP server on this machine that keeps the requests it gets.

    `answer(body)` returns (status, JSON or bytes) or (status, JSON or bytes, headers).
    """

    def __init__(self) -> None:
        self.answer: Callable[[Any], tuple] = lambda body: (200, {})
        self.bodies: list[Any] = []  # of the requests, in the order of their arrival
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.lock = threading.Lock()

        handler = type("Handler", (RecordingHandler,), {"local": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


class RecordingHandler(BaseHTTPRequestHandler):
    """The requests of a `LocalServer`, recorded and answered."""

    protocol_version = "HTTP/1.1"
    local: LocalServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.local.lock:
            self.local.bodies.append(body)
            self.local.headers.append(dict(self.headers))
            self.local.paths.append(self.path)

        status, content, *rest = self.local.answer(body)
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Length": str(len(payload)), **(rest[0] if rest else {})}

        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)

            self.end_headers()
            self.wfile.write(payload)
        # a client that no longer waits is part of the tests
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """A local HTTP server whose answers a test chooses; requests reach it past any proxy."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    local = LocalServer()
    poll = {"poll_interval": 0.01}
    threading.Thread(target=local.http.serve_forever, kwargs=poll, daemon=True).start()

    yield local

    local.http.shutdown()
    local.http.server_close()


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL at which nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        return f"http://127.0.0.1:{http.server_address[1]}"


def build_controlnet(pipe: Any, copied: bool = True) -> Any:
    """Return a tiny ControlNet for a tiny pipeline.

    Its output layers, zero in a new one, are random and large enough to have an effect. Its other
    weights are `copied` from the pipeline's network, as is usual, or random.
    """
    from diffusers import ControlNetModel

    with torch.random.fork_rng():
        torch.manual_seed(4)
        channels = (4, 8, 8)
        net = ControlNetModel.from_unet(
            pipe.unet, "rgb", channels, load_weights_from_unet=copied
        ).eval()

        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(layer.weight, std=0.5)

        # what enters it is small
        torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=10.0)

    return net


@pytest.fixture(scope="session")
def tiny_controlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ControlNet for `make_pipeline`'s models. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("tiny-controlnet")
    build_controlnet(build_pipeline()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl_controlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ControlNet for `tiny_sdxl`. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("tiny-sdxl-controlnet")
    build_controlnet(build_sdxl()).save_pretrained(folder)
    return folder
