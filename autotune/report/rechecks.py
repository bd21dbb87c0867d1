"""What did a recheck find, and how is it said? recheck.json, its lines on the screen, and all of a run together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Final, Literal

from autotune.contract import FORMAT, Comparison, Params, read_json
from autotune.errors import FormatError
from autotune.report import words

ROW: Final = "{:>6} {:>15} {:>15}   {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of fresh runs; None is a run that was not measured, or not started."""

    baseline: float | None = None
    """images/s."""
    best: float | None = None
    speedup: float | None = None
    """On the run's objective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """recheck.json: was the winner of a receipt still the winner?"""

    format: int = FORMAT
    run: str
    """Name of the run whose receipt it was."""
    started: str
    """ISO 8601 wall clock with offset."""
    command: str = ""
    hostname: str = ""
    fingerprint: str = ""
    objective: str
    params: Params
    """The winner's."""
    status: Literal["holds", "does_not_hold", "unknown"]
    sentence: str
    interrupted: bool = False
    changes: tuple[str, ...] = ()
    """What is another than when the receipt was made."""
    notes: tuple[str, ...] = ()
    then: Comparison
    now: Comparison | None = None
    """None below three whole blocks."""
    rates_then: Block
    """Geometric means over the receipt's runs."""
    blocks: tuple[Block, ...] = ()


def units(objective: str) -> str:
    """The head of the table."""
    last = "times fewer joules per image" if objective == "energy" else "speed-up"
    return ROW.format("block", "yours, images/s", "winner", last)


def block_line(number: int, block: Block) -> str:
    """One row of the table."""
    return _row(str(number), block, words.times(block.speedup))


def summary_lines(found: Recheck, folder: Path) -> list[str]:
    """Then, now, notes, and the sentence."""
    lines = [_row("then", found.rates_then, _ratio(found.then))]
    if found.now is not None:
        lines.append(_row("now", _mean(found.blocks), _ratio(found.now)))
    lines += [f"note: {note}" for note in found.notes]
    return [*lines, f"kept in {folder}", found.sentence]


def change_line(changes: Sequence[str]) -> str:
    """What is another now."""
    if not changes:
        return "machine and versions are those of the receipt"
    return f"changed since the receipt: {'; '.join(changes)}"


def all_rechecks(folder: Path) -> list[Recheck]:
    """Those in a folder of rechecks, oldest first; what cannot be read is left out."""
    found = []
    for path in folder.glob("*/recheck.json"):
        with contextlib.suppress(FormatError):
            found.append(read_json(path, Recheck))
    return sorted(found, key=lambda r: r.started)


def _row(name: str, block: Block, ratio: str) -> str:
    return ROW.format(name, words.number(block.baseline), words.number(block.best), ratio)


def _ratio(c: Comparison) -> str:
    return f"{c.speedup:.2f}x (95 % CI {c.ci95_lo:.2f}-{c.ci95_hi:.2f}, {words.plural(c.n_blocks, 'block')})"


def _mean(blocks: Sequence[Block]) -> Block:
    own, best = ([rate for b in blocks if (rate := getattr(b, name))] for name in ("baseline", "best"))
    return Block(baseline=geometric_mean(own) if own else None, best=geometric_mean(best) if best else None)
