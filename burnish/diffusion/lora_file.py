"""LoRA files: the tensors of a file by the layers they change, with its strength multiplied in.

    W' = W + scale * B A,    scale = alpha / rank   (alpha / sqrt(rank): rsLoRA, arXiv 2312.03732)

A file states alpha in tensors of its own (kohya), in its metadata (diffusers, older kohya), in a
file beside it (peft), or not at all: then it is the rank. Here B is multiplied by the scale, so
that the tensors mean the same to every reader. Every tensor of a file is read, or refused by its
name.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from burnish import pretrained
from burnish.diffusion.lora_metadata import (
    ALPHA,
    PEFT_CONFIG,
    PEFT_FILE,
    REMEDY,
    is_positive,
    kohya_alpha,
    read_metadata,
)
from burnish.diffusion.lora_rules import RULES, TEXT_PREFIXES, layers_by_name
from burnish.diffusion.quantization import QuantizedLinear
from burnish.errors import first_line

FILE = "pytorch_lora_weights.safetensors"

PARTS = (
    "unet",
    "transformer",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "controlnet",
)
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")

SPELLINGS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^base_model\.model\.", ""),
        (r"^diffusion_model\.", ""),
        (r"\.processor\.", "."),
        (r"^(text_encoder.*)\.to_([qkv])_lora\.", r"\1.\2_proj.lora."),
        (r"^(text_encoder.*)\.to_out_lora\.", r"\1.out_proj.lora."),
        (r"\.to_([qkv])_lora\.", r".to_\1.lora."),
        (r"\.to_out_lora\.", ".to_out.0.lora."),
        (r"\.lora_linear_layer\.", ".lora."),
        (r"\.lora[._]down\.", ".lora_A."),
        (r"\.lora[._]up\.", ".lora_B."),
        (r"\.lora\.alpha$", ".alpha"),
    )
)
"""How others spell peft's `LAYER.lora_A.weight` and `LAYER.lora_B.weight`."""

MATRIX = re.compile(r"(?P<layer>.+)\.lora_[AB]\.weight$")
EXTRA = re.compile(r"(?P<layer>.+)\.(lora_B\.bias|lora_magnitude_vector)$")
"""A bias, or DoRA's lengths (arXiv 2402.09353)."""


def read_lora(pipe: Any, path: Path, part: str) -> dict[str, Tensor]:
    """Return a LoRA file's tensors, float32, by names such as `PART.LAYER.lora_A.weight`.

    Args:
        pipe: the pipeline that it is for.
        path: of the file.
        part: of the pipeline that names without a part belong to.

    Raises:
        ValueError: the file is damaged, or a tensor of it has no place in the pipeline.
    """
    try:
        raw, header = _read_file(path)
        _check_tensors(raw)
        tensors, has_alphas = _with_alphas(_with_kohya_alphas(raw, header))
        if any(name.startswith(KOHYA) for name in tensors):
            tensors = _from_kohya(pipe, tensors)
        tensors = {_named(pipe, name, part): value for name, value in tensors.items()}
        _check_pairs(tensors)
        if not has_alphas:
            tensors = _with_metadata(tensors, read_metadata(path, header, raw), part)
        check_layers(tensors, pipe.components)
        _check_loadable(pipe, tensors, part)
    except Exception as error:  # a damaged file makes the libraries below raise anything
        raise ValueError(f"the LoRA {path} cannot be used: {first_line(error)}") from error

    return tensors


def locate(source: str | Path, key: str) -> Path:
    """Return the folder or file of a LoRA.

    From the hub the one file is downloaded, and peft's configuration beside it.

    Args:
        source: a folder, a file, a hub id, or OWNER/NAME/FILE of the hub.
        key: what asks for it, such as "model.adapter"; begins the error message.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: the hub does not give it, or it has several files.
    """
    if str(source).startswith("zoo:"):
        raise ValueError(
            f"{key}: {source}: the zoo has whole models, and no LoRA; take one as model.id"
        )

    place = Path(source).expanduser()
    if place.exists():
        pretrained.check_is_no_run(place, key)
        return place

    pretrained.check_is_no_address(str(source), key)
    in_repository = re.fullmatch(r"([^/]+/[^/]+)/(.+\.safetensors)", str(source))
    repository, name = in_repository.groups() if in_repository else (str(source), "")
    if pretrained.looks_like_a_path(repository):
        raise FileNotFoundError(f"{key}: {source} does not exist")

    cached, files = pretrained.ask_hub(repository, key, name, None)
    if cached is not None:
        return cached / Path(name).name

    name = name or choose_file((file for file in files if "/" not in file), repository)
    if not name:
        raise ValueError(f"{key}: the hub's {repository} has no .safetensors file")

    from huggingface_hub import hf_hub_download

    config = str(PurePosixPath(name).with_name(PEFT_CONFIG))

    try:
        if config in files:  # peft's strength stands there
            hf_hub_download(repository, config)
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # network, authorisation, no such file
        raise pretrained.hub_error(error, repository, key) from error


def find_lora(place: Path) -> Path | None:
    """Return the LoRA file at a place, a file or a folder; None for a folder without one.

    Raises:
        ValueError: the folder has several, none of them by the usual name.
    """
    if place.is_file():
        return place

    usual = any((place / name).is_file() for name in (FILE, PEFT_FILE))
    if (place / "config.json").is_file() and not usual:
        return None

    name = choose_file((path.name for path in place.glob("*.safetensors")), place)
    return place / name if name else None


def choose_file(names: Iterable[str], place: str | Path) -> str:
    """Return the name of the LoRA among a folder's or repository's files; "" if there is none.

    Raises:
        ValueError: there are several, none of them by a usual name.
    """
    found = sorted(name for name in names if name.endswith(".safetensors"))

    for name in (FILE, PEFT_FILE):
        if name in found:
            return name

    if len(found) > 1:
        raise ValueError(
            f"{place} has {len(found)} LoRA files ({', '.join(found)}): name one of them, such as "
            f"{place}/{found[0]}"
        )
    return found[0] if found else ""


def text_encoders(pipe: Any) -> list[nn.Module]:
    """Return the text encoders of a pipeline."""
    parts = pipe.components.items()
    return [part for name, part in parts if name.startswith("text_encoder") and part is not None]


def text_parts(names: Iterable[str]) -> list[str]:
    """Return the text encoders that some of a LoRA's tensors are of."""
    parts = {name.partition(".")[0] for name in names}
    return sorted(part for part in parts if part.startswith("text_encoder"))


def of_part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of a part of the pipeline, by their names in it."""
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def check_layers(tensors: Mapping[str, Tensor], parts: Mapping[str, Any]) -> None:
    """Raise ValueError if a tensor has no layer in the `parts`, or one of another shape."""
    weights = {
        f"{part}.{plain_name(name)}": weight.shape
        for part, network in parts.items()
        if isinstance(network, nn.Module)
        for name, weight in network.named_parameters()
    }
    weights |= {
        f"{part}.{plain_name(name)}.weight": torch.Size((layer.out_features, layer.in_features))
        for part, network in parts.items()
        if isinstance(network, nn.Module)
        for name, layer in network.named_modules()
        if isinstance(layer, QuantizedLinear)  # whose weight has another form
    }

    for name, value in tensors.items():
        layer = layer_of(name)
        shape = weights.get(f"{layer}.weight")
        part = layer.partition(".")[0]
        if shape is None and part.startswith("text_encoder") and parts.get(part, "") is None:
            raise ValueError(
                f"the adapter has layers in a text encoder, and the model's {part} is gone: set "
                'model.text_encoder to "keep" or "cpu"'
            )
        if shape is None:
            raise ValueError(f"the model has no layer {layer}; was it made for another model?")

        axis = 0 if ".lora_B." in name else 1
        if MATRIX.match(name) and value.shape[axis] != shape[axis]:
            raise ValueError(
                f"it was made for another model: its {name} is {tuple(value.shape)}, "
                f"but the layer is {tuple(shape)}"
            )


def layer_of(name: str) -> str:
    """Return the layer that a tensor belongs to; "" if it is none of a LoRA's."""
    match = MATRIX.match(name) or EXTRA.match(name)
    return match["layer"] if match else ""


def plain_name(name: str) -> str:
    """Return the name that a module or parameter has where nothing is compiled or adapted."""
    return name.replace("_orig_mod.", "").replace(".base_layer", "")


def text_name(name: str) -> str:
    """Return the name of a text encoder's tensor that every version of transformers reads."""
    return re.sub(r"^(text_encoder(_2)?)\.(?!text_)", r"\1.text_model.", name)


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors, and the texts in its header."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a tensor that is not finite or of a kind that is not known here."""
    if not tensors:
        raise ValueError("it holds no tensors")

    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"its tensor {name} is not finite; the file is damaged")
        if not (layer_of(_spelled(name)) or name.endswith(".alpha")):
            raise ValueError(
                f"its tensor {name} is none of a LoRA's (LoHa, LoKr and kohya's DoRA are not "
                "supported); merge it into a copy of the model with the program that made it"
            )


def _spelled(name: str) -> str:
    for pattern, replacement in SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


def _named(pipe: Any, name: str, part: str) -> str:
    """Return a tensor's name in the pipeline, its part first."""
    name = _spelled(name)
    if name.split(".")[0] not in PARTS:
        return f"{part}.{name}"

    # transformers' CLIPTextModel had one level more before 5
    part, _, rest = name.partition(".")
    network = pipe.components.get(part)
    if isinstance(network, nn.Module) and "text_model" not in dict(network.named_children()):
        rest = rest.removeprefix("text_model.")
    return f"{part}.{rest}"


def _with_kohya_alphas(
    tensors: Mapping[str, Tensor], header: Mapping[str, str]
) -> Mapping[str, Tensor]:
    """Return kohya's tensors with an alpha for each layer: the header's, if the file has none."""
    if any(name.endswith(".alpha") for name in tensors):
        return tensors

    result = dict(tensors)
    ending = ".lora_down.weight"

    for name, down in tensors.items():
        if name.startswith(KOHYA) and name.endswith(ending):
            alpha = kohya_alpha(header, is_conv=down.shape[2:].numel() > 1)
            if alpha is not None:
                result[f"{name.removesuffix(ending)}.alpha"] = torch.tensor(alpha)

    return result


def _with_alphas(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors with kohya's `LAYER.alpha` multiplied in, and True if there were any."""
    result = dict(tensors)
    original = {_spelled(name): name for name in tensors}
    alphas = [name for name in original if name.endswith(".alpha")]

    for name in alphas:
        layer = name.removesuffix(".alpha")
        down = original.get(f"{layer}.lora_A.weight")
        if down is None:
            raise ValueError(f"its tensor {original[name]} belongs to no layer of it")

        alpha = result.pop(original[name])
        if alpha.numel() != 1 or not is_positive(alpha.item()):
            raise ValueError(
                f"its tensor {original[name]} is {reprlib.repr(alpha.tolist())}, but must be "
                f"{ALPHA}: {REMEDY}"
            )
        _scale(result, original, layer, alpha.item() / len(result[down]))

    return result, bool(alphas)


def _scale(
    tensors: dict[str, Tensor], original: Mapping[str, str], layer: str, scale: float
) -> None:
    """Multiply a layer's B, and its bias, by `scale`."""
    for ending in ("weight", "bias"):
        name = original.get(f"{layer}.lora_B.{ending}")
        if name is not None and scale != 1:
            tensors[name] = tensors[name] * scale


def _with_metadata(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], part: str
) -> dict[str, Tensor]:
    """Return the tensors with the alpha of peft's configuration multiplied in."""
    from peft.utils.other import get_pattern_key

    result = dict(tensors)
    names = {name: name for name in tensors}

    for down in [name for name in tensors if name.endswith(".lora_A.weight")]:
        layer = layer_of(down)
        of, _, inner = layer.partition(".")
        # diffusers puts a part's name before each key, peft and a ControlNet's file do not
        prefix = f"{of}." if any(key.startswith(f"{of}.") for key in metadata) else ""
        config = {
            key.removeprefix(prefix): value
            for key, value in metadata.items()
            if key.startswith(prefix) and (prefix or of == part)
        }
        rank = len(tensors[down])
        pattern = config.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(pattern, inner), config.get("lora_alpha", rank))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        _scale(result, names, layer, scale)

    return result


def _from_kohya(pipe: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kohya's tensors under diffusers' names.

    Raises:
        ValueError: diffusers drops one of them, or has other names for this kind of model.
    """
    if type(pipe).__name__ == "StableDiffusion3Pipeline":  # diffusers reads none of these names
        return _by_rules(pipe, tensors)
    if not hasattr(pipe, "unet"):
        return _flow_from_kohya(pipe, tensors)

    converted, _ = pipe.lora_state_dict(dict(tensors), unet_config=pipe.unet.config)
    used = {id(value) for value in converted.values()}

    for name, value in tensors.items():
        if id(value) not in used:
            raise ValueError(f"its tensor {name} is used by nobody")

    return dict(converted)


def _flow_from_kohya(pipe: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a flow model's tensors by kohya's names under diffusers' names.

    Layer by layer, because diffusers drops those that it does not know without an error.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layers.setdefault(name.partition(".")[0], {})[name] = value

    result: dict[str, Tensor] = {}
    for layer, own in layers.items():
        try:
            converted = pipe.lora_state_dict(dict(own))
        except Exception:  # what it does not know makes the library raise anything
            converted = {}
        known = {name: v for name, v in converted.items() if not name.startswith(KOHYA)}
        if not known:
            raise ValueError(
                f"diffusers knows no layer {layer} of a {type(pipe).__name__}: merge the LoRA into "
                "a copy of the model with the program that made it"
            )
        result |= known

    return result


def _by_rules(pipe: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kohya's tensors under diffusers' names, by what is known of these here.

    Raises:
        ValueError: a tensor is of no layer that is known.
    """
    places = _kohya_places(pipe)
    result: dict[str, Tensor] = {}

    for name, down in tensors.items():
        layer, _, ending = name.partition(".")
        members = places.get(layer)
        up = tensors.get(f"{layer}.lora_up.weight")
        if members is None or ending not in ("lora_down.weight", "lora_up.weight"):
            raise ValueError(
                f"no layer {layer} of a {type(pipe).__name__} is known: merge the LoRA into a copy "
                "of the model with the program that made it"
            )
        if up is None:
            raise ValueError(f"its layer {layer} lacks lora_up.weight")
        if ending == "lora_up.weight":
            continue

        layers = [pipe.components[part].get_submodule(inner) for part, inner in members]
        rows = [one.out_features for one in layers]  # a weight in 4 bits has other rows
        if sum(rows) != len(up):
            raise ValueError(
                f"it was made for another model: its {layer} has {len(up)} rows, and the layer "
                f"{sum(rows)}"
            )
        for (part, inner), own in zip(members, up.split(rows), strict=True):
            # q, k and v as one layer: each has ranks of its own, in which the others are 0
            used = own.ne(0).any(0) if len(members) > 1 and up.any() else slice(None)
            if own[:, used].numel():
                result[f"{part}.{inner}.lora_A.weight"] = down[used]
                result[f"{part}.{inner}.lora_B.weight"] = own[:, used]

    return result


def _kohya_places(pipe: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the (part, layer) of a pipeline that kohya's name of a layer stands for, in order."""
    kind = type(pipe).__name__
    part = next(name for name in ("unet", "transformer") if hasattr(pipe, name))
    names = [name for name, _ in getattr(pipe, part).named_modules()]
    found = {
        f"lora_unet_{name}".replace(".", "_"): [(part, plain_name(layer)) for layer in layers]
        for name, layers in layers_by_name(RULES[kind], map(plain_name, names)).items()
    }

    for encoder, prefix in TEXT_PREFIXES.get(kind, {}).items():
        network = pipe.components.get(encoder)
        for name, _ in network.named_modules() if network is not None else ():
            plain = plain_name(name).removeprefix("text_model.")
            found[f"{prefix}text_model_{plain}".replace(".", "_")] = [(encoder, name)]
    return found


def _check_loadable(pipe: Any, tensors: Mapping[str, Tensor], trained: str) -> None:
    """Raise ValueError for a tensor of a part into which diffusers loads no LoRA."""
    loadable = {trained, *pipe._lora_loadable_modules}

    for name in tensors:
        part = name.partition(".")[0]
        if part not in loadable:
            raise ValueError(
                f"its tensor {name} belongs to the {part}, into which diffusers loads no LoRA for "
                f"a {type(pipe).__name__}: save it without this part"
            )


def _check_pairs(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a layer lacks one of its two matrices, or their ranks differ."""
    for layer in {layer_of(name) for name in tensors}:
        down = tensors.get(f"{layer}.lora_A.weight")
        up = tensors.get(f"{layer}.lora_B.weight")

        if down is None or up is None:
            lacking = "lora_A" if down is None else "lora_B"
            raise ValueError(f"its layer {layer} lacks {lacking}.weight")
        if len(down) != up.shape[1]:
            raise ValueError(f"the two matrices of its layer {layer} differ in rank")
