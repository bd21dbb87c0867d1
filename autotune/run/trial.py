"""What does one configuration give? run_trial(spec, directory) -> TrialResult."""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from autotune.contract import Outcome, RankRecord, TrialDir, TrialResult, TrialSpec, read_json, write_json
from autotune.errors import FormatError, writing
from autotune.machine.limits import oom_kills
from autotune.machine.nvml import used_memory, wait_until_free
from autotune.run.cleanup import disk_full, list_shared_memory, remove_private_folders, remove_shared_memory
from autotune.run.energy import with_energy
from autotune.run.launch import argv, environment, make_private_folders
from autotune.run.meanwhile import judged, meanwhile, power_of, window_of
from autotune.run.outcome import Judgement, classify
from autotune.run.preloaded import Preloaded
from autotune.run.sample import sampling, write_samples
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
    preloaded: Preloaded | None = None,
    sampled: bool = True,
    nvml: Any = None,
) -> TrialResult:
    """Start fresh processes for this spec, wait for their end, judge them, and write result.json.

    Args:
        spec: the trial; written to spec.json.
        directory: its folder; made when missing.
        started_s: seconds since the run began, kept in the result.
        watch: called about twice a second; the string it returns ends the segment at the next step (outcome pruned).
        to_screen: leave the output on our stdout instead of log.txt.
        preloaded: parents that may fork this trial; None: it starts cold.
        sampled: look at the machine meanwhile and write samples.csv; a simulation has nothing to see.
        nvml: the pynvml module, or a fake of it.

    Raises:
        KeyboardInterrupt: after the tree is dead; no result is written.
        MachineError: spec or result cannot be written.
    """
    with writing(directory.spec):
        directory.path.mkdir(parents=True, exist_ok=True)
        write_json(directory.spec, spec)
    of_ranks = (path for pattern in ("rank*.json", "steps*.txt") for path in directory.path.glob(pattern))
    for stale in (directory.stop, directory.stop_at, directory.samples, *of_ranks):
        stale.unlink(missing_ok=True)
    since = directory.log.stat().st_size if directory.log.exists() else 0
    tag = uuid.uuid4().hex
    shm, used, kills = list_shared_memory(), used_memory(spec.gpus, nvml), oom_kills()
    try:
        with writing(directory.shm_before):
            directory.shm_before.write_text(json.dumps(sorted(shm)), encoding="utf-8")
        with writing(directory.tmp):
            make_private_folders(directory)
        env = environment(spec, directory, tag)
        log = None if to_screen else directory.log
        cold = partial(start_cold, argv(spec, directory), env=env, cwd=directory.path, log=log)
        began = time.monotonic()
        start = preloaded.start(spec, directory, env, cold) if preloaded and log else None
        left_s = max(0.0, spec.deadlines.total_s - (time.monotonic() - began))  # a parent's imports are the trial's
        limited = replace(spec, deadlines=replace(spec.deadlines, total_s=left_s))
        watcher = Watcher(limited, directory, watch)
        with sampling(spec.gpus, directory.samples, nvml) if sampled else nullcontext() as sampler:
            begin = sampler.starting(start or cold) if sampler else start or cold
            end = run_tree(begin, tag=tag, poll=watcher, grace_s=spec.deadlines.grace_s)
    finally:
        remove_private_folders(directory)
        remove_shared_memory(shm)
        wait_until_free(used, nvml)
    records = []
    for rank in range(spec.n_ranks):
        with contextlib.suppress(FormatError):
            records.append(read_json(directory.rank(rank), RankRecord))
    tail = log_tail(directory.log, CLASSIFIED_LINES, since=since, until=watcher.log_bytes)
    if not records and (full := disk_full(directory.path)):
        tail = (*tail, full)  # which is why neither record nor log can say it
    judgement = classify(spec, records, end, tail, oom_killed=oom_kills() > kills)
    if judgement.outcome is Outcome.PRUNED:
        judgement = Judgement(Outcome.PRUNED, watcher.stop_reason or "stopped by the controller")
    first = next((r for r in records if r.rank == 0), None)
    window = window_of(sampler.samples, first) if sampler and first else None
    seen = power = None
    if sampler and window:
        seen, power = meanwhile(sampler.samples, window), power_of(sampler.samples, window)
        write_samples(directory.samples, sampler.samples, window)
    judgement = judged(judgement, seen)
    result = build_result(spec, records, judgement, started_s=started_s, took_s=end.took_s, tail=tail[-LOG_TAIL_LINES:])
    result = replace(result, warm=start is not None and start.warm, meanwhile=seen)
    result = with_energy(result, first, power.watts if power else None)
    with writing(directory.result):
        write_json(directory.result, result)
    directory.shm_before.unlink(missing_ok=True)
    return result


def log_tail(path: Path, n: int = LOG_TAIL_LINES, *, since: int = 0, until: int | None = None) -> tuple[str, ...]:
    """Last lines of a log as a terminal would show them: of a progress bar only its last state, and no colours.

    Args:
        path: the log; without it there are no lines.
        n: at most so many lines.
        since: bytes that do not count: an earlier run of the trial wrote them.
        until: bytes of the log that count; None: all.
    """
    try:
        with path.open("rb") as f:
            end = f.seek(0, 2) if until is None else until
            start = f.seek(max(since, end - 65536))
            text = f.read(end - start).decode("utf-8", "replace")
    except OSError:
        return ()
    shown = [ANSI.sub("", line).rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return tuple(line for line in shown if line.strip())[-n:]
