"""What does a search leave behind? All that it writes goes through here: into its folder, or nowhere at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from autotune.contract import Event, RunDir, RunInfo, Summary, TrialDir, TrialResult, write_json
from autotune.search import journal

NOWHERE: Final = RunDir(Path(os.devnull))
"""No file of it exists, and none can be made."""


class Records(Protocol):
    """Keeps what a search has to say."""

    @property
    def study(self) -> Path | None:
        """Optuna's file; None: its memory."""

    def begin(self) -> None:
        """The search begins."""

    def place(self, number: int) -> TrialDir:
        """Where this trial's process works, whether it is there yet or not."""

    def make_place(self, number: int) -> TrialDir:
        """The same, made when missing."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def result(self, result: TrialResult) -> None:
        """How a trial ended, or is seen now."""

    def table(self, results: Iterable[TrialResult], knobs: Sequence[str]) -> None:
        """All trials so far."""

    def info(self, info: RunInfo) -> None:
        """The question, with what the baseline taught."""

    def summary(self, summary: Summary) -> None:
        """What was concluded."""


@dataclass(frozen=True, slots=True)
class InFolder:
    """Writes a run folder."""

    run_dir: RunDir

    @property
    def study(self) -> Path:
        """study.db."""
        return self.run_dir.study

    def begin(self) -> None:
        """The folder of trials is there from now on."""
        self.run_dir.trials.mkdir(parents=True, exist_ok=True)

    def place(self, number: int) -> TrialDir:
        """The trial's folder."""
        return self.run_dir.trial(number)

    def make_place(self, number: int) -> TrialDir:
        """The trial's folder, made."""
        directory = self.place(number)
        directory.path.mkdir(parents=True, exist_ok=True)
        return directory

    def event(self, event: Event) -> None:
        """One line of events.jsonl; live progress leaves none."""
        journal.emit(self.run_dir, (), event)

    def result(self, result: TrialResult) -> None:
        """result.json."""
        write_json(self.place(result.number).result, result)

    def table(self, results: Iterable[TrialResult], knobs: Sequence[str]) -> None:
        """trials.csv anew."""
        journal.write_trials_csv(self.run_dir, results, knobs)

    def info(self, info: RunInfo) -> None:
        """run.json."""
        write_json(self.run_dir.info, info)

    def summary(self, summary: Summary) -> None:
        """summary.json."""
        write_json(self.run_dir.summary, summary)


class InMemory:
    """Writes nothing: the session itself has all of it."""

    study = None

    def begin(self) -> None:
        """Nothing to make."""

    def place(self, number: int) -> TrialDir:
        """A folder that cannot be: what would write into it fails at once."""
        return NOWHERE.trial(number)

    make_place = place

    def event(self, event: Event) -> None:
        """Not kept."""

    def result(self, result: TrialResult) -> None:
        """Not kept."""

    def table(self, results: Iterable[TrialResult], knobs: Sequence[str]) -> None:
        """Not kept."""

    def info(self, info: RunInfo) -> None:
        """Not kept."""

    def summary(self, summary: Summary) -> None:
        """Not kept."""


def records_of(run_dir: RunDir | None) -> Records:
    """The ones of a run that has this folder, or none."""
    return InMemory() if run_dir is None else InFolder(run_dir)
