import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.contract import Outcome, TrialResult
from autotune.report import words
from autotune.report.cards_tables import trouble


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0.04, "0.0 s"),
        (58.4, "58 s"),
        (99.7, "1.66 min"),
        (270, "4.50 min"),
        (6000, "1.67 h"),
        (11520, "3.20 h"),
        (400 * 3600, "16.7 d"),
    ],
)
def test_seconds(x: float | None, text: str) -> None:
    assert words.seconds(x) == text


@pytest.mark.parametrize(("x", "text"), [(0, "0:00"), (12.9, "0:12"), (3481, "58:01"), (3972, "1:06:12"), (-1, "0:00")])
def test_clock(x: float, text: str) -> None:
    assert words.clock(x) == text


@pytest.mark.parametrize(
    ("x", "text"), [(0, "0"), (1131.4, "1131"), (91.44, "91.4"), (9.996, "10.00"), (0.834, "0.83"), (0.0123, "0.012")]
)
def test_number(x: float, text: str) -> None:
    assert words.number(x) == text


def test_size_percent_rate_times() -> None:
    assert words.size(19.8 * 2**30) == "19.8 GiB"
    assert words.size(512 * 2**20) == "512 MiB"
    assert words.size(None) == "-"
    assert (words.percent(0.04), words.percent(0.004), words.percent(0), words.percent(-0.12)) == (
        "4 %",
        "0.4 %",
        "0 %",
        "-12 %",
    )
    assert words.rate(1131, 1112, 1150) == "1131 +-19.0 img/s"
    assert words.rate(1131) == "1131 img/s"
    assert words.rate(None, 1, 2) == "-"
    assert words.times(2.746) == "2.75x"


def test_differences_keep_types_apart() -> None:
    assert words.differences({"a": True, "b": 1, "c": None}, {"a": 1, "b": 1, "c": False}) == {"a": True, "c": None}
    assert words.assignments({"a": True, "c": None}) == "a=True c=none"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1e12))
def test_numbers_never_show_powers_of_ten_above_a_thousandth(x: float) -> None:
    assert "e+" not in words.number(x)
    assert words.seconds(x)[-1] in "smhdn"


def test_an_ok_trial_whose_warm_up_was_cut_short_says_so() -> None:
    def trial(**changes: Any) -> TrialResult:
        fields = {"number": 1, "role": "trial", "outcome": Outcome.OK, "params": {}, "started_s": 0.0, "took_s": 1.0}
        return TrialResult(**{**fields, **changes})

    assert "time limit" in trouble(trial(steady=False))
    assert trouble(trial(steady=True)) == trouble(trial()) == ""
    unstable = trial(outcome=Outcome.UNSTABLE, steady=False, error="the loader stalls")
    assert trouble(unstable) == "The loader stalls."
