"""Which outcome is this? From the ranks' own records first, then the log, then the exit status."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from autotune.contract import UNTIMED, Outcome, RankRecord, TrialSpec
from autotune.machine.memory import spell_size
from autotune.run.signals import OOM_KILLED, SIGNALS
from autotune.run.signs import SIGNS, Sign
from autotune.run.supervise import Exit
from autotune.run.watch import OVER_MEMORY, OVER_TOTAL

UNSTABLE_FRAC = 0.10
"""A 95 % interval wider than this on either side is shown as unstable: it could not rank configurations 15 % apart."""
HARMLESS_WAIT_FRAC = 0.10
"""Without loader workers the wait is all of the loader's work, and decoding at most half of that (ULTRALYTICS 1.6): up
to this share a buffer that still fills moves the step by 5 % at most. Workers hide their work, so it is no bound."""
LINE_CHARS = 300
"""The longest line shown to the user."""
EXCEPTION = re.compile(r"^(\[rank\d+\]:\s*)?([A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception|Interrupt|Exit|Failed)\b")
"""How a traceback ends."""
FAILED_RANK = re.compile(
    r"^\s*rank\s*:\s*(\d+) \(local_rank: \d+\)\s*$\s*^\s*exitcode\s*:\s*(-?\d+) \(pid: (\d+)\)", re.MULTILINE
)
"""One failure in torchrun's ChildFailedError."""
ENDED_BY_AGENT = re.compile(r"Sending process (\d+) closing signal")
"""Torchrun's agent ends the ranks that are left once one has failed (KNOBS 5.2)."""

BENIGN: Final = (
    r"\bWARNING\b",  # Ultralytics' own, among them its retries when memory is short and labels it leaves out
    r"\w*Warning: ",  # Python's, and torch's deprecations: NCCL_ASYNC_ERROR_HANDLING killed good trials of others (E1)
    r"^\s*(\[rank\d+\]:)?\[?[WI]\d{3,4} ",  # glog lines of severity W and I, from torch and from torchrun's agent
    r"Setting OMP_NUM_THREADS environment variable",
    r"NCCL INFO",
    r"recompile_limit",  # slow, not failed
    r"TaskAlignedAssigner",  # goes on with the CPU
    r"terminate called without an active exception",  # torch's destructors after correct results (ULTRALYTICS 3)
)
"""Lines of a log that explain nothing, whatever words they hold; a good record makes all of the log benign."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome and its two lines."""

    outcome: Outcome
    error: str | None = None
    hint: str | None = None


def classify(
    spec: TrialSpec,
    records: Sequence[RankRecord],
    end: Exit,
    log_tail: Sequence[str],
    *,
    oom_killed: bool = False,
) -> Judgement:
    """Judge one finished process tree.

    With a good record of every rank nothing else counts: not the exit status, not what stands in the log. But a trial
    that needed more memory than its spec allows is out of memory, whether it was ended for that or came to its end.

    Args:
        spec: what was asked.
        records: of the ranks that could write one, in order of rank.
        end: how the process ended.
        log_tail: last lines of its log; a few hundred, because torchrun's own report is long.
        oom_killed: the kernel killed some process for want of memory meanwhile (machine.limits.oom_kills).
    """
    over = _over_memory(spec, records, end)
    if over is not None:
        return Judgement(
            Outcome.OOM, over, "a smaller batch_per_gpu, fewer workers, cache=False, or a larger --mem-limit"
        )
    if len(records) < spec.n_ranks or any(r.status == "failed" for r in records):
        return _dead(spec, records, end, log_tail, oom_killed)
    if any(r.status == "stopped" for r in records):
        return Judgement(Outcome.PRUNED)
    if spec.trace_steps:
        return Judgement(Outcome.INTERRUPTED, "traced, and ended before anything was measured")
    wrong = dict.fromkeys(m for record in records for m in mismatches(spec, record))
    if wrong:
        return Judgement(
            Outcome.MISMATCH,
            "; ".join(f"asked {knob}={asked}, got {got}" for knob, asked, got in wrong),
            "what really ran is kept as a configuration of its own",
        )
    if len({r.effective.get("params") for r in records}) > 1 and spec.probe != "no_sync":
        apart = "the ranks' parameters differ: their gradients are not reduced together"
        return Judgement(Outcome.CRASH, apart, "a setting of DDP breaks this training; do not use it")
    if spec.probe in UNTIMED:
        return Judgement(Outcome.OK)
    return _measured(records[0])


def _over_memory(spec: TrialSpec, records: Sequence[RankRecord], end: Exit) -> str | None:
    """The rank that needed more than the spec allows, with the figures."""
    if end.reason and OVER_MEMORY in end.reason:
        return end.reason
    limit = spec.mem_limit_bytes
    worst = max(records, key=lambda r: r.peak_mem_bytes or 0, default=None)
    if limit is None or worst is None or (worst.peak_mem_bytes or 0) <= limit:
        return None
    what = "GPU memory" if spec.gpus else "memory"
    return (
        f"rank {worst.rank} needed {spell_size(worst.peak_mem_bytes or 0)} of {what}, its limit is {spell_size(limit)}"
    )


def mismatches(spec: TrialSpec, record: RankRecord) -> list[tuple[str, object, object]]:
    """Knobs that the search changed and that did not take effect: (knob, asked, got)."""
    return [
        (knob, asked, record.effective.get(knob))
        for knob, asked in spec.changes.items()
        if asked is not None and not same_value(record.effective.get(knob), asked)
    ]


def same_value(a: object, b: object) -> bool:
    """True == 1 in Python, but amp=True and torch_threads=1 are no neighbours: booleans only equal booleans."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def find_sign(lines: Sequence[str], *, stepped: bool, secondary: bool = False) -> tuple[str, str] | None:
    """The first sign of the table, in its order, that one of the lines carries: (its name, the line).

    Args:
        lines: of a log without its benign lines, or of an error record.
        stepped: a step was finished, or nobody knows.
        secondary: look for the signs of a failure elsewhere instead.
    """
    for name, sign in SIGNS.items():
        if sign.secondary is secondary and not (sign.before_steps and stepped):
            # Four spaces in front: source lines that a traceback quotes.
            found = [line.strip() for line in lines if not line.startswith("    ") and sign.matches(line)]
            if found:
                return name, next((line for line in reversed(found) if EXCEPTION.match(line)), found[0])
    return None


def _measured(record: RankRecord) -> Judgement:
    rate = record.steps.throughput(record.measured_from) if record.measured_from else None
    if rate is None:
        return Judgement(Outcome.CRASH, "the record holds no measured window", "the trial's log.txt has the details")
    if rate.half_width_frac is None:
        few = f"only {rate.n_steps} steps fitted into the window, too few for an interval"
        return Judgement(Outcome.UNSTABLE, few, "a longer budget gives longer windows")
    filling = _buffer_fills(record)
    if filling is not None:
        longer = "a longer --budget gives longer warm-ups; cache=ram needs no buffer"
        return Judgement(Outcome.UNSTABLE, filling, longer)
    drift = record.steps.halves_differ(record.measured_from or 0, int(record.job.get("accumulate") or 1))
    if drift is not None:
        slower = (
            f"the second half of the window was {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} than the first"
        )
        return Judgement(Outcome.UNSTABLE, slower, "the clock, the heat or another program changed meanwhile")
    if rate.half_width_frac > UNSTABLE_FRAC:
        wide = f"throughput is uncertain by +-{rate.half_width_frac:.0%}"
        return Judgement(Outcome.UNSTABLE, wide, "something else uses this machine, or the loader stalls")
    return Judgement(Outcome.OK)


def _buffer_fills(record: RankRecord) -> str | None:
    """Was the window measured while the mosaic buffer still filled, so that more is decoded than in a long run?

    Of the rules that a capped warm-up can miss only this one leaves a bias: a queue that drains is counted out
    (StepColumns.throughput), steps that drift are seen in the halves of the window, and noise is in the interval.
    """
    start, steps = record.measured_from or 0, record.steps
    needed = int(record.job.get("buffer_steps") or 0)
    if start >= needed:
        return None
    waited_frac = sum(steps.wait_s[start:]) / sum(steps.step_s[start:])
    if record.effective.get("workers") == 0 and waited_frac <= HARMLESS_WAIT_FRAC:
        return None
    return f"the mosaic buffer was still filling: it takes {needed} steps, the warm-up had time for {start}"


def _dead(spec: TrialSpec, records: Sequence[RankRecord], end: Exit, log: Sequence[str], oom_killed: bool) -> Judgement:
    """The first of: a record that names a cause, our own kill, the log, a signal, a record that blames others."""
    failed = sorted((r for r in records if r.status == "failed"), key=lambda r: (_ended(r), r.rank))
    blaming_others = None
    raw, log = log, [line for line in log if not any(re.search(p, line) for p in BENIGN)]
    for record in failed:
        lines, stepped = _words(record), bool(record.steps.end_s)
        found = find_sign(lines, stepped=stepped)
        if found is None and find_sign(lines, stepped=stepped, secondary=True):
            blaming_others = blaming_others or record
            continue
        if found and found[0] == "loader_worker" and oom_killed:
            return _told(OOM_KILLED, found[1], _who(spec, record))
        if found and SIGNS[found[0]].says:
            return _told(SIGNS[found[0]], found[1], _who(spec, record))
        line = f"{_who(spec, record)}{' '.join(' '.join(lines).split())}"[:LINE_CHARS]
        if found:
            return Judgement(SIGNS[found[0]].outcome, line, SIGNS[found[0]].hint)
        return Judgement(Outcome.CRASH, line, "the trial's log.txt has the traceback")
    if end.reason:
        stuck = [line for line in log if EXCEPTION.match(line)]
        found = find_sign(stuck, stepped=True)
        if found and SIGNS[found[0]].hangs:
            return _told(SIGNS[found[0]], f"{found[1]}; then {end.reason}")
        more = "a longer --budget gives it more time"
        if not end.reason.startswith(OVER_TOTAL):  # no deadline of the budget's: more time would not help
            more = "`autotune trial FOLDER` runs it again on screen"
        hint = f"the trial's log.txt shows how far it came; {more}"
        return Judgement(Outcome.TIMEOUT, end.reason, hint)
    found = find_sign(log, stepped=True)
    if found:
        return _told(OOM_KILLED if found[0] == "loader_worker" and oom_killed else SIGNS[found[0]], found[1])
    who, number = _signal(spec, records, end, raw)
    if number == signal.SIGKILL and oom_killed:
        return _told(OOM_KILLED, "", who)
    if number in SIGNALS:
        return _told(SIGNALS[number], "", who)
    found = find_sign(_words(blaming_others) if blaming_others else log, stepped=True, secondary=True)
    if found:
        return _told(SIGNS[found[0]], found[1], _waiting(spec, records))
    last = next((line for line in reversed(log) if EXCEPTION.match(line)), None) or _last(log)
    return Judgement(
        Outcome.CRASH,
        f"exit status {end.returncode} without a record: {last.strip()}"[:LINE_CHARS],
        "the trial's log.txt has the details",
    )


def _told(sign: Sign, evidence: str, who: str = "") -> Judgement:
    line = f"{who}{sign.says}: {' '.join(evidence.split())}" if evidence else f"{who}{sign.says}"
    return Judgement(sign.outcome, line[:LINE_CHARS], sign.hint)


def _words(record: RankRecord) -> list[str]:
    error = record.error or {"type": "unknown", "message": ""}
    return f"{error['type']}: {error['message']}".splitlines()


def _ended(record: RankRecord) -> float:
    return math.inf if record.ended_s is None else record.ended_s


def _who(spec: TrialSpec, record: RankRecord) -> str:
    return f"rank {record.rank}: " if spec.n_ranks > 1 else ""


def _waiting(spec: TrialSpec, records: Sequence[RankRecord]) -> str:
    """The ranks that blame others, and the ones without a word: those are the ones to look at."""
    silent = sorted(set(range(spec.n_ranks)) - {r.rank for r in records})
    if spec.n_ranks == 1 or not silent:
        return ""
    return f"rank {', '.join(map(str, silent))} left no record; "


def _signal(spec: TrialSpec, records: Sequence[RankRecord], end: Exit, log: Sequence[str]) -> tuple[str, int]:
    """Who was ended by which signal (0: none): a rank without a record, as torchrun's agent reports it, or the root.

    The agent itself exits with 1 whatever happened, and itself ends the ranks that are left.
    """
    recorded = {r.rank for r in records}
    text = "\n".join(log)
    by_agent = set(ENDED_BY_AGENT.findall(text))
    for rank, code, pid in FAILED_RANK.findall(text):
        if int(rank) not in recorded and int(code) < 0 and pid not in by_agent:
            return f"rank {rank} was ", -int(code)
    number = -end.returncode if end.returncode < 0 else end.returncode - 128  # a shell's way to tell a signal
    return ("torchrun was " if spec.n_ranks > 1 and number > 0 else ""), max(number, 0)


def _last(log: Sequence[str]) -> str:
    return next((line for line in reversed(log) if line.strip()), "empty log")
