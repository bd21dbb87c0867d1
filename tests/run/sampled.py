"""A sampler on synthetic GPUs, in a /proc made by hand, on a clock that nobody waits for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autotune.contract import RankRecord, StepColumns
from autotune.machine.gpu_activity import looking_at
from autotune.run.sample import Sampler

RANK, STRANGER = 10, 77
BEGAN_S = 1000.0
"""The clock when the trial's processes are started."""


def handmade_process(root: Path, pid: int, *, ppid: int = 1, session: int, name: str = "python") -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = " ".join(["0"] * 30)
    (folder / "stat").write_text(f"{pid} ({name}) S {ppid} {pid} {session} {numbers}\n")
    (folder / "comm").write_text(f"{name}\n")


class FakeClock:
    """Counts from BEGAN_S; a world of FakeNvml sees the seconds since then."""

    def __init__(self) -> None:
        self.since_s = 0.0

    def __call__(self) -> float:
        return BEGAN_S + self.since_s

    def of_world(self) -> float:
        return self.since_s


@contextlib.contextmanager
def sampler(folder: Path, nvml: Any, clock: FakeClock, gpus: tuple[str, ...] = ("GPU-0",)) -> Iterator[Sampler]:
    """Begun: its rank is process RANK, and nobody else but STRANGER is there."""
    handmade_process(folder, RANK, session=RANK)
    handmade_process(folder, STRANGER, session=STRANGER, name="other job")
    with looking_at(gpus, nvml) as looker:
        made = Sampler(looker, folder / "samples.csv", root=folder, clock=clock)
        made.begin(RANK)
        yield made
        made.end()


def sampled(made: Sampler, clock: FakeClock, *, until_s: float, every_s: float = 0.25) -> None:
    """Look as the thread would."""
    while clock.since_s <= until_s:
        made.look()
        clock.since_s += every_s


def record(**fields: object) -> RankRecord:
    """Its process began with the trial; five steps of 2 s are measured, from second 10 to 20."""
    ends = [8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0]
    steps = StepColumns(end_s=ends, wait_s=[0.0] * 7, step_s=[2.0] * 7, images=[8] * 7, ready=[0] * 7)
    return RankRecord(**{"rank": 0, "status": "done", "steps": steps, "measured_from": 2, "began_s": BEGAN_S, **fields})
