"""Process trees die whole: real processes, real signals."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from autotune.run.launch import TAG
from autotune.run.supervise import Exit, find_tagged, run_tree, start_cold


def script(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(body))
    return [sys.executable, str(path)]


def run(argv: list[str], tmp_path: Path, tag: str, poll: Callable[[float], str | None], grace_s: float = 3.0) -> Exit:
    start = partial(start_cold, argv, env={**os.environ, TAG: tag}, cwd=tmp_path, log=tmp_path / "log")
    return run_tree(start, tag=tag, poll=poll, grace_s=grace_s)


def test_exit_status_and_log(tmp_path: Path) -> None:
    argv = script(tmp_path, "import sys; print('hello'); sys.exit(7)")
    end = run(argv, tmp_path, "t1", lambda _: None)
    assert (end.returncode, end.reason) == (7, None)
    assert (tmp_path / "log").read_text() == "hello\n"


STUBBORN = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    for _ in range(3):  # in sessions of their own, as torchrun's ranks are
        subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    if os.fork() == 0:  # an orphan: its parent leaves at once
        if os.fork() == 0:
            os.setsid()
            time.sleep(300)
        os._exit(0)
    open("up", "w").close()
    time.sleep(300)
"""


def test_a_reason_kills_stubborn_children_in_their_own_sessions(tmp_path: Path) -> None:
    argv = script(tmp_path, STUBBORN)
    late = lambda s: "enough" if (tmp_path / "up").exists() and s > 1.0 else None  # noqa: E731
    end = run(argv, tmp_path, "t2", late, grace_s=0.5)
    assert end.reason == "enough"
    assert end.returncode == -9
    assert find_tagged("t2") == []
    zombies = [p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE]
    assert zombies == []


def test_an_interrupt_passes_through_after_the_tree_is_dead(tmp_path: Path) -> None:
    def interrupt(_: float) -> str | None:
        if (tmp_path / "up").exists():
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        run(script(tmp_path, STUBBORN), tmp_path, "t3", interrupt)
    assert find_tagged("t3") == []


def test_leftovers_of_a_tree_that_ended_well_are_killed(tmp_path: Path) -> None:
    body = """
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    """
    end = run(script(tmp_path, body), tmp_path, "t4", lambda _: None)
    assert end.returncode == 0
    assert find_tagged("t4") == []


def test_waiting_does_not_spin(tmp_path: Path) -> None:
    argv = script(tmp_path, "import time; time.sleep(2)")
    before = time.process_time()
    run(argv, tmp_path, "t5", lambda _: None)
    assert time.process_time() - before < 0.4
