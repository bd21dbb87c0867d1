import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_world import FakeClock

from autotune.errors import InputError
from autotune.search.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), (" 1H 30M ", 5400), ("1d", 86400)],
)
def test_parse(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["0", "0s", "-5m", "", "5", "m", "30m1h", "5 bananas", "nan", "inf", "1e3s"])
def test_nonsense(text):
    with pytest.raises(InputError) as e:
        parse_budget(text)
    assert "90s" in e.value.hint
    assert e.value.exit_code == 2


@given(st.integers(0, 50), st.integers(0, 59), st.integers(1, 59))
def test_parts_add_up(h, m, s):
    assert parse_budget(f"{h}h{m}m{s}s") == 3600 * h + 60 * m + s


def test_ledger_sums_to_the_elapsed_time():
    clock = FakeClock()
    budget = Budget(100.0, clock, started=clock.now - 5.0)
    with budget.spend("setup"):
        clock.advance(10.0)
    with budget.spend("trials_lost") as spending:
        clock.advance(20.0)
        spending.purpose = "trials_ok"
    clock.advance(3.0)
    with contextlib.suppress(KeyboardInterrupt), budget.spend("finalists"):
        clock.advance(2.0)
        raise KeyboardInterrupt
    ledger = budget.ledger()
    assert (ledger["setup"], ledger["trials_ok"], ledger["finalists"], ledger["overhead"]) == (10, 20, 2, 8)
    assert sum(ledger.values()) == budget.elapsed_s() == 40.0
    assert budget.left_s() == 60.0
    clock.advance(1000.0)
    assert budget.left_s() == 0.0
