"""Do the best configurations hold in fresh processes, block by block, against the user's own settings?

The stage does what contest.py decides, as far as the time goes. How many candidates it begins with is a question of
time: three blocks of everything must fit. At the end of a five-minute search on a CPU that is one or two of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from autotune.contract import FinalistName, Outcome, Params
from autotune.search import posterior
from autotune.search.contest import PROJECTION, Contest, Entry
from autotune.search.objective import BETTER
from autotune.search.proposals import NOT_RECORDED, key_of, yolo_projection
from autotune.search.ran import Ran
from autotune.search.session import Session
from autotune.search.verdict import BASELINE, MIN_BLOCKS, Judgement

RESERVE_MARGIN: Final = 1.1
"""Run times vary by about 10 % on a shared machine."""
MOST_OF_LEFT: Final = 0.6
"""Of what the baseline left, for confirming one candidate: a small budget must search too."""
MOST_FOR_SEVERAL: Final = 0.35
"""Of the same, for more candidates than one: beyond that, searching finds more than choosing."""


@dataclass(slots=True)
class Stage:
    """What the finalist stage has done so far; an interrupt leaves it as it is.

    Attributes:
        baseline: the user's own settings.
        candidates: name in the contest (its trial's number) -> the search trial.
        projections: name of a candidate -> the part of it that plain YOLO arguments carry, where that is less.
        contest: decides.
        own_is_best: the search saw nothing beyond the noise: without a proven gain, the user's settings win.
        keep_s: seconds that what comes after needs: no block that only narrows the claim takes them.
        runs: of every block, by name.
    """

    baseline: Params
    candidates: dict[str, Ran]
    projections: dict[str, Params]
    contest: Contest
    own_is_best: bool = False
    keep_s: float = 0.0
    replaced: bool = False
    """All candidates failed, and the runner-up stands here."""
    runs: list[dict[str, Ran]] = field(default_factory=list)
    finished: bool = False

    def params_of(self, name: str) -> Params:
        """What runs under a name of the contest."""
        if name == BASELINE:
            return self.baseline
        if name == PROJECTION:
            assert self.contest.leader is not None
            return self.projections[self.contest.leader]
        return self.candidates[name].result.params

    def judgement(self) -> Judgement:
        """The claim by what has been measured."""
        return self.contest.judgement(interrupted=not self.finished)

    @property
    def winner(self) -> Ran | None:
        """The search trial that won, or would win now; None: the user's own settings, or every candidate failed."""
        leader = self.contest.leader
        if leader is None:
            return None
        status = self.judgement().status
        # Inside the noise the simplest wins, and that is the user's own: nobody is handed a change without a gain.
        return None if status == "no_gain" or (self.own_is_best and status != "gain") else self.candidates[leader]

    @property
    def names(self) -> dict[FinalistName, str]:
        """Name in the contract -> name in the contest; the winner first, then the others, the fastest first."""
        winner, ratios = self.winner, self.judgement().ratios
        named: dict[FinalistName, str] = {"baseline": BASELINE}
        best = None if winner is None else str(winner.number)
        if best is not None:
            named["best"] = best
        others = [n for n in self.candidates if n != best and n not in self.contest.failed]
        others.sort(key=lambda n: -ratios[n].speedup if n in ratios else 0.0)
        free: tuple[FinalistName, ...] = ("second", "third")
        named |= dict(zip(free, others, strict=False))
        if best in self.projections and PROJECTION not in self.contest.failed:
            named["best_yaml"] = PROJECTION
        return named

    @property
    def configs(self) -> dict[FinalistName, Params]:
        """Name in the contract -> configuration."""
        return {name: self.params_of(inner) for name, inner in self.names.items()}


def candidates_of(session: Session) -> list[Params]:
    """What make_stage would compare now, the likeliest first, and then what plain YOLO carries of each."""
    chosen = posterior.candidates(session)
    projections = [p for ran in chosen if (p := projection_of(session, ran)[0]) is not None]
    return [ran.result.params for ran in chosen] + projections


def make_stage(session: Session, keep_s: float = 0.0) -> Stage | None:
    """The stage that this search needs, with as many candidates as the time left pays three blocks for.

    Returns:
        None when nothing that was tried may be faster than the user's settings, or when nothing beat them in the
        search and there is no time to look again.
    """
    own_is_best = not session.best().changes
    chosen = posterior.candidates(session)[: 2 if own_is_best else posterior.MAX_CANDIDATES]
    left_s = session.plan.budget.left_s() - session.plan.report_s
    fitting = [n for n in range(1, len(chosen) + 1) if _cost_s(session, chosen[:n]) <= left_s - keep_s * (n > 1)]
    if not chosen or (own_is_best and not fitting):
        return None
    return _stage(session, chosen[: max(fitting, default=1)], own_is_best, keep_s)


def _stage(session: Session, chosen: Sequence[Ran], own_is_best: bool, keep_s: float) -> Stage:
    assert session.proposals is not None
    candidates = {str(ran.number): ran for ran in chosen}
    projections, notes = {}, dict[str, None]()
    for name, ran in candidates.items():
        projection, note = projection_of(session, ran)
        if projection is not None:
            projections[name] = projection
        elif note:
            notes[note] = None
    session.notes += notes
    entries = {
        name: Entry(
            n_changes=len(ran.changes),
            peak_mem_bytes=max(ran.result.peak_mem_bytes, default=float("inf")),
            projects=name in projections,
        )
        for name, ran in candidates.items()
    }
    contest = Contest(entries, [session.baseline_values()], BETTER[session.info.objective])
    return Stage(session.proposals.baseline, candidates, projections, contest, own_is_best, keep_s)


def projection_of(session: Session, ran: Ran) -> tuple[Params | None, str]:
    """The part of a configuration that best.yaml carries, where it must run by itself; else None, and maybe why not."""
    assert session.proposals is not None
    space, baseline, params = session.plan.space, session.proposals.baseline, ran.result.params
    projected = yolo_projection(params, baseline, space.canonical, space.materialise)
    if key_of(projected) == key_of(params):
        return None, ""
    if session.info.device == "cpu" and session.info.n_ranks > 1:
        return None, "plain YOLO trains in one process on a CPU: best.yaml alone was not measured"
    if key_of(projected) == key_of(baseline):
        return None, "the winner consists of settings that YOLO has no arguments for: best.yaml alone is the baseline"
    if not session.proposals.exists(projected):
        return None, f"what plain YOLO carries of the winner is {NOT_RECORDED}: best.yaml alone was not measured"
    return projected, ""


def run_blocks(session: Session, stage: Stage) -> None:
    """Run the blocks that the contest asks for, each in shuffled order, as far as the time goes.

    A candidate that fails is left out. When none is left, the runner-up of the search takes their place, once.
    """
    rng = random.Random(session.info.seed)
    while order := _affordable(session, stage):
        rng.shuffle(order)
        winner, values, block = stage.contest.winner, stage.contest.begin(), dict[str, Ran]()
        stage.runs.append(block)
        for name in order:
            ran = block[name] = session.ask_and_run("finalist", stage.params_of(name))
            if ran.result.outcome is Outcome.INTERRUPTED:
                break  # the budget is over
            if ran.value and ran.result.outcome.measured:
                values[name] = ran.value
            elif name != BASELINE and ran.failed:
                _leave_out(session, stage, name, ran)
                if name == winner or not stage.contest.alive:
                    break  # the others of this block are beside nothing
        for name in stage.contest.end():
            session.phase("finalists", f"trial {name} is slower than the leader, and leaves")
        if not stage.contest.alive and not _replace(session, stage):
            return
    stage.contest.settle()
    stage.finished = True


def _leave_out(session: Session, stage: Stage, name: str, ran: Ran) -> None:
    """It failed in a fresh run: nobody is handed such a configuration."""
    why = f"failed when it ran again ({ran.result.outcome}: {ran.result.error})"
    who = "what plain YOLO can take of the best" if name == PROJECTION else f"trial {name}, one of the best found,"
    if name != PROJECTION:
        session.failed.add(key_of(ran.result.params))
    stage.contest.fail(name)
    others = [n for n in stage.contest.alive if n != BASELINE]
    heir = f"; trial {others[0]} runs on" if name != PROJECTION and len(others) == 1 else ""
    note = f"{who} {why}: left out{heir}"
    session.notes.append(note)
    session.phase("finalists", note)


def _replace(session: Session, stage: Stage) -> bool:
    """Every candidate failed: begin anew with the runner-up; False when there is none, or it was done before."""
    left = posterior.candidates(session)
    if stage.replaced or not left:
        return False
    new = _stage(session, left[:1], own_is_best=False, keep_s=stage.keep_s)
    stage.candidates, stage.projections, stage.contest = new.candidates, new.projections, new.contest
    stage.replaced = True
    stage.runs.clear()
    note = f"the runner-up, trial {left[0].number}, stands in the place of the best found"
    session.notes.append(note)
    session.phase("finalists", note)
    return True


def _affordable(session: Session, stage: Stage) -> list[str]:
    """The next block, as far as the time left can run it: without the projection, or not at all."""
    contest = stage.contest
    left_s = session.plan.budget.left_s() - session.plan.report_s
    order = contest.ask()
    if order and contest.winner is None and _block_s(session, stage, order) > left_s:
        contest.settle()
        order = contest.ask()
    if not contest.incomplete:
        left_s -= stage.keep_s
    if _block_s(session, stage, order) <= left_s:
        return order
    pair = [name for name in order if name != PROJECTION]
    if PROJECTION in order and contest.confirmed:  # what is missing is best.yaml's, for which the time is too short
        left_s -= stage.keep_s
        pair = pair if contest.wide else []
    return pair if _block_s(session, stage, pair) <= left_s else []


def _block_s(session: Session, stage: Stage, names: Sequence[str]) -> float:
    return sum(session.price_s(stage.params_of(name)) for name in names)


def reserve_s(session: Session, left_after_baseline_s: float) -> float:
    """Seconds to keep back for the finalists by what is known so far, and for the report.

    One candidate may cost MOST_OF_LEFT of what the baseline left: a small budget must search too, and then confirms
    with fewer blocks, or says that it could not. More candidates are reserved for while all blocks together cost no
    more than MOST_FOR_SEVERAL of it.
    """
    chosen = posterior.candidates(session)
    # Until something was tried, three configurations at the baseline's price are a guess of what will have to run.
    costs_s = [_cost_s(session, chosen[:n]) for n in range(1, len(chosen) + 1)] or [
        RESERVE_MARGIN * MIN_BLOCKS * 3 * session.price_s(session.best().result.params)
    ]
    one_s = min(costs_s[0], MOST_OF_LEFT * left_after_baseline_s)
    several_s = [cost_s for cost_s in costs_s if cost_s <= MOST_FOR_SEVERAL * left_after_baseline_s]
    return max(one_s, *several_s) + session.plan.report_s if several_s else one_s + session.plan.report_s


def _cost_s(session: Session, chosen: Sequence[Ran]) -> float:
    """Seconds of three blocks of the baseline and these candidates, and of the winner's projection.

    With one candidate the projection runs in the same blocks; with several it waits for the winner, and then baseline
    and winner run beside it again.
    """
    assert session.proposals is not None
    own_s = session.price_s(session.proposals.baseline)
    prices_s = [session.price_s(ran.result.params) for ran in chosen]
    projections = [p for ran in chosen if (p := projection_of(session, ran)[0]) is not None]
    block_s = own_s + sum(prices_s)
    if projections:
        block_s += max(map(session.price_s, projections)) + (own_s + max(prices_s) if len(chosen) > 1 else 0.0)
    return RESERVE_MARGIN * MIN_BLOCKS * block_s
