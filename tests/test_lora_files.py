"""LoRA files of other programs: their strength, every tensor of them, and what is written again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, perturb
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.config import parse
from burnish.diffusion.guidance import NoGuidance
from burnish.diffusion.lora_file import FILE, locate
from burnish.diffusion.lora_metadata import PEFT_CONFIG, PEFT_FILE
from burnish.diffusion.policy import Policy
from burnish.training.assembly import assemble
from burnish.training.origin import origin_of
from burnish.types import Prompt
from burnish.world import World

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")
CATS = [Prompt("a cat"), Prompt("two dogs")]
Layers = dict[str, tuple[Tensor, Tensor]]


def layers_of(network: Any, ends: tuple[str, ...], rank: int = 4, seed: int = 0) -> Layers:
    """Return random matrices (A, B) for the linear layers whose names have one of the ends."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, module.in_features, generator=draw) * 0.3,
            torch.randn(module.out_features, rank, generator=draw) * 0.3,
        )
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(ends)
    }


def kohya(layers: Layers, prefix: str, alpha: float | None) -> dict[str, Tensor]:
    tensors = {}
    for name, (down, up) in layers.items():
        flat = prefix + name.replace(".", "_")
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{flat}.alpha"] = torch.tensor(alpha)

    return tensors


def peft(layers: Layers, prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for name, (down, up) in layers.items():
        tensors |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}

    return tensors


def old_diffusers(layers: Layers, prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for name, (down, up) in layers.items():
        block, _, last = name.partition(".to_")
        end = f"{block}.processor.to_{last.replace('out.0', 'out')}_lora"
        tensors |= {f"{prefix}{end}.down.weight": down, f"{prefix}{end}.up.weight": up}

    return tensors


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config else None
    save_file(
        {name: v.clone().contiguous() for name, v in tensors.items()}, folder / FILE, metadata
    )
    return folder


def stock(model: Path, lora: Path | None = None) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    return pipe


def images(pipe: Any) -> Tensor:
    noise = torch.randn(2, 4, 8, 8, generator=generator())
    drawn = pipe(["a cat", "a dog"], num_inference_steps=3, latents=noise, output_type="pt").images
    assert isinstance(drawn, Tensor)
    return drawn


def states(pipe: Any) -> Tensor:
    text, _ = pipe.encode_prompt(["a cat"], "cpu", 1, False)
    assert isinstance(text, Tensor)
    return text.detach()


def expected(model: Path, changes: dict[str, tuple[Tensor, Tensor, float]]) -> Any:
    """Return a stock pipeline with W + scale B A written into its UNet's weights."""
    pipe = stock(model)
    weights = dict(pipe.unet.named_parameters())

    with torch.no_grad():
        for name, (down, up, scale) in changes.items():
            weights[f"{name}.weight"] += scale * up @ down

    return pipe


def scaled(layers: Layers, scale: float) -> dict[str, tuple[Tensor, Tensor, float]]:
    return {name: (down, up, scale) for name, (down, up) in layers.items()}


STRENGTHS: dict[str, tuple[Callable[[Layers], dict[str, Tensor]], dict[str, Any], float]] = {
    "kohya": (lambda layers: kohya(layers, "lora_unet_", 1.0), {}, 0.25),
    "kohya, a fraction": (lambda layers: kohya(layers, "lora_unet_", 0.5), {}, 0.125),
    "kohya without alpha": (lambda layers: kohya(layers, "lora_unet_", None), {}, 1.0),
    "kohya in half precision": (
        lambda layers: {k: v.half() for k, v in kohya(layers, "lora_unet_", 3.0).items()},
        {},
        0.75,
    ),
    "diffusers": (lambda layers: peft(layers, "unet."), {}, 1.0),
    "diffusers in bfloat16": (
        lambda layers: {k: v.bfloat16() for k, v in peft(layers, "unet.").items()},
        {},
        1.0,
    ),
    "diffusers before peft": (lambda layers: old_diffusers(layers, "unet."), {}, 1.0),
    "metadata": (
        lambda layers: peft(layers, "unet."),
        {"unet.r": 4, "unet.lora_alpha": 6, "unet.target_modules": list(TARGETS)},
        1.5,
    ),
    "rsLoRA": (
        lambda layers: peft(layers, "unet."),
        {
            "unet.r": 4,
            "unet.lora_alpha": 1,
            "unet.use_rslora": True,
            "unet.target_modules": list(TARGETS),
        },
        0.5,
    ),
}


@pytest.mark.parametrize("kind", STRENGTHS)
@pytest.mark.parametrize("train", ["lora", "none", "fused"])
def test_a_lora_has_the_strength_that_its_file_says(
    tiny_pipeline: Path, tmp_path: Path, kind: str, train: str
) -> None:
    spelled, config, scale = STRENGTHS[kind]
    layers = layers_of(stock(tiny_pipeline).unet, TARGETS)
    folder = write(tmp_path / "lora", spelled(layers), config)

    if train == "fused":
        policy = Policy.load(tiny_pipeline, train="none", fused_lora=folder)
    else:
        policy = Policy.load(tiny_pipeline, train=train, adapter=folder)

    plain = images(stock(tiny_pipeline))
    truth = images(expected(tiny_pipeline, scaled(layers, scale)))
    assert not torch.allclose(truth, plain, atol=1e-2)
    # half precision in the file
    close = 1e-2 if "precision" in kind or "bfloat16" in kind else 1e-5
    torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=close)
    torch.testing.assert_close(images(stock(tiny_pipeline, folder)), truth, rtol=0, atol=close)

    if train == "lora":  # and it goes on from there with the strength of the configuration
        again = Policy.load(tiny_pipeline, alpha=2.5, adapter=folder)
        torch.testing.assert_close(images(again.pipe), truth, rtol=0, atol=close)
        again.save_adapter(tmp_path / "saved")
        saved = images(stock(tiny_pipeline, tmp_path / "saved"))
        torch.testing.assert_close(saved, truth, rtol=0, atol=close)


def test_layers_may_have_alphas_of_their_own(tiny_pipeline: Path, tmp_path: Path) -> None:
    layers = layers_of(stock(tiny_pipeline).unet, TARGETS)
    tensors = peft(layers, "unet.")
    changes = scaled(layers, 1.0)

    for count, (name, (down, up)) in enumerate(layers.items()):
        tensors[f"unet.{name}.alpha"] = torch.tensor(float(count % 3 + 1))
        changes[name] = (down, up, (count % 3 + 1) / 4)

    # stock diffusers reads no such names, but the file says what it means
    folder = write(tmp_path / "own", tensors)
    truth = images(expected(tiny_pipeline, changes))
    policy = Policy.load(tiny_pipeline, adapter=folder)
    torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)
    policy.save_adapter(tmp_path / "saved")
    saved = images(stock(tiny_pipeline, tmp_path / "saved"))
    torch.testing.assert_close(saved, truth, rtol=0, atol=1e-5)

    pattern = {name: 6.0 for name in layers if name.endswith("to_q")}
    settings = {
        "unet.r": 4,
        "unet.lora_alpha": 2,
        "unet.alpha_pattern": pattern,
        "unet.target_modules": list(TARGETS),
    }
    folder = write(tmp_path / "pattern", peft(layers, "unet."), settings)
    changes = scaled(layers, 0.5) | scaled({name: layers[name] for name in pattern}, 1.5)
    truth = images(expected(tiny_pipeline, changes))
    for settings in ({"train": "lora"}, {"train": "none"}):
        policy = Policy.load(tiny_pipeline, adapter=folder, **settings)
        torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_folder(tiny_pipeline: Path, tmp_path: Path, rslora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    pipe = stock(tiny_pipeline)
    settings = LoraConfig(r=4, lora_alpha=1, use_rslora=rslora, target_modules=list(TARGETS))
    adapted = get_peft_model(pipe.unet, settings)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3, generator=generator())

    adapted.save_pretrained(tmp_path)
    truth = images(pipe)

    for settings in ({}, {"train": "none"}):
        policy = Policy.load(tiny_pipeline, adapter=tmp_path, **settings)
        torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("name", ["my.safetensors", FILE])
@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_peft_file_by_another_name_has_the_strength_of_the_configuration_beside_it(
    tiny_pipeline: Path, tmp_path: Path, prefix: str, name: str, given: str
) -> None:
    layers = layers_of(stock(tiny_pipeline).unet, TARGETS)
    save_file(peft(layers, prefix), tmp_path / name)
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({"lora_alpha": 1, "r": 4}))
    truth = images(expected(tiny_pipeline, scaled(layers, 0.25)))
    place = tmp_path / name if given == "file" else tmp_path

    for settings in ({"adapter": place}, {"train": "none", "fused_lora": place}):
        policy = Policy.load(tiny_pipeline, **settings)
        torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["metadata of its own", "an export", "beside peft's own"])
def test_a_configuration_of_another_file_does_not_count(
    tiny_pipeline: Path, tmp_path: Path, kind: str
) -> None:
    layers = layers_of(stock(tiny_pipeline).unet, TARGETS)
    tensors, config = {
        "metadata of its own": (peft(layers, "unet."), {"unet.r": 4, "unet.lora_alpha": 4}),
        "an export": (kohya(layers, "lora_unet_", None), {}),
        "beside peft's own": (peft(layers, "unet."), {}),
    }[kind]
    write(tmp_path, tensors, config)
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({"lora_alpha": 1, "r": 4}))
    if kind == "beside peft's own":
        save_file(peft(layers, "base_model.model."), tmp_path / PEFT_FILE)

    policy = Policy.load(tiny_pipeline, adapter=tmp_path / FILE)
    truth = images(expected(tiny_pipeline, scaled(layers, 1.0)))
    torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)


def test_pefts_configuration_comes_from_the_hub_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [f"sub/{PEFT_FILE}", f"sub/{PEFT_CONFIG}", PEFT_CONFIG, "README.md"]
    downloaded = []

    def download(repository: str, name: str) -> str:
        downloaded.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr("burnish.pretrained.ask_hub", lambda *arguments: (None, files))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert locate(f"owner/name/sub/{PEFT_FILE}", "model.adapter") == tmp_path / "sub" / PEFT_FILE
    assert downloaded == [f"sub/{PEFT_CONFIG}", f"sub/{PEFT_FILE}"]


@pytest.mark.parametrize(("alpha", "scale"), [("1", 0.25), ("0.5", 0.125), ("None", 1.0)])
def test_a_kohya_file_without_alphas_has_the_strength_of_its_header(
    tiny_pipeline: Path, tmp_path: Path, alpha: str, scale: float
) -> None:
    layers = layers_of(stock(tiny_pipeline).unet, TARGETS)
    header = {"ss_network_alpha": alpha, "ss_network_dim": "4"}
    file = tmp_path / "kohya.safetensors"
    save_file(kohya(layers, "lora_unet_", None), file, header)
    truth = images(expected(tiny_pipeline, scaled(layers, scale)))

    for settings in ({"adapter": file}, {"train": "none", "fused_lora": file}):
        policy = Policy.load(tiny_pipeline, **settings)
        torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)

    save_file(kohya(layers, "lora_unet_", 2.0), file, header)  # its own alphas count
    policy = Policy.load(tiny_pipeline, adapter=file)
    truth = images(expected(tiny_pipeline, scaled(layers, 0.5)))
    torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)


def test_layers_of_other_ranks_and_kinds_are_merged_but_not_trained(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    unet = stock(tiny_pipeline).unet
    layers = layers_of(unet, ("to_q", "to_k"), 4) | layers_of(unet, ("to_v", "ff.net.2"), 2)
    folder = write(tmp_path, peft(layers, "unet."))

    with pytest.raises(ValueError, match=r"layers of the ranks 2, 4, .* model.fused_lora"):
        Policy.load(tiny_pipeline, adapter=folder)

    truth = images(expected(tiny_pipeline, scaled(layers, 1.0)))
    for settings in ({"adapter": folder}, {"fused_lora": folder}):
        policy = Policy.load(tiny_pipeline, train="none", **settings)
        torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spelled", ["peft", "kohya", "old"])
def test_text_encoder_layers_of_a_start_stay_and_are_written_again(
    tiny_pipeline: Path, tmp_path: Path, spelled: str
) -> None:
    pipe = stock(tiny_pipeline)
    network = layers_of(pipe.unet, TARGETS)
    text = {
        f"text_model.{name}": matrices
        for name, matrices in layers_of(pipe.text_encoder, TEXT_TARGETS).items()
    }
    tensors = peft(network, "unet.") | peft(text, "text_encoder.")
    if spelled == "kohya":
        tensors = kohya(network, "lora_unet_", 2.0) | kohya(text, "lora_te_", 2.0)
    if spelled == "old":
        named = {
            name.replace("q_proj.", "to_q_lora.")
            .replace("k_proj.", "to_k_lora.")
            .replace("v_proj.", "to_v_lora.")
            .replace("out_proj.", "to_out_lora.")
            .replace("fc1.", "fc1.lora_linear_layer.")
            .replace("lora_A.", "down.")
            .replace("lora_B.", "up."): value
            for name, value in peft(text, "text_encoder.").items()
        }
        tensors = old_diffusers(network, "unet.") | named

    folder = write(tmp_path / "lora", tensors)
    reader = stock(tiny_pipeline, folder)
    assert (states(reader) - states(pipe)).abs().max() > 0.1

    for settings in ({}, {"train": "none"}, {"alpha": 7.0}):
        policy = Policy.load(tiny_pipeline, adapter=folder, **settings)
        torch.testing.assert_close(policy.encode(CATS[:1])["text"], states(reader))
        torch.testing.assert_close(images(policy.pipe), images(reader), rtol=0, atol=1e-5)

    learned = {id(p) for p in policy.trainable}
    assert not any(
        id(p) in learned or p.requires_grad for p in policy.pipe.text_encoder.parameters()
    )
    perturb(policy)
    policy.save_adapter(tmp_path / "saved")
    saved = stock(tiny_pipeline, tmp_path / "saved")
    torch.testing.assert_close(images(saved), images(policy.pipe), rtol=0, atol=1e-5)

    policy.set_lora_scale(0)
    torch.testing.assert_close(policy.encode(CATS[:1])["text"], states(pipe))

    merged = Policy.load(tiny_pipeline, fused_lora=folder)
    torch.testing.assert_close(images(merged.pipe), images(reader), rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", ["adapter", "fused_lora"])
@pytest.mark.parametrize("place", ["folder", "file", "hub"])
def test_a_run_says_which_text_encoders_a_lora_changes(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, key: str
) -> None:
    pipe = stock(tiny_pipeline)
    text = {
        f"text_model.{name}": matrices
        for name, matrices in layers_of(pipe.text_encoder, TEXT_TARGETS).items()
    }
    tensors = kohya(layers_of(pipe.unet, TARGETS), "lora_unet_", 2.0)
    folder = write(tmp_path / "lora", tensors | kohya(text, "lora_te_", 2.0))
    source = {"folder": folder, "file": folder / FILE, "hub": f"owner/name/{FILE}"}[place]
    monkeypatch.setattr("burnish.pretrained.ask_hub", lambda *arguments: (folder, []))
    tree = {
        "model": {"id": str(tiny_pipeline), "device": "cpu", key: str(source)},
        "prompts": ["a cat"],
        "rewards": [{"use": "compressibility"}],
    }

    with pytest.warns(UserWarning, match=f"model.{key}: the LoRA changes the text_encoder too"):
        parts = assemble(parse(tree))
    reader = stock(tiny_pipeline, folder)
    torch.testing.assert_close(parts.policy.encode(CATS[:1])["text"], states(reader))
    assert parts.policy.lora_texts == {f"model.{key}": ["text_encoder"]}
    assert not any(p.requires_grad for p in parts.policy.pipe.text_encoder.parameters())
    origin = origin_of(parse(tree), World(), parts)
    assert origin["lora_texts"] == parts.policy.lora_texts


def spoiled(layers: Layers, how: str) -> dict[str, Tensor]:
    """Return a LoRA with something in it that has no place."""
    name, (down, up) = next(iter(layers.items()))
    flat = f"lora_unet_{name.replace('.', '_')}"
    good = kohya(layers, "lora_unet_", 1.0)
    plain = peft(layers, "unet.")
    return {
        "LoHa": {**good, f"{flat}.hada_w1_a": up, f"{flat}.hada_w1_b": down},
        "LoKr": {f"unet.{name}.lokr_w1": up, f"unet.{name}.lokr_w2": down},
        "kohya's DoRA": {**good, f"{flat}.dora_scale": torch.ones(len(up), 1)},
        "a middle matrix": {**good, f"{flat}.lora_mid.weight": torch.ones(4, 4, 1, 1)},
        "a difference": {**good, f"{flat}.diff": up @ down},
        "an alpha alone": {**good, "lora_unet_other.alpha": torch.tensor(1.0)},
        "half a pair": {k: v for k, v in plain.items() if k != f"unet.{name}.lora_A.weight"},
        "not finite": {**plain, f"unet.{name}.lora_B.weight": up / 0},
        "a layer that is not there": {
            **plain,
            "unet.down_blocks.9.to_q.lora_A.weight": down,
            "unet.down_blocks.9.to_q.lora_B.weight": up,
        },
        "a second text encoder": {
            **plain,
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": down,
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": up,
        },
        "another width": {**plain, f"unet.{name}.lora_A.weight": torch.ones(4, 99)},
        "nothing": {"unet.other": torch.ones(1)},
    }[how]


NAMED = {
    "LoHa": "hada_w1_a",
    "LoKr": "lokr_w1",
    "kohya's DoRA": "dora_scale",
    "a middle matrix": "lora_mid",
    "a difference": r"\.diff",
    "an alpha alone": "lora_unet_other.alpha",
    "half a pair": r"lacks lora_A.weight",
    "not finite": r"lora_B.weight is not finite",
    "a layer that is not there": "no layer unet.down_blocks.9.to_q",
    "a second text encoder": "no layer text_encoder_2",
    "another width": r"lora_A.weight is \(4, 99\)",
    "nothing": "unet.other",
}


@pytest.mark.parametrize("how", NAMED)
def test_a_tensor_without_a_place_is_named(tiny_pipeline: Path, tmp_path: Path, how: str) -> None:
    layers = layers_of(stock(tiny_pipeline).unet, TARGETS)
    folder = write(tmp_path, spoiled(layers, how))

    for settings in (
        {"adapter": folder},
        {"adapter": folder, "train": "none"},
        {"fused_lora": folder},
    ):
        with pytest.raises(ValueError, match=NAMED[how]) as caught:
            Policy.load(tiny_pipeline, **settings)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


MALFORMED: dict[str, tuple[str, str]] = {
    "alpha as a text": ('{"lora_alpha": "1"}', "lora_alpha in PLACE is '1', .* a number of more"),
    "no alpha": ('{"lora_alpha": null}', "lora_alpha in PLACE is None"),
    "alpha true": ('{"lora_alpha": true}', "lora_alpha in PLACE is True"),
    "alpha NaN": ('{"lora_alpha": NaN}', "lora_alpha in PLACE is nan"),
    "alpha infinite": ('{"lora_alpha": Infinity}', "lora_alpha in PLACE is inf"),
    "alpha zero": ('{"lora_alpha": 0}', "lora_alpha in PLACE is 0"),
    "alpha negative": ('{"lora_alpha": -1}', "lora_alpha in PLACE is -1"),
    "alpha enormous": (f'{{"lora_alpha": 1{"0" * 400}}}', r"lora_alpha in PLACE is 10+\.\.\.0+,"),
    "of a part": ('{"unet.lora_alpha": []}', r"unet.lora_alpha in PLACE is \[\]"),
    "a list": ("[1, 2]", r"PLACE is \[1, 2\], but must be a JSON object"),
    "no JSON": ("{lora_alpha", "PLACE is .*lora_alpha'?, but must be a JSON object"),
    "a pattern of texts": (
        '{"alpha_pattern": {"to_q": "6"}}',
        "alpha_pattern.to_q in PLACE is '6', but must be a number of more",
    ),
    "a pattern with zero": ('{"alpha_pattern": {"to_q": 0}}', "alpha_pattern.to_q in PLACE is 0"),
    "a pattern that is a list": (
        '{"alpha_pattern": ["to_q"]}',
        "alpha_pattern in PLACE is .*, but must be a JSON object",
    ),
    "a pattern that is none": (
        '{"alpha_pattern": {"*to_q": 6}}',
        r"alpha_pattern in PLACE is '\*to_q', but must be by layers or regular expressions",
    ),
    "ranks that are a list": ('{"rank_pattern": [4]}', r"rank_pattern in PLACE is \[4\]"),
    "a fraction of a rank": (
        '{"rank_pattern": {"to_q": 4.5}}',
        "rank_pattern.to_q in PLACE is 4.5, but must be a whole number of at least 1",
    ),
    "rank as a text": ('{"r": "4"}', "r in PLACE is '4', but must be a whole number"),
    "rsLoRA as a text": ('{"use_rslora": "no"}', "use_rslora in PLACE is 'no', .* true or false"),
}


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("beside", [False, True])
def test_malformed_metadata_are_one_sentence(
    tiny_pipeline: Path, tmp_path: Path, kind: str, beside: bool
) -> None:
    text, message = MALFORMED[kind]
    file = tmp_path / "my.safetensors"
    header = {} if beside else {"lora_adapter_metadata": text}
    save_file(peft(layers_of(stock(tiny_pipeline).unet, TARGETS), ""), file, header)
    if beside:
        (tmp_path / PEFT_CONFIG).write_text(text)

    place = f"the {PEFT_CONFIG} beside it" if beside else "the header's lora_adapter_metadata"
    with pytest.raises(ValueError, match=message.replace("PLACE", place)) as caught:
        Policy.load(tiny_pipeline, adapter=file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("save the LoRA again with the program that made it")


@pytest.mark.parametrize(
    ("alpha", "header", "message"),
    [
        (
            torch.ones(2),
            {},
            r"its tensor lora_unet_\w+.alpha is \[1.0, 1.0\], but must be",
        ),
        (torch.tensor(0.0), {}, r"its tensor lora_unet_\w+.alpha is 0.0, but must be a number"),
        (torch.tensor(-1.0), {}, r"its tensor lora_unet_\w+.alpha is -1.0, but must be"),
        (None, {"ss_network_alpha": "Dynamic"}, "ss_network_alpha in the header is 'Dynamic'"),
        (None, {"ss_network_alpha": "nan"}, "ss_network_alpha in the header is 'nan'"),
        (None, {"ss_network_alpha": "0"}, "ss_network_alpha in the header is '0'"),
    ],
)
def test_malformed_alphas_of_kohya_are_one_sentence(
    tiny_pipeline: Path,
    tmp_path: Path,
    alpha: Tensor | None,
    header: dict[str, str],
    message: str,
) -> None:
    tensors = kohya(layers_of(stock(tiny_pipeline).unet, TARGETS), "lora_unet_", None)
    if alpha is not None:
        tensors |= {
            name.replace("lora_up.weight", "alpha"): alpha.clone()
            for name in tensors
            if name.endswith("lora_up.weight")
        }

    file = tmp_path / "kohya.safetensors"
    save_file(tensors, file, header)
    with pytest.raises(ValueError, match=message) as caught:
        Policy.load(tiny_pipeline, train="none", fused_lora=file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("save the LoRA again with the program that made it")


def test_layers_beyond_the_targets_are_named(tiny_pipeline: Path, tmp_path: Path) -> None:
    layers = layers_of(stock(tiny_pipeline).unet, (*TARGETS, "ff.net.2"))
    folder = write(tmp_path, kohya(layers, "lora_unet_", 4.0))
    with pytest.raises(ValueError, match=r"model.targets: it has the unknown .*ff.net.2"):
        Policy.load(tiny_pipeline, adapter=folder)

    targets = [*TARGETS, "ff.net.2"]
    policy = Policy.load(tiny_pipeline, adapter=folder, targets=targets)
    truth = images(expected(tiny_pipeline, scaled(layers, 1.0)))
    torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)


def test_a_folder_with_several_loras_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    layers = layers_of(stock(tiny_pipeline).unet, TARGETS)
    write(tmp_path, kohya(layers, "lora_unet_", 4.0))
    (tmp_path / FILE).rename(tmp_path / "b-last.safetensors")
    only = Policy.load(tiny_pipeline, train="none", fused_lora=tmp_path)
    save_file(kohya(layers, "lora_unet_", 1.0), tmp_path / "a-first.safetensors")

    for settings in ({"adapter": tmp_path}, {"fused_lora": tmp_path}):
        with pytest.raises(ValueError, match=r"2 LoRA files \(a-first.*, b-last.*\): name one"):
            Policy.load(tiny_pipeline, **settings)

    for settings in (
        {"train": "none", "fused_lora": tmp_path / "b-last.safetensors"},
        {"adapter": tmp_path / "b-last.safetensors"},
    ):
        policy = Policy.load(tiny_pipeline, **settings)
        torch.testing.assert_close(images(policy.pipe), images(only.pipe), rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 6.0])
def test_an_export_needs_no_metadata(tiny_pipeline: Path, tmp_path: Path, alpha: float) -> None:
    policy = Policy.load(tiny_pipeline, rank=4, alpha=alpha)
    perturb(policy)
    policy.save_adapter(tmp_path / "adapter")
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file(load_file(tmp_path / "adapter" / FILE), bare / FILE)

    for folder in (tmp_path / "adapter", bare):
        torch.testing.assert_close(
            images(stock(tiny_pipeline, folder)), images(policy.pipe), rtol=0, atol=1e-5
        )

    first = (tmp_path / "adapter" / FILE).read_bytes()
    policy.save_adapter(tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == first


@pytest.mark.parametrize("strength", [0.5, 0.0, 2.0])
def test_an_export_does_not_depend_on_the_strength_of_sampling(
    tiny_pipeline: Path, tmp_path: Path, strength: float
) -> None:
    policy = Policy.load(tiny_pipeline, alpha=6.0)
    perturb(policy)
    trained = images(policy.pipe)
    policy.save_adapter(tmp_path / "before")

    policy.set_lora_scale(strength)
    dialled = images(policy.pipe)
    assert not torch.allclose(dialled, trained, atol=1e-3)
    policy.save_adapter(tmp_path / "after")
    written = [(tmp_path / name / FILE).read_bytes() for name in ("before", "after")]
    assert written[0] == written[1]

    assert torch.equal(images(policy.pipe), dialled)  # and the strength stays
    policy.set_lora_scale(strength)
    assert torch.equal(images(policy.pipe), dialled)
    policy.set_lora_scale(1.0)
    assert torch.equal(images(policy.pipe), trained)


@pytest.mark.parametrize("train", ["full", "none"])
def test_without_a_lora_there_is_no_strength(tiny_pipeline: Path, train: str) -> None:
    with pytest.raises(ValueError, match=r"needs a LoRA adapter.* leave the strength at 1"):
        Policy.load(tiny_pipeline, train=train).set_lora_scale(0.5)


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("when", ["before", "after", "a block"])
def test_a_compiled_network_is_exported_under_its_own_names(
    tiny_pipeline: Path, tmp_path: Path, train: str, when: str
) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline)
    if when == "before":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    if when == "a block":
        pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")

    policy = Policy.load(pipe, train=train, device="cpu", alpha=2.0)
    if when == "after":
        policy.pipe.unet = torch.compile(policy.pipe.unet, backend="eager")

    perturb(policy)
    assert not any("_orig_mod" in name for name in policy.state())
    Policy.load(tiny_pipeline, train=train, device="cpu", alpha=2.0).load_state(policy.state())
    policy.save_adapter(tmp_path / "adapter")
    again = stock(tiny_pipeline)

    if train == "lora":
        again.load_lora_weights(tmp_path / "adapter")
    else:
        again.unet = type(again.unet).from_pretrained(tmp_path / "adapter")

    truth = images(again)
    assert not torch.allclose(truth, images(stock(tiny_pipeline)), atol=1e-2)
    torch.testing.assert_close(images(policy.pipe), truth, rtol=0, atol=1e-5)
    reread = Policy.load(tiny_pipeline, train=train, alpha=2.0, adapter=tmp_path / "adapter")
    torch.testing.assert_close(images(reread.pipe), truth, rtol=0, atol=1e-5)


def test_an_export_that_would_mean_something_else_is_refused(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(tiny_pipeline)
    perturb(policy)

    def halved(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file({name: value / 2 for name, value in tensors.items()}, path, metadata)

    def renamed(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        named = {name.replace("mid_block", "mid._orig_mod"): v for name, v in tensors.items()}
        save_file(named, path, metadata)

    for spoil, message in ((halved, "by something else"), (renamed, "no layer")):
        monkeypatch.setattr("burnish.diffusion.lora.save_file", spoil)
        with pytest.raises((RuntimeError, ValueError), match=message):
            policy.save_adapter(tmp_path)

    assert not any(tmp_path.iterdir())


def test_no_network_of_an_adapter_is_left_out(
    tiny_sd1: Path, tiny_controlnet: Path, tmp_path: Path
) -> None:
    both = Policy.load(tiny_sd1, controlnet=str(tiny_controlnet), trainable_parts="both")
    both.save_adapter(tmp_path)

    with pytest.raises(ValueError, match=r"weights for the controlnet, which .* set it to 'both'"):
        Policy.load(tiny_sd1, adapter=tmp_path)
    with pytest.raises(ValueError, match=r"weights for the unet, which model.trainable_parts"):
        Policy.load(
            tiny_sd1,
            controlnet=str(tiny_controlnet),
            trainable_parts="controlnet",
            adapter=tmp_path,
        )


def test_a_given_pipeline_with_an_adapter_in_its_text_encoder(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    pipe = stock(tiny_pipeline)
    text = layers_of(pipe.text_encoder, TEXT_TARGETS)
    pipe.load_lora_weights(write(tmp_path, peft(text, "text_encoder.")))
    with pytest.raises(ValueError, match="the given pipeline's text_encoder has an adapter"):
        Policy.load(pipe)


def test_predictions_do_not_depend_on_the_format(tiny_pipeline: Path, tmp_path: Path) -> None:
    layers = layers_of(stock(tiny_pipeline).unet, TARGETS)
    one = write(tmp_path / "one", kohya(layers, "lora_unet_", 4.0))
    two = write(tmp_path / "two", peft(layers, "unet."))
    x = torch.randn(2, 4, 8, 8, generator=generator())

    def predict(folder: Path) -> Tensor:
        policy = Policy.load(tiny_pipeline, adapter=folder)
        with torch.no_grad():
            return policy.predict(x, torch.tensor([901, 1]), policy.encode(CATS), NoGuidance())

    assert torch.equal(predict(one), predict(two))


@pytest.mark.filterwarnings("ignore")
def test_trl_saves_a_pipeline_without_the_text_encoders_layers(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    from burnish.compat.trl.pipeline import DefaultDDPOStableDiffusionPipeline

    pipe = stock(tiny_pipeline)
    layers = peft(layers_of(pipe.unet, TARGETS), "unet.")
    layers |= peft(layers_of(pipe.text_encoder, TEXT_TARGETS), "text_encoder.")
    folder = write(tmp_path / "lora", layers)
    ours = DefaultDDPOStableDiffusionPipeline(str(tiny_pipeline), adapter=folder)
    policy = ours.to_policy("float32", "cpu")
    before = images(policy.pipe)
    ours.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(images(policy.pipe), before)
    saved = stock(tmp_path / "saved")
    torch.testing.assert_close(states(saved), states(pipe))
    saved.load_lora_weights(tmp_path / "saved")
    torch.testing.assert_close(states(saved), states(policy.pipe))


def changed_weights(pipe: Any, before: Any) -> dict[str, Tensor]:
    """Return what a merged LoRA added to each weight of a UNet, where that is something."""
    plain = before.unet.state_dict()
    added = {name: value - plain[name] for name, value in pipe.unet.state_dict().items()}
    return {name: value for name, value in added.items() if value.any()}


def test_kohyas_convolutions_are_merged_as_stock_diffusers_does(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    pipe = stock(tiny_pipeline)
    draw = generator()
    tensors = {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith(("conv1", "conv2", "conv_shortcut")) and "resnets" in name:
            flat = f"lora_unet_{name.replace('.', '_')}"
            down = (2, *layer.weight.shape[1:])
            tensors[f"{flat}.lora_down.weight"] = torch.randn(down, generator=draw) * 0.3
            up = torch.randn(len(layer.weight), 2, 1, 1, generator=draw) * 0.3
            tensors |= {f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(1.0)}

    _compare_with_stock(tiny_pipeline, tensors, tmp_path)

    # the header's alpha of convolutions is the same one
    arguments = {"ss_network_alpha": "2", "ss_network_args": '{"conv_alpha": "1"}'}
    bare = {name: value for name, value in tensors.items() if not name.endswith(".alpha")}
    spatial = [name for name in bare if bare[name].shape[2:].numel() > 1]
    large = {n: v for n, v in bare.items() if n.replace("_up.", "_down.") in spatial}
    save_file(large, tmp_path / "bare.safetensors", arguments)
    alphas = {n: v for n, v in tensors.items() if n.replace("alpha", "lora_down.weight") in spatial}
    save_file(large | alphas, tmp_path / "own.safetensors")
    one, two = (
        Policy.load(tiny_pipeline, train="none", fused_lora=tmp_path / f"{name}.safetensors")
        for name in ("bare", "own")
    )
    torch.testing.assert_close(one.pipe.unet.state_dict(), two.pipe.unet.state_dict())


def test_sdxls_blocks_by_kohyas_names(tiny_sdxl: Path, tmp_path: Path) -> None:
    attention = "transformer_blocks_0_attn1_to_q"
    widths = {"input_blocks_3_1": 8, "middle_block_1": 16, "output_blocks_0_1": 16}
    draw = generator()
    tensors = {}
    for block, width in widths.items():
        flat = f"lora_unet_{block}_{attention}"
        tensors[f"{flat}.lora_down.weight"] = torch.randn(2, width, generator=draw)
        tensors[f"{flat}.lora_up.weight"] = torch.randn(width, 2, generator=draw)
        tensors[f"{flat}.alpha"] = torch.tensor(1.0)

    assert len(_compare_with_stock(tiny_sdxl, tensors, tmp_path)) == 3


def _compare_with_stock(model: Path, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Merge a LoRA here and with stock diffusers; return what either added."""
    file = folder / "kohya.safetensors"
    save_file(tensors, file)
    plain = DiffusionPipeline.from_pretrained(model)
    theirs = DiffusionPipeline.from_pretrained(model)
    theirs.load_lora_weights(file)
    theirs.fuse_lora()
    theirs.unload_lora_weights()

    truth = changed_weights(theirs, plain)
    ours = Policy.load(model, train="none", fused_lora=file).pipe
    assert len(truth) == sum(name.endswith("lora_down.weight") for name in tensors)
    torch.testing.assert_close(changed_weights(ours, plain), truth)
    return truth
