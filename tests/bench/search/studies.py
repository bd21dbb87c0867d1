"""How is one study of the benchmark run? The controller's own loop on a world that answers by itself; no files."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from autotune.contract import (
    Outcome,
    Params,
    RunInfo,
    SegmentSettings,
    TrialDir,
    TrialResult,
    TrialSpec,
    Value,
)
from autotune.machine.memory import MemoryLimit
from autotune.search.budget import Budget
from autotune.search.conclusion import verdict_of
from autotune.search.finalists import make_stage, run_blocks
from autotune.search.in_memory import incumbents, study_in_memory
from autotune.search.plan import Plan, SpacePort, Watch
from autotune.search.posterior import fit
from autotune.search.proposals import key_of
from autotune.search.session import Session

FOR_EVER_S = 1e9
AT = (5, 10, 20, 30, 40)


class World(Protocol):
    """worlds.World, recorded.Recorded: a machine and a job with a known truth."""

    domain: dict[str, tuple[Value, ...]]
    n_ranks: int
    memory_limit_bytes: int | None

    @property
    def space(self) -> SpacePort: ...
    def clock(self) -> float: ...
    def true_rate(self, params: Params) -> float: ...
    def best(self) -> tuple[Params, float]: ...
    def __call__(
        self, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None
    ) -> TrialResult: ...


@dataclass(frozen=True)
class Unadvised:
    """A space without its seeds, as plan.SpacePort: nobody says what an expert would try first."""

    space: SpacePort

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        return replace(self.space.prepare(*args, **kwargs), seeds=())  # type: ignore[type-var]

    def pin(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        return self.space.pin(resolved)

    def canonical(self, params: Params) -> Params:
        return self.space.canonical(params)

    def materialise(self, params: Params) -> Any:
        return self.space.materialise(params)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A strategy as it is run here."""

    strategy: str
    expert: bool = True
    """The space's seeds are tried first."""
    vetoes: bool = True
    """The memory model leaves out what it knows not to fit."""


def plan_of(world: World, who: Contender, *, seed: int, n_trials: int, on_cpu: bool, segment: SegmentSettings) -> Plan:
    """A search without an end but its number of trials."""
    info = RunInfo(
        name="bench", command="", started="", budget_s=FOR_EVER_S, objective="images_per_s", strategy=who.strategy,
        space="bench", training="any", seed=seed, backend="simulated", simulated=True, task="detect",
        device="cpu" if on_cpu else "0", n_ranks=world.n_ranks, train_args={"batch": 16, "epochs": 100},
    )  # fmt: skip
    limit = world.memory_limit_bytes if who.vetoes else None
    return Plan(
        run_dir=None,
        info=info,
        space=world.space if who.expert else Unadvised(world.space),
        budget=Budget(FOR_EVER_S, world.clock, started=world.clock()),
        data_for=lambda cache: "bench",
        segment=segment,
        memory=MemoryLimit(per_rank_bytes=limit),
        max_trials=n_trials,
        report_s=0.0,
    )


def study(
    world: World,
    who: Contender,
    *,
    seed: int,
    n_trials: int,
    on_cpu: bool,
    segment: SegmentSettings,
    prove: bool = False,
) -> dict[str, Any]:
    """One study, as a row of the benchmark: after each trial the incumbent's true share of the best, and the clock.

    With `prove`, what is handed out after the finalist stage as well; not on a table of recorded runs, where fresh runs
    would be those that the search has seen.
    """
    best_rate = world.best()[1]
    row: dict[str, Any] = {}

    def searched(session: Session) -> None:
        row.update(controller_s=round(time.process_time() - began, 3), **row_of(session, world, best_rate))
        if prove:
            row["proof"] = _proof(session, world, best_rate)

    plan = plan_of(world, who, seed=seed, n_trials=n_trials, on_cpu=on_cpu, segment=segment)
    began = time.process_time()
    study_in_memory(plan, world, afterwards=searched)
    return row


def _proof(session: Session, world: World, best_rate: float) -> dict[str, Any]:
    """What the finalist stage claims, and what is true of it: as many blocks as it asks for, whatever they cost."""
    assert session.baseline is not None
    n_before, began_s = len(session.ran), session.t_s
    stage = make_stage(session)
    if stage is not None:
        run_blocks(session, stage)
    verdict = verdict_of(session, stage)
    own = world.true_rate(session.baseline.result.params)
    winner = next((f for f in verdict.finalists if f.name == "best"), None)
    given = winner.params if winner else session.baseline.result.params
    return {
        "status": verdict.status,
        "share": round(world.true_rate(given) / best_rate, 5),
        "speedup": world.true_rate(given) / own,
        "claim": winner and [winner.speedup, winner.ci95_lo, winner.ci95_hi],
        "n_runs": len(session.ran) - n_before,
        "took_s": round(session.t_s - began_s, 1),
    }


def row_of(session: Session, world: World, best_rate: float) -> dict[str, Any]:
    """What the incumbents were really worth: chosen by their lowest measured value, after each trial, and by posterior
    mean (search/posterior.py: as the product chooses its finalists), after AT trials.
    """
    assert session.baseline is not None
    first, found = session.baseline.number, incumbents(session)
    share = [round(world.true_rate(i.params) / best_rate, 5) for i in found]
    whole = [i for i, r in enumerate(session.ran) if r.result.role == "trial" or r.number == first]
    believed = {str(k): round(_believed(session, i + 1, world) / best_rate, 5) for k, i in enumerate(whole) if k in AT}
    n_oom = sum(session.ran[i].result.outcome is Outcome.OOM for i in whole)
    believed["end"] = round(_believed(session, len(session.ran), world) / best_rate, 5)
    row = {"share": share, "believed": believed, "at_s": [round(i.at_s, 1) for i in found], "n_oom": n_oom}
    return row | {"stopped": session.stopped_because}


def _believed(session: Session, n: int, world: World) -> float:
    """True rate of the configuration of the best posterior mean, had the search ended after its first n runs."""
    part = copy.copy(session)
    part.ran = session.ran[:n]
    means = fit(part).means
    by_key = {key_of(r.result.params): r.result.params for r in part.ran if r.result.role in ("trial", "baseline")}
    return world.true_rate(by_key[min((k for k in means if k in by_key), key=lambda k: means[k])])
