"""What does each suspect cost, in images/s? From seconds per image in blocks of fresh runs; and how it is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import Any

from autotune.contract import to_dict
from autotune.doctor.suspects import Suspect, Unpriced
from autotune.report import words
from autotune.report.advice import Advice
from autotune.search.verdict import BASELINE, MIN_BLOCKS, compare, pooled_variance


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Images/s that the job loses to one suspect."""

    name: str
    other: str
    """What was run against it."""
    lost: float
    """Below 0: it gains."""
    ci95_lo: float
    ci95_hi: float
    of: float
    """Of so many images/s, without it."""
    n_blocks: int
    note: str = ""

    @property
    def sentence(self) -> str:
        """`38.0 img/s lost (95 % CI 30.0 to 45.0), of 120; workers=2 gets them back`."""
        ci = f"(95 % CI {words.number(self.ci95_lo)} to {words.number(self.ci95_hi)})"
        of = f"of {words.number(self.of)}"
        note = f"; {self.note}" if self.note else ""
        if self.ci95_lo > 0:
            return f"{words.number(self.lost)} img/s lost {ci}, {of}; without it: {self.other}{note}"
        if self.ci95_hi < 0:
            return f"nothing lost: {self.other} would be {words.number(-self.lost)} img/s slower {ci}, {of}{note}"
        return f"no loss found against {self.other}: {words.number(self.lost)} img/s {ci}, {of}{note}"


@dataclass(slots=True)
class Priced:
    """What was found; an interrupt leaves it as it is."""

    advice: Advice | None = None
    loader: dict[int, float] = field(default_factory=dict)
    """Workers -> images/s of the loader alone."""
    prices: list[Price] = field(default_factory=list)
    unpriced: list[Unpriced] = field(default_factory=list)
    interrupted: bool = False

    @property
    def lines(self) -> list[str]:
        """For the screen, after those of the doctor."""
        lines = [f"price    {p.name}: {p.sentence}" for p in self.prices]
        lines += [f"unpriced {u.name}: {u.why}" for u in self.unpriced]
        if self.advice:
            lines += [
                f"limit    {self.advice.says}",
                f"         would lift it: {'; '.join(self.advice.lifts)}",
                f"         {self.advice.resources_say}",
                *(f"         cannot be told: {sentence}" for sentence in self.advice.unknown),
            ]
        return lines

    @property
    def json(self) -> dict[str, Any]:
        """For machines, beside the doctor's `checks`."""
        told = {"prices": self.prices, "not_priced": self.unpriced, "loader_alone": self.loader, "limit": self.advice}
        return {name: to_dict(value) for name, value in told.items()}


def prices_of(blocks: Sequence[Mapping[str, float]], suspects: Sequence[Suspect]) -> list[Price]:
    """Prices from seconds per image, of the job as it is (BASELINE) and of the other run of each suspect, by its name.

    With r = rate of the other run over that of the job as it is, and X the latter's geometric mean: lost = X (r - 1),
    or X (1 - r) where the other run is the worse one. The interval is r's; that of X is left out, as both have it.
    """
    alive = {BASELINE, *(s.name for s in suspects)}
    blocks = [{name: s for name, s in block.items() if name in alive} for block in blocks]
    variance, df = pooled_variance(blocks)
    found = []
    for s in suspects:
        both = [b[BASELINE] for b in blocks if BASELINE in b and s.name in b]
        ratio = compare(blocks, s.name, variance, df, n_compared=len(suspects))
        if ratio is None or ratio.ci95_lo is None or ratio.ci95_hi is None or len(both) < MIN_BLOCKS:
            continue
        rate, sign = 1 / geometric_mean(both), -1 if s.cold else 1
        lost, *ends = (sign * rate * (r - 1) for r in (ratio.speedup, ratio.ci95_lo, ratio.ci95_hi))
        found.append(
            Price(
                name=s.name,
                other=s.other,
                lost=lost,
                ci95_lo=min(ends),
                ci95_hi=max(ends),
                of=rate if s.cold else rate * ratio.speedup,
                n_blocks=len(both),
                note=s.note,
            )
        )
    return found
