"""Exported weights, read by other programs: the same images, and nothing secret with them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import build_sdxl, build_z_image, generator
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from ldm import sd3_network
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_flow_models import build_flux, build_qwen_image, build_sd3
from tiny_klein_sana import build_klein, build_sana
from torch import Tensor, nn

from burnish.cli import main
from burnish.config import parse
from burnish.diffusion.families import family_of
from burnish.diffusion.lora import lora_layers, merge_layers
from burnish.diffusion.lora_file import FILE, read_lora
from burnish.diffusion.lora_names import pairs_of, to_comfyui, to_kohya
from burnish.diffusion.policy import Policy
from burnish.diffusion.quantization import quantize
from burnish.diffusion.skeleton import load_skeleton
from burnish.report.card import Weights, loading
from burnish.runs import Run
from burnish.tools.export import export_run, write_lora
from burnish.tools.merge import merge_adapters, weighted_sum
from burnish.training.loop import train

TARGETS = (
    "to_q to_k to_v to_out.0 add_q_proj add_k_proj add_v_proj to_add_out to_qkv_mlp_proj "
    "attn.to_out"
).split()
BUILDERS: dict[str, Callable[[], Any]] = {
    "sdxl": build_sdxl,
    "flux": lambda: build_flux(True),
    "klein": build_klein,
    "z_image": build_z_image,
    "qwen_image": build_qwen_image,
    "sd3": build_sd3,
    "sana": build_sana,
}


def trained(base: Path, folder: Path, seed: int = 0, **tables: Any) -> Run:
    """Return a run of one iteration with a large learning rate, so that the adapter shows."""
    settings = {"id": str(base), "device": "cpu", "rank": 2, "alpha": 5.0}
    tree = {
        "seed": seed,
        "iterations": 1,
        "sampler": {"steps": 2, "guidance": {"use": "cfg", "weight": 2.0}},
        "prompts": ["a cat", "a dog"],
        "rewards": [{"use": "compressibility"}],
        "batch": {"prompts": 2, "images_per_prompt": 2},
        "evaluation": {"images_per_prompt": 1},
        "run": {"sample_every": 1, "thumbnails": 0},
        "optimizer": {"lr": 0.1},
        **tables,
        "model": {**settings, **tables.get("model", {})},
    }
    return Run(train(parse(tree), folder, progress=False))


@pytest.fixture(scope="module")
def first(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that is not to be written into."""
    return trained(tiny_pipeline, tmp_path_factory.mktemp("runs") / "a run")


@pytest.fixture(scope="module")
def second(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Another one, of another rank."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    return trained(tiny_pipeline, folder, seed=1, model={"rank": 3})


@pytest.fixture
def run(first: Run, tmp_path: Path) -> Run:
    """A copy of the first run."""
    return Run(shutil.copytree(first.folder, tmp_path / "a run"))


def stock(model: Path | str) -> Any:
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe: Any) -> Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=generator())
    drawn = pipe(["a cat"], num_inference_steps=2, latents=noise, output_type="pt").images
    assert isinstance(drawn, Tensor)
    return drawn


def as_the_run(run: Run, model: Path) -> Tensor:
    pipe = stock(model)
    pipe.load_lora_weights(run.adapter)
    return images(pipe)


# ComfyUI ----------------------------------------------------------------------------------------
# Its loader knows a layer by one key, and takes alpha / rank * up @ down; other keys are dropped
# with a warning. What follows is its map from keys to the weights of diffusers' networks.


def comfy_unet_map(network: nn.Module) -> dict[str, str]:
    """Return the weights of a UNet by the keys lora_unet_ and diffusers' name with underscores."""
    return {
        f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": name
        for name, _ in network.named_parameters()
        if name.endswith(".weight")
    }


def comfy_sdxl_map(network: Any) -> dict[str, str]:
    """Return the attention weights of a tiny SDXL by the places of its blocks in one list.

    The first of three blocks has none; each has one residual block and a change of size.
    """
    places = {
        "input_blocks_3_1": "down_blocks.1.attentions.0",
        "input_blocks_5_1": "down_blocks.2.attentions.0",
        "middle_block_1": "mid_block.attentions.0",
        "output_blocks_0_1": "up_blocks.0.attentions.0",
        "output_blocks_1_1": "up_blocks.0.attentions.1",
        "output_blocks_2_1": "up_blocks.1.attentions.0",
        "output_blocks_3_1": "up_blocks.1.attentions.1",
    }
    found = {}
    for name, _ in network.named_parameters():
        for place, block in places.items():
            if name.startswith(f"{block}.") and name.endswith(".weight"):
                inner = name.removesuffix(".weight").removeprefix(block)
                found[f"lora_unet_{place}{inner.replace('.', '_')}"] = name

    return found


def comfy_flow_map(network: nn.Module, kind: str) -> dict[str, list[str]]:
    """Return for each key of a flow transformer the weights whose rows are one there, in order."""
    found: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        block, _, rest = name.partition(".attn.")
        if not isinstance(module, nn.Linear) or (not rest and kind != "z_image"):
            continue
        number = block.rpartition(".")[2]
        if kind == "qwen_image":
            key = f"lora_unet_{name.replace('.', '_')}"
        elif kind == "z_image":
            key = f"lora_unet_{name.replace('.', '_')}"
            for one in ("_to_q", "_to_k", "_to_v"):
                key = key.replace(one, "_qkv")
            key = key.replace("_to_out_0", "_out")
        elif name.startswith("single_"):
            linear = "linear2" if rest == "to_out" else "linear1"
            key = f"lora_unet_single_blocks_{number}_{linear}"
        else:
            stream = "txt" if "add" in rest else "img"
            last = "proj" if "out" in rest else "qkv"
            key = f"lora_unet_double_blocks_{number}_{stream}_attn_{last}"
        found.setdefault(key, []).append(f"{name}.weight")

    return found


def comfy_patch(network: nn.Module, key_map: dict[str, Any], file: Path) -> None:
    """Add a file's LoRA to the weights as ComfyUI does; no key may be left over."""
    tensors = load_file(file)
    weights = dict(network.named_parameters())

    for key, targets in key_map.items():
        up = tensors.pop(f"{key}.lora_up.weight", None)
        if up is None:
            continue
        down = tensors.pop(f"{key}.lora_down.weight")
        alpha = tensors.pop(f"{key}.alpha").item()
        delta = alpha / len(down) * (up.flatten(1) @ down.flatten(1))
        targets = [targets] if isinstance(targets, str) else targets
        if "single_blocks" in key and "linear1" in key and len(targets) == 3:
            delta = delta[: sum(len(weights[name]) for name in targets)]  # the rest is the MLP's

        parts = delta.split([len(weights[name]) for name in targets])
        for name, part in zip(targets, parts, strict=True):
            weights[name].data += part.view_as(weights[name])

    assert not tensors, f"left over: {list(tensors)}"


def test_comfyui_draws_the_same_images(run: Run, tiny_pipeline: Path) -> None:
    folder = export_run(run, "comfyui")
    assert folder == run.folder / "exports" / "comfyui"
    pipe = stock(tiny_pipeline)
    untrained = images(pipe)

    comfy_patch(pipe.unet, comfy_unet_map(pipe.unet), folder / "a-run.safetensors")

    expected = as_the_run(run, tiny_pipeline)
    assert torch.allclose(images(pipe), expected, atol=1e-5)
    assert not torch.allclose(untrained, expected, atol=1e-3)


def test_diffusers_draws_the_same_images_from_kohyas_names(run: Run, tiny_pipeline: Path) -> None:
    file = export_run(run, "kohya") / "a-run.safetensors"
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_network_dim"] == "2"
    assert {v.item() for k, v in load_file(file).items() if k.endswith(".alpha")} == {2.0}

    pipe = stock(tiny_pipeline)
    pipe.load_lora_weights(file)
    assert torch.allclose(images(pipe), as_the_run(run, tiny_pipeline), atol=1e-5)


def test_a_merged_pipeline_needs_no_adapter(run: Run, tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = export_run(run, "merged", tmp_path / "whole")

    pipe = stock(folder)
    assert not hasattr(pipe.unet, "peft_config")
    assert torch.allclose(images(pipe), as_the_run(run, tiny_pipeline), atol=1e-5)


def test_nothing_is_merged_into_a_quantized_layer(tiny_pipeline: Path) -> None:
    unet = Policy.load(tiny_pipeline, device="cpu").pipe.unet
    layer = next(iter(lora_layers(unet).values()))
    layer.base_layer.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"is quantized, and nothing can be merged into it"):
        merge_layers(unet)


def test_the_adapter_as_it_is(run: Run) -> None:
    folder = export_run(run, "diffusers")
    assert (folder / FILE).read_bytes() == (run.adapter / FILE).read_bytes()


@pytest.mark.parametrize("train_as", ["full", "controlnet"])
def test_whole_networks_are_merged_but_no_lora_file(
    tmp_path: Path, tiny_pipeline: Path, tiny_controlnet: Path, train_as: str
) -> None:
    tables: dict[str, Any] = {"model": {"train": "full"}}
    if train_as == "controlnet":
        Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
        rows = [{"prompt": f"a {noun}", "control": "red.png"} for noun in ("cat", "dog")]
        (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        tables = {
            "model": {"controlnet": str(tiny_controlnet), "trainable_parts": "controlnet"},
            "prompts": {"use": "jsonl", "path": str(tmp_path / "p.jsonl")},
        }
    learned = trained(tiny_pipeline, tmp_path / "run", **tables)

    for target in ("kohya", "comfyui"):
        with pytest.raises(ValueError, match=f"--to {target} writes a LoRA .*: take --to diff"):
            export_run(learned, target)

    folder = export_run(learned, "merged")
    pipe = stock(folder)
    part = "controlnet" if train_as == "controlnet" else "unet"
    weights = dict(getattr(pipe, part).named_parameters())
    before = stock(tiny_pipeline).unet if part == "unet" else None
    if before is not None:
        changed = [n for n, p in before.named_parameters() if not torch.equal(p, weights[n])]
        assert len(changed) > 10
    assert not any("lora" in name for name in weights)
    assert (export_run(learned, "diffusers") / "README.md").is_file()


# Families ---------------------------------------------------------------------------------------


def random_lora(
    skeleton: Any, without: str = "", ends: tuple[str, ...] = tuple(TARGETS)
) -> dict[str, Tensor]:
    part = family_of(type(skeleton).__name__).network
    draw = generator()
    tensors = {}
    for name, module in getattr(skeleton, part).named_modules():
        if isinstance(module, nn.Linear) and name.endswith(ends):
            if without and without in name:
                continue
            rows, columns = module.weight.shape
            tensors[f"{part}.{name}.lora_A.weight"] = torch.randn(2, columns, generator=draw)
            tensors[f"{part}.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=draw)
    return tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """A function that returns a tiny model's pipeline and skeleton."""

    def make(kind: str) -> tuple[Any, Any]:
        folder = tmp_path_factory.mktemp(kind)
        pipe = BUILDERS[kind]()
        pipe.save_pretrained(folder)
        return pipe, load_skeleton(str(folder))

    return make


@pytest.mark.parametrize("without", ["", "to_k"])
@pytest.mark.parametrize("kind", ["sdxl", "flux", "klein", "z_image", "qwen_image"])
def test_each_family_by_the_keys_of_comfyui(
    models: Callable[[str], tuple[Any, Any]], tmp_path: Path, kind: str, without: str
) -> None:
    pipe, skeleton = models(kind)
    tensors = random_lora(skeleton, without)
    network = family_of(type(pipe).__name__).network_of(pipe)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    save_file(to_comfyui(skeleton, tensors), tmp_path / "x.safetensors")

    key_map = comfy_sdxl_map(network) if kind == "sdxl" else comfy_flow_map(network, kind)
    comfy_patch(network, key_map, tmp_path / "x.safetensors")

    part = family_of(type(pipe).__name__).network
    pairs = {name.removeprefix(f"{part}."): pair for name, pair in pairs_of(tensors).items()}
    for name, weight in network.named_parameters():
        down, up = pairs.get(name.removesuffix(".weight"), (torch.zeros(1, 1),) * 2)
        assert torch.allclose(weight - before[name], up @ down, atol=1e-4), name


@pytest.mark.parametrize("kind", ["sdxl", "klein", "z_image", "qwen_image", "sd3"])
def test_each_family_by_diffusers_own_readers(
    models: Callable[[str], tuple[Any, Any]], tmp_path: Path, kind: str
) -> None:
    pipe, skeleton = models(kind)
    tensors = random_lora(skeleton)
    part = family_of(type(pipe).__name__).network
    file = write_lora(skeleton, tensors, "comfyui", tmp_path, "mine")

    pipe.load_lora_weights(file)
    pairs = pairs_of(tensors)
    network = getattr(pipe, part)
    for layer, (down, up) in pairs.items():
        found = network.get_submodule(layer.removeprefix(f"{part}."))
        delta = found.get_delta_weight(found.active_adapters[0])
        assert torch.allclose(delta, up @ down, atol=1e-4), layer


def test_flux_single_blocks_at_their_true_width(tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    draw = generator()
    skeleton = type("FluxPipeline", (), {})()
    skeleton.transformer = nn.Module()
    widths = {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288}
    tensors = {}

    def get_submodule(layer: str) -> Any:
        rows = widths[layer.removeprefix("single_transformer_blocks.7.")]
        return nn.Linear(3072, rows, device="meta")

    skeleton.transformer.get_submodule = get_submodule
    for member in ("attn.to_q", "attn.to_v", "proj_mlp"):
        name = f"transformer.single_transformer_blocks.7.{member}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(1, 3072, generator=draw)
        tensors[f"{name}.lora_B.weight"] = torch.randn(widths[member], 1, generator=draw)

    found = FluxPipeline.lora_state_dict(to_kohya(skeleton, tensors))
    for layer, (down, up) in pairs_of(tensors).items():
        a, b = found[f"{layer}.lora_A.weight"], found[f"{layer}.lora_B.weight"]
        assert torch.allclose((b @ a)[:9], (up @ down)[:9], atol=1e-4)


SD3_LAYERS = (*TARGETS, "ff.net.0.proj", "ff.net.2", "ff_context.net.2", "norm1.linear")


@pytest.mark.parametrize("without", ["", "to_k"])
def test_stable_diffusion_3_by_the_names_of_its_first_program(
    models: Callable[[str], tuple[Any, Any]], tmp_path: Path, without: str
) -> None:
    pipe, skeleton = models("sd3")
    tensors = random_lora(skeleton, without, SD3_LAYERS)
    file = write_lora(skeleton, tensors, "kohya", tmp_path, "mine")

    # ComfyUI knows a layer by lora_unet_ and the weight's name, with _ for each dot
    theirs = sd3_network(pipe.transformer)
    for key, change in loaded_changes(file).items():
        (name,) = [
            n for n in theirs if f"lora_unet_{n.removesuffix('.weight')}".replace(".", "_") == key
        ]
        theirs[name] = theirs[name] + change

    with torch.no_grad():
        for layer, (down, up) in pairs_of(tensors).items():
            module = pipe.transformer.get_submodule(layer.removeprefix("transformer."))
            module.weight += up @ down
    expected = sd3_network(pipe.transformer)
    assert all(torch.allclose(theirs[name], expected[name], atol=1e-4) for name in expected)

    # and it can be started from: q, k and v have their own rank again
    back = pairs_of(read_lora(skeleton, file, "transformer"))
    assert back.keys() == pairs_of(tensors).keys()
    assert {len(down) for down, _ in back.values()} == {2}


def loaded_changes(file: Path) -> dict[str, Tensor]:
    """Return what a file by kohya's names adds to each layer."""
    tensors = load_file(file)
    layers = {name.partition(".")[0] for name in tensors}
    return {
        layer: tensors[f"{layer}.alpha"]
        / len(tensors[f"{layer}.lora_down.weight"])
        * (tensors[f"{layer}.lora_up.weight"] @ tensors[f"{layer}.lora_down.weight"])
        for layer in layers
    }


def test_a_file_of_kohyas_starts_a_stable_diffusion_3(tmp_path: Path) -> None:
    pipe = build_sd3()
    names = {
        "lora_unet_joint_blocks_1_x_block_attn_qkv": (16, 48),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (8, 16),
        "lora_te1_text_model_encoder_layers_0_self_attn_v_proj": (8, 8),
        "lora_te2_text_model_encoder_layers_1_self_attn_q_proj": (12, 12),
    }
    tensors = {}
    for name, (columns, rows) in names.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(3, columns, generator=generator())
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, 3, generator=generator(1))
        tensors[f"{name}.alpha"] = torch.tensor(1.5)
    save_file(tensors, tmp_path / "x.safetensors")

    found = pairs_of(read_lora(pipe, tmp_path / "x.safetensors", "transformer"))
    changes = loaded_changes(tmp_path / "x.safetensors")
    block = "transformer.transformer_blocks.1.attn.to_"
    stacked = torch.cat([up @ down for down, up in (found[f"{block}{one}"] for one in "qkv")])
    assert torch.allclose(stacked, changes["lora_unet_joint_blocks_1_x_block_attn_qkv"])
    assert {name.partition(".")[0] for name in found} >= {"text_encoder", "text_encoder_2"}

    quantized = build_sd3()  # weights in 4 bits have other rows
    quantize(quantized.transformer, "nf4", torch.device("cpu"))
    again = read_lora(quantized, tmp_path / "x.safetensors", "transformer")
    assert again.keys() == read_lora(pipe, tmp_path / "x.safetensors", "transformer").keys()

    policy = Policy.load(pipe, fused_lora=tmp_path / "x.safetensors", train="none", device="cpu")
    assert policy.lora_texts == {"model.fused_lora": ["text_encoder", "text_encoder_2"]}

    unknown = {name.replace("joint_blocks_1", "joint_blocks_9"): v for name, v in tensors.items()}
    save_file(unknown, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="no layer lora_unet_joint_blocks_9_x_block_attn_qkv of a"):
        read_lora(pipe, tmp_path / "y.safetensors", "transformer")


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("sana", "kohya", "take --to diffusers or merged"),
        ("sana", "comfyui", "ComfyUI is not known to read a LoRA for a SanaPipeline"),
    ],
)
def test_where_no_reader_is_known(
    models: Callable[[str], tuple[Any, Any]], tmp_path: Path, kind: str, target: str, words: str
) -> None:
    _, skeleton = models(kind)
    with pytest.raises(ValueError, match=words):
        write_lora(skeleton, random_lora(skeleton), target, tmp_path, "mine")


def test_a_layer_without_a_name_is_refused(models: Callable[[str], tuple[Any, Any]]) -> None:
    _, skeleton = models("flux")
    name = "transformer.x_embedder.lora_"
    tensors = {f"{name}A.weight": torch.ones(1, 4), f"{name}B.weight": torch.ones(16, 1)}
    with pytest.raises(ValueError, match="reads a LoRA of the layer x_embedder of a FluxPipeline"):
        to_kohya(skeleton, tensors)


def test_text_encoders_layers_go_along(
    models: Callable[[str], tuple[Any, Any]], tmp_path: Path
) -> None:
    pipe, skeleton = models("sdxl")
    tensors = random_lora(skeleton)
    layers = {"text_encoder": "encoder.layers.1", "text_encoder_2": "text_model.encoder.layers.0"}
    for part, layer in layers.items():
        for projection in ("q_proj", "out_proj"):
            module = getattr(skeleton, part).get_submodule(f"{layer}.self_attn.{projection}")
            rows, columns = module.weight.shape
            name = f"{part}.{layer}.self_attn.{projection}.lora_"
            tensors[f"{name}A.weight"] = torch.randn(2, columns, generator=generator())
            tensors[f"{name}B.weight"] = torch.randn(rows, 2, generator=generator(1))

    file = write_lora(skeleton, tensors, "kohya", tmp_path, "mine")

    names = load_file(file)
    for number, layer in ((1, 1), (2, 0)):
        key = f"lora_te{number}_text_model_encoder_layers_{layer}_self_attn_q_proj"
        assert f"{key}.lora_up.weight" in names and f"{key}.alpha" in names
    pipe.load_lora_weights(file)
    back = read_lora(skeleton, file, "unet")
    assert pairs_of(back).keys() == pairs_of(tensors).keys()


# The card and the hub ---------------------------------------------------------------------------


def test_the_card_says_what_there_is_and_no_paths(run: Run, tmp_path: Path) -> None:
    card = (export_run(run, "kohya", licence="openrail++") / "README.md").read_text("utf-8")

    for text in ("compressibility", "a cat", "1 iterations", '"openrail++"', "paired gain", "seed"):
        assert text in card
    assert str(tmp_path) not in card and "tiny" in card
    both = run.folder / "exports" / "kohya" / "before-after.png"
    with Image.open(both) as sheet, Image.open(run.sample_grid(1)) as grid:
        assert sheet.width == 2 * grid.width + 8


def test_the_card_says_which_text_encoders_did_not_learn(run: Run) -> None:
    origin = json.loads(run.origin.read_text("utf-8"))
    origin["lora_texts"] = {"model.adapter": ["text_encoder", "text_encoder_2"]}
    run.origin.write_text(json.dumps(origin), "utf-8")
    card = (export_run(run, "diffusers") / "README.md").read_text("utf-8")
    assert "The file has layers of the text_encoder, text_encoder_2 too" in card

    fused = Weights("a", "kohya", "b", "c", fused="style", fused_texts=["text_encoder"])
    assert "with style merged into it and its text_encoder" in loading(fused)


def test_a_folder_in_use_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="mine exists already"):
        export_run(run, "kohya", tmp_path / "mine")
    with pytest.raises(ValueError, match="--to a1111: there is no such target; take diffusers"):
        export_run(run, "a1111")

    export_run(run, "kohya")
    export_run(run, "kohya")  # its own folder is made anew


TOKEN = "hf_" + "a1B2" * 9


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub: it takes small files, in the commit itself."""

    refuse = 0
    commits: ClassVar[list[str]] = []
    created: ClassVar[list[dict[str, Any]]] = []
    tokens: ClassVar[set[str | None]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.tokens.add(self.headers.get("Authorization"))
        if self.refuse:
            self.answer({"error": f"no, {self.headers.get('Authorization')}"}, self.refuse)
        elif self.path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/mine", "id": "me/mine"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.commits.append(body)
            url = f"http://{self.headers['Host']}/me/mine/commit/1"
            self.answer({"commitUrl": url, "commitOid": "1"})
        else:
            self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/mine", "siblings": [], "sha": "0" * 40})

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    kind = type("Answers", (Hub,), {"commits": [], "created": [], "tokens": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()

    yield kind

    server.shutdown()
    server.server_close()


def test_a_push_takes_everything_and_shows_no_token(
    run: Run, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(run.folder), "--to", "kohya", "--licence", "mit"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--push", "me/mine"])

    created = hub.created[0]
    assert created["name"] == "mine"
    assert created.get("private") or created.get("visibility") == "private"
    sent = [json.loads(line) for line in hub.commits[0].splitlines()]
    paths = {line["value"].get("path") for line in sent}
    assert {"README.md", "a-run.safetensors", "before-after.png"} <= paths
    assert hub.tokens == {f"Bearer {TOKEN}"}
    shown = capsys.readouterr()
    assert "me/mine" in shown.out and TOKEN not in shown.out + shown.err


def test_a_refused_push_is_one_sentence_without_the_token(
    run: Run, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse = 403
    command = ["export", str(run.folder), "--licence", "mit", "--push", "me/mine"]
    with pytest.raises(SystemExit, match="2"):
        main(command)

    shown = capsys.readouterr().err
    assert "--push me/mine: the hub wants a login that may write there" in shown
    assert TOKEN not in shown


def test_a_push_needs_a_licence_and_a_name(
    run: Run, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, words in ((["me/mine"], "--push needs --licence"), (["mine"], "OWNER/NAME")):
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(run.folder), "--push", *extra])
        assert words in capsys.readouterr().err
    assert not hub.created


def test_the_licence_of_the_models_card_is_taken(
    run: Run, tmp_path: Path, tiny_pipeline: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_pipeline, model)
    (model / "README.md").write_text("---\ntags: [a]\nlicense: creativeml-openrail-m\n---\n# It\n")
    text = run.config.read_text("utf-8").replace(str(tiny_pipeline), str(model))
    run.config.write_text(text, "utf-8")

    card = (export_run(run, "diffusers") / "README.md").read_text("utf-8")
    assert '\nlicense: "creativeml-openrail-m"\n' in card


# Several adapters -------------------------------------------------------------------------------


def test_adapters_add_up(first: Run, second: Run, tiny_pipeline: Path, tmp_path: Path) -> None:
    sources = [str(first.folder), str(second.folder)]
    folder = merge_adapters(sources, tmp_path / "both", weights=[0.7, -0.4])

    pipe = stock(tiny_pipeline)
    weights = dict(pipe.unet.named_parameters())
    for one, weight in ((first, 0.7), (second, -0.4)):
        read = read_lora(pipe, one.adapter / FILE, "unet")
        for layer, (down, up) in pairs_of(read).items():
            weights[f"{layer.removeprefix('unet.')}.weight"].data += weight * up @ down
    merged = stock(tiny_pipeline)
    merged.load_lora_weights(folder)
    assert torch.allclose(images(merged), images(pipe), atol=1e-5)

    whole = merge_adapters(sources, tmp_path / "w", weights=[0.7, -0.4], target="merged")
    assert torch.allclose(images(stock(whole)), images(pipe), atol=1e-5)
    assert not list(whole.glob("*.safetensors"))

    mean = merge_adapters([sources[0]] * 2, tmp_path / "mean", target="kohya")
    again = stock(tiny_pipeline)
    again.load_lora_weights(mean / "mean.safetensors")
    assert torch.allclose(images(again), as_the_run(first, tiny_pipeline), atol=1e-5)
    assert "| other | -0.4 |" in (folder / "README.md").read_text("utf-8")


def test_a_smaller_rank_is_the_nearest_matrix() -> None:
    draw = generator()
    pairs = [(torch.randn(r, 7, generator=draw), torch.randn(9, r, generator=draw)) for r in (2, 3)]
    exact = 0.5 * pairs[0][1] @ pairs[0][0] + 2 * pairs[1][1] @ pairs[1][0]

    down, up = weighted_sum([*pairs, None], [0.5, 2.0, 1.0], rank=2)

    left, values, right = torch.linalg.svd(exact.double())
    nearest = (left[:, :2] * values[:2]) @ right[:2]
    assert down.shape == (2, 7) and torch.allclose(up @ down, nearest.float(), atol=1e-4)
    down, up = weighted_sum([*pairs, None], [0.5, 2.0, 1.0])
    assert torch.allclose(up @ down, exact, atol=1e-4)


def test_adapters_that_do_not_fit(
    run: Run, second: Run, tiny_pipeline: Path, tiny_sd1: Path, tmp_path: Path
) -> None:
    text = run.config.read_text("utf-8").replace(str(tiny_pipeline), str(tiny_sd1))
    run.config.write_text(text, "utf-8")
    one, two = str(run.folder), str(second.folder)
    cases = [
        ([one], {}, "1 adapters and 1 --weights"),
        ([one, one], {"weights": [1.0]}, "2 adapters and 1 --weights"),
        ([one, two], {}, "were trained on different models"),
        ([str(run.adapter)] * 2, {}, "no source is a run that names its model"),
    ]
    for sources, settings, words in cases:
        with pytest.raises(ValueError, match=words):
            merge_adapters(sources, tmp_path / "out", **settings)

    folder = merge_adapters([str(run.adapter)] * 2, tmp_path / "out", model=str(tiny_pipeline))
    assert (folder / FILE).is_file()
