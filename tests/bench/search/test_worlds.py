"""Does a World answer as a trial would?"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import World

from autotune.contract import Outcome, RunDir, RunInfo, TrialDir, TrialResult, TrialSpec, read_json
from autotune.machine.memory import MemoryLimit
from autotune.search.budget import Budget
from autotune.search.controller import search
from autotune.search.plan import Plan
from autotune.worker.machines import FAMILIES, truth

NAMES = [name for name in FAMILIES if name != "dry_run"]


def spec(world, number=1, *, params=None, **fields):
    return TrialSpec(**{
        "number": number, "role": "trial", "backend": "synthetic", "task": "detect", "changes": {}, "train_args": {},
        "params": params or world.baseline, "n_ranks": world.n_ranks, **fields,
    })  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_space_and_start(name):
    world = World(name, 1)
    assert world.true_rate(world.baseline) > 0
    assert world.canonical(world.baseline) == world.baseline
    for params in (world.baseline, *world.seeds):
        assert params.keys() == world.domain.keys() | world.baseline.keys()
        assert world.canonical(params) == params
    rng = random.Random(0)
    drawn = [world.random(rng) for _ in range(50)]
    assert all(world.canonical(p) == p for p in drawn)
    assert sum(world.true_rate(p) > 0 for p in drawn) > 1


def test_best_is_no_worse_than_what_chance_finds_and_is_kept(tmp_path):
    world = World("t4_n", 2, cache=tmp_path)
    params, rate = world.best()
    assert world.true_rate(params) == rate
    rng = random.Random(1)
    assert max(world.true_rate(world.random(rng)) for _ in range(3000)) <= rate
    assert len(list(tmp_path.iterdir())) == 1
    assert World("t4_n", 2, cache=tmp_path).best() == (params, rate)
    assert World("t4_n", 3).best()[1] != rate


def test_a_trial_is_as_long_as_its_phases_and_a_graph_compiles_cold_once(tmp_path):
    world = World("a100x4_m", 1)
    params = world.canonical({**world.baseline, "compile": "default", "cache": "disk"})
    cold, warm = (world(spec(world, n, params=params), TrialDir(tmp_path), started_s=0.0) for n in (1, 2))
    assert cold.outcome is Outcome.OK
    assert cold.took_s == pytest.approx(sum(cold.phases_s.values()))
    assert world.clock() == pytest.approx(cold.took_s + warm.took_s)
    assert warm.phases_s["first_step"] < 0.5 * cold.phases_s["first_step"]
    assert (cold.phases_s["cache"] > 0, warm.phases_s["cache"]) == (True, 0.0)
    assert cold.images_per_s == pytest.approx(world.true_rate(params), rel=0.25)
    assert len(cold.peak_mem_bytes) == 4
    assert sum(cold.parts_s.values()) == pytest.approx(cold.step_p50_s, rel=0.1)


def test_probes_take_the_step_apart(tmp_path):
    world = World("a100x8tcp_l", 1)
    found = {}
    for i, probe in enumerate(("data", "compute", "no_sync", "one_rank", "epoch_end", "memory", "certificate")):
        n_ranks = 1 if probe == "one_rank" else world.n_ranks
        asked = spec(world, i, role="probe", probe=probe, n_ranks=n_ranks)
        found[probe] = world(asked, TrialDir(tmp_path), started_s=0.0)
        assert found[probe].outcome is Outcome.OK
        if probe != "certificate":
            n = world.n_ranks if probe != "one_rank" else 1
            whole = truth(world.machine, world.baseline, n, probe).images_per_s
            assert found[probe].images_per_s == pytest.approx(whole, rel=0.25)
    assert found["data"].wait_frac > 0.9
    assert found["no_sync"].images_per_s > 1.2 * found["memory"].images_per_s
    assert found["epoch_end"].epoch_end.val_s > 0
    assert found["certificate"].peak_mem_bytes > found["memory"].peak_mem_bytes


def test_memory_runs_out_and_a_watched_trial_is_stopped(tmp_path):
    world = World("t4_n", 1)
    params = {**world.baseline, "batch_per_gpu": 256, "amp": False}
    lost = world(spec(world, params=params), TrialDir(tmp_path), started_s=0.0)
    assert (lost.outcome, lost.images_per_s, lost.took_s > 5) == (Outcome.OOM, None, True)
    assert "GPU" in lost.error
    looks = []

    def watch(live):
        looks.append(len(live.steps.step_s) == live.n_steps)
        return "cannot win" if len(looks) == 2 else None

    stopped = world(spec(world, 2), TrialDir(tmp_path), started_s=0.0, watch=watch)
    assert (stopped.outcome, stopped.error, looks) == (Outcome.PRUNED, "cannot win", [True, True])
    late = world(spec(world, 3, deadlines=type(spec(world).deadlines)(total_s=8.0)), TrialDir(tmp_path), started_s=0.0)
    assert (late.outcome, late.took_s) == (Outcome.TIMEOUT, 8.0)


def test_the_controllers_own_loop_runs_on_it(tmp_path):
    world = World("r3090x2_s", 1)
    info = RunInfo(
        name="w", command="", started="2026-11-23T14:05:00+00:00", budget_s=7200.0, objective="job_time",
        strategy="random", space="world", training="any", seed=0, backend="synthetic", simulated=True, task="detect",
        device="0,1", gpus=("GPU-0", "GPU-1"), n_ranks=2, train_args={"model": "m", "data": "d", "batch": 16},
    )  # fmt: skip
    plan = Plan(
        run_dir=RunDir(tmp_path), info=info, space=world.space, budget=Budget(info.budget_s, world.clock),
        data_for=lambda _: "d", n_images=world.machine.n_images, max_trials=3,
        memory=MemoryLimit(per_rank_bytes=world.memory_limit_bytes),
    )  # fmt: skip
    summary = search(plan, world)
    results = [read_json(d.result, TrialResult) for _, d in plan.run_dir.numbered()]
    assert summary.elapsed_s == pytest.approx(world.clock(), abs=1.0)
    assert {r.probe for r in results} >= {"no_sync", "one_rank", "epoch_end"}
    assert [r for r in results if r.outcome is Outcome.CRASH] == []
    assert all(r.params == world.canonical(r.params) for r in results)
    assert results[0].job_terms["closed_epochs_s"] is not None
