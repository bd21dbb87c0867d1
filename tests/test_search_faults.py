"""Trials that hang, die or run out of memory inside a search: it ends in time, with all that the others gave."""

from __future__ import annotations

import time

import pytest

from autotune.contract import Outcome, Summary, read_json
from tests.searching import World, end, finish, world

__all__ = ["world"]

BUDGET_S = 60.0
FAULTS = {
    "baseline 1": {"fault": "hang", "at": 4},
    "trial 2": {"fault": "hang", "at": 4},
    "trial 3": {"fault": "sigkill_self", "at": 4},
    "trial 4": {"fault": "oom", "at": 4},
    "trial 5": {"fault": "nan", "at": 4},
    "trial 6": {"fault": "leaves_files"},
    "finalist 1": {"fault": "sigkill_self", "at": 4},
}
DEADLINES = {"stall_s": 3.0, "stall_steps": 0.0, "grace_s": 1.0}


@pytest.mark.slow
def test_a_search_with_faults_in_it(world: World) -> None:
    first = world.search("--strategy", "random", budget_s=BUDGET_S, trials=6, faults=FAULTS, deadlines=DEADLINES)
    code, said = end(first, BUDGET_S + 30.0)
    assert code == 0, said
    assert time.monotonic() - first.began <= BUDGET_S + 10.0
    results = first.results()
    hung, baseline = results[0], results[1]
    assert (hung.role, baseline.role) == ("baseline", "baseline")
    assert hung.outcome is Outcome.TIMEOUT
    assert baseline.outcome.measured, "what hangs once may run the second time"
    tried = [r for _, r in sorted(results.items()) if r.role == "trial"]
    expected = [Outcome.TIMEOUT, Outcome.CRASH, Outcome.OOM, Outcome.CRASH]
    assert [r.outcome for r in tried[1:5]] == expected, [r.error for r in tried]
    words = ["made no step for", "SIGKILL", "out of memory", "NaN"]
    assert all(word in (r.error or "") for word, r in zip(words, tried[1:5], strict=True))
    assert all(r.warm for r in tried), "faults of a forked trial"
    assert all(r.outcome.measured or r.outcome is Outcome.PRUNED for r in (tried[0], tried[5]))
    died = [r for r in results.values() if r.role == "finalist" and not r.outcome.measured]
    assert [r.outcome for r in died] == [Outcome.CRASH]
    assert {e["result"]["number"] for e in first.events() if e["kind"] == "trial_ended"} == set(results)
    summary = read_json(first.folder / "summary.json", Summary)
    assert summary.stopped_because.startswith("6 trials")
    assert any("hung once here" in note for note in summary.notes)
    assert (first.folder / "best" / "best.yaml").exists()
    assert (first.folder / "report.html").exists()
    world.check_clean(first.folder)
    finish(world, first, results)
