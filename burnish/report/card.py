"""The model card (README.md) of weights that leave a run: what they are, and how they are loaded.

It begins with the lines that the hub sorts models by. Paths of this machine are left out: of a
folder only its name is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.files import dumps
from burnish.redaction import redact
from burnish.report.results import evaluation_lines

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
GRID = "before-after.png"

OUTSIDE = re.compile(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")
"""The beginning of a path that is absolute, or that leads out of the current folder."""

EXAMPLES = 8
"""Prompts that a card shows."""


@dataclass(frozen=True)
class Weights:
    """The weights beside a card.

    Attributes:
        name: of the folder, or of the model.
        target: "diffusers", "kohya", "comfyui" or "merged".
        base: the model that they were made from, as the run names it.
        pipeline: the class of diffusers' pipeline.
        licence: as the hub names it; "" if it is not known.
        file: of the LoRA in the folder; "" for whole networks.
        lora: True if they are to be added to the base model.
        fused: a LoRA that the base model had in it, such as an LCM-LoRA; "" for none.
        fused_texts: the text encoders that it changes too.
        texts: the text encoders of which the LoRA has layers that did not learn.
        quantization: how the base model's weights were stored in training; "" for as they are.
        learned: False if the base model did not learn, only what is around it.
    """

    name: str
    target: str
    base: str
    pipeline: str
    licence: str = ""
    file: str = ""
    lora: bool = True
    fused: str = ""
    fused_texts: Sequence[str] = ()
    texts: Sequence[str] = ()
    quantization: str = ""
    learned: bool = True


@dataclass(frozen=True)
class Training:
    """The run, as far as its card shows it.

    Attributes:
        config: of the run, as tables.
        iteration: after which the weights are.
        evaluation: evaluation.json.
        prompts: some of those that were trained on.
        grid: the iteration after which the right half of `GRID` was drawn, if that lies beside the
            card; 0: it does not.
        template: what was put around prompts, {}.
    """

    config: Mapping[str, Any]
    iteration: int | None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    grid: int = 0
    template: str = "{}"


def model_card(weights: Weights, training: Training) -> str:
    """Return the card of what a run has learned, without anything secret."""
    config = without_paths(training.config)
    done = f" for {training.iteration} iterations" if training.iteration is not None else ""
    parts = [
        _header(weights),
        f"# {weights.name}",
        f"{shown_model(weights.base)}, fine-tuned{done} with Burnish by reinforcement learning: "
        "images were sampled and scored, and the weights moved towards what scored better.",
    ]
    if training.grid:
        parts.append(
            f"![Images before and after training]({GRID})\n\n"
            "The same prompts from the same noise: before training on the left, after "
            f"{training.grid} iterations on the right."
        )

    parts += ["## How it is loaded", loading(weights), *words_around(weights, training)]
    parts += ["## What was rewarded", *_rewards(config)]
    if lines := "\n".join(evaluation_lines(training.evaluation)):
        parts += ["## What came of it", _fenced(lines)]
    parts += ["## How it was trained", *_settings(config)]
    if training.prompts:
        listed = "\n".join(training.prompts[:EXAMPLES])
        parts += ["Some of the prompts:", _fenced(listed)]

    return redact("\n\n".join([*parts, "## Licence", _licence(weights)])) + "\n"


def merge_card(weights: Weights, sources: Sequence[tuple[str, float]]) -> str:
    """Return the card of several adapters in one.

    Args:
        weights: what is written.
        sources: the adapters' names and weights.
    """
    rows = "\n".join(f"| {shown_model(name)} | {weight:g} |" for name, weight in sources)
    parts = [
        _header(weights),
        f"# {weights.name}",
        f"Several adapters of {shown_model(weights.base)} in one, put together with Burnish: "
        "each layer changes by the weighted sum of what they change.",
        f"| adapter | weight |\n|---|---|\n{rows}",
        "## How it is loaded",
        loading(weights),
        "## Licence",
        _licence(weights),
    ]
    return redact("\n\n".join(parts)) + "\n"


def shown_model(name: str) -> str:
    """Return a model's name without the path of this machine: a hub id, or the last part."""
    return name if HUB_ID.fullmatch(name) else Path(name).name or name


def loading(weights: Weights) -> str:
    """Return how the weights are loaded, as Markdown."""
    if weights.texts and weights.lora:
        return (
            f"{_loading(weights)}\n\nThe file has layers of the {', '.join(weights.texts)} too: "
            "those of the LoRA that training started from, which did not learn."
        )
    return _loading(weights)


def _loading(weights: Weights) -> str:
    base = shown_model(weights.base)
    if weights.target in ("kohya", "comfyui"):
        also = " Other programs that read kohya's LoRA files take it too."
        return (
            f"Put `{weights.file}` into ComfyUI's `models/loras`, and load it with strength 1 on "
            f"{base}{_fused(weights)}.{also if weights.target == 'kohya' else ''} Its strength is "
            "in its matrices: alpha is the rank."
        )
    if not weights.lora:
        note = (
            f"\n\nIt was trained on weights stored as {weights.quantization}; what was learned is "
            "merged into the weights as the base model has them."
        )
        return (
            f"```python\npipe = diffusers.{weights.pipeline}.from_pretrained(FOLDER)\n```"
            f"{note if weights.quantization else ''}"
            if weights.target == "merged"
            else f"The folder has a whole network of {base}, for its class's `from_pretrained`."
            if weights.learned
            else f"No weight of {base} learned: it is loaded as it is."
        )

    note = f"\n\nThe base model is {base}{_fused(weights)}." if weights.fused else ""
    place = f'burnish.zoo.path("{base}")' if base.startswith("zoo:") else f'"{base}"'
    return (
        f"```python\npipe = diffusers.{weights.pipeline}.from_pretrained({place})\n"
        f'pipe.load_lora_weights(FOLDER, weight_name="{weights.file}")\n```{note}'
    )


def words_around(weights: Weights, training: Training) -> Iterator[str]:
    """Yield what images were drawn with besides the prompt: reward identifiers, and an expander.

    Only the target "diffusers" has them in its folder.
    """
    config = training.config
    has_files = weights.target == "diffusers"

    if sort := config["sampler"]["identifiers"]:
        drawn = training.template.replace("{}", "PROMPT")
        text = f"Prompts were drawn as `{drawn}`, with a word a reward."
        if sort == "tokens" and has_files:
            text += (
                " These words are tokens of their own, textual inversions: load each file of "
                "`identifiers` by `pipe.load_textual_inversion`, where the pipeline has that; else "
                "add its token to the tokenizer, and its row to the text encoder's embeddings."
            )
        elif sort == "tokens":
            text += " These words are tokens of their own, which are not among these files."
        yield text

    expander = config["expander"]
    if expander["model"]:
        model = shown_model(expander["model"])
        text = f"Each prompt was first expanded by {model}"
        if expander["train"] == "none":
            yield f"{text}."
        elif not has_files:
            yield f"{text}, which learned too and is not among these files."
        elif expander["train"] == "lora":
            yield f"{text} with the LoRA in `expander`, for peft's `PeftModel.from_pretrained`."
        else:
            yield f"{text} as it is in `expander`, for transformers' `from_pretrained`."


def _fused(weights: Weights) -> str:
    if not weights.fused:
        return ""
    texts = f" and its {', '.join(weights.fused_texts)}" if weights.fused_texts else ""
    return f" with {shown_model(weights.fused)} merged into it{texts}"


def _header(weights: Weights) -> str:
    """Return the lines that the hub sorts models by."""
    tags = ["burnish", "reinforcement-learning", "text-to-image", *["lora"] * weights.lora]
    lines = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}
    if HUB_ID.fullmatch(weights.base):
        relation = "adapter" if weights.lora else "finetune"
        lines |= {"base_model": weights.base, "base_model_relation": relation}
    if weights.licence:
        lines["license"] = weights.licence

    # each value in JSON, which YAML is made to read
    return "\n".join(["---", *(f"{key}: {dumps(value)}" for key, value in lines.items()), "---"])


def _rewards(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of the rewards with their arguments."""
    rows = ["| reward | weight | arguments |", "|---|---|---|"]
    for table in config["rewards"]:
        arguments = {
            key: value for key, value in table.items() if key not in ("use", "weight", "name")
        }
        name = _cell(table.get("name") or table["use"])
        rows.append(f"| {name} | {table.get('weight', 1.0):g} | {_cell(_listed(arguments))} |")

    yield "\n".join(rows)


def _settings(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings that decide what was learned."""
    model, batch, sampler = config["model"], config["batch"], config["sampler"]
    changed = {key: model[key] for key in ("size", "vae", "clip_skip", "scheduler") if model[key]}
    rows = {
        **({"the model's own settings": _listed(changed)} if changed else {}),
        "objective": _listed(config["objective"]),
        "advantage": _listed(config["advantage"]),
        "sampler": f"{_listed(sampler['kernel'])}, {sampler['steps']} steps, "
        f"guidance {_listed(sampler['guidance'])}",
        "images an iteration": f"{batch['prompts']} prompts x {batch['images_per_prompt']}",
        "prompts": _listed(config["prompts"]),
        "weights that learned": f"LoRA of rank {model['rank']}, alpha {model['alpha']:g}, on "
        f"{', '.join(model['targets'])}"
        if model["train"] == "lora"
        else {"full": "all"}.get(model["train"], "none of the model's own"),
        **_learners(config),
        "seed": str(config["seed"]),
        "precision of the rest": _precision(model),
    }
    yield "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())]
    )


def _learners(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the learning rate of each part that learned."""
    sampler, expander = config["sampler"], config["expander"]
    learners = {
        "learning rate": (config["model"]["train"] != "none", config["optimizer"]["lr"]),
        "learning rate of the identifiers": (
            sampler["identifiers_learn"],
            sampler["identifiers_lr"],
        ),
        "learning rate of the expander": (
            expander["model"] and expander["train"] != "none",
            expander["lr"],
        ),
    }
    return {name: f"{rate:g}" for name, (learned, rate) in learners.items() if learned}


def _precision(model: Mapping[str, Any]) -> str:
    stored = model.get("quantization", "")
    return f"{model['dtype']}, stored as {stored} in linear layers" if stored else model["dtype"]


def _listed(table: Mapping[str, Any]) -> str:
    """Return a table of the configuration in one line."""
    rest = {key: value for key, value in table.items() if key != "use"}
    listed = ", ".join(f"{key} = {dumps(value)}" for key, value in rest.items())
    name = str(table.get("use", ""))
    return " ".join(filter(None, (name, f"({listed})" if listed and name else listed)))


def without_paths(value: Any) -> Any:
    """Return a value of a configuration in which of a path outside of this folder the end is left.

    What is relative, such as `rewards.py:redness` or a hub id, stays.
    """
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and OUTSIDE.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]

    return value


def _cell(text: str) -> str:
    """Return a text for a cell of a table."""
    short = text if len(text) <= 400 else f"{text[:400]} ..."
    return short.replace("|", "\\|").replace("\n", " ")


def _fenced(text: str) -> str:
    """Return a text as it stands, whatever marks are in it."""
    longest = max((len(marks) for marks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _licence(weights: Weights) -> str:
    base = shown_model(weights.base)
    named = f"`{weights.licence}`. " if weights.licence else ""
    return (
        f"{named}What is made from {base} is usually bound by the licence of {base}, and by those "
        "of the reward models where they say so."
    )
