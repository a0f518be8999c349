"""The package reads as docs/design.md promises: `tests.style_targets` measures it."""

from __future__ import annotations

import pytest

from tests.style_targets import Measure, measures, table

ROWS = measures()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_target_is_met(row: Measure) -> None:
    assert row.met, f"{row.name} is {row.value:.1f}, the target is {row.target}: {row.worst}"


def test_the_table_marks_what_is_missed() -> None:
    missed = Measure("an example", 3, "<= 2", False, "somewhere")
    assert table([missed]).splitlines()[1].startswith("! an example")
