"""Curricula: the control scale over a run, and the changes of the gated one after success."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import generator

from burnish import config as configuration
from burnish.rl.curriculum import (
    CosineCurriculum,
    GatedCurriculum,
    LinearCurriculum,
    SampledCurriculum,
    StepsCurriculum,
)
from burnish.types import Scores


def at(curriculum: LinearCurriculum, *progress: float) -> list[float]:
    return [round(curriculum(p, generator()), 6) for p in progress]


def test_fixed_courses() -> None:
    assert at(LinearCurriculum(2.0, 1.0), 0, 0.25, 0.5, 1) == [2, 1.75, 1.5, 1]
    assert at(LinearCurriculum(2.0, 1.0, until=0.5), 0, 0.25, 0.5, 1) == [2, 1.5, 1, 1]
    assert at(CosineCurriculum(2.0, 1.0), 0, 1 / 3, 0.5, 1) == [2, 1.75, 1.5, 1]
    assert at(CosineCurriculum(2.0, 1.0, until=0.5), 0.25, 0.5, 0.9) == [1.5, 1, 1]
    steps = StepsCurriculum([2.0, 1.5, 1.0])
    assert at(steps, 0, 0.33, 0.34, 0.66, 0.67, 1) == [2, 2, 1.5, 1.5, 1, 1]
    assert at(LinearCurriculum(0.5, 1.5), 0, 0.5, 1) == [0.5, 1, 1.5], "upwards too"


def test_sampled_stays_between_the_line_and_the_first() -> None:
    curriculum = SampledCurriculum(2.0, 1.0)
    stream = generator()
    assert curriculum(0.0, stream) == 2

    for progress in (0.3, 1.0):
        drawn = [curriculum(progress, stream) for _ in range(200)]
        low = 2 - progress
        assert low <= min(drawn) < low + 0.05 * progress and 2 - 0.05 * progress < max(drawn) <= 2
        assert sum(drawn) / 200 == pytest.approx((low + 2) / 2, abs=0.1 * progress)


def follow(curriculum: GatedCurriculum, *successes: float) -> list[float]:
    scales = []
    for success in successes:
        curriculum.observe(Scores(torch.tensor([[success]]), ("qr_scan",)))
        scales += at(curriculum, 0.0)
    return scales


def test_gated_goes_down_up_and_never_out() -> None:
    curriculum = GatedCurriculum(1.2, 1.0, by=0.1, smoothing=0.0)
    assert follow(curriculum, 0.9, 0.6, 0.9, 0.9) == [1.1, 1.1, 1.0, 1.0]
    assert follow(curriculum, 0.3, 0.4, 0.3, 0.3) == [1.1, 1.1, 1.2, 1.2]
    upwards = GatedCurriculum(1.0, 2.0, by=0.25, smoothing=0.0)
    assert follow(upwards, 0.9, 0.1, 0.1) == [1.25, 1.0, 1.0], "harder may be more"


def test_gated_wants_patience_and_smooths() -> None:
    curriculum = GatedCurriculum(2.0, 1.0, by=0.5, patience=2, smoothing=0.0)
    assert follow(curriculum, 0.9, 0.7, 0.9, 0.9, 0.9, 0.9) == [2, 2, 2, 1.5, 1.5, 1.0]
    smooth = GatedCurriculum(2.0, 1.0, by=0.5, smoothing=0.5)
    assert follow(smooth, 0.5, 1.0) == [2, 2], "0.5, then 0.75"
    assert follow(smooth, 1.0) == [1.5], "0.875"
    assert follow(smooth, math.nan) == [1.5]
    assert follow(smooth, 0.7) == [1.5], "the average began anew"
    assert follow(smooth, 0.0) == [2.0], "0.35"


def test_gated_goes_on_where_it_was() -> None:
    first = GatedCurriculum(2.0, 1.0, smoothing=0.7, patience=2)
    second = GatedCurriculum(2.0, 1.0, smoothing=0.7, patience=2)
    follow(first, 0.9, 0.95, 0.85)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    later = (0.9, 0.2, 0.1, 0.95, 0.99, 0.99, 0.99)
    assert follow(first, *later) == follow(second, *later)
    fresh = GatedCurriculum(2.0, 1.0)
    fresh.load_state_dict(json.loads(json.dumps(GatedCurriculum(2.0, 1.0).state_dict())))
    assert at(fresh, 0.0) == [2.0]


def test_a_gate_of_another_range_moves_into_the_new_one() -> None:
    narrower = GatedCurriculum(1.2, 1.0)
    narrower.load_state_dict({"scale": 1.8, "success": None, "streak": 0})
    assert at(narrower, 0.0) == [1.2]
    with pytest.raises(ValueError, match="must be a finite number"):
        narrower.load_state_dict({"scale": math.nan, "success": None, "streak": 0})


def test_a_gate_by_more_than_the_scan_rate_is_warned_of() -> None:
    """The mean of `qr_scan` counts right modules by default, of which bare images have many."""
    gate = 'curriculum={use="gated",first=1.7,last=1.5}'
    with pytest.warns(UserWarning, match=r"set rewards\.0\.module_weight = 0"):
        configuration.load("emoji-qr", ['rewards=[{use="qr_scan"}]', gate])
    configuration.load("emoji-qr", ['rewards=[{use="qr_scan",module_weight=0.0}]', gate])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LinearCurriculum(-1.0, 1.0),
            "curriculum.first must be a finite number, at least 0, not -1.0",
        ),
        (lambda: LinearCurriculum(1.0, math.inf), "curriculum.last must be a finite number"),
        (
            lambda: CosineCurriculum(2.0, 1.0, until=0.0),
            r"curriculum.until must lie in \(0, 1\], not 0.0",
        ),
        (lambda: StepsCurriculum([]), "curriculum.values is empty"),
        (lambda: GatedCurriculum(2.0, 1.0, above=0.3), "below = 0.4 must be less than above = 0.3"),
        (lambda: GatedCurriculum(2.0, 1.0, smoothing=1.0), r"smoothing = 1.0 in \[0, 1\)"),
    ],
)
def test_settings_that_mean_nothing(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
