"""A local model's answers are the library's own and are remembered; a server gives the same."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from PIL import Image
from torch import Tensor

from burnish import catalog, zoo
from burnish.rewards import vlm
from burnish.rewards.endpoint import Endpoint
from burnish.types import Prompt
from burnish.zoo.questions import CAPTION, TEXT
from burnish.zoo.scenes import Scenes

QUESTIONS = [CAPTION, "how many cats are there?", TEXT, "what animal is in this image?"]


@pytest.fixture(scope="module")
def local() -> vlm.Local:
    return vlm.Local.load("zoo:emoji-captioner", batch=3)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return Scenes(31).draw(8)[0].permute(0, 3, 1, 2).float() / 255


def test_answers_are_the_librarys_own(local: vlm.Local, images: Tensor) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(zoo.path("emoji-captioner"))
    model = AutoModelForImageTextToText.from_pretrained(
        zoo.path("emoji-captioner"), dtype=torch.float32
    ).eval()
    questions = [QUESTIONS[row % 4] for row in range(len(images))]
    expected = []

    for image, question in zip(images, questions, strict=True):  # one by one: nothing is padded
        pil_image = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(images=pil_image, text=text, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        expected.append(
            processor.decode(
                out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            ).strip()
        )

    assert local(images, questions) == expected
    assert len(set(expected)) >= 4, "the test could not tell answers apart"


def test_images_of_another_size_are_fitted(local: vlm.Local, images: Tensor) -> None:
    large = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
    same = [
        a == b
        for a, b in zip(local(large, [CAPTION] * 8), local(images, [CAPTION] * 8), strict=True)
    ]
    assert sum(same) >= 6


def test_one_question_an_image(local: vlm.Local, images: Tensor) -> None:
    with pytest.raises(ValueError, match="8 images but 1 questions"):
        local(images, [CAPTION])
    assert local(images[:0], []) == []


def test_a_model_without_a_chat_template_that_repeats_the_question(tmp_path: Path) -> None:
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipProcessor,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "a", "photo", "of", "cat"]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    marks = {"bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={
            **tower,
            **marks,
            "vocab_size": len(words),
            "encoder_hidden_size": 16,
            "projection_dim": 16,
        },
        vision_config={**tower, "image_size": 16, "patch_size": 8, "projection_dim": 16},
    )
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    BlipProcessor(
        BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer
    ).save_pretrained(tmp_path)
    answers = vlm.Local.load(str(tmp_path))(torch.rand(2, 3, 20, 20), ["a photo of", "a photo"])
    assert all(answer is None or set(answer.split()) <= set(words) for answer in answers)
    assert not any((answer or "").startswith("a photo of a photo of") for answer in answers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": "zoo:emoji-clip"},
            "'zoo:emoji-clip' is not a folder with an image-text-to-text model",
        ),
        ({"model": "zoo:emoji-captioner", "batch": 0}, "batch = 0; it must be at least 1"),
        (
            {"model": "zoo:emoji-captioner", "endpoint": {"model": "x"}},
            "endpoint = ... is for a model behind an address",
        ),
        ({"model": "http://localhost:1", "endpoint": {"tries": 3}}, "tries"),
        ({"model": "http://"}, "http"),
    ],
)
def test_a_model_that_cannot_be_opened(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.build("reward", {"use": "question", **arguments})


@pytest.fixture
def example() -> ModuleType:
    path = Path(__file__).parent.parent / "examples" / "vlm_server.py"
    specification = importlib.util.spec_from_file_location("vlm_server", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def address(example: ModuleType, local: vlm.Local) -> Iterator[str]:
    with example.server(local, 0) as serving:
        thread = Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_in_process_and_through_the_server_scores_are_the_same(
    address: str, images: Tensor
) -> None:
    assert isinstance(vlm.load(address), Endpoint)

    for use, prompts, more in (
        (
            "caption",
            [Prompt("a cat and a guitar"), Prompt("two dogs")] * 4,
            {"encoder": "zoo:emoji-clip"},
        ),
        ("question", [Prompt("two cats"), Prompt("one bee")] * 4, {}),
    ):
        local_reward, remote_reward = (
            catalog.build("reward", {"use": use, "model": model, **more})
            for model in ("zoo:emoji-captioner", address)
        )
        values = local_reward(images, prompts)
        torch.testing.assert_close(remote_reward(images, prompts), values, rtol=0, atol=0)
        assert values.isfinite().all()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models", b"{}"),
        ("/v1/chat/completions", b"not JSON"),
        (
            "/v1/chat/completions",
            json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode(),
        ),
    ],
)
def test_the_server_refuses_unknown_requests(address: str, path: str, body: bytes) -> None:
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(address + path, body), timeout=10)
    with caught.value:
        assert caught.value.code == 400 and json.load(caught.value)["error"]["message"]
