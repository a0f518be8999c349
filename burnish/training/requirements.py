"""Requirements that a configuration's parts have of each other, checked before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from burnish import catalog, references
from burnish.config import Config, images_compared
from burnish.diffusion.control import check_controls, check_image_path
from burnish.diffusion.loading import choose_device
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.diffusion.window import window_places
from burnish.rewards.votes import Votes
from burnish.training.stored_images import has_stored_images
from burnish.types import Advantage, Objective, Prompt, Reward
from burnish.world import processes_launched


def check_devices(config: Config, device: str = "") -> None:
    """Refuse a device of the model or of a reward that this machine does not have.

    `device` stands in for the model's.
    """
    choose_device(device or config.model.device)
    for part in references.parts(asdict(config)):
        name = part.table.get("device")
        if isinstance(name, str) and not catalog.is_code(part.kind, part.table["use"]):
            choose_device(name, f"{part.where}.device")


def check_identifiers(config: Config) -> None:
    """Refuse identifiers whose images cannot be shared evenly, or of an untrained reward."""
    count = len(config.rewards)
    images = config.batch.images_per_prompt

    if config.sampler.identifiers_learn:
        check_learned_identifiers(config)
    if not config.sampler.identifiers:
        return
    if images % count:
        raise ValueError(
            f"sampler.identifiers shares the {images} images of a prompt among {count} rewards; "
            f"make batch.images_per_prompt a multiple of {count}"
        )
    if any(table.get("weight", 1.0) == 0 for table in config.rewards):
        raise ValueError(
            "sampler.identifiers makes each reward a target alone, and one has weight 0; give it "
            "another, or move it to guard.panel"
        )


def check_learned_identifiers(config: Config) -> None:
    """Refuse to train the embeddings of identifiers that are no tokens, or without loss scaling."""
    if config.sampler.identifiers != "tokens":
        raise ValueError(
            "sampler.identifiers_learn trains one token for each reward: set "
            'sampler.identifiers = "tokens", or leave it out'
        )
    if config.model.train == "none" and config.model.dtype == "float16":
        raise ValueError(
            'sampler.identifiers_learn alone, with model.train = "none", has gradients that '
            'model.dtype = "float16" rounds to 0; set it to "bfloat16" or "float32"'
        )


def check_text_encoder(config: Config, listed: bool = True) -> None:
    """Refuse to free the text encoders of a run that needs them.

    Several processes cannot train words of text encoders on the CPU either.

    Args:
        config: of the run.
        listed: its prompts are a list; False: a function draws them.
    """
    reason = ""
    if config.expander.model:
        reason = "an expander (expander.model) writes new prompts"
    elif config.sampler.identifiers == "tokens":
        reason = 'sampler.identifiers = "tokens" are words of a text encoder that are saved'
    elif not listed:
        reason = "the prompts are drawn by a function, and are no list that can be encoded before"

    if reason and config.model.text_encoder == "free":
        raise ValueError(f'model.text_encoder = "free", but {reason}; set it to "keep" or "cpu"')
    learns_on_cpu = config.model.text_encoder == "cpu" and config.sampler.identifiers_learn
    if learns_on_cpu and processes_launched() > 1:
        raise ValueError(
            'model.text_encoder = "cpu", but sampler.identifiers_learn trains words of the text '
            'encoder, whose gradient several processes share on their GPUs; set it to "keep", or '
            "start a single process"
        )


def check_prompt_images(config: Config, policy: Policy, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts whose code does not fit or whose image is missing, before anything is drawn.

    Raises:
        ValueError: the message names the first such prompt.
    """
    height, width = (policy.latent_pixel * side for side in policy.latent_shape[-2:])
    tables = [*config.rewards, *config.guard.panel]

    if policy.has_controlnet:
        check_controls(prompts, height, width)
    elif any(str(table["use"]).startswith("qr_") for table in tables):
        check_controls([one for one in prompts if one.metadata.get("payload")], height, width)

    for table in tables:
        if table["use"] == "picture_similarity":
            for prompt in prompts:
                check_image_path(prompt, table.get("key", "base"))


def check_votes(config: Config, rewards: Mapping[str, Reward]) -> None:
    """Refuse votes on images that cannot be compared, or with rewards that nobody waits for.

    Args:
        config: of the run.
        rewards: by name.
    """
    found = [reward for reward in rewards.values() if isinstance(reward, Votes)]
    if not found:
        return

    (votes, *others) = found
    if others:
        raise ValueError("rewards: people can be asked for one reward 'votes' only; leave one out")
    if images_compared(config) < 2:
        raise ValueError(
            "reward 'votes' asks about pairs of images of a prompt; set batch.images_per_prompt to "
            "2 or more (with sampler.identifiers for each reward)"
        )
    if has_stored_images(config):
        raise ValueError(
            'prompts.use = "pairs" gives images of which one was preferred before, so there is '
            "nothing to vote on; take the reward 'chosen' in the place of 'votes'"
        )
    if config.batch.baseline:
        raise ValueError(
            "reward 'votes' knows finished images only, not the x0 before them; set "
            "batch.baseline = ''"
        )
    if votes.clip is None and not votes.wait:
        raise ValueError(
            "reward 'votes' without a model knows nothing but the votes, and cannot go on without "
            "them; set its wait = true, or its model"
        )
    if (votes.clip is None or votes.most_unknown < 1) and config.scoring.missing != "mask":
        raise ValueError(
            "reward 'votes' gives some images no reward (without a model all that were not asked "
            "about, with most_unknown those of which it is too uncertain); set scoring.missing = "
            '"mask"'
        )


def check_transitions(
    config: Config, policy: Policy, sampler: Sampler, objective: Objective, advantage: Advantage
) -> None:
    """Refuse parts that do not fit each other, or too few transitions to train on."""
    check_kernel(config, policy, sampler)
    check_advantage(config, objective, advantage)
    if objective.process == "forward":
        check_forward(config, policy, objective)
        return
    if objective.process == "chain":
        check_chain(config, objective)
        return

    transitions = replace(sampler, window=None).transitions(policy, config.batch.least_noise)
    window = config.sampler.window
    if window.size:
        window_places(window, transitions)
        transitions = window.size

    if config.batch.baseline and config.batch.images_per_prompt < 2:
        raise ValueError(
            "batch.baseline compares the images of a prompt; set batch.images_per_prompt to 4 or "
            "more, or leave batch.baseline out"
        )
    if objective.compares_images:
        check_image_comparison(config, transitions)

    if config.batch.transitions > transitions:
        noise = ""
        if config.batch.least_noise:
            noise = f" with the noise that batch.least_noise = {config.batch.least_noise} demands"
        raise ValueError(
            f"batch.transitions = {config.batch.transitions}, but an image of "
            f"{config.sampler.steps} steps has only {transitions} noisy transitions{noise}; lower "
            "it, or take 0 for all"
        )


def check_minibatches(config: Config, objective: Objective, processes: int) -> None:
    """Refuse more minibatches than one process has images, or prompts where these stay whole."""
    prompts = config.batch.prompts // processes
    compares = objective.compares_images
    count = prompts if compares else prompts * config.batch.images_per_prompt

    if config.batch.minibatches > count:
        raise ValueError(
            f"batch.minibatches = {config.batch.minibatches}, but each of {processes} processes "
            f"has only {count} {'prompts' if compares else 'images'} an iteration; lower it"
        )


def check_kernel(config: Config, policy: Policy, sampler: Sampler) -> None:
    """Refuse a kernel that is made for another kind of model."""
    schedule = policy.schedule
    needed = sampler.kernel.schedule
    use = config.sampler.kernel["use"]

    if needed == "consistency" and not schedule.consistency:
        raise ValueError(
            f"kernel '{use}' needs a consistency model, which {config.model.id} is not by its "
            'scheduler; with an LCM-LoRA in model.fused_lora set model.scheduler = "lcm", '
            "otherwise use kernel 'ddim'"
        )
    if needed == "flow" and schedule.variance_preserving:
        raise ValueError(
            f"kernel '{use}' needs a flow model, which {config.model.id} is not by its scheduler; "
            "use kernel 'ddim', 'cps' or 'precise'"
        )
    if needed == "diffusion" and not schedule.variance_preserving:
        raise ValueError(
            f"kernel '{use}' needs a diffusion model, and {config.model.id} is a flow; use kernel "
            "'cps' or 'precise'"
        )


def check_advantage(config: Config, objective: Objective, advantage: Advantage) -> None:
    """Refuse an advantage that does not fit the objective."""
    if objective.imitates != advantage.imitates:
        raise ValueError(
            "objective 'rwr' and the advantages 'softmax' and 'top_fraction' go together: set "
            "objective.use or advantage.use"
        )
    if advantage.uniform != follows_gradient(objective):
        raise ValueError(
            "objective 'latent' follows the rewards' gradients and compares no images, and only it "
            'does without an advantage: set advantage.use = "none" with it, and no other objective '
            "with that"
        )
    if advantage.selects and (config.batch.baseline or objective.compares_images):
        raise ValueError(
            "advantage 'pareto' leaves images out, but batch.baseline and objectives that compare "
            "images ('rebel', 'dgpo') give every image something to learn; set "
            "batch.baseline = '' and objective.use = \"clipped\""
        )


def check_forward(config: Config, policy: Policy, objective: Objective) -> None:
    """Refuse what an objective on the forward process cannot do."""
    if config.batch.baseline:
        raise ValueError(
            "an objective on the forward process noises finished images again, so it has no "
            "transitions to preview; set batch.baseline = ''"
        )
    if policy.schedule.consistency and objective.imitates:
        raise ValueError(
            "objective 'rwr' cannot train a consistency model: imitation teaches it the mean of "
            "all images that a noised one may come from, which is a blur, where it has to give "
            "one of them; take 'ram', 'nft' or 'clipped'"
        )
    check_anchor(config, objective)
    if objective.compares_images:
        check_image_comparison(config, config.batch.transitions)


def check_chain(config: Config, objective: Objective) -> None:
    """Refuse what an objective on the chain of calls cannot do."""
    steps = config.sampler.steps
    last = config.chain.last or steps
    if last > steps:
        raise ValueError(
            f"chain.last = {last}, but an image takes only {steps} calls (sampler.steps); lower "
            "it, or take 0 for all"
        )
    if config.batch.transitions > last:
        raise ValueError(
            f"batch.transitions = {config.batch.transitions}, but only {last} calls are learned "
            "from (sampler.steps, chain.last); lower it, or take 0 for all"
        )
    if config.batch.baseline:
        raise ValueError(
            "this objective learns from where images are to move, not from how good a transition "
            "was; set batch.baseline = ''"
        )
    if config.forward.anchor != "reference":
        raise ValueError(
            f'forward.anchor = "{config.forward.anchor}" is of images noised again; this objective '
            'has the anchor "reference" only'
        )
    if objective.direction == "difference":
        check_differences(config)


def check_differences(config: Config) -> None:
    """Refuse images of a prompt that do not differ by a little noise alone."""
    if not config.sampler.shared_noise or config.batch.images_per_prompt < 2:
        raise ValueError(
            "objective 'fdfo' compares images of one prompt that differ by a little noise: set "
            "sampler.shared_noise = true, batch.images_per_prompt = 2 or more, and "
            'sampler.kernel = { use = "churn", gamma = 0.0025 }'
        )
    if config.chain.read != "image":
        raise ValueError(
            f'chain.read = "{config.chain.read}" is of objective latent, which has a gradient to '
            'read; set it to "image"'
        )


def follows_gradient(objective: Objective) -> bool:
    """Return whether an objective follows the rewards' gradients, and no advantage."""
    return objective.process == "chain" and objective.direction == "gradient"


def needs_reference(objective: Objective) -> bool:
    """Return whether an objective reads what the reference, or another anchor, predicts."""
    return objective.kl > 0 or objective.compares_with_reference


def reads_old(objective: Objective) -> bool:
    """Return whether an objective reads what the old policy predicts."""
    reads_prediction = objective.uses_old_prediction or bool(objective.mixtures)
    return objective.uses_ratio or reads_prediction


def check_anchor(config: Config, objective: Objective) -> None:
    """Refuse an anchor that is not read, or cannot be what is read."""
    anchor = config.forward.anchor
    if anchor != "reference" and not needs_reference(objective):
        raise ValueError(
            f'forward.anchor = "{anchor}" has no effect with objective.kl = 0; set objective.kl, '
            "or leave the anchor out"
        )
    if anchor == "average" and not config.optimizer.ema:
        raise ValueError(
            'forward.anchor = "average" needs a moving average: set optimizer.ema, such as 0.9'
        )
    if anchor == "images" and objective.compares_with_reference:
        raise ValueError(
            "this objective compares images with what the reference makes of them; set "
            'forward.anchor = "reference"'
        )


def check_image_comparison(config: Config, transitions: int) -> None:
    """Refuse a batch whose images an objective cannot compare within a prompt."""
    if config.batch.transitions not in (0, transitions):
        raise ValueError(
            "this objective needs all transitions of an image; set batch.transitions = 0"
        )
    if config.batch.baseline:
        raise ValueError(
            "this objective has one advantage for all transitions of an image; set "
            "batch.baseline = ''"
        )

    if images_compared(config) < 2 or config.batch.minibatches > config.batch.prompts:
        raise ValueError(
            "this objective compares the images of a prompt; set batch.images_per_prompt to 2 or "
            "more (with sampler.identifiers for each reward), and batch.minibatches to at most "
            "batch.prompts"
        )
