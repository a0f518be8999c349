"""Numbers of a run's own code: in the log, in the report, and as a pandas frame."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.config import Config, load
from burnish.report.page import FURTHER, metric_title, page
from burnish.runs import Run, dumps
from burnish.training.loop import train


@pytest.fixture
def config(write_recipe: Callable[..., Path]) -> Config:
    return load(
        write_recipe(
            iterations=2,
            batch={"prompts": 2, "images_per_prompt": 2},
            evaluation={"images_per_prompt": 0},
            run={"sample_every": 0},
        )
    )


def written(folder: Path, *records: dict[str, Any]) -> Run:
    """Return a run with this log."""
    folder.mkdir()
    (folder / "config.toml").write_text("")
    (folder / "log.jsonl").write_text("".join(dumps(record) + "\n" for record in records))
    return Run(folder)


def test_numbers_that_on_record_returns_join_the_record(config: Config, tmp_path: Path) -> None:
    def numbers(record: dict[str, Any]) -> dict[str, Any]:
        assert Run(tmp_path / "run").records()[-1] == record, "it is on the disk already"
        twice = 2 * record["iteration"]
        return {"twice": twice, "tensor": torch.tensor(0.5), "array": np.float32(0.25)}

    run = Run(train(config, tmp_path / "run", on_record=numbers))
    found = [(one["twice"], one["tensor"], one["array"]) for one in run.records()]
    assert found == [(2, 0.5, 0.25), (4, 0.5, 0.25)]
    assert "<b>Twice</b>" in page(run) and "<b>Tensor</b>" in page(run)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"lr": 1.0}, 'on_record: the record has "lr" already; rename this number'),
        ({"iteration": 1}, 'the record has "iteration" already'),
        ({"mood": "good"}, "on_record returned mood = 'good'; return numbers by name"),
        ({"rows": torch.zeros(2)}, "on_record returned rows"),
        ({"rows": np.zeros(2)}, "on_record returned rows"),
    ],
)
def test_what_on_record_may_not_return(
    returned: Any, message: str, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", on_record=lambda record: returned)
    assert len(Run(tmp_path / "run").records()) == 1


def test_each_further_number_is_a_chart(tmp_path: Path) -> None:
    records = [
        {"iteration": i, "critic_loss": 1 / i, "nested": {"redShare": i}, "text": "x", "lr": 1e-3}
        for i in (1, 2, 3)
    ]
    records[1]["critic_loss"] = None  # not finite
    html = page(written(tmp_path / "run", *records))
    assert "Further metrics" in html
    for text in ("<b>Critic loss</b>", " critic_loss<", "<b>Nested: red share</b>"):
        assert text in html
    assert html.count("<b>Learning rate</b>") == 1 and "<b>Lr</b>" not in html

    many = {f"metric_{i}": float(i) for i in range(FURTHER + 3)}
    html = page(written(tmp_path / "many", {"iteration": 1, **many}))
    assert "3 more are in log.jsonl" in html and html.count("<b>Metric ") == FURTHER


def test_a_run_without_further_numbers_has_no_such_charts(config: Config, tmp_path: Path) -> None:
    assert "Further metrics" not in page(Run(train(config, tmp_path / "run")))


def test_titles() -> None:
    assert metric_title("critic_loss") == "Critic loss"
    assert metric_title("expander_KL") == "Expander KL"
    assert metric_title("__") == "__"
    assert "<b>" in page_of_a_hostile_name()


def page_of_a_hostile_name() -> str:
    """Return the title of a metric whose name would be markup, as the page has it."""
    from burnish.report.markup import tag

    shown = tag("b", metric_title("<script>alert(1)</script>"))
    assert "<script>" not in shown
    return shown


def test_a_frame_of_the_records(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    rewards = {"red": {"mean": 0.5, "std": 0.1}}
    run = written(
        tmp_path / "run",
        {"iteration": 1, "rewards": rewards, "kl": None},
        {"iteration": 2, "rewards": rewards, "kl": 0.5, "problems": ["late"]},
    )
    table = burnish.frame(run.folder)
    assert list(table.index) == [1, 2] and table.index.name == "iteration"
    assert table["rewards.red.mean"].tolist() == [0.5, 0.5] and table["kl"].isna()[1]
    assert table["problems"][2] == ["late"]
    assert burnish.frame(written(tmp_path / "empty").folder).empty


def test_a_frame_without_pandas_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pandas is not installed; run: pip install pandas"):
        burnish.frame(written(tmp_path / "run").folder)


def test_a_frame_of_no_run(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        burnish.frame(tmp_path)


def test_a_run_is_opened_by_its_public_name(config: Config, tmp_path: Path) -> None:
    run = burnish.Run.open(train(config, tmp_path / "run"))
    assert [record["iteration"] for record in run.records()] == [1, 2]
