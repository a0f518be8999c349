"""A folder with a model card put on the hub."""

from __future__ import annotations

from pathlib import Path

from burnish import pretrained
from burnish.errors import first_line
from burnish.redaction import redact
from burnish.report.card import HUB_ID


def check_repository(repository: str) -> None:
    """Raise ValueError if the hub has no such names; "" is none."""
    if repository and not HUB_ID.fullmatch(repository):
        raise ValueError(f"--push {repository}: name it as the hub does, OWNER/NAME")


def check_licence(folder: Path) -> None:
    """Raise ValueError if a folder's card names no licence."""
    header = (folder / "README.md").read_text("utf-8").split("\n---", 1)[0]
    if "\nlicense: " not in header:
        raise ValueError(
            "--push needs --licence: that of the base model is not known here; name it as the "
            "model's page on the hub does, such as openrail++ or apache-2.0"
        )


def push(folder: Path, repository: str, public: bool = False) -> str:
    """Put all files of a folder on the hub, and return the address.

    The token is huggingface_hub's own (`hf auth login` or HF_TOKEN); it is shown nowhere.

    Args:
        folder: to upload.
        repository: OWNER/NAME, which is made if it is missing.
        public: True lets everybody see a new one.

    Raises:
        ValueError: its card names no licence.
        RuntimeError: the hub does not take it; the message says why.
    """
    from huggingface_hub import HfApi, constants

    check_licence(folder)
    hub = HfApi()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Weights from Burnish"
        )
    except Exception as error:  # network, authorisation: each library has its own
        raise RuntimeError(
            f"--push {repository}: {_reason(error)}; {folder} is complete, so try again"
        ) from error

    return f"{constants.ENDPOINT}/{repository}"


def _reason(error: Exception) -> str:
    """Return why the hub did not take a folder."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403, 404):
        return (
            "the hub wants a login that may write there: run `hf auth login` with a token of the "
            "kind write, and check the name"
        )
    if pretrained.is_without_answer(error):
        return "the hub cannot be reached: check the network, HTTPS_PROXY and HF_HUB_OFFLINE"
    return redact(first_line(error))
