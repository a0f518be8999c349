"""The configuration of a run: dataclasses that are read from TOML and written back as TOML.

A section is a dataclass, or a table with `use = "name"` and the arguments of the thing named (see
`catalog`).
Everything is checked when it is read: an unknown key names the nearest known one, a value of the
wrong type or out of range names its key. The fields' comments are the reference of the
configuration.
"""

from __future__ import annotations

import math
import tomllib
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import tomli_w

from burnish import catalog, references
from burnish.annotations import (
    DeviceName,
    ExpansionsPath,
    FilePath,
    ModelPath,
    complaint,
    number_complaint,
    shown,
)
from burnish.errors import HALF_CHARACTER, printable
from burnish.redaction import redact, secret_in
from burnish.references import Purpose
from burnish.run_files import read_toml
from burnish.trust import Trust, UntrustedCodeError, require_trust

if TYPE_CHECKING:
    from burnish.types import Advantage, Curriculum, Kernel, Objective

Table = dict[str, Any]
"""`{"use": "name", ...}`: a thing of the catalog and its arguments."""

T = TypeVar("T")

DEEPEST = 16
"""Levels of tables and lists in a configuration."""

MOST_IMAGES = 1_000_000
"""Images of an iteration, or of a prompt in an evaluation: more would never be finished."""

JUDGES = ("zoo:emoji-judge", "zoo:emoji-code-judge")
"""The classifiers that `evaluation.judge` may name."""


class RewardKeys(TypedDict, total=False):
    """The keys of a reward's table beside `use` and its arguments."""

    weight: float
    name: str
    of: Literal["original", "prompt"]


REWARD_KEYS = tuple(RewardKeys.__annotations__)
"""Keys of a reward's table that are not the reward's arguments."""


RENAMED: Mapping[str, str] = {
    "model.learns": "model.trainable_parts",
    "model.fused": "model.fused_lora",
    "batch.sample": "batch.sample_batch",
    "batch.replay": "batch.train_batch",
    "batch.updates": "batch.minibatches",
    "batch.previews": 'batch.baseline = "x0_preview", or "" for none',
}
"""Keys of before 0.1.0, and their names now."""

REPLACED: Mapping[str, tuple[str, Mapping[Any, Any]]] = {
    "model.free_text_encoder": ("text_encoder", {True: "free", False: "keep"}),
}
"""Keys of runs of before 0.1.0 that are still read: the key of today, and what each value means."""


@dataclass(frozen=True)
class ModelConfig:
    """The model that is fine-tuned, and which of its weights."""

    # "zoo:emoji-sd", a folder in diffusers' format, a hub id, or a checkpoint in a single file
    # (.safetensors, also OWNER/NAME/FILE of the hub)
    id: ModelPath = ""
    # of a single file, which has weights only: the model whose configuration and tokenizers it has,
    # and whose parts where it lacks some, a folder or a hub id; "": the one that diffusers takes it
    # for, from the hub
    config: ModelPath = ""
    # side of the images in pixels, or [width, height]; 0: as the model was made for
    size: int | list[int] = 0
    # "lora": small matrices beside the attention's; "full": every weight; "none": see expander
    train: str = "lora"
    rank: int = 4  # of the LoRA matrices
    alpha: float = 4.0  # LoRA scale: alpha / rank; more than 0, fractions too
    # layers that get LoRA
    targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    # of the frozen weights: float32, float16, bfloat16; trained weights are always float32
    dtype: str = "float32"
    # how the frozen weights of the network's linear layers are stored: "int8", "nf4" (4 bits), "":
    # as dtype says; for train = "lora", with the package bitsandbytes
    quantization: str = ""
    # the frozen weights of the network's linear layers stay in main memory, and each is brought to
    # the device for every product; for train = "lora"
    offload: bool = False
    device: DeviceName = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    gradient_checkpointing: bool = False  # less memory in training, about a third more time
    # images decoded at once: memory and speed only; 0: one above 256 pixels, otherwise 32
    decode_at_once: int = 0
    # the text encoders: "keep" beside the network; "free": each prompt of the run is encoded once,
    # before the network is on the device, and they are gone then (for a list of prompts, without an
    # expander); "cpu": they stay in main memory and encode there, which takes seconds a prompt
    text_encoder: str = "keep"
    revision: str = ""  # of a hub id: branch, tag or commit
    # weight files' variant, such as "fp16", where a part has one; "": the files without, or where
    # there are none the only variant
    variant: str = ""
    vae: ModelPath = ""  # another autoencoder of the same latents: a folder, a hub id or a file
    # last layers of CLIP that are left out, of Stable Diffusion 1.x and 2.x: 1 is what web UIs call
    # clip skip 2
    clip_skip: int = 0
    # prompts with what other programs read as weights, such as (word:1.3): "refuse" them before
    # training, or have them read as "letters", as every model here reads them
    prompt_signs: str = "refuse"
    # "lcm": sample with an LCMScheduler, as an LCM-LoRA needs; "": as the model comes
    scheduler: str = ""
    # a LoRA (folder, file, hub id or OWNER/NAME/FILE of the hub) that is merged into the model for
    # good before anything else, such as an LCM-LoRA
    fused_lora: ModelPath = ""
    # a ControlNet that the images follow: a folder, a hub id, OWNER/NAME/FOLDER of the hub or a
    # file
    controlnet: ModelPath = ""
    trainable_parts: str = ""  # "controlnet", "both", or "" for the model's own network
    # a LoRA adapter to start from (same rank and targets; its own strength counts, not alpha): a
    # folder such as another run's RUN/adapter, a file or a hub id
    adapter: ModelPath = ""


@dataclass(frozen=True)
class ControlConfig:
    """The part that a ControlNet has in an image."""

    scale: float = 1.0  # factor of its output: how closely it is followed
    start: float = 0.0  # fraction of the steps before it acts
    end: float = 1.0  # fraction of the steps after which it no longer does

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(
                f"sampler.control.scale must be a finite number, at least 0, not {self.scale}"
            )
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                "sampler.control.start and end must be fractions of the steps, "
                f"0 <= start < end <= 1, not {self.start} and {self.end}"
            )


@dataclass(frozen=True)
class WindowConfig:
    """The window of stochastic transitions: all others of a training image follow the ODE.

    Only the window is learned from. Evaluations and sample grids then follow the ODE throughout.
    """

    size: int = 0  # stochastic transitions, side by side; 0: all are, and there is no window
    first: int = 1  # the first transition that may lie in it; they count from 1
    last: int = 0  # the last one that may; 0: the last with noise (see batch.least_noise)
    # "random": drawn anew (Flow-GRPO-Fast); "sliding": it begins at `first`, moves on by one, and
    # goes back when it has come to `last` (MixGRPO); "fixed": it stays at `first`
    placement: str = "random"
    every: int = 1  # iterations from one place to the next


@dataclass(frozen=True)
class SamplerConfig:
    """The sampler: how an image is drawn from noise."""

    # network calls an image (with guidance "cfg" or "embedded_dual" twice as wide, with "dual"
    # thrice)
    steps: int = 50
    # how a transition is drawn from x_t and x0_pred
    kernel: Table = field(default_factory=lambda: {"use": "ddim", "eta": 1.0})
    # how the network is called with and without the prompt; part of the policy
    guidance: Table = field(default_factory=lambda: {"use": "cfg", "weight": 5.0})
    control: ControlConfig = field(default_factory=ControlConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    # the training images of a prompt (with identifiers, of each reward) start from the same noise;
    # what the ODE makes of it before a window is computed once
    shared_noise: bool = False
    # "words" or "tokens": "<reward 2>" before a prompt makes the second reward its target; "": none
    identifiers: str = ""
    # behind the prompt: a text encoder that reads from left to right, as CLIP's, then reads the
    # prompt itself as it would alone
    identifiers_after: bool = False
    # "tokens" whose embeddings learn too; false: they stay as they were drawn
    identifiers_learn: bool = False
    identifiers_lr: float = 0.05  # learning rate, in standard deviations of the words' embeddings


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer: AdamW."""

    lr: float = 3e-4  # learning rate
    # optimizer steps in which the rate rises to lr: Adam's first steps move every weight by all of
    # it
    warmup: int = 0
    # fraction of lr that is left after the last iteration; on the way it falls in a straight line
    final_lr: float = 1.0
    # decay of the mean gradient and of its square
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 1e-4  # decoupled: this times lr of each weight is taken off at a step
    eps: float = 1e-8  # added to the root of the mean squared gradient
    # a quarter of the memory for Adam's moments, for train = "full"; needs bitsandbytes
    eight_bit: bool = False
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm
    # fraction that a moving average of the weights keeps at each step, after a warm-up; it is what
    # is evaluated, drawn and exported; 0: none
    ema: float = 0.0


@dataclass(frozen=True)
class BatchConfig:
    """The images of one iteration, over all processes together, and how they are split."""

    prompts: int = 8  # drawn for an iteration
    images_per_prompt: int = 8  # with sampler.identifiers shared among the rewards
    # images sampled at once: memory and speed only, but another number draws other noise
    sample_batch: int = 32
    train_batch: int = 32  # (image, transition) pairs in one training call: memory and speed only
    minibatches: int = 2  # optimizer steps in one pass over the images
    epochs: int = 1  # passes over the images
    # trained transitions an image, drawn anew each epoch; 0: all (renoised: as many as steps)
    transitions: int = 0
    # transitions with a smaller std are not trained: they change no image, but drown the others
    least_noise: float = 0.0
    # "x0_preview": the score of the network's x0 before a transition, so that the transition is
    # credited only with what came after it; "": none
    baseline: str = ""


@dataclass(frozen=True)
class ForwardConfig:
    """The finished images noised again, for objectives on the forward process.

    All images of a prompt are noised to the same times with the same noise, and the times of an
    image are spread evenly over their range, so that images are compared under equal conditions.
    """

    # ask the network as the sampler does; false: for the prompt alone, which takes half the time
    guided: bool = False
    # what a prediction's error is measured in, which weighs the times: "output" (whatever the
    # network predicts), "velocity" (the error of x0 over sigma), "noise" (that times alpha), "x0"
    error: str = "output"
    # the times: "uniform", "steps" (the sampler's own), "logit_normal" (more in the middle), or
    # "noisy" (in proportion to the time)
    times: str = "uniform"
    # the part of the times that is used: 0 is the image, 1 is noise
    range: list[float] = field(default_factory=lambda: [0.0, 1.0])
    # what objective.kl pulls to: the "reference" before training, the "guided_reference" as the
    # sampler asks it, the moving "average" (optimizer.ema), or the denoising of "images" that the
    # reference draws of the same prompts, which takes as long as sampling
    anchor: str = "reference"


@dataclass(frozen=True)
class ChainConfig:
    """The network's calls that drew an image, for objectives on the chain ("latent", "fdfo").

    batch.transitions trains some of these calls, drawn anew each epoch.
    """

    # calls from the end that are learned from: 1 is the last alone, 0 all of them
    last: int = 0
    # of n such calls the first counts 1 / n, the second 2 / n, ...: the mean of a truncation at
    # random, as AlignProp's
    ramp: bool = False
    # where rewards are differentiated: the finished "image", or the "prediction" of each call as if
    # it were the image (ReFL, with batch.transitions = 1), which costs a decoder call and a score
    read: str = "image"
    # bring each reward's gradient to one size, so that weights compare rewards and not units
    normalise: bool = True


@dataclass(frozen=True)
class OldPolicyConfig:
    """The policy that samples and that objectives compare with, as it lags behind the weights.

    After iteration i it keeps k = min(decay, rise (i - after)), at least 0, of itself and takes the
    rest of the weights that learn. By default it is these at the start of each iteration.
    """

    decay: float = 0.0  # the largest k; 0: no lag
    rise: float = 0.001  # of k in an iteration
    after: int = 0  # iterations without a lag


@dataclass(frozen=True)
class ExpanderConfig:
    """A language model that adds details to each prompt, and learns which of them please.

    The generator reads the expanded prompt.
    """

    # "zoo:emoji-expander", a folder or hub id of any causal language model; "": no expander
    model: ModelPath = ""
    # "lora", "full" or "none" (it only writes); with model.train = "none" nothing else learns
    train: str = "lora"
    rank: int = 8  # of the LoRA matrices
    lr: float = 1e-4  # learning rate
    kl: float = 0.0  # weight of the KL, in nats a text, to the model as it was when training began
    temperature: float = 1.0  # of the distribution that is drawn from and trained
    # drawn for a text at most; fewer where the generator's text encoder has no more room
    tokens: int = 48
    # different texts for a drawn prompt, which share its images (with identifiers: each reward's)
    expansions: int = 4
    # the request to a model with a chat template, with {prompt} in it; "": in Burnish's own words
    instruction: str = ""
    dtype: str = "float32"  # of the frozen weights: float32 or bfloat16
    adapter: ModelPath = ""  # where to start from, such as another run's RUN/adapter/expander
    # a JSONL file of {"prompt": ..., "expansion": ...} that is imitated before anything else;
    # "emoji-endings": a file of the package, for zoo:emoji-expander; "": none
    start: ExpansionsPath = ""
    start_epochs: int = 1  # passes over it
    start_lr: float = 1e-3  # learning rate of these passes


@dataclass(frozen=True)
class ScoringConfig:
    """The handling of a reward that raises, hangs, or returns no finite number for an image."""

    retries: int = 0  # times it is called again for what is missing, after a pause that doubles
    timeout: float = 0.0  # seconds for one answer about batch.sample_batch images; 0: wait for ever
    # then "stop" saves the run and ends it; "mask" leaves those images out of the update
    missing: str = "stop"
    # with "mask": iterations in a row without a single image to learn from before the run stops
    patience: int = 3


@dataclass(frozen=True)
class EvaluationConfig:
    """Paired evaluation: the same prompts and noise before and after."""

    every: int = 0  # iterations between evaluations; 0: only before the first and after the last
    images_per_prompt: int = 4  # 0: no evaluation
    prompts: Table = field(default_factory=dict)  # {} : the training prompts
    unseen: Table = field(default_factory=dict)  # prompts never trained on; {} : none
    # of each of these two sets: more are thinned out to so many, spread over the whole list and
    # always the same ones; 0: all
    max_prompts: int = 64
    seed: int = 1234  # of the noise
    # "zoo:emoji-judge": does the image show its prompt? "zoo:emoji-code-judge": also under a code;
    # "": none
    judge: str = ""


@dataclass(frozen=True)
class GuardConfig:
    """Over-optimisation: held-out measures that must not fall while the reward rises.

    They are taken at every evaluation.
    """

    # when they do: "none", "warn", "stop", or "rollback" to the last good state and stop
    action: str = "none"
    # rewards that are not trained on: use, name, and its arguments
    panel: list[Table] = field(default_factory=list)
    # a CLIP model that measures how alike the images of a prompt are: "zoo:emoji-clip"; "": none
    diversity: ModelPath = ""
    kl: float = 0.0  # budget: nats an image that the policy may be from the untrained one; 0: none
    # a fall that counts, in standard deviations of the measure among images before training
    drop: float = 0.3
    patience: int = 1  # evaluations in a row


@dataclass(frozen=True)
class RunConfig:
    """The files of the run directory, how often they are written, and what processes share."""

    checkpoint_every: int = 1  # iterations
    keep: int = 2  # newest checkpoints kept
    sample_every: int = 5  # iterations between sample grids; 0: none
    # images in a sample grid, on prompts spread over the training prompts
    sample_prompts: int = 16
    # side in pixels of small copies of the latest iteration's images, shown with their rewards by
    # burnish studio and the report; 0: none
    thumbnails: int = 96
    # "tensorboard", "wandb", "trackio" (each an extra to install), "mlflow", "comet_ml", "swanlab"
    trackers: list[str] = field(default_factory=list)
    tracker_project: str = "burnish"  # the name under which they file the run
    # where they write files, those of each run in a folder of its own; "": the run directory
    tracker_folder: FilePath = ""
    # for each one's start: { wandb = { entity = "..." } }
    tracker_options: Table = field(default_factory=dict)
    # "full": of several processes each keeps a part of the network's weights (FSDP2), of those that
    # learn with train = "full" too, with their moments and average; "": each keeps all
    sharding: str = ""


@dataclass(frozen=True)
class Config:
    """A whole run: the same configuration and seed give the same run."""

    seed: int = 0  # of every random number in the run
    iterations: int = 100  # rounds of sampling, scoring and training
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    # the source they are drawn from; in short: "prompts.txt" (or .csv, .json, .jsonl), "animals",
    # or ["a cat", "a dog"]
    prompts: Table = field(default_factory=dict)
    expander: ExpanderConfig = field(default_factory=ExpanderConfig)
    # use, weight (1.0), name (of the curve), of ("original": judge by the prompt before it was
    # expanded, or "prompt"), and its arguments
    rewards: list[Table] = field(default_factory=list)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    # of the control scale, iteration by iteration; {}: it stays
    curriculum: Table = field(default_factory=dict)
    # how much better than expected an image was
    advantage: Table = field(default_factory=lambda: {"use": "group"})
    # the loss, from log-probabilities and advantages
    objective: Table = field(default_factory=lambda: {"use": "clipped"})
    forward: ForwardConfig = field(default_factory=ForwardConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    old_policy: OldPolicyConfig = field(default_factory=OldPolicyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def identifier_count(self) -> int:
        """The number of identifiers that share the images of a prompt; 1 without identifiers."""
        return len(self.rewards) if self.sampler.identifiers else 1


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    purpose: Purpose = "train",
    trust: Trust = False,
) -> Config:
    """Return the configuration in a TOML file or in the recipe of that name.

    Relative paths in the file are relative to its folder, those in `overrides` and in the recipes
    that come with Burnish to the current one.

    Args:
        path: of the file, or the name of a recipe.
        overrides: "section.key=value", such as "batch.prompts=4". Code that they name is trusted.
        purpose: what it is read for. Only what that builds is looked up: "sample" needs no rewards.
        trust: whether to import the code that the file names by `use`, unless that was trusted
            before; or a function that is given a question and returns the answer.

    Raises:
        FileNotFoundError: there is no such file, and no recipe of that name.
        ValueError: something in it is wrong, or names code that is not trusted; the message names
            the key.
    """
    found = recipe(path)
    tree = read_toml(found)

    try:
        _check_values(tree)
        tree = _with_prompt_tables(tree)
        folder = Path() if is_built_in(found) else found.parent
        references.rebase(tree, Config, folder, Path())
        for override in overrides:
            tree = _with_prompt_tables(tree)  # whose keys may be changed too
            _override(tree, override)

        return _resolved(tree, purpose, trust, _typed_names(overrides), str(found))
    except ValueError as error:
        changed = redact(" ".join(f"--set {override:.200}" for override in overrides))
        source = f"{found} with {changed}" if overrides else str(found)
        kind = UntrustedCodeError if isinstance(error, UntrustedCodeError) else ValueError
        raise kind(printable(f"{source}: {error}")) from error


def parse(tree: Mapping[str, Any]) -> Config:
    """Return the configuration that a tree of plain tables describes.

    It is part of a program: paths are relative to the current folder, and its code is trusted.

    Args:
        tree: as TOML is read; a key that it leaves out has its default.

    Raises:
        ValueError: a key or a value is wrong; the message names the key.
    """
    return _resolved(tree, "train", True, (), "the program")


def _resolved(
    tree: Mapping[str, Any], purpose: Purpose, consent: Trust, typed: Sequence[str], source: str
) -> Config:
    """Return the configuration in a tree, after all checks; code is imported last."""
    _check_values(tree)
    check_no_secrets(tree)
    config = _section(Config, _with_prompt_tables(tree), "")
    _check_numbers(config)
    _check_tables(config)
    _check_guard(config)
    check_expander(config)

    whole = asdict(config)
    parts = [
        replace(part, table=reward_arguments(part.table)) if part.kind == "reward" else part
        for part in references.parts(whole, purpose)
    ]
    require_trust(parts, typed, consent, source)
    for part in parts:
        catalog.check(part.kind, part.table, part.where)
    if purpose == "train":
        _check_parts(config)
    return config


def check_no_secrets(tree: Mapping[str, Any]) -> None:
    """Refuse keys and passwords: a configuration is written to config.toml and into the report.

    Raises:
        ValueError: there is one; the message names its key, and what to do instead.
    """
    if where := secret_in(tree):
        raise ValueError(
            f"{where} holds a key or a password, which would be written to files: export it as an "
            "environment variable and write ${NAME} in its place in a URL, name it in "
            "key_variable, or let the program that needs it read it (WANDB_API_KEY, HF_TOKEN)"
        )


def dump(config: Config, folder: Path | None = None) -> str:
    """Return the configuration as TOML that `load` reads back to the same.

    Args:
        config: of a run.
        folder: of the file that it is written to, from which relative paths are to count; None:
            the current folder.

    Raises:
        ValueError: a key or a password is in it, or half of a character, which no file can hold.
    """
    tree = asdict(config)
    check_no_secrets(tree)
    references.rebase(tree, Config, Path(), folder or Path())
    text: str = tomli_w.dumps(tree)
    if half := HALF_CHARACTER.search(text):
        raise ValueError(
            f"a text of the configuration contains {half[0]!r}, which is half of a character and "
            "which no file can hold; write the whole character"
        )
    return text


def comparable(config: Config) -> dict[str, Any]:
    """Return the configuration as tables with absolute paths, however these were written."""
    tree = asdict(config)
    references.rebase(tree, Config, Path(), None)
    return tree


def recipes() -> list[str]:
    """Return the names of the recipes that come with Burnish."""
    return sorted(
        Path(entry.name).stem
        for entry in (files("burnish") / "recipes").iterdir()
        if ".toml" in entry.name
    )


def recipe(path: str | Path) -> Path:
    """Return the path of a configuration: a file, or the recipe of that name.

    Raises:
        FileNotFoundError: there is neither; the message names the nearest recipe.
    """
    if Path(path).is_file():
        return Path(path)

    try:
        return packaged_recipe(str(path).removesuffix(".toml"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: no such file, and no recipe of that name; {error}"
        ) from None


def packaged_recipe(name: str) -> Path:
    """Return the path of the recipe of that name.

    Raises:
        FileNotFoundError: there is none; the message names the nearest.
    """
    if name not in recipes():
        raise FileNotFoundError(catalog.nearest(name, recipes()))
    return Path(str(files("burnish") / "recipes" / f"{name}.toml"))


def _with_prompt_tables(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree in which prompts that are given in short are tables."""
    expanded = dict(tree)
    if "prompts" in tree:
        expanded["prompts"] = catalog.prompts_table(tree["prompts"])

    evaluation = tree.get("evaluation")
    if isinstance(evaluation, Mapping):
        sources = {key: evaluation[key] for key in ("prompts", "unseen") if key in evaluation}
        tables = {key: catalog.prompts_table(value) for key, value in sources.items()}
        expanded["evaluation"] = {**evaluation, **tables}

    return expanded


def is_built_in(path: Path) -> bool:
    """Return whether a file is a recipe that comes with Burnish."""
    return path.resolve().parent == Path(str(files("burnish") / "recipes")).resolve()


def _section(kind: type[T], tree: Mapping[str, Any], where: str) -> T:
    """Return a dataclass from a table: every key known, every value of the annotated type."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} = {shown(tree)} is of the wrong type; write a table [{where}]")

    hints = typing.get_type_hints(kind, include_extras=True)
    defaults = kind()
    values: dict[str, Any] = {}

    for key, value in tree.items():
        name = f"{where}.{key}" if where else key
        if name in REPLACED and isinstance(value, bool):
            key, meanings = REPLACED[name]
            name, value = f"{where}.{key}", meanings[value]
        if key not in hints:
            if name in RENAMED:
                raise ValueError(f'"{name}" is now {RENAMED[name]}; rename it')
            raise ValueError(f'unknown key "{name}"; {catalog.nearest(key, hints)}')

        hint = hints[key]

        if is_dataclass(hint):
            values[key] = _section(typing.cast("type[Any]", hint), value, name)
        elif wrong := complaint(value, hint, name):
            raise ValueError(wrong)
        elif isinstance(value, dict) and "use" not in value:
            # the default one, with other arguments
            values[key] = {**getattr(defaults, key), **value}
        else:
            values[key] = float(value) if hint is float else value

    return kind(**values)


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("iterations", lambda n: n >= 1, "at least 1"),
    ("seed", lambda n: 0 <= n < 2**31, "between 0 and 2147483647"),
    ("model.id", bool, 'a model: id = "zoo:emoji-sd", a folder or a hub id'),
    (
        "model.train",
        lambda s: s in ("lora", "full", "none"),
        '"lora" or "full" (or "none", if an expander or identifiers learn)',
    ),
    (
        "model.size",
        lambda n: (
            0 <= n <= 16_384
            if isinstance(n, int)
            else len(n) == 2 and all(1 <= side <= 16_384 for side in n)
        ),
        "0 (as the model was made for), a number of pixels, at most 16384, or [width, height]",
    ),
    ("model.clip_skip", lambda n: n >= 0, "0 (none is left out) or more"),
    ("model.prompt_signs", lambda s: s in ("refuse", "letters"), '"refuse" or "letters"'),
    ("model.rank", lambda n: 1 <= n <= 8192, "1 to 8192"),
    ("model.alpha", lambda x: x > 0, "more than 0"),
    ("model.targets", bool, 'at least one layer name, such as "to_q"'),
    (
        "model.dtype",
        lambda s: s in ("float32", "float16", "bfloat16"),
        '"float32", "float16" or "bfloat16"',
    ),
    (
        "model.quantization",
        lambda s: s in ("", "int8", "nf4"),
        '"int8", "nf4", or "" for weights as model.dtype says',
    ),
    (
        "model.text_encoder",
        lambda s: s in ("keep", "free", "cpu"),
        '"keep", "free" (each prompt is encoded once, before) or "cpu"',
    ),
    ("model.decode_at_once", lambda n: n >= 0, "0 (as their size suggests) or more"),
    ("model.scheduler", lambda s: s in ("", "lcm"), '"lcm", or "" for the model\'s own'),
    (
        "model.trainable_parts",
        lambda s: s in ("", "controlnet", "both"),
        '"controlnet", "both", or "" for the model\'s own',
    ),
    ("sampler.steps", lambda n: n >= 1, "at least 1 network call"),
    ("sampler.window.size", lambda n: n >= 0, "0 (all transitions are stochastic) or more"),
    ("sampler.window.first", lambda n: n >= 1, "at least 1, the first transition"),
    ("sampler.window.last", lambda n: n >= 0, "0 (the last with noise) or a transition's number"),
    (
        "sampler.window.placement",
        lambda s: s in ("random", "sliding", "fixed"),
        '"random", "sliding" or "fixed"',
    ),
    ("sampler.window.every", lambda n: n >= 1, "at least 1 iteration"),
    (
        "sampler.identifiers",
        lambda s: s in ("", "words", "tokens"),
        '"words", "tokens", or "" for none',
    ),
    ("sampler.identifiers_lr", lambda x: x >= 0, "0 or more (0 changes nothing: a control)"),
    ("expander.train", lambda s: s in ("lora", "full", "none"), '"lora", "full" or "none"'),
    ("expander.rank", lambda n: n >= 1, "at least 1"),
    ("expander.lr", lambda x: x >= 0, "0 or more (0 changes nothing: a control)"),
    ("expander.kl", lambda x: x >= 0, "0 (none) or more"),
    ("expander.temperature", lambda x: x > 0, "more than 0"),
    ("expander.tokens", lambda n: n >= 1, "at least 1"),
    ("expander.expansions", lambda n: n >= 1, "at least 1"),
    ("expander.instruction", lambda s: not s or "{prompt}" in s, "a text with {prompt} in it"),
    ("expander.dtype", lambda s: s in ("float32", "bfloat16"), '"float32" or "bfloat16"'),
    ("expander.start_epochs", lambda n: n >= 1, "at least 1"),
    ("expander.start_lr", lambda x: x > 0, "more than 0"),
    ("prompts", bool, 'a source of prompts: [prompts] with use = "animals"'),
    ("rewards", bool, 'at least one reward: [[rewards]] with use = "compressibility"'),
    ("scoring.retries", lambda n: n >= 0, "0 (none) or more"),
    ("scoring.timeout", lambda x: x >= 0, "0 (none) or more seconds"),
    ("scoring.missing", lambda s: s in ("stop", "mask"), '"stop" or "mask"'),
    ("scoring.patience", lambda n: n >= 1, "at least 1"),
    (
        "forward.error",
        lambda s: s in ("output", "velocity", "noise", "x0"),
        '"output", "velocity", "noise" or "x0"',
    ),
    (
        "forward.times",
        lambda s: s in ("uniform", "steps", "logit_normal", "noisy"),
        '"uniform", "steps", "logit_normal" or "noisy"',
    ),
    (
        "forward.range",
        lambda r: len(r) == 2 and 0 <= r[0] < r[1] <= 1,
        "two numbers, 0 <= first < second <= 1",
    ),
    (
        "forward.anchor",
        lambda s: s in ("reference", "guided_reference", "average", "images"),
        '"reference", "guided_reference", "average" or "images"',
    ),
    ("chain.last", lambda n: n >= 0, "0 (all calls) or more"),
    ("chain.read", lambda s: s in ("image", "prediction"), '"image" or "prediction"'),
    ("old_policy.decay", lambda x: 0 <= x < 1, "at least 0 (no lag) and less than 1"),
    ("old_policy.rise", lambda x: x > 0, "more than 0"),
    ("old_policy.after", lambda n: n >= 0, "0 or more iterations"),
    ("optimizer.lr", lambda x: x >= 0, "0 or more (0 changes nothing: a control)"),
    ("optimizer.warmup", lambda n: n >= 0, "0 (none) or more"),
    ("optimizer.final_lr", lambda x: 0 <= x <= 1, "between 0 and 1"),
    (
        "optimizer.betas",
        lambda b: len(b) == 2 and all(0 <= x < 1 for x in b),
        "two numbers in [0, 1)",
    ),
    ("optimizer.weight_decay", lambda x: x >= 0, "0 or more"),
    ("optimizer.eps", lambda x: x > 0, "more than 0"),
    ("optimizer.ema", lambda x: 0 <= x < 1, "at least 0 (none) and less than 1"),
    ("optimizer.max_grad_norm", lambda x: x > 0, "more than 0"),
    ("batch.prompts", lambda n: n >= 1, "at least 1"),
    ("batch.images_per_prompt", lambda n: n >= 1, "at least 1"),
    ("batch.sample_batch", lambda n: n >= 1, "at least 1"),
    ("batch.train_batch", lambda n: n >= 1, "at least 1"),
    ("batch.minibatches", lambda n: n >= 1, "at least 1"),
    ("batch.epochs", lambda n: 1 <= n <= 1000, "1 to 1000"),
    ("batch.baseline", lambda s: s in ("", "x0_preview"), '"x0_preview", or "" for none'),
    ("batch.transitions", lambda n: n >= 0, "0 (all) or more"),
    ("batch.least_noise", lambda x: 0 <= x < 1, "at least 0 (all transitions) and less than 1"),
    ("evaluation.every", lambda n: n >= 0, "0 (only first and last) or more"),
    (
        "evaluation.images_per_prompt",
        lambda n: 0 <= n <= MOST_IMAGES,
        f"0 (no evaluation) to {MOST_IMAGES:,}",
    ),
    ("evaluation.max_prompts", lambda n: n >= 0, "0 (all) or more"),
    ("evaluation.seed", lambda n: 0 <= n < 2**31, "between 0 and 2147483647"),
    (
        "evaluation.judge",
        lambda s: s in ("", *JUDGES),
        " or ".join(f'"{name}"' for name in JUDGES) + ', or "" for none',
    ),
    (
        "guard.action",
        lambda s: s in ("none", "warn", "stop", "rollback"),
        '"none", "warn", "stop" or "rollback"',
    ),
    ("guard.kl", lambda x: x >= 0, "0 (no budget) or more nats"),
    ("guard.drop", lambda x: x >= 0, "0 or more standard deviations"),
    ("guard.patience", lambda n: n >= 1, "at least 1"),
    ("run.checkpoint_every", lambda n: n >= 1, "at least 1"),
    ("run.keep", lambda n: n >= 1, "at least 1"),
    ("run.sample_every", lambda n: n >= 0, "0 (none) or more"),
    ("run.sample_prompts", lambda n: 1 <= n <= 10_000, "1 to 10000"),
    ("run.thumbnails", lambda n: 0 <= n <= 512, "0 to 512"),
    ("run.sharding", lambda s: s in ("", "full"), '"full", or "" for all weights in each process'),
)


def _check_numbers(config: Config) -> None:
    for name, holds, wanted in _RULES:
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        if not holds(value):
            raise ValueError(f"{name} = {shown(value)}; it must be {wanted}")

    images = config.batch.prompts * config.batch.images_per_prompt
    if images > MOST_IMAGES:
        raise ValueError(
            f"batch.prompts x batch.images_per_prompt = {images:,} images an iteration are too "
            f"many; take {MOST_IMAGES:,} at most"
        )
    if config.model.quantization and config.model.train == "full":
        raise ValueError(
            "model.quantization stores weights that stay as they are, and with model.train = "
            '"full" they all learn; set train = "lora", or leave quantization out'
        )
    if config.model.offload and config.model.train == "full":
        raise ValueError(
            "model.offload keeps weights that stay as they are in main memory, and with "
            'model.train = "full" they all learn; set train = "lora", or leave offload out'
        )
    if config.run.sharding:
        _check_sharding(config)
    if config.batch.minibatches > images:
        raise ValueError(
            f"batch.minibatches = {config.batch.minibatches}, but an iteration has only {images} "
            "images; lower it"
        )


def _check_sharding(config: Config) -> None:
    """Refuse what cannot be divided, or what some processes would compute alone."""
    if config.model.quantization:
        raise ValueError(
            f'run.sharding = "full" divides weights, and model.quantization = '
            f'"{config.model.quantization}" stores them in blocks that must stay whole; leave one '
            "of them out"
        )
    if config.model.offload:
        raise ValueError(
            'run.sharding = "full" divides weights among GPUs, and model.offload keeps them in '
            "main memory; leave one of them out"
        )
    if config.optimizer.eight_bit and config.model.train == "full":
        raise ValueError(
            "optimizer.eight_bit stores moments in blocks, which run.sharding cannot divide; leave "
            "one of them out"
        )
    if config.sampler.shared_noise and config.sampler.window.size:
        raise ValueError(
            "sampler.shared_noise with a window computes as many starts as a process has different "
            "prompts, but with run.sharding all processes must make the same calls; leave one of "
            "the three out"
        )


def _check_values(tree: Mapping[str, Any], where: str = "", depth: int = 0) -> None:
    """Refuse what no configuration has anywhere: infinite numbers, dates, deep nesting.

    Raises:
        ValueError: the message names the key.
    """
    if depth > DEEPEST:
        raise ValueError(f"{where}: nested too deeply; there are at most {DEEPEST} levels")

    for key, value in tree.items():
        name = f"{where}.{key}" if where else key
        if isinstance(value, Mapping):
            _check_values(value, name, depth + 1)
        elif isinstance(value, list):
            _check_values({str(index): item for index, item in enumerate(value)}, name, depth + 1)
        elif isinstance(value, str):
            if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
                raise ValueError(f"{name} = {shown(value)} has a character that no text file holds")
        elif wrong := number_complaint(value, name):
            raise ValueError(wrong)
        elif not isinstance(value, (bool, int, float, NoneType)):
            raise ValueError(f'{name} = {value} is a date or a time; write it as a text, "{value}"')


def _check_tables(config: Config) -> None:
    """Check what every table of a part must have, and what a reward's has beside its arguments."""
    for part in references.parts(asdict(config)):
        use = part.table.get("use")
        if not isinstance(use, str) or not use:
            known = catalog.nearest("", catalog.BUILTIN[part.kind])
            raise ValueError(f'{part.where}: say which one by use = "..."; {known}')

    hints = RewardKeys.__annotations__
    for where, tables in (("rewards", config.rewards), ("guard.panel", config.guard.panel)):
        for index, table in enumerate(tables):
            if not table:
                known = catalog.nearest("", catalog.BUILTIN["reward"])
                raise ValueError(f'{where}.{index}: say which one by use = "..."; {known}')
            own = {key: value for key, value in table.items() if key in hints}
            if wrong := complaint(own, RewardKeys, f"{where}.{index}"):
                raise ValueError(wrong)

        if len(set(reward_names(tables))) < len(tables):
            raise ValueError(
                f'{where}: two rewards have the same name; give each a name = "..." of its own'
            )

    if taken := {"judge", "diversity", "kl"}.intersection(reward_names(config.guard.panel)):
        raise ValueError(
            f'guard.panel: "{taken.pop()}" is a measure of its own; give the reward another '
            'name = "..."'
        )


def _check_parts(config: Config) -> None:
    """Build the parts of a training that are cheap, for their own checks and their protocols'."""
    kernel = _built("kernel", config.sampler.kernel, "sampler.kernel")
    _built("guidance", config.sampler.guidance, "sampler.guidance")
    advantage = _built("advantage", config.advantage, "advantage")
    if config.curriculum:
        check_curriculum(config, _built("curriculum", config.curriculum, "curriculum"))
    objective = _built("objective", config.objective, "objective")

    # others that compare images refuse a single one in words of their own
    compares = config.batch.baseline or (objective is not None and objective.compares_images)
    if advantage is not None and not compares:
        check_compared_images(config, advantage)
    if kernel is not None and objective is not None:
        check_noise(kernel, objective)
        check_shared_noise(config, kernel)
        check_window(config, objective)
        check_guard_kl(config, kernel)


def _built(kind: str, table: Table, where: str) -> Any:
    """Return a part, built for its own checks; None for an object of a Python program."""
    if table.get("use") == catalog.IN_MEMORY:
        return None
    return catalog.build(kind, table, where)


def images_compared(config: Config) -> int:
    """Return how many images of a prompt share a target reward, and so are compared."""
    return config.batch.images_per_prompt // config.identifier_count


def check_compared_images(config: Config, advantage: Advantage) -> None:
    """Refuse a single image where the advantage compares images, or a choice that takes all."""
    name = catalog.shown_name(config.advantage)
    if advantage.uniform:
        return
    if advantage.compares_images and images_compared(config) < 2:
        each = " for each identifier" if config.identifier_count > 1 else ""
        raise ValueError(
            f"advantage '{name}' compares the images of a prompt, and there is only one{each}; "
            'raise batch.images_per_prompt, or set advantage.use = "batch"'
        )

    remembers = advantage.min_count > 0 or name not in catalog.BUILTIN["advantage"]
    if config.batch.prompts * config.batch.images_per_prompt < 2 and not remembers:
        raise ValueError(
            f"advantage '{name}' compares the images of an iteration, and there is only one; raise "
            'batch.images_per_prompt or batch.prompts, or set advantage.use = "tracker"'
        )

    images = images_compared(config)
    if not advantage.compares_images:
        images = config.batch.prompts * config.batch.images_per_prompt
    fraction = config.advantage.get("fraction", 0.0)
    if name == "top_fraction" and round(fraction * images) >= images:
        raise ValueError(
            f"advantage '{name}' imitates all of the {images} images that it compares, so there is "
            "nothing to learn; lower advantage.fraction"
        )


def check_noise(kernel: Kernel, objective: Objective) -> None:
    """Refuse a kernel without noise where the objective learns from transitions."""
    if kernel.deterministic and objective.process == "reverse":
        raise ValueError(
            "sampler.kernel.eta must be > 0, and the kernel not 'ode': without noise a transition "
            "has no probability, and a policy gradient nothing to learn from; only objectives on "
            "the forward process (rwr, awm, rvm, ram, nft, dgpo, dpo) and 'latent' can do without"
        )


def check_shared_noise(config: Config, kernel: Kernel) -> None:
    """Refuse one start for all images of a prompt where they would be the same image."""
    if config.sampler.shared_noise and kernel.deterministic and not config.expander.model:
        raise ValueError(
            "sampler.shared_noise with a kernel without noise makes all images of a prompt the "
            "same; leave it out, or take another kernel"
        )


def check_window(config: Config, objective: Objective) -> None:
    """Refuse a window where nothing is learned from transitions."""
    if config.sampler.window.size and objective.process != "reverse":
        raise ValueError(
            "sampler.window chooses the transitions that are learned from, but this objective "
            "learns from the finished images or from all calls; set sampler.window.size = 0"
        )


def check_guard_kl(config: Config, kernel: Kernel) -> None:
    """Refuse a budget of the KL where an evaluation has no transition with noise."""
    noiseless = kernel.deterministic or config.sampler.window.size > 0
    if noiseless and config.guard.kl and config.guard.action != "none":
        raise ValueError(
            "guard.kl is measured on transitions with noise, and evaluations have none with "
            "sampler.window or a kernel without noise; set guard.kl = 0 and watch something else"
        )


def check_curriculum(config: Config, curriculum: Curriculum | None) -> None:
    """Refuse a curriculum without a ControlNet, or one that follows an unknown reward."""
    if not config.model.controlnet:
        raise ValueError(
            "curriculum is one of the control scale: set model.controlnet, or leave it out"
        )

    named = curriculum.reward if curriculum is not None else ""
    names = reward_names(config.rewards)
    if named and named not in names:
        raise ValueError(f'curriculum.reward = "{named}" is none of the rewards {", ".join(names)}')

    followed = config.rewards[names.index(named)] if named else {}
    counts_modules = followed.get("module_weight", 0.5) > 0
    if followed.get("use") == "qr_scan" and counts_modules:
        warnings.warn(
            f'curriculum.reward = "{named}" is more than the share that reads the code: it counts '
            f"right modules too, of which even images that nothing reads have many; set "
            f"rewards.{names.index(named)}.module_weight = 0, and make them a reward of their own",
            stacklevel=2,
        )


def _check_guard(config: Config) -> None:
    guard = config.guard
    evaluation = config.evaluation

    if guard.action == "none":
        return
    if not evaluation.images_per_prompt or not evaluation.every:
        raise ValueError(
            "guard.action needs evaluations: set evaluation.every and evaluation.images_per_prompt "
            "to 1 or more"
        )
    if not (guard.panel or guard.diversity or guard.kl or evaluation.judge):
        raise ValueError(
            "guard.action needs something to watch: guard.panel, guard.diversity, guard.kl or "
            "evaluation.judge"
        )
    if guard.diversity and evaluation.images_per_prompt < 2:
        raise ValueError(
            "guard.diversity compares images of a prompt; set evaluation.images_per_prompt to 2 "
            "or more"
        )


def check_expander(config: Config) -> None:
    """Refuse an expander whose texts cannot share a prompt's images, or a run without learners."""
    expander = config.expander
    images_per_prompt = config.batch.images_per_prompt
    expander_learns = bool(expander.model) and expander.train != "none"

    if config.model.train == "none" and not (expander_learns or config.sampler.identifiers_learn):
        raise ValueError(
            'model.train = "none", so nothing learns: set it to "lora", or let an expander learn '
            "(expander.model) or identifiers (sampler.identifiers_learn)"
        )
    if not expander.model:
        return

    texts = expander.expansions * config.identifier_count
    if images_per_prompt % texts:
        raise ValueError(
            f"expander.expansions: {texts} texts cannot share the {images_per_prompt} images of a "
            f"prompt evenly; make batch.images_per_prompt a multiple of {texts}"
        )
    if expander_learns and expander.expansions < 2:
        raise ValueError(
            "expander.expansions = 1 leaves no other text of a prompt to compare with; "
            'take 2 or more, or set expander.train = "none"'
        )
    if expander.start and not expander_learns:
        raise ValueError(
            'expander.start wants an expander that learns; set expander.train to "lora" or "full"'
        )


def reward_arguments(table: Table) -> Table:
    """Return the arguments in a reward's table: without its weight, name and `of`."""
    return {key: value for key, value in table.items() if key not in REWARD_KEYS}


def reward_names(tables: Sequence[Table]) -> tuple[str, ...]:
    """Return the name of each reward in logs: its `name`, or what it uses without the file."""
    return tuple(str(table.get("name") or str(table["use"]).rpartition(":")[2]) for table in tables)


def named_rewards(texts: Sequence[str], trust: Trust = False) -> list[Table]:
    """Return the tables of rewards that a command line names.

    Args:
        texts: each what `use` takes ("clip_similarity", "my.py:score"), a table as TOML writes it
            in a line, or a TOML file with [[rewards]], whose other keys are not read.
        trust: to the code that such a file names, see `load`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something is no reward, or two have one name.
    """
    tables: list[Table] = []
    for text in texts:
        try:
            tables += _named_rewards(text, trust)
        except ValueError as error:
            kind = UntrustedCodeError if isinstance(error, UntrustedCodeError) else ValueError
            raise kind(printable(f"--reward {redact(text):.200}: {error}")) from error

    names = reward_names(tables)
    if len(set(names)) < len(names):
        raise ValueError(
            f"--reward: two rewards are called {max(names, key=names.count)}; give one of them a "
            "name, such as --reward \"{use='clip_similarity', name='other'}\""
        )
    return tables


def _named_rewards(text: str, trust: Trust) -> list[Table]:
    rest = {"model": {"id": "zoo:emoji-sd"}, "prompts": "animals"}  # of a complete configuration
    if not text.endswith(".toml"):
        value = _value(text)
        table = value if isinstance(value, dict) else {"use": str(value)}
        typed = [str(table.get("use"))]
        return _resolved({**rest, "rewards": [table]}, "evaluate", trust, typed, text).rewards

    tables = read_toml(Path(text)).get("rewards")
    if not tables:
        raise ValueError("the file has no [[rewards]]")
    tree = {**rest, "rewards": tables}
    _check_values(tree)
    references.rebase(tree, Config, Path(text).parent, Path())
    return _resolved(tree, "evaluate", trust, (), text).rewards


def _override(tree: dict[str, Any], override: str) -> None:
    """Put one "a.b=value" into the tree; a value that is not TOML is taken as a text."""
    name, equals, text = override.partition("=")
    *parents, last = name.strip().split(".")

    if not equals or not last:
        raise ValueError(
            f'--set {override}: write it as "section.key=value", such as "batch.prompts=4"'
        )

    node: Any = tree
    for part in parents:
        node = _child(node, part, override)

    try:
        value = _value(text.strip())
    except ValueError as error:
        raise ValueError(f"--set {override:.200}: {error}") from error

    if isinstance(node, list):
        node[_place(node, last, override)] = value
    elif isinstance(node, dict):
        if last == "use" and node.get("use") != value:
            node.clear()  # another thing: the old one's arguments mean nothing to it
        node[last] = value
    else:
        raise ValueError(f"--set {override}: {parents[-1]} is a value and has no {last} in it")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_place(node, part, override)]
    if not isinstance(node, dict):
        raise ValueError(f"--set {override}: there is no {part} in a value that is not a table")
    return node.setdefault(part, {})


def _place(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(
            f"--set {override}: {part} is no place in a list of {len(node)}; the first is 0"
        )
    return int(part)


def _value(text: str) -> Any:
    """Return what a text on the command line means in TOML; other texts are taken as they are.

    Raises:
        ValueError: it is Python's or JSON's spelling of something.
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except RecursionError as error:
        raise ValueError("lists or tables are nested too deeply") from error
    except tomllib.TOMLDecodeError:
        word = text.strip().lower()

    if word in ("true", "false"):
        raise ValueError(f"{text} is not TOML: write {word}, or '\"{text}\"' for the text")
    if text in ("None", "null"):
        raise ValueError(f'{text} is not TOML: write "" or leave the key out')
    return text


def _typed_names(overrides: Sequence[str]) -> list[str]:
    """Return every name that overrides give by `use`."""
    names: list[str] = []
    waiting: list[Any] = []

    for override in overrides:
        key, _, text = override.partition("=")
        waiting.append({key.strip().split(".")[-1]: _value(text.strip())})

    while waiting:
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else ()
        waiting += value if isinstance(value, list) else ()
        if isinstance(value, dict) and isinstance(value.get("use"), str):
            names.append(value["use"])

    return names
