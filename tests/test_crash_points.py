"""A few points of `tests.crash_points`: runs that are killed or find the disk full, and resumed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash_points import KINDS, check, points_at


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stop"])
def test_a_run_that_was_killed_has_all_files_after_a_resume(kind: str) -> None:
    shares = random.Random(kind).sample([0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0], 2)
    faults = {call: faults for _, call, faults in check(kind, points_at(shares)) if faults}
    assert not faults


@pytest.mark.parametrize("kind", ["ddpo", "guard"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(kind: str) -> None:
    found = list(check(kind, points_at([0.4, 0.85]), full=True))
    assert [faults for *_, faults in found] == [[], []]


def test_the_harness_sees_what_is_missing(tmp_path: Path) -> None:
    from tests.crash_points import contents, differences

    (tmp_path / "a").write_text("1")
    expected = contents(tmp_path)
    (tmp_path / "a").write_text("2")
    (tmp_path / "b").write_text("3")
    assert differences(expected, tmp_path) == ["a is another", "b is left over"]
    (tmp_path / "a").unlink()
    assert differences(expected, tmp_path)[0] == "a is missing"
