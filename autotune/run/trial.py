"""What does one configuration give? run_trial(spec, directory) -> TrialResult."""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from functools import partial
from pathlib import Path

from autotune.contract import Outcome, RankRecord, TrialDir, TrialResult, TrialSpec, read_json, write_json
from autotune.errors import FormatError
from autotune.machine.limits import oom_kills
from autotune.run.launch import argv, environment
from autotune.run.outcome import Judgement, classify
from autotune.run.statistics import build_result
from autotune.run.supervise import run_tree, start_cold
from autotune.run.watch import Watch, Watcher

LOG_TAIL_LINES = 20
CLASSIFIED_LINES = 400
"""Torchrun's report and the tracebacks of many ranks end in hundreds of lines."""
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def run_trial(
    spec: TrialSpec,
    directory: TrialDir,
    *,
    started_s: float,
    watch: Watch | None = None,
    to_screen: bool = False,
) -> TrialResult:
    """Start fresh processes for this spec, wait for their end, judge them, and write result.json.

    Args:
        spec: the trial; written to spec.json.
        directory: its folder; made when missing.
        started_s: seconds since the run began, kept in the result.
        watch: called about twice a second; the string it returns ends the segment at the next step (outcome pruned).
        to_screen: leave the output on our stdout instead of log.txt.

    Raises:
        KeyboardInterrupt: after the tree is dead; no result is written.
    """
    directory.path.mkdir(parents=True, exist_ok=True)
    write_json(directory.spec, spec)
    of_ranks = (path for pattern in ("rank*.json", "steps*.txt") for path in directory.path.glob(pattern))
    for stale in (directory.stop, directory.stop_at, *of_ranks):
        stale.unlink(missing_ok=True)
    tag = uuid.uuid4().hex
    watcher = Watcher(spec, directory, watch)
    kills = oom_kills()
    try:
        end = run_tree(
            partial(
                start_cold,
                argv(spec, directory),
                env=environment(spec, directory, tag),
                cwd=directory.path,
                log=None if to_screen else directory.log,
            ),
            tag=tag,
            poll=watcher,
            grace_s=spec.deadlines.grace_s,
        )
    finally:
        shutil.rmtree(directory.path / "tmp", ignore_errors=True)
        shutil.rmtree(directory.path / "yolo", ignore_errors=True)
    records = []
    for rank in range(spec.n_ranks):
        with contextlib.suppress(FormatError):
            records.append(read_json(directory.rank(rank), RankRecord))
    tail = log_tail(directory.log, CLASSIFIED_LINES)
    judgement = classify(spec, records, end, tail, oom_killed=oom_kills() > kills)
    if judgement.outcome is Outcome.PRUNED:
        judgement = Judgement(Outcome.PRUNED, watcher.stop_reason or "stopped by the controller")
    result = build_result(spec, records, judgement, started_s=started_s, took_s=end.took_s, tail=tail[-LOG_TAIL_LINES:])
    write_json(directory.result, result)
    return result


def log_tail(path: Path, n: int = LOG_TAIL_LINES) -> tuple[str, ...]:
    """Last lines of a log as a terminal would show them: of a progress bar only its last state, and no colours."""
    try:
        with path.open("rb") as f:
            f.seek(0, 2)
            f.seek(max(0, f.tell() - 65536))
            text = f.read().decode("utf-8", "replace")
    except OSError:
        return ()
    shown = [ANSI.sub("", line).rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return tuple(line for line in shown if line.strip())[-n:]
