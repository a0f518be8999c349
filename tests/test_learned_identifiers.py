"""Identifiers that learn: exact gradients, only their rows, resume, processes, files for diffusers.

The oracle of a gradient is plain autograd through the text encoder's own table, without our hook.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import build_pipeline, build_sdxl, build_z_image, generator, log, perturb
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from tiny_flow_models import build_flux, build_qwen_image, build_sd3
from tiny_klein_sana import build_klein, build_sana
from torch import Tensor

from burnish import config as configuration
from burnish import seeds
from burnish.config import Config
from burnish.diffusion import policy as policy_module
from burnish.diffusion.families import family_of
from burnish.diffusion.loading import place_parts
from burnish.diffusion.policy import Policy
from burnish.diffusion.prompt_encoder import PromptEncoder
from burnish.diffusion.text_gradients import TextGradients
from burnish.prompts import identifiers
from burnish.prompts.identifier_embeddings import IdentifierEmbeddings
from burnish.runs import Run
from burnish.tools.evaluate_run import evaluate_run
from burnish.tools.gallery import draw, open_source, preferred
from burnish.training.assembly import Overrides, add_identifiers, assemble
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.collect import Collector
from burnish.training.credit import assign_credit
from burnish.training.job import Job, prepare
from burnish.training.learners import IdentifierLearner
from burnish.training.loop import train
from burnish.training.weights import evaluated_weights
from burnish.types import Prompt, Trajectory
from burnish.world import World

REWARDS = """
def bright(images, prompts):
    return images.mean((1, 2, 3))
def red(images, prompts):
    return images[:, 0].mean((1, 2)) - images.mean((1, 2, 3))
"""
CLIPPED = ("advantage={use='group'}", "objective={use='clipped'}")
FORWARD = ("advantage={use='group'}", "objective={use='nft'}", "optimizer.ema=0.5")


@pytest.fixture
def recipe(make_pipeline: Callable[..., Path], write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        REWARDS,
        iterations=2,
        model={"id": str(make_pipeline())},
        sampler={"identifiers": "tokens", "identifiers_learn": True},
        rewards=[{"use": "HERE/reward.py:bright"}, {"use": "HERE/reward.py:red", "weight": 2.0}],
        optimizer={"lr": 1e-3},
        batch={
            "prompts": 2,
            "images_per_prompt": 4,
            "sample_batch": 8,
            "train_batch": 5,
            "minibatches": 2,
        },
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )


def load(recipe: Path, *overrides: str) -> Config:
    return configuration.load(recipe, overrides)


def table_of(pipe: Any) -> torch.nn.Parameter:
    return pipe.text_encoder.get_input_embeddings().weight


def embeddings_of(job: Job) -> IdentifierEmbeddings:
    assert job.parts.embeddings is not None
    return job.parts.embeddings


def collected(job: Job) -> tuple[RolloutBatch, Credit]:
    batch = Collector(job).collect(1)
    return batch, assign_credit(job.parts, batch, batch.scores, World())


def open_tables(pipe: Any, rewards: int) -> dict[str, tuple[Tensor, Tensor, list[int]]]:
    """Take the hooks off and let the tables learn; return (table, std, tokens) of each."""
    opened = {}
    for ending, (tokenizer, encoder) in identifiers.text_encoders(pipe).items():
        layer = encoder.get_input_embeddings()
        names = [identifiers.identifier(index) for index in range(rewards)]
        tokens = tokenizer.convert_tokens_to_ids(names)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Embedding):
                module._forward_hooks.clear()
        std = layer.weight[: tokenizer.vocab_size].detach().std(0)
        layer.weight.requires_grad_(True)
        opened[f"text_encoder{ending.replace('-', '_')}"] = (layer.weight, std, tokens)
    return opened


@pytest.mark.parametrize("guidance", ["{use='cfg',weight=2.0}", "{use='none'}"])
@pytest.mark.parametrize(("method", "trained"), [(CLIPPED, "lora"), (FORWARD, "none")])
@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_the_gradient_is_that_of_the_whole_chain(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: tuple[str, ...],
    trained: str,
    guidance: str,
) -> None:
    """embeddings -> text encoder -> network -> loss, over two minibatches with learning rate 0."""
    monkeypatch.setitem(policy_module.DTYPES, "float32", torch.float64)
    still = ["optimizer.lr=0", f"sampler.guidance={guidance}", f"model.train={trained}"]
    config = load(recipe, *method, *still)
    job = prepare(config, Run.create(tmp_path / "run"), World())
    policy = job.parts.policy
    assert table_of(policy.pipe).dtype == torch.float64
    perturb(policy)
    batch, credit = collected(job)
    embeddings = embeddings_of(job)
    job.learners["generator"].learn(batch, credit)
    embeddings.add_gradient(embeddings.gradients.take())
    (found,) = (p.grad.clone() for p in embeddings.trainable if p.grad is not None)

    updates: Any = job.learners["generator"].updates  # type: ignore[attr-defined]
    pairs = updates.pairs(1, credit.advantages)
    embeddings.save(tmp_path)  # into the tables too
    ((table, std, tokens),) = open_tables(policy.pipe, 2).values()
    texts = [prompt.generator_text for prompt in batch.prompts]
    states = family_of("StableDiffusionPipeline").encode(policy.pipe, texts)
    stored = batch.trajectory
    torch.testing.assert_close(states["text"].detach(), stored.cond["text"], rtol=1e-9, atol=1e-9)
    trajectory = replace(stored, cond={**stored.cond, **states})
    process = updates.process(replace(batch, trajectory=trajectory), pairs)
    loss = sum(
        job.parts.objective(process.replay(images, columns), credit.advantages[images]).value
        for images, columns in pairs
    )
    (grad,) = torch.autograd.grad(loss, [table])  # type: ignore[arg-type]
    expected = grad[tokens] * std
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=5e-5, atol=1e-6 * float(expected.abs().max()))


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd": build_pipeline,
    "sdxl": build_sdxl,
    "sd3": build_sd3,
    "flux": lambda: build_flux(dev=True),
    "qwen": build_qwen_image,
    "z-image": build_z_image,
    "klein": build_klein,
    "sana": build_sana,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_all_text_encoders_of_all_families(name: str, tmp_path: Path) -> None:
    pipe = BUILDERS[name]()
    family = family_of(type(pipe).__name__)
    for _, encoder in identifiers.text_encoders(pipe).values():
        encoder.requires_grad_(False)
    identifiers.add_tokens(pipe, 2, identifiers.NEAR)
    texts = [prompt.generator_text for prompt in prompts_for(2)]
    before = family.encode(pipe, texts[:1])
    embeddings = IdentifierEmbeddings(pipe, 2)
    encoder = PromptEncoder(pipe, family, torch.device("cpu"))
    encoder.learned = embeddings.trainable
    for key, value in encoder.encode(texts[:1]).items():
        torch.testing.assert_close(value, before[key], msg="they begin as the tokens do")

    with torch.no_grad():
        for index, parameter in enumerate(embeddings.trainable):
            parameter.add_(torch.randn(parameter.shape, generator=generator(index)))
    with torch.no_grad():
        shapes = encoder.encode(texts)
    assert not torch.allclose(shapes["text"][:1], before["text"]), "nothing stale is remembered"
    weights = {
        key: torch.randn(value.shape, generator=generator(7)).to(value)
        for key, value in shapes.items()
        if value.is_floating_point()
    }
    gradients = {
        text: {key: value[row : row + 1] for key, value in weights.items()}
        for row, text in enumerate(texts)
    }
    embeddings.add_gradient(gradients)
    found = {key: p.grad for key, p in embeddings.named_trainable.items()}

    embeddings.save(tmp_path)  # into the tables too
    opened = open_tables(pipe, 2)
    for key, value in encoder.encode(texts).items():  # with hooks, as it is remembered
        plain = torch.cat([family.encode(pipe, [text])[key] for text in texts])
        torch.testing.assert_close(value, plain.detach())
    total = torch.zeros(())
    for text in texts:
        states = family.encode(pipe, [text])
        total = total + sum((states[key] * gradients[text][key]).sum() for key in weights)
    total.backward()

    assert found.keys() == opened.keys()
    for key, (table, std, tokens) in opened.items():
        grad, expected = found[key], table.grad
        assert grad is not None and expected is not None
        expected = expected[tokens] * std
        assert expected.abs().max() > 0
        tolerance = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=tolerance)


def prompts_for(rewards: int) -> list[Prompt]:
    """A prompt with each identifier, one with all, one with none."""
    each = [identifiers.template([index]) for index in range(rewards)]
    templates = [*each, identifiers.template(range(rewards)), "{}"]
    return [Prompt("a cat", template=template) for template in templates]


def test_only_the_identifiers_rows_change(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe, *CLIPPED, "model.train=none", "optimizer.weight_decay=0.1")
    job = prepare(config, Run.create(tmp_path / "run"), World())
    pipe = job.parts.policy.pipe
    parts = {
        name: {key: value.clone() for key, value in network.state_dict().items()}
        for name, network in pipe.components.items()
        if isinstance(network, torch.nn.Module)
    }
    everything = torch.arange(len(table_of(pipe)))
    layer = pipe.text_encoder.get_input_embeddings()
    read = layer(everything)
    for _ in range(2):
        batch, credit = collected(job)
        for learner in job.learners.values():
            metrics = learner.learn(batch, credit)
    assert metrics["grad_norm"] > 0 and metrics["distance"] > 0

    changed = (layer(everything) != read).any(1).nonzero().flatten().tolist()
    assert changed == pipe.tokenizer.convert_tokens_to_ids(["<reward 1>", "<reward 2>"])
    for name, weights in parts.items():
        assert all(torch.equal(getattr(pipe, name).state_dict()[k], v) for k, v in weights.items())


@pytest.mark.parametrize("method", [CLIPPED, FORWARD], ids=["clipped", "forward"])
def test_stop_then_resume_is_the_uninterrupted_run(
    recipe: Path, tmp_path: Path, method: tuple[str, ...]
) -> None:
    options = [*method, "sampler.steps=2", "run.sample_every=3", "run.sample_prompts=1"]
    train(load(recipe, *options, "iterations=3"), tmp_path / "uninterrupted")
    train(load(recipe, *options), tmp_path / "resumed")
    train(load(recipe, *options, "iterations=3"), tmp_path / "resumed", resume=True)
    assert log(tmp_path / "resumed") == log(tmp_path / "uninterrupted")
    for file in (
        "samples/000003.png",
        "checkpoints/000003/tensors.safetensors",
        "adapter/identifiers/reward-2.safetensors",
    ):
        resumed, uninterrupted = (tmp_path / run / file for run in ("resumed", "uninterrupted"))
        assert resumed.read_bytes() == uninterrupted.read_bytes(), file

    records = log(tmp_path / "resumed")
    assert all(record["identifiers_grad_norm"] > 0 for record in records)
    assert all(record["ratio_deviation"] < 1e-4 for record in records if method == CLIPPED)
    config = load(recipe, *options, "sampler.identifiers_learn=false")
    with pytest.raises(ValueError, match="another sampler.identifiers_learn"):
        train(config, tmp_path / "resumed", resume=True, accept_changes=True)


@pytest.mark.parametrize("lr", [0.0, 0.5])
def test_a_learning_rate_of_zero_changes_nothing(recipe: Path, tmp_path: Path, lr: float) -> None:
    options = [f"sampler.identifiers_lr={lr}", "optimizer.lr=0", "evaluation.images_per_prompt=1"]
    short = ["iterations=1", "sampler.steps=2"]
    run = Run(train(load(recipe, *CLIPPED, *options, *short), tmp_path / "run"))
    start = assemble(load(recipe, *CLIPPED)).embeddings
    assert start is not None
    tensors = load_file(run.checkpoints / "000001/tensors.safetensors")
    weights = tensors["identifiers/weights.text_encoder"]
    assert torch.equal(weights, start.state()["text_encoder"]) == (lr == 0)

    if lr:
        stored = json.loads(run.evaluation.read_text())["train"]
        run.evaluation.unlink()
        evaluate_run(run)
        again = json.loads(run.evaluation.read_text())["train"]
        assert again["paired_mean"] == pytest.approx(stored["paired_mean"], rel=1e-6)


def test_they_learn_alone_and_the_guard_can_go_back(recipe: Path, tmp_path: Path) -> None:
    options = ["model.train=none", "guard.action=rollback", "optimizer.ema=0.5"]
    watched = [
        "evaluation={every=1,images_per_prompt=1}",
        "guard.panel=[{use='compressibility'}]",
    ]
    config = load(recipe, *CLIPPED, *options, *watched)
    job = prepare(config, Run.create(tmp_path / "run"), World())
    learner = job.learners["identifiers"]
    start = embeddings_of(job).state()["text_encoder"]
    states = []
    for _ in range(2):
        batch, credit = collected(job)
        assert "grad_norm" not in job.learners["generator"].learn(batch, credit)
        learner.learn(batch, credit)
        states.append(learner.state())
    learned = embeddings_of(job).state()["text_encoder"]
    averaged = evaluated_weights(states[1])["text_encoder"]
    assert not torch.equal(learned, start) and not torch.equal(averaged, learned)

    prompts = [Prompt("a cat", template="<reward 1> {}")]
    current = job.parts.policy.encode(prompts)["text"]
    with learner.averaged():
        assert torch.equal(embeddings_of(job).state()["text_encoder"], averaged)
        assert not torch.equal(job.parts.policy.encode(prompts)["text"], current)
    assert torch.equal(job.parts.policy.encode(prompts)["text"], current)

    learner.reset(states[0])
    assert torch.equal(
        embeddings_of(job).state()["text_encoder"], evaluated_weights(states[0])["text_encoder"]
    )
    learner.reset(None)
    assert torch.equal(embeddings_of(job).state()["text_encoder"], start)


def test_two_processes_step_along_the_mean_gradient() -> None:
    """Half of the texts each: their mean gradient is half the sum over all texts."""
    texts = [prompt.generator_text for prompt in prompts_for(2)]
    shares = (texts[:2], texts[2:])
    whole, *halves = (differentiated(share, texts) for share in (texts, *shares))
    grads = [taken_grad(embeddings) for embeddings in (whole, *halves)]
    torch.testing.assert_close(grads[1] + grads[2], grads[0])

    for index, embeddings in enumerate(halves):
        embeddings.gradients = Given(shares[index], texts)
        world = Both(other=grads[2 - index])
        learner = IdentifierLearner(Config(rewards=[{}, {}]), world, embeddings)
        norm = learner.learn(*NOTHING)["grad_norm"]
        assert norm == pytest.approx(float(grads[0].norm()) / 2, rel=1e-5)

    torch.testing.assert_close(*(embeddings.state()["text_encoder"] for embeddings in halves))


def taken_grad(embeddings: IdentifierEmbeddings) -> Tensor:
    (parameter,) = embeddings.trainable
    grad, parameter.grad = parameter.grad, None
    assert grad is not None
    return grad


NOTHING: Any = (None, None)


def gradients_of(share: list[str], texts: list[str]) -> dict[str, dict[str, Tensor]]:
    return {
        text: {"text": torch.randn(1, 24, 8, generator=generator(texts.index(text)))}
        for text in share
    }


def differentiated(share: list[str], texts: list[str]) -> IdentifierEmbeddings:
    """The embeddings of a new model, with the gradient of some texts."""
    pipe: Any = build_pipeline()
    pipe.text_encoder.requires_grad_(False)
    identifiers.add_tokens(pipe, 2, identifiers.NEAR)
    embeddings = IdentifierEmbeddings(pipe, 2)
    embeddings.add_gradient(gradients_of(share, texts))
    return embeddings


class Given(TextGradients):
    """The gradients of some texts."""

    def __init__(self, share: list[str], texts: list[str]) -> None:
        super().__init__()
        self.given = gradients_of(share, texts)

    def take(self) -> dict[str, Any]:
        return self.given


@dataclass(frozen=True)
class Both(World):
    """Two processes, of which the other has a gradient already."""

    other: Any = None

    def any(self, flag: bool) -> bool:
        return True

    def average_gradients(self, parameters: Any) -> None:
        (parameter,) = parameters
        parameter.grad.copy_((parameter.grad + self.other) / 2)


def test_gradients_are_summed_by_text_and_steps_that_overflow_are_left_out() -> None:
    cond = {"text": torch.zeros(4, 2), "control": torch.zeros(4, 2), "tokens": torch.ones(4).long()}
    empty = torch.zeros(4, 1)
    stored = Trajectory(empty, empty, empty, empty, cond, torch.arange(4))
    collector = TextGradients()
    watched = collector.watch(stored, [Prompt(text) for text in "abab"])

    def step(images: list[int], factor: float, scale: float) -> None:
        rows = torch.tensor(images)
        read = watched.condition(rows, torch.device("cpu"))
        assert read["text"].requires_grad and not read["control"].requires_grad
        factors = rows[:, None].float() + 1
        (scale * factor * factors * read["text"]).sum().backward()

    step([0, 1, 2], 1.0, 8.0)
    step([3, 0], 1.0, 8.0)
    collector.end_step(8.0)
    step([1], float("inf"), 8.0)
    collector.end_step(8.0)
    step([2], 2.0, 4.0)
    collector.end_step(4.0)
    taken = collector.take()
    assert taken["a"]["text"].tolist() == [[1 + 3 + 1 + 6] * 2]
    assert taken["b"]["text"].tolist() == [[2 + 4] * 2]
    assert collector.take() == {}
    watched = collector.watch(stored, [Prompt(text) for text in "abab"])
    step([1], float("inf"), 1.0)
    collector.end_step()
    assert collector.take()["b"]["text"].tolist() == [[torch.inf] * 2], "and the learner says so"


def test_stock_diffusers_draws_what_was_learned(recipe: Path, tmp_path: Path) -> None:
    options = ["sampler.identifiers_lr=0.5", "optimizer.ema=0.5", "optimizer.lr=1e-2"]
    config = load(recipe, *CLIPPED, *options)
    run = Run(train(config, tmp_path / "run"))
    tensors = load_file(run.checkpoints / "000002/tensors.safetensors")
    averaged = tensors["identifiers/average.text_encoder"]
    assert not torch.equal(averaged, tensors["identifiers/weights.text_encoder"])
    start = assemble(config)
    assert start.embeddings is not None
    with torch.no_grad():
        start.embeddings.trainable[0].copy_(averaged)
    tokens = start.policy.pipe.tokenizer.convert_tokens_to_ids(["<reward 1>", "<reward 2>"])
    rows = start.policy.pipe.text_encoder.get_input_embeddings()(torch.tensor(tokens))
    for index, row in enumerate(rows):
        file = run.adapter / f"identifiers/reward-{index + 1}.safetensors"
        torch.testing.assert_close(load_file(file)[f"<reward {index + 1}>"], row)

    policy, sampler = open_source(str(run.folder))
    template = preferred(str(run.folder), "red")
    images = draw(policy, sampler, [Prompt("a cat", template=template)], 2)
    untrained, _ = open_source(str(run.folder), before=True)
    prompts = [Prompt("a cat", template=template)]
    assert not torch.allclose(untrained.encode(prompts)["text"], policy.encode(prompts)["text"])

    pipe = StableDiffusionPipeline.from_pretrained(config.model.id)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(run.adapter)
    for path in sorted((run.adapter / "identifiers").iterdir()):
        pipe.load_textual_inversion(path)
    stock = pipe(
        [template.replace("{}", "a cat")] * 2,
        num_inference_steps=3,
        guidance_scale=2.0,
        eta=1.0,
        output_type="pt",
        generator=seeds.generator(0, "draw"),
    ).images
    torch.testing.assert_close(stock, images, rtol=1e-3, atol=1e-4)


def test_a_run_starts_from_what_another_has_learned(recipe: Path, tmp_path: Path) -> None:
    short = ["iterations=1", "sampler.identifiers_lr=0.5", "model.train=none"]
    alone = str(train(load(recipe, *CLIPPED, *short), tmp_path / "alone"))
    before, after = (open_source(alone, before=before)[0] for before in (True, False))
    prompts = prompts_for(2)
    learned = after.encode(prompts)["text"]
    assert not torch.allclose(learned[:3], before.encode(prompts)["text"][:3])

    for learns in ("true", "false"):
        config = load(recipe, f"sampler.identifiers_learn={learns}")
        config = replace(config, model=replace(config.model, adapter=f"{alone}/adapter"))
        job: Any = SimpleNamespace(pipe=build_pipeline())
        add_identifiers(config, job, config.model.adapter)
        if learns == "true":
            IdentifierEmbeddings(job.pipe, 2)
        encoder = PromptEncoder(job.pipe, family_of("StableDiffusionPipeline"), torch.device("cpu"))
        texts = [prompt.generator_text for prompt in prompts]
        with torch.no_grad():
            torch.testing.assert_close(encoder.encode(texts)["text"], learned)

    parts = assemble(config)  # the folder has no LoRA: a new one learns beside the embeddings
    torch.testing.assert_close(parts.policy.encode(prompts)["text"], learned)
    assert parts.policy.train == "lora" and parts.policy.trainable

    plain = replace(config, sampler=replace(config.sampler, identifiers=""))
    with pytest.raises(ValueError, match=r"of identifiers, and no LoRA: set sampler.identifiers"):
        assemble(plain)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    pipe, other = build_pipeline(), build_sdxl()
    identifiers.add_tokens(pipe, 1)
    identifiers.add_tokens(other, 1)
    identifiers.save_tokens(other, 1, tmp_path)
    identifiers.load_tokens(pipe, 2, tmp_path)  # the first encoders are as wide
    (tmp_path / "reward-1-2.safetensors").rename(tmp_path / "reward-1.safetensors")
    with pytest.raises(ValueError, match=r"embedding of <reward 1> is \(12,\), .* are \(8,\)"):
        identifiers.load_tokens(pipe, 1, tmp_path)
    (tmp_path / "reward-1.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"reward-1.safetensors: damaged"):
        identifiers.load_tokens(pipe, 1, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampler.identifiers=words"], 'learn trains one token .* set sampler.identifiers = "tok'),
        (["sampler.identifiers=''"], "identifiers_learn trains one token for each reward"),
        (["sampler.identifiers_lr=-1"], "sampler.identifiers_lr = -1.0; it must be 0 or more"),
        (["model.text_encoder=free"], "words of a text encoder that are saved; set it to"),
        (["model.train=none", "model.dtype=float16"], '"float16" rounds to 0; set it to "bfloat16'),
    ],
)
def test_settings_that_contradict_each_other(
    recipe: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        assemble(load(recipe, *overrides))


def test_text_encoders_on_the_cpu(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process learns there as beside the network; several cannot."""
    options = [*CLIPPED, "iterations=1", "sampler.steps=2"]
    runs = [
        train(load(recipe, *options, f"model.text_encoder={place}"), tmp_path / place)
        for place in ("keep", "cpu")
    ]
    assert log(runs[0]) == log(runs[1])
    assert log(runs[1])[0]["identifiers_grad_norm"] > 0

    launched = load(recipe, "model.text_encoder=cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match='share on their GPUs; set it to "keep", or start a sin'):
        assemble(launched)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "klein"])
def test_the_gradient_is_the_same_wherever_the_network_is(name: str) -> None:
    """A device without memory stands for a GPU: no step may bring the text encoders to it."""
    texts = ["<reward 1> a cat", "a dog", "<reward 2> a cat"]
    grads = []
    for device in ("cpu", "meta"):
        pipe = BUILDERS[name]()
        for _, encoder in identifiers.text_encoders(pipe).values():
            encoder.eval().requires_grad_(False)
        place_parts(pipe, device, texts=False)
        identifiers.add_tokens(pipe, 2, identifiers.NEAR)

        embeddings = IdentifierEmbeddings(pipe, 2)
        family = family_of(type(pipe).__name__)
        given = {}
        for text in texts:
            states = family.encode(pipe, [text]).items()
            given[text] = {
                key: torch.randn(value.shape, generator=generator(len(text)))
                for key, value in states
                if value.is_floating_point()
            }
        embeddings.add_gradient(given)
        grads.append([parameter.grad for parameter in embeddings.trainable])

    for found, expected in zip(*grads, strict=True):
        assert found is not None and expected is not None
        assert found.device.type == "cpu" and found.any() and torch.equal(found, expected)


def test_text_encoders_that_are_gone(recipe: Path) -> None:
    policy = Policy.load(build_pipeline())
    policy.pipe.text_encoder = None
    with pytest.raises(ValueError, match="this pipeline has none any more; set it to false"):
        assemble(load(recipe), overrides=Overrides(policy=policy))
