"""Which change of the winner mattered: what runs, what it may cost, and what survives an interrupt."""

from dataclasses import replace

import pytest
from search_world import BASELINE, FakeClock, FakeSpace, FakeTrainer, make_plan

from autotune.contract import Outcome
from autotune.search.ablation import MOST_OF_BUDGET
from autotune.search.controller import search
from autotune.search.past import Past

DOMAIN = {"batch_per_gpu": (16, 64), "torch_threads": (1, 2), "workers": (0, 1)}
BEST = {"batch_per_gpu": 64, "torch_threads": 2, "workers": 1}


def rate(params):
    """2 threads give 1.5x, batch 64 gives 1.2x, a worker next to nothing, but enough to be found with all three."""
    gain = {1: 1.0, 2: 1.5}[params["torch_threads"]] * {16: 1.0, 64: 1.2}[params["batch_per_gpu"]]
    every = params["torch_threads"] == 2 and params["batch_per_gpu"] == 64 and params["workers"] == 1
    return 100.0 * gain * (1.12 if every else 1.0)


def run(tmp_path, *, fails=lambda spec: None, budget_s=2000.0, domain=DOMAIN, rate=rate):
    clock = FakeClock()
    plan = make_plan(tmp_path / "run", clock, budget_s=budget_s, space=FakeSpace(domain=domain, seeds=(BEST,)))
    trainer = FakeTrainer(clock, fails=fails, rate=rate)
    return search(plan, trainer), trainer


def ablations(trainer):
    return [s for s in trainer.specs if s.role == "ablation"]


def test_every_change_is_set_back_alone_and_measured(tmp_path):
    summary, trainer = run(tmp_path)
    best = next(f.params for f in summary.verdict.finalists if f.name == "best")
    assert {k: best[k] for k in BEST} == BEST
    found = {a.knob: a for a in summary.ablation}
    assert set(found) == set(BEST)
    for knob, a in found.items():
        assert (a.value, a.baseline, a.params[knob]) == (BEST[knob], BASELINE[knob], BASELINE[knob])
        assert {k: a.params[k] for k in BEST if k != knob} == {k: v for k, v in BEST.items() if k != knob}
        truth = rate(best) / rate(a.params)
        assert a.ci95_lo * 0.98 <= truth <= a.ci95_hi * 1.02
        assert len(a.numbers) == 2
    assert [a.gain for a in summary.ablation] == sorted((a.gain for a in summary.ablation), reverse=True)
    assert found["torch_threads"].ci95_lo > 1.0
    ran = ablations(trainer)
    assert {n for a in summary.ablation for n in a.numbers} < {s.number for s in ran}
    assert sum(s.params == best for s in ran) == 2, "beside runs of the winner"


def test_a_small_budget_says_what_it_left_out(tmp_path):
    summary, trainer = run(tmp_path, budget_s=400.0)
    assert summary.verdict.status == "gain"
    assert len(ablations(trainer)) * 14.0 <= MOST_OF_BUDGET * 400.0
    left_out = [a for a in summary.ablation if a.gain is None]
    assert left_out
    assert all("no time" in a.note for a in left_out)
    assert summary.ablation[-1] == left_out[-1]


def test_one_change_needs_no_run(tmp_path):
    summary, trainer = run(tmp_path, domain={"torch_threads": (1, 2)})
    [a] = summary.ablation
    best = {f.name: f for f in summary.verdict.finalists}
    assert ablations(trainer) == []
    assert a.numbers == best["baseline"].numbers
    assert a.gain == pytest.approx(best["best"].speedup)
    assert a.ci95_lo == pytest.approx(best["best"].ci95_lo)


def test_one_that_fails_is_said_and_the_rest_goes_on(tmp_path):
    def fails(spec):
        return Outcome.CRASH if spec.role == "ablation" and spec.params["batch_per_gpu"] == 16 else None

    summary, _ = run(tmp_path, fails=fails)
    found = {a.knob: a for a in summary.ablation}
    assert found["batch_per_gpu"].gain is None
    assert "crash" in found["batch_per_gpu"].note
    assert found["torch_threads"].gain > 1.3
    assert summary.verdict.status == "gain"


def test_an_interrupt_keeps_the_claim_and_what_was_measured(tmp_path):
    n = 0

    def fails(spec):
        nonlocal n
        n += spec.role == "ablation"
        return KeyboardInterrupt() if n == 6 else None

    summary, _ = run(tmp_path, fails=fails)
    assert (summary.stopped_because, summary.verdict.status) == ("interrupted", "gain")
    assert sum(a.gain is not None for a in summary.ablation) == 3


def test_without_a_proven_gain_nothing_is_ablated(tmp_path):
    summary, trainer = run(tmp_path, rate=lambda params: 100.0)
    assert (ablations(trainer), summary.ablation) == ([], ())


def test_a_resumed_search_takes_its_share_of_the_time_given_now(tmp_path):
    plan = make_plan(tmp_path / "run", FakeClock(), budget_s=1000.0)
    assert plan.given_s == 1000.0
    nothing = {"results": (), "unheard": frozenset(), "baseline_args": {}, "segment": None, "not_tried": ()}
    past = Past(**nothing, elapsed_s=780.0, ledger_s={})
    assert replace(plan, past=past).given_s == 220.0
