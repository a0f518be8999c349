"""Prompts from a data set of the Hugging Face hub or in a folder, by the library `datasets`."""

from __future__ import annotations

from typing import Annotated, Any

from burnish.annotations import IsPath
from burnish.errors import first_line
from burnish.types import MOST_PROMPTS, Prompt

Source = Annotated[str, IsPath(hub=True)]


def dataset(
    id: Source, key: str = "prompt", split: str = "train", config: str = "", revision: str = ""
) -> list[Prompt]:
    """Return one prompt a row of a data set; needs `pip install 'burnish[datasets]'`.

    Columns with texts, numbers and lists of these become the prompt's metadata; images and the like
    are left out. Data sets that need code of their own are refused.

    Args:
        id: of the hub, or a folder that `datasets` reads.
        key: the column of the prompt.
        split: of it, also a part: "train[:1000]", "test[10%:20%]".
        config: where there are several.
        revision: of the hub: a branch, tag or commit.

    Raises:
        RuntimeError: the library is not installed.
        ValueError: there is no such data set, split or column, or a row has no prompt.
    """
    table = _read(id, config, split, revision)
    columns = list(table.column_names)
    if key not in columns:
        raise ValueError(
            f'prompts: the data set {id} has no column "{key}", but {", ".join(columns)}; set '
            "prompts.key to one of them"
        )
    if not 0 < len(table) <= MOST_PROMPTS:
        raise ValueError(
            f"prompts: {id} has {len(table):,} rows in {split}; take a part with 1 to "
            f'{MOST_PROMPTS:,}, such as split = "train[:1000]"'
        )

    plain = [name for name in columns if name == key or _is_plain(table.features[name])]
    prompts = []
    for row, entry in enumerate(table.select_columns(plain)):
        text = entry.pop(key)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f'prompts: {id}, row {row} of {split}: no text under "{key}"; take another column '
                "or part"
            )
        prompts.append(Prompt(" ".join(text.split()), entry))

    return prompts


def _read(id: str, config: str, split: str, revision: str) -> Any:
    """Return a split of a data set."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise RuntimeError(
            "the prompt source dataset needs the library datasets, which is not installed; run: "
            "pip install 'burnish[datasets]'"
        ) from error

    try:
        return load_dataset(id, config or None, split=split, revision=revision or None)
    except Exception as error:  # network, authorisation, no such split: each has its own
        raise ValueError(
            f"prompts: the data set {id} ({split}) cannot be read: {first_line(error)}"
        ) from error


def _is_plain(feature: Any) -> bool:
    """Return True for a column of texts or numbers, or of lists of these."""
    inner = getattr(feature, "feature", feature)
    return type(inner).__name__ in ("Value", "ClassLabel")
