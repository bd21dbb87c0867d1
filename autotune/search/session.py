"""How does one configuration become a trial that was run, told, journaled and learned from?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from autotune.contract import (
    WARM_ROLES,
    Deadlines,
    Event,
    Guess,
    NotTried,
    Observer,
    Outcome,
    Params,
    PhaseStarted,
    Probe,
    Role,
    RunInfo,
    TrialEnded,
    TrialProgress,
    TrialResult,
    TrialSpec,
    TrialStarted,
    interrupted,
)
from autotune.search import again, racing
from autotune.search.budget import PURPOSE_OF
from autotune.search.incumbent import best_of, noise_frac
from autotune.search.job_time import EpochEnds, with_job
from autotune.search.memory import MemoryModel
from autotune.search.objective import OBJECTIVES
from autotune.search.plan import Live, Plan, RunTrial, Settings
from autotune.search.price import PriceModel
from autotune.search.proposals import Proposals, changes_of, key_of
from autotune.search.ran import Ran, cut_short
from autotune.search.records import records_of
from autotune.search.situation import Proposal
from autotune.search.study import Study

COMPILE_LIMIT_S: Final = 900.0
"""For a trial that compiles: yolo11n took 476 s on two busy cores (ULTRALYTICS 4)."""


class Session:
    """The state of one search.

    Attributes:
        info: run.json as it stands; the baseline adds to it.
        ran: every trial that was started, in order.
        baseline: the trial that stands for the user's own settings, once it has run.
        proposals: what may be tried, once the baseline has run.
        stopped_because: why the loop ended, once it has.
        failed: keys of winners that did not live through their fresh run: nobody is handed such a configuration.
        proposal: the strategy's last answer.
    """

    def __init__(self, plan: Plan, run_trial: RunTrial, observers: Sequence[Observer], study: Study) -> None:
        self.plan = plan
        self.records = records_of(plan.run_dir)
        self.info: RunInfo = plan.info
        self.study = study
        self.model = PriceModel(plan.n_images, plan.images_decoded_per_s)
        self.memory = MemoryModel(plan.memory.per_rank_bytes, on_cpu=plan.info.device == "cpu")
        self.epoch_ends = EpochEnds(plan.info.train_args)
        self.ran: list[Ran] = []
        self.baseline: Ran | None = None
        self.proposals: Proposals | None = None
        self.knobs: tuple[str, ...] = ()
        self.frozen: dict[str, str] = {}
        self.notes: list[str] = list(plan.notes)
        self.not_tried: list[NotTried] = []
        self.failed: set[str] = set()
        self.proposal = Proposal()
        self.stopped_because = ""
        self._run_trial = again.once_more(run_trial, lambda: plan.budget.left_s() - plan.report_s, self.notes.append)
        self._observers = observers

    @property
    def t_s(self) -> float:
        """Seconds since the run began."""
        return self.plan.budget.elapsed_s()

    def emit(self, event: Event) -> None:
        """Journal it and pass it on."""
        self.records.event(event)
        for observer in self._observers:
            observer(event)

    def phase(self, name: str, note: str = "") -> None:
        """A new part of the run begins."""
        self.emit(PhaseStarted(t_s=self.t_s, phase=name, note=note))

    def settings(self, params: Params) -> Settings:
        """Configuration -> settings: the space's, the pinned optimizer, the data of its cache mode, trial-only ones."""
        applied = self.plan.space.materialise(params)
        args = {**applied.train_args, **self.plan.space.pin(self.info.resolved)}
        return Settings(self.trial_args(args), applied.env, applied.patches)

    def trial_args(self, args: dict[str, Any]) -> dict[str, Any]:
        """A job's arguments -> a trial's."""
        return {**args, "data": self.plan.data_for(args.get("cache", False)), **self.plan.trial_args}

    def price_s(self, params: Params, *, warm: bool = False) -> float:
        """Seconds that a trial of this configuration will take; `warm`: in one of the roles that may start so."""
        return self.model.price(params, self.plan.segment, warm=warm).total_s

    def run(
        self,
        number: int,
        role: Role,
        params: Params,
        settings: Settings,
        limit_s: float | None = None,
        probe: Probe | None = None,
        vary: Callable[[TrialSpec], TrialSpec] = lambda spec: spec,
        guess: Guess | None = None,
    ) -> Ran:
        """Start one process and take in its result; the study is not told yet.

        An interrupt is recorded as this trial's outcome and passed on.

        Args:
            number: its trial number.
            role: of the trial.
            params: the configuration it stands for, canonical.
            settings: what it is given.
            limit_s: of its time, a compile included; the run's limit and what is left of the budget hold anyway.
            probe: what part of the step is measured alone, with role `probe`; its segment is short.
            vary: makes the spec that is run from the one that would be.
            guess: what is expected of it, for the journal.
        """
        plan, budget = self.plan, self.plan.budget
        changes = changes_of(params, self.proposals.baseline) if self.proposals else {}
        plain = TrialSpec(
            number=number,
            role=role,
            backend=self.info.backend,
            task=self.info.task,
            params=params,
            changes=changes,
            train_args=settings.train_args,
            env=settings.env,
            patches=settings.patches,
            gpus=self.info.gpus,
            n_ranks=self.info.n_ranks,
            segment=plan.segment,
            deadlines=self._deadlines(params, limit_s),
            seed=self.info.seed,
            probe=probe,
            mem_limit_bytes=plan.memory.of_trial,
        )
        spec = vary(plan.probing(plain) if probe else plain)
        price_s = None if probe else self.price_s(params, warm=role in WARM_ROLES)
        started = TrialStarted(t_s=self.t_s, number=number, role=role, changes=changes, price_s=price_s, guess=guess)
        self.emit(started)
        directory, started_s = self.records.make_place(number), self.t_s
        with budget.spend(PURPOSE_OF.get(role, "trials_lost")) as spending:
            try:
                result = self._run_trial(spec, directory, started_s=started_s, watch=self._watch(number, role))
            except KeyboardInterrupt:
                took_s = self.t_s - started_s
                self._take(interrupted(spec, started_s=started_s, took_s=took_s, error="interrupted"), changes)
                raise
            if role == "trial" and result.outcome.measured:
                spending.purpose = "trials_ok"
        return self._take(cut_short(result, budget.left_s() - plan.report_s), changes)

    def _deadlines(self, params: Params, limit_s: float | None) -> Deadlines:
        """The plan's, within what is left; a compile has more time, but must leave enough of it for the segment."""
        plan, compiles = self.plan, bool(params.get("compile"))
        most_s = max(plan.trial_limit_s, COMPILE_LIMIT_S) if compiles else plan.trial_limit_s
        total_s = min(most_s, limit_s or most_s, max(1.0, plan.budget.left_s() - plan.report_s))
        deadlines = replace(plan.deadlines, total_s=total_s)
        if not compiles:
            return deadlines
        price = self.model.price(params, plan.segment)
        first_step_s = max(total_s - (price.total_s - price.compile_s), total_s / 2)
        return replace(deadlines, first_step_s=first_step_s)

    def tell(self, ran: Ran) -> None:
        """Tell the study what a trial that it numbered was worth."""
        self.study.tell(ran.number, ran.result, ran.value)

    def ask_and_run(
        self,
        role: Role,
        params: Params,
        limit_s: float | None = None,
        probe: Probe | None = None,
        vary: Callable[[TrialSpec], TrialSpec] = lambda spec: spec,
    ) -> Ran:
        """Number, run and tell a configuration that the sampler did not choose (sentinel, finalist, probe)."""
        number, _ = self.study.ask(params, role=role)
        try:
            ran = self.run(number, role, params, self.settings(params), limit_s, probe, vary)
        except KeyboardInterrupt:
            self.tell_interrupted()
            raise
        self.tell(ran)
        return ran

    def tell_interrupted(self) -> None:
        """Tell the study of the trial that the interrupt ended, if one was running."""
        if self.ran and (r := self.ran[-1]).result.outcome is Outcome.INTERRUPTED and self.study.is_running(r.number):
            self.tell(r)

    def _take(self, result: TrialResult, changes: Params) -> Ran:
        """Judge a result by the objective, learn its price, write it down."""
        ran = self.judge(result, changes)
        self.record(ran)
        return ran

    def judge(self, result: TrialResult, changes: Params) -> Ran:
        """Take a result in: its price, its peak of memory, its ends of epochs, its place in the objective."""
        if result.probe in (None, "memory"):
            self.memory.learn(result)
        self.epoch_ends.learn(result)
        if result.role != "probe":
            self.model.learn(result.params, result)
        self.ran.append(self.valued(result, changes))
        return self.ran[-1]

    def valued(self, result: TrialResult, changes: Params) -> Ran:
        """A result's place in the objective, by what is known now."""
        if result.role == "probe":
            return Ran(result, changes, None)
        first = self.baseline.result if self.baseline else None
        result = with_job(result, first, self.model.cold_s(result.params), self.epoch_ends.of(result.params, first))
        worth = OBJECTIVES[self.info.objective](result)
        return Ran(result, changes, worth if result.outcome.measured or result.outcome is Outcome.PRUNED else None)

    def record(self, ran: Ran) -> None:
        """Write a trial down and say that it ended."""
        self.records.result(ran.result)
        self.write_csv()
        self.emit(TrialEnded(t_s=self.t_s, changes=ran.changes, result=ran.result))

    def show(self, ran: Ran) -> None:
        """Tell the observers of an earlier part's trial; the journal has it."""
        ended = TrialEnded(t_s=self.t_s, changes=ran.changes, result=ran.result)
        for observer in self._observers:
            observer(ended)

    def write_csv(self) -> None:
        """trials.csv anew."""
        self.records.table((r.result for r in self.ran), self.knobs)

    def _watch(self, number: int, role: Role) -> Any:
        """Show what a trial measures, and stop a search trial that cannot win."""
        best = self.best().result if role == "trial" and self.baseline and self.info.objective != "energy" else None

        def watch(live: Live) -> str | None:
            took_s = sum(live.steps.step_s)
            rate = sum(live.steps.images) / took_s if took_s else None
            now = TrialProgress(t_s=self.t_s, number=number, phase=live.phase, n_steps=live.n_steps, images_per_s=rate)
            self.emit(now)
            return racing.hopeless(live.steps, best, by_job=self.info.objective == "job_time")

        return watch

    def replace_last_params(self, params: Params) -> None:
        """Give the last trial the configuration that it turned out to be (the baseline, once its values are known)."""
        self.ran[-1] = replace(self.ran[-1], result=replace(self.ran[-1].result, params=params))
        self.records.result(self.ran[-1].result)
        self.write_csv()

    def baseline_values(self) -> list[float]:
        """Objective of every search-time run of the user's own settings: the baseline and its sentinels."""
        if self.baseline is None:
            return []
        repeats = [r for r in self.ran if r.result.role == "sentinel" and r.result.outcome.measured]
        return [r.value for r in (self.baseline, *repeats) if r.value]

    def noise_frac(self) -> float:
        """Run-to-run standard deviation as a share, from the repeats of the baseline when there are three."""
        return noise_frac(self.baseline_values())

    def best(self) -> Ran:
        """The best measured search trial, or the baseline (incumbent.py); none that failed its fresh run."""
        assert self.baseline is not None
        tried = [r for r in self.ran if r.result.role == "trial" and r.result.outcome.measured]
        tried = [r for r in tried if key_of(r.result.params) not in self.failed]
        return best_of(self.baseline, self.baseline_values(), tried)

    def write_info(self, **fields: Any) -> None:
        """Rewrite run.json with what the baseline taught."""
        self.info = replace(self.info, **fields)
        self.records.info(self.info)
