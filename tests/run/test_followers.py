"""A trial and its followers: who may follow; one process, each with files, deadlines and an outcome of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import Deadlines, Nodes, Outcome, RankRecord, TrialDir, TrialResult, TrialSpec, read_json
from autotune.run.dataset import DatasetView
from autotune.run.followers import Part, Relay, believed, durations_s, may_follow
from autotune.run.preloaded import Preloaded
from autotune.run.trial import run_in_turn, run_trial
from autotune.run.watch import Live, Watcher
from tests.run.trials import SHORT, spec

TINY = Path(__file__).parents[1] / "models" / "tiny-detect.yaml"
HUGE = 1 << 16
"""A batch for which no simulated machine has the memory."""


def synthetic(number: int, batch: int = 8, **settings: Any) -> TrialSpec:
    asked = spec("none", backend="synthetic", number=number, batch=batch, synthetic=settings)
    return replace(asked, params={"batch_per_gpu": batch})


def parts(folder: Path, *specs: TrialSpec, watch: Callable[[Live], str | None] | None = None) -> list[Part]:
    return [Part(s, TrialDir(folder / "run" / "trials" / f"{s.number:04d}"), watch) for s in specs]


def pid_of(part: Part) -> str:
    return part.directory.stream(0).read_text().splitlines()[0]


FIRST = replace(spec("view/none"), patches={"workers": 1, "torch_threads": 2})


@pytest.mark.parametrize(
    ("change", "may"),
    [
        (lambda s: replace(s, number=7, params={"amp": True}, changes={"amp": True}), True),
        (lambda s: replace(s, train_args=s.train_args | {"batch": 32, "amp": True}), True),
        (lambda s: replace(s, train_args=s.train_args | {"cache": "ram", "data": "view/ram"}), True),
        (lambda s: replace(s, patches={"torch_threads": 2, "workers": 4, "prefetch_factor": 8}), True),
        (lambda s: replace(s, deadlines=replace(s.deadlines, total_s=7.0)), True),
        (lambda s: replace(s, train_args=s.train_args | {"imgsz": 96}), False),
        (lambda s: replace(s, train_args=s.train_args | {"compile": True}), False),
        (lambda s: replace(s, patches={"workers": 1, "torch_threads": 1}), False),
        (lambda s: replace(s, env={"OMP_NUM_THREADS": "2"}), False),
        (lambda s: replace(s, gpus=("GPU-1",)), False),
        (lambda s: replace(s, segment=replace(s.segment, measure_s=9.0)), False),
        *((lambda s, role=role: replace(s, role=role), False) for role in ("baseline", "sentinel", "finalist")),
        (lambda s: replace(s, role="ablation"), False),
        (lambda s: replace(s, role="probe", probe="compute"), False),
        (lambda s: replace(s, certify=True), False),
        (lambda s: replace(s, trace_steps=3), False),
        (lambda s: replace(s, n_ranks=2), False),
        (lambda s: replace(s, nodes=Nodes(n_nodes=2, node_rank=0, rdzv_endpoint="a:1")), False),
    ],
)
def test_who_may_follow(change: Callable[[TrialSpec], TrialSpec], may: bool) -> None:
    assert may_follow(change(FIRST), FIRST) is may
    assert may_follow(FIRST, change(FIRST)) is may


def test_each_has_its_own_record_and_result_of_one_process(tmp_path: Path) -> None:
    asked = [synthetic(number, batch) for number, batch in ((0, 8), (1, 16), (2, 4))]
    mine = parts(tmp_path, *asked)
    results = run_in_turn(mine, started_s=5.0, sampled=False)
    alone = [run_trial(s, TrialDir(tmp_path / "x" / "trials" / str(s.number)), started_s=0.0) for s in asked]
    assert [r.outcome for r in results] == [Outcome.OK] * 3
    assert [r.follower for r in results] == [False, True, True]
    assert len({pid_of(p) for p in mine}) == 1, "one process"
    for part, result, fresh in zip(mine, results, alone, strict=True):
        assert read_json(part.directory.result, TrialResult) == result
        assert read_json(part.directory.rank(0), RankRecord).status == "done"
        assert not fresh.follower
        assert result.params == part.spec.params
        assert (result.images_per_s, result.peak_mem_bytes) == (fresh.images_per_s, fresh.peak_mem_bytes)
        assert not part.directory.shm_before.exists()
        assert not part.directory.tmp.exists()
    assert all(r.took_s > 0 for r in results)
    assert results[0].started_s == 5.0
    assert results[1].started_s == pytest.approx(5.0 + results[0].took_s)
    assert results[2].started_s == pytest.approx(results[1].started_s + results[1].took_s)


def test_a_parent_forks_the_first_and_the_rest_follow(tmp_path: Path) -> None:
    mine = parts(tmp_path, synthetic(0), synthetic(1, 16))
    with Preloaded() as preloaded:
        results = run_in_turn(mine, started_s=0.0, sampled=False, preloaded=preloaded)
    assert [(r.warm, r.follower, r.outcome) for r in results] == [
        (True, False, Outcome.OK),
        (True, True, Outcome.OK),
    ]
    assert len({pid_of(p) for p in mine}) == 1


def test_a_follower_that_fails_ends_the_process_and_is_not_believed(tmp_path: Path) -> None:
    mine = parts(tmp_path, synthetic(0), synthetic(1, HUGE), synthetic(2, 16))
    results = run_in_turn(mine, started_s=0.0, sampled=False)
    assert [(r.number, r.outcome) for r in results] == [(0, Outcome.OK)]
    assert read_json(mine[1].directory.rank(0), RankRecord).status == "failed"
    assert not mine[1].directory.result.exists(), "out of memory in a used process says nothing"
    assert not mine[2].directory.stream(0).exists(), "the last one did not begin"
    assert "out of memory (simulated)" in mine[1].directory.log.read_text(), "each has its own log"
    assert "out of memory" not in mine[0].directory.log.read_text()
    again = run_trial(mine[1].spec, mine[1].directory, started_s=0.0, sampled=False)
    assert (again.outcome, again.follower) == (Outcome.OOM, False)


def test_what_an_earlier_run_wrote_says_nothing_about_a_trial(tmp_path: Path) -> None:
    """Neither a follower that failed before, nor any other run of the same folder."""
    (mine,) = parts(tmp_path, synthetic(0, fault="sigkill_self"))
    mine.directory.path.mkdir(parents=True)
    mine.directory.log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n")
    result = run_trial(mine.spec, mine.directory, started_s=0.0, sampled=False)
    assert result.outcome is not Outcome.OOM, result.error
    assert "CUDA out of memory" in mine.directory.log.read_text(), "but it is kept"


def test_the_first_one_that_fails_is_judged_and_nobody_follows(tmp_path: Path) -> None:
    mine = parts(tmp_path, synthetic(0, HUGE), synthetic(1))
    results = run_in_turn(mine, started_s=0.0, sampled=False)
    assert [(r.number, r.outcome) for r in results] == [(0, Outcome.OOM)]
    assert not mine[1].directory.stream(0).exists()


def test_a_process_that_dies_after_a_record_leaves_what_it_measured(tmp_path: Path) -> None:
    mine = parts(tmp_path, synthetic(0, fault="aborts_at_end"), synthetic(1, fault="aborts_at_end"))
    results = run_in_turn(mine, started_s=0.0, sampled=False)
    assert [(r.number, r.outcome) for r in results] == [(0, Outcome.OK)]


def test_racing_stops_a_follower_and_the_next_one_goes_on(tmp_path: Path) -> None:
    def slow(live: Live) -> str | None:
        return "cannot win" if live.n_steps else None

    asked = [replace(synthetic(n, step_s=0.05), segment=replace(SHORT, measure_s=1.5)) for n in range(3)]
    mine = parts(tmp_path, *asked)
    mine[1] = replace(mine[1], watch=slow)
    results = run_in_turn(mine, started_s=0.0, sampled=False)
    assert [(r.outcome, r.error) for r in results][1] == (Outcome.PRUNED, "cannot win")
    assert [r.outcome.measured for r in results] == [True, False, True]


def test_a_follower_that_hangs_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    limits = Deadlines(stall_s=1.0, total_s=60.0, grace_s=0.2)
    endless = replace(SHORT, warmup_s=30.0, warmup_cap_s=60.0)
    hangs = [synthetic(number, step_s=0.05, fault="hang", at=40) for number in range(2)]
    mine = parts(tmp_path, *(replace(s, segment=endless, deadlines=limits) for s in hangs))
    # The first one is stopped long before its fortieth step, in which both would hang.
    mine[0] = replace(mine[0], watch=lambda live: "enough" if live.n_steps > 5 else None)
    results = run_in_turn(mine, started_s=0.0, sampled=False)
    assert [(r.number, r.outcome) for r in results] == [(0, Outcome.PRUNED)]
    assert read_json(mine[0].directory.rank(0), RankRecord).status == "stopped"
    assert not mine[1].directory.rank(0).exists(), "killed in its step"
    assert len(mine[1].directory.stream(0).read_text().splitlines()) > 40


def test_the_clock_of_a_follower_starts_with_it(tmp_path: Path) -> None:
    limits = Deadlines(import_s=10.0, build_s=10.0, first_step_s=10.0, stall_s=10.0, total_s=20.0)
    mine = parts(tmp_path, replace(synthetic(0), deadlines=limits), replace(synthetic(1), deadlines=limits))
    for part in mine:
        part.directory.path.mkdir(parents=True)
    relay = Relay([Watcher(p.spec, p.directory, None) for p in mine], [p.directory for p in mine])
    mine[0].directory.stream(0).write_text("# pid 1\n# import\n")
    assert relay(9.0) is None
    mine[0].directory.rank(0).write_text("{}")
    mine[1].directory.stream(0).write_text("# pid 1\n# import\n")
    assert relay(18.0) is None
    assert relay(27.0) is None, "nine seconds of its own ten"
    assert relay(29.0) == "rank 0 did not finish the imports in 11 s"


def test_a_trial_takes_from_the_end_of_the_one_before_to_its_own() -> None:
    ended = [RankRecord(rank=0, status="done", ended_s=100.0 + s) for s in (3.0, 5.0, 9.0)]
    assert durations_s(ended, 100.0, 9.5) == [3.0, 2.0, 4.5]
    assert durations_s([*ended[:2], None], 100.0, 8.0) == [3.0, 2.0, 3.0]
    assert durations_s([None], 100.0, 8.0) == [8.0]


def test_under_a_limit_of_memory_a_follower_must_know_its_own(tmp_path: Path) -> None:
    result = run_trial(synthetic(0), TrialDir(tmp_path / "run" / "trials" / "0000"), started_s=0.0, sampled=False)
    limited = replace(synthetic(0), mem_limit_bytes=1 << 40)
    assert believed(result, limited)
    unknown = replace(result, peak_mem_bytes=())
    assert believed(unknown, synthetic(0))
    assert not believed(unknown, limited)
    assert not believed(replace(result, outcome=Outcome.MISMATCH), synthetic(0))


@pytest.mark.slow
def test_real_trainings_follow_and_inherit_nothing(tiny: Path, tmp_path: Path) -> None:
    with DatasetView(str(tiny), "detect", tmp_path / "view") as view:

        def asked(number: int, cache: Any, workers: int, **args: Any) -> TrialSpec:
            patches = {"workers": workers, "torch_threads": 1}
            given = {"model": str(TINY), "imgsz": 192, "nbs": 4, "cache": cache, "deterministic": False, **args}
            return spec(view.path(cache), number=number, patches=patches, segment=SHORT, **given)

        mine = parts(
            tmp_path,
            asked(0, False, 2, batch=32),
            asked(1, "ram", 0, batch=4),
            asked(2, "disk", 1, batch=8),
        )
        results = run_in_turn(mine, started_s=0.0)
        fresh = run_trial(mine[1].spec, TrialDir(tmp_path / "run" / "trials" / "0009"), started_s=0.0)
    assert len(results) == 3, [p.directory.log.read_text()[-2000:] for p in mine if p.directory.log.exists()]
    assert all(r.outcome.measured for r in (*results, fresh)), [r.error for r in results]
    assert len({pid_of(p) for p in mine}) == 1
    names = ("batch_per_gpu", "workers", "cache")
    assert [tuple(r.effective[n] for n in names) for r in results] == [(32, 2, False), (4, 0, "ram"), (8, 1, "disk")]
    same = ("torch_threads", "deterministic", "amp", "optimizer", "mosaic_open")
    assert {n: results[1].effective[n] for n in same} == {n: fresh.effective[n] for n in same}
    # The big batch of the first is not in the peak of the second, which is what it is in a process of its own.
    assert results[1].peak_mem_bytes[0] < 0.9 * results[0].peak_mem_bytes[0]
    assert results[1].peak_mem_bytes[0] == pytest.approx(fresh.peak_mem_bytes[0], rel=0.1)
    for part, result in zip(mine, results, strict=True):
        assert result.meanwhile is not None, "each window has its samples"
        assert part.directory.samples.exists()
        assert f"batch={part.spec.train_args['batch']}" in part.directory.log.read_text()
