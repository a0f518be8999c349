"""Messages of other libraries: known noise is silenced by its words, everything else is shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from burnish import cli
from burnish.diffusion.policy import Policy

NOISE = [
    ("diffusers.loaders.lora_base", "No LoRA keys associated to CLIPTextModel found with the"),
    ("transformers.tokenization_utils_base", "Token indices sequence length is longer than the"),
    (
        "diffusers.pipelines.x",
        "The following part of your input was truncated because CLIP can only",
    ),
    ("transformers.models.auto", "`X` requires torchvision (not installed); falling back to `Y`"),
    ("bitsandbytes.backends", "Failed to load CPU gemm_4bit_forward from kernels-community"),
]
NEWS = [
    ("diffusers.loaders.peft", "Loading adapter weights from state_dict led to unexpected keys"),
    ("diffusers.loaders.lora_base", "Provided path contains more than one weights file"),
    ("transformers.modeling_utils", "the attention of this model is not exact on this device"),
    ("bitsandbytes.backends", "your GPU is too old"),
    ("peft.tuners", "this layer is merged already"),
]


@pytest.mark.parametrize(("logger", "message"), NOISE)
def test_known_noise_is_filtered(logger: str, message: str) -> None:
    from burnish.noise import WithoutNoise

    record = logging.LogRecord(logger, logging.WARNING, "", 0, message, None, None)
    assert not WithoutNoise().filter(record)


@pytest.mark.parametrize(("logger", "message"), NEWS)
def test_everything_else_is_shown(logger: str, message: str) -> None:
    from burnish.noise import WithoutNoise

    record = logging.LogRecord(logger, logging.WARNING, "", 0, message, None, None)
    assert WithoutNoise().filter(record)


def test_the_command_line_keeps_the_levels_of_the_libraries() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = (diffusers_logging.get_verbosity(), transformers_logging.get_verbosity())
    cli.quiet()
    assert (diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()) == before
    assert logging.getLogger("bitsandbytes").level == logging.NOTSET

    for name in ("diffusers", "transformers"):
        handlers = logging.getLogger(name).handlers
        kinds = [type(known).__name__ for handler in handlers for known in handler.filters]
        assert kinds.count("WithoutNoise") == len(handlers) >= 1, "once, however often it is called"


def test_reading_a_lora_logs_nothing(
    tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Policy.load(tiny_pipeline).save_adapter(tmp_path)
    with caplog.at_level(logging.WARNING):
        Policy.load(tiny_pipeline, train="none", adapter=tmp_path)
    assert not caplog.records


def test_a_training_in_python_is_quiet_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.utils import logging as transformers_logging

    from burnish.config import Config
    from burnish.runs import Run
    from burnish.training.shown import shown
    from burnish.world import World

    transformers_logging.get_verbosity()
    handlers = [logging.lastResort, *logging.getLogger("transformers").handlers]
    for handler in handlers:
        monkeypatch.setattr(handler, "filters", [])
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)

    record = logging.LogRecord("bitsandbytes", logging.WARNING, "", 0, NOISE[-1][1], None, None)
    with shown(False, Config(), Run(Path("nowhere")), World()):
        assert not any(handler and handler.filter(record) for handler in handlers)
        assert not transformers_logging.is_progress_bar_enabled()

    assert all(handler and handler.filter(record) for handler in handlers)
    assert transformers_logging.is_progress_bar_enabled()
