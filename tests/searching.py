"""A search in a process of its own, in a world of its own, with trials of the synthetic backend in real time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.contract import RunDir, RunInfo, Summary, TrialResult, read_json
from autotune.run.demo import demo_dataset
from autotune.run.launch import RUN_TAG
from autotune.run.supervise import find_tagged
from autotune.search.past import read_events

BUDGET_S = 40.0
MORE_S = 13.0
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
        self.tmp.mkdir()
        self.data = demo_dataset(folder / "mine", n_train=8, n_val=2)
        for image in (*self.data.parent.rglob("*.jpg"), *self.data.parent.rglob("*.png")):
            image.with_suffix(".npy").write_bytes(b"the user's own, as cache=disk leaves it")
        self.digest = digest(folder / "mine")
        self.started: list[subprocess.Popen[str]] = []
        self.shm = shared_memory()

    def search(self, *args: str, budget_s: float = BUDGET_S, trials: int = 2, **more: Any) -> Search:
        """Start one; `more` are other keys of simulation.REAL_TIME."""
        env = {
            **os.environ,
            "AUTOTUNE_SYNTHETIC": json.dumps({"step_s": STEP_S, "trials": trials, **more}),
            "AUTOTUNE_LOCKS": str(self.folder / "locks"),
            "TMPDIR": str(self.tmp),
        }
        out = self.folder / "out"
        where = [] if "--resume" in args else ["--dry-run", "--out", str(out), f"data={self.data}"]
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

    def check_clean(self, folder: Path) -> None:
        """No process of the run, nothing in shared memory or TMPDIR, and the user's dataset as it was."""
        assert tree_of(folder) == []
        wait_until(lambda: shared_memory() <= self.shm, "clean shared memory", 10.0)
        assert list(self.tmp.iterdir()) == []
        assert not list(folder.glob("trials/.preload-*"))
        assert digest(self.folder / "mine") == self.digest


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


def digest(folder: Path) -> str:
    """Of names, contents and times of all files."""
    h = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        h.update(f"{path} {path.stat().st_mtime_ns}".encode() + path.read_bytes())
    return h.hexdigest()


def shared_memory() -> set[str]:
    """Ours that nobody holds: what somebody else's living process has is no leftover."""
    held = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            held |= set(re.findall(r"/dev/shm/(\S+)", maps.read_text("utf-8", "replace")))
    names = set()
    for path in Path("/dev/shm").iterdir():
        with contextlib.suppress(OSError):
            if path.name.startswith(("torch_", "psm_", "sem.mp-")) and path.lstat().st_uid == os.geteuid():
                names.add(path.name)
    return names - held


def tree_of(folder: Path) -> list[psutil.Process]:
    living = []
    for process in find_tagged(str(folder), RUN_TAG):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def parents_of(folder: Path) -> list[psutil.Process]:
    """Preloaded parents, which fork the trials."""
    return [p for p in tree_of(folder) if ".preload-" in p.cwd()]


def end(search: Search, timeout_s: float) -> tuple[int, str]:
    said, _ = search.process.communicate(timeout=timeout_s)
    return search.process.returncode, said


def finish(world: World, first: Search, before: dict[int, TrialResult]) -> Summary:
    """Resume it, and check that nothing was lost and nothing is left."""
    again = world.search("--resume", "out/latest", budget_s=MORE_S, trials=1)
    code, said = end(again, MORE_S + 40.0)
    assert code == 0, said
    after = first.results()
    assert {n: after[n] for n in before} == before
    events = [json.loads(line) for line in (first.folder / "events.jsonl").read_text().splitlines()]
    assert [e["t_s"] for e in events] == sorted(e["t_s"] for e in events)
    assert events[-1]["kind"] == "run_ended"
    # From Enter, by its own clock: a busy machine's imports before that are nobody's fault.
    assert events[-1]["t_s"] <= read_json(first.folder / "run.json", RunInfo).budget_s + 10.0
    ended = [e["result"]["number"] for e in events if e["kind"] == "trial_ended"]
    assert sorted(ended) == sorted(set(ended)) == sorted(after)
    assert (first.folder / "best" / "best.yaml").exists()
    assert "SIMULATED" in (first.folder / "report.html").read_text(encoding="utf-8")
    assert not [d.tmp for _, d in RunDir(first.folder).numbered() if d.tmp.exists()]
    assert not list(first.folder.glob("**/*.tmp"))
    assert not list(first.folder.glob(".best.*"))
    world.check_clean(first.folder)
    return read_json(first.folder / "summary.json", Summary)
