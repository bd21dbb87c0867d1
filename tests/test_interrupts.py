"""SIGINT, SIGTERM and SIGKILL to the controller in each phase of a search: real process trees, synthetic training.

Nothing outlives it, nothing that was measured is lost, and `--resume` completes the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from autotune.contract import Outcome, RunDir, Summary, TrialResult, read_json
from autotune.run.launch import RUN_TAG
from autotune.run.supervise import find_tagged
from autotune.search.past import read_events

PHASES = ("baseline", "trial", "finalist", "report")
INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
PLAIN = {("baseline", TERM), ("trial", KILL), ("finalist", INT), ("report", KILL)}
"""The others take the same ways through the code, and are slow."""
CASES = [
    pytest.param(phase, number, marks=() if (phase, number) in PLAIN else pytest.mark.slow, id=f"{phase}-{number.name}")
    for phase in PHASES
    for number in (INT, TERM, KILL)
]
BUDGET_S = 40.0
MORE_S = 13.0
GONE_S = 15.0
STEP_S = 0.005


@dataclass
class Search:
    """A search in a process of its own, as a shell would start it."""

    process: subprocess.Popen[str]
    out: Path
    began: float

    @property
    def folder(self) -> Path:
        return (self.out / "latest").resolve()

    def events(self) -> list[dict]:
        with contextlib.suppress(OSError):
            return read_events(self.folder / "events.jsonl")
        return []

    def wait_for(self, phase: str) -> None:
        """Until the phase has begun, and a trial of it has taken steps."""
        wait_until(lambda: self.is_in(phase) or self.process.poll() is not None, f"the phase {phase}")
        assert self.process.poll() is None, self.process.stdout.read()

    def is_in(self, phase: str) -> bool:
        if phase == "report":
            return any(e.get("phase") == "report" for e in self.events())
        numbers = [e["number"] for e in self.events() if e["kind"] == "trial_started" and e["role"] == phase]
        ended = {e["result"]["number"] for e in self.events() if e["kind"] == "trial_ended"}
        for number in set(numbers) - ended:
            with contextlib.suppress(OSError):
                lines = (self.folder / "trials" / f"{number:04d}" / "steps0.txt").read_text().splitlines()
                return sum(not line.startswith("#") for line in lines) >= 3
        return False

    def results(self) -> dict[int, TrialResult]:
        found = (read_json(p, TrialResult) for p in self.folder.glob("trials/*/result.json"))
        return {r.number: r for r in found}


class World:
    """Folders of a test, with an environment that keeps everything in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tmp = folder / "tmp"
        self.mine = folder / "mine.txt"
        self.tmp.mkdir()
        self.mine.write_text("the user's own")
        self.started: list[subprocess.Popen[str]] = []
        self.shm = shared_memory()

    def search(self, *args: str, budget_s: float = BUDGET_S, trials: int = 2) -> Search:
        env = {
            **os.environ,
            "AUTOTUNE_SYNTHETIC": json.dumps({"step_s": STEP_S, "trials": trials}),
            "AUTOTUNE_LOCKS": str(self.folder / "locks"),
            "TMPDIR": str(self.tmp),
        }
        out = self.folder / "out"
        where = [] if "--resume" in args else ["--dry-run", "--out", str(out)]
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "autotune", "search", *where, "--budget", f"{budget_s:.0f}s", *args],
            env=env,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return Search(process, out, began)

    def digest(self) -> str:
        return hashlib.sha256(self.mine.read_bytes()).hexdigest()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:.0f} s"
        time.sleep(0.02)


def shared_memory() -> set[str]:
    mine = (p for p in Path("/dev/shm").iterdir() if p.lstat().st_uid == os.geteuid())
    return {p.name for p in mine if p.name.startswith(("torch_", "psm_", "sem.mp-"))}


def tree_of(folder: Path) -> list[psutil.Process]:
    living = []
    for process in find_tagged(str(folder), RUN_TAG):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def end(search: Search, timeout_s: float) -> tuple[int, str]:
    said, _ = search.process.communicate(timeout=timeout_s)
    return search.process.returncode, said


def finish(world: World, first: Search, before: dict[int, TrialResult]) -> Summary:
    """Resume it, and check that nothing was lost and nothing is left."""
    again = world.search("--resume", "out/latest", budget_s=MORE_S, trials=1)
    code, said = end(again, MORE_S + 40.0)
    took_s = time.monotonic() - again.began
    assert code == 0, said
    assert took_s <= MORE_S + 10.0
    after = first.results()
    assert {n: after[n] for n in before} == before
    events = [json.loads(line) for line in (first.folder / "events.jsonl").read_text().splitlines()]
    assert [e["t_s"] for e in events] == sorted(e["t_s"] for e in events)
    assert events[-1]["kind"] == "run_ended"
    ended = [e["result"]["number"] for e in events if e["kind"] == "trial_ended"]
    assert sorted(ended) == sorted(set(ended)) == sorted(after)
    assert (first.folder / "best" / "best.yaml").exists()
    assert "SIMULATED" in (first.folder / "report.html").read_text(encoding="utf-8")
    assert list(world.tmp.iterdir()) == []
    assert not [d.tmp for _, d in RunDir(first.folder).numbered() if d.tmp.exists()]
    assert not list(first.folder.glob("**/*.tmp"))
    assert not list(first.folder.glob(".best.*"))
    assert tree_of(first.folder) == []
    assert shared_memory() <= world.shm
    return read_json(first.folder / "summary.json", Summary)


@pytest.mark.parametrize(("phase", "number"), CASES)
def test_a_signal_to_the_controller(world: World, phase: str, number: signal.Signals) -> None:
    before_digest = world.digest()
    first = world.search()
    first.wait_for(phase)
    before = {n: r for n, r in first.results().items() if r.outcome is not Outcome.INTERRUPTED}
    assert phase in ("baseline", "report") or before
    first.process.send_signal(number)
    code, said = end(first, BUDGET_S)
    assert code == (-9 if number == KILL else 130), said
    wait_until(lambda: not tree_of(first.folder), "the end of the tree", GONE_S)
    assert time.monotonic() - first.began <= BUDGET_S + 10.0
    assert before.items() <= first.results().items()
    if number != KILL:
        assert "Traceback" not in said
        assert list(world.tmp.iterdir()) == []
        summary = read_json(first.folder / "summary.json", Summary)
        if phase != "report":
            assert summary.stopped_because == "interrupted"
            assert [r.outcome for r in first.results().values()].count(Outcome.INTERRUPTED) == 1
        assert (first.folder / "report.html").exists()
    finish(world, first, before)
    assert world.digest() == before_digest
    assert world.mine.read_text() == "the user's own"


def test_ctrl_c_twice_leaves_at_once_and_leaves_nothing(world: World) -> None:
    first = world.search()
    first.wait_for("trial")
    first.process.send_signal(INT)
    time.sleep(0.05)
    first.process.send_signal(INT)
    second = time.monotonic()
    code, said = end(first, 20.0)
    assert code == 130, said
    assert time.monotonic() - second < 10.0
    assert tree_of(first.folder) == []
    assert not any(e["kind"] == "run_ended" for e in first.events())
    finish(world, first, {n: r for n, r in first.results().items() if r.outcome is not Outcome.INTERRUPTED})


def test_what_a_dead_search_left_running_is_killed_before_it_goes_on(world: World) -> None:
    first = world.search()
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
    first = world.search()
    first.wait_for("baseline")
    code, said = end(world.search("--resume", str(first.folder)), 30.0)
    assert code == 3, said
    assert f"pid {first.process.pid}" in said
    assert str(first.folder) in said
    assert first.process.poll() is None, "the living one goes on"
    first.process.send_signal(TERM)
    assert end(first, 30.0)[0] == 130
