"""A recipe's memory as a table: as it is, with cheaper settings, and the first that fits a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from burnish.config import Config
from burnish.diffusion.weightless import DECODER, NETWORK, TEXT
from burnish.tools.memory import (
    CONTEXT,
    FRAGMENTS,
    GIB,
    LEARNED,
    REWARDS,
    WORK,
    Prediction,
    left_out,
    predict,
)
from burnish.training.requirements import check_text_encoder

COLUMNS = {
    NETWORK: "network",
    TEXT: "text",
    DECODER: "decoder",
    LEARNED: "learned",
    REWARDS: "rewards",
    WORK: "work",
}
"""Uses of memory, and the heading of the column of each."""

WIDTH = 36
"""Letters of a row's name."""


@dataclass(frozen=True)
class Setting:
    """A cheaper setting: as `--set` takes it, and what it costs."""

    text: str
    cost: str
    changed: Callable[[Config], Config]


def _model(**changes: Any) -> Callable[[Config], Config]:
    return lambda config: replace(config, model=replace(config.model, **changes))


def _batch(most: int, name: str) -> Callable[[Config], Config]:
    def changed(config: Config) -> Config:
        size = min(most, getattr(config.batch, name))
        return replace(config, batch=replace(config.batch, **{name: size}))

    return changed


def _half(config: Config) -> Config:
    is_wide = config.model.dtype == "float32"
    return _model(dtype="bfloat16")(config) if is_wide else config


def _texts(place: str) -> Callable[[Config], Config]:
    def changed(config: Config) -> Config:
        tried = _model(text_encoder=place)(config)
        try:
            check_text_encoder(tried)
        except ValueError:  # the run needs them where they are
            return config
        return tried

    return changed


def _frozen(**changes: Any) -> Callable[[Config], Config]:
    """Return what changes how frozen weights are stored."""
    return lambda config: config if config.model.train == "full" else _model(**changes)(config)


def _eight_bit(config: Config) -> Config:
    if config.model.train != "full":
        return config
    return replace(config, optimizer=replace(config.optimizer, eight_bit=True))


CHEAPER = (
    Setting("model.text_encoder=free", "nothing: prompts are encoded once", _texts("free")),
    Setting("batch.train_batch=2", "a little speed", _batch(2, "train_batch")),
    Setting("batch.train_batch=1", "a little speed", _batch(1, "train_batch")),
    Setting(
        "model.gradient_checkpointing=true",
        "a third more time in training",
        _model(gradient_checkpointing=True),
    ),
    Setting("batch.sample_batch=2", "speed in sampling", _batch(2, "sample_batch")),
    Setting("batch.sample_batch=1", "speed in sampling", _batch(1, "sample_batch")),
    Setting("model.text_encoder=cpu", "seconds for each prompt", _texts("cpu")),
    Setting("optimizer.eight_bit=true", "moments in 8 bits", _eight_bit),
    Setting("model.dtype=bfloat16", "precision", _half),
    Setting(
        "model.quantization=int8", "precision of the frozen weights", _frozen(quantization="int8")
    ),
    Setting(
        "model.quantization=nf4", "precision of the frozen weights", _frozen(quantization="nf4")
    ),
    Setting("model.offload=true", "all weights travel in each network call", _frozen(offload=True)),
    # once more: beside a smaller network it may save what it did not before
    Setting("model.text_encoder=cpu", "seconds for each prompt", _texts("cpu")),
)
"""From what costs least to what costs most; each is tried together with those before it."""


@dataclass(frozen=True)
class Row:
    """A configuration's memory; `added` is the setting that it has and the row before has not."""

    settings: tuple[Setting, ...]
    prediction: Prediction

    @property
    def name(self) -> str:
        """The setting that was added last."""
        return f"+ {self.settings[-1].text}" if self.settings else "as it is"


def rows(config: Config) -> Iterator[Row]:
    """Yield the memory of a configuration, then with each cheaper setting that saves some."""
    last = predict(config)
    yield Row((), last)
    chosen: tuple[Setting, ...] = ()

    for setting in CHEAPER:
        changed = setting.changed(config)
        prediction = predict(changed) if changed != config else last
        if prediction.saves(last):
            config, last = changed, prediction
            chosen = (*(one for one in chosen if _key(one) != _key(setting)), setting)
            yield Row(chosen, prediction)


def _key(setting: Setting) -> str:
    return setting.text.partition("=")[0]


def heading() -> str:
    """Return the first line of the table."""
    names = "".join(f"{name:>9}" for name in (*COLUMNS.values(), "in all", "card"))
    return f"{'GiB at most':{WIDTH}}{names}  when"


def line(row: Row) -> str:
    """Return a row of the table: what is taken when most is, all of it, and what a card needs."""
    found = row.prediction
    parts = found.phases[found.phase]
    values = [*(parts[name] / GIB for name in COLUMNS), found.peak / GIB, found.needed]
    return f"{row.name:{WIDTH}}{''.join(f'{value:9.1f}' for value in values)}  {found.phase}"


def first_fitting(table: Sequence[Row], card: float) -> Row | None:
    """Return the first row that a card of so many GB has memory for; None: there is none."""
    return next((row for row in table if row.prediction.needed <= card), None)


def without_needless(config: Config, row: Row, card: float) -> Row:
    """Return a row that fits a card of so many GB without the settings that it fits without.

    What costs most is left out first. The last one is needed: the row before it did not fit.
    """
    for setting in reversed(row.settings[:-1]):
        rest = tuple(one for one in row.settings if one is not setting)
        changed = config
        for one in rest:
            changed = one.changed(changed)

        prediction = predict(changed)
        if prediction.needed <= card:
            row = Row(rest, prediction)

    return row


def verdict(config: Config, table: Sequence[Row], card: float) -> str:
    """Return one sentence: with which settings, if any, a card of so many GB is enough.

    Args:
        config: whose table it is.
        table: its rows.
        card: the GB.
    """
    row = first_fitting(table, card)
    if row is None:
        least = min(row.prediction.needed for row in table)
        return f"does not fit {card:g} GB: {least:.1f} are needed even with all these settings"
    if not row.settings:
        return f"fits {card:g} GB as it is"

    row = without_needless(config, row, card)
    changes = " ".join(f"--set {setting.text}" for setting in row.settings)
    costs = dict.fromkeys(setting.cost for setting in row.settings)
    return f"fits {card:g} GB with {changes} (the price: {'; '.join(costs)})"


def notes(config: Config) -> list[str]:
    """Return what to know about the numbers."""
    lines = [
        "Predicted from the shapes of what is computed, not measured. learned: what learns, its "
        "gradients and the optimizer's; work: what is computed on the way; card: "
        f"{FRAGMENTS - 1:.0%} more for the allocator's gaps, and {CONTEXT} for CUDA itself."
    ]
    if left := list(left_out(config)):
        lines.append(f"Not counted: {', '.join(left)}.")
    if config.run.sharding:
        divided = "network and learned" if config.model.train == "full" else "network"
        lines.append(
            "run.sharding: this is a process that holds all weights; of N processes each holds "
            f"1/N of {divided}, and a few blocks for a while."
        )
    return lines
