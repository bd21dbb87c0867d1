"""Who has imported torch already, and can fork a trial? Parents by environment, and the way back to a cold start."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from autotune.contract import WARM_ROLES, TrialDir, TrialSpec
from autotune.run.launch import TAG
from autotune.run.supervise import Root, kill_tree, own_children

log = logging.getLogger(__name__)

LATE: Final = (TAG, "TMPDIR")
"""Read when used and not at import: the only variables in which a trial may differ from its parent."""
MAX_PARENTS: Final = 2
"""Alive at once; another environment ends the one that was used longest ago."""
MAX_FAILURES: Final = 2
"""After so many parents that broke, every trial starts cold."""
ANSWER_S: Final = 5.0
"""A fork takes milliseconds; a parent that does not answer for so long is stopped or lost."""


class ForkedRoot:
    """A forked trial that the kernel has made our child: what subprocess.Popen offers, for a pid."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Reap it if it has ended; its exit status, else None."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Reap it; raises subprocess.TimeoutExpired."""
        if self.poll() is None:
            fd = os.pidfd_open(self.pid)
            try:
                poller = select.poll()
                poller.register(fd, select.POLLIN)
                poller.poll(None if timeout is None else timeout * 1000)
            finally:
                os.close(fd)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(f"trial {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it was reaped."""
        if self.poll() is None:
            os.kill(self.pid, sig)


class Parent:
    """One process of worker/preload.py.

    Args:
        backend: what it imports.
        env: the import-time environment of its trials.
        trials: folder of the trial folders; its TMPDIR and its log lie in one of its own there, until `close`.
        import_s: it must be ready after so many seconds.

    Raises:
        OSError: it is not; nothing is left of it.
    """

    def __init__(self, backend: str, env: Mapping[str, str], trials: Path, import_s: float) -> None:
        self.tag = uuid.uuid4().hex
        self.folder = trials.resolve() / f".preload-{self.tag[:8]}"
        (self.folder / "tmp").mkdir(parents=True)
        self._not_its = own_children()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = [str(theirs.fileno()), self.tag, backend]
        with theirs, (self.folder / "log.txt").open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autotune.worker.preload", *own],
                env={**env, TAG: self.tag, "TMPDIR": str(self.folder / "tmp")},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            self._control.settimeout(import_s)
            if not self._control.recv(16):
                raise ConnectionError(self._last_words())
        except BaseException:
            self.close()
            raise

    def alive(self) -> bool:
        """False once the process has ended."""
        return self._process.poll() is None

    def fork(self, directory: TrialDir, env: Mapping[str, str]) -> ForkedRoot:
        """A trial, forked and begun.

        Raises:
            OSError: the parent does not answer; no trial of this call will begin.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = directory.path.resolve()
        request = {"directory": str(path), "cwd": str(path), "env": {name: env[name] for name in LATE if name in env}}
        with ours:
            with theirs, directory.log.open("ab") as out:
                self._control.settimeout(ANSWER_S)
                socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno(), out.fileno()])
            ours.settimeout(ANSWER_S)
            pid = ours.recv(32)
            if not pid:
                raise ConnectionError(self._last_words())
            ours.send(b"go")
            return ForkedRoot(int(pid))

    def close(self) -> None:
        """Kill it, and whatever it forked that did not become a trial."""
        self._control.close()
        kill_tree(self._process, self.tag, grace_s=0.0, spare=self._not_its)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "log.txt").read_text("utf-8", "replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return "it left no log"


class Preloaded:
    """The parents of a search; a context manager that ends them. Nothing is started before the first trial asks."""

    def __init__(self) -> None:
        self._parents: dict[tuple[str, frozenset[tuple[str, str]]], Parent] = {}
        self._failures = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._parents:
            self._parents.popitem()[1].close()

    def start(self, spec: TrialSpec, directory: TrialDir, env: Mapping[str, str], cold: Callable[[], Root]) -> Start:
        """How this trial starts: from a parent where it may, else `cold`.

        The first trial of an environment waits here for the imports, as it would if it started cold, and before its
        process tree is timed: no import runs while another trial measures.
        """
        start = Start(cold, directory, env, self)
        if spec.role in WARM_ROLES and spec.n_ranks == 1:
            start.parent = self._parent(spec, directory, env)
        return start

    def _parent(self, spec: TrialSpec, directory: TrialDir, env: Mapping[str, str]) -> Parent | None:
        key = (spec.backend, frozenset((name, value) for name, value in env.items() if name not in LATE))
        found = self._parents.get(key)
        if found and not found.alive():
            self.failed(found, "it has ended")
            found = None
        if found is None:
            if self._failures >= MAX_FAILURES:
                return None
            while len(self._parents) >= MAX_PARENTS:
                self._parents.pop(next(iter(self._parents))).close()
            import_s = min(spec.deadlines.import_s, spec.deadlines.total_s)
            try:
                found = Parent(spec.backend, env, directory.path.parent, import_s)
            except OSError as e:
                self._count(e)
                return None
        self._parents.pop(key, None)
        self._parents[key] = found  # last: used most recently
        return found

    def failed(self, parent: Parent, why: object) -> None:
        """Give a parent up."""
        self._parents = {key: p for key, p in self._parents.items() if p is not parent}
        parent.close()
        self._count(why)

    def _count(self, why: object) -> None:
        self._failures += 1
        log.warning("a preloaded parent failed, the trial starts cold: %s", why)


@dataclass(slots=True)
class Start:
    """Starts one trial; `warm` then says whether a parent forked it."""

    cold: Callable[[], Root]
    directory: TrialDir
    env: Mapping[str, str]
    preloaded: Preloaded
    parent: Parent | None = None
    warm: bool = False

    def __call__(self) -> Root:
        """The root process, in a session of its own."""
        if self.parent:
            try:
                root = self.parent.fork(self.directory, self.env)
            except OSError as e:
                self.preloaded.failed(self.parent, e)
            else:
                self.warm = True
                return root
        return self.cold()
