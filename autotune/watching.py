"""How does a training in progress go, and if it is slow, why? `autotune watch`; it only reads, and seldom.

The training may be anybody's `yolo train` or our own `autotune train`. What it writes is enough to know its speed;
NVML and /proc tell what the machine does meanwhile, whoever makes it do so.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from autotune.contract import Winner, read_json
from autotune.errors import EXIT_OK, AutotuneError, InputError
from autotune.folders import find_winner
from autotune.machine.activity import Activity, HostCounters
from autotune.machine.facts import read_machine, resolve_gpus
from autotune.machine.gpu_activity import GpuActivity, Gpus, looking_at
from autotune.machine.nvml import SLOWED_BY
from autotune.report import words
from autotune.report.epochs import Training, against, drift, read_training, same_job, stale, summary
from autotune.report.receipt import Receipt, read_receipt
from autotune.search.budget import parse_budget

LEAST_S: Final = 1.0
"""Between two looks: nothing on a machine that trains spins."""
ONCE_LOOKS: Final = 5
ONCE_S: Final = 0.5
"""Between the looks of --once."""
KEPT_LOOKS: Final = 30
"""The last so many looks say why it is slow now."""
IDLE_FRAC: Final = 0.70
"""A GPU that works for less of the time than this waits for something."""
BUSY_FRAC: Final = 0.85
"""Cores that are busier than this are all busy."""
PRESSURE: Final = 10.0
"""Per cent of the time in which some task waits (KNOBS 4, check 27)."""
PLACES: Final = ("*/args.yaml", "*/*/args.yaml", "runs/*/*/args.yaml", "runs/*/*/*/args.yaml")
"""Where Ultralytics puts a save_dir, seen from the folder that it was started in."""

EARLY: Final = frozenset({"weights"})
"""What Ultralytics makes in a save_dir before args.yaml (engine/trainer.py)."""

Say = Callable[[str], object]


@dataclass(slots=True)
class Signs:
    """What the machine did at the last looks."""

    cores: list[float] = field(default_factory=list)
    """Share of the usable cores that was busy since the look before."""
    psi_cpu: list[float] = field(default_factory=list)
    psi_io: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    """Of the GPUs, mean."""
    slowed: list[str | None] = field(default_factory=list)
    """What lowered a clock: `GPU 0 is slowed down by heat`."""
    crowds: list[str | None] = field(default_factory=list)
    """A GPU with more processes than a training has: `2 processes compute on GPU 0`."""

    def add(self, before: Activity, now: Activity, names: Sequence[str], gpus: Sequence[GpuActivity], at: Gpus) -> None:
        """Take in a look."""
        total_s = None if now.cpus_s is None or before.cpus_s is None else now.cpus_s - before.cpus_s
        if total_s and now.busy_s is not None and before.busy_s is not None:
            self.cores.append((now.busy_s - before.busy_s) / total_s)
        self.psi_cpu += [now.psi_cpu] if now.psi_cpu is not None else []
        self.psi_io += [now.psi_io] if now.psi_io is not None else []
        utils = [g.util_frac for g in gpus if g.util_frac is not None]
        self.busy += [fmean(utils)] if utils else []
        self.slowed.append(next((s for n, g in zip(names, gpus, strict=True) if (s := _slowed(n, g))), None))
        users = at.users()
        crowd = [(n, len(users.get(gpu, ()))) for n, gpu in zip(names, at.gpus, strict=True)]
        self.crowds.append(next((f"{k} processes compute on GPU {n}" for n, k in crowd if k > 1), None))
        for column in (self.cores, self.psi_cpu, self.psi_io, self.busy, self.slowed, self.crowds):
            del column[:-KEPT_LOOKS]

    def says(self) -> str:
        """`GPU 41 % busy, cores 97 %`."""
        gpu = [f"GPU {words.percent(fmean(self.busy))} busy"] if self.busy else []
        cores = [f"cores {words.percent(fmean(self.cores))} busy"] if self.cores else []
        return ", ".join(gpu + cores)


def why(signs: Signs) -> str:
    """What of it can make a training slow; the surest first."""
    for column in (signs.slowed, signs.crowds):
        seen = [s for s in column if s]
        if seen:
            share = words.percent(len(seen) / len(column))
            more = ", one of them is not this training's" if column is signs.crowds else ""
            return f"{seen[-1]}{more} (at {share} of {words.plural(len(column), 'look')})"
    cores, cpu, io = (fmean(x) if x else None for x in (signs.cores, signs.psi_cpu, signs.psi_io))
    disk = f"tasks wait for the disk {io:.0f} % of the time" if io is not None and io > PRESSURE else None
    full = f"cores {words.percent(cores)} busy" if cores is not None and cores > BUSY_FRAC else None
    if full and cpu is not None and cpu > PRESSURE:
        full += f", tasks wait for one {cpu:.0f} % of the time"
    if signs.busy and fmean(signs.busy) < IDLE_FRAC:
        gpu = f"GPU {words.percent(fmean(signs.busy))} busy"
        if disk or full:
            return f"{gpu}, {disk or full}: the loader is the limit"
        return f"{gpu}, and neither cores nor disk are: too few loader workers, or work too small for the GPU"
    if full and not signs.busy:
        return f"{full}: the cores are the limit, or somebody else computes here"
    return disk or full or "nothing that can be seen from outside explains it"


def _slowed(name: str, gpu: GpuActivity) -> str | None:
    cause = next((cause for bit, cause in SLOWED_BY.items() if (gpu.reasons or 0) & bit), None)
    clock = "" if gpu.sm_hz is None else f", it runs at {gpu.sm_hz / 1e6:.0f} MHz"
    return f"GPU {name} is slowed down by {cause}{clock}" if cause else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is to be watched."""

    folder: Path | None
    """The save_dir; None: to be found, the winner's."""
    winner: Winner | None = None
    receipt: Receipt | None = None
    here: Path = field(default_factory=Path.cwd)

    def training(self) -> Training | None:
        """What there is of it now; None: nothing yet."""
        folder = self.folder or self._newest()
        found = None if folder is None else read_training(folder)
        return found if found and (found.args or found.rows) else None

    def _newest(self) -> Path | None:
        """The last training of the winner's job that was started below this folder, or where the winner says."""
        assert self.winner is not None
        project = self.winner.train_args.get("project")
        roots = {self.here: PLACES, **({self.here / str(project): PLACES[:2]} if project else {})}
        found = {path for root, patterns in roots.items() for pattern in patterns for path in root.glob(pattern)}
        fit = [path for path in found if same_job(self.winner, read_training(path.parent).args)]
        return max(fit, key=lambda path: path.stat().st_mtime).parent if fit else None


def what_to_watch(path: str, run: str | None, here: Path | None = None) -> Watched:
    """The two folders, as typed.

    Args:
        path: a save_dir of Ultralytics, or a run folder or its best/: then the winner's training is looked for.
        run: a run folder whose promise a save_dir is held against.
        here: where the training was started; None: the current folder.

    Raises:
        InputError: `run` has no winner or no receipt, or `path` is something else.
    """
    folder, here = Path(path), here or Path.cwd()
    promised = run if run is not None else path
    if run is None and not any((folder / name).is_file() for name in ("run.json", "winner.json")):
        _refuse_another(folder)
        return Watched(folder=folder, here=here)
    found = find_winner(promised)
    winner, receipt = read_json(found, Winner), read_receipt(found.parent)
    if run is not None:
        _refuse_another(folder)
    return Watched(folder=None if run is None else folder, winner=winner, receipt=receipt, here=here)


def _refuse_another(folder: Path) -> None:
    """A training may not have begun yet, but a folder in which something else lies will never be one.

    Raises:
        InputError: such a folder, or no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", f"give the folder that YOLO writes into, such as {folder.parent}")
    names: set[str] = set()
    with contextlib.suppress(OSError):  # not there yet, or not ours to look into
        names = {p.name for p in folder.iterdir()}
    if not names - EARLY or names & {"args.yaml", "results.csv"}:
        return
    found = {path for pattern in PLACES for path in folder.glob(pattern)}
    newest = max(found, key=lambda path: path.stat().st_mtime).parent if found else None
    hint = "give the folder that YOLO writes into, such as runs/detect/train" if newest is None else f"give {newest}"
    raise InputError(f"{folder} holds no training: neither args.yaml nor results.csv", hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is said at one look."""

    lines: tuple[str, ...]
    news: tuple[object, ...]
    """Another one than at the look before is worth saying; that a load has changed by a per cent is not."""
    ended: bool
    """The last epoch has."""


def look_at(training: Training, watched: Watched, signs: Signs, now: float) -> View:
    """How far, the promise or the drift, and where that is slow, why; `now` is time.time()."""
    if not training.rows:
        return View(lines=(f"no epoch has ended yet; {signs.says()}",), news=(), ended=False)
    lines, slow = [summary(training)], False
    if watched.winner and watched.receipt:
        kept = against(training, watched.winner, watched.receipt)
        lines.append(kept if isinstance(kept, str) else kept.sentence)
        slow = not isinstance(kept, str) and kept.status == "not_kept" and (kept.ratio or 0.0) > 1
    if changed := drift(training):
        lines.append(changed[1])
        slow = slow or changed[0] > 1
    if said := signs.says():
        lines.append(said)
    reason = f"why: {why(signs)}" if slow else ""
    stopped = stale(training, now)
    return View(
        lines=(*lines, *(line for line in (reason, stopped) if line)),
        news=(training.n_done, bool(stopped), re.sub(r"[\d.]+", "", reason)),
        ended=training.n_done == training.n_epochs,
    )


def watch(
    path: str,
    *,
    run: str | None = None,
    once: bool = False,
    every: str = "10s",
    say: Say = lambda line: None,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.time,
    here: Path | None = None,
    nvml: Any = None,
) -> int:
    """The whole job of `autotune watch`.

    Args:
        path: see what_to_watch.
        run: see what_to_watch.
        once: look once, for a moment, and end.
        every: between two looks.
        say: given the lines; again only where an epoch has ended or what is said of it has changed.
        sleep: a test's own; it is given seconds.
        clock: time.time, for what is said of the age of files.
        here: see what_to_watch.
        nvml: the pynvml module, or a fake of it.

    Returns:
        Exit code 0: the training has come to its last epoch, or was looked at once.

    Raises:
        InputError: wrong flags.
        KeyboardInterrupt: Ctrl-C; nothing is to be cleaned up.
    """
    every_s = parse_budget(every, "--every")
    if every_s < LEAST_S:
        raise InputError(f"--every {every} would disturb the training", f"{LEAST_S:.0f}s or more")
    watched = what_to_watch(path, run, here)
    what = "a training of this run's winner" if watched.folder is None else str(watched.folder)
    training = watched.training()
    if training is None:
        say(f"{what}: nothing of a training there yet{'' if once else '; waiting'}")
    while training is None:
        if once:
            return EXIT_OK
        sleep(every_s)
        training = watched.training()
    say(f"watching {training.folder}")
    gpus, names = _gpus(training)
    news: tuple[object, ...] | None = None
    with looking_at(gpus, nvml) as at:
        signs, counters = Signs(), HostCounters()
        before = counters.look()
        while True:
            for _ in range(ONCE_LOOKS if once else 1):
                sleep(ONCE_S if once or news is None else every_s)
                now = counters.look()
                signs.add(before, now, names, at.look(), at)
                before = now
            view = look_at(read_training(training.folder), watched, signs, clock())
            if view.news != news:
                for line in view.lines:
                    say(line)
            news = view.news
            if once or view.ended:
                return EXIT_OK


def _gpus(training: Training) -> tuple[tuple[str, ...], list[str]]:
    """UUIDs of its GPUs and what they are called; none of a training on the CPU, or of GPUs that are not here."""
    machine = read_machine()
    with contextlib.suppress(AutotuneError):
        _, gpus = resolve_gpus(None, training.args.get("device"), machine)
        return gpus, [str(g.index) for uuid in gpus for g in machine.gpus if g.uuid == uuid]
    return (), []
