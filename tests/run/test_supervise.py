"""Process trees die whole: real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from autotune.run.launch import TAG
from autotune.run.supervise import Exit, find_tagged, kill_tree, run_tree, start_cold


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
            memory = b"x" * (400 << 20)  # gives up its environment some time before it is a zombie
            open("up", "w").close()
            time.sleep(300)
        os._exit(0)
    time.sleep(300)
"""


def up(tmp_path: Path) -> Callable[[float], str | None]:
    """A reason to kill the tree, once it says that it is up."""
    return lambda _: "enough" if (tmp_path / "up").exists() else None


def test_a_reason_kills_stubborn_children_in_their_own_sessions(tmp_path: Path) -> None:
    argv = script(tmp_path, STUBBORN)
    others = {p.pid for p in psutil.Process().children()}  # an orphan of another test is not ours to collect
    late = lambda s: "enough" if (tmp_path / "up").exists() and s > 1.0 else None  # noqa: E731
    end = run(argv, tmp_path, "t2", late, grace_s=0.5)
    assert end.reason == "enough"
    assert end.returncode == -9
    assert find_tagged("t2") == []
    zombies = [p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE and p.pid not in others]
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


def test_stopped_processes_die_too(tmp_path: Path) -> None:
    body = """
        import os, signal, subprocess, sys, time
        child = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
        subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
        time.sleep(1)
        open("up", "w").close()
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    end = run(script(tmp_path, body), tmp_path, "t6", up(tmp_path), grace_s=0.2)
    assert end.returncode == -9
    assert find_tagged("t6") == []


def test_an_orphan_without_our_mark_is_found_by_its_session(tmp_path: Path) -> None:
    # Its parent is gone, and the environment that it started with is empty.
    body = """
        import os, subprocess, sys, time
        if os.fork() == 0:
            pid = os.fork()
            if pid == 0:
                os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(300)"], {})
            open("orphan", "w").write(str(pid))
            os._exit(0)
        os.wait()
        time.sleep(0.5)
    """
    end = run(script(tmp_path, body), tmp_path, "t7", lambda _: None)
    assert end.returncode == 0
    assert not psutil.pid_exists(int((tmp_path / "orphan").read_text()))


def test_a_zombie_whose_other_threads_live_is_not_dead(tmp_path: Path) -> None:
    # Seen with ranks of torch: state Z, and yet not to be collected, its memory still in use.
    body = """
        import ctypes, os, platform, threading, time
        if os.fork() == 0:
            os.setsid()
            threading.Thread(target=time.sleep, args=(300,)).start()
            open("orphan", "w").write(str(os.getpid()))
            sys_exit = {"x86_64": 60, "aarch64": 93}[platform.machine()]
            ctypes.CDLL(None).syscall(sys_exit, 0)  # ends this thread only
        time.sleep(1)
    """
    end = run(script(tmp_path, body), tmp_path, "t11", lambda _: None)
    assert end.returncode == 0
    assert not psutil.pid_exists(int((tmp_path / "orphan").read_text()))


def test_one_that_dies_by_itself_when_its_parent_does_is_waited_for(tmp_path: Path) -> None:
    """Seen with ranks whose launcher was killed: on its way out it has no environment, so nothing marks it as ours."""
    body = """
        import mmap, os, time
        if os.fork() == 0:
            os.setsid()
            memory = mmap.mmap(-1, 2 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            for at in range(0, len(memory), mmap.PAGESIZE):  # to give them back takes a while
                memory[at] = 1
            open("dies.tmp", "w").write(f"{os.getpid()} {os.getppid()}")
            os.rename("dies.tmp", "dies")
        time.sleep(300)
    """
    died: list[int] = []

    def kill_both(_: float) -> None:
        if (tmp_path / "dies").exists() and not died:
            child, root = map(int, (tmp_path / "dies").read_text().split())
            died.append(child)
            os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                while Path(f"/proc/{child}/environ").read_bytes():
                    time.sleep(0.0005)
            os.kill(root, signal.SIGKILL)

    assert run(script(tmp_path, body), tmp_path, "t12", kill_both).returncode == -9
    assert not psutil.pid_exists(died[0])


def test_a_child_that_is_older_than_the_tree_keeps_its_status(tmp_path: Path) -> None:
    older = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    died: list[float] = []

    def kill_it(seconds: float) -> None:
        if not died:
            older.kill()
            died.append(seconds)

    run(script(tmp_path, "import time; time.sleep(1)"), tmp_path, "t8", kill_it)
    assert died
    assert older.wait(5) == -9, "reaped by somebody else it would be 0"


def test_a_child_of_ours_that_is_not_of_the_tree_lives_on(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    run(script(tmp_path, ""), tmp_path, "t9", lambda _: None)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_number_that_was_given_away_is_nobodys_tree(tmp_path: Path) -> None:
    """The root was reaped, and its number is now that of somebody else's process, which has a child."""
    body = """
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        open("up", "w").close()
        time.sleep(300)
    """
    theirs = subprocess.Popen(script(tmp_path, body), cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "up").exists():
        assert theirs.poll() is None
        time.sleep(0.02)
    (child,) = psutil.Process(theirs.pid).children()
    root = subprocess.Popen([sys.executable, "-c", ""])
    root.wait()
    root.pid = theirs.pid
    kill_tree(root, "t12", grace_s=0.0)
    assert child.status() != psutil.STATUS_ZOMBIE
    assert theirs.poll() is None
    child.kill()
    theirs.kill()
    theirs.wait()


def test_found_by_any_variable(tmp_path: Path) -> None:
    env = {**os.environ, TAG: "t10", "AUTOTUNE_RUN_ID": "/some/run"}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env=env)
    try:
        assert [p.pid for p in find_tagged("/some/run", "AUTOTUNE_RUN_ID")] == [child.pid]
        assert find_tagged("/some", "AUTOTUNE_RUN_ID") == []
        assert [p.pid for p in find_tagged("t10")] == [child.pid]
    finally:
        child.kill()
        child.wait()


def test_a_rank_whose_starter_is_gone_leaves_at_once(tmp_path: Path) -> None:
    env = {**os.environ, "AUTOTUNE_PARENT_PID": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for module in ("autotune.worker", "autotune.worker.agent"):
        end = subprocess.run([sys.executable, "-m", module, str(tmp_path)], env=env, capture_output=True, check=False)
        assert (end.returncode, end.stdout, end.stderr) == (1, b"", b""), "else it would miss its spec.json and say so"


def test_waiting_does_not_spin(tmp_path: Path) -> None:
    argv = script(tmp_path, "import time; time.sleep(2)")
    before = time.process_time()
    run(argv, tmp_path, "t5", lambda _: None)
    assert time.process_time() - before < 0.4
