"""The policy against the stock pipeline; its adapter, its states, its files, its errors."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import generator, perturb
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from burnish.diffusion.guidance import CFG, NoGuidance
from burnish.diffusion.policy import Policy
from burnish.types import Guidance, Prompt

CATS = [Prompt("a cat"), Prompt("two dogs"), Prompt("a cat")]
T = torch.tensor([981, 401, 1])
PLAIN = NoGuidance()


def predict_x0(policy: Policy, guidance: Guidance = PLAIN) -> Tensor:
    """Return the predictions of x0 for CATS at T, from the same noise."""
    with torch.no_grad():
        return policy.predict(policy.noise(3, generator()), T, policy.encode(CATS), guidance)


def stock_images(pipe: StableDiffusionPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=generator())
    images = pipe(["a cat", "a dog"], num_inference_steps=3, latents=noise, output_type="pt").images
    assert isinstance(images, Tensor)
    return images


@pytest.fixture
def policy(tiny_pipeline: Path) -> Policy:
    return Policy.load(tiny_pipeline, rank=2, alpha=2)


def test_load(policy: Policy, tiny_pipeline: Path) -> None:
    assert policy.latent_shape == (4, 8, 8)
    assert policy.schedule.prediction == "v_prediction"
    assert len(policy.trainable) == len(policy.state()) > 0
    assert all(p.requires_grad and p.dtype == torch.float32 for p in policy.trainable)

    for part in ("unet", "vae", "text_encoder"):
        assert not any(module.training for module in getattr(policy.pipe, part).modules())

    trainable = sum(p.requires_grad for p in policy.pipe.unet.parameters())
    assert trainable == len(policy.trainable)
    assert not Policy.load(tiny_pipeline, train="none").trainable
    full = Policy.load(tiny_pipeline, train="full")
    assert len(full.trainable) == len(list(full.pipe.unet.parameters()))


def test_a_new_adapter_changes_nothing_and_is_always_the_same(
    tiny_pipeline: Path, policy: Policy
) -> None:
    untrained = Policy.load(tiny_pipeline, train="none")
    torch.testing.assert_close(predict_x0(policy), predict_x0(untrained), rtol=0, atol=0)

    torch.manual_seed(99)
    again = Policy.load(tiny_pipeline, rank=2, alpha=2).state()
    assert all(torch.equal(value, again[name]) for name, value in policy.state().items())


def test_encode_is_the_pipelines_own_and_remembered(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = policy.encode(CATS)["text"]
    expected, _ = policy.pipe.encode_prompt([p.text for p in CATS], policy.device, 1, False)
    torch.testing.assert_close(text, expected)
    assert not text.requires_grad and torch.equal(text[0], text[2])
    monkeypatch.setattr(policy.pipe.text_encoder, "forward", None)  # would fail if called again
    assert torch.equal(policy.encode(CATS[:1])["text"][0], text[0])


def test_the_number_of_remembered_texts_is_limited(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.diffusion.prompt_encoder.CACHED_TEXTS", 2)
    assert len(policy.encode([Prompt(letter) for letter in "abcd"])["text"]) == 4
    assert len(policy.prompt_encoder) == 2


def test_null_is_the_empty_prompt(policy: Policy) -> None:
    assert torch.equal(policy.null(3)["text"], policy.encode([Prompt("")] * 3)["text"])


def test_noise_follows_the_generator(policy: Policy) -> None:
    noise = policy.noise(2, generator(5))
    assert noise.shape == (2, 4, 8, 8) and noise.dtype == torch.float32
    assert torch.equal(noise, torch.randn(2, 4, 8, 8, generator=generator(5)))


def test_predict_is_the_unet_with_guidance_turned_into_x0(
    tiny_pipeline: Path, policy: Policy
) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    x = policy.noise(3, generator())
    cond = policy.encode(CATS)["text"]
    null = policy.null(3)["text"]

    with torch.no_grad():
        v, v_null = (unet(x, T, states).sample for states in (cond, null))

    for guidance, out in ((NoGuidance(), v), (CFG(5.0), v_null + 5 * (v - v_null))):
        torch.testing.assert_close(
            predict_x0(policy, guidance), policy.schedule.x0(x, T, out), rtol=1e-4, atol=1e-5
        )


def test_decode_is_the_vae(policy: Policy) -> None:
    latent = policy.noise(2, generator())
    images = policy.decode(latent)

    with torch.no_grad():
        raw = policy.pipe.vae.decode(latent / policy.pipe.vae.config.scaling_factor).sample

    torch.testing.assert_close(images, (raw / 2 + 0.5).clamp(0, 1))
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32


@pytest.mark.parametrize(
    ("decode_at_once", "large", "expected"),
    [(0, False, [3]), (0, True, [1, 1, 1]), (2, False, [2, 1]), (2, True, [2, 1])],
)
def test_the_number_of_images_decoded_at_once(
    tiny_pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    decode_at_once: int,
    large: bool,
    expected: list[int],
) -> None:
    policy = Policy.load(tiny_pipeline, train="none", decode_at_once=decode_at_once)
    latent = policy.noise(3, generator())
    decode = policy.pipe.vae.decode
    rows = []

    with torch.no_grad():
        together = policy.pipe.vae.decode(latent / policy.pipe.vae.config.scaling_factor).sample

    def counted(x: Tensor, **settings: object) -> object:
        rows.append(len(x))
        return decode(x, **settings)

    monkeypatch.setattr(policy.pipe.vae, "decode", counted)
    monkeypatch.setattr("burnish.diffusion.policy.LARGE_IMAGE", 1023 if large else 1024)
    torch.testing.assert_close(policy.decode(latent), (together / 2 + 0.5).clamp(0, 1))
    assert rows == expected


def test_images_that_are_not_finite_are_an_error(policy: Policy) -> None:
    latent = policy.noise(2, generator())
    latent[1, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="decoded images are not finite"):
        policy.decode(latent)


def test_merged_is_the_same_policy_and_gives_the_base_back_bit_for_bit(policy: Policy) -> None:
    before = {name: p.clone() for name, p in policy.pipe.unet.named_parameters()}
    perturb(policy)
    learned = policy.state()
    unmerged = predict_x0(policy)

    def fail_while_merged() -> Tensor:
        with policy.merged():
            merged.append(predict_x0(policy))
            left = len(list(policy.pipe.unet.parameters()))
            assert left < len(before), "no adapter layer is left in the network"
            raise KeyError

    merged: list[Tensor] = []
    with pytest.raises(KeyError):
        fail_while_merged()

    torch.testing.assert_close(merged[0], unmerged, rtol=1e-5, atol=2e-6)
    assert torch.equal(predict_x0(policy), unmerged)

    for name, p in policy.pipe.unet.named_parameters():
        assert torch.equal(p, learned.get(name, before[name])), name


@pytest.mark.parametrize("train", ["lora", "full"])
def test_reference_is_the_model_before_training(tiny_pipeline: Path, train: str) -> None:
    policy = Policy.load(tiny_pipeline, train=train, reference=True)
    first = predict_x0(policy)
    perturb(policy)
    learned = predict_x0(policy)
    assert not torch.allclose(learned, first, atol=1e-3)

    with policy.merged(), policy.reference():
        assert torch.equal(predict_x0(policy), first)
        with policy.merged():  # a rollout of the reference
            assert torch.equal(predict_x0(policy), first)
        assert torch.equal(predict_x0(policy), first)

    assert torch.equal(predict_x0(policy), learned)


def test_full_training_without_a_reference(tiny_pipeline: Path) -> None:
    with pytest.raises(RuntimeError, match="reference=True"):
        Policy.load(tiny_pipeline, train="full").reference()


@pytest.mark.parametrize("train", ["lora", "full"])
def test_state_round_trip(tiny_pipeline: Path, train: str) -> None:
    policy = Policy.load(tiny_pipeline, train=train)
    other = Policy.load(tiny_pipeline, train=train)
    perturb(policy)
    state = policy.state()
    other.load_state(state)
    assert torch.equal(predict_x0(policy), predict_x0(other))

    perturb(policy)
    learned = predict_x0(other)
    other.load_state(state)
    assert torch.equal(predict_x0(other), learned), "a state is a copy"


def test_state_that_does_not_fit(tiny_pipeline: Path, policy: Policy) -> None:
    before = policy.state()
    other = Policy.load(tiny_pipeline, rank=3).state()

    with pytest.raises(
        ValueError, match="checkpoint has rank 3, but this adapter has rank 2: set model.rank = 3"
    ):
        policy.load_state(other)

    with pytest.raises(
        ValueError, match=r"belongs to another model or to other model.targets: it lacks .*lora"
    ):
        policy.load_state(dict(list(before.items())[1:]))

    with pytest.raises(ValueError, match="it has the unknown extra"):
        policy.load_state({**before, "extra": torch.zeros(1)})

    assert all(torch.equal(value, before[name]) for name, value in policy.state().items())


@pytest.mark.parametrize("alpha", [2, 6])
def test_adapter_loads_into_a_stock_pipeline_with_the_same_images(
    tiny_pipeline: Path, tmp_path: Path, alpha: float
) -> None:
    policy = Policy.load(tiny_pipeline, rank=2, alpha=alpha)
    perturb(policy)
    policy.save_adapter(tmp_path / "adapter")
    files = [file.name for file in (tmp_path / "adapter").iterdir()]
    assert files == ["pytorch_lora_weights.safetensors"]

    stock = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    plain = stock_images(stock)
    stock.load_lora_weights(tmp_path / "adapter")
    tuned = stock_images(stock)
    assert not torch.allclose(tuned, plain, atol=1e-2)
    torch.testing.assert_close(stock_images(policy.pipe), tuned, rtol=0, atol=1e-4)

    for train in ("lora", "none"):
        again = Policy.load(
            tiny_pipeline, train=train, rank=2, alpha=alpha, adapter=tmp_path / "adapter"
        )
        torch.testing.assert_close(predict_x0(again), predict_x0(policy), rtol=1e-5, atol=1e-6)

        with again.merged():
            torch.testing.assert_close(predict_x0(again), predict_x0(policy), rtol=1e-5, atol=2e-6)

    policy.save_adapter(tmp_path / "adapter")  # over the old one


def test_only_the_warning_about_text_encoders_is_silenced(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("diffusers.loaders.lora_base")
    messages: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    recorder = Recorder()
    logger.addHandler(recorder)
    read = StableDiffusionPipeline.load_lora_weights

    def read_with_warning(*args: object, **settings: object) -> None:
        logger.warning("another warning")
        read(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(StableDiffusionPipeline, "load_lora_weights", read_with_warning)

    try:
        Policy.load(tiny_pipeline).save_adapter(tmp_path)
        Policy.load(tiny_pipeline, train="none", adapter=tmp_path)
        assert messages == ["another warning"]

        StableDiffusionPipeline.from_pretrained(tiny_pipeline).load_lora_weights(tmp_path)
        assert any(message.startswith("No LoRA keys associated to ") for message in messages)
    finally:
        logger.removeHandler(recorder)


def test_full_weights_round_trip(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy = Policy.load(tiny_pipeline, train="full")
    perturb(policy)
    policy.save_adapter(tmp_path)
    stock = StableDiffusionPipeline.from_pretrained(
        tiny_pipeline, unet=UNet2DConditionModel.from_pretrained(tmp_path)
    )
    torch.testing.assert_close(stock_images(stock), stock_images(policy.pipe), rtol=0, atol=1e-5)

    for train in ("full", "none"):
        again = Policy.load(tiny_pipeline, train=train, adapter=tmp_path)
        assert torch.equal(predict_x0(again), predict_x0(policy))


def test_adapters_that_do_not_fit(tiny_pipeline: Path, tmp_path: Path, policy: Policy) -> None:
    policy.save_adapter(tmp_path)
    load = Policy.load

    with pytest.raises(
        ValueError, match="has rank 2, but this adapter has rank 4: set model.rank = 2"
    ):
        load(tiny_pipeline, adapter=tmp_path)

    with pytest.raises(ValueError, match="other model.targets"):
        load(tiny_pipeline, rank=2, alpha=2, targets=["to_q"], adapter=tmp_path)
    with pytest.raises(ValueError, match="holds a LoRA adapter: set model.train = 'lora'"):
        load(tiny_pipeline, train="full", adapter=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model.adapter: .*nowhere does not exist"):
        load(tiny_pipeline, adapter=tmp_path / "nowhere")

    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has neither pytorch_lora_weights.safetensors nor"):
        load(tiny_pipeline, adapter=tmp_path / "empty")

    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:500])

    for train in ("lora", "none"):
        with pytest.raises(ValueError, match="cannot be used"):
            load(tiny_pipeline, train=train, rank=2, adapter=tmp_path)


def test_half_precision_keeps_trainable_weights_in_float32_and_unmerged(
    tiny_pipeline: Path,
) -> None:
    policy = Policy.load(tiny_pipeline, dtype="bfloat16")
    perturb(policy)
    assert {p.dtype for p in policy.trainable} == {torch.float32}
    assert policy.pipe.vae.dtype == policy.pipe.text_encoder.dtype == torch.bfloat16
    unmerged = predict_x0(policy)

    with policy.merged():
        assert torch.equal(predict_x0(policy), unmerged)

    assert unmerged.dtype == policy.decode(policy.noise(1, generator())).dtype == torch.float32
    guided = predict_x0(policy, CFG(2.0))
    fresh = Policy.load(tiny_pipeline, dtype="bfloat16")
    assert guided.isfinite().all()
    assert torch.equal(policy.null(1)["text"], fresh.encode([Prompt("")])["text"]), (
        "encoded without autocast too"
    )
    full = Policy.load(tiny_pipeline, dtype="bfloat16", train="full")
    assert {p.dtype for p in full.trainable} == {torch.float32}
    assert full.pipe.vae.dtype == torch.bfloat16


def test_gradient_checkpointing_gives_the_same_gradient(tiny_pipeline: Path) -> None:
    grads = []
    for checkpointing in (False, True):
        policy = Policy.load(tiny_pipeline, gradient_checkpointing=checkpointing)
        perturb(policy)
        x0 = policy.predict(policy.noise(3, generator()), T, policy.encode(CATS), NoGuidance())
        grads.append(torch.autograd.grad(x0.square().sum(), policy.trainable))

    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_scheduler_of_stable_diffusion_1(make_pipeline: Callable[..., Path]) -> None:
    policy = Policy.load(make_pipeline("epsilon", "pndm"))
    assert policy.schedule.prediction == "epsilon" and policy.schedule.times(50)[0] == 981


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("model_index.json", "has no model_index.json"),
        ("unet", "misses its part 'unet'"),
        ("vae/config.json", "misses config.json in its part 'vae'"),
        ("text_encoder/model.safetensors", "misses the weights .* in its part 'text_encoder'"),
        ("tokenizer/tokenizer.json", "misses tokenizer.json in its part 'tokenizer'"),
        ("scheduler/scheduler_config.json", "misses scheduler_config.json in its part 'scheduler'"),
    ],
)
def test_model_folder_missing_a_part(
    tiny_pipeline: Path, tmp_path: Path, part: str, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline, folder)

    if (folder / part).is_dir():
        shutil.rmtree(folder / part)
    else:
        (folder / part).unlink()

    with pytest.raises(FileNotFoundError, match=message) as caught:
        Policy.load(folder)

    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_or_foreign_models(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        Policy.load(folder)

    assert "\n" not in str(caught.value)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"AuraFlowPipeline"'))

    with pytest.raises(
        ValueError,
        match="AuraFlowPipeline are not supported yet; .*LatentConsistencyModelPipeline, ",
    ):
        Policy.load(folder)

    index.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        Policy.load(folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Policy.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "some"}, "model.train must be"),
        ({"dtype": "float8"}, "model.dtype must be one of"),
        ({"rank": 0}, "model.rank must be at least 1"),
        ({"decode_at_once": -1}, "model.decode_at_once must be 0"),
        ({"targets": ["to_nothing"]}, "no layer whose name ends in 'to_nothing'"),
    ],
)
def test_settings_out_of_range(
    tiny_pipeline: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Policy.load(tiny_pipeline, **settings)  # type: ignore[arg-type]


def test_a_negative_prompt_stands_where_the_empty_one_would(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline, train="none", device="cpu")
    x = policy.noise(2, generator())
    t = torch.tensor([501, 21])
    cond = policy.encode([Prompt("a cat"), Prompt("a dog")])

    with torch.no_grad():
        out = policy.predict(x, t, cond, CFG(3.0, negative="ugly"))
        text, negative = policy.pipe.encode_prompt("a cat", "cpu", 1, True, negative_prompt="ugly")
        v_negative = policy.pipe.unet(x[:1], t[:1], encoder_hidden_states=negative).sample
        v_text = policy.pipe.unet(x[:1], t[:1], encoder_hidden_states=text).sample

    expected = policy.schedule.x0(x[:1], t[:1], v_negative + 3 * (v_text - v_negative))
    torch.testing.assert_close(out[:1], expected)
    assert not torch.equal(out, policy.predict(x, t, cond, CFG(3.0)))


def test_a_pipeline_in_memory_is_taken_over(tiny_pipeline: Path) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.safety_checker = torch.nn.Identity()
    policy = Policy.load(pipe, device="cpu", train="full", dtype="bfloat16")
    assert policy.pipe is pipe
    assert pipe.safety_checker is None
    assert pipe.vae.dtype == pipe.text_encoder.dtype == torch.bfloat16
    assert pipe.unet.dtype == torch.float32

    adapted = DiffusionPipeline.from_pretrained(tiny_pipeline)
    Policy.load(adapted, device="cpu")

    with pytest.raises(
        ValueError, match=r"the given pipeline's unet has an adapter already: take it out by"
    ):
        Policy.load(adapted, device="cpu")

    with pytest.raises(ValueError, match="models of the kind Identity are not supported"):
        Policy.load(torch.nn.Identity())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_saved_with_its_adapter_inside_is_an_error(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    policy = Policy.load(tiny_pipeline, device="cpu")
    policy.pipe.save_pretrained(tmp_path / "model")  # as TRL's trainer does

    with pytest.raises(
        ValueError,
        match=r"lacks \d+ weights of its unet, such as .*to_k.weight; if it was saved with a",
    ):
        Policy.load(tmp_path / "model", device="cpu")
