"""Which processes belong to a running trial, how much do they compute and how much memory do they hold?

Looked at a few times a second while others measure, so it is cheap: a process is judged once, when it is first seen,
and after that only the members are read. run/supervise.py, which must miss nobody, looks at everything each time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from autotune.machine.activity import TICKS_PER_S, read_bytes

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class _Stat(NamedTuple):
    """Of /proc/PID/stat (proc_pid_stat(5))."""

    ppid: int
    session: int
    cpu_s: float
    rss_bytes: int


class ProcessTree:
    """The root of a trial, its descendants, and whoever is in a session that one of them opened.

    Args:
        root_pid: first process of the trial, leader of its own session.
        root: of the file system, for tests.
    """

    def __init__(self, root_pid: int, root: Path = Path("/")) -> None:
        self._proc, self._root_pid = str(root / "proc"), root_pid
        self.pids = {root_pid}
        self._strangers: set[int] = set()
        self._cpu_s: dict[int, float] = {}
        self._computed_s = 0.0

    def find(self) -> None:
        """Look for new members; those that have ended are forgotten."""
        alive = {int(name) for name in os.listdir(self._proc) if name.isdigit()}  # noqa: PTH208 - twice as fast
        self.pids &= alive
        self._strangers &= alive  # a number that was given anew must be judged anew
        new = {pid: s for pid in alive - self.pids - self._strangers if (s := self._read(pid))}
        while more := {pid for pid, s in new.items() if self._belongs(s)}:
            self.pids |= more
            new = {pid: s for pid, s in new.items() if pid not in more}
        self._strangers |= set(new)

    def _belongs(self, s: _Stat) -> bool:
        """A session has the number of its leader, also when that has ended."""
        return s.ppid in self.pids or s.session in self.pids or s.session == self._root_pid

    def look(self) -> tuple[float, int] | None:
        """CPU seconds of all members since they were first seen, the ended ones' included, and bytes resident now.

        Pages that several members share count once each. None when no member is left.
        """
        rss_bytes, seen = 0, False
        for pid in tuple(self.pids):
            s = self._read(pid)
            if s is None:
                continue
            seen = True
            self._computed_s += max(0.0, s.cpu_s - self._cpu_s.get(pid, s.cpu_s))
            self._cpu_s[pid] = s.cpu_s
            rss_bytes += s.rss_bytes
        return (self._computed_s, rss_bytes) if seen else None

    def _read(self, pid: int) -> _Stat | None:
        text = read_bytes(f"{self._proc}/{pid}/stat")
        words = text[text.rfind(b")") + 2 :].split()  # the name before it may hold spaces and brackets
        if len(words) < 22 or words[0] in b"ZX":
            return None
        ticks = int(words[11]) + int(words[12])
        return _Stat(int(words[1]), int(words[3]), ticks / TICKS_PER_S, int(words[21]) * PAGE_BYTES)
