"""What does a dead trial leave behind on this machine, and how is it removed? Only what is provably nobody's."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from autotune.contract import TrialDir

log = logging.getLogger(__name__)

SHM = Path("/dev/shm")
OURS = re.compile(r"torch_(?P<pid>\d+)_.*|sem\.mp-.*|psm_.*|nccl-.*")
"""Tensors of torch's strategy file_system, semaphores and blocks of multiprocessing, NCCL's buffers (KNOBS 5.3)."""
MIN_FREE_BYTES = 1 << 16
"""A file system with less is full: log and record need a few blocks."""


def list_shared_memory(root: Path = SHM) -> frozenset[str]:
    """Names in shared memory; taken before a trial starts, they tell later what is new."""
    with contextlib.suppress(OSError):
        return frozenset(path.name for path in root.iterdir())
    return frozenset()


def orphaned(before: Collection[str], root: Path = SHM) -> list[Path]:
    """What trials leave in shared memory: ours by name and owner, new, mapped or open in no process.

    Args:
        before: names that were there before the trial, and are not its own.
        root: the folder; a test's own in place of /dev/shm.
    """
    new = [root / name for name in sorted(list_shared_memory(root) - frozenset(before)) if _may_be_ours(root / name)]
    # Nearly always there is none, and the look into every process is not cheap.
    used = set(_used_inodes(root)) if new else set()
    found = []
    for path in new:
        with contextlib.suppress(OSError):
            if path.lstat().st_ino not in used:
                found.append(path)
    return found


def remove_shared_memory(before: Collection[str], root: Path = SHM) -> list[str]:
    """Remove what a trial left in shared memory (see `orphaned`); call it when its tree is dead.

    Returns:
        The names removed.
    """
    removed = []
    for path in orphaned(before, root):
        with contextlib.suppress(OSError):
            path.unlink()
            removed.append(path.name)
    if removed:
        log.info("removed from %s: %s", root, ", ".join(removed))
    return removed


def remove_private_folders(directory: TrialDir) -> None:
    """The trial's TMPDIR and the folder that YOLO writes to."""
    for folder in (directory.tmp, directory.path / "yolo"):
        shutil.rmtree(folder, ignore_errors=True)


def disk_full(folder: Path) -> str | None:
    """The line that says so when the file system of this folder has no room left, else None (no folder either)."""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < MIN_FREE_BYTES:
            return f"No space left on device: {folder} has {free} bytes free"
    return None


def _may_be_ours(path: Path) -> bool:
    """The name is of the right kind, the file is this user's, and the process in its name, if any, is dead."""
    name = OURS.fullmatch(path.name)
    if not name:
        return False
    pid = name["pid"]
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.geteuid() and not (pid and Path("/proc", pid).exists())
    return False


def _used_inodes(root: Path) -> Iterator[int]:
    """Inodes of root's file system that any process has mapped or open, as far as we may look.

    Not names: sem_open maps a temporary file and then links it, so a semaphore in use is shown by a name that is gone.
    """
    with contextlib.suppress(OSError):
        device = root.stat().st_dev
        shown = f"{os.major(device):02x}:{os.minor(device):02x}"
        prefix = f"{root.resolve()}/"
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                yield from _mapped(process, shown)
                yield from _open(process, prefix, device)


def _mapped(process: Path, device: str) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text("utf-8", "replace").splitlines():
            fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, name
            if fields[3] == device:
                yield int(fields[4])


def _open(process: Path, prefix: str, device: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(fd.readlink()).startswith(prefix):  # to ask every file could wait for a dead network disk
                    status = fd.stat()
                    if status.st_dev == device:
                        yield status.st_ino
