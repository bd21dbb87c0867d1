"""What would run out of memory is left out of the search: predicted, told, counted, and shown."""

from __future__ import annotations

import json

import pytest
from search_world import FakeClock, FakeSpace, FakeTrainer, make_info, make_plan

from autotune.contract import Machine, NotTried, Outcome, Summary, from_dict, read_json, to_dict, write_json
from autotune.machine.memory import MemoryLimit
from autotune.report.figures import FIGURES
from autotune.report.load import load_run
from autotune.search.controller import search
from autotune.search.study import FEASIBLE

MIB = 2**20
DOMAIN = {"batch_per_gpu": (4, 8, 16, 32, 64), "torch_threads": (1, 2)}


def needs(params):
    """Affine in the batch; 16 is the largest that fits into 3 GiB with one thread as with two."""
    return (200 + 150 * params["batch_per_gpu"]) * MIB


def run(folder, *, has_bytes=3 * 1024 * MIB, limit=True, batch=4, strategy="tpe", domain=DOMAIN, seen=None, **trainer):
    clock = FakeClock()
    args = {"model": "yolo11n.yaml", "data": "mine.yaml", "batch": batch, "cache": False}
    memory = {"memory": MemoryLimit(per_rank_bytes=has_bytes, enforced=True)} if limit else {}
    info = make_info(train_args=args, strategy=strategy, budget_s=900.0)
    plan = make_plan(folder, clock, space=Wide(domain), info=info, budget_s=900.0, **memory)
    fake = FakeTrainer(clock, needs=needs, has_bytes=has_bytes, **trainer)
    return search(plan, fake, [seen.append] if seen is not None else []), fake, plan


class Wide(FakeSpace):
    """Batches far above the baseline's stay in the domain."""

    def prepare(self, *args, **kwargs):
        prepared = super().prepare(*args, **kwargs)
        prepared.domain["batch_per_gpu"] = self.domain["batch_per_gpu"]
        return prepared


def tried(trainer):
    return [s.params["batch_per_gpu"] for s in trainer.specs if s.role == "trial"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One search that several tests look at: summary, trainer, plan, and the events seen."""
    seen = []
    return (*run(tmp_path_factory.mktemp("whole") / "run", seen=seen), seen)


def test_predicted_is_left_out_and_counted(whole):
    check_left_out(*whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "gp"])
def test_every_strategy_hears_of_it(tmp_path, strategy):
    seen = []
    check_left_out(*run(tmp_path / "run", strategy=strategy, seen=seen), seen)


def check_left_out(summary, trainer, plan, seen):
    ooms = [s for s in trainer.specs if needs(s.params) > 3 * 1024 * MIB]
    # Without a prediction all four configurations over the limit would be tried. At most the first, before there are
    # two batches on the line, and one far beyond them, are.
    assert len(ooms) <= 2
    assert {4, 8, 16} == {b for b in [4, *tried(trainer)] if b <= 16}, "what fits is tried"
    left_out = [n for n in summary.not_tried if n.predicted_oom]
    assert summary.n_predicted_oom == len(left_out) == 4 - len(ooms)
    assert all(n.params["batch_per_gpu"] in (32, 64) for n in left_out)
    assert all(n.reason.startswith("predicted ") or "ran out of memory" in n.reason for n in left_out)
    assert summary.best_number is not None
    assert "run out of memory" in summary.stopped_because
    assert read_json(plan.run_dir.summary, Summary) == summary
    assert [e.not_tried for e in seen if e.kind == "trial_skipped"] == left_out
    assert all(s.mem_limit_bytes == 3 * 1024 * MIB for s in trainer.specs), "the baseline and the finalists too"


def test_the_reason_has_both_figures(tmp_path):
    summary, trainer, _ = run(
        tmp_path / "run", batch=16, domain={"batch_per_gpu": (8, 16, 32), "torch_threads": (1, 2)}
    )
    assert 32 not in tried(trainer)
    reasons = {n.reason for n in summary.not_tried}
    assert reasons <= {"predicted 4.9 GiB, limit 3.0 GiB", "batch_per_gpu=32 ran out of memory with these settings"}
    assert reasons


def test_the_study_hears_that_it_is_infeasible(whole):
    import optuna

    summary, _, plan, _ = whole
    reasons = {n.reason for n in summary.not_tried}
    study = optuna.load_study(study_name="autotune", storage=f"sqlite:///{plan.run_dir.study}")
    left_out = [t for t in study.trials if t.user_attrs.get("skipped") in reasons]
    assert left_out
    assert {t.state for t in left_out} == {optuna.trial.TrialState.PRUNED}
    assert all(t.constraints[FEASIBLE] > 0 for t in left_out)


def test_without_a_limit_failures_alone_teach(tmp_path):
    summary, trainer, _ = run(tmp_path / "run", limit=False)
    ooms = [s.params["batch_per_gpu"] for s in trainer.specs if needs(s.params) > 3 * 1024 * MIB]
    assert 1 <= len(ooms) <= 2
    assert all(s.mem_limit_bytes is None for s in trainer.specs)
    assert summary.n_predicted_oom == 4 - len(ooms)


def test_a_baseline_over_the_limit_is_halved(tmp_path):
    summary, trainer, _ = run(tmp_path / "run", batch=64)
    batches = [s.train_args["batch"] for s in trainer.specs if s.role == "baseline"]
    assert batches == [64, 32, 16]
    assert any("runs out of memory here" in note for note in summary.notes)
    assert not [b for b in tried(trainer) if b > 16], "what the baseline taught is not tried again"


def test_the_report_counts_them_and_an_older_summary_still_reads(whole):
    summary, _, plan, _ = whole
    machine = Machine(hostname="h", cpu="c", n_cores=2, n_cores_host=2, ram_bytes=2**33, shm_bytes=None)
    write_json(plan.run_dir.machine, machine)
    note = FIGURES["ledger"](load_run(plan.run_dir.path)).note
    assert f"{summary.n_predicted_oom} configurations cost nothing: memory would not have sufficed" in note
    old = to_dict(summary)
    del old["n_predicted_oom"]
    for n in old["not_tried"]:
        del n["predicted_oom"]
    plan.run_dir.summary.write_text(json.dumps(old))
    again = read_json(plan.run_dir.summary, Summary)
    assert again.n_predicted_oom == 0
    assert "memory" not in FIGURES["ledger"](load_run(plan.run_dir.path)).note
    assert from_dict(NotTried, {"params": {}, "price_s": 3.0, "reason": "dear"}).predicted_oom is False


def test_an_oom_is_not_repeated_with_a_larger_batch(tmp_path):
    """No peak is known here: the failures alone settle what is above them, and what has a worker more."""
    _, trainer, _ = run(
        tmp_path / "run", limit=False, domain={"batch_per_gpu": (4, 32, 64), "workers": (0, 1)}, has_bytes=10**12,
        fails=lambda spec: Outcome.OOM if spec.params["batch_per_gpu"] >= 32 else None,
    )  # fmt: skip
    batches = [(s.params["batch_per_gpu"], s.params["workers"]) for s in trainer.specs if s.role == "trial"]
    failed = [(b, w) for b, w in batches if b >= 32]
    assert failed
    for i, (b, w) in enumerate(failed):
        assert not any(b >= before and w >= workers for before, workers in failed[:i])
