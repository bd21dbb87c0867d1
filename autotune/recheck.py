"""Is the winner still the winner, here and today? `autotune recheck`: winner and baseline of a receipt measured again.

New driver, new versions, another machine: fresh runs in shuffled blocks, as the finalist stage makes them, and a rule
with a known rate of false alarms (search/holds.py). Everything comes from best/ alone, so a copy of it will do.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Final, Literal

import psutil

from autotune.claim import Claim, Name, find_claim
from autotune.contract import Deadlines, Outcome, RunDir, TrialResult, TrialSpec, to_dict, write_json
from autotune.errors import EXIT_INTERRUPTED, EXIT_NO_TRIAL, EXIT_OK, EXIT_RECHECK, MachineError, on_disk
from autotune.folders import make_folder
from autotune.interrupts import uninterrupted
from autotune.question import TRIAL_ARGS
from autotune.report.receipt import Fresh, Receipt
from autotune.report.rechecks import Block, Recheck, block_line, change_line, summary_lines, units
from autotune.report.words import seconds
from autotune.run.dataset import DatasetView
from autotune.run.leftover import kill_leftovers, sweep_files
from autotune.run.lock import lock_devices, lock_run, refuse_if_used
from autotune.run.page_cache import warm_page_cache
from autotune.run.trial import run_trial
from autotune.search.again import once_more
from autotune.search.budget import Budget, parse_budget
from autotune.search.holds import compare_now, holding, moved, worth
from autotune.search.objective import spoken
from autotune.search.proposals import changes_of
from autotune.search.verdict import MIN_BLOCKS

MAX_BLOCKS: Final = 8
"""As many as the budget holds up to here, whatever they show: to stop when it looks good would be another test."""
MARGIN: Final = 1.1
"""Run times vary by about 10 % on a shared machine."""
READING_FRAC: Final = 0.05
"""Of the budget, at most, for reading the dataset once before the first run."""
TRIAL_LIMIT_S: Final = 900.0
"""A run may take so long, where the budget has it: as one that compiles in the search."""
NAMES: Final[tuple[Name, ...]] = ("baseline", "best")
Say = Callable[[str], object]


@dataclass(slots=True)
class _Seen:
    """What was measured so far; an interrupt leaves it as it is."""

    blocks: list[dict[Name, TrialResult]] = field(default_factory=list)
    failed: Name | None = None
    interrupted: bool = False
    short_s: float | None = None
    """What three blocks would have taken, when the budget did not hold them."""


def recheck(
    path: str,
    *,
    gpus: str | None = None,
    pairs: Sequence[str] = (),
    budget: str = "5m",
    force: bool = False,
    command: str = "",
    began: float | None = None,
    say: Say = lambda line: None,
) -> tuple[Path, Recheck]:
    """The whole job of `autotune recheck`.

    Args:
        path: a run folder, its best/, or a copy of that.
        gpus: --gpus; without it the receipt's device=.
        pairs: data=, model= or device= where they are others on this machine.
        budget: from Enter to the answer.
        force: measure on a GPU that somebody else uses.
        command: as typed.
        began: time.monotonic() at Enter; None: now.
        say: given each line for the user as it is known.

    Returns:
        The folder with the runs, and what recheck.json says.

    Raises:
        AutotuneError: wrong input, another kind of device, a device in use; nothing was written then.
    """
    clock = Budget(parse_budget(budget), started=time.monotonic() if began is None else began)
    claim = find_claim(path, gpus, pairs)
    with on_disk("the folder of the recheck"), contextlib.ExitStack() as stack:
        sign = stack.enter_context(lock_devices(claim.gpus))
        refuse_if_used(claim.gpus, force=force)
        folder = _folder(claim)
        stack.enter_context(lock_run(folder))
        sign(folder)
        run_dir = RunDir(folder)
        stack.callback(_clear_up, run_dir)
        write_json(run_dir.machine, claim.machine)
        stack.callback(shutil.rmtree, folder / ".data", ignore_errors=True)
        view = stack.enter_context(DatasetView(claim.data, claim.winner.task, folder / ".data"))
        say(claim.headline)
        say(change_line(claim.changes))
        seen = _Seen()
        try:
            free, limit_s = psutil.virtual_memory().available, READING_FRAC * clock.total_s
            warm_page_cache(claim.data, claim.winner.task, free_ram_bytes=free, limit_s=limit_s)
            say(units(claim.receipt.objective))
            _measure(claim, run_dir, view, clock, seen, say)
        except KeyboardInterrupt:
            seen.interrupted = True
        found = replace(_conclude(claim, seen, clock), command=command)
        write_json(folder / "recheck.json", found)
        for line in summary_lines(found, folder):
            say(line)
        return folder, found


def run_verb(path: str, *, as_json: bool, say: Say, **asked: Any) -> int:
    """`autotune recheck`, with --json or without; returns the exit code. For the rest see `recheck`."""
    _, found = recheck(path, **asked, say=(lambda line: None) if as_json else say)
    if as_json:
        say(json.dumps(to_dict(found), indent=1, ensure_ascii=False))
    return exit_code(found)


def exit_code(found: Recheck) -> int:
    """0 holds, 5 does not hold, 4 cannot be told, 130 interrupted."""
    if found.interrupted:
        return EXIT_INTERRUPTED
    return {"holds": EXIT_OK, "does_not_hold": EXIT_RECHECK, "unknown": EXIT_NO_TRIAL}[found.status]


def _folder(claim: Claim) -> Path:
    """RUN/rechecks/DATE_HOST; beside best/ where that stands alone; never in it: an export refuses foreign files."""
    rechecks = RunDir(claim.best.resolve().parent).rechecks
    try:
        return make_folder(rechecks, claim.machine.hostname)
    except OSError as e:
        raise MachineError(f"cannot write {rechecks}: {e.strerror}", "copy best/ to a folder of yours") from e


def _clear_up(run_dir: RunDir) -> None:
    with uninterrupted():
        kill_leftovers(run_dir.path)
        sweep_files(run_dir)


def _measure(claim: Claim, run_dir: RunDir, view: DatasetView, clock: Budget, seen: _Seen, say: Say) -> None:
    """Blocks of both in shuffled order, as many as the budget holds; ends where one of the two does not run."""
    rng = random.Random(run_dir.path.name)
    prices_s = {n: runs.took_s if claim.same_machine else None for n, runs in _then(claim.receipt).items()}
    number = 0
    while len(seen.blocks) < MAX_BLOCKS:
        known = [s for s in prices_s.values() if s is not None]
        block_s = MARGIN * sum(known) if len(known) == len(NAMES) else 0.0
        missing = max(1, MIN_BLOCKS - len(seen.blocks))
        if missing * block_s > clock.left_s():
            if len(seen.blocks) < MIN_BLOCKS:
                seen.short_s = clock.elapsed_s() + missing * block_s
            return
        block: dict[Name, TrialResult] = {}
        seen.blocks.append(block)
        for name in rng.sample(NAMES, len(NAMES)):
            spec = _spec(claim, name, number, view, left_s=clock.left_s())
            block[name] = once_more(run_trial)(spec, run_dir.trial(number), started_s=clock.elapsed_s())
            number += 1
            if not block[name].outcome.measured:
                late = block[name].outcome is Outcome.TIMEOUT and clock.left_s() < 1.0
                seen.short_s = max(2 * clock.total_s, MARGIN * MIN_BLOCKS * sum(known)) if late else None
                seen.failed = None if late else name
                return
            took_s = block[name].took_s  # the first one here replaces what the receipt says of another day
            prices_s[name] = took_s if number <= len(NAMES) else max(prices_s[name] or 0.0, took_s)
        say(block_line(len(seen.blocks), _row(claim, block)))


def _spec(claim: Claim, name: Name, number: int, view: DatasetView, *, left_s: float) -> TrialSpec:
    job, then = claim.job(name), claim.receipt
    device = ",".join(map(str, range(len(claim.gpus)))) or "cpu"
    cache = job.train_args.get("cache", False)
    args = {**job.train_args, "model": claim.model, "data": view.path(cache), **TRIAL_ARGS, "device": device}
    params = then.baseline_params if name == "baseline" else claim.winner.params
    total_s = max(1.0, min(TRIAL_LIMIT_S, left_s))
    deadlines = Deadlines(total_s=total_s)
    return TrialSpec(
        number=number,
        role="finalist",
        backend="yolo",
        task=claim.winner.task,
        params=params,
        changes=changes_of(params, then.baseline_params),
        train_args=args,
        env=job.env,
        patches=job.patches,
        gpus=claim.gpus,
        n_ranks=claim.n_ranks,
        segment=then.segment,
        deadlines=replace(deadlines, first_step_s=total_s) if params.get("compile") else deadlines,
        seed=then.seed,
    )


def _values(claim: Claim, block: dict[Name, TrialResult]) -> dict[str, float]:
    """The objective of the runs that were measured."""
    then = _then(claim.receipt)
    worths = {
        name: worth(r, claim.receipt.objective, then[name].job_terms, _mean(then[name].images_per_s))
        for name, r in block.items()
    }
    return {name: value for name, value in worths.items() if value}


def _row(claim: Claim, block: dict[Name, TrialResult]) -> Block:
    rates = {name: r.images_per_s for name, r in block.items() if r.outcome.measured}
    values = _values(claim, block)
    own, best = values.get("baseline"), values.get("best")
    return Block(**rates, speedup=own / best if own and best else None)


def _conclude(claim: Claim, seen: _Seen, clock: Budget) -> Recheck:
    """The answer, from what there is."""
    then = claim.receipt
    assert then.ratio is not None
    rows = tuple(_row(claim, block) for block in seen.blocks)
    values = [_values(claim, block) for block in seen.blocks]
    now = compare_now(values)
    status: Literal["holds", "does_not_hold", "unknown"] = "unknown"
    if seen.failed is not None:
        result = seen.blocks[-1][seen.failed]
        why = f"({result.outcome}: {result.error})" + (f"; hint: {result.hint}" if result.hint else "")
        status = "does_not_hold" if seen.failed == "best" else "unknown"
        start = "does not hold: the winner" if seen.failed == "best" else "cannot tell: your own configuration"
        sentence = f"{start} did not run here {why}"
    elif now is not None:
        held = holding(then.ratio, now)
        status, sentence = held.status, spoken(then.objective, held.sentence)
    else:
        n_whole = sum(len(v) == len(NAMES) for v in values)
        sentence = f"cannot tell: {n_whole} of {MIN_BLOCKS} blocks were run"
        if seen.short_s is not None:
            longer = f"--budget {math.ceil(1.2 * seen.short_s / 60)}m"
            sentence += f", they take about {seconds(seen.short_s)} here: give {longer}"
    if seen.interrupted:
        sentence = f"interrupted; {sentence}"
    rates = {n: [rate for b in rows if (rate := getattr(b, n))] for n in NAMES}
    return Recheck(
        run=then.run,
        started=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        hostname=claim.machine.hostname,
        fingerprint=claim.machine.fingerprint,
        objective=then.objective,
        params=claim.winner.params,
        status=status,
        sentence=sentence,
        interrupted=seen.interrupted,
        changes=claim.changes,
        notes=(*claim.notes, *_notes(claim, seen, rates)),
        then=then.ratio,
        now=now,
        rates_then=Block(**{n: _mean(r.images_per_s) for n, r in _then(then).items()}),
        blocks=rows,
    )


def _notes(claim: Claim, seen: _Seen, rates: dict[Name, list[float]]) -> list[str]:
    """What the user should see beside the answer."""
    notes = []
    then = claim.receipt
    own, best = (
        moved(then.baseline_runs.images_per_s, rates["baseline"]),
        moved(then.winner_runs.images_per_s, rates["best"]),
    )
    if own and best and (own > 1) == (best > 1):
        # On a shared machine neighbours move both, so this alone is no reason to fail.
        why = "a neighbour, heat, or something no version tells" if claim.same_machine else "see what has changed"
        notes.append(f"both run at another speed than in the receipt, yours {own:.2f}x, the winner {best:.2f}x: {why}")
    results = [r for block in seen.blocks for r in block.values()]
    if n := sum(r.outcome is Outcome.UNSTABLE for r in results):
        notes.append(f"{n} of {len(results)} runs were unstable")
    return notes


def _then(then: Receipt) -> dict[Name, Fresh]:
    return {"baseline": then.baseline_runs, "best": then.winner_runs}


def _mean(rates: Sequence[float]) -> float | None:
    return geometric_mean(rates) if rates else None
