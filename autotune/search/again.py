"""What becomes of a trial whose window is void (a GPU slowed down, a stranger on it)? It is run once more.

The second time it stays as it is: unstable, with what happened in its result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from autotune.contract import TrialDir, TrialResult, TrialSpec
from autotune.search.plan import RunTrial, Watch

ASIDE: Final = "-void"
"""What the folder of the first run is called, after its number."""
MARGIN: Final = 1.5
"""So many times as long as the first run the second may take: a timeout would be worse than a doubtful number."""


def once_more(
    run_trial: RunTrial, left_s: Callable[[], float], say: Callable[[str], object] = lambda note: None
) -> RunTrial:
    """The same run_trial, which runs a trial again when its window is void: same number, same folder.

    Args:
        run_trial: runs one trial.
        left_s: seconds of the budget that trials may still take; without enough of them the first result stays.
        say: told of each that ran again, in a sentence.
    """

    def run(spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None) -> TrialResult:
        first = run_trial(spec, directory, started_s=started_s, watch=watch)
        void = first.meanwhile.voided_by if first.meanwhile else None
        limit_s = min(spec.deadlines.total_s, left_s())
        if void is None or MARGIN * first.took_s > limit_s:
            return first
        if directory.path.exists():  # in memory there is none
            directory.path.rename(directory.path.with_name(f"{directory.path.name}{ASIDE}"))
            directory.path.mkdir()
        again = replace(spec, deadlines=replace(spec.deadlines, total_s=limit_s))
        result = run_trial(again, directory, started_s=started_s + first.took_s, watch=watch)
        say(f"trial {spec.number} was measured again: the first time, {void}")
        return result

    return run
