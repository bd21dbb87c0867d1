"""What does the machine do while a trial runs? One thread looks at it four times a second and writes samples.csv."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TextIO

from autotune.contract import GPU_COLUMNS, HOST_COLUMNS
from autotune.machine.activity import Activity, HostCounters
from autotune.machine.gpu_activity import GpuActivity, Gpus, looking_at
from autotune.machine.process_tree import ProcessTree
from autotune.run.supervise import Root

log = logging.getLogger(__name__)

EVERY_S: Final = 0.25
"""DESIGN 8.7: nothing on the measured machine looks more often than five times a second."""
FIND_EVERY_S: Final = 2.0
"""New processes of the trial, and strangers on its GPUs, are looked for so often."""
END_S: Final = 5.0
"""A driver that has lost a GPU may never answer: the thread is waited for so long, and then left alone."""
N_ROUND: Final = 4

Number = float | int | None
_OF_GPU: Final = attrgetter(*GPU_COLUMNS)


@dataclass(frozen=True, slots=True)
class Row:
    """One look: seconds since the trial's processes were started, HOST_COLUMNS after `measuring`, and each GPU."""

    t_s: float
    host: tuple[Number, ...]
    gpus: tuple[GpuActivity, ...]


@dataclass(slots=True)
class Samples:
    """What was seen. `began_s` is the clock (that of RankRecord.began_s) where t_s counts from."""

    gpus: tuple[str, ...] = ()
    began_s: float = 0.0
    rows: list[Row] = field(default_factory=list)
    strangers: list[tuple[float, str]] = field(default_factory=list)
    """Seconds as in Row, and who computed on the trial's GPUs then and does not belong to it."""


class Sampler:
    """Looks, in a thread of its own from `follow` to `end`; NVML has to be open for as long.

    Args:
        gpus: of the trial.
        path: samples.csv; a row is in the file as soon as it is seen.
        root: of the file system, for tests.
        clock: seconds, the clock of RankRecord.began_s.
        every_s: between two looks.
    """

    def __init__(
        self,
        gpus: Gpus,
        path: Path,
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
    ) -> None:
        self.samples = Samples(gpus.gpus)
        self.path = path
        self._gpus, self._root, self._clock, self._every_s = gpus, root, clock, every_s
        self._host = HostCounters(root)
        self._before = frozenset[int]().union(*gpus.users().values())
        self._tree: ProcessTree | None = None
        self._file: TextIO | None = None
        self._last: tuple[float, Activity, float | None] | None = None
        self._energy_j: list[float | None] = [None] * len(gpus.gpus)
        self._next_find_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autotune-samples", daemon=True)

    def starting(self, start: Callable[[], Root]) -> Callable[[], Root]:
        """The same start, and the thread begins when it is done."""

        def started() -> Root:
            root = start()
            self.begin(root.pid)
            self._thread.start()
            return root

        return started

    def begin(self, pid: int) -> None:
        """The trial's first process is there: its time counts from now."""
        self.samples.began_s = self._clock()
        self._tree = ProcessTree(pid, self._root)
        with contextlib.suppress(OSError):  # a full disk: the trial's own files will tell
            self._file = self.path.open("w", buffering=1, encoding="utf-8")
            self._file.write(_line(columns(len(self.samples.gpus))))

    def end(self) -> None:
        """No more looks."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(END_S)
        if self._file is not None and not self._thread.is_alive():
            self._file.close()

    def _run(self) -> None:
        self.look()
        while not self._ended.wait(self._every_s):
            self.look()

    def look(self) -> None:
        """Add a row."""
        assert self._tree is not None
        now_s = self._clock() - self.samples.began_s
        if now_s >= self._next_find_s:
            self._next_find_s = now_s + FIND_EVERY_S
            self._tree.find()
            self.samples.strangers += [(now_s, who) for who in self._strangers(self._tree)]
        activity, tree = self._host.look(), self._tree.look()
        computed_s, rss_bytes = tree or (None, None)
        host = _host_values(activity, computed_s, rss_bytes, now_s, self._last)
        self._last = (now_s, activity, computed_s)
        row = Row(now_s, host, tuple(self._since_first(i, g) for i, g in enumerate(self._gpus.look())))
        self.samples.rows.append(row)
        if self._file is not None:
            try:
                self._file.write(_line(_cells(row, None)))
            except OSError as e:
                log.warning("%s: %s", self.path, e)
                self._file = None

    def _since_first(self, i: int, gpu: GpuActivity) -> GpuActivity:
        """Its energy counts from the first row."""
        if gpu.energy_j is None:
            return gpu
        first = self._energy_j[i]
        if first is None:
            first = self._energy_j[i] = gpu.energy_j
        return replace(gpu, energy_j=gpu.energy_j - first)

    def _strangers(self, tree: ProcessTree) -> Iterator[str]:
        """Who came to a GPU of the trial after it had begun, and is none of it.

        NVML has the host's process numbers, which mean nothing in a container with numbers of its own: nobody is
        called a stranger where NVML does not show one of the trial's own processes beside him.
        """
        users = self._gpus.users()
        if any(pids - tree.pids - self._before for pids in users.values()):
            tree.find()  # he may be a rank that was born a moment ago
        for gpu, pids in users.items():
            if pids & tree.pids:
                for pid in sorted(pids - tree.pids - self._before):
                    yield f"process {pid}{self._name(pid)} computed on GPU {gpu}"

    def _name(self, pid: int) -> str:
        with contextlib.suppress(OSError):
            return f" ({(self._root / 'proc' / str(pid) / 'comm').read_text(errors='replace').strip()})"
        return ""


@contextmanager
def sampling(gpus: Sequence[str], path: Path, nvml: Any = None) -> Iterator[Sampler]:
    """A sampler with NVML open; the one looker of a trial.

    Args:
        gpus: of the trial, as in machine.gpu_activity.Gpus.
        path: samples.csv.
        nvml: the pynvml module, or a fake of it.
    """
    with looking_at(gpus, nvml) as looker:
        sampler = Sampler(looker, path)
        try:
            yield sampler
        finally:
            sampler.end()


def columns(n_gpus: int) -> tuple[str, ...]:
    """Of samples.csv."""
    return (*HOST_COLUMNS, *(f"gpu{i}_{name}" for i in range(n_gpus) for name in GPU_COLUMNS))


def write_samples(path: Path, samples: Samples, window: tuple[float, float]) -> None:
    """samples.csv anew, whole or not at all, now that the measured window is known.

    Args:
        path: of the file.
        samples: what was seen.
        window: seconds, as in Row.
    """
    tmp = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(OSError):  # what the thread wrote stays
        with tmp.open("w", encoding="utf-8") as f:
            f.write(_line(columns(len(samples.gpus))))
            f.writelines(_line(_cells(row, int(window[0] <= row.t_s <= window[1]))) for row in samples.rows)
        tmp.replace(path)


def _host_values(
    now: Activity,
    tree_s: float | None,
    rss_bytes: int | None,
    t_s: float,
    last: tuple[float, Activity, float | None] | None,
) -> tuple[Number, ...]:
    """HOST_COLUMNS after `measuring`; what is a rate has none in the first row."""
    last_s, before, last_tree_s = last or (t_s, now, tree_s)
    took_s = t_s - last_s

    def rate(x: float | None, x0: float | None) -> float | None:
        return None if x is None or x0 is None or took_s <= 0 else (x - x0) / took_s

    busy, cpus = rate(now.busy_s, before.busy_s), rate(now.cpus_s, before.cpus_s)
    throttled = rate(now.throttled_s, before.throttled_s)
    return (
        busy / cpus if busy is not None and cpus else None,
        rate(tree_s, last_tree_s),
        rss_bytes,
        now.shm_used_bytes,
        rate(now.disk_read_bytes, before.disk_read_bytes),
        rate(now.disk_write_bytes, before.disk_write_bytes),
        rate(now.net_rx_bytes, before.net_rx_bytes),
        rate(now.net_tx_bytes, before.net_tx_bytes),
        now.psi_cpu,
        now.psi_io,
        now.psi_memory,
        None if throttled is None else min(1.0, throttled),
    )


def _cells(row: Row, measuring: int | None) -> Iterable[Number]:
    return (row.t_s, measuring, *row.host, *(x for gpu in row.gpus for x in _OF_GPU(gpu)))


def _line(cells: Iterable[Number | str]) -> str:
    return ",".join("" if c is None else str(round(c, N_ROUND) if isinstance(c, float) else c) for c in cells) + "\n"
