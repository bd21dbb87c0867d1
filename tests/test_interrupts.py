"""SIGINT, SIGTERM and SIGKILL to the controller in each phase of a search: real process trees, synthetic training.

Nothing outlives it, nothing that was measured is lost, and `--resume` completes the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.contract import Outcome, Summary, read_json
from autotune.run.launch import RUN_TAG
from tests.searching import BUDGET_S, World, end, finish, parents_of, tree_of, wait_until, world

__all__ = ["world"]

PHASES = ("baseline", "trial", "finalist", "report")
INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
PLAIN = {("trial", KILL)}
"""The others take the same ways through the code, and are slow."""
CASES = [
    pytest.param(phase, number, marks=() if (phase, number) in PLAIN else pytest.mark.slow, id=f"{phase}-{number.name}")
    for phase in PHASES
    for number in (INT, TERM, KILL)
    if number is not TERM or phase in ("baseline", "trial")  # SIGTERM goes the way of SIGINT (interrupts.py)
]
HANGS = {phase: {f"{phase} 1": {"fault": "hang", "at": 4}} for phase in PHASES[:3]}
"""It is still running when the signal comes."""
GONE_S = 15.0


@pytest.mark.parametrize(("phase", "number"), CASES)
def test_a_signal_to_the_controller(world: World, phase: str, number: signal.Signals) -> None:
    # Finalists before the report are in the slow ones and in test_search_faults.py.
    first = world.search(trials=0 if (phase, number) == ("report", KILL) else 2, faults=HANGS.get(phase, {}))
    first.wait_for(phase)
    before = {n: r for n, r in first.results().items() if r.outcome is not Outcome.INTERRUPTED}
    assert phase in ("baseline", "report") or before
    assert phase not in ("trial", "finalist") or parents_of(first.folder), "a preloaded parent must die too"
    first.process.send_signal(number)
    code, said = end(first, BUDGET_S)
    assert code == (-9 if number == KILL else 130), said
    wait_until(lambda: not tree_of(first.folder), "the end of the tree", GONE_S)
    assert before.items() <= first.results().items()
    if number != KILL:
        assert "Traceback" not in said
        assert time.monotonic() - first.began <= BUDGET_S + 10.0
        assert list(world.tmp.iterdir()) == []
        summary = read_json(first.folder / "summary.json", Summary)
        if phase != "report":
            assert summary.stopped_because == "interrupted"
            assert [r.outcome for r in first.results().values()].count(Outcome.INTERRUPTED) == 1
        assert (first.folder / "report.html").exists()
    finish(world, first, before)


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Two that are pending together arrive as one."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask & 1 << number - 1 for mask in masks)


@pytest.mark.slow
def test_ctrl_c_twice_leaves_at_once_and_leaves_nothing(world: World) -> None:
    first = world.search(faults=HANGS["trial"])
    first.wait_for("trial")
    first.process.send_signal(INT)
    wait_until(lambda: not is_pending(first.process.pid, INT), "the first one's arrival")
    time.sleep(0.05)  # from the kernel's delivery to Python's handler; the export that follows takes a second
    first.process.send_signal(INT)
    second = time.monotonic()
    code, said = end(first, 20.0)
    assert code == 130, said
    assert time.monotonic() - second < 10.0
    assert tree_of(first.folder) == []
    assert not any(e["kind"] == "run_ended" for e in first.events())
    finish(world, first, {n: r for n, r in first.results().items() if r.outcome is not Outcome.INTERRUPTED})


@pytest.mark.slow
def test_what_a_dead_search_left_running_is_killed_before_it_goes_on(world: World) -> None:
    first = world.search(faults=HANGS["trial"])
    first.wait_for("trial")
    first.process.kill()
    end(first, 10.0)
    stray = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, RUN_TAG: str(first.folder)},
        start_new_session=True,
    )
    try:
        finish(world, first, {})
        assert stray.wait(5.0) == -9
    finally:
        stray.kill()
        stray.wait()


def test_a_folder_in_use_is_refused(world: World) -> None:
    first = world.search(faults=HANGS["baseline"])
    first.wait_for("baseline")
    code, said = end(world.search("--resume", str(first.folder)), 30.0)
    assert code == 3, said
    assert f"pid {first.process.pid}" in said
    assert str(first.folder) in said
    assert first.process.poll() is None, "the living one goes on"
    first.process.send_signal(TERM)
    assert end(first, 30.0)[0] == 130
