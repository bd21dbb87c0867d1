"""Which probes does a search run, when, and what may they never touch?"""

import pytest
from search_world import BASELINE, LAUNCH_S, SEGMENT_S, FakeClock, FakeSpace, FakeTrainer, make_plan, rate_of

from autotune.contract import Outcome, SegmentSettings
from autotune.search.controller import search
from autotune.search.probes import MOST_OF_BUDGET


def run(tmp_path, *, fails=lambda spec: None, rate=rate_of, **plan_args):
    clock = FakeClock()
    plan = make_plan(tmp_path / "run", clock, **plan_args)
    trainer = FakeTrainer(clock, fails=fails, rate=rate)
    return search(plan, trainer), trainer, plan


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return run(tmp_path_factory.mktemp("long"), budget_s=3000.0, max_trials=12)


def probes(trainer):
    """Of ceilings; those of the finalists' certificates have shares of their own."""
    return [s for s in trainer.specs if s.probe in ("compute", "data")]


def test_baseline_first_then_the_best_and_only_what_is_new(long):
    summary, trainer, _ = long
    roles = [s.role for s in trainer.specs]
    assert roles[:4] == ["baseline", "probe", "probe", "trial"]
    last = len(roles) - roles[::-1].index("finalist")
    assert {s.probe for s in trainer.specs[last : last + 2]} == {"compute", "data"}, "the winner is known then"
    asked = [(s.probe, s.params) for s in probes(trainer)]
    best = next(f.params for f in summary.verdict.finalists if f.name == "best")
    assert asked[:2] == [("compute", BASELINE), ("data", BASELINE)]
    assert dict(asked[2:]) == {"compute": {**best, "cache": False}, "data": best}
    assert all(s.probe is None for s in trainer.specs if s.role != "probe")


def test_they_are_short_and_booked_for_themselves(long):
    summary, trainer, plan = long
    for spec in probes(trainer):
        assert spec.segment.measure_s == plan.segment.measure_s / 3
        assert spec.segment.measure_cap_s < plan.segment.measure_cap_s
    assert 0 < summary.ledger_s["probes"] <= MOST_OF_BUDGET * 3000
    assert sum(summary.ledger_s.values()) == pytest.approx(summary.elapsed_s)


def test_what_a_probe_does_not_feel_is_not_probed_again(tmp_path):
    # Only the loader's knobs can change: the step of the baseline is the step of the best.
    space = FakeSpace(domain={"workers": (0, 1, 2), "prefetch_factor": (2, 4)})
    faster = lambda p: 100.0 * (1 + 0.3 * p["workers"])  # noqa: E731
    summary, trainer, _ = run(tmp_path, space=space, rate=faster, budget_s=3000.0, max_trials=12)
    assert summary.verdict.status == "gain"
    assert [s.probe for s in probes(trainer)] == ["compute", "data", "data"]
    assert probes(trainer)[-1].params["workers"] == 2


class ProbesOf(FakeTrainer):
    """Gives every probe the same rate."""

    def __init__(self, clock, images_per_s):
        super().__init__(clock)
        self.images_per_s = images_per_s

    def __call__(self, spec, directory, *, started_s, watch=None):
        self.rate = (lambda _: self.images_per_s) if spec.role == "probe" else rate_of
        return super().__call__(spec, directory, started_s=started_s, watch=watch)


def test_the_rate_of_a_probe_is_never_the_best_nor_a_price(tmp_path):
    """Ten times as fast as any trial, or ten times as slow: winner, importance and verdict stay as they are."""
    summaries = []
    for i, rate in enumerate((10.0, 10_000.0)):
        clock = FakeClock()
        summaries.append(
            search(make_plan(tmp_path / str(i), clock, budget_s=3000.0, max_trials=12), ProbesOf(clock, rate))
        )
    slow, fast = summaries
    assert fast.best_number == slow.best_number
    assert fast.importance == slow.importance
    assert fast.n_feasible == slow.n_feasible
    assert fast.verdict == slow.verdict
    assert fast.not_tried == slow.not_tried


@pytest.mark.parametrize("outcome", [Outcome.OOM, Outcome.CRASH, Outcome.TIMEOUT])
def test_a_probe_that_fails_fails_nothing_else(tmp_path, outcome):
    summary, trainer, plan = run(
        tmp_path, budget_s=3000.0, max_trials=12, fails=lambda spec: outcome if spec.role == "probe" else None
    )
    assert summary.verdict.status == "gain"
    assert plan.budget.elapsed_s() <= 3000.0
    best = next(f.params for f in summary.verdict.finalists if f.name == "best")
    assert [s.params for s in probes(trainer)].count(best) <= 1, "one that failed is not tried again"


def test_an_interrupted_probe_leaves_an_interrupted_search(tmp_path):
    summary, trainer, _ = run(
        tmp_path,
        budget_s=3000.0,
        max_trials=12,
        fails=lambda spec: KeyboardInterrupt() if spec.role == "probe" else None,
    )
    assert summary.stopped_because == "interrupted"
    assert [s.role for s in trainer.specs] == ["baseline", "probe"]


def test_a_tiny_budget_runs_none_and_says_so(tmp_path):
    summary, trainer, _ = run(tmp_path, budget_s=90.0)
    assert LAUNCH_S > MOST_OF_BUDGET * 90.0
    assert probes(trainer) == []
    assert summary.ledger_s["probes"] == 0.0
    [note] = [n for n in summary.notes if "not measured for lack of time" in n]
    assert "the step alone and the loader alone" in note


def test_a_cached_best_is_probed_with_its_cache_by_the_loader_only(tmp_path):
    space = FakeSpace(domain={"cache": (False, "ram")})
    faster = lambda p: 150.0 if p["cache"] == "ram" else 100.0  # noqa: E731
    _, trainer, plan = run(tmp_path, space=space, rate=faster, budget_s=3000.0, max_trials=12)
    last = probes(trainer)[-1]
    assert (last.probe, last.params["cache"]) == ("data", "ram")
    assert last.train_args["data"] == "farm/ram.yaml"
    assert all(s.params["cache"] is False for s in probes(trainer) if s.probe == "compute")
    assert plan.probe_segment == SegmentSettings(
        warmup_steps=6, warmup_s=1.0, warmup_cap_s=30.0, measure_s=10 / 3, measure_steps=6, measure_cap_s=20.0
    )


def test_the_dearer_probe_is_the_one_left_out(tmp_path):
    """A compiled best: its step alone costs a compile, which the share of the budget does not hold."""
    space = FakeSpace(domain={"compile": (False, "default"), "torch_threads": (1, 2)})
    space.seeds = ({"compile": "default", "torch_threads": 2},)
    faster = lambda p: 150.0 if p["compile"] and p["torch_threads"] == 2 else 100.0  # noqa: E731
    summary, trainer, _ = run(tmp_path, space=space, rate=faster, budget_s=600.0)
    others_s = LAUNCH_S + SEGMENT_S  # the certificate, which has a share of its own
    assert summary.ledger_s["probes"] - others_s <= MOST_OF_BUDGET * 600
    assert [(s.probe, s.params["compile"]) for s in probes(trainer)][-1] == ("data", "default")
    assert any("the step alone, with the best settings" in note for note in summary.notes)
