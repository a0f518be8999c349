"""Pretrained models: found in the zoo, in a folder or on the hub, and loaded to the last tensor.

What goes wrong on the way to a model is one sentence each: no such folder, no network, offline
mode, a login that is needed, no such model, no such revision. Weights that a file lacks, which the
libraries would draw at random, and tensors that the model has no place for are errors too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from burnish import zoo
from burnish.errors import first_line
from burnish.redaction import redact
from burnish.runs import Run

SECONDS = 10
"""For the first answer of the hub: until it begins, and between its parts."""

WHOLE_ANSWER = 30
"""Seconds for the whole of it."""

LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"


FILE_ENDINGS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".json", ".toml")

COMPUTED = r"position_ids|inv_freq|masked_bias|attn\.bias|num_batches_tracked"
"""Tensors in older files that the libraries compute themselves."""


class NoHub(OSError):
    """Something else answers in the place of the hub, such as the login page of a network."""


def find(model: str, key: str, *, file: str = "config.json", revision: str | None = None) -> Any:
    """Return a model's folder or file as a Path, or the id of a model that the hub has, a str.

    Without a network, or in offline mode, it is the folder in the hub's cache.

    Args:
        model: `zoo:NAME`, a path or a hub id.
        key: what asks for it, such as "model.id"; begins the error message.
        file: that such a model has.
        revision: of the hub: a branch, tag or commit.

    Raises:
        FileNotFoundError: what can only have been meant as a path does not exist.
        ValueError: it is a run of Burnish, or the hub does not give it.
    """
    if model.startswith("zoo:"):
        return from_zoo(model, key)

    place = Path(model).expanduser()
    if place.exists():
        check_is_no_run(place, key)
        return place

    check_is_no_address(model, key)
    if looks_like_a_path(model):
        raise FileNotFoundError(f"{key}: {model} does not exist")

    cached, files = ask_hub(model, key, file, revision)
    if cached is None and files and file not in files:
        raise ValueError(f"{key}: the hub's {model} has no {file}, so it is no such model")
    return cached or model


def from_zoo(model: str, key: str) -> Path:
    """Return the folder of a model of the zoo.

    Raises:
        ValueError: the zoo has none of this name.
    """
    try:
        return zoo.path(model)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def check_is_no_address(model: str, key: str) -> None:
    """Raise ValueError if an address of the web stands in the place of a hub id."""
    if "://" not in model:
        return

    parts = [part for part in urlsplit(model).path.split("/") if part][:2]
    remedy = f"write its id, {'/'.join(parts)}" if len(parts) == 2 else "give a folder or a hub id"
    raise ValueError(f"{key}: {redact(model)} is an address; {remedy}")


def looks_like_a_path(model: str) -> bool:
    """Return True for a text that can only have been meant as a path of this machine.

    A hub id is NAME or OWNER/NAME.
    """
    place = Path(model).expanduser()
    return (
        place.is_absolute()
        or model.startswith((".", "~", "runs/"))
        or model.endswith(("/", *FILE_ENDINGS))
        or model.count("/") > 1
        or "\\" in model
        or (place.parent != Path() and place.parent.is_dir())
    )


def check_is_no_run(place: Path, key: str) -> None:
    """Raise ValueError if a run directory stands in a model's place."""
    run = Run(place)
    if not run.config.is_file() or (place / "model_index.json").is_file():
        return

    raise ValueError(
        f"{key}: {place} is a run, not a model: what it has learned is {run.adapter}, for "
        "model.adapter; the model that it began with is named in its config.toml"
    )


def ask_hub(
    model: str, key: str, file: str, revision: str | None, place: str = ""
) -> tuple[Path | None, list[str]]:
    """Return the folder in the cache where the hub cannot be asked, and otherwise its files.

    Args:
        model: OWNER/NAME.
        key: what asks for it; begins the error message.
        file: that is looked for in the cache; "": any.
        revision: a branch, tag or commit.
        place: what the user wrote, where that is more than `model`.

    Raises:
        ValueError: the hub does not give the model, or there is no hub and nothing in the cache.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    hub = HfApi()

    def ask() -> Any:
        try:
            info = hub.model_info(model, revision=revision, timeout=SECONDS)
        except (JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
            raise NoHub("something that is no list of a model's files") from error
        if info.gated:
            hub.auth_check(model)
        return info

    try:
        info = _within(WHOLE_ANSWER, ask)
    except HFValidationError as error:
        raise ValueError(
            f"{key}: '{model}' is neither a folder here nor a hub id (OWNER/NAME)"
        ) from error
    except Exception as error:
        if is_without_answer(error) and (cached := _cached(model, file, revision)):
            return cached, []

        raise hub_error(error, model, key, revision, place) from error

    return None, [entry.rfilename for entry in info.siblings or ()]


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return a function's result, or raise TimeoutError.

    Time limits of HTTP libraries begin anew with every byte. The thread is left behind.
    """
    done: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(function())
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=work, name="hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    return done[0]


def _cached(model: str, file: str, revision: str | None) -> Path | None:
    """Return the folder of the hub's cache with a file of a model, or with "" any of it."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    if file:
        found = try_to_load_from_cache(model, file, revision=revision)
        return Path(found).parent if isinstance(found, str) else None

    try:
        folder = snapshot_download(model, revision=revision, local_files_only=True)
    except OSError:
        return None
    return Path(folder)


def hub_error(
    error: BaseException, model: str, key: str, revision: str | None = None, place: str = ""
) -> ValueError:
    """Return the one sentence about an error on the way to the hub, with its remedy."""
    reason = next(filter(None, (_reason(link, model, revision) for link in _chain(error))), "")
    return ValueError(
        f"{key}: there is no folder {place or model} here, and {reason or first_line(error)}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_without_answer(error: BaseException) -> bool:
    """Return True if the hub was not reached, in offline mode too, or is out of order."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500

    names = {kind.__name__ for kind in type(error).__mro__}
    if "TooManyRedirects" in names:  # something else answered
        return False
    return isinstance(error, (OfflineModeIsEnabled, ConnectionError, TimeoutError)) or bool(
        names
        & {"TransportError", "RequestException"}  # of httpx, whatever its version, or requests
    )


def _reason(error: BaseException, model: str, revision: str | None) -> str:
    """Return the reason that one error gives; "" if it says nothing about the hub."""
    from huggingface_hub import constants, errors

    status = 0
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code

    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            "the hub's cache lacks it while HF_HUB_OFFLINE forbids a download: unset that, or "
            "load the model once with a network"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the hub gives {model} only to those who accepted its terms: do so at "
            f"{constants.ENDPOINT}/{model}, then {LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's {model} has no revision '{revision}': name a branch, tag or commit"
    if status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub asks for a login that may read it ({status}): check the name, then {LOG_IN}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no model {model} on the hub: check its name, or if it is private, {LOG_IN}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"the hub's {model} lacks a file: {first_line(error)}"
    redirected = type(error).__name__ == "TooManyRedirects"
    if isinstance(error, NoHub) or redirected or 300 <= status < 400 or status in (404, 410):
        answer = "redirects without end" if redirected else status or error
        return (
            f"{constants.ENDPOINT} answers with {answer}, so it may be no hub: check the network "
            "(a login page?), HTTPS_PROXY and HF_ENDPOINT, or name a folder"
        )
    if status:
        return f"the hub answers with {status}: try again later"
    if is_without_answer(error):
        return (
            f"{constants.ENDPOINT} cannot be reached ({first_line(error)}), nor is the model in "
            "the cache: check the network and HTTPS_PROXY, or name a folder"
        )
    return ""


def load(
    kind: Any,
    source: str | Path,
    *,
    part: str = "network",
    unused: str = COMPUTED,
    unset: str = "",
    **settings: Any,
) -> Any:
    """Return `kind.from_pretrained(source)`, if its files have each weight and nothing else.

    Args:
        kind: a model's class in diffusers or transformers.
        source: a folder or a hub id.
        part: what it is, for messages.
        unused: a pattern of tensors that may be left over.
        unset: a pattern of weights that may be missing.
        settings: for `from_pretrained`.

    Raises:
        ValueError: a weight is missing or not finite, or a tensor has no place; it is named.
    """
    model, report = kind.from_pretrained(source, output_loading_info=True, **settings)
    lacking = [name for name in report["missing_keys"] if not (unset and re.search(unset, name))]
    left = [name for name in report["unexpected_keys"] if not re.search(unused, name)]
    other = [name if isinstance(name, str) else name[0] for name in report["mismatched_keys"]]

    if lacking:
        inside = any(".lora_" in name or "base_layer" in name for name in left)
        remedy = (
            "; if it was saved with a LoRA inside, as TRL does, load the model that it was made "
            "from, and that LoRA as an adapter"
        )
        raise ValueError(
            f"it lacks {len(lacking)} weights of its {part}, such as {min(lacking)}"
            + (remedy if inside else ": its files are not whole")
        )
    if other:
        raise ValueError(f"its {part} has another shape than its config.json says: {min(other)}")
    if left:
        raise ValueError(
            f"its {part} has no place for {len(left)} tensors of its files, such as {min(left)}"
        )

    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise ValueError(f"the weight {name} of its {part} is not finite: the file is damaged")

    return model
