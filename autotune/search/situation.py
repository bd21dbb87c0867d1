"""What does a strategy get to see, and what may it answer?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from autotune.contract import Guess, NotTried, Params
from autotune.search.price import Price
from autotune.search.proposals import Proposals
from autotune.search.ran import Ran

if TYPE_CHECKING:
    from autotune.search.session import Session

LARGE_MISFIT: Final = 0.06
"""Where a model is that far off, the sampler has every fourth trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A search between two trials.

    Attributes:
        proposals: the configurations there are, and what is known of each.
        ran: every trial so far.
        baseline: the one that stands for the user's own settings.
        price: of a trial of one configuration.
        cold: the same, what only a first run pays (compile, cache) included, as the user's job will.
        why_not: why one need not be tried (memory.MemoryModel.why_not); None: it may.
        limit_bytes: memory of one rank; None: unknown.
        objective: key of OBJECTIVES.
        n_ranks: of the job.
        on_cpu: the job has no GPU.
        seed: of the search.
    """

    proposals: Proposals
    ran: Sequence[Ran]
    baseline: Ran
    price: Callable[[Params], Price]
    cold: Callable[[Params], Price]
    why_not: Callable[[Params], str | None] = field(default=lambda params: None)
    limit_bytes: int | None = None
    objective: str = "job_time"
    n_ranks: int = 1
    on_cpu: bool = False
    seed: int = 0

    @property
    def n_trials(self) -> int:
        """Search trials so far."""
        return sum(r.result.role == "trial" for r in self.ran)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An answer.

    Attributes:
        params: what to try; None: the sampler chooses.
        fixed: what the sampler may not choose.
        gain_frac: by how much the best of what is left may be expected to improve the objective, as a share of it;
            None: no opinion.
        misfit_frac: how far the model that says so has been from what was measured.
        doubts: what the user is told of that model, should this be its last answer.
        inert: family of settings that cannot matter now -> why, in words.
        guess: what the model expects of any configuration; None: there is no model.
        oom: how probable the model holds it that a configuration runs out of memory; None: there is no model.
        too_large: promises more than anything else, and is not tried for its memory.
    """

    params: Params | None = None
    fixed: Params = field(default_factory=dict)
    gain_frac: float | None = None
    misfit_frac: float = 0.0
    doubts: tuple[str, ...] = ()
    inert: dict[str, str] = field(default_factory=dict)
    guess: Callable[[Params], Guess] | None = None
    oom: Callable[[Params], float] | None = None
    too_large: NotTried | None = None

    @property
    def asked(self) -> Params | None:
        """What Study.ask is given: all of it, a part that the sampler completes, or nothing."""
        return self.params if self.params is not None else self.fixed or None


def situation_of(session: Session) -> Situation:
    """Where a search stands.

    Raises:
        AssertionError: the baseline has not run.
    """
    assert session.proposals is not None
    assert session.baseline is not None

    def price(params: Params) -> Price:
        return session.model.price(params, session.plan.segment, warm=True)

    def cold(params: Params) -> Price:
        known, now = session.model.cold_s(params), price(params)
        return replace(
            now, compile_s=known.get("compile_s", now.compile_s), cache_s=known.get("cache_build_s", now.cache_s)
        )

    return Situation(
        proposals=session.proposals,
        ran=session.ran,
        baseline=session.baseline,
        price=price,
        cold=cold,
        why_not=session.memory.why_not,
        limit_bytes=session.memory.limit_bytes,
        objective=session.info.objective,
        n_ranks=session.info.n_ranks,
        on_cpu=session.info.device == "cpu",
        seed=session.info.seed,
    )
