"""What does one configuration give? run_trial(spec, directory) -> TrialResult."""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Sequence
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
from autotune.run.followers import Part, Relay, believed, durations_s, may_follow
from autotune.run.launch import argv, environment, make_private_folders
from autotune.run.meanwhile import judged, meanwhile, power_of, window_of
from autotune.run.outcome import Judgement, classify
from autotune.run.preloaded import Preloaded
from autotune.run.sample import Sampler, sampling, write_samples
from autotune.run.statistics import build_result
from autotune.run.supervise import Exit, run_tree, start_cold
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
    part = Part(spec, directory, watch)
    given = {"to_screen": to_screen, "preloaded": preloaded, "sampled": sampled, "nvml": nvml}
    return run_in_turn([part], started_s=started_s, **given)[0]


def run_in_turn(
    parts: Sequence[Part],
    *,
    started_s: float,
    to_screen: bool = False,
    preloaded: Preloaded | None = None,
    sampled: bool = True,
    nvml: Any = None,
) -> list[TrialResult]:
    """The same for a trial and its followers (followers.may_follow) in one process.

    Args:
        parts: at least one; the folders are made when missing.
        started_s: as in run_trial, of the first one.
        to_screen: as in run_trial; only without followers.
        preloaded: as in run_trial.
        sampled: as in run_trial.
        nvml: as in run_trial.

    Returns:
        Of the trials that stand, in order. Those that are missing at the end were not run, because one before them
        failed, or did not stand as followers: they are to be run afresh.

    Raises:
        KeyboardInterrupt: after the tree is dead; no result is written.
        MachineError: a spec or a result cannot be written.
    """
    first, directory = parts[0].spec, parts[0].directory
    directories = [p.directory for p in parts]
    assert all(may_follow(p.spec, first) for p in parts[1:])
    since = [_prepare(part) for part in parts]
    tag = uuid.uuid4().hex
    shm, used, kills = list_shared_memory(), used_memory(first.gpus, nvml), oom_kills()
    try:
        for d in directories:
            with writing(d.shm_before):
                d.shm_before.write_text(json.dumps(sorted(shm)), encoding="utf-8")
            with writing(d.tmp):
                make_private_folders(d)
        env = environment(first, directory, tag)
        log = None if to_screen else directory.log
        command = argv(first, directory, directories[1:])
        cold = partial(start_cold, command, env=env, cwd=directory.path, log=log)
        began = time.monotonic()
        start = preloaded.start(first, directory, env, cold, directories[1:]) if preloaded and log else None
        left_s = max(0.0, first.deadlines.total_s - (time.monotonic() - began))  # a parent's imports are the trial's
        limited = replace(first, deadlines=replace(first.deadlines, total_s=left_s))
        watchers = [Watcher(p.spec if i else limited, p.directory, p.watch) for i, p in enumerate(parts)]
        with sampling(first.gpus, directory.samples, nvml) if sampled else nullcontext() as sampler:
            begin = sampler.starting(start or cold) if sampler else start or cold
            began = time.monotonic()
            end = run_tree(begin, tag=tag, poll=Relay(watchers, directories), grace_s=first.deadlines.grace_s)
    finally:
        for d in directories:
            remove_private_folders(d)
        remove_shared_memory(shm)
        wait_until_free(used, nvml)
    n_begun = max(i for i, d in enumerate(directories) if i == 0 or d.stream(0).exists()) + 1
    records = [_records(p) for p in parts[:n_begun]]
    took_s = durations_s([r[0] if r else None for r in records], began, end.took_s)
    results: list[TrialResult] = []
    for i, part in enumerate(parts[:n_begun]):
        last = i == n_begun - 1
        ended = replace(end, took_s=took_s[i]) if last else Exit(returncode=0, took_s=took_s[i], reason=None)
        tail = log_tail(part.directory.log, CLASSIFIED_LINES, since=since[i], until=watchers[i].log_bytes)
        begun_s, killed = started_s + sum(took_s[:i]), last and oom_kills() > kills
        result = _judge(part, records[i], ended, tail, watchers[i].stop_reason, begun_s, killed, sampler)
        if i and not believed(result, part.spec):
            break
        results.append(replace(result, warm=start is not None and start.warm, follower=i > 0))
        with writing(part.directory.result):
            write_json(part.directory.result, results[-1])
    for d in directories:
        d.shm_before.unlink(missing_ok=True)
    return results


def _prepare(part: Part) -> int:
    """Write the spec, and remove what an earlier run of the trial left, but for its log.

    Returns:
        Bytes of that.
    """
    directory = part.directory
    with writing(directory.spec):
        directory.path.mkdir(parents=True, exist_ok=True)
        write_json(directory.spec, part.spec)
    of_ranks = (path for pattern in ("rank*.json", "steps*.txt") for path in directory.path.glob(pattern))
    for stale in (directory.stop, directory.stop_at, directory.samples, *of_ranks):
        stale.unlink(missing_ok=True)
    return directory.log.stat().st_size if directory.log.exists() else 0


def _records(part: Part) -> list[RankRecord]:
    records = []
    for rank in range(part.spec.n_ranks):
        with contextlib.suppress(FormatError):
            records.append(read_json(part.directory.rank(rank), RankRecord))
    return records


def _judge(
    part: Part,
    records: Sequence[RankRecord],
    end: Exit,
    tail: tuple[str, ...],
    stop_reason: str | None,
    started_s: float,
    oom_killed: bool,
    sampler: Sampler | None,
) -> TrialResult:
    """What one trial gave."""
    spec, directory = part.spec, part.directory
    if not records and (full := disk_full(directory.path)):
        tail = (*tail, full)  # which is why neither record nor log can say it
    judgement = classify(spec, records, end, tail, oom_killed=oom_killed)
    if judgement.outcome is Outcome.PRUNED:
        judgement = Judgement(Outcome.PRUNED, stop_reason or "stopped by the controller")
    first = next((r for r in records if r.rank == 0), None)
    window = window_of(sampler.samples, first) if sampler and first else None
    seen = power = None
    if sampler and window:
        seen, power = meanwhile(sampler.samples, window), power_of(sampler.samples, window)
        write_samples(directory.samples, sampler.samples, window)
    judgement = judged(judgement, seen)
    result = build_result(spec, records, judgement, started_s=started_s, took_s=end.took_s, tail=tail[-LOG_TAIL_LINES:])
    return with_energy(replace(result, meanwhile=seen), first, power.watts if power else None)


def log_tail(path: Path, n: int = LOG_TAIL_LINES, *, since: int = 0, until: int | None = None) -> tuple[str, ...]:
    """Last lines of a log as a terminal would show them: of a progress bar only its last state, and no colours.

    Args:
        path: the log; without it there are no lines.
        n: at most so many lines.
        since: bytes that do not: an earlier run of the trial wrote them.
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
