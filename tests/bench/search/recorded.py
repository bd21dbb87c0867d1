"""A recorded table, or run, as a machine that a study in memory can search; what is true there says estimated.py.

World = `RecordedWorld(recording, seed, estimate(recording))`: the trainer (`search.plan.RunTrial`) and clock at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from estimated import Estimate

from autotune.contract import Params, TrialDir, TrialResult, TrialSpec, Value
from autotune.recording import Recording
from autotune.replay import Replay
from autotune.replay_question import RecordedSpace, space_of
from autotune.search.plan import Watch
from autotune.search.proposals import key_of


@dataclass
class RecordedWorld:
    """One study's view of a recording.

    Args:
        recording: the answers.
        seed: draws in which order a configuration's runs answer.
        truth: what each configuration is worth.
    """

    recording: Recording
    seed: int
    truth: Estimate
    space: RecordedSpace = field(init=False)
    """What the search is given as its space."""
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        recording = self.recording
        self.space = space_of(recording)
        first = recording.runs_of(recording.baseline)[0].result
        prepared = self.space.prepare(first.effective, recording.n_images)
        self.domain: dict[str, tuple[Value, ...]] = dict(prepared.domain)
        self.baseline: Params = dict(prepared.baseline)
        self.seeds: tuple[Params, ...] = prepared.seeds
        self.n_ranks = recording.n_ranks
        self._now_s = 0.0
        self._answer = Replay(recording, self._charge, self.seed)

    def _charge(self, seconds: float) -> None:
        self._now_s += seconds

    def clock(self) -> float:
        """Seconds that the trials took so far."""
        return self._now_s

    def canonical(self, params: Params) -> Params:
        """The one spelling of a configuration."""
        return self.space.canonical(params)

    def true_rate(self, params: Params) -> float | None:
        """Images/s, as estimated from all runs; None: it fails, or was not recorded."""
        return self.truth.images_per_s.get(key_of(params))

    def best(self) -> tuple[Params, float]:
        """The configuration with the highest true rate, and that."""
        by_key = {key_of(params): params for params in self.recording.configs}
        key, rate = max(self.truth.images_per_s.items(), key=lambda found: found[1])
        return by_key[key], rate

    def __call__(
        self, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None
    ) -> TrialResult:
        """One recorded run of the configuration."""
        return self._answer(spec, directory, started_s=started_s, watch=watch)
