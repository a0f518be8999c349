"""The weights of a run, written for other programs, with a model card, and put on the hub.

    diffusers   RUN/adapter as it is
    kohya       one LoRA file with kohya's names, for kohya's programs, ComfyUI, Forge
    comfyui     the same, or for Stable Diffusion 3 by the names that only ComfyUI reads
    merged      a whole pipeline with what was learned in its weights

What is written by other names is read back, and compared with what the run has.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from burnish import config as configuration
from burnish.config import Config
from burnish.diffusion import lora, lora_file, lora_names
from burnish.diffusion.families import family_of
from burnish.diffusion.family import CONTROLNET
from burnish.diffusion.loading import present_device
from burnish.diffusion.policy import DTYPES, Policy
from burnish.diffusion.skeleton import load_skeleton
from burnish.diffusion.weights import uncompiled
from burnish.files import publishing, remove_folder, write
from burnish.report.card import GRID, Training, Weights, model_card
from burnish.report.results import stored
from burnish.run_files import EvaluationFile, GridFile, numbered, read_json
from burnish.runs import Run
from burnish.stages import stage
from burnish.tools.gallery import preferred
from burnish.training.assembly import load_policy
from burnish.training.export import exported_iteration

TARGETS = ("diffusers", "kohya", "comfyui", "merged")

GAP = 8
"""Pixels between the grids before and after."""


def export_run(run: Run, target: str, out: Path | None = None, licence: str = "") -> Path:
    """Write what a run has learned for other programs, and return the folder.

    Args:
        run: that has an adapter.
        target: one of `TARGETS`.
        out: a new folder; None: one in the run directory, which an earlier export may have made.
        licence: of what is written, as the hub names it; "": that of the model, where it is known.

    Raises:
        FileExistsError: anything is in `out`.
        FileNotFoundError: the run has no adapter yet.
        ValueError: there is no such target, or no program is known that could read what was
            learned; the message says what there is instead.
    """
    check_target(target)
    iteration = exported_iteration(run)
    config = configuration.load(run.config, purpose="compare")
    name = file_name(run.folder)
    folder = free_folder(out, run.folder / "exports" / target)

    with publishing(folder, lora.sort_metadata) as temporary:
        with stage("exporting", f"{run.folder} for {target}"):
            about = _write_weights(run, config, target, name, temporary)

        licence = licence or known_licence(config.model.id)
        weights = Weights(name=name, licence=licence, **about)
        drawn = write_before_and_after(run, temporary / GRID)
        layout = stored(run.samples / "prompts.json", GridFile)
        training = Training(
            asdict(config),
            iteration,
            stored(run.evaluation, EvaluationFile),
            layout.get("texts", ()),
            drawn,
            preferred(str(run.folder)),
        )
        write(temporary / "README.md", model_card(weights, training))

    return folder


def check_target(target: str) -> None:
    """Raise ValueError if there is no such target."""
    if target not in TARGETS:
        raise ValueError(f"--to {target}: there is no such target; take {', '.join(TARGETS)}")


def free_folder(out: Path | None, default: Path) -> Path:
    """Return the folder to write into: `out`, or the default one, from which all is deleted.

    Raises:
        FileExistsError: `out` is not empty: a folder that goes to the hub goes there whole.
    """
    if out is None:
        remove_folder(default)
        return default
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already; choose a new folder for --out")
    return out


def file_name(folder: Path) -> str:
    """Return a name for a file of what a folder has, without space and marks."""
    return re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "burnish"


def _write_weights(
    run: Run, config: Config, target: str, name: str, folder: Path
) -> dict[str, Any]:
    """Write the weights of a run, and return what the card says of them."""
    origin = read_json(run.origin, dict[str, Any], "delete it") if run.origin.is_file() else {}
    texts = origin.get("lora_texts", {})
    about: dict[str, Any] = {
        "target": target,
        "base": config.model.id,
        "fused": config.model.fused_lora,
        "fused_texts": texts.get("model.fused_lora", ()),
        "texts": texts.get("model.adapter", ()),
        "quantization": config.model.quantization,
        "lora": config.model.train == "lora",
        "learned": config.model.train != "none",
    }

    if target == "merged" and config.model.train == "none":
        raise ValueError(
            f"--to merged writes the model with what it learned, and that of {run.folder} did not "
            "learn: take --to diffusers, which has what learned around it"
        )
    if target == "merged":
        warn_of_words(config, run.folder)
        pipe = merged_pipeline(run, config)
        pipe.save_pretrained(folder)
        return {**about, "pipeline": type(pipe).__name__, "lora": False}

    skeleton = load_skeleton(config.model.id, config.model.revision or None, config.model.config)
    if target == "diffusers":
        shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
        return {**about, "pipeline": type(skeleton).__name__, "file": lora.FILE}

    _check_is_one_lora(run, config, target)
    warn_of_words(config, run.folder)
    part = family_of(type(skeleton).__name__).network
    tensors = lora_file.read_lora(skeleton, run.adapter / lora.FILE, part)
    file = write_lora(skeleton, tensors, target, folder, name)
    return {**about, "pipeline": type(skeleton).__name__, "file": file.name}


def warn_of_words(config: Config, folder: Path) -> None:
    """Warn that the images of a run were drawn with words that these weights come without."""
    tokens = config.sampler.identifiers == "tokens"
    expands = config.expander.model and config.expander.train != "none"
    parts = ["the tokens of its identifiers"] * tokens + ["its prompt expander"] * bool(expands)
    if parts:
        warnings.warn(
            f"{folder}: what is written comes without {' and '.join(parts)}, with which its images "
            f"were drawn; --to diffusers writes all, and it lies in {folder / 'adapter'}",
            stacklevel=2,
        )


def _check_is_one_lora(run: Run, config: Config, target: str) -> None:
    """Raise ValueError if a run has learned something else than a LoRA of its model's network."""
    model = config.model
    wrong = {
        "its whole network was trained": model.train == "full",
        "its model did not learn": model.train == "none",
        "its ControlNet learned": bool(model.trainable_parts),
    }
    for reason, applies in wrong.items():
        if applies:
            others = "diffusers" if model.train == "none" else "diffusers or merged"
            raise ValueError(
                f"--to {target} writes a LoRA of a model's network, and of {run.folder} {reason}: "
                f"take --to {others}"
            )


def write_lora(
    skeleton: Any, tensors: Mapping[str, Tensor], target: str, folder: Path, name: str
) -> Path:
    """Write a LoRA for a target, read it back, and return its file.

    Args:
        skeleton: the pipeline that it is for (`load_skeleton`).
        tensors: as `lora_file.read_lora` returns them.
        target: "diffusers", "kohya" or "comfyui".
        folder: to write into.
        name: of the file, without its ending, where the target does not have one of its own.

    Raises:
        ValueError: no program is known that could read it.
        RuntimeError: what is read back changes a layer by something else.
    """
    if target == "diffusers":
        file = folder / lora.FILE
        named = {lora_file.text_name(key): value.contiguous() for key, value in tensors.items()}
    else:
        file = folder / f"{name}.safetensors"
        convert = lora_names.to_kohya if target == "kohya" else lora_names.to_comfyui
        named = convert(skeleton, tensors)

    save_file(named, file, metadata=_metadata(named, name))
    _check_same(skeleton, tensors, file)
    return file


def _metadata(tensors: Mapping[str, Tensor], name: str) -> dict[str, str]:
    """Return the header of a LoRA file; kohya's programs list rank and alpha from it."""
    alphas = {f"{value.item():g}" for key, value in tensors.items() if key.endswith(".alpha")}
    if len(alphas) != 1:
        return {"format": "pt"}

    rank = alphas.pop()
    return {
        "format": "pt",
        "ss_network_alpha": rank,
        "ss_network_dim": rank,
        "ss_network_module": "networks.lora",
        "ss_output_name": name,
    }


def _check_same(skeleton: Any, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise RuntimeError if a file does not change each layer as the tensors do."""
    part = family_of(type(skeleton).__name__).network
    ours = lora_names.pairs_of(tensors)
    theirs = lora_names.pairs_of(lora_file.read_lora(skeleton, file, part))

    for layer in ours.keys() | theirs.keys():
        expected = _change(ours.get(layer))
        found = _change(theirs.get(layer))
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
            raise RuntimeError(f"{file} would change the layer {layer} by something else")


def _change(pair: lora_names.Pair | None) -> Tensor:
    """Return what a LoRA adds to a layer's weight, as a matrix; 0 where there is none."""
    if pair is None:
        return torch.zeros(())
    down, up = pair
    return up.flatten(1) @ down.flatten(1)


def merged_pipeline(run: Run, config: Config) -> Any:
    """Return the whole pipeline of a run with what was learned in its weights.

    These are the model's own, also where they were quantized in training.
    """
    device = present_device(config.model.device)
    whole = replace(config, model=replace(config.model, quantization="", offload=False))
    policy = load_policy(whole, device, adapter=str(run.adapter))
    return merge_into(policy, DTYPES[config.model.dtype])


def merge_into(policy: Policy, dtype: torch.dtype) -> Any:
    """Return a policy's pipeline with the adapter in its weights; the policy is of no use then."""
    pipe = policy.pipe
    family = family_of(type(pipe).__name__)

    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            network = uncompiled(part)
            lora.merge_layers(network)
            if name in (family.network, CONTROLNET):
                network.to(dtype)
            setattr(pipe, name, network)

    return pipe


def write_before_and_after(run: Run, path: Path) -> int:
    """Write the sample grids before training and the newest side by side.

    Returns:
        The iteration of the newest; 0 if there are no two grids, and nothing was written.
    """
    grids = numbered(run.samples, ".png")
    newest = max(grids, default=0)
    if 0 not in grids or not newest:
        return 0

    with Image.open(grids[0]) as before, Image.open(grids[newest]) as after:
        left, right = before.convert("RGB"), after.convert("RGB")

    size = (left.width + GAP + right.width, max(left.height, right.height))
    sheet = Image.new("RGB", size, "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    sheet.save(path)
    return newest


def known_licence(model: str) -> str:
    """Return the licence that a model's own card names, if that lies on this machine; or ""."""
    if model.startswith("zoo:"):
        return "apache-2.0"

    place = Path(model).expanduser()
    card = place / "README.md" if place.is_dir() else None
    if card is None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(model, "README.md")
        except HFValidationError:  # a path that is not there
            cached = None
        card = Path(cached) if isinstance(cached, str) else None
    if card is None or not card.is_file():
        return ""

    header = re.match(r"---\s*\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL)
    named = re.search(r"^license:\s*[\"']?([\w.+-]+)", header[1], re.MULTILINE) if header else None
    return named[1] if named else ""
