"""When is another trial not worth its time?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from autotune.search.situation import Proposal

GAIN_FRAC: Final = 0.006
"""Less than this expected of the best that is left is too little (SEARCH 5.6)."""
TRUSTED_MISFIT_FRAC: Final = 0.03
"""A model that is further off than this has to expect proportionally less before it is believed (SEARCH 2.4, 9)."""
IN_A_ROW: Final = 2
MIN_TRIALS: Final = 12
MIN_TRIALS_PAID: Final = 4
"""Before a search may end because the job is too short for it."""


@dataclass(slots=True)
class Stopping:
    """Counts what proposals say; of strategies without a model it knows nothing, and they use up the budget."""

    n_small: int = 0
    n_unpaid: int = 0
    n_seen: int = -1
    """Search trials when the last opinion was counted: without another trial it is the same opinion again."""

    def why(self, proposal: Proposal, *, n_trials: int, price_s: float, job_s: float | None) -> str | None:
        """Why the search should end, in words, with what it would cost to go on; None: it should not.

        Args:
            proposal: the strategy's answer.
            n_trials: search trials so far.
            price_s: of an ordinary trial.
            job_s: seconds of the user's whole job with the best settings so far; None: the objective is no time.
        """
        if proposal.gain_frac is None:
            return None
        gain = proposal.gain_frac
        small = GAIN_FRAC * min(1.0, TRUSTED_MISFIT_FRAC / max(proposal.misfit_frac, 1e-9))
        new, self.n_seen = int(n_trials != self.n_seen), n_trials
        self.n_small = self.n_small + new if gain < small else 0
        self.n_unpaid = self.n_unpaid + new if job_s is not None and gain * job_s < price_s else 0
        cost = f"to go on costs about {price_s:.0f} s a trial"
        if self.n_small >= IN_A_ROW and n_trials >= MIN_TRIALS:
            return (
                f"no more than {max(gain, 0.0):.2%} is expected of another trial, {IN_A_ROW} times in a row "
                f"(the model is {proposal.misfit_frac:.0%} off); {cost}"
            )
        if self.n_unpaid >= IN_A_ROW and n_trials >= MIN_TRIALS_PAID and job_s is not None:
            return (
                f"another trial may be expected to save {gain * job_s:.1f} s of your job of {job_s:.0f} s, "
                f"less than it takes; {cost}"
            )
        return None
