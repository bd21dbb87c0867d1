"""Where do images come from, how fast, and is there room for what is written? (KNOBS 4: 24, 25, 26)"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from autotune.machine.checks.cpu import IMAGE_CPU_S
from autotune.machine.checks.finding import Finding, Subject, ok, unknown
from autotune.machine.host import Space
from autotune.machine.limits import meminfo
from autotune.machine.memory import spell_size as size

IMAGES: Final = (".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp", ".pfm", ".heic")
N_FILES: Final = 200
MOST_LISTED: Final = 20_000
"""Files among which they are drawn: listing a million takes longer than reading 200."""
READ_LIMIT_S: Final = 3.0
SLOW_OPEN_S: Final = 0.01
"""Ultralytics' own limit for a stat of an image (data/utils.py)."""
RUN_BYTES: Final = 2 << 30
"""A run folder with its trials, and one checkpoint of a large model."""
LEAST_BYTES: Final = 200 << 20
RUN_INODES: Final = 20_000
"""Links to the images are made in the run folder, one an image and a label; this many at least."""


def file_system(subject: Subject) -> Finding | None:
    """24: what kind of disk the dataset lies on."""
    folder, mount = subject.plan.data, subject.machine.data
    if folder is None:
        return None
    if mount is None:
        return unknown(f"it cannot be read on which file system {folder} lies")
    evidence = (
        f"{folder} is on {mount.kind}, mounted at {mount.point}" + (f" from {mount.source}" if mount.source else ""),
    )
    if mount.network:
        says = f"the dataset lies on {mount.kind}: each image is asked for over the network or from another kernel"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy="copy it to a local disk, or cache=ram")
    if mount.rotational:
        have, need = meminfo(subject.host).get("MemAvailable"), subject.plan.image_bytes
        says = "the dataset lies on a disk that turns: random images take about 10 ms each"
        if have is not None and need is not None and need < have:
            says = f"the dataset lies on a disk that turns; memory holds its {size(need)} after the first epoch"
            return Finding(verdict="info", says=says, evidence=evidence)
        return Finding(verdict="warn", says=says, evidence=evidence, remedy="copy it to an SSD, or cache=ram")
    return ok(f"the dataset lies on {mount.kind}", *evidence)


def read_speed(subject: Subject, clock: Callable[[], float] = time.perf_counter) -> Finding | None:
    """25: 200 random images, dropped from the page cache first, read by as many threads as there are loader workers."""
    plan, host = subject.plan, subject.host
    if plan.data is None:
        return None
    root = host.root / plan.data.lstrip("/")
    listed = list(itertools.islice(_images(root), MOST_LISTED))
    if not listed:
        return unknown(f"no image found below {plan.data}")
    files = random.Random(0).sample(listed, min(N_FILES, len(listed)))
    dropped = [_drop(path) for path in files]
    threads = max(1, min(plan.workers, 32))
    began = clock()

    def read(path: Path) -> tuple[int, float] | None:
        """Bytes, and seconds until it was open; None: not read."""
        at = clock()
        if at - began > READ_LIMIT_S:
            return None
        try:
            with path.open("rb", buffering=0) as file:
                opened = clock() - at
                return len(file.readall()), opened
        except OSError:
            return None

    with ThreadPoolExecutor(threads) as pool:
        done = [r for r in pool.map(read, files) if r is not None]
    took_s = clock() - began
    if not done or took_s <= 0:
        return unknown(f"none of {len(files)} images below {plan.data} could be read")
    rate, mb_per_s = len(done) / took_s, sum(n for n, _ in done) / took_s / 1e6
    open_p99_s = sorted(s for _, s in done)[min(len(done) - 1, int(0.99 * len(done)))]
    ceiling = subject.machine.n_cores / IMAGE_CPU_S
    cold = sum(dropped)
    evidence = (
        f"{len(done)} images with {threads} threads: {rate:.0f} images/s, {mb_per_s:.0f} MB/s, 99 % open within "
        f"{1000 * open_p99_s:.1f} ms; {cold} were dropped from the page cache before",
        f"{subject.machine.n_cores} cores prepare {ceiling:.0f} images/s at most ({1000 * IMAGE_CPU_S} ms each)",
    )
    if rate >= ceiling and open_p99_s < SLOW_OPEN_S:
        return ok(f"{rate:.0f} images/s from the disk, more than the cores can prepare", *evidence)
    slow = (
        f"{rate:.0f} images/s from the disk" if rate < ceiling else f"an image takes {1000 * open_p99_s:.0f} ms to open"
    )
    have = meminfo(host).get("MemAvailable", 0)
    if plan.image_bytes is not None and plan.image_bytes < have:
        says = f"{slow}; memory holds all {size(plan.image_bytes)} after the first epoch"
        return Finding(verdict="info", says=says, evidence=evidence)
    remedy = "a faster disk, cache=disk on a local one, or smaller copies of the images"
    return Finding(verdict="warn", says=f"{slow}: slower than the cores", evidence=evidence, remedy=remedy)


def _images(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in sorted(names) if name.lower().endswith(IMAGES))


def _drop(path: Path) -> bool:
    """Take a file out of the page cache; the kernel keeps pages that are being written."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def disk_space(subject: Subject) -> Finding:
    """26: room, inodes and permission where run folders and temporary files go."""
    host, plan = subject.host, subject.plan
    out = _existing(subject, Path(plan.out).absolute())
    tmp = _existing(subject, Path(host.env.get("TMPDIR") or "/tmp").absolute())
    spaces = {str(f): host.space(f) for f in dict.fromkeys((out, tmp))}
    space = spaces[str(out)]
    if space is None:
        return unknown(f"it cannot be read how much room {out} has")
    evidence = tuple(_told(folder, s) for folder, s in spaces.items() if s is not None)
    other = "another folder: --out" if plan.out else ""
    if not host.writable(out):
        says = f"{out} is not writable: there is no place for results"
        return Finding(verdict="fail", says=says, evidence=evidence, remedy=other)
    if not host.writable(tmp):
        says = f"{tmp} is not writable: there is no place for temporary files"
        return Finding(verdict="fail", says=says, evidence=evidence, remedy="name a folder that is: TMPDIR=...")
    for folder, s in spaces.items():
        if s is not None and (s.free_bytes < LEAST_BYTES or s.free_inodes == 0):
            what = f"{size(s.free_bytes)} free" if s.free_inodes != 0 else "no more files can be made"
            says = f"{folder} is full ({what}): trials would end with errors"
            return Finding(verdict="fail", says=says, evidence=evidence, remedy=f"free some, or {other}")
    inodes = max(RUN_INODES, 2 * (plan.n_images or 0))
    if space.free_bytes < RUN_BYTES or (space.free_inodes is not None and space.free_inodes < inodes):
        says = f"{size(space.free_bytes)} free in {out}"
        if space.free_bytes >= RUN_BYTES:
            says = f"{space.free_inodes} more files fit in {out}, links to the dataset may need {inodes}"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=f"free some, or {other}")
    if plan.cache == "disk" and plan.n_images and plan.image_hw:
        need = round(1.1 * plan.n_images * plan.image_hw[0] * plan.image_hw[1] * 3)
        if need > space.free_bytes:
            says = f"cache=disk wants {size(need)}, {out} has {size(space.free_bytes)} free: it would not cache"
            return Finding(verdict="warn", says=says, evidence=evidence, remedy=f"cache=ram, or {other}")
    return ok(f"{size(space.free_bytes)} free for results", *evidence)


def _existing(subject: Subject, folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    root = subject.host.root
    return next(p for p in (folder, *folder.parents) if (root / str(p).lstrip("/")).exists() or p == p.parent)


def _told(folder: str, space: Space) -> str:
    inodes = "" if space.free_inodes is None else f", {space.free_inodes} more files"
    return f"{folder}: {size(space.free_bytes)} of {size(space.total_bytes)} free{inodes}"


DATA: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "dataset file system": file_system,
    "disk space": disk_space,
}
READS: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "read speed": read_speed,
}
"""These read the user's files for up to some seconds: for the doctor, not for the start of a search."""
