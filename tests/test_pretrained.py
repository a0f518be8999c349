"""Models that cannot be had: each reason is one sentence, at once, wherever a model is named."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from burnish import catalog, pretrained
from burnish.diffusion.policy import Policy
from burnish.prompts.expander import Expander

PLACES: dict[str, Callable[[str, Path], Any]] = {
    "model.id": lambda name, base: Policy.load(name),
    "model.adapter": lambda name, base: Policy.load(base, adapter=name),
    "model.fused_lora": lambda name, base: Policy.load(base, fused_lora=name),
    "model.controlnet": lambda name, base: Policy.load(base, controlnet=name),
    "expander.model": lambda name, base: Expander.load(name),
    "rewards.0.model": lambda name, base: catalog.build(
        "reward", {"use": "clip_similarity", "model": name}, "rewards.0"
    ),
}
"""Where a hub id can stand: the beginning of the message, and a way to get there."""

REWARDS = [
    {"use": "sentiment", "model": "NAME"},
    {"use": "preference", "model": "NAME"},
    {"use": "aesthetic", "model": "zoo:emoji-clip", "head": "NAME"},
    {"use": "question", "model": "NAME"},
    {"use": "caption", "model": "zoo:emoji-captioner", "encoder": "NAME"},
]


class Hub(BaseHTTPRequestHandler):
    """A hub whose answer to everything is `status` with the headers and JSON of the class."""

    status = 200
    extra: ClassVar[dict[str, str]] = {}
    content: ClassVar[Any] = {}

    def do_GET(self) -> None:
        is_page = isinstance(self.content, bytes)
        body = self.content if is_page else json.dumps(self.content).encode()
        self.send_response(self.status)
        for name, value in {"Content-Length": str(len(body)), **self.extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A function that makes an address the hub, with an empty cache and no token."""
    from huggingface_hub import hf_api

    def go(address: str) -> None:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(hf_api.constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)

    return go


@pytest.fixture
def hub(online: Callable[[str], None]) -> Iterator[type[Hub]]:
    """A hub on this machine; its answers are the attributes of the returned class."""
    kind = type("Answers", (Hub,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    online(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()

    yield kind

    server.shutdown()
    server.server_close()


def refused(place: str, name: str, base: Path) -> str:
    """Return the message with which a place refuses a name, within seconds."""
    began = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        PLACES[place](name, base)

    message = str(caught.value)
    assert time.monotonic() - began < 10, "no retries"
    assert f"{place}: " in message[:30] and "\n" not in message and name in message, message
    return message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name", ["./nowhere", "runs/demo", "no/such/folder", "here/missing", "model.safetensors"]
)
def test_what_looks_like_a_path_is_no_hub_id(
    tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    message = refused(place, name, tiny_sd1)
    if place == "model.controlnet" and name == "no/such/folder":  # may be OWNER/NAME/FOLDER
        assert "there is no folder no/such/folder here" in message
    else:
        assert "does not exist" in message


@pytest.mark.parametrize("place", PLACES)
def test_a_run_is_no_model(tiny_sd1: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "log.jsonl").write_text("")
    message = refused(place, str(tmp_path), tiny_sd1)
    assert "is a run, not a model" in message and str(tmp_path / "adapter") in message


@pytest.mark.parametrize("place", PLACES)
def test_no_network(
    tiny_sd1: Path, online: Callable[[str], None], closed_port: str, place: str
) -> None:
    online(closed_port)
    message = refused(place, "someone/something", tiny_sd1)
    assert "there is no folder someone/something here" in message
    assert f"{closed_port} cannot be reached" in message


@pytest.mark.parametrize("place", PLACES)
def test_offline_mode(tiny_sd1: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(place, "someone/something", tiny_sd1)
    assert "HF_HUB_OFFLINE" in message and "unset" in message


ANSWERS: list[tuple[int, dict[str, str], str]] = [
    (404, {"X-Error-Code": "RepoNotFound"}, r"no model someone/something on the hub: check"),
    (401, {"X-Error-Code": "RepoNotFound"}, r"or if it is private, log in by `hf auth login`"),
    (401, {}, r"check the name, then log in by `hf auth login`, or set HF_TOKEN"),
    (403, {"X-Error-Code": "GatedRepo"}, r"accepted its terms: do so at http.*someone/something"),
    (401, {"X-Error-Code": "GatedRepo"}, r"then log in by `hf auth login`, or set HF_TOKEN"),
    (403, {}, r"a login that may read it \(403\): .* `hf auth login`"),
    (
        401,
        {"X-Error-Message": "Invalid credentials in Authorization header"},
        r"a login that may read it \(401\): .* `hf auth login`",
    ),
    (503, {}, r"the hub answers with 503: try again later"),
    (429, {}, r"the hub answers with 429: try again later"),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("status", "headers", "message"), ANSWERS)
def test_what_the_hub_refuses(
    tiny_sd1: Path,
    hub: type[Hub],
    place: str,
    status: int,
    headers: dict[str, str],
    message: str,
) -> None:
    hub.status = status
    hub.extra = headers
    assert re.search(message, refused(place, "someone/something", tiny_sd1))


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (200, {}, b"<!DOCTYPE html><title>Log in</title>"),
        (200, {}, []),
        (200, {}, {}),
        (200, {}, b"\xff\xfe"),
        (404, {}, b"not found"),
        (302, {"Location": "/again"}, b""),
    ],
)
def test_what_is_no_hub(hub: type[Hub], status: int, headers: dict[str, str], content: Any) -> None:
    hub.status, hub.extra, hub.content = status, headers, content
    with pytest.raises(
        ValueError, match=r"^model.id: .*may be no hub: check .* HF_ENDPOINT"
    ) as got:
        pretrained.find("someone/something", "model.id")
    assert "\n" not in str(got.value) and "Expecting" not in str(got.value)


def test_a_hub_that_drips(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(self: Hub) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    monkeypatch.setattr(hub, "do_GET", drip)
    monkeypatch.setattr(pretrained, "WHOLE_ANSWER", 0.5)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"cannot be reached \(no whole answer within 0.5 s\)"):
        pretrained.find("someone/something", "model.id")
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("place", PLACES)
def test_addresses_are_no_ids(tiny_sd1: Path, place: str) -> None:
    message = refused(place, "https://huggingface.co/someone/something", tiny_sd1)
    assert message.endswith("is an address; write its id, someone/something")


def test_places_without_a_model_are_named_with_their_key(tiny_sd1: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^model.id: .* has no model_index.json"):
        Policy.load(str(tmp_path))
    with pytest.raises(ValueError, match=r"^model.adapter: .* no LoRA; take one as model.id"):
        Policy.load(tiny_sd1, adapter="zoo:emoji-sd")
    with pytest.raises(ValueError, match=r"^model.id: the zoo has no 'emoji-sc'; did you mean"):
        Policy.load("zoo:emoji-sc")


def test_a_wrong_revision(hub: type[Hub]) -> None:
    hub.status = 404
    hub.extra = {"X-Error-Code": "RevisionNotFound"}
    with pytest.raises(ValueError, match=r"has no revision 'old': name a branch, tag or commit"):
        Policy.load("someone/something", revision="old")


@pytest.mark.parametrize("place", PLACES)
def test_a_repository_of_something_else(tiny_sd1: Path, hub: type[Hub], place: str) -> None:
    hub.content = {"id": "someone/something", "siblings": [{"rfilename": "README.md"}]}
    assert "the hub's someone/something has no " in refused(place, "someone/something", tiny_sd1)


def test_a_repository_with_several_loras(tiny_sd1: Path, hub: type[Hub]) -> None:
    files = [{"rfilename": name} for name in ("a.safetensors", "b.safetensors")]
    hub.content = {"id": "someone/something", "siblings": files}
    with pytest.raises(ValueError, match=r"2 LoRA files .* such as someone/something/a.safet"):
        Policy.load(tiny_sd1, fused_lora="someone/something")


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: str(reward["use"]))
def test_every_reward_says_why(
    online: Callable[[str], None], closed_port: str, reward: dict[str, str]
) -> None:
    online(closed_port)
    for name, message in (("someone/something", "cannot be reached"), ("./x", "does not exist")):
        table = {key: value.replace("NAME", name) for key, value in reward.items()}
        key = next(key for key, value in reward.items() if value == "NAME")
        message = rf"^rewards\.3\.{key}: .*{message}"
        began = time.monotonic()
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            catalog.build("reward", table, "rewards.3")
        assert time.monotonic() - began < 10


def test_the_cache_serves_where_the_hub_cannot_be_asked(
    tiny_sd1: Path, online: Callable[[str], None], closed_port: str, tmp_path: Path
) -> None:
    online(closed_port)
    repository = tmp_path / "cache" / "models--someone--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_sd1, repository / "snapshots" / ("0" * 40))
    began = time.monotonic()
    assert Policy.load("someone/something").latent_shape == (4, 8, 8)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_weights_that_a_file_lacks_or_has_too_many_of(
    tiny_sd1: Path, tmp_path: Path, part: str, file: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_sd1, folder)
    path = folder / part / file
    tensors = load_file(path)
    name = min(tensors)

    for changed, message in (
        ({key: tensors[key] for key in tensors if key != name}, f"lacks 1 weights of its {part}"),
        ({**tensors, "spare": torch.ones(1)}, f"its {part} has no place for 1 tensors .* spare"),
        ({**tensors, name: tensors[name] / 0}, f"{name} of its {part} is not finite"),
    ):
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            Policy.load(folder)

    if part == "text_encoder":  # as the files of Stable Diffusion 1.5
        positions = {"text_model.embeddings.position_ids": torch.arange(3)}
        save_file({**tensors, **positions}, path, {"format": "pt"})
        Policy.load(folder)


def test_a_controlnet_is_read_to_the_last_tensor(
    tiny_sd1: Path, tiny_controlnet: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_controlnet, tmp_path / "net")
    path = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "spare": torch.ones(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"model.controlnet: .*no place for 1 tensors .*spare"):
        Policy.load(tiny_sd1, controlnet=str(tmp_path / "net"))


def test_a_head_is_read_to_the_last_tensor(tmp_path: Path) -> None:
    head = {"0.weight": torch.ones(1, 128), "0.bias": torch.zeros(1)}
    for extra, message in (
        ({"scale": torch.ones(1)}, "its tensor scale belongs to no layer"),
        ({"old.0.weight": torch.ones(1, 128)}, "belongs to no layer of its own"),
        ({"0.bias": torch.full((1,), float("nan"))}, "0.bias is not finite"),
    ):
        save_file({**head, **extra}, tmp_path / "head.safetensors")
        table = {
            "use": "aesthetic",
            "model": "zoo:emoji-clip",
            "head": str(tmp_path / "head.safetensors"),
        }
        with pytest.raises(ValueError, match=message):
            catalog.build("reward", table)


def test_an_expanders_adapter_is_read_to_the_last_tensor(tmp_path: Path) -> None:
    expander = Expander.load("zoo:emoji-expander")
    expander.save(tmp_path)
    Expander.load("zoo:emoji-expander", adapter=tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)

    for changed, message in (
        ({**tensors, "spare.lora_A.weight": torch.ones(1)}, "no place for spare.lora_A.weight"),
        ({key: value for key, value in tensors.items() if key != name}, "missing adapter keys"),
        ({**tensors, name: tensors[name] / 0}, "is not finite"),
    ):
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            Expander.load("zoo:emoji-expander", adapter=tmp_path)


def test_names_that_are_paths() -> None:
    paths = ("/a", "~/a", "./a", "../a", "a/", "a/b/c", "runs/demo", "a\\b", "a.ckpt")
    assert all(map(pretrained.looks_like_a_path, paths))
    assert not any(map(pretrained.looks_like_a_path, ("gpt2", "stabilityai/sdxl-turbo")))
