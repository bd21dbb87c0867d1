"""How does a trial's process tree live, and how does all of it die? No orphan, no spinning."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from autotune.run.launch import TAG

PR_SET_CHILD_SUBREAPER = 36
PF_EXITING = 0x4
"""Of a process's flags (linux/sched.h)."""
POLL_S = 0.25
KILL_S = 15.0
"""A process that survives SIGKILL for so long sits in the kernel (a dead disk or driver); we go on without it."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How the root process ended; `reason` is set when we ended it."""

    returncode: int
    took_s: float
    reason: str | None


class Root(Protocol):
    """The first process of a tree, a child of ours: subprocess.Popen, or one forked by a preloaded parent."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """Exit status once it was reaped; -N for signal N."""

    def poll(self) -> int | None:
        """Reap it if it has ended; its exit status, else None."""

    def wait(self, timeout: float | None = None) -> int:
        """Reap it; raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it was reaped."""


def start_cold(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path | None) -> Root:
    """A fresh interpreter in a session of its own.

    Args:
        argv: the command, never a shell's string.
        env: its whole environment; env[launch.TAG] marks every process of the tree.
        cwd: its working folder.
        log: file for stdout and stderr; None leaves them on ours.
    """
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else None
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT if out else None,
            start_new_session=True,
        )


def run_tree(
    start: Callable[[], Root],
    *,
    tag: str,
    poll: Callable[[float], str | None],
    grace_s: float = 3.0,
    interrupt_s: float = 0.0,
) -> Exit:
    """Start a process and wait until it exits, or until `poll` returns a reason to kill its whole tree.

    Args:
        start: makes the root process, in a session of its own, with TAG=tag in its environment.
        tag: finds the members that left the tree.
        poll: called every POLL_S with the seconds since the start.
        grace_s: seconds between SIGTERM and SIGKILL.
        interrupt_s: seconds that the root has to end by itself when we are interrupted: it is sent SIGINT then.

    Raises:
        BaseException: whatever interrupts us (KeyboardInterrupt), after the tree is dead.
    """
    _become_subreaper()
    older = own_children()
    began = time.monotonic()
    reason: str | None = None
    process = start()
    with contextlib.ExitStack() as stack:
        try:
            fd = os.pidfd_open(process.pid)
            stack.callback(os.close, fd)
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            while not poller.poll(POLL_S * 1000):
                reason = poll(time.monotonic() - began)
                if reason:
                    break
        except KeyboardInterrupt:
            if interrupt_s:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(interrupt_s)
            raise
        finally:
            took = time.monotonic() - began
            kill_tree(process, tag, grace_s=grace_s if reason else 0.0, spare=older)
    # Without a status it did not die of SIGKILL either: see KILL_S.
    returncode = -signal.SIGKILL if process.returncode is None else process.returncode
    return Exit(returncode=returncode, took_s=took, reason=reason)


def kill_tree(process: Root, tag: str, *, grace_s: float, spare: Collection[int] = ()) -> None:
    """End the root, its descendants and every process that carries the tag; reap what became ours.

    Children in sessions of their own survive a killpg, and orphans leave the tree: the tag finds both (KNOBS 5.3).

    Args:
        process: the root.
        tag: value of TAG in the environment of the members.
        grace_s: seconds between SIGTERM to the root, which passes it on, and SIGKILL to all.
        spare: children of ours that are older than the tree: never reaped here, whoever started them wants to.
    """
    if grace_s and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    deadline = time.monotonic() + KILL_S
    killed: set[int] = set()
    while True:
        # Looked for before the root is reaped: until then nobody else can have its pid, and its session is known.
        members = _members(process.pid, tag, reaped=process.returncode is not None)
        alive = [p for p in members if p.pid != process.pid and p.state not in "ZX"]
        for p in alive:
            killed.add(p.pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(p.pid, signal.SIGKILL)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        reaped = _reap({process.pid, *spare}, killed)
        if (reaped and not alive) or time.monotonic() > deadline:
            return
        time.sleep(0.02)


def own_children() -> frozenset[int]:
    """Children of this process: what somebody else started, when it is asked before a tree is."""
    return frozenset(p.pid for p in _processes() if p.ppid == os.getpid())


def find_tagged(value: str, name: str = TAG) -> list[psutil.Process]:
    """Processes, other than this one, that started with NAME=value in their environment."""
    found = []
    for p in _processes():
        if p.pid != os.getpid() and _has(p.pid, f"{name}={value}"):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(p.pid))
    return found


class _Process(NamedTuple):
    """What /proc/PID/stat says; state Z is a zombie, X dead, T stopped. One that ends is soon a zombie."""

    pid: int
    ppid: int
    session: int
    state: str
    ends: bool


def _processes() -> Iterator[_Process]:
    """Every process there is, from one look at /proc."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - twice as fast as iterdir, and it runs while others measure
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{name}/stat").read_bytes()
                # The name may hold spaces.
                state, ppid, _, session, _, _, flags = stat[stat.rindex(b")") + 2 :].split(b" ", 7)[:7]
                yield _Process(int(name), int(ppid), int(session), state.decode(), bool(int(flags) & PF_EXITING))


def _has(pid: int, variable: str) -> bool:
    """True when the environment that the process started with holds NAME=VALUE; False where it is not ours to read."""
    with contextlib.suppress(OSError):
        return os.fsencode(variable) in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _members(root: int, tag: str, *, reaped: bool) -> list[_Process]:
    """Tagged processes and the root; their descendants; the sessions that any of these opened, and so on.

    Once the root is reaped, a process of its number is somebody else's. The kernel gives a number away only when no
    session has it either, so that without such a process the number still means our session.
    """
    table = list(_processes())
    seeds = {p.pid for p in table if _has(p.pid, f"{TAG}={tag}")}
    if not (reaped and any(p.pid == root for p in table)):
        seeds.add(root)
    found = {p.pid: p for p in table if p.pid in seeds}
    mine = {os.getpid(), os.getsid(0)}
    while True:
        # A session belongs to the tree when its leader does; a leader that is gone leaves its number on the others.
        more = [
            p
            for p in table
            if p.pid not in found and p.pid not in mine and (p.ppid in seeds or p.session in seeds) and p.pid > 1
        ]
        if not more:
            return list(found.values())
        found |= {p.pid: p for p in more}
        seeds |= {p.pid for p in more}


def _become_subreaper() -> None:
    """Orphans of the tree become our children instead of PID 1's, so they can be reaped."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(spare: Collection[int], killed: Collection[int]) -> bool:
    """Collect zombies handed to us; never a child of our own session.

    Returns:
        False while one cannot be collected: its first thread has ended, but others, and its memory, have not; or it
        was killed, or ends by itself because its parent did, and is no zombie yet, but has lost its environment
        already, so that no tag is seen on it.
    """
    done = True
    for p in _processes():
        if p.ppid != os.getpid() or p.pid in spare or p.session == os.getsid(0):
            continue
        if p.state != "Z":
            done = done and p.pid not in killed and not p.ends
        else:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(p.pid, os.WNOHANG)[0] == 0:
                    os.kill(p.pid, signal.SIGKILL)
                    done = False
    return done
