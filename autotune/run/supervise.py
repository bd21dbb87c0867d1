"""How does a trial's process tree live, and how does all of it die? No orphan, no spinning."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from autotune.run.launch import TAG

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.25


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


def run_tree(start: Callable[[], Root], *, tag: str, poll: Callable[[float], str | None], grace_s: float = 3.0) -> Exit:
    """Start a process and wait until it exits, or until `poll` returns a reason to kill its whole tree.

    Args:
        start: makes the root process, in a session of its own, with TAG=tag in its environment.
        tag: finds the members that left the tree.
        poll: called every POLL_S with the seconds since the start.
        grace_s: seconds between SIGTERM and SIGKILL.

    Raises:
        BaseException: whatever interrupts us (KeyboardInterrupt), after the tree is dead.
    """
    _become_subreaper()
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
        finally:
            took = time.monotonic() - began
            kill_tree(process, tag, grace_s=grace_s if reason else 0.0)
    assert process.returncode is not None, "kill_tree reaps the root"
    return Exit(returncode=process.returncode, took_s=took, reason=reason)


def kill_tree(process: Root, tag: str, *, grace_s: float) -> None:
    """End the root, its descendants and every process that carries the tag; reap what became ours.

    Children in sessions of their own survive a killpg, and orphans leave the tree: the tag finds both (KNOBS 5.3).
    """
    if grace_s and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    deadline = time.monotonic() + 15.0
    while True:
        alive = [p for p in _members(process.pid, tag) if _is_running(p)]
        for p in alive:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                p.kill()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(15.0)
        _reap(exclude=process.pid)
        if not alive or time.monotonic() > deadline:
            return
        time.sleep(0.02)


def find_tagged(value: str, name: str = TAG) -> list[psutil.Process]:
    """Processes of ours whose environment carries NAME=value; never this one."""
    needle = os.fsencode(f"{name}={value}")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(psutil.Process(int(entry.name)))
    return found


def _members(root: int, tag: str) -> list[psutil.Process]:
    members = {p.pid: p for p in find_tagged(tag)}
    with contextlib.suppress(psutil.NoSuchProcess):
        members |= {p.pid: p for p in psutil.Process(root).children(recursive=True)}
    members.pop(root, None)
    return list(members.values())


def _is_running(p: psutil.Process) -> bool:
    try:
        return p.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _become_subreaper() -> None:
    """Orphans of the tree become our children instead of PID 1's, so they can be reaped."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(exclude: int) -> None:
    """Collect zombies handed to us; never the root, whose status Popen wants, nor a child of our own session."""
    for p in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError, ProcessLookupError):
            if p.pid != exclude and p.status() == psutil.STATUS_ZOMBIE and os.getsid(p.pid) != os.getsid(0):
                os.waitpid(p.pid, os.WNOHANG)
