"""What do a few steps look like under torch.profiler? A Chrome trace and its short table; never scored."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from autotune.contract import Operator, TraceSummary, write_json
from autotune.worker.readback import effective
from autotune.worker.recorder import Recorder

SETTLE_STEPS: Final = 5
"""Before the profiler starts: cuDNN and oneDNN choose their kernels, a compile runs (KNOBS 6)."""
PROFILER_WARMUP_STEPS: Final = 3
"""Recorded and thrown away: the profiler's own start is slow."""
STEP: Final = "autotune step"
LOADER: Final = "enumerate(DataLoader)"
"""torch.utils.data puts each of its __next__ calls under a name that begins so."""

Event = dict[str, Any]
Span = tuple[float, float]


def trace(trainer: Any, recorder: Recorder, *, over: type[BaseException]) -> None:
    """Make this training write a trace and end: rank 0 profiles, every rank leaves after the same step.

    The window ends on an optimizer step, so that every trace holds one, whatever `accumulate` is.

    Args:
        trainer: not yet training.
        recorder: of the trial; `spec.trace_steps` steps are traced.
        over: raised to end the training.
    """
    # The segment stays in its warm-up: a profiled step may never become a number.
    recorder.segment.settings = replace(recorder.segment.settings, warmup_steps=sys.maxsize, warmup_cap_s=math.inf)
    prof: Any = None
    step: Any = None
    n = begin = end = 0

    def begin_step() -> None:
        nonlocal step
        step = torch.profiler.record_function(STEP)
        step.__enter__()

    def on_train_start(_: Any) -> None:
        nonlocal begin, end
        least = SETTLE_STEPS + PROFILER_WARMUP_STEPS + recorder.spec.trace_steps
        end = -(-least // trainer.accumulate) * trainer.accumulate
        begin = end - recorder.spec.trace_steps

    def on_train_batch_end(_: Any) -> None:
        nonlocal n, prof
        n += 1
        if step is not None:
            step.__exit__(None, None, None)
        if recorder.rank == 0:
            if n == begin - PROFILER_WARMUP_STEPS:
                schedule = torch.profiler.schedule(wait=0, warmup=PROFILER_WARMUP_STEPS, active=end - begin, repeat=1)
                cuda = [ProfilerActivity.CUDA] if trainer.device.type == "cuda" else []
                prof = profile(activities=[ProfilerActivity.CPU, *cuda], schedule=schedule)
                prof.start()
            elif prof is not None:
                prof.step()
            if begin <= n < end:
                begin_step()
        if n >= end:
            if prof is not None:
                prof.stop()
                _write(prof, recorder, trainer.device.type)
            recorder.phase("trace")
            recorder.effective = effective(trainer, recorder.spec.n_ranks)
            raise over

    trainer.add_callback("on_train_start", on_train_start)
    trainer.add_callback("on_train_batch_end", on_train_batch_end)


def _write(prof: profile, recorder: Recorder, device: str) -> None:
    """The trace, and the table made from the very file, so that it is known to be readable."""
    path = recorder.directory.trace
    prof.export_chrome_trace(str(path))
    with gzip.open(path, "rt", encoding="utf-8") as f:
        events = json.load(f)["traceEvents"]
    write_json(recorder.directory.trace_summary, summarise(events, device))


def summarise(events: Iterable[Event], device: str) -> TraceSummary:
    """Events of a Chrome trace of torch.profiler -> table.

    Args:
        events: `traceEvents`; times in microseconds.
        device: cpu or cuda: what the operators' times are of.

    Raises:
        ValueError: no step of ours is in the trace.
    """
    spans = [e for e in events if e.get("ph") == "X"]
    # With CUDA the profiler repeats each annotation on the GPU's track (gpu_user_annotation).
    steps = [e for e in spans if e["name"] == STEP and e.get("cat") == "user_annotation"]
    if not steps:
        raise ValueError("the trace holds no step")
    begin_us, end_us = min(e["ts"] for e in steps), max(_end(e) for e in steps)
    main = [e for e in spans if (e["pid"], e["tid"]) == (steps[0]["pid"], steps[0]["tid"])]
    operators = [e for e in spans if e.get("cat") == "cpu_op"]
    kernels = [e for e in spans if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    table = _by_launcher(kernels, operators) if device == "cuda" else _by_self_time(operators)
    busy = kernels if device == "cuda" else [e for e in main if e.get("cat") == "cpu_op"]
    waits = [e for e in main if e["name"].startswith(LOADER)]
    window = (begin_us, end_us)
    return TraceSummary(
        device="cuda" if device == "cuda" else "cpu",
        n_steps=len(steps),
        window_s=(end_us - begin_us) / 1e6,
        wait_s=_covered(waits, window) / 1e6,
        idle_s=(end_us - begin_us - _covered(busy, window)) / 1e6,
        operators=tuple(
            Operator(name=name, self_s=us / 1e6, n_calls=n)
            for name, (us, n) in sorted(table.items(), key=lambda item: -item[1][0])
        ),
    )


def _end(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def _covered(events: Iterable[Event], window: Span) -> float:
    """Microseconds of the window in which at least one of the events runs."""
    total, reached = 0.0, window[0]
    for event in sorted(events, key=lambda e: float(e["ts"])):
        begin, end = max(float(event["ts"]), reached), min(_end(event), window[1])
        if end > begin:
            total += end - begin
            reached = end
    return total


def _by_self_time(operators: list[Event]) -> dict[str, tuple[float, int]]:
    """Operator -> its microseconds without those of the operators that it called on the same thread, and its calls."""
    table: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    stacks: dict[Any, list[Event]] = defaultdict(list)
    for event in sorted(operators, key=lambda e: (float(e["ts"]), -float(e["dur"]))):
        stack = stacks[event["pid"], event["tid"]]
        while stack and _end(stack[-1]) <= event["ts"]:
            stack.pop()
        if stack:
            us, n = table[stack[-1]["name"]]
            table[stack[-1]["name"]] = (us - event["dur"], n)
        us, n = table[event["name"]]
        table[event["name"]] = (us + event["dur"], n + 1)
        stack.append(event)
    return table


def _by_launcher(kernels: list[Event], operators: list[Event]) -> dict[str, tuple[float, int]]:
    """Operator that launched them -> microseconds and number of its kernels; a kernel without one keeps its name."""
    names = {e["args"]["External id"]: e["name"] for e in operators if "External id" in e.get("args", {})}
    table: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for kernel in kernels:
        name = str(names.get(kernel.get("args", {}).get("External id"), kernel["name"]))
        us, n = table[name]
        table[name] = (us + kernel["dur"], n + 1)
    return table
