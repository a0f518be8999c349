"""Several adapters of one model in one.

    dW = sum of w_i B_i A_i = [w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...]

This is exact, and its rank is the sum of the ranks. A smaller one has the nearest matrix of that
rank (Eckart and Young): the largest singular values of dW, which the two thin factors give without
dW itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from burnish import config as configuration
from burnish.diffusion import lora, lora_file
from burnish.diffusion.families import family_of
from burnish.diffusion.lora_names import Pair, pairs_of
from burnish.diffusion.policy import Policy
from burnish.diffusion.skeleton import load_skeleton
from burnish.files import publishing, write
from burnish.report.card import Weights, merge_card
from burnish.runs import Run
from burnish.tools.export import (
    check_target,
    file_name,
    free_folder,
    known_licence,
    merge_into,
    warn_of_words,
    write_lora,
)
from burnish.training.export import exported_iteration


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on.

    Attributes:
        model: `zoo:NAME`, a folder or a hub id; "" if the adapter does not say.
        revision: of the hub.
        config: of a model in a single file.
        fused: a LoRA that was merged into the model before; "" for none.
        dtype: the precision of the weights.
    """

    model: str
    revision: str = ""
    config: str = ""
    fused: str = ""
    dtype: str = "float32"


def merge_adapters(
    sources: Sequence[str],
    out: Path,
    *,
    weights: Sequence[float] = (),
    target: str = "diffusers",
    model: str = "",
    rank: int = 0,
    licence: str = "",
) -> Path:
    """Write the weighted sum of several adapters, and return the folder.

    Args:
        sources: runs, or LoRA files, folders or hub ids.
        out: a new folder.
        weights: one an adapter; (): the mean of all.
        target: as in `export_run`.
        model: that they were trained on, where no source is a run.
        rank: of the result; 0: the sum of the ranks, which is exact.
        licence: of the result, as the hub names it; "": that of the model, where it is known.

    Raises:
        FileExistsError: anything is in `out`.
        FileNotFoundError: there is no such adapter.
        ValueError: the adapters or the numbers do not fit each other, or are no LoRA.
    """
    check_target(target)
    factors = list(weights) or [1 / len(sources)] * len(sources)
    if len(sources) < 2 or len(factors) != len(sources):
        raise ValueError(
            f"{len(sources)} adapters and {len(factors)} --weights: give two adapters or more, and "
            "as many weights, such as --weights 0.7,0.3"
        )

    base = common_base(sources, model)
    warn_of_left_out(sources)
    skeleton = load_skeleton(base.model, base.revision or None, base.config)
    kind = type(skeleton).__name__
    part = family_of(kind).network
    layers = [
        pairs_of(lora_file.read_lora(skeleton, adapter_file(source), part)) for source in sources
    ]
    pairs = {
        layer: weighted_sum([one.get(layer) for one in layers], factors, rank)
        for layer in dict.fromkeys(name for one in layers for name in one)
    }
    tensors = {
        f"{layer}.lora_{letter}.weight": matrix
        for layer, pair in pairs.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }

    folder = free_folder(out, out)
    name = file_name(out)
    with publishing(folder, lora.sort_metadata) as temporary:
        file = _write(base, skeleton, tensors, target, temporary, name)
        about = Weights(
            name,
            target,
            base.model,
            kind,
            licence or known_licence(base.model),
            file,
            target != "merged",
            base.fused,
        )
        card = merge_card(about, list(zip(sources, factors, strict=True)))
        write(temporary / "README.md", card)

    return folder


def warn_of_left_out(sources: Sequence[str]) -> None:
    """Warn of each run whose images were drawn with identifiers or an expander of its own."""
    for run in map(Run, map(Path, sources)):
        if run.exists():
            warn_of_words(configuration.load(run.config, purpose="compare"), run.folder)


def _write(
    base: Base, skeleton: object, tensors: dict[str, Tensor], target: str, folder: Path, name: str
) -> str:
    """Write the sum of adapters, and return the name of its file; "" for a whole pipeline."""
    if target != "merged":
        return write_lora(skeleton, tensors, target, folder, name).name

    file = write_lora(skeleton, tensors, "diffusers", folder, name)
    policy = Policy.load(
        base.model,
        train="none",
        dtype=base.dtype,
        revision=base.revision or None,
        config=base.config,
        fused_lora=base.fused or None,
        adapter=file,
    )
    merge_into(policy, policy.dtype).save_pretrained(folder)
    file.unlink()
    return ""


def weighted_sum(pairs: Iterable[Pair | None], factors: Iterable[float], rank: int = 0) -> Pair:
    """Return A (rank, in) and B (out, rank) of a layer's weighted sum; None changes nothing.

    Args:
        pairs: of the adapters, A (rank, in, ...) and B (out, rank, ...).
        factors: their weights.
        rank: of the result at most; 0: the sum of the ranks.
    """
    given = [(pair, w) for pair, w in zip(pairs, factors, strict=True) if pair is not None]
    down = torch.cat([pair[0] for pair, _ in given])
    up = torch.cat([w * pair[1] for pair, w in given], dim=1)
    if not rank or rank >= len(down):
        return down, up

    # B A = Q_b (R_b R_a^T) Q_a^T with small matrices R
    q_up, r_up = torch.linalg.qr(up.flatten(1).double())
    q_down, r_down = torch.linalg.qr(down.flatten(1).double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    root = values[:rank].sqrt()
    new_up = (q_up @ left[:, :rank] * root).to(up.dtype)
    new_down = (root[:, None] * right[:rank] @ q_down.T).to(down.dtype)
    shape = (len(root), *down.shape[1:])
    return new_down.reshape(shape), new_up.reshape(len(up), len(root), *up.shape[2:])


def common_base(sources: Sequence[str], model: str) -> Base:
    """Return the model that all sources were trained on.

    Raises:
        ValueError: they were trained on different ones, or nothing names one.
    """
    found = {source: base for source in sources if (base := _base(source)) is not None}
    first = next(iter(found), "")

    for source, base in found.items():
        if base != found[first]:
            raise ValueError(
                f"{first} and {source} were trained on different models ({found[first]} and "
                f"{base}): what they learned does not add up"
            )
    if not found and not model:
        raise ValueError("no source is a run that names its model: give it by --model")
    if found and model and model != found[first].model:
        raise ValueError(f"--model {model}, but {first} was trained on {found[first].model}")

    return found[first] if found else Base(model)


def _base(source: str) -> Base | None:
    """Return what a run was trained on; None of a source that is no run."""
    run = Run(Path(source))
    if not run.exists():
        return None

    settings = configuration.load(run.config, purpose="compare").model
    if settings.train != "lora" or settings.trainable_parts:
        raise ValueError(
            f"{source} has no LoRA of its model's network, so it cannot be added to others"
        )
    return Base(
        settings.id, settings.revision, settings.config, settings.fused_lora, settings.dtype
    )


def adapter_file(source: str) -> Path:
    """Return the LoRA file of a run, or of what else names one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the hub does not give it, or there are several.
    """
    run = Run(Path(source))
    if run.exists():
        exported_iteration(run)
        return run.adapter / lora.FILE

    file = lora.find_lora(lora.locate(source, "merge"))
    if file is None:
        raise FileNotFoundError(f"{source} has no LoRA in a .safetensors file")
    return file
