"""What does the trace of a trial say in a few lines? The table of `autotune trial DIR --trace`."""

from __future__ import annotations

from typing import Final

from autotune.contract import TraceSummary, TrialDir, read_json
from autotune.report import words

N_OPERATORS: Final = 12
_IDLE: Final = {"cuda": "the GPU runs no kernel", "cpu": "the main thread is in no operator"}


def trace_lines(trial: TrialDir) -> list[str]:
    """Where the time of the traced steps went, the dearest operators, and where to look further.

    Raises:
        FormatError: the folder holds no readable summary of a trace.
    """
    t = read_json(trial.trace_summary, TraceSummary)
    mean = f"{words.number(1000 * t.window_s / t.n_steps)} ms"
    total_s = sum(o.self_s for o in t.operators)
    width = max([len("operator"), *(len(o.name[:60]) for o in t.operators[:N_OPERATORS])])
    lines = [
        f"{words.plural(t.n_steps, 'step')} traced, {mean} each under the profiler: not a measurement",
        f"  waiting for data  {words.percent(t.wait_s / t.window_s)}",
        f"  idle              {words.percent(t.idle_s / t.window_s)}   ({_IDLE[t.device]}; waiting included)",
        f"  {'operator':<{width}}  {'self ' + t.device:>9}  {'share':>6}  {'calls/step':>10}",
    ]
    for o in t.operators[:N_OPERATORS]:
        share = words.percent(o.self_s / total_s) if total_s else words.DASH
        ms = f"{1000 * o.self_s / t.n_steps:.2f} ms"
        lines.append(f"  {o.name[:60]:<{width}}  {ms:>9}  {share:>6}  {words.number(o.n_calls / t.n_steps):>10}")
    return [*lines, f"trace: {trial.trace}   (open it in chrome://tracing or ui.perfetto.dev)"]
