"""What does a torch.profiler trace of a few steps say, in short? Written by rank 0 of a traced trial, never scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autotune.contract.words import FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator, summed over the trace; on CUDA its time is that of the kernels it launched."""

    name: str
    self_s: float
    n_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """trace_summary.json; profiling slows small models by tens of per cent, so that no time here is a measurement."""

    format: int = FORMAT
    device: Literal["cpu", "cuda"]
    n_steps: int
    window_s: float
    """From the start of the first traced step to the end of the last one."""
    wait_s: float
    """Of the window: the training loop waits for the loader."""
    idle_s: float
    """Of the window: no kernel runs on the GPU (cuda), or the main thread is in no operator (cpu), waiting included."""
    operators: tuple[Operator, ...]
    """All of them, dearest first."""
