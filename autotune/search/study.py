"""How does Optuna hear what happened? Storage, ask, tell, importance; only this file and samplers.py speak Optuna."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState

from autotune.contract import Outcome, Params, Role, TrialResult, Value
from autotune.errors import FREE_SOME, MachineError
from autotune.search.samplers import SAMPLERS
from autotune.search.strategies import STRATEGIES

STUDY_NAME: Final = "autotune"
FEASIBLE: Final = "feasible"
"""The one constraint key, on every told trial: samplers compare constraints by position, so there must be no second."""
INFEASIBLE: Final = frozenset({Outcome.OOM, Outcome.TIMEOUT, Outcome.INVALID, Outcome.MISMATCH})
FORGOTTEN: Final = frozenset({Outcome.CRASH, Outcome.INTERRUPTED})
MIN_FOR_IMPORTANCE: Final = 5
TOP_SHARE: Final = 0.25
"""Importance for being among the best quarter: Optuna's tenth would be two of twenty trials (SEARCH 5.7)."""
STORAGE_ERRORS: Final = (StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)
log = logging.getLogger(__name__)


@contextlib.contextmanager
def writing_study(path: Path | None) -> Iterator[None]:
    """What SQLite says of a full disk, or of a file that somebody else holds, becomes MachineError."""
    try:
        yield
    except STORAGE_ERRORS as e:
        cause = e.__cause__ or e
        why = str(getattr(cause, "orig", cause)).splitlines()[0]
        raise MachineError(f"cannot write {path}: {why}", FREE_SOME) from e


class Study:
    """One Optuna study in one SQLite file; every trial of ours, the repeated ones too, is a trial of it.

    Args:
        path: SQLite file, made when missing; an earlier part of the same search is taken over. None: memory only.
        objective: name of the objective; it becomes the metric name.
        strategy: key of STRATEGIES.
        seed: of the sampler.
        command: the command line, kept as a study attribute.

    Attributes:
        domain: knob -> values to choose from. Set once, before the first ask that suggests: Optuna forbids a
            choice list that changes, and ours is only known after the baseline has run.
    """

    def __init__(self, path: Path | None, *, objective: str, strategy: str, seed: int, command: str = "") -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = optuna.storages.InMemoryStorage() if path is None else _file(path)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=STUDY_NAME,
            direction="minimize",
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        trials = self._study.get_trials(deepcopy=False)
        # A resumed search must not draw its first random configurations again.
        sampler = STRATEGIES[strategy].sampler
        self._study.sampler = SAMPLERS[sampler](seed + len(trials))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # set_metric_names has been experimental since 3.2
            self._study.set_metric_names([objective])
        if not trials:
            self._study.set_user_attr("command", command)
            self._study.set_user_attr("objective", objective)
        self._imputes = sampler == "gp"
        self._running: dict[int, Trial] = {}
        self._outside: set[int] = set()
        self._worst: float | None = None
        self.domain: dict[str, tuple[Value, ...]] = {}
        self._n_asked = len(trials)
        self._take_over(trials)

    def _take_over(self, trials: list[FrozenTrial]) -> None:
        """Go on where a dead search stopped: its RUNNING trials can be told, its WAITING ones are nobody's."""
        values = [t.value for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
        self._worst = max(values, default=None)
        for t in trials:
            if t.state is TrialState.RUNNING:
                self._running[t.number] = Trial(self._study, t._trial_id)
                if not t.params:
                    self._outside.add(t.number)
        for _ in (t for t in trials if t.state is TrialState.WAITING):
            self._study.tell(self._study.ask(), state=TrialState.FAIL)  # or the next ask would be given it

    def is_running(self, number: int) -> bool:
        """True while the trial is not told."""
        return number in self._running

    @property
    def next_number(self) -> int:
        """The number that the next ask will give."""
        return self._n_asked

    def ask(self, params: Params | None = None, *, role: Role = "trial") -> tuple[int, Params]:
        """Start a trial.

        Args:
            params: what it must be; knobs not in the domain are left out, and so are values that canonical spelling
                made None because they are inert here: the sampler fills those in. None lets the sampler choose all.
            role: stored with it.

        Returns:
            Trial number and knob -> value over the domain. Params that the domain does not hold (a baseline too
            large for it) come back as they are: such a trial is kept, and never shown to the sampler.
        """
        fixed: Params = {}
        for name, value in (params or {}).items():
            if name in self.domain and not (value is None and not _holds(self.domain[name], value)):
                fixed[name] = value
        outside = any(not _holds(self.domain[name], value) for name, value in fixed.items())
        if params is not None and not outside:
            self._study.enqueue_trial(fixed)
        distributions = {} if outside else {n: CategoricalDistribution(v) for n, v in self.domain.items()}
        trial = self._study.ask(distributions)  # type: ignore[arg-type]
        trial.set_user_attr("role", role)
        self._n_asked = trial.number + 1
        self._running[trial.number] = trial
        if outside:
            self._outside.add(trial.number)
            return trial.number, fixed
        return trial.number, dict(trial.params)

    def tell(
        self, number: int, result: TrialResult, value: float | None, *, duplicate_of: int | None = None
    ) -> TrialState:
        """End a trial as DESIGN 4 says; `gp` cannot see PRUNED trials and gets imputed COMPLETE ones instead.

        Args:
            number: from ask.
            result: what happened (for a duplicate: to the trial that was really run).
            value: of the objective; None when there is none.
            duplicate_of: number of the trial that measured this configuration before.
        """
        trial = self._running.pop(number)
        ci = [result.ci95_lo, result.ci95_hi]
        folder = f"trials/{(number if duplicate_of is None else duplicate_of):04d}"
        attrs = {"outcome": result.outcome.value, "images_per_s": result.images_per_s, "ci95": ci, "folder": folder}
        for name, attr in attrs.items():
            trial.set_user_attr(name, attr)
        if result.error:
            trial.set_user_attr("error", result.error)
        if duplicate_of is not None:
            trial.set_user_attr("duplicate_of", duplicate_of)
        value = value if value is not None and math.isfinite(value) else None

        if number in self._outside or result.outcome in FORGOTTEN or result.role == "probe":
            return self._end(trial, TrialState.FAIL)
        feasible = result.outcome not in INFEASIBLE
        trial.set_constraint(FEASIBLE, -1.0 if feasible else 1.0)
        if result.outcome.measured:
            if value is None:
                return self._end(trial, TrialState.FAIL)
            self._worst = value if self._worst is None else max(self._worst, value)
            return self._end(trial, TrialState.COMPLETE, value)
        if self._imputes:
            if self._worst is None:
                return self._end(trial, TrialState.FAIL)
            if feasible and value is not None:
                return self._end(trial, TrialState.COMPLETE, value)  # pruned: its own value, not made up
            trial.set_user_attr("imputed", True)
            return self._end(trial, TrialState.COMPLETE, self._worst)
        if feasible and value is not None:
            trial.report(value, step=result.n_steps)  # a PRUNED trial's value is the last one reported
        return self._end(trial, TrialState.PRUNED)

    def skip(self, number: int, reason: str, *, feasible: bool = True) -> None:
        """End a trial that was not started; one that is known not to be feasible is told as if it had failed."""
        trial = self._running.pop(number)
        trial.set_user_attr("skipped", reason)
        if feasible or number in self._outside or (self._imputes and self._worst is None):
            self._end(trial, TrialState.FAIL)
            return
        trial.set_constraint(FEASIBLE, 1.0)
        trial.set_user_attr("imputed", self._imputes)
        self._end(
            trial, TrialState.COMPLETE if self._imputes else TrialState.PRUNED, self._worst if self._imputes else None
        )

    def close(self) -> None:
        """Fail what an interrupt left open, so that no zombie repels the sampler, and let go of the file.

        Where that cannot be written the search has ended because of it, and a resumed one mends the study.
        """
        try:
            for number in list(self._running):
                self.skip(number, "interrupted")
        except STORAGE_ERRORS as e:
            log.info("the study could not be closed: %s", e)
        finally:
            self._storage.remove_session()
            if isinstance(self._storage, optuna.storages.RDBStorage):
                self._storage.engine.dispose()

    def importance(self) -> tuple[dict[str, float], str, int]:
        """PED-ANOVA over feasible, really measured, distinct configurations (SEARCH 5.7).

        Trials that racing stopped count with the value they had: without the slow ones, the knobs that make a
        configuration slow would look harmless.

        Returns:
            Knob -> share of the variance (sums to 1, largest first; empty when there are too few trials), a note
            for the reader, and the number of trials it rests on.
        """
        trials = [t for t in self._study.get_trials(deepcopy=False) if _counts_for_importance(t)]
        n_varied = sum(len({repr(t.params[n]) for t in trials if n in t.params}) > 1 for n in self.domain)
        if len(trials) < MIN_FOR_IMPORTANCE:
            return {}, f"{len(trials)} measured configurations are too few (at least {MIN_FOR_IMPORTANCE})", len(trials)
        if n_varied < 2:
            return {}, "fewer than two knobs were varied", len(trials)
        copy = optuna.create_study(direction="minimize")
        for t in trials:  # PED-ANOVA reads COMPLETE trials only
            copy.add_trial(optuna.create_trial(params=t.params, distributions=t.distributions, value=t.value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few trials: our note says it
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TOP_SHARE)
            shares = optuna.importance.get_param_importances(copy, evaluator=evaluator)
        total = sum(shares.values())
        if not math.isfinite(total) or total <= 0:
            return {}, "no knob stands out of the noise", len(trials)
        return {n: s / total for n, s in shares.items()}, "", len(trials)

    def _end(self, trial: Trial, state: TrialState, value: float | None = None) -> TrialState:
        self._study.tell(trial, value, state=state)
        return state


def _file(path: Path) -> optuna.storages.RDBStorage:
    # RDBStorage puts its address through str.format, so a brace in a folder name has to be doubled.
    storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}".replace("{", "{{").replace("}", "}}"))
    # Optuna commits some ten times a trial. Waiting for the disk each time costs a busy one half a second a trial,
    # and what a power cut could lose stands in result.json too.
    sqlalchemy.event.listen(storage.engine, "connect", _do_not_wait_for_the_disk)
    storage.engine.dispose()
    return storage


def _do_not_wait_for_the_disk(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def _holds(choices: tuple[Value, ...], value: Value) -> bool:
    """Membership that keeps True and 1 apart."""
    return any(type(c) is type(value) and c == value for c in choices)


def _counts_for_importance(trial: FrozenTrial) -> bool:
    attrs = trial.user_attrs
    return (
        trial.value is not None
        and attrs.get("outcome") in (Outcome.OK.value, Outcome.PRUNED.value)
        and attrs.get("role") in ("trial", "baseline")
        and not attrs.get("imputed")
        and "duplicate_of" not in attrs
    )
