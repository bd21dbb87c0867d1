"""A table as a machine: a study in memory finds its best, on its clock, from what was recorded only."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Outcome
from autotune.recording import Recording, read_recording
from autotune.search.budget import Budget
from autotune.search.in_memory import incumbents, study_in_memory
from autotune.search.plan import Plan
from autotune.search.proposals import NOT_RECORDED, key_of
from tests.recorded_table import BASELINE, DOMAIN, NO_MEMORY, write_table
from tests.search.search_world import make_info

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "search"))
from estimated import estimate
from recorded import RecordedWorld

GONE = tuple({"torch_threads": 2, "batch_per_gpu": b, "workers": 0} for b in (8, 16, 32))


def study(world: RecordedWorld, *, strategy: str = "random", seed: int = 0, max_trials: int | None = None):
    recording = world.recording
    info = make_info(
        strategy=strategy, seed=seed, budget_s=1e5, train_args=recording.job, domain=recording.domain, backend="replay"
    )
    plan = Plan(
        run_dir=None,
        info=info,
        space=world.space,
        budget=Budget(1e5, world.clock),
        data_for=lambda cache: "none",
        segment=recording.segment,
        n_images=recording.n_images,
        only=recording.configs,
        max_trials=max_trials,
    )
    return study_in_memory(plan, world)


def world_of(recording: Recording, seed: int = 0) -> RecordedWorld:
    return RecordedWorld(recording, seed, estimate(recording))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory):
    return read_recording(str(write_table(tmp_path_factory.mktemp("table") / "t")))


def test_the_interface_of_a_world(recording) -> None:
    world = world_of(recording, seed=1)
    assert world.domain == {name: tuple(values) for name, values in DOMAIN.items()}
    assert (world.baseline, world.n_ranks, world.memory_limit_bytes, world.clock()) == (BASELINE, 1, None, 0.0)
    assert world.seeds == ({"torch_threads": 2, "batch_per_gpu": 32, "workers": 0},)
    best, rate = world.best()
    assert world.true_rate(best) == rate
    assert world.true_rate(NO_MEMORY) is None
    assert world.canonical(dict(best)) == best


@pytest.mark.parametrize("strategy", ["structured", "tpe", "simple", "grid"])
def test_a_study_finds_the_best_on_the_tables_clock(recording, strategy) -> None:
    world = world_of(recording, seed=1)
    session = study(world, strategy=strategy)
    _, rate = world.best()
    found = incumbents(session)[-1]
    assert world.true_rate(found.params) == pytest.approx(rate, rel=0.03)
    assert world.clock() == pytest.approx(sum(r.result.took_s for r in session.ran))
    assert found.at_s <= world.clock()
    tried = [r.result for r in session.ran if r.result.role == "trial"]
    assert {key_of(r.params) for r in tried} <= set(recording.cells)
    assert any(r.outcome is Outcome.PRUNED for r in tried), "racing works on recorded steps"


def test_the_seed_repeats_a_study_and_another_one_does_not(recording) -> None:
    first, again, other = (
        [(r.result.params, r.value) for r in study(world_of(recording, seed), seed=seed, max_trials=8).ran]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_what_was_not_recorded_is_left_out_and_counts_as_known(tmp_path) -> None:
    partial = read_recording(str(write_table(tmp_path / "t", without=GONE)))
    session = study(world_of(partial))
    tried = [key_of(r.result.params) for r in session.ran if r.result.role == "trial"]
    assert set(tried) <= set(partial.cells)
    assert len(set(tried)) == len(tried)
    left = {key_of(n.params): n for n in session.not_tried}
    assert {n.reason for n in left.values() if not n.predicted_oom} == {NOT_RECORDED}
    assert {k for k, n in left.items() if n.reason == NOT_RECORDED} <= {key_of(g) for g in GONE}
    n_vetoed = sum(n.predicted_oom for n in left.values())
    assert len(tried) + n_vetoed == len(partial.cells) - 1
    told = (
        "only configurations that would run out of memory are left" if n_vetoed else "every configuration was measured"
    )
    assert session.stopped_because == told


def test_a_domain_of_which_little_was_recorded_ends(recording) -> None:
    """Proposals outside are left out, and after five in a row a recorded one is drawn."""
    few = [params for params in recording.configs if params["torch_threads"] == 1][:3]
    cells = {key_of(p): recording.cells[key_of(p)] for p in (*few, BASELINE)}
    session = study(world_of(replace(recording, cells=cells)))
    tried = {key_of(r.result.params) for r in session.ran if r.result.role == "trial"}
    assert tried == set(cells) - {key_of(BASELINE)}
    assert session.stopped_because == "every configuration was measured"
