"""Was the promise of the receipt kept? Real epochs of a full training against it; RUN/promises.jsonl."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from autotune.contract import FORMAT, RunDir, Winner, from_dict, to_dict
from autotune.errors import AutotuneError
from autotune.machine.facts import changes, read_machine
from autotune.report import words
from autotune.report.receipt import Promise, Receipt, read_receipt
from autotune.space.yolo_args import yolo_defaults

TOLERANCE_FRAC: Final = 0.03
"""Beyond the run-to-run noise: what short segments are allowed to miss of whole epochs (MEASURING 7, short-run error).
They leave out warm-up epochs, plots and how a machine warms over hours."""
MIN_EPOCHS: Final = 2
HARMLESS: Final = frozenset(
    {
        *("epochs", "time", "patience", "resume", "project", "name", "exist_ok", "save_dir", "save_period", "plots"),
        *("verbose", "seed", "lr0", "lrf", "cos_lr", "momentum", "weight_decay", "close_mosaic", "warmup_epochs"),
        *("warmup_momentum", "warmup_bias_lr", "val", "save"),
    }
)
"""Arguments that leave the step as it was measured; an epoch without mosaic is held against its own promise."""
AT_THE_END: Final = frozenset({"val", "save"})
"""Of those, the ones that change what comes after the steps."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of a full training; seconds."""

    seconds: float
    """From the end of the one before."""
    steps_s: float
    val_s: float
    closed: bool
    """Without mosaic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One line of promises.jsonl."""

    format: int = FORMAT
    started: str
    """When it was judged, ISO 8601."""
    status: Literal["kept", "not_kept", "not_comparable", "not_judged"]
    sentence: str
    what: Literal["epoch", "steps"] = "epoch"
    """Whole epochs, or their steps alone, where validation and epoch end were not promised."""
    n_epochs: int = 0
    """Compared."""
    promised_s: float | None = None
    real_s: float | None = None
    """Medians, of the kind (with or without mosaic) of which there were more."""
    ratio: float | None = None
    """Median over all epochs compared of real over promised."""
    half_width_frac: float | None = None
    """Of the promise's own interval; TOLERANCE_FRAC is added to it."""
    overrides: dict[str, Any] = field(default_factory=dict)
    folder: str = "best"
    """Of the receipt, in the run folder: best/, or that of another trial's export."""


def read_epochs(path: Path) -> list[Epoch]:
    """What rank 0 of the training wrote (worker/epochs.py); a torn last line is left out."""
    epochs = []
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines(keepends=True):
            seconds, steps_s, val_s, closed = map(float, line.split())
            if line.endswith("\n"):
                epochs.append(Epoch(seconds, steps_s, val_s, bool(closed)))
    return epochs


def check_promise(
    best: Path, winner: Winner, overrides: Mapping[str, Any], epochs: Path, *, n_nodes: int = 1
) -> Kept | None:
    """Judge a training that has ended, and write it down where best/ lies in a run folder.

    Args:
        best: the folder of winner.json.
        winner: what was trained.
        overrides: YOLO arguments that were given beside it.
        epochs: what rank 0 wrote.
        n_nodes: machines that trained together.

    Returns:
        None where nothing was promised, or no epoch was trained.
    """
    real = read_epochs(epochs)
    try:
        receipt = read_receipt(best)
    except AutotuneError:
        return None  # the training is over: this is no time to complain of a copy without its receipt
    if receipt.promise is None or not real:
        return None
    other = incomparable(receipt, winner, overrides, n_nodes=n_nodes)
    args = {**winner.train_args, **overrides}
    whole = not AT_THE_END & changed(winner.train_args, overrides).keys()
    kept = judge(receipt.promise, real, other, whole=whole, warmup_epochs=warmup_of(args), overrides=overrides)
    kept = replace(kept, folder=best.resolve().name)
    run = RunDir(best.resolve().parent)
    if run.info.is_file():
        # Appended in one write: two trainings may end together.
        with contextlib.suppress(OSError), run.promises.open("a", encoding="utf-8") as f:
            f.write(json.dumps(to_dict(kept), ensure_ascii=False, default=str) + "\n")
    return kept


def incomparable(receipt: Receipt, winner: Winner, overrides: Mapping[str, Any], *, n_nodes: int = 1) -> list[str]:
    """What makes a training on this machine another one than the promise is of, in words."""
    other = [f"{k}={v}" for k, v in changed(winner.train_args, overrides).items() if k not in HARMLESS]
    if n_nodes > 1:
        other.append(f"{n_nodes} machines")
    machine = read_machine()
    if receipt.machine is not None and receipt.machine.fingerprint != machine.fingerprint:
        other += changes(receipt.machine, machine)
    return other


def changed(args: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that say something else than the winner does."""
    defaults = yolo_defaults()
    return {k: v for k, v in overrides.items() if str(args.get(k, defaults.get(k))) != str(v)}


def judge(
    promise: Promise,
    real: Sequence[Epoch],
    other: Sequence[str] = (),
    *,
    whole: bool = True,
    warmup_epochs: int = 1,
    overrides: Mapping[str, Any] | None = None,
) -> Kept:
    """Real epochs against the promise.

    Kept when the median of real over promised lies within the promise's interval for one fresh run, widened by
    TOLERANCE_FRAC. The first epoch carries the start and is left out; so are the others of the warm-up, in which
    Ultralytics takes more optimizer steps (`accumulate` grows from 1), where as many others are left.

    Args:
        promise: of the receipt.
        real: all epochs that ended.
        other: what makes the two not comparable, in words.
        whole: False where this training ends its epochs in another way than the promise's.
        warmup_epochs: how many the training warms up.
        overrides: kept with the answer.
    """
    whole = whole and promise.epoch_s(closed=not promise.mosaic_epoch_s, whole=True) is not None
    pairs = [
        (i, e, promised_s, e.seconds if whole else e.steps_s)
        for i, e in enumerate(real)
        if i and (promised_s := promise.epoch_s(closed=e.closed, whole=whole))
    ]
    late = [pair for pair in pairs if pair[0] >= warmup_epochs]
    n_out = warmup_epochs if len(late) >= max(MIN_EPOCHS, len(pairs) - len(late)) else 1
    pairs = late if n_out > 1 else pairs
    made: dict[str, Any] = {
        "started": _now(),
        "overrides": dict(overrides or {}),
        "half_width_frac": promise.half_width_frac,
    }
    if len(real) < MIN_EPOCHS or not pairs:
        why = (
            f"{words.plural(len(real), 'epoch')} ended"
            if len(real) < MIN_EPOCHS
            else "none without mosaic was promised"
        )
        return Kept(status="not_judged", sentence=f"promise not judged: {why}", **made)
    ratio = median(s / promised_s for _, _, promised_s, s in pairs)
    closed = sum(e.closed for _, e, _, _ in pairs) * 2 > len(pairs)
    kind = [(promised_s, s) for _, e, promised_s, s in pairs if e.closed == closed]
    promised_s, real_s = kind[0][0], median(s for _, s in kind)
    half, what = promise.half_width_frac, "an epoch" if whole else "for the steps of an epoch"
    noise = "" if half is None else f" (+-{100 * half:.0f} %)"
    left_out = "the first left out: it carries the start"
    if n_out > 1:
        left_out = f"the first {n_out} left out: start and warm-up"
    figures = f"{_short(promised_s)} {what} promised{noise}, {_short(real_s)} real (median of {len(kind)}; {left_out})"
    status: Literal["kept", "not_kept", "not_comparable", "not_judged"]
    if other:
        status, sentence = "not_comparable", f"promise not comparable, {', '.join(other)}: {figures}"
    elif half is None:
        status, sentence = "not_judged", f"promise not judged, it was not confirmed by fresh runs: {figures}"
    elif abs(ratio - 1) <= half + TOLERANCE_FRAC:
        status, sentence = "kept", f"promise kept: {figures}"
    else:
        than = "longer" if ratio > 1 else "shorter"
        status, sentence = "not_kept", f"promise not kept: {figures}; {abs(ratio - 1):.0%} {than} than promised"
    return Kept(
        status=status,
        sentence=sentence,
        what="epoch" if whole else "steps",
        n_epochs=len(pairs),
        promised_s=promised_s,
        real_s=real_s,
        ratio=ratio,
        **made,
    )


def all_promises(path: Path) -> list[Kept]:
    """The lines of promises.jsonl, oldest first; those that cannot be read are left out."""
    found = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(AutotuneError, ValueError):
                found.append(from_dict(Kept, json.loads(line)))
    return found


def warmup_of(args: Mapping[str, Any]) -> int:
    """Epochs of warm-up, whole ones; 1 where Ultralytics alone can tell."""
    with contextlib.suppress(TypeError, ValueError):
        return max(1, math.ceil(float(args.get("warmup_epochs", yolo_defaults()["warmup_epochs"]))))
    return 1


def _short(seconds: float) -> str:
    """Three digits: what differs by a per cent is to look different."""
    return f"{words.number(seconds)} s" if seconds < 1000 else words.seconds(seconds)


def _now() -> str:
    return dt.datetime.now().astimezone().isoformat(timespec="seconds")
