"""Which finalists run in the next block, which one leaves, and which one wins? Values in, names out.

Candidates run beside the user's own settings in blocks. From the second block on, a candidate leaves that is
significantly slower than the leader, or far behind it: Student t on the pooled variance, Holm's correction over the
candidates (A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979). After
three blocks, or when one alone is left, the winner is chosen: the simplest of those that are no more than half a
standard error slower than the leader (after Breiman et al., Classification and Regression Trees, 1984, whose rule
allows one). Then its projection onto YOLO's own keys joins, and blocks go on while the interval is wide.

Whoever leaves or wins by these rules, the claim is honest, because verdict.py's intervals hold for all candidates at
once. What a wrong choice costs is speed: tests/bench/verdict_aa.py has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Final

from autotune.search.verdict import BASELINE, MIN_BLOCKS, Judgement, judge, pooled_variance

PROJECTION: Final = "best_yaml"
ELIMINATE_FROM: Final = 2
"""Blocks before anybody leaves."""
FAR_FRAC: Final = 0.10
"""A candidate so much slower than the leader leaves without a test: more runs would only prove it."""
ALPHA: Final = 0.05
MAX_BLOCKS: Final = 8
"""A run varies by 1.5 to 5 % (results/LOG.md): the half-width shrinks with the square root, and who wants better than
eight blocks give has to search longer, not measure longer."""
WIDE_FRAC: Final = 0.02
"""A confidence interval whose half-width is a larger share of the ratio asks for a block more."""


TIED_SE: Final = 0.5
"""Standard errors behind the leader that are called a tie. With one, what is handed out was within 2 % of the
best in 73 % of simulated studies, with a half in 76 %, with none in 77 % (results/LOG.md, 2026-12-01)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What decides between candidates that the clock cannot tell apart."""

    n_changes: int
    peak_mem_bytes: float = inf
    """inf: not measured."""
    projects: bool = False
    """Plain YOLO arguments cannot carry all of it, so that best.yaml has to be measured by itself."""


class Contest:
    """The state of the blocks.

    Attributes:
        entries: candidates, the likeliest winner first.
        blocks: name -> objective (lower is better), of the runs that gave one; the last block may be running.
        alive: who may still win.
        winner: once it is chosen.
        failed: who did not live through a fresh run.
        better: what less of the objective is, in words (objective.BETTER).
    """

    def __init__(
        self, entries: Mapping[str, Entry], extra: Sequence[Sequence[float]] = (), better: str = "faster"
    ) -> None:
        self.entries = dict(entries)
        self.better = better
        self.extra = [list(group) for group in extra]
        self.blocks: list[dict[str, float]] = []
        self.alive = list(entries)
        self.winner: str | None = None
        self.failed: set[str] = set()

    def ask(self) -> list[str]:
        """Who runs in the next block; nobody when all is known."""
        if self.winner is None and (len(self.alive) == 1 or len(self.blocks) >= MIN_BLOCKS):
            self.settle()
        if not self.alive or len(self.blocks) >= 2 * MAX_BLOCKS:  # runs that fail leave holes, but not for ever
            return []
        if self.winner is None:
            return [BASELINE, *self.alive]
        if not self.incomplete and (len(self.blocks) >= MAX_BLOCKS or not self.wide):
            return []
        return [BASELINE, self.winner, *([PROJECTION] if self.projecting else [])]

    def begin(self) -> dict[str, float]:
        """A block to be filled."""
        self.blocks.append({})
        return self.blocks[-1]

    def end(self) -> list[str]:
        """The block is over: who leaves, and is no more to run."""
        if self.winner is not None or len(self.blocks) < ELIMINATE_FROM:
            return []
        out = slower(self.blocks, self.alive, self.extra)
        self.alive = [name for name in self.alive if name not in out]
        return out

    def fail(self, name: str) -> None:
        """It did not live through a fresh run; where it had won, those who had left may win again."""
        self.failed.add(name)
        if name == PROJECTION:
            return
        if name == self.winner:
            self.winner = None
            for block in self.blocks:
                block.pop(PROJECTION, None)
            self.failed.discard(PROJECTION)
        left = [other for other in self.entries if other not in self.failed]
        self.alive = [other for other in self.alive if other != name] or left

    def settle(self) -> None:
        """Choose the winner from what has been measured."""
        if self.alive:
            self.winner = simplest(self.blocks, {name: self.entries[name] for name in self.alive}, self.extra)
            self.alive = [self.winner]

    @property
    def leader(self) -> str | None:
        """The winner, or who would be the winner now."""
        if self.winner is None and self.alive:
            return simplest(self.blocks, {name: self.entries[name] for name in self.alive}, self.extra)
        return self.winner

    @property
    def projecting(self) -> bool:
        """The winner's projection is to run with it."""
        return self.winner is not None and self.entries[self.winner].projects and PROJECTION not in self.failed

    @property
    def confirmed(self) -> bool:
        """There is a winner, and it ran in enough blocks for a claim."""
        return self.winner is not None and self._n_blocks(self.winner) >= MIN_BLOCKS

    @property
    def incomplete(self) -> bool:
        """The claim lacks blocks, or the projection's does."""
        return not self.confirmed or (self.projecting and self._n_blocks(PROJECTION) < MIN_BLOCKS)

    def _n_blocks(self, name: str) -> int:
        return sum(BASELINE in block and name in block for block in self.blocks)

    @property
    def wide(self) -> bool:
        """Would another block narrow the claim?"""
        ratio = self.judgement().ratios.get(self.leader or "")
        if ratio is None or ratio.ci95_lo is None or ratio.ci95_hi is None:
            return True
        return (ratio.ci95_hi - ratio.ci95_lo) / 2 > WIDE_FRAC * ratio.speedup

    def judgement(self, *, interrupted: bool = False) -> Judgement:
        """The claim about the winner, whose interval holds for all candidates at once."""
        blocks = [{n: v for n, v in b.items() if n not in self.failed} for b in self.blocks]
        ran = [name for name in self.entries if any(name in block for block in self.blocks)]
        best = self.leader or BASELINE
        return judge(blocks, self.extra, best=best, compared=ran, interrupted=interrupted, better=self.better)


def slower(
    blocks: Sequence[Mapping[str, float]], names: Sequence[str], extra: Sequence[Sequence[float]] = ()
) -> list[str]:
    """Which of them are significantly slower than the fastest of them (Holm), or far behind it."""
    from scipy.special import stdtr  # distribution function of Student t

    common = [b for b in blocks if all(name in b for name in names)]
    if not common or len(names) < 2:
        return []
    means = {name: sum(log(b[name]) for b in common) / len(common) for name in names}
    leader = min(means, key=lambda name: means[name])
    behind = {name: mean - means[leader] for name, mean in means.items() if name != leader}
    far = {name for name, gap in behind.items() if gap > log(1 + FAR_FRAC)}
    variance, df = pooled_variance(blocks, extra)
    if not variance:
        return [name for name in names if name in far]
    se = sqrt(variance * 2 / len(common))
    out = far | holm({name: 2 * float(stdtr(df, -gap / se)) for name, gap in behind.items()})
    return [name for name in names if name in out]


def holm(p_values: Mapping[str, float], alpha: float = ALPHA) -> set[str]:
    """The hypotheses that are rejected, at most `alpha` being the chance of any false one (Holm 1979)."""
    rejected: set[str] = set()
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > alpha / (len(p_values) - i):
            break
        rejected.add(name)
    return rejected


def simplest(
    blocks: Sequence[Mapping[str, float]], entries: Mapping[str, Entry], extra: Sequence[Sequence[float]] = ()
) -> str:
    """Of those within TIED_SE standard errors of the fastest: fewest changes, then least memory, then fastest.

    One that does not beat the user's settings beyond doubt never takes the place of a fastest one that does. Without a
    block that all of them ran in, the first.
    """
    common = [b for b in blocks if all(name in b for name in entries)]
    if not common or len(entries) == 1:
        return next(iter(entries))
    means = {name: sum(log(b[name]) for b in common) / len(common) for name in entries}
    leader = min(means, key=lambda name: means[name])
    variance, _ = pooled_variance(blocks, extra)
    limit = means[leader] + TIED_SE * sqrt((variance or 0.0) * 2 / len(common))
    ratios = judge(blocks, extra, best=leader, compared=list(entries)).ratios
    gains = {name for name, ratio in ratios.items() if (ratio.ci95_lo or 0.0) > 1.0}
    tied = [n for n in entries if means[n] <= limit and (leader not in gains or n in gains)]
    return min(tied, key=lambda n: (entries[n].n_changes, entries[n].peak_mem_bytes, means[n]))
