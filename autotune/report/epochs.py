"""How far is a training in progress, how fast, and is that as fast as it was, or was promised to be?

Ultralytics appends a row to results.csv at the end of each epoch, after validation; its column `time` counts seconds
since this process began to train, so it starts again from zero where a training was resumed (engine/trainer.py).
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import yaml

from autotune.contract import Winner
from autotune.report import words
from autotune.report.promises import AT_THE_END, Epoch, Kept, changed, incomparable, judge, warmup_of
from autotune.report.receipt import Receipt
from autotune.space.yolo_args import yolo_defaults

RECENT: Final = 5
"""Epochs whose median is the speed of now."""
DRIFT_FRAC: Final = 0.10
"""Epochs that take longer than the first ones by less than this have not changed: loaders and clocks vary."""
DRIFT_EPOCHS: Final = 6
"""Of one kind, for a first and a second half of three."""
STALE: Final = 3.0
"""After so many epochs' time without another one, something is wrong."""
WHERE: Final = frozenset({"mode", "model", "data", "device", "save_dir", "cfg", "tracker"})
"""Where things are; the names of model and dataset are compared."""


@dataclass(frozen=True, slots=True)
class Row:
    """What of one row of results.csv counts here."""

    epoch: int
    """From 1."""
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a save_dir says."""

    folder: Path
    args: dict[str, Any] = field(default_factory=dict)
    """args.yaml; empty: there is none yet."""
    rows: tuple[Row, ...] = ()
    ended_at: float | None = None
    """time.time() at which the last row was written."""

    @property
    def n_epochs(self) -> int | None:
        """As asked for; None: nobody knows."""
        n = self.args.get("epochs")
        return n if isinstance(n, int) else None

    @property
    def n_done(self) -> int:
        """Epochs that ended."""
        return self.rows[-1].epoch if self.rows else 0


def read_training(folder: Path) -> Training:
    """Look into a save_dir; a file that is missing, torn or not Ultralytics' says nothing."""
    args: Any = {}
    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        args = yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))
    path = folder / "results.csv"
    rows, ended_at = read_rows(path), None
    if rows:
        with contextlib.suppress(OSError):
            ended_at = path.stat().st_mtime
    return Training(folder=folder, args=args if isinstance(args, dict) else {}, rows=rows, ended_at=ended_at)


def read_rows(path: Path) -> tuple[Row, ...]:
    """Rows of results.csv as far as they are whole; older releases pad names and numbers with spaces."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ()
    whole = text[: text.rfind("\n") + 1]  # the last line may be in writing
    names, *lines = list(csv.reader(whole.splitlines())) or [[]]
    names = [name.strip() for name in names]
    if "epoch" not in names or "time" not in names:
        return ()
    at, rows = (names.index("epoch"), names.index("time")), []
    for line in lines:
        with contextlib.suppress(IndexError, ValueError):
            rows.append(Row(int(float(line[at[0]])), float(line[at[1]])))
    return tuple(rows)


def epochs_of(training: Training) -> list[Epoch]:
    """The first epoch, and each later one from the end of the one before to its own; seconds of the parts are NaN.

    The first one after a resume is left out, because nobody knows when it began.
    """
    close, n = training.args.get("close_mosaic") or 0, training.n_epochs

    def epoch(row: Row, seconds: float) -> Epoch:
        return Epoch(seconds, math.nan, math.nan, bool(close) and n is not None and row.epoch > n - close)

    found = [epoch(row, row.time_s) for row in training.rows[:1]]
    for before, row in itertools.pairwise(training.rows):
        if row.epoch == before.epoch + 1 and row.time_s > before.time_s:
            found.append(epoch(row, row.time_s - before.time_s))
    return found


def epoch_s(training: Training) -> float | None:
    """Seconds of an epoch now: median of the last ones; of the first alone, which carries the start, if it must be."""
    seconds = [e.seconds for e in epochs_of(training)]
    return median((seconds[1:] or seconds)[-RECENT:]) if seconds else None


def left_s(training: Training) -> float | None:
    """Seconds until the last epoch ends, were all of them as the last ones."""
    each, n = epoch_s(training), training.n_epochs
    return None if each is None or n is None else each * max(0, n - training.n_done)


def stale(training: Training, now: float) -> str | None:
    """Whether it seems to have stopped; `now` is time.time()."""
    each = epoch_s(training)
    if each is None or training.ended_at is None or training.n_done == training.n_epochs:
        return None
    since = now - training.ended_at
    if since <= STALE * each:
        return None
    return (
        f"no epoch has ended for {words.seconds(since)}, and they take {words.seconds(each)}: it has ended early, "
        "hangs, or was stopped"
    )


def drift(training: Training) -> tuple[float, str] | None:
    """Later epochs over earlier ones (above 1: slower now), and in words; None: alike, or too few to tell.

    Medians of the first and second half of the epochs of the kind (with or without mosaic) of which there are more,
    without those of the warm-up.
    """
    epochs = epochs_of(training)[max(1, warmup_of(training.args)) :]
    n_closed = sum(e.closed for e in epochs)
    seconds = [e.seconds for e in epochs if e.closed == (2 * n_closed > len(epochs))]
    if len(seconds) < DRIFT_EPOCHS:
        return None
    half = len(seconds) // 2
    first, last = median(seconds[:half]), median(seconds[-half:])
    if abs(last / first - 1) <= DRIFT_FRAC:
        return None
    than = "longer" if last > first else "shorter"
    return (
        last / first,
        f"epochs take {words.percent(abs(last / first - 1))} {than} than before: {words.seconds(first)}, now "
        f"{words.seconds(last)} (medians of {half})",
    )


def against(training: Training, winner: Winner, receipt: Receipt) -> Kept | str:
    """The promise of a receipt against the epochs so far; a sentence where they cannot be compared at all."""
    promise = receipt.promise
    if promise is None:
        return "the receipt makes no promise"
    if promise.epoch_s(closed=not promise.mosaic_epoch_s, whole=True) is None:
        return "the promise is of the steps alone, and results.csv tells whole epochs only"
    overrides = _overrides(winner.train_args, training.args)
    if ends := AT_THE_END & changed(winner.train_args, overrides).keys():
        return f"promise not comparable, {', '.join(f'{k}={overrides[k]}' for k in sorted(ends))}"
    other = incomparable(receipt, winner, overrides)
    warmup = warmup_of({**winner.train_args, **overrides})
    return judge(promise, epochs_of(training), other, warmup_epochs=warmup, overrides=overrides)


def same_job(winner: Winner, args: Mapping[str, Any]) -> bool:
    """Whether this args.yaml is that of a training of the winner, as far as names tell."""
    mine = {**yolo_defaults(), **winner.train_args}
    names = all(Path(str(mine.get(k))).name == Path(str(args.get(k))).name for k in ("model", "data"))
    return names and all(str(mine.get(k)) == str(args.get(k)) for k in ("imgsz", "batch"))


def _overrides(args: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """What a training was given beside the winner's arguments."""
    known = yolo_defaults().keys() - WHERE
    said = {k: v for k, v in trained.items() if k in known}
    moved = {k: Path(str(trained[k])).name for k in ("model", "data") if trained.get(k)}
    names = {k: v for k, v in moved.items() if v != Path(str(args.get(k))).name}
    return changed(args, said) | names


def summary(training: Training) -> str:
    """`epoch 12 of 100   61 s an epoch   1.5 h left`."""
    of = "" if training.n_epochs is None else f" of {training.n_epochs}"
    parts: Sequence[str | None] = (
        f"epoch {training.n_done}{of}",
        None if (each := epoch_s(training)) is None else f"{words.seconds(each)} an epoch",
        None if not (left := left_s(training)) else f"{words.seconds(left)} left",
    )
    return "   ".join(p for p in parts if p)
